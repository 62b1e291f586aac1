//! How two instances know each other: by a key that all of a deployment have. Who connects and who is connected to each
//! give a number that was never used, and both make the key of the connection of them; what is asked then carries a proof
//! made with that, and its own number, so that nothing can be sent again. The proof stands in the head of the request and
//! says how long the body is and what is in it, so that nothing of the body is read before it is known who sends it. The
//! clocks of the hosts do not matter.

use hmac::{Hmac, KeyInit, Mac};
use parking_lot::Mutex;
use sha2::{Digest as _, Sha256};

use super::key::From;
use crate::cluster::keys::hex;

/// Bytes of a number that was never used.
const NONCE_BYTES: usize = 32;

/// A key, or what was made with one.
pub(super) type Code = [u8; 32];

/// The form of all that two instances say to each other: of the hello, the proofs, the calls and what comes back of them.
/// A version that changes one of them so that the one before cannot do with it, counts on. Who has another one is told so.
pub(super) const FORM: u32 = 1;

/// The part of a hello that each form has. Without a number it is of before there were any.
#[derive(Debug, serde::Deserialize)]
pub(super) struct Form {
    #[serde(default)]
    pub(super) form: u32,
}

/// What one side of a connection says of itself and of whom it means.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Hello {
    pub(super) form: u32,
    /// Who connects.
    pub(super) from: String,
    /// Whom it means to reach.
    pub(super) to: String,
    pub(super) nonce: String,
    /// Where it has its key from, for the words of who refuses it.
    #[serde(default)]
    pub(super) key: From,
    /// What its key is told from others by, for the same.
    #[serde(default)]
    pub(super) fingerprint: String,
}

/// What the other side answers.
#[derive(Clone, Debug, serde::Serialize, serde::Deserialize)]
pub(super) struct Welcome {
    pub(super) nonce: String,
    /// That it has the key of the deployment too.
    pub(super) proof: String,
    /// As in the hello, and so is this.
    #[serde(default)]
    pub(super) key: From,
    #[serde(default)]
    pub(super) fingerprint: String,
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
    (Welcome { nonce, proof, key: From::default(), fingerprint: String::new() }, connection)
}

/// The key of the connection, for who connected. None when the other side has not the key of the deployment.
pub(super) fn welcomed(key: &[u8], hello: &Hello, welcome: &Welcome) -> Option<Code> {
    let proof = unhex(&welcome.proof).filter(|_| is_nonce(&welcome.nonce))?;
    of_hello(key, b"bigiron forward: welcome", hello, &welcome.nonce).verify_slice(&proof).ok()?;
    Some(of_hello(key, b"bigiron forward: connection", hello, &welcome.nonce).finalize().into_bytes().into())
}

/// What the head of a request says of it, with the proof that an instance of the deployment says so.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Proven {
    /// Its own among those of the connection.
    pub(super) number: u64,
    /// Bytes of its body.
    pub(super) length: u64,
    digest: Code,
}

impl Proven {
    /// Whether this is the body that was meant.
    pub(super) fn is_of(&self, body: &[u8]) -> bool {
        self.digest == digest(body)
    }
}

fn digest(body: &[u8]) -> Code {
    Sha256::digest(body).into()
}

fn of_request(connection: &Code, path: &str, proven: &Proven) -> Hmac<Sha256> {
    mac(connection, &[path.as_bytes(), &proven.number.to_le_bytes(), &proven.length.to_le_bytes(), &proven.digest])
}

/// The proof of one request on a connection, as a header's value.
pub(super) fn sign(connection: &Code, path: &str, number: u64, body: &[u8]) -> String {
    let proven = Proven { number, length: body.len() as u64, digest: digest(body) };
    let code = of_request(connection, path, &proven).finalize().into_bytes();
    format!("{number}:{}:{}:{}", proven.length, hex(&proven.digest), hex(&code))
}

/// What a header says, when its proof is right. The body is compared when it is there.
pub(super) fn verify(connection: &Code, path: &str, proof: &str) -> Option<Proven> {
    let mut parts = proof.split(':');
    let (number, length) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    let proven = Proven { number, length, digest: unhex(parts.next()?)?.try_into().ok()? };
    of_request(connection, path, &proven).verify_slice(&unhex(parts.next()?)?).ok()?;
    parts.next().is_none().then_some(proven)
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
        let (key, fingerprint) = (From::File, String::new());
        Hello { form: FORM, from: "a".into(), to: "b".into(), nonce: nonce().expect("random"), key, fingerprint }
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
        let proven = verify(&key, "/call", &proof).expect("the proof is right");
        assert_eq!((proven.number, proven.length), (7, 4));
        assert!(proven.is_of(b"body") && !proven.is_of(b"bodY") && !proven.is_of(b""));
        assert_eq!(verify(&other, "/call", &proof), None);
        assert_eq!(verify(&key, "/answer", &proof), None);
        let part = |at: usize, with: &str| {
            let mut parts: Vec<_> = proof.split(':').collect();
            parts[at] = with;
            parts.join(":")
        };
        let (zeros, more) = ("0".repeat(64), format!("{proof}:"));
        for odd in [part(0, "8"), part(0, "-1"), part(1, "5"), part(2, &zeros), part(3, &zeros), part(3, "é"), more] {
            assert_eq!(verify(&key, "/call", &odd), None, "{odd:?}");
        }
        for odd in ["", ":", "7", "7:4", "7:4:", "7:4:zz", ":::", "7:4:00:00"] {
            assert_eq!(verify(&key, "/call", odd), None, "{odd:?}");
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
