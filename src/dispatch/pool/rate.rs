//! How fast the pool gets through its jobs, and what that means for those who come: when to try again, and whether
//! waiting is worth it. Who waits where is not said here.

use std::{
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

/// The longest that a refused caller is told to wait.
const RETRY_AFTER_S_MAX: u32 = 60;
/// Beyond it a forecast says no more than "long".
const FORECAST_S_MAX: f64 = 3600.0;
/// What the threads can is taken as known for so long: what they are asked to do may be other work then.
const BUSY_RATE_HOLDS: Duration = Duration::from_secs(10);
/// Over this time the rate is measured.
const RATE_WINDOW: Duration = Duration::from_millis(500);

/// How fast the queue drains, measured now and then.
#[derive(Debug)]
pub(super) struct Rate {
    measured_at: Instant,
    last: Progress,
    /// Jobs a second in times in which there was always something to do: what the threads can. With when it was measured,
    /// since it is forgotten after a while.
    busy: Option<(Instant, f64)>,
    was_busy: bool,
    /// How long one job takes a thread; none before one was done.
    job_s: Option<f64>,
    /// For how long no job has been done though some waited, once that is longer than [`RATE_WINDOW`].
    stalled_s: f64,
}

/// What the threads have done so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Progress {
    pub(super) done: u64,
    /// Time that these jobs took, of all threads together.
    pub(super) ran: Duration,
    /// How many threads there are.
    pub(super) threads: usize,
}

impl Rate {
    pub(super) fn new(now: Instant) -> Self {
        Self { measured_at: now, last: Progress::default(), busy: None, was_busy: false, job_s: None, stalled_s: 0.0 }
    }

    /// To be called some times a second with what has been done so far, and whether some wait.
    #[allow(clippy::cast_precision_loss)] // a rate
    pub(super) fn measure(&mut self, now: Instant, progress: Progress, is_busy: bool) {
        self.was_busy &= is_busy;
        self.busy = self.busy.filter(|(at, _)| now.saturating_duration_since(*at) < BUSY_RATE_HOLDS);
        let passed = now.saturating_duration_since(self.measured_at);
        if passed < RATE_WINDOW {
            return;
        }
        let smooth = |before: Option<f64>, one: f64| Some(before.map_or(one, |before| f64::midpoint(before, one)));
        let done = progress.done.saturating_sub(self.last.done);
        if done == 0 && self.was_busy {
            // Jobs that take longer than a window: it goes on until one is done.
            (self.stalled_s, self.last.threads) = (passed.as_secs_f64(), progress.threads);
            return;
        }
        if done > 0 {
            self.job_s = smooth(self.job_s, progress.ran.saturating_sub(self.last.ran).as_secs_f64() / done as f64);
            if self.was_busy {
                let rate = done as f64 / passed.as_secs_f64();
                self.busy = smooth(self.busy.map(|(_, before)| before), rate).map(|rate| (now, rate));
            }
        }
        (self.measured_at, self.last, self.was_busy, self.stalled_s) = (now, progress, is_busy, 0.0);
    }

    /// How long so many jobs take at the rate of busy times; not known before there was one.
    #[allow(clippy::cast_precision_loss)] // few
    pub(super) fn takes(&self, jobs: usize) -> Option<Duration> {
        let (_, rate) = self.busy.filter(|(_, rate)| *rate > 0.0)?;
        Some(Duration::from_secs_f64((jobs as f64 / rate.min(self.at_most())).min(FORECAST_S_MAX)))
    }

    /// What a refused caller is told, with so many jobs in the queue. Times without much to do say how long a job takes, and
    /// not how many are done.
    #[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss, clippy::cast_sign_loss)] // small and clamped
    pub(super) fn retry_after_s(&self, queued: usize) -> u32 {
        let by_job = || self.job_s.map(|job_s| self.last.threads.max(1) as f64 / job_s.max(f64::MIN_POSITIVE));
        // Before anything was done it cannot be told.
        let jobs_per_s = self.busy.map(|(_, rate)| rate).or_else(by_job).unwrap_or(f64::INFINITY).min(self.at_most());
        (queued as f64 / jobs_per_s).ceil().clamp(1.0, f64::from(RETRY_AFTER_S_MAX)) as u32
    }

    /// Jobs a second that there may be where none has been done for a while.
    #[allow(clippy::cast_precision_loss)] // few
    fn at_most(&self) -> f64 {
        if self.stalled_s > 0.0 { self.last.threads.max(1) as f64 / self.stalled_s } else { f64::INFINITY }
    }
}

/// A call that waits for room, counted while it does.
pub(super) struct Outside<'a> {
    all: &'a AtomicUsize,
    pub(super) before: usize,
}

impl<'a> Outside<'a> {
    pub(super) fn one_more(all: &'a AtomicUsize) -> Self {
        Self { all, before: all.fetch_add(1, Ordering::AcqRel) }
    }
}

impl Drop for Outside<'_> {
    fn drop(&mut self) {
        self.all.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const THREADS: usize = 2;

    /// After windows with so many jobs, each of which took a thread so long in ms, and with some waiting or not.
    fn after(windows: &[(u64, u64, bool)]) -> Rate {
        let mut now = Instant::now();
        let (mut rate, mut progress) = (Rate::new(now), Progress { threads: THREADS, ..Progress::default() });
        for &(jobs, job_ms, is_busy) in windows {
            for part in 1..=4 {
                if part == 4 {
                    progress.done += jobs;
                    progress.ran += Duration::from_millis(job_ms * jobs);
                }
                rate.measure(now + part * RATE_WINDOW / 4, progress, is_busy);
            }
            now += RATE_WINDOW;
        }
        rate
    }

    #[test]
    fn nothing_is_forecast_from_idle_times() {
        assert_eq!(after(&[]).takes(5), None);
        assert_eq!(after(&[(400, 1, false), (4, 1, true), (4, 1, false)]).takes(5), None, "no whole window was busy");
    }

    #[test]
    fn busy_times_say_how_long_a_wait_is() {
        let rate = after(&[(100, 10, true), (100, 10, true), (4, 10, false)]);
        assert_eq!(rate.takes(50), Some(Duration::from_millis(250)));
        assert_eq!(rate.takes(usize::MAX), Some(Duration::from_secs(3600)));
    }

    #[test]
    fn retry_after_is_what_the_queue_takes() {
        assert_eq!(after(&[]).retry_after_s(500), 1, "nothing is known yet");
        assert_eq!(after(&[(4, 250, true)]).retry_after_s(40), 5, "8 a second, from the first time on");
        let rate = after(&[(100, 10, true); 20]);
        assert_eq!([0, 200, 1000, 1_000_000].map(|queued| rate.retry_after_s(queued)), [1, 1, 5, 60]);
    }

    #[test]
    fn a_quiet_time_makes_no_queue_long() {
        let quiet = [vec![(100, 20, true); 4], vec![(0, 0, false); 30]].concat();
        assert_eq!(after(&quiet).retry_after_s(20), 1, "20 jobs of 20 ms");
        assert_eq!(after(&[(4, 20, false); 60]).retry_after_s(1000), 10, "few calls do not make a slow pool");
        assert_eq!(after(&quiet).takes(20), None, "what was busy is long ago");
    }

    #[test]
    fn jobs_longer_than_a_window_are_not_taken_for_none() {
        // One every two seconds on each of two threads.
        let slow = [(0, 0, true), (0, 0, true), (0, 0, true), (4, 2000, true)].repeat(5);
        let rate = after(&slow);
        let forecast = rate.takes(4).expect("it was busy").as_secs_f64();
        assert!((1.9..2.1).contains(&forecast), "{forecast}");
        assert_eq!(rate.retry_after_s(4), 2);
    }

    #[test]
    fn where_nothing_is_done_any_more_the_wait_grows() {
        let stalled = |windows| after(&[vec![(100, 10, true); 4], vec![(0, 0, true); windows]].concat());
        assert_eq!([2, 8, 40, 400].map(|windows| stalled(windows).retry_after_s(10)), [5, 20, 60, 60]);
        assert_eq!(stalled(8).takes(10), Some(Duration::from_secs(20)));
    }
}
