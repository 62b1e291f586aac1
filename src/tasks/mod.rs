//! Tasks (`io.modelcontextprotocol/tasks`): calls that answer at once with a name, under which the client then finds
//! the state, the questions and the result. Here is what may happen to a task and who may see it; requests are read
//! and answered elsewhere, and the work itself is run by who made the task.
//!
//! ```text
//! client --get, answer, cancel--> Tasks --change--> Store: one Record each, any instance finds it
//!                                   |                 ^
//!                                   | wakes           | ask, say, complete, fail
//!                                   v                 |
//!                                 Live <--waits-- Handle, Link: the run, on this instance
//! ```
//!
//! A record's only way to change is [`Record::apply`]. A task that has ended stays as it is until it expires, so each
//! request may come late, twice, or on another instance.

mod handle;
mod live;
mod memory;
mod orphans;
mod record;
mod shards;
mod shared;
mod store;
#[cfg(test)]
mod tests;
mod wire;

use std::{
    fmt::{self, Write},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub(crate) use self::shared::Shared;
pub use self::{
    handle::{Cancelled, Handle, Link},
    memory::Memory,
    record::{Change, Effect, Failure, Record, STATUS_MESSAGE_CHARS_MAX, Status},
    store::{After, Store, StoreError, StoreFuture},
};
use self::{live::Live, shards::Shards};
use crate::units::ByteSize;

/// Random bytes in an id; 192 bits cannot be guessed.
const ID_BYTES: usize = 24;
const ID_CHARS: usize = ID_BYTES * 2;

/// `[tasks]`: limits of calls that run on while their client asks for them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Tasks that are kept at once, running and ended.
    pub tasks_max: usize,
    /// Tasks of one caller that are kept at once; without authentication, of one address.
    pub per_caller_max: usize,
    /// Memory for results and unread answers, over all tasks. A result without room fails its task.
    pub bytes_max: ByteSize,
    /// How long a task is kept after it was made, in milliseconds. Not less than `timeout_ms`.
    pub ttl_ms: u64,
    /// How often clients are told to ask for a task, in milliseconds.
    pub poll_interval_ms: u64,
    /// The longest that a task may run, with all its waiting, in milliseconds.
    pub timeout_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            tasks_max: 10_000,
            per_caller_max: 1_000,
            bytes_max: ByteSize::mib(256),
            ttl_ms: 3_600_000,
            poll_interval_ms: 1_000,
            timeout_ms: 600_000,
        }
    }
}

/// Called after each change that a client can see, with the record after it; for one task in the order of its changes.
/// Must be short, must not block, and must not call [`Tasks`].
pub type OnChange = Arc<dyn Fn(&Record) + Send + Sync>;

/// All tasks of this instance, and the way to those of others through the store.
pub struct Tasks {
    config: Config,
    store: Arc<dyn Store>,
    on_change: Option<OnChange>,
    /// Those that run here.
    live: Shards<Arc<Live>>,
    live_count: AtomicUsize,
}

impl fmt::Debug for Tasks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tasks").field("store", &self.store).field("live", &self.live_count).finish_non_exhaustive()
    }
}

impl Tasks {
    /// Tasks in a store.
    pub fn new(config: Config, store: Arc<dyn Store>) -> Arc<Self> {
        Self::build(config, store, None)
    }

    /// The same, with somebody who hears of every change that is made here.
    pub fn with_on_change(config: Config, store: Arc<dyn Store>, on_change: OnChange) -> Arc<Self> {
        Self::build(config, store, Some(on_change))
    }

    fn build(config: Config, store: Arc<dyn Store>, on_change: Option<OnChange>) -> Arc<Self> {
        Arc::new(Self { config, store, on_change, live: Shards::new(), live_count: AtomicUsize::new(0) })
    }

    /// The settings.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Tasks that run on this instance.
    pub fn running(&self) -> usize {
        self.live_count.load(Ordering::Relaxed)
    }

    /// Makes a task. When this returns, any instance finds it. The record is for the answer, the handle for who runs
    /// the work.
    ///
    /// # Errors
    /// What the store says, or that too many tasks run here.
    pub async fn create(self: &Arc<Self>, owner: &str, now: SystemTime) -> Result<(Record, Handle), StoreError> {
        self.create_for(owner, None, None, now).await
    }

    /// The same, where who owns the task is not who it counts for: one owner can be many callers. `made_by` is the tool
    /// whose call it is, for who asks whether its owner may still call that.
    ///
    /// # Errors
    /// As [`Tasks::create`].
    pub async fn create_for(
        self: &Arc<Self>,
        owner: &str,
        counts_for: Option<String>,
        made_by: Option<String>,
        now: SystemTime,
    ) -> Result<(Record, Handle), StoreError> {
        let Config { ttl_ms, poll_interval_ms, .. } = self.config;
        let record = Record::new(new_id()?, owner, now, ttl_ms, poll_interval_ms);
        self.create_as(Record { counts_for, made_by, ..record }).await
    }

    /// The same with the request that made it, which is kept for another instance to run it again.
    pub(crate) async fn create_again(
        self: &Arc<Self>,
        owner: &str,
        counts_for: Option<String>,
        made_by: Option<String>,
        request: Option<Bytes>,
    ) -> Result<(Record, Handle), StoreError> {
        let Config { ttl_ms, poll_interval_ms, .. } = self.config;
        let record = Record::new(new_id()?, owner, SystemTime::now(), ttl_ms, poll_interval_ms);
        self.create_as(Record { counts_for, made_by, request, ..record }).await
    }

    async fn create_as(self: &Arc<Self>, record: Record) -> Result<(Record, Handle), StoreError> {
        let Config { ttl_ms, timeout_ms, .. } = self.config;
        let live = Live::new(&record.id, record.created_at_ms.saturating_add(timeout_ms.min(ttl_ms)));
        // The handle is there before the record, so that a caller who leaves in between does not leave a record behind
        // that nobody ends.
        let handle = self.run(live)?;
        match self.store.insert(record.clone()).await {
            Ok(()) => Ok((record, handle)),
            Err(error) => {
                self.remove_live(handle.live());
                handle.discard();
                Err(error)
            }
        }
    }

    /// The run of a task that was found to be gone, so that it is to be taken over, since this was asked last.
    pub(crate) fn take_orphan(&self, id: &str) -> Option<String> {
        self.store.take_orphan(id)
    }

    /// Takes over a task whose run was found to be gone, unless it has another by now. What is returned is for who runs
    /// it again: the record, the handle, and the request that made it. Not to be given up halfway: the task would be
    /// nobody's.
    pub(crate) async fn adopt(
        self: &Arc<Self>,
        id: &str,
        gone: &str,
    ) -> Result<Option<(Record, Handle, Bytes)>, StoreError> {
        if self.live_count.load(Ordering::Acquire) >= self.config.tasks_max {
            return Ok(None); // who looks again finds it again, or another instance does
        }
        let now = SystemTime::now();
        let Some((record, request)) = self.store.adopt(id, gone, now).await? else { return Ok(None) };
        let expires_at_ms = record.created_at_ms.saturating_add(record.ttl_ms);
        let ends_at_ms = record::millis(now).saturating_add(self.config.timeout_ms).min(expires_at_ms);
        match self.run(Live::again(id, ends_at_ms, record.version)) {
            Ok(handle) => {
                let live = self.live.part(id).get(id).map(Arc::clone);
                let record = self.changed(live.as_deref(), After { record, effect: Effect::Visible });
                Ok(Some((record, handle, request)))
            }
            Err(error) => {
                let why = format!("the instance that ran the task is gone, and it is not run again: {error}");
                self.change(id, Change::Fail(Failure::internal(why))).await?;
                Ok(None)
            }
        }
    }

    /// The owner's task of this id. For anybody else it is as if it were not there.
    ///
    /// # Errors
    /// What the store says.
    pub async fn get(&self, owner: &str, id: &str) -> Result<Option<Record>, StoreError> {
        if !is_id(id) {
            return Ok(None);
        }
        Ok(self.load(id).await?.filter(|record| record.owner == owner))
    }

    /// Takes answers of the client in. What is not asked is ignored, and so is everything once the task has ended.
    ///
    /// # Errors
    /// What the store says.
    pub async fn answer(
        &self,
        owner: &str,
        id: &str,
        inputs: Map<String, Value>,
    ) -> Result<Option<Record>, StoreError> {
        self.change_owned(owner, id, Change::Answer(inputs)).await
    }

    /// Cancels a task: its record at once, its work as soon as that looks. Does nothing when it has ended.
    ///
    /// # Errors
    /// What the store says.
    pub async fn cancel(&self, owner: &str, id: &str) -> Result<Option<Record>, StoreError> {
        self.change_owned(owner, id, Change::Cancel).await
    }

    /// Another instance may have changed a task: when it runs here, its run looks.
    pub(crate) fn heard(&self, id: &str) {
        let live = self.live.part(id).get(id).map(Arc::clone);
        if let Some(live) = live {
            live.wake(false);
        }
    }

    /// Ends what has run for too long, tells the store of ends that it could not hear of before, and removes what has
    /// expired. To be called every few seconds. Returns how many tasks expired.
    pub async fn sweep(&self, now: SystemTime) -> usize {
        let now_ms = record::millis(now);
        let mut due: Vec<Arc<Live>> = Vec::new();
        for part in self.live.parts() {
            due.extend(part.values().filter(|live| live.needs_sweep(now_ms)).cloned());
        }
        for live in due {
            if live.is_overdue(now_ms) {
                let limit_ms = self.config.timeout_ms.min(self.config.ttl_ms);
                let why = format!("the task did not end within {limit_ms} ms and was stopped");
                live.end_with(Change::Fail(Failure::internal(why)));
            }
            if !self.settle(&live).await {
                break; // the store is away; the others would wait for it in vain, one by one
            }
        }
        self.store.sweep(now).await.unwrap_or_else(|error| {
            tracing::warn!(%error, "expired tasks could not be removed; the next sweep tries again");
            0
        })
    }

    async fn change_owned(&self, owner: &str, id: &str, change: Change) -> Result<Option<Record>, StoreError> {
        // An owner is for ever, so that what is true before the change is true in it.
        if self.get(owner, id).await?.is_none() {
            return Ok(None);
        }
        self.change(id, change).await
    }

    /// Changes a record, wakes the run and tells who wants to hear of it.
    async fn change(&self, id: &str, change: Change) -> Result<Option<Record>, StoreError> {
        let live = self.live.part(id).get(id).map(Arc::clone);
        let after = self.store.change(id, change, SystemTime::now()).await?;
        Ok(after.map(|after| self.changed(live.as_deref(), after)))
    }

    /// A change that a run makes. `None` when the task is gone or another's, and so the run over.
    async fn change_by(&self, live: &Live, change: Change) -> Result<Option<Record>, StoreError> {
        if live.is_over() {
            return Ok(None);
        }
        let after = self.store.change(live.id(), change, SystemTime::now()).await?;
        if after.is_none() {
            live.wake(true);
        }
        Ok(after.map(|after| self.changed(Some(live), after)))
    }

    fn changed(&self, live: Option<&Live>, After { record, effect }: After) -> Record {
        if effect == Effect::Visible {
            match (&self.on_change, live) {
                (Some(tell), Some(live)) => live.tell(&record, |record| tell(record)),
                (Some(tell), None) => tell(&record),
                (None, _) => {}
            }
        }
        if let Some(live) = live.filter(|_| effect != Effect::None) {
            live.wake(record.status.is_final());
        }
        record
    }

    async fn load(&self, id: &str) -> Result<Option<Record>, StoreError> {
        self.store.load(id).await
    }

    /// Brings an end to the store. False when the store could not be reached, so that the sweep tries again.
    async fn settle(&self, live: &Live) -> bool {
        let Some(end) = live.pending() else { return true };
        match self.store.change(live.id(), end, SystemTime::now()).await {
            Ok(after) => {
                after.map(|after| self.changed(Some(live), after));
                self.remove_live(live);
                live.settle();
                true
            }
            Err(error) => {
                tracing::warn!(%error, task = live.id(), "a task's end is not in the store yet; it is tried again");
                false
            }
        }
    }

    /// Notes a task as running here.
    fn run(self: &Arc<Self>, live: Live) -> Result<Handle, StoreError> {
        let below = |n: usize| (n < self.config.tasks_max).then_some(n + 1);
        self.live_count.fetch_update(Ordering::AcqRel, Ordering::Acquire, below).map_err(|_| StoreError::Full)?;
        let live = Arc::new(live);
        let before = self.live.part(live.id()).insert(live.id().into(), Arc::clone(&live));
        if let Some(before) = before {
            // It ran here before another process took it over, which has gone too.
            before.settle();
            self.live_count.fetch_sub(1, Ordering::AcqRel);
        }
        Ok(Handle::new(Arc::clone(self), live))
    }

    /// Notes that a run is over; another run of the same task stays.
    fn remove_live(&self, live: &Live) {
        let mut part = self.live.part(live.id());
        if part.get(live.id()).is_some_and(|there| std::ptr::eq(Arc::as_ptr(there), live)) {
            part.remove(live.id());
            self.live_count.fetch_sub(1, Ordering::AcqRel);
        }
    }

    pub(crate) fn is_shared(&self) -> bool {
        self.store.is_shared()
    }

    fn look_interval(&self) -> Duration {
        handle::look_interval(self.config.poll_interval_ms)
    }
}

/// Random, in hex: it travels in a header, which wants visible ASCII.
fn new_id() -> Result<String, StoreError> {
    let mut bytes = [0; ID_BYTES];
    getrandom::fill(&mut bytes).map_err(|error| StoreError::Unavailable(format!("no random numbers: {error}")))?;
    let mut id = String::with_capacity(ID_CHARS);
    for byte in bytes {
        let _ = write!(id, "{byte:02x}");
    }
    Ok(id)
}

/// Whether a text could be an id, so that a store is asked for nothing else.
fn is_id(text: &str) -> bool {
    text.len() == ID_CHARS && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}
