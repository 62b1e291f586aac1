//! The messages of one stream of a session, kept for a while: who lost the connection comes back with the id of the
//! last event that arrived and reads on. One reader at a time; a new one takes over. What was dropped for want of room
//! is not skipped in silence: a reader that would need it is told that it cannot go on.

use std::{
    collections::VecDeque,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use bytes::Bytes;
use parking_lot::{Mutex, MutexGuard};
use tokio::{sync::oneshot, time::timeout};

use crate::{
    cluster::{sessions::Hash, streams::Streams, writing::Writer},
    tool::registry::CalledTool,
};

/// The size of a message that is kept whatever else is.
const SPARED_BYTES_MAX: usize = 4096;

/// How long a client waits for its answer until other instances know it, should Redis be slow.
const KNOWN_MAX: Duration = Duration::from_millis(500);

/// What all kept messages take, over all sessions.
#[derive(Debug)]
pub(crate) struct Kept {
    bytes: AtomicUsize,
    bytes_max: usize,
}

impl Kept {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { bytes: AtomicUsize::new(0), bytes_max }
    }

    fn has_room(&self) -> bool {
        self.bytes.load(Ordering::Relaxed) <= self.bytes_max
    }

    /// Answers are kept for some time after there is no room for anything else.
    fn has_room_for_answers(&self) -> bool {
        self.bytes.load(Ordering::Relaxed) / 2 <= self.bytes_max
    }
}

/// What a reader gets.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Read {
    /// A message and its number.
    Event(u64, Bytes),
    /// That was the last one.
    End,
    /// Another reader has taken over, or what comes next was dropped.
    Lost,
}

/// The messages of one stream.
#[derive(Debug)]
pub(crate) struct EventLog {
    /// What the ids of its events start with.
    name: String,
    kept: Arc<Kept>,
    bytes_max: usize,
    /// Nothing but its reader makes it of use: it is not a call's.
    is_standalone: bool,
    /// The tool whose call it is, where it is a tool's.
    tool: OnceLock<CalledTool>,
    /// Where it is kept for other instances too.
    writer: OnceLock<Writer>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The number of the first message that is kept. Numbers start at 1; 0 is the event that opens a stream.
    first: u64,
    messages: VecDeque<Bytes>,
    bytes: usize,
    ended: Option<Instant>,
    reader: u64,
    /// The number of the last reader that is known, over all instances.
    turn: u64,
    is_read: bool,
    waker: Option<Waker>,
}

impl State {
    /// Whether there is nothing to drop but one small message.
    fn is_least(&self) -> bool {
        self.messages.is_empty() || (self.messages.len() == 1 && self.bytes <= SPARED_BYTES_MAX)
    }
}

impl EventLog {
    pub(crate) fn new(name: String, bytes_max: usize, kept: Arc<Kept>, is_standalone: bool) -> Self {
        Self::after(0, name, bytes_max, kept, is_standalone)
    }

    /// The rest of a stream after the message of this number.
    pub(crate) fn after(number: u64, name: String, bytes_max: usize, kept: Arc<Kept>, is_standalone: bool) -> Self {
        let state = Mutex::new(State { first: number + 1, ..State::default() });
        Self { name, kept, bytes_max, is_standalone, tool: OnceLock::new(), writer: OnceLock::new(), state }
    }

    /// Keeps all that follows for other instances too, and with it the call that speaks here, where it may be run again.
    /// What is returned resolves when others find the stream, or will not.
    pub(crate) fn keep_in(&self, streams: &Streams, hash: Hash, about: String, call: Bytes) -> oneshot::Receiver<()> {
        let (writer, opened) = streams.open(hash, self.name.clone(), about, call);
        let _ = self.writer.set(writer);
        opened
    }

    /// The same for a session's own stream, of which others find what is said.
    pub(crate) fn keep_own_in(&self, streams: &Streams, hash: Hash, about: String) {
        let _ = self.writer.set(streams.open_silent(hash, self.name.clone(), about));
    }

    /// The same for a stream that was taken over from another instance.
    pub(crate) fn write_with(&self, writer: Writer) {
        let _ = self.writer.set(writer);
    }

    /// Whether another instance has taken the stream over: what is said here is nothing any more.
    pub(crate) fn is_lost(&self) -> bool {
        self.writer.get().is_some_and(Writer::is_lost)
    }

    /// Ready when that is so.
    pub(crate) fn poll_lost(&self, cx: &Context<'_>) -> Poll<()> {
        self.writer.get().map_or(Poll::Pending, |writer| writer.poll_lost(cx))
    }

    /// A reader at another instance has come after those here: they read no more.
    pub(crate) fn cut(&self, turn: u64) {
        let mut state = self.state.lock();
        if turn > state.turn {
            state.turn = turn;
            state.reader += 1;
            state.is_read = false;
            wake(state);
        }
    }

    /// Whoever reads here from now on has this turn.
    pub(crate) fn note_turn(&self, turn: u64) {
        let mut state = self.state.lock();
        state.turn = state.turn.max(turn);
    }

    /// Ready when this reader is not the one any more.
    pub(crate) fn poll_cut(&self, reader: u64, cx: &Context<'_>) -> Poll<()> {
        let mut state = self.state.lock();
        if state.reader != reader {
            return Poll::Ready(());
        }
        if !state.waker.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
            state.waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }

    /// What the ids of its events start with.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Whether the message after this one is kept, or will be.
    pub(crate) fn goes_on_after(&self, number: u64) -> bool {
        let state = self.state.lock();
        number + 1 >= state.first && number < state.first + state.messages.len() as u64
    }

    /// Says whose call it is.
    pub(crate) fn note_tool(&self, tool: CalledTool) {
        let _ = self.tool.set(tool);
    }

    /// The tool whose call it is, where it is a tool's: who may not call it any more does not read it either.
    pub(crate) fn tool(&self) -> Option<&CalledTool> {
        self.tool.get()
    }

    /// The id of an event.
    pub(crate) fn id(&self, number: u64) -> String {
        format!("{}-{number}", self.name)
    }

    /// Adds a message and returns its number.
    pub(crate) fn push(&self, message: Bytes) -> u64 {
        self.add(message, false)
    }

    /// The same for what a call came to, which is kept whatever its size: clients come back for it above all.
    pub(crate) fn push_answer(&self, message: Bytes) -> u64 {
        self.add(message, true)
    }

    fn add(&self, message: Bytes, is_answer: bool) -> u64 {
        let state = self.state.lock();
        if let Some(writer) = self.writer.get() {
            let number = state.first + state.messages.len() as u64;
            writer.say(number, message.clone()); // under the lock, which is what keeps the order
        }
        self.keep(state, message, is_answer)
    }

    fn add_here(&self, message: Bytes, is_answer: bool) -> u64 {
        self.keep(self.state.lock(), message, is_answer)
    }

    fn keep(&self, mut state: MutexGuard<'_, State>, message: Bytes, is_answer: bool) -> u64 {
        let number = state.first + state.messages.len() as u64;
        state.bytes += message.len();
        self.kept.bytes.fetch_add(message.len(), Ordering::Relaxed);
        state.messages.push_back(message);
        // The newest is kept also when all logs together are full, so that a reader who is there gets it.
        loop {
            let only_answer = is_answer && state.messages.len() == 1;
            let is_over = state.bytes > self.bytes_max && !only_answer;
            let spared = state.is_least() || (only_answer && self.kept.has_room_for_answers());
            if !is_over && (self.kept.has_room() || spared) {
                break;
            }
            let Some(dropped) = state.messages.pop_front() else { break };
            state.first += 1;
            state.bytes -= dropped.len();
            self.kept.bytes.fetch_sub(dropped.len(), Ordering::Relaxed);
        }
        wake(state);
        number
    }

    /// The end of a call, with what it came to. Other instances know it before any client does, so that nobody runs the
    /// call again who has it; false when another has taken the call over meanwhile, and this is not its end.
    pub(crate) async fn finish(&self, answer: Option<Bytes>) -> bool {
        if let Some(writer) = self.writer.get() {
            let taken = {
                let state = self.state.lock();
                let mut number = state.first + state.messages.len() as u64 - 1;
                if let Some(answer) = &answer {
                    number += 1;
                    writer.say(number, answer.clone());
                }
                writer.end_known(number)
            };
            if timeout(KNOWN_MAX, taken).await == Ok(Ok(false)) {
                self.end_here(Instant::now());
                return false;
            }
        }
        if let Some(answer) = answer {
            self.add_here(answer, true);
        }
        self.end_here(Instant::now());
        true
    }

    /// No more messages will come.
    pub(crate) fn end(&self, now: Instant) {
        let mut state = self.state.lock();
        if state.ended.is_none()
            && !self.is_standalone
            && let Some(writer) = self.writer.get()
        {
            writer.end(state.first + state.messages.len() as u64 - 1);
        }
        state.ended.get_or_insert(now);
        wake(state);
    }

    fn end_here(&self, now: Instant) {
        let mut state = self.state.lock();
        state.ended.get_or_insert(now);
        wake(state);
    }

    /// The same for a session's own stream too: the session has ended.
    pub(crate) fn close(&self, now: Instant) {
        if let Some(writer) = self.writer.get().filter(|_| self.is_standalone) {
            writer.end(self.newest());
        }
        self.end(now);
    }

    /// A new reader, who takes over from the one before.
    pub(crate) fn attach(&self) -> u64 {
        let mut state = self.state.lock();
        state.reader += 1;
        state.is_read = true;
        if self.is_standalone {
            state.ended = None;
        }
        let reader = state.reader;
        wake(state);
        reader
    }

    /// The reader has gone.
    pub(crate) fn detach(&self, reader: u64, now: Instant) {
        let mut state = self.state.lock();
        state.is_read &= state.reader != reader;
        if self.is_standalone && !state.is_read {
            state.ended = Some(now);
        }
    }

    /// Whether it is a session's own stream and not a call's.
    pub(crate) fn is_standalone(&self) -> bool {
        self.is_standalone
    }

    /// Whether the log is worth keeping at `now`: somebody reads it, messages will come, or came not long ago.
    pub(crate) fn is_of_use(&self, now: Instant, retention: Duration) -> bool {
        let state = self.state.lock();
        !self.is_lost()
            && (state.is_read || state.ended.is_none_or(|ended| now.saturating_duration_since(ended) < retention))
    }

    /// Whether no more will be said.
    pub(crate) fn has_ended(&self) -> bool {
        self.state.lock().ended.is_some()
    }

    /// The number of the newest message; 0 before the first.
    pub(crate) fn newest(&self) -> u64 {
        let state = self.state.lock();
        state.first + state.messages.len() as u64 - 1
    }

    /// Whether somebody reads it.
    pub(crate) fn is_read(&self) -> bool {
        self.state.lock().is_read
    }

    /// The message after number `after`.
    pub(crate) fn poll_after(&self, reader: u64, after: u64, cx: &mut Context<'_>) -> Poll<Read> {
        let mut state = self.state.lock();
        if state.reader != reader || after + 1 < state.first || self.is_lost() {
            return Poll::Ready(Read::Lost);
        }
        let at = usize::try_from(after + 1 - state.first).unwrap_or(usize::MAX);
        if let Some(message) = state.messages.get(at) {
            return Poll::Ready(Read::Event(after + 1, message.clone()));
        }
        if state.ended.is_some() {
            return Poll::Ready(Read::End);
        }
        if !state.waker.as_ref().is_some_and(|w| w.will_wake(cx.waker())) {
            state.waker = Some(cx.waker().clone());
        }
        Poll::Pending
    }
}

impl Drop for EventLog {
    fn drop(&mut self) {
        self.kept.bytes.fetch_sub(self.state.get_mut().bytes, Ordering::Relaxed);
    }
}

/// Wakes the reader after the lock is gone.
fn wake(mut state: MutexGuard<'_, State>) {
    let waker = state.waker.take();
    drop(state);
    if let Some(waker) = waker {
        waker.wake();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(log: &EventLog, reader: u64, after: u64) -> Option<Read> {
        match log.poll_after(reader, after, &mut Context::from_waker(Waker::noop())) {
            Poll::Ready(read) => Some(read),
            Poll::Pending => None,
        }
    }

    fn log(bytes_max: usize, kept: &Arc<Kept>) -> EventLog {
        EventLog::new("1".into(), bytes_max, Arc::clone(kept), false)
    }

    #[test]
    fn reading_goes_on_where_it_ended_or_says_that_it_cannot() {
        let kept = Arc::new(Kept::new(1000));
        let log = log(10, &kept);
        let first = log.attach();
        assert_eq!(log.push(Bytes::from_static(b"aaaa")), 1);
        log.push(Bytes::from_static(b"bbbb"));
        assert_eq!(read(&log, first, 0), Some(Read::Event(1, Bytes::from_static(b"aaaa"))));
        assert_eq!(read(&log, first, 2), None);
        let second = log.attach();
        assert_eq!(read(&log, first, 2), Some(Read::Lost), "taken over");
        assert_eq!(read(&log, second, 1), Some(Read::Event(2, Bytes::from_static(b"bbbb"))));
        log.push(Bytes::from_static(b"cccc")); // the first is dropped
        assert_eq!(read(&log, second, 0), Some(Read::Lost), "a gap");
        assert_eq!(read(&log, second, 1), Some(Read::Event(2, Bytes::from_static(b"bbbb"))));
        log.end(Instant::now());
        assert_eq!(read(&log, second, 3), Some(Read::End));
        drop(log);
        assert_eq!(kept.bytes.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn all_logs_together_have_a_limit() {
        let kept = Arc::new(Kept::new(8));
        let (one, two) = (log(100, &kept), log(100, &kept));
        one.push(Bytes::from_static(b"aaaa"));
        two.push(Bytes::from_static(b"bbbb"));
        two.push(Bytes::from_static(b"cccc"));
        let reader = two.attach();
        assert_eq!(read(&two, reader, 0), Some(Read::Lost));
        assert_eq!(read(&two, reader, 1), Some(Read::Event(2, Bytes::from_static(b"cccc"))));
    }

    #[test]
    fn a_log_is_kept_for_its_time_after_the_end() {
        let log = log(100, &Arc::new(Kept::new(100)));
        let (now, retention) = (Instant::now(), Duration::from_secs(10));
        assert!(log.is_of_use(now, retention));
        log.end(now);
        assert!(log.is_of_use(now, retention));
        assert!(!log.is_of_use(now + retention, retention));
        let reader = log.attach();
        assert!(log.is_of_use(now + retention, retention), "it is read");
        log.detach(reader, now);
        assert!(!log.is_of_use(now + retention, retention));
    }
}
