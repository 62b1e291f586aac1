//! Whether Redis counts as there: read by every command, changed by few. Said once for each change, not for each
//! failure.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

use super::{LinkError, way::Connection};

/// Whether Redis is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// Nobody knows yet, or a connection that broke is being replaced: commands wait for it, within their time.
    Connecting,
    /// It answers.
    Up,
    /// It does not, or not to us; in words, why. Commands fail at once.
    Away(Arc<str>),
}

impl State {
    pub(crate) fn is_away(&self) -> bool {
        matches!(self, Self::Away(_))
    }
}

/// The connection that is used now; each has a number, so that what an old one suffered is not held against the next.
pub(super) struct Current {
    pub(super) connection: Connection,
    number: u64,
}

/// The state, with what it is judged by.
pub(super) struct Switch {
    current: ArcSwapOption<Current>,
    state: watch::Sender<State>,
    numbers: AtomicU64,
    /// Commands in a row that Redis did not answer.
    failures: AtomicU32,
    failures_max: u32,
    times_away: AtomicU64,
}

impl Switch {
    pub(super) fn new(failures_max: u32) -> Self {
        Self {
            current: ArcSwapOption::empty(),
            state: watch::Sender::new(State::Connecting),
            numbers: AtomicU64::new(0),
            failures: AtomicU32::new(0),
            failures_max,
            times_away: AtomicU64::new(0),
        }
    }

    pub(super) fn watch(&self) -> watch::Receiver<State> {
        self.state.subscribe()
    }

    pub(super) fn is_up(&self) -> bool {
        self.current.load().is_some()
    }

    pub(super) fn was_up(&self) -> bool {
        self.numbers.load(Relaxed) > 0
    }

    pub(super) fn state(&self) -> State {
        self.state.borrow().clone()
    }

    pub(super) fn times_away(&self) -> u64 {
        self.times_away.load(Relaxed)
    }

    /// The connection, waited for while it is being replaced.
    pub(super) async fn connection(&self, until: Instant) -> Result<Arc<Current>, LinkError> {
        if let Some(current) = self.current.load_full() {
            return Ok(current);
        }
        let mut state = self.watch();
        let decided = timeout_at(until, state.wait_for(|state| *state != State::Connecting)).await;
        match decided {
            Ok(Ok(_)) => self.current.load_full().ok_or(LinkError::Away),
            _ => Err(LinkError::Away),
        }
    }

    pub(super) fn up(&self, connection: Connection) {
        let number = self.numbers.fetch_add(1, Relaxed);
        self.failures.store(0, Relaxed);
        self.current.store(Some(Arc::new(Current { connection, number })));
        let before = self.state.send_replace(State::Up);
        match before {
            State::Up => {}
            State::Connecting => tracing::debug!("connected to Redis"),
            State::Away(_) => tracing::info!("Redis is back"),
        }
    }

    /// The connection is of no use any more; another is being made.
    pub(super) fn connecting(&self) {
        self.current.store(None);
        self.state.send_if_modified(|state| {
            let was_up = *state == State::Up;
            if was_up {
                *state = State::Connecting;
            }
            was_up
        });
    }

    pub(super) fn away(&self, why: &str, probe: Duration) {
        self.current.store(None);
        let mut is_news = false;
        self.state.send_if_modified(|state| {
            is_news = !state.is_away();
            *state = State::Away(why.into());
            is_news
        });
        if is_news {
            self.times_away.fetch_add(1, Relaxed);
            let probe_ms = probe.as_millis() as u64;
            tracing::warn!(why, probe_ms, "Redis is away; what instances share follows the settings until it is back");
        } else {
            tracing::debug!(why, "Redis is still away");
        }
    }

    /// Redis answered on this connection.
    pub(super) fn answered(&self) {
        if self.failures.load(Relaxed) != 0 {
            self.failures.store(0, Relaxed);
        }
    }

    /// Redis did not: whether that was one too many.
    pub(super) fn failed(&self, on: &Current) -> bool {
        let is_the_one = self.current.load().as_ref().is_some_and(|current| current.number == on.number);
        is_the_one && self.failures.fetch_add(1, Relaxed) + 1 >= self.failures_max
    }
}
