//! Sessions over several processes: opened on one, used on any, ended on all; nobody else's, and nothing of them to be
//! had from Redis.

use std::{
    collections::BTreeSet,
    io::{BufRead, BufReader},
    net::SocketAddr,
    process::{Child, Command, Stdio},
    sync::{
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
};

use serde_json::{Value, json};

use crate::{
    cluster::{metric, node, start},
    redis::{PATIENCE, Redis, Six},
    support::{Client, Process, Response, Session, Stream, eventually, get, post_bytes},
};

const UNKNOWN: &str = "0123456789abcdef0123456789abcdef0123456789abcdef";

fn everything(redis: &Redis, id: &str, more: &[&str]) -> Process {
    let args = node(redis, id);
    let args: Vec<_> = args.iter().map(String::as_str).chain(more.iter().copied()).collect();
    Process::start_example_with("everything", &args)
}

/// One request in a session, on a connection of its own.
fn ask(addr: SocketAddr, session: &str, method: &str, params: Value) -> Response {
    let request = json!({ "jsonrpc": "2.0", "id": 7, "method": method, "params": params });
    Client::connect(addr).post(&[("Mcp-Session-Id", session)], &request)
}

fn ping(server: &Process, session: &str) -> Response {
    ask(server.addr, session, "ping", json!({}))
}

fn end(server: &Process, session: &str) -> u16 {
    let mut client = Client::connect(server.addr);
    let head = "DELETE /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nMcp-Session-Id:";
    client.send(format!("{head} {session}\r\n\r\n").as_bytes());
    client.receive().expect("an answer").status
}

fn notify(addr: SocketAddr, session: &str, message: &Value) -> Response {
    Client::connect(addr).post(&[("Mcp-Session-Id", session)], message)
}

fn tool(session: &Session, server: &Process, id: u32, name: &str, arguments: Value) -> Stream {
    let params = json!({ "name": name, "arguments": arguments, "_meta": { "progressToken": 1 } });
    session.stream(server.addr, id, "tools/call", params)
}

/// How often Redis was asked this.
fn asked(redis: &Redis, command: &str) -> u64 {
    let stats = redis.cli(&["INFO", "commandstats"]);
    let line =
        stats.lines().find_map(|line| line.strip_prefix("cmdstat_")?.strip_prefix(command)?.strip_prefix(":calls="));
    line.map_or(0, |line| line.split(',').next().expect("a number").parse().expect("a number"))
}

/// All that Redis is told, as it is told.
struct Monitor(Child, mpsc::Receiver<String>);

impl Monitor {
    fn start(redis: &Redis) -> Self {
        let mut command = Command::new("redis-cli");
        command.args(["-p", &redis.port.to_string(), "MONITOR"]).stdout(Stdio::piped());
        let mut child = command.spawn().expect("redis-cli (package redis-tools) is there");
        let lines = BufReader::new(child.stdout.take().expect("piped")).lines();
        let (sender, receiver) = mpsc::channel();
        thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| sender.send(line)));
        assert_eq!(receiver.recv_timeout(PATIENCE).expect("it begins"), "OK");
        Self(child, receiver)
    }

    /// Everything up to a line with this text.
    fn until(&self, text: &str) -> Vec<String> {
        let mut lines = Vec::new();
        while lines.last().is_none_or(|line: &String| !line.contains(text)) {
            lines.push(self.1.recv_timeout(PATIENCE).expect("more is told"));
        }
        lines
    }
}

impl Drop for Monitor {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_session_is_used_on_any_process_and_ends_on_all() {
    let redis = Redis::start();
    let (mut a, mut b) = (start(&redis, "a", &[]), start(&redis, "b", &[]));
    let monitor = Monitor::start(&redis);
    let session = Session::open(a.addr, "2025-06-18");
    // Once looked up, then not any more.
    let before = asked(&redis, "getrange");
    assert_eq!(ping(&b, &session.id).status, 200);
    assert_eq!(asked(&redis, "getrange"), before + 1, "one round trip, once");
    for _ in 0..20 {
        assert_eq!((ping(&a, &session.id).status, ping(&b, &session.id).status), (200, 200));
    }
    assert_eq!(asked(&redis, "getrange"), before + 1);
    // What is no id is asked of nobody; what is none of ours, or has ended, is unknown everywhere.
    for odd in ["x", "0123", &UNKNOWN.to_uppercase(), &UNKNOWN.replace('0', "*")] {
        assert_eq!(ping(&b, odd).status, 404, "{odd}");
    }
    assert_eq!(asked(&redis, "getrange"), before + 1);
    assert_eq!(ping(&b, UNKNOWN).status, 404);
    let [key] = &redis.keys("mcp:session:")[..] else { panic!("one record") };
    let usage: u64 = redis.cli(&["MEMORY", "USAGE", key]).parse().expect("bytes");
    assert!(usage <= 1024, "{usage} bytes");
    let left_s: u64 = redis.cli(&["TTL", key]).parse().expect("it expires");
    assert!((3600..=3700).contains(&left_s), "{left_s}");
    assert_eq!(end(&b, &session.id), 204);
    eventually("it is gone on the other", || ping(&a, &session.id).status == 404);
    assert_eq!((ping(&b, &session.id).status, end(&a, &session.id)), (404, 404));
    redis.cli(&["ECHO", "the last word"]);
    let told = monitor.until("the last word");
    assert!(told.iter().any(|line| line.contains("mcp:session:{")), "{told:?}");
    assert!(!told.iter().any(|line| line.contains(&session.id)), "Redis never sees an id");
    // A session that is left behind by all is there for whoever starts next.
    let kept = Session::open(a.addr, "2025-11-25");
    for server in [&mut a, &mut b] {
        server.signal("TERM");
        assert_eq!(server.wait().code(), Some(0));
    }
    for key in redis.keys("mcp:") {
        assert!(key.starts_with("mcp:session") || key == "mcp:cluster", "{key} is left");
        assert_ne!(redis.cli(&["PTTL", &key]), "-1", "{key} expires by itself");
    }
    let c = start(&redis, "c", &[]);
    assert_eq!(ping(&c, &kept.id).status, 200);
}

#[test]
fn what_a_session_was_told_goes_with_it() {
    let redis = Redis::start();
    let (a, b) = (everything(&redis, "a", &[]), everything(&redis, "b", &[]));
    let mut session = Session::open(a.addr, "2025-06-18");
    assert_eq!(session.request(1, "logging/setLevel", json!({ "level": "debug" })).status, 200);
    let lines = |server: &Process| {
        let mut stream = tool(&session, server, 2, "test_tool_with_logging", json!({}));
        std::iter::from_fn(move || stream.next())
            .filter(|e| e.message.as_ref().is_some_and(|m| m.get("method").is_some()))
            .count()
    };
    assert_eq!(lines(&b), 3, "the level came with it");
    let quiet = ask(b.addr, &session.id, "logging/setLevel", json!({ "level": "error" }));
    assert_eq!(quiet.status, 200);
    let said = || ask(a.addr, &session.id, "tools/call", json!({ "name": "test_tool_with_logging", "arguments": {} }));
    eventually("the other hears of a new level", || said().header("content-type") == Some("application/json"));
    // Subscriptions that do not fit into a record are kept beside it.
    for n in 0..30 {
        let uri = format!("test://static-text?{n}&{}", "x".repeat(50));
        assert_eq!(ask(a.addr, &session.id, "resources/subscribe", json!({ "uri": uri })).status, 200);
    }
    let c = everything(&redis, "c", &[]);
    assert_eq!(ping(&c, &session.id).status, 200);
    for key in redis.keys("mcp:session:") {
        let usage: u64 = redis.cli(&["MEMORY", "USAGE", &key]).parse().expect("bytes");
        assert!(usage <= 1024 || !key.ends_with('}'), "{key}: {usage} bytes");
        assert_ne!(redis.cli(&["PTTL", &key]), "-1", "{key} expires by itself");
    }
    assert_eq!(end(&c, &session.id), 204);
    let is_left = |key: &String| key.ends_with('}') || key.ends_with(":topics");
    assert!(!redis.keys("mcp:session:").iter().any(is_left));
}

#[test]
fn a_session_is_its_owners_on_every_process() {
    let redis = Redis::start();
    let folder = tempfile::TempDir::new().expect("a folder");
    let file = folder.path().join("keys.toml").display().to_string();
    let key = |subject: &str| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_bigiron"));
        let made = command.args(["key", "create", "--file", &file, "--subject", subject]).output().expect("it runs");
        assert!(made.status.success(), "{made:?}");
        format!("Bearer {}", String::from_utf8(made.stdout).expect("text").trim())
    };
    let (ann, bob) = (key("ann"), key("bob"));
    let set = format!("auth.keys_file={file}");
    let (a, b) = (start(&redis, "a", &["--set", &set]), start(&redis, "b", &["--set", &set]));
    let params =
        json!({ "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": { "name": "t", "version": "1" } });
    let initialize = json!({ "jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params });
    let opened = Client::connect(a.addr).post(&[("Authorization", &ann)], &initialize);
    let id = opened.header("mcp-session-id").expect("a session").to_owned();
    let ping = |key: &str, id: &str| {
        let request = json!({ "jsonrpc": "2.0", "id": 1, "method": "ping" });
        let mut client = Client::connect(b.addr);
        client.send(&post_bytes(&[("Authorization", key), ("Mcp-Session-Id", id)], request.to_string().as_bytes()));
        client.receive().expect("an answer")
    };
    let without_date = |response: Response| {
        let headers: Vec<_> =
            response.headers.into_iter().filter(|(name, _)| !name.eq_ignore_ascii_case("date")).collect();
        (response.status, headers, response.body)
    };
    let (foreign, unknown) = (without_date(ping(&bob, &id)), without_date(ping(&bob, UNKNOWN)));
    assert_eq!(foreign.0, 404);
    assert_eq!(foreign, unknown, "nobody learns that it is there");
    assert_eq!(ping(&ann, &id).status, 200);
    assert_eq!(without_date(ping(&bob, &id)), unknown, "nor once it is here");
    for key in redis.keys("mcp:session:") {
        assert!(!redis.cli(&["GET", &key]).contains("ann"), "nor by reading Redis");
    }
}

#[test]
fn without_redis_known_sessions_go_on_and_others_are_for_later() {
    let mut redis = Redis::start();
    let (a, b) = (start(&redis, "a", &[]), start(&redis, "b", &[]));
    let here = Session::open(a.addr, "2025-06-18");
    assert_eq!(ping(&b, &here.id).status, 200);
    let only_a = Session::open(a.addr, "2025-06-18");
    redis.kill();
    for server in [&a, &b] {
        eventually("it is missed", || get(server.addr, "/ready").json()["cluster"] == "away");
        assert_eq!(ping(server, &here.id).status, 200, "a copy goes on");
    }
    assert_eq!(ping(&a, &only_a.id).status, 200);
    let later = ping(&b, &only_a.id);
    assert_eq!((later.status, later.header("retry-after")), (503, Some("1")), "not 404: it may be there");
    assert_eq!(ping(&b, "no id of ours").status, 404);
    let alone = Session::open(a.addr, "2025-06-18");
    assert_eq!(end(&b, &here.id), 204);
    redis.restart(); // with nothing in it
    for (session, what) in [(&only_a, "of before"), (&alone, "opened meanwhile")] {
        eventually(what, || match ping(&b, &session.id).status {
            200 => true,
            status => {
                assert_eq!(status, 503, "{what}: never unknown, since its client would give it up");
                false
            }
        });
        assert_eq!(ping(&a, &session.id).status, 200);
    }
    eventually("the end is told", || ping(&a, &here.id).status == 404);
    assert_eq!(ping(&b, &here.id).status, 404);
}

#[test]
fn a_session_that_nobody_uses_ends_everywhere() {
    let redis = Redis::start();
    let short = ["--set", "sessions.idle_timeout_s=1"];
    let (a, b) = (start(&redis, "a", &short), start(&redis, "b", &short));
    let session = Session::open(a.addr, "2025-06-18");
    assert_eq!(ping(&b, &session.id).status, 200);
    eventually("its record expires", || redis.keys("mcp:session:").is_empty());
    assert_eq!((ping(&a, &session.id).status, ping(&b, &session.id).status), (404, 404));
}

#[test]
fn answers_and_cancels_reach_the_call_wherever_it_runs() {
    let redis = Redis::start();
    let (a, b) = (everything(&redis, "a", &[]), everything(&redis, "b", &[]));
    let session = Session::open_with(a.addr, "2025-11-25", json!({ "elicitation": {}, "sampling": {} }));
    let mut call = tool(&session, &a, 1, "test_elicitation", json!({ "message": "Who?" }));
    let question = call.message();
    assert_eq!(question["method"], "elicitation/create");
    assert!(question["id"].as_u64().is_some_and(|id| id < 1 << 53), "a number that every client keeps: {question}");
    // Nobody asked this, and nobody of this name is there.
    let strange = json!({ "id": question["id"].as_u64().expect("a number") ^ (1 << 40) });
    assert_eq!(session.answer(b.addr, &strange, json!({})).status, 400);
    let answer = json!({ "action": "accept", "content": { "username": "ann", "email": "a@example.com" } });
    assert_eq!(session.answer(b.addr, &question, answer).status, 202);
    let done = call.message();
    assert!(done["result"]["content"][0]["text"].as_str().is_some_and(|text| text.contains("ann")), "{done}");
    // The same from the other side, and taken back from there.
    let mut call = tool(&session, &b, 2, "test_elicitation", json!({ "message": "Who?" }));
    assert_eq!(call.message()["method"], "elicitation/create");
    let cancel = json!({ "jsonrpc": "2.0", "method": "notifications/cancelled", "params": { "requestId": 2 } });
    assert_eq!(notify(a.addr, &session.id, &cancel).status, 202);
    while call.next().is_some() {}
    // A session's end takes its calls back wherever they run.
    let mut call = tool(&session, &b, 3, "test_elicitation", json!({ "message": "Who?" }));
    assert_eq!(call.message()["method"], "elicitation/create");
    assert_eq!(end(&a, &session.id), 204);
    while call.next().is_some() {}
    assert_eq!(ping(&b, &session.id).status, 404);
}

/// Keys of one session share a slot, so nothing of it depends on which node has what.
#[test]
fn in_a_cluster_of_redis_it_is_the_same() {
    let six = Six::start();
    let url = format!("cluster.redis={}", six.url());
    let [a, b] = ["a", "b"].map(|id| everything(&six.0[0], id, &["--set", &url]));
    let session = Session::open_with(a.addr, "2025-11-25", json!({ "elicitation": {} }));
    let mut call = tool(&session, &a, 1, "test_elicitation", json!({ "message": "Who?" }));
    let first = call.next().expect("an event to come back to").id.expect("an id");
    let question = call.message();
    let mut on_b = session.listen(b.addr, Some(&first));
    assert_eq!(on_b.message(), question);
    assert_eq!(call.next(), None, "it is read elsewhere by now");
    assert_eq!(session.answer(b.addr, &question, json!({ "action": "decline" })).status, 202);
    let [(id, done)] = &rest(&mut on_b)[..] else { panic!("one more") };
    assert!(done.get("result").is_some(), "{done}");
    assert_eq!(*id, format!("{}2", first.strip_suffix('0').expect("the first")));
    let cut = tool(&session, &a, 2, "test_elicitation", json!({ "message": "Who?" })).message();
    assert_eq!(cut["method"], "elicitation/create");
    assert_eq!(end(&b, &session.id), 204);
    eventually("it is gone on the other", || ping(&a, &session.id).status == 404);
}

/// What a stream says from here on: ids of events and messages, until it ends.
fn rest(stream: &mut Stream) -> Vec<(String, Value)> {
    let said = std::iter::from_fn(|| stream.next());
    said.filter_map(|event| Some((event.id?, event.message?))).collect()
}

fn number(id: &str) -> u64 {
    id.rsplit('-').next().expect("a number").parse().expect("a number")
}

#[test]
fn a_stream_is_read_on_at_any_process_without_gap_or_double() {
    let redis = Redis::start();
    let [a, b, c] = ["a", "b", "c"].map(|id| everything(&redis, id, &[]));
    let session = Session::open(a.addr, "2025-11-25");
    let mut stream = tool(&session, &a, 1, "test_reconnection", json!({}));
    let first = stream.next().expect("an event to come back to").id.expect("an id");
    let mut said = rest(&mut stream);
    assert!(!said.is_empty() && said.len() < 7, "the connection is let go in the middle: {said:?}");
    let mut last = said.last().expect("one").0.clone();
    let mut on_b = session.listen(b.addr, Some(&last));
    assert_eq!(on_b.status, 200);
    let next = on_b.next().expect("it goes on");
    last = next.id.expect("an id");
    said.push((last.clone(), next.message.expect("a message")));
    on_b.hang_up();
    said.extend(rest(&mut session.listen(c.addr, Some(&last))));
    let numbers: Vec<_> = said.iter().map(|(id, _)| number(id)).collect();
    assert_eq!(numbers, [1, 2, 3, 4, 5, 6, 7], "{said:?}");
    let steps: Vec<_> = said.iter().filter_map(|(_, message)| message["params"]["progress"].as_f64()).collect();
    assert_eq!(steps, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    assert_eq!(said.iter().filter(|(_, message)| message.get("result").is_some()).count(), 1);
    // Nothing comes after the end, and from the beginning all comes again, anywhere.
    for server in [&a, &b, &c] {
        let last = &said.last().expect("one").0;
        assert!(session.listen(server.addr, Some(last)).has_nothing());
    }
    for server in [&a, &b, &c] {
        assert_eq!(rest(&mut session.listen(server.addr, Some(&first))), said);
    }
    // Another session's id finds nothing.
    let other = Session::open(b.addr, "2025-11-25");
    assert!(other.listen(b.addr, Some(&first)).has_nothing());
}

#[test]
fn a_call_whose_process_dies_ends_once_and_says_so() {
    let redis = Redis::start();
    let [a, b, c] = ["a", "b", "c"].map(|id| everything(&redis, id, &[]));
    let session = Session::open_with(a.addr, "2025-11-25", json!({ "elicitation": {} }));
    let mut stream = tool(&session, &a, 1, "test_elicitation", json!({ "message": "Who?" }));
    let asked = std::iter::from_fn(|| stream.next()).find(|event| event.message.is_some()).expect("a question");
    let last = asked.id.expect("an id");
    eventually("it is kept", || !redis.keys("mcp:session:").iter().all(|key| !key.contains(":s:")));
    a.signal("KILL");
    let ends: Vec<_> = [&b, &c].map(|server| rest(&mut session.listen(server.addr, Some(&last)))).into();
    let [(id, end)] = &ends[0][..] else { panic!("one end: {ends:?}") };
    assert_eq!((number(id), &end["id"]), (number(&last) + 1, &json!(1)));
    assert!(end["error"]["message"].as_str().is_some_and(|text| text.contains("may have run")), "{end}");
    assert_eq!(ends[0], ends[1], "the same for all");
    assert_eq!(ping(&b, &session.id).status, 200, "the session lives");
}

/// A stream of the tool that takes steps, read until the first few are known to others.
fn some_steps(redis: &Redis, session: &Session, server: &Process, args: Value) -> Vec<(String, Value)> {
    some_steps_of("steps", redis, session, server, args)
}

fn some_steps_of(name: &str, redis: &Redis, session: &Session, server: &Process, args: Value) -> Vec<(String, Value)> {
    let mut stream = tool(session, server, 1, name, args);
    let said: Vec<_> = std::iter::from_fn(|| stream.next()).filter(|event| event.message.is_some()).take(3).collect();
    let said: Vec<_> = said.into_iter().filter_map(|event| Some((event.id?, event.message?))).collect();
    are_kept(redis, said.len());
    said
}

/// Waits until so many messages of the one stream that there is are known to others.
fn are_kept(redis: &Redis, count: usize) {
    let kept = || redis.keys("mcp:session:").into_iter().find(|key| key.contains(":s:"));
    eventually("all of it is kept", || {
        kept().is_some_and(|key| redis.cli(&["XLEN", &key]).parse().unwrap_or(0) > count)
    });
}

/// What was written last to the one stream that there is.
fn newest(redis: &Redis) -> String {
    let key = redis.keys("mcp:session:").into_iter().find(|key| key.contains(":s:")).expect("a stream");
    redis.cli(&["XREVRANGE", &key, "+", "-", "COUNT", "1"])
}

fn steps(said: &[(String, Value)]) -> Vec<f64> {
    said.iter().filter_map(|(_, message)| message["params"]["progress"].as_f64()).collect()
}

/// Ids without gap or double, and one end, which is the last.
fn whole(said: &[(String, Value)]) -> &Value {
    let numbers: Vec<_> = said.iter().map(|(id, _)| number(id)).collect();
    assert_eq!(numbers, (1..=said.len() as u64).collect::<Vec<_>>(), "{said:?}");
    let ends = said.iter().filter(|(_, message)| message.get("method").is_none()).count();
    assert_eq!(ends, 1, "{said:?}");
    &said.last().expect("one").1
}

#[test]
fn a_call_that_may_be_run_twice_is_run_again_where_its_client_comes_back() {
    let redis = Redis::start();
    let [a, b, c] = ["a", "b", "c"].map(|id| everything(&redis, id, &[]));
    let session = Session::open(a.addr, "2025-11-25");
    let args = json!({ "label": "x", "steps": 12, "pause_ms": 100 });
    let mut said = some_steps(&redis, &session, &a, args);
    a.signal("KILL");
    let last = said.last().expect("one").0.clone();
    // Who runs it again dies too, before it has said anything; then two find that out at once.
    let on_b = session.listen(b.addr, Some(&last));
    eventually("it is taken over", || newest(&redis).lines().any(|line| line == "f"));
    b.signal("KILL");
    on_b.hang_up();
    let d = everything(&redis, "d", &[]);
    let (mut on_c, mut on_d) = (session.listen(c.addr, Some(&last)), session.listen(d.addr, Some(&last)));
    let (on_c, on_d) = (rest(&mut on_c), rest(&mut on_d));
    // The later reader has all; the other was cut off, and what it has is the beginning of the same.
    assert!(on_d.starts_with(&on_c), "{on_c:?} {on_d:?}");
    said.extend(on_d);
    let end = whole(&said);
    assert_eq!((&end["id"], end["result"]["content"][0]["text"].as_str()), (&json!(1), Some("x took 12 steps")));
    assert_eq!(steps(&said), (1..=12).map(f64::from).collect::<Vec<_>>(), "told once each");
    let again = |server: &Process| metric(server, "bigiron_cluster_calls_taken_over_total{what=\"again\"}");
    assert_eq!(again(&c) + again(&d), 1.0, "by one of them");
    eventually("the request is not kept for longer", || {
        redis.keys("mcp:session:").iter().all(|key| !key.contains(":c:"))
    });
    for key in redis.keys("mcp:session:") {
        assert_ne!(redis.cli(&["PTTL", &key]), "-1", "{key} expires by itself");
    }
}

/// Connections that listen, by their ids in Redis.
fn listening(redis: &Redis) -> BTreeSet<String> {
    let list = redis.cli(&["CLIENT", "LIST", "TYPE", "pubsub"]);
    list.lines().filter_map(|line| Some(line.split(' ').next()?.strip_prefix("id=")?.to_owned())).collect()
}

/// Its subscriptions break as soon as they are made, as where Redis has no room for new connections; its lease is renewed.
#[test]
fn a_call_whose_process_is_not_heard_for_a_while_goes_on() {
    for name in ["steps_once", "steps"] {
        let redis = Redis::start();
        let b = everything(&redis, "b", &[]);
        let of_b = Session::open(b.addr, "2025-11-25");
        assert_eq!(ping(&b, &of_b.id).status, 200);
        let spared = listening(&redis);
        let a = everything(&redis, "a", &[]);
        let session = Session::open(a.addr, "2025-11-25");
        let is_over = AtomicBool::new(false);
        let (said, cut) = thread::scope(|scope| {
            let cutting = scope.spawn(|| {
                let mut cut = 0;
                while !is_over.load(Ordering::SeqCst) {
                    for id in listening(&redis).difference(&spared) {
                        redis.cli(&["CLIENT", "KILL", "ID", id]);
                        cut += 1;
                    }
                }
                cut
            });
            let args = json!({ "label": "x", "steps": 25, "pause_ms": 100 });
            let mut said = some_steps_of(name, &redis, &session, &a, args);
            let last = said.last().expect("one").0.clone();
            said.extend(rest(&mut session.listen(b.addr, Some(&last))));
            is_over.store(true, Ordering::SeqCst);
            (said, cutting.join().expect("no panic"))
        });
        assert!(cut >= 4, "it was not heard: {cut}");
        let end = whole(&said);
        assert_eq!(end["result"]["content"][0]["text"], "x took 25 steps", "{name}: {end}");
        for what in ["again", "error"] {
            let series = format!("bigiron_cluster_calls_taken_over_total{{what=\"{what}\"}}");
            assert_eq!(metric(&b, &series), 0.0, "{name}: {what}");
        }
    }
}

#[test]
fn a_call_that_is_taken_back_after_its_process_died_is_not_run_again() {
    let redis = Redis::start();
    let [a, b] = ["a", "b"].map(|id| everything(&redis, id, &[]));
    let session = Session::open(a.addr, "2025-11-25");
    let said = some_steps(&redis, &session, &a, json!({ "label": "x", "steps": 20, "pause_ms": 100 }));
    let cancel = |id: Value| {
        let cancel = json!({ "jsonrpc": "2.0", "method": "notifications/cancelled", "params": { "requestId": id } });
        assert_eq!(notify(b.addr, &session.id, &cancel).status, 202);
    };
    a.signal("KILL");
    cancel(json!("1")); // another
    cancel(json!(1));
    (100..110).for_each(|id| cancel(json!(id)));
    let runs = |message: &Value| message["params"]["message"].as_str().map(str::to_owned); // it says which process it is
    let first = runs(&said[0].1).expect("a step");
    for (_, message) in rest(&mut session.listen(b.addr, Some(&said.last().expect("one").0))) {
        assert_eq!(runs(&message), Some(first.clone()), "no answer, and no work: {message}");
    }
    assert_eq!(metric(&b, "bigiron_cluster_calls_taken_over_total{what=\"again\"}"), 0.0);
    assert_eq!(newest(&redis).lines().next().map(|id| id.ends_with("-9")), Some(true), "it has ended for all");
    (0..100).for_each(|id| cancel(json!(format!("{id}").repeat(1000))));
    let marks = redis.keys("mcp:session:").into_iter().find(|key| key.ends_with(":x")).expect("what was taken back");
    assert_eq!(redis.cli(&["LLEN", &marks]), "16", "of so many only");
    assert_ne!(redis.cli(&["PTTL", &marks]), "-1", "it expires by itself");
    assert_eq!(end(&b, &session.id), 204);
    assert_eq!(redis.cli(&["EXISTS", &marks]), "0");
}

#[test]
fn who_takes_a_call_over_and_dies_before_a_word_is_followed_by_the_next() {
    let redis = Redis::start();
    let [a, b] = ["a", "b"].map(|id| everything(&redis, id, &[]));
    let session = Session::open(a.addr, "2025-11-25");
    let mut said = some_steps(&redis, &session, &a, json!({ "label": "x", "steps": 20, "pause_ms": 100 }));
    a.signal("KILL");
    let is_kept = |key: &String| key.contains(":s:");
    let key = redis.keys("mcp:session:").into_iter().find(is_kept).expect("a stream");
    let entry = redis.cli(&["XREVRANGE", &key, "+", "-", "COUNT", "1"]);
    let entry: Vec<&str> = entry.lines().collect();
    let of = |name: &str| entry[entry.iter().position(|line| *line == name).expect("a field") + 1];
    let taken = format!("{}-2", entry[0].split_once('-').expect("an id").0);
    // As one writes that takes it over; a process that is not there any more.
    redis.cli(&["XADD", &key, &taken, "n", "0000dead", "f", "1", "a", of("a"), "x", "0000dead00000000", "s", "0"]);
    said.extend(rest(&mut session.listen(b.addr, Some(&said.last().expect("one").0.clone()))));
    assert_eq!(whole(&said)["result"]["content"][0]["text"], "x took 20 steps");
    assert_eq!(metric(&b, "bigiron_cluster_calls_taken_over_total{what=\"again\"}"), 1.0);
}

#[test]
fn who_was_only_slow_writes_no_more_and_is_read_no_more() {
    let redis = Redis::start();
    let a = everything(&redis, "a", &[]);
    let mut lease = String::new();
    eventually("it has a lease", || {
        lease = redis.keys("mcp:lives:").pop().unwrap_or_default();
        !lease.is_empty()
    });
    let b = everything(&redis, "b", &[]);
    let session = Session::open(a.addr, "2025-11-25");
    let args = json!({ "label": "x", "steps": 20, "pause_ms": 100 });
    let mut stream = tool(&session, &a, 1, "steps", args);
    let first = stream.next().expect("an event to come back to").id.expect("an id");
    let said: Vec<_> = std::iter::from_fn(|| stream.next()).take(2).collect();
    are_kept(&redis, said.len());
    a.signal("STOP");
    assert_ne!(redis.cli(&["PTTL", &lease]), "-1", "what hangs loses it");
    redis.cli(&["DEL", &lease]);
    let mut on_b = session.listen(b.addr, Some(&said.last().expect("one").id.clone().expect("an id")));
    eventually("it is taken over", || newest(&redis).lines().any(|line| line == "f"));
    a.signal("CONT");
    // The first reader is cut off before the end of the call, and comes back to the other run.
    while let Some(event) = stream.next() {
        assert!(event.message.is_none_or(|message| message.get("result").is_none()), "an end of the first run");
    }
    let said =
        [said.into_iter().filter_map(|event| Some((event.id?, event.message?))).collect::<Vec<_>>(), rest(&mut on_b)]
            .concat();
    assert_eq!(whole(&said)["result"]["content"][0]["text"], "x took 20 steps");
    assert_eq!(rest(&mut session.listen(a.addr, Some(&first))), said, "at the first too");
}

#[test]
fn a_stream_has_one_reader_over_all_processes() {
    let redis = Redis::start();
    let [a, b] = ["a", "b"].map(|id| everything(&redis, id, &[]));
    let session = Session::open_with(a.addr, "2025-11-25", json!({ "elicitation": {} }));
    let mut stream = tool(&session, &a, 1, "test_elicitation", json!({ "message": "Who?" }));
    let first = stream.next().expect("an event to come back to").id.expect("an id");
    let question = stream.message();
    let mut on_b = session.listen(b.addr, Some(&first));
    assert_eq!(on_b.message(), question);
    assert_eq!(stream.next(), None, "the first is cut off although nothing is said");
    let mut on_a = session.listen(a.addr, Some(&first));
    assert_eq!(on_a.message(), question);
    assert_eq!(on_b.next(), None, "and the second");
    assert_eq!(session.answer(b.addr, &question, json!({ "action": "decline" })).status, 202);
    assert!(on_a.message().get("result").is_some());
}

#[test]
fn a_call_is_run_again_only_for_who_may_call_it_today() {
    let redis = Redis::start();
    let a = everything(&redis, "a", &[]);
    let b = everything(&redis, "b", &["--set", "tools.steps.enabled=false"]);
    let session = Session::open(a.addr, "2025-11-25");
    let args = json!({ "label": "x", "steps": 20, "pause_ms": 100 });
    let said = some_steps(&redis, &session, &a, args);
    a.signal("KILL");
    let end = rest(&mut session.listen(b.addr, Some(&said.last().expect("one").0)));
    let [.., (_, end)] = &end[..] else { panic!("an end: {end:?}") };
    let text = end["error"]["message"].as_str().unwrap_or_default();
    assert!(text.contains("may have run") && text.contains("unknown tool"), "{end}");
}

#[test]
fn a_call_is_not_run_again_where_that_is_set() {
    let redis = Redis::start();
    let [a, b] = ["a", "b"].map(|id| everything(&redis, id, &["--set", "tools.steps.run_again=false"]));
    let session = Session::open(a.addr, "2025-11-25");
    let said = some_steps(&redis, &session, &a, json!({ "label": "x", "steps": 20, "pause_ms": 100 }));
    assert!(redis.keys("mcp:session:").iter().all(|key| !key.contains(":c:")), "its request is not kept");
    a.signal("KILL");
    let end = rest(&mut session.listen(b.addr, Some(&said.last().expect("one").0)));
    let [.., (_, end)] = &end[..] else { panic!("an end: {end:?}") };
    assert!(end["error"]["message"].as_str().is_some_and(|text| text.contains("may have run")), "as is set: {end}");
}

#[test]
fn a_message_that_is_missing_is_said_and_not_skipped() {
    let redis = Redis::start();
    let (a, b) = (everything(&redis, "a", &[]), everything(&redis, "b", &[]));
    let session = Session::open_with(a.addr, "2025-11-25", json!({ "elicitation": {} }));
    let mut stream = tool(&session, &a, 1, "test_elicitation", json!({ "message": "Who?" }));
    let first = stream.next().expect("an event to come back to").id.expect("an id");
    let question = stream.message();
    let kept = || redis.keys("mcp:session:").into_iter().find(|key| key.contains(":s:"));
    eventually("it is kept", || kept().is_some_and(|key| redis.cli(&["XDEL", &key, "1-1"]) == "1"));
    let mut on_b = session.listen(b.addr, Some(&first));
    assert_eq!(session.answer(b.addr, &question, json!({ "action": "decline" })).status, 202);
    let said = rest(&mut on_b);
    let [(_, end)] = &said[..] else { panic!("an error and nothing else: {said:?}") };
    assert!(end["error"]["message"].as_str().is_some_and(|text| text.contains("lost")), "{end}");
}

#[test]
fn a_sessions_own_stream_goes_on_at_another_process() {
    let redis = Redis::start();
    let (a, b) = (everything(&redis, "a", &[]), everything(&redis, "b", &[]));
    let session = Session::open(a.addr, "2025-11-25");
    let mut stream = session.listen(a.addr, None);
    stream.comment();
    let change = |server: &Process| {
        let params = json!({ "name": "test_trigger_tool_change", "arguments": {} });
        assert_eq!(ask(server.addr, &session.id, "tools/call", params).status, 200);
    };
    change(&a);
    let told = stream.next().expect("it is told");
    assert_eq!(told.message.expect("a message")["method"], "notifications/tools/list_changed");
    let last = told.id.expect("an id");
    eventually("it is kept", || redis.keys("mcp:session:").iter().any(|key| key.contains(":s:")));
    stream.hang_up();
    change(&a); // heard by nobody
    let mut on_b = session.listen(b.addr, Some(&last));
    let mut methods = Vec::new();
    let mut before = number(&last);
    while methods.len() < 3 {
        let event = on_b.next().expect("it goes on");
        let now = number(&event.id.expect("an id"));
        assert!(now > before);
        before = now;
        methods.push(event.message.expect("a message")["method"].as_str().expect("a method").to_owned());
    }
    methods.sort();
    let all = ["prompts", "resources", "tools"].map(|list| format!("notifications/{list}/list_changed"));
    assert_eq!(methods, all, "what may have changed meanwhile is told as changed");
    change(&b);
    assert_eq!(on_b.message()["method"], "notifications/tools/list_changed");
}
