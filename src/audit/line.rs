//! One event as one line of JSON. What callers send stands in it escaped, so that no byte of theirs ends a line, moves
//! a terminal's cursor or turns text around; and cut, so that a line has a largest size. Pure: values in, bytes out.

use std::{
    io::{self, Write},
    net::IpAddr,
    time::{Duration, SystemTime},
};

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::Arguments;

/// The largest line, with its end.
pub(super) const LINE_BYTES_MAX: usize = 8 << 10;
/// The largest text of one member, escaped. There are nine such members at most, and all else of a line but the
/// arguments is less than 0.5 KiB, so that a whole line is at most 9 x 280 + 512 + 5,120 = 8,152 bytes.
const TEXT_BYTES_MAX: usize = 280;
/// The largest arguments, escaped.
const ARGUMENTS_BYTES_MAX: usize = 5 << 10;
/// Stands at the end of a text that was cut.
const CUT: &str = "…";

/// What is known when something begins. What is empty or absent has no member in the line.
#[derive(Clone, Copy, Debug, Default)]
pub struct Head<'a> {
    /// Who calls: the principal, never a token.
    pub caller: &'a str,
    /// The id of the API key that was shown.
    pub key: Option<&'a str>,
    /// Where the request comes from.
    pub address: Option<IpAddr>,
    /// The session's id. The line has a hash of it, since the id itself opens the session.
    pub session: Option<&'a str>,
    /// The id that the client gave its request, by which its own log knows it.
    pub request_id: Option<RequestId<'a>>,
    /// The method.
    pub method: &'a str,
    /// The tool, when it is a call of one.
    pub tool: Option<&'a str>,
    /// The name or URI of something else that is asked for.
    pub name: Option<&'a str>,
    /// What else there is to say: of a refusal, what exactly was wrong.
    pub detail: &'a str,
    /// The tool's arguments.
    pub arguments: Option<&'a Value>,
}

/// The id of a request in JSON-RPC. A number and a text of its digits are two ids, and differ in the line too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestId<'a> {
    /// A number.
    Number(i64),
    /// A text, as its JSON with the quotes.
    Text(&'a str),
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome<'a> {
    /// A result.
    Ok,
    /// A result in which the tool says that it failed.
    ToolError,
    /// A JSON-RPC error with this code.
    Error(i64),
    /// It was not let in, for this reason.
    Refused(&'a str),
    /// Nobody waited for the end.
    Cancelled,
}

/// A line that lacks its end: what came of it.
pub(super) fn begin(node: &str, event: &str, at: SystemTime, head: &Head<'_>, arguments: Arguments) -> Vec<u8> {
    let mut line = Vec::with_capacity(384);
    line.extend_from_slice(b"{\"time\":\"");
    // Writing into a Vec does not fail. A clock outside the years 1970 to 9999 would be one that is not set.
    let at = at.clamp(SystemTime::UNIX_EPOCH, SystemTime::UNIX_EPOCH + Duration::from_secs(253_402_300_799));
    let _ = write!(line, "{}", humantime::format_rfc3339_millis(at));
    line.push(b'"');
    text(&mut line, "node", node);
    text(&mut line, "event", event);
    text(&mut line, "caller", head.caller);
    text(&mut line, "key", head.key.unwrap_or_default());
    if let Some(address) = head.address {
        let _ = write!(line, ",\"address\":\"{address}\"");
    }
    if let Some(session) = head.session {
        line.extend_from_slice(b",\"session_sha256\":");
        push_digest(&mut line, &Sha256::digest(session), 16);
    }
    push_request_id(&mut line, head.request_id);
    text(&mut line, "method", head.method);
    match (head.tool, head.name) {
        (Some(tool), _) => text(&mut line, "tool", tool),
        (None, name) => text(&mut line, "name", name.unwrap_or_default()),
    }
    text(&mut line, "detail", head.detail);
    match (arguments, head.arguments) {
        (Arguments::None, _) | (_, None) => {}
        (Arguments::Hash, Some(value)) => push_arguments_digest(&mut line, value),
        (Arguments::Full, Some(value)) => push_arguments(&mut line, value),
    }
    line
}

/// Ends a line.
pub(super) fn end(line: &mut Vec<u8>, outcome: Outcome<'_>, took: Option<Duration>) {
    let name = match outcome {
        Outcome::Ok => "ok",
        Outcome::ToolError => "tool_error",
        Outcome::Error(_) => "error",
        Outcome::Refused(_) => "refused",
        Outcome::Cancelled => "cancelled",
    };
    text(line, "outcome", name);
    match outcome {
        Outcome::Error(code) => {
            let _ = write!(line, ",\"code\":{code}");
        }
        Outcome::Refused(reason) => text(line, "reason", reason),
        Outcome::Ok | Outcome::ToolError | Outcome::Cancelled => {}
    }
    if let Some(took) = took {
        let _ = write!(line, ",\"duration_us\":{}", took.as_micros());
    }
    line.extend_from_slice(b"}\n");
    debug_assert!(line.len() <= LINE_BYTES_MAX, "{} bytes", line.len());
}

/// A whole line of something that is no call.
pub(super) fn note(node: &str, event: &str, at: SystemTime, detail: &str) -> Vec<u8> {
    let mut line = begin(node, event, at, &Head { detail, ..Head::default() }, Arguments::None);
    line.extend_from_slice(b"}\n");
    line
}

fn push_request_id(line: &mut Vec<u8>, id: Option<RequestId<'_>>) {
    let Some(id) = id else { return };
    line.extend_from_slice(b",\"request_id\":");
    match id {
        RequestId::Number(number) => {
            let _ = write!(line, "{number}");
        }
        // Escaped anew, since a client may have left as it is what no line is to have. It was read before, so it is JSON.
        RequestId::Text(json) => {
            push_text(line, &serde_json::from_str::<String>(json).unwrap_or_default(), TEXT_BYTES_MAX)
        }
    }
}

fn text(line: &mut Vec<u8>, name: &str, value: &str) {
    if value.is_empty() {
        return;
    }
    line.extend_from_slice(b",\"");
    line.extend_from_slice(name.as_bytes());
    line.extend_from_slice(b"\":");
    push_text(line, value, TEXT_BYTES_MAX);
}

/// A JSON string of at most `bytes_max`, with its quotes.
fn push_text(line: &mut Vec<u8>, text: &str, bytes_max: usize) {
    let full = line.len() + bytes_max - CUT.len() - 1;
    line.push(b'"');
    for c in text.chars() {
        let before = line.len();
        push_char(line, c);
        if line.len() > full {
            line.truncate(before);
            line.extend_from_slice(CUT.as_bytes());
            break;
        }
    }
    line.push(b'"');
}

fn push_char(line: &mut Vec<u8>, c: char) {
    match c {
        '"' | '\\' => line.extend_from_slice(&[b'\\', c as u8]),
        ' '..='~' => line.push(c as u8),
        c if changes_display(c) => {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(line, "\\u{unit:04x}");
            }
        }
        c => line.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
    }
}

/// Whether a character does something else than to be shown: ends a line for some reader, steers a terminal, turns the
/// direction of text, or is not seen.
fn changes_display(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}')
}

fn push_digest(line: &mut Vec<u8>, digest: &[u8], bytes: usize) {
    line.push(b'"');
    for byte in &digest[..bytes] {
        let _ = write!(line, "{byte:02x}");
    }
    line.push(b'"');
}

/// The hash is of compact JSON with the members of objects in the order of their names, so that whoever has the
/// arguments can compare.
fn push_arguments_digest(line: &mut Vec<u8>, value: &Value) {
    struct Into(Sha256);
    impl Write for Into {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.update(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut digest = Into(Sha256::new());
    let written = serde_json::to_writer(&mut digest, value);
    debug_assert!(written.is_ok(), "a value has a JSON form, and a digest takes it");
    line.extend_from_slice(b",\"arguments_sha256\":");
    push_digest(line, &digest.0.finalize(), 32);
}

/// As they are when they fit; else as the text that they begin with, and the hash of the whole.
fn push_arguments(line: &mut Vec<u8>, value: &Value) {
    /// Takes so many bytes and no more, so that arguments of a mebibyte are not written out to be cut.
    struct Room(Vec<u8>);
    impl Write for Room {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let fits = bytes.len().min(ARGUMENTS_BYTES_MAX - self.0.len());
            self.0.extend_from_slice(&bytes[..fits]);
            Ok(fits) // 0 is an error to who writes all
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let mut json = Room(Vec::new());
    let whole = serde_json::to_writer(&mut json, value).is_ok();
    let json = String::from_utf8_lossy(&json.0);
    let start = line.len();
    line.extend_from_slice(b",\"arguments\":");
    let value_at = line.len();
    // What changes the display can only stand within the strings of JSON text, so it can be escaped there.
    for c in json.chars().take_while(|_| whole) {
        if changes_display(c) {
            push_char(line, c)
        } else {
            line.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes())
        }
        if line.len() - value_at > ARGUMENTS_BYTES_MAX - 128 {
            break;
        }
    }
    if !whole || line.len() - value_at > ARGUMENTS_BYTES_MAX - 128 {
        line.truncate(start);
        line.extend_from_slice(b",\"arguments_cut\":");
        push_text(line, &json, ARGUMENTS_BYTES_MAX - 128);
        push_arguments_digest(line, value);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn line_of(head: &Head<'_>, arguments: Arguments, outcome: Outcome<'_>) -> String {
        let at = SystemTime::UNIX_EPOCH + Duration::from_millis(1_700_000_000_123);
        let mut line = begin("node-1", "call", at, head, arguments);
        end(&mut line, outcome, Some(Duration::from_micros(250)));
        String::from_utf8(line).expect("text")
    }

    #[test]
    fn a_line_says_who_what_when_outcome_duration_and_node() {
        let arguments = json!({"b": 1, "a": "x"});
        let head = Head {
            caller: "ann",
            address: Some("192.0.2.1".parse().expect("an address")),
            session: Some("secret session id"),
            request_id: Some(RequestId::Number(-7)),
            method: "tools/call",
            tool: Some("echo"),
            arguments: Some(&arguments),
            ..Head::default()
        };
        let line = line_of(&head, Arguments::Hash, Outcome::Error(-32602));
        assert_eq!(
            line,
            concat!(
                r#"{"time":"2023-11-14T22:13:20.123Z","node":"node-1","event":"call","caller":"ann","#,
                r#""address":"192.0.2.1","session_sha256":"15c0dd102633a49afcf36ad4a03c26f6","request_id":-7,"#,
                r#""method":"tools/call","#,
                r#""tool":"echo","arguments_sha256":"cdab067e9f3beb32d1252cfd63e492592fecbf591b0d08cadb24bb17f3864246","outcome":"error","code":-32602,"duration_us":250}"#,
                "\n"
            )
        );
    }

    #[test]
    fn arguments_are_a_hash_or_all_or_nothing() {
        let arguments = json!({"secret": "hunter2"});
        let head = Head { arguments: Some(&arguments), ..Head::default() };
        let hash = line_of(&head, Arguments::Hash, Outcome::Ok);
        assert!(hash.contains("arguments_sha256") && !hash.contains("hunter2"), "{hash}");
        let none = line_of(&head, Arguments::None, Outcome::Ok);
        assert!(!none.contains("arguments"), "{none}");
        let full = line_of(&head, Arguments::Full, Outcome::Ok);
        assert_eq!(serde_json::from_str::<Value>(&full).expect("JSON")["arguments"], arguments);
        let long = json!({"text": "x\u{2028}".repeat(1 << 19)});
        let cut = line_of(&Head { arguments: Some(&long), ..head }, Arguments::Full, Outcome::Ok);
        let cut: Value = serde_json::from_str(&cut).expect("JSON");
        assert!(
            cut["arguments_cut"]
                .as_str()
                .is_some_and(|text| text.starts_with("{\"text\":\"x\u{2028}") && text.ends_with('…'))
        );
        assert_eq!(cut["arguments_sha256"].as_str().map(str::len), Some(64));
        assert_eq!(cut.get("arguments"), None);
    }

    #[test]
    fn a_request_id_is_the_clients_in_kind_and_value_and_cut_when_it_is_long() {
        let member = |id: RequestId<'_>| {
            let line = line_of(&Head { request_id: Some(id), ..Head::default() }, Arguments::None, Outcome::Ok);
            assert!(line.len() < 500 && !line.trim_end().chars().any(changes_display), "{line:?}");
            serde_json::from_str::<Value>(&line).expect("JSON")["request_id"].clone()
        };
        assert_eq!(member(RequestId::Number(i64::MIN)), json!(i64::MIN));
        for id in ["7", "", "3f2a-é", "a\"b\\c\n\u{2028}\u{202e}\u{1b}[2J\u{0}", "\",\"event\":\"forged\",\"x\":\""] {
            let plain = serde_json::to_string(id).expect("JSON");
            let escaped: String = id.encode_utf16().map(|unit| format!("\\u{unit:04x}")).collect();
            for json in [plain, format!("\"{escaped}\"")] {
                assert_eq!(member(RequestId::Text(&json)), id, "{json}");
            }
        }
        let long = member(RequestId::Text(&format!("\"{}\"", "x\u{2028}".repeat(256))));
        assert!(long.as_str().is_some_and(|id| id.starts_with("x\u{2028}x") && id.ends_with(CUT)), "{long}");
    }

    #[test]
    fn what_callers_send_stays_within_its_line() {
        let nasty =
            "a\r\n{\"event\":\"forged\"}\u{1b}[2J\u{7f}\u{9b}31m\u{85}\u{2028}\u{2029}\u{202e}\u{feff}\u{e0041}\\\"é";
        let arguments = json!({ nasty: [nasty] });
        let head = Head {
            caller: nasty,
            session: Some(nasty),
            method: nasty,
            tool: Some(nasty),
            arguments: Some(&arguments),
            ..Head::default()
        };
        let line = line_of(&head, Arguments::Full, Outcome::Refused(nasty));
        assert_eq!(line.matches('\n').count(), 1);
        assert!(!line.trim_end().chars().any(changes_display), "{line:?}");
        assert!(line.contains('é'), "letters stay as they are");
        let read: Value = serde_json::from_str(&line).expect("JSON");
        for member in ["caller", "method", "tool", "reason"] {
            assert_eq!(read[member], nasty, "{member}");
        }
        assert_eq!(read["arguments"], arguments);
        assert_eq!(read["event"], "call");
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(100) })]

        /// Whatever is sent, and however much: one line, of JSON, not too long, that shows what it is.
        #[test]
        fn every_line_is_one_line(
            texts in prop::collection::vec(("\\PC{0,20}|[\\x00-\\x1f\u{2028}é\"\\\\]{0,20}", 0usize..100_000), 7),
            full in any::<bool>(), code in any::<i64>(),
        ) {
            let texts: Vec<String> =
                texts.iter().map(|(text, bytes)| text.repeat(bytes / text.len().max(1))).collect();
            let arguments = json!({ texts[0].clone(): [texts[1]] });
            let id = serde_json::to_string(&texts[1]).expect("JSON");
            let head = Head {
                caller: &texts[2],
                key: Some(&texts[2]),
                detail: &texts[3],
                address: Some("1111:2222:3333:4444:5555:6666:7777:8888".parse().expect("an address")),
                session: Some(&texts[3]),
                request_id: Some(if full { RequestId::Text(&id) } else { RequestId::Number(code) }),
                method: &texts[4],
                tool: Some(&texts[5]),
                name: Some(&texts[5]),
                arguments: Some(&arguments),
            };
            let policy = if full { Arguments::Full } else { Arguments::Hash };
            for outcome in [Outcome::Refused(&texts[6]), Outcome::Error(code)] {
                let mut line = begin(&texts[6], &texts[6], SystemTime::now(), &head, policy);
                end(&mut line, outcome, Some(Duration::MAX));
                prop_assert!(line.len() <= LINE_BYTES_MAX, "{} bytes", line.len());
                let line = String::from_utf8(line).expect("text");
                prop_assert!(!line.strip_suffix('\n').expect("an end").chars().any(changes_display));
                prop_assert!(serde_json::from_str::<Value>(&line).is_ok(), "{}", line);
            }
        }
    }
}
