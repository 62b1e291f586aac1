//! The store for several instances: records in Redis, each with an expiry, changed only against the version that the
//! change was made of. Whoever makes a change that a client can see says so to all instances in the same step.
//!
//! A task whose process is gone (`cluster::presence`) is run again where that may be (`orphans`); else it has failed:
//! whoever looks at it says so, and its run, should there still be one, ends in vain.

use std::{
    future::ready,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::SystemTime,
};

use bytes::Bytes;
use sha2::{Digest, Sha256};

use super::{
    Config,
    orphans::Found,
    record::{Change, Effect, Failure, Record, millis},
    store::{After, Store, StoreError, StoreFuture},
};
use crate::cluster::{
    Cluster, Keys,
    changes::Bus,
    keys::hex,
    link::{Link, LinkError, Refused, Script, pipe},
    presence::{Presence, Stake},
    tag_of,
};

/// Instances that change one record at once try again so often.
const TRIES_MAX: usize = 32;
/// No record is larger, whatever the settings say.
const RECORD_BYTES_MAX: usize = 64 * 1024 * 1024;

/// Counts a task for all and for its caller, by the clock of Redis, when there is room: 0; else 1 or 2, by what is full.
static ADMIT: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
for i = 1, 2 do
  redis.call('ZREMRANGEBYSCORE', KEYS[i], '-inf', string.format('%.0f', now))
  if redis.call('ZCARD', KEYS[i]) >= tonumber(ARGV[2 + i]) then return i end
end
for i = 1, 2 do
  redis.call('ZADD', KEYS[i], string.format('%.0f', now + ARGV[2]), ARGV[1])
  if redis.call('PTTL', KEYS[i]) < tonumber(ARGV[2]) then redis.call('PEXPIRE', KEYS[i], ARGV[2]) end
end
return 0",
    )
});

static STORE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"redis.call('HSET', KEYS[1], 'version', ARGV[2], 'record', ARGV[3], 'by', ARGV[4])
if ARGV[5] then redis.call('HSET', KEYS[1], 'request', ARGV[5]) end
return redis.call('PEXPIRE', KEYS[1], ARGV[1])",
    )
});

static LOAD: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"if redis.call('HSTRLEN', KEYS[1], 'record') > tonumber(ARGV[1]) then return {'', ''} end
return redis.call('HMGET', KEYS[1], 'record', 'by')",
    )
});

/// 1: written. 0: somebody else wrote in between. -1: it is gone, or another runs it by now.
static CHANGE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"local now = redis.call('HMGET', KEYS[1], 'version', 'by')
if not now[1] then return -1 end
if ARGV[6] ~= '' and now[2] and now[2] ~= ARGV[6] then return -1 end
if now[1] ~= ARGV[1] then return 0 end
redis.call('HSET', KEYS[1], 'version', ARGV[2], 'record', ARGV[3])
if ARGV[7] == '1' then redis.call('HDEL', KEYS[1], 'request') end
if ARGV[5] ~= '' then redis.call('PUBLISH', ARGV[4], ARGV[5]) end
return 1",
    )
});

/// Records in Redis.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(super) link: Link,
    pub(super) keys: Keys,
    pub(super) bus: Arc<Bus>,
    tasks_max: usize,
    per_caller_max: usize,
    /// For the result and the unread answers of one record.
    bytes_max: usize,
    corrupt: AtomicU64,
    /// This process.
    pub(super) run: String,
    presence: Arc<Presence>,
    found: Found,
    /// How sure it is to be that a process is gone whose tasks have failed.
    stake: Stake,
}

impl Shared {
    /// With the limits of `config`, which hold over all instances; but for `bytes_max`, which is for one task here.
    pub(crate) fn new(config: &Config, cluster: &Cluster) -> Self {
        Self {
            link: cluster.link.clone(),
            keys: cluster.keys.clone(),
            bus: Arc::clone(&cluster.bus),
            tasks_max: config.tasks_max,
            per_caller_max: config.per_caller_max,
            bytes_max: config.bytes_max.as_usize().min(RECORD_BYTES_MAX),
            corrupt: AtomicU64::new(0),
            run: cluster.run().to_owned(),
            presence: Arc::clone(&cluster.presence),
            found: Found::default(),
            stake: Stake::ForEver,
        }
    }

    /// One that waits for nobody for longer than it must.
    #[cfg(test)]
    pub(crate) fn without_grace(self) -> Self {
        Self { stake: Stake::SecondRun, ..self }
    }

    async fn insert_now(&self, record: Record) -> Result<(), StoreError> {
        let left_ms = left_ms(&record, SystemTime::now());
        let of = hex(&Sha256::digest(record.counts_for())[..16]);
        let (all, own) = (self.keys.tasks("all"), self.keys.tasks(&format!("of:{of}")));
        let mut script = ADMIT.prepare_invoke();
        script.key(&all).key(&own).arg(&record.id).arg(left_ms).arg(self.tasks_max).arg(self.per_caller_max);
        match self.link.script::<u8>(&script).await.map_err(said)? {
            0 => {}
            1 => return Err(StoreError::Full),
            _ => return Err(StoreError::CallerFull),
        }
        let mut write = STORE.prepare_invoke();
        write.key(self.keys.task(&record.id)).arg(left_ms).arg(record.version).arg(written(&record)?).arg(&self.run);
        if let Some(request) = &record.request {
            write.arg(request.as_ref());
        }
        let stored: Result<u8, LinkError> = self.link.script(&write).await;
        if stored.is_err() {
            // It may be there, under a name that nobody is told; what it takes of the limits is given back at once if it
            // can be, and in its time otherwise.
            let mut back = pipe();
            back.cmd("ZREM").arg(&all).arg(&record.id).ignore().cmd("ZREM").arg(&own).arg(&record.id).ignore();
            let _: Result<(), LinkError> = self.link.pipeline(&back).await;
        }
        stored.map(drop).map_err(said)
    }

    async fn load_now(&self, id: &str) -> Result<Option<Record>, StoreError> {
        let Some((record, run)) = self.read(id).await? else { return Ok(None) };
        if record.status.is_final() || run == self.run || run.is_empty() {
            return Ok(Some(record));
        }
        let Some(tag) = tag_of(&run) else { return Ok(Some(record)) };
        let Some(absent) = self.presence.absent(tag).await else { return Ok(Some(record)) };
        if absent.is_enough_for(Stake::SecondRun) && self.may_run_again(id).await.map_err(said)? {
            self.found.note(id, &run);
            return Ok(Some(record));
        }
        if !absent.is_enough_for(self.stake) {
            return Ok(Some(record));
        }
        let why = "the instance that ran the task is gone; the task may have had effects";
        tracing::warn!(task = id, "{why}");
        let ended = self.change_of(&run, id, Change::Fail(Failure::internal(why)), SystemTime::now()).await?;
        Ok(ended.map(|after| after.record))
    }

    /// A record, and the process that runs it.
    pub(super) async fn read(&self, id: &str) -> Result<Option<(Record, String)>, StoreError> {
        let mut script = LOAD.prepare_invoke();
        script.key(self.keys.task(id)).arg(2 * RECORD_BYTES_MAX);
        let read: Result<(Option<String>, Option<String>), LinkError> = self.link.script(&script).await;
        let (text, run) = match read {
            Ok((None, _)) => return Ok(None),
            Ok((Some(text), run)) => (text, run.unwrap_or_default()),
            Err(LinkError::Refused(Refused::WrongType) | LinkError::Odd(_)) => Default::default(),
            Err(error) => return Err(said(error)),
        };
        let record = serde_json::from_str::<Record>(&text).ok().filter(|record| record.id == id);
        if record.is_none() {
            self.corrupt.fetch_add(1, Relaxed);
            tracing::warn!(
                task = id,
                "what is kept of a task in Redis is no record; it counts as missing, and is left"
            );
        }
        Ok(record.filter(|record| !record.is_expired(SystemTime::now())).map(|record| (record, run)))
    }

    async fn change_now(&self, id: &str, change: Change, now: SystemTime) -> Result<Option<After>, StoreError> {
        // What a client does it does to whoever runs the task. All else is a run's, and of that the one that has it now.
        let by = if matches!(change, Change::Answer(_) | Change::Cancel) { "" } else { self.run.as_str() };
        self.change_of(by, id, change, now).await
    }

    /// A change that is made only as long as this run has the task; anybody's when it names none.
    async fn change_of(
        &self,
        by: &str,
        id: &str,
        change: Change,
        now: SystemTime,
    ) -> Result<Option<After>, StoreError> {
        for _ in 0..TRIES_MAX {
            let Some((mut record, _)) = self.read(id).await? else { return Ok(None) };
            let version = record.version;
            let change = self.admit(&record, change.clone())?;
            let effect = record.apply(change, now);
            if effect == Effect::None {
                return Ok(Some(After { record, effect }));
            }
            let (channel, news) = self.bus.of_task(&record.owner, id, record.version);
            let news = if effect == Effect::Visible { news } else { String::new() };
            let mut script = CHANGE.prepare_invoke();
            script.key(self.keys.task(id)).arg(version).arg(record.version).arg(written(&record)?);
            script.arg(channel).arg(news).arg(by).arg(u8::from(record.status.is_final()));
            match self.link.script::<i8>(&script).await.map_err(said)? {
                1 => return Ok(Some(After { record, effect })),
                0 => {}
                _ => return Ok(None),
            }
        }
        Err(StoreError::Unavailable("others change the same task all the time".into()))
    }

    /// A result without room becomes a failure: the run is over, and whoever polls must learn of it.
    fn admit(&self, record: &Record, change: Change) -> Result<Change, StoreError> {
        let bytes = change.bytes();
        if record.status.is_final() || record.bytes() + bytes <= self.bytes_max {
            return Ok(change);
        }
        if !matches!(change, Change::Complete(_)) {
            return if bytes == 0 { Ok(change) } else { Err(StoreError::Full) };
        }
        tracing::warn!(bytes, bytes_max = self.bytes_max, "a task's result was dropped: no room is left for it");
        Ok(Change::Fail(Failure::internal("the task is done, and the server has no room for its result")))
    }
}

impl Store for Shared {
    fn insert(&self, record: Record) -> StoreFuture<'_, ()> {
        Box::pin(self.insert_now(record))
    }

    fn load<'a>(&'a self, id: &'a str) -> StoreFuture<'a, Option<Record>> {
        Box::pin(self.load_now(id))
    }

    fn change<'a>(&'a self, id: &'a str, change: Change, now: SystemTime) -> StoreFuture<'a, Option<After>> {
        Box::pin(self.change_now(id, change, now))
    }

    fn running<'a>(&'a self, id: &'a str) -> StoreFuture<'a, Option<Record>> {
        Box::pin(async {
            let found = self.read(id).await?;
            Ok(found.filter(|(record, run)| !record.status.is_final() && *run == self.run).map(|(record, _)| record))
        })
    }

    /// They expire by themselves.
    fn sweep(&self, _: SystemTime) -> StoreFuture<'_, usize> {
        Box::pin(ready(Ok(0)))
    }

    fn adopt<'a>(&'a self, id: &'a str, gone: &'a str, now: SystemTime) -> StoreFuture<'a, Option<(Record, Bytes)>> {
        Box::pin(self.adopt_now(id, gone, now))
    }

    fn take_orphan(&self, id: &str) -> Option<String> {
        self.found.take(id)
    }

    fn is_shared(&self) -> bool {
        true
    }
}

fn left_ms(record: &Record, now: SystemTime) -> u64 {
    record.created_at_ms.saturating_add(record.ttl_ms).saturating_sub(millis(now)).max(1)
}

pub(super) fn written(record: &Record) -> Result<String, StoreError> {
    serde_json::to_string(record).map_err(|error| StoreError::Unavailable(error.to_string()))
}

pub(super) fn said(error: LinkError) -> StoreError {
    match error {
        LinkError::Refused(Refused::Full) => StoreError::Full,
        error => StoreError::Unavailable(error.to_string()),
    }
}
