//! One connection: its bytes watched, its requests served one after the other, its end when it idles, stalls or the
//! server drains.
//!
//! hyper's own header timer counts idle time too and makes a timer for each request. Here one timer serves the whole
//! life of a connection: requests and bytes only note when they came, and the timer looks at the notes when it fires.

use std::{
    future::{Future, poll_fn},
    io,
    net::IpAddr,
    pin::{Pin, pin},
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use hyper::{
    rt::{Read, ReadBufCursor, Write},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use rustix::time::{ClockId, clock_gettime};
use tokio::{
    net::TcpStream,
    time::{Instant as TimerInstant, sleep_until},
};

use crate::front::{Front, gate::Visit, pressure::Level, serve};

/// hyper's buffer for one connection; beyond it, a head is refused with 431 and no body.
const BUFFER_BYTES_MAX: usize = 64 * 1024;
/// Pieces of an answer up to this size are copied together: the kernel takes one piece (`send`) in less time than several
/// (`writev`), and the difference is more than the copy.
const TOGETHER_BYTES_MAX: usize = 1024;
/// What hyper takes without being told.
const HYPER_HEADERS_MAX: usize = 100;
/// From the wish to end a connection to its end when no request is on it: a request may lie in the kernel, unread.
const LAST_BYTES: Duration = Duration::from_millis(50);
/// A note that was not made.
const NEVER: u64 = 0;

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
    write_stalled: AtomicU64,
    waker: Mutex<Option<Waker>>,
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
}

impl HangUp {
    fn is_due(self, now: Instant) -> bool {
        matches!(self, Self::At(at) if now >= at)
    }

    fn or_before(self, other: Instant) -> Instant {
        if let Self::At(at) = self { at.min(other) } else { other }
    }
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
        }
    }

    /// Makes the connection look at the drain's state.
    pub(crate) fn wake(&self) {
        let waker = self.waker.lock().clone();
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// A request's head has come.
    pub(crate) fn begin(self: &Arc<Self>) -> Busy {
        self.busy.fetch_add(1, Relaxed);
        self.head_began.store(NEVER, Relaxed);
        Busy { conn: Arc::clone(self) }
    }

    /// The present moment, to a tick of the kernel: what is measured by it are seconds, and requests note it often.
    fn note(&self) -> u64 {
        coarse_ns().saturating_sub(self.opened_coarse_ns) + 1
    }

    fn moment(&self, note: u64) -> Instant {
        self.opened + Duration::from_nanos(note - 1)
    }

    /// When the connection must be looked at next, as far as can be said now.
    fn due(&self) -> Option<Instant> {
        let began = self.head_began.load(Relaxed);
        (began != NEVER).then(|| self.moment(began) + self.front.limits.header_timeout())
    }

    /// Whether nothing is on it while memory is so short that such connections are given up.
    fn is_given_up(&self) -> bool {
        self.front.pressure.level() >= Level::KeepAlive
            && self.busy.load(Relaxed) == 0
            && self.head_began.load(Relaxed) == NEVER
            && self.write_stalled.load(Relaxed) == NEVER
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
pub(crate) async fn run(conn: Arc<Connection>, stream: TcpStream) {
    let io = Watched { stream: TokioIo::new(stream), conn: Arc::clone(&conn) };
    let service = {
        let conn = Arc::clone(&conn);
        service_fn(move |request| {
            let conn = Arc::clone(&conn);
            // Boxed: hyper keeps room for one in each connection, also idle, and moves it there for each request. So
            // the room is there for those alone that are being served, and mostly the same warm one.
            Box::pin(async move { Ok::<_, std::convert::Infallible>(serve(conn, request).await) })
        })
    };
    let mut http = http1::Builder::new();
    // The timer is set so that hyper can never lack one; the header timeout is ours (see the head of this file).
    http.timer(TokioTimer::new()).header_read_timeout(None).max_buf_size(BUFFER_BYTES_MAX);
    if conn.front.limits.headers_max != HYPER_HEADERS_MAX {
        http.max_headers(conn.front.limits.headers_max); // any number that is set costs hyper an allocation a request
    }
    let mut connection = pin!(http.serve_connection(io, service));
    let first_look = conn.opened + conn.front.limits.idle_timeout();
    let mut timer = pin!(sleep_until(first_look.into()));
    let mut hang_up = HangUp::NotAsked;
    let ended = poll_fn(|cx| {
        conn.remember(cx.waker());
        loop {
            if let Poll::Ready(result) = connection.as_mut().poll(cx) {
                return Poll::Ready(result.map_err(|error| error.to_string()));
            }
            if hang_up == HangUp::NotAsked && conn.front.router.drain.is_hanging_up() {
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
                hang_up = HangUp::Told;
                connection.as_mut().graceful_shutdown();
            }
            match conn.verdict(now) {
                Verdict::Close(reason) => return Poll::Ready(Err(format!("closed: {reason}"))),
                Verdict::LookAgain(at) => timer.as_mut().reset(hang_up.or_before(at).into()),
            }
        }
    });
    if let Err(reason) = ended.await {
        tracing::debug!(peer = %conn.peer, reason, "a connection ended");
    }
}

/// A socket that notes when a request begins to arrive and when a write does not get on.
struct Watched {
    stream: TokioIo<TcpStream>,
    conn: Arc<Connection>,
}

impl Watched {
    fn watch_write(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        let stalled = &self.conn.write_stalled;
        match (&written, stalled.load(Relaxed)) {
            (Poll::Pending, NEVER) => stalled.store(self.conn.note(), Relaxed),
            (Poll::Ready(_), since) if since != NEVER => stalled.store(NEVER, Relaxed),
            _ => {}
        }
        written
    }
}

impl Read for Watched {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        let conn = &self.conn;
        if read.is_ready() && conn.busy.load(Relaxed) == 0 && conn.head_began.load(Relaxed) == NEVER {
            conn.head_began.store(conn.note(), Relaxed);
        }
        read
    }
}

impl Write for Watched {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.watch_write(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let bytes: usize = bufs.iter().map(|piece| piece.len()).sum();
        let written = if bytes <= TOGETHER_BYTES_MAX {
            let mut together = [0; TOGETHER_BYTES_MAX];
            let mut room = &mut together[..];
            for piece in bufs {
                let (place, rest) = room.split_at_mut(piece.len());
                place.copy_from_slice(piece);
                room = rest;
            }
            Pin::new(&mut self.stream).poll_write(cx, &together[..bytes])
        } else {
            Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
        };
        self.watch_write(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
