//! The worker pool: named threads fed by a bounded queue, and what happens when it is full. Home of crossbeam.
//!
//! A job is dropped without running when its deadline has passed or its caller has left, and it runs at most once. A
//! worker that hangs in a tool is answered for at the deadline; its thread stays busy until the tool returns. Only a job
//! that caller-runs put on an I/O thread has nobody to answer for it before its tool returns.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, TrySendError, bounded};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::{Semaphore, oneshot};

use crate::{
    call::{Ctx, Deadline, Ticket},
    dispatch::{
        deadline::until,
        run::{run_sync, timed_out},
    },
    error::CallError,
    tool::{Outcome, Work},
};

/// `[pool]`: threads for tools that burn CPU or block.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Threads that are always there; 0 is one for each core.
    pub threads: usize,
    /// Threads at most, the extra ones started when the queue is full; 0 is twice `threads`.
    pub threads_max: usize,
    /// Time without work after which an extra thread leaves, in seconds.
    pub keep_alive_s: u64,
    /// Jobs that may wait for a thread.
    pub queue_max: usize,
    /// What happens to a call when the queue is full and no thread may be added.
    pub on_full: OnFull,
}

/// What happens to a call when the pool's queue is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OnFull {
    /// The submitting I/O thread runs the job itself, unless it is the last free one; then as `wait`. A call that runs
    /// so cannot be ended before its tool returns.
    #[default]
    CallerRuns,
    /// The call waits for room, up to its deadline.
    Wait,
    /// The call is refused at once: 503 with Retry-After.
    Reject,
}

impl Default for Config {
    fn default() -> Self {
        Self { threads: 0, threads_max: 0, keep_alive_s: 60, queue_max: 1000, on_full: OnFull::default() }
    }
}

/// The pool's sizes on this host.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub(crate) threads: usize,
    pub(crate) threads_max: usize,
    /// I/O threads, of which caller-runs may occupy all but one.
    pub(crate) io_threads: usize,
}

/// Threads that run jobs.
#[derive(Debug)]
pub(crate) struct Pool {
    shared: Arc<Shared>,
    queue: Sender<Job>,
    on_full: OnFull,
}

#[derive(Debug)]
struct Shared {
    jobs: Receiver<Job>,
    /// A permit for each place: those in the queue, and one in each core thread, so that a job which an idle thread is
    /// about to take does not count as waiting. A semaphore, so that a call can wait for room without holding a thread.
    room: Semaphore,
    threads: AtomicUsize,
    threads_max: usize,
    keep_alive: Duration,
    /// I/O threads that are running a job themselves.
    io_busy: AtomicUsize,
    io_threads: usize,
}

#[derive(Debug)]
struct Job {
    work: Arc<Work>,
    arguments: Value,
    ctx: Ctx,
    ticket: Ticket,
    answer: oneshot::Sender<Outcome>,
}

impl Job {
    fn run(self) {
        let Self { work, arguments, ctx, ticket, answer } = self;
        // Both are checked here and not when the job was queued: only now does it cost a thread.
        if answer.is_closed() || !ticket.start() {
            return;
        }
        let outcome = if ctx.deadline().passed(Instant::now()) {
            Err(CallError::DeadlineBeforeStart)
        } else {
            let deadline = ctx.deadline();
            let outcome = run_sync(&work, arguments, ctx);
            // A tool that stopped because it was told to returns what it has, which is not the answer.
            if deadline.passed(Instant::now()) { Err(timed_out(&work, deadline)) } else { outcome }
        };
        // An error means that nobody waits any more.
        let _ = answer.send(outcome);
    }
}

/// Gives the job up when its caller stops waiting, on every path.
struct GiveUp(Ticket);

impl Drop for GiveUp {
    fn drop(&mut self) {
        self.0.give_up();
    }
}

/// An I/O thread, lent to a job.
struct IoThread<'a>(&'a AtomicUsize);

impl Drop for IoThread<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Pool {
    /// Starts the core threads.
    ///
    /// # Errors
    /// When the host gives no more threads.
    pub(crate) fn start(config: &Config, sizes: Sizes) -> Result<Self, String> {
        let places = config.queue_max + sizes.threads;
        let (queue, jobs) = bounded(places);
        let shared = Arc::new(Shared {
            jobs,
            room: Semaphore::new(places),
            threads: AtomicUsize::new(0),
            threads_max: sizes.threads_max,
            keep_alive: Duration::from_secs(config.keep_alive_s),
            io_busy: AtomicUsize::new(0),
            io_threads: sizes.io_threads,
        });
        for _ in 0..sizes.threads {
            let worker = Arc::clone(&shared);
            worker.threads.fetch_add(1, Ordering::Relaxed);
            spawn("core", move || worker.work_for_ever()).map_err(|e| format!("cannot start a pool thread: {e}"))?;
        }
        Ok(Self { shared, queue, on_full: config.on_full })
    }

    /// Runs a call on a worker thread. Dropping the future gives the job up.
    pub(crate) async fn run(&self, work: &Arc<Work>, arguments: Value, mut ctx: Ctx) -> Outcome {
        let deadline = ctx.deadline();
        let ticket = Ticket::default();
        let _give_up = GiveUp(ticket.clone());
        ctx.ticket = Some(ticket.clone());
        let (answer, answered) = oneshot::channel();
        let job = Job { work: Arc::clone(work), arguments, ctx, ticket: ticket.clone(), answer };
        if let Err(job) = self.submit(job) {
            self.submit_when_full(job, deadline).await?;
        }
        match until(deadline, answered).await {
            Some(Ok(outcome)) => outcome,
            Some(Err(_)) => Err(CallError::Internal), // the worker dropped it: only when the pool is gone
            None if ticket.give_up() => Err(timed_out(work, deadline)),
            None => Err(CallError::DeadlineBeforeStart),
        }
    }

    async fn submit_when_full(&self, job: Job, deadline: Deadline) -> Result<(), CallError> {
        match self.on_full {
            OnFull::Reject => return Err(CallError::Overloaded { retry_after_s: RETRY_AFTER_S }),
            OnFull::CallerRuns => {
                // What this task had woken runs first; it could not leave this thread while the job holds it.
                tokio::task::yield_now().await;
                if let Some(_io_thread) = self.shared.borrow_io_thread() {
                    job.run();
                    return Ok(());
                }
            }
            OnFull::Wait => {}
        }
        let Some(Ok(place)) = until(deadline, self.shared.room.acquire()).await else {
            return Err(CallError::DeadlineBeforeStart);
        };
        place.forget(); // given back by the worker
        self.enqueue(job)
    }

    /// Queues the job, or starts an extra thread with it; gives it back when neither is possible.
    #[allow(clippy::result_large_err)] // the job comes back to be tried elsewhere
    fn submit(&self, job: Job) -> Result<(), Job> {
        if let Ok(place) = self.shared.room.try_acquire() {
            place.forget();
            return self.queue.try_send(job).map_err(TrySendError::into_inner);
        }
        Shared::run_on_extra_thread(&self.shared, job)
    }

    fn enqueue(&self, job: Job) -> Result<(), CallError> {
        self.queue.try_send(job).map_err(|_| CallError::Internal)
    }
}

/// What a refused caller is told to wait: a queue of short jobs has drained by then.
const RETRY_AFTER_S: u32 = 1;

impl Shared {
    fn work_for_ever(&self) {
        while let Ok(job) = self.jobs.recv() {
            job.run();
            self.room.add_permits(1); // only now: the job had a place in this thread
        }
    }

    #[allow(clippy::result_large_err)]
    fn run_on_extra_thread(shared: &Arc<Self>, job: Job) -> Result<(), Job> {
        let more = |n: usize| (n < shared.threads_max).then_some(n + 1);
        if shared.threads.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).is_err() {
            return Err(job);
        }
        let worker = Arc::clone(shared);
        // The job goes over a channel and not into the closure, so that it comes back when there is no thread to be had.
        let (first, jobs) = bounded(1);
        let run = move || {
            if let Ok(job) = jobs.recv() {
                let job: Job = job;
                job.run();
            }
            worker.work_until_idle();
            worker.threads.fetch_sub(1, Ordering::AcqRel);
        };
        match spawn("extra", run) {
            Ok(()) => first.send(job).map_err(|unsent| unsent.0),
            Err(error) => {
                shared.threads.fetch_sub(1, Ordering::AcqRel);
                tracing::warn!(%error, "cannot start an extra pool thread");
                Err(job)
            }
        }
    }

    fn work_until_idle(&self) {
        loop {
            match self.jobs.recv_timeout(self.keep_alive) {
                Ok(job) => {
                    self.room.add_permits(1); // an extra thread has no place of its own, so the queue has one more
                    job.run();
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    /// This thread, when another one stays free to move bytes.
    fn borrow_io_thread(&self) -> Option<IoThread<'_>> {
        let more = |busy: usize| (busy + 1 < self.io_threads).then_some(busy + 1);
        self.io_busy.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).ok().map(|_| IoThread(&self.io_busy))
    }
}

fn spawn(kind: &str, work: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    thread::Builder::new().name(format!("pool-{kind}")).spawn(work).map(drop)
}
