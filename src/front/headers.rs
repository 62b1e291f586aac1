//! The headers that anything here looks at, found in one pass over what came.

use std::borrow::Cow;

use hyper::{HeaderMap, header};

use crate::{
    front::{http1::wire, sender::Sender},
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

/// A header that is looked at.
#[derive(Clone, Copy)]
enum Name {
    Host,
    Origin,
    ContentType,
    ContentLength,
    ContentEncoding,
    Authorization,
    ProtocolVersion,
    Method,
    Called,
    SessionId,
    LastEventId,
    ForwardedFor,
}

/// How many there are.
const NAMES: usize = Name::ForwardedFor as usize + 1;

impl Name {
    /// `name` is in lower case.
    fn of(name: &[u8]) -> Option<Self> {
        Some(match name {
            b"host" => Self::Host,
            b"origin" => Self::Origin,
            b"content-type" => Self::ContentType,
            b"content-length" => Self::ContentLength,
            b"content-encoding" => Self::ContentEncoding,
            b"authorization" => Self::Authorization,
            b"mcp-protocol-version" => Self::ProtocolVersion,
            b"mcp-method" => Self::Method,
            b"mcp-name" => Self::Called,
            b"mcp-session-id" => Self::SessionId,
            b"last-event-id" => Self::LastEventId,
            b"x-forwarded-for" => Self::ForwardedFor,
            _ => return None,
        })
    }
}

/// All that came, for what is looked up by name.
#[derive(Clone, Copy)]
enum All<'a> {
    Map(&'a HeaderMap),
    /// A head as it stood on the wire, which has been parsed once.
    Wire(&'a [u8]),
}

/// The headers that are looked at.
pub(crate) struct Headers<'a> {
    all: All<'a>,
    /// What the header lines took on the wire.
    pub(crate) bytes: usize,
    pub(crate) takes: Takes,
    found: [Field<'a>; NAMES],
}

/// Where the headers that are looked at stand in a head, to be found there again.
#[derive(Debug)]
pub(crate) struct Spots {
    bytes: usize,
    takes: Takes,
    found: [Spot; NAMES],
}

/// A piece of a head. Nothing that is looked for stands at its very beginning.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Spot {
    at: u16,
    length: u16,
}

impl Spot {
    const ABSENT: Self = Self { at: 0, length: 0 };
    const REPEATED: Self = Self { at: 0, length: 1 };

    /// Of a part of `head`, which is not longer than a `u16` can say.
    pub(crate) fn of(part: &[u8], head: &[u8]) -> Self {
        debug_assert!(head.as_ptr_range().contains(&part.as_ptr()) && head.len() <= usize::from(u16::MAX));
        let at = part.as_ptr().addr() - head.as_ptr().addr();
        Self { at: at as u16, length: part.len() as u16 }
    }

    pub(crate) fn within(self, head: &[u8]) -> &[u8] {
        let at = usize::from(self.at);
        head.get(at..at + usize::from(self.length)).unwrap_or_default()
    }
}

impl<'a> Headers<'a> {
    /// Those of a message that hyper read.
    pub(crate) fn scan(all: &'a HeaderMap) -> Self {
        let mut found = Self::none(All::Map(all));
        let mut accept = Accept::default();
        for (name, value) in all {
            found.add(name.as_str().as_bytes(), value.as_bytes(), &mut accept);
        }
        found.takes = accept.takes();
        found
    }

    /// Those of a head that stands in `wire`, parsed to `lines`. Each is shown to `also` besides, by its name in lower
    /// case.
    pub(crate) fn scan_wire(
        wire: &'a [u8],
        lines: &[httparse::Header<'a>],
        mut also: impl FnMut(&[u8], &'a [u8]),
    ) -> Self {
        let mut found = Self::none(All::Wire(wire));
        let mut accept = Accept::default();
        let mut lower = [0; NAME_BYTES_MAX];
        for line in lines {
            let name = lower_case(line.name, &mut lower);
            found.add(name, line.value, &mut accept);
            also(name, line.value);
        }
        found.takes = accept.takes();
        found
    }

    /// The same again, from where they were found.
    pub(crate) fn at(head: &'a [u8], spots: &Spots) -> Self {
        let field = |spot: Spot| match spot {
            Spot::ABSENT => Field::Absent,
            Spot::REPEATED => Field::Repeated,
            spot => Field::Is(spot.within(head)),
        };
        Self { all: All::Wire(head), bytes: spots.bytes, takes: spots.takes, found: spots.found.map(field) }
    }

    /// Where they stand in `head`, in which they were found.
    pub(crate) fn spots(&self, head: &[u8]) -> Spots {
        let spot = |field| match field {
            Field::Absent => Spot::ABSENT,
            Field::Repeated => Spot::REPEATED,
            Field::Is(value) => Spot::of(value, head),
        };
        Spots { bytes: self.bytes, takes: self.takes, found: self.found.map(spot) }
    }

    fn none(all: All<'a>) -> Self {
        Self { all, bytes: 0, takes: Takes { json: false, events: false }, found: [Field::Absent; NAMES] }
    }

    fn add(&mut self, name: &[u8], value: &'a [u8], accept: &mut Accept) {
        self.bytes += name.len() + value.len() + b": \r\n".len();
        match Name::of(name) {
            Some(known) => self.found[known as usize].add(value),
            None if name == b"accept" => accept.add(value),
            None => {}
        }
    }

    fn field(&self, name: Name) -> Field<'a> {
        self.found[name as usize]
    }

    pub(crate) fn host(&self) -> Field<'a> {
        self.field(Name::Host)
    }

    pub(crate) fn origin(&self) -> Field<'a> {
        self.field(Name::Origin)
    }

    pub(crate) fn content_type(&self) -> Field<'a> {
        self.field(Name::ContentType)
    }

    pub(crate) fn content_length(&self) -> Field<'a> {
        self.field(Name::ContentLength)
    }

    pub(crate) fn content_encoding(&self) -> Field<'a> {
        self.field(Name::ContentEncoding)
    }

    pub(crate) fn authorization(&self) -> Field<'a> {
        self.field(Name::Authorization)
    }

    pub(crate) fn protocol_version(&self) -> Field<'a> {
        self.field(Name::ProtocolVersion)
    }

    pub(crate) fn last_event_id(&self) -> Field<'a> {
        self.field(Name::LastEventId)
    }

    pub(crate) fn session_id(&self) -> Field<'a> {
        self.field(Name::SessionId)
    }

    /// The lines in which proxies say for whom they speak.
    pub(crate) fn forwarded_for(&self) -> Vec<&'a [u8]> {
        match self.field(Name::ForwardedFor) {
            Field::Absent => Vec::new(),
            Field::Is(line) => vec![line],
            Field::Repeated => self.lines("x-forwarded-for"),
        }
    }

    /// The lines of one name, which is in lower case.
    pub(crate) fn lines(&self, name: &str) -> Vec<&'a [u8]> {
        match self.all {
            All::Map(map) => map.get_all(name).iter().map(|value| value.as_bytes()).collect(),
            All::Wire(head) => {
                let mut found = Vec::new();
                wire::each_line(head, |line| {
                    if line.name.eq_ignore_ascii_case(name) {
                        found.push(line.value);
                    }
                });
                found
            }
        }
    }

    /// The part of it that the protocol reads.
    pub(crate) fn head<'b>(&'b self, sender: &'b Sender, rates: Option<&'b dyn Rates>) -> Head<'b> {
        Head {
            via: Via::Http,
            peer: Some(sender.address),
            caller: sender.caller(),
            identity: sender.identity.as_deref(),
            share: sender.share,
            protocol_version: self.protocol_version(),
            method: self.field(Name::Method),
            name: self.field(Name::Called),
            session_id: self.session_id(),
            params: self,
            rates,
            takes_events: self.takes.events,
            at_once: true,
        }
    }

    /// The tool that is called, when the headers say that one is.
    pub(crate) fn tool(&self) -> Option<Cow<'a, str>> {
        if self.field(Name::Method) == Field::Is(b"tools/call") { self.field(Name::Called).decoded() } else { None }
    }

    /// What is asked for, as far as the headers say it, for who has not read the body.
    pub(crate) fn about(&self) -> About<'a> {
        About::unread(self.field(Name::Method).text(), self.field(Name::Called).text())
    }

    /// What a preflight asks to send (`Access-Control-Request-Headers`).
    pub(crate) fn requested(&self) -> Option<&'a str> {
        let lines = self.lines(header::ACCESS_CONTROL_REQUEST_HEADERS.as_str());
        lines.first().and_then(|value| std::str::from_utf8(value).ok())
    }
}

impl ParamHeaders for Headers<'_> {
    fn param(&self, header: &str) -> Field<'_> {
        let mut field = Field::Absent;
        self.lines(header).into_iter().for_each(|value| field.add(value));
        field
    }
}

/// The longest name that is looked at by what is above, or by `wire`.
const NAME_BYTES_MAX: usize = 24;

/// The name in lower case; one that is too long to be looked at, as it is.
fn lower_case<'b>(name: &'b str, room: &'b mut [u8; NAME_BYTES_MAX]) -> &'b [u8] {
    let Some(lower) = room.get_mut(..name.len()) else { return name.as_bytes() };
    lower.copy_from_slice(name.as_bytes());
    lower.make_ascii_lowercase();
    lower
}

/// What the Accept headers of a request come to, all together.
#[derive(Default)]
struct Accept(Option<Takes>);

impl Accept {
    fn add(&mut self, value: &[u8]) {
        let Takes { json, events } = read_accept(value);
        let before = self.0.unwrap_or(Takes { json: false, events: false });
        self.0 = Some(Takes { json: before.json || json, events: before.events || events });
    }

    /// Who does not say what is read reads everything.
    fn takes(self) -> Takes {
        self.0.unwrap_or(Takes { json: true, events: true })
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
