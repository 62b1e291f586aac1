//! Who there is: each instance writes a heartbeat, looks at those of the others, and removes who has none any more. The
//! clock is Redis' own. What changes is told at once, and found with the next heartbeat where that was not heard.
//! Everything that is written expires by itself, so nothing is left when all are gone at once; what an empty Redis has
//! lost is there again with the next heartbeat, which is made at once where the link finds it emptied. Whose the keys are is
//! said for longer than there are instances: as long as there can be something of their clients, which another deployment
//! is not to take for its own.

use std::{
    collections::{BTreeSet, HashMap},
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
    roll::Roll,
    unlike::unlike,
};

/// Who has been silent for so many periods is gone.
const PERIODS_TO_DEATH: u32 = 3;
/// Who has been silent for so many may be.
const PERIODS_TO_LATE: u32 = 2;
/// What nobody renews expires after so many: later, so that a death is seen, and not only an absence.
const PERIODS_TO_EXPIRY: u32 = 6;
/// More nodes than this are not looked at.
const NODES_MAX: usize = 1000;
const ORDERS_MAX: usize = 8;
/// The longest time to the next heartbeat after one that Redis did not take or answer, and while it is not known to be
/// ours.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// Between two lines on the same that keeps this instance out, which does not come right by itself.
const TOLD_PAUSE: Duration = Duration::from_secs(60);
/// The least time between two looks for the news of others.
const NEWS_PAUSE: Duration = Duration::from_millis(500);

/// Writes a heartbeat. A process that takes a name over says so, and learns whose it was; one that finds its name taken
/// leaves it alone.
static BEAT: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local was = redis.call('HMGET', KEYS[1], 'run', 'lastHeartbeat', 'address')
local is_others = was[1] and was[1] ~= ARGV[1]
if is_others and ARGV[3] ~= 'take' then return {-1, '', ''} end
redis.call('HSET', KEYS[1], 'run', ARGV[1], 'lastHeartbeat', string.format('%.0f', now), unpack(ARGV, 4))
redis.call('PEXPIRE', KEYS[1], ARGV[2])
if is_others then return {now, was[2] or '', was[3] or ''} end
return {now, '', ''}",
    )
});

/// Reads a node, and removes it when it has had no heartbeat for so many periods of its own, or of ours where it does not
/// say; -1 removes none.
static LOOK: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local fields = redis.call('HGETALL', KEYS[1])
local periods, period_ms, beat = tonumber(ARGV[1]), tonumber(ARGV[2]), nil
for i = 1, #fields, 2 do
  local number = tonumber(fields[i + 1])
  if fields[i] == 'lastHeartbeat' then beat = number end
  if fields[i] == 'heartbeat' and number and number > 0 then period_ms = number * 1000 end
end
if beat and periods >= 0 and now - beat > periods * period_ms then
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

/// Says whose the keys are and for how long, and renews it when they are ours. It guards what clients have there as
/// long as that can live, so nobody gives them up but who has removed all of that (`last_stop`).
static CLAIM: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"local owner, left = redis.call('GET', KEYS[1]), redis.call('PTTL', KEYS[1])
if owner and owner ~= ARGV[1] then return {owner, left} end
left = math.max(left, tonumber(ARGV[2])) -- another of us may keep things for longer
local kept = redis.pcall('SET', KEYS[1], ARGV[1], 'PX', string.format('%.0f', left))
-- what is ours stays ours in a Redis that takes no writes
if kept.err and not (owner and (string.find(kept.err, 'OOM', 1, true) or string.find(kept.err, 'READONLY', 1, true)
  or string.find(kept.err, 'NOREPLICAS', 1, true) or string.find(kept.err, 'MISCONF', 1, true))) then return kept end
return {ARGV[1], left}",
    )
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
    /// What is said of the key by which it does; empty where there is nothing to say.
    pub(crate) node_key: String,
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
    /// The longest that anything of clients stays in Redis.
    pub(crate) kept_for: Duration,
    /// Where it is set that tools are to be.
    pub(crate) placed: Vec<String>,
}

impl Named {
    /// Who is not waited for by who leaves.
    pub(super) fn late(&self) -> Dead {
        Dead { periods: PERIODS_TO_LATE, period: self.period }
    }
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
            has_run: false,
            told: None,
            is_compared: false,
            is_owed: false,
            unanswered: None,
            roll: Roll::new(),
            told_by: BTreeSet::new(),
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
    /// It was said here that clients are served: from then on something of theirs may be in Redis.
    has_run: bool,
    /// When it was said last that the keys or the name are another's.
    told: Option<Instant>,
    /// What should be equal was compared with that of the others: once, by who comes.
    is_compared: bool,
    /// The last heartbeat was not taken or not answered, though Redis is there.
    is_owed: bool,
    /// What was said of heartbeats that were not answered, since the last one that was.
    unanswered: Option<LinkError>,
    /// Who came and who left.
    roll: Roll,
    /// Who has told something since the last look.
    told_by: BTreeSet<String>,
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
            let is_soon = self.is_owed || self.link.is_foreign();
            let next = began + if is_soon { self.named.period.min(RETRY_PAUSE) } else { self.named.period };
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
                        self.has_run |= status == Status::Running;
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
                () = async { others(&mut news, &self.named.id, &mut self.told_by).await; sleep_until(news_from).await } => {}
                () = self.link.forgot_owner(), if !self.is_owed => {}
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
                if self.unanswered.take().is_some() {
                    tracing::info!("heartbeats are answered again");
                }
                self.is_owed = false;
                return is_in;
            }
            Err(error) => error,
        };
        self.counts.missed.fetch_add(1, Relaxed);
        let is_first = !std::mem::replace(&mut self.is_owed, error != LinkError::Away);
        match &error {
            LinkError::Away => {} // the link has said it, and the next one goes with the news of it
            // Mostly it is over with the next one, or the link says that Redis is away.
            LinkError::Refused(Refused::NotNow) if is_first => tracing::debug!(%error, "a heartbeat was not taken"),
            LinkError::Refused(Refused::NotNow) => self.say_unanswered(error),
            LinkError::Refused(why) if why.is_for_now() => {
                if !self.counts.is_refused.swap(true, Relaxed) {
                    tracing::warn!(%why, "Redis takes no writes; what instances share stays as it is until it does");
                }
            }
            _ => self.say_unanswered(error),
        }
        false
    }

    fn say_unanswered(&mut self, error: LinkError) {
        if self.unanswered.as_ref() == Some(&error) {
            return tracing::debug!(%error, "a heartbeat was not taken");
        }
        match self.link.is_foreign() {
            true => tracing::warn!(
                %error,
                "a heartbeat was not taken; whose the keys are is not known, and until it is nothing there is used"
            ),
            false => tracing::warn!(%error, "a heartbeat was not taken"),
        }
        self.unanswered = Some(error);
    }

    async fn heartbeat(&mut self) -> Result<bool, LinkError> {
        let Named { keys, period, .. } = &self.named;
        let expiry = *period * PERIODS_TO_EXPIRY;
        let expiry_ms = expiry.as_millis() as u64;
        if let Err(foreign) = claim(&self.link, &self.named, self.has_run).await? {
            self.say(&foreign.told(keys));
            return Ok(false);
        }
        let Some(me) = self.myself() else { return Ok(false) };
        let mut script = BEAT.key(keys.node(&self.named.id));
        script.arg(&self.named.run).arg(expiry_ms).arg(if self.is_new { "take" } else { "" });
        for (field, value) in me.fields() {
            script.arg(field).arg(value);
        }
        let (now_ms, beat_ms, address): (i64, String, String) = self.link.script(&script).await?;
        if now_ms < 0 {
            self.say(&format!("another process goes by the name {:?} (cluster.node_id)", self.named.id));
            return Ok(false);
        }
        if let Ok(beat_ms) = beat_ms.parse::<i64>() {
            self.took_over(Duration::from_millis(now_ms.saturating_sub(beat_ms).unsigned_abs()), &address);
        }
        if self.told.take().is_some() {
            tracing::info!(node = self.named.id, "this node is in the registry again");
        }
        self.is_new = false;
        let nodes = self.named.keys.nodes();
        let mut add = super::link::pipe();
        add.cmd("SADD").arg(&nodes).arg(&self.named.id).ignore().cmd("PEXPIRE").arg(&nodes).arg(expiry_ms).ignore();
        self.link.pipeline::<()>(&add).await?;
        if std::mem::take(&mut self.is_news) {
            let () = self.link.query(cmd("PUBLISH").arg(&nodes).arg(&self.named.id)).await?;
        }
        Ok(true)
    }

    async fn look_around(&mut self) -> Result<(), LinkError> {
        let dead = Dead { periods: PERIODS_TO_DEATH, period: self.named.period };
        let found = look(&self.link, &self.named.keys, Some(dead)).await?;
        self.counts.corrupt.fetch_add(found.corrupt, Relaxed);
        self.say_reaped(&found, PERIODS_TO_DEATH);
        let others: Vec<_> = found.nodes.iter().filter(|node| node.id != self.named.id).collect();
        let changes = self.roll.note(&others, &found.reaped, &std::mem::take(&mut self.told_by), Instant::now());
        self.roll.say(&changes, others.len() + 1);
        if let Some(own) = found.nodes.iter().find(|node| node.id == self.named.id)
            && !std::mem::replace(&mut self.is_compared, true)
        {
            for what in unlike(own, &found.nodes) {
                tracing::warn!(node = self.named.id, "an instance is set otherwise than the others: {what}");
            }
        }
        let _ = self.seen.send_replace(Arc::new(View { nodes: found.nodes, at: Instant::now() }));
        Ok(())
    }

    fn say_reaped(&self, found: &Found, periods: u32) {
        for id in &found.reaped {
            self.counts.reaped.fetch_add(1, Relaxed);
            tracing::warn!(node = id, "a node has had no heartbeat for {periods} of its periods; it is taken for gone");
        }
    }

    /// Says that another process had our name, where it may be one that lives. At an address that only one can have it is
    /// our own of before.
    fn took_over(&self, silent: Duration, theirs: &str) {
        let own = &self.named.address;
        let is_anywhere = own.contains("//0.0.0.0:") || own.contains("//[::]:");
        if silent > self.named.period * PERIODS_TO_DEATH || (own == theirs && !is_anywhere) {
            return;
        }
        tracing::warn!(
            node = self.named.id,
            own,
            theirs,
            silent_ms = silent.as_millis() as u64,
            "another process had a heartbeat under this name (cluster.node_id) a moment ago, and is in no list from now \
             on; if it still runs, give each instance a name of its own, or none"
        );
    }

    /// What this node says of itself. None once there is no server any more.
    fn myself(&self) -> Option<Node> {
        let About { load, max_load, tools, forwards, node_key } = (self.me)()?;
        Some(Node {
            id: self.named.id.clone(),
            status: self.status,
            heartbeat_age_ms: 0,
            heartbeat_s: self.named.period.as_secs(),
            load,
            max_load,
            address: self.named.address.clone(),
            forwards,
            node_key,
            version: env!("CARGO_PKG_VERSION").into(),
            roles: self.named.roles.clone(),
            tools,
            placed: Some(self.named.placed.clone()),
        })
    }

    fn say(&mut self, what: &str) {
        self.counts.missed.fetch_add(1, Relaxed);
        let now = Instant::now();
        if self.told.is_none_or(|told| now.saturating_duration_since(told) >= TOLD_PAUSE) {
            self.told = Some(now);
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
        let Named { keys, id, run, .. } = &self.named;
        // Once more, for what was written since the last heartbeat.
        if claim(&self.link, &self.named, self.has_run).await?.is_err() {
            return Ok(());
        }
        let removed: u64 = self.link.script(LEAVE.key(keys.node(id)).arg(run)).await?;
        if removed == 0 {
            return Ok(()); // it is another process's by now
        }
        let () = self.link.query(cmd("SREM").arg(keys.nodes()).arg(id)).await?;
        // Nobody might come after us who buries the dead. Who only was late is in again with its next heartbeat.
        self.say_reaped(&look(&self.link, keys, Some(self.named.late())).await?, PERIODS_TO_LATE);
        self.link.query(cmd("PUBLISH").arg(keys.nodes()).arg(id)).await
    }
}

/// Returns when another node has news of itself, or may have had: it is among `told_by` then.
async fn others(news: &mut Subscription, id: &str, told_by: &mut BTreeSet<String>) {
    loop {
        match news.next().await {
            Some(Event::Message(message)) if message.payload == id.as_bytes() => {}
            Some(Event::Begun) => {}
            Some(Event::Message(message)) => {
                let other = String::from_utf8(message.payload).ok().filter(|other| is_id(other));
                if let Some(other) = other.filter(|_| told_by.len() < NODES_MAX) {
                    told_by.insert(other);
                }
                return;
            }
            Some(_) => return,
            None => std::future::pending().await, // the runtime ends
        }
    }
}

/// Whose the keys are, when they are another deployment's.
#[derive(Debug)]
pub(crate) struct Foreign {
    owner: String,
    /// Until they are nobody's, unless an instance of the other renews it. None when that is never.
    left: Option<Duration>,
    /// What this one is called.
    own: String,
}

impl Foreign {
    /// In words, with what can be done about it.
    pub(crate) fn told(&self, keys: &Keys) -> String {
        let Self { owner, own, left } = self;
        let frees = match left.map(|left| left.as_secs().div_ceil(60)) {
            None => "does not happen by itself".to_owned(),
            Some(minutes) => {
                let (left, unit) = if minutes < 120 { (minutes, "min") } else { (minutes.div_ceil(60), "h") };
                format!("happens by itself in {left} {unit}, unless an instance of {owner:?} runs, which renews it")
            }
        };
        format!(
            "the keys {}* in this Redis are those of another deployment, {owner:?} (here cluster.id is {own:?}); choose \
             another cluster.key_prefix, or the same cluster.id when both are one. When {owner:?} is no more, and what \
             its clients left there (sessions, tasks, kept results) is to be this one's, `DEL {}` in Redis frees them, \
             which {frees}",
            keys.prefix(),
            keys.cluster()
        )
    }
}

/// Whether the keys are this deployment's; if not, whose. Who has served clients claims them for as long as there can be
/// something of theirs, else for a short time: a start that comes to nothing locks nobody out.
pub(crate) async fn claim(link: &Link, named: &Named, has_run: bool) -> Result<Result<(), Foreign>, LinkError> {
    let kept_for = if has_run { named.kept_for } else { Duration::ZERO };
    let expiry = kept_for + named.period * PERIODS_TO_EXPIRY;
    let script = &mut CLAIM.key(named.keys.cluster());
    let (owner, left_ms): (String, i64) =
        link.script_of_anybody(script.arg(&named.cluster).arg(expiry.as_millis() as u64)).await?;
    Ok(owned(link, owner, left_ms, named))
}

/// The same of an instance that is none: it only looks.
pub(crate) async fn whose(link: &Link, named: &Named) -> Result<Result<(), Foreign>, LinkError> {
    let key = named.keys.cluster();
    let mut ask = super::link::pipe();
    ask.cmd("GET").arg(&key).cmd("PTTL").arg(&key);
    let (owner, left_ms): (Option<String>, i64) = link.pipeline(&ask).await?;
    Ok(owner.map_or(Ok(()), |owner| owned(link, owner, left_ms, named)))
}

fn owned(link: &Link, owner: String, left_ms: i64, named: &Named) -> Result<(), Foreign> {
    let is_ours = owner == named.cluster;
    link.note_owner(is_ours);
    let left = u64::try_from(left_ms).ok().map(Duration::from_millis);
    if is_ours { Ok(()) } else { Err(Foreign { owner, left, own: named.cluster.clone() }) }
}

/// Who is taken for gone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dead {
    /// For so many periods it has had no heartbeat.
    periods: u32,
    /// That of a node that does not say its own.
    period: Duration,
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

/// Reads all nodes; with `dead`, removes those.
pub(crate) async fn look(link: &Link, keys: &Keys, dead: Option<Dead>) -> Result<Found, LinkError> {
    let mut ids: Vec<String> = link.query(cmd("SMEMBERS").arg(keys.nodes())).await?;
    let before = ids.len();
    ids.retain(|id| is_id(id));
    let mut found = Found { corrupt: (before - ids.len()) as u64, ..Found::default() };
    ids.sort_unstable();
    ids.truncate(NODES_MAX);
    let (periods, period_ms) = dead.map_or((-1, 0), |dead| (i64::from(dead.periods), dead.period.as_millis() as u64));
    let looks = stream::iter(ids)
        .map(|id| async move { (link.script(LOOK.key(keys.node(&id)).arg(periods).arg(period_ms)).await, id) })
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
