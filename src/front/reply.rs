//! From answers and refusals to HTTP responses. Every refusal has a JSON-RPC error as its body, so that no client takes
//! this server for an older one and tries something else.

use bytes::Bytes;
use hyper::{
    Response, StatusCode,
    header::{self, HeaderName, HeaderValue},
};

use crate::{
    audit::Audit,
    front::{
        body::Body,
        checks::Origins,
        headers::{Headers, Takes},
    },
    mcp::{code::Refusal, encode::Payload, head::Field, router::Answer},
    telemetry::refusals::Reason,
};

const JSON: HeaderValue = HeaderValue::from_static("application/json");
const EVENTS: HeaderValue = HeaderValue::from_static("text/event-stream");
/// How long a client waits before it comes back to a stream, in milliseconds.
const RETRY_MS: u64 = 1000;
/// A comment, sent on a stream that has been silent for a while.
pub(crate) const KEEP_ALIVE: Bytes = Bytes::from_static(b": keep-alive\n\n");
const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");
/// The headers that pages may read.
const EXPOSED: &str =
    "www-authenticate, mcp-session-id, retry-after, x-ratelimit-limit, x-ratelimit-remaining, x-ratelimit-reset";
const METHODS: &str = "POST, GET, DELETE, OPTIONS";

/// A refusal on its way out, with the one header that some of them need.
#[derive(Debug)]
pub(crate) struct Refused {
    refusal: Refusal,
    /// Boxed, since most have none and every check's answer has room for one.
    header: Option<Box<(HeaderName, HeaderValue)>>,
    /// After a head that two readers might read differently, or a body that was not read to its end, nothing more is taken
    /// from this connection.
    is_last: bool,
}

impl From<Refusal> for Refused {
    fn from(refusal: Refusal) -> Self {
        let is_last = matches!(refusal.status, 400 | 408 | 413 | 414 | 431);
        Self { refusal, header: None, is_last }
    }
}

impl Refused {
    pub(crate) fn with(refusal: Refusal, name: HeaderName, value: &'static str) -> Self {
        Self::with_value(refusal, name, HeaderValue::from_static(value))
    }

    /// The same with a value that was made.
    pub(crate) fn with_value(refusal: Refusal, name: HeaderName, value: HeaderValue) -> Self {
        Self { header: Some(Box::new((name, value))), ..Self::from(refusal) }
    }

    /// Where it is too often, that is said instead. What follows from this one for the connection stays, and so does its
    /// header: who has to look for an issuer learns where, and finds out nothing by it.
    pub(crate) fn or_too_often(self, over: Option<Refusal>) -> Self {
        match over {
            None => self,
            Some(refusal) => Self { refusal, ..self },
        }
    }

    pub(crate) fn reason(&self) -> Reason {
        Reason::of(self.refusal.status, self.refusal.code)
    }

    /// Which of several things it was, for the audit trail.
    pub(crate) fn detail(&self) -> &'static str {
        self.refusal.detail
    }

    pub(crate) fn into_response(self) -> Response<Body> {
        tracing::debug!(status = self.refusal.status, reason = self.refusal.message, "refused at the front door");
        let mut response = answer(Answer::refused(None, &self.refusal));
        let headers = response.headers_mut();
        if let Some(header) = self.header {
            let (name, value) = *header;
            headers.insert(name, value);
        }
        if self.is_last {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

/// A message as the client takes it: JSON, or the same message as the only event of a stream.
pub(crate) fn message(answered: Answer, takes: Takes) -> Response<Body> {
    if takes.json || answered.payload.len() == 0 {
        return answer(answered);
    }
    let mut event = Vec::with_capacity(answered.payload.len() + 8);
    push_event(&mut event, &answered.payload.into_bytes());
    let mut response = answer(Answer { payload: event.into(), ..answered });
    response.headers_mut().insert(header::CONTENT_TYPE, EVENTS);
    response
}

/// A message as JSON.
pub(crate) fn answer(answered: Answer) -> Response<Body> {
    let Answer { status, payload, session_id, retry_after_s, .. } = answered;
    let has_body = payload.len() > 0;
    let mut response = Response::new(Body::from(payload));
    *response.status_mut() = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    if has_body {
        headers.insert(header::CONTENT_TYPE, JSON);
    }
    if let Some(id) = session_id.and_then(|id| HeaderValue::from_str(&id).ok()) {
        headers.insert(HeaderName::from_static("mcp-session-id"), id);
    }
    if let Some(seconds) = retry_after_s {
        headers.insert(header::RETRY_AFTER, seconds.into());
    }
    response
}

/// Text of another kind.
pub(crate) fn text(text: String, content_type: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::from(Bytes::from(text)));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// The start of an event stream.
pub(crate) fn events(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, EVENTS);
    headers.insert(header::CACHE_CONTROL, NO_STORE);
    // Tells nginx and its like to pass events on as they come.
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    response
}

/// Nothing may be said: the stream ends without an event, or the answer has no body.
pub(crate) fn silence(takes: Takes) -> Response<Body> {
    if takes.events {
        return events(Body::empty());
    }
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::ACCEPTED;
    response
}

/// Appends one message as an event. JSON has no raw line breaks, so it is one `data` line.
pub(crate) fn push_event(out: &mut Vec<u8>, json: &[u8]) {
    out.extend_from_slice(b"data: ");
    out.extend_from_slice(json);
    out.extend_from_slice(b"\n\n");
}

/// The same with the id that a client names when it comes back.
pub(crate) fn push_event_with_id(out: &mut Vec<u8>, id: &str, json: &[u8]) {
    out.extend_from_slice(b"id: ");
    out.extend_from_slice(id.as_bytes());
    out.push(b'\n');
    push_event(out, json);
}

/// The first event of a stream that can be come back to: an id and nothing else, and how long to wait before that.
pub(crate) fn push_first_event(out: &mut Vec<u8>, id: &str) {
    out.extend_from_slice(format!("id: {id}\nretry: {RETRY_MS}\ndata: \n\n").as_bytes());
}

pub(crate) fn alive() -> Response<Body> {
    status_page(StatusCode::OK, br#"{"status":"alive"}"#)
}

/// `cluster` says whether what instances share is there, where there are several. It is said and no more: without it
/// an instance still serves. With what is another deployment's it is set wrongly, and what clients begin there no other
/// instance could go on with.
pub(crate) fn ready(is_ready: bool, audit: Option<&Audit>, cluster: Option<&'static str>) -> Response<Body> {
    if is_ready && audit.is_some_and(Audit::stops_calls) {
        let json = br#"{"status":"unready","reason":"the audit log cannot be written, and audit.policy is required"}"#;
        return status_page(StatusCode::SERVICE_UNAVAILABLE, json);
    }
    match (is_ready, cluster) {
        (true, None) => status_page(StatusCode::OK, br#"{"status":"ready"}"#),
        (true, Some("up")) => status_page(StatusCode::OK, br#"{"status":"ready","cluster":"up"}"#),
        (true, Some("read-only")) => status_page(StatusCode::OK, br#"{"status":"ready","cluster":"read-only"}"#),
        (true, Some("deaf")) => status_page(StatusCode::OK, br#"{"status":"ready","cluster":"deaf"}"#),
        (true, Some("foreign")) => {
            let json = br#"{"status":"unready","cluster":"foreign","reason":"the keys in Redis are those of another deployment"}"#;
            status_page(StatusCode::SERVICE_UNAVAILABLE, json)
        }
        (true, Some(_)) => status_page(StatusCode::OK, br#"{"status":"ready","cluster":"away"}"#),
        (false, _) => status_page(StatusCode::SERVICE_UNAVAILABLE, br#"{"status":"draining"}"#),
    }
}

fn status_page(status: StatusCode, json: &'static [u8]) -> Response<Body> {
    let mut response = Response::new(Body::from(Bytes::from_static(json)));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, JSON);
    response.headers_mut().insert(header::CACHE_CONTROL, NO_STORE);
    response
}

/// What is told of this server to clients that look for its issuer. It holds nothing that one page may read and another
/// may not.
pub(crate) fn metadata(json: Bytes) -> Response<Body> {
    let mut response = Response::new(Body::from(json));
    response.headers_mut().insert(header::CONTENT_TYPE, JSON);
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("max-age=300"));
    response
}

pub(crate) fn no_such_path(endpoint: &str) -> Refused {
    let message = format!("nothing is served at this path; the MCP endpoint is {endpoint}");
    Refusal { status: 404, ..Refusal::invalid_request(message) }.into()
}

pub(crate) fn no_such_method() -> Refused {
    let message = "this endpoint takes POST; GET opens the stream of a session, and DELETE ends one, both of an older revision and with Mcp-Session-Id";
    Refused::with(Refusal { status: 405, ..Refusal::invalid_request(message) }, header::ALLOW, "POST")
}

/// What a browser asks before it lets a page call. `cors` headers are added for pages that may.
pub(crate) fn preflight(headers: &Headers<'_>, origins: &Origins) -> Result<Response<Body>, Refused> {
    if headers.origin() == Field::Absent || origins.cors(headers).is_none() {
        return Err(no_such_method());
    }
    let mut response = Response::new(Body::from(Payload::default()));
    *response.status_mut() = StatusCode::NO_CONTENT;
    let allow = response.headers_mut();
    allow.insert(header::ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static(METHODS));
    // A page may send what the protocol has: the list is open, since tools add Mcp-Param-* headers of their own.
    allow.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, requested_headers(headers));
    allow.insert(header::ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    Ok(response)
}

/// The headers that the page asked for, as far as they are those of the protocol.
fn requested_headers(headers: &Headers<'_>) -> HeaderValue {
    const OURS: [&str; 5] = ["content-type", "accept", "authorization", "last-event-id", "traceparent"];
    let asked = headers.requested().unwrap_or_default().to_ascii_lowercase();
    let ours = asked.split(',').map(str::trim).filter(|name| name.starts_with("mcp-") || OURS.contains(name));
    HeaderValue::from_str(&ours.collect::<Vec<_>>().join(", ")).unwrap_or(HeaderValue::from_static("content-type"))
}

/// Lets the page at `origin` read the response.
pub(crate) fn allow_origin(response: &mut Response<Body>, origin: HeaderValue) {
    let headers = response.headers_mut();
    headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, origin);
    headers.insert(header::VARY, HeaderValue::from_static("Origin"));
    headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, HeaderValue::from_static(EXPOSED));
}
