//! Whether Redis counts as there: read by every command, changed by few. Said once for each change, not for each
//! failure; and again when it is away for another reason than the one that was said.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use arc_swap::ArcSwapOption;
use parking_lot::Mutex;
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

use super::{LinkError, connection::Connection, sentinels::Master, why::Why};

/// Between two lines on one absence.
const SAY_PAUSE: Duration = Duration::from_secs(5);
/// Reasons that are said of one.
const SAID_MAX: usize = 8;

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
    address: String,
    /// Where the last connection went, if that is up to sentinels.
    master: Mutex<Option<Master>>,
    /// What was said of this absence.
    said: Mutex<Option<Said>>,
    /// It answers again, but was not known to be ours yet: that it is back is still to be said.
    owes_back: AtomicBool,
}

impl Switch {
    pub(super) fn new(failures_max: u32, address: String) -> Self {
        Self {
            current: ArcSwapOption::empty(),
            state: watch::Sender::new(State::Connecting),
            numbers: AtomicU64::new(0),
            failures: AtomicU32::new(0),
            failures_max,
            times_away: AtomicU64::new(0),
            address,
            master: Mutex::new(None),
            said: Mutex::new(None),
            owes_back: AtomicBool::new(false),
        }
    }

    pub(super) fn address(&self) -> &str {
        &self.address
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

    /// There is a connection, to a Redis that may be used or not; to this master, if that is up to sentinels.
    pub(super) fn up(&self, connection: Connection, master: Option<Master>, may_be_used: impl FnOnce() -> bool) {
        let was = std::mem::replace(&mut *self.master.lock(), master.clone());
        let number = self.numbers.fetch_add(1, Relaxed);
        self.failures.store(0, Relaxed);
        self.current.store(Some(Arc::new(Current { connection, number })));
        let before = self.state.send_replace(State::Up);
        let _order = self.said.lock(); // with whoever finds at this moment that it may be used
        match before {
            State::Up => {}
            // It was not away in between, so that this is all that is said.
            State::Connecting if was.is_some() && was != master => tracing::info!(
                was = was.as_ref().map(Master::as_str),
                master = master.as_ref().map(Master::as_str),
                "another one is the master of Redis"
            ),
            State::Connecting => tracing::debug!("connected to Redis"),
            State::Away(_) => self.owes_back.store(true, Relaxed),
        }
        if may_be_used() {
            self.say_back();
        }
    }

    /// It may be used from now on, if it is there.
    pub(super) fn is_of_use(&self) {
        let _order = self.said.lock();
        if self.is_up() {
            self.say_back();
        }
    }

    fn say_back(&self) {
        if self.owes_back.swap(false, Relaxed) {
            let master = self.master.lock().clone();
            tracing::info!(redis = self.address, master = master.as_ref().map(Master::as_str), "Redis is back");
        }
    }

    /// Says the state again, to whoever waits for a change.
    pub(super) fn repeat(&self) {
        self.state.send_modify(|_| {});
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

    pub(super) fn away(&self, why: Why, probe: Duration) {
        self.current.store(None);
        let mut is_news = false;
        self.state.send_if_modified(|state| {
            is_news = !state.is_away();
            *state = State::Away(why.text.as_str().into());
            is_news
        });
        if is_news {
            self.times_away.fetch_add(1, Relaxed);
        }
        // For who could not use it in between it was away all the time.
        let is_new_to_all = is_news && !self.owes_back.load(Relaxed);
        let now = Instant::now();
        if !Said::takes(&mut self.said.lock(), is_new_to_all, &why, now) {
            return tracing::debug!(why = why.text, "Redis is still away");
        }
        let (redis, probe_ms) = (&self.address, probe.as_millis() as u64);
        let master = self.master.lock().clone();
        let master = master.as_ref().map(Master::as_str);
        match (is_new_to_all, why.is_lasting) {
            (_, true) => tracing::error!(
                redis,
                master,
                why = why.text,
                probe_ms,
                "Redis is away for as long as the settings do not fit it; this does not come right by itself"
            ),
            (true, false) => tracing::warn!(
                redis,
                master,
                why = why.text,
                probe_ms,
                "Redis is away; what instances share follows the settings until it is back"
            ),
            (false, false) => {
                tracing::warn!(redis, master, why = why.text, probe_ms, "Redis stays away, now because of this")
            }
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

/// The reasons that were said of one absence.
#[derive(Debug)]
struct Said {
    reasons: Vec<Why>,
    last: Instant,
}

impl Said {
    /// Whether a line is due, which is noted as said then: that it went away; that it does not come back by itself; or a
    /// reason that was not said yet, some time after the last one. Each once, however they take turns, and not many.
    fn takes(said: &mut Option<Self>, is_news: bool, why: &Why, now: Instant) -> bool {
        let Some(said) = said.as_mut().filter(|_| !is_news) else {
            *said = Some(Self { reasons: vec![why.clone()], last: now });
            return true;
        };
        let is_worse = why.is_lasting && !said.reasons.iter().any(|said| said.is_lasting);
        let is_due = now.saturating_duration_since(said.last) >= SAY_PAUSE && said.reasons.len() < SAID_MAX;
        if said.reasons.contains(why) || !(is_worse || is_due) {
            return false;
        }
        said.reasons.push(why.clone());
        said.last = now;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reason_is_said_once_and_not_too_often() {
        let mut now = Instant::now();
        let (why, other) = (Why::passing("refused"), Why::passing("timed out"));
        let mut said = None;
        assert!(Said::takes(&mut said, true, &why, now) && Said::takes(&mut said, true, &why, now), "it went away");
        assert!(!Said::takes(&mut said, false, &why, now + SAY_PAUSE), "the same");
        assert!(!Said::takes(&mut said, false, &other, now), "too soon");
        assert!(Said::takes(&mut said, false, &other, now + SAY_PAUSE));
        for _ in 0..10 {
            now += 2 * SAY_PAUSE;
            assert!(
                !Said::takes(&mut said, false, &why, now) && !Said::takes(&mut said, false, &other, now),
                "in turn"
            );
        }
        let lasting = Why { is_lasting: true, ..Why::passing("wrong password") };
        assert!(Said::takes(&mut said, false, &Why::passing("no route"), now));
        assert!(Said::takes(&mut said, false, &lasting, now), "at once");
        assert!(!Said::takes(&mut said, false, &lasting, now + SAY_PAUSE));
        let many = (0..100).filter(|n| {
            now += SAY_PAUSE;
            Said::takes(&mut said, false, &Why::passing(format!("node {n} refused")), now)
        });
        assert_eq!(many.count(), SAID_MAX - 4, "the names of nodes have an end");
        assert!(Said::takes(&mut said, true, &why, now), "another absence");
        assert!(Said::takes(&mut said, false, &other, now + SAY_PAUSE));
    }
}
