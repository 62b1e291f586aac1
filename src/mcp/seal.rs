//! `requestState`: what a call remembers while its client collects answers. The client carries it, so it is sealed: it
//! cannot be changed, used for another request or by another caller, nor after its time. Instances that have the same
//! keys open each other's; the first key seals, all of them open, so that keys can be changed without a gap.

use std::{sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use rmcp::model::{RequestStateCodec, SealOptions};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::{
    call::Caller,
    input::Memory,
    mcp::code::Refusal,
    units::{Secret, is_placeholder},
};

/// `[input]`: questions to clients.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Keys that seal `requestState`, each of at least 32 bytes; none makes one for this process.
    pub state_keys: Vec<Secret>,
    /// How long a client may take from a question to the call with its answer, in seconds.
    pub state_ttl_s: u64,
    /// How long a client may take to answer while its call runs, in seconds.
    pub answer_timeout_s: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self { state_keys: Vec::new(), state_ttl_s: 600, answer_timeout_s: 300 }
    }
}

/// Seals and opens.
pub(crate) struct Sealer {
    ring: ArcSwap<Ring>,
    /// Whether the keys are of the settings, so that they stay.
    is_given: bool,
    ttl: Duration,
}

struct Ring {
    codec: RequestStateCodec,
    /// The first one seals, all open.
    keys: Vec<Vec<u8>>,
}

/// Keys that open besides the one that seals, where instances had to agree on others.
const OLD_KEYS_MAX: usize = 3;

impl Ring {
    fn new(keys: Vec<Vec<u8>>) -> Result<Self, String> {
        // A key is known by a digest of itself, so that instances agree on it whatever the order of their lists.
        let named = keys.iter().map(|key| (key_name(key), key.clone())).collect::<Vec<_>>();
        let first = named.first().map(|(name, _)| name.clone()).unwrap_or_default();
        let codec = RequestStateCodec::new_with_keyring(first, named)
            .map_err(|e| format!("input.state_keys: {e}; give keys of at least 32 bytes, each once"))?;
        Ok(Self { codec, keys })
    }
}

impl std::fmt::Debug for Sealer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sealer").field("ttl", &self.ttl).finish_non_exhaustive()
    }
}

impl Sealer {
    /// # Errors
    /// A key that is too short, or one that stands twice.
    pub(crate) fn new(config: &Config) -> Result<Self, String> {
        if config.state_keys.iter().any(|key| is_placeholder(key.expose().as_bytes())) {
            return Err(
                "input.state_keys has a placeholder and no secret; make one, for example with `openssl rand -hex 32`"
                    .into(),
            );
        }
        let is_given = !config.state_keys.is_empty();
        let mut keys: Vec<Vec<u8>> = config.state_keys.iter().map(|key| key.expose().as_bytes().to_vec()).collect();
        if keys.is_empty() {
            let mut key = [0; 32];
            getrandom::fill(&mut key).map_err(|e| format!("the operating system gives no random numbers: {e}"))?;
            keys.push(key.iter().flat_map(|byte| format!("{byte:02x}").into_bytes()).collect());
        }
        let ring = ArcSwap::from_pointee(Ring::new(keys)?);
        Ok(Self { ring, is_given, ttl: Duration::from_secs(config.state_ttl_s) })
    }

    /// The key that seals, as text, when this process made it or took it over; none when the settings give the keys.
    pub(crate) fn own_key(&self) -> Option<String> {
        let ring = self.ring.load();
        (!self.is_given).then(|| String::from_utf8_lossy(ring.keys.first().map_or(&[], Vec::as_slice)).into_owned())
    }

    /// Seals by another instance's key from here on, and still opens what was sealed before.
    pub(crate) fn take_over(&self, key: &str) {
        let ring = self.ring.load();
        let key = key.as_bytes().to_vec();
        if self.is_given || ring.keys.first() == Some(&key) {
            return;
        }
        let others = ring.keys.iter().filter(|old| **old != key).take(OLD_KEYS_MAX).cloned();
        match Ring::new(std::iter::once(key.clone()).chain(others).collect()) {
            Ok(ring) => self.ring.store(Arc::new(ring)),
            Err(error) => tracing::warn!(error, "a key for requestState that instances share is none"),
        }
    }

    pub(crate) fn seal(&self, memory: &Memory, bound_to: &[u8]) -> Option<String> {
        let options = SealOptions::new().associated_data(bound_to).ttl(self.ttl);
        self.ring.load().codec.seal_json_with(memory, &options).ok()
    }

    pub(crate) fn open(&self, sealed: &str, bound_to: &[u8]) -> Result<Memory, Refusal> {
        self.ring.load().codec.open_json_with(sealed, bound_to).map_err(|error| {
            tracing::debug!(%error, "a requestState was refused");
            // One answer for all faults: which of them it was would help nobody but a forger.
            Refusal::invalid_params(
                false,
                "params.requestState is not one for this request, or its time is over; start again without it",
            )
        })
    }
}

fn key_name(key: &[u8]) -> String {
    Sha256::digest(key).iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

/// What a state is good for: one method with its name and arguments, by one caller.
pub(crate) fn binding(caller: &Caller, method: &str, name: &str, arguments: &serde_json::Value) -> Vec<u8> {
    let mut digest = Sha256::new();
    for part in [caller.subject(), method, name] {
        digest.update((part.len() as u64).to_le_bytes()); // so that no two lists of parts look alike
        digest.update(part);
    }
    digest.update(arguments.to_string()); // keys are sorted by the map's own order
    digest.finalize().to_vec()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn sealer(keys: &[&str], ttl_s: u64) -> Sealer {
        let state_keys = keys.iter().map(|k| Secret::new(*k)).collect();
        Sealer::new(&Config { state_keys, state_ttl_s: ttl_s, ..Config::default() }).expect("a sealer")
    }

    const OLD: &str = "an old key that is long enough to be one";
    const NEW: &str = "a new key that is also long enough to be";

    #[test]
    fn a_state_opens_only_unchanged_for_its_own_request_and_in_time() {
        let memory = Memory { kept: Some(json!({"step": 1})), ..Memory::default() };
        let mine = binding(&Caller::ANONYMOUS, "tools/call", "t", &json!({"a": 1}));
        let sealer = sealer(&[OLD], 60);
        let sealed = sealer.seal(&memory, &mine).expect("sealed");
        assert_eq!(sealer.open(&sealed, &mine).expect("opens"), memory);
        for (method, name, arguments) in [
            ("prompts/get", "t", json!({"a": 1})),
            ("tools/call", "u", json!({"a": 1})),
            ("tools/call", "t", json!({"a": 2})),
        ] {
            let other = binding(&Caller::ANONYMOUS, method, name, &arguments);
            assert!(sealer.open(&sealed, &other).is_err(), "{method} {name} {arguments}");
        }
        for at in 0..sealed.len() {
            let mut changed = sealed.clone().into_bytes();
            changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(changed).expect("ASCII");
            assert!(changed == sealed || sealer.open(&changed, &mine).is_err(), "byte {at}");
        }
        let past = self::sealer(&[OLD], 0);
        let sealed = past.seal(&memory, &mine).expect("sealed");
        std::thread::sleep(Duration::from_millis(5));
        assert!(past.open(&sealed, &mine).is_err(), "its time is over");
    }

    #[test]
    fn keys_rotate_without_a_gap() {
        let bound = b"x";
        let sealed = sealer(&[OLD], 60).seal(&Memory::default(), bound).expect("sealed");
        assert!(sealer(&[NEW, OLD], 60).open(&sealed, bound).is_ok());
        assert!(sealer(&[NEW], 60).open(&sealed, bound).is_err());
        let own = sealer(&[], 60);
        let before = own.seal(&Memory::default(), bound).expect("sealed");
        own.take_over(NEW);
        assert_eq!(own.own_key().as_deref(), Some(NEW));
        let after = own.seal(&Memory::default(), bound).expect("sealed");
        assert!(own.open(&before, bound).is_ok() && sealer(&[NEW], 60).open(&after, bound).is_ok());
        let given = sealer(&[OLD], 60);
        given.take_over(NEW);
        assert!(given.own_key().is_none() && given.open(&after, bound).is_err(), "what is set stays");
        assert!(Sealer::new(&Config { state_keys: vec![Secret::new("short")], ..Config::default() }).is_err());
    }
}
