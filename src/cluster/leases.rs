//! Who writes a stream of a session, and how another comes to: each process says all the time that it lives (its lease),
//! and a stream whose writer does not is taken over by one of those who read it. Each that takes a stream over gets a
//! fencing token one above that of the writer before, in the same step in which it is noted in the stream itself; so of
//! several who try, one succeeds, and whoever was only slow is refused from then on (`streams`).
//!
//! ```text
//! lives:{PROCESS}    there as long as the process renews it
//! ```

use std::{
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use parking_lot::Mutex;
use redis::Value;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::{
    link::{LinkError, Script, cmd},
    sessions::Hash,
    streams::Streams,
    writing::{Named, Writer},
};

/// So long a process lives that said so, and the pause until it says so again. What hangs for longer than the lease has
/// lost its streams to whoever asks for them.
const LEASE: Duration = Duration::from_secs(10);
const RENEWAL: Duration = Duration::from_secs(3);
/// Between two attempts to take a stream over while it is not known what came of the last, and how many there are.
const AGAIN: Duration = Duration::from_millis(250);
const ATTEMPTS: usize = 120;

/// How often a stream is taken over: what ends one instance after the other is given up.
const TAKEN_MAX: u64 = 8;

/// Takes a stream over from the writer and token that are expected, after its last message or after what its reader has
/// already, if that is more: the new token, the number, and the call. A 0 when somebody else was first or it has ended,
/// -1 when nothing is kept, -2 when it was taken over too often.
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
if nonce == ARGV[7] then return {tonumber(fence), tonumber(skipped), redis.call('GET', KEYS[2])} end
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
return {token, at - number, redis.call('GET', KEYS[2])}",
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

/// After Redis was away nobody is judged by what is not there for so long: others have to find their way back first.
const UNSTEADY: Duration = Duration::from_secs(5);

/// Whether what is missing in Redis says something of others.
#[derive(Debug, Default)]
pub(crate) struct Steady(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// When our own lease was renewed last.
    renewed: Option<Instant>,
    /// How often Redis was away by the last look.
    times_away: u64,
    /// Leases, and those who listen, are there again from then on, if their owners are.
    leases_from: Option<Instant>,
    listeners_from: Option<Instant>,
}

impl Steady {
    /// Our own lease was renewed. When that took long, others may not have come to it at all.
    fn note_renewal(&self, now: Instant) {
        let mut state = self.0.lock();
        match state.renewed.replace(now) {
            Some(before) if now.duration_since(before) <= 2 * RENEWAL => {}
            Some(_) => state.leases_from = Some(now + LEASE),
            None => state.leases_from = Some(now + RENEWAL),
        }
    }

    /// Our own connection was another for a moment, or none.
    fn note_gap(&self, now: Instant) {
        self.0.lock().listeners_from = Some(now + UNSTEADY);
    }

    /// Whether it says something that somebody does not listen, and that somebody has no lease.
    fn look(&self, now: Instant, times_away: u64) -> (bool, bool) {
        let mut state = self.0.lock();
        if std::mem::replace(&mut state.times_away, times_away) != times_away {
            state.listeners_from = Some(now + UNSTEADY);
        }
        let is_over = |from: Option<Instant>| from.is_none_or(|from| now >= from);
        let listeners = is_over(state.listeners_from);
        let is_renewed = state.renewed.is_some_and(|renewed| now.duration_since(renewed) <= 2 * RENEWAL);
        (listeners, listeners && is_renewed && is_over(state.leases_from))
    }
}

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
}

/// What became of an attempt to take a stream over.
#[derive(Debug)]
pub(crate) enum Taken {
    /// It is ours.
    Ours {
        writer: Writer,
        /// Messages that its reader has and Redis never got.
        missing: u64,
        /// The call that spoke there, if it may be run again.
        call: Option<Bytes>,
    },
    /// Somebody else has it, or it has ended.
    Others,
    /// There is nothing to be taken over.
    Gone,
}

impl Streams {
    /// Says that this process lives, again and again, in a task of the runtime that this is called in, as long as
    /// somebody can write.
    pub(super) fn keep_lease(self, is_of_use: impl Fn() -> bool + Send + 'static) {
        tokio::spawn(async move {
            let mut ticks = interval(RENEWAL);
            ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
            loop {
                ticks.tick().await;
                if self.has_left.load(Relaxed) || !is_of_use() {
                    return;
                }
                let mut set = cmd("SET");
                set.arg(self.keys.lives(self.tag)).arg("").arg("PX").arg(LEASE.as_millis() as u64);
                if self.link.query::<()>(&set).await.is_ok() {
                    self.steady.note_renewal(Instant::now()); // else the next one comes soon
                }
            }
        });
    }

    pub(crate) fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Gives the lease back: this process ends.
    pub(crate) async fn leave(&self) {
        self.has_left.store(true, Relaxed);
        let _: Result<(), LinkError> = self.link.query(cmd("DEL").arg(self.keys.lives(self.tag))).await;
    }

    /// What others tell was not heard for a moment.
    pub(crate) fn note_gap(&self) {
        self.steady.note_gap(Instant::now());
    }

    /// Whether a process is there: it listens to its mail and renews its lease. `None` when that cannot be told.
    pub(crate) async fn lives(&self, tag: u32) -> Option<bool> {
        if tag == self.tag {
            return Some(true);
        }
        // In a cluster all nodes are asked and the answers added up. What was killed listens no more at once.
        let counted: Vec<(String, u64)> =
            self.link.query(cmd("PUBSUB").arg("NUMSUB").arg(self.keys.mail(tag))).await.ok()?;
        let (tell_listeners, tell_leases) = self.steady.look(Instant::now(), self.link.times_away());
        if counted.first()?.1 == 0 {
            return tell_listeners.then_some(false);
        }
        if !tell_leases {
            return None;
        }
        let leased: u64 = self.link.query(cmd("EXISTS").arg(self.keys.lives(tag))).await.ok()?;
        Some(leased > 0)
    }

    /// Takes over a stream whose writer has gone.
    ///
    /// # Errors
    /// Redis does not say, also not when asked again.
    pub(crate) async fn take_over(&self, claim: &Claim<'_>) -> Result<Taken, LinkError> {
        let Claim { hash, name, about, writer: (gone, fence), seen } = *claim;
        // By which an attempt is known whose answer was lost.
        let nonce = format!("{:08x}{:08x}", self.tag, getrandom::u32().unwrap_or_default());
        let mut script = TAKE.prepare_invoke();
        script.key(self.key(hash, name)).key(self.call_key(hash, name));
        script.arg(format!("{gone:08x}")).arg(fence).arg(format!("{:08x}", self.tag)).arg(seen);
        script.arg(about).arg(self.open_ms).arg(nonce).arg(TAKEN_MAX);
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
            0 => return Ok(Taken::Others),
            token => match u64::try_from(token) {
                Ok(token) => token,
                Err(_) => return Ok(Taken::Gone),
            },
        };
        let call = match answer.into_iter().nth(2) {
            Some(Value::BulkString(call)) => Some(Bytes::from(call)),
            _ => None,
        };
        let writer = self.writer(Named::new(hash, name.to_owned(), about.to_owned(), token));
        Ok(Taken::Ours { writer, missing, call })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_is_judged_while_redis_was_away() {
        let (steady, start) = (Steady::default(), Instant::now());
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        assert_eq!(steady.look(at(0), 0), (true, false), "others may have no lease yet");
        for second in (0..=9).step_by(3) {
            steady.note_renewal(at(second));
        }
        assert_eq!(steady.look(at(10), 0), (true, true));
        assert_eq!(steady.look(at(16), 0), (true, false), "our own is not renewed either");
        steady.note_renewal(at(17));
        assert_eq!(steady.look(at(17), 0), (true, false), "and then others need their time");
        (20..=26).step_by(3).for_each(|second| steady.note_renewal(at(second)));
        assert_eq!(steady.look(at(27), 0), (true, true));
        assert_eq!(steady.look(at(27), 1), (false, false), "Redis was away");
        (29..=32).step_by(3).for_each(|second| steady.note_renewal(at(second)));
        assert_eq!(steady.look(at(32), 1), (true, true));
        steady.note_gap(at(32));
        assert_eq!(steady.look(at(33), 1), (false, false));
    }
}
