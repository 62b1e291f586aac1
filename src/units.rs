//! Quantities as people write them, and what must not be shown. Here: [`ByteSize`], read from `"1MiB"` or a plain
//! number, and [`Secret`]. Durations are plain
//! integers with the unit in the setting's name (`request_timeout_ms`), so they need no type.

use std::{borrow::Cow, fmt};

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A number of bytes. In files: an integer, or text with one of the units `B`, `KiB`, `MiB`, `GiB` (powers of 1024).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

impl ByteSize {
    /// `n` kibibytes.
    pub const fn kib(n: u64) -> Self {
        Self(n << 10)
    }

    /// `n` mebibytes.
    pub const fn mib(n: u64) -> Self {
        Self(n << 20)
    }

    /// The size as a length in memory; saturates where `usize` is smaller.
    pub fn as_usize(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }

    /// Reads `"64KiB"`, `"64 KiB"`, `"65536"` or `"65536B"`.
    ///
    /// # Errors
    /// Says what was wrong and what would be right.
    pub fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let shift = match unit.trim() {
            "" | "B" => 0,
            "KiB" => 10,
            "MiB" => 20,
            "GiB" => 30,
            other => {
                return Err(format!(
                    "unknown unit {other:?} in {text:?}: write bytes as a number, or with B, KiB, MiB or GiB, for example \"64KiB\""
                ));
            }
        };
        let number: u64 = number
            .parse()
            .map_err(|_| format!("{text:?} is not a size: write a whole number of bytes, or for example \"64KiB\""))?;
        number.checked_mul(1 << shift).map(Self).ok_or_else(|| format!("{text:?} is more bytes than fit into 64 bits"))
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (shift, unit) in [(30, "GiB"), (20, "MiB"), (10, "KiB")] {
            if self.0 != 0 && self.0 & ((1 << shift) - 1) == 0 {
                return write!(f, "{}{unit}", self.0 >> shift);
            }
        }
        write!(f, "{}B", self.0)
    }
}

impl Serialize for ByteSize {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for ByteSize {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Visitor;
        impl de::Visitor<'_> for Visitor {
            type Value = ByteSize;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a size: a whole number of bytes, or text such as \"64KiB\"")
            }

            fn visit_u64<E: de::Error>(self, bytes: u64) -> Result<ByteSize, E> {
                Ok(ByteSize(bytes))
            }

            fn visit_i64<E: de::Error>(self, bytes: i64) -> Result<ByteSize, E> {
                u64::try_from(bytes).map(ByteSize).map_err(|_| E::custom("a size cannot be negative"))
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<ByteSize, E> {
                ByteSize::parse(text).map_err(E::custom)
            }
        }
        deserializer.deserialize_any(Visitor)
    }
}

impl JsonSchema for ByteSize {
    fn schema_name() -> Cow<'static, str> {
        "ByteSize".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "anyOf": [
                { "type": "integer", "minimum": 0 },
                { "type": "string", "pattern": "^[0-9]+ *(B|KiB|MiB|GiB)?$" }
            ]
        })
    }
}

/// A text that is never shown: not in a log, not by `check`, not in a panic.
#[derive(Clone, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(transparent)]
pub struct Secret(String);

/// Whether this is what manuals print where a secret belongs, or a single byte again and again. Nobody who starts a server
/// with it has made a secret.
pub(crate) fn is_placeholder(secret: &[u8]) -> bool {
    const KNOWN: [&str; 9] =
        ["secret", "changeme", "change-me", "change_me", "placeholder", "example", "password", "default", "your-"];
    let lower = String::from_utf8_lossy(secret).to_ascii_lowercase();
    KNOWN.iter().any(|word| lower.contains(word)) || secret.iter().all(|byte| *byte == secret[0])
}

impl Secret {
    /// Hides `text`.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text, for the one who uses it.
    pub(crate) fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(***)")
    }
}

/// Shown as stars wherever settings are listed.
impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str("***")
    }
}

#[cfg(test)]
mod tests {
    use super::ByteSize;

    #[test]
    fn sizes_read_as_they_print() {
        for (text, bytes) in
            [("0", 0), ("1B", 1), ("64KiB", 65_536), ("1 MiB", 1 << 20), ("3GiB", 3 << 30), ("1000", 1000)]
        {
            let size = ByteSize::parse(text).expect(text);
            assert_eq!(size.0, bytes, "{text}");
            assert_eq!(ByteSize::parse(&size.to_string()), Ok(size), "{text}");
        }
        for text in ["", "KiB", "1kb", "-1", "1.5MiB", "99999999999999999999", "18446744073709551615GiB"] {
            assert!(ByteSize::parse(text).is_err(), "{text}");
        }
    }
}
