//! How the process stops: nothing in flight is lost, what outlasts the grace is told so, and a second signal means it.

use std::thread;

use bigiron::{
    Ctx, Server,
    config::{Loaded, Tuning},
    runtime::Host,
    server::Stopped,
};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;

use crate::support::{Client, Process, call, eventually, get, meta, modern, modern_headers, post_bytes};

#[derive(Deserialize, JsonSchema)]
struct Nothing {}

/// Descriptors of the process that are sockets: how far it has come with accepting.
fn sockets(server: &Process) -> usize {
    let fds = std::fs::read_dir(format!("/proc/{}/fd", server.pid())).expect("the process lives");
    let targets = fds.flatten().filter_map(|fd| std::fs::read_link(fd.path()).ok());
    targets.filter(|target| target.to_string_lossy().starts_with("socket:")).count()
}

#[test]
fn with_200_calls_in_flight_none_is_dropped() {
    let limits = ["--set", "limits.concurrent_requests_max=300", "--set", "limits.request_timeout_ms=30000"];
    let mut server = Process::start(&limits);
    let request = modern(1, "tools/call", json!({ "name": "burn", "arguments": { "ms": 10 } }));
    let bytes = post_bytes(&modern_headers("tools/call", "burn"), request.to_string().as_bytes());
    let mut clients: Vec<_> = (0..200).map(|_| Client::connect(server.addr)).collect();
    clients.iter_mut().for_each(|client| client.send(&bytes));
    server.signal("TERM");
    let answers = clients.iter_mut().filter_map(Client::receive);
    let good = answers.filter(|answer| answer.json()["result"]["structuredContent"]["burned_ms"].is_u64()).count();
    assert_eq!(good, 200);
    assert_eq!(server.wait().code(), Some(0));
    server.log_line_with("every call was answered");
}

#[test]
fn a_hangup_ends_nothing() {
    let mut server = Process::start(&[]);
    server.signal("HUP");
    server.log_line_with("SIGHUP");
    assert_eq!(call(server.addr, "echo", json!({ "text": "still here" })).status, 200);
    server.signal("TERM");
    assert_eq!(server.wait().code(), Some(0));
}

#[test]
fn what_outlasts_the_grace_gets_a_typed_error() {
    let server = Server::builder().async_tool("sleep", "Never ends", |_: Nothing, ctx: Ctx| async move {
        ctx.progress(1.0, None, "asleep");
        std::future::pending::<()>().await;
        ""
    });
    let mut tuning = Tuning::default();
    tuning.server.listen = "127.0.0.1:0".into();
    tuning.server.admin_listen = String::new();
    let mut loaded = Loaded::from_program(tuning, Host::read(), false).expect("they hold together");
    // The check of the settings would not let a call outlast the grace: its deadline must come first. What is tested is
    // the net under it.
    loaded.tuning.server.drain_grace_ms = 100;
    let running = server.start_with(&loaded).expect("the server starts");
    let addr = running.addr();
    let plain = thread::spawn(move || call(addr, "sleep", json!({})));
    let streaming = thread::spawn(move || {
        let mut meta = meta();
        meta["progressToken"] = json!(1);
        let request = modern(1, "tools/call", json!({ "name": "sleep", "_meta": meta }));
        Client::connect(addr).post(&modern_headers("tools/call", "sleep"), &request)
    });
    eventually("both run", || running.in_flight() == 2);
    assert_eq!(running.stop(), Stopped { cut: 2 });
    let plain = plain.join().unwrap();
    assert_eq!((plain.status, plain.code()), (503, Some(-31503)), "{plain:?}");
    let events = streaming.join().unwrap().events();
    assert_eq!(events.last().unwrap()["error"]["code"], -31503, "{events:?}");
}

#[test]
fn a_second_signal_stops_at_once() {
    for (first, second, code) in [("TERM", "TERM", 143), ("INT", "INT", 130)] {
        let mut server = Process::start(&["--set", "limits.request_timeout_ms=25000"]);
        let addr = server.addr;
        let before = sockets(&server);
        let call = thread::spawn(move || {
            let mut client = Client::connect(addr);
            let request = modern(1, "tools/call", json!({ "name": "burn", "arguments": { "ms": 20_000 } }));
            let bytes = post_bytes(&modern_headers("tools/call", "burn"), request.to_string().as_bytes());
            client.send(&bytes);
            client.receive().is_none()
        });
        eventually("it is connected", || sockets(&server) > before);
        server.signal(first);
        server.log_line_with("draining");
        assert_eq!(get(server.admin_addr, "/health").status, 200, "alive while it drains");
        assert_eq!(get(server.admin_addr, "/ready").status, 503, "and not in service");
        server.signal(second);
        assert_eq!(server.wait().code(), Some(code));
        assert!(call.join().unwrap(), "no answer after a stop at once");
    }
}

#[test]
fn idle_connections_do_not_hold_the_stop() {
    let mut server = Process::start(&[]);
    let mut idle = Client::connect(server.addr);
    assert_eq!(idle.post(&modern_headers("tools/list", "")[..2], &modern(1, "tools/list", json!({}))).status, 200);
    let mut silent = Client::connect(server.addr);
    server.signal("TERM");
    assert_eq!(server.wait().code(), Some(0));
    assert!(idle.is_closed() && silent.is_closed());
}
