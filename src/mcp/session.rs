//! What the older revisions remember between requests: sessions, as records in a sharded map. A session costs its
//! record; nothing runs for it. It belongs to the caller who opened it: for anybody else it is as if it were not there.

use std::{
    collections::{HashMap, hash_map::Entry},
    fmt::Write,
    hash::{BuildHasher, RandomState},
    net::IpAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use bytes::Bytes;
use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::{Notify, oneshot};

use crate::{
    call::{Caller, ClientCapabilities},
    cluster::{sessions::Hash, streams::Streams},
    input::Answers,
    mcp::{
        LEGACY_VERSIONS,
        encode::OwnedId,
        events::EventLog,
        live::{Live, Settings},
    },
    outbox::LogLevel,
    units::ByteSize,
};

/// Shards of the map: enough that threads seldom meet at one lock.
const SHARDS: usize = 64;
/// The most that is kept of what a stream is: it stands beside each message. The rest is what a client named at length.
const ABOUT_BYTES_MAX: usize = 1024;
/// Random bytes in an id; 192 bits cannot be guessed.
const ID_BYTES: usize = 24;

/// `[sessions]`: limits of the revisions up to 2025-11-25, which have sessions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Sessions at once.
    pub sessions_max: usize,
    /// Sessions at once of one caller; without authentication, of one address.
    pub per_caller_max: usize,
    /// Time after its last use when a session ends, in seconds.
    pub idle_timeout_s: u64,
    /// How long the messages of a stream are kept after its end, for who lost the connection, in seconds.
    pub resume_s: u64,
    /// Memory for the messages that are kept, over all sessions.
    pub resume_bytes_max: ByteSize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            sessions_max: 100_000,
            per_caller_max: 10_000,
            idle_timeout_s: 3600,
            resume_s: 60,
            resume_bytes_max: ByteSize::mib(64),
        }
    }
}

/// One session.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) client: ClientCapabilities,
    caller: Caller,
    peer: Option<IpAddr>,
    /// Seconds since the map was made.
    last_used_s: AtomicU32,
    log_level: AtomicU8,
    /// The newest revision is 0; see [`LEGACY_VERSIONS`].
    version: u8,
    /// What `initialize` said, where a hosted handler wants to know.
    initialize: Option<Arc<Value>>,
    live: OnceLock<Box<Live>>,
    settings: Arc<Settings>,
    is_closed: AtomicBool,
    /// What other instances should know of is another than it was.
    is_changed: AtomicBool,
    /// When that became so last, by the clock of the host where it did, in milliseconds since 1970; 0 for never.
    changed_ms: AtomicU64,
    /// What it is called where instances share it.
    hash: Mutex<Option<Hash>>,
    /// Calls that may still be cancelled, which are those not answered at once.
    in_flight: Mutex<Vec<(OwnedId, Arc<Notify>)>>,
}

impl Session {
    /// The revision that was agreed on.
    pub(crate) fn version(&self) -> &'static str {
        LEGACY_VERSIONS[usize::from(self.version) % LEGACY_VERSIONS.len()]
    }

    /// What `initialize` said.
    pub(crate) fn initialize(&self) -> Option<&Arc<Value>> {
        self.initialize.as_ref()
    }

    /// The least level that the client wants to hear of.
    pub(crate) fn log_level(&self) -> Option<LogLevel> {
        LogLevel::of_rank(self.log_level.load(Ordering::Relaxed))
    }

    pub(crate) fn set_log_level(&self, level: LogLevel) {
        self.log_level.store(level.rank(), Ordering::Relaxed);
        self.note_change();
    }

    /// Takes over a level that another instance was told.
    pub(crate) fn take_log_level(&self, rank: Option<u8>) {
        self.log_level.store(rank.unwrap_or(LogLevel::UNSET), Ordering::Relaxed);
    }

    /// Something is other than it was that other instances should know of.
    pub(crate) fn note_change(&self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis() as u64;
        let later = |before: u64| Some(now.max(before + 1));
        let _ = self.changed_ms.fetch_update(Ordering::AcqRel, Ordering::Acquire, later);
        self.owe_change();
    }

    /// They could not be told of it yet.
    pub(crate) fn owe_change(&self) {
        self.is_changed.store(true, Ordering::Release);
    }

    /// When something changed last that other instances should know of.
    pub(crate) fn changed_ms(&self) -> u64 {
        self.changed_ms.load(Ordering::Acquire)
    }

    /// Takes over what another instance was told at this time, unless something was told here later.
    pub(crate) fn take_changed_ms(&self, changed_ms: u64) -> bool {
        self.changed_ms.fetch_max(changed_ms, Ordering::AcqRel) <= changed_ms
    }

    pub(crate) fn is_changed(&self) -> bool {
        self.is_changed.load(Ordering::Acquire)
    }

    /// The same, and that it has been told.
    pub(crate) fn take_change(&self) -> bool {
        self.is_changed.swap(false, Ordering::AcqRel)
    }

    /// Says what it is called where instances share it.
    pub(crate) fn set_hash(&self, hash: Hash) {
        *self.hash.lock() = Some(hash);
    }

    pub(crate) fn hash(&self) -> Option<Hash> {
        *self.hash.lock()
    }

    /// Keeps what will be said on a stream of this session for other instances too, where there are any. `about` is what
    /// a reader elsewhere needs to know of it, `call` the request that speaks there, where it may be run again. What is
    /// returned resolves when other instances find it, or will not.
    pub(crate) fn share_stream(
        &self,
        log: &EventLog,
        about: impl FnOnce() -> Value,
        call: Bytes,
    ) -> Option<oneshot::Receiver<()>> {
        let (streams, hash) = (self.settings.streams.as_ref()?, (*self.hash.lock())?);
        let about = about().to_string();
        (about.len() <= ABOUT_BYTES_MAX).then(|| log.keep_in(streams, hash, about, call))
    }

    /// The same for the session's own stream.
    pub(crate) fn share_own_stream(&self, log: &EventLog, about: &Value) {
        if let (Some(streams), Some(hash)) = (&self.settings.streams, *self.hash.lock()) {
            log.keep_own_in(streams, hash, about.to_string());
        }
    }

    /// Whether other instances know it.
    pub(crate) fn is_shared(&self) -> bool {
        self.settings.streams.is_some()
    }

    /// Whom it belongs to.
    pub(crate) fn caller(&self) -> &Caller {
        &self.caller
    }

    /// When it was last used, in seconds of its map.
    pub(crate) fn last_used_s(&self) -> u32 {
        self.last_used_s.load(Ordering::Relaxed)
    }

    /// Its streams, questions and subscriptions, made at the first need.
    pub(crate) fn live(&self) -> &Live {
        let live = self.live.get_or_init(|| Box::new(Live::new(&self.settings)));
        if self.is_closed.load(Ordering::Acquire) {
            live.close(Instant::now()); // it was made after the end
        }
        live
    }

    /// The session has ended: nothing is said or asked in it any more, and its calls are taken back.
    fn close(&self, now: Instant) {
        self.is_closed.store(true, Ordering::Release);
        if let Some(live) = self.live.get() {
            live.close(now);
        }
        self.in_flight.lock().iter().for_each(|(_, cancelled)| cancelled.notify_one());
    }

    /// The same when they were needed before.
    pub(crate) fn live_if_any(&self) -> Option<&Live> {
        self.live.get().map(Box::as_ref)
    }

    /// Notes a call as running; `None` when one with this id is.
    pub(crate) fn begin(self: &Arc<Self>, id: OwnedId) -> Option<InFlight> {
        let cancelled = Arc::new(Notify::new());
        let mut in_flight = self.in_flight.lock();
        if in_flight.iter().any(|(other, _)| *other == id) {
            return None;
        }
        in_flight.push((id.clone(), Arc::clone(&cancelled)));
        drop(in_flight);
        Some(InFlight { session: Arc::clone(self), id, cancelled })
    }

    /// Cancels a running call; false when there is none with this id.
    pub(crate) fn cancel(&self, id: &OwnedId) -> bool {
        let in_flight = self.in_flight.lock();
        let found = in_flight.iter().find(|(other, _)| other == id);
        found.into_iter().for_each(|(_, cancelled)| cancelled.notify_one());
        found.is_some()
    }

    pub(crate) fn is_busy(&self) -> bool {
        !self.in_flight.lock().is_empty() || self.live.get().is_some_and(|live| live.is_busy())
    }
}

/// Questions of calls, answered on other connections of the session.
impl Answers for Session {
    fn expect(&self) -> Option<(u64, oneshot::Receiver<Result<Value, Value>>)> {
        self.live().expect()
    }

    fn forget(&self, id: u64) {
        self.live().forget(id);
    }
}

/// A call that is running in a session; its end is the guard's drop.
#[derive(Debug)]
pub(crate) struct InFlight {
    session: Arc<Session>,
    id: OwnedId,
    cancelled: Arc<Notify>,
}

impl InFlight {
    /// Returns when the caller takes the call back.
    pub(crate) async fn cancelled(&self) {
        self.cancelled.notified().await;
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        let mut in_flight = self.session.in_flight.lock();
        if let Some(at) = in_flight.iter().position(|(id, _)| *id == self.id) {
            in_flight.swap_remove(at);
        }
    }
}

/// What a session starts with.
#[derive(Clone, Debug, Default)]
pub(crate) struct Start {
    pub(crate) client: ClientCapabilities,
    /// An index into [`LEGACY_VERSIONS`].
    pub(crate) version: u8,
    pub(crate) initialize: Option<Arc<Value>>,
}

/// Why no session was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Full {
    /// This caller has all that one caller may have.
    Caller,
    /// The server has all that it may have.
    Server,
}

/// Who has so many sessions at most: a caller who is known, or all that come from an address.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Owner {
    Caller(Caller),
    Address(IpAddr),
}

impl Owner {
    fn of(caller: &Caller, peer: Option<IpAddr>) -> Option<Self> {
        if *caller == Caller::ANONYMOUS { peer.map(Self::Address) } else { Some(Self::Caller(caller.clone())) }
    }
}

type Shard = Mutex<HashMap<Box<str>, Arc<Session>>>;

/// All sessions.
#[derive(Debug)]
pub(crate) struct Sessions {
    config: Config,
    settings: Arc<Settings>,
    started: Instant,
    hasher: RandomState,
    shards: Box<[Shard]>,
    count: AtomicUsize,
    per_owner: Mutex<HashMap<Owner, usize>>,
}

impl Sessions {
    pub(crate) fn new(config: Config, settings: Settings, now: Instant) -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Self {
            config,
            settings: Arc::new(settings),
            started: now,
            hasher: RandomState::new(),
            shards,
            count: AtomicUsize::new(0),
            per_owner: Mutex::default(),
        }
    }

    /// What this process is called in the ids of questions, where there are others.
    pub(crate) fn tag(&self) -> Option<u32> {
        self.settings.tag
    }

    /// Where streams are kept for other instances.
    pub(crate) fn streams(&self) -> Option<&Streams> {
        self.settings.streams.as_ref()
    }

    pub(crate) fn len(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// A session outside the map, for a transport that is itself one.
    pub(crate) fn detached(&self, start: Start) -> Arc<Session> {
        Arc::new(self.session(start, Caller::ANONYMOUS, None, 0))
    }

    fn session(&self, start: Start, caller: Caller, peer: Option<IpAddr>, seconds: u32) -> Session {
        Session {
            client: start.client,
            caller,
            peer,
            last_used_s: AtomicU32::new(seconds),
            log_level: AtomicU8::new(LogLevel::UNSET),
            version: start.version,
            initialize: start.initialize,
            live: OnceLock::new(),
            settings: Arc::clone(&self.settings),
            is_closed: AtomicBool::new(false),
            is_changed: AtomicBool::new(false),
            changed_ms: AtomicU64::new(0),
            hash: Mutex::default(),
            in_flight: Mutex::default(),
        }
    }

    /// Opens a session and returns its id.
    pub(crate) fn open(
        &self,
        start: Start,
        caller: Caller,
        peer: Option<IpAddr>,
        now: Instant,
    ) -> Result<String, Full> {
        let id = new_id();
        self.adopt(&id, start, caller, peer, now)?;
        Ok(id)
    }

    /// A session of this id: a new one, or a copy of one that another instance has opened. The one that is here already
    /// when there is one.
    pub(crate) fn adopt(
        &self,
        id: &str,
        start: Start,
        caller: Caller,
        peer: Option<IpAddr>,
        now: Instant,
    ) -> Result<Arc<Session>, Full> {
        let below = |n: usize| (n < self.config.sessions_max).then_some(n + 1);
        self.count.fetch_update(Ordering::AcqRel, Ordering::Acquire, below).map_err(|_| Full::Server)?;
        if let Some(owner) = Owner::of(&caller, peer) {
            let mut per_owner = self.per_owner.lock();
            let count = per_owner.entry(owner).or_default();
            if *count >= self.config.per_caller_max {
                self.count.fetch_sub(1, Ordering::AcqRel);
                return Err(Full::Caller);
            }
            *count += 1;
        }
        let session = Arc::new(self.session(start, caller, peer, self.seconds(now)));
        let known = match self.shard(id).lock().entry(id.into()) {
            Entry::Occupied(known) => Arc::clone(known.get()),
            Entry::Vacant(free) => return Ok(Arc::clone(free.insert(session))),
        };
        self.uncount(&session);
        Ok(known)
    }

    /// The session of this id, whoever it belongs to, where it is here and its time is not over.
    pub(crate) fn here(&self, id: &str, now: Instant) -> Option<Arc<Session>> {
        let session = self.shard(id).lock().get(id).cloned()?;
        if self.is_over(&session, self.seconds(now)) {
            self.remove(id);
            return None;
        }
        Some(session)
    }

    /// The caller's session of this id, noted as used at `now`.
    pub(crate) fn get(&self, id: &str, caller: &Caller, now: Instant) -> Option<Arc<Session>> {
        if id.len() != ID_CHARS {
            return None;
        }
        let session = self.shard(id).lock().get(id).filter(|s| s.caller == *caller).cloned()?;
        let seconds = self.seconds(now);
        if self.is_over(&session, seconds) {
            self.remove(id);
            return None;
        }
        session.last_used_s.store(seconds, Ordering::Relaxed);
        Some(session)
    }

    /// Ends the caller's session of this id; false when there is none.
    pub(crate) fn close(&self, id: &str, caller: &Caller, now: Instant) -> bool {
        self.get(id, caller, now).is_some() && self.remove(id)
    }

    /// Ends what has been idle for too long. Takes each shard's lock for itself and for a short time.
    pub(crate) fn sweep(&self, now: Instant) -> usize {
        let seconds = self.seconds(now);
        let mut ended = 0;
        for shard in &self.shards {
            let mut over = Vec::new();
            shard.lock().retain(|_, session| {
                if let Some(live) = session.live_if_any() {
                    live.trim(now);
                }
                let keep = !self.is_over(session, seconds);
                if !keep {
                    over.push(Arc::clone(session));
                }
                keep
            });
            ended += over.len();
            for session in &over {
                session.close(now);
                self.uncount(session);
            }
        }
        ended
    }

    fn is_over(&self, session: &Session, seconds: u32) -> bool {
        if session.is_busy() {
            session.last_used_s.store(seconds, Ordering::Relaxed); // open streams and running calls are use
            return false;
        }
        let idle_s = seconds.saturating_sub(session.last_used_s.load(Ordering::Relaxed));
        u64::from(idle_s) > self.config.idle_timeout_s
    }

    /// Ends a session here, whoever it belongs to.
    pub(crate) fn remove(&self, id: &str) -> bool {
        let removed = self.shard(id).lock().remove(id);
        removed.is_some_and(|session| {
            session.close(Instant::now());
            self.uncount(&session);
            true
        })
    }

    fn uncount(&self, session: &Session) {
        self.count.fetch_sub(1, Ordering::AcqRel);
        let Some(owner) = Owner::of(&session.caller, session.peer) else { return };
        let mut per_owner = self.per_owner.lock();
        if let Some(count) = per_owner.get_mut(&owner) {
            *count -= 1;
            if *count == 0 {
                per_owner.remove(&owner);
            }
        }
    }

    fn shard(&self, id: &str) -> &Shard {
        #[allow(clippy::cast_possible_truncation)] // any bits will do
        let hash = self.hasher.hash_one(id) as usize;
        &self.shards[hash % SHARDS]
    }

    fn seconds(&self, now: Instant) -> u32 {
        u32::try_from(now.saturating_duration_since(self.started).as_secs()).unwrap_or(u32::MAX)
    }
}

const ID_CHARS: usize = ID_BYTES * 2;

/// Whether this can be an id of ours.
pub(crate) fn is_id(text: &str) -> bool {
    text.len() == ID_CHARS && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Random, in hex: visible ASCII, as the header demands.
fn new_id() -> String {
    let mut bytes = [0; ID_BYTES];
    // Without randomness there are no ids that cannot be guessed; to stop is the only right answer. It cannot happen
    // after the start on Linux, where the start draws its first numbers.
    getrandom::fill(&mut bytes).expect("the operating system gives random numbers");
    let mut id = String::with_capacity(ID_CHARS);
    for byte in bytes {
        let _ = write!(id, "{byte:02x}");
    }
    id
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{changes::Changes, mcp::events::Kept};

    fn sessions(config: Config) -> (Sessions, Instant) {
        let now = Instant::now();
        let settings = Settings {
            changes: Changes::default(),
            kept: Arc::new(Kept::new(1000)),
            buffer_bytes_max: 1000,
            retention: Duration::from_secs(60),
            tag: None,
            streams: None,
        };
        (Sessions::new(config, settings, now), now)
    }

    fn open(sessions: &Sessions, peer: u8, now: Instant) -> Result<String, Full> {
        let peer = IpAddr::from([127, 0, 0, peer]);
        sessions.open(Start::default(), Caller::ANONYMOUS, Some(peer), now)
    }

    #[test]
    fn caps_hold_and_are_given_back() {
        let (sessions, now) = sessions(Config { sessions_max: 3, per_caller_max: 2, ..Config::default() });
        let first = open(&sessions, 1, now).expect("room");
        open(&sessions, 1, now).expect("room");
        assert_eq!(open(&sessions, 1, now), Err(Full::Caller));
        open(&sessions, 2, now).expect("room");
        assert_eq!(open(&sessions, 3, now), Err(Full::Server));
        assert!(sessions.close(&first, &Caller::ANONYMOUS, now));
        assert!(!sessions.close(&first, &Caller::ANONYMOUS, now));
        open(&sessions, 1, now).expect("room again");
        assert_eq!(sessions.len(), 3);
    }

    #[test]
    fn idle_sessions_end_and_running_calls_count_as_use() {
        let (sessions, now) = sessions(Config { idle_timeout_s: 60, ..Config::default() });
        let idle = open(&sessions, 1, now).expect("room");
        let busy = open(&sessions, 1, now).expect("room");
        let call = sessions.get(&busy, &Caller::ANONYMOUS, now).expect("open").begin(OwnedId::Number(1));
        let later = now + Duration::from_secs(61);
        assert_eq!(sessions.sweep(now), 0);
        assert_eq!(sessions.sweep(later), 1);
        assert!(sessions.get(&idle, &Caller::ANONYMOUS, later).is_none());
        drop(call);
        assert!(sessions.get(&busy, &Caller::ANONYMOUS, now + Duration::from_secs(200)).is_none());
        assert_eq!(sessions.len(), 0);
    }

    #[test]
    fn one_id_runs_once_at_a_time() {
        let session = sessions(Config::default()).0.detached(Start::default());
        let call = session.begin(OwnedId::Number(1));
        assert!(call.is_some());
        assert!(session.begin(OwnedId::Number(1)).is_none());
        assert!(session.begin(OwnedId::Text("\"1\"".into())).is_some());
        drop(call);
        assert!(session.begin(OwnedId::Number(1)).is_some());
    }
}
