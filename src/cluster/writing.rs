//! What is said on a stream, as who speaks writes it, and how it stands in Redis (`streams`). On its way there it waits in
//! a queue of bounded size beside the calls, in order (`spool`). What has no room there, or is not taken in time, is
//! missing, which its reader sees by the numbers; that the last one is missing is seen by the end, which is owed until it
//! is written.

use std::{
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, AtomicUsize, Ordering::Acquire, Ordering::Relaxed, Ordering::Release},
    },
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_util::task::AtomicWaker;
use serde_json::Value;
use tokio::sync::{mpsc, oneshot};

use super::{
    link::{LinkError, Script},
    sessions::{Hash, cancelled, mark},
    spool::{Owed, Sink, WAITING_BYTES_MAX},
    streams::Streams,
};

/// Messages of one stream that are kept, and some more.
const MESSAGES_MAX: usize = 1000;
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
for i = 8, #ARGV, 3 do
  local number, kind = tonumber(ARGV[i]), ARGV[i + 1]
  if kind == '9' then
    if number == 0 and top < 0 then return 1 end -- nobody can ask for the rest of it
    if number < top then number = top end
    table.insert(by, 'a')
    table.insert(by, ARGV[5])
    redis.call('XADD', KEYS[1], string.format('%.0f-9', number), unpack(by))
    redis.call('DEL', KEYS[2])
    ms = ARGV[2]
    break
  elseif number > top then
    said(number, kind == '1' and ARGV[i + 2] or '')
    if kind == '0' then
      if ARGV[i + 2] ~= '' then redis.call('SET', KEYS[2], ARGV[i + 2], 'PX', ARGV[1]) end
      -- A client that counts its calls from the beginning again may have taken back an earlier one of this id.
      redis.call('LREM', KEYS[3], 0, ARGV[7])
    end
    top = number
  end
end
if not last then
  -- Redis sets 4 KiB aside for what follows, which mostly is little: as it is read again it takes what it needs.
  redis.pcall('RESTORE', KEYS[1], 0, redis.call('DUMP', KEYS[1]), 'REPLACE')
end
redis.call('PEXPIRE', KEYS[1], ms)
redis.call('PEXPIRE', KEYS[2], ms)
return 1",
    )
});

/// One stream, as who writes it knows it.
#[derive(Debug)]
pub(crate) struct OpenStream {
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
    /// It was not taken at the first attempt, and is tried again.
    is_late: AtomicBool,
}

impl OpenStream {
    pub(super) fn new(hash: Hash, name: String, about: String, fence: u64) -> Self {
        Self {
            hash,
            name,
            about,
            fence,
            is_lost: AtomicBool::new(false),
            waker: AtomicWaker::new(),
            is_late: AtomicBool::new(false),
        }
    }

    /// Whether it was not lost before.
    pub(super) fn lose(&self) -> bool {
        let is_first = !self.is_lost.swap(true, Release);
        self.waker.wake();
        is_first
    }

    pub(super) fn is_late(&self) -> bool {
        self.is_late.load(Relaxed)
    }

    /// Says whether it is late, and whether it was.
    pub(super) fn note_late(&self, is_late: bool) -> bool {
        self.is_late.swap(is_late, Relaxed)
    }
}

#[derive(Debug)]
pub(super) enum What {
    /// With the call that speaks there, and who waits until it is known.
    Opened(Bytes, Option<oneshot::Sender<()>>),
    Said(u64, Bytes),
    /// With who waits to hear whether it was taken.
    Ended(u64, Option<oneshot::Sender<bool>>),
}

/// One stream, as who speaks writes to it.
#[derive(Clone, Debug)]
pub(crate) struct Writer {
    pub(super) named: Arc<OpenStream>,
    pub(super) queue: mpsc::Sender<(Arc<OpenStream>, What)>,
    pub(super) waiting: Arc<AtomicUsize>,
    pub(super) owed: Arc<Owed>,
}

impl Writer {
    /// Keeps a message under its number. Whoever calls keeps the order.
    pub(crate) fn say(&self, number: u64, message: Bytes) {
        self.put(What::Said(number, message));
    }

    /// Nothing follows after the message of this number.
    pub(crate) fn end(&self, number: u64) {
        self.put(What::Ended(number, None));
    }

    /// The same; what is returned says whether it was taken, as far as that is known.
    pub(crate) fn end_known(&self, number: u64) -> oneshot::Receiver<bool> {
        let (known, taken) = oneshot::channel();
        self.put(What::Ended(number, Some(known)));
        taken
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
    pub(super) fn put(&self, what: What) {
        let size = what.size();
        let has_room = self.waiting.fetch_add(size, Relaxed) + size <= WAITING_BYTES_MAX;
        let sent = match has_room {
            true => self.queue.try_send((Arc::clone(&self.named), what)).map_err(|unsent| unsent.into_inner().1),
            false => Err(what),
        };
        if let Err(what) = sent {
            self.waiting.fetch_sub(size, Relaxed);
            self.owed.note(&self.named, &what);
        }
    }
}

/// What one entry of the queue takes besides its message.
const SIZE: usize = 128;

impl What {
    pub(super) fn size(&self) -> usize {
        SIZE + match self {
            Self::Said(_, message) | Self::Opened(message, _) => message.len(),
            Self::Ended(..) => 0,
        }
    }
}

impl Sink for Streams {
    async fn append(&self, named: &OpenStream, what: &[What]) -> Result<bool, LinkError> {
        let mut script = APPEND.prepare_invoke();
        script.key(self.key(named.hash, &named.name)).key(self.call_key(named.hash, &named.name));
        script.key(cancelled(&self.keys, named.hash));
        script.arg(self.open_ms).arg(self.ended_ms);
        script.arg(format!("{:08x}", self.tag)).arg(MESSAGES_MAX).arg(&named.about).arg(named.fence);
        script.arg(opened(named, what).unwrap_or_default());
        for what in what {
            match what {
                What::Opened(call, _) => script.arg(0).arg("0").arg(call.as_ref()),
                What::Said(number, message) => script.arg(*number).arg("1").arg(message.as_ref()),
                What::Ended(number, _) => script.arg(*number).arg("9").arg(""),
            };
        }
        Ok(self.link.script::<i8>(&script).await? > 0)
    }
}

/// What stands for the call that opens its stream, where it was taken back.
fn opened(named: &OpenStream, what: &[What]) -> Option<String> {
    what.iter().find(|what| matches!(what, What::Opened(..)))?;
    let about: Value = serde_json::from_str(&named.about).ok()?;
    about.get("request").map(mark)
}
