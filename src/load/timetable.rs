//! When calls are due in an open loop: at distances that follow a rate, which may change from step to step. What is due
//! and finds no connection waits here, and the wait counts.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::{Arrivals, Plan};

/// Calls that may wait for a connection, for each connection. More than a minute of them helps nobody.
const BACKLOG_PER_CONNECTION: usize = 1000;

/// When the calls of one thread are due.
#[derive(Debug)]
pub(super) struct Timetable {
    next: Instant,
    /// The mean distance in each step, and how long a step is. What comes before the first is like it.
    means: Vec<Duration>,
    first_step_at: Instant,
    step: Duration,
    arrivals: Arrivals,
    random: u64,
    waiting: VecDeque<Due>,
    waiting_max: usize,
}

/// A call that is due.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Due {
    pub(super) at: Instant,
    /// How often it was sent already.
    pub(super) attempts: u32,
    /// Whether it found no free connection when it was due.
    pub(super) has_waited: bool,
}

impl Timetable {
    /// The timetable of thread `index` of `threads`, which take turns, so that together they send evenly.
    pub(super) fn new(plan: &Plan, begin: Instant, connections: usize, index: usize, threads: usize) -> Option<Self> {
        if plan.rates.is_empty() {
            return None;
        }
        let threads_f64 = f64::from(u32::try_from(threads).unwrap_or(u32::MAX));
        let mean = |rate: &f64| Duration::from_secs_f64(threads_f64 / rate.max(1e-3));
        let means: Vec<_> = plan.rates.iter().map(mean).collect();
        let turn = means[0].mul_f64((index + 1) as f64 / threads_f64);
        Some(Self {
            next: begin + turn,
            means,
            first_step_at: begin + plan.warmup,
            step: plan.duration,
            arrivals: plan.arrivals,
            random: 0x9E37_79B9_7F4A_7C15 ^ (index as u64 + 1),
            waiting: VecDeque::new(),
            waiting_max: connections * BACKLOG_PER_CONNECTION,
        })
    }

    /// When the next call is due.
    pub(super) fn next(&self) -> Instant {
        self.next
    }

    /// Takes note of what has become due by `now`; `lost` hears of each call for which there is no room to wait.
    pub(super) fn advance(&mut self, now: Instant, has_free: bool, mut lost: impl FnMut(Instant)) {
        let has_waited = !has_free || !self.waiting.is_empty();
        while self.next <= now {
            let at = self.next;
            self.next = at + self.distance(at);
            if self.waiting.len() < self.waiting_max {
                self.waiting.push_back(Due { at, attempts: 0, has_waited });
            } else {
                lost(at);
            }
        }
    }

    /// The call that is to be sent first.
    pub(super) fn pop(&mut self) -> Option<Due> {
        self.waiting.pop_front()
    }

    /// A call that is to be sent again, before all others.
    pub(super) fn again(&mut self, at: Instant, attempts: u32) {
        self.waiting.push_front(Due { at, attempts, has_waited: true });
    }

    /// What was never sent, by when it was due.
    pub(super) fn never_sent(self) -> impl Iterator<Item = Instant> {
        self.waiting.into_iter().filter(|due| due.attempts == 0).map(|due| due.at)
    }

    /// From the call due at `at` to the next.
    #[allow(clippy::cast_precision_loss)] // 53 bits of randomness are enough
    fn distance(&mut self, at: Instant) -> Duration {
        let passed = at.saturating_duration_since(self.first_step_at).as_nanos();
        let step = usize::try_from(passed / self.step.as_nanos().max(1)).unwrap_or(usize::MAX);
        let mean = self.means[step.min(self.means.len() - 1)];
        match self.arrivals {
            Arrivals::Even => mean,
            Arrivals::Poisson => {
                // xorshift64*: good enough to tell arrivals apart, and the same in each run.
                self.random ^= self.random >> 12;
                self.random ^= self.random << 25;
                self.random ^= self.random >> 27;
                let bits = self.random.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11;
                let uniform = (bits as f64 + 1.0) / (1_u64 << 53) as f64;
                mean.mul_f64(-uniform.ln())
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(rates: &[f64], arrivals: Arrivals) -> Plan {
        Plan {
            rates: rates.to_vec(),
            arrivals,
            warmup: Duration::from_secs(1),
            duration: Duration::from_secs(2),
            ..Plan::example()
        }
    }

    fn due_in(timetable: &mut Timetable, begin: Instant, seconds: u64) -> usize {
        timetable.advance(begin + Duration::from_secs(seconds), true, |_| panic!("there is room"));
        std::iter::from_fn(|| timetable.pop()).count()
    }

    #[test]
    fn the_rate_changes_from_step_to_step() {
        let begin = Instant::now();
        let mut even =
            Timetable::new(&plan(&[10.0, 100.0, 10.0], Arrivals::Even), begin, 100, 0, 1).expect("an open loop");
        assert_eq!([1, 3, 5, 7, 9].map(|s| due_in(&mut even, begin, s)), [10, 20, 200, 20, 20]);
        let mut poisson = Timetable::new(&plan(&[1000.0], Arrivals::Poisson), begin, 100, 0, 1).expect("an open loop");
        let due = due_in(&mut poisson, begin, 10);
        assert!((9_700..10_300).contains(&due), "{due}");
        assert!(Timetable::new(&plan(&[], Arrivals::Even), begin, 100, 0, 1).is_none());
    }

    #[test]
    fn threads_take_turns() {
        let begin = Instant::now();
        let first = |index| {
            let timetable = Timetable::new(&plan(&[10.0], Arrivals::Even), begin, 1, index, 4).expect("an open loop");
            timetable.next() - begin
        };
        assert_eq!([0, 1, 2, 3].map(first), [100, 200, 300, 400].map(Duration::from_millis));
    }

    #[test]
    fn what_finds_no_room_is_told() {
        let begin = Instant::now();
        let mut timetable = Timetable::new(&plan(&[1000.0], Arrivals::Even), begin, 1, 0, 1).expect("an open loop");
        let mut lost = 0;
        timetable.advance(begin + Duration::from_secs(2), false, |_| lost += 1);
        assert_eq!(lost, 2000 - BACKLOG_PER_CONNECTION);
        assert!(timetable.pop().is_some_and(|due| due.has_waited));
        timetable.again(begin, 3);
        assert_eq!(timetable.pop(), Some(Due { at: begin, attempts: 3, has_waited: true }));
        assert_eq!(timetable.never_sent().count(), BACKLOG_PER_CONNECTION - 1);
    }
}
