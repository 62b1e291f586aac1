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

impl Landed {
    /// The new result, when it is one.
    pub(super) fn made(&self) -> Option<&Arc<Kept>> {
        if let Self::Made(kept) = self { Some(kept) } else { None }
    }
}

type Waiting = watch::Receiver<Option<Landed>>;

/// All runs that others may wait for.
#[derive(Debug)]
pub(super) struct Flights {
    shards: Box<[Mutex<Shard>]>,
    begun: AtomicU64,
}

#[derive(Debug, Default)]
struct Shard {
    flights: HashMap<CacheKey, Flight>,
    /// How often a key of it was invalidated, for runs that are not here.
    invalidated: u64,
}

/// What was invalidated at one moment, for a run that nobody may wait for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Since(u64);

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
    fn shard(&self, key: &CacheKey) -> &Mutex<Shard> {
        &self.shards[key.bits() % SHARDS]
    }

    /// Runs when nobody does whose result would be as good as an own one.
    pub(super) fn join(&self, key: CacheKey, stamp: Stamp) -> Role<'_> {
        let flights = &mut self.shard(&key).lock().flights;
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
        self.shard(key).lock().flights.get(key).is_some_and(|flight| !flight.is_stale && flight.stamp == stamp)
    }

    /// What runs now under this key is not to be kept.
    pub(super) fn invalidate(&self, key: &CacheKey) {
        let mut shard = self.shard(key).lock();
        shard.invalidated += 1;
        if let Some(flight) = shard.flights.get_mut(key) {
            flight.is_stale = true;
        }
    }

    /// To be called before a run that nobody may wait for.
    pub(super) fn now(&self, key: &CacheKey) -> Since {
        Since(self.shard(key).lock().invalidated)
    }

    /// Calls `keep` after such a run, unless its key may have been invalidated meanwhile.
    pub(super) fn land_alone(&self, key: &CacheKey, since: Since, keep: impl FnOnce()) {
        let shard = self.shard(key).lock();
        if shard.invalidated == since.0 {
            keep();
        }
    }

    /// How many run.
    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().flights.len()).sum()
    }
}

impl Lead<'_> {
    fn is_in(&self, flights: &HashMap<CacheKey, Flight>) -> bool {
        flights.get(&self.key).is_some_and(|flight| flight.number == self.number)
    }

    /// Ends the run: `keep` is called before anybody else may run, unless what it came to was invalidated meanwhile.
    pub(super) fn land(self, landed: Landed, keep: impl FnOnce(&Landed)) {
        {
            let shard = self.flights.shard(&self.key).lock();
            let flights = &shard.flights;
            if self.is_in(flights) && flights.get(&self.key).is_some_and(|flight| !flight.is_stale) {
                keep(&landed);
            }
        }
        self.landed.send_replace(Some(landed));
    }
}

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        let flights = &mut self.flights.shard(&self.key).lock().flights;
        if self.is_in(flights) {
            flights.remove(&self.key);
        }
    }
}

/// What the run came to; `None` when who ran has left.
pub(super) async fn landed(mut waiting: Waiting) -> Option<Landed> {
    let landed = waiting.wait_for(Option::is_some).await.ok()?;
    landed.clone()
}
