//! Where tasks are kept: the trait, and the one in memory.

use std::{
    collections::HashMap,
    fmt,
    hash::{BuildHasher, RandomState},
    pin::Pin,
    sync::atomic::{AtomicUsize, Ordering},
    time::SystemTime,
};

use parking_lot::Mutex;

use super::record::{Change, Record};

/// What a store answers.
pub type Stored<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// Why a store did not do what it was asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoreError {
    /// It holds as many tasks as it may.
    Full,
    /// This owner has as many as one may have.
    OwnerFull,
    /// It cannot be reached or does not answer: what was wrong.
    Unavailable(String),
}

/// Keeps tasks. What one call did, every later call sees, on whichever instance.
pub trait Store: fmt::Debug + Send + Sync {
    /// Keeps a new task. It can be loaded from the moment that this resolves.
    fn insert(&self, record: Record) -> Stored<'_, ()>;
    /// The task of this id.
    fn load<'a>(&'a self, id: &'a str) -> Stored<'a, Option<Record>>;
    /// Applies a change to the task of this id, as one step. Gives the task after it, and whether anything happened.
    fn change<'a>(&'a self, id: &'a str, change: Change, now: SystemTime) -> Stored<'a, Option<(Record, bool)>>;
    /// Forgets tasks whose time is over.
    fn sweep(&self, now: SystemTime) -> Stored<'_, usize>;
}

/// Shards of the map: enough that threads seldom meet at one lock.
const SHARDS: usize = 32;

/// Tasks in the memory of this process.
#[derive(Debug)]
pub struct Memory {
    shards: Box<[Mutex<HashMap<String, Record>>]>,
    hasher: RandomState,
    count: AtomicUsize,
    tasks_max: usize,
    per_caller_max: usize,
    per_owner: Mutex<HashMap<String, usize>>,
}

impl Memory {
    /// Room for `tasks_max`, and `per_caller_max` of one owner.
    pub fn new(tasks_max: usize, per_caller_max: usize) -> Self {
        Self {
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            hasher: RandomState::new(),
            count: AtomicUsize::new(0),
            tasks_max,
            per_caller_max,
            per_owner: Mutex::default(),
        }
    }

    fn shard(&self, id: &str) -> &Mutex<HashMap<String, Record>> {
        #[allow(clippy::cast_possible_truncation)] // any bits will do
        let hash = self.hasher.hash_one(id) as usize;
        &self.shards[hash % SHARDS]
    }

    fn insert_now(&self, record: Record) -> Result<(), StoreError> {
        let below = |n: usize| (n < self.tasks_max).then_some(n + 1);
        self.count.fetch_update(Ordering::AcqRel, Ordering::Acquire, below).map_err(|_| StoreError::Full)?;
        {
            let mut per_owner = self.per_owner.lock();
            let count = per_owner.entry(record.owner.clone()).or_default();
            if *count >= self.per_caller_max {
                self.count.fetch_sub(1, Ordering::AcqRel);
                return Err(StoreError::OwnerFull);
            }
            *count += 1;
        }
        self.shard(&record.id).lock().insert(record.id.clone(), record);
        Ok(())
    }

    fn sweep_now(&self, now: SystemTime) -> usize {
        let mut over = Vec::new();
        for shard in &self.shards {
            shard.lock().retain(|_, record| {
                let keep = !record.is_over(now);
                if !keep {
                    over.push(std::mem::take(&mut record.owner));
                }
                keep
            });
        }
        self.count.fetch_sub(over.len(), Ordering::AcqRel);
        let mut per_owner = self.per_owner.lock();
        for owner in &over {
            if let Some(count) = per_owner.get_mut(owner) {
                *count -= 1;
                if *count == 0 {
                    per_owner.remove(owner);
                }
            }
        }
        over.len()
    }
}

impl Store for Memory {
    fn insert(&self, record: Record) -> Stored<'_, ()> {
        Box::pin(std::future::ready(self.insert_now(record)))
    }

    fn load<'a>(&'a self, id: &'a str) -> Stored<'a, Option<Record>> {
        Box::pin(std::future::ready(Ok(self.shard(id).lock().get(id).cloned())))
    }

    fn change<'a>(&'a self, id: &'a str, change: Change, now: SystemTime) -> Stored<'a, Option<(Record, bool)>> {
        let mut shard = self.shard(id).lock();
        let changed = shard.get_mut(id).map(|record| {
            let happened = record.apply(change, now);
            (record.clone(), happened)
        });
        Box::pin(std::future::ready(Ok(changed)))
    }

    fn sweep(&self, now: SystemTime) -> Stored<'_, usize> {
        Box::pin(std::future::ready(Ok(self.sweep_now(now))))
    }
}
