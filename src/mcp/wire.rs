//! One message off the wire, parsed once and borrowed. This file is the only judge of what a message is: whatever it
//! lets through, every later reader sees the same value. It reads what any method may need into one [`Envelope`] and
//! walks over the rest with the same strictness, so that nothing unread is taken on trust: no duplicate keys, no lone
//! surrogates, no number out of range, no depth or breadth over the limits.

use std::{borrow::Cow, fmt};

use serde_json::{Map, Value};

use crate::{call::ClientCapabilities, mcp::reader};

/// Limits on the shape of a message.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ShapeLimits {
    pub(crate) depth_max: usize,
    pub(crate) keys_max: usize,
}

/// A request id: text (its JSON, quotes included, echoed as it came) or an integer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Id<'a> {
    Number(i64),
    Text(&'a str),
}

impl fmt::Display for Id<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(n) => n.fmt(f),
            Self::Text(json) => f.write_str(json),
        }
    }
}

/// A member that should be text.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum Text<'a> {
    #[default]
    Absent,
    Is(Cow<'a, str>),
    /// There, and something else.
    Wrong,
}

impl Text<'_> {
    pub(crate) fn get(&self) -> Option<&str> {
        if let Self::Is(text) = self { Some(text) } else { None }
    }
}

/// A member that should be an id.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) enum IdField<'a> {
    #[default]
    Absent,
    Is(Id<'a>),
    Wrong,
}

/// A member that should be an object.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Shape {
    #[default]
    Absent,
    Object,
    Array,
    Other,
}

/// `params._meta`, as far as the protocol itself reads it.
#[derive(Debug, Default)]
pub(crate) struct Meta<'a> {
    pub(crate) shape: Shape,
    pub(crate) protocol_version: Text<'a>,
    pub(crate) client_capabilities: Option<ClientCapabilities>,
    pub(crate) log_level: Text<'a>,
    pub(crate) progress_token: IdField<'a>,
    /// All of it, where hosted handlers want to see it.
    pub(crate) whole: Option<Map<String, Value>>,
}

/// `params`: the members that some method reads.
#[derive(Debug, Default)]
pub(crate) struct Params<'a> {
    pub(crate) shape: Shape,
    pub(crate) name: Text<'a>,
    pub(crate) uri: Text<'a>,
    pub(crate) cursor: Text<'a>,
    pub(crate) level: Text<'a>,
    pub(crate) protocol_version: Text<'a>,
    pub(crate) request_id: IdField<'a>,
    pub(crate) capabilities: Option<ClientCapabilities>,
    pub(crate) task_id: Text<'a>,
    pub(crate) arguments: Option<Value>,
    /// It brings answers to questions, or the state of a round before.
    pub(crate) is_retry: bool,
    pub(crate) meta: Meta<'a>,
}

/// One message.
#[derive(Debug, Default)]
pub(crate) struct Envelope<'a> {
    pub(crate) id: IdField<'a>,
    pub(crate) method: Text<'a>,
    pub(crate) params: Params<'a>,
    /// It has `result` or `error`: an answer to something that we asked.
    pub(crate) is_response: bool,
    pub(super) version_ok: bool,
}

impl<'a> Envelope<'a> {
    /// The id of a request; `None` for a notification.
    pub(crate) fn request_id(&self) -> Option<Id<'a>> {
        if let IdField::Is(id) = self.id { Some(id) } else { None }
    }
}

/// The value of one member of a message that was read before, such as `params`: for what only few methods read. It was
/// found good then, so it is read the same now.
pub(crate) fn member(bytes: &[u8], limits: ShapeLimits, name: &str) -> Option<Value> {
    let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
    match reader::build(bytes, limits)? {
        Value::Object(mut members) => members.remove(name),
        _ => None,
    }
}

/// Why bytes are not a message that can be served.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum WireFault {
    /// Not JSON, or JSON that some reader would read differently.
    Parse(String),
    /// JSON, and not a JSON-RPC message.
    InvalidRequest(String),
    /// A message whose parameters are over a limit.
    InvalidParams(String),
}

/// Reads one message. With a fault comes what could be read, the id above all.
pub(crate) fn read(bytes: &[u8], limits: ShapeLimits) -> (Envelope<'_>, Option<WireFault>) {
    let mut envelope = Envelope::default();
    let fault = read_into(&mut envelope, bytes, limits);
    (envelope, fault)
}

/// The same into an envelope that is there, which may ask for all of `params._meta`.
pub(crate) fn read_into<'a>(envelope: &mut Envelope<'a>, bytes: &'a [u8], limits: ShapeLimits) -> Option<WireFault> {
    let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
    let invalid = |text: &str| Some(WireFault::InvalidRequest(text.to_owned()));
    match reader::read(bytes, limits, envelope) {
        Err(fault) => Some(fault),
        Ok(Shape::Array) => invalid("a batch; send each message on its own"),
        Ok(shape) if shape != Shape::Object => invalid("a message is one JSON object"),
        Ok(_) => envelope_fault(envelope),
    }
}

fn envelope_fault(envelope: &Envelope<'_>) -> Option<WireFault> {
    let invalid = |text: &str| Some(WireFault::InvalidRequest(text.to_owned()));
    if !envelope.version_ok {
        return invalid("\"jsonrpc\" must be the text \"2.0\"");
    }
    if envelope.id == IdField::Wrong {
        return invalid("\"id\" must be text of up to 1 KiB or an integer of up to 64 bits");
    }
    match &envelope.method {
        Text::Is(_) => None,
        Text::Absent if envelope.is_response => None,
        Text::Absent => invalid("\"method\" is missing"),
        Text::Wrong => invalid("\"method\" must be text"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: ShapeLimits = ShapeLimits { depth_max: 128, keys_max: 10_000 };

    fn read_with_meta(bytes: &[u8], limits: ShapeLimits) -> (Envelope<'_>, Option<WireFault>) {
        let mut envelope = Envelope::default();
        envelope.params.meta.whole = Some(Map::new());
        let fault = read_into(&mut envelope, bytes, limits);
        (envelope, fault)
    }

    fn fault(text: &str) -> Option<WireFault> {
        read(text.as_bytes(), LIMITS).1
    }

    fn with_id(id: &str) -> String {
        format!(r#"{{"jsonrpc":"2.0","id":{id},"method":"x"}}"#)
    }

    #[test]
    fn what_is_not_json_is_a_parse_fault() {
        let deep = format!(
            r#"{{"jsonrpc":"2.0","id":1,"method":"x","params":{{"arguments":{}1{}}}}}"#,
            "[".repeat(129),
            "]".repeat(129)
        );
        let wide = "[".repeat(100_000);
        for text in [
            "",
            "{",
            "{]",
            "\0",
            "<html>",
            "NaN",
            "01",
            "+1",
            ".5",
            "1.",
            "0x1",
            "'x'",
            "{} {}",
            "[1,]",
            "/**/1",
            r#"{"a":"\ud800"}"#,
            r#"{"a":"\udc00\ud800"}"#,
            r#"{"a":"\ud800A"}"#,
            r#"{"a":1e400}"#,
            r#"{"a":-1e400}"#,
            r#"{"params":{"arguments":{"a":1e400}}}"#,
            r#"{"id":"\ud800"}"#,
            deep.as_str(),
            wide.as_str(),
        ] {
            assert!(matches!(fault(text), Some(WireFault::Parse(_))), "{text:.80}: {:?}", fault(text));
        }
        for bytes in [&b"{\"a\":\"\xff\"}"[..], b"{\"a\":\"\xc0\xaf\"}", b"\xff\xfe{\0}\0", b"{\"id\":\"\xff\"}"] {
            assert!(matches!(read(bytes, LIMITS).1, Some(WireFault::Parse(_))), "{bytes:?}");
        }
    }

    #[test]
    fn what_is_not_a_message_is_an_invalid_request() {
        for text in [
            "1",
            "\"x\"",
            "[]",
            "[{}]",
            "{}",
            r#"{"jsonrpc":"1.0","id":1,"method":"x"}"#,
            r#"{"jsonrpc":2.0,"id":1,"method":"x"}"#,
            r#"{"jsonrpc":"2.0","id":1}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":7}"#,
            r#"{"jsonrpc":"2.0","id":1,"id":2,"method":"x"}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"x","method":"y"}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"x","params":{},"params":{}}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"x","params":{"name":"a","name":"b"}}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"x","params":{"_meta":{},"_meta":{}}}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"x","params":{"_meta":{"io.modelcontextprotocol/protocolVersion":"a","io.modelcontextprotocol/protocolVersion":"b"}}}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"x","params":{"arguments":{"a":1,"a":2}}}"#,
            r#"{"jsonrpc":"1.0","jsonrpc":"2.0","id":1,"method":"x"}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"x","params":{"_meta":{"x":1,"x":2}}}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":"x","z":{"a":1,"b":2,"c":3,"d":4,"e":5,"f":6,"g":7,"h":8,"i":9,"j":10,"i":11}}"#,
        ] {
            assert!(matches!(fault(text), Some(WireFault::InvalidRequest(_))), "{text}: {:?}", fault(text));
        }
    }

    #[test]
    fn ids_are_echoed_digit_for_digit_or_refused() {
        let long = format!("\"{}\"", "x".repeat(1024));
        for (id, echoed) in [
            ("0", "0"),
            ("-1", "-1"),
            ("9007199254740993", "9007199254740993"),
            ("1.0", "1"),
            ("1e2", "100"),
            ("9223372036854775807", "9223372036854775807"),
            (r#""a\n\u2028""#, r#""a\n\u2028""#),
            (r#""""#, r#""""#),
            (long.as_str(), long.as_str()),
        ] {
            let text = with_id(id);
            let (envelope, fault) = read(text.as_bytes(), LIMITS);
            assert_eq!(fault, None, "{id}");
            assert_eq!(envelope.request_id().map(|id| id.to_string()).as_deref(), Some(echoed), "{id}");
        }
        let longer = format!("\"{}\"", "x".repeat(1025));
        for id in ["null", "true", "{}", "[]", "1.5", "9223372036854775808", "1e30", "-9223372036854775809", &longer] {
            assert!(matches!(fault(&with_id(id)), Some(WireFault::InvalidRequest(_))), "{id}");
        }
    }

    #[test]
    fn what_methods_read_is_there() {
        let text = br#"{"method":"tools/call","params":{"_meta":{"progressToken":7,"io.modelcontextprotocol/clientCapabilities":{"sampling":{},"x":[]}},
            "arguments":{"n":[1,{"a":null}]},"name":"\u0065cho","cursor":1},"id":"a","jsonrpc":"2.0"}"#;
        let (envelope, fault) = read(text, LIMITS);
        assert_eq!(fault, None);
        assert_eq!(envelope.method.get(), Some("tools/call"));
        let params = envelope.params;
        assert_eq!((params.shape, params.name.get(), &params.cursor), (Shape::Object, Some("echo"), &Text::Wrong));
        assert_eq!(params.arguments, Some(serde_json::json!({"n":[1,{"a":null}]})));
        assert_eq!(params.meta.progress_token, IdField::Is(Id::Number(7)));
        assert_eq!(params.meta.client_capabilities, Some(ClientCapabilities::SAMPLING));
    }

    #[test]
    fn all_of_meta_says_the_same_as_its_parts() {
        let text = br#"{"jsonrpc":"2.0","id":1,"method":"x","params":{"_meta":{"progressToken":"a\u0062","own":{"n":[1]},
            "io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/logLevel":7,
            "io.modelcontextprotocol/clientCapabilities":{"roots":{},"extensions":{"io.modelcontextprotocol/tasks":{}}}}}}"#;
        let (parts, whole) = (read(text, LIMITS).0.params.meta, read_with_meta(text, LIMITS).0.params.meta);
        assert_eq!(whole.protocol_version.get(), parts.protocol_version.get());
        assert_eq!(whole.client_capabilities, parts.client_capabilities);
        assert_eq!((whole.log_level, whole.progress_token), (parts.log_level, parts.progress_token));
        let all = whole.whole.expect("all of it");
        assert_eq!((&all["own"], &all["progressToken"]), (&serde_json::json!({"n":[1]}), &serde_json::json!("ab")));
        assert_eq!(all.len(), 5);
        for bad in [r#"{"_meta":{"a":1,"a":2}}"#, r#"{"_meta":{"a":"\ud800"}}"#] {
            let text = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"x","params":{bad}}}"#);
            assert_eq!(read_with_meta(text.as_bytes(), LIMITS).1.is_some(), read(text.as_bytes(), LIMITS).1.is_some());
            assert!(read_with_meta(text.as_bytes(), LIMITS).1.is_some());
        }
    }

    #[test]
    fn a_short_text_does_not_make_a_large_value() {
        let call = |items: usize, item: &str| {
            let items = vec![item; items].join(",");
            let text = format!(r#"{{"jsonrpc":"2.0","id":1,"params":{{"arguments":{{"a":[{items}]}}}},"method":"x"}}"#);
            read(text.as_bytes(), LIMITS).1
        };
        assert_eq!(call(100_000, "1"), None);
        assert_eq!(call(10_000, r#"{"a":1}"#), None);
        for (items, item) in [(150_000, r#"{"":0}"#), (600_000, "[]"), (2_000_000, "0")] {
            assert!(matches!(call(items, item), Some(WireFault::InvalidParams(_))), "{items} of {item}");
        }
    }

    #[test]
    fn limits_hold_at_the_limit_and_not_beyond() {
        let limits = ShapeLimits { depth_max: 3, keys_max: 2 };
        let call = |arguments: &str| {
            format!(r#"{{"jsonrpc":"2.0","id":1,"params":{{"arguments":{arguments}}},"method":"x"}}"#)
        };
        // The envelope has more than two members itself: limits on breadth are for what a client composes freely.
        assert_eq!(read(call("[[[1]]]").as_bytes(), limits).1, None);
        assert!(matches!(read(call("[[[[1]]]]").as_bytes(), limits).1, Some(WireFault::Parse(_))));
        assert_eq!(read(call(r#"{"a":1,"b":2}"#).as_bytes(), limits).1, None);
        assert!(matches!(read(call(r#"{"a":1,"b":2,"c":3}"#).as_bytes(), limits).1, Some(WireFault::InvalidParams(_))));
    }
}
