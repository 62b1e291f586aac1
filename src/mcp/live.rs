//! What a session has while something goes on in it beyond single answers: open streams and what they sent, questions
//! to the client, subscriptions. Made when first needed, so that a session that only calls tools stays a small record.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use serde_json::Value;
use tokio::sync::oneshot;

use crate::{
    changes::{Changes, Lists, Subscription, Topic},
    cluster::streams::Streams as SharedStreams,
    mcp::events::{EventLog, Kept},
};

/// Streams of one session that are open at once.
const OPEN_STREAMS_MAX: usize = 8;
/// Streams of one session whose messages are kept, the open ones included.
const LOGS_MAX: usize = 16;
/// Questions to one client that are open at once.
const QUESTIONS_MAX: usize = 64;
/// Resources that one session, or one stream, can subscribe to.
pub(crate) const SUBSCRIBED_MAX: usize = 1000;
/// Size of one of them: each is kept as long as its session or stream.
pub(crate) const SUBSCRIBED_BYTES_MAX: usize = 4096;

/// A session's streams, questions and subscriptions.
#[derive(Debug)]
pub(crate) struct Live {
    /// What this session's event ids start with, so that those of another session are no ids here.
    tag: u32,
    settings: Settings,
    streams: Mutex<Streams>,
    questions: Mutex<HashMap<u64, oneshot::Sender<Result<Value, Value>>>>,
    /// Set under both locks: what is opened afterwards would never end.
    is_closed: AtomicBool,
    /// Counts; the part that says whose question it is comes before it.
    next_question: AtomicU64,
    subscription: Subscription,
}

#[derive(Debug, Default)]
struct Streams {
    next: u32,
    logs: Vec<(u32, Arc<EventLog>)>,
    /// Those that another instance began, by their names.
    elsewhere: Vec<Arc<EventLog>>,
}

/// What all sessions' streams have in common.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    pub(crate) changes: Changes,
    pub(crate) kept: Arc<Kept>,
    /// Messages kept for one stream.
    pub(crate) buffer_bytes_max: usize,
    /// How long the messages of a stream are kept after its end.
    pub(crate) retention: Duration,
    /// What this process is called, where there are others: its questions have it in their ids.
    pub(crate) tag: Option<u32>,
    /// Where streams are kept for other instances.
    pub(crate) streams: Option<SharedStreams>,
}

/// Bits of a question's id that count; above them is the process that asks. Together they are a number that every
/// client keeps exactly.
const QUESTION_BITS: u32 = 20;

/// The process that asked a question of this id.
pub(crate) fn asker(question: u64) -> Option<u32> {
    u32::try_from(question >> QUESTION_BITS).ok()
}

impl Live {
    pub(crate) fn new(settings: &Settings) -> Self {
        let mut tag = [0; 4];
        // An id that can be guessed does no harm: it is good for nothing outside its session.
        let _ = getrandom::fill(&mut tag);
        Self {
            tag: u32::from_le_bytes(tag),
            settings: settings.clone(),
            streams: Mutex::default(),
            questions: Mutex::default(),
            is_closed: AtomicBool::new(false),
            next_question: AtomicU64::new(1),
            subscription: settings.changes.subscribe(Lists::ALL, Vec::new()),
        }
    }

    /// A new stream's log; `None` when too many are open.
    pub(crate) fn open_stream(&self, is_standalone: bool, now: Instant) -> Option<Arc<EventLog>> {
        let mut streams = self.streams.lock();
        if self.is_closed.load(Ordering::Acquire) {
            return None;
        }
        streams.trim(now, self.settings.retention);
        if streams.logs.iter().filter(|(_, log)| log.is_read()).count() >= OPEN_STREAMS_MAX {
            return None;
        }
        if streams.logs.len() >= LOGS_MAX {
            // Rather one that has ended: to the others something will still be said.
            let ended = streams.logs.iter().position(|(_, log)| log.has_ended() && !log.is_read());
            let oldest = ended.or_else(|| streams.logs.iter().position(|(_, log)| !log.is_read()))?;
            streams.logs.remove(oldest);
        }
        let number = streams.next;
        streams.next = streams.next.wrapping_add(1);
        let name = format!("{:08x}-{number}", self.tag);
        let log = Arc::new(EventLog::new(
            name,
            self.settings.buffer_bytes_max,
            Arc::clone(&self.settings.kept),
            is_standalone,
        ));
        streams.logs.push((number, Arc::clone(&log)));
        Some(log)
    }

    /// The stream that an event id names, and the number of the event. `None` for an id that is not of this session, or
    /// of a stream that is not kept any more.
    pub(crate) fn find_stream(&self, event_id: &str, now: Instant) -> Option<(Arc<EventLog>, u64)> {
        let EventId { tag, number, event, name } = EventId::parse(event_id)?;
        let mut streams = self.streams.lock();
        streams.trim(now, self.settings.retention);
        if let Some(log) = streams.elsewhere.iter().find(|log| log.name() == name) {
            return (event <= log.newest()).then(|| (Arc::clone(log), event));
        }
        if tag != self.tag {
            return None;
        }
        let log = streams.logs.iter().find(|(n, _)| *n == number).map(|(_, log)| Arc::clone(log))?;
        (event <= log.newest()).then_some((log, event))
    }

    /// The parts of an event id where what follows it is not here, and whether it is of a stream that began here. Another
    /// instance may have it.
    pub(crate) fn is_elsewhere<'a>(&self, event_id: &'a str) -> Option<(EventId<'a>, bool)> {
        let id = EventId::parse(event_id)?;
        let is_own = id.tag == self.tag;
        let streams = self.streams.lock();
        let taken_in = streams.elsewhere.iter().find(|log| log.name() == id.name);
        let own = || streams.logs.iter().find(|(number, _)| is_own && *number == id.number).map(|(_, log)| log);
        let is_here = taken_in.or_else(own).is_some_and(|log| !log.is_lost() && log.goes_on_after(id.event));
        (!is_here).then_some((id, is_own))
    }

    /// A stream is read at another instance from now on.
    pub(crate) fn cut(&self, name: &str, turn: u64) {
        let streams = self.streams.lock();
        let own = streams.logs.iter().map(|(_, log)| log);
        own.chain(&streams.elsewhere).filter(|log| log.name() == name).for_each(|log| log.cut(turn));
    }

    /// A stream is read here from now on.
    pub(crate) fn note_turn(&self, name: &str, turn: u64) {
        let streams = self.streams.lock();
        let own = streams.logs.iter().map(|(_, log)| log);
        own.chain(&streams.elsewhere).filter(|log| log.name() == name).for_each(|log| log.note_turn(turn));
    }

    /// Forgets a stream that was taken in.
    pub(crate) fn let_go(&self, log: &Arc<EventLog>) {
        self.streams.lock().elsewhere.retain(|other| !Arc::ptr_eq(other, log));
    }

    /// Takes in the rest of a stream that another instance began, after an event; `None` when there is no room.
    pub(crate) fn take_in(&self, id: &EventId<'_>, is_standalone: bool) -> Option<Arc<EventLog>> {
        let mut streams = self.streams.lock();
        streams.elsewhere.retain(|log| log.name() != id.name);
        if self.is_closed.load(Ordering::Acquire) {
            return None;
        }
        if streams.elsewhere.len() >= LOGS_MAX {
            let unread = streams.elsewhere.iter().position(|log| !log.is_read())?;
            streams.elsewhere.remove(unread);
        }
        let (kept, bytes_max) = (Arc::clone(&self.settings.kept), self.settings.buffer_bytes_max);
        let log = Arc::new(EventLog::after(id.event, id.name.to_owned(), bytes_max, kept, is_standalone));
        streams.elsewhere.push(Arc::clone(&log));
        Some(log)
    }

    /// Drops what is of no use any more.
    pub(crate) fn trim(&self, now: Instant) {
        self.streams.lock().trim(now, self.settings.retention);
    }

    /// Ends all streams and questions: the session has ended.
    pub(crate) fn close(&self, now: Instant) {
        let (mut streams, mut questions) = (self.streams.lock(), self.questions.lock());
        self.is_closed.store(true, Ordering::Release);
        streams.logs.drain(..).for_each(|(_, log)| log.close(now));
        streams.elsewhere.drain(..).for_each(|log| log.close(now));
        questions.clear();
    }

    /// Whether a stream is open.
    pub(crate) fn is_busy(&self) -> bool {
        let streams = self.streams.lock();
        streams.logs.iter().map(|(_, log)| log).chain(&streams.elsewhere).any(|log| log.is_read())
    }

    /// A new question; `None` when too many are open.
    pub(crate) fn expect(&self) -> Option<(u64, oneshot::Receiver<Result<Value, Value>>)> {
        let (sender, receiver) = oneshot::channel();
        let mut questions = self.questions.lock();
        if questions.len() >= QUESTIONS_MAX || self.is_closed.load(Ordering::Acquire) {
            return None;
        }
        let count = self.next_question.fetch_add(1, Ordering::Relaxed);
        let id = match self.settings.tag {
            None => count,
            Some(tag) => u64::from(tag) << QUESTION_BITS | count & ((1 << QUESTION_BITS) - 1),
        };
        questions.insert(id, sender);
        Some((id, receiver))
    }

    pub(crate) fn forget(&self, id: u64) {
        self.questions.lock().remove(&id);
    }

    /// The client's answer; false when nobody waits for one under this id.
    pub(crate) fn answer(&self, id: u64, answer: Result<Value, Value>) -> bool {
        let question = self.questions.lock().remove(&id);
        question.is_some_and(|sender| sender.send(answer).is_ok())
    }

    pub(crate) fn subscription(&self) -> &Subscription {
        &self.subscription
    }

    /// Subscribes to a resource; false when there are too many.
    pub(crate) fn subscribe(&self, uri: &str) -> bool {
        if self.subscription.topics() >= SUBSCRIBED_MAX {
            return false;
        }
        self.subscription.add(Topic::Resource(uri.into()));
        true
    }

    pub(crate) fn unsubscribe(&self, uri: &str) {
        self.subscription.remove(&Topic::Resource(uri.into()));
    }
}

impl Streams {
    fn trim(&mut self, now: Instant, retention: Duration) {
        self.logs.retain(|(_, log)| log.is_of_use(now, retention));
        self.elsewhere.retain(|log| log.is_of_use(now, retention));
    }
}

/// The id of an event, in its parts.
#[derive(Clone, Copy, Debug)]
pub(crate) struct EventId<'a> {
    tag: u32,
    number: u32,
    pub(crate) event: u64,
    /// That of its stream.
    pub(crate) name: &'a str,
}

impl<'a> EventId<'a> {
    pub(super) fn parse(text: &'a str) -> Option<Self> {
        let (name, event) = text.rsplit_once('-')?;
        let (tag, number) = name.split_once('-')?;
        let is_number = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
        if tag.len() != 8 || !is_number(number) || !is_number(event) {
            return None;
        }
        let event = event.parse().ok().filter(|event| *event < 1 << 53)?;
        Some(Self { tag: u32::from_str_radix(tag, 16).ok()?, number: number.parse().ok()?, event, name })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn live() -> Live {
        Live::new(&Settings {
            changes: Changes::default(),
            kept: Arc::new(Kept::new(1 << 20)),
            buffer_bytes_max: 1000,
            retention: Duration::from_secs(60),
            tag: None,
            streams: None,
        })
    }

    #[test]
    fn event_ids_find_their_stream_in_their_session_only() {
        let (mine, other, now) = (live(), live(), Instant::now());
        let log = mine.open_stream(false, now).expect("a stream");
        log.push("x".into());
        let id = log.id(1);
        let (found, event) = mine.find_stream(&id, now).expect("found");
        assert!(Arc::ptr_eq(&found, &log) && event == 1);
        assert!(other.tag == mine.tag || other.find_stream(&id, now).is_none());
        for wrong in ["", "x", "1-2", "0-0-0", &format!("{id}-1"), &id.replace("-0-", "-9-")] {
            assert!(mine.find_stream(wrong, now).is_none(), "{wrong}");
        }
    }

    #[test]
    fn streams_and_questions_are_bounded() {
        let (live, now) = (live(), Instant::now());
        let open: Vec<_> = (0..OPEN_STREAMS_MAX)
            .map(|_| {
                let log = live.open_stream(false, now).expect("room");
                let reader = log.attach();
                (log, reader)
            })
            .collect();
        assert!(live.open_stream(false, now).is_none() && live.is_busy());
        open.iter().for_each(|(log, reader)| log.detach(*reader, now));
        assert!(!live.is_busy());
        for _ in 0..LOGS_MAX * 2 {
            assert!(live.open_stream(false, now).is_some());
        }
        assert_eq!(live.streams.lock().logs.len(), LOGS_MAX);
        let questions: Vec<_> = std::iter::from_fn(|| live.expect()).collect();
        assert_eq!(questions.len(), QUESTIONS_MAX);
        let (id, mut answer) = questions.into_iter().next().expect("one");
        assert!(live.answer(id, Ok(Value::Null)) && !live.answer(id, Ok(Value::Null)));
        assert_eq!(answer.try_recv(), Ok(Ok(Value::Null)));
    }
}
