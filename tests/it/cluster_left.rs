//! What stands in Redis: how much one session takes there, and what is left when the last instance has stopped.

#![allow(clippy::print_stdout)] // what was counted and measured is for who runs it

use serde_json::{Value, json};

use crate::{
    cluster::node,
    redis::Redis,
    support::{Client, Process, Response, Session, eventually, meta, modern, modern_headers},
};

fn start(program: &str, redis: &Redis, id: &str, more: &[&str]) -> Process {
    let args = node(redis, id);
    let args: Vec<_> = args.iter().map(String::as_str).chain(more.iter().copied()).collect();
    Process::start_example_with(program, &args)
}

/// Bytes of all keys that begin so, with what Redis needs for them.
fn usage(redis: &Redis, prefix: &str) -> u64 {
    let bytes = |key: &String| redis.cli(&["MEMORY", "USAGE", key, "SAMPLES", "0"]).parse::<u64>().expect("bytes");
    redis.keys(prefix).iter().map(bytes).sum()
}

#[test]
fn a_session_takes_a_kibibyte_at_most_with_its_own_stream() {
    let redis = Redis::start();
    for (program, id) in [("everything", "a"), ("everything_hosted", "b")] {
        let server = start(program, &redis, id, &[]);
        // As much as a client can say of itself, of which a hosted handler keeps some.
        let long = "x".repeat(2000);
        let params = json!({
            "protocolVersion": "2025-11-25",
            "capabilities": { "elicitation": {}, "sampling": {}, "roots": { "listChanged": true }, "experimental": { &long: {} } },
            "clientInfo": { "name": long, "version": long }
        });
        let request = json!({ "jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params });
        let opened = Client::connect(server.addr).post(&[], &request);
        let session = opened.header("mcp-session-id").expect("a session").to_owned();
        let session = Session { client: Client::connect(server.addr), id: session };
        let alone = usage(&redis, "mcp:session:");
        let mut stream = session.listen(server.addr, None);
        stream.comment();
        let listening = usage(&redis, "mcp:session:");
        let mut caller = Session { client: Client::connect(server.addr), id: session.id.clone() };
        let change = json!({ "name": "test_trigger_tool_change", "arguments": {} });
        assert_eq!(caller.request(1, "tools/call", change).status, 200);
        assert_eq!(stream.message()["method"], "notifications/tools/list_changed");
        let of_stream = || redis.keys("mcp:session:").into_iter().find(|key| key.contains(":s:"));
        eventually("what it said is kept", || of_stream().is_some());
        let first = redis.cli(&["XRANGE", &of_stream().expect("its stream"), "-", "+", "COUNT", "1"]);
        assert!(first.starts_with("1-1\n"), "nothing was kept before it said something: {first}");
        let told = usage(&redis, "mcp:session:");
        println!(
            "{program}: one session takes {alone} bytes, with its own stream {listening}, and {told} once it has said something"
        );
        assert!(alone > 0 && listening <= 1024, "{program}: {alone} {listening}");
        for key in redis.keys("mcp:session:") {
            assert_ne!(redis.cli(&["PTTL", &key]), "-1", "{key} expires by itself");
        }
        session.end();
        eventually("its record is gone", || !redis.keys("mcp:session:").iter().any(|key| key.ends_with('}')));
        redis.cli(&["FLUSHALL"]);
    }
}

/// What is left, why, and for how many seconds at most.
const LEFT: [(&str, &str, u64); 9] = [
    ("mcp:session:{", "a session goes on at whichever instance starts next, and so do its streams", 3700),
    ("mcp:sessions:key", "it names the sessions that are left", 2 * 3700),
    ("mcp:tool:", "a kept result counts until its time is over", 600),
    ("mcp:generation:", "an invalidation counts for longer than any result that it ended", 86_400 + 600),
    ("mcp:task:", "a client may still fetch what came of a task", 3600),
    ("mcp:tasks:all", "it counts the tasks that are left", 3600),
    ("mcp:tasks:of:", "it counts those of one caller", 3600),
    ("mcp:rl:", "a rate holds over a restart", 3600),
    ("mcp:cluster", "another deployment is not to take any of it for its own", 86_400 + 600 + 60),
];
/// What the instances have for themselves.
const OF_INSTANCES: [&str; 5] = ["mcp:nodes", "mcp:node:a", "mcp:node:b", "mcp:state-key", "mcp:lives:"];

fn why(key: &str) -> Option<(&'static str, u64)> {
    if key.starts_with("mcp:session:{") && key.ends_with(":ended") {
        return Some(("that a session was ended is remembered, so that no copy of it goes on", 60));
    }
    LEFT.iter().find(|(prefix, ..)| key.starts_with(prefix)).map(|(_, why, s)| (*why, *s))
}

fn task(server: &Process, method: &str, name: &str, mut params: Value) -> Response {
    params["_meta"] = meta();
    params["_meta"]["io.modelcontextprotocol/clientCapabilities"] =
        json!({ "extensions": { "io.modelcontextprotocol/tasks": {} } });
    Client::connect(server.addr).post(&modern_headers(method, name), &modern(1, method, params))
}

/// With these there is all that there can be.
const SETTINGS: [&str; 10] = [
    "--set",
    "rate_limit.enabled=true",
    "--set",
    "rate_limit.per_ip=1000 per 1h, burst 1000",
    "--set",
    "tools.test_simple_text.cache_ttl_s=600",
    "--set",
    "tools.test_simple_text.cache_not_read_only=true",
    "--set",
    "tools.test_simple_text.cache_one_run=cluster",
];

fn is_there(keys: &[String], prefix: &str) -> bool {
    keys.iter().any(|key| key.starts_with(prefix))
}

/// Has two instances write all that there can be: an open session and one that was ended, streams, a kept result and an
/// invalidation, a task, rates. Returns the ids of the open session and of the task.
fn fill(redis: &Redis, a: &Process, b: &Process) -> (String, String) {
    let (kept, ended) = (Session::open(a.addr, "2025-11-25"), Session::open(b.addr, "2025-11-25"));
    let mut stream = kept.listen(b.addr, None);
    stream.comment();
    let change = json!({ "name": "test_trigger_tool_change", "arguments": {} });
    let told = Session { client: Client::connect(b.addr), id: kept.id.clone() }.request(1, "tools/call", change);
    assert_eq!(told.status, 200);
    assert_eq!(stream.message()["method"], "notifications/tools/list_changed");
    ended.end();
    let name = "test_simple_text";
    let invalidate = json!({ "all": true }).to_string();
    let head = format!("Host: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {}", invalidate.len());
    let mut admin = Client::connect(a.admin_addr);
    admin.send(format!("POST /cache/invalidate HTTP/1.1\r\n{head}\r\n\r\n{invalidate}").as_bytes());
    assert_eq!(admin.receive().expect("an answer").status, 200);
    eventually("it is told", || redis.keys("mcp:generation:").len() == 1);
    assert_eq!(task(a, "tools/call", name, json!({ "name": name })).status, 200);
    let params = json!({ "name": "slow_compute", "arguments": { "seconds": 1 } });
    let begun = task(b, "tools/call", "slow_compute", params).json();
    assert_eq!(begun["result"]["resultType"], "task", "{begun}");
    let id = begun["result"]["taskId"].as_str().expect("an id").to_owned();
    eventually("all that there can be is there", || {
        let keys = redis.keys("");
        let mut all = LEFT.iter().map(|(prefix, ..)| prefix).chain(&OF_INSTANCES);
        all.all(|prefix| is_there(&keys, prefix)) && keys.iter().any(|key| key.contains(":s:"))
    });
    (kept.id, id)
}

#[test]
fn after_a_clean_stop_nothing_of_the_instances_is_left_and_what_is_clients_expires() {
    let redis = Redis::start();
    let [mut a, mut b] = ["a", "b"].map(|id| start("everything", &redis, id, &SETTINGS));
    let (session, id) = fill(&redis, &a, &b);
    for (server, other) in [(&mut a, "mcp:node:b"), (&mut b, "")] {
        server.signal("TERM");
        assert_eq!(server.wait().code(), Some(0));
        let nodes: Vec<_> = redis.keys("mcp:node:");
        assert_eq!(nodes, if other.is_empty() { vec![] } else { vec![other.to_owned()] });
    }
    let left: Vec<String> = redis.cli(&["--scan"]).lines().map(str::to_owned).collect();
    let claimed_ms: i64 = redis.cli(&["PTTL", "mcp:cluster"]).parse().expect("a number");
    for key in &left {
        let (why, most_s) = why(key).unwrap_or_else(|| panic!("{key} is left: {left:?}"));
        let left_ms: i64 = redis.cli(&["PTTL", key]).parse().expect("a number");
        println!("{key}\n    for {left_ms} ms: {why}");
        assert!(left_ms > 0 && left_ms <= 1000 * most_s as i64, "{key}: {left_ms}");
        assert!(left_ms <= claimed_ms, "{key} is guarded as long as it is there: {left_ms} and {claimed_ms}");
    }
    // And that is what it is left for.
    let c = start("everything", &redis, "c", &SETTINGS);
    let mut goes_on = Session { client: Client::connect(c.addr), id: session };
    assert_eq!(goes_on.request(1, "ping", json!({})).status, 200);
    assert_eq!(task(&c, "tasks/get", &id, json!({ "taskId": id })).json()["result"]["taskId"], json!(id));
}

#[test]
fn where_it_is_set_so_the_last_clean_stop_leaves_nothing() {
    let redis = Redis::start();
    let settings = [&SETTINGS[..], &["--set", "cluster.last_stop=remove"]].concat();
    let [mut a, mut b, mut c] = ["a", "b", "c"].map(|id| start("everything", &redis, id, &settings));
    fill(&redis, &a, &b);
    redis.cli(&["SET", "other:cluster", "another"]);
    c.signal("TERM");
    assert_eq!(c.wait().code(), Some(0));
    let left = redis.keys("mcp:");
    assert!(LEFT.iter().all(|(prefix, ..)| is_there(&left, prefix)), "others live: {left:?}");
    a.signal("KILL");
    a.wait();
    eventually("it is taken for gone", || redis.keys("mcp:node:") == ["mcp:node:b"]);
    b.signal("TERM");
    assert_eq!(b.wait().code(), Some(0));
    assert_eq!(redis.keys(""), ["other:cluster"], "nor what the one that was killed left");
    assert_eq!(redis.cli(&["DBSIZE"]), "1");
}

/// Who sends the signal ends the process after the grace, and is not to find it at work in Redis then.
#[test]
fn a_last_stop_whose_grace_is_used_up_removes_nothing_and_says_so() {
    let redis = Redis::start();
    let grace = ["--set", "server.drain_grace_ms=1000", "--set", "limits.request_timeout_ms=1000"];
    let settings = [&SETTINGS[..], &grace, &["--set", "cluster.last_stop=remove"]].concat();
    let mut a = start("everything", &redis, "a", &settings);
    let kept = Session::open(a.addr, "2025-11-25");
    let record = redis.keys("mcp:session:");
    // A head that does not come to its end holds the stop up for all of the grace.
    let mut slow = Client::connect(a.addr);
    slow.send(b"POST /mcp HTTP/1.1\r\nHost:");
    // Its first bytes are there, as it answers who came later.
    assert_eq!(Session { client: Client::connect(a.addr), id: kept.id }.request(1, "ping", json!({})).status, 200);
    a.signal("TERM");
    a.log_line_with("nothing is left of server.drain_grace_ms");
    assert_eq!(a.wait().code(), Some(0));
    assert_eq!((redis.keys("mcp:session:"), redis.keys("mcp:node:")), (record, vec![]));
    drop(slow);
}
