//! The store that is built in: records in this process's memory. They end with it, so it is for one instance, or for
//! a client that always comes back to the same one. Records, bytes and what one caller may have are limited.

use std::{
    collections::HashMap,
    future::ready,
    sync::atomic::{AtomicUsize, Ordering},
    time::SystemTime,
};

use parking_lot::Mutex;

use super::{
    Config,
    record::{Change, Effect, Failure, Record},
    shards::Shards,
    store::{After, Store, StoreError, StoreFuture},
};

/// Records in memory.
#[derive(Debug)]
pub struct Memory {
    tasks: Gauge,
    bytes: Gauge,
    per_caller_max: usize,
    records: Shards<Slot>,
    /// How many each caller has; who has none is not in it.
    per_caller: Mutex<HashMap<Box<str>, usize>>,
}

#[derive(Debug)]
struct Slot {
    record: Record,
    /// What it takes of the bytes.
    bytes: usize,
}

impl Memory {
    /// Empty, with the limits of `config`.
    pub fn new(config: &Config) -> Self {
        Self {
            tasks: Gauge::new(config.tasks_max),
            bytes: Gauge::new(config.bytes_max.as_usize()),
            per_caller_max: config.per_caller_max,
            records: Shards::new(),
            per_caller: Mutex::default(),
        }
    }

    /// Records at the moment.
    pub fn len(&self) -> usize {
        self.tasks.now()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn insert_now(&self, record: Record) -> Result<(), StoreError> {
        let bytes = record.bytes();
        if !self.tasks.add(1) {
            return Err(StoreError::Full);
        }
        if !self.bytes.add(bytes) {
            self.tasks.sub(1);
            return Err(StoreError::Full);
        }
        if !self.count(record.counts_for()) {
            self.tasks.sub(1);
            self.bytes.sub(bytes);
            return Err(StoreError::CallerFull);
        }
        let id = record.id.as_str().into();
        let replaced = self.records.part(&record.id).insert(id, Slot { record, bytes });
        // An id that comes twice replaces its record, and what that took is free.
        replaced.iter().for_each(|slot| self.release(slot));
        Ok(())
    }

    fn change_now(&self, id: &str, change: Change, now: SystemTime) -> Result<Option<After>, StoreError> {
        let mut part = self.records.part(id);
        let Some(slot) = part.get_mut(id) else { return Ok(None) };
        let (change, taken) = self.admit(change)?;
        let effect = slot.record.apply(change, now);
        let before = slot.bytes;
        slot.bytes = if effect == Effect::None { before } else { slot.record.bytes() };
        // The change was let in with the most that it may take.
        self.bytes.sub((before + taken).saturating_sub(slot.bytes));
        Ok(Some(After { record: slot.record.clone(), effect }))
    }

    /// Takes the bytes of a change. A result without room becomes a failure: the run is over, and whoever polls must
    /// learn of it.
    fn admit(&self, change: Change) -> Result<(Change, usize), StoreError> {
        let bytes = change.bytes();
        if self.bytes.add(bytes) {
            return Ok((change, bytes));
        }
        if !matches!(change, Change::Complete(_)) {
            return Err(StoreError::Full);
        }
        tracing::warn!(bytes, bytes_max = self.bytes.max, "a task's result was dropped: no room is left for it");
        Ok((Change::Fail(Failure::internal("the task is done, and the server has no room for its result")), 0))
    }

    fn sweep_now(&self, now: SystemTime) -> usize {
        let mut removed = 0;
        for mut part in self.records.parts() {
            let over: Vec<_> = part.extract_if(|_, slot| slot.record.is_expired(now)).collect();
            drop(part);
            removed += over.len();
            over.iter().for_each(|(_, slot)| self.release(slot));
        }
        removed
    }

    fn count(&self, caller: &str) -> bool {
        let mut per_caller = self.per_caller.lock();
        let count = per_caller.get(caller).copied().unwrap_or(0);
        if count >= self.per_caller_max {
            return false;
        }
        per_caller.insert(caller.into(), count + 1);
        true
    }

    fn release(&self, slot: &Slot) {
        self.tasks.sub(1);
        self.bytes.sub(slot.bytes);
        let mut per_caller = self.per_caller.lock();
        if let Some(count) = per_caller.get_mut(slot.record.counts_for()) {
            *count -= 1;
            if *count == 0 {
                per_caller.remove(slot.record.counts_for());
            }
        }
    }
}

/// Nothing here waits, so each future is done when it is made.
impl Store for Memory {
    fn insert(&self, record: Record) -> StoreFuture<'_, ()> {
        Box::pin(ready(self.insert_now(record)))
    }

    fn load<'a>(&'a self, id: &'a str) -> StoreFuture<'a, Option<Record>> {
        let record = self.records.part(id).get(id).map(|slot| slot.record.clone());
        Box::pin(ready(Ok(record)))
    }

    fn change<'a>(&'a self, id: &'a str, change: Change, now: SystemTime) -> StoreFuture<'a, Option<After>> {
        Box::pin(ready(self.change_now(id, change, now)))
    }

    fn sweep(&self, now: SystemTime) -> StoreFuture<'_, usize> {
        Box::pin(ready(Ok(self.sweep_now(now))))
    }
}

/// A number that stays below a limit.
#[derive(Debug)]
struct Gauge {
    now: AtomicUsize,
    max: usize,
}

impl Gauge {
    fn new(max: usize) -> Self {
        Self { now: AtomicUsize::new(0), max }
    }

    fn now(&self) -> usize {
        self.now.load(Ordering::Relaxed)
    }

    /// Adds `n`; false, and nothing added, when that is too much.
    fn add(&self, n: usize) -> bool {
        let below = |now: usize| now.checked_add(n).filter(|sum| *sum <= self.max);
        n == 0 || self.now.fetch_update(Ordering::AcqRel, Ordering::Acquire, below).is_ok()
    }

    fn sub(&self, n: usize) {
        self.now.fetch_sub(n, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use serde_json::{Map, json, value::RawValue};

    use super::*;
    use crate::{tasks::record::Status, units::ByteSize};

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    fn memory(tasks_max: usize, per_caller_max: usize, bytes_max: u64) -> Memory {
        let bytes_max = ByteSize(bytes_max);
        Memory::new(&Config { tasks_max, per_caller_max, bytes_max, ..Config::default() })
    }

    fn insert(memory: &Memory, id: &str, owner: &str) -> Result<(), StoreError> {
        memory.insert_now(Record::new(id.into(), owner, at(0), 60_000, 1000))
    }

    fn change(memory: &Memory, id: &str, change: Change) -> Result<Record, StoreError> {
        memory.change_now(id, change, at(1)).map(|after| after.expect("a record").record)
    }

    fn complete(text: &str) -> Change {
        Change::Complete(Arc::from(RawValue::from_string(format!("{text:?}")).expect("JSON")))
    }

    fn ask(keys: &[&str]) -> Change {
        Change::Ask(keys.iter().map(|key| ((*key).to_owned(), json!({}))).collect())
    }

    #[test]
    fn caps_hold_and_are_given_back_by_expiry() {
        let memory = memory(3, 2, 1000);
        insert(&memory, "a", "one").expect("room");
        insert(&memory, "b", "one").expect("room");
        assert_eq!(insert(&memory, "c", "one"), Err(StoreError::CallerFull));
        insert(&memory, "c", "two").expect("room");
        assert_eq!(insert(&memory, "d", "three"), Err(StoreError::Full));
        assert_eq!(memory.sweep_now(at(59)), 0);
        assert_eq!(memory.len(), 3);
        assert_eq!(memory.sweep_now(at(60)), 3);
        assert!(memory.is_empty() && memory.per_caller.lock().is_empty());
        insert(&memory, "e", "one").expect("room again");
    }

    #[test]
    fn only_what_has_expired_goes() {
        let memory = memory(10, 10, 1000);
        insert(&memory, "old", "one").expect("room");
        memory.insert_now(Record::new("new".into(), "one", at(30), 60_000, 1000)).expect("room");
        assert_eq!(memory.sweep_now(at(60)), 1);
        assert!(!memory.records.part("old").contains_key("old"));
        assert!(memory.records.part("new").contains_key("new"));
        assert_eq!(memory.per_caller.lock().get("one"), Some(&1));
    }

    #[test]
    fn a_result_without_room_fails_its_task_and_frees_when_swept() {
        let memory = memory(10, 10, 10);
        for id in ["a", "b"] {
            insert(&memory, id, "one").expect("room");
        }
        assert_eq!(change(&memory, "a", complete("12345678")).expect("done").status, Status::Completed);
        let failed = change(&memory, "b", complete("1")).expect("done");
        assert_eq!((failed.status, failed.error.map(|e| e.code)), (Status::Failed, Some(-32603)));
        assert_eq!(memory.bytes.now(), 10);
        memory.sweep_now(at(60));
        assert_eq!(memory.bytes.now(), 0);
    }

    #[test]
    fn answers_take_room_until_they_are_read() {
        let memory = memory(10, 10, 20);
        insert(&memory, "a", "one").expect("room");
        change(&memory, "a", ask(&["k", "l"])).expect("done");
        let answer = |key: &str, n: usize| Change::Answer(Map::from_iter([(key.to_owned(), json!("x".repeat(n)))]));
        change(&memory, "a", answer("other", 10)).expect("ignored");
        assert_eq!(memory.bytes.now(), 0, "what is ignored takes nothing");
        change(&memory, "a", answer("k", 10)).expect("room");
        assert_eq!(memory.bytes.now(), 13);
        assert_eq!(change(&memory, "a", answer("l", 10)).map(|_| ()), Err(StoreError::Full));
        change(&memory, "a", Change::Forget(vec!["k".into()])).expect("done");
        assert_eq!(memory.bytes.now(), 0);
        change(&memory, "a", answer("l", 10)).expect("room again");
        change(&memory, "a", Change::Cancel).expect("done");
        assert_eq!(memory.bytes.now(), 0, "the end frees them");
    }

    #[test]
    fn an_ended_task_takes_nothing_more() {
        let memory = memory(10, 10, 20);
        insert(&memory, "a", "one").expect("room");
        change(&memory, "a", complete("12")).expect("done");
        for _ in 0..100 {
            change(&memory, "a", complete("123456")).expect("ignored");
        }
        assert_eq!(memory.bytes.now(), 4);
    }

    #[test]
    fn changes_of_one_record_do_not_get_lost() {
        let memory = memory(10, 10, 1 << 20);
        insert(&memory, "a", "one").expect("room");
        let keys: Vec<String> = (0..400).map(|n| format!("key{n}")).collect();
        change(&memory, "a", ask(&keys.iter().map(String::as_str).collect::<Vec<_>>())).expect("done");
        std::thread::scope(|scope| {
            for quarter in keys.chunks(100) {
                let memory = &memory;
                scope.spawn(move || {
                    for key in quarter {
                        change(memory, "a", Change::Answer(Map::from_iter([(key.clone(), json!(1))]))).expect("room");
                    }
                });
            }
        });
        let record = change(&memory, "a", Change::Working { message: None }).expect("done");
        assert_eq!((record.status, record.inputs.len(), record.version), (Status::Working, 400, 401));
        assert_eq!(memory.bytes.now(), record.bytes());
    }

    #[test]
    fn what_is_not_there_is_not_changed() {
        let memory = memory(1, 1, 0);
        assert!(memory.change_now("a", Change::Cancel, at(1)).expect("no error").is_none());
    }
}
