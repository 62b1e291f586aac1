//! A connection on its way to its end: what is spoken on it goes on, and a timer sees to it that it ends when it idles,
//! stalls or the server drains. What it judges by is noted in `connection`; what is spoken is `http1`'s and `http2`'s
//! business.
//!
//! hyper's own header timer counts idle time too and makes a timer for each request. Here one timer serves the whole
//! life of a connection: requests and bytes only note when they came, and the timer looks at the notes when it fires.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use tokio::{
    task::coop::has_budget_remaining,
    time::{Instant as TimerInstant, Sleep, sleep_until},
};

use super::{
    connection::{Connection, LAST_BYTES, NEVER, SHORT, Verdict},
    unread::ENDING_TIME_MAX,
};

/// From the wish to end a connection with streams (HTTP/2) to its end when nothing is on it: its client answers before it
/// is over.
const LAST_FRAMES: Duration = Duration::from_secs(1);
/// A timer is asked again so long before it is due, as notes are late by some milliseconds.
const TIMER_MARGIN_NS: u64 = 100_000_000;

/// What is spoken on a connection, as a future that ends with it.
pub(crate) trait Protocol: Future<Output = hyper::Result<()>> + Unpin {
    /// Whether it may have many requests at once, and none for a while without being over.
    const HAS_STREAMS: bool;

    /// Has it end after what it is at.
    fn hang_up(&mut self, conn: &Connection);

    /// Ends it while nothing is on it but what has come of a request. What still comes is taken and thrown away (see
    /// `unread`), so that a client whose request is on its way sees an end and no reset. Ready when that is over.
    fn end(&mut self, conn: &Arc<Connection>);
}

/// A connection and what is spoken on it. Written out and not an `async fn`, whose layers each keep a state of their own:
/// with thousands of connections every line of memory that a request touches comes from afar, and here they are few.
pub(crate) struct Driven<P> {
    conn: Arc<Connection>,
    /// Until then the timer has nothing to say and will wake this task, so that it need not be asked each time.
    armed_until: u64,
    /// Who is to be woken, as the connection knows it.
    known: Option<Waker>,
    hang_up: HangUp,
    timer: Pin<Box<Sleep>>,
    protocol: P,
}

/// How far a connection is with being hung up.
#[derive(Clone, Copy, Debug, PartialEq)]
enum HangUp {
    NotAsked,
    /// What has been sent by then is still read.
    At(Instant),
    /// It ends with the request that it is at.
    Done,
    /// The same for one with streams. From then on it is closed as soon as nothing is on it.
    DoneUntil(Instant),
    /// It has had its time, and is over when its client has seen that or the timer fires.
    Ending,
}

/// What is done when the timer has fired.
#[derive(Debug, PartialEq)]
enum Step {
    Close(&'static str),
    Drop(&'static str),
    /// It goes on, and is looked at again then.
    GoOn {
        hangs_up: bool,
        until: Instant,
    },
}

impl HangUp {
    /// The next step, by what is to be done with the connection otherwise.
    fn step(&mut self, verdict: Verdict, is_quiet: bool, has_streams: bool, now: Instant) -> Step {
        let is_done = matches!(self, Self::DoneUntil(_));
        let is_due = matches!(self, Self::At(at) | Self::DoneUntil(at) if now >= *at);
        if is_due && is_done && is_quiet {
            return Step::Close("it was told to end, and nothing is on it");
        }
        // Who has streams is told first, since a request may be on its way.
        let is_idle = matches!(verdict, Verdict::Close(_)) && has_streams && is_quiet && *self == Self::NotAsked;
        if is_due || is_idle {
            *self = if has_streams { Self::DoneUntil(now + LAST_FRAMES) } else { Self::Done };
        }
        let until = match verdict {
            Verdict::Close(reason) if !matches!(self, Self::DoneUntil(_)) || !is_quiet => return Step::Close(reason),
            Verdict::Close(_) => now + LAST_FRAMES,
            Verdict::Drop(reason) => return Step::Drop(reason),
            Verdict::LookAgain(at) => at,
        };
        Step::GoOn { hangs_up: (is_due || is_idle) && !is_done, until: self.or_before(until) }
    }

    fn or_before(self, other: Instant) -> Instant {
        if let Self::At(at) | Self::DoneUntil(at) = self { at.min(other) } else { other }
    }
}

impl<P: Protocol> Driven<P> {
    pub(super) fn new(conn: Arc<Connection>, protocol: P) -> Self {
        let timer = Box::pin(sleep_until(conn.idle_until().into()));
        Self { conn, armed_until: NEVER, known: None, hang_up: HangUp::NotAsked, timer, protocol }
    }

    /// Has the connection know whom to wake.
    fn be_known(&mut self, waker: &Waker) {
        if !self.known.as_ref().is_some_and(|known| known.will_wake(waker)) {
            self.known = Some(waker.clone());
            self.conn.remember(waker);
            self.armed_until = NEVER; // the timer would wake who was known before
        }
    }

    /// Sets the timer, which is asked again then.
    fn set(&mut self, at: Instant) {
        self.timer.as_mut().reset(at.into());
        self.armed_until = NEVER;
    }

    /// Looks whether it is to end. Ready with why it ends now.
    fn poll_end(&mut self, cx: &mut Context<'_>) -> Poll<&'static str> {
        if self.hang_up == HangUp::NotAsked && self.conn.is_to_end() {
            let at = Instant::now() + LAST_BYTES;
            self.hang_up = HangUp::At(at);
            self.set(at);
        }
        let given_up_at = self.conn.given_up_at();
        if given_up_at.is_some_and(|at| at <= Instant::now()) {
            return Poll::Ready(SHORT);
        }
        if self.hang_up == HangUp::Ending {
            return self.timer.as_mut().poll(cx).map(|()| "its end took too long");
        }
        if let Some(due) =
            given_up_at.or_else(|| self.conn.due()).filter(|due| TimerInstant::from(*due) < self.timer.deadline())
        {
            self.set(due);
        }
        if self.conn.note() < self.armed_until {
            return Poll::Pending;
        }
        // A timer that is asked by a task whose turn is over does not hear who asked; the runtime asks again then.
        let is_heard = has_budget_remaining();
        if self.timer.as_mut().poll(cx).is_pending() {
            if is_heard {
                let deadline = self.conn.note_of(self.timer.deadline().into_std());
                self.armed_until = deadline.saturating_sub(TIMER_MARGIN_NS);
            }
            return Poll::Pending;
        }
        let now = Instant::now();
        match self.hang_up.step(self.conn.verdict(now), self.conn.is_quiet(), P::HAS_STREAMS, now) {
            Step::Drop(reason) => return Poll::Ready(reason),
            Step::Close(reason) => {
                tracing::debug!(peer = %self.conn.peer, reason, "a connection is ended");
                self.hang_up = HangUp::Ending;
                self.protocol.end(&self.conn);
                self.set(now + ENDING_TIME_MAX);
            }
            Step::GoOn { hangs_up, until } => {
                if hangs_up {
                    self.protocol.hang_up(&self.conn);
                }
                self.set(until);
            }
        }
        cx.waker().wake_by_ref(); // it may have been hung up, and the timer is asked
        Poll::Pending
    }
}

impl<P: Protocol> Future for Driven<P> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.be_known(cx.waker());
        if let Poll::Ready(ended) = Pin::new(&mut self.protocol).poll(cx) {
            if let Err(error) = ended {
                tracing::debug!(peer = %self.conn.peer, %error, "a connection ended");
            }
            return Poll::Ready(());
        }
        self.poll_end(cx).map(|reason| {
            tracing::debug!(peer = %self.conn.peer, reason, "a connection was closed");
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOLD: Step = Step::Close("it was told to end, and nothing is on it");

    fn go_on(hangs_up: bool, until: Instant) -> Step {
        Step::GoOn { hangs_up, until }
    }

    #[test]
    fn without_streams_it_is_hung_up_once_and_ends_by_itself() {
        let now = Instant::now();
        let (due, later) = (now + LAST_BYTES, now + LAST_BYTES * 100);
        let look = || Verdict::LookAgain(later);
        for is_quiet in [true, false] {
            let mut hang_up = HangUp::NotAsked;
            assert_eq!(hang_up.step(look(), is_quiet, false, now), go_on(false, later));
            hang_up = HangUp::At(due);
            assert_eq!(hang_up.step(look(), is_quiet, false, now), go_on(false, due), "what is on its way is read");
            assert_eq!(hang_up.step(look(), is_quiet, false, due), go_on(true, later));
            assert_eq!(hang_up, HangUp::Done);
            assert_eq!(hang_up.step(look(), is_quiet, false, later), go_on(false, later), "it was hung up before");
        }
    }

    #[test]
    fn without_streams_a_limit_closes_it_whatever_was_asked() {
        let now = Instant::now();
        for asked in [HangUp::NotAsked, HangUp::At(now), HangUp::At(now + LAST_BYTES), HangUp::Done] {
            for is_quiet in [true, false] {
                let mut hang_up = asked;
                assert_eq!(hang_up.step(Verdict::Close("why"), is_quiet, false, now), Step::Close("why"), "{asked:?}");
                assert_eq!(hang_up.step(Verdict::Drop("why"), is_quiet, false, now), Step::Drop("why"), "{asked:?}");
            }
        }
    }

    #[test]
    fn with_streams_it_is_closed_when_nothing_is_on_it_for_a_while() {
        let now = Instant::now();
        let (then, later) = (now + LAST_FRAMES, now + LAST_FRAMES * 100);
        let look = || Verdict::LookAgain(later);
        let mut hang_up = HangUp::At(now);
        assert_eq!(hang_up.step(look(), true, true, now), go_on(true, then));
        assert_eq!(hang_up.step(look(), true, true, now), go_on(false, then), "its client may answer until then");
        assert_eq!(hang_up.step(look(), false, true, then), go_on(false, then + LAST_FRAMES), "a stream is open");
        assert_eq!(hang_up.step(look(), true, true, then + LAST_FRAMES), TOLD);
    }

    #[test]
    fn with_streams_an_idle_one_is_hung_up_first_and_a_stalled_one_is_not() {
        let now = Instant::now();
        let then = now + LAST_FRAMES;
        let mut hang_up = HangUp::NotAsked;
        assert_eq!(hang_up.step(Verdict::Close("idle"), true, true, now), go_on(true, then));
        assert_eq!(hang_up.step(Verdict::Close("idle"), true, true, now), go_on(false, then));
        assert_eq!(hang_up.step(Verdict::Drop("stalled"), false, true, now), Step::Drop("stalled"));
        assert_eq!(hang_up.step(Verdict::Close("idle"), true, true, then), TOLD);
        assert_eq!(HangUp::NotAsked.step(Verdict::Drop("stalled"), false, true, now), Step::Drop("stalled"));
    }
}
