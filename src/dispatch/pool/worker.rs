//! The pool's threads: what each is at, and what becomes of one that hangs in a tool. Such a thread cannot be ended. Some
//! time after its job's deadline it counts as lost, another takes its place, up to a limit, and it leaves when its tool
//! returns after all.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use crate::{
    call::{Deadline, Waits},
    tool::Work,
};

/// Time after its deadline in which a job may come to its end by itself: a tool that asks whether it is cancelled.
const LOST_AFTER: Duration = Duration::from_millis(500);

/// All threads.
#[derive(Debug, Default)]
pub(super) struct Workers(Mutex<Vec<Arc<Worker>>>);

/// One thread.
#[derive(Debug)]
pub(super) struct Worker {
    pub(super) kind: Kind,
    at: Mutex<At>,
}

/// Why a thread is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Always.
    Core,
    /// While there is more to do than the core threads can.
    Extra,
}

#[derive(Debug)]
enum At {
    Idle,
    Running { work: Arc<Work>, deadline: Deadline, waits: Waits },
    Lost,
}

/// What the threads are at, as numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Threads {
    pub(crate) idle: usize,
    pub(crate) running: usize,
    pub(crate) lost: usize,
}

impl Worker {
    /// A job begins.
    pub(super) fn begin(&self, work: &Arc<Work>, deadline: Deadline, waits: Waits) {
        *self.at.lock() = At::Running { work: Arc::clone(work), deadline, waits };
    }

    /// The job has ended. False when the thread was given up meanwhile, so that it has to leave.
    pub(super) fn end(&self) -> bool {
        !matches!(std::mem::replace(&mut *self.at.lock(), At::Idle), At::Lost)
    }
}

/// A thread of the pool, which is no more one of its threads when this is dropped.
pub(super) struct Enrolled<'w> {
    workers: &'w Workers,
    pub(super) worker: Arc<Worker>,
}

impl Drop for Enrolled<'_> {
    fn drop(&mut self) {
        self.workers.0.lock().retain(|other| !Arc::ptr_eq(other, &self.worker));
    }
}

impl Workers {
    pub(super) fn enroll(&self, kind: Kind) -> Enrolled<'_> {
        let worker = Arc::new(Worker { kind, at: Mutex::new(At::Idle) });
        self.0.lock().push(Arc::clone(&worker));
        Enrolled { workers: self, worker }
    }

    pub(super) fn count(&self) -> Threads {
        let mut threads = Threads::default();
        for worker in self.0.lock().iter() {
            match *worker.at.lock() {
                At::Idle => threads.idle += 1,
                At::Running { .. } => threads.running += 1,
                At::Lost => threads.lost += 1,
            }
        }
        threads
    }

    /// Gives up threads whose job should have ended long ago, so many that `lost_max` are lost at most. Says of each
    /// what it runs.
    pub(super) fn give_up_hung(&self, now: Instant, lost_max: usize) -> Vec<(Kind, Arc<Work>)> {
        let workers = self.0.lock();
        let mut lost = workers.iter().filter(|worker| matches!(*worker.at.lock(), At::Lost)).count();
        let mut given_up = Vec::new();
        for worker in workers.iter() {
            let mut at = worker.at.lock();
            let At::Running { work, deadline, waits } = &*at else { continue };
            let lost_at = deadline.at() + LOST_AFTER;
            if lost < lost_max && now >= lost_at && now >= lost_at + waits.extra_time() {
                given_up.push((worker.kind, Arc::clone(work)));
                *at = At::Lost;
                lost += 1;
            }
        }
        given_up
    }
}
