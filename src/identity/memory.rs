//! Tokens that were verified, so that the next request with the same one need not verify it again. Kept by the
//! SHA-256 of the token, never by the token; until it expires; and only as long as the issuer's keys are the same. API
//! keys are not among them: looking one up costs no more than this, so that a revoked one is gone at once.

use std::{
    collections::HashMap,
    hash::{Hash, Hasher},
    sync::Arc,
    time::SystemTime,
};

use parking_lot::Mutex;
use sha2::{Digest, Sha256};

use super::Identity;

/// Enough that threads seldom meet at one lock.
const SHARDS: usize = 64;

/// Verified tokens.
#[derive(Debug)]
pub(super) struct Memory {
    shards: Box<[Mutex<Shard>]>,
    per_shard_max: usize,
}

type Shard = HashMap<Fingerprint, Known>;

/// The SHA-256 of a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fingerprint([u8; 32]);

impl Hash for Fingerprint {
    /// A part of a good hash is one.
    fn hash<H: Hasher>(&self, state: &mut H) {
        let [a, b, c, d, e, f, g, h, ..] = self.0;
        state.write_u64(u64::from_le_bytes([a, b, c, d, e, f, g, h]));
    }
}

impl Fingerprint {
    pub(super) fn of(token: &str) -> Self {
        Self(Sha256::digest(token).into())
    }
}

#[derive(Debug)]
struct Known {
    identity: Arc<Identity>,
    generation: u64,
    until: SystemTime,
}

impl Memory {
    /// Room for about `tokens_max`; none for 0.
    pub(super) fn new(tokens_max: usize) -> Self {
        Self { shards: (0..SHARDS).map(|_| Mutex::default()).collect(), per_shard_max: tokens_max.div_ceil(SHARDS) }
    }

    /// Who this token is of, when it was verified with the keys of this generation and has not expired.
    pub(super) fn get(&self, token: Fingerprint, generation: u64, now: SystemTime) -> Option<Arc<Identity>> {
        let mut shard = self.shard(token);
        let known = shard.get(&token)?;
        if known.generation == generation && now < known.until {
            return Some(Arc::clone(&known.identity));
        }
        shard.remove(&token);
        None
    }

    /// Remembers a token until it expires. Where there is no room, what is over goes first, and then what would be
    /// over first.
    pub(super) fn put(&self, token: Fingerprint, identity: &Arc<Identity>, generation: u64, now: SystemTime) {
        let Some(until) = identity.expires_at().filter(|until| now < *until) else { return };
        if self.per_shard_max == 0 {
            return;
        }
        let mut shard = self.shard(token);
        if shard.len() >= self.per_shard_max && !shard.contains_key(&token) {
            shard.retain(|_, known| known.generation == generation && now < known.until);
            if shard.len() >= self.per_shard_max
                && let Some(first) = shard.iter().min_by_key(|(_, known)| known.until).map(|(token, _)| *token)
            {
                shard.remove(&first);
            }
        }
        shard.insert(token, Known { identity: Arc::clone(identity), generation, until });
    }

    /// Lets go of what is over. Called now and then.
    pub(super) fn sweep(&self, generation: u64, now: SystemTime) {
        for shard in &self.shards {
            shard.lock().retain(|_, known| known.generation == generation && now < known.until);
        }
    }

    /// How many are remembered.
    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().len()).sum()
    }

    fn shard(&self, token: Fingerprint) -> parking_lot::MutexGuard<'_, Shard> {
        self.shards[usize::from(token.0[0]) % SHARDS].lock()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const START: SystemTime = SystemTime::UNIX_EPOCH;

    fn at(s: u64) -> SystemTime {
        START + Duration::from_secs(s)
    }

    fn identity(until_s: u64) -> Arc<Identity> {
        Arc::new(Identity::new("i".into(), "s", None, [], [], Some(at(until_s))))
    }

    #[test]
    fn a_token_is_known_until_it_expires() {
        let memory = Memory::new(100);
        let token = Fingerprint::of("a");
        memory.put(token, &identity(10), 1, at(0));
        assert!(memory.get(token, 1, at(9)).is_some());
        assert!(memory.get(Fingerprint::of("b"), 1, at(9)).is_none());
        assert!(memory.get(token, 1, at(10)).is_none());
        assert_eq!(memory.len(), 0);
        memory.put(token, &identity(10), 1, at(10));
        assert_eq!(memory.len(), 0, "what has expired is not remembered");
    }

    #[test]
    fn other_keys_forget_it() {
        let memory = Memory::new(100);
        let token = Fingerprint::of("a");
        memory.put(token, &identity(10), 1, at(0));
        assert!(memory.get(token, 2, at(1)).is_none());
        memory.put(token, &identity(10), 1, at(0));
        memory.put(Fingerprint::of("b"), &identity(10), 2, at(0));
        memory.sweep(2, at(1));
        assert_eq!(memory.len(), 1);
    }

    #[test]
    fn it_is_bounded_and_those_that_last_longest_stay() {
        let memory = Memory::new(SHARDS);
        for number in 0..10_000u64 {
            memory.put(Fingerprint::of(&number.to_string()), &identity(1000 + number), 1, at(0));
        }
        assert!(memory.len() <= SHARDS);
        assert!(memory.get(Fingerprint::of("9999"), 1, at(0)).is_some());
        assert!(memory.get(Fingerprint::of("0"), 1, at(0)).is_none());
        let none = Memory::new(0);
        none.put(Fingerprint::of("a"), &identity(10), 1, at(0));
        assert_eq!(none.len(), 0);
    }
}
