//! Group J, first half: what is JSON, what is a message, and what is an id. Judged before anybody looks at headers or
//! sessions, so most of it is sent in both eras.

use serde_json::{Value, json};

use super::{
    Row, limits,
    place::{
        Kind::{OwnTools, Program},
        Place,
    },
    row,
    wire::{FORBIDDEN, GOOD, Request, Want, echo, echo_text, first, message_of, one},
};
use Want::{Accepted, Nameless, Refusal, Served, Text};

pub(super) const ROWS: &[Row] = &[
    row("J2", "not JSON at all", &[Program, OwnTools], j2),
    row("J3", "not UTF-8", &[Program, OwnTools], j3),
    row("J4", "a byte order mark", &[Program, OwnTools], j4),
    row("J5", "lone surrogates", &[Program, OwnTools], j5),
    row("J6", "what other parsers let through", &[Program, OwnTools], j6),
    row("J7", "numbers out of range", &[Program, OwnTools], j7),
    row("J8", "nesting at, over and far over the limit", &[Program, OwnTools], j8),
    row("J9", "a message's members twice", &[Program, OwnTools], j9),
    row("J10", "params' members twice", &[Program, OwnTools], j10),
    row("J13", "batches", &[Program, OwnTools], j13),
    row("J14", "another jsonrpc", &[Program, OwnTools], j14),
    row("J15", "ids of other types, and none", &[Program, OwnTools], j15),
    row("J16", "large integers as ids", &[Program, OwnTools], j16),
    row("J17", "ids out of range", &[Program, OwnTools], j17),
    row("J18", "integers written as fractions", &[Program, OwnTools], j18),
    row("J19", "ids at, over and far over the limit", &[Program, OwnTools], j19),
    row("J20", "ids that look like something else", &[Program, OwnTools], j20),
    row("J48", "arguments at, over and far over the limits", &[Program, OwnTools], limits::j48),
];

/// The JSON of a call that must not run, with its message replaced by this JSON.
fn with_message(json: &str) -> String {
    echo_text("1", &format!(r#"{{"message":{json}}}"#))
}

fn j2(place: &Place) {
    for body in ["", " ", "{", "{]", "}", "\0", "<!DOCTYPE html><html></html>", "jsonrpc=2.0&id=1", "\"", "tru", "-"] {
        place.in_both_eras(&format!("{body:?}"), body, Nameless(400, -32700));
    }
    place.in_both_eras("1 MiB of [", "[".repeat(1 << 20), Nameless(400, -32700));
    place.in_both_eras("1 MiB of {\"a\":", r#"{"a":"#.repeat((1 << 20) / 5), Nameless(400, -32700));
}

fn j3(place: &Place) {
    let text = echo(FORBIDDEN).to_string();
    let broken = |bytes: &[u8]| {
        let at = text.find(FORBIDDEN).expect("it is there");
        [&text.as_bytes()[..at], bytes, &text.as_bytes()[at..]].concat()
    };
    for (what, bytes) in [
        ("0xff", &b"\xff"[..]),
        ("a continuation alone", b"\x80"),
        ("an over-long slash", b"\xc0\xaf"),
        ("an over-long nul", b"\xe0\x80\x80"),
        ("a surrogate", b"\xed\xa0\x80"),
        ("beyond Unicode", b"\xf4\x90\x80\x80"),
        ("cut short", b"\xe2\x82"),
    ] {
        place.in_both_eras(what, broken(bytes), Refusal(400, -32700));
    }
    let wide: Vec<u8> = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    place.in_both_eras("UTF-16", wide.clone(), Nameless(400, -32700));
    place.in_both_eras("UTF-16 with a mark", [b"\xff\xfe".to_vec(), wide].concat(), Nameless(400, -32700));
}

fn j4(place: &Place) {
    let body = [b"\xEF\xBB\xBF".to_vec(), echo(GOOD).to_string().into_bytes()].concat();
    place.case("before the object", &Request::good().body(body.clone()), Text(GOOD));
    place.in_both_eras("two of them", [b"\xEF\xBB\xBF".to_vec(), body].concat(), Nameless(400, -32700));
}

fn j5(place: &Place) {
    for escape in [r"\ud800", r"\udc00", r"\udc00\ud800", r"\ud800\u0041", r"\ud800\ud800", r"\ud800x", r"\ud83d\u"] {
        place.in_both_eras(escape, with_message(&format!("\"{escape}\"")), Refusal(400, -32700));
        place.in_both_eras(
            &format!("{escape} as a key"),
            with_message(&format!("{{\"{escape}\":1}}")),
            Refusal(400, -32700),
        );
    }
    place.case("a pair", &Request::good().body(with_message(r#""\ud83d\ude00""#)), Text("\u{1f600}"));
}

fn j6(place: &Place) {
    for value in [
        "NaN",
        "Infinity",
        "-Infinity",
        "01",
        "-01",
        "+1",
        ".5",
        "1.",
        "1.e1",
        "1e",
        "0x1",
        "1_000",
        "[1,]",
        "{\"a\":1,}",
        "1//x",
        "/*x*/1",
        "#x\n1",
        "'x'",
        "`x`",
        "x",
        "True",
        "None",
        "undefined",
        "\"\t\"",
        "\"\n\"",
        r#""\x41""#,
        "1 2",
        "",
    ] {
        place.in_both_eras(value, with_message(value), Refusal(400, -32700));
    }
    let text = echo(FORBIDDEN).to_string();
    for end in [" {}", ",", "}", "1", "\0", "//"] {
        place.in_both_eras(&format!("{end:?} after it"), format!("{text}{end}"), Refusal(400, -32700));
    }
    place.in_both_eras("an unquoted key", text.replacen("\"id\"", "id", 1), Refusal(400, -32700));
}

fn j7(place: &Place) {
    let digits = "9".repeat(400);
    for number in ["1e400", "-1e400", "1E+400", &digits, &format!("-{digits}"), &format!("{digits}.5")] {
        place.in_both_eras(&format!("{number:.12}"), with_message(number), Refusal(400, -32700));
    }
    if place.kind != OwnTools {
        return;
    }
    for (number, kept) in [
        ("1e-400", json!(0.0)),
        ("1e308", json!(1e308)),
        ("18446744073709551615", json!(u64::MAX)),
        ("-9223372036854775808", json!(i64::MIN)),
        ("0.1", json!(0.1)),
    ] {
        place.noted(number, || {
            let call = json!({ "name": "show", "arguments": { "n": "N" } });
            let request = Request::of(&crate::support::modern(1, "tools/call", call));
            let body = request.body(shown(number));
            let heard = one(place.addr, &body.bytes());
            let response = first(&heard)?;
            let shown: Value = serde_json::from_str(&response.text()).map_err(|e| format!("{e}: {response:?}"))?;
            if shown["n"] == kept { Ok(()) } else { Err(format!("the tool got {shown}")) }
        });
    }
}

/// A call of the tool that returns its arguments, with this JSON in them.
pub(super) fn shown(json: &str) -> String {
    let call = json!({ "name": "show", "arguments": { "n": "N" } });
    crate::support::modern(1, "tools/call", call).to_string().replace("\"N\"", json)
}

fn j8(place: &Place) {
    let nested = |depth: usize| with_message(&format!("{}{}", "[".repeat(depth), "]".repeat(depth)));
    // The arguments themselves are the first level.
    place.case("128", &Request::good().body(nested(127)), Served);
    place.in_both_eras("129", nested(128), Refusal(400, -32700));
    place.in_both_eras("12,800", nested(12_800), Refusal(400, -32700));
    place.in_both_eras("100,000", nested(100_000), Refusal(400, -32700));
    let objects = |depth: usize| with_message(&format!("{}1{}", "{\"a\":".repeat(depth), "}".repeat(depth)));
    place.in_both_eras("129 objects", objects(128), Refusal(400, -32700));
    // Nor where nobody reads it.
    for (key, code) in [("x", -32700), ("result", -32700), ("id", -32600)] {
        let deep = format!("{}{}", "[".repeat(50_000), "]".repeat(50_000));
        let body = format!(r#"{{"jsonrpc":"2.0","method":"tools/list","{key}":{deep}}}"#);
        place.in_both_eras(&format!("100,000 brackets in {key:?}"), body, Refusal(400, code));
    }
}

fn j9(place: &Place) {
    let text = echo(FORBIDDEN).to_string();
    let twice = |member: &str| text.replacen('{', &format!("{{{member},"), 1);
    for member in [
        r#""method":"tools/list""#,
        r#""method":"tools/call""#,
        r#""id":1"#,
        r#""id":2"#,
        r#""params":{}"#,
        r#""params":null"#,
        r#""\u006dethod":"tools/list""#,
        r#""jsonrpc":"1.0""#,
        r#""jsonrpc":"2.0""#,
    ] {
        place.in_both_eras(member, twice(member), Refusal(400, -32600));
    }
}

fn j10(place: &Place) {
    let text = echo(FORBIDDEN).to_string();
    let version = r#""io.modelcontextprotocol/protocolVersion":"#;
    for (what, at, member) in [
        ("params.name", r#""params":{"#, r#""name":"burn","#),
        ("params.name, escaped", r#""params":{"#, r#""n\u0061me":"burn","#),
        ("params._meta", r#""params":{"#, r#""_meta":{},"#),
        ("params.arguments", r#""params":{"#, r#""arguments":{},"#),
        ("a key of _meta", r#""_meta":{"#, &format!(r#"{version}"2025-11-25","#)),
        ("a key of the arguments", r#""arguments":{"#, r#""message":"other","#),
        ("a key of _meta that nobody reads", r#""_meta":{"#, r#""x":1,"x":2,"#),
    ] {
        assert!(text.contains(at), "{at}");
        place.in_both_eras(what, text.replacen(at, &format!("{at}{member}"), 1), Refusal(400, -32600));
    }
}

fn j13(place: &Place) {
    let one = echo(FORBIDDEN).to_string();
    place.in_both_eras("none in it", "[]", Nameless(400, -32600));
    place.in_both_eras("one in it", format!("[{one}]"), Nameless(400, -32600));
    let small = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;
    place.in_both_eras("10,000 in it", format!("[{}]", vec![small; 10_000].join(",")), Nameless(400, -32600));
    for scalar in ["1", "\"x\"", "null", "true"] {
        place.in_both_eras(scalar, scalar, Nameless(400, -32600));
    }
}

fn j14(place: &Place) {
    let text = echo(FORBIDDEN).to_string();
    for version in [
        "",
        r#""jsonrpc":"1.0","#,
        r#""jsonrpc":2.0,"#,
        r#""jsonrpc":2,"#,
        r#""jsonrpc":null,"#,
        r#""jsonrpc":"2.0 ","#,
    ] {
        let body = text.replacen(r#","jsonrpc":"2.0""#, "", 1).replacen('{', &format!("{{{version}"), 1);
        assert!(!body.contains(r#""2.0""#), "{body}");
        place.in_both_eras(if version.is_empty() { "none" } else { version }, body, Refusal(400, -32600));
    }
}

fn j15(place: &Place) {
    let arguments = json!({ "message": FORBIDDEN }).to_string();
    for id in ["null", "true", "{}", "[]", "[1]", "1.5", "-0.1"] {
        place.in_both_eras(id, echo_text(id, &arguments), Nameless(400, -32600));
    }
    let none = echo_text("ID", &arguments).replacen(r#""id":ID,"#, "", 1);
    place.in_both_eras("none", none, Accepted);
}

fn j16(place: &Place) {
    for id in ["9007199254740993", "9223372036854775807", "-9223372036854775808", "0", "-1"] {
        echoed(place, id, id);
    }
}

/// Sends an id and looks for it, as text, in the answer.
fn echoed(place: &Place, id: &str, wanted: &str) {
    place.noted(&format!("id {id:.40}"), || {
        let body = echo_text(id, &json!({ "message": GOOD }).to_string());
        let heard = one(place.addr, &Request::good().body(body).bytes());
        let response = first(&heard)?;
        let text = String::from_utf8_lossy(&response.body);
        let right = response.text() == GOOD && text.contains(&format!("\"id\":{wanted},"));
        if right { Ok(()) } else { Err(format!("{} {text:.300}", response.status)) }
    });
}

fn j17(place: &Place) {
    let arguments = json!({ "message": FORBIDDEN }).to_string();
    for id in ["9223372036854775808", "1e30", "-9223372036854775809", "1e19", "123456789012345678901234567890"] {
        place.in_both_eras(id, echo_text(id, &arguments), Nameless(400, -32600));
    }
}

fn j18(place: &Place) {
    for (id, integer) in [("1.0", "1"), ("1e2", "100"), ("1E+2", "100"), ("-3.0", "-3"), ("10e-1", "1")] {
        echoed(place, id, integer);
    }
}

fn j19(place: &Place) {
    const LIMIT: usize = 1024;
    let id = |chars: usize| format!("\"{}\"", "i".repeat(chars));
    echoed(place, &id(LIMIT), &id(LIMIT));
    echoed(place, "\"\"", "\"\"");
    let arguments = json!({ "message": FORBIDDEN }).to_string();
    let most = (1 << 20) - echo_text("\"\"", &arguments).len();
    // Quotes included or not, three more are over the limit.
    for (what, chars) in [("1 KiB + 3", LIMIT + 3), ("100 KiB", 100 * LIMIT), ("1 MiB, with its call", most)] {
        place.in_both_eras(what, echo_text(&id(chars), &arguments), Nameless(400, -32600));
    }
}

fn j20(place: &Place) {
    for id in [
        "line\nbreak",
        "\r\n\r\n",
        "\u{2028}\u{2029}",
        "\u{1f600}",
        "\"quoted\"",
        "</script>",
        "data: x\n\ndata: y",
        "\0",
        "\u{feff}",
        "é",
        "\\",
        "id: 1\nevent: x",
    ] {
        let request = Request::good().body(echo_text(&json!(id).to_string(), &json!({ "message": GOOD }).to_string()));
        for accept in ["application/json", "text/event-stream"] {
            place.noted(&format!("{id:?} in {accept}"), || {
                let heard = one(place.addr, &request.clone().but("Accept", accept).bytes());
                let response = first(&heard)?;
                let message = message_of(response)?; // an event is one line, or support says so
                if message["id"] == id { Ok(()) } else { Err(format!("{message}")) }
            });
        }
    }
}
