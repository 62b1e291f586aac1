//! One connection, whatever is spoken on it: what is noted of it, and its end when it idles, stalls or the server drains.
//! How requests are served on it is `http1`'s and `http2`'s business, and how its bytes are watched is `watched`'s.
//!
//! hyper's own header timer counts idle time too and makes a timer for each request. Here one timer serves the whole
//! life of a connection: requests and bytes only note when they came, and the timer looks at the notes when it fires.

use std::{
    future::{Future, poll_fn},
    net::IpAddr,
    pin::{Pin, pin},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    task::{Poll, Waker},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use rustix::time::{ClockId, clock_gettime};
use rustls::pki_types::CertificateDer;
use tokio::{
    sync::Notify,
    time::{Instant as TimerInstant, sleep_until},
};

use crate::{
    front::{Front, gate::Visit, pressure::Level},
    identity::Identity,
};

/// From the wish to end a connection to its end when no request is on it: a request may lie in the kernel, unread.
const LAST_BYTES: Duration = Duration::from_millis(50);
/// The same for one with streams (HTTP/2), whose client answers before it is over.
const LAST_FRAMES: Duration = Duration::from_secs(1);
/// A note that was not made.
pub(super) const NEVER: u64 = 0;

/// What is known of one connection, shared by those who watch it and those who serve it.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) front: Arc<Front>,
    pub(crate) peer: IpAddr,
    pub(crate) visit: Visit,
    opened: Instant,
    opened_coarse_ns: u64,
    /// Requests that are not over.
    busy: AtomicU32,
    // Nanoseconds since `opened`, plus one, or NEVER.
    head_began: AtomicU64,
    last_used: AtomicU64,
    pub(super) write_stalled: AtomicU64,
    waker: Mutex<Option<Waker>>,
    /// Told with `waker`, for those who wait beside the connection's task: streams, and what it begins with.
    pub(super) woken: Notify,
    /// It is to end after what it is at.
    is_ending: AtomicBool,
    /// Whose certificate was shown, when one was.
    certified: OnceLock<Certified>,
}

/// What a client's certificate said.
#[derive(Debug)]
struct Certified {
    identity: Arc<Identity>,
    /// The certificates themselves, the client's own first.
    chain: Box<[CertificateDer<'static>]>,
    /// They would not be taken any more.
    is_disowned: AtomicBool,
}

/// A request being served. Its end is noted on drop.
#[derive(Debug)]
pub(crate) struct Busy {
    conn: Arc<Connection>,
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.conn.busy.fetch_sub(1, Relaxed);
        self.conn.last_used.store(self.conn.note(), Relaxed);
    }
}

/// What to do with a connection.
enum Verdict {
    Close(&'static str),
    LookAgain(Instant),
}

/// How far a connection is with ending for a drain.
#[derive(Clone, Copy, PartialEq)]
enum HangUp {
    NotAsked,
    /// What has been sent by now is still read.
    At(Instant),
    /// hyper ends the connection after the request that it is at.
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

    /// Tells hyper, once, and goes on from there.
    fn tell<S: Served>(self, served: Pin<&mut S>, now: Instant) -> Self {
        if !matches!(self, Self::ToldUntil(_)) {
            served.hang_up();
        }
        if S::HAS_STREAMS { Self::ToldUntil(now + LAST_FRAMES) } else { Self::Told }
    }
}

/// What hyper makes of a connection.
pub(super) trait Served: Future<Output = hyper::Result<()>> {
    /// Whether it may have many requests at once, and none for a while without being over.
    const HAS_STREAMS: bool;

    /// Ends it after what it is at.
    fn hang_up(self: Pin<&mut Self>);
}

impl Connection {
    pub(crate) fn new(front: Arc<Front>, peer: IpAddr, now: Instant) -> Self {
        Self {
            visit: Visit::of(&front, peer),
            front,
            peer,
            opened: now,
            opened_coarse_ns: coarse_ns(),
            busy: AtomicU32::new(0),
            head_began: AtomicU64::new(NEVER),
            last_used: AtomicU64::new(1),
            write_stalled: AtomicU64::new(NEVER),
            waker: Mutex::default(),
            woken: Notify::new(),
            is_ending: AtomicBool::new(false),
            certified: OnceLock::new(),
        }
    }

    /// Whose certificate was shown.
    pub(crate) fn certified(&self) -> Option<&Arc<Identity>> {
        self.certified.get().map(|certified| &certified.identity)
    }

    /// The certificates that were shown.
    pub(crate) fn chain(&self) -> Option<&[CertificateDer<'static>]> {
        self.certified.get().map(|certified| &*certified.chain)
    }

    /// Notes whose certificate was shown. Said once, before the first request.
    pub(crate) fn certify(&self, identity: Identity, chain: &[CertificateDer<'static>]) {
        let (identity, chain) = (Arc::new(identity), chain.into());
        let _ = self.certified.set(Certified { identity, chain, is_disowned: AtomicBool::new(false) });
    }

    /// The certificates that were shown are taken no more: what runs goes on to its end, and nothing new begins.
    pub(crate) fn disown(&self) {
        if let Some(certified) = self.certified.get()
            && !certified.is_disowned.swap(true, Relaxed)
        {
            self.end_soon();
        }
    }

    pub(super) fn is_disowned(&self) -> bool {
        self.certified.get().is_some_and(|certified| certified.is_disowned.load(Relaxed))
    }

    /// Waits until the certificates are taken no more.
    pub(super) async fn disowned(&self) {
        loop {
            let mut woken = pin!(self.woken.notified());
            woken.as_mut().enable(); // before the look, so that nothing said between it and the wait is missed
            if self.is_disowned() {
                return;
            }
            woken.await;
        }
    }

    /// Waits for what the connection begins with, as long as the server has time for it.
    ///
    /// # Errors
    /// Why it is not waited for any longer.
    pub(crate) async fn opening<T>(
        &self,
        opening: impl Future<Output = T>,
        limit: Duration,
    ) -> Result<T, &'static str> {
        let mut opening = pin!(opening);
        let mut end = pin!(sleep_until((self.opened + limit).into()));
        loop {
            let woken = self.woken.notified(); // first, so that nothing said between the look and the wait is missed
            if self.front.router.drain.is_hanging_up() {
                let last = (TimerInstant::now() + LAST_BYTES).min(end.deadline());
                end.as_mut().reset(last);
            }
            if self.is_given_up() {
                return Err("idle, and memory is short");
            }
            tokio::select! {
                biased;
                opened = &mut opening => return Ok(opened),
                () = &mut end => return Err("it did not begin in time"),
                () = woken => {}
            }
        }
    }

    /// Has it end after what it is at, where no header can say so.
    pub(super) fn end_soon(&self) {
        if !self.is_ending.swap(true, Relaxed) {
            self.wake();
        }
    }

    /// Makes the connection look at the drain's state.
    pub(crate) fn wake(&self) {
        let waker = self.waker.lock().clone();
        if let Some(waker) = waker {
            waker.wake();
        }
        self.woken.notify_waiters();
    }

    /// A request's head has come.
    pub(crate) fn begin(self: &Arc<Self>) -> Busy {
        self.busy.fetch_add(1, Relaxed);
        self.head_began.store(NEVER, Relaxed);
        Busy { conn: Arc::clone(self) }
    }

    /// Bytes have come, or the end: between two requests, they are the next one's head.
    pub(crate) fn note_read(&self, has_come: bool) {
        if has_come && self.busy.load(Relaxed) == 0 && self.head_began.load(Relaxed) == NEVER {
            self.head_began.store(self.note(), Relaxed);
        }
    }

    /// The present moment, to a tick of the kernel: what is measured by it are seconds, and requests note it often.
    pub(super) fn note(&self) -> u64 {
        coarse_ns().saturating_sub(self.opened_coarse_ns) + 1
    }

    pub(super) fn moment(&self, note: u64) -> Instant {
        self.opened + Duration::from_nanos(note - 1)
    }

    /// When the connection must be looked at next, as far as can be said now.
    fn due(&self) -> Option<Instant> {
        let began = self.head_began.load(Relaxed);
        (began != NEVER).then(|| self.moment(began) + self.front.limits.header_timeout())
    }

    /// Whether nothing is on it.
    fn is_quiet(&self) -> bool {
        self.busy.load(Relaxed) == 0
            && self.head_began.load(Relaxed) == NEVER
            && self.write_stalled.load(Relaxed) == NEVER
    }

    /// Whether nothing is on it while memory is so short that such connections are given up.
    fn is_given_up(&self) -> bool {
        self.front.pressure.level() >= Level::KeepAlive && self.is_quiet()
    }

    fn verdict(&self, now: Instant) -> Verdict {
        let limits = &self.front.limits;
        let stalled = self.write_stalled.load(Relaxed);
        if stalled != NEVER && now >= self.moment(stalled) + limits.write_timeout() {
            return Verdict::Close("the client does not read");
        }
        if self.busy.load(Relaxed) > 0 || stalled != NEVER {
            return Verdict::LookAgain(now + limits.header_timeout().min(limits.write_timeout()));
        }
        let (at, reason) = match self.due() {
            Some(due) => (due, "its request head came too slowly"),
            None => (self.moment(self.last_used.load(Relaxed)) + limits.idle_timeout(), "idle"),
        };
        if now >= at { Verdict::Close(reason) } else { Verdict::LookAgain(at) }
    }

    fn remember(&self, waker: &Waker) {
        let mut own = self.waker.lock();
        if !own.as_ref().is_some_and(|w| w.will_wake(waker)) {
            *own = Some(waker.clone());
        }
    }
}

/// The clock that the kernel keeps for whoever wants the time cheaply: some milliseconds late, and a fifth of the cost.
fn coarse_ns() -> u64 {
    let now = clock_gettime(ClockId::MonotonicCoarse);
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}

/// Serves a connection until it ends.
pub(super) async fn drive<S: Served>(conn: &Connection, served: S) {
    let mut served = pin!(served);
    let first_look = conn.opened + conn.front.limits.idle_timeout();
    let mut timer = pin!(sleep_until(first_look.into()));
    let mut hang_up = HangUp::NotAsked;
    let ended = poll_fn(|cx| {
        conn.remember(cx.waker());
        loop {
            if let Poll::Ready(result) = served.as_mut().poll(cx) {
                return Poll::Ready(result.map_err(|error| error.to_string()));
            }
            let is_to_end = || conn.front.router.drain.is_hanging_up() || conn.is_ending.load(Relaxed);
            if hang_up == HangUp::NotAsked && is_to_end() {
                let at = Instant::now() + LAST_BYTES;
                hang_up = HangUp::At(at);
                timer.as_mut().reset(at.into());
            }
            if conn.is_given_up() {
                return Poll::Ready(Err("closed: idle, and memory is short".to_owned()));
            }
            if let Some(due) = conn.due().map(TimerInstant::from).filter(|due| *due < timer.deadline()) {
                timer.as_mut().reset(due);
            }
            if timer.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            let now = Instant::now();
            if hang_up.is_due(now) {
                if matches!(hang_up, HangUp::ToldUntil(_)) && conn.is_quiet() {
                    return Poll::Ready(Err("closed: it was told to end, and nothing is on it".to_owned()));
                }
                hang_up = hang_up.tell(served.as_mut(), now);
            }
            match conn.verdict(now) {
                // Who has streams is told first, since a request may be on its way.
                Verdict::Close(_) if S::HAS_STREAMS && conn.is_quiet() && hang_up == HangUp::NotAsked => {
                    hang_up = hang_up.tell(served.as_mut(), now);
                    timer.as_mut().reset(hang_up.or_before(now + LAST_FRAMES).into());
                }
                Verdict::Close(reason) if !matches!(hang_up, HangUp::ToldUntil(_)) || !conn.is_quiet() => {
                    return Poll::Ready(Err(format!("closed: {reason}")));
                }
                Verdict::Close(_) => timer.as_mut().reset(hang_up.or_before(now + LAST_FRAMES).into()),
                Verdict::LookAgain(at) => timer.as_mut().reset(hang_up.or_before(at).into()),
            }
        }
    });
    if let Err(reason) = ended.await {
        tracing::debug!(peer = %conn.peer, reason, "a connection ended");
    }
}
