//! News of one instance for all others: results that are not to be served any more, lists and resources that changed.
//! What is to be told waits in sets with limits and is told when Redis is there; what is heard is handed on, and never
//! told again. Who hears it, and what comes of it, is not known here.
//!
//! Nobody keeps a message for who does not listen, so after a gap an instance is told of the gap and has to take
//! everything for changed. What was invalidated is besides a generation in Redis, under which results there count.

use std::{
    collections::{BTreeSet, VecDeque},
    pin::pin,
    sync::{
        Arc, LazyLock, OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use tokio::{
    sync::{Notify, broadcast},
    time::{Instant, sleep},
};

use super::{
    keys::{Keys, hex},
    link::{Event, Link, LinkError, Script, State, cmd},
    random,
};

/// The form of messages. Another one is not read.
const FORM: u32 = 1;
/// Invalidations that wait to be told; of more, everything is invalidated.
const FORGETS_MAX: usize = 256;
/// Resources that wait to be told; of more, each may have changed.
const RESOURCES_MAX: usize = 1024;
/// Resources in one message.
const RESOURCES_TOLD_MAX: usize = 64;
/// A longer name of a resource is not told: each may have changed then.
const URI_BYTES_MAX: usize = 2048;
/// A message that is longer is none of ours.
const MESSAGE_BYTES_MAX: usize = 1024 * 1024;
/// Results that others made, for who waits for one.
const LANDED_MAX: usize = 1024;
/// For so long an invalidation is told again after a gap: a Redis that took another's place may have lost it.
const REPEATED: Duration = Duration::from_secs(60);
/// After a failure, until the next try.
const PAUSE: Duration = Duration::from_millis(200);
/// The least time that a generation is kept: runs that began before it have ended by then.
pub(crate) const GENERATION: Duration = Duration::from_secs(86_400);

/// A new generation, and the news of it, in one step.
static FORGET: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"local left = tonumber(ARGV[2])
if redis.call('EXISTS', KEYS[1]) == 1 then left = math.max(left, redis.call('PTTL', KEYS[1])) end
redis.call('SET', KEYS[1], ARGV[1], 'PX', string.format('%.0f', left))
return redis.call('PUBLISH', ARGV[3], ARGV[4])",
    )
});

/// Which results are not to be served any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Forget {
    All,
    Tool(String),
    Caller(String),
    /// One result, by its key in hex.
    Key(String),
}

impl Forget {
    /// What its generation is called. A subject is hashed: nobody chooses a key.
    pub(super) fn generation(&self) -> String {
        match self {
            Self::All => "all".into(),
            Self::Tool(tool) => format!("tool:{tool}"),
            Self::Caller(caller) => format!("caller:{}", hex(&Sha256::digest(caller)[..16])),
            Self::Key(key) => format!("key:{key}"),
        }
    }
}

/// What is heard of others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum News {
    Forget(Forget),
    /// Lists, as the bits of who knows them.
    Lists(u8),
    Resource(String),
    /// Any resource may have changed.
    Resources,
    /// A task has changed.
    Task {
        owner: String,
        id: String,
        version: u64,
        /// This instance made the change.
        is_own: bool,
    },
    /// From now on everything is heard.
    Begun,
    /// Something may have been missed.
    Gap,
}

/// A message. What this version does not know of it is passed over.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Message {
    form: u32,
    from: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    forget: Option<Forget>,
    #[serde(skip_serializing_if = "is_zero")]
    lists: u8,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    resources: Vec<Arc<str>>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    all_resources: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    task: Option<(String, String, u64)>,
    #[serde(skip_serializing_if = "Option::is_none")]
    landed: Option<(String, bool)>,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde asks so
fn is_zero(bits: &u8) -> bool {
    *bits == 0
}

/// What waits to be told.
#[derive(Debug, Default)]
struct Pending {
    /// Each with its generation.
    forgets: VecDeque<(Forget, String)>,
    lists: u8,
    resources: BTreeSet<Arc<str>>,
    all_resources: bool,
    /// Invalidations that were told of late.
    told: VecDeque<(Instant, Forget, String)>,
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.forgets.is_empty() && self.lists == 0 && self.resources.is_empty() && !self.all_resources
    }

    fn forget(&mut self, forget: Forget, generation: String) {
        // The older one may be on its way already, so that it says nothing of what was made since.
        if let Some((_, waiting)) = self.forgets.iter_mut().find(|(waiting, _)| *waiting == forget) {
            *waiting = generation;
        } else if self.forgets.len() >= FORGETS_MAX {
            self.forgets.clear();
            self.forgets.push_back((Forget::All, generation));
        } else {
            self.forgets.push_back((forget, generation));
        }
    }

    fn resource(&mut self, uri: &str) {
        if self.all_resources {
            return;
        }
        if uri.len() > URI_BYTES_MAX || self.resources.len() >= RESOURCES_MAX && !self.resources.contains(uri) {
            self.resources.clear();
            self.all_resources = true;
            return;
        }
        self.resources.insert(uri.into());
    }
}

/// What came of the news, since the start.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) told: AtomicU64,
    pub(crate) heard: AtomicU64,
    pub(crate) gaps: AtomicU64,
    /// Messages that could not be read.
    pub(crate) odd: AtomicU64,
}

/// The way to all other instances, and from them.
#[derive(Debug)]
pub(crate) struct Bus {
    link: Link,
    keys: Keys,
    channel: String,
    /// Who tells: this process.
    run: String,
    pending: Mutex<Pending>,
    wake: Notify,
    /// An invalidation is in Redis.
    forgot: Notify,
    landed: broadcast::Sender<(String, bool)>,
    begun: OnceLock<()>,
    generation_ms: AtomicU64,
    counts: Counts,
}

impl Bus {
    pub(super) fn new(link: Link, keys: Keys, run: &str) -> Arc<Self> {
        Arc::new(Self {
            link,
            channel: keys.news(),
            keys,
            run: run.to_owned(),
            pending: Mutex::default(),
            wake: Notify::new(),
            forgot: Notify::new(),
            landed: broadcast::channel(LANDED_MAX).0,
            begun: OnceLock::new(),
            generation_ms: AtomicU64::new(GENERATION.as_millis() as u64),
            counts: Counts::default(),
        })
    }

    pub(crate) fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Has all instances forget results; those in Redis count no more as soon as it hears of it.
    pub(crate) fn forget(&self, forget: Forget) {
        self.pending.lock().forget(forget, hex(&random()));
        self.wake.notify_one();
    }

    /// Generations are kept for longer than results that are kept for `ttl`, so that none comes back.
    pub(super) fn outlive(&self, ttl: Duration) {
        self.generation_ms.fetch_max((ttl + GENERATION).as_millis() as u64, Relaxed);
    }

    /// Whether invalidations of this instance are not in Redis yet, so that what is there may be of before.
    pub(super) fn owes_forgetting(&self) -> bool {
        !self.pending.lock().forgets.is_empty()
    }

    /// Returns when invalidations of this instance are in Redis.
    pub(super) async fn forgot(&self) {
        loop {
            let mut told = pin!(self.forgot.notified());
            told.as_mut().enable();
            if !self.owes_forgetting() {
                return;
            }
            told.await;
        }
    }

    /// Lists have changed; the bits are handed on as they are.
    pub(crate) fn lists(&self, bits: u8) {
        self.pending.lock().lists |= bits;
        self.wake.notify_one();
    }

    /// A resource has changed.
    pub(crate) fn resource(&self, uri: &str) {
        self.pending.lock().resource(uri);
        self.wake.notify_one();
    }

    /// Where and what to publish with the change of a task, in the step that changes it.
    pub(crate) fn of_task(&self, owner: &str, id: &str, version: u64) -> (&str, String) {
        (&self.channel, self.written(Message { task: Some((owner.into(), id.into(), version)), ..Message::default() }))
    }

    /// The same for a result that was made, or could not be.
    pub(super) fn of_landed(&self, key: String, is_kept: bool) -> (&str, String) {
        (&self.channel, self.written(Message { landed: Some((key, is_kept)), ..Message::default() }))
    }

    /// Results that others make, from here on.
    pub(super) fn landings(&self) -> broadcast::Receiver<(String, bool)> {
        self.landed.subscribe()
    }

    /// Begins to tell and to hear, in tasks of the runtime that this is called in, until the runtime ends. `hear` must be
    /// short: what comes meanwhile waits.
    pub(crate) fn begin(self: &Arc<Self>, hear: impl Fn(News) + Send + 'static) {
        if self.begun.set(()).is_err() {
            return;
        }
        let mut listener = self.link.subscribe(vec![self.channel.clone()]);
        let bus = Arc::clone(self);
        tokio::spawn(async move {
            while let Some(event) = listener.next().await {
                match event {
                    Event::Begun => hear(News::Begun),
                    Event::Gap => {
                        bus.counts.gaps.fetch_add(1, Relaxed);
                        bus.tell_again();
                        hear(News::Gap);
                    }
                    Event::Message(message) => bus.heard(&message.payload, &hear),
                }
            }
        });
        let bus = Arc::clone(self);
        tokio::spawn(async move { bus.tell_all().await });
    }

    fn heard(&self, payload: &[u8], hear: &impl Fn(News)) {
        let read = (payload.len() <= MESSAGE_BYTES_MAX).then(|| serde_json::from_slice::<Message>(payload).ok());
        let Some(message) = read.flatten().filter(|message| message.form == FORM) else {
            self.counts.odd.fetch_add(1, Relaxed);
            return;
        };
        if let Some((owner, id, version)) = message.task {
            // Also one's own: who made the change may not have heard that it was made.
            hear(News::Task { owner, id, version, is_own: message.from == self.run });
        }
        if message.from == self.run {
            return;
        }
        self.counts.heard.fetch_add(1, Relaxed);
        if let Some(landed) = message.landed {
            let _ = self.landed.send(landed); // nobody may wait for one
        }
        if let Some(forget) = message.forget {
            hear(News::Forget(forget));
        }
        if message.lists != 0 {
            hear(News::Lists(message.lists));
        }
        if message.all_resources {
            hear(News::Resources);
        }
        for uri in message.resources {
            hear(News::Resource(uri.as_ref().to_owned()));
        }
    }

    async fn tell_all(&self) {
        let mut state = self.link.watch();
        loop {
            while self.pending.lock().is_empty() {
                self.wake.notified().await;
            }
            if let Err(error) = self.tell_next().await {
                tracing::debug!(%error, "news for the other instances waits");
                sleep(PAUSE).await;
                if state.wait_for(|state| !matches!(state, State::Away(_))).await.is_err() {
                    return; // the link has ended
                }
            }
        }
    }

    /// Tells one thing; what could not be told waits on.
    async fn tell_next(&self) -> Result<(), LinkError> {
        let forget = self.pending.lock().forgets.front().cloned();
        if let Some((forget, generation)) = forget {
            let message = self.written(Message { forget: Some(forget.clone()), ..Message::default() });
            let mut script = FORGET.prepare_invoke();
            script
                .key(self.keys.generation(&forget.generation()))
                .arg(&generation)
                .arg(self.generation_ms.load(Relaxed));
            let _: u64 = self.link.script(script.arg(&self.channel).arg(message)).await?;
            self.counts.told.fetch_add(1, Relaxed);
            let mut pending = self.pending.lock();
            // When there were too many meanwhile, another is the first by now.
            if pending.forgets.front().is_some_and(|(_, first)| *first == generation) {
                pending.forgets.pop_front();
                self.forgot.notify_waiters();
            }
            let now = Instant::now();
            pending.told.retain(|(at, ..)| now.saturating_duration_since(*at) < REPEATED);
            if pending.told.len() >= FORGETS_MAX {
                pending.told.clear();
                pending.told.push_back((now, Forget::All, generation));
            } else if !pending.told.iter().any(|(_, _, told)| *told == generation) {
                pending.told.push_back((now, forget, generation));
            }
            return Ok(());
        }
        let message = {
            let mut pending = self.pending.lock();
            let uris: Vec<_> = pending.resources.iter().take(RESOURCES_TOLD_MAX).map(Arc::clone).collect();
            for uri in &uris {
                pending.resources.remove(uri);
            }
            Message {
                lists: std::mem::take(&mut pending.lists),
                all_resources: std::mem::take(&mut pending.all_resources),
                resources: uris,
                ..Message::default()
            }
        };
        let (lists, all_resources, resources) = (message.lists, message.all_resources, message.resources.clone());
        let told: Result<u64, _> = self.link.query(cmd("PUBLISH").arg(&self.channel).arg(self.written(message))).await;
        if told.is_err() {
            let mut pending = self.pending.lock();
            pending.lists |= lists;
            pending.all_resources |= all_resources;
            resources.iter().for_each(|uri| pending.resource(uri));
        } else {
            self.counts.told.fetch_add(1, Relaxed);
        }
        told.map(drop)
    }

    /// Tells late invalidations once more, each with the generation that it had.
    fn tell_again(&self) {
        let now = Instant::now();
        let mut pending = self.pending.lock();
        let told = std::mem::take(&mut pending.told);
        for (at, forget, generation) in told {
            if now.saturating_duration_since(at) < REPEATED {
                pending.forget(forget, generation);
            }
        }
        drop(pending);
        self.wake.notify_one();
    }

    fn written(&self, message: Message) -> String {
        let message = Message { form: FORM, from: self.run.clone(), ..message };
        // A struct of texts and numbers always has a JSON form.
        serde_json::to_string(&message).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_waits_is_bounded_and_then_says_everything() {
        let mut pending = Pending::default();
        for n in 0..FORGETS_MAX {
            pending.forget(Forget::Tool(format!("t{n}")), n.to_string());
            pending.forget(Forget::Tool(format!("t{n}")), "again".into());
        }
        assert_eq!(pending.forgets.len(), FORGETS_MAX, "each once");
        assert!(pending.forgets.iter().all(|(_, generation)| generation == "again"), "the newest counts");
        pending.forget(Forget::Caller("x".into()), "g".into());
        assert_eq!(pending.forgets, [(Forget::All, "g".into())]);
        for n in 0..RESOURCES_MAX {
            pending.resource(&format!("a:{n}"));
            pending.resource("a:0");
        }
        assert!(pending.resources.len() == RESOURCES_MAX && !pending.all_resources);
        let mut long = Pending::default();
        long.resource(&"x".repeat(URI_BYTES_MAX + 1));
        assert!(long.all_resources);
        pending.resource("b:0");
        assert!(pending.resources.is_empty() && pending.all_resources && !pending.is_empty());
    }

    #[test]
    fn a_generation_is_called_by_what_nobody_chooses() {
        assert_eq!(Forget::All.generation(), "all");
        assert_eq!(Forget::Tool("t".into()).generation(), "tool:t");
        let odd = Forget::Caller("a:b}{*\r\n".into()).generation();
        assert!(odd.len() == 39 && odd.bytes().all(|b| b.is_ascii_alphanumeric() || b == b':'), "{odd}");
    }

    #[test]
    fn a_message_of_a_later_version_is_read_as_far_as_it_is_known() {
        let text = r#"{"form":1,"from":"x","lists":3,"later":{"a":1}}"#;
        let message: Message = serde_json::from_str(text).expect("it is read");
        assert_eq!((message.lists, message.forget), (3, None));
    }
}
