//! How what is said on streams comes to Redis (`streams`): it waits in a queue of bounded size beside the calls, in order.
//! What has no room there, or is not taken in time, is missing, which its reader sees by the numbers; that the last one is
//! missing is seen by the end, which is owed until it is written.

use std::{
    collections::VecDeque,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, AtomicUsize, Ordering::Acquire, Ordering::Relaxed, Ordering::Release},
    },
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures_util::{StreamExt, stream, task::AtomicWaker};
use parking_lot::Mutex;
use tokio::{
    sync::{mpsc, oneshot},
    time::{Instant, sleep, timeout},
};

use super::{
    link::{LinkError, Script},
    sessions::Hash,
    streams::{Streams, TOGETHER_MAX},
};

/// Messages of one stream that are kept, and some more.
const MESSAGES_MAX: usize = 1000;
/// Bytes that wait to be written.
const WAITING_BYTES_MAX: usize = 32 << 20;
/// Streams that are written at once.
const AT_ONCE: usize = 32;
/// Between two attempts to write while Redis does not take it, and how many there are.
const AGAIN: Duration = Duration::from_millis(500);
const ATTEMPTS: usize = 120;
/// Ends of streams that are owed, and the pause until they are tried again.
const OWED_MAX: usize = 4096;
const OWED_PAUSE: Duration = Duration::from_secs(1);

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
redis.call('PEXPIRE', KEYS[2], ms)
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
    pub(super) named: Arc<Named>,
    pub(super) queue: mpsc::Sender<(Arc<Named>, What)>,
    pub(super) waiting: Arc<AtomicUsize>,
    pub(super) owed: Arc<Owed>,
}

/// Ends of streams that could not be kept: who reads elsewhere would wait for them for ever. Written when that is
/// possible again; then something is seen to be missing.
#[derive(Debug, Default)]
pub(super) struct Owed(Mutex<VecDeque<(Arc<Named>, u64)>>);

impl Owed {
    fn note(&self, named: &Arc<Named>, what: &What) {
        if let What::Ended(number, _) = what {
            let mut owed = self.0.lock();
            owed.truncate(OWED_MAX - 1);
            owed.push_back((Arc::clone(named), *number));
        }
    }
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
    fn size(&self) -> usize {
        SIZE + match self {
            Self::Said(_, message) | Self::Opened(message, _) => message.len(),
            Self::Ended(..) => 0,
        }
    }
}

impl Streams {
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
                What::Ended(number, _) => script.arg(*number).arg("9").arg(""),
            };
        }
        Ok(self.link.script::<i8>(&script).await? > 0)
    }

    /// Writes ends that are owed, as far as they are taken.
    async fn pay(&self) {
        for _ in 0..OWED_MAX {
            let Some((named, number)) = self.owed.0.lock().pop_front() else { return };
            match self.append(&named, &[What::Ended(number, None)]).await {
                Ok(_) => {}
                Err(LinkError::Refused(why)) if !why.is_for_now() => {} // it will never be taken
                Err(_) => return self.owed.0.lock().push_front((named, number)),
            }
        }
    }
}

/// Writes what waits: of each stream in order, of several at once. Ends when nobody can speak any more.
pub(super) async fn write(streams: Streams, mut queue: mpsc::Receiver<(Arc<Named>, What)>) {
    let (mut taken, mut paid) = (Vec::new(), Instant::now());
    loop {
        let is_owed = !streams.owed.0.lock().is_empty();
        if is_owed && paid.elapsed() >= OWED_PAUSE {
            streams.pay().await;
            paid = Instant::now();
        }
        let more = queue.recv_many(&mut taken, TOGETHER_MAX);
        match if is_owed { timeout(OWED_PAUSE, more).await } else { Ok(more.await) } {
            Ok(0) => return,
            Ok(_) => {}
            Err(_) => continue,
        }
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
                    let mut is_lost = false;
                    for attempt in 1.. {
                        let failed = || whats.iter().for_each(|what| streams.owed.note(&named, what));
                        match streams.append(&named, &whats).await {
                            Ok(true) => break,
                            Ok(false) => {
                                is_lost = attempt == 1; // else it may have been taken, and the answer lost
                                named.lose();
                                streams.counts.lost.fetch_add(1, Relaxed);
                                break;
                            }
                            Err(LinkError::Refused(why)) if !why.is_for_now() => {
                                tracing::debug!(%why, "messages of a stream are not kept");
                                failed();
                                break;
                            }
                            Err(error) if attempt == ATTEMPTS => {
                                tracing::debug!(%error, "messages of a stream are not kept");
                                failed();
                                break;
                            }
                            Err(_) => sleep(AGAIN).await,
                        }
                    }
                    streams.waiting.fetch_sub(whats.iter().map(What::size).sum(), Relaxed);
                    for what in &mut whats {
                        match what {
                            What::Opened(_, known) => drop(known.take().map(|known| known.send(()))),
                            What::Ended(_, known) => drop(known.take().map(|known| known.send(!is_lost))),
                            What::Said(..) => {}
                        }
                    }
                }
            })
            .await;
    }
}
