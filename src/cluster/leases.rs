//! Who writes a stream of a session, and how another comes to: a stream whose writer is gone (`presence`) is taken over
//! by one of those who read it. Each that takes a stream over gets a fencing token one above that of the writer before,
//! in the same step in which it is noted in the stream itself; so of several who try, one succeeds, and whoever was only
//! slow is refused from then on (`streams`).

use std::{
    sync::{LazyLock, atomic::AtomicU64},
    time::Duration,
};

use bytes::Bytes;
use redis::Value;
use serde_json::Value as JsonValue;
use tokio::time::sleep;

use super::{
    link::{LinkError, Script, cmd},
    sessions::{Hash, cancelled, mark},
    streams::Streams,
    writing::{OpenStream, Writer},
};

/// Between two attempts to take a stream over while it is not known what came of the last, and how many there are.
const AGAIN: Duration = Duration::from_millis(250);
const ATTEMPTS: usize = 120;

/// How often a stream is taken over: what ends one instance after the other is given up.
const TAKEN_MAX: u64 = 8;

/// Takes a stream over from the writer and token that are expected, after its last message or after what its reader has
/// already, if that is more: the new token, the number, the call, and whether it was taken back. A 0 when somebody else
/// was first or it has ended, -1 when nothing is kept, -2 when it was taken over too often.
static TAKE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"local last = redis.call('XREVRANGE', KEYS[1], '+', '-', 'COUNT', 1)[1]
if not last then return {-1} end
local number, kind = string.match(last[1], '^(%d+)-(%d+)$')
number, kind = tonumber(number), tonumber(kind)
if kind == 9 then return {0} end
local by, fence, nonce, skipped = '', '0', '', '0'
for i = 1, #last[2], 2 do
  if last[2][i] == 'n' then by = last[2][i + 1] end
  if last[2][i] == 'f' then fence = last[2][i + 1] end
  if last[2][i] == 'x' then nonce = last[2][i + 1] end
  if last[2][i] == 's' then skipped = last[2][i + 1] end
end
local function taken(token, missing)
  local is_cancelled = 0
  for _, mark in ipairs(redis.call('LRANGE', KEYS[3], 0, -1)) do
    if mark == ARGV[9] then is_cancelled = 1 end
  end
  return {token, missing, redis.call('GET', KEYS[2]), is_cancelled}
end
if nonce == ARGV[7] then return taken(tonumber(fence), tonumber(skipped)) end
if by ~= ARGV[1] or fence ~= ARGV[2] then return {0} end
local at, step = tonumber(ARGV[4]), 2
if at <= number then
  at, step = number, kind + 1
end
if step > 8 or tonumber(fence) >= tonumber(ARGV[8]) then return {-2} end
local token = tonumber(fence) + 1
redis.call('XADD', KEYS[1], string.format('%.0f-%d', at, step), 'n', ARGV[3], 'f', string.format('%.0f', token),
  'a', ARGV[5], 'x', ARGV[7], 's', string.format('%.0f', at - number))
redis.call('PEXPIRE', KEYS[1], ARGV[6])
redis.call('PEXPIRE', KEYS[2], ARGV[6])
return taken(token, at - number)",
    )
});

/// Counts a reader, and tells the others of it: who reads this stream elsewhere reads no more.
static TURN: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"local turn = redis.call('INCR', KEYS[1])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
redis.call('PUBLISH', ARGV[1], ARGV[2] .. string.format('%.0f', turn) .. ' ' .. ARGV[4])
return turn",
    )
});

/// What became here of calls whose instance had gone, since the start.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Run again.
    pub(crate) again: AtomicU64,
    /// Ended with an error.
    pub(crate) given_up: AtomicU64,
    /// Tasks that were run again.
    pub(crate) tasks: AtomicU64,
    /// Streams of this instance that another took over.
    pub(crate) lost: AtomicU64,
}

/// A stream that is to be taken over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Claim<'a> {
    pub(crate) hash: Hash,
    pub(crate) name: &'a str,
    pub(crate) about: &'a str,
    /// Who has it, as far as is known, and with what.
    pub(crate) writer: (u32, u64),
    /// The number of the last message that its reader has.
    pub(crate) seen: u64,
    /// The request that it answers.
    pub(crate) request: &'a JsonValue,
}

/// What became of an attempt to take a stream over.
#[derive(Debug)]
pub(crate) enum TakeOver {
    /// It is ours.
    Ours {
        writer: Writer,
        /// Messages that its reader has and Redis never got.
        missing: u64,
        /// The call that spoke there, if it may be run again.
        call: Option<Bytes>,
        /// Its client has taken it back.
        is_cancelled: bool,
    },
    /// Somebody else has it, or it has ended.
    Others,
    /// There is nothing to be taken over.
    Gone,
}

impl Streams {
    pub(crate) fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Takes over a stream whose writer has gone.
    ///
    /// # Errors
    /// Redis does not say, also not when asked again.
    pub(crate) async fn take_over(&self, claim: &Claim<'_>) -> Result<TakeOver, LinkError> {
        let Claim { hash, name, about, writer: (gone, fence), seen, request } = *claim;
        // By which an attempt is known whose answer was lost.
        let nonce = format!("{:08x}{:08x}", self.tag, getrandom::u32().unwrap_or_default());
        let mut script = TAKE.prepare_invoke();
        script.key(self.key(hash, name)).key(self.call_key(hash, name)).key(cancelled(&self.keys, hash));
        script.arg(format!("{gone:08x}")).arg(fence).arg(format!("{:08x}", self.tag)).arg(seen);
        script.arg(about).arg(self.open_ms).arg(nonce).arg(TAKEN_MAX).arg(mark(request));
        let mut answer: Result<Vec<Value>, LinkError> = self.link.script(&script).await;
        for _ in 0..ATTEMPTS {
            if !matches!(answer, Err(LinkError::Unknown(_) | LinkError::Away | LinkError::Crowded)) {
                break;
            }
            sleep(AGAIN).await;
            answer = self.link.script(&script).await;
        }
        let answer = answer?;
        let number = |at: usize| match answer.get(at) {
            Some(Value::Int(number)) => *number,
            _ => 0,
        };
        let missing = u64::try_from(number(1)).unwrap_or_default();
        let token = match number(0) {
            0 => return Ok(TakeOver::Others),
            token => match u64::try_from(token) {
                Ok(token) => token,
                Err(_) => return Ok(TakeOver::Gone),
            },
        };
        let is_cancelled = number(3) > 0;
        let call = match answer.into_iter().nth(2) {
            Some(Value::BulkString(call)) => Some(Bytes::from(call)),
            _ => None,
        };
        let writer = self.writer(OpenStream::new(hash, name.to_owned(), about.to_owned(), token));
        Ok(TakeOver::Ours { writer, missing, call, is_cancelled })
    }

    /// Whether a call was taken back at an instance that did not run it.
    pub(crate) async fn is_cancelled(&self, hash: Hash, request: &JsonValue) -> Result<bool, LinkError> {
        let marks: Vec<String> = self.link.query(cmd("LRANGE").arg(cancelled(&self.keys, hash)).arg(0).arg(-1)).await?;
        Ok(marks.contains(&mark(request)))
    }

    /// Counts a reader of a stream and tells the others of it; the number of its turn.
    ///
    /// # Errors
    /// Redis does not say.
    pub(crate) async fn turn(&self, hash: Hash, name: &str) -> Result<u64, LinkError> {
        let mut script = TURN.prepare_invoke();
        script.key(format!("{}:turns", self.keys.session(&hash.text()))).arg(self.keys.sessions());
        script.arg(format!("t{:08x}{}", self.tag, hash.text())).arg(self.open_ms).arg(name);
        self.link.script(&script).await
    }
}
