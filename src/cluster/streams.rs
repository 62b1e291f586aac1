//! The messages of sessions' streams as Redis keeps them, so that a client reads on at any instance. Each message stands
//! under its number, so none is kept twice and none that is missing goes unnoticed; after the end nothing is taken in.
//! What is written waits in a queue of bounded size beside the calls, in order; what has no room there is missing, which
//! its reader sees by the numbers.
//!
//! ```text
//! session:{HASH}:s:{STREAM}    a stream of Redis: 0-1 its beginning, N-1 message N, N-9 the end after message N
//! ```

use std::{
    collections::HashMap,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use redis::Value;
use tokio::{sync::mpsc, time::sleep};

use super::{
    keys::{Keys, hex},
    link::{Link, LinkError, Script, cmd},
    sessions::Hash,
};

/// Messages of one stream that are kept, and some more.
const MESSAGES_MAX: usize = 1000;
/// Bytes that wait to be written.
const WAITING_BYTES_MAX: usize = 32 << 20;
/// Messages that wait to be written.
const WAITING_MAX: usize = 64 * 1024;
/// Messages that are read or written together.
const TOGETHER_MAX: usize = 128;
/// Streams that are written at once.
const AT_ONCE: usize = 32;
/// Between two attempts to write while Redis does not take it, and how many there are.
const AGAIN: Duration = Duration::from_millis(500);
const ATTEMPTS: usize = 120;

/// Adds messages, unless the stream has ended. What is there already is left, so that it can be tried again.
static APPEND: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
local top = -1
if last then
  if string.sub(last[1], -2) == '-9' then return 0 end
  top = tonumber(string.match(last[1], '^(%d+)'))
end
local ms = ARGV[1]
for i = 6, #ARGV, 3 do
  local number, kind = tonumber(ARGV[i]), ARGV[i + 1]
  if kind == '9' then
    if number < top then number = top end
    redis.call('XADD', KEYS[1], string.format('%.0f-9', number), 'n', ARGV[3])
    ms = ARGV[2]
    break
  elseif kind == '8' then
    if number <= top then return 0 end
    redis.call('XADD', KEYS[1], string.format('%.0f-1', number), 'n', ARGV[3], 'a', ARGV[5], 'm', ARGV[i + 2])
    redis.call('XADD', KEYS[1], string.format('%.0f-9', number), 'n', ARGV[3])
    ms = ARGV[2]
    break
  elseif number > top then
    redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[4], string.format('%.0f-1', number), 'n', ARGV[3], 'a', ARGV[5], 'm', ARGV[i + 2])
    top = number
  end
end
redis.call('PEXPIRE', KEYS[1], ms)
return 1",
    )
});

/// One stream.
#[derive(Debug)]
pub(crate) struct Named {
    pub(crate) hash: Hash,
    pub(crate) name: String,
    /// What its readers need to know of it; not looked at here.
    pub(crate) about: String,
}

#[derive(Debug)]
enum What {
    Opened,
    Said(u64, Bytes),
    Ended(u64),
    /// The last message, unless its number is taken.
    Last(u64, Bytes),
}

/// One stream, as who speaks writes to it.
#[derive(Clone, Debug)]
pub(crate) struct Writer {
    named: Arc<Named>,
    queue: mpsc::Sender<(Arc<Named>, What)>,
    waiting: Arc<AtomicUsize>,
}

impl Writer {
    /// Keeps a message under its number. Whoever calls keeps the order.
    pub(crate) fn say(&self, number: u64, message: Bytes) {
        self.put(What::Said(number, message));
    }

    /// Nothing follows after the message of this number.
    pub(crate) fn end(&self, number: u64) {
        self.put(What::Ended(number));
    }

    /// What has no room is missing: whoever reads sees it by the numbers.
    fn put(&self, what: What) {
        let size = what.size();
        let has_room = self.waiting.fetch_add(size, Relaxed) + size <= WAITING_BYTES_MAX;
        if !has_room || self.queue.try_send((Arc::clone(&self.named), what)).is_err() {
            self.waiting.fetch_sub(size, Relaxed);
        }
    }
}

/// What one entry of the queue takes besides its message.
const SIZE: usize = 128;

impl What {
    fn size(&self) -> usize {
        SIZE + if let Self::Said(_, message) | Self::Last(_, message) = self { message.len() } else { 0 }
    }
}

/// What a reader finds.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    Said(u64, Bytes),
    /// The end, after the message of this number.
    Ended(u64),
}

/// What is in a stream after some message.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) entries: Vec<Entry>,
    /// What its readers need to know of it.
    pub(crate) about: Option<String>,
    /// The process that writes it.
    pub(crate) writer: Option<u32>,
}

/// All streams.
#[derive(Clone)]
pub(crate) struct Streams {
    link: Link,
    keys: Keys,
    tag: u32,
    open_ms: u64,
    ended_ms: u64,
    queue: mpsc::Sender<(Arc<Named>, What)>,
    waiting: Arc<AtomicUsize>,
}

impl std::fmt::Debug for Streams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Streams").field("waiting", &self.waiting).finish_non_exhaustive()
    }
}

impl Streams {
    /// Begins to write, in a task of the runtime that this is called in. A stream in which nothing is said for the time
    /// `open` is forgotten, and one that has ended after `ended`.
    pub(crate) fn start(link: Link, keys: Keys, tag: u32, open: Duration, ended: Duration) -> Self {
        let (queue, receiver) = mpsc::channel(WAITING_MAX);
        let waiting = Arc::<AtomicUsize>::default();
        let ms = |time: Duration| time.as_millis() as u64;
        let streams = Self {
            link,
            keys,
            tag,
            open_ms: ms(open),
            ended_ms: ms(ended).max(1),
            queue,
            waiting: Arc::clone(&waiting),
        };
        let (queue, _) = mpsc::channel(1); // its own end of the queue is none, so that it ends with the others
        let writer = Self { queue, ..streams.clone() };
        tokio::spawn(write(writer, receiver));
        streams
    }

    /// A stream to speak on.
    pub(crate) fn open(&self, hash: Hash, name: String, about: String) -> Writer {
        let named = Arc::new(Named { hash, name, about });
        let writer = Writer { named, queue: self.queue.clone(), waiting: Arc::clone(&self.waiting) };
        writer.put(What::Opened);
        writer
    }

    fn key(&self, hash: Hash, name: &str) -> String {
        format!("{}:s:{name}", self.keys.session(&hex(&hash.bytes())))
    }

    /// Writes what was said on one stream; false when that has ended.
    async fn append(&self, named: &Named, what: &[What]) -> Result<bool, LinkError> {
        let mut script = APPEND.prepare_invoke();
        script.key(self.key(named.hash, &named.name)).arg(self.open_ms).arg(self.ended_ms);
        script.arg(format!("{:08x}", self.tag)).arg(MESSAGES_MAX).arg(&named.about);
        for what in what {
            match what {
                What::Opened => script.arg(0).arg("1").arg(""),
                What::Said(number, message) => script.arg(*number).arg("1").arg(message.as_ref()),
                What::Last(number, message) => script.arg(*number).arg("8").arg(message.as_ref()),
                What::Ended(number) => script.arg(*number).arg("9").arg(""),
            };
        }
        self.link.script(&script).await
    }

    /// Ends a stream whose writer has gone, with a last message; false when it has ended already, or gone on.
    ///
    /// # Errors
    /// Redis does not say.
    pub(crate) async fn end_for(
        &self,
        hash: Hash,
        name: &str,
        about: &str,
        number: u64,
        message: Bytes,
    ) -> Result<bool, LinkError> {
        let named = Named { hash, name: name.to_owned(), about: about.to_owned() };
        self.append(&named, &[What::Last(number, message)]).await
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
                (_, Some(Value::BulkString(message))) => Entry::Said(number, message.into()),
                _ => return Err(odd()),
            });
        }
        Ok(Some(whole))
    }

    /// Bytes that are not written yet, and what stands beside them.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Relaxed)
    }

    /// Whether a process is there; `None` when that cannot be told.
    pub(crate) async fn lives(&self, tag: u32) -> Option<bool> {
        if tag == self.tag {
            return Some(true);
        }
        // In a cluster all nodes are asked and the answers added up.
        let counted: Vec<(String, u64)> =
            self.link.query(cmd("PUBSUB").arg("NUMSUB").arg(self.keys.mail(tag))).await.ok()?;
        counted.first().map(|(_, listeners)| *listeners > 0)
    }
}

fn about(fields: &HashMap<String, Value>) -> Found {
    let text = |name: &str| match fields.get(name) {
        Some(Value::BulkString(text)) => String::from_utf8(text.clone()).ok(),
        _ => None,
    };
    let writer = text("n").and_then(|tag| u32::from_str_radix(&tag, 16).ok());
    Found { entries: Vec::new(), about: text("a"), writer }
}

/// Writes what waits: of each stream in order, of several at once. Ends when nobody can speak any more.
async fn write(streams: Streams, mut queue: mpsc::Receiver<(Arc<Named>, What)>) {
    let mut taken = Vec::new();
    while queue.recv_many(&mut taken, TOGETHER_MAX).await > 0 {
        let mut by_stream: Vec<(Arc<Named>, Vec<What>)> = Vec::new();
        for (named, what) in taken.drain(..) {
            match by_stream.iter_mut().find(|(other, _)| Arc::ptr_eq(other, &named)) {
                Some((_, whats)) => whats.push(what),
                None => by_stream.push((named, vec![what])),
            }
        }
        stream::iter(by_stream)
            .for_each_concurrent(AT_ONCE, |(named, whats)| {
                let streams = &streams;
                async move {
                    for attempt in 1.. {
                        match streams.append(&named, &whats).await {
                            Ok(_) => break,
                            Err(LinkError::Refused(why)) => {
                                tracing::debug!(%why, "messages of a stream are not kept");
                                break;
                            }
                            Err(error) if attempt == ATTEMPTS => {
                                tracing::debug!(%error, "messages of a stream are not kept");
                                break;
                            }
                            Err(_) => sleep(AGAIN).await,
                        }
                    }
                    streams.waiting.fetch_sub(whats.iter().map(What::size).sum(), Relaxed);
                }
            })
            .await;
    }
}
