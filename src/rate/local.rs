//! What is remembered of each key, in this process: callers, addresses and tools, each in a map of their own in many parts,
//! each part under a lock of its own. Callers and addresses have half of all room each, so that addresses, which cost
//! nothing to have, can drive out nobody else. Tools are as many as settings name, and have room.
//!
//! When a part is full, a newcomer takes the place of a key that has its whole burst again, which loses nothing. A few
//! are looked at, not all, so that a flood of new keys costs each call the same. Where none of them can go, the newcomer
//! has no state of its own: all newcomers of the part share one under the same rule, so that nothing passes unlimited, and
//! what passes so is counted in [`Local::unremembered`].

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crossbeam_utils::CachePadded;
use indexmap::IndexMap;
use parking_lot::{Mutex, MutexGuard};

use super::{
    Claim, Claims, Decision,
    gcra::State,
    key::{Hashed, Key},
};

/// Parts of each map: enough that threads seldom meet at one lock.
const SHARDS: usize = 64;
/// How many keys are looked at for one that can go.
const LOOKED_AT: usize = 16;
/// The most rules that one request comes under: of its caller, of its tool, of both.
pub(super) const CLAIMS_MAX: usize = 3;

#[derive(Debug)]
struct Shard {
    states: IndexMap<Key, State, Hashed>,
    keys_max: usize,
    /// Of newcomers without a place, by what they share: one for each rule, and so as many as settings name.
    shared: IndexMap<Key, State, Hashed>,
    /// Where to look next for a key that can go.
    hand: usize,
}

/// Which of the maps a key is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Among {
    /// What counts for authenticated callers.
    Callers,
    /// What counts for addresses: anybody has as many as he likes.
    Addresses,
    /// What counts for all callers of a tool.
    Tools,
}

impl Among {
    const ALL: [Self; 3] = [Self::Callers, Self::Addresses, Self::Tools];

    /// How many keys each part has room for. It has the memory from the start, where that is bounded.
    fn shard(self, keys_max: usize) -> Shard {
        let keys_max = (keys_max / 2 / SHARDS).max(1);
        let (keys_max, room) = if self == Self::Tools { (usize::MAX, 0) } else { (keys_max, keys_max) };
        Shard {
            states: IndexMap::with_capacity_and_hasher(room, Hashed::new()),
            keys_max,
            shared: IndexMap::default(),
            hand: 0,
        }
    }
}

/// All keys of this process.
#[derive(Debug)]
pub(super) struct Local {
    /// Those of [`Among::ALL`], in this order. Each on cache lines of its own, so that who takes one lock does not slow who
    /// takes the next.
    shards: Box<[CachePadded<Mutex<Shard>>]>,
    unremembered: AtomicU64,
}

impl Local {
    /// Has its memory from the start; the kernel gives the pages when they are used.
    pub(super) fn new(keys_max: usize) -> Self {
        let parts = |among: Among| (0..SHARDS).map(move |_| CachePadded::new(Mutex::new(among.shard(keys_max))));
        Self { shards: Among::ALL.into_iter().flat_map(parts).collect(), unremembered: AtomicU64::new(0) }
    }

    /// Charges all claims, or none when one is too many. All parts concerned are locked together, in the order of
    /// their numbers, so that no other call can come between the asking and the charging and no two wait for each
    /// other.
    pub(super) fn decide(&self, Claims(claims): &Claims, now: u64) -> Decision {
        let parts = claims.map(|claim| claim.map(|claim| part_of(&claim)));
        let mut in_order = parts;
        in_order.sort_unstable();
        let mut locked: [Option<MutexGuard<'_, Shard>>; CLAIMS_MAX] = [const { None }; CLAIMS_MAX];
        for (i, &part) in in_order.iter().enumerate() {
            locked[i] = part.filter(|_| !in_order[..i].contains(&part)).map(|part| self.shards[part].lock());
        }
        // Where two claims are in one part, both find the first guard, which is the only one.
        let guard_of = parts.map(|part| in_order.iter().position(|&other| other == part).unwrap_or(0));

        let mut found = [const { None }; CLAIMS_MAX];
        let (mut refused, mut newcomers) = (None, 0);
        for ((claim, guard), found) in claims.iter().zip(guard_of).zip(&mut found) {
            let (Some(claim), Some(shard)) = (claim, &mut locked[guard]) else { continue };
            let (place, state) = shard.find(claim, newcomers, now);
            newcomers += usize::from(place == Place::New);
            if claim.quota.charge(state, now).is_err() {
                // Of those who share a state none is blocked for what others did.
                let after = if place == Place::Shared { state } else { claim.quota.refuse(state, now) };
                if after != state {
                    shard.put(claim, place, after);
                }
                refused = Decision::longer(refused, Decision::refused(claim, after, now));
            }
            *found = Some((place, state));
        }
        if let Some(refused) = refused {
            return refused;
        }
        let mut allowed = Decision::Free;
        for ((claim, guard), found) in claims.iter().zip(guard_of).zip(found) {
            let (Some(claim), Some(shard), Some((place, state))) = (claim, &mut locked[guard], found) else { continue };
            if let Ok(after) = claim.quota.charge(state, now) {
                shard.put(claim, place, after);
                self.unremembered.fetch_add(u64::from(place == Place::Shared), Relaxed);
                allowed = allowed.tighter(Decision::allowed(claim, after, now));
            }
        }
        allowed
    }

    /// Keys that are remembered.
    pub(super) fn keys(&self) -> usize {
        self.shards.iter().map(|shard| shard.lock().states.len()).sum()
    }

    /// Calls that passed without being remembered by themselves, for want of room.
    pub(super) fn unremembered(&self) -> u64 {
        self.unremembered.load(Relaxed)
    }
}

#[allow(clippy::cast_possible_truncation)] // any bits will do
fn part_of(claim: &Claim) -> usize {
    claim.among as usize * SHARDS + claim.key.shard as usize % SHARDS
}

/// Where the state of a key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// With others, which have one too.
    Own,
    /// Nowhere yet, and there is room.
    New,
    /// Nowhere: it is that of all for whom there is no room.
    Shared,
}

impl Shard {
    /// The state that counts for a claim; an absent key is one that has its whole burst. `others` are newcomers of the same
    /// call, whose places are still to be taken.
    fn find(&mut self, claim: &Claim, others: usize, now: u64) -> (Place, State) {
        if let Some(state) = self.states.get(&claim.key) {
            return (Place::Own, *state);
        }
        while self.states.len() + others >= self.keys_max {
            if !self.make_room(now) {
                return (Place::Shared, self.shared.get(&claim.shared).copied().unwrap_or_default());
            }
        }
        (Place::New, State::default())
    }

    fn put(&mut self, claim: &Claim, place: Place, state: State) {
        match place {
            Place::Own | Place::New => self.states.insert(claim.key, state),
            Place::Shared => self.shared.insert(claim.shared, state),
        };
    }

    /// Forgets a key of which there is nothing to say any more, if there is one among a few.
    fn make_room(&mut self, now: u64) -> bool {
        for _ in 0..LOOKED_AT.min(self.states.len()) {
            let at = self.hand % self.states.len();
            self.hand = at + 1;
            if self.states.get_index(at).is_some_and(|(_, state)| state.idle_at() <= now) {
                self.hand = at; // the last one comes there
                self.states.swap_remove_index(at);
                return true;
            }
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    /// What 10⁵ keys take. An entry of the map is its hash, the key and the state, in one vector; the table beside it
    /// has one index and one byte of control for each of its places, and has at most 16/7 places for each key: it is
    /// at most 7/8 full, and a power of two.
    #[test]
    fn a_hundred_thousand_keys_are_less_than_32_mib() {
        let entry_bytes = size_of::<u64>() + size_of::<(Key, State)>();
        let table_bytes = (size_of::<usize>() + 1) * 16 / 7;
        let bytes = 100_000 * (entry_bytes + table_bytes)
            + size_of::<Local>()
            + Among::ALL.len() * SHARDS * size_of::<CachePadded<Mutex<Shard>>>();
        assert_eq!(entry_bytes, 40);
        assert!(bytes < 7 * MIB, "{bytes}");

        let local = Local::new(100_000);
        let room: usize = local.shards.iter().map(|shard| shard.lock().states.capacity()).sum();
        assert!(room * (entry_bytes + table_bytes) < 32 * MIB, "{room} places");
    }
}
