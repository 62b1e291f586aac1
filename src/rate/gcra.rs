//! The arithmetic of one rate: the generic cell rate algorithm as the `governor` crate has it, with a block after a
//! breach. Pure: numbers in, numbers out, all times nanoseconds since one moment.
//!
//! A key's whole state is the moment at which it will have all of its burst again, called TAT (theoretical arrival
//! time) in the books. Each call moves it by the spacing of calls; a call that would move it further ahead than a burst
//! is too many. `governor` itself is not used, because it keeps every key until somebody walks over all of them, and
//! has no way to ask several rules before it charges the first.

use super::rule::Rule;

const NS_PER_S: u64 = 1_000_000_000;

/// A rule in the units of the algorithm.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Quota {
    /// The number that clients are told.
    pub(super) limit: u32,
    /// In how many seconds.
    pub(super) per_s: u64,
    /// The time that one call costs.
    pub(super) spacing_ns: u64,
    /// How far ahead of now a key may be and still pass.
    pub(super) tolerance_ns: u64,
    pub(super) block_ns: u64,
}

/// What is remembered of one key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct State {
    /// When the key has its whole burst again.
    pub(super) whole_at: u64,
    /// Until when nothing passes; 0 when it was never blocked.
    pub(super) blocked_until: u64,
}

impl State {
    /// From when on the state says nothing that an absent one would not say.
    pub(super) fn idle_at(self) -> u64 {
        self.whole_at.max(self.blocked_until)
    }

    pub(super) fn is_blocked(self, now: u64) -> bool {
        self.blocked_until > now
    }
}

impl Quota {
    /// None when the rule sets no limit.
    pub(super) fn new(rule: Rule) -> Option<Self> {
        if rule.is_off() {
            return None;
        }
        let spacing_ns = (rule.per_s() * NS_PER_S / u64::from(rule.requests())).max(1);
        Some(Self {
            limit: rule.requests(),
            per_s: rule.per_s(),
            spacing_ns,
            tolerance_ns: spacing_ns.saturating_mul(u64::from(rule.burst()) - 1),
            block_ns: rule.block_s() * NS_PER_S,
        })
    }

    /// The state after one more call.
    ///
    /// # Errors
    /// When the call is too many: the moment from which on one can pass, if none comes in between.
    pub(super) fn charge(&self, state: State, now: u64) -> Result<State, u64> {
        let passes_at = state.whole_at.saturating_sub(self.tolerance_ns).max(state.blocked_until);
        if now < passes_at {
            return Err(passes_at);
        }
        Ok(State { whole_at: state.whole_at.max(now).saturating_add(self.spacing_ns), ..state })
    }

    /// The state after a call that was too many. One block is one block, however often a client knocks meanwhile.
    pub(super) fn refuse(&self, state: State, now: u64) -> State {
        if self.block_ns == 0 || state.is_blocked(now) {
            return state;
        }
        State { blocked_until: now.saturating_add(self.block_ns), ..state }
    }

    /// How many calls would pass now.
    pub(super) fn remaining(&self, state: State, now: u64) -> u32 {
        if state.is_blocked(now) {
            return 0;
        }
        let room_ns = self.tolerance_ns.saturating_add(self.spacing_ns);
        let ahead_ns = state.whole_at.saturating_sub(now);
        u32::try_from(room_ns.saturating_sub(ahead_ns) / self.spacing_ns).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use std::{num::NonZeroU32, time::Duration};

    use governor::{RateLimiter, clock::FakeRelativeClock, middleware::StateInformationMiddleware};
    use proptest::prelude::*;

    use super::*;

    fn quota(text: &str) -> Quota {
        Quota::new(text.parse().expect(text)).expect(text)
    }

    /// governor's quota for the same rule.
    fn governors(rule: Rule) -> governor::Quota {
        governor::Quota::with_period(Duration::from_secs(rule.per_s()) / rule.requests())
            .expect("a period")
            .allow_burst(NonZeroU32::new(rule.burst()).expect("a burst"))
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

        /// Over any schedule, both decide alike, and say the same of what is left and how long to wait.
        #[test]
        fn it_decides_as_governor_does(
            requests in 1u32..200, per_s in 1u64..120, burst in 1u32..200,
            steps in prop::collection::vec((0u64..4, 0u64..1_000_000_000), 1..400),
        ) {
            let rule = Rule::new(requests, per_s, burst, 0).expect("in range");
            let (ours, clock) = (Quota::new(rule).expect("on"), FakeRelativeClock::default());
            let theirs = RateLimiter::direct_with_clock(governors(rule), clock.clone())
                .with_middleware::<StateInformationMiddleware>();
            let (mut state, mut now) = (State::default(), 0);
            for (kind, random) in steps {
                // Half of the calls come at once, the others after a part of, about, or many times the spacing.
                let step_ns = match kind {
                    0 | 1 => 0,
                    2 => random % (ours.spacing_ns * 2),
                    _ => ours.spacing_ns.saturating_mul(random % 50),
                };
                clock.advance(Duration::from_nanos(step_ns));
                now += step_ns;
                match (ours.charge(state, now), theirs.check()) {
                    (Ok(next), Ok(snapshot)) => {
                        state = next;
                        prop_assert_eq!(ours.remaining(state, now), snapshot.remaining_burst_capacity());
                    }
                    (Err(at), Err(until)) => {
                        let wait = until.wait_time_from(governor::clock::Clock::now(&clock));
                        prop_assert_eq!(u128::from(at - now), wait.as_nanos());
                        prop_assert_eq!(ours.remaining(state, now), 0);
                    }
                    (ours, theirs) => prop_assert!(false, "at {}: {:?}, but governor {:?}", now, ours, theirs),
                }
            }
        }

        /// What is left is exactly how many pass.
        #[test]
        fn what_remains_passes(
            requests in 1u32..50, burst in 1u32..50, spent in 0u32..60, rest_ns in 0u64..5_000_000_000,
        ) {
            let quota = Quota::new(Rule::new(requests, 7, burst, 0).expect("in range")).expect("on");
            let mut state = State::default();
            for _ in 0..spent {
                state = quota.charge(state, 1).unwrap_or(state);
            }
            let (now, mut passed) = (1 + rest_ns, 0);
            let remaining = quota.remaining(state, now);
            while let Ok(next) = quota.charge(state, now) {
                (state, passed) = (next, passed + 1);
            }
            prop_assert_eq!(passed, remaining);
        }
    }

    #[test]
    fn a_block_lasts_and_ends_however_often_one_knocks() {
        let quota = quota("2 per 2s, block 10s");
        let mut state = State::default();
        for _ in 0..2 {
            state = quota.charge(state, 0).expect("within the burst");
        }
        assert_eq!(quota.charge(state, 0), Err(NS_PER_S), "the third is too many");
        state = quota.refuse(state, 0);
        for now in [0, 5 * NS_PER_S, 10 * NS_PER_S - 1] {
            assert_eq!(quota.charge(state, now), Err(10 * NS_PER_S));
            assert_eq!(quota.remaining(state, now), 0);
            state = quota.refuse(state, now);
        }
        assert_eq!(quota.remaining(state, 10 * NS_PER_S), 2, "the rest has filled it again");
        assert!(quota.charge(state, 10 * NS_PER_S).is_ok());
    }

    #[test]
    fn without_a_block_a_breach_costs_nothing() {
        let quota = quota("1 per 1s");
        let state = quota.charge(State::default(), 0).expect("the first");
        assert_eq!(quota.refuse(state, 0), state);
        assert!(quota.charge(state, NS_PER_S).is_ok());
    }

    #[test]
    fn the_ends_of_the_clock_are_no_wrap() {
        let quota = quota("1000000 per 1s, burst 1000000, block 744h");
        let state = quota.charge(State::default(), u64::MAX).expect("it passes");
        assert_eq!(state.whole_at, u64::MAX);
        assert_eq!(quota.refuse(state, u64::MAX).blocked_until, u64::MAX);
        assert_eq!(Quota::new(Rule::OFF), None);
    }
}
