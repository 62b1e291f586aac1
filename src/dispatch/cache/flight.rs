//! Equal calls at once: one runs, the others wait for it. Who runs may leave, and then one of those who wait runs
//! instead; how often that happens does not matter.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use tokio::sync::watch;

use super::{Kept, key::CacheKey};
use crate::tool::Outcome;

/// Locks, so that calls of different keys seldom meet.
const SHARDS: usize = 64;

/// What a run came to, for those who waited.
#[derive(Clone, Debug)]
pub(super) enum Landed {
    /// A result that is kept.
    Kept(Arc<Kept>),
    /// An outcome that is told and not kept.
    Told(Box<Outcome>),
    /// Nothing that is theirs: they run by themselves.
    Own,
}

type Waiting = watch::Receiver<Option<Landed>>;

/// All runs that others may wait for.
#[derive(Debug)]
pub(super) struct Flights(Box<[Mutex<HashMap<CacheKey, Flight>>]>);

#[derive(Debug)]
struct Flight {
    waiting: Waiting,
    /// What it comes to is not kept: it was invalidated while it ran.
    is_stale: bool,
}

impl Default for Flights {
    fn default() -> Self {
        Self((0..SHARDS).map(|_| Mutex::default()).collect())
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
    landed: watch::Sender<Option<Landed>>,
}

impl Flights {
    fn shard(&self, key: &CacheKey) -> &Mutex<HashMap<CacheKey, Flight>> {
        &self.0[key.bits() % SHARDS]
    }

    /// Runs when nobody does.
    pub(super) fn join(&self, key: CacheKey) -> Role<'_> {
        let mut flights = self.shard(&key).lock();
        if let Some(flight) = flights.get(&key) {
            return Role::Waits(flight.waiting.clone());
        }
        let (landed, waiting) = watch::channel(None);
        flights.insert(key, Flight { waiting, is_stale: false });
        Role::Runs(Lead { flights: self, key, landed })
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
        self.0.iter().map(|shard| shard.lock().len()).sum()
    }
}

impl Lead<'_> {
    /// Ends the run: `keep` is called before anybody else may run, unless what it came to was invalidated meanwhile.
    pub(super) fn land(self, landed: Landed, keep: impl FnOnce(&Landed)) {
        {
            let flights = self.flights.shard(&self.key).lock();
            if flights.get(&self.key).is_some_and(|flight| !flight.is_stale) {
                keep(&landed);
            }
        }
        self.landed.send_replace(Some(landed));
    }
}

impl Drop for Lead<'_> {
    fn drop(&mut self) {
        self.flights.shard(&self.key).lock().remove(&self.key);
    }
}

/// What the run came to; `None` when who ran has left.
pub(super) async fn landed(mut waiting: Waiting) -> Option<Landed> {
    let landed = waiting.wait_for(Option::is_some).await.ok()?;
    landed.clone()
}
