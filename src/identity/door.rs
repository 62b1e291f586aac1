//! The door: from the `Authorization` header to who it is. Keys and tokens are told apart by how they begin.

use std::{path::PathBuf, sync::Arc, time::SystemTime};

use parking_lot::Mutex;

use super::{
    Config, Identity, Keys, Refused,
    algorithm::Algorithm,
    claims::Rules,
    file::{self, Stamp},
    jwk::{self, KeySet},
    keys::{self, KeyFile},
    memory::{Fingerprint, Memory},
    token::{self, Token},
};

/// Tells who calls.
#[derive(Debug)]
pub struct Door {
    keys: Option<KeyFile>,
    tokens: Option<Tokens>,
    required_scopes: Vec<String>,
}

#[derive(Debug)]
struct Tokens {
    accepted: Vec<Algorithm>,
    rules: Rules,
    keys: Keys,
    own: Option<OwnSet>,
    memory: Memory,
}

/// `auth.jwks_file`.
#[derive(Debug)]
struct OwnSet {
    path: PathBuf,
    seen: Mutex<Stamp>,
}

impl Door {
    /// Reads the files that `config` names.
    ///
    /// # Errors
    /// What is wrong with the settings or with a file, and what would be right.
    pub fn new(config: &Config) -> Result<Self, String> {
        config.check()?;
        let keys = if config.takes_keys() { Some(KeyFile::open(config.keys_file.as_ref())?) } else { None };
        let tokens = if config.takes_tokens() { Some(Tokens::new(config)?) } else { None };
        Ok(Self { keys, tokens, required_scopes: config.required_scopes.clone() })
    }

    /// Who it is that sent this `Authorization` header (its value as it came; none when there was no such header).
    ///
    /// # Errors
    /// Why nobody is let in with it.
    pub fn who(&self, authorization: Option<&[u8]>, now: SystemTime) -> Result<Arc<Identity>, Refused> {
        let identity = self.known(authorization, now)?;
        needs(&self.required_scopes, &identity)?;
        Ok(identity)
    }

    /// The same, whatever scopes it has.
    pub(crate) fn known(&self, authorization: Option<&[u8]>, now: SystemTime) -> Result<Arc<Identity>, Refused> {
        let token = bearer(authorization.ok_or(Refused::Missing)?)?;
        if token.starts_with(keys::PREFIX) {
            let keys =
                self.keys.as_ref().ok_or(Refused::NotTaken("API keys are not taken; auth.keys_file is not set"))?;
            keys.who(token, now)
        } else {
            let tokens =
                self.tokens.as_ref().ok_or(Refused::NotTaken("tokens are not taken; auth.issuer is not set"))?;
            tokens.who(token, now)
        }
    }

    /// The issuer's keys, when tokens are taken.
    pub fn keys(&self) -> Option<&Keys> {
        self.tokens.as_ref().map(|tokens| &tokens.keys)
    }

    /// How many API keys there are, expired ones included.
    pub fn api_keys(&self) -> usize {
        self.keys.as_ref().map_or(0, KeyFile::len)
    }

    /// How many verified tokens are remembered.
    pub fn remembered(&self) -> usize {
        self.tokens.as_ref().map_or(0, |tokens| tokens.memory.len())
    }

    /// Reads the files again that are others than before. Says then which, and what is new. Costs a look at each file.
    ///
    /// # Errors
    /// What is wrong with a file. What was known of it stays in force, and the next call says so again.
    pub fn reload_if_changed(&self) -> Result<Option<String>, String> {
        let keys = self.keys.as_ref().map_or(Ok(None), KeyFile::reload_if_changed);
        let tokens = self.tokens.as_ref().map_or(Ok(None), Tokens::reload_if_changed);
        match (keys, tokens) {
            (Err(one), Err(other)) => Err(format!("{one}; {other}")),
            (keys, tokens) => {
                let news: Vec<String> = [keys?, tokens?].into_iter().flatten().collect();
                Ok((!news.is_empty()).then(|| news.join("; ")))
            }
        }
    }

    /// Lets go of tokens that have expired.
    pub fn sweep(&self, now: SystemTime) {
        if let Some(tokens) = &self.tokens {
            tokens.memory.sweep(tokens.keys.current(now).generation(), now);
        }
    }
}

impl Tokens {
    fn new(config: &Config) -> Result<Self, String> {
        let (own, seen) = read_own(config)?;
        Ok(Self {
            accepted: config.accepted()?,
            rules: Rules::new(config),
            keys: Keys::new(config, own),
            own: seen.map(|seen| OwnSet { path: config.jwks_file.clone().into(), seen: Mutex::new(seen) }),
            memory: Memory::new(config.tokens_remembered_max),
        })
    }

    fn who(&self, text: &str, now: SystemTime) -> Result<Arc<Identity>, Refused> {
        if text.len() > token::BYTES_MAX {
            return Err(Refused::TooLong { bytes: text.len() }); // before it is hashed
        }
        let keys = self.keys.borrowed(now);
        let fingerprint = Fingerprint::of(text);
        if let Some(identity) = self.memory.get(fingerprint, keys.generation(), now) {
            return Ok(identity);
        }
        let token = Token::new(text)?;
        token.signature(&token.header(&self.accepted)?, &keys)?;
        let identity = Arc::new(self.rules.judge(&token.claims()?, now)?);
        self.memory.put(fingerprint, &identity, keys.generation(), now);
        Ok(identity)
    }

    fn reload_if_changed(&self) -> Result<Option<String>, String> {
        let Some(own) = &self.own else { return Ok(None) };
        let mut seen = own.seen.lock();
        if file::stamp(&own.path)? == *seen {
            return Ok(None);
        }
        let (set, stamp) = read_set(&own.path)?;
        let news = format!("{}: {} keys of the issuer", own.path.display(), set.len());
        self.keys.replace_own(set);
        *seen = stamp;
        Ok(Some(news))
    }
}

/// The keys of `auth.jwks_file`, and the file as it was then; none when no file is named.
pub(super) fn read_own(config: &Config) -> Result<(KeySet, Option<Stamp>), String> {
    if config.jwks_file.is_empty() {
        return Ok((KeySet::default(), None));
    }
    let (set, stamp) = read_set(config.jwks_file.as_ref())?;
    Ok((set, Some(stamp)))
}

fn read_set(path: &std::path::Path) -> Result<(KeySet, Stamp), String> {
    let read = file::read(path, jwk::BYTES_MAX)?;
    let set = KeySet::read(&read.bytes, true).map_err(|why| format!("{}: {why}", path.display()))?;
    if let Some(why) = set.passed_over().first() {
        return Err(format!("{}: {why}", path.display())); // it is the operator's own, so that it can be mended
    }
    if set.has_secret() {
        read.check_private(path)?;
    } else {
        read.check_ours(path)?; // who can write it can make tokens for anybody
    }
    Ok((set, read.stamp))
}

/// Who is known and lacks one of these scopes is told so.
pub(super) fn needs(required: &[String], identity: &Identity) -> Result<(), Refused> {
    let missing: Vec<String> = required.iter().filter(|scope| !identity.has_scope(scope)).cloned().collect();
    if missing.is_empty() { Ok(()) } else { Err(Refused::Scope { missing }) }
}

/// What stands after `Bearer` and one space. Of the characters that RFC 6750 allows, no key and no token has more than
/// these.
fn bearer(value: &[u8]) -> Result<&str, Refused> {
    let wrong = |why| Err(Refused::Format(why));
    let after = match value.split_at_checked(6) {
        Some((scheme, after)) if scheme.eq_ignore_ascii_case(b"bearer") => after,
        _ => return Err(Refused::Scheme),
    };
    let Some((b' ', token)) = after.split_first() else {
        return wrong("Authorization has no space after Bearer");
    };
    match std::str::from_utf8(token) {
        Ok("") => wrong("Authorization has nothing after Bearer"),
        // All of them are looked at, whatever the first is: without a way out the compiler takes many at once.
        Ok(token) if token.bytes().fold(true, |fine, byte| fine & is_of_a_token(byte)) => Ok(token),
        _ => wrong("Authorization is not one space and a token after Bearer (a second space, or a foreign character)"),
    }
}

fn is_of_a_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() | (byte == b'-') | (byte == b'_') | (byte == b'.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_has_one_form() {
        for text in ["Bearer a.b-c_D1", "bearer a.b-c_D1", "BEARER a.b-c_D1"] {
            assert_eq!(bearer(text.as_bytes()), Ok("a.b-c_D1"), "{text}");
        }
        for text in ["", "Basic YTpi", "DPoP a", "Beare", " Bearer a"] {
            assert_eq!(bearer(text.as_bytes()), Err(Refused::Scheme), "{text}");
        }
        for text in [
            "Bearer",
            "Bearer ",
            "Bearer  a",
            "Bearer a ",
            "Bearer a b",
            "Bearer\ta",
            "Bearera",
            "Bearer a,b",
            "Bearer a\u{0}",
            "Bearer é",
            "Bearer a=b",
            "Bearer \"a\"",
        ] {
            assert!(matches!(bearer(text.as_bytes()), Err(Refused::Format(_))), "{text}");
        }
        assert!(bearer(b"Bearer \xff").is_err());
    }
}
