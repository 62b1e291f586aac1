//! Whole tasks: a run on one side, a client on the other, and a store between them that may be away.

use std::{
    future::ready,
    sync::atomic::{AtomicBool, AtomicUsize},
};

use parking_lot::Mutex;
use serde_json::{json, value::RawValue};
use tokio::{
    task::{JoinHandle, yield_now},
    time::timeout,
};

use super::*;

const OWNER: &str = "somebody";

fn map(value: Value) -> Map<String, Value> {
    value.as_object().expect("an object").clone()
}

fn raw(json: &str) -> Box<RawValue> {
    RawValue::from_string(json.into()).expect("JSON")
}

fn memory_tasks(config: Config) -> Arc<Tasks> {
    let store = Arc::new(Memory::new(&config));
    Tasks::new(config, store)
}

async fn create(tasks: &Arc<Tasks>) -> (String, Handle) {
    let (record, handle) = tasks.create(OWNER, SystemTime::now()).await.expect("room");
    (record.id, handle)
}

async fn get(tasks: &Tasks, id: &str) -> Record {
    tasks.get(OWNER, id).await.expect("a store").expect("a task")
}

/// The record once `wanted` holds of it.
async fn when(tasks: &Tasks, id: &str, wanted: impl Fn(&Record) -> bool) -> Record {
    soon(async {
        loop {
            let record = get(tasks, id).await;
            if wanted(&record) {
                return record;
            }
            yield_now().await;
        }
    })
    .await
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    timeout(Duration::from_secs(10), future).await.expect("within 10 s")
}

fn asks(handle: &Handle, requests: Value) -> JoinHandle<Result<Map<String, Value>, Cancelled>> {
    let link = handle.link();
    tokio::spawn(async move { link.ask(map(requests)).await })
}

fn is_asking(record: &Record) -> bool {
    record.status == Status::InputRequired
}

#[tokio::test]
async fn a_task_is_found_at_once_and_only_by_its_owner() {
    let tasks = memory_tasks(Config::default());
    let (record, handle) = tasks.create(OWNER, SystemTime::now()).await.expect("room");
    assert_eq!(record.id, handle.id());
    assert!(is_id(&record.id) && record.id.len() * 4 >= 128);
    assert_eq!(get(&tasks, &record.id).await.status, Status::Working);
    let id = record.id.as_str();
    assert!(tasks.get("other", id).await.expect("a store").is_none());
    assert!(tasks.cancel("other", id).await.expect("a store").is_none());
    assert!(tasks.answer("other", id, Map::new()).await.expect("a store").is_none());
    assert!(!handle.is_cancelled());
    for id in ["", "nonsense", &"0".repeat(ID_CHARS), &"Z".repeat(ID_CHARS)] {
        assert!(tasks.get(OWNER, id).await.expect("a store").is_none(), "{id}");
    }
    handle.complete(raw(r#"{"content":[]}"#)).await;
    let done = get(&tasks, &record.id).await;
    assert_eq!(
        (done.status, done.result.map(|r| r.get().to_owned())),
        (Status::Completed, Some("{\"content\":[]}".into()))
    );
    assert_eq!(tasks.running(), 0);
}

#[tokio::test]
async fn two_questions_at_once_are_answered_one_by_one() {
    let tasks = memory_tasks(Config::default());
    let (id, handle) = create(&tasks).await;
    let answers =
        asks(&handle, json!({ "name": { "method": "elicitation/create" }, "sure": { "method": "roots/list" } }));
    let record = when(&tasks, &id, is_asking).await;
    assert_eq!(record.input_requests.len(), 2);
    let partial = map(json!({ "name": { "action": "accept" }, "unknown": 1 }));
    let record = tasks.answer(OWNER, &id, partial).await.expect("a store").expect("a task");
    assert_eq!(record.status, Status::InputRequired);
    assert_eq!(record.input_requests.keys().collect::<Vec<_>>(), ["sure"]);
    for _ in 0..20 {
        yield_now().await;
    }
    assert!(!answers.is_finished(), "it waits for all");
    let record = tasks.answer(OWNER, &id, map(json!({ "sure": true }))).await.expect("a store").expect("a task");
    assert_eq!(record.status, Status::Working, "it works on at the last answer");
    let answers = soon(answers).await.expect("no panic").expect("answers");
    assert_eq!(answers, map(json!({ "name": { "action": "accept" }, "sure": true })));
    assert!(get(&tasks, &id).await.inputs.is_empty(), "what was read is not kept");
    handle.complete(raw("{}")).await;
}

#[tokio::test]
async fn equal_questions_have_keys_of_their_own() {
    let tasks = memory_tasks(Config::default());
    let (id, handle) = create(&tasks).await;
    let first = asks(&handle, json!({ "sure": 1 }));
    when(&tasks, &id, is_asking).await;
    let second = asks(&handle, json!({ "sure": 2 }));
    let record = when(&tasks, &id, |r| r.input_requests.len() == 2).await;
    assert_eq!(record.input_requests, map(json!({ "sure": 1, "sure-2": 2 })));
    tasks.answer(OWNER, &id, map(json!({ "sure-2": "two" }))).await.expect("a store");
    assert_eq!(soon(second).await.expect("no panic"), Ok(map(json!({ "sure": "two" }))));
    assert_eq!(get(&tasks, &id).await.status, Status::InputRequired, "the first is still open");
    tasks.answer(OWNER, &id, map(json!({ "sure": "one" }))).await.expect("a store");
    assert_eq!(soon(first).await.expect("no panic"), Ok(map(json!({ "sure": "one" }))));
    let third = asks(&handle, json!({ "sure": 3 }));
    assert_eq!(when(&tasks, &id, is_asking).await.input_requests, map(json!({ "sure-3": 3 })));
    third.abort();
}

#[tokio::test]
async fn a_question_that_nobody_waits_for_is_taken_back() {
    let tasks = memory_tasks(Config::default());
    let (id, handle) = create(&tasks).await;
    let answers = asks(&handle, json!({ "a": 1 }));
    when(&tasks, &id, is_asking).await;
    answers.abort();
    let record = when(&tasks, &id, |r| !is_asking(r)).await;
    assert_eq!((record.status, record.input_requests.len()), (Status::Working, 0));
    assert!(!handle.is_cancelled());
}

#[tokio::test]
async fn too_many_questions_fail_the_task() {
    let tasks = memory_tasks(Config::default());
    let (id, handle) = create(&tasks).await;
    let requests = (0..=live::QUESTIONS_MAX).map(|n| (n.to_string(), json!({}))).collect();
    assert_eq!(soon(handle.ask(requests)).await, Err(Cancelled));
    let error = get(&tasks, &id).await.error.expect("an error");
    assert!(error.message.contains("questions"), "{error:?}");
}

#[tokio::test]
async fn cancelling_wakes_the_run_and_what_it_asks() {
    let tasks = memory_tasks(Config::default());
    let (id, handle) = create(&tasks).await;
    let answers = asks(&handle, json!({ "a": 1 }));
    let link = handle.link();
    let waits = tokio::spawn(async move { link.cancelled().await });
    when(&tasks, &id, is_asking).await;
    assert!(!waits.is_finished() && !handle.is_cancelled());
    for _ in 0..2 {
        let record = tasks.cancel(OWNER, &id).await.expect("a store").expect("a task");
        assert_eq!((record.status, record.input_requests.len()), (Status::Cancelled, 0));
    }
    soon(waits).await.expect("no panic");
    assert_eq!(soon(answers).await.expect("no panic"), Err(Cancelled));
    assert_eq!(soon(handle.ask(map(json!({ "b": 1 })))).await, Err(Cancelled));
    assert_eq!(soon(handle.ask(Map::new())).await, Err(Cancelled));
    handle.say("still here").await;
    handle.complete(raw("{}")).await;
    let record = get(&tasks, &id).await;
    assert_eq!((record.status, record.result.is_some(), record.status_message), (Status::Cancelled, false, None));
    assert_eq!(tasks.running(), 0);
}

#[tokio::test]
async fn cancelling_wakes_a_run_that_asks_nothing() {
    let tasks = memory_tasks(Config::default());
    let (id, handle) = create(&tasks).await;
    tasks.cancel(OWNER, &id).await.expect("a store");
    assert!(handle.is_cancelled(), "at once, for work on a worker's thread");
    soon(handle.cancelled()).await;
}

#[tokio::test]
async fn a_handle_without_an_end_fails_its_task() {
    let tasks = memory_tasks(Config::default());
    let (id, handle) = create(&tasks).await;
    let link = handle.link();
    // A worker's thread is no place of the runtime.
    std::thread::spawn(move || drop(handle)).join().expect("no panic");
    let error = when(&tasks, &id, |r| r.status == Status::Failed).await.error.expect("an error");
    assert_eq!((error.code, error.message.as_str()), (-32603, "the task ended without an answer"));
    soon(link.cancelled()).await;
    assert_eq!(tasks.running(), 0);
}

#[tokio::test]
async fn failing_keeps_the_error_as_it_is() {
    let tasks = memory_tasks(Config::default());
    let (id, handle) = create(&tasks).await;
    handle.say("halfway").await;
    assert_eq!(get(&tasks, &id).await.status_message.as_deref(), Some("halfway"));
    handle.fail(-32602, "wrong".into(), Some(json!({ "at": 1 }))).await;
    let record = get(&tasks, &id).await;
    let error = Failure { code: -32602, message: "wrong".into(), data: Some(json!({ "at": 1 })) };
    assert_eq!((record.status, record.error), (Status::Failed, Some(error)));
}

#[tokio::test]
async fn what_runs_too_long_is_stopped_and_what_is_old_is_gone() {
    let tasks = memory_tasks(Config { timeout_ms: 1_000, ttl_ms: 5_000, ..Config::default() });
    let start = SystemTime::now();
    let (record, handle) = tasks.create(OWNER, start).await.expect("room");
    assert_eq!(tasks.sweep(start + Duration::from_millis(999)).await, 0);
    assert!(!handle.is_cancelled());
    assert_eq!(tasks.sweep(start + Duration::from_millis(1_001)).await, 0);
    soon(handle.cancelled()).await;
    handle.complete(raw("{}")).await;
    let error = get(&tasks, &record.id).await.error.expect("an error");
    assert!(error.message.contains("1000 ms"), "{error:?}");
    assert_eq!(tasks.sweep(start + Duration::from_millis(5_001)).await, 1);
    assert!(tasks.get(OWNER, &record.id).await.expect("a store").is_none());
}

#[tokio::test]
async fn without_room_there_is_no_task() {
    let tasks = memory_tasks(Config { tasks_max: 2, per_caller_max: 1, ..Config::default() });
    let _first = create(&tasks).await;
    let now = SystemTime::now();
    assert_eq!(tasks.create(OWNER, now).await.map(drop), Err(StoreError::CallerFull));
    assert_eq!(tasks.running(), 1, "what was not made does not run");
    let _second = tasks.create("other", now).await.expect("room");
    assert_eq!(tasks.create("third", now).await.map(drop), Err(StoreError::Full));
    assert_eq!(tasks.running(), 2);
}

#[tokio::test]
async fn every_visible_change_is_told_once_and_in_order() {
    let told: Arc<Mutex<Vec<(Status, u64)>>> = Arc::default();
    let config = Config::default();
    let hook: OnChange = {
        let told = Arc::clone(&told);
        Arc::new(move |record| told.lock().push((record.status, record.version)))
    };
    let store = Arc::new(Memory::new(&config));
    let tasks = Tasks::with_on_change(config, store, hook);
    let (id, handle) = create(&tasks).await;
    handle.say("one").await;
    handle.say("one").await;
    let answers = asks(&handle, json!({ "a": 1 }));
    when(&tasks, &id, is_asking).await;
    tasks.answer(OWNER, &id, map(json!({ "z": 1 }))).await.expect("a store");
    tasks.answer(OWNER, &id, map(json!({ "a": 1 }))).await.expect("a store");
    soon(answers).await.expect("no panic").expect("answers");
    handle.complete(raw("{}")).await;
    tasks.cancel(OWNER, &id).await.expect("a store");
    use Status::{Completed, InputRequired, Working};
    // The version between was the reading of the answer, which nobody sees.
    assert_eq!(*told.lock(), [(Working, 1), (InputRequired, 2), (Working, 3), (Completed, 5)]);
}

/// A store that other instances use too, and that may be away.
#[derive(Debug)]
struct Far {
    memory: Memory,
    is_shared: bool,
    is_away: AtomicBool,
    loads: AtomicUsize,
}

impl Far {
    fn new(config: &Config, is_shared: bool) -> Arc<Self> {
        let (is_away, loads) = (AtomicBool::new(false), AtomicUsize::new(0));
        Arc::new(Self { memory: Memory::new(config), is_shared, is_away, loads })
    }

    fn go_away(&self, is_away: bool) {
        self.is_away.store(is_away, Ordering::Relaxed);
    }

    fn unless_away<'a, T: Send + 'a>(&self, made: StoreFuture<'a, T>) -> StoreFuture<'a, T> {
        if self.is_away.load(Ordering::Relaxed) {
            return Box::pin(ready(Err(StoreError::Unavailable("away".into()))));
        }
        Box::pin(async {
            yield_now().await;
            made.await
        })
    }
}

impl Store for Far {
    fn insert(&self, record: Record) -> StoreFuture<'_, ()> {
        self.unless_away(self.memory.insert(record))
    }

    fn load<'a>(&'a self, id: &'a str) -> StoreFuture<'a, Option<Record>> {
        self.loads.fetch_add(1, Ordering::Relaxed);
        self.unless_away(self.memory.load(id))
    }

    fn change<'a>(&'a self, id: &'a str, change: Change, now: SystemTime) -> StoreFuture<'a, Option<After>> {
        if self.is_away.load(Ordering::Relaxed) {
            return Box::pin(ready(Err(StoreError::Unavailable("away".into()))));
        }
        self.unless_away(self.memory.change(id, change, now))
    }

    fn sweep(&self, now: SystemTime) -> StoreFuture<'_, usize> {
        self.unless_away(self.memory.sweep(now))
    }

    fn is_shared(&self) -> bool {
        self.is_shared
    }
}

fn quick() -> Config {
    Config { poll_interval_ms: 100, ..Config::default() }
}

#[tokio::test]
async fn another_instance_answers_and_cancels() {
    let store = Far::new(&quick(), true);
    let here = Tasks::new(quick(), Arc::clone(&store) as Arc<dyn Store>);
    let there = Tasks::new(quick(), store);
    let (id, handle) = create(&here).await;
    let answers = asks(&handle, json!({ "a": 1 }));
    when(&there, &id, is_asking).await;
    there.answer(OWNER, &id, map(json!({ "a": "far" }))).await.expect("a store");
    assert_eq!(soon(answers).await.expect("no panic"), Ok(map(json!({ "a": "far" }))));
    let answers = asks(&handle, json!({ "b": 1 }));
    when(&there, &id, is_asking).await;
    there.cancel(OWNER, &id).await.expect("a store");
    assert_eq!(soon(answers).await.expect("no panic"), Err(Cancelled));
    soon(handle.cancelled()).await;
    assert!(handle.is_cancelled());
}

#[tokio::test]
async fn an_end_waits_for_the_store_to_come_back() {
    let store = Far::new(&quick(), false);
    let tasks = Tasks::new(quick(), Arc::clone(&store) as Arc<dyn Store>);
    let (id, handle) = create(&tasks).await;
    store.go_away(true);
    assert!(matches!(tasks.create(OWNER, SystemTime::now()).await, Err(StoreError::Unavailable(_))));
    handle.complete(raw("{}")).await;
    tasks.sweep(SystemTime::now()).await;
    assert_eq!(tasks.running(), 1);
    store.go_away(false);
    assert_eq!(get(&tasks, &id).await.status, Status::Working);
    tasks.sweep(SystemTime::now()).await;
    assert_eq!(when(&tasks, &id, |r| r.status.is_final()).await.status, Status::Completed);
    assert_eq!(tasks.running(), 0);
}

#[tokio::test]
async fn a_question_outlives_a_store_that_is_away_for_a_while() {
    let store = Far::new(&quick(), false);
    let tasks = Tasks::new(quick(), Arc::clone(&store) as Arc<dyn Store>);
    let (id, handle) = create(&tasks).await;
    let answers = asks(&handle, json!({ "a": 1 }));
    when(&tasks, &id, is_asking).await;
    // The answer arrives, and then the run finds nobody at home when it looks.
    store.memory.change(&id, Change::Answer(map(json!({ "a": 2 }))), SystemTime::now()).await.expect("a store");
    store.go_away(true);
    let loads = store.loads.load(Ordering::Relaxed);
    tasks.live.part(&id).get(&id as &str).expect("live").wake(false);
    soon(async {
        while store.loads.load(Ordering::Relaxed) == loads {
            yield_now().await;
        }
    })
    .await;
    assert!(!answers.is_finished());
    store.go_away(false);
    assert_eq!(soon(answers).await.expect("no panic"), Ok(map(json!({ "a": 2 }))));
    drop(handle);
}

#[tokio::test]
async fn a_caller_who_leaves_while_a_task_is_made_leaves_nothing_running() {
    let store = Far::new(&quick(), false);
    let tasks = Tasks::new(quick(), Arc::clone(&store) as Arc<dyn Store>);
    let mut making = Box::pin(tasks.create(OWNER, SystemTime::now()));
    let waker = std::task::Waker::noop();
    assert!(making.as_mut().poll(&mut std::task::Context::from_waker(waker)).is_pending());
    assert_eq!(store.memory.len(), 1);
    drop(making);
    soon(async {
        while tasks.running() > 0 {
            yield_now().await;
        }
    })
    .await;
}

#[test]
fn settings_are_read_and_misspelt_ones_refused() {
    let config: Config = toml::from_str("tasks_max = 5\nbytes_max = \"1MiB\"").expect("settings");
    assert_eq!(config, Config { tasks_max: 5, bytes_max: ByteSize::mib(1), ..Config::default() });
    assert!(toml::from_str::<Config>("task_max = 5").is_err());
}
