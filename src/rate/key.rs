//! Under which key something is counted: a hash of 128 bits, so that names of any length cost the same memory. It is keyed,
//! so that nobody outside can choose two that fall together; where instances share their counts it cannot be, and is
//! SHA-256 cut short.

use std::{
    hash::{BuildHasher, BuildHasherDefault, Hash, Hasher, RandomState},
    net::{IpAddr, Ipv6Addr},
};

use sha2::{Digest, Sha256};

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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Key {
    /// Finds it within a shard.
    slot: u64,
    /// Finds the shard.
    pub(super) shard: u64,
}

impl Key {
    /// As it is named to others.
    pub(super) fn to_bytes(self) -> [u8; 16] {
        (u128::from(self.slot) << 64 | u128::from(self.shard)).to_be_bytes()
    }
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

/// Makes keys.
#[derive(Clone, Debug)]
pub(super) enum Keys {
    /// In a way that is another in each process.
    Own { slot: RandomState, shard: RandomState },
    /// In one way in all processes, which costs a little more.
    Shared,
}

impl Keys {
    pub(super) fn new() -> Self {
        Self::Own { slot: RandomState::new(), shard: RandomState::new() }
    }

    /// The key under the rule of this name, for one who calls, or for all; for one tool, or for any.
    pub(super) fn key(&self, rule: &'static str, who: Option<Who<'_>>, tool: Option<&str>) -> Key {
        let counted = (rule, who.map(Who::counted), tool);
        match self {
            Self::Own { slot, shard } => Key { slot: slot.hash_one(counted), shard: shard.hash_one(counted) },
            Self::Shared => {
                let (slot, shard) = digest(rule, counted.1, tool);
                Key { slot, shard }
            }
        }
    }
}

/// The same in each process: each part with its kind and its length, so that no two things come to one.
fn digest(rule: &str, who: Option<Who<'_>>, tool: Option<&str>) -> (u64, u64) {
    let mut hash = Sha256::new();
    let mut part = |kind: u8, bytes: &[u8]| {
        hash.update([kind]);
        hash.update((bytes.len() as u64).to_be_bytes());
        hash.update(bytes);
    };
    part(b'r', rule.as_bytes());
    match who {
        Some(Who::Caller(name)) => part(b'c', name.as_bytes()),
        Some(Who::Address(IpAddr::V4(address))) => part(b'4', &address.octets()),
        Some(Who::Address(IpAddr::V6(address))) => part(b'6', &address.octets()),
        None => {}
    }
    if let Some(tool) = tool {
        part(b't', tool.as_bytes());
    }
    let digest = hash.finalize();
    let half = |at: usize| digest[at..at + 8].iter().fold(0, |word, byte| word << 8 | u64::from(*byte));
    (half(0), half(8))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn what_counts_together_has_one_key_and_nothing_else_does() {
        told_apart(&Keys::new());
        told_apart(&Keys::Shared);
        let key = |keys: &Keys| keys.key("rule", None, None);
        assert_ne!(key(&Keys::new()), key(&Keys::new()), "another process has other keys");
        assert_eq!(key(&Keys::Shared), key(&Keys::Shared), "but where they are shared");
    }

    fn told_apart(keys: &Keys) {
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
    }
}
