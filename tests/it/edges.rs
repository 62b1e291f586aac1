//! The edges of calls: tools that panic in odd places, results that are no JSON, clients that leave or take back at the
//! worst moment. Each costs its own call at most.
//!
//! `cargo test --test it -- --ignored a_cancel_races` runs the race of a call with its cancel 100,000 times.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use bigiron::{Ctx, Json, Lane, LogLevel, Reply, Server, server::Running};
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::support::{Client, Process, Session, call, eventually, meta, modern, modern_headers, post_bytes, start};

/// Panics when it is dropped.
struct Trap;

impl Drop for Trap {
    fn drop(&mut self) {
        panic!("by request, on the way out");
    }
}

/// Counts a running call, down again when it is dropped.
struct Inside(Arc<AtomicUsize>);

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

#[derive(serde::Serialize, schemars::JsonSchema)]
struct Mean {
    value: f64,
}

#[derive(serde::Deserialize, schemars::JsonSchema)]
struct Brief {
    turns: usize,
}

struct Served {
    running: Running,
    inside: Arc<AtomicUsize>,
    effects: Arc<AtomicUsize>,
    /// Runs of `brief`.
    begun: Arc<AtomicUsize>,
}

fn serve() -> Served {
    let [inside, effects, begun]: [Arc<AtomicUsize>; 3] = Default::default();
    let (hanging, effecting, beginning) = (Arc::clone(&inside), Arc::clone(&effects), Arc::clone(&begun));
    let shared = Arc::<Mutex<u32>>::default();
    let held = Arc::clone(&shared);
    let kept = Arc::<Mutex<Option<Ctx>>>::default();
    let keeping = Arc::clone(&kept);
    let server = Server::builder()
        .tool("quick", "Answers at once", Lane::Inline, |(): (), _| "quick")
        .tool("count", "Counts under a lock", Lane::Pool, move |(): (), _| {
            *shared.lock() += 1;
            "counted"
        })
        .tool("panic_locked", "Panics with a lock in its hand", Lane::Pool, move |(): (), _| -> String {
            let _held = held.lock();
            panic!("by request, with a lock")
        })
        .async_tool("panic_in_drop", "Panics when it is over", |(): (), _| async {
            let _trap = Trap;
            tokio::task::yield_now().await;
            "done"
        })
        .async_tool("panic_when_dropped", "Panics when it is given up", |(): (), _| async {
            let _trap = Trap;
            std::future::pending::<()>().await;
            "never"
        })
        .tool("not_a_number", "A result that JSON has no number for", Lane::Inline, |(): (), _| {
            Json(json!({ "value": f64::NAN }))
        })
        .tool("mean", "The mean of nothing", Lane::Pool, |(): (), _| Json(Mean { value: 0.0 / f64::from(0) }))
        .tool(
            "odd_text",
            "Text that terminals and parsers stumble over",
            Lane::Inline,
            |(): (), _| "\u{1b}[31mred\u{202e}\u{200b}\u{0}\u{7f}\u{2028}\"\\\r\n",
        )
        .tool("large", "A result as large as it may be", Lane::Inline, |(): (), _| Reply::text(&"x".repeat(4 << 20)))
        .tool("effect", "Has an effect after a while", Lane::Pool, move |(): (), ctx: Ctx| {
            thread::sleep(Duration::from_millis(30));
            if !ctx.is_cancelled() {
                effecting.fetch_add(1, Ordering::SeqCst);
            }
            "done"
        })
        .async_tool("hang", "Never ends by itself", move |(): (), _| {
            hanging.fetch_add(1, Ordering::SeqCst);
            let inside = Inside(Arc::clone(&hanging));
            async move {
                let _inside = inside;
                std::future::pending::<()>().await;
                "never"
            }
        })
        .async_tool("brief", "Ends after some turns", move |args: Brief, _| {
            beginning.fetch_add(1, Ordering::SeqCst);
            async move {
                for _ in 0..args.turns {
                    tokio::task::yield_now().await;
                }
                "brief"
            }
        })
        .async_tool("keep", "Goes on talking after its end", move |(): (), ctx: Ctx| {
            *keeping.lock() = Some(ctx.clone());
            async move {
                ctx.log(LogLevel::Info, &"before");
                "kept"
            }
        })
        .tool("after", "Says something for a call that is over", Lane::Inline, move |(): (), _| {
            if let Some(ctx) = kept.lock().as_ref() {
                ctx.progress(99.0, None, "late");
                ctx.log(LogLevel::Info, &"late");
            }
            "said"
        });
    Served { running: start(server, |t| t.limits.request_timeout_ms = 2000), inside, effects, begun }
}

#[test]
fn panics_in_odd_places_cost_one_call() {
    let served = serve();
    let addr = served.running.addr();
    for _ in 0..3 {
        assert_eq!(call(addr, "panic_locked", json!({})).code(), Some(-32603));
        assert_eq!(call(addr, "count", json!({})).text(), "counted", "the lock is free again");
        assert_eq!(call(addr, "panic_in_drop", json!({})).code(), Some(-32603));
    }
    let mut client = Client::connect(addr);
    let request = modern(1, "tools/call", json!({ "name": "panic_when_dropped" }));
    client.send(&post_bytes(&modern_headers("tools/call", "panic_when_dropped"), request.to_string().as_bytes()));
    eventually("it runs", || served.running.in_flight() == 1);
    drop(client);
    eventually("it is dropped", || served.running.in_flight() == 0);
    assert_eq!(call(addr, "quick", json!({})).text(), "quick");
}

#[test]
fn a_flood_of_panics_is_answered_and_does_not_flood_the_log() {
    let process = Process::start_example("everything");
    let mut client = Client::connect(process.addr);
    let flood = 500;
    for id in 0..flood {
        let request = modern(id, "tools/call", json!({ "name": "test_panic" }));
        assert_eq!(client.post(&modern_headers("tools/call", "test_panic"), &request).code(), Some(-32603));
    }
    assert_eq!(call(process.addr, "test_simple_text", json!({})).status, 200);
    process.signal("TERM");
    let lines = process.log_line_count_until("stopped");
    assert!(lines < flood as usize, "{lines} lines for {flood} panics");
}

#[test]
fn whatever_a_tool_returns_the_wire_is_json() {
    let served = serve();
    let addr = served.running.addr();
    let value = call(addr, "not_a_number", json!({})).json();
    assert_eq!(value["result"]["structuredContent"]["value"], Value::Null, "{value}");
    // Who says that it returns a number, and does not, has failed.
    let mean = call(addr, "mean", json!({}));
    assert_eq!(mean.json()["result"]["isError"], true, "{mean:?}");
    assert!(mean.text().contains("/value: null is not of type \"number\""), "{}", mean.text());
    let text = call(addr, "odd_text", json!({})).text();
    assert_eq!(text, "\u{1b}[31mred\u{202e}\u{200b}\u{0}\u{7f}\u{2028}\"\\\r\n", "unchanged, inside its quotes");
}

#[test]
fn nothing_is_said_after_the_end() {
    let served = serve();
    let addr = served.running.addr();
    let mut params = json!({ "name": "keep", "_meta": meta() });
    params["_meta"]["progressToken"] = 1.into();
    params["_meta"]["io.modelcontextprotocol/logLevel"] = "debug".into();
    let mut client = Client::connect(addr);
    let events = client.post(&modern_headers("tools/call", "keep"), &modern(1, "tools/call", params)).events();
    assert_eq!(events.len(), 2, "{events:?}");
    assert_eq!(call(addr, "after", json!({})).text(), "said");
    // Were anything said, it would stand before this answer on the same connection.
    let next =
        client.post(&modern_headers("tools/call", "quick"), &modern(2, "tools/call", json!({ "name": "quick" })));
    assert_eq!(next.text(), "quick");
}

#[test]
fn who_leaves_takes_the_work_along() {
    let served = serve();
    let addr = served.running.addr();
    // Running: its future is dropped.
    let mut client = Client::connect(addr);
    let request = modern(1, "tools/call", json!({ "name": "hang" }));
    client.send(&post_bytes(&modern_headers("tools/call", "hang"), request.to_string().as_bytes()));
    eventually("it runs", || served.inside.load(Ordering::SeqCst) == 1);
    drop(client);
    eventually("it is dropped", || served.inside.load(Ordering::SeqCst) == 0);
    // Queued or running on a worker: it is told, and what it would do it does not do.
    let clients: Vec<Client> = (0..20)
        .map(|id| {
            let mut client = Client::connect(addr);
            let request = modern(id, "tools/call", json!({ "name": "effect" }));
            client.send(&post_bytes(&modern_headers("tools/call", "effect"), request.to_string().as_bytes()));
            client
        })
        .collect();
    eventually("some wait for a worker", || served.running.in_flight() > 0);
    drop(clients);
    eventually("none is left", || served.running.in_flight() == 0);
    let effects = served.effects.load(Ordering::SeqCst);
    assert!(effects < 20, "{effects} effects of 20 calls that nobody waits for");
    // Writing: the rest is dropped with the connection.
    let connections = served.running.connections();
    let mut client = Client::connect(addr);
    client.narrow();
    let request = modern(1, "tools/call", json!({ "name": "large" }));
    client.send(&post_bytes(&modern_headers("tools/call", "large"), request.to_string().as_bytes()));
    client.reset();
    eventually("the connection is gone", || served.running.connections() <= connections);
    assert_eq!(call(addr, "quick", json!({})).text(), "quick");
}

#[test]
fn a_cancel_races_with_the_end_and_there_is_one_answer_or_none() {
    race(1_000);
}

#[test]
#[ignore = "takes minutes: cargo test --test it -- --ignored a_cancel_races"]
fn a_cancel_races_with_the_end_a_hundred_thousand_times() {
    race(100_000);
}

/// Each round is a call, and a cancel on another connection once the call runs. The call's length follows what came of the round before, so that
/// the two meet at about the same moment, whatever the host is busy with.
fn race(rounds: usize) {
    let served = serve();
    let addr = served.running.addr();
    let session = Session::open(addr, "2025-11-25");
    let headers = [("Mcp-Session-Id", session.id.as_str())];
    let (mut calls, mut cancels) = (Client::connect(addr), Client::connect(addr));
    let (mut answered, mut silent, mut turns) = (0, 0, 100);
    for id in 0..rounds {
        let params = json!({ "name": "brief", "arguments": { "turns": turns } });
        let request = json!({ "jsonrpc": "2.0", "id": id, "method": "tools/call", "params": params });
        let cancel = json!({ "jsonrpc": "2.0", "method": "notifications/cancelled", "params": { "requestId": id } });
        calls.send(&post_bytes(&headers, request.to_string().as_bytes()));
        while served.begun.load(Ordering::SeqCst) <= id {
            thread::yield_now(); // a cancel that comes before its call is for nothing
        }
        assert_eq!(cancels.post(&headers, &cancel).status, 202);
        // Whatever came twice, or late, would be read here as the answer of the next round, which has another id.
        let answer = calls.receive().expect("an answer, or the end of one");
        if answer.body.is_empty() {
            silent += 1;
            turns = turns * 3 / 4;
            continue;
        }
        let is_json = answer.header("content-type") == Some("application/json");
        let messages = if is_json { vec![answer.json()] } else { answer.events() };
        assert_eq!(messages.len(), 1, "{messages:?}");
        assert_eq!(messages[0]["id"], id);
        assert_eq!(messages[0]["result"]["content"][0]["text"], "brief");
        answered += 1;
        turns = (turns * 4 / 3 + 1).min(10_000);
    }
    assert_eq!(answered + silent, rounds);
    assert!(answered > rounds / 10 && silent > rounds / 10, "{answered} answered, {silent} silent: no race");
    eventually("nothing is left running", || served.running.in_flight() == 0);
}

#[test]
fn a_second_initialize_changes_nothing() {
    let served = serve();
    let mut session = Session::open(served.running.addr(), "2025-06-18");
    let params = json!({ "protocolVersion": "2025-11-25", "capabilities": { "sampling": {} }, "clientInfo": { "name": "x", "version": "2" } });
    let refused = session.request(5, "initialize", params);
    assert_eq!(refused.code(), Some(-32600));
    session.client = Client::connect(served.running.addr());
    assert_eq!(session.request(6, "tools/call", json!({ "name": "quick" })).text(), "quick");
}

/// Terminal escapes, marks that turn the direction of text round, characters that nobody sees: all of it is text, comes
/// out as it went in, and changes nothing of the message around it.
#[test]
fn odd_text_in_results_and_descriptions_is_text() {
    const ODD: &str =
        "\u{1b}[31mred\u{1b}[0m \u{202e}abc\u{202c} \u{200b}\u{feff} \u{2028}\u{2029} \u{7} \u{1f600} \"}]";
    let long = "x".repeat(1 << 20);
    let described: &'static str = format!("{ODD}{long}").leak();
    let server = Server::builder().tool("odd", described, Lane::Inline, |(): (), _: Ctx| ODD);
    let running = start(server, |_| {});
    let answer = call(running.addr(), "odd", json!({}));
    assert_eq!(answer.text(), ODD);
    // On the wire it is one line of printable characters for whoever looks at it.
    assert!(answer.body.iter().all(|byte| *byte >= b' '), "control characters are escaped");
    let list = modern(2, "tools/list", json!({}));
    let listed = Client::connect(running.addr()).post(&modern_headers("tools/list", ""), &list).json();
    assert_eq!(listed["result"]["tools"][0]["description"], described);
    assert_eq!(listed["result"]["tools"].as_array().map(Vec::len), Some(1));
    running.stop();
}

/// What is asked of the allocator and cannot be had is an error of the call, as far as Rust says so before it ends the
/// process; what a tool returns has a limit in any case.
#[test]
fn memory_that_cannot_be_had_costs_the_call_alone() {
    let server = Server::builder()
        .tool("overflow", "Asks for more than there can be", Lane::Pool, |(): (), _: Ctx| {
            String::with_capacity(usize::MAX)
        })
        .tool("reserve", "Asks whether it can have it", Lane::Pool, |(): (), _: Ctx| {
            let mut bytes = Vec::<u8>::new();
            match bytes.try_reserve_exact(1 << 55) {
                Ok(()) => Reply::text("there was room"),
                Err(error) => Reply::error(&error.to_string()),
            }
        })
        .tool("large", "Makes too large a result", Lane::Pool, |(): (), _: Ctx| "x".repeat(64 << 20));
    let running = start(server, |_| {});
    assert_eq!(call(running.addr(), "overflow", json!({})).code(), Some(-32603));
    let refused = call(running.addr(), "reserve", json!({}));
    assert_eq!(refused.json()["result"]["isError"], true, "{refused:?}");
    let large = call(running.addr(), "large", json!({}));
    assert_eq!(large.json()["result"]["isError"], true);
    assert!(large.text().contains("more than the"), "{}", large.text());
    assert_eq!(call(running.addr(), "overflow", json!({})).code(), Some(-32603), "the threads are all there");
    running.stop();
}

/// The limit counts for the whole process, so that it has one of its own.
#[test]
fn a_statement_that_needs_too_much_memory_costs_the_call_alone() {
    let folder = tempfile::tempdir().expect("a folder");
    let database = rusqlite::Connection::open(folder.path().join("p.db")).expect("a database");
    database.execute_batch("CREATE TABLE p(name TEXT)").expect("a table");
    let root = format!("toolbox.root={}", folder.path().display());
    let limits = ["toolbox.sql_memory_bytes_max=16MiB", "limits.request_timeout_ms=25000"];
    let sets = [&root, limits[0], limits[1]].into_iter().flat_map(|set| ["--set", set]).collect::<Vec<_>>();
    let process = Process::start(&sets);
    let ask = |sql: &str| call(process.addr, "query_sql", json!({ "database": "p.db", "sql": sql })).json();
    let told = ask("WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i+1 FROM n) \
                    SELECT i, hex(zeroblob(1000)) AS h FROM n ORDER BY h, i DESC");
    assert_eq!(told["result"]["isError"], true, "{told}");
    let text = told["result"]["content"][0]["text"].as_str().unwrap_or_default();
    assert!(text.contains("more memory than is allowed"), "{told}");
    let next = ask("SELECT 1");
    assert_eq!(next["result"]["structuredContent"]["rows"], json!([[1]]), "{next}");
}
