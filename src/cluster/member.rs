//! One instance in the registry, as a task: its heartbeats, what it sees of the others, what it says of both, and its leave.
//! Who holds the other end is `registry`.

use std::{
    collections::BTreeSet,
    sync::{Arc, LazyLock, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep_until},
};

use super::{
    claim::claim,
    link::{Event, Link, LinkError, Refused, Script, Subscription, cmd, pipe},
    look::{Dead, Found, NODES_MAX, look},
    node::{Node, Status, is_id},
    registry::{About, Counts, Me, Named, Order, PERIODS_TO_EXPIRY, PERIODS_TO_LATE, View},
    roll::Roll,
    unlike::unlike,
};

/// Who has been silent for so many periods is gone.
const PERIODS_TO_DEATH: u32 = 3;
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

/// Removes a node that this process wrote.
static LEAVE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"local run = redis.call('HGET', KEYS[1], 'run')
if run and run ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
return 1",
    )
});

/// The task's own.
pub(super) struct Member {
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
    /// As starting, and not in it yet.
    pub(super) fn new(link: Link, named: Named, me: Me, seen: watch::Sender<Arc<View>>, counts: Arc<Counts>) -> Self {
        Self {
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
            counts,
        }
    }

    /// Takes part until it is told to leave, or until nobody holds the other end.
    pub(super) async fn live(mut self, mut orders: mpsc::Receiver<Order>) {
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
        let mut add = pipe();
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
