//! The checks of the front door, each a function that passes or refuses. Their order is in `front::answer`. None of
//! them reads the body.

use hyper::{Version, body::Body, header};

use crate::{
    front::{headers::Headers, limits::Config, reply::Refused},
    mcp::{LEGACY_VERSIONS, code::Refusal, head::Field},
};

/// The longest request target that has any use here.
const TARGET_BYTES_MAX: usize = 8192;

/// Size of the request's target and headers. hyper has its own, larger bounds, which it answers without a body.
pub(crate) fn head_size(target: usize, headers: &Headers<'_>, limits: &Config) -> Result<(), Refusal> {
    if target > TARGET_BYTES_MAX {
        let message = format!("the request target is {target} bytes; at most {TARGET_BYTES_MAX} are read");
        return Err(Refusal { status: 414, ..Refusal::invalid_request(message) });
    }
    let max = limits.header_bytes_max;
    if headers.bytes + target > max.as_usize() {
        let message = format!("the headers are {} bytes; limits.header_bytes_max is {max}", headers.bytes);
        return Err(Refusal { status: 431, ..Refusal::invalid_request(message) });
    }
    Ok(())
}

/// Headers on which a decision rests stand once: of two, a proxy might have read the other.
pub(crate) fn said_once(headers: &Headers<'_>) -> Result<(), Refusal> {
    let once = [
        ("Host", headers.host()),
        ("Content-Type", headers.content_type()),
        ("Content-Length", headers.content_length()),
        ("Authorization", headers.authorization()),
        ("Mcp-Session-Id", headers.session_id()),
    ];
    match once.iter().find(|(_, field)| *field == Field::Repeated) {
        None => Ok(()),
        Some((name, _)) => Err(Refusal::invalid_request(format!("the header {name} stands more than once"))),
    }
}

/// The names under which this server may be addressed. What a browser was tricked into sending here (DNS rebinding)
/// carries the attacker's name.
#[derive(Debug)]
pub(crate) struct Hosts(Vec<String>);

impl Hosts {
    /// The loopback names, `own` (the address listened on), and those from the settings.
    pub(crate) fn new(own: &str, allowed: &[String]) -> Self {
        let names = ["localhost", "127.0.0.1", "[::1]", own].into_iter().map(str::to_owned);
        let mut names: Vec<String> = names.chain(allowed.iter().map(|name| name.to_ascii_lowercase())).collect();
        names.dedup();
        Self(names)
    }

    /// `authority` is that of the request's target, where it has one.
    pub(crate) fn check(
        &self,
        authority: Option<&str>,
        version: Version,
        headers: &Headers<'_>,
    ) -> Result<(), Refusal> {
        let Field::Is(host) = headers.host() else {
            return match (headers.host(), version) {
                (Field::Absent, Version::HTTP_10) => Ok(()),
                _ => Err(Refusal::invalid_request("the header Host is missing")),
            };
        };
        if authority.is_some_and(|authority| !authority.as_bytes().eq_ignore_ascii_case(host)) {
            return Err(Refusal::invalid_request("the request target and the header Host name different hosts"));
        }
        if self.know(host) {
            return Ok(());
        }
        let message = "this server is not addressed by that Host; an operator can add it to server.allowed_hosts";
        Err(Refusal { status: 403, ..Refusal::invalid_request(message) })
    }

    /// Whether a `name[:port]` is one of ours. A name that was listed without a port is known on every port, since a
    /// proxy may have it on its own.
    fn know(&self, host: &[u8]) -> bool {
        let name = match host.iter().rposition(|b| *b == b':') {
            Some(colon) if host[colon + 1..].iter().all(u8::is_ascii_digit) && !host.ends_with(b"]") => &host[..colon],
            _ => host,
        };
        let known =
            |own: &String| own.as_bytes().eq_ignore_ascii_case(name) || own.as_bytes().eq_ignore_ascii_case(host);
        self.0.iter().any(known)
    }
}

/// The web pages that may call: those of the settings, and this server's own.
#[derive(Debug)]
pub(crate) struct Origins {
    allowed: Vec<String>,
    /// What its own begins with.
    scheme: &'static str,
}

impl Origins {
    /// `scheme` is that of this server: `http://` or `https://`.
    pub(crate) fn new(allowed: &[String], scheme: &'static str) -> Self {
        Self { allowed: allowed.iter().map(|origin| origin.to_ascii_lowercase()).collect(), scheme }
    }

    pub(crate) fn check(&self, headers: &Headers<'_>, hosts: &Hosts) -> Result<(), Refusal> {
        let allowed = match headers.origin() {
            Field::Absent => true, // not a browser
            Field::Repeated => false,
            Field::Is(origin) => self.lists(origin) || self.is_own(origin, headers.host(), hosts),
        };
        if allowed {
            return Ok(());
        }
        let message = "pages of this Origin may not call; an operator can add it to server.allowed_origins";
        Err(Refusal { status: 403, ..Refusal::invalid_request(message) })
    }

    /// The origin to name in CORS headers: one from the settings, as it came.
    pub(crate) fn cors(&self, headers: &Headers<'_>) -> Option<header::HeaderValue> {
        match headers.origin() {
            Field::Is(origin) if self.lists(origin) => header::HeaderValue::from_bytes(origin).ok(),
            _ => None,
        }
    }

    fn lists(&self, origin: &[u8]) -> bool {
        self.allowed.iter().any(|allowed| allowed.as_bytes().eq_ignore_ascii_case(origin))
    }

    /// Whether the origin is this server under the very name and port that it is addressed by.
    fn is_own(&self, origin: &[u8], host: Field<'_>, hosts: &Hosts) -> bool {
        let Field::Is(host) = host else { return false };
        let own = origin.strip_prefix(self.scheme.as_bytes());
        hosts.know(host) && own.is_some_and(|own| own.eq_ignore_ascii_case(host))
    }
}

/// A DELETE ends a session, which only the older revisions have.
pub(crate) fn may_have_session(headers: &Headers<'_>) -> bool {
    let legacy = match headers.protocol_version() {
        Field::Absent => true,
        field => field.text().is_some_and(|version| LEGACY_VERSIONS.contains(&version)),
    };
    legacy && headers.session_id() != Field::Absent
}

/// The body is JSON as it is. Anything a browser can send without asking first is not.
pub(crate) fn content(headers: &Headers<'_>) -> Result<(), Refused> {
    let media = match headers.content_type() {
        Field::Is(value @ b"application/json") => value,
        Field::Is(value) => value.split(|b| *b == b';').next().unwrap_or_default().trim_ascii(),
        _ => b"",
    };
    if !media.eq_ignore_ascii_case(b"application/json") {
        let message = "the header Content-Type must be application/json";
        return Err(Refusal { status: 415, ..Refusal::invalid_request(message) }.into());
    }
    match headers.content_encoding() {
        Field::Absent => Ok(()),
        Field::Is(coding) if coding.eq_ignore_ascii_case(b"identity") => Ok(()),
        _ => {
            let refusal = Refusal::invalid_request("compressed bodies are not read; send the JSON as it is");
            Err(Refused::with(Refusal { status: 415, ..refusal }, header::ACCEPT_ENCODING, "identity"))
        }
    }
}

/// The client reads at least one of the two forms in which an answer can come.
pub(crate) fn accept(headers: &Headers<'_>) -> Result<(), Refusal> {
    if headers.takes.json || headers.takes.events {
        return Ok(());
    }
    let message = "the header Accept must allow application/json or text/event-stream";
    Err(Refusal { status: 406, ..Refusal::invalid_request(message) })
}

/// What is asked for is a stream, so the client must read one.
pub(crate) fn accept_events(headers: &Headers<'_>) -> Result<(), Refusal> {
    if headers.takes.events {
        return Ok(());
    }
    let message = "the answer is a stream; the header Accept must allow text/event-stream";
    Err(Refusal { status: 406, ..Refusal::invalid_request(message) })
}

/// The body's length, when it is said, is within the limit. Decided before a byte of it is read, and
/// before `100 Continue` asks for it.
pub(crate) fn length(body: &impl Body, limits: &Config) -> Result<Option<usize>, Refusal> {
    let Some(length) = body.size_hint().exact() else { return Ok(None) };
    if length > limits.request_bytes_max.0 {
        return Err(too_large(limits));
    }
    Ok(usize::try_from(length).ok())
}

/// A body over the limit.
pub(crate) fn too_large(limits: &Config) -> Refusal {
    let message = format!("the body is larger than limits.request_bytes_max, {}", limits.request_bytes_max);
    Refusal { status: 413, ..Refusal::invalid_request(message) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_compared_by_name() {
        let hosts = Hosts::new("10.0.0.7", &["MCP.example.com".into()]);
        for (host, known) in [
            ("127.0.0.1:5000", true),
            ("LOCALHOST", true),
            ("[::1]:80", true),
            ("[::1]", true),
            ("10.0.0.7:5000", true),
            ("mcp.example.com:443", true),
            ("evil.example.com", false),
            ("localhost.evil.com", false),
            ("127.0.0.1:5000:80", false),
            ("127.0.0.1@evil", false),
            ("", false),
            (":80", false),
        ] {
            assert_eq!(hosts.know(host.as_bytes()), known, "{host}");
        }
    }

    #[test]
    fn origins_are_exact_or_our_own() {
        let hosts = Hosts::new("127.0.0.1", &[]);
        let origins = Origins::new(&["https://allowed.example".into()], "http://");
        let host = Field::Is(b"127.0.0.1:5000");
        for (origin, allowed) in [
            ("https://allowed.example", true),
            ("http://127.0.0.1:5000", true),
            ("http://127.0.0.1:5001", false),
            ("https://127.0.0.1:5000", false),
            ("http://localhost:5000", false),
            ("https://allowed.example.evil.com", false),
            ("http://allowed.example", false),
            ("https://allowed.example:444", false),
            ("https://user:pass@allowed.example", false),
            ("null", false),
            ("", false),
        ] {
            let origin_bytes = origin.as_bytes();
            assert_eq!(origins.lists(origin_bytes) || origins.is_own(origin_bytes, host, &hosts), allowed, "{origin}");
        }
        let secure = Origins::new(&[], "https://");
        assert!(secure.is_own(b"https://127.0.0.1:5000", host, &hosts));
        assert!(!secure.is_own(b"http://127.0.0.1:5000", host, &hosts));
    }
}
