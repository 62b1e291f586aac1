//! The key by which the instances of a deployment know each other, and where each has it from: that is what tells two that
//! are set apart from two that have not met yet. Where keys differ people compare them by their fingerprints; a key itself
//! is never shown.

use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::cluster::keys::hex;

/// Of the SHA-256 of a key, as many bytes are shown: two keys are told apart by them, and nobody finds one by them.
const FINGERPRINT_BYTES: usize = 4;

/// Where an instance has its key from. Two tell each other; it is not proven, and no more than words in the log and the
/// time of the next attempt depend on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum From {
    /// The file that its settings name.
    File,
    /// It is the one in Redis.
    Shared,
    /// It was made at the start, and Redis has not yet been asked for that of all.
    Own,
    /// Not known: one of an earlier version does not say.
    #[default]
    #[serde(other)]
    Unsaid,
}

impl From {
    /// Why the key of another instance may be another one, and whether that passes by itself.
    pub(super) const fn differs(self, theirs: Self) -> (&'static str, bool) {
        match (self, theirs) {
            (Self::Unsaid, _) | (_, Self::Unsaid) => ("it has another key (cluster.node_key_file)", false),
            (Self::File, Self::File) => {
                ("its key may be another: compare what the files of cluster.node_key_file have in them", false)
            }
            (Self::File, _) => ("it has another key: cluster.node_key_file is set here, and not there", false),
            (_, Self::File) => ("it has another key: cluster.node_key_file is set there, and not here", false),
            (Self::Own, _) => ("this one does not know the shared key yet", true),
            (_, Self::Own) => ("it does not know the shared key yet", true),
            (Self::Shared, Self::Shared) => ("the shared key has changed, and one does not know it yet", true),
        }
    }
}

/// A key, and where it is from.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Key {
    pub(super) secret: Vec<u8>,
    pub(super) from: From,
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Key").field("from", &self.from).finish_non_exhaustive()
    }
}

impl Key {
    /// Of the file that the settings name.
    pub(crate) fn of_file(secret: &str) -> Self {
        Self { secret: secret.into(), from: From::File }
    }

    /// The one in Redis.
    pub(crate) fn shared(secret: &str) -> Self {
        Self { secret: secret.into(), from: From::Shared }
    }

    /// Made here, until that of all is known.
    pub(crate) fn own(secret: &str) -> Self {
        Self { secret: secret.into(), from: From::Own }
    }

    /// What people tell it from others by.
    pub(super) fn fingerprint(&self) -> String {
        hex(&Sha256::digest(&self.secret)[..FINGERPRINT_BYTES])
    }

    /// What is said of it where instances are listed: where it is from, and its fingerprint. None of one that is not the key
    /// of all yet.
    pub(crate) fn listed(&self) -> Option<String> {
        let from = match self.from {
            From::File => "file",
            From::Shared => "redis",
            From::Own | From::Unsaid => return None,
        };
        Some(format!("{from}:{}", self.fingerprint()))
    }

    /// Why the key of another instance is another one, as that says of it, and whether that passes by itself.
    pub(super) fn differs(&self, theirs: From, fingerprint: &str) -> (String, bool) {
        let (why, passes) = self.from.differs(theirs);
        let is_one = fingerprint.len() == 2 * FINGERPRINT_BYTES && fingerprint.bytes().all(|b| b.is_ascii_hexdigit());
        match passes || !is_one {
            true => (why.to_owned(), passes),
            false => (format!("{why} (fingerprints: {} here, {fingerprint} there)", self.fingerprint()), passes),
        }
    }

    /// As text; what is in Redis is such.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.secret).into_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_passes_by_itself_is_told_from_what_is_set_wrongly() {
        let all = [From::File, From::Shared, From::Own, From::Unsaid];
        for (own, theirs) in all.into_iter().flat_map(|own| all.map(|theirs| (own, theirs))) {
            let (why, passes) = own.differs(theirs);
            let is_set_wrongly = [own, theirs].iter().any(|from| matches!(from, From::File | From::Unsaid));
            assert_eq!(passes, !is_set_wrongly, "{own:?} {theirs:?}");
            assert_eq!(why.contains("cluster.node_key_file"), !passes, "no advice where none helps: {why}");
        }
        assert_eq!(serde_json::from_str::<From>("\"of a later version\"").expect("read"), From::Unsaid);
        assert!(!format!("{:?}", Key::own("s3cret")).contains("s3cret"));
    }

    #[test]
    fn keys_are_compared_by_their_fingerprints() {
        // printf s3cret | sha256sum | cut -c1-8
        let (file, own) = (Key::of_file("s3cret"), Key::own("s3cret"));
        assert_eq!(file.fingerprint(), "1ec1c26b");
        assert_eq!((file.listed().as_deref(), own.listed()), (Some("file:1ec1c26b"), None));
        assert_eq!(Key::shared("s3cret").listed().as_deref(), Some("redis:1ec1c26b"));
        let (told, _) = file.differs(From::File, "0a1b2c3d");
        assert!(told.ends_with("(fingerprints: 1ec1c26b here, 0a1b2c3d there)"), "{told}");
        for odd in ["", "0a1b2c3", "0a1b2c3x", "0a1b2c3d0a1b2c3d"] {
            assert_eq!(file.differs(From::File, odd).0, From::File.differs(From::File).0, "{odd:?}");
        }
        assert!(!own.differs(From::Shared, "0a1b2c3d").0.contains("0a1b2c3d"), "it passes by itself");
    }
}
