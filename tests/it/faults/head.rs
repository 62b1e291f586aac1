//! Group H: the head of a request and its framing. What is wrong with the bytes before anybody asks what they mean.

use serde_json::json;

use super::{
    Row,
    place::{
        Kind::{OwnTools, Program},
        Place, SECRET,
    },
    row,
    wire::{GOOD, Request, Want, until_end},
};
use Want::{End, Refusal, RefusalThenEnd, Text};

const MIB: usize = 1 << 20;

pub(super) const ROWS: &[Row] = &[
    row("H1", "TLS or random bytes on the plain port", &[Program, OwnTools], h1),
    row("H4", "two Host headers", &[Program, OwnTools], h4),
    row("H5", "a target that names another host than Host", &[Program, OwnTools], h5),
    row("H7", "Content-Length and chunked together", &[Program, OwnTools], h7),
    row("H8", "Content-Length that is no one length", &[Program, OwnTools], h8),
    row("H9", "Transfer-Encoding that does not end in chunked", &[Program, OwnTools], h9),
    row("H10", "HTTP/1.0 with Transfer-Encoding", &[Program, OwnTools], h10),
    row("H11", "broken chunks", &[Program, OwnTools], h11),
    row("H13", "bare line feeds", &[Program, OwnTools], h13),
    row("H14", "heads at, over and far over the limit", &[Program, OwnTools], h14),
    row("H15", "100 and 101 headers", &[Program, OwnTools], h15),
    row("H16", "a target of 70,000 bytes", &[Program, OwnTools], h16),
    row("H37", "Connection that names headers we read", &[Program, OwnTools], h37),
    row("H38", "paths that nearly are ours", &[Program, OwnTools], h38),
];

/// The start of a TLS handshake, as curl sends it to a port that speaks HTTP.
fn client_hello() -> Vec<u8> {
    let mut hello = vec![0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3];
    hello.resize(517, 0x2a);
    hello
}

/// Bytes without meaning, always the same ones for a seed.
fn noise(seed: u64) -> Vec<u8> {
    let mut state = seed;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[0]
    };
    let mut bytes: Vec<u8> = (0..512).map(|_| next()).collect();
    bytes[0] |= 0x80; // no method begins like this
    bytes
}

fn h1(place: &Place) {
    place.case_of_bytes("a TLS ClientHello", &client_hello(), End(&[400]));
    for seed in [1, 0x5eed, 0xdead_beef] {
        place.case_of_bytes(&format!("random bytes of seed {seed}"), &noise(seed), End(&[400]));
    }
}

fn h4(place: &Place) {
    for second in ["127.0.0.1", "evil.example"] {
        place.case(second, &Request::forbidden().with(format!("Host: {second}")), RefusalThenEnd(400, -32600));
    }
}

fn h5(place: &Place) {
    for target in ["http://evil.example/mcp", "http://127.0.0.1:1/mcp", "http://localhost/mcp"] {
        let request = Request::forbidden().line(format!("POST {target} HTTP/1.1"));
        place.case(target, &request, RefusalThenEnd(400, -32600));
    }
    let request = Request::good().line("POST http://127.0.0.1/mcp HTTP/1.1");
    place.case("the same host in both", &request, Text(GOOD));
}

fn h7(place: &Place) {
    let smuggled = Request::forbidden().bytes();
    let length = Request::good().body_len();
    let chunked = Request::good().chunked();
    let length_last = chunked.clone().with(format!("Content-Length: {length}"));
    let length_first = chunked.without("transfer-encoding").with(format!("Content-Length: {length}"));
    let length_first = length_first.with("Transfer-Encoding: chunked");
    for (what, request) in [("length first", length_first), ("length last", length_last)] {
        let bytes = [request.bytes(), smuggled.clone()].concat();
        place.noted(what, || {
            let heard = until_end(place.addr, &bytes);
            let one = heard.responses.first().map(|r| (r.status, r.text()));
            let right = heard.responses.len() == 1 && one == Some((200, GOOD.to_owned())) && heard.ended;
            if right { Ok(()) } else { Err(format!("wanted one answer from the chunks, then the end; got {heard:?}")) }
        });
    }
}

fn h8(place: &Place) {
    let length = Request::forbidden().body_len();
    for value in [
        format!("+{length}"),
        format!("0x{length:x}"),
        format!("{length}, {length}"),
        format!("{length} {length}"),
        "-1".to_owned(),
        "99999999999999999999".to_owned(),
        String::new(),
    ] {
        let request = Request::forbidden().with(format!("Content-Length: {value}"));
        place.case(&format!("Content-Length {value:?}"), &request, End(&[400]));
    }
    let two = Request::forbidden().with(format!("Content-Length: {length}"));
    place.case("two lengths", &two.with(format!("Content-Length: {}", length + 1)), End(&[400]));
}

fn h9(place: &Place) {
    for value in
        ["chunked, identity", "xchunked", "identity", "chunked\r\nTransfer-Encoding: gzip", "chunked, chunked;q=1"]
    {
        let request = Request::forbidden().chunked().but("Transfer-Encoding", value);
        place.case(value, &request, End(&[400]));
    }
}

fn h10(place: &Place) {
    place.case("chunked", &Request::forbidden().chunked().line("POST /mcp HTTP/1.0"), End(&[400]));
}

fn h11(place: &Place) {
    let whole = Request::forbidden().chunked();
    let mut body = Request::forbidden().bytes();
    let body = body.split_off(body.len() - Request::forbidden().body_len());
    let text = String::from_utf8(body).expect("JSON is text");
    let size = format!("{:x}", text.len());
    for (what, chunks) in [
        ("a size of 17 digits", format!("10000000000000000\r\n{text}\r\n0\r\n\r\n")),
        ("a size of -1", format!("-1\r\n{text}\r\n0\r\n\r\n")),
        ("a size of 0x5", format!("0x{size}\r\n{text}\r\n0\r\n\r\n")),
        ("no line end after the data", format!("{size}\r\n{text}0\r\n\r\n")),
        ("other bytes after the data", format!("{size}\r\n{text}XX0\r\n\r\n")),
        ("an extension of 17 KiB", format!("{size};{}\r\n{text}\r\n0\r\n\r\n", "e".repeat(17 << 10))),
        ("trailers of 17 KiB", format!("{size}\r\n{text}\r\n0\r\nX-Long: {}\r\n\r\n", "t".repeat(17 << 10))),
    ] {
        place.case(what, &whole.clone().body(chunks), End(&[0, 400]));
    }
}

fn h13(place: &Place) {
    let good = Request::good().with("Connection: close");
    let text = String::from_utf8(good.bytes()).expect("it is text");
    let bare = text.replace("\r\n", "\n");
    let mixed = text.replacen("\r\n", "\n", 1);
    let hidden = text.replacen("\r\n", "\r\nX-Hidden: a\nGET /health HTTP/1.1\n", 1);
    for (what, bytes) in [("everywhere", bare), ("after the first line", mixed), ("with a line in between", hidden)] {
        place.noted(what, || {
            let heard = until_end(place.addr, bytes.as_bytes());
            let [response] = &heard.responses[..] else { return Err(format!("not one answer: {heard:?}")) };
            let right = response.status == 400 || (response.status == 200 && response.text() == GOOD);
            if right && heard.ended { Ok(()) } else { Err(format!("{heard:?}")) }
        });
    }
}

fn h14(place: &Place) {
    const LIMIT: usize = 16 << 10;
    place.case("a head of 16 KiB", &Request::good().padded_to(LIMIT), Text(GOOD));
    // The request line belongs to the head; a byte over the limit in headers alone is over it in any reading.
    let line = "POST /mcp HTTP/1.1\r\n".len() + "\r\n".len();
    place.case("16 KiB + 1", &Request::forbidden().padded_to(LIMIT + line + 1), RefusalThenEnd(431, -32600));
    place.case("one header of 1 MiB", &Request::forbidden().padded_to(MIB), End(&[431]));
    place.case("100 times the limit", &Request::forbidden().padded_to(100 * LIMIT), End(&[431]));
}

fn h15(place: &Place) {
    let with = |request: Request, count: usize| {
        let own = request.bytes().windows(2).filter(|w| w == b"\r\n").count() - 2; // less the request line and the end
        (own..count).fold(request, |request, n| request.with(format!("X-{n}: 1")))
    };
    place.case("100", &with(Request::good(), 100), Text(GOOD));
    place.case("101", &with(Request::forbidden(), 101), End(&[431]));
    place.case("1000", &with(Request::forbidden(), 1000), End(&[431]));
}

fn h16(place: &Place) {
    for bytes in [9_000, 70_000] {
        let target = format!("/mcp?{}", "q".repeat(bytes - 5));
        let request = Request::forbidden().line(format!("POST {target} HTTP/1.1"));
        place.case(&format!("{bytes} bytes"), &request, End(&[414]));
    }
}

fn h37(place: &Place) {
    place.case("keep-alive, Host", &Request::good().with("Connection: keep-alive, Host"), Text(GOOD));
    let secret = Request::good().with(format!("Authorization: Bearer {SECRET}")).with("Connection: Authorization");
    place.case("Authorization", &secret, Text(GOOD));
    let mut session = place.session();
    let list = json!({ "jsonrpc": "2.0", "id": 1, "method": "ping" });
    let hidden = Request::post(list.to_string()).with(format!("Mcp-Session-Id: {}", session.id));
    place.case("Mcp-Session-Id", &hidden.with("Connection: Mcp-Session-Id"), Want::Served);
    assert_eq!(session.request(2, "ping", json!({})).status, 200);
    session.end();
}

fn h38(place: &Place) {
    for path in
        ["//mcp", "/mcp/", "/MCP", "/mcp/../admin", "/%6dcp", "/mcp;x", "/", "/mcp/../mcp", "/./mcp", "/mcp%00", "*"]
    {
        place.case(path, &Request::forbidden().line(format!("POST {path} HTTP/1.1")), Refusal(404, -32600));
    }
    for path in ["/admin", "/metrics", "/mcp/../metrics", "/mcp/..%2fmetrics", "//metrics", "/health/../metrics"] {
        place.case(path, &Request::bare(&format!("GET {path} HTTP/1.1")), Refusal(404, -32600));
    }
    place.case("/mcp?x=1", &Request::good().line("POST /mcp?x=1 HTTP/1.1"), Text(GOOD));
}
