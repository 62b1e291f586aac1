//! Where records live: the contract between the tasks and their store. `memory` has the one that is built in; another
//! process's memory or a database fit behind the same four functions, so that any instance finds any task.

use std::{fmt, future::ready, pin::Pin, time::SystemTime};

use bytes::Bytes;

use super::record::{Change, Effect, Record};

/// What a store's functions return.
pub type StoreFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// Keeps records. A record is promised to be found until its `ttl_ms` is over.
pub trait Store: fmt::Debug + Send + Sync {
    /// Adds a record. When this resolves, every instance finds it: the client is told of the task right after.
    fn insert(&self, record: Record) -> StoreFuture<'_, ()>;

    /// The record of this id.
    fn load<'a>(&'a self, id: &'a str) -> StoreFuture<'a, Option<Record>>;

    /// Applies a change by [`Record::apply`], whole or not at all, and against no other change of the same record at
    /// the same time. `None` when there is no such record.
    fn change<'a>(&'a self, id: &'a str, change: Change, now: SystemTime) -> StoreFuture<'a, Option<After>>;

    /// The record for who runs the task: `None` when it has ended, is gone, or another process runs it by now.
    fn running<'a>(&'a self, id: &'a str) -> StoreFuture<'a, Option<Record>> {
        Box::pin(async move { Ok(self.load(id).await?.filter(|record| !record.status.is_final())) })
    }

    /// Removes what has expired and says how many those were.
    fn sweep(&self, now: SystemTime) -> StoreFuture<'_, usize>;

    /// Takes over a task whose run was found to be gone, to be run again here: the record as it is then, and its
    /// request. `None` when it is no longer that run's, or has ended.
    fn adopt<'a>(&'a self, _id: &'a str, _gone: &'a str, _now: SystemTime) -> StoreFuture<'a, Option<(Record, Bytes)>> {
        Box::pin(ready(Ok(None)))
    }

    /// The run of a task that was found to be gone, so that it is to be taken over, since the last time that this was
    /// asked.
    fn take_orphan(&self, _id: &str) -> Option<String> {
        None
    }

    /// Whether others than this process write to it, or a change may be given up halfway: then whoever waits for an
    /// answer or a cancel looks for it every poll interval, besides being woken.
    fn is_shared(&self) -> bool {
        false
    }
}

/// A record after a change.
#[derive(Clone, Debug)]
pub struct After {
    /// The record.
    pub record: Record,
    /// What the change did.
    pub effect: Effect,
}

/// Why a store did not do what it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StoreError {
    /// It has all that it may keep. Nobody's fault; later there is room again.
    Full,
    /// This caller has all the tasks that one may have.
    CallerFull,
    /// It cannot be reached, or failed. The reason is for the log.
    Unavailable(String),
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("the server keeps as much of tasks as it may; try again later"),
            Self::CallerFull => {
                f.write_str("this caller has as many tasks as one may have; they go when their ttlMs is over")
            }
            Self::Unavailable(why) => write!(f, "the store of tasks is not available: {why}"),
        }
    }
}

impl std::error::Error for StoreError {}
