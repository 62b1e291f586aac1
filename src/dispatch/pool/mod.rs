//! The worker pool: named threads fed by a bounded queue, and what happens when it is full. Home of crossbeam.
//!
//! A job is dropped without running when its deadline has passed or its caller has left, and it runs at most once. A
//! call whose tool hangs is answered at its deadline, and the thread is replaced a little later (`worker`). Only a job
//! that caller-runs put on an I/O thread has nobody to answer for it before its tool returns. Whose job is next is
//! decided in `lines`.

pub(crate) mod gather;
mod rate;
mod worker;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender, bounded};
use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::{
    sync::{Semaphore, oneshot},
    time::timeout,
};

pub(crate) use self::worker::Threads;
use self::{
    rate::{Outside, Progress, Rate},
    worker::{Kind, Worker, Workers},
};
use crate::{
    call::{Before, Ctx, Deadline, Share, Ticket},
    dispatch::{
        bulkhead::Inside,
        deadline::{until, until_extended},
        lines::Lines,
        run::{run_sync, timed_out},
    },
    error::CallError,
    telemetry::{calls::Phase, rarely::Rarely},
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
    /// Time that jobs may wait in the queue before further ones are refused, in milliseconds; 0 sets none.
    pub queue_wait_ms_max: u64,
    /// Time that an I/O thread lets requests gather after it has refused one, in microseconds; 0 sets none.
    pub refusal_gather_us: u64,
    /// How far the threads stand back behind the others when there are not cores for all: 0 to 19, as `nice` has it.
    pub nice: u8,
    /// Threads that hang in a tool past its deadline and are replaced, at most.
    pub lost_max: usize,
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
        Self {
            threads: 0,
            threads_max: 0,
            keep_alive_s: 60,
            queue_max: 1000,
            queue_wait_ms_max: 0,
            refusal_gather_us: 500,
            nice: 5,
            lost_max: 64,
            on_full: OnFull::default(),
        }
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
    /// Says to the threads that a job has come. What job it is, `Shared::lines` decides when a thread takes it.
    tickets: Sender<()>,
    on_full: OnFull,
    /// See [`Config::queue_wait_ms_max`].
    wait_max: Option<Duration>,
    /// See [`Config::refusal_gather_us`].
    gather: Duration,
    lost_max: usize,
    /// Core threads that could not be started in the place of lost ones.
    owed: AtomicUsize,
    rate: Mutex<Rate>,
    /// Calls that wait for room.
    outside: AtomicUsize,
}

#[derive(Debug)]
struct Shared {
    tickets: Receiver<()>,
    lines: Mutex<Lines<Job>>,
    /// A permit for each place: those in the queue, and one in each core thread, so that a job which an idle thread is
    /// about to take does not count as waiting. A semaphore, so that a call can wait for room without holding a thread.
    room: Semaphore,
    threads: AtomicUsize,
    threads_max: usize,
    keep_alive: Duration,
    /// I/O threads that are running a job themselves.
    io_busy: AtomicUsize,
    io_threads: usize,
    workers: Workers,
    nice: u8,
    /// Jobs that a thread was done with, ever.
    done: AtomicU64,
    /// Time that these took, in nanoseconds.
    ran_ns: AtomicU64,
    /// Threads that were replaced, ever.
    replaced: AtomicU64,
}

/// What the pool is at, for those who watch it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    pub(crate) queued: usize,
    /// How long the oldest job in the queue has waited.
    pub(crate) oldest: Duration,
    pub(crate) threads: Threads,
    pub(crate) replaced: u64,
    /// I/O threads that run a job themselves.
    pub(crate) io_busy: usize,
}

#[derive(Debug)]
struct Job {
    work: Arc<Work>,
    arguments: Value,
    ctx: Ctx,
    ticket: Ticket,
    queued_at: Instant,
    /// Taken up until the tool returns, also when nobody waits for that any more.
    place: Option<Arc<Inside>>,
    answer: oneshot::Sender<Outcome>,
}

impl Job {
    /// Runs it, on a thread of the pool or on an I/O thread. Says how long the tool took.
    fn run(self, worker: Option<&Worker>) -> Duration {
        let began = Instant::now();
        self.has_waited(began);
        let Self { work, arguments, ctx, ticket, queued_at: _, place, answer } = self;
        let (deadline, waits, mut ran) = (ctx.deadline(), ctx.waits(), Duration::ZERO);
        // All is checked here and not when the job was queued: only now does it cost a thread.
        if answer.is_closed() {
            return ran;
        }
        let outcome = if deadline.is_as_good_as_passed(began) {
            Err(CallError::DeadlineBeforeStart)
        } else if ticket.start() {
            if let Some(worker) = worker {
                worker.begin(&work, deadline, waits.clone());
            }
            let outcome = run_sync(&work, arguments, ctx);
            let ended = Instant::now();
            ran = ended - began;
            if let Some(meter) = &work.meter {
                meter.took(Phase::Run, ran);
            }
            // A tool that stopped because it was told to returns what it has, which is not the answer.
            let is_late = deadline.passed(ended) && ended >= deadline.at() + waits.extra_time();
            if is_late { Err(timed_out(&work, deadline)) } else { outcome }
        } else {
            return ran;
        };
        drop(place); // first, so that who has the answer finds it free
        // An error means that nobody waits any more.
        let _ = answer.send(outcome);
        ran
    }

    /// Its time in the queue is over, however: who did not wait to the end waited longest.
    fn has_waited(&self, now: Instant) {
        if let Some(meter) = &self.work.meter {
            meter.took(Phase::Queue, now.saturating_duration_since(self.queued_at));
        }
    }

    /// Ends it without running it.
    fn refuse(self, error: CallError) {
        self.has_waited(Instant::now());
        if self.ticket.give_up() == Before::Queued {
            let _ = self.answer.send(Err(error));
        }
    }
}

/// Gives the job up when its caller stops waiting, on every path: who does not want it any more leaves its arguments and
/// its place in the queue to others at once.
struct GiveUp<'p> {
    shared: &'p Shared,
    share: Share,
    ticket: Ticket,
}

impl GiveUp<'_> {
    fn now(&self) -> Before {
        let before = self.ticket.give_up();
        if before == Before::Queued {
            self.shared.forget(self.share, &self.ticket);
        }
        before
    }
}

impl Drop for GiveUp<'_> {
    fn drop(&mut self) {
        self.now();
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
        let (tickets, taken) = bounded(places);
        let shared = Arc::new(Shared {
            tickets: taken,
            lines: Mutex::default(),
            room: Semaphore::new(places),
            threads: AtomicUsize::new(0),
            threads_max: sizes.threads_max,
            keep_alive: Duration::from_secs(config.keep_alive_s),
            io_busy: AtomicUsize::new(0),
            io_threads: sizes.io_threads,
            workers: Workers::default(),
            nice: config.nice,
            done: AtomicU64::new(0),
            ran_ns: AtomicU64::new(0),
            replaced: AtomicU64::new(0),
        });
        for _ in 0..sizes.threads {
            shared.threads.fetch_add(1, Ordering::Relaxed);
            Shared::start_core_thread(&shared).map_err(|e| format!("cannot start a pool thread: {e}"))?;
        }
        let wait_max = (config.queue_wait_ms_max > 0).then(|| Duration::from_millis(config.queue_wait_ms_max));
        let rate = Mutex::new(Rate::new(Instant::now()));
        Ok(Self {
            shared,
            tickets,
            on_full: config.on_full,
            wait_max,
            gather: Duration::from_micros(config.refusal_gather_us),
            lost_max: config.lost_max,
            rate,
            owed: AtomicUsize::new(0),
            outside: AtomicUsize::new(0),
        })
    }

    /// Runs a call on a worker thread. Dropping the future gives the job up; a tool that runs already keeps its `place`.
    pub(crate) async fn run(
        &self,
        work: &Arc<Work>,
        arguments: Value,
        mut ctx: Ctx,
        place: Option<Arc<Inside>>,
    ) -> Outcome {
        let (deadline, waits, queued_at) = (ctx.deadline(), ctx.waits(), Instant::now());
        if self.is_late(ctx.share, queued_at) {
            return Err(self.overloaded());
        }
        let ticket = Ticket::default();
        let give_up = GiveUp { shared: &self.shared, share: ctx.share, ticket: ticket.clone() };
        ctx.ticket = Some(ticket.clone());
        let (answer, answered) = oneshot::channel();
        let job = Job { work: Arc::clone(work), arguments, ctx, ticket: ticket.clone(), queued_at, place, answer };
        if let Err(job) = self.submit(job) {
            self.submit_when_full(job, deadline).await?;
        }
        match until_extended(deadline, || waits.extra_time(), answered).await {
            Some(Ok(outcome)) => outcome,
            Some(Err(_)) => Err(CallError::Internal), // the worker dropped it: only when the pool is gone
            None if give_up.now() == Before::Running => Err(timed_out(work, deadline)),
            None => Err(CallError::DeadlineBeforeStart),
        }
    }

    /// Whether what the caller sent before has waited for longer than anything should.
    fn is_late(&self, caller: Share, now: Instant) -> bool {
        let Some(wait_max) = self.wait_max else { return false };
        let oldest = self.shared.lines.lock().oldest_of(caller);
        oldest.is_some_and(|since| now.saturating_duration_since(since) > wait_max)
    }

    async fn submit_when_full(&self, job: Job, deadline: Deadline) -> Result<(), CallError> {
        match self.on_full {
            OnFull::Reject => return Err(self.overloaded()),
            OnFull::CallerRuns => {
                // What this task had woken runs first; it could not leave this thread while the job holds it.
                tokio::task::yield_now().await;
                if let Some(_io_thread) = self.shared.borrow_io_thread() {
                    job.run(None);
                    return Ok(());
                }
            }
            OnFull::Wait => {}
        }
        let room = until(deadline, self.shared.room.acquire());
        let place = match self.wait_max {
            Some(wait_max) => {
                let outside = Outside::one_more(&self.outside);
                // Who would wait for longer hears it now and not then; the clock decides where the forecast fails.
                if self.rate.lock().takes(outside.before + 1).is_some_and(|wait| wait > wait_max) {
                    return Err(self.overloaded());
                }
                timeout(2 * wait_max, room).await.map_err(|_| self.overloaded())?
            }
            None => room.await,
        };
        let Some(Ok(place)) = place else { return Err(CallError::DeadlineBeforeStart) };
        place.forget(); // given back by the worker
        self.enqueue(job)
    }

    /// Queues the job, or starts an extra thread with it, or puts it in the place of a job of a caller who has more
    /// waiting; gives it back when none is possible.
    #[allow(clippy::result_large_err)] // the job comes back to be tried elsewhere
    fn submit(&self, job: Job) -> Result<(), Job> {
        if let Ok(place) = self.shared.room.try_acquire() {
            place.forget();
            return self.enqueue(job).or(Ok(()));
        }
        let job = match Shared::run_on_extra_thread(&self.shared, job) {
            Ok(()) => return Ok(()),
            Err(job) => job,
        };
        let share = job.ctx.share;
        let mut lines = self.shared.lines.lock();
        let Some(outdone) = lines.make_room(share) else { return Err(job) };
        lines.push(share, job.queued_at, job);
        drop(lines);
        outdone.refuse(self.overloaded());
        Ok(())
    }

    fn enqueue(&self, job: Job) -> Result<(), CallError> {
        self.shared.lines.lock().push(job.ctx.share, job.queued_at, job);
        self.tickets.try_send(()).map_err(|_| CallError::Internal)
    }

    /// Refuses a call, on an I/O thread.
    fn overloaded(&self) -> CallError {
        let queued = self.shared.lines.lock().len();
        let rate = self.rate.lock();
        gather::after_refusal(self.gather, rate.takes(queued));
        CallError::Overloaded { retry_after_s: rate.retry_after_s(queued) }
    }

    /// When the queue will have drained, as fast as it does now.
    pub(crate) fn retry_after_s(&self) -> u32 {
        let queued = self.shared.lines.lock().len();
        self.rate.lock().retry_after_s(queued)
    }

    /// To be called some times a second: replaces threads that hang, and measures how fast the queue drains.
    pub(crate) fn look_after(&self, now: Instant) {
        let is_busy = self.shared.lines.lock().len() > 0;
        self.rate.lock().measure(now, self.shared.progress(), is_busy);
        for (kind, work) in self.shared.workers.give_up_hung(now, self.lost_max) {
            self.shared.replaced.fetch_add(1, Ordering::Relaxed);
            tracing::error!(
                name = %work.name,
                lost = self.shared.workers.count().lost,
                "a tool hangs past its deadline; its thread is lost until it returns, and another takes its place"
            );
            match kind {
                Kind::Core => {
                    self.shared.room.add_permits(1); // the lost thread keeps none
                    self.owed.fetch_add(1, Ordering::AcqRel);
                }
                Kind::Extra => {
                    self.shared.threads.fetch_sub(1, Ordering::AcqRel); // so that another may be started when needed
                }
            }
        }
        while self.owed.load(Ordering::Acquire) > 0 {
            if let Err(error) = Shared::start_core_thread(&self.shared) {
                static RARELY: Rarely = Rarely::new();
                if RARELY.may(now).is_some() {
                    tracing::error!(%error, "cannot start a thread in the place of a lost one; it is tried again");
                }
                break;
            }
            self.owed.fetch_sub(1, Ordering::AcqRel);
        }
    }

    pub(crate) fn load(&self, now: Instant) -> Load {
        let lines = self.shared.lines.lock();
        Load {
            queued: lines.len(),
            oldest: lines.oldest().map_or(Duration::ZERO, |since| now.saturating_duration_since(since)),
            threads: self.shared.workers.count(),
            replaced: self.shared.replaced.load(Ordering::Relaxed),
            io_busy: self.shared.io_busy.load(Ordering::Relaxed),
        }
    }
}

impl Shared {
    /// Runs the job whose turn it is; there may be none, when one made room for another.
    fn run_next(&self, worker: &Worker) -> bool {
        let next = self.lines.lock().pop();
        next.is_none_or(|(_, job)| self.run(worker, job))
    }

    /// Takes a job that nobody waits for out of the queue, if it is still there.
    fn forget(&self, share: Share, ticket: &Ticket) {
        let forgotten = self.lines.lock().take(share, |job| job.ticket.is(ticket));
        forgotten.iter().for_each(|job| job.has_waited(Instant::now()));
        // Its place goes with one of the tickets; when a thread has just taken the last, that thread gives it back.
        if forgotten.is_some() && self.tickets.try_recv().is_ok() {
            self.room.add_permits(1);
        }
    }

    /// False when the thread has to leave.
    fn run(&self, worker: &Worker, job: Job) -> bool {
        let ran = job.run(Some(worker));
        self.done.fetch_add(1, Ordering::Relaxed);
        self.ran_ns.fetch_add(u64::try_from(ran.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
        worker.end()
    }

    fn progress(&self) -> Progress {
        Progress {
            done: self.done.load(Ordering::Relaxed),
            ran: Duration::from_nanos(self.ran_ns.load(Ordering::Relaxed)),
            threads: self.threads.load(Ordering::Relaxed),
        }
    }

    fn start_core_thread(shared: &Arc<Self>) -> std::io::Result<()> {
        let (shared, nice) = (Arc::clone(shared), shared.nice);
        spawn("core", nice, move || {
            let enrolled = shared.workers.enroll(Kind::Core);
            while shared.tickets.recv().is_ok() {
                if !shared.run_next(&enrolled.worker) {
                    return; // lost, and replaced
                }
                shared.room.add_permits(1); // only now: the job had a place in this thread
            }
        })
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
            let enrolled = worker.workers.enroll(Kind::Extra);
            if jobs.recv().is_ok_and(|job: Job| !worker.run(&enrolled.worker, job)) {
                return; // lost, and not counted any more
            }
            if worker.work_until_idle(&enrolled.worker) {
                worker.threads.fetch_sub(1, Ordering::AcqRel);
            }
        };
        match spawn("extra", shared.nice, run) {
            Ok(()) => first.send(job).map_err(|unsent| unsent.0),
            Err(error) => {
                shared.threads.fetch_sub(1, Ordering::AcqRel);
                tracing::warn!(%error, "cannot start an extra pool thread");
                Err(job)
            }
        }
    }

    /// False when the thread was lost meanwhile.
    fn work_until_idle(&self, worker: &Worker) -> bool {
        loop {
            match self.tickets.recv_timeout(self.keep_alive) {
                Ok(()) => {
                    self.room.add_permits(1); // an extra thread has no place of its own, so the queue has one more
                    if !self.run_next(worker) {
                        return false;
                    }
                }
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => return true,
            }
        }
    }

    /// This thread, when another one stays free to move bytes.
    fn borrow_io_thread(&self) -> Option<IoThread<'_>> {
        let more = |busy: usize| (busy + 1 < self.io_threads).then_some(busy + 1);
        self.io_busy.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).ok().map(|_| IoThread(&self.io_busy))
    }
}

fn spawn(kind: &str, nice: u8, work: impl FnOnce() + Send + 'static) -> std::io::Result<()> {
    let run = move || {
        // On Linux this is of the calling thread alone. Where it is not allowed, threads are as they were.
        let _ = rustix::process::setpriority_process(None, i32::from(nice));
        work();
    };
    thread::Builder::new().name(format!("pool-{kind}")).spawn(run).map(drop)
}

#[cfg(test)]
mod tests;
