//! Tools that are not on every instance: called through each, as if they ran there; and instances that stop, die or are
//! no longer reached while they run calls of others.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use bigiron::{
    Ctx, Input, Lane, LogLevel, Server, Tool,
    config::Tuning,
    error::CallError,
    server::{Builder, Running},
};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::{
    cluster::{metric as metric_of, node, start as start_process},
    cluster_shared::instance,
    identity::Issuer,
    redis::Redis,
    support::{
        Client, Process, Response, Session, call, eventually, get, meta, metric, modern, modern_headers, post_bytes,
    },
};

/// What the tools of all instances here do together.
#[derive(Clone)]
struct Work {
    /// Runs of `hold` that are under way, by instance.
    held: Arc<[AtomicUsize; 3]>,
    /// `hold` goes on by one of these.
    go: Arc<Semaphore>,
}

impl Default for Work {
    fn default() -> Self {
        Self { held: Arc::default(), go: Arc::new(Semaphore::new(0)) }
    }
}

struct Held(Arc<[AtomicUsize; 3]>, usize);

impl Drop for Held {
    fn drop(&mut self) {
        self.0[self.1].fetch_sub(1, Ordering::SeqCst);
    }
}

impl Work {
    fn held(&self) -> [usize; 3] {
        [0, 1, 2].map(|at| self.held[at].load(Ordering::SeqCst))
    }

    /// The tools, each of which says where it ran.
    fn tools(&self, at: usize) -> Builder {
        let id = IDS[at];
        let work = self.clone();
        Server::builder()
            .tasks()
            .tool("anywhere", "Runs everywhere", Lane::Inline, move |(): (), _| id)
            .tool("inline", "Runs at once", Lane::Inline, move |(): (), _| id)
            .tool("pool", "Runs in the pool", Lane::Pool, move |(): (), _| id)
            .async_tool("waits", "Runs in its time", move |(): (), _: Ctx| async move { id })
            .tool("who", "Says who calls", Lane::Inline, move |(): (), ctx: Ctx| {
                format!("{} at {id}", ctx.caller().subject())
            })
            .tool("left", "Says how much time is left", Lane::Inline, |(): (), ctx: Ctx| {
                let left = ctx.deadline().at().saturating_duration_since(std::time::Instant::now());
                left.as_millis().to_string()
            })
            .async_tool("hold", "Waits until it may go on", move |(): (), _: Ctx| {
                work.held[at].fetch_add(1, Ordering::SeqCst);
                let (held, go) = (Held(Arc::clone(&work.held), at), Arc::clone(&work.go));
                async move {
                    go.acquire().await.expect("it is never closed").forget();
                    drop(held);
                    id
                }
            })
            .async_tool("says", "Says something before it is done", move |(): (), ctx: Ctx| async move {
                ctx.progress(1.0, Some(2.0), id);
                ctx.log(LogLevel::Warning, &"careful");
                tokio::time::sleep(Duration::from_millis(30)).await;
                ctx.progress(2.0, Some(2.0), id);
                id
            })
            .async_tool("asks", "Asks the user", move |(): (), ctx: Ctx| async move {
                let schema = json!({ "type": "object", "properties": {} });
                let answer = ctx.ask("name", Input::elicit("Who?", schema)).await?;
                Ok::<_, CallError>(format!("{} at {id}", answer["action"]))
            })
            .async_tool("later", "Becomes a task", move |(): (), ctx: Ctx| async move {
                ctx.require_task().await?;
                Ok::<_, CallError>(format!("later at {id}"))
            })
            .with(Tool::new("kept", "Is kept", Lane::Pool, move |(): (), _| id).read_only())
    }
}

const IDS: [&str; 3] = ["a", "b", "c"];
/// Those that only an instance of the role `special` runs.
const SPECIAL: [&str; 7] = ["who", "left", "hold", "says", "asks", "later", "kept"];

fn placed(tuning: &mut Tuning, tool: &str, roles: &[&str], spread: Option<usize>) {
    let tool = tuning.tools.entry(tool.to_owned()).or_default();
    tool.roles = (!roles.is_empty()).then(|| roles.iter().map(|role| (*role).to_owned()).collect());
    tool.spread = spread;
}

/// Three instances, of which c has the role.
fn three(redis: &Redis, work: &Work, tune: impl Fn(&mut Tuning)) -> [Running; 3] {
    let all = [0, 1, 2].map(|at| {
        instance(redis, IDS[at], work.tools(at), |tuning| {
            for (tool, spread) in [("inline", 1), ("pool", 2), ("waits", 3)] {
                placed(tuning, tool, &[], Some(spread));
            }
            for tool in SPECIAL {
                placed(tuning, tool, &["special"], None);
            }
            if at == 2 {
                tuning.cluster.roles = vec!["special".into()];
            }
            tune(tuning);
        })
    });
    for one in &all {
        eventually("each sees all", || {
            let nodes = nodes(one.admin_addr().expect("an admin listener"));
            nodes.len() == 3 && nodes.values().all(|(status, _)| status == "running")
        });
    }
    all
}

/// Status and tools of each node, by its name.
fn nodes(admin: SocketAddr) -> BTreeMap<String, (String, BTreeSet<String>)> {
    let told = get(admin, "/nodes").json();
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let of = |node: &Value| {
        let tools = node["tools"].as_array().expect("tools").iter().map(text).collect();
        (text(&node["id"]), (text(&node["status"]), tools))
    };
    told["nodes"].as_array().expect("nodes").iter().map(of).collect()
}

/// The instances that have a tool, as one of them tells.
fn which(one: &Running, tool: &str) -> Vec<String> {
    let nodes = nodes(one.admin_addr().expect("an admin listener"));
    nodes.into_iter().filter(|(_, (_, tools))| tools.contains(tool)).map(|(id, _)| id).collect()
}

#[test]
fn each_special_tool_is_called_through_each_node() {
    let redis = Redis::start();
    let all = three(&redis, &Work::default(), |_| {});
    let counts = ["inline", "pool", "waits", "anywhere", "who"].map(|tool| which(&all[0], tool).len());
    assert_eq!(counts, [1, 2, 3, 3, 1]);
    for one in &all[1..] {
        assert_eq!(which(&all[0], "inline"), which(one, "inline"), "the same, whoever is asked");
    }
    for (at, one) in all.iter().enumerate() {
        for tool in ["inline", "pool", "waits", "anywhere"] {
            let has = which(one, tool);
            for _ in 0..4 {
                let ran = call(one.addr(), tool, json!({})).text();
                assert!(has.contains(&ran), "{tool} through {}: {ran}", IDS[at]);
                assert!(!has.iter().any(|id| id == IDS[at]) || ran == IDS[at], "{tool} is here, and runs here");
            }
        }
        assert_eq!(call(one.addr(), "who", json!({})).text(), "anonymous at c");
        let wrong = call(one.addr(), "inline", json!([]));
        assert_eq!(wrong.code(), Some(-32602), "{wrong:?}");
    }
    let lists = all.each_ref().map(|one| {
        let request = modern(1, "tools/list", json!({}));
        Client::connect(one.addr()).post(&modern_headers("tools/list", ""), &request).body
    });
    assert!(lists[0] == lists[1] && lists[1] == lists[2], "lists show the tools of all");
    assert!(String::from_utf8_lossy(&lists[0]).contains("\"hold\""));
    let ran: f64 = all.iter().map(|one| metric(one, "bigiron_forwards_total{what=\"run\"}")).sum();
    let given: f64 = all.iter().map(|one| metric(one, "bigiron_forwarded_calls_total{ended=\"answered\"}")).sum();
    // 2 instances without `inline`, 1 without `pool`: 4 calls each; 2 without `who`: one each.
    assert_eq!((ran, given), (14.0, 14.0));
    // What is kept is kept where the call came, and is not handed over again.
    assert_eq!(metric(&all[2], "bigiron_forwards_total{what=\"forged\"}"), 0.0);
}

#[test]
fn each_caller_is_who_he_is_at_another_node_too() {
    let (redis, issuer) = (Redis::start(), Issuer::new());
    let (ann, bob) = (issuer.key_for("ann", &["special"]), issuer.key_for("bob", &[]));
    let all = three(&redis, &Work::default(), |tuning| {
        tuning.auth.keys_file = issuer.file("keys.toml").display().to_string();
        let kept = tuning.tools.get_mut("kept").expect("it is placed");
        kept.cache_ttl_s = Some(60);
        tuning.tools.get_mut("left").expect("it is placed").scopes_any = Some(vec!["special".into()]);
    });
    let ask = |one: &Running, key: &str, tool: &str| -> Response {
        let request = modern(1, "tools/call", json!({ "name": tool, "arguments": {} }));
        let bearer = format!("Bearer {key}");
        let headers = [&modern_headers("tools/call", tool)[..], &[("Authorization", &bearer)]].concat();
        Client::connect(one.addr()).post(&headers, &request)
    };
    for one in &all {
        for _ in 0..3 {
            let told = [&ann, &bob].map(|key| ask(one, key, "who").text());
            let names = told.each_ref().map(|told| told.strip_suffix(" at c").expect("it ran there"));
            assert!(names[0].contains("ann") && names[1].contains("bob") && names[0] != names[1], "{told:?}");
        }
        assert_eq!(ask(one, &ann, "left").status, 200);
        let refused = ask(one, &bob, "left");
        assert_eq!(refused.code(), Some(-32602), "who may not call it does not through another either");
    }
    let before = metric(&all[2], "bigiron_forwards_total{what=\"run\"}");
    let kept = [&ann, &ann, &bob, &bob].map(|key| ask(&all[0], key, "kept").json()["result"]["_meta"].to_string());
    let after = metric(&all[2], "bigiron_forwards_total{what=\"run\"}");
    assert_eq!(after - before, 2.0, "kept for each where the call came: {kept:?}");
}

#[test]
fn time_and_cancel_go_along() {
    let (redis, work) = (Redis::start(), Work::default());
    let all = three(&redis, &work, |tuning| {
        tuning.tools.get_mut("left").expect("it is placed").timeout_ms = Some(7000);
    });
    let left: u64 = call(all[0].addr(), "left", json!({})).text().parse().expect("a number");
    assert!((1..=7000).contains(&left), "{left}");
    // A client that leaves.
    let request = modern(1, "tools/call", json!({ "name": "hold", "arguments": {} }));
    let mut client = Client::connect(all[0].addr());
    client.send(&post_bytes(&modern_headers("tools/call", "hold"), request.to_string().as_bytes()));
    eventually("it runs there", || work.held() == [0, 0, 1]);
    assert_eq!(metric(&all[0], "bigiron_forwarded_calls_in_flight"), 1.0);
    drop(client);
    eventually("it is stopped there", || work.held() == [0, 0, 0]);
    // One that takes its call back.
    let mut session = Session::open(all[1].addr(), "2025-11-25");
    let params = json!({ "name": "hold", "arguments": {}, "_meta": { "progressToken": 1 } });
    let mut stream = session.stream(all[1].addr(), 5, "tools/call", params);
    eventually("it runs there", || work.held() == [0, 0, 1]);
    assert_eq!(session.notify("notifications/cancelled", json!({ "requestId": 5 })).status, 202);
    eventually("it is stopped there", || work.held() == [0, 0, 0]);
    while stream.next().is_some() {}
    eventually("and counted", || metric(&all[2], "bigiron_forwards_in_flight") == 0.0);
}

#[test]
fn the_time_of_a_call_ends_wherever_it_runs() {
    let (redis, work) = (Redis::start(), Work::default());
    let all = three(&redis, &work, |tuning| {
        tuning.tools.get_mut("hold").expect("it is placed").timeout_ms = Some(300);
    });
    let late = call(all[0].addr(), "hold", json!({}));
    assert_eq!(late.json()["result"]["isError"], true, "{:?}", late.json());
    assert!(late.text().contains("within 300 ms"), "{}", late.text());
    eventually("it is stopped there", || work.held() == [0, 0, 0]);
}

#[test]
fn what_a_call_says_and_asks_comes_through() {
    let redis = Redis::start();
    let all = three(&redis, &Work::default(), |_| {});
    let mut said = meta();
    said["progressToken"] = json!("p");
    said["io.modelcontextprotocol/logLevel"] = json!("warning");
    let request = modern(1, "tools/call", json!({ "name": "says", "arguments": {}, "_meta": said }));
    let response = Client::connect(all[0].addr()).post(&modern_headers("tools/call", "says"), &request);
    let events = response.events();
    let progress: Vec<_> = events.iter().filter(|event| event["method"] == "notifications/progress").collect();
    let steps: Vec<_> = progress.iter().filter_map(|event| event["params"]["progress"].as_f64()).collect();
    assert_eq!(steps, [1.0, 2.0], "{events:?}");
    assert!(progress.iter().all(|event| event["params"]["progressToken"] == "p"), "{events:?}");
    assert!(
        events.iter().any(|event| event["method"] == "notifications/message" && event["params"]["data"] == "careful")
    );
    assert_eq!(events.last().expect("an end")["result"]["content"][0]["text"], "c");
    // A question on the stream of a session.
    let session = Session::open_with(all[0].addr(), "2025-11-25", json!({ "elicitation": {} }));
    let params = json!({ "name": "asks", "arguments": {}, "_meta": { "progressToken": 1 } });
    let mut stream = session.stream(all[0].addr(), 3, "tools/call", params);
    let question = stream.message();
    assert_eq!(question["method"], "elicitation/create", "{question}");
    // The answer may come to any instance.
    assert_eq!(session.answer(all[1].addr(), &question, json!({ "action": "decline" })).status, 202);
    let done = stream.message();
    assert_eq!(done["result"]["content"][0]["text"], "\"decline\" at c", "{done}");
    // In rounds.
    let mut able = meta();
    able["io.modelcontextprotocol/clientCapabilities"] = json!({ "elicitation": {} });
    let round = |one: &Running, params: Value| {
        let mut params = params;
        (params["name"], params["arguments"], params["_meta"]) = (json!("asks"), json!({}), able.clone());
        Client::connect(one.addr()).post(&modern_headers("tools/call", "asks"), &modern(1, "tools/call", params)).json()
    };
    let asked = round(&all[0], json!({}));
    assert_eq!(asked["result"]["resultType"], "input_required", "{asked}");
    let answers = json!({ "name": { "action": "decline" } });
    let mut again = json!({ "inputResponses": answers });
    if let Some(state) = asked["result"].get("requestState") {
        again["requestState"] = state.clone();
    }
    let done = round(&all[1], again);
    assert_eq!(done["result"]["content"][0]["text"], "\"decline\" at c", "{done}");
    // As a task.
    let mut able = meta();
    able["io.modelcontextprotocol/clientCapabilities"] =
        json!({ "extensions": { "io.modelcontextprotocol/tasks": {} } });
    let ask = |one: &Running, method: &str, name: &str, mut params: Value| {
        params["_meta"] = able.clone();
        Client::connect(one.addr()).post(&modern_headers(method, name), &modern(1, method, params)).json()
    };
    let begun = ask(&all[0], "tools/call", "later", json!({ "name": "later", "arguments": {} }));
    assert_eq!(begun["result"]["resultType"], "task", "{begun}");
    let id = begun["result"]["taskId"].as_str().expect("an id").to_owned();
    eventually("the task ends", || {
        let task = ask(&all[1], "tasks/get", &id, json!({ "taskId": id }));
        task["result"]["status"] == "completed" && task.to_string().contains("later at c")
    });
}

/// Three processes with the tools that ship and those of the example, placed as `sets` say.
fn processes(redis: &Redis, sets: &[&str], roles: [&str; 3]) -> [Process; 3] {
    let all = [0, 1, 2].map(|at| {
        let roles = format!("cluster.roles={}", roles[at]);
        let mut args = node(redis, IDS[at]);
        for set in sets.iter().copied().chain([roles.as_str()]) {
            args.extend(["--set".to_owned(), set.to_owned()]);
        }
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        Process::start_example_with("everything", &args)
    });
    for one in &all {
        eventually("each sees all", || {
            let nodes = nodes(one.admin_addr);
            nodes.len() == 3 && nodes.values().all(|(status, _)| status == "running")
        });
    }
    all
}

const NO_ROLES: [&str; 3] = ["[]", "[]", "[]"];

/// How many calls were made, and those that failed.
fn joined<T>(callers: impl IntoIterator<Item = thread::JoinHandle<(usize, Vec<T>)>>) -> (usize, Vec<T>) {
    let (mut count, mut failed) = (0, Vec::new());
    for caller in callers {
        let (calls, wrong) = caller.join().expect("it calls");
        count += calls;
        failed.extend(wrong);
    }
    (count, failed)
}

/// Calls a tool again and again through some instances until it is enough; the number of calls, and those that failed.
fn load(
    addrs: &[SocketAddr],
    tool: &'static str,
    is_enough: &Arc<AtomicBool>,
) -> Vec<thread::JoinHandle<(usize, Vec<Value>)>> {
    let callers = addrs.iter().flat_map(|addr| [*addr; 4]);
    let called = callers.map(|addr| {
        let is_enough = Arc::clone(is_enough);
        thread::spawn(move || {
            let (mut count, mut failed) = (0, Vec::new());
            let mut client = Client::connect(addr);
            while !is_enough.load(Ordering::SeqCst) {
                let request = modern(count, "tools/call", json!({ "name": tool, "arguments": {} }));
                let answer = client.post(&modern_headers("tools/call", tool), &request).json();
                if answer["result"]["content"][0]["text"].is_null() || answer["result"]["isError"] == true {
                    failed.push(answer);
                }
                count += 1;
            }
            (count, failed)
        })
    });
    called.collect()
}

#[test]
fn a_node_that_is_drained_under_load_fails_no_call() {
    let redis = Redis::start();
    // A tool that may not be repeated, on two of three.
    let mut all =
        processes(&redis, &["tools.test_simple_text.spread=2", "tools.test_tool_with_logging.spread=2"], NO_ROLES);
    let has = |tool: &str| -> Vec<usize> {
        let nodes = nodes(all[0].admin_addr);
        (0..3).filter(|at| nodes[IDS[*at]].1.contains(tool)).collect()
    };
    let leaving = has("test_simple_text")[0];
    let others: Vec<_> = (0..3).filter(|at| *at != leaving).map(|at| all[at].addr).collect();
    let is_enough = Arc::new(AtomicBool::new(false));
    let callers: Vec<_> = ["test_simple_text", "test_tool_with_logging"]
        .into_iter()
        .flat_map(|tool| load(&others, tool, &is_enough))
        .collect();
    let ran = |one: &Process| metric_of(one, "bigiron_forwards_total{what=\"run\"}");
    eventually("it runs calls of others", || ran(&all[leaving]) > 100.0);
    all[leaving].signal("TERM");
    assert_eq!(all[leaving].wait().code(), Some(0));
    eventually("the others see it", || {
        (0..3).filter(|at| *at != leaving).all(|at| nodes(all[at].admin_addr).len() == 2)
    });
    is_enough.store(true, Ordering::SeqCst);
    let (count, failed) = joined(callers);
    assert!(failed.is_empty() && count > 100, "{count} calls, {} failed: {:?}", failed.len(), failed.first());
    let line = all[leaving].log_line_with("stopped");
    assert!(line.contains("every call was answered"), "{line}");
    for at in (0..3).filter(|at| *at != leaving) {
        all[at].signal("TERM");
        assert_eq!(all[at].wait().code(), Some(0));
    }
    assert_eq!(redis.keys("mcp:"), ["mcp:cluster"], "nothing else is left, nor the key that they shared");
}

/// Those who run a tool are restarted in turn while it is called through one that never does.
fn restarted(rounds: usize) {
    let redis = Redis::start();
    let set = |tool: &str| [format!("tools.{tool}.roles=[\"work\"]"), format!("tools.{tool}.spread=2")];
    let sets = [set("test_simple_text"), set("test_tool_with_logging")].concat();
    let start = |id: &str, roles: &str| {
        let mut args = node(&redis, id);
        for set in sets.iter().cloned().chain([format!("cluster.roles={roles}")]) {
            args.extend(["--set".to_owned(), set]);
        }
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        Process::start_example_with("everything", &args)
    };
    let entry = start("entry", "[]");
    let mut workers: Vec<_> = IDS.iter().map(|id| start(id, "[\"work\"]")).collect();
    let all_are_there = || {
        let nodes = nodes(entry.admin_addr);
        nodes.len() == 4 && nodes.values().all(|(status, _)| status == "running")
    };
    eventually("all are seen", all_are_there);
    let is_enough = Arc::new(AtomicBool::new(false));
    let tools = ["test_simple_text", "test_tool_with_logging"];
    let callers: Vec<_> = tools.into_iter().flat_map(|tool| load(&[entry.addr], tool, &is_enough)).collect();
    let answered = || metric_of(&entry, "bigiron_forwarded_calls_total{ended=\"answered\"}");
    for _ in 0..rounds {
        for (at, id) in IDS.iter().enumerate() {
            workers[at].signal("TERM");
            assert_eq!(workers[at].wait().code(), Some(0));
            let line = workers[at].log_line_with("stopped");
            assert!(line.contains("every call was answered"), "{line}");
            workers[at] = start(id, "[\"work\"]");
            // Not seen by all yet: the next one stops while views are of before.
            let before = answered();
            eventually("calls go on", || answered() > before + 20.0);
        }
    }
    is_enough.store(true, Ordering::SeqCst);
    let (count, failed) = joined(callers);
    let restarts = rounds * IDS.len();
    assert!(failed.is_empty(), "{restarts} restarts, {count} calls, {} failed: {:?}", failed.len(), failed.first());
    assert_eq!(answered() as usize, count, "{restarts} restarts: each call ran elsewhere, and was answered once");
    assert_eq!(metric_of(&entry, "bigiron_forwarded_calls_total{ended=\"lost\"}"), 0.0);
}

#[test]
fn restarts_of_those_who_run_a_tool_fail_no_call() {
    restarted(1);
}

#[test]
#[ignore = "takes 1 min: cargo test --test it -- --ignored thirty_restarts"]
fn thirty_restarts_of_those_who_run_a_tool_fail_no_call() {
    restarted(10);
}

#[test]
fn a_node_that_is_killed_loses_only_what_may_not_run_twice() {
    let redis = Redis::start();
    let sets = ["tools.test_elicitation.roles=[\"special\"]", "tools.test_simple_text.roles=[\"special\"]"];
    let all = processes(&redis, &sets, ["[]", "[\"special\"]", "[\"special\"]"]);
    let session = Session::open_with(all[0].addr, "2025-11-25", json!({ "elicitation": {} }));
    let params = |n: u32| json!({ "name": "test_elicitation", "arguments": { "message": "Who?" }, "_meta": { "progressToken": n } });
    // One call at each of the two that have it.
    let mut streams: Vec<_> = (1..=2).map(|n| session.stream(all[0].addr, n, "tools/call", params(n))).collect();
    let questions: Vec<_> = streams.iter_mut().map(crate::support::Stream::message).collect();
    let held = |one: &Process| metric_of(one, "bigiron_forwards_in_flight");
    assert_eq!((held(&all[1]), held(&all[2])), (1.0, 1.0), "they are dealt out");
    all[1].signal("KILL");
    // Which of the two it ran, nobody knows: the other goes on with its answer.
    eventually("it is missed", || metric_of(&all[0], "bigiron_forwarded_calls_total{ended=\"lost\"}") == 1.0);
    for question in &questions {
        session.answer(all[0].addr, question, json!({ "action": "decline" }));
    }
    let ends: Vec<_> = streams.iter_mut().map(crate::support::Stream::message).collect();
    let lost: Vec<_> = ends.iter().filter(|end| end.get("error").is_some()).collect();
    let [lost] = &lost[..] else { panic!("one is lost: {ends:?}") };
    assert_eq!(lost["error"]["code"], -32603, "{lost}");
    assert!(lost["error"]["message"].as_str().is_some_and(|text| text.contains("may have run")), "{lost}");
    // From the first moment on the other takes what comes.
    for _ in 0..20 {
        assert_eq!(call(all[0].addr, "test_simple_text", json!({})).status, 200);
    }
    assert_eq!(metric_of(&all[0], "bigiron_forwarded_calls_total{ended=\"lost\"}"), 1.0);
    all[2].signal("KILL");
    eventually("it is said that nobody is left", || {
        let refused = call(all[0].addr, "test_simple_text", json!({}));
        let text = refused.json()["error"]["message"].as_str().expect("an error").to_owned();
        match refused.status {
            // On a connection that did not look dead yet.
            200 => assert!(text.contains("may have run"), "{text}"),
            _ => {
                assert_eq!((refused.status, refused.code()), (503, Some(-31503)));
                assert_eq!(refused.header("retry-after"), Some("1"));
                assert!(text.contains("did not run"), "{text}");
            }
        }
        refused.status == 503
    });
}

#[test]
fn a_call_that_may_run_twice_outlives_its_node() {
    let redis = Redis::start();
    let special = ["--set", "tools.burn.roles=[\"special\"]", "--set", "limits.request_timeout_ms=20000"];
    let with = |id: &str, roles: &str| start_process(&redis, id, &[&special[..], &["--set", roles]].concat());
    let all = [
        with("a", "cluster.roles=[]"),
        with("b", "cluster.roles=[\"special\"]"),
        with("c", "cluster.roles=[\"special\"]"),
    ];
    eventually("all are seen", || nodes(all[0].admin_addr).len() == 3);
    let addr = all[0].addr;
    let called = thread::spawn(move || call(addr, "burn", json!({ "ms": 1500 })));
    let held = |one: &Process| metric_of(one, "bigiron_forwards_in_flight") == 1.0;
    eventually("it runs somewhere", || held(&all[1]) || held(&all[2]));
    let first = if held(&all[1]) { 1 } else { 2 };
    all[first].signal("KILL");
    let answer = called.join().expect("it calls");
    assert_eq!((answer.status, answer.json()["result"]["structuredContent"]["burned_ms"].as_u64()), (200, Some(1500)));
    assert_eq!(metric_of(&all[0], "bigiron_forward_retries_total{why=\"broken\"}"), 1.0);
    assert_eq!(metric_of(&all[3 - first], "bigiron_forwards_total{what=\"run\"}"), 1.0);
}

#[test]
fn a_node_that_hangs_is_left() {
    let redis = Redis::start();
    let special = ["--set", "tools.burn.roles=[\"special\"]", "--set", "limits.request_timeout_ms=20000"];
    let with = |id: &str, roles: &str| start_process(&redis, id, &[&special[..], &["--set", roles]].concat());
    let all = [with("a", "cluster.roles=[]"), with("b", "cluster.roles=[\"special\"]")];
    eventually("both are seen", || nodes(all[0].admin_addr).len() == 2);
    assert_eq!(call(all[0].addr, "burn", json!({ "ms": 1 })).status, 200);
    all[1].signal("STOP");
    let addr = all[0].addr;
    let called = thread::spawn(move || call(addr, "burn", json!({ "ms": 1 })));
    let _c = with("c", "cluster.roles=[\"special\"]"); // it comes while the call waits, which does not know of it
    eventually("it is seen", || nodes(all[0].admin_addr).contains_key("c"));
    let first = called.join().expect("it calls");
    assert!(first.status == 200 || first.json().to_string().contains("may have run"), "{first:?}");
    let served = call(addr, "burn", json!({ "ms": 1 }));
    assert_eq!(served.status, 200, "the other has it: {served:?}");
    all[1].signal("CONT");
}

#[test]
fn who_has_another_key_is_handed_nothing() {
    use std::os::unix::fs::PermissionsExt;

    let (redis, folder) = (Redis::start(), tempfile::TempDir::new().expect("a folder"));
    let file = |name: &str| {
        let file = folder.path().join(name);
        std::fs::write(&file, format!("the key of {name} that is as long as keys are\n")).expect("written");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("set");
        file.display().to_string()
    };
    let (ours, theirs) = (file("ours"), file("theirs"));
    let all = three(&redis, &Work::default(), |tuning| {
        let is_stranger = tuning.cluster.node_id == "c";
        tuning.cluster.node_key_file = if is_stranger { theirs.clone() } else { ours.clone() };
    });
    let refused = call(all[0].addr(), "who", json!({}));
    assert_eq!((refused.status, refused.code()), (503, Some(-31503)));
    assert_eq!(metric(&all[0], "bigiron_forward_retries_total{why=\"strange\"}"), 1.0);
    assert_eq!(metric(&all[2], "bigiron_forwards_total{what=\"run\"}"), 0.0);
    // Those who have the same key serve each other, and whoever is asked answers.
    for one in &all {
        assert_eq!(call(one.addr(), "pool", json!({})).status, 200);
    }
    assert_eq!(redis.keys("mcp:node-key"), [""; 0], "a key that is set is not in Redis");
    let told = get(all[0].admin_addr().expect("an admin listener"), "/nodes").json();
    let [a, b, c] = [0, 1, 2].map(|at| told["nodes"][at]["node_key"].as_str().expect("its fingerprint").to_owned());
    assert!(a == b && a != c && [a, c].iter().all(|key| key.starts_with("file:")), "{told}");
}

#[test]
fn what_is_no_node_is_refused_and_redis_may_be_away() {
    let mut redis = Redis::start();
    let all = three(&redis, &Work::default(), |_| {});
    let told = get(all[0].admin_addr().expect("an admin listener"), "/nodes").json();
    let at = told["nodes"][2]["forwards"].as_str().expect("an address").to_owned();
    let status = forge(&at);
    assert_eq!(status, 401);
    assert_eq!(metric(&all[2], "bigiron_forwards_total{what=\"forged\"}"), 1.0);
    assert_eq!(call(all[0].addr(), "who", json!({})).text(), "anonymous at c");
    redis.kill();
    eventually("it is missed", || metric(&all[0], "bigiron_cluster_up") == 0.0);
    for one in &all {
        assert_eq!(call(one.addr(), "who", json!({})).text(), "anonymous at c", "who was there is there");
        assert_eq!(call(one.addr(), "pool", json!({})).status, 200);
    }
}

/// Hands a call over as whoever knows the way and has no key; the status that comes of it.
fn forge(at: &str) -> u16 {
    use bytes::Bytes;
    use hyper_util::rt::{TokioExecutor, TokioIo};

    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(at).await.expect("connects");
        let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream));
        let (mut sender, connection) = handshake.await.expect("HTTP/2");
        tokio::spawn(connection);
        let head = json!({ "tool": "who", "caller": "ann", "left_ms": 1000, "limit_ms": 1000 }).to_string();
        let body = [&(head.len() as u32).to_be_bytes()[..], head.as_bytes(), b"{}"].concat();
        let body = String::from_utf8(Bytes::from(body).to_vec()).expect("text");
        let request = hyper::Request::post("http://node/call").header("bigiron-proof", format!("0:{}", "0".repeat(64)));
        let response = sender.send_request(request.body(body).expect("a request")).await.expect("an answer");
        response.status().as_u16()
    })
}
