//! What a tool says before it is done: progress and log messages, held until the connection takes them. Made only
//! for a call whose client asked to hear something, so a plain call pays nothing. Bounded: progress is one slot where
//! the newest wins, log messages are counted in bytes and dropped over the limit. How a message looks on the wire is
//! `mcp`'s business.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::Value;

/// Severity of a log message to the client, from RFC 5424.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[allow(missing_docs)] // the names are the standard's own
pub enum LogLevel {
    Debug,
    Info,
    Notice,
    Warning,
    Error,
    Critical,
    Alert,
    Emergency,
}

impl LogLevel {
    const NAMES: [(&str, Self); 8] = [
        ("debug", Self::Debug),
        ("info", Self::Info),
        ("notice", Self::Notice),
        ("warning", Self::Warning),
        ("error", Self::Error),
        ("critical", Self::Critical),
        ("alert", Self::Alert),
        ("emergency", Self::Emergency),
    ];

    /// Reads the name that the level has on the wire.
    pub fn parse(name: &str) -> Option<Self> {
        Self::NAMES.iter().find(|(n, _)| *n == name).map(|(_, level)| *level)
    }

    /// What [`LogLevel::rank`] is for nobody.
    pub(crate) const UNSET: u8 = u8::MAX;

    /// The level as a number, from the least severe on.
    pub(crate) fn rank(self) -> u8 {
        self as u8
    }

    pub(crate) fn of_rank(rank: u8) -> Option<Self> {
        Self::NAMES.get(usize::from(rank)).map(|(_, level)| *level)
    }

    /// The name on the wire.
    pub fn name(self) -> &'static str {
        Self::NAMES[self as usize].0
    }
}

/// One thing that a tool said.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Message {
    /// How far it is.
    Progress { progress: f64, total: Option<f64>, message: Option<String> },
    /// A log message.
    Log { level: LogLevel, data: Value },
    /// A request to the client, under an id of ours.
    Request { id: u64, method: String, params: Value },
    /// A message that is JSON already.
    Ready(Bytes),
    /// The connection may end: the client comes back for the rest.
    Release,
}

/// How long and by how many calls clients are waited for: each holds a place among the requests that are served.
#[derive(Debug)]
pub(crate) struct Patience {
    answer_timeout: Duration,
    waiting: AtomicUsize,
    waiting_max: usize,
}

impl Patience {
    pub(crate) fn new(answer_timeout: Duration, waiting_max: usize) -> Self {
        Self { answer_timeout, waiting: AtomicUsize::new(0), waiting_max }
    }
}

impl Default for Patience {
    fn default() -> Self {
        Self::new(Duration::from_secs(300), usize::MAX)
    }
}

/// The messages of one call on their way to the client.
#[derive(Debug)]
pub struct Outbox {
    wants_progress: bool,
    log_level: Option<LogLevel>,
    bytes_max: usize,
    patience: Arc<Patience>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The call has said or asked something, or tried to.
    was_used: bool,
    progress: Option<Message>,
    progress_last: Option<f64>,
    /// Reports that are not passed on.
    skipped: u64,
    logs: VecDeque<(Message, usize)>,
    log_bytes: usize,
    /// Time spent waiting for the client's answers.
    waited: Duration,
    waits_since: Option<Instant>,
    waits: u32,
    closed: bool,
    waker: Option<Waker>,
}

impl Outbox {
    pub(crate) fn new(wants_progress: bool, log_level: Option<LogLevel>, bytes_max: usize) -> Self {
        Self { wants_progress, log_level, bytes_max, patience: Arc::default(), state: Mutex::default() }
    }

    /// Waits for its client with the patience that is said here.
    pub(crate) fn with_patience(self, patience: Arc<Patience>) -> Self {
        Self { patience, ..self }
    }

    /// Goes on for a call whose first run said some of it: progress up to `last` was told, and that of `more` reports
    /// after it.
    pub(crate) fn go_on_after(&self, last: Option<f64>, more: u64) {
        let mut state = self.state.lock();
        (state.progress_last, state.skipped) = (last, more);
    }

    pub(crate) fn wants_progress(&self) -> bool {
        self.wants_progress
    }

    pub(crate) fn wants_log(&self, level: LogLevel) -> bool {
        self.log_level.is_some_and(|least| level >= least)
    }

    pub(crate) fn log_level(&self) -> Option<LogLevel> {
        self.log_level
    }

    pub(crate) fn progress(&self, progress: f64, total: Option<f64>, message: &str) {
        if !self.wants_progress || !progress.is_finite() || total.is_some_and(|t| !t.is_finite()) {
            return;
        }
        let mut state = self.state.lock();
        state.was_used = true;
        if state.closed || state.progress_last.is_some_and(|last| progress <= last) {
            return; // the protocol wants it to grow, and nothing after the end
        }
        state.progress_last = Some(progress);
        if state.skipped > 0 {
            state.skipped -= 1;
            return;
        }
        let message = (!message.is_empty()).then(|| message.to_owned());
        state.progress = Some(Message::Progress { progress, total, message });
        wake(state);
    }

    pub(crate) fn log(&self, level: LogLevel, data: Value) {
        let size = value_size(&data);
        self.queue(Message::Log { level, data }, size);
    }

    /// Sends a request to the client; false when there is no room.
    pub(crate) fn request(&self, id: u64, method: &str, params: Value) -> bool {
        let size = value_size(&params);
        self.queue(Message::Request { id, method: method.to_owned(), params }, size)
    }

    /// Sends a message that is JSON already; false when there is no room.
    pub(crate) fn ready(&self, json: Bytes) -> bool {
        let size = json.len();
        self.queue(Message::Ready(json), size)
    }

    /// Lets the connection end.
    pub(crate) fn release(&self) {
        self.queue(Message::Release, 0);
    }

    fn queue(&self, message: Message, bytes: usize) -> bool {
        let size = 64 + bytes;
        let mut state = self.state.lock();
        state.was_used = true;
        if state.closed || state.log_bytes + size > self.bytes_max {
            return false;
        }
        state.log_bytes += size;
        state.logs.push_back((message, size));
        wake(state);
        true
    }

    /// Whether the client asked to hear how the call goes.
    pub(crate) fn is_watched(&self) -> bool {
        self.wants_progress || self.log_level.is_some()
    }

    /// Whether the call has said or asked anything so far, or tried to: what it comes to is then its client's alone.
    pub(crate) fn was_used(&self) -> bool {
        self.state.lock().was_used
    }

    pub(crate) fn answer_timeout(&self) -> Duration {
        self.patience.answer_timeout
    }

    /// Counts time as the client's and not the tool's, until the guard is dropped. `None` when too many calls wait for
    /// their clients.
    pub(crate) fn wait_from(&self, now: Instant) -> Option<Waiting<'_>> {
        self.state.lock().was_used = true;
        if self.patience.waiting.fetch_add(1, Ordering::AcqRel) >= self.patience.waiting_max {
            self.patience.waiting.fetch_sub(1, Ordering::AcqRel);
            return None;
        }
        let mut state = self.state.lock();
        state.waits += 1;
        state.waits_since.get_or_insert(now);
        Some(Waiting(self))
    }

    /// How long the call has waited for its client.
    pub(crate) fn waited(&self, now: Instant) -> Duration {
        let state = self.state.lock();
        state.waited + state.waits_since.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }

    /// The next message. `progress_due` is whether enough time has passed since the last progress report.
    pub(crate) fn poll_next(&self, cx: &mut Context<'_>, progress_due: bool) -> Poll<Message> {
        let mut state = self.state.lock();
        if let Some(message) = pop(&mut state, progress_due) {
            return Poll::Ready(message);
        }
        if !state.waker.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
            state.waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// What is left when the call is over. Nothing is taken in after this.
    pub(crate) fn close(&self) -> Vec<Message> {
        let mut state = self.state.lock();
        state.closed = true;
        std::iter::from_fn(|| pop(&mut state, true)).collect()
    }
}

/// A call that waits for its client.
pub(crate) struct Waiting<'a>(&'a Outbox);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.patience.waiting.fetch_sub(1, Ordering::AcqRel);
        let mut state = self.0.state.lock();
        state.waits -= 1;
        if state.waits == 0
            && let Some(since) = state.waits_since.take()
        {
            state.waited += since.elapsed();
        }
    }
}

fn pop(state: &mut State, progress_due: bool) -> Option<Message> {
    if let Some((message, size)) = state.logs.pop_front() {
        state.log_bytes -= size;
        return Some(message);
    }
    if progress_due { state.progress.take() } else { None }
}

/// Wakes the reader after the lock is gone, since waking may run code of the runtime.
fn wake(mut state: parking_lot::MutexGuard<'_, State>) {
    let waker = state.waker.take();
    drop(state);
    if let Some(waker) = waker {
        waker.wake();
    }
}

/// About how many bytes a value takes as JSON.
fn value_size(value: &Value) -> usize {
    match value {
        Value::String(text) => text.len() + 2,
        Value::Array(items) => items.iter().map(|v| value_size(v) + 1).sum::<usize>() + 2,
        Value::Object(members) => members.iter().map(|(k, v)| k.len() + value_size(v) + 4).sum::<usize>() + 2,
        _ => 8,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn next(outbox: &Outbox, due: bool) -> Option<Message> {
        match outbox.poll_next(&mut Context::from_waker(Waker::noop()), due) {
            Poll::Ready(message) => Some(message),
            Poll::Pending => None,
        }
    }

    #[test]
    fn the_newest_progress_wins_and_only_growth_counts() {
        let outbox = Outbox::new(true, None, 1024);
        for progress in [1.0, 3.0, 2.0, 3.0, f64::NAN] {
            outbox.progress(progress, None, "");
        }
        assert_eq!(next(&outbox, false), None);
        assert_eq!(next(&outbox, true), Some(Message::Progress { progress: 3.0, total: None, message: None }));
        assert_eq!(next(&outbox, true), None);
    }

    #[test]
    fn logs_are_filtered_bounded_and_over_at_the_end() {
        let outbox = Outbox::new(false, Some(LogLevel::Warning), 200);
        assert!(!outbox.wants_log(LogLevel::Info));
        assert!(outbox.wants_log(LogLevel::Error));
        for n in 0..10 {
            outbox.log(LogLevel::Error, Value::from(n));
        }
        assert_eq!(outbox.close().len(), 2, "200 bytes hold two messages of 72");
        outbox.log(LogLevel::Error, Value::Null);
        assert!(outbox.close().is_empty());
    }
}
