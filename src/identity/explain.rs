//! What becomes of one token, step by step, by the same rules as at the door. Says what a token claims; never shows
//! the token, its signature or a secret.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde_json::{Map, Value};

use super::{
    Config, Identity, Refused,
    claims::Rules,
    door::read_own,
    jwk::KeySet,
    jwks::Current,
    keys::{self, KeyFile, Moment},
    refused::{shown, span},
    token::Token,
};

/// One step: what is looked at, and what was found, or why the token is refused there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What is looked at.
    pub what: &'static str,
    /// What was found; or why it is refused.
    pub outcome: Result<String, String>,
}

/// What becomes of a token.
#[derive(Clone, Debug)]
pub struct Explained {
    /// Every step that was taken, in order.
    pub steps: Vec<Step>,
    /// Whose token it is, when no step refused it.
    pub who: Option<Arc<Identity>>,
}

/// Takes a token (or an API key) through every step. Steps that need an earlier one end with it; the others are all
/// taken, so that everything that is wrong is seen at once. It is accepted when no step refused it. `fetched` is what
/// `auth.jwks_url` answered; without, only the keys of `auth.jwks_file` are known.
pub fn explain(config: &Config, fetched: Option<&[u8]>, token: &str, now: SystemTime) -> Explained {
    let mut steps = Steps(Vec::new());
    let state = if config.is_on() { "[auth] is on and agrees with itself" } else { "[auth] is off: nobody is asked" };
    steps.of("settings", config.check().map(|()| state.into()));
    // A file often ends with a line feed, which is not part of the token.
    let token = bare(token.trim_ascii());
    let who = if let Err(why) = is_one_word(token) {
        steps.of("file", Err(why.into()));
        None
    } else if token.starts_with(keys::PREFIX) {
        steps.api_key(config, token, now)
    } else {
        steps.token(config, fetched, token, now)
    };
    let steps = steps.0;
    Explained { who: who.filter(|_| steps.iter().all(|step| step.outcome.is_ok())), steps }
}

/// Without the header or the scheme that it is sent with.
fn bare(mut text: &str) -> &str {
    for word in ["authorization:", "bearer "] {
        if let Some((start, rest)) = text.split_at_checked(word.len())
            && start.eq_ignore_ascii_case(word)
        {
            text = rest.trim_ascii();
        }
    }
    text
}

fn is_one_word(text: &str) -> Result<(), &'static str> {
    if text.is_empty() {
        return Err("there is nothing in it");
    }
    if text.starts_with('{') {
        return Err("it is JSON, such as an issuer's whole answer; write the value of its access_token alone");
    }
    if text.contains(|c: char| c.is_ascii_whitespace()) {
        return Err("it has several words or lines, and a token or key is one; write it alone");
    }
    Ok(())
}

const NO_KEYS_FILE: &str =
    "auth.keys_file is not set, so that no API key is taken; set it, or say --set auth.keys_file=FILE";

struct Steps(Vec<Step>);

impl Steps {
    fn of(&mut self, what: &'static str, outcome: Result<String, String>) {
        self.0.push(Step { what, outcome });
    }

    /// Notes how a step went, and hands on what it gave.
    fn step<T>(&mut self, what: &'static str, got: Result<T, Refused>, say: impl FnOnce(&T) -> String) -> Option<T> {
        match got {
            Ok(got) => {
                self.of(what, Ok(say(&got)));
                Some(got)
            }
            Err(refused) => {
                self.of(what, Err(refused.reason()));
                None
            }
        }
    }

    /// Whose key it is, when that can be said.
    fn api_key(&mut self, config: &Config, key: &str, now: SystemTime) -> Option<Arc<Identity>> {
        if !config.takes_keys() {
            self.of("keys file", Err(NO_KEYS_FILE.into()));
            return None;
        }
        match KeyFile::open(config.keys_file.as_ref()) {
            Err(why) => {
                self.of("keys file", Err(why));
                None
            }
            Ok(file) => {
                self.of("keys file", Ok(format!("{} is read", config.keys_file)));
                let who = self.step("API key", file.who(key, now), |who| name(who))?;
                self.scopes(config, &who);
                Some(who)
            }
        }
    }

    /// Whose token it is, when that can be said.
    fn token(&mut self, config: &Config, fetched: Option<&[u8]>, text: &str, now: SystemTime) -> Option<Arc<Identity>> {
        if !config.takes_tokens() {
            let why =
                "it does not begin with bi_ as API keys do, and auth.issuer is not set, so that no token is taken";
            self.of("issuer", Err(why.into()));
            return None;
        }
        let keys = self.keys(config, fetched);
        let form = Token::new(text);
        let token = self.step("form", form, |_| format!("three parts, {} bytes", text.len()))?;
        // With settings that are wrong no algorithm is accepted; the first step said so.
        let accepted = config.accepted().unwrap_or_default();
        let header = self.step("header", token.header(&accepted), |header| match &header.kid {
            Some(kid) => format!("alg is {}, kid is {}", header.algorithm, shown(kid)),
            None => format!("alg is {}, and there is no kid", header.algorithm),
        });
        if let (Some(header), Some(keys)) = (header, keys) {
            self.step("signature", token.signature(&header, &keys), |()| "it is the issuer's".into());
        }
        let claims = self.step("payload", token.claims(), |claims| format!("{} claims", claims.len()))?;
        self.claims(config, &claims, now).map(Arc::new)
    }

    fn keys(&mut self, config: &Config, fetched: Option<&[u8]>) -> Option<Current> {
        let own = read_own(config).map(|(own, _)| own);
        let fetched = fetched.map(|bytes| KeySet::read(bytes, false)).transpose();
        match (own, fetched) {
            (Ok(own), Ok(fetched)) => {
                let passed_over =
                    fetched.iter().flat_map(KeySet::passed_over).fold(String::new(), |all, it| all + "; " + it);
                let keys = Current::of(own, fetched);
                if keys.is_empty() {
                    let where_from = if config.jwks_url.is_empty() {
                        "auth.jwks_file has none"
                    } else {
                        "name a file with what auth.jwks_url answers by --jwks"
                    };
                    self.of("issuer's keys", Err(format!("none are known: {where_from}{passed_over}")));
                    return None;
                }
                self.of("issuer's keys", Ok(format!("{} are known{passed_over}", keys.len())));
                Some(keys)
            }
            (Err(why), _) | (_, Err(why)) => {
                self.of("issuer's keys", Err(why));
                None
            }
        }
    }

    fn claims(&mut self, config: &Config, claims: &Map<String, Value>, now: SystemTime) -> Option<Identity> {
        let rules = Rules::new(config);
        let expiry = self.step("exp", rules.expiry(claims, now), |at| match at.duration_since(now) {
            Ok(left) => format!("expires in {}", span(left.as_secs())),
            Err(over) => format!("expired {} ago, within auth.leeway_s", span(over.duration().as_secs())),
        });
        for what in ["nbf", "iat"] {
            let there = if claims.contains_key(what) { "has passed" } else { "is not there, and need not be" };
            self.step(what, rules.begun(claims, what, now), |()| there.into());
        }
        self.step("iss", rules.issuer(claims), |()| "it is auth.issuer".into());
        self.step("aud", rules.audience(claims), |()| "it has one of auth.audience".into());
        // Who it is can be said of an expired token too.
        let expires_at = expiry.unwrap_or(SystemTime::UNIX_EPOCH + Duration::from_secs(1));
        let who = self.step("who", rules.identity(claims, expires_at), name)?;
        self.scopes(config, &who);
        Some(who)
    }

    fn scopes(&mut self, config: &Config, who: &Identity) {
        let has: Vec<&str> = who.scopes().collect();
        let has = if has.is_empty() { "it has none".to_owned() } else { format!("it has {}", has.join(" ")) };
        match super::door::needs(&config.required_scopes, who) {
            Ok(()) => self.of("scopes", Ok(has)),
            Err(refused) => self.of("scopes", Err(format!("{}; {has}", refused.reason()))),
        }
    }
}

fn name(who: &Identity) -> String {
    let mut text = format!("subject {}", shown(who.subject()));
    if let Some(client) = who.client() {
        text += &format!(", client {}", shown(client));
    }
    let groups: Vec<String> = who.groups().map(shown).collect();
    if !groups.is_empty() {
        text += &format!(", groups {}", groups.join(" "));
    }
    if let Some(until) = who.expires_at().filter(|_| who.issuer() == keys::ISSUER)
        && let Ok(until) = Moment::from_time(until)
    {
        text += &format!(", until {until}");
    }
    text
}
