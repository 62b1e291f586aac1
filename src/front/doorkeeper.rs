//! Who calls, asked once for each request before its body is read: what `identity` says, in the words of HTTP. Here are
//! the refusals with their challenge, what is told of this server to clients that look for its issuer (RFC 9728), and
//! the look at the files about once a second.

use std::{
    pin::Pin,
    sync::{
        Arc, Weak,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime},
};

use bytes::Bytes;
use hyper::header::{CONNECTION, HeaderValue, WWW_AUTHENTICATE};
use parking_lot::Mutex;
use serde_json::json;
use tokio::{
    sync::{Notify, watch},
    time::sleep,
};

use crate::{
    front::{Front, connection::Connection, headers::Headers, reply, sender::Sender},
    identity::{self, Config, Door, Fetcher, Identity},
    mcp::{code::Refusal, head::Field},
};

/// Where clients look for what is told, before the path of what it is about.
const WELL_KNOWN: &str = "/.well-known/oauth-protected-resource";
/// Between two looks at the files: how long a key is good after it was revoked.
const LOOK_PAUSE: Duration = Duration::from_secs(1);

/// Between two times that a file which cannot be read is told of.
const SAY_PAUSE: Duration = Duration::from_secs(60);

/// The kind of those who are known and have too few scopes.
const NO_SCOPE: &str = "scope";
/// Kinds of refusals, for metrics. What is not among them is counted as the last.
const KINDS: [&str; 21] = [
    "missing",
    "scheme",
    "format",
    "too_long",
    "unknown_api_key",
    "api_key_expired",
    "not_taken",
    "malformed",
    "algorithm",
    "critical",
    "unknown_key",
    "key_algorithm",
    "no_keys",
    "signature",
    "expired",
    "not_yet",
    "issuer",
    "audience",
    "claim",
    NO_SCOPE,
    "other",
];

/// Asks who calls.
#[derive(Debug)]
pub(crate) struct Doorkeeper {
    door: Door,
    required_scopes: Vec<String>,
    scope: String,
    admin_scope: String,
    /// All that one needs at the admin listener, in words: who asks for fewer gets a token that is refused again.
    admin_scopes: String,
    metadata: Bytes,
    metadata_url: String,
    /// The paths that it is served at: the root's, that of our endpoint, and the one that the URL has, which is another
    /// behind a proxy that serves us under another path.
    metadata_paths: [String; 3],
    refused: [AtomicU64; KINDS.len()],
    /// Told when a token names a key that is not there: the issuer may have a new one.
    wanted: Notify,
    looked: Mutex<Looked>,
    /// Told when keys have changed: who has a stream open may have lost what opened it.
    keys_changed: watch::Sender<u64>,
}

#[derive(Debug)]
struct Looked {
    at: Instant,
    /// What was wrong then, and when it was said last, so that it is said now and then and not each time.
    fault: Option<(String, Instant)>,
}

impl Looked {
    /// Notes what is wrong, if anything. True when it is to be said.
    fn note(&mut self, fault: Option<String>, now: Instant) -> bool {
        let said = self.fault.take();
        let Some(fault) = fault else { return false };
        let quiet = said.filter(|(before, at)| *before == fault && now.saturating_duration_since(*at) < SAY_PAUSE);
        let is_said = quiet.is_none();
        self.fault = Some((fault, quiet.map_or(now, |(_, at)| at)));
        is_said
    }
}

impl Doorkeeper {
    /// `None` where nobody is asked. `origin` (such as `https://127.0.0.1:5000`) and `path` are where this server listens,
    /// for who has not said how clients know it.
    ///
    /// # Errors
    /// What is wrong with the settings or the files that they name.
    pub(crate) fn new(config: &Config, origin: &str, path: &str) -> Result<Option<Self>, String> {
        if !config.is_on() {
            return Ok(None);
        }
        let door = Door::new(config)?;
        let url = |text: &&String| text.starts_with("https://") || text.starts_with("http://");
        let resource = config.audience.iter().find(url).cloned().unwrap_or_else(|| format!("{origin}{path}"));
        let scope = config.required_scopes.join(" ");
        let of_admins = Some(&config.admin_scope).filter(|scope| !config.required_scopes.contains(scope));
        let all: Vec<&str> = config.required_scopes.iter().chain(of_admins).map(String::as_str).collect();
        let admin_scopes = all.join(" ");
        let mut metadata = json!({ "resource": resource, "bearer_methods_supported": ["header"] });
        if config.takes_tokens() {
            metadata["authorization_servers"] = json!([config.issuer]);
        }
        if !config.required_scopes.is_empty() {
            metadata["scopes_supported"] = json!(config.required_scopes);
        }
        let metadata_url = metadata_url(&resource);
        let at = metadata_url.find(WELL_KNOWN).unwrap_or(0);
        let public = metadata_url[at..].split('?').next().unwrap_or_default().to_owned();
        Ok(Some(Self {
            door,
            required_scopes: config.required_scopes.clone(),
            scope,
            admin_scope: config.admin_scope.clone(),
            admin_scopes,
            metadata: metadata.to_string().into(),
            metadata_url,
            metadata_paths: [WELL_KNOWN.into(), format!("{WELL_KNOWN}{path}"), public],
            refused: std::array::from_fn(|_| AtomicU64::new(0)),
            wanted: Notify::new(),
            looked: Mutex::new(Looked { at: Instant::now(), fault: None }),
            keys_changed: watch::Sender::new(0),
        }))
    }

    /// Who sent these headers, on a connection whose certificate was this one's. Who says by a header who he is, is that
    /// one; who says nothing is whose the certificate is.
    ///
    /// # Errors
    /// The refusal, with its challenge.
    pub(crate) fn who(
        &self,
        headers: &Headers<'_>,
        certified: Option<&Arc<Identity>>,
    ) -> Result<Arc<Identity>, reply::Refused> {
        self.who_with(headers, certified, &self.scope)
    }

    /// The same, where a refusal asks for these scopes.
    fn who_with(
        &self,
        headers: &Headers<'_>,
        certified: Option<&Arc<Identity>>,
        scopes: &str,
    ) -> Result<Arc<Identity>, reply::Refused> {
        if let (Field::Absent, Some(identity)) = (headers.authorization(), certified) {
            let has = |scope: &&String| identity.has_scope(scope);
            let missing: Vec<String> = self.required_scopes.iter().filter(|scope| !has(scope)).cloned().collect();
            if !missing.is_empty() {
                return Err(self.refuse(&identity::Refused::Scope { missing }, scopes));
            }
            return by_certificate(identity);
        }
        self.door.who(said(headers), SystemTime::now()).map_err(|refused| {
            if refused.may_pass_with_newer_keys() {
                self.wanted.notify_one();
            }
            self.refuse(&refused, scopes)
        })
    }

    /// Who was refused for want of rights, for the audit trail: he is known, and so it is written down that it was he.
    pub(crate) fn known(
        &self,
        headers: &Headers<'_>,
        certified: Option<&Arc<Identity>>,
        refused: &reply::Refused,
    ) -> Option<Arc<Identity>> {
        if refused.detail() != NO_SCOPE {
            return None;
        }
        match (headers.authorization(), certified) {
            (Field::Absent, Some(identity)) => Some(Arc::clone(identity)),
            _ => self.door.known(said(headers), SystemTime::now()).ok(),
        }
    }

    /// Whether who sent these headers may change something by the admin listener. A token is asked for there whoever can
    /// reach it: on a host of many users, or behind a page in a browser, that is not the operator alone.
    ///
    /// # Errors
    /// The refusal, with its challenge.
    pub(crate) fn administers(&self, headers: &Headers<'_>) -> Result<Arc<Identity>, reply::Refused> {
        let identity = self.who_with(headers, None, &self.admin_scopes)?;
        if identity.has_scope(&self.admin_scope) {
            return Ok(identity);
        }
        let missing = vec![self.admin_scope.clone()];
        Err(self.refuse(&identity::Refused::Scope { missing }, &self.admin_scopes))
    }

    /// Keeps the issuer's keys as they are at the issuer, for as long as this is awaited.
    pub(crate) async fn keep_keys(&self, fetcher: &Fetcher) {
        if let Some(keys) = self.door.keys() {
            identity::keep(keys, fetcher, &self.wanted, std::future::pending()).await;
        }
    }

    fn refuse(&self, refused: &identity::Refused, scope: &str) -> reply::Refused {
        let kind = KINDS.iter().position(|kind| *kind == refused.kind()).unwrap_or(KINDS.len() - 1);
        self.refused[kind].fetch_add(1, Ordering::Relaxed);
        tracing::debug!(kind = refused.kind(), reason = refused.reason(), "not let in");
        let told = refused.for_client();
        let (status, detail) = (refused.status(), refused.kind());
        if *refused == identity::Refused::NoKeys {
            let retry_after_s = self.door.keys().map_or(1, |keys| keys.retry_after_s(SystemTime::now()));
            return Refusal { detail, ..Refusal::overloaded(retry_after_s, told.description) }.into();
        }
        let refusal = Refusal { status, detail, ..Refusal::invalid_request(told.description) };
        let challenge = HeaderValue::try_from(refused.challenge(&self.metadata_url, scope));
        // It is printable ASCII, whatever the settings are.
        let challenge = challenge.unwrap_or_else(|_| HeaderValue::from_static("Bearer"));
        reply::Refused::with_value(refusal, WWW_AUTHENTICATE, challenge)
    }

    /// What is told of this server at this path, if anything.
    pub(crate) fn metadata(&self, path: &str) -> Option<Bytes> {
        self.metadata_paths.iter().any(|ours| ours == path).then(|| self.metadata.clone())
    }

    /// Refusals by their kind.
    pub(crate) fn refusals(&self) -> impl Iterator<Item = (&'static str, u64)> {
        KINDS.into_iter().zip(self.refused.iter().map(|count| count.load(Ordering::Relaxed)))
    }

    /// API keys that there are.
    pub(crate) fn api_keys(&self) -> usize {
        self.door.api_keys()
    }

    /// Verified tokens that are remembered.
    pub(crate) fn remembered(&self) -> usize {
        self.door.remembered()
    }

    /// The issuer's keys, when tokens are taken.
    pub(crate) fn issuer_keys(&self) -> Option<&identity::Keys> {
        self.door.keys()
    }

    /// Whether a file could not be read when it was last looked at.
    pub(crate) fn is_failing(&self) -> bool {
        self.looked.lock().fault.is_some()
    }

    /// To be called often: about once a second it reads files that have changed, and lets go of expired tokens. Says what
    /// is new when keys are others than before.
    pub(crate) fn look_after(&self, now: Instant) -> Option<String> {
        let mut looked = self.looked.lock();
        if now.saturating_duration_since(looked.at) < LOOK_PAUSE {
            return None;
        }
        looked.at = now;
        let (mut news, fault) = match self.door.reload_if_changed() {
            Ok(news) => (news, None),
            Err(fault) => (None, Some(fault)),
        };
        if let Some(news) = &news {
            tracing::info!(news, "keys were read again: a file of [auth] has changed");
        }
        if looked.note(fault, now)
            && let Some((fault, _)) = &looked.fault
        {
            tracing::error!(fault, "a file of [auth] cannot be read again; what was known of it stays in force");
        }
        let now = SystemTime::now();
        self.door.sweep(now);
        // Those of an issuer, when they are fetched anew or let go.
        let fetched = self.door.keys().map_or(0, |keys| keys.current(now).generation());
        self.keys_changed.send_if_modified(|before| {
            if std::mem::replace(before, fetched) != fetched && news.is_none() {
                news = Some("the issuer's keys are others".to_owned());
            }
            news.is_some()
        });
        news
    }

    /// Whether who sent this is let in still, as the one they were.
    fn knows(&self, authorization: &[u8], identity: &Identity) -> bool {
        self.door.who(Some(authorization), SystemTime::now()).is_ok_and(|now| *now == *identity)
    }
}

/// Over when what opened a stream does not open it any more.
pub(super) type TurnedAway = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Waits until who opens a stream with these headers is not let in any more, or may do something else than then. `None`
/// where nobody is asked.
pub(super) fn until_turned_away(conn: &Arc<Connection>, headers: &Headers<'_>, sender: &Sender) -> Option<TurnedAway> {
    let identity = Arc::clone(sender.identity.as_ref()?);
    let disowned = {
        let conn = Arc::clone(conn);
        async move { conn.disowned().await }
    };
    let (Some(_), Field::Is(authorization)) = (&conn.front.doorkeeper, headers.authorization()) else {
        let rest = identity.expires_at()?.duration_since(SystemTime::now()).unwrap_or_default();
        return Some(Box::pin(async move {
            tokio::select! {
                () = sleep(rest) => {}
                () = disowned => {}
            }
        }));
    };
    let known = until_unknown(Arc::downgrade(&conn.front), authorization.into(), identity);
    Some(Box::pin(async move {
        tokio::select! {
            () = known => {}
            () = disowned => {}
        }
    }))
}

/// Waits until who sent this is not let in any more.
async fn until_unknown(front: Weak<Front>, authorization: Box<[u8]>, identity: Arc<Identity>) {
    let changes = || Some(front.upgrade()?.doorkeeper.as_ref()?.keys_changed.subscribe());
    let Some(mut changes) = changes() else { return };
    loop {
        match front.upgrade().as_deref().and_then(|front| front.doorkeeper.as_ref()) {
            Some(doorkeeper) if doorkeeper.knows(&authorization, &identity) => {}
            _ => return,
        }
        let end = identity.expires_at().map(|at| at.duration_since(SystemTime::now()).unwrap_or_default());
        let ends = async {
            match end {
                Some(rest) => sleep(rest.max(LOOK_PAUSE)).await, // clocks may differ: it is asked again until it is so
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = changes.changed() => if changed.is_err() { return },
            () = ends => {}
        }
    }
}

/// What is said on a connection whose client's certificate is taken no more.
pub(crate) fn disowned() -> reply::Refused {
    let message = "the client's certificate is of no CA that is trusted here any more; connect again with another";
    let refusal = Refusal { status: 403, detail: "certificate_unknown", ..Refusal::invalid_request(message) };
    reply::Refused::with(refusal, CONNECTION, "close")
}

/// Whose the certificate of a connection is, for as long as it is good: a connection may outlive it.
///
/// # Errors
/// It is over.
pub(crate) fn by_certificate(identity: &Arc<Identity>) -> Result<Arc<Identity>, reply::Refused> {
    if identity.expires_at().is_none_or(|end| SystemTime::now() < end) {
        return Ok(Arc::clone(identity));
    }
    let message = "the client's certificate has ended since it was shown; connect again with a new one";
    let refusal = Refusal { status: 403, detail: "certificate_ended", ..Refusal::invalid_request(message) };
    Err(reply::Refused::with(refusal, CONNECTION, "close"))
}

/// What the headers say of who it is; of two such headers none is believed.
fn said<'a>(headers: &Headers<'a>) -> Option<&'a [u8]> {
    match headers.authorization() {
        Field::Is(value) => Some(value),
        Field::Absent | Field::Repeated => None,
    }
}

/// Where what is told of `resource` stands: its path after the well-known one (RFC 9728, section 3.1).
fn metadata_url(resource: &str) -> String {
    let start = resource.find("://").map_or(0, |at| at + 3);
    let (host, rest) = match resource[start..].find(['/', '?']) {
        Some(at) => resource.split_at(start + at),
        None => (resource, ""),
    };
    format!("{host}{WELL_KNOWN}{}", if rest == "/" { "" } else { rest })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_of_a_resource_stands_after_the_well_known_one() {
        for (resource, expected) in [
            ("https://a.example", "https://a.example/.well-known/oauth-protected-resource"),
            ("https://a.example/", "https://a.example/.well-known/oauth-protected-resource"),
            ("https://a.example:8443/mcp", "https://a.example:8443/.well-known/oauth-protected-resource/mcp"),
            ("http://[::1]:5000/a/b?c=d", "http://[::1]:5000/.well-known/oauth-protected-resource/a/b?c=d"),
        ] {
            assert_eq!(metadata_url(resource), expected);
        }
    }

    #[test]
    fn a_file_that_cannot_be_read_is_told_each_minute() {
        let began = Instant::now();
        let at = |s| began + Duration::from_secs(s);
        let mut looked = Looked { at: began, fault: None };
        let fault = |text: &str| Some(text.to_owned());
        assert!(looked.note(fault("gone"), at(1)));
        assert!((2..61).all(|s| !looked.note(fault("gone"), at(s))));
        assert!(looked.note(fault("gone"), at(61)) && !looked.note(fault("gone"), at(62)));
        assert!(looked.note(fault("public"), at(63)), "another one is told at once");
        assert!(!looked.note(None, at(64)) && looked.fault.is_none());
        assert!(looked.note(fault("public"), at(65)));
    }

    #[test]
    fn nobody_is_asked_by_default() {
        assert!(Doorkeeper::new(&Config::default(), "http://127.0.0.1:5000", "/mcp").expect("right").is_none());
    }

    #[test]
    fn kinds_are_those_of_refusals() {
        for refused in [identity::Refused::Missing, identity::Refused::NoKeys, identity::Refused::Signature] {
            assert!(KINDS.contains(&refused.kind()), "{refused}");
        }
    }
}
