//! A map in many parts, each under a lock of its own, so that threads seldom meet. No function here holds a lock
//! longer than its own run.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
};

use parking_lot::{Mutex, MutexGuard};

/// Enough that threads seldom meet at one lock.
const SHARDS: usize = 64;

type Part<V> = HashMap<Box<str>, V>;

/// Values by id.
#[derive(Debug)]
pub(super) struct Shards<V> {
    hasher: RandomState,
    parts: Box<[Mutex<Part<V>>]>,
}

impl<V> Shards<V> {
    pub(super) fn new() -> Self {
        Self { hasher: RandomState::new(), parts: (0..SHARDS).map(|_| Mutex::default()).collect() }
    }

    /// The part that an id belongs to, locked.
    pub(super) fn part(&self, id: &str) -> MutexGuard<'_, Part<V>> {
        #[allow(clippy::cast_possible_truncation)] // any bits will do
        let hash = self.hasher.hash_one(id) as usize;
        self.parts[hash % SHARDS].lock()
    }

    /// One part after the other, each locked for itself.
    pub(super) fn parts(&self) -> impl Iterator<Item = MutexGuard<'_, Part<V>>> {
        self.parts.iter().map(Mutex::lock)
    }
}
