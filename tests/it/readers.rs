//! Readers of streams that a server meets in the wild: thousands of them, some that do not read or hardly do, some that
//! hear nothing for long. What streams say, and that nothing is lost, is in `streams`.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use bigiron::{Ctx, Lane, LogLevel, Server, config::Tuning, server::Running, units::ByteSize};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::support::{
    Client, Process, Session, Stream, call, connections_that_fit, eventually, listen, meta, modern, modern_headers,
    post_bytes, start,
};

/// What `report` says, in lines of this size, before its result.
const REPORT_LINES: usize = 60;
const REPORT_LINE: usize = 8 * 1024;

struct Served {
    running: Running,
    changes: bigiron::Changes,
    /// Runs of `report` that are not over.
    inside: Arc<AtomicUsize>,
    /// `wait` goes on by one of these.
    go: Arc<Semaphore>,
}

/// Counts a running call, down again when it is dropped.
struct Inside(Arc<AtomicUsize>);

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn serve(tune: impl FnOnce(&mut Tuning)) -> Served {
    let (inside, go) = (Arc::<AtomicUsize>::default(), Arc::new(Semaphore::new(0)));
    let (counted, awaited) = (Arc::clone(&inside), Arc::clone(&go));
    let server = Server::builder()
        .tool("quick", "Answers at once", Lane::Inline, |(): (), _| "quick")
        .async_tool("wait", "Says that it waits, and waits", move |(): (), ctx: Ctx| {
            let go = Arc::clone(&awaited);
            async move {
                ctx.log(LogLevel::Info, &"waiting");
                if let Ok(permit) = go.acquire().await {
                    permit.forget();
                }
                "waited"
            }
        })
        .async_tool("report", "Says more than a socket takes in", move |(): (), ctx: Ctx| {
            counted.fetch_add(1, Ordering::SeqCst);
            let inside = Inside(Arc::clone(&counted));
            async move {
                let _inside = inside;
                let line = "x".repeat(REPORT_LINE);
                for _ in 0..REPORT_LINES {
                    ctx.log(LogLevel::Info, &line);
                    tokio::task::yield_now().await;
                }
                "reported"
            }
        });
    let changes = server.changes();
    let running = start(server, |tuning| {
        tuning.limits.request_timeout_ms = 25_000;
        tune(tuning);
    });
    Served { running, changes, inside, go }
}

/// A session that hears what tools log.
fn session(served: &Served) -> Session {
    let mut session = Session::open(served.running.addr(), "2025-11-25");
    assert_eq!(session.request(90, "logging/setLevel", json!({ "level": "debug" })).status, 200);
    session
}

fn modern_bytes(id: usize, tool: &str) -> Vec<u8> {
    let mut params = json!({ "name": tool, "_meta": meta() });
    params["_meta"]["io.modelcontextprotocol/logLevel"] = "debug".into();
    post_bytes(&modern_headers("tools/call", tool), modern(id, "tools/call", params).to_string().as_bytes())
}

fn session_bytes(session: &Session, id: usize, tool: &str) -> Vec<u8> {
    let request = json!({ "jsonrpc": "2.0", "id": id, "method": "tools/call", "params": { "name": tool } });
    post_bytes(&[("Mcp-Session-Id", &session.id)], request.to_string().as_bytes())
}

#[test]
fn silent_streams_say_now_and_then_that_they_are_there() {
    let served = serve(|tuning| tuning.limits.stream_keep_alive_s = 1);
    let addr = served.running.addr();
    let session = session(&served);
    let mut of_changes = [listen(addr, 1, json!({ "toolsListChanged": true })), session.listen(addr, None)];
    let mut of_calls = [
        Client::connect(addr).open(&modern_bytes(2, "wait")),
        Client::connect(addr).open(&session_bytes(&session, 3, "wait")),
    ];
    assert_eq!(of_changes[0].message()["method"], "notifications/subscriptions/acknowledged");
    assert_eq!(of_changes[1].comment(), ": open");
    for stream in &mut of_calls {
        assert_eq!(stream.message()["params"]["data"], "waiting");
    }
    for stream in of_changes.iter_mut().chain(&mut of_calls) {
        assert_eq!(stream.comment(), ": keep-alive");
        assert_eq!(stream.comment(), ": keep-alive");
    }
    // What comes after comments is read as ever.
    served.changes.tools();
    for stream in &mut of_changes {
        assert_eq!(stream.message()["method"], "notifications/tools/list_changed");
    }
    served.go.add_permits(of_calls.len());
    for stream in &mut of_calls {
        assert_eq!(stream.message()["result"]["content"][0]["text"], "waited");
        assert!(stream.next().is_none(), "nothing after the answer");
    }
}

/// 1,000 calls of 125 sessions, as many as each can have, and of clients that have none: all let go when their time is up,
/// and who reads is served meanwhile, in the same session too.
#[test]
fn a_thousand_readers_that_do_not_read_are_let_go() {
    const READERS: usize = 1000;
    const IN_A_SESSION: usize = 7; // and one that reads
    let served = serve(|tuning| {
        tuning.limits.write_timeout_ms = 3_000;
        tuning.limits.connections_max = 2 * READERS;
        tuning.limits.concurrent_requests_max = 2 * READERS;
        tuning.sessions.per_caller_max = READERS;
    });
    let addr = served.running.addr();
    let (mut stuck, mut sessions) = (Vec::new(), Vec::new());
    for id in 0..READERS {
        let bytes = if id % 2 == 0 {
            modern_bytes(id, "report")
        } else {
            if sessions.len() * IN_A_SESSION <= id / 2 {
                sessions.push(session(&served));
            }
            session_bytes(&sessions[sessions.len() - 1], id, "report")
        };
        let stream = Client::connect_narrow(addr).open(&bytes);
        assert_eq!(stream.status, 200);
        stuck.push(stream);
    }
    assert_eq!(call(addr, "quick", json!({})).text(), "quick");
    let mut reading = sessions[0].stream(addr, "reading", "tools/call", json!({ "name": "report" }));
    let mut lines = 0;
    let result = loop {
        let message = reading.message();
        if message.get("result").is_some() {
            break message;
        }
        lines += 1;
    };
    assert_eq!(result["result"]["content"][0]["text"], "reported");
    assert!(lines > 0, "its lines, as far as it kept up");
    drop(reading);
    // The sessions' own connections stay.
    eventually("the connections of all who do not read are closed", || served.running.connections() <= sessions.len());
    eventually("nothing runs for them", || {
        served.running.in_flight() == 0 && served.inside.load(Ordering::SeqCst) == 0
    });
    drop(stuck);
    assert_eq!(call(addr, "quick", json!({})).text(), "quick");
}

#[test]
fn a_reader_of_a_byte_now_and_then_is_let_go_and_what_it_missed_is_kept() {
    let served = serve(|tuning| {
        tuning.limits.write_timeout_ms = 500;
        tuning.limits.stream_buffer_bytes_max = ByteSize::mib(1); // all of a report
    });
    let addr = served.running.addr();
    let session = session(&served);
    let connections = served.running.connections();
    let is_enough = Arc::<AtomicBool>::default();
    let trickle = |stream: Stream| {
        let is_enough = Arc::clone(&is_enough);
        thread::spawn(move || stream.trickle(Duration::from_millis(20), &is_enough))
    };
    // In a session: the report is whole when its client comes back.
    let mut slow = Client::connect_narrow(addr).open(&session_bytes(&session, 1, "report"));
    let first = slow.next().and_then(|event| event.id).expect("an id to come back with");
    let slow = trickle(slow);
    // Without one: its call is given up.
    let mut given_up = Client::connect_narrow(addr).open(&modern_bytes(2, "report"));
    given_up.message();
    let given_up = trickle(given_up);
    eventually("both connections are closed", || {
        assert_eq!(call(addr, "quick", json!({})).text(), "quick", "others go on");
        served.running.connections() <= connections
    });
    is_enough.store(true, Ordering::SeqCst); // what lies in the kernel would last them for minutes
    for reader in [slow, given_up] {
        reader.join().expect("a reader");
    }
    eventually("nothing runs", || served.running.in_flight() == 0 && served.inside.load(Ordering::SeqCst) == 0);
    let mut rest = session.listen(addr, Some(&first));
    let messages: Vec<Value> = std::iter::from_fn(|| rest.next()).filter_map(|event| event.message).collect();
    let (result, lines) = messages.split_last().expect("messages");
    assert_eq!(result["result"]["content"][0]["text"], "reported");
    assert_eq!(lines.len(), REPORT_LINES, "nothing is missing");
}

/// 10,000 of them, or as many as the limit on open files of this process has room for (`ulimit -Hn`, some 14,000 needed
/// here and 10,100 in the server).
#[test]
fn ten_thousand_listeners_are_told_of_one_change() {
    let count = connections_that_fit(10_000);
    #[allow(clippy::print_stdout)] // for whoever wants to know what was shown here
    {
        println!("{count} listeners");
    }
    let room = format!("limits.connections_max={}", count + 100);
    let streams = format!("limits.streams_max={count}");
    let server = Process::start_example_with("everything", &["--set", &room, "--set", &streams]);
    let mut listeners: Vec<Stream> = (0..count)
        .map(|id| {
            let mut stream = listen(server.addr, id, json!({ "toolsListChanged": true }));
            assert_eq!(stream.message()["method"], "notifications/subscriptions/acknowledged");
            stream
        })
        .collect();
    let mut client = Client::connect(server.addr);
    let mut call = |id: usize, tool: &str| {
        let request = modern(id, "tools/call", json!({ "name": tool }));
        assert_eq!(client.post(&modern_headers("tools/call", tool), &request).status, 200);
    };
    call(1, "test_simple_text");
    call(2, "test_trigger_tool_change");
    call(3, "test_simple_text");
    for (id, stream) in listeners.iter_mut().enumerate() {
        let message = stream.message();
        assert_eq!(message["method"], "notifications/tools/list_changed");
        assert_eq!(message["params"]["_meta"]["io.modelcontextprotocol/subscriptionId"], id);
    }
    call(4, "test_simple_text");
}
