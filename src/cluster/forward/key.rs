//! The key by which the instances of a deployment know each other, and where each has it from: that is what tells two that
//! are set apart from two that have not met yet.

use std::fmt;

use serde::{Deserialize, Serialize};

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
}
