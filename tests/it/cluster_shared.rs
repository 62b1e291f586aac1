//! What holds across instances at one Redis: kept results and what ends them, changes, tasks, and sealed states. Two
//! servers in this process stand for two hosts, since they share nothing but Redis; where one must die, they are processes.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use bigiron::{
    Ctx, Input, Lane, Resource, Server, Tool,
    config::Tuning,
    error::CallError,
    server::{Builder, Running},
    tool::{Config, OneRun},
};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::{
    cluster::{metric, start as start_process},
    redis::Redis,
    support::{
        Client, Response, Session, call, eventually, get, listen, metrics, modern, modern_headers, post_bytes, start,
    },
    tasks,
};

#[derive(Deserialize, JsonSchema)]
struct Argument {
    n: i64,
}

/// Runs of a tool, on all instances.
struct Runs {
    count: Arc<AtomicU32>,
    /// Each run takes a permit before it ends.
    gate: Arc<Semaphore>,
}

impl Default for Runs {
    fn default() -> Self {
        Self { count: Arc::default(), gate: Arc::new(Semaphore::new(Semaphore::MAX_PERMITS)) }
    }
}

impl Runs {
    /// Runs that do not end before there are permits.
    fn held() -> Self {
        Self { gate: Arc::new(Semaphore::new(0)), ..Self::default() }
    }

    fn count(&self) -> u32 {
        self.count.load(Ordering::SeqCst)
    }

    /// A tool that says which run it was.
    fn tool(&self) -> Tool {
        let (runs, gate) = (Arc::clone(&self.count), Arc::clone(&self.gate));
        let tool = Tool::new_async("count", "Counts its runs", move |argument: Argument, _: Ctx| {
            let run = runs.fetch_add(1, Ordering::SeqCst) + 1;
            let gate = Arc::clone(&gate);
            async move {
                gate.acquire().await.expect("it is never closed").forget();
                format!("run {run} for {}", argument.n)
            }
        });
        tool.read_only()
    }
}

/// One of several instances.
pub(crate) fn instance(redis: &Redis, id: &str, server: Builder, tune: impl FnOnce(&mut Tuning)) -> Running {
    start(server, |tuning| {
        let cluster = &mut tuning.cluster;
        (cluster.redis, cluster.node_id) = (redis.url(), id.into());
        (cluster.heartbeat_s, cluster.command_timeout_ms) = (1, 2000);
        tune(tuning);
    })
}

/// Two of them that keep what `count` says, and hear each other.
fn keeping(redis: &Redis, runs: &Runs, config: &Config) -> [Running; 2] {
    let both = ["a", "b"].map(|id| {
        let config = Config { cache_ttl_s: config.cache_ttl_s.or(Some(600)), ..config.clone() };
        instance(redis, id, Server::builder().with(runs.tool()), |tuning| {
            tuning.tools.insert("count".into(), config);
        })
    });
    hear_each_other(redis, 2);
    both
}

fn hear_each_other(redis: &Redis, count: usize) {
    let listening = format!("mcp:news\n{count}");
    eventually("all listen", || redis.cli(&["PUBSUB", "NUMSUB", "mcp:news"]) == listening);
}

fn count(server: &Running, n: i64) -> String {
    call(server.addr(), "count", json!({ "n": n })).text()
}

/// Has the first one make a result, and the second one take it over.
fn shared(redis: &Redis, from: &Running, to: &Running, n: i64) -> String {
    let text = count(from, n);
    // Looked for by what it says: what was counted as written might be a result from before.
    let has = |key: &String| redis.cli(&["GET", key]).contains(&text);
    eventually("it is written", || redis.keys("mcp:tool:").iter().any(has));
    assert_eq!(count(to, n), text);
    text
}

/// What the cache did for a call.
fn served(server: &Running, n: i64) -> Value {
    call(server.addr(), "count", json!({ "n": n })).json()["result"]["_meta"]["bigiron/cache"]["status"].clone()
}

fn series(server: &Running, series: &str) -> f64 {
    let text = metrics(server);
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {series} in {text}")).parse().expect("a number")
}

fn invalidate(server: &Running, body: &Value) -> Value {
    let mut client = Client::connect(server.admin_addr().expect("an admin listener"));
    let (body, head) = (body.to_string(), "POST /cache/invalidate HTTP/1.1\r\nHost: 127.0.0.1");
    let headers = format!("Content-Type: application/json\r\nContent-Length: {}", body.len());
    client.send(format!("{head}\r\n{headers}\r\n\r\n{body}").as_bytes());
    let answer = client.receive().expect("an answer");
    assert_eq!(answer.status, 200);
    answer.json()
}

/// The one key that there is of a kind, once it is there.
fn key(redis: &Redis, prefix: &str) -> String {
    let mut keys = Vec::new();
    eventually("it is written", || {
        keys = redis.keys(prefix);
        !keys.is_empty()
    });
    assert_eq!(keys.len(), 1, "{keys:?}");
    keys.remove(0)
}

#[test]
fn what_one_instance_made_the_other_serves_and_needs_redis_for_it_once() {
    let mut redis = Redis::start();
    let runs = Runs::default();
    let [a, b] = keeping(&redis, &runs, &Config::default());
    assert_eq!(count(&a, 1), "run 1 for 1");
    let key = key(&redis, "mcp:tool:count:");
    assert_eq!(key.len(), "mcp:tool:count:".len() + 64, "{key}: arguments and callers are hashed");
    let left_ms: u64 = redis.cli(&["PTTL", &key]).parse().expect("it expires");
    assert!(left_ms <= 600_000, "{left_ms}");
    assert_eq!((served(&b, 1), count(&b, 1)), (json!("hit"), "run 1 for 1".into()));
    let shared = "bigiron_cache_shared_looks_total{result=\"hit\"}";
    assert_eq!(series(&b, shared), 1.0, "the second time it was in memory");
    redis.kill();
    assert_eq!((count(&a, 1), count(&b, 1)), ("run 1 for 1".into(), "run 1 for 1".into()), "in memory");
    assert_eq!(count(&b, 2), "run 2 for 2", "what is not runs");
    assert_eq!(runs.count(), 2);
}

/// Waits until what was invalidated on one instance is on the other as well, and until the next time holds at once.
fn holds_everywhere(here: &Running, there: &Running, old: &str) {
    eventually("there too", || count(there, 1) != old);
    eventually("at once", || invalidate(here, &json!({ "all": true })) == json!({ "forgotten": { "all": true } }));
}

#[test]
fn what_is_invalidated_on_one_instance_is_on_all_and_in_redis() {
    let redis = Redis::start();
    let runs = Runs::default();
    let [a, b] = keeping(&redis, &runs, &Config::default());
    for (round, wish) in [
        json!({ "all": true }),
        json!({ "tool": "count" }),
        json!({ "caller": "anonymous" }),
        json!({ "tool": "count", "arguments": { "n": 1 } }),
    ]
    .into_iter()
    .enumerate()
    {
        let (n, more) = (wish["arguments"]["n"].as_i64().unwrap_or(10 + round as i64), 20 + round as i64);
        let (old, other) = (shared(&redis, &a, &b, n), shared(&redis, &a, &b, more));
        // Now one instance tells the other, now the other the one.
        let (here, there) = if round % 2 == 0 { (&a, &b) } else { (&b, &a) };
        invalidate(here, &wish);
        let new = count(here, n);
        assert_ne!(new, old, "{wish}: neither from memory nor from Redis");
        eventually("the other has it too", || count(there, n) != old);
        let third = instance(&redis, "c", Server::builder().with(runs.tool()), |tuning| {
            tuning.tools.insert("count".into(), Config { cache_ttl_s: Some(600), ..Config::default() });
        });
        assert_ne!(count(&third, n), old, "who comes later does not get it from Redis");
        third.stop();
        let is_other_kept = wish.get("arguments").is_some();
        assert_eq!(count(&a, more) == other, is_other_kept, "{wish}");
    }
    assert!(series(&a, "bigiron_cluster_news_total{what=\"heard\"}") >= 2.0);
    assert_eq!(series(&a, "bigiron_cluster_news_total{what=\"odd\"}"), 0.0);
}

#[test]
fn what_was_invalidated_without_redis_is_as_soon_as_it_is_back() {
    let redis = Redis::start();
    let runs = Runs::default();
    let [a, b] = keeping(&redis, &runs, &Config::default());
    let old = shared(&redis, &a, &b, 1);
    redis.hang();
    eventually("it is missed", || series(&a, "bigiron_cluster_up") == 0.0);
    let told = invalidate(&a, &json!({ "all": true }));
    let others = told["others"].as_str().unwrap_or_default();
    assert!(told["forgotten"]["all"] == true && others.contains("not told yet"), "{told}");
    assert_ne!(count(&a, 1), old, "here at once");
    let admin = a.admin_addr().expect("an admin listener").to_string();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_bigiron"));
    let ran = command.args(["cache", "invalidate", "--all", "--admin", &admin]).output().expect("it runs");
    let err = String::from_utf8_lossy(&ran.stderr).into_owned();
    assert_eq!((ran.status.code(), &*ran.stdout), (Some(1), &b""[..]), "{err}");
    assert!(err.contains("this instance only") && err.contains("Redis is away"), "{err}");
    redis.wake();
    holds_everywhere(&a, &b, &old);
}

#[test]
fn what_was_invalidated_while_redis_takes_no_writes_is_as_soon_as_it_does() {
    let redis = Redis::start();
    let runs = Runs::default();
    let [a, b] = keeping(&redis, &runs, &Config::default());
    for (begin, end) in [
        (&["CONFIG", "SET", "maxmemory", "1"][..], &["CONFIG", "SET", "maxmemory", "0"][..]),
        (&["REPLICAOF", "127.0.0.1", "1"], &["REPLICAOF", "NO", "ONE"]),
    ] {
        let old = shared(&redis, &a, &b, 1);
        assert_eq!(redis.cli(begin), "OK");
        // At once: that writes are refused was not met yet by any heartbeat.
        let told = invalidate(&a, &json!({ "all": true }));
        let others = told["others"].as_str().unwrap_or_default();
        assert!(others.contains("not told yet") && others.contains("takes no writes"), "{begin:?}: {told}");
        assert_eq!(count(&b, 1), old, "what the answer says");
        assert_eq!(redis.cli(end), "OK");
        holds_everywhere(&a, &b, &old);
    }
}

#[test]
fn after_a_gap_in_the_news_an_instance_forgets_what_it_kept() {
    let redis = Redis::start();
    let runs = Runs::default();
    let [a, b] = keeping(&redis, &runs, &Config::default());
    let old = shared(&redis, &a, &b, 1);
    let key = key(&redis, "mcp:tool:count:");
    assert_eq!(redis.cli(&["DEL", &key]), "1");
    assert_eq!((served(&a, 1), served(&b, 1)), (json!("hit"), json!("hit")), "in memory");
    redis.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    for server in [&a, &b] {
        eventually("it noticed", || series(server, "bigiron_cluster_news_gaps_total") >= 1.0);
        eventually("it forgot", || count(server, 1) != old);
    }
}

#[test]
fn values_that_cannot_be_read_are_missing_and_counted() {
    let redis = Redis::start();
    let runs = Runs::default();
    let [a, b] = keeping(&redis, &runs, &Config::default());
    count(&a, 1);
    let key = key(&redis, "mcp:tool:count:");
    let corrupt = || series(&b, "bigiron_cache_shared_looks_total{result=\"corrupt\"}");
    // One byte is another: it is made anew and written over.
    redis.cli(&["SETRANGE", &key, "70", "?"]);
    assert_eq!((count(&b, 1), corrupt()), ("run 2 for 1".into(), 1.0));
    // Of another type, of a later version, much too long: as if there were none, and it stays.
    for (more, spoil) in [
        vec!["RPUSH", &key, "x"],
        vec!["SET", &key, "bgr\u{7f}of a later version"],
        vec!["SETRANGE", &key, "3000000", "x"],
    ]
    .into_iter()
    .enumerate()
    {
        redis.cli(&["DEL", &key]);
        redis.cli(&spoil);
        let before = redis.cli(&["DUMP", &key]);
        invalidate_memory(&redis, &b);
        assert_eq!((served(&b, 1), corrupt()), (json!("miss"), 2.0 + more as f64), "{spoil:?}");
        assert_eq!(redis.cli(&["DUMP", &key]), before, "it is left as it was: {spoil:?}");
    }
}

/// Has an instance forget what it has in memory.
fn invalidate_memory(redis: &Redis, server: &Running) {
    let gaps = series(server, "bigiron_cluster_news_gaps_total");
    redis.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    eventually("it noticed", || series(server, "bigiron_cluster_news_gaps_total") > gaps);
    hear_each_other(redis, 2);
    // What the gap ends, ends after it was counted.
    let heard = series(server, "bigiron_cluster_news_total{what=\"heard\"}");
    redis.cli(&["PUBLISH", "mcp:news", r#"{"form":1,"from":"a test"}"#]);
    eventually("it went on", || series(server, "bigiron_cluster_news_total{what=\"heard\"}") > heard);
}

#[test]
fn equal_calls_on_all_instances_run_once_where_the_tool_asks_for_it() {
    let redis = Redis::start();
    let runs = Runs::held();
    let config = Config { cache_one_run: Some(OneRun::Cluster), ..Config::default() };
    let both = keeping(&redis, &runs, &config);
    let mut calls = Vec::new();
    for server in &both {
        let addr = server.addr();
        calls.extend((0..10).map(|_| thread::spawn(move || call(addr, "count", json!({ "n": 1 })).text())));
        eventually("one runs", || runs.count() == 1);
    }
    // The second time that it looks, it has waited.
    let misses = |server| series(server, "bigiron_cache_shared_looks_total{result=\"miss\"}");
    eventually("the other waits", || misses(&both[1]) >= 2.0);
    runs.gate.add_permits(1);
    let texts: Vec<_> = calls.into_iter().map(|call| call.join().expect("an answer")).collect();
    assert!(texts.iter().all(|text| text == "run 1 for 1"), "{texts:?}");
    assert_eq!(runs.count(), 1);
    eventually("the lease is given back", || redis.keys("mcp:lease:").is_empty());
    let awaited = |server| series(server, "bigiron_cache_shared_looks_total{result=\"awaited\"}");
    assert_eq!(both.iter().map(awaited).sum::<f64>(), 1.0, "one instance waited for the other");
}

#[test]
fn who_leaves_in_a_run_gives_it_to_who_waits_on_another_instance() {
    let redis = Redis::start();
    let runs = Runs::held();
    let config = Config { cache_one_run: Some(OneRun::Cluster), ..Config::default() };
    let [a, b] = keeping(&redis, &runs, &config);
    let request = modern(1, "tools/call", json!({ "name": "count", "arguments": { "n": 1 } })).to_string();
    let mut leaves = Client::connect(a.addr());
    let head = "POST /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: application/json, text/event-stream\r\nContent-Type: \
                application/json\r\nMCP-Protocol-Version: 2026-07-28\r\nMcp-Method: tools/call\r\nMcp-Name: count";
    leaves.send(format!("{head}\r\nContent-Length: {}\r\n\r\n{request}", request.len()).as_bytes());
    eventually("it runs", || runs.count() == 1 && !redis.keys("mcp:lease:").is_empty());
    let addr = b.addr();
    let waits = thread::spawn(move || call(addr, "count", json!({ "n": 1 })).text());
    eventually("the other waits", || series(&b, "bigiron_requests_in_flight") == 1.0);
    drop(leaves);
    eventually("it runs there", || runs.count() == 2);
    runs.gate.add_permits(1);
    assert_eq!(waits.join().expect("an answer"), "run 2 for 1");
}

#[test]
fn when_the_instance_that_runs_dies_another_one_does() {
    let redis = Redis::start();
    let kept = [
        "--set",
        "tools.burn.cache_ttl_s=600",
        "--set",
        "tools.burn.cache_one_run=cluster",
        "--set",
        "tools.burn.timeout_ms=29000",
    ];
    let (a, b) = (start_process(&redis, "a", &kept), start_process(&redis, "b", &kept));
    hear_each_other(&redis, 2);
    let burn = |addr| thread::spawn(move || call(addr, "burn", json!({ "ms": 2000 })));
    let addr = a.addr;
    // Its answer never comes, and that is its client's to bear.
    let lost = thread::spawn(move || {
        let request = modern(1, "tools/call", json!({ "name": "burn", "arguments": { "ms": 2000 } }));
        let mut client = Client::connect(addr);
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
            client.post(&modern_headers("tools/call", "burn"), &request).status
        }))
        .is_err()
    });
    eventually("it runs", || !redis.keys("mcp:lease:").is_empty());
    let survivor = burn(b.addr);
    eventually("the other waits", || metric(&b, "bigiron_requests_in_flight") == 1.0);
    a.signal("KILL");
    let answer = survivor.join().expect("an answer");
    assert_eq!(answer.json()["result"]["structuredContent"]["burned_ms"], 2000, "{answer:?}");
    assert!(lost.join().expect("it ends"));
    assert_eq!(metric(&b, "bigiron_cache_shared_writes_total{result=\"fenced\"}"), 0.0);
}

/// Two that can say that something changed.
fn changing(redis: &Redis) -> ([Running; 2], [bigiron::Changes; 2]) {
    let make = |id: &str| {
        let server = Server::builder()
            .tool("t", "Does nothing", Lane::Inline, |(): (), _: Ctx| "x")
            .resource(Resource::new("test://one", "one", "One", "text/plain", Lane::Inline, |_, _| "one"));
        let changes = server.changes();
        (instance(redis, id, server, |_| {}), changes)
    };
    let ((a, to_a), (b, to_b)) = (make("a"), make("b"));
    hear_each_other(redis, 2);
    ([a, b], [to_a, to_b])
}

#[test]
fn changes_that_one_instance_tells_reach_the_streams_of_all_once() {
    let redis = Redis::start();
    let ([a, b], [at_a, at_b]) = changing(&redis);
    let filter = json!({
        "toolsListChanged": true, "resourceSubscriptions": ["test://one"]
    });
    let mut streams = [&a, &b].map(|server| {
        let mut stream = listen(server.addr(), "s", filter.clone());
        stream.message();
        stream
    });
    for (tell, method) in [
        ((|changes: &bigiron::Changes| changes.tools()) as fn(&bigiron::Changes), "notifications/tools/list_changed"),
        (|changes| changes.resource("test://one"), "notifications/resources/updated"),
    ] {
        for teller in [&at_a, &at_b] {
            tell(teller);
            for stream in &mut streams {
                assert_eq!(stream.message()["method"], method);
            }
        }
    }
    let news = |server, what: &str| series(server, &format!("bigiron_cluster_news_total{{what=\"{what}\"}}"));
    for server in [&a, &b] {
        eventually("all is counted", || (news(server, "told"), news(server, "heard")) == (2.0, 2.0));
    }
    // What is heard is not told on: to whoever listens, these four were all.
    at_a.tools();
    streams.iter_mut().for_each(|stream| drop(stream.message()));
    eventually("all is counted", || (news(&b, "told"), news(&b, "heard")) == (2.0, 3.0));
    // What may have been missed is taken for changed.
    redis.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    for stream in &mut streams {
        let mut said: Vec<_> = (0..2).map(|_| stream.message()["method"].clone()).collect();
        said.sort_by_key(ToString::to_string);
        assert_eq!(said, ["notifications/resources/updated", "notifications/tools/list_changed"]);
    }
}

/// Two that have tasks; how many run is counted over both.
fn tasking(redis: &Redis, tune: impl Fn(&mut Tuning)) -> ([Running; 2], Arc<AtomicUsize>) {
    let inside = Arc::<AtomicUsize>::default();
    let both = ["a", "b"].map(|id| {
        instance(redis, id, tasks::tools(&inside), |tuning| {
            tuning.tasks.poll_interval_ms = 60_000; // what is noticed is noticed by the news
            tune(tuning);
        })
    });
    hear_each_other(redis, 2);
    (both, inside)
}

fn ask(server: &Running, method: &str, name: &str, params: Value) -> Response {
    tasks::ask_over(Client::connect(server.addr()), method, name, params)
}

fn begin(server: &Running, tool: &str) -> String {
    let begun = ask(server, "tools/call", tool, json!({ "name": tool })).json();
    assert_eq!(begun["result"]["resultType"], "task", "{begun}");
    begun["result"]["taskId"].as_str().expect("an id").to_owned()
}

fn task(server: &Running, id: &str) -> Value {
    ask(server, "tasks/get", id, json!({ "taskId": id })).json()["result"].clone()
}

#[test]
fn a_task_of_one_instance_is_read_answered_and_heard_of_on_another() {
    let redis = Redis::start();
    let ([a, b], _) = tasking(&redis, |_| {});
    let id = begin(&a, "confirm");
    assert_eq!(task(&b, &id)["taskId"], json!(id), "it is there as soon as the client knows of it");
    eventually("it asks", || task(&b, &id)["status"] == "input_required");
    let left_ms: u64 = redis.cli(&["PTTL", &format!("mcp:task:{id}")]).parse().expect("it expires");
    assert!(left_ms <= 3_600_000);
    let mut streams = [&a, &b].map(|server| {
        let mut stream = listen(server.addr(), "tasks", json!({ "taskIds": [id] }));
        assert_eq!(stream.message()["params"]["notifications"], json!({ "taskIds": [id] }));
        stream
    });
    let answers = json!({ "taskId": id, "inputResponses": { "sure": { "action": "accept", "content": {} } } });
    assert_eq!(ask(&b, "tasks/update", &id, answers).json()["result"]["resultType"], "complete");
    for stream in &mut streams {
        let told = loop {
            let message = stream.message();
            if message["params"]["status"] == "completed" {
                break message;
            }
        };
        assert_eq!(told["params"]["result"]["content"][0]["text"], "The user said accept");
    }
    for server in [&a, &b] {
        assert_eq!(task(server, &id)["result"]["content"][0]["text"], "The user said accept");
    }
}

#[test]
fn a_task_is_cancelled_from_anywhere_and_limits_hold_over_all_instances() {
    let redis = Redis::start();
    let ([a, b], inside) = tasking(&redis, |tuning| tuning.tasks.per_caller_max = 2);
    let id = begin(&a, "hang");
    assert_eq!(inside.load(Ordering::SeqCst), 1);
    ask(&b, "tasks/cancel", &id, json!({ "taskId": id }));
    assert_eq!((&task(&a, &id)["status"], &task(&b, &id)["status"]), (&json!("cancelled"), &json!("cancelled")));
    eventually("its work is dropped", || inside.load(Ordering::SeqCst) == 0);
    begin(&b, "hang");
    let refused = ask(&a, "tools/call", "hang", json!({ "name": "hang" }));
    assert_eq!((refused.status, refused.code()), (429, Some(-31429)), "{refused:?}");
}

#[test]
fn a_task_goes_when_its_time_is_over_and_without_redis_none_begins() {
    let mut redis = Redis::start();
    let ([a, b], _) = tasking(&redis, |tuning| (tuning.tasks.timeout_ms, tuning.tasks.ttl_ms) = (300, 300));
    let id = begin(&a, "hang");
    eventually("it is gone", || ask(&b, "tasks/get", &id, json!({ "taskId": id })).code() == Some(-32602));
    eventually("nothing of it is left", || redis.keys("mcp:task").is_empty());
    redis.kill();
    // Neither is at a limit of theirs: what is away is said, and that it can be back at any moment.
    let refused =
        ["tasks/get", "tasks/update", "tasks/cancel"].map(|method| ask(&b, method, &id, json!({ "taskId": id })));
    for refused in refused.into_iter().chain([ask(&a, "tools/call", "hang", json!({ "name": "hang" }))]) {
        assert_eq!((refused.status, refused.code()), (503, Some(-31503)), "{refused:?}");
        assert_eq!(refused.header("retry-after"), Some("1"));
        let message = refused.json()["error"]["message"].to_string();
        assert!(message.contains("the store of tasks is away; try again in 1 s"), "{message}");
    }
}

#[test]
fn a_state_that_one_instance_sealed_another_one_opens() {
    let redis = Redis::start();
    let [a, b] = ["a", "b"].map(|id| {
        let server = Server::builder().async_tool("greet", "Asks for a name", |(): (), ctx: Ctx| async move {
            let form = json!({ "type": "object", "properties": { "name": { "type": "string" } } });
            ctx.keep(json!("remembered"));
            let answer = ctx.ask("who", Input::elicit("Who are you?", form)).await?;
            Ok::<_, CallError>(format!("Hello, {}, {:?}!", answer["content"]["name"], ctx.kept()))
        });
        instance(&redis, id, server, |_| {})
    });
    let call = |server: &Running, state: Option<&Value>| {
        let mut params = json!({ "name": "greet" });
        if let Some(state) = state {
            params["requestState"] = state.clone();
            params["inputResponses"] = json!({ "who": { "action": "accept", "content": { "name": "Ann" } } });
        }
        ask(server, "tools/call", "greet", params).json()
    };
    let asked = call(&a, None);
    let state = &asked["result"]["requestState"];
    assert!(state.is_string(), "{asked}");
    assert_eq!(call(&b, Some(state))["result"]["content"][0]["text"], "Hello, \"Ann\", Some(String(\"remembered\"))!");
    a.stop();
    b.stop();
    assert_eq!(redis.keys("mcp:"), ["mcp:cluster"], "the key goes with the last one");
}

#[test]
fn a_call_goes_on_while_others_are_told_of_its_stream() {
    let redis = Redis::start();
    let has_gone_on = Arc::new(AtomicUsize::new(0));
    let gone_on = Arc::clone(&has_gone_on);
    let server = Server::builder().async_tool("work", "Says so and works on", move |(): (), ctx: Ctx| {
        let gone_on = Arc::clone(&gone_on);
        async move {
            ctx.progress(1.0, Some(2.0), "begun");
            tokio::time::sleep(Duration::from_millis(20)).await;
            gone_on.fetch_add(1, Ordering::SeqCst);
            ctx.progress(2.0, Some(2.0), "half");
            "done"
        }
    });
    let a = instance(&redis, "a", server, |_| {});
    let session = Session::open(a.addr(), "2025-11-25");
    redis.hang();
    let params = json!({ "name": "work", "arguments": {}, "_meta": { "progressToken": 1 } });
    let request = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params }).to_string();
    let mut client = Client::connect(a.addr());
    client.send(&post_bytes(&[("Mcp-Session-Id", &session.id)], request.as_bytes()));
    eventually("it goes on", || has_gone_on.load(Ordering::SeqCst) > 0);
    assert!(client.has_nothing_yet(), "the client has no id to come back with before others know it");
    let said = client.receive().expect("an answer").events();
    redis.wake();
    let progress: Vec<_> = said.iter().filter_map(|message| message["params"]["progress"].as_f64()).collect();
    assert_eq!(progress, [1.0, 2.0], "{said:?}");
    assert_eq!(said.last().expect("an end")["result"]["content"][0]["text"], "done");
}

#[test]
fn an_instance_that_is_alone_has_nothing_of_it() {
    let running = start(Server::builder().with(Runs::default().tool()), |_| {});
    assert!(!metrics(&running).contains("bigiron_cache_shared"));
    assert_eq!(get(running.admin_addr().expect("an admin listener"), "/nodes").status, 404);
}
