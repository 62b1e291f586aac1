//! The messages of sessions' streams as Redis keeps them, so that a client reads on at any instance. Each message stands
//! under its number, so none is kept twice and none that is missing goes unnoticed; after the end nothing is taken in.
//! How they are written is in `writing` and `spool`.
//!
//! Who writes a stream has a fencing token, a number that grows whenever another takes the stream over (`leases`). What
//! is written with an older one is refused, and its writer is told that it has lost the stream.
//!
//! ```text
//! session:{HASH}:s:{STREAM}    a stream of Redis: 0-1 its beginning, N-1 message N, N-9 the end after message N;
//!                              N-2 to N-8: after message N another took it over. That of a session itself has no
//!                              beginning: it would take 600 bytes for each client that listens and is told nothing
//! session:{HASH}:c:{STREAM}    the call that speaks there, for who may run it again; gone at the end of the stream
//! session:{HASH}:turns         counts readers of the session's streams, so that the last one wins
//! ```

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use redis::Value;
use tokio::sync::{mpsc, oneshot};

use super::{
    keys::{Keys, hex},
    leases::Counts,
    link::{Link, LinkError, cmd},
    presence::Presence,
    sessions::Hash,
    spool::{Owed, Spool},
    writing::{OpenStream, What, Writer},
};

/// Messages that wait to be written.
const WAITING_MAX: usize = 64 * 1024;
/// Messages that are read or written together.
pub(super) const TOGETHER_MAX: usize = 128;

/// What a reader finds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    Said(u64, Bytes),
    /// The end, after the message of this number.
    Ended(u64),
    /// From here on another writes, after the message of this number.
    Taken(u64),
}

/// What is in a stream after some message.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) entries: Vec<Entry>,
    /// What its readers need to know of it.
    pub(crate) about: Option<String>,
    /// The process that writes it, and with what.
    pub(crate) writer: Option<(u32, u64)>,
}

/// All streams.
#[derive(Clone)]
pub(crate) struct Streams {
    pub(super) link: Link,
    pub(super) keys: Keys,
    pub(super) tag: u32,
    pub(super) open_ms: u64,
    pub(super) ended_ms: u64,
    queue: mpsc::Sender<(Arc<OpenStream>, What)>,
    pub(super) waiting: Arc<AtomicUsize>,
    pub(super) owed: Arc<Owed>,
    pub(super) counts: Arc<Counts>,
    presence: Arc<Presence>,
}

impl std::fmt::Debug for Streams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Streams").field("waiting", &self.waiting).finish_non_exhaustive()
    }
}

impl Streams {
    /// Begins to write, in a task of the runtime that this is called in. A stream in which nothing is said for the time
    /// `open` is forgotten, and one that has ended after `ended`.
    pub(super) fn start(link: Link, keys: Keys, presence: Arc<Presence>, open: Duration, ended: Duration) -> Self {
        let (queue, receiver) = mpsc::channel(WAITING_MAX);
        let waiting = Arc::<AtomicUsize>::default();
        let ms = |time: Duration| time.as_millis() as u64;
        let streams = Self {
            link,
            keys,
            tag: presence.tag(),
            open_ms: ms(open),
            ended_ms: ms(ended).max(1),
            queue,
            waiting: Arc::clone(&waiting),
            owed: Arc::default(),
            counts: Arc::default(),
            presence,
        };
        let speaks = streams.queue.downgrade();
        let (queue, _) = mpsc::channel(1); // its own end of the queue is none, so that it ends with the others
        let writer = Self { queue, ..streams.clone() };
        Arc::clone(&writer.presence).keep_lease(move || speaks.upgrade().is_some());
        let (owed, counts) = (Arc::clone(&streams.owed), Arc::clone(&streams.counts));
        tokio::spawn(Spool::new(writer, waiting, owed, counts).write(receiver));
        streams
    }

    /// Which processes there are.
    pub(crate) fn presence(&self) -> &Presence {
        &self.presence
    }

    /// A stream to speak on that is kept with its first message, as none of its readers has an id before that.
    pub(crate) fn open_silent(&self, hash: Hash, name: String, about: String) -> Writer {
        self.writer(OpenStream::new(hash, name, about, 0))
    }

    /// A stream to speak on, and what resolves when it is kept, or will not be. `call` is kept with it until its end, for
    /// who may run it again.
    pub(crate) fn open(&self, hash: Hash, name: String, about: String, call: Bytes) -> (Writer, oneshot::Receiver<()>) {
        let writer = self.writer(OpenStream::new(hash, name, about, 0));
        let (known, opened) = oneshot::channel();
        writer.put(What::Opened(call, Some(known)));
        (writer, opened)
    }

    pub(super) fn writer(&self, named: OpenStream) -> Writer {
        let (queue, waiting, owed) = (self.queue.clone(), Arc::clone(&self.waiting), Arc::clone(&self.owed));
        Writer { named: Arc::new(named), queue, waiting, owed }
    }

    pub(super) fn key(&self, hash: Hash, name: &str) -> String {
        format!("{}:s:{name}", self.keys.session(&hex(&hash.bytes())))
    }

    /// Of the call that speaks on a stream.
    pub(super) fn call_key(&self, hash: Hash, name: &str) -> String {
        format!("{}:c:{name}", self.keys.session(&hex(&hash.bytes())))
    }

    /// What follows after the message of this number, and what the stream is. `None` when it is not kept.
    ///
    /// # Errors
    /// Redis does not say, or it is no stream of ours.
    pub(crate) async fn read(&self, hash: Hash, name: &str, after: u64) -> Result<Option<Found>, LinkError> {
        let key = self.key(hash, name);
        let mut range = cmd("XRANGE");
        range.arg(&key).arg(format!("({after}-1")).arg("+").arg("COUNT").arg(TOGETHER_MAX);
        let found: Vec<(String, HashMap<String, Value>)> = self.link.query(&range).await?;
        if found.is_empty() {
            let mut last = cmd("XREVRANGE");
            last.arg(&key).arg("+").arg("-").arg("COUNT").arg(1);
            let last: Vec<(String, HashMap<String, Value>)> = self.link.query(&last).await?;
            return Ok(last.first().map(|(_, fields)| Found { entries: Vec::new(), ..about(fields) }));
        }
        let mut whole = Found::default();
        for (id, mut fields) in found {
            let odd = || LinkError::Odd("a message of a stream that is none".into());
            let (number, kind) = id.split_once('-').ok_or_else(odd)?;
            let number: u64 = number.parse().map_err(|_| odd())?;
            let Found { about, writer, .. } = about(&fields);
            (whole.about, whole.writer) = (about.or(whole.about), writer.or(whole.writer));
            whole.entries.push(match (kind, fields.remove("m")) {
                ("9", _) => Entry::Ended(number),
                ("1", Some(Value::BulkString(message))) => Entry::Said(number, message.into()),
                ("1", _) => return Err(odd()),
                _ => Entry::Taken(number),
            });
        }
        Ok(Some(whole))
    }

    /// The newest messages of a stream, the newest first.
    ///
    /// # Errors
    /// Redis does not say.
    pub(crate) async fn newest(&self, hash: Hash, name: &str) -> Result<Vec<Bytes>, LinkError> {
        let mut range = cmd("XREVRANGE");
        range.arg(self.key(hash, name)).arg("+").arg("-").arg("COUNT").arg(TOGETHER_MAX);
        let found: Vec<(String, HashMap<String, Value>)> = self.link.query(&range).await?;
        let messages = found.into_iter().filter_map(|(_, mut fields)| match fields.remove("m") {
            Some(Value::BulkString(message)) => Some(message.into()),
            _ => None,
        });
        Ok(messages.collect())
    }

    /// Whether all that was said is written.
    pub(crate) fn is_idle(&self) -> bool {
        self.waiting.load(Relaxed) == 0 && self.owed.is_empty()
    }
}

fn about(fields: &HashMap<String, Value>) -> Found {
    let text = |name: &str| match fields.get(name) {
        Some(Value::BulkString(text)) => String::from_utf8(text.clone()).ok(),
        _ => None,
    };
    let fence = text("f").and_then(|fence| fence.parse().ok()).unwrap_or_default();
    let writer = text("n").and_then(|tag| u32::from_str_radix(&tag, 16).ok()).map(|tag| (tag, fence));
    Found { entries: Vec::new(), about: text("a"), writer }
}
