//! Calls that go on without their connection: a stop waits for them, the end of the threads ends them, and what they come
//! to can be come back for, whatever its size. And other work that nobody watches: batches, proposals.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use bigiron::{Ctx, Input, Lane, Prompt, Server, server::Running, tool::Config};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::support::{Client, Session, eventually, metric, modern, post_bytes, start};

#[derive(Deserialize, JsonSchema)]
struct Nothing {}

/// A server whose tool lets its connection go and answers when it is let through, with so many bytes.
fn lasting(bytes: usize) -> (Running, Arc<Semaphore>) {
    let gate = Arc::new(Semaphore::new(0));
    let inside = Arc::clone(&gate);
    let server = Server::builder().async_tool("last", "Answers later", move |_: Nothing, ctx: Ctx| {
        let gate = Arc::clone(&inside);
        async move {
            ctx.release_connection();
            gate.acquire().await.expect("open").forget();
            "x".repeat(bytes)
        }
    });
    (start(server, |tuning| tuning.limits.request_timeout_ms = 20_000), gate)
}

/// Calls the tool and is left with the id of the stream's first event.
fn begin(running: &Running) -> (Session, String) {
    let session = Session::open(running.addr(), "2025-11-25");
    let mut stream = session.stream(running.addr(), 1, "tools/call", json!({ "name": "last", "arguments": {} }));
    let first = stream.next().expect("a first event").id.expect("an id");
    while stream.next().is_some() {}
    eventually("the call goes on", || running.in_flight() == 1);
    (session, first)
}

#[test]
fn a_stop_waits_for_a_call_without_a_connection() {
    let (running, gate) = lasting(1);
    drop(begin(&running));
    let stopping = thread::spawn(move || running.stop());
    gate.add_permits(1);
    assert_eq!(stopping.join().unwrap().cut, 0);
    eventually("it has ended", || Arc::strong_count(&gate) <= 2 && gate.available_permits() == 0);
}

#[test]
fn the_end_of_the_threads_ends_a_call_without_a_connection() {
    let (running, gate) = lasting(1);
    drop(begin(&running));
    let before = Arc::strong_count(&gate);
    drop(running);
    eventually("it is gone", || Arc::strong_count(&gate) < before);
}

#[test]
fn a_large_result_can_be_come_back_for() {
    let (running, gate) = lasting(600 * 1024); // more than a stream's buffer holds
    let (session, first) = begin(&running);
    gate.add_permits(1);
    eventually("it is over", || running.in_flight() == 0);
    let message = session.listen(running.addr(), Some(&first)).message();
    assert_eq!(message["result"]["content"][0]["text"].as_str().map(str::len), Some(600 * 1024));
    running.stop();
}

/// Sends so many calls of the tool `slow` in one batch; the answer, once it has come.
fn batch_of(running: &Running, calls: i64) -> thread::JoinHandle<Value> {
    let mut session = Session::open(running.addr(), "2025-03-26");
    let call = |id: i64| json!({ "jsonrpc": "2.0", "id": id, "method": "tools/call", "params": { "name": "slow", "arguments": {} } });
    let batch: Value = (0..calls).map(call).collect();
    thread::spawn(move || session.client.post(&[("Mcp-Session-Id", &session.id)], &batch).json())
}

#[test]
fn few_calls_of_a_batch_run_at_once() {
    let (inside, most, gate) =
        (Arc::<AtomicUsize>::default(), Arc::<AtomicUsize>::default(), Arc::new(Semaphore::new(0)));
    let (count, peak, open) = (Arc::clone(&inside), Arc::clone(&most), Arc::clone(&gate));
    let server = Server::builder().async_tool("slow", "Takes its time", move |_: Nothing, _: Ctx| {
        let (count, peak, open) = (Arc::clone(&count), Arc::clone(&peak), Arc::clone(&open));
        async move {
            peak.fetch_max(count.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            open.acquire().await.expect("open").forget();
            count.fetch_sub(1, Ordering::SeqCst);
            "done"
        }
    });
    let running = start(server, |_| {});
    let answered = batch_of(&running, 50);
    eventually("the first run", || inside.load(Ordering::SeqCst) == 4);
    gate.add_permits(50);
    let answers = answered.join().unwrap();
    let ids: Vec<_> = answers.as_array().unwrap().iter().map(|answer| answer["id"].as_i64().unwrap()).collect();
    assert_eq!(ids, (0..50).collect::<Vec<_>>());
    assert!(answers.as_array().unwrap().iter().all(|answer| answer["result"]["content"][0]["text"] == "done"));
    assert_eq!(most.load(Ordering::SeqCst), 4);
    running.stop();
}

/// Nothing else says so: the answer to the batch itself is none.
#[test]
fn a_call_of_a_batch_that_is_refused_is_counted_and_told_when_to_come_back() {
    let (inside, gate) = (Arc::<AtomicUsize>::default(), Arc::new(Semaphore::new(0)));
    let (count, open) = (Arc::clone(&inside), Arc::clone(&gate));
    let server = Server::builder().async_tool("slow", "Takes its time", move |_: Nothing, _: Ctx| {
        let (count, open) = (Arc::clone(&count), Arc::clone(&open));
        async move {
            count.fetch_add(1, Ordering::SeqCst);
            open.acquire().await.expect("open").forget();
            "done"
        }
    });
    let running = start(server, |tuning| {
        let config = Config { concurrency_max: Some(1), waiting_max: Some(0), ..Config::default() };
        tuning.tools.insert("slow".into(), config);
    });
    let answered = batch_of(&running, 4);
    eventually("the first runs", || inside.load(Ordering::SeqCst) == 1);
    gate.add_permits(1);
    let answers = answered.join().unwrap();
    assert_eq!(answers[0]["result"]["content"][0]["text"], "done", "{answers}");
    for refused in &answers.as_array().unwrap()[1..] {
        assert_eq!(refused["error"]["code"], -31503, "{refused}");
        assert_eq!(refused["error"]["data"]["retryAfter"], 1, "{refused}");
    }
    assert_eq!(metric(&running, "bigiron_refusals_total{reason=\"overloaded\"}"), 3.0);
    running.stop();
}

#[derive(Deserialize, JsonSchema)]
struct Named {
    name: String,
}

#[test]
fn a_proposal_that_panics_costs_only_itself() {
    let prompt = Prompt::new("greet", "Greets", Lane::Inline, |who: Named, _: Ctx| who.name)
        .complete("name", |_| panic!("as it should"));
    let running = start(Server::builder().prompt(prompt), |_| {});
    let params =
        json!({ "ref": { "type": "ref/prompt", "name": "greet" }, "argument": { "name": "name", "value": "x" } });
    let request = modern(1, "completion/complete", params);
    let mut client = Client::connect(running.addr());
    for _ in 0..2 {
        let headers = [("MCP-Protocol-Version", "2026-07-28"), ("Mcp-Method", "completion/complete")];
        client.send(&post_bytes(&headers, request.to_string().as_bytes()));
        let answer = client.receive().expect("an answer").json();
        assert_eq!(answer["result"]["completion"]["values"], json!([]), "{answer}");
    }
    running.stop();
}

#[test]
fn a_connection_is_let_go_only_when_the_client_can_come_back() {
    let (running, gate) = lasting(1);
    // Streams of this revision begin without an event, so that its client has no id yet.
    let session = Session::open(running.addr(), "2025-06-18");
    let mut stream = session.stream(running.addr(), 1, "tools/call", json!({ "name": "last", "arguments": {} }));
    eventually("it runs", || running.in_flight() == 1);
    gate.add_permits(1);
    assert_eq!(stream.message()["result"]["content"][0]["text"], "x");
    // And with as many streams as a session may have, the next call has none to come back to.
    let session = Session::open(running.addr(), "2025-11-25");
    let open: Vec<_> = (0..8).map(|_| session.listen(running.addr(), None)).collect();
    let mut stream = session.stream(running.addr(), 1, "tools/call", json!({ "name": "last", "arguments": {} }));
    eventually("it runs", || running.in_flight() == 1);
    gate.add_permits(1);
    assert_eq!(stream.message()["result"]["content"][0]["text"], "x");
    drop(open);
    running.stop();
}

#[test]
fn the_end_of_a_session_ends_its_calls_and_questions() {
    let (running, gate) = lasting(1);
    let (session, first) = begin(&running);
    session.end();
    eventually("the call is taken back", || running.in_flight() == 0);
    drop(gate);
    let server = Server::builder().async_tool("ask", "Asks", |_: Nothing, ctx: Ctx| async move {
        let form = json!({ "type": "object", "properties": {} });
        ctx.ask("who", Input::elicit("Who?", form)).await.map(|answer| answer.to_string())
    });
    let other = start(server, |_| {});
    let session = Session::open_with(other.addr(), "2025-11-25", json!({ "elicitation": {} }));
    let mut stream = session.stream(other.addr(), 1, "tools/call", json!({ "name": "ask", "arguments": {} }));
    while stream.message()["method"] != "elicitation/create" {}
    session.end();
    eventually("nobody is asked any more", || other.in_flight() == 0);
    assert!(!first.is_empty());
    other.stop();
    running.stop();
}

#[test]
fn an_id_beyond_what_was_said_is_none() {
    let (running, gate) = lasting(1);
    let (session, first) = begin(&running);
    let stream = first.rsplit_once('-').expect("an id has a number").0.to_owned();
    for number in ["1", "7", "18446744073709551615"] {
        assert!(session.listen(running.addr(), Some(&format!("{stream}-{number}"))).has_nothing(), "{number}");
    }
    gate.add_permits(1);
    let message = session.listen(running.addr(), Some(&first)).message();
    assert_eq!(message["result"]["content"][0]["text"], "x", "whom the others did not disturb");
    running.stop();
}
