//! How a stop spreads: signals come in, latches go out. Here are the words for it; `server` says in which order things
//! stop.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::sync::Notify;

/// The state of a stop, read by everybody and written by one.
#[derive(Debug, Default)]
pub(crate) struct Drain {
    started: AtomicBool,
    hanging_up: AtomicBool,
    over: AtomicBool,
    ended: Notify,
    cut: AtomicU64,
}

impl Drain {
    /// `/ready` says from now on that the server stops.
    pub(crate) fn start(&self) {
        self.started.store(true, Ordering::Release);
    }

    /// Each connection ends with the request that it is at.
    pub(crate) fn hang_up(&self) {
        self.hanging_up.store(true, Ordering::Release);
    }

    /// The grace is over: what is still in flight is answered with an error.
    pub(crate) fn end(&self) {
        self.over.store(true, Ordering::Release);
        self.ended.notify_waiters();
    }

    /// Returns when the grace is over.
    pub(crate) async fn until_over(&self) {
        let ended = self.ended.notified(); // first, so that an end between the look and the wait is not missed
        if !self.is_over() {
            ended.await;
        }
    }

    pub(crate) fn is_started(&self) -> bool {
        self.started.load(Ordering::Acquire)
    }

    pub(crate) fn is_hanging_up(&self) -> bool {
        self.hanging_up.load(Ordering::Acquire)
    }

    pub(crate) fn is_over(&self) -> bool {
        self.over.load(Ordering::Acquire)
    }

    /// Counts a call that was ended by the end of the grace.
    pub(crate) fn count_cut(&self) {
        self.cut.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn cut(&self) -> u64 {
        self.cut.load(Ordering::Relaxed)
    }
}

/// The signals that stop the process: SIGTERM and SIGINT.
pub(crate) struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
}

impl Signals {
    pub(crate) fn listen() -> std::io::Result<Self> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// The next one: its name, and the exit code of a process that it ends at once.
    pub(crate) async fn next(&mut self) -> (&'static str, u8) {
        tokio::select! {
            _ = self.terminate.recv() => ("SIGTERM", 143),
            _ = self.interrupt.recv() => ("SIGINT", 130),
        }
    }
}
