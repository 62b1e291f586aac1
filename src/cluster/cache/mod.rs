//! Kept results that all instances share: the level behind each one's own memory. A look is one round trip, and whatever
//! comes of it that is not a good value is a plain miss; what was made here is written behind the answer. A value says
//! its form, its key and the generations in which its run began, and counts only while these are the present ones, so
//! that an invalidation is one write and goes through nothing.
//!
//! Where a tool asks for it, one instance at a time makes a result (`turn`). What a value looks like is `value`'s.

mod turn;
mod value;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::try_join_all;
use tokio::{
    sync::{Semaphore, broadcast::error::RecvError},
    time::timeout,
};

use self::value::{Bad, HEAD_BYTES, Stamp, read, stamp, written};
pub(crate) use self::{turn::Turn, value::Entry};

use super::{
    changes::{Bus, Forget},
    keys::{Keys, hex},
    link::{Link, LinkError, Refused, cmd, pipe},
};

/// KiB of values that are written at once; of more, some are not.
const WRITES_KIB_MAX: usize = 16 * 1024;
/// The longest that an operator waits to hear whether others know what is to be forgotten.
const FORGOT_WITHIN: Duration = Duration::from_secs(1);
/// The longest that who waits does not look.
const LOOK: Duration = Duration::from_millis(250);

/// Which result.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ResultId<'a> {
    pub(crate) key: &'a [u8; 32],
    pub(crate) tool: &'a str,
    /// Whose it is, when it is not everybody's.
    pub(crate) caller: Option<&'a str>,
}

/// What came of shared results, since the start.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) hits: AtomicU64,
    pub(crate) misses: AtomicU64,
    /// Redis did not say.
    pub(crate) unknown: AtomicU64,
    /// Values that could not be read.
    pub(crate) corrupt: AtomicU64,
    pub(crate) written: AtomicU64,
    /// Results that were not written: Redis said no, or too many were.
    pub(crate) not_written: AtomicU64,
    /// Results that another instance made while this one waited for it.
    pub(crate) awaited: AtomicU64,
    /// Results that were not written because the lease had ended.
    pub(crate) fenced: AtomicU64,
}

/// Results in Redis.
#[derive(Debug)]
pub(crate) struct Results {
    link: Link,
    keys: Keys,
    bus: Arc<Bus>,
    entry_bytes_max: usize,
    writes: Arc<Semaphore>,
    counts: Counts,
}

/// What a look comes to.
#[derive(Debug)]
pub(crate) enum Look {
    Found(Entry),
    /// It is to be made here.
    Make(Turn),
}

/// What is under a key at one moment.
struct Seen {
    value: Result<Entry, Bad>,
    stamp: Option<Stamp>,
}

impl Results {
    pub(super) fn new(link: Link, keys: Keys, bus: Arc<Bus>, entry_bytes_max: usize) -> Arc<Self> {
        let (writes, counts) = (Arc::new(Semaphore::new(WRITES_KIB_MAX)), Counts::default());
        Arc::new(Self { link, keys, bus, entry_bytes_max, writes, counts })
    }

    pub(crate) fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Whether others know what is to be forgotten, now or within a moment. Else they hear of it later: Redis is away, or
    /// takes no writes.
    pub(crate) async fn forgot(&self) -> bool {
        !self.link.is_away() && timeout(FORGOT_WITHIN, self.bus.forgot()).await.is_ok()
    }

    /// Has all instances forget results.
    pub(crate) fn forget(&self, forget: Forget) {
        self.bus.forget(forget);
    }

    /// Looks for a result. With `alone`, one instance at a time is told to make it, and the others wait for that.
    pub(crate) async fn look(self: &Arc<Self>, of: ResultId<'_>, alone: bool) -> Look {
        if self.bus.owes_forgetting() {
            return Look::Make(Turn { stamp: None, lease: None });
        }
        let mut landings = alone.then(|| self.bus.landings());
        let mut waited = false;
        let mut seen = self.see(of).await;
        loop {
            let stamp = match seen {
                Seen { value: Ok(entry), .. } => {
                    let count = if waited { &self.counts.awaited } else { &self.counts.hits };
                    count.fetch_add(1, Relaxed);
                    return Look::Found(entry);
                }
                Seen { stamp, .. } => stamp,
            };
            let (Some(landings), Some(now)) = (&mut landings, stamp) else {
                return Look::Make(Turn { stamp, lease: None });
            };
            match self.lead(of, now).await {
                // Redis does not say: as if there were no others.
                Err(_) => return Look::Make(Turn { stamp, lease: None }),
                Ok(Ok((Ok(entry), _gives_back))) => {
                    self.counts.hits.fetch_add(1, Relaxed);
                    return Look::Found(entry);
                }
                Ok(Ok((Err(_), lease))) => return Look::Make(Turn { stamp, lease: Some(lease) }),
                Ok(Err(left)) => {
                    waited = true;
                    let key = hex(of.key);
                    let heard = async {
                        loop {
                            match landings.recv().await {
                                Ok((landed, is_kept)) if landed == key => return is_kept,
                                Ok(_) => {}
                                Err(RecvError::Lagged(_)) => return true, // it may have been this one
                                Err(RecvError::Closed) => std::future::pending().await,
                            }
                        }
                    };
                    match timeout(left.clamp(Duration::from_millis(1), LOOK), heard).await {
                        // There is none to be had: all who wait go on by themselves.
                        Ok(false) => return Look::Make(Turn { stamp, lease: None }),
                        Ok(true) | Err(_) => seen = self.see(of).await,
                    }
                }
            }
        }
    }

    /// Ends a turn with a result, which is written behind the caller's back; or without, by dropping it.
    pub(crate) fn keep(self: &Arc<Self>, of: ResultId<'_>, turn: Turn, entry: &Entry) {
        let Turn { stamp: Some(stamp), lease } = turn else { return };
        let bytes = entry.fields.len() + entry.meta.as_ref().map_or(0, Bytes::len) + HEAD_BYTES;
        let kib = (bytes / 1024 + 1).min(WRITES_KIB_MAX);
        let permit = u32::try_from(kib).ok().and_then(|kib| Arc::clone(&self.writes).try_acquire_many_owned(kib).ok());
        let Some(permit) = permit.filter(|_| bytes <= self.bytes_max()) else {
            self.counts.not_written.fetch_add(1, Relaxed);
            return;
        };
        let (results, key) = (Arc::clone(self), *of.key);
        let name = self.keys.result(of.tool, of.key);
        let entry = entry.clone();
        tokio::spawn(async move {
            let _permit = permit;
            let value = written(&key, stamp, &entry);
            let ttl_ms = entry.left.as_millis().max(1) as u64;
            let outcome = match lease {
                None => results.link.query(cmd("SET").arg(name).arg(value).arg("PX").arg(ttl_ms)).await.map(|()| true),
                Some(mut lease) => {
                    let token = std::mem::take(&mut lease.token);
                    results.land(&key, Some((name, value, ttl_ms)), &token).await
                }
            };
            let count = match outcome {
                Ok(true) => &results.counts.written,
                Ok(false) => &results.counts.fenced,
                Err(error) => {
                    tracing::debug!(%error, "a result was not shared");
                    &results.counts.not_written
                }
            };
            count.fetch_add(1, Relaxed);
        });
    }

    /// The most that a value may take.
    fn bytes_max(&self) -> usize {
        self.entry_bytes_max + HEAD_BYTES
    }

    /// What is there: one round trip.
    async fn see(&self, of: ResultId<'_>) -> Seen {
        let seen = self.read(of).await;
        let count = match &seen {
            Err(LinkError::Refused(Refused::WrongType)) => &self.counts.corrupt,
            Err(_) => &self.counts.unknown,
            Ok(Seen { value: Err(Bad::Corrupt | Bad::Foreign), .. }) => &self.counts.corrupt,
            Ok(Seen { value: Err(_), .. }) => &self.counts.misses,
            Ok(Seen { value: Ok(_), .. }) => return seen.unwrap_or_else(|_| Seen::nothing()),
        };
        count.fetch_add(1, Relaxed);
        seen.unwrap_or_else(|error| {
            tracing::debug!(%error, "a shared result could not be looked up");
            Seen::nothing()
        })
    }

    async fn read(&self, of: ResultId<'_>) -> Result<Seen, LinkError> {
        let name = self.keys.result(of.tool, of.key);
        let mut ask = pipe();
        ask.cmd("GETRANGE").arg(&name).arg(0).arg(self.bytes_max()).cmd("PTTL").arg(&name);
        let generations = self.generations(of);
        let ((bytes, left_ms), generations): ((Vec<u8>, i64), Vec<Option<String>>) = if self.keys.is_cluster() {
            // They are in several places, so they are asked for at once but each for itself.
            let value = self.link.pipeline(&ask);
            let each = try_join_all(generations.iter().map(|name| async move {
                let mut ask = cmd("GET");
                self.link.query(ask.arg(name)).await
            }));
            futures_util::future::try_join(value, each).await?
        } else {
            ask.cmd("MGET").arg(generations);
            let (bytes, left_ms, generations) = self.link.pipeline(&ask).await?;
            ((bytes, left_ms), generations)
        };
        let stamp = stamp(&generations);
        let value = self.value(of.key, &bytes, left_ms, stamp);
        // What is not ours is not written over.
        let stamp = (value.as_ref().err() != Some(&Bad::Foreign)).then_some(stamp);
        Ok(Seen { value, stamp })
    }

    fn value(&self, key: &[u8; 32], bytes: &[u8], left_ms: i64, stamp: Stamp) -> Result<Entry, Bad> {
        if bytes.len() > self.bytes_max() {
            return Err(Bad::Foreign);
        }
        read(key, bytes, u64::try_from(left_ms).unwrap_or(0), stamp)
    }

    fn generations(&self, of: ResultId<'_>) -> Vec<String> {
        let key = Forget::Key(hex(of.key));
        let all = [Some(Forget::All), Some(Forget::Tool(of.tool.into())), of.caller.map(|c| Forget::Caller(c.into()))];
        all.into_iter().flatten().chain([key]).map(|of| self.keys.generation(&of.generation())).collect()
    }
}

impl Seen {
    fn nothing() -> Self {
        Self { value: Err(Bad::Missing), stamp: None }
    }
}
