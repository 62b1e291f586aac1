//! A set of keys as an issuer publishes it (RFC 7517), read once into keys that can verify. A key that is of no use
//! here is passed over, and why is kept for the log; a set that cannot be trusted to be one is refused whole.

use std::sync::Arc;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use jsonwebtoken::DecodingKey;
use serde_json::{Map, Value};

use super::{algorithm::Algorithm, json, refused::shown};
use crate::units::is_placeholder;

/// Size of a key set.
pub const BYTES_MAX: usize = 1 << 20;
/// Keys in a key set.
const KEYS_MAX: usize = 100;
/// The modulus of an RSA key, in bits. Less is broken; more is slow.
const RSA_BITS: std::ops::RangeInclusive<usize> = 2048..=8192;

/// Keys that can verify.
#[derive(Clone, Debug, Default)]
pub(super) struct KeySet {
    keys: Arc<[Key]>,
    passed_over: Arc<[String]>,
}

/// One of them.
pub(super) struct Key {
    kid: Option<String>,
    /// What it says that it is for, when it does.
    algorithm: Option<Algorithm>,
    family: &'static [&'static str],
    verifies: DecodingKey,
}

impl KeySet {
    /// Reads a key set. `own` is one that the operator wrote: only there may a key be a shared secret.
    ///
    /// # Errors
    /// What is wrong with the whole.
    pub(super) fn read(bytes: &[u8], own: bool) -> Result<Self, String> {
        if bytes.len() > BYTES_MAX {
            return Err(format!("the key set has {} bytes, more than {BYTES_MAX}", bytes.len()));
        }
        let mut set = json::object(bytes).map_err(|why| format!("the key set cannot be read: {why}"))?;
        let Some(Value::Array(list)) = set.remove("keys") else {
            return Err("the key set has no list \"keys\"".into());
        };
        if list.len() > KEYS_MAX {
            return Err(format!("the key set has {} keys, more than {KEYS_MAX}", list.len()));
        }
        let (mut keys, mut passed_over) = (Vec::new(), Vec::new());
        for (number, item) in list.iter().enumerate() {
            let read = item.as_object().ok_or_else(|| "it is no object".to_owned()).and_then(|it| Key::read(it, own));
            match read {
                Ok(key) => keys.push(key),
                Err(why) => passed_over.push(format!("key {} of the set is passed over: {why}", number + 1)),
            }
        }
        Ok(Self { keys: keys.into(), passed_over: passed_over.into() })
    }

    pub(super) fn len(&self) -> usize {
        self.keys.len()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Key> {
        self.keys.iter()
    }

    /// Why keys of the set are not used, a line for each.
    pub(super) fn passed_over(&self) -> &[String] {
        &self.passed_over
    }

    /// Whether a key is a secret, so that nobody else may read where it came from.
    pub(super) fn has_secret(&self) -> bool {
        self.iter().any(|key| key.family == SHARED)
    }
}

const RSA: &[&str] = &["RS256", "RS384", "RS512", "PS256", "PS384", "PS512"];
const P256: &[&str] = &["ES256"];
const P384: &[&str] = &["ES384"];
const ED25519: &[&str] = &["EdDSA"];
const SHARED: &[&str] = &["HS256", "HS384", "HS512"];

impl Key {
    fn read(jwk: &Map<String, Value>, own: bool) -> Result<Self, String> {
        let kid = text(jwk, "kid")?.map(str::to_owned);
        let named = text(jwk, "alg")?;
        if text(jwk, "use")?.is_some_and(|it| it != "sig") {
            return Err("its use is not \"sig\"".into());
        }
        if let Some(operations) = jwk.get("key_ops")
            && !operations.as_array().is_some_and(|all| all.iter().any(|it| it == "verify"))
        {
            return Err("its key_ops have no \"verify\"".into());
        }
        let kty = text(jwk, "kty")?.ok_or("it has no kty")?;
        if kty != "oct" && jwk.contains_key("d") {
            return Err("it holds the private part too, which is for the issuer alone; make a new key".into());
        }
        let curve = || text(jwk, "crv").map(Option::unwrap_or_default);
        let (family, verifies) = match kty {
            "RSA" => (RSA, rsa(jwk)?),
            "EC" if curve()? == "P-256" => (P256, point(jwk, 32)?),
            "EC" if curve()? == "P-384" => (P384, point(jwk, 48)?),
            "OKP" if curve()? == "Ed25519" => (ED25519, DecodingKey::from_ed_der(&bytes(jwk, "x", 32..=32)?)),
            "oct" if own => (SHARED, shared(jwk)?),
            "oct" => return Err("it is a shared secret, and those are taken from auth.jwks_file only".into()),
            "EC" | "OKP" => return Err(format!("its crv {} is not one that is known here", shown(curve()?))),
            other => return Err(format!("its kty {} is not one that is known here", shown(other))),
        };
        let algorithm = match named {
            None => None,
            Some(name) if family.contains(&name) => Algorithm::from_name(name),
            Some(name) => return Err(format!("its alg {} is none of a key of its kind", shown(name))),
        };
        Ok(Self { kid, algorithm, family, verifies })
    }

    pub(super) fn is_named(&self, kid: &str) -> bool {
        self.kid.as_deref() == Some(kid)
    }

    /// Whether it is for `wanted`: what a token says never makes a key of another kind of it.
    pub(super) fn is_for(&self, wanted: Algorithm) -> bool {
        match self.algorithm {
            Some(own) => own == wanted,
            None => self.family.iter().any(|name| Algorithm::from_name(name) == Some(wanted)),
        }
    }

    /// Whether `signature` (base64url) is this key's under `message`.
    pub(super) fn verifies(&self, message: &[u8], signature: &str, algorithm: Algorithm) -> bool {
        jsonwebtoken::crypto::verify(signature, message, &self.verifies, algorithm.jws()).unwrap_or(false)
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Key").field("kid", &self.kid).field("family", &self.family).finish_non_exhaustive()
    }
}

fn text<'a>(jwk: &'a Map<String, Value>, name: &str) -> Result<Option<&'a str>, String> {
    match jwk.get(name) {
        None => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(format!("its {name} is no text")),
    }
}

fn bytes(jwk: &Map<String, Value>, name: &str, lengths: std::ops::RangeInclusive<usize>) -> Result<Vec<u8>, String> {
    let text = text(jwk, name)?.ok_or_else(|| format!("it has no {name}"))?;
    let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| format!("its {name} is no base64url"))?;
    if lengths.contains(&bytes.len()) {
        Ok(bytes)
    } else {
        Err(format!("its {name} has {} bytes, not {} to {}", bytes.len(), lengths.start(), lengths.end()))
    }
}

fn rsa(jwk: &Map<String, Value>) -> Result<DecodingKey, String> {
    let n = bytes(jwk, "n", 1..=RSA_BITS.end() / 8 + 1)?;
    let e = bytes(jwk, "e", 1..=8)?;
    let n = &n[n.iter().take_while(|byte| **byte == 0).count()..];
    let bits = n.first().map_or(0, |first| n.len() * 8 - first.leading_zeros() as usize);
    if !RSA_BITS.contains(&bits) {
        return Err(format!("its modulus has {bits} bits, not {} to {}", RSA_BITS.start(), RSA_BITS.end()));
    }
    let exponent = e.iter().fold(0u64, |all, byte| all << 8 | u64::from(*byte));
    if exponent < 3 || exponent % 2 == 0 || exponent > 1 << 32 {
        return Err(format!("its exponent {exponent} is not one that keeps it safe, such as 65537"));
    }
    let e = exponent.to_be_bytes();
    Ok(DecodingKey::from_rsa_raw_components(n, &e[exponent.leading_zeros() as usize / 8..]))
}

fn point(jwk: &Map<String, Value>, length: usize) -> Result<DecodingKey, String> {
    let mut point = vec![4]; // an uncompressed point
    for name in ["x", "y"] {
        point.extend(bytes(jwk, name, length..=length)?);
    }
    Ok(DecodingKey::from_ec_der(&point))
}

/// Long enough for the algorithm, and not one that is printed in manuals.
fn shared(jwk: &Map<String, Value>) -> Result<DecodingKey, String> {
    let secret = bytes(jwk, "k", 32..=1024)?;
    if is_placeholder(&secret) {
        return Err("its secret is a placeholder; make one of 32 random bytes".into());
    }
    Ok(DecodingKey::from_secret(&secret))
}
