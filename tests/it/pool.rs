//! The worker pool when it is full, when its tools hang, and when nobody waits any more. Gates and counters say when
//! things have happened; nothing here relies on how long they take.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Condvar,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use bigiron::{Ctx, Lane, Server, Tool, config::Tuning, dispatch::pool::OnFull, server::Running, tool::Config};
use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;

use crate::support::{Client, Response, call, eventually, get, modern, modern_headers, post_bytes, start};

#[derive(Deserialize, JsonSchema)]
struct Nothing {}

/// A tool that does not return before the gate is opened, and counts who went in.
#[derive(Default)]
struct Gate {
    open: std::sync::Mutex<bool>,
    opened: Condvar,
    entered: AtomicUsize,
    names: Mutex<Vec<String>>,
}

impl Gate {
    fn pass(&self) {
        self.names.lock().push(thread::current().name().unwrap_or("").to_owned());
        self.entered.fetch_add(1, Ordering::SeqCst);
        let mut open = self.open.lock().unwrap();
        while !*open {
            open = self.opened.wait(open).unwrap();
        }
    }

    fn open(&self) {
        *self.open.lock().unwrap() = true;
        self.opened.notify_all();
    }

    fn entered(&self) -> usize {
        self.entered.load(Ordering::SeqCst)
    }
}

/// A server whose tool `wait` stops at a gate: two pool threads at most, one place in the queue, two I/O threads.
fn gated(tune: impl FnOnce(&mut Tuning)) -> (Running, Arc<Gate>) {
    let gate = Arc::<Gate>::default();
    let inside = Arc::clone(&gate);
    let server = Server::builder()
        .tool("wait", "Waits for the gate", Lane::Pool, move |_: Nothing, _: Ctx| {
            inside.pass();
            "passed"
        })
        .tool("echo", "Answers at once", Lane::Inline, |_: Nothing, _: Ctx| "hello");
    let running = start(server, |tuning| {
        tuning.runtime.io_threads = 2;
        tuning.pool.threads = 1;
        tuning.pool.threads_max = 2;
        tuning.pool.queue_max = 1;
        tuning.limits.request_timeout_ms = 20_000;
        tune(tuning);
    });
    (running, gate)
}

/// Calls from a thread of its own.
fn call_aside(addr: SocketAddr) -> thread::JoinHandle<Response> {
    thread::spawn(move || call(addr, "wait", json!({})))
}

/// Fills both threads and the queue: three calls, of which two are in the tool.
fn fill(running: &Running, gate: &Gate) -> Vec<thread::JoinHandle<Response>> {
    let mut calls = vec![call_aside(running.addr())];
    eventually("the core thread takes the first", || gate.entered() == 1);
    calls.push(call_aside(running.addr()));
    eventually("the second waits in the queue", || running.in_flight() == 2);
    calls.push(call_aside(running.addr()));
    eventually("an extra thread takes the third", || gate.entered() == 2);
    calls
}

fn all_passed(calls: Vec<thread::JoinHandle<Response>>) {
    for call in calls {
        assert_eq!(call.join().unwrap().text(), "passed");
    }
}

#[test]
fn reject_refuses_at_once() {
    let (running, gate) = gated(|tuning| tuning.pool.on_full = OnFull::Reject);
    let calls = fill(&running, &gate);
    let refused = call(running.addr(), "wait", json!({}));
    assert_eq!((refused.status, refused.code()), (503, Some(-31503)), "{refused:?}");
    assert!(refused.header("retry-after").is_some());
    gate.open();
    all_passed(calls);
    assert_eq!(gate.entered(), 3, "what was refused did not run");
    running.stop();
}

#[test]
fn wait_waits_for_room() {
    let (running, gate) = gated(|tuning| tuning.pool.on_full = OnFull::Wait);
    let mut calls = fill(&running, &gate);
    calls.push(call_aside(running.addr()));
    eventually("the fourth is there and waits", || running.in_flight() == 4);
    assert_eq!(gate.entered(), 2);
    gate.open();
    all_passed(calls);
    assert_eq!(gate.entered(), 4);
    running.stop();
}

#[test]
fn wait_ends_at_the_deadline_without_a_run() {
    let (running, gate) = gated(|tuning| {
        tuning.pool.on_full = OnFull::Wait;
        tuning.limits.request_timeout_ms = 300;
    });
    let calls = fill(&running, &gate);
    let late = call(running.addr(), "wait", json!({}));
    assert_eq!((late.status, late.code()), (503, Some(-31504)), "{late:?}");
    // The two that run were answered at their deadline, the one in the queue was not started.
    let mut codes: Vec<_> = calls.into_iter().map(|c| c.join().unwrap()).map(|r| (r.code(), r.text())).collect();
    codes.sort();
    assert!(codes[0].0.is_none() && codes[0].1.contains("timed out"), "{codes:?}");
    assert!(codes[1].0.is_none() && codes[1].1.contains("timed out"), "{codes:?}");
    assert_eq!(codes[2].0, Some(-31504), "{codes:?}");
    gate.open();
    eventually("the threads are free again", || call(running.addr(), "wait", json!({})).text() == "passed");
    assert_eq!(gate.entered(), 3, "neither the expired job nor the late one ever ran");
    running.stop();
}

#[test]
fn caller_runs_takes_an_io_thread_and_never_the_last() {
    let (running, gate) = gated(|tuning| tuning.pool.on_full = OnFull::CallerRuns);
    let mut calls = fill(&running, &gate);
    calls.push(call_aside(running.addr()));
    eventually("an I/O thread runs the fourth itself", || gate.entered() == 3);
    calls.push(call_aside(running.addr()));
    eventually("the fifth is there, and waits", || running.in_flight() == 5);
    assert_eq!(gate.entered(), 3, "the last I/O thread is not lent");
    // Every worker and one of two I/O threads hang, and the queue is full; the rest of the server answers.
    assert_eq!(get(running.addr(), "/health").status, 200);
    assert_eq!(get(running.addr(), "/ready").status, 200);
    assert_eq!(get(running.admin_addr().unwrap(), "/health").status, 200);
    let list = modern(1, "tools/list", json!({}));
    let listed = Client::connect(running.addr()).post(&modern_headers("tools/list", "")[..2], &list);
    assert_eq!(listed.json()["result"]["tools"].as_array().map(Vec::len), Some(2));
    assert_eq!(call(running.addr(), "echo", json!({})).text(), "hello");
    let names = gate.names.lock().clone();
    assert_eq!(names.iter().filter(|n| n.starts_with("io")).count(), 1, "{names:?}");
    gate.open();
    all_passed(calls);
    running.stop();
}

#[test]
fn a_job_whose_client_left_does_not_run() {
    let (running, gate) = gated(|tuning| tuning.pool.threads_max = 1);
    let first = call_aside(running.addr());
    eventually("the only thread is taken", || gate.entered() == 1);
    let mut leaver = Client::connect(running.addr());
    let request = modern(1, "tools/call", json!({ "name": "wait", "arguments": {} }));
    leaver.send(&post_bytes(&modern_headers("tools/call", "wait"), request.to_string().as_bytes()));
    eventually("the second is there", || running.in_flight() == 2);
    drop(leaver);
    eventually("its leaving is noticed", || running.in_flight() == 1);
    gate.open();
    assert_eq!(first.join().unwrap().text(), "passed");
    assert_eq!(call(running.addr(), "wait", json!({})).text(), "passed");
    assert_eq!(gate.entered(), 2, "the job of the client that left never ran");
    running.stop();
}

#[test]
fn with_every_thread_in_a_hung_tool_the_rest_answers() {
    let (running, gate) = gated(|tuning| {
        tuning.pool.threads = 2;
        tuning.limits.request_timeout_ms = 300;
    });
    let hung: Vec<_> = (0..2).map(|_| call_aside(running.addr())).collect();
    for call in hung {
        let answer = call.join().unwrap().json();
        assert_eq!(answer["result"]["isError"], true, "{answer}");
    }
    assert_eq!(gate.entered(), 2, "both threads still hang");
    for path in ["/health", "/ready"] {
        assert_eq!(get(running.addr(), path).status, 200);
        assert_eq!(get(running.admin_addr().unwrap(), path).status, 200);
    }
    assert_eq!(call(running.addr(), "echo", json!({})).text(), "hello");
    gate.open();
    running.stop();
}

#[test]
fn what_a_tool_returns_after_its_deadline_is_not_used_and_not_kept() {
    let runs = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&runs);
    let tool =
        Tool::new("partial", "Stops when it is told to, with what it has", Lane::Pool, move |_: Nothing, ctx: Ctx| {
            count.fetch_add(1, Ordering::SeqCst);
            while !ctx.is_cancelled() {
                thread::yield_now();
            }
            "half of it"
        });
    let running = start(Server::builder().with(tool.read_only()), |tuning| {
        tuning.limits.request_timeout_ms = 100;
        tuning.tools.insert("partial".into(), Config { cache_ttl_s: Some(60), ..Config::default() });
    });
    for run in 1..=3 {
        let answer = call(running.addr(), "partial", json!({}));
        assert!(answer.text().contains("timed out"), "{answer:?}");
        assert_eq!(runs.load(Ordering::SeqCst), run, "nothing was kept");
    }
    running.stop();
}
