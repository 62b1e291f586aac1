//! The headers that anything here looks at, found in one pass over what came.

use std::borrow::Cow;

use hyper::{HeaderMap, header};

use crate::{
    front::sender::Sender,
    mcp::{
        head::{Field, Head, ParamHeaders, Rates, Via},
        trail::About,
    },
};

/// Which forms of answer the client reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Takes {
    pub(crate) json: bool,
    pub(crate) events: bool,
}

/// The headers that are looked at.
pub(crate) struct Headers<'a> {
    all: &'a HeaderMap,
    /// What the header lines took on the wire.
    pub(crate) bytes: usize,
    pub(crate) host: Field<'a>,
    pub(crate) origin: Field<'a>,
    pub(crate) content_type: Field<'a>,
    pub(crate) content_length: Field<'a>,
    pub(crate) content_encoding: Field<'a>,
    pub(crate) authorization: Field<'a>,
    pub(crate) takes: Takes,
    protocol_version: Field<'a>,
    method: Field<'a>,
    name: Field<'a>,
    session_id: Field<'a>,
    last_event_id: Field<'a>,
}

impl<'a> Headers<'a> {
    pub(crate) fn scan(all: &'a HeaderMap) -> Self {
        let mut found = Self {
            all,
            bytes: 0,
            host: Field::Absent,
            origin: Field::Absent,
            content_type: Field::Absent,
            content_length: Field::Absent,
            content_encoding: Field::Absent,
            authorization: Field::Absent,
            takes: Takes { json: false, events: false },
            protocol_version: Field::Absent,
            method: Field::Absent,
            name: Field::Absent,
            session_id: Field::Absent,
            last_event_id: Field::Absent,
        };
        let mut accepts_said = false;
        for (name, value) in all {
            let value = value.as_bytes();
            found.bytes += name.as_str().len() + value.len() + b": \r\n".len();
            match name.as_str() {
                "host" => found.host.add(value),
                "origin" => found.origin.add(value),
                "content-type" => found.content_type.add(value),
                "content-length" => found.content_length.add(value),
                "content-encoding" => found.content_encoding.add(value),
                "authorization" => found.authorization.add(value),
                "mcp-protocol-version" => found.protocol_version.add(value),
                "mcp-method" => found.method.add(value),
                "mcp-name" => found.name.add(value),
                "mcp-session-id" => found.session_id.add(value),
                "last-event-id" => found.last_event_id.add(value),
                "accept" => {
                    accepts_said = true;
                    let Takes { json, events } = read_accept(value);
                    found.takes = Takes { json: found.takes.json || json, events: found.takes.events || events };
                }
                _ => {}
            }
        }
        if !accepts_said {
            found.takes = Takes { json: true, events: true };
        }
        found
    }

    /// The part of it that the protocol reads.
    pub(crate) fn head<'b>(&'b self, sender: &'b Sender, rates: Option<&'b dyn Rates>) -> Head<'b> {
        Head {
            via: Via::Http,
            peer: Some(sender.address),
            caller: sender.caller(),
            identity: sender.identity.as_deref(),
            share: sender.share,
            protocol_version: self.protocol_version,
            method: self.method,
            name: self.name,
            session_id: self.session_id,
            params: self,
            rates,
            takes_events: self.takes.events,
            at_once: true,
        }
    }

    /// The tool that is called, when the headers say that one is.
    pub(crate) fn tool(&self) -> Option<Cow<'a, str>> {
        if self.method == Field::Is(b"tools/call") { self.name.decoded() } else { None }
    }

    /// What is asked for, as far as the headers say it, for who has not read the body.
    pub(crate) fn about(&self) -> About<'a> {
        About::unread(self.method.text(), self.name.text())
    }

    /// What a preflight asks to send (`Access-Control-Request-Headers`).
    pub(crate) fn requested(&self) -> Option<&'a str> {
        self.all.get(header::ACCESS_CONTROL_REQUEST_HEADERS).and_then(|v| v.to_str().ok())
    }

    pub(crate) fn protocol_version(&self) -> Field<'a> {
        self.protocol_version
    }

    pub(crate) fn last_event_id(&self) -> Field<'a> {
        self.last_event_id
    }

    pub(crate) fn session_id(&self) -> Field<'a> {
        self.session_id
    }
}

impl ParamHeaders for Headers<'_> {
    fn param(&self, header: &str) -> Field<'_> {
        let mut field = Field::Absent;
        self.all.get_all(header).iter().for_each(|value| field.add(value.as_bytes()));
        field
    }
}

/// What the protocol has clients send, and most do.
const USUAL_ACCEPT: &[u8] = b"application/json, text/event-stream";

/// Reads an Accept header (RFC 9110, section 12.5.1): which of our two forms it takes. A range with `q=0` takes none.
fn read_accept(value: &[u8]) -> Takes {
    if value == USUAL_ACCEPT {
        return Takes { json: true, events: true };
    }
    let mut takes = Takes { json: false, events: false };
    for range in value.split(|b| *b == b',') {
        let mut parts = range.split(|b| *b == b';').map(<[u8]>::trim_ascii);
        let media = parts.next().unwrap_or_default();
        let refused = parts.any(|p| {
            let weight = p.strip_prefix(b"q=").or_else(|| p.strip_prefix(b"Q="));
            weight.is_some_and(|w| !w.is_empty() && w.iter().all(|b| matches!(b, b'0' | b'.')))
        });
        if refused {
            continue;
        }
        let is = |known: &str| media.eq_ignore_ascii_case(known.as_bytes());
        takes.json |= is("application/json") || is("*/*") || is("application/*");
        takes.events |= is("text/event-stream") || is("*/*") || is("text/*");
    }
    takes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accept_is_read_by_range_and_weight() {
        for (value, json, events) in [
            ("application/json, text/event-stream", true, true),
            ("*/*", true, true),
            ("text/event-stream", false, true),
            ("application/json;q=0.5", true, false),
            ("application/json;q=0, text/event-stream;q=0.000", false, false),
            ("APPLICATION/JSON; charset=utf-8", true, false),
            ("text/html", false, false),
            ("", false, false),
            ("application/*, text/*;q=0", true, false),
        ] {
            assert_eq!(read_accept(value.as_bytes()), Takes { json, events }, "{value}");
        }
    }
}
