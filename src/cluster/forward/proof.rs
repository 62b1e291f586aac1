//! How two instances know each other: by a key that all of a deployment have. Who connects and who is connected to each
//! give a number that was never used, and both make the key of the connection of them; what is asked then carries a proof
//! made with that, and its own number, so that nothing can be sent again. The clocks of the hosts do not matter.

use hmac::{Hmac, KeyInit, Mac};
use parking_lot::Mutex;
use sha2::Sha256;

use crate::cluster::keys::hex;

/// Bytes of a number that was never used.
const NONCE_BYTES: usize = 32;

/// A key, or what was made with one.
pub(super) type Code = [u8; 32];

/// What one side of a connection says of itself and of whom it means.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Hello {
    /// Who connects.
    pub(super) from: String,
    /// Whom it means to reach.
    pub(super) to: String,
    pub(super) nonce: String,
}

/// What the other side answers.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Welcome {
    pub(super) nonce: String,
    /// That it has the key of the deployment too.
    pub(super) proof: String,
}

/// A number that was never used, as text.
///
/// # Errors
/// The operating system has none.
pub(super) fn nonce() -> Result<String, String> {
    let mut bytes = [0; NONCE_BYTES];
    getrandom::fill(&mut bytes).map_err(|error| format!("the operating system gives no random numbers: {error}"))?;
    Ok(hex(&bytes))
}

/// Whether this has the form of one.
pub(super) fn is_nonce(text: &str) -> bool {
    text.len() == 2 * NONCE_BYTES && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn mac(key: &[u8], parts: &[&[u8]]) -> Hmac<Sha256> {
    // Of a key of any length one can be made, so that there is no error here.
    let mut mac = Hmac::<Sha256>::new_from_slice(key).unwrap_or_else(|_| Hmac::new(&Default::default()));
    for part in parts {
        mac.update(&(part.len() as u64).to_le_bytes()); // so that no two lists of parts look alike
        mac.update(part);
    }
    mac
}

fn of_hello(key: &[u8], what: &[u8], hello: &Hello, nonce: &str) -> Hmac<Sha256> {
    mac(key, &[what, hello.from.as_bytes(), hello.to.as_bytes(), hello.nonce.as_bytes(), nonce.as_bytes()])
}

/// The answer to who connects, and the key of the connection.
pub(super) fn welcome(key: &[u8], hello: &Hello, nonce: String) -> (Welcome, Code) {
    let proof = hex(&of_hello(key, b"bigiron forward: welcome", hello, &nonce).finalize().into_bytes());
    let connection = of_hello(key, b"bigiron forward: connection", hello, &nonce).finalize().into_bytes().into();
    (Welcome { nonce, proof }, connection)
}

/// The key of the connection, for who connected. None when the other side has not the key of the deployment.
pub(super) fn welcomed(key: &[u8], hello: &Hello, welcome: &Welcome) -> Option<Code> {
    let proof = unhex(&welcome.proof).filter(|_| is_nonce(&welcome.nonce))?;
    of_hello(key, b"bigiron forward: welcome", hello, &welcome.nonce).verify_slice(&proof).ok()?;
    Some(of_hello(key, b"bigiron forward: connection", hello, &welcome.nonce).finalize().into_bytes().into())
}

/// The proof of one request on a connection, as a header's value.
pub(super) fn sign(connection: &Code, path: &str, number: u64, body: &[u8]) -> String {
    let code = mac(connection, &[path.as_bytes(), &number.to_le_bytes(), body]).finalize().into_bytes();
    format!("{number}:{}", hex(&code))
}

/// The number of a request whose proof is right.
pub(super) fn verify(connection: &Code, path: &str, proof: &str, body: &[u8]) -> Option<u64> {
    let (number, code) = proof.split_once(':')?;
    let (number, code) = (number.parse::<u64>().ok()?, unhex(code)?);
    mac(connection, &[path.as_bytes(), &number.to_le_bytes(), body]).verify_slice(&code).ok()?;
    Some(number)
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.is_ascii() {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(text.get(at..at + 2)?, 16).ok()).collect()
}

/// Numbers that may come late: requests of one connection overtake each other.
const LATE_MAX: u64 = 16_384;

/// The numbers that were used on a connection.
#[derive(Debug)]
pub(super) struct Used(Mutex<Window>);

#[derive(Debug)]
struct Window {
    /// One more than the highest.
    next: u64,
    /// Of those below it, by number modulo their count.
    bits: Box<[u64]>,
}

impl Default for Used {
    fn default() -> Self {
        Self(Mutex::new(Window { next: 0, bits: vec![0; LATE_MAX as usize / 64].into() }))
    }
}

impl Used {
    /// Uses a number; false when it was used before, or is too old to tell.
    pub(super) fn take(&self, number: u64) -> bool {
        let mut window = self.0.lock();
        if number == u64::MAX || number.saturating_add(LATE_MAX) < window.next {
            return false;
        }
        if number >= window.next {
            if number - window.next >= LATE_MAX {
                window.bits.fill(0);
            } else {
                (window.next..number).for_each(|skipped| window.clear(skipped));
            }
            window.clear(number);
            window.next = number + 1;
        }
        let (word, bit) = place(number);
        let is_new = window.bits[word] & bit == 0;
        window.bits[word] |= bit;
        is_new
    }
}

impl Window {
    fn clear(&mut self, number: u64) {
        let (word, bit) = place(number);
        self.bits[word] &= !bit;
    }
}

fn place(number: u64) -> (usize, u64) {
    let at = number % LATE_MAX;
    ((at / 64) as usize, 1 << (at % 64))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello() -> Hello {
        Hello { from: "a".into(), to: "b".into(), nonce: nonce().expect("random") }
    }

    #[test]
    fn both_sides_make_one_key_and_strangers_none() {
        let (hello, key) = (hello(), b"the key of a deployment that is long");
        let (welcomes, theirs) = welcome(key, &hello, nonce().expect("random"));
        assert_eq!(welcomed(key, &hello, &welcomes), Some(theirs));
        assert_eq!(welcomed(b"another key", &hello, &welcomes), None);
        for other in [
            Hello { from: "c".into(), ..hello.clone() },
            Hello { to: "c".into(), ..hello.clone() },
            Hello { nonce: nonce().expect("random"), ..hello.clone() },
        ] {
            assert_eq!(welcomed(key, &other, &welcomes), None, "{other:?}");
        }
        let odd = Welcome { nonce: "0".into(), ..welcomes };
        assert_eq!(welcomed(key, &hello, &odd), None);
        assert_ne!(welcome(key, &hello, nonce().expect("random")).1, theirs, "another for each connection");
    }

    #[test]
    fn a_proof_is_of_one_request() {
        let (key, other) = ([1; 32], [2; 32]);
        let proof = sign(&key, "/call", 7, b"body");
        assert_eq!(verify(&key, "/call", &proof, b"body"), Some(7));
        assert_eq!(verify(&other, "/call", &proof, b"body"), None);
        assert_eq!(verify(&key, "/answer", &proof, b"body"), None);
        assert_eq!(verify(&key, "/call", &proof, b"bodies"), None);
        assert_eq!(verify(&key, "/call", &proof.replacen('7', "8", 1), b"body"), None);
        for odd in ["", ":", "7", "7:", "7:zz", "7:é", "-1:00", "7:0"] {
            assert_eq!(verify(&key, "/call", odd, b"body"), None, "{odd:?}");
        }
    }

    #[test]
    fn a_number_is_used_once_in_whatever_order() {
        let used = Used::default();
        for number in [3, 0, 1, 2, 100, 99, 5000, 4, 20_000] {
            assert!(used.take(number), "{number}");
            assert!(!used.take(number), "{number} again");
        }
        assert!(!used.take(100) && !used.take(5), "too old to tell");
        assert!(!used.take(5000));
        assert!(used.take(5001) && used.take(1_000_000) && used.take(999_999) && !used.take(1_000_000));
        assert!(!used.take(u64::MAX) && used.take(u64::MAX - 1));
    }
}
