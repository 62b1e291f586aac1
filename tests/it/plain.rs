//! Requests over HTTP/1.1 in the two ways in which they are read: by the server itself, while a connection's requests are
//! plain, and by the general reader from the first on that is not. Nobody outside can tell which.

use std::{io::Write as _, net::TcpStream, thread, time::Duration};

use bigiron::{Ctx, Server};
use serde_json::{Value, json};

use crate::{
    cluster,
    support::{Client, Process, Response, eventually, metric, modern, modern_headers, post_bytes, start},
};

/// What nobody but the server can know.
fn known(mut response: Response) -> (u16, Vec<(String, String)>, Vec<u8>) {
    response.headers.retain(|(name, _)| name != "date");
    response.headers.sort();
    (response.status, response.headers, response.body)
}

/// A request that is not plain, after which a connection is read in the general way.
pub(crate) const NOT_PLAIN: &[u8] = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n";

#[test]
fn both_ways_answer_alike() {
    let running = Process::start_example("everything");
    let echo = modern(1, "tools/call", json!({ "name": "test_simple_text", "arguments": {} })).to_string();
    let headers = modern_headers("tools/call", "test_simple_text");
    let with = |more: &[(&str, &str)]| post_bytes(&[&headers[..], more].concat(), echo.as_bytes());
    let slow = modern(1, "tools/call", json!({ "name": "test_tool_with_progress", "arguments": {} })).to_string();
    let listen = |version: &str| {
        format!("GET /mcp HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n{version}\r\n").into_bytes()
    };
    let mut cancelled = modern(0, "notifications/cancelled", json!({ "requestId": 7 }));
    cancelled.as_object_mut().expect("an object").remove("id");
    let requests: Vec<Vec<u8>> = vec![
        with(&[]),
        with(&[("Connection", "keep-alive")]),
        with(&[("Origin", "http://evil.example")]),
        with(&[("Host", "evil.example")]),
        with(&[("Accept", "text/html")]),
        with(&[("Accept", "text/event-stream")]),
        with(&[("Mcp-Name", "another")]),
        with(&[("X-Padding", &"x".repeat(17 * 1024))]),
        with(&[("Content-Encoding", "gzip")]),
        post_bytes(&modern_headers("notifications/cancelled", ""), cancelled.to_string().as_bytes()),
        post_bytes(&headers, b"{"),
        post_bytes(&headers, b""),
        post_bytes(&modern_headers("tools/call", "test_tool_with_progress"), slow.as_bytes()),
        post_bytes(&modern_headers("tools/list", ""), modern(1, "tools/list", json!({})).to_string().as_bytes()),
        listen(""),
        listen("Mcp-Session-Id: unknown\r\n"),
        b"DELETE /mcp HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(),
        b"DELETE /mcp HTTP/1.1\r\nHost: localhost\r\nMcp-Session-Id: unknown\r\n\r\n".to_vec(),
    ];
    for request in requests {
        let text = String::from_utf8_lossy(&request).into_owned();
        let mut plain = Client::connect(running.addr);
        plain.send(&request);
        let mut general = Client::connect(running.addr);
        general.send(NOT_PLAIN);
        assert_eq!(general.receive().expect("an answer").status, 200);
        general.send(&request);
        let [plain_answer, general_answer] = [&mut plain, &mut general].map(|c| known(c.receive().expect("an answer")));
        assert_eq!(plain_answer, general_answer, "{text}");
        // Both go on, or neither does.
        let closes = plain_answer.1.contains(&("connection".into(), "close".into()));
        for (client, way) in [(&mut plain, "plain"), (&mut general, "general")] {
            if closes {
                assert!(client.is_closed(), "{way}: {text}");
            } else {
                client.send(&with(&[]));
                assert_eq!(client.receive().expect("an answer").status, 200, "{way}: {text}");
            }
        }
    }
}

#[test]
fn requests_cut_anywhere_are_answered_in_order() {
    let running = Process::start(&[]);
    let [first, second] = ["first", "second"].map(|text| {
        let call = modern(text, "tools/call", json!({ "name": "echo", "arguments": { "message": text } }));
        post_bytes(&modern_headers("tools/call", "echo"), call.to_string().as_bytes())
    });
    let both = [first.as_slice(), &second].concat();
    let mut client = Client::connect(running.addr);
    for cut in 1..both.len() {
        // A new connection now and then, as one does not stay plain whose heads come in pieces again and again.
        if cut % 2 == 0 {
            client = Client::connect(running.addr);
        }
        client.send(&both[..cut]);
        thread::yield_now();
        client.send(&both[cut..]);
        for text in ["first", "second"] {
            let answer = client.receive().unwrap_or_else(|| panic!("an answer, cut at {cut}"));
            assert_eq!((answer.json()["id"].as_str(), answer.text().as_str()), (Some(text), text), "cut at {cut}");
        }
    }
}

#[test]
fn many_requests_in_one_piece_are_answered_in_order() {
    let running = Process::start(&[]);
    let calls: Vec<u8> = (0..400)
        .flat_map(|id| {
            let call = modern(id, "tools/call", json!({ "name": "echo", "arguments": { "message": "x".repeat(300) } }));
            post_bytes(&modern_headers("tools/call", "echo"), call.to_string().as_bytes())
        })
        .collect();
    let mut client = Client::connect(running.addr);
    let mut writer = client.writer();
    let sent = thread::spawn(move || writer.write_all(&calls).expect("sends"));
    for id in 0..400 {
        assert_eq!(client.receive().expect("an answer").json()["id"], json!(id));
    }
    sent.join().expect("no panic");
}

#[test]
fn a_burst_of_requests_does_not_keep_a_connection_for_ever() {
    let running = Process::start(&["--set", "limits.idle_timeout_ms=500", "--set", "limits.header_timeout_ms=500"]);
    for then in ["", "POST /mcp HTTP/1.1\r\nHo"] {
        let mut client = Client::connect(running.addr);
        let requests = "GET /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".repeat(400);
        client.send(&[requests.as_bytes(), then.as_bytes()].concat());
        for _ in 0..400 {
            assert_eq!(client.receive().expect("an answer").status, 405);
        }
        assert!(client.is_closed(), "after {then:?}");
    }
}

#[test]
fn a_client_that_sent_ahead_and_leaves_is_noticed() {
    let server = Server::builder().async_tool("wait", "Waits", |_: Value, _: Ctx| std::future::pending::<String>());
    let running = start(server, |tuning| tuning.limits.request_timeout_ms = 30_000);
    let waits = modern(1, "tools/call", json!({ "name": "wait", "arguments": {} })).to_string();
    let request = post_bytes(&modern_headers("tools/call", "wait"), waits.as_bytes());
    let mut client = Client::connect(running.addr());
    client.send(&[request.as_slice(), &request].concat());
    eventually("it runs", || metric(&running, "bigiron_requests_in_flight") == 1.0);
    drop(client);
    eventually("nobody waits for it", || metric(&running, "bigiron_requests_in_flight") == 0.0);
}

#[test]
fn a_body_that_ends_early_is_told_of() {
    let running = Process::start(&[]);
    for first in [&b""[..], NOT_PLAIN] {
        let request = post_bytes(&modern_headers("tools/list", ""), &[b' '; 1000]);
        let mut client = Client::connect(running.addr);
        client.send(first);
        if !first.is_empty() {
            assert_eq!(client.receive().expect("an answer").status, 200);
        }
        client.send(&request[..request.len() - 500]);
        client.half_close();
        let refused = client.receive().expect("an answer");
        assert_eq!((refused.status, refused.header("connection")), (400, Some("close")));
        assert!(client.is_closed());
    }
}

#[test]
fn who_reads_slowly_but_steadily_gets_the_whole_answer() {
    const TEXT_BYTES: usize = 7_000_000;
    const PAUSE: Duration = Duration::from_millis(25);
    let sizes = ["limits.request_bytes_max=8MiB", "limits.result_bytes_max=8MiB"];
    let times = ["limits.write_timeout_ms=500", "limits.idle_timeout_ms=1000", "limits.header_timeout_ms=1000"];
    let args: Vec<&str> = sizes.into_iter().chain(times).flat_map(|set| ["--set", set]).collect();
    let running = Process::start(&args);
    let echo = modern(1, "tools/call", json!({ "name": "echo", "arguments": { "message": "x".repeat(TEXT_BYTES) } }));
    let request = post_bytes(&modern_headers("tools/call", "echo"), echo.to_string().as_bytes());
    for first in [&b""[..], NOT_PLAIN] {
        let mut client = Client::connect(running.addr);
        client.send(first);
        if !first.is_empty() {
            assert_eq!(client.receive().expect("an answer").status, 200);
        }
        // What it asks next waits for the answer, and is no head that does not get on.
        client.send(&[request.as_slice(), NOT_PLAIN].concat());
        // For much longer than it may stand still, and never standing still for that long.
        let mut read = 0;
        while read < TEXT_BYTES {
            let some = client.read_some(TEXT_BYTES / 60);
            assert!(some > 0, "cut off after {read} bytes");
            read += some;
            thread::sleep(PAUSE);
        }
    }
}

#[test]
fn a_body_that_nobody_reads_does_not_take_the_refusal_with_it() {
    let running = Process::start(&[]);
    for (bytes, goes_on) in [(40_000, true), (200_000, false)] {
        let mut request = post_bytes(&[("Content-Type", "text/plain")], &vec![b' '; bytes]);
        let rest = request.split_off(request.len() - bytes + 10);
        let mut client = Client::connect(running.addr);
        client.send(&request);
        // The client does not look before it has sent all.
        client.send(&rest);
        let refused = client.receive().expect("an answer");
        let says = if goes_on { None } else { Some("close") };
        assert_eq!((refused.status, refused.header("connection")), (415, says), "{bytes}");
        if goes_on {
            assert_eq!(client.post(&modern_headers("tools/list", ""), &modern(1, "tools/list", json!({}))).status, 200);
        } else {
            assert!(client.is_closed());
        }
    }
}

/// Who only connects costs little: there may be as many as `limits.connections_max`.
#[test]
fn connections_that_say_nothing_are_cheap() {
    const SOME: usize = 200;
    const MANY: usize = 1500;
    const BYTES_MAX: u64 = 6 * 1024;
    let running = Process::start(&["--set", "limits.connections_max=3000"]);
    let mut silent = Vec::new();
    let mut resident_bytes_with = |count: usize| {
        silent.resize_with(count, || TcpStream::connect(running.addr).expect("a connection"));
        eventually("all are taken", || cluster::metric(&running, "bigiron_connections") == count as f64);
        cluster::metric(&running, "process_resident_memory_bytes") as u64
    };
    let (before, after) = (resident_bytes_with(SOME), resident_bytes_with(SOME + MANY));
    let each = after.saturating_sub(before) / MANY as u64;
    assert!(each < BYTES_MAX, "{each} bytes for each");
}
