//! A kept result as bytes in Redis: it says its form, its key and the generations in which its run began, and none of it is
//! believed before it fits.

use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use sha2::{Digest, Sha256};

/// What a value begins with: a name, and the form of the rest.
const MAGIC: [u8; 3] = *b"bgr";
const FORM: u8 = 1;
/// Name, form, digest, time, generations, flags, length of the fields.
pub(super) const HEAD_BYTES: usize = 4 + 32 + 8 + 16 + 1 + 4;
const IS_ERROR: u8 = 1;
const HAS_META: u8 = 2;

/// A result, as it is shared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) fields: Bytes,
    pub(crate) meta: Option<Bytes>,
    pub(crate) is_error: bool,
    /// How long it was to be kept when it was made.
    pub(crate) ttl: Duration,
    /// What is left of that.
    pub(crate) left: Duration,
}

/// The generations at one moment, as far as they count for one result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp([u8; 16]);

/// Why there is no value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Bad {
    Missing,
    /// It was, and is invalidated.
    Old,
    Corrupt,
    /// It is of another version, or none of ours: it is left as it is.
    Foreign,
}

pub(super) fn stamp(generations: &[Option<String>]) -> Stamp {
    let mut digest = Sha256::new();
    for generation in generations {
        let text = generation.as_deref().unwrap_or_default();
        digest.update((text.len() as u64).to_le_bytes());
        digest.update(text);
    }
    let mut stamp = [0; 16];
    stamp.copy_from_slice(&digest.finalize()[..16]);
    Stamp(stamp)
}

/// Of everything after it, and of the key: a value counts under its own key alone.
fn digest(key: &[u8; 32], rest: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update(key).chain_update(rest).finalize().into()
}

pub(super) fn written(key: &[u8; 32], stamp: Stamp, entry: &Entry) -> Vec<u8> {
    let meta = entry.meta.as_deref().unwrap_or_default();
    let mut rest = BytesMut::with_capacity(HEAD_BYTES + entry.fields.len() + meta.len());
    rest.put_u64(entry.ttl.as_millis() as u64);
    rest.put_slice(&stamp.0);
    rest.put_u8(if entry.is_error { IS_ERROR } else { 0 } | if entry.meta.is_some() { HAS_META } else { 0 });
    rest.put_u32(u32::try_from(entry.fields.len()).unwrap_or(u32::MAX));
    rest.put_slice(&entry.fields);
    rest.put_slice(meta);
    let mut value = Vec::with_capacity(36 + rest.len());
    value.extend_from_slice(&MAGIC);
    value.push(FORM);
    value.extend_from_slice(&digest(key, &rest));
    value.extend_from_slice(&rest);
    value
}

/// Reads what [`written`] wrote. Never more than there is, whatever it says.
pub(super) fn read(key: &[u8; 32], value: &[u8], left_ms: u64, now: Stamp) -> Result<Entry, Bad> {
    if value.is_empty() {
        return Err(Bad::Missing);
    }
    let rest = match value.split_first_chunk::<4>() {
        Some(([a, b, c, FORM], rest)) if [*a, *b, *c] == MAGIC => rest,
        _ => return Err(Bad::Foreign),
    };
    let (said, rest) = rest.split_first_chunk::<32>().ok_or(Bad::Corrupt)?;
    if *said != digest(key, rest) {
        return Err(Bad::Corrupt);
    }
    let (ttl_ms, rest) = rest.split_first_chunk::<8>().ok_or(Bad::Corrupt)?;
    let (stamp, rest) = rest.split_first_chunk::<16>().ok_or(Bad::Corrupt)?;
    let (flags, rest) = rest.split_first().ok_or(Bad::Corrupt)?;
    let (length, rest) = rest.split_first_chunk::<4>().ok_or(Bad::Corrupt)?;
    let length = u32::from_be_bytes(*length) as usize;
    let (fields, meta) = rest.split_at_checked(length).ok_or(Bad::Corrupt)?;
    if *stamp != now.0 {
        return Err(Bad::Old);
    }
    if left_ms == 0 {
        return Err(Bad::Missing); // its time is over
    }
    let ttl_ms = u64::from_be_bytes(*ttl_ms);
    Ok(Entry {
        fields: Bytes::copy_from_slice(fields),
        meta: (flags & HAS_META != 0).then(|| Bytes::copy_from_slice(meta)),
        is_error: flags & IS_ERROR != 0,
        ttl: Duration::from_millis(ttl_ms),
        left: Duration::from_millis(left_ms.min(ttl_ms)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Entry {
        let second = Duration::from_secs(1);
        Entry {
            fields: Bytes::from_static(b"\"content\":[]"),
            meta: Some(Bytes::from_static(b"{}")),
            is_error: true,
            ttl: second * 9,
            left: second * 4,
        }
    }

    #[test]
    fn a_value_is_read_under_its_key_in_its_generations_and_not_otherwise() {
        let (key, now) = ([7; 32], stamp(&[None, Some("a".into())]));
        let value = written(&key, now, &entry());
        assert_eq!(read(&key, &value, 4000, now), Ok(entry()));
        assert_eq!(
            read(&key, &value, 1 << 40, now).map(|e| e.left),
            Ok(entry().ttl),
            "no longer than it was to be kept"
        );
        assert_eq!(read(&[8; 32], &value, 4000, now), Err(Bad::Corrupt));
        for other in [stamp(&[Some("a".into()), None]), stamp(&[None, Some("b".into())]), stamp(&[])] {
            assert_eq!(read(&key, &value, 4000, other), Err(Bad::Old));
        }
        assert_eq!((read(&key, b"", 1, now), read(&key, &value, 0, now)), (Err(Bad::Missing), Err(Bad::Missing)));
    }

    #[test]
    fn what_is_damaged_or_of_another_version_is_no_value() {
        let (key, now) = ([7; 32], stamp(&[]));
        let value = written(&key, now, &entry());
        for at in 0..value.len() {
            let mut damaged = value.clone();
            damaged[at] ^= 1;
            let bad = read(&key, &damaged, 4000, now).expect_err("damaged");
            assert_eq!(bad, if at < 4 { Bad::Foreign } else { Bad::Corrupt }, "byte {at}");
            assert!(read(&key, &value[..at], 4000, now).is_err(), "the first {at} bytes");
        }
        assert_eq!(read(&key, b"something else entirely", 1, now), Err(Bad::Foreign));
    }
}
