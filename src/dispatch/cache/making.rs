//! How a result is made: by one run for all equal calls at once, or behind an old one that is still served; and what
//! becomes of it. Who runs and who waits is `flight`'s.

use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{
    Asked, Cache, REFRESH_PAUSE, count,
    entry::Kept,
    flight::{self, Landed, Role},
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

impl Cache {
    /// The result of `run`, which is then kept. Of equal calls at once one runs and the others wait for it; when its
    /// caller leaves, one of those runs instead. When none can be made, an old one is served where the policy says so.
    pub(crate) async fn run(
        &self,
        asked: &Asked<'_>,
        run: impl Future<Output = Outcome>,
    ) -> Result<Answered, CallError> {
        let outcome = loop {
            let stamp = self.generations.stamp(asked.tool, asked.caller);
            match self.flights.join(asked.key, stamp) {
                Role::Runs(lead) => {
                    // Somebody may have kept a result between the look and the lead.
                    let now = Instant::now();
                    if let Some(kept) = self.valid(asked).filter(|kept| now < kept.fresh_until) {
                        let answered = kept.answered(now, |age_s| Served::Hit { age_s });
                        lead.land(Landed::Kept(kept), |_| ());
                        count(asked.meter, Cached::Coalesced);
                        return Ok(answered);
                    }
                    let turn = match self.look_behind(asked, stamp, asked.policy.is_alone).await {
                        Behind::Found(kept) => {
                            let answered = kept.answered(Instant::now(), |age_s| Served::Hit { age_s });
                            self.land(asked, lead, Landed::Kept(kept), None);
                            count(asked.meter, Cached::Hit);
                            return Ok(answered);
                        }
                        Behind::Make(turn) => turn,
                    };
                    let outcome = told(run.await, asked.policy);
                    count(asked.meter, Cached::Miss);
                    let landed = self.landed(asked, &outcome, stamp);
                    let is_kept = matches!(landed, Some(Landed::Kept(_)));
                    if let Some(landed) = landed {
                        self.land(asked, lead, landed, turn);
                    } // else who waits goes on as if we had left
                    if is_kept {
                        return outcome.map(|reply| Answered { reply, served: Served::Miss });
                    }
                    break outcome;
                }
                Role::Waits(waiting) => match flight::landed(waiting).await {
                    Some(Landed::Kept(kept)) => {
                        count(asked.meter, Cached::Coalesced);
                        return Ok(Answered { reply: kept.reply.clone(), served: Served::Miss });
                    }
                    Some(Landed::Told(outcome)) => {
                        count(asked.meter, Cached::Coalesced);
                        break *outcome;
                    }
                    Some(Landed::Own) => break run.await,
                    None => {} // who ran has left
                },
            }
        };
        let now = Instant::now();
        if fails(&outcome)
            && let Some(old) = self.instead(asked, now)
        {
            count(asked.meter, Cached::Stale);
            return Ok(old.answered(now, |age_s| Served::Stale { age_s }));
        }
        outcome.map(|reply| Answered { reply, served: Served::Fresh })
    }

    /// Makes a new result in place of one that is still served. Says whether it was kept.
    pub(crate) async fn refresh(&self, asked: &Asked<'_>, run: impl Future<Output = Outcome>) -> bool {
        let stamp = self.generations.stamp(asked.tool, asked.caller);
        let Role::Runs(lead) = self.flights.join(asked.key, stamp) else { return true }; // somebody does
        // Another instance may have made one.
        let turn = match self.look_behind(asked, stamp, false).await {
            Behind::Found(kept) => {
                self.land(asked, lead, Landed::Kept(kept), None);
                count(asked.meter, Cached::Refreshed);
                return true;
            }
            Behind::Make(turn) => turn,
        };
        let outcome = told(run.await, asked.policy);
        let landed = self.landed(asked, &outcome, stamp);
        let is_kept = matches!(landed, Some(Landed::Kept(_)));
        if let Some(landed) = landed {
            self.land(asked, lead, landed, turn);
        }
        let now = Instant::now();
        if !is_kept && let Some(old) = self.valid(asked).filter(|old| old.is_due(now)) {
            old.put_off(now, REFRESH_PAUSE);
        }
        count(asked.meter, if is_kept { Cached::Refreshed } else { Cached::NotRefreshed });
        is_kept
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
            Err(CallError::Tool(_) | CallError::InvalidParams(_)) => None,
            // What befell the call that ran (its deadline, its client) is no answer to those that waited for it.
            Err(CallError::InputRequired(_)) => return Some(Landed::Own),
            Err(_) => return None,
        };
        let (Ok(reply), Some(ttl_s)) = (outcome, ttl_s) else { return Some(Landed::Told(Box::new(outcome.clone()))) };
        let fresh_until = now + self.jittered(Duration::from_secs(ttl_s), &asked.key, now);
        Some(Landed::Kept(Arc::new(Kept::new(asked, reply.clone(), now, fresh_until, stamp))))
    }

    /// The old result that is served in place of a failure.
    fn instead(&self, asked: &Asked<'_>, now: Instant) -> Option<Arc<Kept>> {
        self.valid(asked).filter(|old| !old.reply.is_error() && now < old.on_error_until)
    }

    /// Whether it is kept from here on: not when it was invalidated meanwhile.
    pub(super) fn keep(&self, asked: &Asked<'_>, landed: &Landed) -> bool {
        let Landed::Kept(kept) = landed else { return false };
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
