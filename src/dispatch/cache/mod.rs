//! Whether a call must run at all: results kept per tool, arguments and caller, and one run for many equal calls at
//! once. Home of moka.
//!
//! With several instances there is a second level behind the memory, which they share (`second`): who makes a result
//! looks there first, and writes it there. A hit in memory knows nothing of it.
//!
//! Safe by construction: a key cannot be made without saying for whom, and an outcome that is a question, a task or too
//! large never becomes an entry, nor does a failure unless its tool's policy says so. What a result is when its time is
//! over is said there too: it may be served once more while a fresh one is made, or when none can be made.

mod entry;
mod flight;
mod generation;
mod key;
mod making;
mod refreshes;
mod second;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use moka::{notification::RemovalCause, sync};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::{
    entry::{ByEntry, Kept},
    flight::Flights,
    generation::Generations,
    refreshes::Refreshes,
};
pub(crate) use self::{key::CacheKey, refreshes::Refreshing};
use crate::{
    cluster::cache::Results,
    dispatch::{Answered, Served},
    telemetry::calls::{Cached, CallMeter},
    tool::registry::CachePolicy,
    units::ByteSize,
};

/// What an entry costs besides its bytes: key, table slot, timer, counters. Measured on moka 0.12 as about 400.
const ENTRY_OVERHEAD_BYTES: usize = 400;
/// After a refresh that came to nothing, until the next.
const REFRESH_PAUSE: Duration = Duration::from_secs(1);

/// Entries that are given up at once, so that who does it soon does something else.
const SWEPT_MAX: usize = 10_000;

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

/// Kept results.
#[derive(Debug)]
pub(crate) struct Cache {
    entries: sync::Cache<CacheKey, Arc<Kept>>,
    flights: Flights,
    generations: Generations,
    refreshes: Arc<Refreshes>,
    /// The generation of everything whose predecessors are out of the memory.
    swept: AtomicU64,
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
pub(crate) enum Found {
    /// It is good.
    Fresh(Answered),
    /// It is served, and a new one is to be made, when there is room for that: nobody else makes it yet.
    Stale(Answered, Option<Refreshing>),
    Nothing,
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
            refreshes: Arc::default(),
            swept: AtomicU64::new(0),
            second,
            entry_bytes_max: config.entry_bytes_max.as_usize(),
            jitter_percent: config.ttl_jitter_percent,
        }
    }

    /// What is kept and may be served at `now`.
    pub(crate) fn find(&self, asked: &Asked<'_>, now: Instant) -> Found {
        let Some(kept) = self.valid(asked) else { return Found::Nothing };
        if now < kept.fresh_until {
            return Found::Fresh(self.serve(asked, &kept, now));
        }
        // While a failure counts, the old result stands for it.
        if now >= kept.stale_until && (kept.is_due(now) || now >= kept.on_error_until) {
            return Found::Nothing;
        }
        let is_due = kept.is_due(now) && !self.flights.is_under_way(&asked.key, kept.stamp);
        let refreshing = if is_due { self.refreshes.begin(asked.tool) } else { None };
        Found::Stale(self.serve(asked, &kept, now), refreshing)
    }

    /// What is kept and is as good as new at `now`.
    pub(crate) fn fresh(&self, asked: &Asked<'_>, now: Instant) -> Option<Answered> {
        let kept = self.valid(asked).filter(|kept| now < kept.fresh_until)?;
        Some(self.serve(asked, &kept, now))
    }

    /// The answer of a call that a kept result serves, which is counted.
    fn serve(&self, asked: &Asked<'_>, kept: &Kept, now: Instant) -> Answered {
        let answered = kept.answered(now);
        count(asked.meter, if matches!(answered.served, Served::Stale { .. }) { Cached::Stale } else { Cached::Hit });
        answered
    }

    /// An entry of the present generations.
    fn valid(&self, asked: &Asked<'_>) -> Option<Arc<Kept>> {
        let kept = self.entries.get(&asked.key)?;
        (kept.stamp == self.generations.stamp(asked.tool, asked.caller)).then_some(kept)
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

    /// Gives back the memory of what was invalidated with everything else, some of it at a time. To be called some times a
    /// second. One that lands meanwhile and is invalid already stays until its time is over.
    pub(crate) fn sweep(&self) {
        let all = self.generations.all();
        if self.swept.load(Ordering::Acquire) == all {
            return;
        }
        let mut count = 0;
        for (key, _) in self.entries.iter().filter(|(_, kept)| kept.stamp.is_before(all)).take(SWEPT_MAX) {
            self.entries.invalidate(key.as_ref());
            count += 1;
        }
        self.entries.run_pending_tasks();
        if count < SWEPT_MAX {
            self.swept.store(all, Ordering::Release);
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

/// Counts a call that ran and had to: no kept result would have been its own.
pub(crate) fn count_own_run(meter: Option<&Arc<CallMeter>>) {
    count(meter, Cached::Miss);
}

fn count(meter: Option<&Arc<CallMeter>>, what: Cached) {
    if let Some(meter) = meter {
        meter.cached(what);
    }
}

#[cfg(test)]
mod tests;
