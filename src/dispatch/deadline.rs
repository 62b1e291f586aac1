//! A future with a deadline whose timer exists only once the future has to wait, so that a call that is answered at
//! once pays nothing for having one.

use std::{
    future::{Future, poll_fn},
    pin::{Pin, pin},
    time::{Duration, Instant},
};

use tokio::time::{Sleep, sleep_until};

use crate::call::Deadline;

/// The future's output, or `None` when the deadline passes first.
pub(crate) async fn until<F: Future>(deadline: Deadline, future: F) -> Option<F::Output> {
    until_extended(deadline, || Duration::ZERO, future).await
}

/// The same for work that may wait for its client: `waited` says for how long it has, which is not counted.
pub(crate) async fn until_extended<F: Future>(
    deadline: Deadline,
    waited: impl Fn() -> Duration,
    future: F,
) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut timer: Option<Pin<Box<Sleep>>> = None;
    poll_fn(|cx| {
        if let std::task::Poll::Ready(output) = future.as_mut().poll(cx) {
            return std::task::Poll::Ready(Some(output));
        }
        let timer = timer.get_or_insert_with(|| Box::pin(sleep_until(deadline.at().into())));
        while timer.as_mut().poll(cx).is_ready() {
            let at = deadline.at() + waited();
            if Instant::now() >= at {
                return std::task::Poll::Ready(None);
            }
            timer.as_mut().reset(at.into());
        }
        std::task::Poll::Pending
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn what_is_ready_wins_over_a_deadline_that_has_passed() {
        let past = Deadline::after(Instant::now(), 0);
        assert_eq!(until(past, std::future::ready(7)).await, Some(7));
        assert_eq!(until(past, std::future::pending::<()>()).await, None);
        let soon = Deadline::after(Instant::now(), 10_000);
        assert_eq!(until(soon, tokio::time::sleep(Duration::from_millis(1))).await, Some(()));
    }
}
