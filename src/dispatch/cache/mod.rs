//! Whether a call must run at all: results kept per tool, arguments and caller, and one run for many equal calls at
//! once. Home of moka.
//!
//! With several instances there is a second level behind the memory, which they share (`second`): who makes a result
//! looks there first, and writes it there. A hit in memory knows nothing of it.
//!
//! Safe by construction: a key cannot be made without saying for whom, and an outcome that is an error, a question, a
//! task or too large never becomes an entry. What a result is when its time is over is said by its tool's policy: it
//! may be served once more while a fresh one is made, or when none can be made.

mod flight;
mod generation;
mod key;
mod second;

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use moka::{notification::RemovalCause, sync};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, SemaphorePermit};

pub(crate) use self::key::CacheKey;
use self::{
    flight::{Flights, Landed, Role},
    generation::{Generations, Stamp},
    second::Behind,
};
use crate::{
    call::Reply,
    cluster::cache::Results,
    dispatch::{Answered, Served},
    error::CallError,
    telemetry::calls::{Cached, CallMeter},
    tool::{Outcome, registry::CachePolicy},
    units::ByteSize,
};

/// What an entry costs besides its bytes: key, table slot, timer, counters. Measured on moka 0.12 as about 400.
const ENTRY_OVERHEAD_BYTES: usize = 400;
/// After a refresh that came to nothing, until the next.
const REFRESH_PAUSE_S: u64 = 1;
/// Runs that refresh a result which is still served. Beyond it the old one is served on without a refresh.
const REFRESHES_MAX: usize = 64;

/// `[cache]`: results kept in memory. Which tools are cached is said per tool.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Memory for kept results.
    pub bytes_max: ByteSize,
    /// Size of one result; larger ones are not kept.
    pub entry_bytes_max: ByteSize,
    /// By how much less than its time a result may be kept, in hundredths.
    pub ttl_jitter_percent: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self { bytes_max: ByteSize::mib(256), entry_bytes_max: ByteSize::mib(1), ttl_jitter_percent: 10 }
    }
}

/// A kept result.
#[derive(Debug)]
pub(super) struct Kept {
    reply: Reply,
    made_at: Instant,
    /// Until then it is as good as new.
    fresh_until: Instant,
    /// Until then it is served while a new one is made.
    stale_until: Instant,
    /// Until then it is served when none can be made.
    on_error_until: Instant,
    /// At which age a new one is tried, after a try that came to nothing.
    next_try_s: AtomicU64,
    stamp: Stamp,
    meter: Option<Arc<CallMeter>>,
}

impl Kept {
    fn new(asked: &Asked<'_>, reply: Reply, made_at: Instant, fresh_until: Instant, stamp: Stamp) -> Self {
        let after = |seconds: Option<u64>| match seconds {
            Some(seconds) if !reply.is_error() => fresh_until + Duration::from_secs(seconds),
            _ => fresh_until,
        };
        Self {
            made_at,
            fresh_until,
            stale_until: after(asked.policy.stale_while_revalidate_s),
            on_error_until: after(asked.policy.stale_if_error_s),
            next_try_s: AtomicU64::new(0),
            stamp,
            meter: asked.meter.cloned(),
            reply,
        }
    }

    fn age_s(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.made_at).as_secs()
    }

    fn gone_at(&self) -> Instant {
        self.fresh_until.max(self.stale_until).max(self.on_error_until)
    }

    fn answered(&self, now: Instant, served: fn(u64) -> Served) -> Answered {
        Answered { reply: self.reply.clone(), served: served(self.age_s(now)) }
    }
}

struct ByEntry;

impl moka::Expiry<CacheKey, Arc<Kept>> for ByEntry {
    fn expire_after_create(&self, _: &CacheKey, kept: &Arc<Kept>, now: Instant) -> Option<Duration> {
        Some(kept.gone_at().saturating_duration_since(now))
    }

    fn expire_after_update(
        &self,
        _: &CacheKey,
        kept: &Arc<Kept>,
        now: Instant,
        _: Option<Duration>,
    ) -> Option<Duration> {
        Some(kept.gone_at().saturating_duration_since(now))
    }
}

/// Kept results.
#[derive(Debug)]
pub(crate) struct Cache {
    entries: sync::Cache<CacheKey, Arc<Kept>>,
    flights: Flights,
    generations: Generations,
    refreshes: Semaphore,
    /// What instances share, where there are several.
    second: Option<Arc<Results>>,
    entry_bytes_max: usize,
    jitter_percent: u64,
}

/// Whose result is asked for, and what is known of it.
#[derive(Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub(crate) key: CacheKey,
    pub(crate) tool: &'a str,
    /// Whose it is, when it is not everybody's.
    pub(crate) caller: Option<&'a str>,
    pub(crate) policy: CachePolicy,
    pub(crate) meter: Option<&'a Arc<CallMeter>>,
}

/// What there is under a key.
pub(crate) enum Found<'c> {
    /// It is good.
    Fresh(Answered),
    /// It is served, and a new one is to be made, when there is a permit: nobody else makes it yet.
    Stale(Answered, Option<SemaphorePermit<'c>>),
    Nothing,
}

/// A refresh under way.
pub(crate) struct Refreshing<'c>(&'c Cache);

impl Drop for Refreshing<'_> {
    fn drop(&mut self) {
        self.0.refreshes.add_permits(1);
    }
}

/// What is invalidated.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Which<'a> {
    All,
    Tool(&'a str),
    Caller(&'a str),
    Key(CacheKey),
}

impl Cache {
    pub(crate) fn new(config: &Config, second: Option<Arc<Results>>) -> Self {
        let entries = sync::Cache::builder()
            .max_capacity(config.bytes_max.0)
            .weigher(|_: &CacheKey, kept: &Arc<Kept>| {
                u32::try_from(size_of::<Kept>() + kept.reply.len() + ENTRY_OVERHEAD_BYTES).unwrap_or(u32::MAX)
            })
            .expire_after(ByEntry)
            .eviction_listener(|_, kept: Arc<Kept>, cause| {
                if let (RemovalCause::Size, Some(meter)) = (cause, &kept.meter) {
                    meter.cached(Cached::Evicted);
                }
            })
            .build();
        Self {
            entries,
            flights: Flights::default(),
            generations: Generations::default(),
            refreshes: Semaphore::new(REFRESHES_MAX),
            second,
            entry_bytes_max: config.entry_bytes_max.as_usize(),
            jitter_percent: config.ttl_jitter_percent,
        }
    }

    /// What is kept and may be served at `now`.
    pub(crate) fn find(&self, asked: &Asked<'_>, now: Instant) -> Found<'_> {
        let Some(kept) = self.valid(asked) else { return Found::Nothing };
        if now < kept.fresh_until {
            count(asked.meter, Cached::Hit);
            return Found::Fresh(kept.answered(now, |age_s| Served::Hit { age_s }));
        }
        if now >= kept.stale_until {
            return Found::Nothing;
        }
        count(asked.meter, Cached::Stale);
        let is_due = kept.age_s(now) >= kept.next_try_s.load(Ordering::Relaxed)
            && !self.flights.is_under_way(&asked.key, kept.stamp);
        let permit = if is_due { self.refreshes.try_acquire().ok() } else { None };
        Found::Stale(kept.answered(now, |age_s| Served::Stale { age_s }), permit)
    }

    /// What is kept and is as good as new at `now`.
    pub(crate) fn fresh(&self, asked: &Asked<'_>, now: Instant) -> Option<Answered> {
        let kept = self.valid(asked).filter(|kept| now < kept.fresh_until)?;
        count(asked.meter, Cached::Hit);
        Some(kept.answered(now, |age_s| Served::Hit { age_s }))
    }

    /// An entry of the present generations.
    fn valid(&self, asked: &Asked<'_>) -> Option<Arc<Kept>> {
        let kept = self.entries.get(&asked.key)?;
        (kept.stamp == self.generations.stamp(asked.tool, asked.caller)).then_some(kept)
    }

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
                    let outcome = run.await;
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
        if fails(&outcome)
            && let Some(old) = self.valid(asked)
            && Instant::now() < old.on_error_until
        {
            count(asked.meter, Cached::Stale);
            return Ok(old.answered(Instant::now(), |age_s| Served::Stale { age_s }));
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
        let outcome = run.await;
        let landed = self.landed(asked, &outcome, stamp);
        let is_kept = matches!(landed, Some(Landed::Kept(_)));
        if let Some(landed) = landed {
            self.land(asked, lead, landed, turn);
        }
        if !is_kept && let Some(old) = self.valid(asked) {
            old.next_try_s.store(old.age_s(Instant::now()) + REFRESH_PAUSE_S, Ordering::Relaxed);
        }
        count(asked.meter, if is_kept { Cached::Refreshed } else { Cached::NotRefreshed });
        is_kept
    }

    /// To be held while a result is refreshed for which a permit was taken.
    pub(crate) fn refreshing(&self) -> Refreshing<'_> {
        Refreshing(self)
    }

    /// What a run came to, for who waits and for the store; `None` when it says nothing to them.
    fn landed(&self, asked: &Asked<'_>, outcome: &Outcome, stamp: Stamp) -> Option<Landed> {
        let policy = asked.policy;
        let ttl_s = match outcome {
            Ok(reply) if !reply.is_final() => return Some(Landed::Own), // a task or a question is its caller's
            Ok(reply) if reply.len() > self.entry_bytes_max => None,
            Ok(reply) if reply.is_error() => policy.error_ttl_s,
            Ok(_) => Some(policy.ttl_s),
            Err(CallError::Tool(_) | CallError::InvalidParams(_)) => None,
            // What befell the call that ran (its deadline, its client) is no answer to those that waited for it.
            Err(CallError::InputRequired(_)) => return Some(Landed::Own),
            Err(_) => return None,
        };
        let (Ok(reply), Some(ttl_s)) = (outcome, ttl_s) else { return Some(Landed::Told(Box::new(outcome.clone()))) };
        let now = Instant::now();
        let fresh_until = now + self.jittered(Duration::from_secs(ttl_s), &asked.key, now);
        Some(Landed::Kept(Arc::new(Kept::new(asked, reply.clone(), now, fresh_until, stamp))))
    }

    /// Whether it is kept from here on: not when it was invalidated meanwhile.
    fn keep(&self, asked: &Asked<'_>, landed: &Landed) -> bool {
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

    /// From here on nothing that was kept or had begun before is served.
    pub(crate) fn invalidate(&self, which: Which<'_>) {
        self.invalidate_here(which);
        self.invalidate_behind(which);
    }

    /// The same for this instance alone: another one said so.
    pub(crate) fn invalidate_here(&self, which: Which<'_>) {
        match which {
            Which::All => self.generations.invalidate_all(),
            Which::Tool(tool) => self.generations.invalidate_tool(tool),
            Which::Caller(caller) => self.generations.invalidate_caller(caller),
            Which::Key(key) => {
                self.flights.invalidate(&key); // first, so that what runs is not kept after the removal
                self.entries.invalidate(&key);
            }
        }
    }

    /// Gives about this share of the entries up, whichever: memory is short.
    #[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss, clippy::cast_sign_loss)] // a share
    pub(crate) fn shrink(&self, share: f64) {
        let count = (self.entries.entry_count() as f64 * share).ceil() as usize;
        for (key, _) in self.entries.iter().take(count) {
            self.entries.invalidate(key.as_ref());
        }
        self.entries.run_pending_tasks();
    }

    /// What instances share.
    pub(crate) fn second(&self) -> Option<&Arc<Results>> {
        self.second.as_ref()
    }

    /// Entries, and the bytes that they take.
    pub(crate) fn size(&self) -> (u64, u64) {
        (self.entries.entry_count(), self.entries.weighted_size())
    }
}

fn count(meter: Option<&Arc<CallMeter>>, what: Cached) {
    if let Some(meter) = meter {
        meter.cached(what);
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

#[cfg(test)]
mod tests;
