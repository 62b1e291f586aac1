//! The messages of sessions' streams as Redis keeps them, so that a client reads on at any instance. Each message stands
//! under its number, so none is kept twice and none that is missing goes unnoticed; after the end nothing is taken in.
//! What is written waits in a queue of bounded size beside the calls, in order; what has no room there is missing, which
//! its reader sees by the numbers.
//!
//! Who writes a stream has a fencing token, a number that grows whenever another takes the stream over (`leases`). What
//! is written with an older one is refused, and its writer is told that it has lost the stream.
//!
//! ```text
//! session:{HASH}:s:{STREAM}    a stream of Redis: 0-1 its beginning, N-1 message N, N-9 the end after message N;
//!                              N-2 to N-8: after message N another took it over
//! session:{HASH}:c:{STREAM}    the call that speaks there, for who may run it again; gone at the end of the stream
//! session:{HASH}:turns         counts readers of the session's streams, so that the last one wins
//! ```

use std::{
    collections::HashMap,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, AtomicUsize, Ordering::Acquire, Ordering::Relaxed, Ordering::Release},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt, stream, task::AtomicWaker};
use redis::Value;
use tokio::{
    sync::{mpsc, oneshot},
    time::sleep,
};

use super::{
    keys::{Keys, hex},
    leases::{Counts, Steady},
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

/// Adds messages, unless the stream has ended (0) or another has taken it over (-1). What is there already is left, so
/// that it can be tried again.
static APPEND: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
local top, fence = -1, 0
if last then
  if string.sub(last[1], -2) == '-9' then return 0 end
  top = tonumber(string.match(last[1], '^(%d+)'))
  for i = 1, #last[2], 2 do
    if last[2][i] == 'f' then fence = tonumber(last[2][i + 1]) end
  end
end
if fence > tonumber(ARGV[6]) then return -1 end
local by = ARGV[6] == '0' and {'n', ARGV[3]} or {'n', ARGV[3], 'f', ARGV[6]}
local function said(number, message)
  local fields = {unpack(by)}
  for _, field in ipairs({'a', ARGV[5], 'm', message}) do table.insert(fields, field) end
  redis.call('XADD', KEYS[1], 'MAXLEN', '~', ARGV[4], string.format('%.0f-1', number), unpack(fields))
end
local ms = ARGV[1]
for i = 7, #ARGV, 3 do
  local number, kind = tonumber(ARGV[i]), ARGV[i + 1]
  if kind == '9' then
    if number < top then number = top end
    table.insert(by, 'a')
    table.insert(by, ARGV[5])
    redis.call('XADD', KEYS[1], string.format('%.0f-9', number), unpack(by))
    redis.call('DEL', KEYS[2])
    ms = ARGV[2]
    break
  elseif number > top then
    said(number, kind == '1' and ARGV[i + 2] or '')
    if kind == '0' and ARGV[i + 2] ~= '' then redis.call('SET', KEYS[2], ARGV[i + 2], 'PX', ARGV[1]) end
    top = number
  end
end
if not last then
  -- Redis sets 4 KiB aside for what follows, which mostly is little: as it is read again it takes what it needs.
  redis.pcall('RESTORE', KEYS[1], 0, redis.call('DUMP', KEYS[1]), 'REPLACE')
end
redis.call('PEXPIRE', KEYS[1], ms)
return 1",
    )
});

/// One stream, as who writes it knows it.
#[derive(Debug)]
pub(crate) struct Named {
    pub(super) hash: Hash,
    pub(super) name: String,
    /// What its readers need to know of it; not looked at here.
    pub(super) about: String,
    /// With what it is written.
    pub(super) fence: u64,
    /// It has ended without its writer, or is another's.
    is_lost: AtomicBool,
    /// Who waits to hear of that.
    waker: AtomicWaker,
}

impl Named {
    pub(super) fn new(hash: Hash, name: String, about: String, fence: u64) -> Self {
        Self { hash, name, about, fence, is_lost: AtomicBool::new(false), waker: AtomicWaker::new() }
    }

    fn lose(&self) {
        self.is_lost.store(true, Release);
        self.waker.wake();
    }
}

#[derive(Debug)]
enum What {
    /// With the call that speaks there, and who waits until it is known.
    Opened(Bytes, Option<oneshot::Sender<()>>),
    Said(u64, Bytes),
    Ended(u64),
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

    /// Whether what is said is not taken in any more: the stream has ended without us, or another has taken it over.
    pub(crate) fn is_lost(&self) -> bool {
        self.named.is_lost.load(Acquire)
    }

    /// Ready when that is so.
    pub(crate) fn poll_lost(&self, cx: &Context<'_>) -> Poll<()> {
        self.named.waker.register(cx.waker());
        if self.is_lost() { Poll::Ready(()) } else { Poll::Pending }
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
        SIZE + match self {
            Self::Said(_, message) | Self::Opened(message, _) => message.len(),
            Self::Ended(_) => 0,
        }
    }
}

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
    ended_ms: u64,
    queue: mpsc::Sender<(Arc<Named>, What)>,
    waiting: Arc<AtomicUsize>,
    /// This process ends: its lease is given back.
    pub(super) has_left: Arc<AtomicBool>,
    pub(super) counts: Arc<Counts>,
    pub(super) steady: Arc<Steady>,
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
            has_left: Arc::default(),
            counts: Arc::default(),
            steady: Arc::default(),
        };
        let speaks = streams.queue.downgrade();
        let (queue, _) = mpsc::channel(1); // its own end of the queue is none, so that it ends with the others
        let writer = Self { queue, ..streams.clone() };
        writer.clone().keep_lease(move || speaks.upgrade().is_some());
        tokio::spawn(write(writer, receiver));
        streams
    }

    /// A stream to speak on, and what resolves when it is kept, or will not be. `call` is kept with it until its end, for
    /// who may run it again.
    pub(crate) fn open(&self, hash: Hash, name: String, about: String, call: Bytes) -> (Writer, oneshot::Receiver<()>) {
        let writer = self.writer(Named::new(hash, name, about, 0));
        let (known, opened) = oneshot::channel();
        writer.put(What::Opened(call, Some(known)));
        (writer, opened)
    }

    pub(super) fn writer(&self, named: Named) -> Writer {
        Writer { named: Arc::new(named), queue: self.queue.clone(), waiting: Arc::clone(&self.waiting) }
    }

    pub(super) fn key(&self, hash: Hash, name: &str) -> String {
        format!("{}:s:{name}", self.keys.session(&hex(&hash.bytes())))
    }

    /// Of the call that speaks on a stream.
    pub(super) fn call_key(&self, hash: Hash, name: &str) -> String {
        format!("{}:c:{name}", self.keys.session(&hex(&hash.bytes())))
    }

    /// Writes what was said on one stream; false when that is not ours any more.
    async fn append(&self, named: &Named, what: &[What]) -> Result<bool, LinkError> {
        let mut script = APPEND.prepare_invoke();
        script.key(self.key(named.hash, &named.name)).key(self.call_key(named.hash, &named.name));
        script.arg(self.open_ms).arg(self.ended_ms);
        script.arg(format!("{:08x}", self.tag)).arg(MESSAGES_MAX).arg(&named.about).arg(named.fence);
        for what in what {
            match what {
                What::Opened(call, _) => script.arg(0).arg("0").arg(call.as_ref()),
                What::Said(number, message) => script.arg(*number).arg("1").arg(message.as_ref()),
                What::Ended(number) => script.arg(*number).arg("9").arg(""),
            };
        }
        Ok(self.link.script::<i8>(&script).await? > 0)
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

    /// Bytes that are not written yet, and what stands beside them.
    pub(crate) fn waiting(&self) -> usize {
        self.waiting.load(Relaxed)
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
            .for_each_concurrent(AT_ONCE, |(named, mut whats)| {
                let streams = &streams;
                async move {
                    for attempt in 1.. {
                        match streams.append(&named, &whats).await {
                            Ok(true) => break,
                            Ok(false) => {
                                named.lose();
                                streams.counts.lost.fetch_add(1, Relaxed);
                                break;
                            }
                            Err(LinkError::Refused(why)) if !why.is_for_now() => {
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
                    for what in &mut whats {
                        if let What::Opened(_, known) = what {
                            let _ = known.take().map(|known| known.send(()));
                        }
                    }
                }
            })
            .await;
    }
}
