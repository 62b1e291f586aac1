//! Who there is: each instance writes a heartbeat, looks at those of the others, and removes who has none any more. The
//! clock is Redis' own. What changes is told at once, and found with the next heartbeat where that was not heard.
//! Everything that is written expires by itself, so nothing is left when all are gone at once; what an empty Redis has
//! lost is there again with the next heartbeat.

use std::{
    collections::HashMap,
    fmt,
    pin::pin,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::stream::{self, StreamExt as _};
use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep_until},
};

use super::{
    keys::Keys,
    link::{Event, Link, LinkError, Refused, Script, Subscription, cmd},
    node::{Node, Status, is_id},
};

/// Who has been silent for so many periods is gone.
const PERIODS_TO_DEATH: u32 = 3;
/// What nobody renews expires after so many: later, so that a death is seen, and not only an absence.
const PERIODS_TO_EXPIRY: u32 = 6;
/// More nodes than this are not looked at.
const NODES_MAX: usize = 1000;
const ORDERS_MAX: usize = 8;
/// The longest time between two heartbeats while Redis takes no writes.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);
/// The least time between two looks for the news of others.
const NEWS_PAUSE: Duration = Duration::from_millis(500);

/// Writes a heartbeat. A process that takes a name over says so; one that finds its name taken leaves it alone.
static BEAT: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local run = redis.call('HGET', KEYS[1], 'run')
if run and run ~= ARGV[1] and ARGV[3] ~= 'take' then return -1 end
redis.call('HSET', KEYS[1], 'run', ARGV[1], 'lastHeartbeat', string.format('%.0f', now), unpack(ARGV, 4))
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return now",
    )
});

/// Reads a node, and removes it when its last heartbeat is older than may be; -1 removes none.
static LOOK: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local fields = redis.call('HGETALL', KEYS[1])
local dead_ms, beat = tonumber(ARGV[1]), nil
for i = 1, #fields, 2 do if fields[i] == 'lastHeartbeat' then beat = tonumber(fields[i + 1]) end end
if beat and dead_ms >= 0 and now - beat > dead_ms then
  redis.call('DEL', KEYS[1])
  return {now, 1, fields}
end
return {now, 0, fields}",
    )
});

/// Removes a node that this process wrote.
static LEAVE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"local run = redis.call('HGET', KEYS[1], 'run')
if run and run ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
return 1",
    )
});

/// Says whose the keys are, and renews it when they are ours.
static CLAIM: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"local owner = redis.call('GET', KEYS[1])
if owner and owner ~= ARGV[1] then return owner end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return ARGV[1]",
    )
});

/// Gives the keys up, when they are ours.
static UNCLAIM: LazyLock<Script> = LazyLock::new(|| {
    Script::new("if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0")
});

/// What an instance says of itself, asked at each heartbeat.
pub(crate) type Me = Box<dyn Fn() -> Option<About> + Send + Sync>;

/// The part of it that changes.
#[derive(Clone, Debug, Default)]
pub(crate) struct About {
    pub(crate) load: u64,
    pub(crate) max_load: u64,
    /// Those that it can run.
    pub(crate) tools: Vec<String>,
    /// Where it takes calls over from others; empty where it takes none.
    pub(crate) forwards: String,
}

/// The nodes as of one look.
#[derive(Clone, Debug)]
pub(crate) struct View {
    /// In the order of their ids.
    pub(crate) nodes: Vec<Node>,
    /// When that was.
    pub(crate) at: Instant,
}

/// What is counted.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Nodes that this one removed.
    pub(crate) reaped: AtomicU64,
    /// Heartbeats that Redis did not take.
    pub(crate) missed: AtomicU64,
    /// Records that nobody of ours can have written.
    pub(crate) corrupt: AtomicU64,
    /// Redis is there and refused the last heartbeat: it is full, or takes no writes.
    pub(crate) is_refused: AtomicBool,
}

/// What this instance is called, and how the registry is kept.
#[derive(Clone, Debug)]
pub(crate) struct Named {
    pub(crate) keys: Keys,
    /// The name of the deployment.
    pub(crate) cluster: String,
    /// The name of this instance.
    pub(crate) id: String,
    /// The name of this process: another in each start.
    pub(crate) run: String,
    pub(crate) address: String,
    pub(crate) roles: Vec<String>,
    pub(crate) period: Duration,
}

enum Order {
    Status(Status, oneshot::Sender<()>),
    Leave(oneshot::Sender<()>),
}

/// The registry, as one instance takes part in it. Its task ends with the last handle.
pub(crate) struct Registry {
    orders: mpsc::Sender<Order>,
    view: watch::Receiver<Arc<View>>,
    counts: Arc<Counts>,
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("view", &self.view.borrow()).finish_non_exhaustive()
    }
}

impl Registry {
    /// Takes part from now on, as starting; in a task of the runtime that this is called in.
    pub(crate) fn start(link: Link, named: Named, me: Me) -> Self {
        let (orders, receiver) = mpsc::channel(ORDERS_MAX);
        let (seen, view) = watch::channel(Arc::new(View { nodes: Vec::new(), at: Instant::now() }));
        let counts = Arc::<Counts>::default();
        let member = Member {
            link,
            named,
            me,
            status: Status::Starting,
            is_new: true,
            is_news: true,
            is_told: false,
            seen,
            counts: Arc::clone(&counts),
        };
        tokio::spawn(member.live(receiver));
        Self { orders, view, counts }
    }

    /// Says where this instance stands, and returns when Redis knows it or could not be told.
    pub(crate) async fn status(&self, status: Status) {
        let (done, told) = oneshot::channel();
        if self.orders.send(Order::Status(status, done)).await.is_ok() {
            let _ = told.await;
        }
    }

    /// Takes part no more: nothing of this instance is left.
    pub(crate) async fn leave(&self) {
        let (done, told) = oneshot::channel();
        if self.orders.send(Order::Leave(done)).await.is_ok() {
            let _ = told.await;
        }
    }

    /// The nodes as of the last look, this one among them.
    pub(crate) fn view(&self) -> Arc<View> {
        self.view.borrow().clone()
    }

    /// The same, to wait for a change.
    pub(crate) fn watch(&self) -> watch::Receiver<Arc<View>> {
        self.view.clone()
    }

    pub(crate) fn counts(&self) -> &Counts {
        &self.counts
    }
}

/// The task's own.
struct Member {
    link: Link,
    named: Named,
    me: Me,
    status: Status,
    /// No heartbeat was taken yet: the first one takes the name.
    is_new: bool,
    /// The others are to look at once.
    is_news: bool,
    /// That the keys or the name are another's was said.
    is_told: bool,
    seen: watch::Sender<Arc<View>>,
    counts: Arc<Counts>,
}

impl Member {
    async fn live(mut self, mut orders: mpsc::Receiver<Order>) {
        let mut link = self.link.watch();
        let mut is_watched = true;
        let mut news = self.link.subscribe(vec![self.named.keys.nodes()]);
        let mut done: Option<oneshot::Sender<()>> = None;
        loop {
            let (began, news_from) = (Instant::now(), Instant::now() + NEWS_PAUSE);
            let is_in = self.beat().await;
            let is_refused = self.counts.is_refused.load(Relaxed);
            let next = began + if is_refused { self.named.period.min(REFUSED_PAUSE) } else { self.named.period };
            if let Some(told) = done.take() {
                let _ = told.send(()); // nobody waits for it any more, and that is all
            }
            if is_in && let Err(error) = self.look_around().await {
                tracing::debug!(%error, "the other nodes were not looked at");
            }
            tokio::select! {
                order = orders.recv() => match order {
                    Some(Order::Status(status, told)) => {
                        self.status = status;
                        self.is_news = true;
                        done = Some(told);
                    }
                    Some(Order::Leave(told)) => {
                        self.leave().await;
                        let _ = told.send(());
                        return;
                    }
                    None => return,
                },
                () = sleep_until(next) => {}
                // Many that come or go at once are looked at together.
                () = async { others(&mut news, &self.named.id).await; sleep_until(news_from).await } => {}
                // A Redis that is back may have forgotten everything.
                changed = link.changed(), if is_watched => is_watched = changed.is_ok(),
            }
        }
    }

    /// Says that this node lives; whether it is in the registry.
    async fn beat(&mut self) -> bool {
        let error = match self.heartbeat().await {
            Ok(is_in) => {
                if self.counts.is_refused.swap(false, Relaxed) {
                    tracing::info!("Redis takes writes again");
                }
                return is_in;
            }
            Err(error) => error,
        };
        self.counts.missed.fetch_add(1, Relaxed);
        match &error {
            LinkError::Away => {} // the link has said it
            LinkError::Refused(why) if why.is_for_now() => {
                if !self.counts.is_refused.swap(true, Relaxed) {
                    tracing::warn!(%why, "Redis takes no writes; what instances share stays as it is until it does");
                }
            }
            error => tracing::warn!(%error, "a heartbeat was not taken"),
        }
        false
    }

    async fn heartbeat(&mut self) -> Result<bool, LinkError> {
        let Named { keys, period, .. } = &self.named;
        let expiry = *period * PERIODS_TO_EXPIRY;
        let expiry_ms = expiry.as_millis() as u64;
        match claim(&self.link, &self.named, expiry).await? {
            Ok(()) => {}
            Err(owner) => {
                self.say(&format!("the keys {}* are those of another deployment, {owner:?}", keys.prefix()));
                return Ok(false);
            }
        }
        let Some(me) = self.myself() else { return Ok(false) };
        let mut script = BEAT.key(keys.node(&self.named.id));
        script.arg(&self.named.run).arg(expiry_ms).arg(if self.is_new { "take" } else { "" });
        for (field, value) in me.fields() {
            script.arg(field).arg(value);
        }
        let now_ms: i64 = self.link.script(&script).await?;
        if now_ms < 0 {
            self.say(&format!("another process goes by the name {:?} (cluster.node_id)", self.named.id));
            return Ok(false);
        }
        (self.is_new, self.is_told) = (false, false);
        let nodes = self.named.keys.nodes();
        let mut add = super::link::pipe();
        add.cmd("SADD").arg(&nodes).arg(&self.named.id).ignore().cmd("PEXPIRE").arg(&nodes).arg(expiry_ms).ignore();
        self.link.pipeline::<()>(&add).await?;
        if std::mem::take(&mut self.is_news) {
            let () = self.link.query(cmd("PUBLISH").arg(&nodes).arg(&self.named.id)).await?;
        }
        Ok(true)
    }

    async fn look_around(&self) -> Result<(), LinkError> {
        let dead = self.named.period * PERIODS_TO_DEATH;
        let found = look(&self.link, &self.named.keys, Some(dead)).await?;
        self.counts.corrupt.fetch_add(found.corrupt, Relaxed);
        for id in &found.reaped {
            self.counts.reaped.fetch_add(1, Relaxed);
            tracing::warn!(node = id, "a node has had no heartbeat for three periods; it is taken for gone");
        }
        let _ = self.seen.send_replace(Arc::new(View { nodes: found.nodes, at: Instant::now() }));
        Ok(())
    }

    /// What this node says of itself. None once there is no server any more.
    fn myself(&self) -> Option<Node> {
        let About { load, max_load, tools, forwards } = (self.me)()?;
        Some(Node {
            id: self.named.id.clone(),
            status: self.status,
            heartbeat_age_ms: 0,
            load,
            max_load,
            address: self.named.address.clone(),
            forwards,
            version: env!("CARGO_PKG_VERSION").into(),
            roles: self.named.roles.clone(),
            tools,
        })
    }

    fn say(&mut self, what: &str) {
        self.counts.missed.fetch_add(1, Relaxed);
        if !self.is_told {
            self.is_told = true;
            tracing::error!("this node is not in the registry: {what}");
        }
    }

    async fn leave(&self) {
        let mut left = self.deregister().await;
        if matches!(left, Err(LinkError::Unknown(_))) {
            left = self.deregister().await; // doing it twice is as doing it once
        }
        match left {
            Ok(()) => tracing::debug!("out of the registry"),
            Err(error) => tracing::warn!(%error, "could not leave the registry; what is left there expires by itself"),
        }
    }

    async fn deregister(&self) -> Result<(), LinkError> {
        let Named { keys, id, run, cluster, .. } = &self.named;
        let removed: u64 = self.link.script(LEAVE.key(keys.node(id)).arg(run)).await?;
        if removed == 0 {
            return Ok(()); // it is another process's by now
        }
        let () = self.link.query(cmd("SREM").arg(keys.nodes()).arg(id)).await?;
        // Who joins meanwhile claims the keys again with its next heartbeat.
        let others: u64 = self.link.query(cmd("SCARD").arg(keys.nodes())).await?;
        if others == 0 {
            let _: u64 = self.link.script(UNCLAIM.key(keys.cluster()).arg(cluster)).await?;
        }
        self.link.query(cmd("PUBLISH").arg(keys.nodes()).arg(id)).await
    }
}

/// Returns when another node has news of itself, or may have had.
async fn others(news: &mut Subscription, id: &str) {
    loop {
        match news.next().await {
            Some(Event::Message(message)) if message.payload == id.as_bytes() => {}
            Some(Event::Begun) => {}
            Some(_) => return,
            None => std::future::pending().await, // the runtime ends
        }
    }
}

/// Whether the keys are this deployment's; if not, whose.
pub(crate) async fn claim(link: &Link, named: &Named, expiry: Duration) -> Result<Result<(), String>, LinkError> {
    let script = &mut CLAIM.key(named.keys.cluster());
    let owner: String = link.script(script.arg(&named.cluster).arg(expiry.as_millis() as u64)).await?;
    named.keys.note_owner(owner == named.cluster);
    Ok(if owner == named.cluster { Ok(()) } else { Err(owner) })
}

/// How long a claim lasts.
pub(crate) fn expiry_of(period: Duration) -> Duration {
    period * PERIODS_TO_EXPIRY
}

/// Nodes that are read at once.
const LOOKS_AT_ONCE: usize = 32;

/// What one look found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) nodes: Vec<Node>,
    pub(crate) reaped: Vec<String>,
    pub(crate) corrupt: u64,
}

/// Reads all nodes; with `dead`, removes those that have been silent for longer.
pub(crate) async fn look(link: &Link, keys: &Keys, dead: Option<Duration>) -> Result<Found, LinkError> {
    let mut ids: Vec<String> = link.query(cmd("SMEMBERS").arg(keys.nodes())).await?;
    let before = ids.len();
    ids.retain(|id| is_id(id));
    let mut found = Found { corrupt: (before - ids.len()) as u64, ..Found::default() };
    ids.sort_unstable();
    ids.truncate(NODES_MAX);
    let dead_ms = dead.map_or(-1, |dead| i64::try_from(dead.as_millis()).unwrap_or(i64::MAX));
    let looks = stream::iter(ids)
        .map(|id| async move { (link.script(LOOK.key(keys.node(&id)).arg(dead_ms)).await, id) })
        .buffered(LOOKS_AT_ONCE);
    let mut looks = pin!(looks);
    while let Some((answer, id)) = looks.next().await {
        let (now_ms, is_reaped, fields): (u64, bool, HashMap<String, String>) = match answer {
            Ok(answer) => answer,
            Err(LinkError::Refused(Refused::WrongType) | LinkError::Odd(_)) => {
                found.corrupt += 1; // not ours to remove
                continue;
            }
            Err(error) => return Err(error),
        };
        if is_reaped || fields.is_empty() {
            if dead.is_some() {
                let () = link.query(cmd("SREM").arg(keys.nodes()).arg(&id)).await?;
            }
            if is_reaped {
                found.reaped.push(id); // else it is leaving, and half of it is gone
            }
            continue;
        }
        match Node::read(&id, &fields, now_ms) {
            Some(node) => found.nodes.push(node),
            None => found.corrupt += 1,
        }
    }
    Ok(found)
}
