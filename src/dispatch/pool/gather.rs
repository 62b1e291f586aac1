//! Refusals in batches: a thread that refused a call, and has nothing else to do, lets further requests gather for a
//! moment before it looks for them. Each look of its own would take the core away from a tool for one refusal. At ten
//! times of what a core can do with calls of 2 ms, the goodput was 0.91 of the peak without the pause and 0.94 with one
//! of 500 us (`cargo bench --bench experiments -- overload`, with `pool.refusal_gather_us` of 0 and of 500). When a
//! call is refused is the pool's business.

use std::{cell::Cell, thread, time::Duration};

/// The queue must hold work for so many times the pause: it may not run dry while what would fill it gathers.
const QUEUED_TIMES_MIN: u32 = 4;

thread_local! {
    /// How long this thread pauses before it waits for the next event.
    static PAUSE: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// A call was refused on this thread, while the queue held work for so long, as far as that is known.
pub(super) fn after_refusal(pause: Duration, queued: Option<Duration>) {
    if queued.is_some_and(|queued| queued >= QUEUED_TIMES_MIN * pause) {
        PAUSE.set(pause);
    }
}

/// To be called by an I/O thread that has nothing left to do, before it waits for events.
pub(crate) fn before_wait() {
    let pause = PAUSE.take();
    if !pause.is_zero() {
        thread::sleep(pause);
    }
}

/// What this thread would pause, forgotten by being asked for.
#[cfg(test)]
pub(super) fn pause() -> Duration {
    PAUSE.take()
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn only_a_queue_that_lasts_lets_requests_gather() {
        for (queued, paused) in [
            (None, Duration::ZERO),
            (Some(Duration::ZERO), Duration::ZERO),
            (Some(3 * MS), Duration::ZERO),
            (Some(4 * MS), MS),
            (Some(Duration::from_secs(3600)), MS),
        ] {
            after_refusal(MS, queued);
            assert_eq!(pause(), paused, "{queued:?}");
        }
    }

    #[test]
    fn a_pause_is_made_once() {
        after_refusal(MS, Some(4 * MS));
        before_wait();
        assert_eq!(pause(), Duration::ZERO);
    }

    #[test]
    fn without_a_pause_there_is_none() {
        after_refusal(Duration::ZERO, Some(MS));
        assert_eq!(pause(), Duration::ZERO);
    }
}
