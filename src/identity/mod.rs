//! Who calls, and what they may: API keys, tokens of an issuer, and the rights that follow. Values in, values out; the
//! only things done besides are reading files, and fetching the issuer's keys in `fetch` and `refresh`. What comes over
//! HTTP is others' business.
//!
//! | file | what it is |
//! |---|---|
//! | [`Door`] | the one question: who is this, by what came in `Authorization` |
//! | `config` | `[auth]` |
//! | [`keys`], `record`, `file` | API keys, what their file says of each, and how such files are read and replaced |
//! | `token`, `claims`, `json`, `algorithm` | a token: its form and signature, and what it claims |
//! | `jwks`, `jwk` | the issuer's keys, and when to fetch them again |
//! | [`Fetcher`], `address`, [`keep`] | how they are fetched, from where not, and the loop that does it |
//! | `memory` | tokens that were verified before |
//! | `rights` | which tools somebody may call |
//! | `refused` | why not: for the operator, and for the client |
//! | `explain` | the same, step by step, for one token |
//!
//! # Use
//!
//! - For each request: [`Door::who`]. A refusal is answered with [`Refused::status`] and [`Refused::challenge`], and
//!   logged by [`Refused::reason`].
//! - About once a second: [`Door::reload_if_changed`], which is how a revoked key stops working, and [`Door::sweep`].
//! - Once, where `auth.jwks_url` is set: [`Fetcher::new`], and [`keep`] with [`Door::keys`] in a task; after a refusal
//!   that [may pass with newer keys](Refused::may_pass_with_newer_keys), `notify_one` of what it was handed.

mod address;
mod algorithm;
mod claims;
mod config;
mod door;
mod explain;
mod fetch;
pub(crate) mod file;
mod json;
mod jwk;
mod jwks;
pub mod keys;
mod memory;
mod record;
mod refresh;
mod refused;
pub mod rights;
#[cfg(test)]
mod signer;
#[cfg(test)]
mod tests;
mod token;

use std::{fmt::Write, sync::Arc, time::SystemTime};

pub use config::Config;
pub(crate) use config::is_scope;
pub use door::Door;
pub use explain::{Explained, Step, explain};
pub use fetch::Fetcher;
pub use jwk::BYTES_MAX as JWKS_BYTES_MAX;
pub use jwks::{Current, Keys};
pub use refresh::keep;
pub(crate) use refused::span;
pub use refused::{ForClient, Refused};
pub use rights::{Issued, Rights, RightsClass, Rule, Subject};
pub use token::BYTES_MAX as TOKEN_BYTES_MAX;

use crate::call::Caller;

/// Somebody whose credentials were right. Made once for each token or key, and shared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    issuer: Arc<str>,
    subject: Box<str>,
    client: Option<Box<str>>,
    scopes: Box<[Box<str>]>,
    groups: Box<[Box<str>]>,
    expires_at: Option<SystemTime>,
    key: Option<Box<str>>,
    caller: Caller,
}

impl Identity {
    /// Puts together what was learned. Scopes and groups are sorted, and each is there once.
    pub fn new<'a>(
        issuer: Arc<str>,
        subject: &str,
        client: Option<&str>,
        scopes: impl IntoIterator<Item = &'a str>,
        groups: impl IntoIterator<Item = &'a str>,
        expires_at: Option<SystemTime>,
    ) -> Self {
        let caller = Caller::named(&principal(&issuer, subject, client));
        Self {
            issuer,
            subject: subject.into(),
            client: client.map(Into::into),
            scopes: sorted(scopes),
            groups: sorted(groups),
            expires_at,
            key: None,
            caller,
        }
    }

    /// The same, by the API key with this id.
    #[must_use]
    pub fn with_key(self, id: &str) -> Self {
        Self { key: Some(id.into()), ..self }
    }

    /// The id of the API key that was shown, when one was. Says which of several keys of a subject it is.
    pub fn key(&self) -> Option<&str> {
        self.key.as_deref()
    }

    /// Who says so.
    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    /// Who it is to the issuer.
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// Through which client, when the issuer says.
    pub fn client(&self) -> Option<&str> {
        self.client.as_deref()
    }

    /// What was granted.
    pub fn scopes(&self) -> impl Iterator<Item = &str> {
        self.scopes.iter().map(Box::as_ref)
    }

    /// Where it belongs.
    pub fn groups(&self) -> impl Iterator<Item = &str> {
        self.groups.iter().map(Box::as_ref)
    }

    /// Whether exactly this scope was granted.
    pub fn has_scope(&self, scope: &str) -> bool {
        self.scopes.binary_search_by(|has| (**has).cmp(scope)).is_ok()
    }

    /// Whether it is in exactly this group.
    pub fn is_in(&self, group: &str) -> bool {
        self.groups.binary_search_by(|has| (**has).cmp(group)).is_ok()
    }

    /// Until when this holds, when it ends.
    pub fn expires_at(&self) -> Option<SystemTime> {
        self.expires_at
    }

    /// The name that sessions, tasks, streams and cached results are bound to: issuer, subject and client, each with
    /// its length, so that no two of them can be written the same. The next token of the same caller has the same.
    pub fn principal(&self) -> &str {
        self.caller.subject()
    }

    /// The principal, as the rest of the server knows it.
    pub fn caller(&self) -> &Caller {
        &self.caller
    }
}

/// Whether `text` is written as a [principal](Identity::principal) is: `12:bigiron:keys;3:ann;`.
pub(crate) fn is_principal(text: &str) -> bool {
    let (mut rest, mut parts) = (text, 0);
    while !rest.is_empty() {
        let Some((len, after)) = rest.split_once(':') else { return false };
        let Some((part, after)) = len.parse().ok().and_then(|len: usize| after.split_at_checked(len)) else {
            return false;
        };
        let Some(after) = after.strip_prefix(';') else { return false };
        if part.is_empty() || len.starts_with(['0', '+']) {
            return false;
        }
        (rest, parts) = (after, parts + 1);
    }
    matches!(parts, 2 | 3)
}

fn principal(issuer: &str, subject: &str, client: Option<&str>) -> String {
    let mut all = String::with_capacity(issuer.len() + subject.len() + 32);
    for part in [Some(issuer), Some(subject), client].into_iter().flatten() {
        let _ = write!(all, "{}:{part};", part.len());
    }
    all
}

fn sorted<'a>(words: impl IntoIterator<Item = &'a str>) -> Box<[Box<str>]> {
    let mut words: Vec<Box<str>> = words.into_iter().map(Into::into).collect();
    words.sort_unstable();
    words.dedup();
    words.into()
}
