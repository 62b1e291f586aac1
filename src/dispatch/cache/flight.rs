//! Equal calls at once: one runs, the others wait for it. Who runs may leave, and then one of those who wait runs
//! instead; how often that happens does not matter.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use parking_lot::Mutex;
use tokio::sync::watch;

use super::{entry::Kept, generation::Stamp, key::CacheKey};
use crate::tool::Outcome;

/// Locks, so that calls of different keys seldom meet.
const SHARDS: usize = 64;

/// What a run came to, for those who waited.
#[derive(Clone, Debug)]
pub(super) enum Landed {
    /// A new result, to be kept.
    Made(Arc<Kept>),
    /// A result that there was already, here or behind.
    Found(Arc<Kept>),
    /// An outcome that is told and not kept.
    Told(Box<Outcome>),
    /// Nothing that is theirs: they run by themselves.
    Own,
}

type Waiting = watch::Receiver<Option<Landed>>;

/// All runs that others may wait for.
#[derive(Debug)]
pub(super) struct Flights {
    shards: Box<[Mutex<HashMap<CacheKey, Flight>>]>,
    begun: AtomicU64,
}

#[derive(Debug)]
struct Flight {
    number: u64,
    waiting: Waiting,
    /// When it began. Who comes in a later generation does not wait for what is of an earlier one.
    stamp: Stamp,
    /// What it comes to is not kept, and is nothing for who comes now: its key was invalidated while it ran.
    is_stale: bool,
}

impl Default for Flights {
    fn default() -> Self {
        Self { shards: (0..SHARDS).map(|_| Mutex::default()).collect(), begun: AtomicU64::new(0) }
    }
}

/// What a call does.
pub(super) enum Role<'f> {
    Runs(Lead<'f>),
    Waits(Waiting),
}

/// A run under way. Dropped without [`Lead::land`], the next of those who wait runs.
pub(super) struct Lead<'f> {
    flights: &'f Flights,
    key: CacheKey,
    number: u64,
    landed: watch::Sender<Option<Landed>>,
}

impl Flights {
    fn shard(&self, key: &CacheKey) -> &Mutex<HashMap<CacheKey, Flight>> {
        &self.shards[key.bits() % SHARDS]
    }

    /// Runs when nobody does whose result would be as good as an own one.
    pub(super) fn join(&self, key: CacheKey, stamp: Stamp) -> Role<'_> {
        let mut flights = self.shard(&key).lock();
        if let Some(flight) = flights.get(&key).filter(|flight| !flight.is_stale && flight.stamp == stamp) {
            return Role::Waits(flight.waiting.clone());
        }
        let (landed, waiting) = watch::channel(None);
        let number = self.begun.fetch_add(1, Ordering::Relaxed);
        // An older one loses its place: who waits for it still hears of it.
        flights.insert(key, Flight { number, waiting, stamp, is_stale: false });
        Role::Runs(Lead { flights: self, key, number, landed })
    }

    /// Whether somebody makes a result of this generation.
    pub(super) fn is_under_way(&self, key: &CacheKey, stamp: Stamp) -> bool {
        self.shard(key).lock().get(key).is_some_and(|flight| !flight.is_stale && flight.stamp == stamp)
    }

    /// What runs now under this key is not to be kept.
    pub(super) fn invalidate(&self, key: &CacheKey) {
        if let Some(flight) = self.shard(key).lock().get_mut(key) {
            flight.is_stale = true;
        }
    }

    /// How many run.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }
}

impl Lead<'_> {
    fn is_in(&self, flights: &HashMap<CacheKey, Flight>) -> bool {
        flights.get(&self.key).is_some_and(|flight| flight.number == self.number)
    }

    /// Ends the run: `keep` is called before anybody else may run, unless what it came to was invalidated meanwhile.
    pub(super) fn land(self, landed: Landed, keep: impl FnOnce(&Landed)) {
        {
            let flights = self.flights.shard(&self.key).lock();
            if self.is_in(&flights) && flights.get(&self.key).is_some_and(|flight| !flight.is_stale) {
                keep(&landed);
            }
        }
        self.landed.send_replace(Some(landed));
    }
}

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        let mut flights = self.flights.shard(&self.key).lock();
        if self.is_in(&flights) {
            flights.remove(&self.key);
        }
    }
}

/// What the run came to; `None` when who ran has left.
pub(super) async fn landed(mut waiting: Waiting) -> Option<Landed> {
    let landed = waiting.wait_for(Option::is_some).await.ok()?;
    landed.clone()
}
