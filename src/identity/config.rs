//! `[auth]`: who may call at all. The settings and how they hang together; what they mean is done elsewhere.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{algorithm::Algorithm, door::read_own};

/// From here on a key that the issuer took back is in force for too long.
const REFRESH_S_LONG: u64 = 300;
const KEEP_S_LONG: u64 = 86_400;

/// `[auth]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// File with API keys, as `bigiron key` writes it; empty takes no keys.
    pub keys_file: String,
    /// Who issues tokens: the `iss` that a token must have; empty takes no tokens.
    pub issuer: String,
    /// What we are to the issuer: a token's `aud` must have one of these.
    pub audience: Vec<String>,
    /// Signature algorithms that are accepted.
    pub algorithms: Vec<String>,
    /// File with the issuer's keys (a JWK set); empty has none.
    pub jwks_file: String,
    /// Where the issuer's keys are fetched; empty fetches none.
    pub jwks_url: String,
    /// Time after which fetched keys are fetched again, in seconds.
    pub jwks_refresh_s: u64,
    /// Least time between two fetches, whatever asks for them, in seconds.
    pub jwks_retry_s: u64,
    /// Time that fetched keys are used while fetching fails, in seconds.
    pub jwks_keep_s: u64,
    /// How far our clock and the issuer's may differ, in seconds.
    pub leeway_s: u64,
    /// Verified tokens that are remembered, so that they need not be verified again.
    pub tokens_remembered_max: usize,
    /// Claim that holds the scopes.
    pub scopes_claim: String,
    /// Claim that holds the groups.
    pub groups_claim: String,
    /// Scopes that every caller needs.
    pub required_scopes: Vec<String>,
    /// Scope with which one may have the admin listener change something.
    pub admin_scope: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            keys_file: String::new(),
            issuer: String::new(),
            audience: Vec::new(),
            algorithms: ["RS256", "ES256", "EdDSA"].map(str::to_owned).into(),
            jwks_file: String::new(),
            jwks_url: String::new(),
            jwks_refresh_s: 300,
            jwks_retry_s: 30,
            jwks_keep_s: 86_400,
            leeway_s: 10,
            tokens_remembered_max: 10_000,
            scopes_claim: "scope".into(),
            groups_claim: "groups".into(),
            required_scopes: Vec::new(),
            admin_scope: "bigiron:admin".into(),
        }
    }
}

impl Config {
    /// Whether anybody is asked who they are.
    pub fn is_on(&self) -> bool {
        self.takes_keys() || self.takes_tokens()
    }

    /// Whether API keys are accepted.
    pub fn takes_keys(&self) -> bool {
        !self.keys_file.is_empty()
    }

    /// Whether tokens are accepted.
    pub fn takes_tokens(&self) -> bool {
        !self.issuer.is_empty()
    }

    /// Whether the settings agree with each other. Reads no file.
    ///
    /// # Errors
    /// The first that does not, and what would be right.
    pub fn check(&self) -> Result<(), String> {
        let algorithms = self.accepted()?;
        for scope in &self.required_scopes {
            if !is_scope(scope) {
                return Err(format!("auth.required_scopes has {scope:?}, which is no scope: write each as one word"));
            }
        }
        if !is_scope(&self.admin_scope) {
            return Err(format!("auth.admin_scope is {:?}, which is no scope: write it as one word", self.admin_scope));
        }
        if !self.required_scopes.is_empty() && !self.is_on() {
            return Err("auth.required_scopes is set, but nobody is asked who they are; set auth.keys_file or \
                        auth.issuer"
                .into());
        }
        if self.takes_tokens() { self.check_tokens(&algorithms) } else { self.check_no_tokens() }
    }

    /// What is allowed and yet weak, a sentence for each. Looks at `auth.jwks_file`.
    pub fn weak(&self) -> Vec<String> {
        let mut weak = Vec::new();
        if !self.takes_tokens() {
            return weak;
        }
        for shared in self.accepted().unwrap_or_default().into_iter().filter(|algorithm| algorithm.is_shared()) {
            weak.push(format!(
                "auth.algorithms has {shared}: whoever can verify a token with it can make one too; prefer ES256"
            ));
        }
        match (self.jwks_file.as_str(), self.jwks_url.as_str()) {
            ("", _) => {}
            (file, "") => {
                // What is wrong with the file is said elsewhere.
                if read_own(self).is_ok_and(|(keys, _)| keys.len() == 0) {
                    weak.push(format!("auth.jwks_file {file:?} has no keys: no token is taken; write the issuer's there"));
                }
            }
            (_, _) => weak.push(
                "auth.jwks_file and auth.jwks_url are both set, and the keys of both count: one that the issuer took back \
                 is good as long as the file has it; leave one out"
                    .into(),
            ),
        }
        if !self.jwks_url.is_empty() && self.jwks_refresh_s > REFRESH_S_LONG {
            weak.push(format!(
                "auth.jwks_refresh_s is {}: for so long tokens of a key are taken that the issuer took back; prefer {} or \
                 less",
                self.jwks_refresh_s, REFRESH_S_LONG
            ));
        }
        if !self.jwks_url.is_empty() && self.jwks_keep_s > KEEP_S_LONG {
            weak.push(format!(
                "auth.jwks_keep_s is {}: who keeps us from the issuer keeps its old keys in force for so long; prefer {} \
                 or less",
                self.jwks_keep_s, KEEP_S_LONG
            ));
        }
        weak
    }

    /// The algorithms in `auth.algorithms`.
    pub(super) fn accepted(&self) -> Result<Vec<Algorithm>, String> {
        if self.algorithms.is_empty() {
            return Err(format!("auth.algorithms is empty; write some of {}", Algorithm::names()));
        }
        let read = |name: &String| {
            if name.eq_ignore_ascii_case("none") {
                return Err("auth.algorithms has \"none\", with which anybody can write tokens; leave it out".into());
            }
            Algorithm::from_name(name)
                .ok_or_else(|| format!("auth.algorithms has {name:?}, which is not one of {}", Algorithm::names()))
        };
        self.algorithms.iter().map(read).collect()
    }

    fn check_no_tokens(&self) -> Result<(), String> {
        let unused = [
            ("audience", !self.audience.is_empty()),
            ("jwks_file", !self.jwks_file.is_empty()),
            ("jwks_url", !self.jwks_url.is_empty()),
        ];
        match unused.iter().find(|(_, set)| *set) {
            Some((name, _)) => {
                Err(format!("auth.{name} is set, but auth.issuer is not, so that it has no effect; set auth.issuer"))
            }
            None => Ok(()),
        }
    }

    fn check_tokens(&self, algorithms: &[Algorithm]) -> Result<(), String> {
        check_url("auth.issuer", &self.issuer)?;
        if self.audience.iter().all(String::is_empty) || self.audience.iter().any(String::is_empty) {
            return Err("auth.audience names nobody: write our own URL as the issuer knows it, such as \
                        [\"https://mcp.example.com/mcp\"], or a token made for another service would be accepted"
                .into());
        }
        if self.jwks_file.is_empty() && self.jwks_url.is_empty() {
            return Err("auth.issuer is set without its keys; set auth.jwks_url or auth.jwks_file".into());
        }
        if !self.jwks_url.is_empty() {
            check_url("auth.jwks_url", &self.jwks_url)?;
        }
        if self.jwks_file.is_empty()
            && let Some(shared) = algorithms.iter().find(|algorithm| algorithm.is_shared())
        {
            return Err(format!(
                "auth.algorithms has {shared}, whose key is a shared secret and never fetched; set auth.jwks_file, or \
                 leave {shared} out"
            ));
        }
        if self.jwks_retry_s == 0 || self.jwks_retry_s > self.jwks_refresh_s || self.jwks_refresh_s > self.jwks_keep_s {
            return Err(format!(
                "auth.jwks_retry_s ({}), jwks_refresh_s ({}) and jwks_keep_s ({}) must each be at most the next, and \
                 none 0",
                self.jwks_retry_s, self.jwks_refresh_s, self.jwks_keep_s
            ));
        }
        for (name, claim) in [("scopes_claim", &self.scopes_claim), ("groups_claim", &self.groups_claim)] {
            if claim.is_empty() {
                return Err(format!("auth.{name} is empty; write the claim's name"));
            }
        }
        Ok(())
    }
}

/// Whether `text` is one scope, in the characters of RFC 6749.
pub(crate) fn is_scope(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| matches!(byte, 0x21 | 0x23..=0x5b | 0x5d..=0x7e))
}

/// A key that comes over plain HTTP is anybody's who is on the way. To the own host there is no way.
fn check_url(name: &str, text: &str) -> Result<(), String> {
    let uri: http::Uri = text.parse().map_err(|_| format!("{name} is {text:?}, which is no URL"))?;
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let local = host == "localhost" || host.parse().is_ok_and(|address: std::net::IpAddr| address.is_loopback());
    match uri.scheme_str() {
        Some("https") if !host.is_empty() => Ok(()),
        Some("http") if local => Ok(()),
        _ => Err(format!("{name} is {text:?}; write a URL with https:// (http:// is for the own host)")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens() -> Config {
        Config {
            issuer: "https://issuer.example".into(),
            audience: vec!["https://us.example/mcp".into()],
            jwks_url: "https://issuer.example/keys".into(),
            ..Config::default()
        }
    }

    #[test]
    fn defaults_are_off_and_right() {
        assert!(!Config::default().is_on());
        assert_eq!(Config::default().check(), Ok(()));
        assert_eq!(Config { keys_file: "keys.toml".into(), ..Config::default() }.check(), Ok(()));
        assert!(tokens().is_on());
        assert_eq!(tokens().check(), Ok(()));
    }

    #[test]
    fn what_is_weak_is_named() {
        assert_eq!(tokens().weak(), Vec::<String>::new());
        let mut config = Config { jwks_refresh_s: 301, jwks_keep_s: 86_401, ..tokens() };
        config.algorithms.push("HS256".into());
        let weak = config.weak();
        for (number, expected) in ["HS256", "auth.jwks_refresh_s", "auth.jwks_keep_s"].iter().enumerate() {
            assert!(weak[number].contains(expected), "{weak:?} says nothing of {expected}");
        }
        assert!(Config { issuer: String::new(), ..config }.weak().is_empty());
        let both = Config { jwks_file: "jwks.json".into(), ..tokens() };
        assert!(both.weak().concat().contains("both set"));
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("jwks.json");
        let of = |text: &str| {
            std::fs::write(&file, text).expect("written");
            Config { jwks_url: String::new(), jwks_file: file.display().to_string(), ..tokens() }.weak().concat()
        };
        assert!(of(r#"{"keys":[]}"#).contains("has no keys"));
        assert_eq!(of("{"), "", "that is a fault, and told as one");
    }

    #[test]
    fn what_does_not_agree_is_named() {
        type Change = fn(&mut Config);
        let wrong: [(Change, &str); 19] = [
            (|c| c.admin_scope.clear(), "auth.admin_scope"),
            (|c| c.algorithms = vec!["NoNe".into()], "anybody can write tokens"),
            (|c| c.algorithms = vec!["RS257".into()], "RS256"),
            (|c| c.algorithms.clear(), "auth.algorithms is empty"),
            (|c| c.algorithms = vec!["HS256".into()], "auth.jwks_file"),
            (|c| c.audience.clear(), "auth.audience"),
            (|c| c.audience.push(String::new()), "auth.audience"),
            (|c| c.issuer = "issuer".into(), "auth.issuer"),
            (|c| c.issuer = "http://issuer.example".into(), "https://"),
            (|c| c.jwks_url = "http://issuer.example".into(), "https://"),
            (|c| c.jwks_url.clear(), "auth.jwks_url"),
            (|c| c.jwks_retry_s = 0, "jwks_retry_s"),
            (|c| c.jwks_retry_s = 301, "jwks_retry_s"),
            (|c| c.jwks_keep_s = 299, "jwks_keep_s"),
            (|c| c.scopes_claim.clear(), "scopes_claim"),
            (|c| c.groups_claim.clear(), "groups_claim"),
            (|c| c.required_scopes = vec!["a b".into()], "auth.required_scopes"),
            (|c| c.issuer.clear(), "auth.issuer"),
            (|c| *c = Config { required_scopes: vec!["a".into()], ..Config::default() }, "auth.keys_file"),
        ];
        for (change, expected) in wrong {
            let mut config = tokens();
            change(&mut config);
            let error = config.check().expect_err(expected);
            assert!(error.contains(expected), "{error:?} says nothing of {expected:?}");
        }
        for text in ["http://127.0.0.1:8080/keys", "http://localhost/keys", "http://[::1]:8080/keys"] {
            assert_eq!(Config { jwks_url: text.into(), ..tokens() }.check(), Ok(()), "{text}");
        }
    }
}
