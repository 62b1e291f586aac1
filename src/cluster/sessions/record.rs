//! A session as it stands in Redis: its name there, and what is kept of it. Where it is kept, and for how long, is not known
//! here.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::cluster::keys::hex;

/// A session's name in Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Hash(pub(super) [u8; 16]);

impl Hash {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let mut bytes = [0; 16];
        if text.len() != 32 {
            return None;
        }
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()?;
        }
        Some(Self(bytes))
    }

    #[cfg(test)]
    pub(in crate::cluster) fn of(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    pub(in crate::cluster) fn bytes(&self) -> [u8; 16] {
        self.0
    }

    pub(in crate::cluster) fn text(&self) -> String {
        hex(&self.0)
    }
}

/// What is kept of a session.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record {
    /// When something in it changed last, by the clock of the host where it did. First, so that a script finds it.
    #[serde(rename = "u", default)]
    pub(crate) changed_ms: u64,
    /// The revision that was agreed on.
    #[serde(rename = "v")]
    pub(crate) version: String,
    /// What the client can do, as bits.
    #[serde(rename = "c")]
    pub(crate) client: u8,
    /// A hash of whom it belongs to.
    #[serde(rename = "o")]
    pub(crate) owner: String,
    /// The rank of the least level that the client wants to hear of.
    #[serde(rename = "l", default, skip_serializing_if = "Option::is_none")]
    pub(crate) log_level: Option<u8>,
    /// What `initialize` said, where a hosted handler wants to know.
    #[serde(rename = "i", default, skip_serializing_if = "Option::is_none")]
    pub(crate) initialize: Option<Value>,
    /// Resources that it subscribes to.
    #[serde(rename = "s", default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) topics: Vec<String>,
    /// They are in a key of their own.
    #[serde(rename = "m", default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) has_more: bool,
    /// Who wrote this.
    #[serde(rename = "n")]
    pub(crate) node: String,
}
