//! What the file of API keys says of each key, in TOML: one `[[key]]` after the other, for people to read. Here it is
//! read, checked and written as text; where it lies, and who may write it, is said in `keys`.

use std::{collections::HashSet, time::SystemTime};

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::config::is_scope;

/// Digits of an id.
pub(super) const ID_CHARS: usize = 8;
/// Keys in a file.
const KEYS_MAX: usize = 10_000;
const NAME_BYTES_MAX: usize = 1024;

const HEAD: &str = "\
# API keys of bigiron, one [[key]] each. There is no secret in here, only its SHA-256; who can write here can make
# keys, so this file must be its owner's alone (chmod 600). Comments are lost when `bigiron key` writes it again.
# Taking a [[key]] out revokes it: a running server reads this file again when it has changed.
";

/// A key, as the file has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Names the key. Is part of it, and no secret.
    pub id: String,
    /// SHA-256 of the secret, in hexadecimal.
    pub sha256: String,
    /// Who calls with it.
    pub subject: String,
    /// What it grants.
    #[serde(default)]
    pub scopes: Vec<String>,
    /// Groups that its subject is in.
    #[serde(default)]
    pub groups: Vec<String>,
    /// When it was made.
    pub created: Moment,
    /// Until when it is good; without, it is until it is revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires: Option<Moment>,
    /// For people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub note: String,
}

/// A time to the second, written as `2026-01-31T12:00:00Z`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(Timestamp);

/// The keys that `text` lists, all of them right.
pub(super) fn read(text: &str) -> Result<Vec<Record>, String> {
    let content: Content = toml::from_str(text).map_err(|error| {
        let line = error.span().map_or(0, |span| text[..span.start.min(text.len())].lines().count().max(1));
        format!("line {line}: {}", error.message())
    })?;
    check(&content.key)?;
    Ok(content.key)
}

/// The text that lists these keys, when all of them are right.
pub(super) fn write(records: Vec<Record>) -> Result<String, String> {
    check(&records)?;
    let text = toml::to_string(&Content { key: records }).map_err(|error| error.to_string())?;
    Ok(format!("{HEAD}\n{text}"))
}

#[derive(Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Content {
    #[serde(default)]
    key: Vec<Record>,
}

fn check(records: &[Record]) -> Result<(), String> {
    if records.len() > KEYS_MAX {
        return Err(format!("there are {} keys, more than {KEYS_MAX}", records.len()));
    }
    let mut ids = HashSet::new();
    for record in records {
        let Record { id, subject, scopes, groups, note, .. } = record;
        let wrong = |what: &str| Err(format!("the key {id:?} {what}"));
        if !is_id(id) {
            return wrong("has no id of 8 digits 0-9 a-f");
        }
        if !ids.insert(id) {
            return wrong("is there twice");
        }
        if record.digest().is_none() {
            return wrong("has a sha256 that is not 64 hexadecimal digits");
        }
        if subject.is_empty() || !is_line(subject) {
            return wrong("needs a subject: 1 to 1024 bytes without control characters");
        }
        if let Some(scope) = scopes.iter().find(|scope| !is_scope(scope)) {
            return wrong(&format!("has {scope:?}, which is no scope: write each as one word"));
        }
        if groups.iter().any(|group| group.is_empty() || !is_line(group)) {
            return wrong("has a group that is no name: 1 to 1024 bytes without control characters");
        }
        if !is_line(note) {
            return wrong("has a note that is no line: at most 1024 bytes without control characters");
        }
    }
    Ok(())
}

/// Whether `text` is short, and does nothing to a terminal.
fn is_line(text: &str) -> bool {
    text.len() <= NAME_BYTES_MAX && !text.chars().any(char::is_control)
}

pub(super) fn is_id(text: &str) -> bool {
    text.len() == ID_CHARS && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

impl Record {
    /// The SHA-256 of the secret.
    pub(super) fn digest(&self) -> Option<[u8; 32]> {
        unhex(&self.sha256)
    }
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return None;
    }
    for (byte, digits) in bytes.iter_mut().zip(text.as_bytes().chunks(2)) {
        *byte = u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
    }
    Some(bytes)
}

impl Moment {
    /// The second that `time` is in.
    ///
    /// # Errors
    /// It is no time that a calendar has.
    pub fn from_time(time: SystemTime) -> Result<Self, String> {
        let exact = Timestamp::try_from(time).map_err(|error| format!("the clock shows no time: {error}"))?;
        Timestamp::from_second(exact.as_second()).map(Self).map_err(|error| error.to_string())
    }

    /// Reads `2026-01-31T12:00:00Z`.
    ///
    /// # Errors
    /// It is none, and how to write one.
    pub fn parse(text: &str) -> Result<Self, String> {
        text.parse().map(Self).map_err(|_| format!("{text:?} is no time; write it as 2026-01-31T12:00:00Z"))
    }

    /// As the clock has it.
    pub fn time(self) -> SystemTime {
        self.0.into()
    }
}

impl std::fmt::Display for Moment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for Moment {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Moment {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::parse(&String::deserialize(deserializer)?).map_err(de::Error::custom)
    }
}
