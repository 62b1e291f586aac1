//! The request's headers as the protocol sees them: found once by the front, compared here with the body. Values are
//! untrusted until they agree with what the body says.

use std::{borrow::Cow, net::IpAddr};

use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::Value;

use crate::{
    call::{Caller, Share},
    dispatch::HeaderParam,
    identity::Identity,
    mcp::code::Refusal,
};

/// A header that may stand only once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Field<'a> {
    #[default]
    Absent,
    Is(&'a [u8]),
    Repeated,
}

impl<'a> Field<'a> {
    /// Takes in one more header of this name.
    pub(crate) fn add(&mut self, value: &'a [u8]) {
        *self = if *self == Self::Absent { Self::Is(value) } else { Self::Repeated };
    }

    /// The value when it stands once and is text.
    pub(crate) fn text(&self) -> Option<&'a str> {
        if let Self::Is(value) = self { std::str::from_utf8(value).ok() } else { None }
    }

    /// The text that the value stands for, which may be written in base64.
    pub(crate) fn decoded(&self) -> Option<Cow<'a, str>> {
        if let Self::Is(value) = self { decode(value) } else { None }
    }
}

/// How a message came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Via {
    /// One message in one HTTP request.
    Http,
    /// One message on a line. There are no headers, and no session but the process.
    Stdio,
}

/// Where `Mcp-Param-*` headers are found, by their names in lower case.
pub(crate) trait ParamHeaders {
    fn param(&self, header: &str) -> Field<'_>;
}

/// No headers at all.
impl ParamHeaders for () {
    fn param(&self, _: &str) -> Field<'_> {
        Field::Absent
    }
}

/// How often the sender may. That it sends has been counted; asked here is for what only the body says.
pub(crate) trait Rates {
    /// One more message of the same request.
    fn another(&self) -> Result<(), Refusal>;

    /// A call of this tool.
    fn tool(&self, name: &str) -> Result<(), Refusal>;
}

/// What stands around a message.
#[derive(Clone, Copy)]
pub(crate) struct Head<'a> {
    pub(crate) via: Via,
    /// Where it comes from, behind trusted proxies.
    pub(crate) peer: Option<IpAddr>,
    /// To whom sessions, tasks and kept results belong.
    pub(crate) caller: &'a Caller,
    /// What is known of who it is; absent where nobody is asked.
    pub(crate) identity: Option<&'a Identity>,
    /// Who it counts for.
    pub(crate) share: Share,
    pub(crate) protocol_version: Field<'a>,
    pub(crate) method: Field<'a>,
    pub(crate) name: Field<'a>,
    pub(crate) session_id: Field<'a>,
    pub(crate) params: &'a dyn ParamHeaders,
    /// Absent where there are no limits.
    pub(crate) rates: Option<&'a dyn Rates>,
    /// Whether the client reads an event stream as an answer.
    pub(crate) takes_events: bool,
    /// Whether what needs no waiting is answered where the message is read. Not in a batch, whose answers have a limit
    /// together, and not where others wait behind it on the same line.
    pub(crate) at_once: bool,
}

/// Says what is wrong between a header and the body's value; `None` when they agree.
pub(crate) fn disagreement(header: &str, field: Field<'_>, body: Option<&str>) -> Option<String> {
    let value = match field {
        Field::Absent => return body.map(|_| format!("the header {header} is missing")),
        Field::Repeated => return Some(format!("the header {header} stands more than once")),
        Field::Is(value) => value,
    };
    if is_plain(value) && body.is_some_and(|body| body.as_bytes() == value) {
        return None; // as almost always: there is nothing to decode
    }
    match decode(value) {
        None => Some(format!("the value of {header} is not text, or its base64 is broken")),
        Some(text) if body == Some(text.as_ref()) => None,
        Some(_) => Some(format!("the header {header} and the body do not say the same")),
    }
}

/// The same for an argument of any kind: integers compare as numbers.
pub(crate) fn param_disagreement(param: &HeaderParam, field: Field<'_>, arguments: Option<&Value>) -> Option<String> {
    let mut value = arguments;
    for key in &param.path {
        value = value.and_then(|v| v.get(key));
    }
    match value {
        None | Some(Value::Null) => disagreement(&param.header, field, None),
        Some(Value::String(text)) => disagreement(&param.header, field, Some(text)),
        Some(Value::Number(number)) => {
            let text = field.text().map(str::trim);
            let whole = text.and_then(|t| t.parse::<i64>().ok());
            // As integers where both are, since doubles skip some; else `42.0` is 42.
            let same = match (whole, number.as_i64()) {
                (Some(header), Some(body)) => header == body,
                _ => text.and_then(|t| t.parse::<f64>().ok()) == number.as_f64(),
            };
            if same && text.is_some() {
                return None;
            }
            disagreement(&param.header, field, Some(&number.to_string()))
        }
        Some(other) => disagreement(&param.header, field, Some(&other.to_string())),
    }
}

/// Whether a header value stands for itself.
fn is_plain(value: &[u8]) -> bool {
    value.first() != Some(&b'=') && value.iter().all(u8::is_ascii_graphic)
}

/// The text of a header value: as it stands in visible ASCII, or between `=?base64?` and `?=` in base64.
fn decode(value: &[u8]) -> Option<Cow<'_, str>> {
    let value = value.trim_ascii();
    match value.strip_prefix(b"=?base64?").and_then(|v| v.strip_suffix(b"?=")) {
        Some(encoded) => String::from_utf8(STANDARD.decode(encoded).ok()?).ok().map(Cow::Owned),
        None if value.iter().all(|b| matches!(b, b' '..=b'~' | b'\t')) => {
            std::str::from_utf8(value).ok().map(Cow::Borrowed)
        }
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn names_agree_or_not() {
        for (value, body, agree) in [
            (&b"Hello"[..], "Hello", true),
            (b"  Hello ", "Hello", true),
            (b"=?base64?SGVsbG8=?=", "Hello", true),
            (b"SGVsbG8=", "SGVsbG8=", true),
            (b"=?base64?SGVsbG8=", "=?base64?SGVsbG8=", true),
            (b"=?base64?SGVsbG8?=", "Hello", false),
            (b"=?base64?SGVs!!!bG8=?=", "Hello", false),
            (b"=?BASE64?SGVsbG8=?=", "Hello", false),
            (b"=?base64?/w==?=", "\u{fffd}", false),
            (b"H\xc3\xa9", "H\u{e9}", false),
            (b"=?base64?SMOp?=", "H\u{e9}", true),
            (b"hello", "Hello", false),
        ] {
            assert_eq!(disagreement("Mcp-Name", Field::Is(value), Some(body)).is_none(), agree, "{value:?} {body}");
        }
        assert!(disagreement("Mcp-Name", Field::Absent, Some("x")).is_some());
        assert!(disagreement("Mcp-Name", Field::Repeated, Some("x")).is_some());
        assert!(disagreement("Mcp-Name", Field::Is(b"x"), None).is_some());
        assert!(disagreement("Mcp-Name", Field::Absent, None).is_none());
    }

    #[test]
    fn arguments_agree_by_their_kind() {
        let param = HeaderParam { header: "mcp-param-n".into(), path: vec!["deep".into(), "n".into()] };
        for (value, header, agree) in [
            (json!(42), Some("42"), true),
            (json!(42), Some("42.0"), true),
            (json!(42), Some("43"), false),
            (json!(42), None, false),
            (json!(true), Some("true"), true),
            (json!(true), Some("True"), false),
            (json!("a"), Some("a"), true),
            (json!(null), None, true),
            (json!(null), Some("null"), false),
        ] {
            let arguments = json!({"deep": {"n": value}});
            let field = header.map_or(Field::Absent, |h| Field::Is(h.as_bytes()));
            assert_eq!(param_disagreement(&param, field, Some(&arguments)).is_none(), agree, "{value} {header:?}");
        }
        assert!(param_disagreement(&param, Field::Absent, None).is_none());
    }
}
