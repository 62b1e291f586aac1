//! Group H: the way a client uses its connection. Slow, silent, gone in the middle, or still sending when it is refused.

use std::{
    net::SocketAddr,
    thread,
    time::{Duration, Instant},
};

use serde_json::json;

use super::{
    Row,
    place::{Kind, Place, SHORT_MS},
    row,
    wire::{GOOD, Request, Want, echo, until_end},
};
use crate::support::{Client, PATIENCE, eventually, modern};
use Kind::{Hurried, OwnTools, Program};
use Want::End;

const MIB: usize = 1 << 20;
/// Clients that are slow at the same time, and connections that idle. Thousands are a load test's business.
const SLOW_CLIENTS: usize = 50;
const IDLE_CONNECTIONS: u64 = 600;
/// What an idle connection may cost.
const IDLE_CONNECTION_KIB: u64 = 24;
/// What an allocator takes at once from the system, for a number of connections that is not large.
const ALLOCATOR_KIB: u64 = 4096;

pub(super) const ROWS: &[Row] = &[
    row("H17", "heads that trickle in", &[Hurried], h17),
    row("H19", "a body that breaks off", &[Program, OwnTools], h19),
    row("H20", "a client that stops sending after its request", &[Program, OwnTools], h20),
    row("H21", "resets while a body comes, a call runs, an answer goes", &[Program, OwnTools], h21),
    row("H24", "refusals while the body still comes", &[Program, OwnTools], h24),
    row("H36", "idle connections", &[Hurried], h36),
];

/// Sends the bytes of a head one by one, as slowly as never to be done, until the server ends it.
fn trickle(addr: SocketAddr) -> Result<(), String> {
    let mut client = Client::connect(addr);
    client.set_patience(Duration::from_millis(SHORT_MS / 20));
    let began = Instant::now();
    for byte in b"GET /health HTTP/1.1\r\nX-Slow: ".iter().chain(std::iter::repeat(&b's')) {
        if !client.offer(&[*byte]) || client.is_closed() {
            return Ok(());
        }
        if began.elapsed() > PATIENCE {
            break;
        }
    }
    Err(format!("still open after {PATIENCE:?}"))
}

fn h17(place: &Place) {
    place.noted("one client", || trickle(place.addr));
    place.noted("many clients", || {
        thread::scope(|scope| {
            let addr = place.addr;
            let open: Vec<_> = (0..SLOW_CLIENTS).map(|_| scope.spawn(move || trickle(addr))).collect();
            open.into_iter().try_for_each(|client| client.join().expect("it does not panic"))
        })
    });
}

fn h19(place: &Place) {
    let head = Request::forbidden().body("").with("Content-Length: 100").bytes();
    let bytes = [head.as_slice(), br#"{"jsonrpc""#].concat();
    place.noted("no more is sent", || {
        let mut client = Client::connect(place.addr);
        client.send(&bytes);
        client.half_close();
        let answer = client.receive().map_or(0, |r| r.status);
        let right = matches!(answer, 0 | 400) && client.receive().is_none() && client.is_closed();
        if right { Ok(()) } else { Err(format!("got {answer}")) }
    });
    Client::connect(place.addr).send(&bytes); // gone at once
}

/// A call that runs for longer than any test waits.
fn endless(place: &Place) -> Request {
    let name = if place.kind == OwnTools { "hang" } else { "burn" };
    let arguments = if place.kind == OwnTools { json!({}) } else { json!({ "ms": 59_000 }) };
    Request::of(&modern(1, "tools/call", json!({ "name": name, "arguments": arguments })))
}

fn endless_in_pool() -> Request {
    Request::of(&modern(1, "tools/call", json!({ "name": "burn", "arguments": { "ms": 59_000 } })))
}

/// The pool has one thread; it is free again when another call gets it.
fn pool_is_free(place: &Place) {
    let request = Request::of(&modern(1, "tools/call", json!({ "name": "burn", "arguments": { "ms": 1 } })));
    place.case("the worker is free again", &request, Want::Served);
}

/// Starts the call and waits until it runs, where that can be seen.
fn started(place: &Place, request: &Request) -> Client {
    let mut client = Client::connect(place.addr);
    client.send(&request.bytes());
    match place.seen() {
        Some(seen) => eventually("the call runs", || seen.running() > 0),
        None => thread::sleep(Duration::from_millis(20)),
    }
    client
}

fn h20(place: &Place) {
    for request in [endless(place), endless_in_pool()] {
        place.noted("a call that runs", || {
            let mut client = started(place, &request);
            client.half_close();
            let answer = client.receive();
            if answer.is_none() && client.is_closed() { Ok(()) } else { Err(format!("it was answered: {answer:?}")) }
        });
        if let Some(seen) = place.seen() {
            eventually("the call is cancelled", || seen.running() == 0);
        }
        pool_is_free(place);
    }
}

fn h21(place: &Place) {
    let head = Request::forbidden().body("").with("Content-Length: 100000").bytes();
    let mut client = Client::connect(place.addr);
    client.send(&[head, vec![b'{'; 50_000]].concat());
    client.reset();
    for request in [endless(place), endless_in_pool()] {
        started(place, &request).reset();
        if let Some(seen) = place.seen() {
            eventually("the call is cancelled", || seen.running() == 0);
        }
        pool_is_free(place);
    }
    // Answers that do not fit into the buffers between us: a reset meets them half written.
    let large = Request::good().body(padded(GOOD, MIB)).bytes();
    let mut client = Client::connect(place.addr);
    client.narrow();
    client.set_patience(Duration::from_millis(100));
    (0..16).all(|_| client.offer(&large));
    client.reset();
}

/// A call of `echo` whose message makes the body this long.
fn padded(message: &str, bytes: usize) -> String {
    let short = echo(message).to_string();
    let pad = "p".repeat(bytes - short.len());
    echo(&(message.to_owned() + &pad)).to_string()
}

fn h24(place: &Place) {
    let smuggled = "GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".repeat(1 << 16);
    let over = Request::forbidden().body(&smuggled.as_bytes()[..2 * MIB]);
    place.case("413", &over, End(&[413]));
    let plain = Request::forbidden().but("Content-Type", "text/plain");
    place.case("415", &plain.clone().body(&smuggled.as_bytes()[..MIB]), End(&[415]));
    // A body that is small may be read over; then the connection is good for the next request, and only for that.
    place.noted("415 and a small body", || {
        let bytes =
            [plain.body("GET /health HTTP/1.1\r\n\r\n").bytes(), Request::good().with("Connection: close").bytes()];
        let heard = until_end(place.addr, &bytes.concat());
        let right = match &heard.responses[..] {
            [first] => first.status == 415,
            [first, second] => first.status == 415 && second.status == 200 && second.text() == GOOD,
            _ => false,
        };
        if right && heard.ended { Ok(()) } else { Err(format!("{heard:?}")) }
    });
}

fn h36(place: &Place) {
    place.noted("many", || {
        let before_kib = place.memory_kib().ok_or("no process of its own")?;
        let mut clients: Vec<_> = (0..IDLE_CONNECTIONS).map(|_| Client::connect(place.addr)).collect();
        for client in &mut clients {
            client.send(&Request::good().bytes());
        }
        for client in &mut clients {
            let answer = client.receive().map(|r| r.text());
            if answer.as_deref() != Some(GOOD) {
                return Err(format!("a good call got {answer:?}"));
            }
        }
        let more_kib = place.memory_kib().ok_or("no process of its own")?.saturating_sub(before_kib);
        if more_kib > IDLE_CONNECTIONS * IDLE_CONNECTION_KIB + ALLOCATOR_KIB {
            return Err(format!("{IDLE_CONNECTIONS} connections cost {more_kib} KiB"));
        }
        let open = clients.iter_mut().filter_map(|client| (!client.is_closed()).then_some(())).count();
        if open == 0 { Ok(()) } else { Err(format!("{open} were never closed")) }
    });
}
