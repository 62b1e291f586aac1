//! Streams: what changes is told to those who asked, a lost connection loses nothing, and a reader that does not read
//! hurts only itself. In both eras.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use bigiron::{Changes, Ctx, Input, Lane, LogLevel, Resource, Server, error::CallError, server::Running};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::support::{Client, Session, Stream, call, eventually, listen, modern, modern_headers, post_bytes, start};

/// What `steps` says before it is done.
const STEPS: usize = 5;

struct Served {
    running: Running,
    changes: Changes,
    /// Runs of `slow`.
    runs: Arc<AtomicUsize>,
    /// `tell` says a line for each of these, and ends when it is closed.
    tell: Arc<Semaphore>,
}

fn serve(tune: impl FnOnce(&mut bigiron::config::Tuning)) -> Served {
    let runs = Arc::<AtomicUsize>::default();
    let counted = Arc::clone(&runs);
    let tell = Arc::new(Semaphore::new(0));
    let told = Arc::clone(&tell);
    let server = Server::builder()
        .tool("quick", "Answers at once", Lane::Inline, |(): (), _| "quick")
        .tool("change_inline", "Says that the list of tools has changed", Lane::Inline, |(): (), ctx: Ctx| {
            ctx.changes().tools();
            "said"
        })
        .tool("change_pool", "Says that the list of tools has changed", Lane::Pool, |(): (), ctx: Ctx| {
            ctx.changes().tools();
            "said"
        })
        .async_tool("steps", "Logs some lines", |(): (), ctx: Ctx| async move {
            for step in 1..=STEPS {
                ctx.log(LogLevel::Info, &step);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            "stepped"
        })
        .async_tool("slow", "Lets its connection go", move |(): (), ctx: Ctx| {
            counted.fetch_add(1, Ordering::SeqCst);
            async move {
                ctx.release_connection();
                tokio::time::sleep(Duration::from_millis(100)).await;
                "slowly"
            }
        })
        .async_tool("tell", "Logs a line whenever it is told to", move |(): (), ctx: Ctx| {
            let told = Arc::clone(&told);
            async move {
                for line in 0.. {
                    let Ok(permit) = told.acquire().await else { break };
                    permit.forget();
                    ctx.log(LogLevel::Info, &line);
                }
                "told"
            }
        })
        .async_tool("talk", "Logs as much as it can", |(): (), ctx: Ctx| async move {
            let line = "x".repeat(1000);
            while !ctx.is_cancelled() {
                ctx.log(LogLevel::Info, &line);
                tokio::task::yield_now().await;
            }
            "talked"
        })
        .async_tool("ask", "Asks the user for a name", |(): (), ctx: Ctx| async move {
            let schema = json!({ "type": "object", "properties": { "name": { "type": "string" } } });
            let answer = ctx.ask("name", Input::elicit("Who are you?", schema)).await?;
            Ok::<_, CallError>(format!("Hello, {}!", answer["content"]["name"].as_str().unwrap_or("nobody")))
        })
        .resource(Resource::new("test://one", "one", "A resource", "text/plain", Lane::Inline, |_, _| "one"));
    let changes = server.changes();
    let running = start(server, |tuning| {
        tuning.limits.request_timeout_ms = 20_000;
        tune(tuning);
    });
    Served { running, changes, runs, tell }
}

fn with_logs(session: &mut Session) {
    assert_eq!(session.request(90, "logging/setLevel", json!({ "level": "debug" })).status, 200);
}

#[test]
fn each_message_of_a_session_is_on_one_of_its_streams() {
    let served = serve(|_| {});
    let addr = served.running.addr();
    let mut session = Session::open(addr, "2025-11-25");
    assert_eq!(session.request(1, "resources/subscribe", json!({ "uri": "test://one" })).status, 200);
    let mut streams: Vec<Stream> = (0..8).map(|_| session.listen(addr, None)).collect();
    assert!(streams.iter().all(|s| s.status == 200));
    assert_eq!(session.listen(addr, None).status, 409, "the ninth");
    served.changes.resource("test://one");
    served.changes.resource("test://other");
    served.changes.tools();
    let said = Arc::<parking_lot::Mutex<Vec<String>>>::default();
    let readers: Vec<_> = streams
        .drain(..)
        .map(|mut stream| {
            let said = Arc::clone(&said);
            thread::spawn(move || {
                while let Some(event) = stream.next() {
                    let message = event.message.expect("a message");
                    assert!(event.id.is_some(), "each event can be come back to");
                    said.lock().push(message["method"].as_str().unwrap_or_default().to_owned());
                }
            })
        })
        .collect();
    eventually("both changes are told", || said.lock().len() >= 2);
    session.end(); // which ends its streams
    readers.into_iter().for_each(|reader| reader.join().expect("a reader"));
    let mut said = said.lock().clone();
    said.sort();
    assert_eq!(said, ["notifications/resources/updated", "notifications/tools/list_changed"]);
}

#[test]
fn a_lost_stream_goes_on_with_nothing_lost_or_doubled() {
    let served = serve(|_| {});
    let addr = served.running.addr();
    let mut session = Session::open(addr, "2025-11-25");
    with_logs(&mut session);
    let whole: Vec<Value> = (1..=STEPS).map(|n| json!(n)).collect();
    for read_before in 1..=STEPS {
        let id = format!("call-{read_before}");
        let mut stream = session.stream(addr, id.as_str(), "tools/call", json!({ "name": "steps" }));
        let first = stream.next().expect("the first event");
        assert!(first.message.is_none() && first.retry_ms.is_some(), "an id to come back with: {first:?}");
        let (mut last, mut data) = (first.id.expect("an id"), Vec::new());
        for _ in 0..read_before {
            let event = stream.next().expect("a line");
            last = event.id.expect("an id");
            data.push(event.message.expect("a message")["params"]["data"].clone());
        }
        stream.hang_up();
        let mut rest = session.listen(addr, Some(&last));
        assert_eq!(rest.status, 200);
        let result = loop {
            let message = rest.message();
            if message.get("result").is_some() {
                break message;
            }
            data.push(message["params"]["data"].clone());
        };
        assert_eq!(data, whole, "{read_before} events were read before the connection ended");
        assert_eq!(result["id"], id);
        assert_eq!(result["result"]["content"][0]["text"], "stepped");
        assert!(rest.next().is_none(), "the stream ends with the answer");
        // Within its time the answer can be had again.
        let mut again = session.listen(addr, Some(&last));
        let messages: Vec<Value> = std::iter::from_fn(|| again.next()).filter_map(|e| e.message).collect();
        assert_eq!(messages.last(), Some(&result));
    }
}

#[test]
fn a_tool_lets_its_connection_go_and_runs_once() {
    let served = serve(|_| {});
    let addr = served.running.addr();
    let session = Session::open(addr, "2025-11-25");
    let mut stream = session.stream(addr, 1, "tools/call", json!({ "name": "slow" }));
    let first = stream.next().expect("the first event");
    assert!(stream.next().is_none(), "the server ends the stream");
    let mut rest = session.listen(addr, first.id.as_deref());
    assert_eq!(rest.message()["result"]["content"][0]["text"], "slowly");
    assert_eq!(served.runs.load(Ordering::SeqCst), 1);
}

#[test]
fn event_ids_open_their_own_stream_and_no_other() {
    let served = serve(|tuning| tuning.sessions.resume_s = 1);
    let addr = served.running.addr();
    let mut mine = Session::open(addr, "2025-11-25");
    let mut other = Session::open(addr, "2025-11-25");
    with_logs(&mut mine);
    with_logs(&mut other);
    let mut stream = mine.stream(addr, 1, "tools/call", json!({ "name": "steps" }));
    let id = stream.next().and_then(|e| e.id).expect("an id");
    let mut theirs = other.stream(addr, 1, "tools/call", json!({ "name": "steps" }));
    theirs.next().expect("an event");
    assert!(other.listen(addr, Some(&id)).has_nothing(), "another session's");
    for wrong in ["0", "x-y-z", &id.replace("-0-", "-7-"), &"9".repeat(5000)] {
        assert!(mine.listen(addr, Some(wrong)).has_nothing(), "{wrong}");
    }
    while stream.next().is_some() {}
    // Kept for a second, and not for ever.
    eventually("the stream is forgotten", || mine.listen(addr, Some(&id)).has_nothing());
}

#[test]
fn what_was_dropped_is_not_skipped_in_silence() {
    const LINES: usize = 30;
    let served = serve(|tuning| tuning.limits.stream_buffer_bytes_max = bigiron::units::ByteSize(1024));
    let addr = served.running.addr();
    let mut session = Session::open(addr, "2025-11-25");
    with_logs(&mut session);
    let mut stream = session.stream(addr, 1, "tools/call", json!({ "name": "tell" }));
    let mut ids = vec![stream.next().and_then(|e| e.id).expect("an id")];
    let mut sizes = vec![0];
    for line in 0..LINES {
        // The next line is said when this one has been read, so that who reads misses none.
        served.tell.add_permits(1);
        let event = stream.next().expect("a line");
        let message = event.message.expect("a message");
        assert_eq!(message["params"]["data"], line);
        ids.push(event.id.expect("an id"));
        sizes.push(message.to_string().len());
    }
    stream.hang_up();
    // The kept lines are the newest that have room.
    let mut room: usize = 1024;
    let kept = sizes.iter().rev().take_while(|size| room.checked_sub(**size).map(|left| room = left).is_some()).count();
    assert!(kept > 2 && kept < LINES / 2, "{kept} lines of {sizes:?} are kept");
    let first_kept = ids.len() - kept;
    for dropped in [0, 1, first_kept - 2] {
        assert!(session.listen(addr, Some(&ids[dropped])).has_nothing(), "what followed {dropped} is dropped");
    }
    let mut rest = session.listen(addr, Some(&ids[first_kept - 1]));
    for line in first_kept - 1..LINES {
        assert_eq!(rest.message()["params"]["data"], line, "line {first_kept} and on");
    }
    served.tell.close();
    assert_eq!(rest.message()["result"]["content"][0]["text"], "told");
    assert!(rest.next().is_none());
}

#[test]
fn questions_are_answered_on_other_connections() {
    let served = serve(|_| {});
    let addr = served.running.addr();
    for version in ["2025-11-25", "2025-06-18"] {
        let session = Session::open_with(addr, version, json!({ "elicitation": {} }));
        let mut stream = session.stream(addr, 7, "tools/call", json!({ "name": "ask" }));
        let question = stream.message();
        assert_eq!(question["method"], "elicitation/create");
        assert_eq!(question["params"]["message"], "Who are you?");
        let other = Session::open(addr, version);
        assert_eq!(other.answer(addr, &question, json!({})).status, 400, "not this session's question");
        let answer = json!({ "action": "accept", "content": { "name": "Ada" } });
        assert_eq!(session.answer(addr, &question, answer.clone()).status, 202);
        assert_eq!(stream.message()["result"]["content"][0]["text"], "Hello, Ada!");
        assert_eq!(session.answer(addr, &question, answer).status, 400, "answered already");
    }
    let mut unable = Session::open(addr, "2025-11-25");
    let refused = unable.request(1, "tools/call", json!({ "name": "ask" }));
    assert_eq!(refused.code(), Some(-32021));
}

#[test]
fn a_question_of_the_new_revision_is_a_round() {
    let served = serve(|_| {});
    let addr = served.running.addr();
    let headers = modern_headers("tools/call", "ask");
    let mut params = json!({ "name": "ask", "arguments": {} });
    params["_meta"] = crate::support::meta();
    params["_meta"]["io.modelcontextprotocol/clientCapabilities"] = json!({ "elicitation": {} });
    let asked = Client::connect(addr).post(&headers, &modern(1, "tools/call", params.clone())).json();
    assert_eq!(asked["result"]["resultType"], "input_required", "{asked}");
    assert_eq!(asked["result"]["inputRequests"]["name"]["method"], "elicitation/create");
    params["inputResponses"] = json!({ "name": { "action": "accept", "content": { "name": "Ada" } }, "more": {} });
    let answered = Client::connect(addr).post(&headers, &modern(2, "tools/call", params.clone()));
    assert_eq!(answered.text(), "Hello, Ada!");
    params["requestState"] = "forged".into();
    let refused = Client::connect(addr).post(&headers, &modern(3, "tools/call", params));
    assert_eq!(refused.code(), Some(-32602));
}

#[test]
fn a_listener_hears_what_it_asked_for_and_the_acknowledgement_first() {
    let served = serve(|_| {});
    let addr = served.running.addr();
    let filter = json!({
        "toolsListChanged": true, "promptsListChanged": true, "resourceSubscriptions": ["test://one"], "weather": true
    });
    let mut stream = listen(addr, "my-id", filter);
    assert_eq!(stream.status, 200);
    assert!(stream.headers.iter().any(|(n, v)| n == "x-accel-buffering" && v == "no"));
    let first = stream.message();
    assert_eq!(first["method"], "notifications/subscriptions/acknowledged");
    let accepted = json!({ "toolsListChanged": true, "resourceSubscriptions": ["test://one"] });
    assert_eq!(first["params"]["notifications"], accepted, "what is not offered is left out");
    served.changes.resources();
    served.changes.resource("test://one");
    let second = stream.message();
    assert_eq!(second["method"], "notifications/resources/updated");
    assert_eq!(second["params"]["uri"], "test://one");
    for message in [&first, &second] {
        assert_eq!(message["params"]["_meta"]["io.modelcontextprotocol/subscriptionId"], "my-id");
    }
    let uris: Vec<String> = (0..100_000).map(|n| format!("a:{n}")).collect();
    for wrong in [json!({ "resourceSubscriptions": uris }), json!({ "toolsListChanged": 1 }), json!([]), Value::Null] {
        let request = modern(1, "subscriptions/listen", json!({ "notifications": wrong }));
        let refused = Client::connect(addr).post(&modern_headers("subscriptions/listen", ""), &request);
        assert!(matches!(refused.code(), Some(-32602)) || refused.status == 413, "{refused:?}");
    }
}

#[test]
fn tools_of_all_lanes_tell_of_changes() {
    let served = serve(|_| {});
    let addr = served.running.addr();
    let mut stream = listen(addr, 1, json!({ "toolsListChanged": true }));
    stream.message();
    for tool in ["change_inline", "change_pool"] {
        assert_eq!(call(addr, tool, json!({})).text(), "said");
        assert_eq!(stream.message()["method"], "notifications/tools/list_changed", "by {tool}");
    }
}

#[test]
fn a_flood_of_changes_is_few_messages() {
    let served = serve(|_| {});
    let addr = served.running.addr();
    let mut stream = listen(addr, 1, json!({ "toolsListChanged": true }));
    stream.message();
    let flood = {
        let changes = served.changes.clone();
        thread::spawn(move || {
            for _ in 0..1000 {
                changes.tools();
                thread::sleep(Duration::from_micros(500));
            }
        })
    };
    stream.message();
    flood.join().expect("the flood ends");
    let stopped = served.running;
    let ending = thread::spawn(move || stopped.stop());
    let mut told = 1;
    let last = loop {
        let message = stream.message();
        if message.get("result").is_some() {
            break message;
        }
        told += 1;
    };
    assert!(told <= 20, "{told} messages of 1000 changes in half a second or more");
    assert_eq!(last["id"], 1);
    assert_eq!(last["result"]["resultType"], "complete");
    assert!(stream.next().is_none(), "and then the stream ends");
    ending.join().expect("stops");
}

#[test]
fn many_listeners_are_all_told() {
    let served = serve(|tuning| tuning.limits.connections_max = 2000);
    let addr = served.running.addr();
    let mut streams: Vec<Stream> = (0..500).map(|id| listen(addr, id, json!({ "toolsListChanged": true }))).collect();
    streams.iter_mut().for_each(|s| drop(s.message()));
    served.changes.tools();
    for stream in &mut streams {
        assert_eq!(stream.message()["method"], "notifications/tools/list_changed");
    }
    assert_eq!(call(addr, "quick", json!({})).text(), "quick", "calls go on beside them");
    drop(streams);
    eventually("the streams are gone", || served.running.connections() == 0);
}

#[test]
fn streams_have_a_limit_of_their_own() {
    let served = serve(|tuning| tuning.limits.streams_max = 3);
    let addr = served.running.addr();
    let open = || listen(addr, 1, json!({ "toolsListChanged": true }));
    let mut streams: Vec<Stream> = (0..3).map(|_| open()).collect();
    streams.iter_mut().for_each(|s| drop(s.message()));
    let refused = open();
    assert_eq!(refused.status, 503);
    assert!(refused.headers.iter().any(|(name, _)| name == "retry-after"));
    assert_eq!(call(addr, "quick", json!({})).text(), "quick");
    drop(streams);
    eventually("there is room again", || open().status == 200);
}

#[test]
fn a_reader_that_does_not_read_hurts_only_itself() {
    let served = serve(|tuning| {
        tuning.limits.write_timeout_ms = 300;
        tuning.limits.request_timeout_ms = 10_000;
        tuning.sessions.idle_timeout_s = 1;
    });
    let addr = served.running.addr();
    let mut session = Session::open(addr, "2025-11-25");
    with_logs(&mut session);
    let connections = served.running.connections();
    let stuck = Client::connect(addr);
    stuck.narrow();
    let request = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": { "name": "talk" } });
    let stuck = stuck.open(&post_bytes(&[("Mcp-Session-Id", &session.id)], request.to_string().as_bytes()));
    assert_eq!(stuck.status, 200);
    // Another stream of the same session goes on.
    let mut other = session.stream(addr, 2, "tools/call", json!({ "name": "steps" }));
    let data: Vec<Value> = (0..STEPS).map(|_| other.message()["params"]["data"].clone()).collect();
    assert_eq!(data, (1..=STEPS).map(|n| json!(n)).collect::<Vec<_>>());
    drop(other);
    eventually("the stuck connection is closed", || served.running.connections() <= connections);
    session.notify("notifications/cancelled", json!({ "requestId": 1 }));
    drop((session, stuck));
    eventually("the session ends by its idle time", || served.running.sessions() == 0);
}

#[test]
fn batches_are_for_their_revision_only() {
    let served = serve(|_| {});
    let addr = served.running.addr();
    let mut session = Session::open(addr, "2025-03-26");
    let request = |id: i64, method: &str, params: Value| json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params });
    let batch = json!([
        request(1, "ping", json!({})),
        request(2, "tools/call", json!({ "name": "steps" })),
        { "jsonrpc": "2.0", "method": "notifications/initialized" },
        request(3, "tools/call", json!({ "name": "nothing like it" })),
        7,
        []
    ]);
    let id = session.id.clone();
    let answer = session.client.post(&[("Mcp-Session-Id", &id)], &batch);
    assert_eq!(answer.status, 200);
    let answers = answer.json();
    let answers = answers.as_array().expect("an array");
    assert_eq!(answers.len(), 5, "{answers:?}");
    assert_eq!(answers[0], json!({ "jsonrpc": "2.0", "id": 1, "result": {} }));
    assert_eq!(answers[1]["result"]["content"][0]["text"], "stepped");
    assert_eq!(answers[2]["error"]["code"], -32602);
    assert!(answers[3]["error"]["code"] == -32600 && answers[4]["error"]["code"] == -32600);
    let only_notifications = json!([{ "jsonrpc": "2.0", "method": "notifications/initialized" }]);
    assert_eq!(session.client.post(&[("Mcp-Session-Id", &id)], &only_notifications).status, 202);
    let long: Vec<_> = (0..101).map(|id| request(id, "ping", json!({}))).collect();
    for wrong in [json!([]), json!(long)] {
        assert_eq!(session.client.post(&[("Mcp-Session-Id", &id)], &wrong).code(), Some(-32600));
        session.client = Client::connect(addr); // a refusal of the whole ends the connection
    }
    let newer = Session::open(addr, "2025-06-18");
    let refused = Client::connect(addr).post(&[("Mcp-Session-Id", &newer.id)], &json!([request(1, "ping", json!({}))]));
    assert_eq!((refused.status, refused.code()), (400, Some(-32600)));
}
