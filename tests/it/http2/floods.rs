//! Floods of frames: each ends the connection that it comes on, costs little memory, and no other connection hears of it.

use std::{fs, net::SocketAddr, thread};

use super::raw::{self, END_HEADERS, END_STREAM, Raw, call_headers, frame, kind};
use crate::support::{Process, call, eventually, get};

/// What an attack may cost in memory.
const MEMORY_MAX: u64 = 16 << 20;

/// One that ends a connection for nothing else within the time that a test waits: not for idling, and not for a ping.
fn process() -> Process {
    Process::start(&["--set", "limits.idle_timeout_ms=3600000", "--set", "http2.ping_interval_s=0"])
}

fn resident_bytes(process: &Process) -> u64 {
    let statm = fs::read_to_string(format!("/proc/{}/statm", process.pid())).expect("it runs");
    let pages: u64 = statm.split(' ').nth(1).and_then(|n| n.parse().ok()).expect("a number");
    pages * rustix::param::page_size() as u64
}

fn counted(process: &Process, series: &str) -> f64 {
    let text = String::from_utf8(get(process.admin_addr, "/metrics").body).expect("UTF-8");
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("{series} is not in\n{text}")).parse().expect("a number")
}

/// Sends `flood` after `before` until the server ends the connection, reading what it says. `parts` says how often at
/// the most.
fn attack(addr: SocketAddr, before: &[u8], parts: u32, flood: impl Fn(u32) -> Vec<u8>) {
    let mut raw = Raw::connect(addr, &[]);
    raw.send(before);
    let mut reader = raw.reader();
    let reading = thread::spawn(move || reader.ends());
    for part in 0..parts {
        if !raw.offer(&flood(part)) {
            break;
        }
    }
    reading.join().expect("the server ends it");
}

/// The same, and what must hold beside it.
fn survives(name: &str, before: &[u8], parts: u32, flood: impl Fn(u32) -> Vec<u8> + Sync) {
    let process = process();
    assert_eq!(call(process.addr, "no_such_tool", serde_json::json!({})).status, 200);
    let at_first = resident_bytes(&process);
    thread::scope(|scope| {
        let attack = scope.spawn(|| attack(process.addr, before, parts, &flood));
        while !attack.is_finished() {
            assert_eq!(get(process.addr, "/ready").status, 200, "{name}");
        }
        attack.join().expect(name);
    });
    let grown = resident_bytes(&process).saturating_sub(at_first);
    assert!(grown <= MEMORY_MAX, "{name}: {grown} bytes more");
    eventually("nothing of it is left", || {
        counted(&process, "bigiron_connections") == 0.0 && counted(&process, "bigiron_requests_in_flight") == 0.0
    });
}

#[test]
fn rapid_resets() {
    let headers = call_headers("quick");
    survives("rapid resets", &[], 10_000, |n| {
        let stream = 2 * n + 1;
        let reset = frame(kind::RST_STREAM, 0, stream, &8u32.to_be_bytes());
        [frame(kind::HEADERS, END_HEADERS, stream, &headers), reset].concat()
    });
}

#[test]
fn continuation_without_end() {
    let begun = frame(kind::HEADERS, 0, 1, &call_headers("quick"));
    let more = raw::header_block(&[("x-more", &"x".repeat(1000))]);
    survives("large CONTINUATION", &begun, 100_000, |_| frame(kind::CONTINUATION, 0, 1, &more));
    survives("empty CONTINUATION", &begun, 100_000, |_| frame(kind::CONTINUATION, 0, 1, &[]));
}

#[test]
fn data_without_content() {
    let begun = frame(kind::HEADERS, END_HEADERS, 1, &call_headers("quick"));
    survives("empty DATA", &begun, 100_000, |_| frame(kind::DATA, 0, 1, &[]));
}

#[test]
fn settings_and_pings_without_end() {
    survives("SETTINGS", &[], 100_000, |n| raw::settings(&[(raw::INITIAL_WINDOW_SIZE, n)]));
    survives("PING", &[], 100_000, |_| frame(kind::PING, 0, 0, &[0; 8]));
    survives("unknown", &[], 100_000, |_| frame(200, 0, 0, &[]));
}

#[test]
fn windows_that_open_by_nothing() {
    let one = 1u32.to_be_bytes();
    survives("WINDOW_UPDATE", &[], 100_000, |_| frame(kind::WINDOW_UPDATE, 0, 0, &one));
}

#[test]
fn a_flood_is_logged_and_counted() {
    let process = process();
    attack(process.addr, &[], 100_000, |_| frame(kind::PING, 0, 0, &[0; 8]));
    let line = process.log_line_with("flood");
    assert!(line.contains("PING") && line.contains("127.0.0.1"), "{line}");
    assert_eq!(counted(&process, "bigiron_http2_floods_total"), 1.0);
}

#[test]
fn windows_that_never_open() {
    let short = ["--set", "limits.idle_timeout_ms=3000", "--set", "limits.write_timeout_ms=1000"];
    let process = Process::start(&short);
    let at_first = resident_bytes(&process);
    let mut raw = Raw::connect(process.addr, &[(raw::INITIAL_WINDOW_SIZE, 0)]);
    for n in 0..100 {
        let stream = 2 * n + 1;
        let body = serde_json::json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {} }).to_string();
        raw.send(&frame(kind::HEADERS, END_HEADERS, stream, &raw::list_headers()));
        raw.send(&frame(kind::DATA, END_STREAM, stream, body.as_bytes()));
    }
    assert_eq!(get(process.addr, "/ready").status, 200);
    for _ in 0..100 {
        raw.until(|frame| frame.kind == kind::RST_STREAM).expect("each stream is given up");
    }
    assert!(raw.ends(), "and then the connection, with a goodbye");
    let grown = resident_bytes(&process).saturating_sub(at_first);
    assert!(grown <= MEMORY_MAX, "{grown} bytes more");
    assert_eq!(counted(&process, "bigiron_http2_untaken_total"), 100.0);
}
