//! Why a caller is not let in: for the operator exactly, for the client only as much as OAuth has words for. What a
//! client must not learn (which key is unknown, whose token it was, what we compare with) is in the first only.

use std::fmt::{self, Write};

/// Why nobody could be made of what came with a request, or why who it is may not call.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refused {
    /// Nothing came.
    Missing,
    /// `Authorization` is of another scheme, such as Basic.
    Scheme,
    /// `Authorization` is not `Bearer`, one space and a token.
    Format(&'static str),
    /// The token is longer than any that is read.
    TooLong {
        /// Its size.
        bytes: usize,
    },
    /// No such API key, or its secret is wrong. One answer for both.
    UnknownApiKey,
    /// The API key has expired.
    ApiKeyExpired {
        /// Its id.
        id: String,
        /// Since when.
        ago_s: u64,
    },
    /// Such credentials are not accepted here at all.
    NotTaken(&'static str),
    /// The token is not built as one.
    Malformed(String),
    /// The header's `alg` is not accepted.
    Algorithm(String),
    /// The header demands what we do not know.
    Critical(String),
    /// No key of the issuer is the one that the header names.
    UnknownKey(String),
    /// The key is there, but is not one for the header's `alg`.
    KeyAlgorithm {
        /// What is wrong with it.
        why: String,
        /// Whether the header says by a `kid` which key it means.
        has_kid: bool,
    },
    /// No keys of the issuer are known at the moment.
    NoKeys,
    /// The signature is not the key's.
    Signature,
    /// `exp` has passed.
    Expired {
        /// Since when.
        ago_s: u64,
    },
    /// `nbf` or `iat` is in the future.
    NotYet {
        /// Which one.
        claim: &'static str,
        /// For how long.
        in_s: u64,
    },
    /// The token is of another issuer.
    Issuer(String),
    /// The token is for another service.
    Audience(String),
    /// A claim is missing, or is not what it must be.
    Claim {
        /// Which one.
        claim: String,
        /// What is wrong with it.
        why: &'static str,
    },
    /// Who it is is known, and lacks scopes.
    Scope {
        /// Those that are lacking.
        missing: Vec<String>,
    },
}

/// What the client is told: RFC 6750, section 3.1.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ForClient {
    /// The code, when there is one to be told.
    pub error: Option<&'static str>,
    /// A sentence that is the same for all who get this code.
    pub description: &'static str,
}

impl Refused {
    /// What exactly is wrong, for the log and for `token check`. One line; holds no part of a signature or secret.
    pub fn reason(&self) -> String {
        self.to_string()
    }

    /// What the client is told.
    pub fn for_client(&self) -> ForClient {
        match self {
            // Who came with another scheme knows of none, so that RFC 6750 has no error for it.
            Self::Missing | Self::Scheme => ForClient { error: None, description: "Authentication is required" },
            // The token may be as good as any.
            Self::NoKeys => ForClient {
                error: None,
                description: "Tokens cannot be verified at the moment; the token may be right, so try again later",
            },
            Self::Scope { .. } => ForClient {
                error: Some("insufficient_scope"),
                description: "The request needs more scopes than the token has",
            },
            _ => ForClient {
                error: Some("invalid_token"),
                description: "The token is missing, malformed, expired, revoked or not meant for this server",
            },
        }
    }

    /// The HTTP status to answer with.
    pub fn status(&self) -> u16 {
        match self {
            Self::Scope { .. } => 403,
            Self::TooLong { .. } => 431,
            Self::NoKeys => 503,
            _ => 401,
        }
    }

    /// Whether newer keys of the issuer may change the answer. An issuer without `kid` may have another key for what is
    /// tried with the old one.
    pub fn may_pass_with_newer_keys(&self) -> bool {
        matches!(self, Self::UnknownKey(_) | Self::NoKeys | Self::Signature | Self::KeyAlgorithm { has_kid: false, .. })
    }

    /// A word of a fixed set, for metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Scheme => "scheme",
            Self::Format(_) => "format",
            Self::TooLong { .. } => "too_long",
            Self::UnknownApiKey => "unknown_api_key",
            Self::ApiKeyExpired { .. } => "api_key_expired",
            Self::NotTaken(_) => "not_taken",
            Self::Malformed(_) => "malformed",
            Self::Algorithm(_) => "algorithm",
            Self::Critical(_) => "critical",
            Self::UnknownKey(_) => "unknown_key",
            Self::KeyAlgorithm { .. } => "key_algorithm",
            Self::NoKeys => "no_keys",
            Self::Signature => "signature",
            Self::Expired { .. } => "expired",
            Self::NotYet { .. } => "not_yet",
            Self::Issuer(_) => "issuer",
            Self::Audience(_) => "audience",
            Self::Claim { .. } => "claim",
            Self::Scope { .. } => "scope",
        }
    }

    /// The value of `WWW-Authenticate`: where to learn how to get a token, and the scopes that it should have (as
    /// words with spaces between; empty says none). What has no place in a quoted text is left out.
    pub fn challenge(&self, resource_metadata_url: &str, scope: &str) -> String {
        let told = self.for_client();
        let mut value = String::from("Bearer");
        let mut separator = " ";
        let mut add = |name: &str, text: &str| {
            if !text.is_empty() {
                let _ = write!(value, "{separator}{name}=\"{}\"", quotable(text));
                separator = ", ";
            }
        };
        if let Some(error) = told.error {
            add("error", error);
            add("error_description", told.description);
        }
        add("scope", scope);
        add("resource_metadata", resource_metadata_url);
        value
    }
}

/// What RFC 6750 lets stand between quotes: printable ASCII without `"` and `\`.
fn quotable(text: &str) -> String {
    text.chars().filter(|char| matches!(char, ' '..='~') && !matches!(char, '"' | '\\')).collect()
}

/// What came from outside, for a line of a log: escaped, and not long.
pub(super) fn shown(text: &str) -> String {
    const CHARS_MAX: usize = 100;
    let mut start: String = text.chars().take(CHARS_MAX).collect();
    if start.len() < text.len() {
        start.push('…');
    }
    format!("{start:?}")
}

/// So many seconds, in the unit that people would say them in.
pub(crate) fn span(s: u64) -> String {
    match s {
        0..120 => format!("{s} s"),
        120..7200 => format!("{} min", s / 60),
        7200..172_800 => format!("{} h", s / 3600),
        _ => format!("{} days", s / 86_400),
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing => f.write_str("no Authorization header came"),
            Self::Scheme => f.write_str("Authorization is not of the scheme Bearer"),
            Self::Format(why) | Self::NotTaken(why) => f.write_str(why),
            Self::TooLong { bytes } => {
                write!(f, "the token has {bytes} bytes, more than {}", super::token::BYTES_MAX)
            }
            Self::UnknownApiKey => f.write_str("no API key has this id and secret (never made, revoked, or mistyped)"),
            Self::ApiKeyExpired { id, ago_s } => write!(f, "the API key {id} expired {} ago", span(*ago_s)),
            Self::Malformed(why) => f.write_str(why),
            Self::Algorithm(found) => write!(f, "alg is {found}, which auth.algorithms does not have"),
            Self::Critical(found) => write!(f, "crit demands {found}, and nothing of the kind is known here"),
            Self::UnknownKey(kid) => write!(f, "the issuer has no key with the kid {kid}"),
            Self::KeyAlgorithm { why, .. } => f.write_str(why),
            Self::NoKeys => f.write_str("no keys of the issuer are known: none could be fetched, or not lately"),
            Self::Signature => f.write_str("the signature is not that of the issuer's key"),
            Self::Expired { ago_s } => write!(f, "expired {} ago", span(*ago_s)),
            Self::NotYet { claim, in_s } => write!(f, "{claim} is {} in the future", span(*in_s)),
            Self::Issuer(found) => write!(f, "iss is {found}, which is not auth.issuer"),
            Self::Audience(found) => write!(f, "aud is {found}, which has none of auth.audience"),
            Self::Claim { claim, why } => write!(f, "the claim {claim} {why}"),
            Self::Scope { missing } => write!(f, "the scopes {} are missing", missing.join(" ")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_challenge_says_where_to_go() {
        let url = "https://us.example/.well-known/oauth-protected-resource/mcp";
        assert_eq!(
            Refused::Missing.challenge(url, "read write"),
            format!("Bearer scope=\"read write\", resource_metadata=\"{url}\"")
        );
        assert_eq!(
            Refused::Scope { missing: vec!["write".into()] }.challenge(url, "read write"),
            format!(
                "Bearer error=\"insufficient_scope\", error_description=\"The request needs more scopes than the token \
                 has\", scope=\"read write\", resource_metadata=\"{url}\""
            )
        );
        assert_eq!(Refused::Scheme.challenge(url, ""), Refused::Missing.challenge(url, ""));
        assert!(Refused::Signature.challenge(url, "").starts_with("Bearer error=\"invalid_token\", "));
    }

    #[test]
    fn nothing_breaks_out_of_a_challenge() {
        let value = Refused::Missing.challenge("https://x/\r\nSet-Cookie: a=\"b\\", "a\" b\u{0}\u{2028}é");
        assert_eq!(value, "Bearer scope=\"a b\", resource_metadata=\"https://x/Set-Cookie: a=b\"");
        assert!(http::HeaderValue::from_str(&value).is_ok());
    }

    #[test]
    fn clients_learn_nothing_of_the_reason() {
        let all = [
            Refused::UnknownApiKey,
            Refused::ApiKeyExpired { id: "0a1b2c3d".into(), ago_s: 1 },
            Refused::Format("x"),
            Refused::UnknownKey("\"canary\"".into()),
            Refused::Signature,
            Refused::Expired { ago_s: 12 },
            Refused::Issuer("\"canary\"".into()),
            Refused::Audience("\"canary\"".into()),
            Refused::Claim { claim: "canary".into(), why: "is missing" },
        ];
        let told = Refused::Signature.for_client();
        for refused in all {
            assert_eq!(refused.for_client(), told, "{refused}");
            assert_eq!(refused.status(), 401, "{refused}");
            assert!(!refused.challenge("", "").contains("canary"));
        }
        assert_eq!(Refused::Expired { ago_s: 12 }.reason(), "expired 12 s ago");
        let spans = [0, 119, 120, 7199, 7200, 172_799, 172_800, 431_999].map(span);
        assert_eq!(spans, ["0 s", "119 s", "2 min", "119 min", "2 h", "47 h", "2 days", "4 days"]);
        assert_eq!(Refused::Scope { missing: Vec::new() }.status(), 403);
        assert_eq!(Refused::TooLong { bytes: 1 }.status(), 431);
        assert_eq!((Refused::NoKeys.status(), Refused::NoKeys.for_client().error), (503, None));
    }

    #[test]
    fn what_came_from_outside_is_one_short_line() {
        assert_eq!(shown("a\r\n\u{1b}[31m\u{2028}"), r#""a\r\n\u{1b}[31m\u{2028}""#);
        assert!(shown(&"x".repeat(70_000)).len() < 110);
    }
}
