//! The signature algorithms that there are. `none` is not among them, so that no setting can bring it in.

use std::fmt;

use jsonwebtoken::Algorithm as Jws;

/// A signature algorithm by which a token may be signed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Algorithm(Jws);

/// Each with its name on the wire. Names are exact: `rs256` is none.
const ALL: [(&str, Jws); 12] = [
    ("RS256", Jws::RS256),
    ("RS384", Jws::RS384),
    ("RS512", Jws::RS512),
    ("PS256", Jws::PS256),
    ("PS384", Jws::PS384),
    ("PS512", Jws::PS512),
    ("ES256", Jws::ES256),
    ("ES384", Jws::ES384),
    ("EdDSA", Jws::EdDSA),
    ("HS256", Jws::HS256),
    ("HS384", Jws::HS384),
    ("HS512", Jws::HS512),
];

impl Algorithm {
    pub(super) fn from_name(name: &str) -> Option<Self> {
        ALL.iter().find(|(known, _)| *known == name).map(|(_, jws)| Self(*jws))
    }

    pub(super) fn names() -> String {
        ALL.map(|(name, _)| name).join(", ")
    }

    /// Whether who can verify can sign too.
    pub(super) fn is_shared(self) -> bool {
        matches!(self.0, Jws::HS256 | Jws::HS384 | Jws::HS512)
    }

    pub(super) fn jws(self) -> Jws {
        self.0
    }

    fn name(self) -> &'static str {
        ALL.iter().find(|(_, jws)| *jws == self.0).map_or("", |(name, _)| name)
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::Algorithm;

    #[test]
    fn names_are_exact_and_none_is_not_one() {
        for name in ["RS256", "PS512", "ES384", "EdDSA", "HS256"] {
            assert_eq!(Algorithm::from_name(name).map(|found| found.to_string()).as_deref(), Some(name));
        }
        for name in ["none", "None", "NONE", "nOnE", "", "rs256", "RS256 ", "ES512", "RSA1_5", "dir"] {
            assert_eq!(Algorithm::from_name(name), None, "{name}");
        }
    }
}
