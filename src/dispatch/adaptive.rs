//! How many calls at once a tool bears, found out while it is called: TCP Vegas for calls, as in Netflix's
//! concurrency-limits. The shortest time that calls ever took is what the tool needs by itself; what they take longer
//! is waiting inside it. While few wait there the limit grows, when many do it shrinks.

use std::time::Duration;

/// Calls of which each step is made: one call says little.
const WINDOW_CALLS: u32 = 10;
/// Steps after which the shortest time is forgotten, since the tool may have become slower for good. It is measured anew
/// with half of the calls inside: with all of them, what waits there would become the new shortest time.
const FORGET_AFTER: u32 = 1000;
/// Where the limit begins.
const LIMIT_FIRST: f64 = 4.0;

/// The estimate.
#[derive(Debug)]
pub(crate) struct Vegas {
    limit: f64,
    limit_max: f64,
    /// What a call takes that waits for nobody, in seconds.
    alone_s: f64,
    steps: u32,
    /// Calls that began before the limit was lowered to measure anew.
    left_out: usize,
    window: Window,
}

/// Some calls, one after the other.
#[derive(Debug, Default)]
struct Window {
    calls: u32,
    sum_s: f64,
    inside_max: usize,
}

impl Vegas {
    /// Up to `limit_max` calls.
    #[allow(clippy::cast_precision_loss)] // limits are small
    pub(crate) fn new(limit_max: usize) -> Self {
        let limit_max = (limit_max as f64).max(1.0);
        let limit = LIMIT_FIRST.min(limit_max);
        Self { limit, limit_max, alone_s: f64::INFINITY, steps: 0, left_out: 0, window: Window::default() }
    }

    /// A call took so long while `inside` were inside, itself included.
    pub(crate) fn observe(&mut self, took: Duration, inside: usize) {
        if self.left_out > 0 {
            self.left_out -= 1;
            return;
        }
        self.window.calls += 1;
        self.window.sum_s += took.as_secs_f64();
        self.window.inside_max = self.window.inside_max.max(inside);
        if self.window.calls >= WINDOW_CALLS {
            let window = std::mem::take(&mut self.window);
            self.step(&window);
        }
    }

    #[allow(clippy::cast_precision_loss)]
    fn step(&mut self, window: &Window) {
        let took_s = (window.sum_s / f64::from(window.calls)).max(1e-9);
        self.steps += 1;
        if self.steps.is_multiple_of(FORGET_AFTER) {
            self.left_out = window.inside_max;
            (self.alone_s, self.limit) = (f64::INFINITY, (self.limit / 2.0).max(1.0));
            return;
        }
        self.alone_s = self.alone_s.min(took_s);
        if (window.inside_max as f64) < self.limit / 2.0 {
            return; // what is not used says nothing of the limit
        }
        let waiting = self.limit * (1.0 - self.alone_s / took_s);
        let unit = self.limit.log10().max(1.0);
        let change = match waiting {
            w if w <= unit => 3.0 * unit,
            w if w < 3.0 * unit => unit,
            w if w > 6.0 * unit => -unit.max(self.limit / 10.0),
            _ => 0.0,
        };
        self.limit = (self.limit + change).clamp(1.0, self.limit_max);
    }

    /// Calls at once.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // positive and small
    pub(crate) fn limit(&self) -> usize {
        self.limit as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Calls of a tool with so many places that take so long: beyond them, calls wait inside.
    fn call(vegas: &mut Vegas, calls: usize, places: usize, ms: f64) -> usize {
        for _ in 0..calls {
            let inside = vegas.limit();
            #[allow(clippy::cast_precision_loss)]
            let waits = (inside as f64 / places as f64).max(1.0);
            vegas.observe(Duration::from_secs_f64(ms / 1e3 * waits), inside);
        }
        vegas.limit()
    }

    #[test]
    fn it_grows_to_what_the_tool_bears_and_not_far_beyond() {
        for places in [2, 8, 50] {
            let limit = call(&mut Vegas::new(1000), 3000, places, 10.0);
            assert!(limit >= places && limit <= places * 2 + 10, "{limit} for {places}");
        }
        assert_eq!(call(&mut Vegas::new(20), 3000, 50, 10.0), 20);
    }

    #[test]
    fn it_does_not_creep_upwards_under_steady_load() {
        for places in [2, 8, 50] {
            let mut vegas = Vegas::new(1000);
            for _ in 0..20 {
                let limit = call(&mut vegas, 20_000, places, 10.0);
                assert!(limit <= places * 2 + 10, "{limit} for {places}");
            }
        }
    }

    #[test]
    fn it_shrinks_when_the_tool_bears_less_and_comes_back() {
        let mut vegas = Vegas::new(1000);
        let healthy = call(&mut vegas, 2000, 50, 10.0);
        let sick = call(&mut vegas, 500, 5, 10.0);
        assert!(sick < healthy / 2, "{sick} of {healthy}");
        assert!(call(&mut vegas, 2000, 50, 10.0) >= 50);
    }

    #[test]
    fn what_is_not_used_changes_nothing() {
        let mut vegas = Vegas::new(100);
        (0..1000).for_each(|_| vegas.observe(Duration::from_millis(1), 1));
        assert_eq!(vegas.limit(), 4);
    }
}
