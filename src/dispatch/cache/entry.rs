//! A kept result: what it is at which moment, and when it is gone. Which of them count is `generation`'s.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::{Asked, generation::Stamp, key::CacheKey};
use crate::{
    call::Reply,
    dispatch::{Answered, Served},
    telemetry::calls::CallMeter,
};

/// A kept result.
#[derive(Debug)]
pub(super) struct Kept {
    pub(super) reply: Reply,
    pub(super) made_at: Instant,
    /// Until then it is as good as new.
    pub(super) fresh_until: Instant,
    /// Until then it is served while a new one is made.
    pub(super) stale_until: Instant,
    /// Until then it is served when none can be made.
    pub(super) on_error_until: Instant,
    /// At which age a new one is tried, after a try that came to nothing.
    next_try_ms: AtomicU64,
    pub(super) stamp: Stamp,
    pub(super) meter: Option<Arc<CallMeter>>,
}

impl Kept {
    pub(super) fn new(asked: &Asked<'_>, reply: Reply, made_at: Instant, fresh_until: Instant, stamp: Stamp) -> Self {
        let after = |seconds: Option<u64>| match seconds {
            Some(seconds) if !reply.is_error() => fresh_until + Duration::from_secs(seconds),
            _ => fresh_until,
        };
        Self {
            made_at,
            fresh_until,
            stale_until: after(asked.policy.stale_while_revalidate_s),
            on_error_until: after(asked.policy.stale_if_error_s),
            next_try_ms: AtomicU64::new(0),
            stamp,
            meter: asked.meter.cloned(),
            reply,
        }
    }

    fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.made_at)
    }

    /// A try to make a new one came to nothing: the next is put off.
    pub(super) fn put_off(&self, now: Instant, pause: Duration) {
        self.next_try_ms.store((self.age(now) + pause).as_millis() as u64, Ordering::Relaxed);
    }

    /// Whether a new one may be tried.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.age(now).as_millis() as u64 >= self.next_try_ms.load(Ordering::Relaxed)
    }

    fn gone_at(&self) -> Instant {
        self.fresh_until.max(self.stale_until).max(self.on_error_until)
    }

    pub(super) fn answered(&self, now: Instant) -> Answered {
        let age_s = self.age(now).as_secs();
        let served = if now < self.fresh_until { Served::Hit { age_s } } else { Served::Stale { age_s } };
        Answered { reply: self.reply.clone(), served }
    }
}

/// When an entry is gone: as it says itself.
pub(super) struct ByEntry;

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
