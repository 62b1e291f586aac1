//! Rates that hold across instances: the arithmetic of one instance's (the generic cell rate algorithm) in one script,
//! by the clock of Redis, for all rates that a request comes under in one go. Either all are charged or none. What the
//! rates are, and what is answered, is not known here.

use std::sync::{
    LazyLock,
    atomic::{AtomicU64, Ordering::Relaxed},
};

use super::{
    config::WhileAway,
    keys::Keys,
    link::{Link, LinkError, Script},
};

/// Times are microseconds: what a number of a script holds exactly. A key is two of them, when its whole burst is there
/// again and until when nothing passes; it expires when it says nothing any more.
static CHARGE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local whole, blocked, refused, passes = {}, {}, {}, 1
for i = 1, #KEYS do
  local w, b = string.match(redis.call('GET', KEYS[i]) or '', '^(%d+):(%d+)$')
  whole[i], blocked[i] = tonumber(w) or 0, tonumber(b) or 0
  if now < math.max(whole[i] - ARGV[3 * i - 1], blocked[i]) then refused[i], passes = true, 0 end
end
local answer = {now, passes}
for i = 1, #KEYS do
  local block, changed = tonumber(ARGV[3 * i]), false
  if passes == 1 then
    whole[i], changed = math.max(whole[i], now) + ARGV[3 * i - 2], true
  elseif refused[i] and block > 0 and blocked[i] <= now then
    blocked[i], changed = now + block, true
  end
  if changed then
    local left = math.ceil((math.max(whole[i], blocked[i]) - now) / 1000) + 1
    local value = string.format('%.0f:%.0f', whole[i], blocked[i])
    redis.call('SET', KEYS[i], value, 'PX', string.format('%.0f', left))
  end
  answer[2 * i + 1], answer[2 * i + 2] = whole[i], blocked[i]
end
return answer",
    )
});

const NS_PER_US: u64 = 1000;

/// One rate that a request is to be charged for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Charge {
    /// Whom and what it counts for.
    pub(crate) key: [u8; 16],
    /// What one request costs.
    pub(crate) spacing_ns: u64,
    /// How far ahead of now a key may be and still pass.
    pub(crate) tolerance_ns: u64,
    /// How long nothing passes after one that was too many.
    pub(crate) block_ns: u64,
}

/// What Redis decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Whether all were charged; else none was.
    pub(crate) passed: bool,
    /// The time, by the clock of Redis.
    pub(crate) now_ns: u64,
    /// After it, for each rate: when it is whole again, and until when nothing passes.
    pub(crate) states_ns: Vec<(u64, u64)>,
}

/// Who decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Redis has.
    Shared(Outcome),
    /// It is away: this instance does, by what it has seen itself.
    Local,
    /// It is away: nothing passes.
    Closed,
}

/// The shared rates.
#[derive(Debug)]
pub(crate) struct Rates {
    link: Link,
    keys: Keys,
    while_away: WhileAway,
    alone: AtomicU64,
}

impl Rates {
    pub(super) fn new(link: Link, keys: Keys, while_away: WhileAway) -> Self {
        Self { link, keys, while_away, alone: AtomicU64::new(0) }
    }

    /// Charges all of them, or none when one is too many. One round trip.
    pub(crate) async fn charge(&self, charges: &[Charge]) -> Verdict {
        match self.ask(charges).await {
            Ok(outcome) => Verdict::Shared(outcome),
            Err(error) => {
                self.alone.fetch_add(1, Relaxed);
                tracing::debug!(%error, "a rate was not decided by Redis");
                match self.while_away {
                    WhileAway::Local => Verdict::Local,
                    WhileAway::Closed => Verdict::Closed,
                }
            }
        }
    }

    /// Decisions that Redis did not make.
    pub(crate) fn alone(&self) -> u64 {
        self.alone.load(Relaxed)
    }

    async fn ask(&self, charges: &[Charge]) -> Result<Outcome, LinkError> {
        let mut script = CHARGE.prepare_invoke();
        for Charge { key, spacing_ns, tolerance_ns, block_ns } in charges {
            script.key(self.keys.rate(key));
            for ns in [spacing_ns, tolerance_ns, block_ns] {
                script.arg(*ns as f64 / NS_PER_US as f64);
            }
        }
        let answer: Vec<u64> = self.link.script(&script).await?;
        let [now_us, passed, states_us @ ..] = answer.as_slice() else {
            return Err(LinkError::Odd("a rate without a decision".into()));
        };
        let states_ns: Vec<_> =
            states_us.chunks_exact(2).map(|pair| (pair[0] * NS_PER_US, pair[1] * NS_PER_US)).collect();
        if states_ns.len() != charges.len() {
            return Err(LinkError::Odd("a decision on other rates".into()));
        }
        Ok(Outcome { passed: *passed == 1, now_ns: now_us * NS_PER_US, states_ns })
    }
}
