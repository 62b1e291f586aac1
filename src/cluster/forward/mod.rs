//! Calls of tools that are placed on other instances: handed over to the least loaded one that has the tool, and answered
//! as if they had run here. What a call is given goes along (whose it is, what is left of its time, what its client hears
//! and can be asked), and dropping its future cancels it there.
//!
//! An instance that cannot be reached, is stopping, has no room or has not the tool is followed by the next, since nothing
//! ran; when all that have the tool are so, by one that could have it: what is seen of others is a moment old. One that is lost on the way is followed by another only where running twice is as running once; else the call
//! ends in an error that says that it may have run. What is handed over is not handed on.
//!
//! `peer` is one other instance, `listener` and `body` are how calls are taken over, `back` are questions to the client,
//! `wire` is what travels, and `proof` and `key` are how two instances know each other.

mod back;
mod body;
mod key;
mod listener;
mod peer;
mod proof;
mod session;
#[cfg(test)]
mod tests;
mod unproven;
mod wire;

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::{runtime::Handle, sync::watch, time::timeout_at};

pub(crate) use self::{
    key::Key,
    listener::{Limits, Listener, Outcome, Runs, Turned},
    wire::Hears,
};
use self::{
    peer::{Own, Peer, Sent, Why},
    wire::Call,
};
use super::node::Node;
use crate::{
    call::{Ctx, Reply},
    error::CallError,
};

/// Where who connects says who it is.
const HELLO: &str = "/hello";
/// Where it proves, in a request without a body, that it has the key: until then it is a stranger.
const KNOWN: &str = "/known";
/// Where calls are handed over.
const CALL: &str = "/call";
/// Where what they ask is answered.
const ANSWER: &str = "/answer";
/// That a request comes from who said hello.
const PROOF: &str = "bigiron-proof";
/// The form of what instances say to each other, of who is told that it speaks another one.
const FORM: &str = "bigiron-form";
/// Of an instance that takes nothing new.
const IS_STOPPING: &str = "bigiron-stopping";
/// Instances that one call is handed over to: where it may run, and runs again where that does no harm.
const ATTEMPTS: usize = 3;
/// Instances that are asked for one call. Most that do not take it say so at once.
const ASKED_MAX: usize = 8;
/// How long a call that nobody takes waits for news of others: somebody may have come whom this instance has not seen.
const NEWS_WITHIN: Duration = Duration::from_secs(1);
/// What a caller is told to wait whose call nobody takes.
const RETRY_AFTER_S: u32 = 1;

/// How calls are handed over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Config {
    pub(crate) connect_timeout: Duration,
    /// Size of a call; instances take over no larger ones.
    pub(crate) call_bytes_max: usize,
    /// Size of what comes back of a call.
    pub(crate) result_bytes_max: usize,
    /// Calls that one other instance is given at once.
    pub(crate) in_flight_max: usize,
}

/// What is counted.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Calls that came back with an outcome.
    pub(crate) answered: AtomicU64,
    /// Calls that nobody took.
    pub(crate) nowhere: AtomicU64,
    /// Calls that may have run, of which nothing came back.
    pub(crate) lost: AtomicU64,
    /// Attempts that were followed by another, and why.
    pub(crate) unreachable: AtomicU64,
    pub(crate) not_here: AtomicU64,
    pub(crate) stopping: AtomicU64,
    pub(crate) full: AtomicU64,
    pub(crate) strange: AtomicU64,
    pub(crate) broken: AtomicU64,
}

/// Hands calls over.
#[derive(Debug)]
pub(crate) struct Forwarder {
    own: Arc<Own>,
    key: Arc<ArcSwap<Key>>,
    call_bytes_max: usize,
    counts: Counts,
    peers: Mutex<BTreeMap<String, Arc<Peer>>>,
    /// The other instances of each tool that is placed.
    table: ArcSwap<HashMap<String, Others>>,
    /// Told when that was looked at anew.
    news: watch::Sender<()>,
    /// Deals calls out among those that stand the same.
    turn: AtomicUsize,
}

/// The other instances that can run a tool.
#[derive(Debug, Default)]
struct Others {
    /// Those that have it.
    placed: Vec<Arc<Peer>>,
    /// Those that could have it as well: for when the others come and go.
    spare: Vec<Arc<Peer>>,
}

/// Where a tool is, by the names of instances.
#[derive(Clone, Debug, Default)]
pub(crate) struct Places {
    pub(crate) tool: String,
    /// Those that have it.
    pub(crate) placed: Vec<String>,
    /// Those that can run it, and are not to as long as others do.
    pub(crate) spare: Vec<String>,
}

/// What a call wants of who runs it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted<'a> {
    pub(crate) tool: &'a str,
    /// Those that run it, to be told when none does.
    pub(crate) roles: &'a [String],
    /// Running it twice is as running it once.
    pub(crate) is_repeatable: bool,
    /// Nobody else is left when others do not take it.
    pub(crate) is_last: bool,
}

impl Forwarder {
    /// For the instance `id`, whose connections live in `runtime`.
    pub(crate) fn new(id: &str, key: Key, config: Config, runtime: Handle) -> Self {
        let key = Arc::new(ArcSwap::from_pointee(key));
        let own = Own {
            id: id.to_owned(),
            key: Arc::clone(&key),
            key_differs: tokio::sync::Notify::new(),
            runtime,
            connect_timeout: config.connect_timeout,
            // A frame has a few bytes besides; a question or a log message may be as large as a result.
            frame_bytes_max: config.result_bytes_max.saturating_add(64 * 1024),
            in_flight_max: config.in_flight_max,
        };
        Self {
            own: Arc::new(own),
            key,
            call_bytes_max: config.call_bytes_max,
            counts: Counts::default(),
            peers: Mutex::default(),
            table: ArcSwap::default(),
            news: watch::Sender::new(()),
            turn: AtomicUsize::new(0),
        }
    }

    /// The key of the deployment, as the listener needs it too.
    pub(crate) fn key(&self) -> &Arc<ArcSwap<Key>> {
        &self.key
    }

    /// Uses this key for connections from here on.
    pub(crate) fn take_over(&self, key: Key) {
        if **self.key.load() != key {
            self.key.store(Arc::new(key));
        }
    }

    /// Returns when another instance has another key.
    pub(crate) async fn key_differs(&self) {
        self.own.key_differs.notified().await;
    }

    /// Which instances there are, and which of them have which tool.
    pub(crate) fn see(&self, nodes: &[Node], table: impl IntoIterator<Item = Places>) {
        let peers = {
            let mut peers = self.peers.lock();
            let is_there = |peer: &Peer| nodes.iter().any(|node| node.id == peer.id && node.forwards == peer.at);
            peers.retain(|_, peer| is_there(peer));
            for node in nodes.iter().filter(|node| !node.forwards.is_empty() && node.id != self.own.id) {
                let new = || Arc::new(Peer::new(&node.id, &node.forwards, &self.own));
                peers.entry(node.id.clone()).or_insert_with(new).note_load(node.load, node.max_load);
            }
            peers.clone()
        };
        let of = |ids: &[String]| ids.iter().filter_map(|id| peers.get(id).cloned()).collect();
        let table = table.into_iter().map(|places| {
            let others = Others { placed: of(&places.placed), spare: of(&places.spare) };
            (places.tool, others)
        });
        self.table.store(Arc::new(table.collect()));
        self.news.send_replace(());
    }

    /// Has another instance run a call. `Err` when it is to be run by whoever else can: none did, for certain; or one
    /// may have, and it may be repeated. A call that is too large for the others is an error of its client.
    pub(crate) async fn call(
        &self,
        wanted: Wanted<'_>,
        arguments: &Value,
        ctx: &Ctx,
    ) -> Result<Result<Reply, CallError>, CallError> {
        let mut tried: Vec<Arc<Peer>> = Vec::new();
        let (mut handed_over, mut may_have_run, mut too_large, mut strange) = (0, false, 0, 0);
        let mut news_until = None;
        while tried.len() < ASKED_MAX && handed_over < ATTEMPTS {
            let now = Instant::now();
            let Some(peer) = self.best(wanted.tool, &tried, now) else {
                // Where nobody is known to have it, nobody is waited for, nor where those that have it were strange
                // before: then it is no moment in which one goes and another comes.
                let until = *news_until.get_or_insert(now + NEWS_WITHIN);
                if !wanted.is_last || tried.len() == strange || !self.has_news(wanted.tool, &tried, until).await {
                    break;
                }
                continue;
            };
            tried.push(Arc::clone(&peer));
            let body = Call::encode(wanted.tool, arguments, ctx, now);
            if body.len() > self.call_bytes_max {
                too_large = tried.len();
                break;
            }
            let counts = &self.counts;
            let was_strange = peer.is_strange();
            let count = match peer.call(&body, ctx).await {
                // Full, where it would have run: for one that may run twice, another may have room.
                Sent::Outcome(Err(CallError::Overloaded { .. } | CallError::Draining)) if wanted.is_repeatable => {
                    handed_over += 1;
                    &counts.full
                }
                Sent::Outcome(outcome) => {
                    counts.answered.fetch_add(1, Relaxed);
                    return Ok(outcome);
                }
                Sent::NotRun(why) => {
                    tracing::debug!(peer = peer.id, tool = wanted.tool, ?why, "a call was not taken over");
                    match why {
                        Why::Unreachable => &counts.unreachable,
                        Why::NotHere => &counts.not_here,
                        Why::Stopping => &counts.stopping,
                        Why::Full => &counts.full,
                        Why::TooLarge => {
                            too_large += 1;
                            &counts.full
                        }
                        Why::Strange => {
                            strange += usize::from(was_strange);
                            &counts.strange
                        }
                        Why::NotYet => &counts.strange,
                    }
                }
                Sent::MayHaveRun if wanted.is_repeatable => {
                    (handed_over, may_have_run) = (handed_over + 1, true);
                    &counts.broken
                }
                Sent::MayHaveRun => {
                    counts.lost.fetch_add(1, Relaxed);
                    tracing::warn!(peer = peer.id, tool = wanted.tool, "an instance was lost that ran a call of ours");
                    return Ok(Err(CallError::Lost));
                }
            };
            count.fetch_add(1, Relaxed);
        }
        Err(if may_have_run {
            CallError::Lost
        } else if too_large > 0 && too_large == tried.len() {
            CallError::InvalidParams(format!(
                "the arguments are too large: {:?} runs on another instance, and with them the call is more than the {} \
                 bytes that instances hand over (limits.request_bytes_max and 1 MiB); send less at once",
                wanted.tool, self.call_bytes_max
            ))
        } else {
            CallError::Nowhere {
                tool: wanted.tool.to_owned(),
                roles: wanted.roles.to_vec(),
                retry_after_s: RETRY_AFTER_S,
            }
        })
    }

    /// Counts a call that ends in this error, since it is not run here either.
    pub(crate) fn note_end(&self, error: &CallError) {
        let count = match error {
            CallError::Nowhere { .. } => &self.counts.nowhere,
            CallError::Lost => &self.counts.lost,
            _ => return, // its client's
        };
        count.fetch_add(1, Relaxed);
    }

    /// Waits until somebody is there who was not tried; false when nobody comes in time.
    async fn has_news(&self, tool: &str, tried: &[Arc<Peer>], until: Instant) -> bool {
        let mut news = self.news.subscribe();
        while self.best(tool, tried, Instant::now()).is_none() {
            if !matches!(timeout_at(until.into(), news.changed()).await, Ok(Ok(()))) {
                return false;
            }
        }
        true
    }

    /// The one to ask next, of those that can run the tool by now and were not tried: one that answers before one that has
    /// the tool, and of these the least loaded.
    fn best(&self, tool: &str, tried: &[Arc<Peer>], now: Instant) -> Option<Arc<Peer>> {
        let table = self.table.load();
        let others = table.get(tool)?;
        let first = self.turn.fetch_add(1, Relaxed);
        let in_turn = |peers: &[Arc<Peer>], is_spare: bool| {
            let left = (0..peers.len()).filter_map(|step| peers.get(first.wrapping_add(step) % peers.len()));
            let left = left.filter(|peer| !tried.iter().any(|other| Arc::ptr_eq(other, peer)));
            let best = left.min_by_key(|peer| (peer.is_failing(now), peer.load()))?;
            Some(((best.is_failing(now), is_spare), Arc::clone(best)))
        };
        let best = [in_turn(&others.placed, false), in_turn(&others.spare, true)].into_iter().flatten();
        best.min_by_key(|(standing, _)| *standing).map(|(_, peer)| peer)
    }

    pub(crate) fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Calls under way at others.
    pub(crate) fn in_flight(&self) -> usize {
        self.peers.lock().values().map(|peer| peer.in_flight()).sum()
    }
}
