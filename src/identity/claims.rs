//! What a token claims, held against what it must claim. Each rule is a function of its own, so that a token is judged
//! and explained by the same ones. A claim that has the wrong type is refused and never taken for a missing one.

use std::{
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde_json::{Map, Value};

use super::{
    Config, Identity,
    config::is_scope,
    refused::{Refused, shown},
};

/// Size of a subject's or a client's name.
const NAME_BYTES_MAX: usize = 1024;
/// Of a token for others, in the log.
const AUDIENCES_SHOWN_MAX: usize = 5;
/// The year 9999, in seconds. Whatever is beyond is no time.
const TIME_S_MAX: f64 = 253_402_300_799.0;

type Claims = Map<String, Value>;

/// What the claims must be.
#[derive(Clone, Debug)]
pub(super) struct Rules {
    issuer: Arc<str>,
    audience: Vec<String>,
    leeway: Duration,
    scopes_claim: String,
    groups_claim: String,
}

impl Rules {
    pub(super) fn new(config: &Config) -> Self {
        Self {
            issuer: config.issuer.as_str().into(),
            audience: config.audience.clone(),
            leeway: Duration::from_secs(config.leeway_s),
            scopes_claim: config.scopes_claim.clone(),
            groups_claim: config.groups_claim.clone(),
        }
    }

    /// All rules, in order.
    pub(super) fn judge(&self, claims: &Claims, now: SystemTime) -> Result<Identity, Refused> {
        let expires_at = self.expiry(claims, now)?;
        self.begun(claims, "nbf", now)?;
        self.begun(claims, "iat", now)?;
        self.issuer(claims)?;
        self.audience(claims)?;
        self.identity(claims, expires_at)
    }

    /// `exp` is there, is a number, and has not passed.
    pub(super) fn expiry(&self, claims: &Claims, now: SystemTime) -> Result<SystemTime, Refused> {
        let expires_at = time(claims, "exp")?.ok_or_else(|| claim("exp", "is missing"))?;
        match now.duration_since(expires_at) {
            Ok(ago) if ago >= self.leeway => Err(Refused::Expired { ago_s: ago.as_secs() }),
            _ => Ok(expires_at),
        }
    }

    /// `nbf` or `iat` is not in the future, when it is there.
    pub(super) fn begun(&self, claims: &Claims, name: &'static str, now: SystemTime) -> Result<(), Refused> {
        let Some(at) = time(claims, name)? else { return Ok(()) };
        match at.duration_since(now) {
            Ok(ahead) if ahead > self.leeway => Err(Refused::NotYet { claim: name, in_s: ahead.as_secs() }),
            _ => Ok(()),
        }
    }

    /// `iss` is ours, to the byte.
    pub(super) fn issuer(&self, claims: &Claims) -> Result<(), Refused> {
        match claims.get("iss") {
            Some(Value::String(found)) if **found == *self.issuer => Ok(()),
            Some(Value::String(found)) => Err(Refused::Issuer(shown(found))),
            Some(_) => Err(claim("iss", "is no text")),
            None => Err(claim("iss", "is missing")),
        }
    }

    /// `aud` is us, or has us among others.
    pub(super) fn audience(&self, claims: &Claims) -> Result<(), Refused> {
        let ours = |value: &Value| value.as_str().is_some_and(|found| self.audience.iter().any(|it| it == found));
        let other = |value: &Value| match value {
            Value::Array(all) => {
                let some = all.iter().filter_map(Value::as_str).take(AUDIENCES_SHOWN_MAX).map(shown);
                let more = if all.len() > AUDIENCES_SHOWN_MAX { ", …" } else { "" };
                Refused::Audience(format!("[{}{more}]", some.collect::<Vec<_>>().join(", ")))
            }
            value => Refused::Audience(shown(value.as_str().unwrap_or_default())),
        };
        match claims.get("aud") {
            Some(value @ Value::String(_)) if ours(value) => Ok(()),
            Some(value @ Value::String(_)) => Err(other(value)),
            Some(Value::Array(all)) if !all.iter().all(Value::is_string) => {
                Err(claim("aud", "has something else than texts"))
            }
            Some(Value::Array(all)) if all.iter().any(ours) => Ok(()),
            Some(value @ Value::Array(_)) => Err(other(value)),
            Some(_) => Err(claim("aud", "is neither a text nor a list")),
            None => Err(claim("aud", "is missing")),
        }
    }

    /// Who it is.
    pub(super) fn identity(&self, claims: &Claims, expires_at: SystemTime) -> Result<Identity, Refused> {
        let subject = name(claims, "sub")?.ok_or_else(|| claim("sub", "is missing"))?;
        // RFC 9068 says `client_id`; OpenID Connect says `azp`.
        let client = match name(claims, "client_id")? {
            Some(client) => Some(client),
            None => name(claims, "azp")?,
        };
        let scopes = words(claims, &self.scopes_claim, true)?;
        let groups = words(claims, &self.groups_claim, false)?;
        Ok(Identity::new(Arc::clone(&self.issuer), subject, client, scopes, groups, Some(expires_at)))
    }
}

fn claim(name: &str, why: &'static str) -> Refused {
    Refused::Claim { claim: name.into(), why }
}

/// A time in seconds since 1970, which may have a fraction.
fn time(claims: &Claims, name: &'static str) -> Result<Option<SystemTime>, Refused> {
    let Some(value) = claims.get(name) else { return Ok(None) };
    let Value::Number(number) = value else { return Err(claim(name, "is no number")) };
    match number.as_f64() {
        Some(seconds) if (0.0..=TIME_S_MAX).contains(&seconds) => {
            Ok(Some(SystemTime::UNIX_EPOCH + Duration::from_secs_f64(seconds)))
        }
        _ => Err(claim(name, "is no time in seconds since 1970")),
    }
}

fn name<'a>(claims: &'a Claims, name: &'static str) -> Result<Option<&'a str>, Refused> {
    match claims.get(name) {
        None => Ok(None),
        Some(Value::String(text)) if text.is_empty() => Err(claim(name, "is empty")),
        Some(Value::String(text)) if text.len() > NAME_BYTES_MAX => Err(claim(name, "is longer than 1024 bytes")),
        Some(Value::String(text)) if text.chars().any(char::is_control) => Err(claim(name, "has control characters")),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(_) => Err(claim(name, "is no text")),
    }
}

/// Scopes or groups: a list, or one text. A text of scopes has spaces between them, and nothing but spaces; one of
/// groups is one group, whose name may have spaces. What is no scope (a word with a tab in it) grants nothing.
fn words<'a>(claims: &'a Claims, name: &str, scopes: bool) -> Result<Vec<&'a str>, Refused> {
    let words = match claims.get(name) {
        None => Vec::new(),
        Some(Value::String(text)) if scopes => text.split(' ').collect(),
        Some(Value::String(text)) => vec![text.as_str()],
        Some(Value::Array(all)) => all
            .iter()
            .map(|word| word.as_str().ok_or_else(|| claim(name, "has something else than texts")))
            .collect::<Result<_, _>>()?,
        Some(_) => return Err(claim(name, "is neither a text nor a list of texts")),
    };
    Ok(words.into_iter().filter(|word| if scopes { is_scope(word) } else { !word.is_empty() }).collect())
}
