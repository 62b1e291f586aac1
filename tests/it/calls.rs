//! What a call can do besides answering: report progress, log, fail, panic, be cancelled. In both eras.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use bigiron::{Ctx, Json, Lane, LogLevel, Server, server::Running};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::support::{Client, Session, call, eventually, meta, modern, modern_headers, post_bytes, start};

#[derive(Deserialize, JsonSchema)]
struct Nothing {}

#[derive(Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Pair {
    /// The first.
    #[schemars(range(max = 100))]
    a: u32,
    /// The second.
    b: Option<String>,
}

#[derive(Serialize, JsonSchema)]
struct Sum {
    sum: u32,
}

/// Counts a running call, down again when it is dropped.
struct Inside(Arc<AtomicUsize>);

impl Inside {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(count))
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn server() -> (Running, Arc<AtomicUsize>) {
    let inside = Arc::<AtomicUsize>::default();
    let (sleeping, spinning) = (Arc::clone(&inside), Arc::clone(&inside));
    let server = Server::builder()
        .tool("add", "Adds", Lane::Inline, |p: Pair, _| Json(Sum { sum: p.a + p.b.map_or(0, |b| b.len() as u32) }))
        .tool("nothing", "Takes nothing", Lane::Inline, |(): (), _| "nothing taken")
        .tool("panic", "Panics on an I/O thread", Lane::Inline, |_: Nothing, _| -> String { panic!("by request") })
        .tool("panic_pool", "Panics on a worker", Lane::Pool, |_: Nothing, _| -> String { panic!("by request") })
        .async_tool("panic_async", "Panics while awaited", |_: Nothing, _| async {
            tokio::task::yield_now().await;
            if true {
                panic!("by request");
            }
            ""
        })
        .async_tool("steps", "Reports three steps and logs one line", |_: Nothing, ctx: Ctx| async move {
            for step in 1..=3 {
                ctx.progress(f64::from(step), Some(3.0), "step");
                ctx.log(LogLevel::Info, &json!({ "step": step }));
                tokio::time::sleep(Duration::from_millis(15)).await;
            }
            "done"
        })
        .tool("flood", "Reports a million times", Lane::Pool, |_: Nothing, ctx: Ctx| {
            (0..1_000_000).for_each(|n| ctx.progress(f64::from(n), None, ""));
            "done"
        })
        .async_tool("sleep", "Never ends by itself", move |_: Nothing, _| {
            let inside = Inside::new(&sleeping);
            async move {
                std::future::pending::<()>().await;
                drop(inside);
                ""
            }
        })
        .tool("spin", "Runs until it is told to stop", Lane::Pool, move |_: Nothing, ctx: Ctx| {
            let _inside = Inside::new(&spinning);
            while !ctx.is_cancelled() {
                thread::sleep(Duration::from_millis(1));
            }
            "stopped"
        });
    (start(server, |tuning| tuning.limits.request_timeout_ms = 20_000), inside)
}

#[test]
fn results_are_structured_and_arguments_checked() {
    let (running, _) = server();
    let answer = call(running.addr(), "add", json!({ "a": 1, "b": "xy" })).json();
    assert_eq!(answer["result"]["structuredContent"], json!({ "sum": 3 }));
    assert_eq!(answer["result"]["content"][0]["text"], r#"{"sum":3}"#);
    assert_eq!(call(running.addr(), "nothing", json!({})).text(), "nothing taken");
    for (arguments, told) in [
        (json!({ "a": "x" }), "/a"),
        (json!({ "a": 101 }), "/a"),
        (json!({}), "\"a\" is a required property"),
        (json!({ "a": 1, "c": 2 }), "'c' was unexpected"),
    ] {
        let answer = call(running.addr(), "add", arguments.clone());
        assert_eq!(answer.json()["result"]["isError"], true, "{arguments}: {answer:?}");
        assert!(answer.text().contains(told), "{arguments}: {}", answer.text());
    }
    running.stop();
}

#[test]
fn a_panic_is_one_error_and_the_next_call_works() {
    let (running, _) = server();
    let mut client = Client::connect(running.addr());
    for tool in ["panic", "panic_pool", "panic_async"] {
        for _ in 0..20 {
            let request = modern("p", "tools/call", json!({ "name": tool }));
            let answer = client.post(&modern_headers("tools/call", tool), &request);
            assert_eq!((answer.status, answer.code()), (200, Some(-32603)), "{tool}: {answer:?}");
            assert!(!answer.json().to_string().contains("by request"), "the panic's own words stay in the log");
        }
        assert_eq!(call(running.addr(), "add", json!({ "a": 2 })).text(), r#"{"sum":2}"#);
    }
    running.stop();
}

#[test]
fn what_a_tool_says_makes_a_stream_and_only_when_asked() {
    let (running, _) = server();
    let mut client = Client::connect(running.addr());
    let headers = modern_headers("tools/call", "steps");
    let quiet = client.post(&headers, &modern(1, "tools/call", json!({ "name": "steps" })));
    assert_eq!(quiet.header("content-type"), Some("application/json"));

    let mut meta = meta();
    meta["progressToken"] = json!("t");
    meta["io.modelcontextprotocol/logLevel"] = json!("info");
    let request = modern(1, "tools/call", json!({ "name": "steps", "_meta": meta }));
    let stream = client.post(&headers, &request);
    assert_eq!(stream.header("content-type"), Some("text/event-stream"));
    let events = stream.events();
    let of = |method: &str| events.iter().filter(|e| e["method"] == method).collect::<Vec<_>>();
    let steps: Vec<_> =
        of("notifications/progress").iter().map(|e| e["params"]["progress"].as_f64().unwrap()).collect();
    assert_eq!(steps, [1.0, 2.0, 3.0]);
    assert!(of("notifications/progress").iter().all(|e| e["params"]["progressToken"] == "t"));
    assert_eq!(of("notifications/message").len(), 3);
    assert_eq!(events.last().unwrap()["result"]["content"][0]["text"], "done", "the answer is the last event");

    // A client that reads no streams gets the answer alone.
    let mut json_only = headers.to_vec();
    json_only.push(("Accept", "application/json"));
    assert_eq!(client.post(&json_only, &request).text(), "done");
    // One that reads nothing else gets the answer as an event.
    let mut events_only = modern_headers("tools/call", "add").to_vec();
    events_only.push(("Accept", "text/event-stream"));
    let answer = client.post(&events_only, &modern(1, "tools/call", json!({ "name": "add", "arguments": { "a": 1 } })));
    assert_eq!(answer.events()[0]["result"]["structuredContent"]["sum"], 1);
    running.stop();
}

#[test]
fn a_flood_of_progress_is_thinned_and_grows() {
    let (running, _) = server();
    let mut meta = meta();
    meta["progressToken"] = json!(7);
    let request = modern(1, "tools/call", json!({ "name": "flood", "_meta": meta }));
    let answer = Client::connect(running.addr()).post(&modern_headers("tools/call", "flood"), &request);
    let events = answer.events();
    let seen: Vec<_> = events.iter().filter_map(|e| e["params"]["progress"].as_f64()).collect();
    assert!(!seen.is_empty() && seen.len() < 10_000, "{} of a million", seen.len());
    assert!(seen.is_sorted(), "progress grows");
    assert_eq!(events.last().unwrap()["result"]["content"][0]["text"], "done");
    running.stop();
}

#[test]
fn in_a_session_logs_follow_its_level() {
    let (running, _) = server();
    let mut session = Session::open(running.addr(), "2025-06-18");
    assert_eq!(session.request(1, "tools/call", json!({ "name": "steps" })).text(), "done");
    assert_eq!(session.request(2, "logging/setLevel", json!({ "level": "debug" })).json()["result"], json!({}));
    let events = session.request(3, "tools/call", json!({ "name": "steps" })).events();
    assert_eq!(events.iter().filter(|e| e["method"] == "notifications/message").count(), 3);
    assert_eq!(session.request(4, "logging/setLevel", json!({ "level": "loud" })).code(), Some(-32602));
    running.stop();
}

#[test]
fn a_modern_client_cancels_by_leaving() {
    let (running, inside) = server();
    for tool in ["sleep", "spin"] {
        let mut client = Client::connect(running.addr());
        let request = modern(1, "tools/call", json!({ "name": tool }));
        client.send(&post_bytes(&modern_headers("tools/call", tool), request.to_string().as_bytes()));
        eventually("the tool runs", || inside.load(Ordering::SeqCst) == 1);
        drop(client);
        eventually("the tool stops", || inside.load(Ordering::SeqCst) == 0);
        eventually("the place is free", || running.in_flight() == 0);
    }
    running.stop();
}

#[test]
fn a_session_cancels_by_a_notification() {
    let (running, inside) = server();
    for tool in ["sleep", "spin"] {
        for id in [json!(7), json!("seven")] {
            let mut session = Session::open(running.addr(), "2025-11-25");
            let (addr, session_id, call_id) = (running.addr(), session.id.clone(), id.clone());
            let call = thread::spawn(move || {
                let request =
                    json!({ "jsonrpc": "2.0", "id": call_id, "method": "tools/call", "params": { "name": tool } });
                Client::connect(addr).post(&[("Mcp-Session-Id", &session_id)], &request)
            });
            eventually("the tool runs", || inside.load(Ordering::SeqCst) == 1);
            // The same id again is refused and hurts nobody; an id that does not run is ignored.
            let again = session.request(id.clone(), "tools/call", json!({ "name": tool }));
            assert_eq!((again.status, again.code()), (400, Some(-32600)), "{again:?}");
            assert_eq!(session.notify("notifications/cancelled", json!({ "requestId": 8 })).status, 202);
            assert_eq!(inside.load(Ordering::SeqCst), 1);
            assert_eq!(session.notify("notifications/cancelled", json!({ "requestId": id })).status, 202);
            let answer = call.join().unwrap();
            assert_eq!(answer.events(), Vec::<Value>::new(), "nothing is said to a call that was taken back");
            eventually("the tool stops", || inside.load(Ordering::SeqCst) == 0);
        }
    }
    running.stop();
}

#[test]
fn a_session_ends_once_and_belongs_to_its_server() {
    let (running, _) = server();
    let mut session = Session::open(running.addr(), "2024-11-05");
    assert_eq!(session.request(1, "ping", json!({})).json()["result"], json!({}));
    assert_eq!(session.request(2, "tools/list", json!({})).json()["result"]["tools"].as_array().map(Vec::len), Some(9));
    assert_eq!(session.request(3, "resources/list", json!({})).code(), Some(-32601));
    let end = format!("DELETE /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nMcp-Session-Id: {}\r\n\r\n", session.id);
    session.client.send(end.as_bytes());
    assert_eq!(session.client.receive().unwrap().status, 204);
    session.client.send(end.as_bytes());
    assert_eq!(session.client.receive().unwrap().status, 404);
    assert_eq!(session.request(4, "ping", json!({})).status, 404);
    assert_eq!(running.sessions(), 0);
    running.stop();
}

#[test]
fn a_session_is_needed_where_there_are_sessions_and_each_limit_has_its_answer() {
    let initialize = json!({ "jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
        "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": { "name": "tests", "version": "1" }
    } });
    for (sessions_max, per_caller_max, status, code) in [(5, 2, 429, -31429), (2, 2, 503, -31503)] {
        let running = start(Server::builder(), |tuning| {
            (tuning.sessions.sessions_max, tuning.sessions.per_caller_max) = (sessions_max, per_caller_max);
        });
        let addr = running.addr();
        let request = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/list" });
        assert_eq!(Client::connect(addr).post(&[], &request).status, 400, "no session");
        let unknown = Client::connect(addr).post(&[("Mcp-Session-Id", "0123456789abcdef")], &request);
        assert_eq!(unknown.status, 404, "{unknown:?}");
        let mut sessions: Vec<Session> = (0..2).map(|_| Session::open(addr, "2025-11-25")).collect();
        for _ in 0..20 {
            let refused = Client::connect(addr).post(&[], &initialize);
            assert_eq!((refused.status, refused.code()), (status, Some(code)), "{refused:?}");
            assert!(refused.header("retry-after").is_some(), "{refused:?}");
        }
        assert_eq!(running.sessions(), 2);
        assert_eq!(sessions[0].request(2, "ping", json!({})).json()["result"], json!({}), "who has one goes on");
        sessions.remove(1).end();
        drop(Session::open(addr, "2025-11-25"));
        running.stop();
    }
}
