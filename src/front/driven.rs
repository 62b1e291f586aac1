//! A connection being served, to its end: what serves it goes on, and a timer sees to it that it ends when it idles,
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

use super::connection::{Connection, LAST_BYTES, NEVER, SHORT, Verdict};

/// From the wish to end a connection with streams (HTTP/2) to its end when nothing is on it: its client answers before it
/// is over.
const LAST_FRAMES: Duration = Duration::from_secs(1);
/// A timer is asked again so long before it is due, as notes are late by some milliseconds.
const TIMER_MARGIN_NS: u64 = 100_000_000;

/// What serves a connection.
pub(crate) trait Served: Future<Output = hyper::Result<()>> + Unpin {
    /// Whether it may have many requests at once, and none for a while without being over.
    const HAS_STREAMS: bool;

    /// Ends it after what it is at.
    fn hang_up(&mut self, conn: &Connection);
}

/// A connection and what serves it. Written out and not an `async fn`, whose layers each keep a state of their own: with
/// thousands of connections every line of memory that a request touches comes from afar, and here they are few.
pub(crate) struct Driven<S> {
    conn: Arc<Connection>,
    /// Until then the timer has nothing to say and will wake this task, so that it need not be asked each time.
    armed_until: u64,
    /// Who is to be woken, as the connection knows it.
    known: Option<Waker>,
    hang_up: HangUp,
    timer: Pin<Box<Sleep>>,
    served: S,
}

/// How far a connection is with ending for a drain.
#[derive(Clone, Copy, PartialEq)]
enum HangUp {
    NotAsked,
    /// What has been sent by now is still read.
    At(Instant),
    /// Who serves the connection ends it after the request that it is at.
    Told,
    /// The same for one with streams. From then on it is closed as soon as nothing is on it.
    ToldUntil(Instant),
}

impl HangUp {
    fn is_due(self, now: Instant) -> bool {
        matches!(self, Self::At(at) | Self::ToldUntil(at) if now >= at)
    }

    fn or_before(self, other: Instant) -> Instant {
        if let Self::At(at) | Self::ToldUntil(at) = self { at.min(other) } else { other }
    }
}

impl<S: Served> Driven<S> {
    pub(super) fn new(conn: Arc<Connection>, served: S) -> Self {
        let timer = Box::pin(sleep_until(conn.idle_until().into()));
        Self { conn, armed_until: NEVER, known: None, hang_up: HangUp::NotAsked, timer, served }
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

    /// Tells who serves it, once, and goes on from there.
    fn tell(&mut self, now: Instant) {
        if !matches!(self.hang_up, HangUp::ToldUntil(_)) {
            self.served.hang_up(&self.conn);
        }
        self.hang_up = if S::HAS_STREAMS { HangUp::ToldUntil(now + LAST_FRAMES) } else { HangUp::Told };
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
        if self.hang_up.is_due(now) {
            if matches!(self.hang_up, HangUp::ToldUntil(_)) && self.conn.is_quiet() {
                return Poll::Ready("it was told to end, and nothing is on it");
            }
            self.tell(now);
        }
        match self.conn.verdict(now) {
            // Who has streams is told first, since a request may be on its way.
            Verdict::Close(_) if S::HAS_STREAMS && self.conn.is_quiet() && self.hang_up == HangUp::NotAsked => {
                self.tell(now);
                self.set(self.hang_up.or_before(now + LAST_FRAMES));
            }
            Verdict::Close(reason) if !matches!(self.hang_up, HangUp::ToldUntil(_)) || !self.conn.is_quiet() => {
                return Poll::Ready(reason);
            }
            Verdict::Close(_) => self.set(self.hang_up.or_before(now + LAST_FRAMES)),
            Verdict::LookAgain(at) => self.set(self.hang_up.or_before(at)),
        }
        cx.waker().wake_by_ref(); // who serves it may have been told something, and the timer is asked
        Poll::Pending
    }
}

impl<S: Served> Future for Driven<S> {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.be_known(cx.waker());
        if let Poll::Ready(ended) = Pin::new(&mut self.served).poll(cx) {
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
