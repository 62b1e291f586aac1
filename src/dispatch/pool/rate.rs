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
    done: u64,
    jobs_per_s: f64,
    /// The same over times in which there was always something to do: what the threads can. With when it was measured,
    /// since it is forgotten after a while.
    busy: Option<(Instant, f64)>,
    was_busy: bool,
}

impl Rate {
    pub(super) fn new(now: Instant) -> Self {
        Self { measured_at: now, done: 0, jobs_per_s: 0.0, busy: None, was_busy: false }
    }

    #[allow(clippy::cast_precision_loss)] // a rate
    /// To be called some times a second with the jobs done so far, and whether some wait.
    pub(super) fn measure(&mut self, now: Instant, done: u64, is_busy: bool) {
        self.was_busy &= is_busy;
        let passed = now.saturating_duration_since(self.measured_at);
        if passed < RATE_WINDOW {
            return;
        }
        let rate = done.saturating_sub(self.done) as f64 / passed.as_secs_f64();
        let smooth = |before: f64| if before > 0.0 { f64::midpoint(before, rate) } else { rate };
        self.jobs_per_s = smooth(self.jobs_per_s);
        if self.was_busy {
            self.busy = Some((now, smooth(self.busy.map_or(0.0, |(_, before)| before))));
        }
        self.busy = self.busy.filter(|(at, _)| now.saturating_duration_since(*at) < BUSY_RATE_HOLDS);
        (self.measured_at, self.done, self.was_busy) = (now, done, is_busy);
    }

    /// How long so many jobs take at the rate of busy times; not known before there was one.
    #[allow(clippy::cast_precision_loss)] // few
    pub(super) fn takes(&self, jobs: usize) -> Option<Duration> {
        let (_, rate) = self.busy.filter(|(_, rate)| *rate > 0.0)?;
        Some(Duration::from_secs_f64((jobs as f64 / rate).min(FORECAST_S_MAX)))
    }

    /// What a refused caller is told, with so many jobs in the queue.
    #[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss, clippy::cast_sign_loss)] // small and clamped
    pub(super) fn retry_after_s(&self, queued: usize) -> u32 {
        let jobs_per_s = self.busy.map_or(0.0, |(_, rate)| rate).max(self.jobs_per_s);
        if jobs_per_s <= 0.0 {
            return 1; // nothing was done yet from which it could be told
        }
        (queued as f64 / jobs_per_s).ceil().clamp(1.0, f64::from(RETRY_AFTER_S_MAX)) as u32
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

    fn after(windows: &[(u64, bool)]) -> Rate {
        let mut now = Instant::now();
        let (mut rate, mut done) = (Rate::new(now), 0);
        for &(jobs, is_busy) in windows {
            for part in 1..=4 {
                done += jobs / 4;
                rate.measure(now + part * RATE_WINDOW / 4, done, is_busy);
            }
            now += RATE_WINDOW;
        }
        rate
    }

    #[test]
    fn nothing_is_forecast_from_idle_times() {
        assert_eq!(after(&[]).takes(5), None);
        assert_eq!(after(&[(400, false), (4, true), (4, false)]).takes(5), None, "no whole window was busy");
    }

    #[test]
    fn busy_times_say_how_long_a_wait_is() {
        let rate = after(&[(100, true), (100, true), (4, false)]);
        assert_eq!(rate.takes(50), Some(Duration::from_millis(250)));
        assert_eq!(rate.takes(usize::MAX), Some(Duration::from_secs(3600)));
    }

    #[test]
    fn retry_after_is_what_the_queue_takes() {
        assert_eq!(after(&[]).retry_after_s(500), 1, "nothing is known yet");
        assert_eq!(after(&[(4, true)]).retry_after_s(40), 5, "8 a second, from the first time on");
        let rate = after(&[(100, true); 20]);
        assert_eq!([0, 200, 1000, 1_000_000].map(|queued| rate.retry_after_s(queued)), [1, 1, 5, 60]);
    }
}
