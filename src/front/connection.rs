//! One connection, whatever is spoken on it: what is noted of it, and what follows from that for its end, to which `driven`
//! brings it. How requests are served on it is `http1`'s and `http2`'s business, and how its bytes are watched is
//! `watched`'s.

use std::{
    future::Future,
    net::IpAddr,
    pin::pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    task::Waker,
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
pub(super) const LAST_BYTES: Duration = Duration::from_millis(50);
/// The first request of a connection is waited for so long when memory is short.
const FIRST_REQUEST: Duration = Duration::from_secs(1);
/// Between two looks at whether a connection with a request on it idles, at the least.
const BUSY_LOOK_MIN: Duration = Duration::from_millis(100);
/// A note that was not made.
pub(super) const NEVER: u64 = 0;
/// The note of the moment when it was opened: nothing has been on it since.
const OPENED: u64 = 1;

/// Why a connection ends that is given up.
pub(super) const SHORT: &str = "idle, and memory is short";

/// What to do with a connection.
pub(super) enum Verdict {
    /// It has had its time; its client may be about to send more.
    Close(&'static str),
    /// Its client takes nothing, so that an end could not be said either.
    Drop(&'static str),
    LookAgain(Instant),
}

/// What is known of one connection, shared by those who watch it and those who serve it.
#[derive(Debug)]
#[repr(C)] // what each request touches comes first and lies together: of thousands of connections it comes from afar
pub(crate) struct Connection {
    pub(crate) front: Arc<Front>,
    opened_coarse_ns: u64,
    // Nanoseconds since `opened`, plus one, or NEVER.
    head_began: AtomicU64,
    last_used: AtomicU64,
    write_stalled: AtomicU64,
    /// Requests that are not over.
    busy: AtomicU32,
    /// It is to end after what it is at.
    is_ending: AtomicBool,
    /// It ends after what it is at: no further request is taken.
    is_hung_up: AtomicBool,
    /// What comes is not for us any more.
    reads_no_more: AtomicBool,
    pub(crate) visit: Visit,
    /// Whose certificate was shown, when one was.
    certified: OnceLock<Box<Certified>>,
    pub(crate) peer: IpAddr,
    opened: Instant,
    waker: Mutex<Option<Waker>>,
    /// Told with `waker`, for those who wait beside the connection's task: streams, and what it begins with.
    pub(super) woken: Notify,
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

impl Connection {
    pub(crate) fn new(front: Arc<Front>, peer: IpAddr, now: Instant) -> Self {
        Self {
            visit: Visit::of(&front, peer),
            front,
            opened_coarse_ns: coarse_ns(),
            head_began: AtomicU64::new(NEVER),
            last_used: AtomicU64::new(OPENED),
            write_stalled: AtomicU64::new(NEVER),
            busy: AtomicU32::new(0),
            is_ending: AtomicBool::new(false),
            is_hung_up: AtomicBool::new(false),
            reads_no_more: AtomicBool::new(false),
            certified: OnceLock::new(),
            peer,
            opened: now,
            waker: Mutex::default(),
            woken: Notify::new(),
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
        let _ = self.certified.set(Box::new(Certified { identity, chain, is_disowned: AtomicBool::new(false) }));
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
            if let Some(at) = self.given_up_at() {
                if at <= Instant::now() {
                    return Err(SHORT);
                }
                let sooner = end.deadline().min(at.into());
                end.as_mut().reset(sooner);
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

    pub(super) fn hang_up(&self) {
        self.is_hung_up.store(true, Relaxed);
    }

    pub(super) fn is_hung_up(&self) -> bool {
        self.is_hung_up.load(Relaxed)
    }

    /// What comes from now on is thrown away, and waited for before it ends: the client may be sending.
    pub(super) fn read_no_more(&self) {
        self.reads_no_more.store(true, Relaxed);
    }

    pub(super) fn reads_no_more(&self) -> bool {
        self.reads_no_more.load(Relaxed)
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

    /// Bytes have come, or the end: between two requests, they are the next one's head. While an answer is on its way they
    /// wait for it, however long that takes.
    pub(crate) fn note_read(&self, has_come: bool) {
        let is_between = self.busy.load(Relaxed) == 0 && self.write_stalled.load(Relaxed) == NEVER;
        if has_come && is_between && self.head_began.load(Relaxed) == NEVER {
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

    pub(super) fn note_of(&self, moment: Instant) -> u64 {
        u64::try_from(moment.saturating_duration_since(self.opened).as_nanos()).unwrap_or(u64::MAX)
    }

    /// When the connection must be looked at next, as far as can be said now.
    pub(super) fn due(&self) -> Option<Instant> {
        let limits = &self.front.limits;
        let after = |note: u64, limit| (note != NEVER).then(|| self.moment(note) + limit);
        let head = after(self.head_began.load(Relaxed), limits.header_timeout());
        let write = after(self.write_stalled.load(Relaxed), limits.write_timeout());
        head.into_iter().chain(write).min()
    }

    /// A write waits for the client, or does not any more.
    pub(super) fn note_stalled(&self, is_stalled: bool) {
        let stalled = &self.write_stalled;
        match (is_stalled, stalled.load(Relaxed)) {
            (true, NEVER) => stalled.store(self.note(), Relaxed),
            (false, since) if since != NEVER => {
                stalled.store(NEVER, Relaxed);
                self.last_used.store(self.note(), Relaxed); // its client was at it until now
            }
            _ => {}
        }
    }

    /// Whether some of a request's head has come, and not all of it.
    pub(super) fn is_in_head(&self) -> bool {
        self.head_began.load(Relaxed) != NEVER
    }

    /// Whether nothing is on it.
    pub(super) fn is_quiet(&self) -> bool {
        self.busy.load(Relaxed) == 0 && !self.is_in_head() && self.write_stalled.load(Relaxed) == NEVER
    }

    /// When it is given up, while nothing is on it and memory is so short that such connections end: at once, but for who
    /// is new, whose request is on its way and gets an answer.
    pub(super) fn given_up_at(&self) -> Option<Instant> {
        if self.front.pressure.level() < Level::KeepAlive || !self.is_quiet() {
            return None;
        }
        let is_new = self.last_used.load(Relaxed) == OPENED;
        Some(if is_new { self.opened + FIRST_REQUEST } else { self.opened })
    }

    /// Whether it is to end after what it is at.
    pub(super) fn is_to_end(&self) -> bool {
        self.front.router.drain.is_hanging_up() || self.is_ending.load(Relaxed)
    }

    /// When it has idled too long, if nothing comes.
    pub(super) fn idle_until(&self) -> Instant {
        self.moment(self.last_used.load(Relaxed)) + self.front.limits.idle_timeout()
    }

    /// What is to be done with it, as it stands.
    pub(super) fn verdict(&self, now: Instant) -> Verdict {
        let limits = &self.front.limits;
        let stalled = self.write_stalled.load(Relaxed);
        if stalled != NEVER && now >= self.moment(stalled) + limits.write_timeout() {
            return Verdict::Drop("the client does not read");
        }
        let began = self.head_began.load(Relaxed);
        if began != NEVER && now >= self.moment(began) + limits.header_timeout() {
            return Verdict::Close("its request head came too slowly");
        }
        if self.busy.load(Relaxed) > 0 || stalled != NEVER {
            // It may be over at any moment, and idle from then on.
            let shortest = limits.header_timeout().min(limits.write_timeout()).min(limits.idle_timeout());
            return Verdict::LookAgain(now + shortest.max(BUSY_LOOK_MIN));
        }
        // What is due is a head that still has time.
        let idle_until = self.idle_until();
        match self.due() {
            Some(due) => Verdict::LookAgain(due),
            None if now >= idle_until => Verdict::Close("idle"),
            None => Verdict::LookAgain(idle_until),
        }
    }

    /// Whom to wake when there is something to look at.
    pub(super) fn remember(&self, waker: &Waker) {
        *self.waker.lock() = Some(waker.clone());
    }
}

/// The clock that the kernel keeps for whoever wants the time cheaply: some milliseconds late, and a fifth of the cost.
fn coarse_ns() -> u64 {
    let now = clock_gettime(ClockId::MonotonicCoarse);
    now.tv_sec.unsigned_abs() * 1_000_000_000 + now.tv_nsec.unsigned_abs()
}
