//! How many calls of one tool run at once: a fixed number, or one that follows what the tool bears. Calls beyond it wait
//! in turn, a line for each caller, up to their deadlines; when too many wait already they are refused.

use std::{sync::Arc, time::Instant};

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::{
    call::{Deadline, Share},
    dispatch::{adaptive::Vegas, deadline::until, lines::Lines},
    error::CallError,
    tool::Concurrency,
};

/// What a refused caller is told to wait.
const RETRY_AFTER_S: u32 = 1;

/// The door of one tool.
#[derive(Debug)]
pub(crate) struct Bulkhead(Arc<Door>);

#[derive(Debug)]
struct Door {
    waiting_max: usize,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    inside: usize,
    limit: usize,
    waiting: Lines<oneshot::Sender<Inside>>,
    vegas: Option<Vegas>,
}

/// A place inside, free again on drop.
#[derive(Debug)]
pub(crate) struct Inside {
    door: Arc<Door>,
    since: Instant,
}

impl Bulkhead {
    pub(crate) fn new(concurrency: Concurrency) -> Self {
        let Concurrency { max, waiting_max, is_adaptive } = concurrency;
        let vegas = is_adaptive.then(|| Vegas::new(max));
        let limit = vegas.as_ref().map_or(max, Vegas::limit);
        Self(Arc::new(Door {
            waiting_max,
            state: Mutex::new(State { inside: 0, limit, waiting: Lines::default(), vegas }),
        }))
    }

    /// Takes a place, or waits for one.
    ///
    /// # Errors
    /// [`CallError::Overloaded`] when too many wait, [`CallError::DeadlineBeforeStart`] when there was none in time.
    pub(crate) async fn enter(&self, caller: Share, deadline: Deadline) -> Result<Inside, CallError> {
        let waiting = {
            let now = Instant::now();
            let mut state = self.0.state.lock();
            if state.inside < state.limit {
                state.inside += 1;
                return Ok(Inside { door: Arc::clone(&self.0), since: now });
            }
            if state.waiting.len() >= self.0.waiting_max && !state.forget_those_who_left() {
                // Who has most waiting makes room, and hears so by the end of the channel.
                if state.waiting.make_room(caller).is_none() {
                    return Err(CallError::Overloaded { retry_after_s: RETRY_AFTER_S });
                }
            }
            let (place, waiting) = oneshot::channel();
            state.waiting.push(caller, now, place);
            waiting
        };
        match until(deadline, waiting).await {
            Some(Ok(inside)) => Ok(inside),
            Some(Err(_)) => Err(CallError::Overloaded { retry_after_s: RETRY_AFTER_S }),
            None => Err(CallError::DeadlineBeforeStart),
        }
    }

    /// How many may be inside, how many are, and how many wait.
    pub(crate) fn load(&self) -> (usize, usize, usize) {
        let mut state = self.0.state.lock();
        state.forget_those_who_left();
        (state.limit, state.inside, state.waiting.len())
    }
}

impl State {
    /// Whether that made room.
    fn forget_those_who_left(&mut self) -> bool {
        let before = self.waiting.len();
        self.waiting.retain(|place| !place.is_closed());
        self.waiting.len() < before
    }
}

impl Inside {
    /// The call ran to its end, in the time that the tool takes.
    pub(crate) fn served(&self, now: Instant) {
        let mut state = self.door.state.lock();
        let inside = state.inside;
        if let Some(vegas) = &mut state.vegas {
            vegas.observe(now.saturating_duration_since(self.since), inside);
            state.limit = vegas.limit();
        }
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        let mut state = self.door.state.lock();
        state.inside -= 1;
        while state.inside < state.limit {
            let Some((_, next)) = state.waiting.pop() else { return };
            if next.is_closed() {
                continue;
            }
            state.inside += 1;
            let place = Self { door: Arc::clone(&self.door), since: Instant::now() };
            drop(state);
            // Who left in this moment gives the place back, by its drop.
            drop(next.send(place));
            state = self.door.state.lock();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    const A: Share = Share::new(1, 1);
    const B: Share = Share::new(2, 1);

    fn bulkhead(max: usize, waiting_max: usize) -> Bulkhead {
        Bulkhead::new(Concurrency { max, waiting_max, is_adaptive: false })
    }

    fn soon() -> Deadline {
        Deadline::after(Instant::now(), 60_000)
    }

    /// Polls once, so that a call waits from here on.
    async fn begun<F: Future + Unpin>(mut future: F) -> F {
        poll_fn(|cx| {
            assert!(std::pin::Pin::new(&mut future).poll(cx).is_pending());
            std::task::Poll::Ready(())
        })
        .await;
        future
    }

    #[tokio::test]
    async fn so_many_run_so_many_wait_and_the_rest_is_refused() {
        let tool = bulkhead(1, 1);
        let inside = tool.enter(A, soon()).await.expect("a place");
        let waiting = begun(Box::pin(tool.enter(A, soon()))).await;
        assert_eq!(tool.load(), (1, 1, 1));
        assert!(matches!(tool.enter(A, soon()).await, Err(CallError::Overloaded { .. })));
        drop(inside);
        let inside = waiting.await.expect("the place of the first");
        assert_eq!(tool.load(), (1, 1, 0));
        drop(inside);
        assert_eq!(tool.load(), (1, 0, 0));
    }

    #[tokio::test]
    async fn who_leaves_while_waiting_takes_no_place() {
        let tool = bulkhead(1, 1);
        let inside = tool.enter(A, soon()).await.expect("a place");
        drop(begun(Box::pin(tool.enter(A, soon()))).await);
        let waiting = begun(Box::pin(tool.enter(A, soon()))).await;
        drop(inside);
        drop(waiting.await.expect("a place"));
        assert_eq!(tool.load(), (1, 0, 0));
        let inside = tool.enter(A, soon()).await.expect("a place");
        drop(begun(Box::pin(tool.enter(A, soon()))).await);
        assert_eq!(tool.load(), (1, 1, 0), "who has left is not counted");
        drop(inside);
        let past = Deadline::after(Instant::now(), 0);
        let inside = tool.enter(A, soon()).await.expect("a place");
        assert!(matches!(tool.enter(A, past).await, Err(CallError::DeadlineBeforeStart)));
        drop(inside);
        assert_eq!(tool.load(), (1, 0, 0));
    }

    #[tokio::test]
    async fn a_caller_with_many_waiting_makes_room_for_one_with_none() {
        let tool = bulkhead(1, 2);
        let inside = tool.enter(A, soon()).await.expect("a place");
        let first = begun(Box::pin(tool.enter(A, soon()))).await;
        let second = begun(Box::pin(tool.enter(A, soon()))).await;
        let other = begun(Box::pin(tool.enter(B, soon()))).await;
        assert!(matches!(second.await, Err(CallError::Overloaded { .. })));
        drop(inside);
        drop(first.await.expect("a place"));
        drop(other.await.expect("a place"));
    }
}
