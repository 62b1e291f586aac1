//! How a result is made: by one run for all equal calls at once, or behind an old one that is still served; and what
//! becomes of it. Who runs and who waits is `flight`'s. Each call is counted once, where it is known what served it.

use std::{
    future::Future,
    pin::{Pin, pin},
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Asked, Cache, REFRESH_PAUSE, count,
    entry::Kept,
    flight::{self, Landed, Lead, Role},
    generation::Stamp,
    key::CacheKey,
    second::Behind,
};
use crate::{
    call::Reply,
    dispatch::{Answered, Served},
    error::CallError,
    telemetry::calls::Cached,
    tool::{Outcome, registry::CachePolicy},
};

/// What a call came to.
enum Came {
    /// A kept result, which somebody else had made.
    Kept(Arc<Kept>),
    /// What its own run came to, and whether that is kept.
    Ran(Outcome, bool),
    /// What the run of an equal call came to, for which it waited, and whether that is kept.
    Shared(Outcome, bool),
}

impl Cache {
    /// The result of `run`, which is then kept. Of equal calls at once one runs and the others wait for it; when its
    /// caller leaves, one of those runs instead. When none can be made, an old one is served where the policy says so.
    /// `is_own` says after the run whether what it came to is its caller's alone; where that may well be (`alone`), nobody
    /// waits for it.
    pub(crate) async fn run(
        &self,
        asked: &Asked<'_>,
        run: impl Future<Output = Outcome>,
        alone: bool,
        is_own: impl Fn() -> bool,
    ) -> Result<Answered, CallError> {
        let run = pin!(run);
        let came = loop {
            if alone {
                break self.make_alone(asked, run, is_own).await;
            }
            let stamp = self.generations.stamp(asked.tool, asked.caller);
            match self.flights.join(asked.key, stamp) {
                Role::Runs(lead) => break self.make(asked, lead, stamp, asked.policy.is_alone, run, is_own).await,
                Role::Waits(waiting) => match flight::landed(waiting).await {
                    Some(Landed::Found(kept)) => break Came::Kept(kept),
                    Some(Landed::Made(kept)) => break Came::Shared(Ok(kept.reply.clone()), true),
                    Some(Landed::Told(outcome)) => break Came::Shared(*outcome, false),
                    Some(Landed::Own) => break self.make_alone(asked, run, is_own).await,
                    None => {} // who ran has left
                },
            }
        };
        self.answer(asked, came)
    }

    /// What is served to who waited for a result and gives up: an old one where the policy says so, else why.
    pub(crate) fn give_up(&self, asked: &Asked<'_>, why: CallError) -> Result<Answered, CallError> {
        self.answer(asked, Came::Ran(Err(why), false))
    }

    /// Makes a new result in place of one that is still served. Says whether there is one.
    pub(crate) async fn refresh(&self, asked: &Asked<'_>, run: impl Future<Output = Outcome>) -> bool {
        let stamp = self.generations.stamp(asked.tool, asked.caller);
        let Role::Runs(lead) = self.flights.join(asked.key, stamp) else { return true }; // somebody does
        // Another instance may have made one; where one is making it, nobody waits for that.
        let came = self.make(asked, lead, stamp, false, pin!(run), || false).await;
        let now = Instant::now();
        let is_new = match came {
            Came::Kept(kept) => now < kept.fresh_until,
            Came::Ran(_, is_kept) | Came::Shared(_, is_kept) => is_kept,
        };
        if !is_new && let Some(old) = self.valid(asked).filter(|old| old.is_due(now)) {
            old.put_off(now, REFRESH_PAUSE);
        }
        count(asked.meter, if is_new { Cached::Refreshed } else { Cached::NotRefreshed });
        is_new
    }

    /// Runs for all who wait, unless there is a result by now, here or behind. `alone`: of all instances.
    async fn make(
        &self,
        asked: &Asked<'_>,
        lead: Lead<'_>,
        stamp: Stamp,
        alone: bool,
        run: Pin<&mut impl Future<Output = Outcome>>,
        is_own: impl Fn() -> bool,
    ) -> Came {
        // Somebody may have kept one between the look and the lead.
        if let Some(kept) = self.valid(asked).filter(|kept| Instant::now() < kept.fresh_until) {
            lead.land(Landed::Found(Arc::clone(&kept)), |_| ());
            return Came::Kept(kept);
        }
        let turn = match self.look_behind(asked, stamp, alone).await {
            Behind::Found(kept) => {
                self.land(asked, lead, Landed::Found(Arc::clone(&kept)), None);
                return Came::Kept(kept);
            }
            Behind::Make(turn) => turn,
        };
        let outcome = told(run.await, asked.policy);
        let landed = if is_own() { Some(Landed::Own) } else { self.landed(asked, &outcome, stamp) };
        let is_kept = match landed {
            Some(landed) => self.land(asked, lead, landed, turn),
            None => false, // who waits goes on as if we had left
        };
        Came::Ran(outcome, is_kept)
    }

    /// Runs for its own call.
    async fn make_alone(
        &self,
        asked: &Asked<'_>,
        run: Pin<&mut impl Future<Output = Outcome>>,
        is_own: impl Fn() -> bool,
    ) -> Came {
        let (stamp, since) = (self.generations.stamp(asked.tool, asked.caller), self.flights.now(&asked.key));
        let turn = match self.look_behind(asked, stamp, false).await {
            Behind::Found(kept) => {
                self.land_alone(asked, since, &Landed::Found(Arc::clone(&kept)), None);
                return Came::Kept(kept);
            }
            Behind::Make(turn) => turn,
        };
        let outcome = told(run.await, asked.policy);
        let landed = if is_own() { None } else { self.landed(asked, &outcome, stamp) };
        let is_kept = landed.is_some_and(|landed| self.land_alone(asked, since, &landed, turn));
        Came::Ran(outcome, is_kept)
    }

    /// The answer of a call, which is counted.
    fn answer(&self, asked: &Asked<'_>, came: Came) -> Result<Answered, CallError> {
        let now = Instant::now();
        let (outcome, is_kept, how) = match came {
            Came::Kept(kept) => return Ok(self.serve(asked, &kept, now)),
            Came::Ran(outcome, is_kept) => (outcome, is_kept, Cached::Miss),
            Came::Shared(outcome, is_kept) => (outcome, is_kept, Cached::Coalesced),
        };
        if fails(&outcome)
            && let Some(old) = self.instead(asked, now)
        {
            return Ok(self.serve(asked, &old, now));
        }
        count(asked.meter, how);
        outcome.map(|reply| Answered { reply, served: if is_kept { Served::Miss } else { Served::Fresh } })
    }

    /// What a run came to, for who waits and for the store; `None` when it says nothing to them.
    fn landed(&self, asked: &Asked<'_>, outcome: &Outcome, stamp: Stamp) -> Option<Landed> {
        let (policy, now) = (asked.policy, Instant::now());
        let ttl_s = match outcome {
            Ok(reply) if !reply.is_final() => return Some(Landed::Own), // a task or a question is its caller's
            Ok(reply) if reply.len() > self.entry_bytes_max => None,
            // What is still good for a failure is not given up for one: it is served for as long as the failure counts.
            Ok(reply) if reply.is_error() => match (policy.error_ttl_s, self.instead(asked, now)) {
                (Some(ttl_s), Some(old)) => {
                    old.put_off(now, Duration::from_secs(ttl_s));
                    None
                }
                (ttl_s, _) => ttl_s,
            },
            Ok(_) => Some(policy.ttl_s),
            // What the tool does with these arguments is an answer to all who wait: they need not see it do so again.
            Err(CallError::Tool(_) | CallError::InvalidParams(_) | CallError::Rpc { .. } | CallError::Internal) => None,
            // What befell the call that ran is none. Where it had no time left, another may have more.
            Err(CallError::TimedOut { .. } | CallError::DeadlineBeforeStart | CallError::Cancelled) => return None,
            // Where it was refused or is to be asked, all the others go on at once, and not one after the other.
            Err(_) => return Some(Landed::Own),
        };
        let (Ok(reply), Some(ttl_s)) = (outcome, ttl_s) else { return Some(Landed::Told(Box::new(outcome.clone()))) };
        let fresh_until = now + self.jittered(Duration::from_secs(ttl_s), &asked.key, now);
        Some(Landed::Made(Arc::new(Kept::new(asked, reply.clone(), now, fresh_until, stamp))))
    }

    /// The old result that is served in place of a failure.
    pub(super) fn instead(&self, asked: &Asked<'_>, now: Instant) -> Option<Arc<Kept>> {
        self.valid(asked).filter(|old| !old.reply.is_error() && now < old.on_error_until)
    }

    /// Whether it is kept from here on: not when it was invalidated meanwhile.
    pub(super) fn keep(&self, asked: &Asked<'_>, landed: &Landed) -> bool {
        let (Landed::Made(kept) | Landed::Found(kept)) = landed else { return false };
        let is_valid = kept.stamp == self.generations.stamp(asked.tool, asked.caller);
        if is_valid {
            self.entries.insert(asked.key, Arc::clone(kept));
        }
        is_valid
    }

    /// A little less than the time, so that what was kept at one moment does not end at one.
    fn jittered(&self, ttl: Duration, key: &CacheKey, now: Instant) -> Duration {
        if self.jitter_percent == 0 {
            return ttl;
        }
        let random = key.bits() as u64 ^ u64::from(now.elapsed().subsec_nanos()).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let less = ttl.as_millis() as u64 * self.jitter_percent / 100;
        ttl - Duration::from_millis(random % (less + 1))
    }
}

/// The outcome as its client is told it: where failures are kept, one that the tool says is a result like one that it
/// returns.
fn told(outcome: Outcome, policy: CachePolicy) -> Outcome {
    match outcome {
        Err(CallError::Tool(text)) if policy.error_ttl_s.is_some() => Ok(Reply::error(&text)),
        outcome => outcome,
    }
}

/// Whether an old result is better than this.
fn fails(outcome: &Outcome) -> bool {
    match outcome {
        Ok(reply) => reply.is_error(),
        Err(error) => !matches!(
            error,
            CallError::InvalidParams(_)
                | CallError::UnknownTool(_)
                | CallError::MissingCapability(_)
                | CallError::InputRequired(_)
                | CallError::Cancelled
        ),
    }
}
