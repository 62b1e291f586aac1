//! Under which key something is counted: a keyed hash of 128 bits, so that names of any length cost the same memory
//! and nobody outside can choose two that fall together.

use std::{
    hash::{BuildHasher, BuildHasherDefault, Hash, Hasher, RandomState},
    net::{IpAddr, Ipv6Addr},
};

/// Whom a call counts for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Who<'a> {
    /// An authenticated caller, by principal.
    Caller(&'a str),
    /// The address of a caller of whom nothing else is known. IPv6 counts by /64, which is what one household has.
    Address(IpAddr),
}

impl Who<'_> {
    /// The same for all that count together.
    fn counted(self) -> Self {
        match self {
            Self::Caller(_) => self,
            Self::Address(address) => Self::Address(match address.to_canonical() {
                IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
                v4 @ IpAddr::V4(_) => v4,
            }),
        }
    }
}

/// One thing that is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Key {
    /// Finds it within a shard.
    slot: u64,
    /// Finds the shard.
    pub(super) shard: u64,
}

impl Hash for Key {
    /// Half of a good hash is one.
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.slot);
    }
}

/// Hashes [`Key`]s, which are hashes.
pub(super) type Hashed = BuildHasherDefault<AsItIs>;

#[derive(Default)]
pub(super) struct AsItIs(u64);

impl Hasher for AsItIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }

    /// Never called for a [`Key`]; here because the trait asks for it.
    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(byte);
        }
    }
}

/// Makes keys, in a way that is another in each process.
#[derive(Clone, Debug)]
pub(super) struct Keys {
    slot: RandomState,
    shard: RandomState,
}

impl Keys {
    pub(super) fn new() -> Self {
        Self { slot: RandomState::new(), shard: RandomState::new() }
    }

    /// The key under the rule of this name, for one who calls, or for all; for one tool, or for any.
    pub(super) fn key(&self, rule: &'static str, who: Option<Who<'_>>, tool: Option<&str>) -> Key {
        let counted = (rule, who.map(Who::counted), tool);
        Key { slot: self.slot.hash_one(counted), shard: self.shard.hash_one(counted) }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn what_counts_together_has_one_key_and_nothing_else_does() {
        let keys = Keys::new();
        let address = |text: &str| Some(Who::Address(text.parse().expect(text)));
        let key = |who, tool| keys.key("rule", who, tool);
        assert_eq!(key(address("2001:db8::1"), None), key(address("2001:db8::ffff:0:0:2"), None), "one /64");
        assert_eq!(key(address("::ffff:192.0.2.1"), None), key(address("192.0.2.1"), None), "one IPv4 address");
        let all = [
            keys.key("other", Some(Who::Caller("ann")), None),
            key(Some(Who::Caller("ann")), None),
            key(Some(Who::Caller("ann")), Some("")),
            key(Some(Who::Caller("ann")), Some("echo")),
            key(Some(Who::Caller("annecho")), None),
            key(Some(Who::Caller("192.0.2.1")), None),
            key(address("192.0.2.1"), None),
            key(address("192.0.2.2"), None),
            key(address("2001:db8::1"), None),
            key(address("2001:db8:0:1::1"), None),
            key(None, Some("echo")),
            key(None, None),
        ];
        let distinct: HashSet<_> = all.iter().map(|key| (key.slot, key.shard)).collect();
        assert_eq!(distinct.len(), all.len());
        assert_ne!(Keys::new().key("rule", None, None), key(None, None), "another process has other keys");
    }
}
