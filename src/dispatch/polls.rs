//! What tools do with the I/O threads: a poll of an async tool that takes long holds up everything else on its thread. It
//! is reported with the tool's name, once it is over and also while it goes on.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;

use crate::{telemetry::rarely::Rarely, tool::Work};

/// A poll that takes longer is reported.
pub(crate) const POLL_MAX: Duration = Duration::from_millis(100);
/// Threads that are watched. More than hosts have I/O threads; beyond it some share a seat and hide each other.
const SEATS: usize = 256;

/// What each thread polls.
#[derive(Debug)]
pub(crate) struct Polls {
    seats: Box<[Seat]>,
    began: Instant,
}

#[derive(Debug, Default)]
#[repr(align(128))]
struct Seat {
    /// Nanoseconds after `Polls::began`, plus one; 0 when nothing is polled.
    since: AtomicU64,
    is_reported: AtomicBool,
    /// What was polled last.
    work: Mutex<Option<Arc<Work>>>,
}

impl Default for Polls {
    fn default() -> Self {
        Self { seats: (0..SEATS).map(|_| Seat::default()).collect(), began: Instant::now() }
    }
}

/// A poll under way.
pub(crate) struct Polling<'p> {
    seat: &'p Seat,
    work: &'p Arc<Work>,
    since: Instant,
}

impl Polls {
    /// A poll of a tool begins on this thread.
    pub(crate) fn begin<'p>(&'p self, work: &'p Arc<Work>) -> Polling<'p> {
        static THREADS: AtomicUsize = AtomicUsize::new(0);
        thread_local!(static OWN: OnceLock<usize> = const { OnceLock::new() });
        let own = OWN.with(|own| *own.get_or_init(|| THREADS.fetch_add(1, Relaxed)));
        let (seat, since) = (&self.seats[own % SEATS], Instant::now());
        let mut last = seat.work.lock();
        if last.as_ref().is_none_or(|last| !Arc::ptr_eq(last, work)) {
            *last = Some(Arc::clone(work));
        }
        drop(last);
        seat.is_reported.store(false, Relaxed);
        seat.since.store(self.note(since), Relaxed);
        Polling { seat, work, since }
    }

    /// To be called some times a second: reports polls that go on for too long.
    pub(crate) fn look_after(&self, now: Instant) {
        let now = self.note(now);
        for seat in &self.seats {
            let since = seat.since.load(Relaxed);
            let is_long = since != 0 && now.saturating_sub(since) > POLL_MAX.as_nanos() as u64;
            if is_long && !seat.is_reported.swap(true, Relaxed) {
                let work = seat.work.lock().clone();
                let name = work.as_ref().map_or("", |work| work.name.as_ref());
                tracing::error!(
                    name,
                    "a tool holds an I/O thread: it is async and computes or blocks; other calls on that thread wait. \
                     Put it into the pool, or have it await"
                );
            }
        }
    }

    fn note(&self, at: Instant) -> u64 {
        u64::try_from(at.saturating_duration_since(self.began).as_nanos()).unwrap_or(u64::MAX - 1) + 1
    }
}

impl Polling<'_> {
    /// The poll is over: when it began and ended.
    pub(crate) fn end(self) -> (Instant, Instant) {
        static RARELY: Rarely = Rarely::new();
        self.seat.since.store(0, Relaxed);
        let now = Instant::now();
        let took = now.saturating_duration_since(self.since);
        if took > POLL_MAX {
            if let Some(meter) = &self.work.meter {
                meter.slow_poll();
            }
            if let Some(left_out) = RARELY.may(now) {
                let held_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
                tracing::warn!(left_out, name = %self.work.name, held_ms, "a tool held an I/O thread");
            }
        }
        (self.since, now)
    }
}
