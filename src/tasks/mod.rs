//! Tasks: calls whose answer is fetched later (`io.modelcontextprotocol/tasks`). A task is in the store before its
//! client hears of it, so that asking for it can never come too early; what runs it is held by the instance that it runs
//! on. Where tasks are kept is behind [`Store`]; what a task is, in [`Record`].

mod record;
mod store;

use std::{
    collections::HashMap,
    fmt::Write,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::{sync::Notify, time::timeout};

pub use self::{
    record::{Change, Record, Status},
    store::{Memory, Store, StoreError, Stored},
};
use crate::{
    changes::Changes,
    error::CallError,
    input::{Parks, Waiting},
};

/// `[tasks]`: calls whose answer is fetched later.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Tasks kept at once, those that have ended included.
    pub tasks_max: usize,
    /// Tasks kept at once of one caller.
    pub per_caller_max: usize,
    /// How long a task is kept after its creation, in milliseconds.
    pub ttl_ms: u64,
    /// How often clients are asked to look, in milliseconds.
    pub poll_interval_ms: u64,
    /// Time for a task to end, in milliseconds.
    pub timeout_ms: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            tasks_max: 10_000,
            per_caller_max: 1_000,
            ttl_ms: 3_600_000,
            poll_interval_ms: 1_000,
            timeout_ms: 600_000,
        }
    }
}

/// All tasks.
#[derive(Debug)]
pub(crate) struct Tasks {
    config: Config,
    store: Arc<dyn Store>,
    changes: Changes,
    /// What runs here, by id.
    live: Mutex<HashMap<String, Arc<Live>>>,
}

/// What the instance that runs a task holds of it.
#[derive(Debug, Default)]
struct Live {
    answers: Mutex<Map<String, Value>>,
    answered: Notify,
    is_cancelled: AtomicBool,
    cancelled: Notify,
}

/// A task that runs here, held by who runs it. Dropped without an end, the task has failed.
#[derive(Debug)]
pub(crate) struct Handle {
    tasks: Arc<Tasks>,
    id: String,
    live: Arc<Live>,
    ended: AtomicBool,
}

impl Tasks {
    pub(crate) fn new(config: Config, store: Arc<dyn Store>, changes: Changes) -> Arc<Self> {
        Arc::new(Self { config, store, changes, live: Mutex::default() })
    }

    /// How long a task may run.
    pub(crate) fn timeout(&self) -> Duration {
        Duration::from_millis(self.config.timeout_ms)
    }

    /// A new task. It is in the store when this resolves.
    pub(crate) async fn create(self: &Arc<Self>, owner: &str) -> Result<(Record, Handle), StoreError> {
        let now_ms = record::millis(SystemTime::now());
        let record = Record {
            id: new_id()?,
            owner: owner.to_owned(),
            status: Status::Working,
            created_at_ms: now_ms,
            updated_at_ms: now_ms,
            ttl_ms: self.config.ttl_ms,
            poll_interval_ms: self.config.poll_interval_ms,
            input_requests: Map::new(),
            result: None,
            error: None,
        };
        self.store.insert(record.clone()).await?;
        let live = Arc::<Live>::default();
        self.live.lock().insert(record.id.clone(), Arc::clone(&live));
        let handle = Handle { tasks: Arc::clone(self), id: record.id.clone(), live, ended: AtomicBool::new(false) };
        Ok((record, handle))
    }

    /// The owner's task of this id. Another's is as if it were not there.
    pub(crate) async fn get(&self, owner: &str, id: &str) -> Result<Option<Record>, StoreError> {
        let record = self.store.load(id).await?;
        Ok(record.filter(|r| r.owner == owner && !r.is_over(SystemTime::now())))
    }

    /// Brings answers to a task's questions; those that nobody asked for are ignored. False when there is no such task.
    pub(crate) async fn answer(&self, owner: &str, id: &str, answers: Map<String, Value>) -> Result<bool, StoreError> {
        let Some(record) = self.get(owner, id).await? else { return Ok(false) };
        let wanted: Map<_, _> =
            answers.into_iter().filter(|(key, _)| record.input_requests.contains_key(key)).collect();
        if wanted.is_empty() {
            return Ok(true);
        }
        let keys = wanted.keys().cloned().collect();
        let live = self.live.lock().get(id).map(Arc::clone);
        if let Some(live) = &live {
            live.answers.lock().extend(wanted);
        }
        self.change(id, Change::Answered(keys)).await?;
        if let Some(live) = live {
            live.answered.notify_one();
        }
        Ok(true)
    }

    /// Takes a task back. False when there is no such task; one that has ended stays as it is.
    pub(crate) async fn cancel(&self, owner: &str, id: &str) -> Result<bool, StoreError> {
        if self.get(owner, id).await?.is_none() {
            return Ok(false);
        }
        self.change(id, Change::Cancel).await?;
        let live = self.live.lock().get(id).map(Arc::clone);
        if let Some(live) = live {
            live.is_cancelled.store(true, Ordering::Release);
            live.cancelled.notify_one();
            live.answered.notify_one();
        }
        Ok(true)
    }

    /// Forgets tasks whose time is over.
    pub(crate) async fn sweep(&self) {
        match self.store.sweep(SystemTime::now()).await {
            Ok(0) => {}
            Ok(forgotten) => tracing::debug!(forgotten, "tasks whose time was over"),
            Err(error) => tracing::warn!(?error, "tasks cannot be swept"),
        }
    }

    async fn change(&self, id: &str, change: Change) -> Result<(), StoreError> {
        if let Some((record, true)) = self.store.change(id, change, SystemTime::now()).await? {
            self.changes.task(id, &record.detailed_members());
        }
        Ok(())
    }
}

impl Handle {
    pub(crate) fn is_cancelled(&self) -> bool {
        self.live.is_cancelled.load(Ordering::Acquire)
    }

    /// Returns when the client takes the task back.
    pub(crate) async fn cancelled(&self) {
        while !self.is_cancelled() {
            self.live.cancelled.notified().await;
        }
    }

    /// The end of the task: a result object, or an error object.
    pub(crate) async fn end(&self, outcome: Result<Value, Value>) {
        self.ended.store(true, Ordering::Release);
        let change = outcome.map_or_else(Change::Fail, Change::Complete);
        if let Err(error) = self.tasks.change(&self.id, change).await {
            tracing::error!(?error, task = self.id, "the end of a task could not be kept");
        }
    }

    async fn wait_for(&self, requests: Map<String, Value>) -> Result<Map<String, Value>, CallError> {
        let keys: Vec<String> = requests.keys().cloned().collect();
        self.live.answers.lock().retain(|key, _| !keys.contains(key)); // answers to an older question of this name
        let kept = self.tasks.change(&self.id, Change::Ask(requests)).await;
        kept.map_err(|_| CallError::Internal)?;
        loop {
            if self.is_cancelled() {
                return Err(CallError::Cancelled);
            }
            {
                let mut answers = self.live.answers.lock();
                if keys.iter().all(|key| answers.contains_key(key)) {
                    return Ok(keys.into_iter().filter_map(|key| answers.remove_entry(&key)).collect());
                }
            }
            self.live.answered.notified().await;
        }
    }
}

impl Parks for Handle {
    fn ask(&self, requests: Map<String, Value>) -> Waiting<'_, Map<String, Value>> {
        Box::pin(async move {
            let limit = self.tasks.timeout();
            let waited = timeout(limit, self.wait_for(requests)).await;
            waited.unwrap_or_else(|_| Err(CallError::tool("the client did not answer while the task could run")))
        })
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.tasks.live.lock().remove(&self.id);
        if self.ended.load(Ordering::Acquire) || self.is_cancelled() {
            return;
        }
        let (tasks, id) = (Arc::clone(&self.tasks), std::mem::take(&mut self.id));
        let error = json!({ "code": -32603, "message": "the task ended without an answer" });
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { tasks.change(&id, Change::Fail(error)).await });
        }
    }
}

fn new_id() -> Result<String, StoreError> {
    let mut bytes = [0; 24];
    getrandom::fill(&mut bytes).map_err(|e| StoreError::Unavailable(format!("no random numbers: {e}")))?;
    let mut id = String::with_capacity(48);
    for byte in bytes {
        let _ = write!(id, "{byte:02x}");
    }
    Ok(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tasks(config: Config) -> Arc<Tasks> {
        let store = Memory::new(config.tasks_max, config.per_caller_max);
        Tasks::new(config, Arc::new(store), Changes::default())
    }

    fn object(value: Value) -> Map<String, Value> {
        if let Value::Object(object) = value { object } else { Map::new() }
    }

    #[tokio::test]
    async fn a_task_is_its_owners_and_there_at_once() {
        let tasks = tasks(Config::default());
        let (record, handle) = tasks.create("me").await.expect("room");
        assert!(tasks.get("me", &record.id).await.expect("a store").is_some());
        assert!(tasks.get("you", &record.id).await.expect("a store").is_none());
        assert_eq!(tasks.cancel("you", &record.id).await, Ok(false));
        handle.end(Ok(json!({ "content": [] }))).await;
        drop(handle);
        let ended = tasks.get("me", &record.id).await.expect("a store").expect("kept");
        assert_eq!(ended.status, Status::Completed);
        assert_eq!(tasks.cancel("me", &record.id).await, Ok(true), "as often as one likes");
        assert_eq!(tasks.get("me", &record.id).await.expect("a store").expect("kept"), ended);
    }

    #[tokio::test]
    async fn questions_wait_for_all_their_answers() {
        let tasks = tasks(Config::default());
        let (record, handle) = tasks.create("me").await.expect("room");
        let asking = tokio::spawn(async move {
            let answers = handle.ask(object(json!({ "a": {}, "b": {} }))).await;
            handle.end(Ok(Value::Null)).await;
            answers
        });
        while tasks.get("me", &record.id).await.expect("a store").expect("kept").status != Status::InputRequired {
            tokio::task::yield_now().await;
        }
        for (answers, status) in [
            (json!({ "c": 3 }), Status::InputRequired),
            (json!({ "a": 1, "c": 3 }), Status::InputRequired),
            (json!({ "b": 2 }), Status::Working),
        ] {
            assert_eq!(tasks.answer("me", &record.id, object(answers)).await, Ok(true));
            let now = tasks.get("me", &record.id).await.expect("a store").expect("kept").status;
            assert!(now == status || now == Status::Completed, "{now:?}");
        }
        assert_eq!(asking.await.expect("ends"), Ok(object(json!({ "a": 1, "b": 2 }))));
    }

    #[tokio::test]
    async fn cancelling_wakes_and_dropping_fails() {
        let tasks = tasks(Config::default());
        let (record, handle) = tasks.create("me").await.expect("room");
        let asking = tokio::spawn(async move { handle.ask(object(json!({ "a": {} }))).await });
        tokio::task::yield_now().await;
        assert_eq!(tasks.cancel("me", &record.id).await, Ok(true));
        assert_eq!(asking.await.expect("ends"), Err(CallError::Cancelled));
        let (record, handle) = tasks.create("me").await.expect("room");
        drop(handle);
        while tasks.get("me", &record.id).await.expect("a store").expect("kept").status != Status::Failed {
            tokio::task::yield_now().await;
        }
        assert!(tasks.live.lock().is_empty());
    }

    #[tokio::test]
    async fn tasks_are_bounded_and_end_with_their_time() {
        let tasks = tasks(Config { tasks_max: 3, per_caller_max: 2, ttl_ms: 0, ..Config::default() });
        let (record, one) = tasks.create("me").await.expect("room");
        let (_, two) = tasks.create("me").await.expect("room");
        assert_eq!(tasks.create("me").await.err(), Some(StoreError::OwnerFull));
        let (_, three) = tasks.create("you").await.expect("room");
        assert_eq!(tasks.create("them").await.err(), Some(StoreError::Full));
        tokio::time::sleep(Duration::from_millis(5)).await;
        assert!(tasks.get("me", &record.id).await.expect("a store").is_none());
        tasks.sweep().await;
        tasks.create("me").await.expect("room again");
        drop((one, two, three));
    }
}
