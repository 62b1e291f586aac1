//! Kept results, seen from outside: what is kept, for whom, and that many equal calls run once.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::Duration,
};

use bigiron::{CallError, Ctx, Input, Lane, Server, Tool, server::Running, tool::Config};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;

use crate::{
    identity::Issuer,
    support::{Client, Response, Session, call, eventually, metric, modern, modern_headers, start},
};

#[derive(Deserialize, JsonSchema)]
struct Argument {
    n: i64,
    #[serde(default)]
    fail: bool,
}

/// A tool that says how often it ran, kept for a minute.
fn counting(delay: Duration) -> (Running, Arc<AtomicU32>) {
    let runs = Arc::<AtomicU32>::default();
    let count = Arc::clone(&runs);
    let tool = Tool::new("count", "Counts its runs", Lane::Pool, move |argument: Argument, _: Ctx| {
        let run = count.fetch_add(1, Ordering::SeqCst) + 1;
        thread::sleep(delay);
        if argument.fail { Err(format!("run {run} failed")) } else { Ok(format!("run {run} for {}", argument.n)) }
    });
    let plain = Tool::new("plain", "Nothing of it is kept", Lane::Inline, |_: Argument, _: Ctx| "x");
    let running = start(Server::builder().with(tool.read_only()).with(plain), |tuning| {
        tuning.tools.insert("count".into(), Config { cache_ttl_s: Some(60), ..Config::default() });
    });
    (running, runs)
}

#[test]
fn a_result_is_kept_and_says_so() {
    let (running, runs) = counting(Duration::ZERO);
    let miss = call(running.addr(), "count", json!({ "n": 1 })).json();
    assert_eq!(miss["result"]["_meta"]["bigiron/cache"], json!({ "status": "miss" }));
    // The order of keys and the spelling of the request do not matter; the era does not either.
    let hit = call(running.addr(), "count", json!({ "fail": false, "n": 1 })).json();
    assert_eq!(hit["result"]["content"][0]["text"], "run 2 for 1", "a default that is written out is another call");
    let hit = call(running.addr(), "count", json!({ "n": 1, "fail": false })).json();
    assert_eq!(hit["result"]["_meta"]["bigiron/cache"]["status"], "hit");
    assert_eq!(hit["result"]["content"][0]["text"], "run 2 for 1");
    let mut session = Session::open(running.addr(), "2025-11-25");
    let hit = session.request("x", "tools/call", json!({ "name": "count", "arguments": { "n": 1 } })).json();
    assert_eq!(hit["result"]["content"][0]["text"], "run 1 for 1");
    assert_eq!(hit["result"]["_meta"]["bigiron/cache"]["status"], "hit");
    assert_eq!(hit["id"], "x");
    assert_eq!(runs.load(Ordering::SeqCst), 2);
    running.stop();
}

/// In a session a tool that waits may ask its client. One that does not is kept like any other.
#[test]
fn what_a_session_was_not_asked_about_is_kept() {
    let tool = Tool::new_async("wait", "d", |_: Named, _: Ctx| async { "done" });
    let running = start(Server::builder().with(tool.read_only()), |tuning| {
        tuning.tools.insert("wait".into(), Config { cache_ttl_s: Some(60), ..Config::default() });
    });
    let mut session = Session::open(running.addr(), "2025-11-25");
    for (id, status) in [(1, "miss"), (2, "hit")] {
        let answer = session.request(id, "tools/call", json!({ "name": "wait", "arguments": {} })).json();
        assert_eq!(answer["result"]["_meta"]["bigiron/cache"]["status"], status, "{answer}");
    }
    for result in ["miss", "hit"] {
        let name = format!("bigiron_cache_requests_total{{tool=\"wait\",result=\"{result}\"}}");
        assert_eq!(metric(&running, &name), 1.0, "{result}");
    }
    running.stop();
}

#[test]
fn failures_are_not_kept() {
    let (running, runs) = counting(Duration::ZERO);
    for run in 1..=3 {
        let answer = call(running.addr(), "count", json!({ "n": 1, "fail": true }));
        assert_eq!(answer.text(), format!("run {run} failed"));
        assert!(answer.json()["result"]["_meta"].get("bigiron/cache").is_none());
    }
    assert_eq!(runs.load(Ordering::SeqCst), 3);
    running.stop();
}

#[test]
fn many_equal_calls_at_once_run_once() {
    let (running, runs) = counting(Duration::from_millis(200));
    let addr = running.addr();
    let calls: Vec<_> = (0..40).map(|_| thread::spawn(move || call(addr, "count", json!({ "n": 5 })).text())).collect();
    eventually("they are there", || runs.load(Ordering::SeqCst) > 0);
    for call in calls {
        assert_eq!(call.join().unwrap(), "run 1 for 5");
    }
    assert_eq!(runs.load(Ordering::SeqCst), 1);
    running.stop();
}

#[test]
fn a_tool_that_may_change_something_is_not_cached_by_accident() {
    let tool = || Tool::new("count", "Not said to be read-only", Lane::Inline, |_: Argument, _: Ctx| "x");
    let mut tuning = bigiron::config::Tuning::default();
    tuning.server.listen = "127.0.0.1:0".into();
    tuning.server.admin_listen = String::new();
    tuning.tools.insert("count".into(), Config { cache_ttl_s: Some(60), ..Config::default() });
    let error = Server::builder().with(tool()).start(tuning.clone()).map(|r| r.stop()).expect_err("refused");
    assert!(error.to_string().contains("read-only"), "{error}");
    tuning
        .tools
        .insert("count".into(), Config { cache_ttl_s: Some(60), cache_not_read_only: Some(true), ..Config::default() });
    Server::builder().with(tool()).start(tuning).expect("allowed by the operator").stop();
}

#[test]
fn what_came_of_a_clients_answers_is_kept_for_nobody() {
    let tool = Tool::new_async("greet", "Asks for a name", |_: Named, ctx: Ctx| async move {
        let form = json!({ "type": "object", "properties": { "name": { "type": "string" } }, "required": ["name"] });
        let answer = ctx.ask("who", Input::elicit("Who are you?", form)).await?;
        Ok::<_, CallError>(format!("Hello, {}!", answer["content"]["name"]))
    });
    let running = start(Server::builder().with(tool.read_only()), |tuning| {
        tuning.tools.insert("greet".into(), Config { cache_ttl_s: Some(60), ..Config::default() });
    });
    let call = |answers: Option<&str>| {
        let mut params = json!({ "name": "greet", "arguments": {} });
        if let Some(name) = answers {
            params["inputResponses"] = json!({ "who": { "action": "accept", "content": { "name": name } } });
        }
        let mut request = modern(1, "tools/call", params);
        request["params"]["_meta"]["io.modelcontextprotocol/clientCapabilities"] = json!({ "elicitation": {} });
        Client::connect(running.addr()).post(&modern_headers("tools/call", "greet"), &request).json()
    };
    for name in ["Alice", "Bob"] {
        assert_eq!(call(None)["result"]["resultType"], "input_required");
        assert_eq!(call(Some(name))["result"]["content"][0]["text"], format!("Hello, \"{name}\"!"));
    }
    running.stop();
}

#[derive(Deserialize, JsonSchema)]
struct Named {}

/// POST to the admin listener.
fn invalidate(running: &Running, body: &str) -> Response {
    let mut client = Client::connect(running.admin_addr().unwrap());
    let length = body.len();
    let head = "POST /cache/invalidate HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json";
    client.send(format!("{head}\r\nContent-Length: {length}\r\n\r\n{body}").as_bytes());
    client.receive().expect("an answer")
}

#[test]
fn kept_results_are_invalidated_by_the_admin_listener_and_the_command_line() {
    let (running, runs) = counting(Duration::ZERO);
    let call = |n: i64| call(running.addr(), "count", json!({ "n": n })).json();
    let mut expected = 0;
    let admin = running.admin_addr().unwrap().to_string();
    let from_the_shell = |args: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_bigiron"));
        command.args(["cache", "invalidate", "--admin", &admin]).args(args).output().expect("it runs")
    };
    for way in 0..6 {
        call(1);
        call(2);
        expected += if way == 0 { 2 } else { 0 };
        assert_eq!(runs.load(Ordering::SeqCst), expected, "both are kept");
        let ends_both = match way {
            0 => invalidate(&running, r#"{"all":true}"#).status == 200,
            1 => invalidate(&running, r#"{"tool":"count"}"#).status == 200,
            2 => invalidate(&running, r#"{"caller":"anonymous"}"#).status == 200,
            3 => invalidate(&running, r#"{"tool":"count","arguments":{"n":1}}"#).status != 200,
            4 => from_the_shell(&["--all"]).status.success(),
            _ => !from_the_shell(&["--tool", "count", "--arguments", r#"{"n":1}"#]).status.success(),
        };
        assert_eq!(call(1)["result"]["_meta"]["bigiron/cache"]["status"], "miss", "way {way}");
        let other = call(2)["result"]["_meta"]["bigiron/cache"]["status"].clone();
        assert_eq!(other, if ends_both { "miss" } else { "hit" }, "way {way}");
        expected += if ends_both { 2 } else { 1 };
    }
    let large = format!(r#"{{"tool":"{}"}}"#, "x".repeat(70_000));
    for (body, status, says) in [
        (r#"{"tool":"cuont"}"#, 404, "did you mean \"count\"?; results are kept of: count"),
        (r#"{"tool":"plain"}"#, 400, "tools.plain.cache_ttl_s is not set"),
        (r#"{"tol":"count"}"#, 400, "unknown field"),
        (r#"{"caller":"ann"}"#, 400, "every caller is \"anonymous\""),
        (r#"{"arguments":{}}"#, 400, "name the tool too"),
        ("{}", 400, "{\"all\": true}"),
        (r#"{"all":false}"#, 400, "this names no results"),
        (r#"{"all":true,"tool":"count"}"#, 400, "at once"),
        ("[", 400, "send {\"tool\": NAME}"),
        (&large, 413, "the most at the admin listener"),
    ] {
        let refused = invalidate(&running, body);
        assert_eq!(refused.status, status, "{refused:?}");
        assert!(refused.json()["error"]["message"].as_str().unwrap().contains(says), "{refused:?}");
    }
    assert_eq!(invalidate(&running, r#"{"tool":"count"}"#).json(), json!({ "forgotten": { "tool": "count" } }));
    let wrong = from_the_shell(&["--tool", "other"]);
    assert_eq!(wrong.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("results are kept of: count"), "{wrong:?}");
    let localhost = format!("localhost:{}", running.admin_addr().unwrap().port());
    for (address, says) in [(localhost, None), (running.addr().to_string(), Some("server.listen"))] {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_bigiron"));
        let ran = command.args(["cache", "invalidate", "--all", "--admin", &address]).output().expect("it runs");
        assert_eq!(ran.status.success(), says.is_none(), "{ran:?}");
        assert!(String::from_utf8_lossy(&ran.stderr).contains(says.unwrap_or("")), "{ran:?}");
    }
    assert_eq!(from_the_shell(&[]).status.code(), Some(2), "everything is forgotten only when that is said");
    running.stop();
}

/// Where everybody who calls is known, a call that is named without its caller is nobody's.
#[test]
fn with_authentication_one_call_is_forgotten_for_a_caller_and_not_for_nobody() {
    let issuer = Issuer::new();
    let (admin, ann) = (issuer.key_for("root", &["bigiron:admin"]), issuer.key_for("ann", &[]));
    let tools = ["mine", "everybodys"].map(|name| Tool::new(name, "d", Lane::Inline, |_: Named, _: Ctx| "x"));
    let [mine, everybodys] = tools.map(Tool::read_only);
    let running = start(Server::builder().with(mine).with(everybodys), |tuning| {
        issuer.tune(tuning);
        let config = Config { cache_ttl_s: Some(600), ..Config::default() };
        tuning.tools.insert("mine".into(), config.clone());
        let config = Config { cache_scope: Some(bigiron::tool::CacheScope::Public), ..config };
        tuning.tools.insert("everybodys".into(), config);
    });
    let status = |tool: &str| {
        let request = modern(1, "tools/call", json!({ "name": tool, "arguments": {} }));
        let authorization = format!("Bearer {ann}");
        let headers = [&modern_headers("tools/call", tool)[..], &[("Authorization", &authorization)]].concat();
        let answer = Client::connect(running.addr()).post(&headers, &request).json();
        answer["result"]["_meta"]["bigiron/cache"]["status"].as_str().unwrap_or_default().to_owned()
    };
    let key_file = issuer.file("admin.key");
    std::fs::write(&key_file, format!("{admin}\n")).expect("written");
    let forget = |args: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_bigiron"));
        command.args(["cache", "invalidate", "--admin", &running.admin_addr().unwrap().to_string(), "--key-file"]);
        let ran = command.arg(&key_file).args(args).output().expect("it runs");
        (ran.status.success(), String::from_utf8_lossy(&ran.stderr).into_owned())
    };
    for tool in ["mine", "everybodys"] {
        assert_eq!([status(tool), status(tool)], ["miss", "hit"], "{tool}");
    }
    let (done, said) = forget(&["--tool", "mine", "--arguments", "{}"]);
    assert!(!done && said.contains("name the caller too, or leave the arguments out"), "{said}");
    assert_eq!(status("mine"), "hit");
    for (tool, caller) in [("mine", &["--caller", "12:bigiron:keys;3:ann;"][..]), ("everybodys", &[])] {
        let args = [&["--tool", tool, "--arguments", "{}"], caller].concat();
        assert_eq!(forget(&args), (true, String::new()));
        assert_eq!(status(tool), "miss");
    }
    running.stop();
}

#[test]
fn the_admin_listener_says_which_methods_it_takes() {
    let (running, _) = counting(Duration::ZERO);
    for (method, path, allowed) in [
        ("GET", "/cache/invalidate", "POST"),
        ("DELETE", "/cache/invalidate", "POST"),
        ("POST", "/metrics", "GET, HEAD"),
        ("DELETE", "/health", "GET, HEAD"),
    ] {
        let mut client = Client::connect(running.admin_addr().unwrap());
        client.send(format!("{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\n\r\n").as_bytes());
        let refused = client.receive().expect("an answer");
        assert_eq!((refused.status, refused.header("allow")), (405, Some(allowed)), "{refused:?}");
    }
    running.stop();
}

#[test]
fn an_old_result_is_served_at_once_and_made_anew_behind_it() {
    let runs = Arc::<AtomicU32>::default();
    let count = Arc::clone(&runs);
    let tool = Tool::new("count", "Counts its runs", Lane::Pool, move |_: Argument, _: Ctx| {
        format!("run {}", count.fetch_add(1, Ordering::SeqCst) + 1)
    });
    let running = start(Server::builder().with(tool.read_only()), |tuning| {
        tuning.cache.ttl_jitter_percent = 0;
        let config = Config { cache_ttl_s: Some(1), stale_while_revalidate_s: Some(600), ..Config::default() };
        tuning.tools.insert("count".into(), config);
    });
    let status = |answer: &serde_json::Value| answer["result"]["_meta"]["bigiron/cache"]["status"].clone();
    assert_eq!(status(&call(running.addr(), "count", json!({ "n": 1 })).json()), "miss");
    let mut stale = serde_json::Value::Null;
    eventually("its time is over", || {
        let answer = call(running.addr(), "count", json!({ "n": 1 })).json();
        stale = answer;
        status(&stale) == "stale"
    });
    assert_eq!(stale["result"]["content"][0]["text"], "run 1", "the old one, without a wait");
    eventually("a new one was made", || runs.load(Ordering::SeqCst) == 2);
    eventually("and is served", || {
        call(running.addr(), "count", json!({ "n": 1 })).json()["result"]["content"][0]["text"] != "run 1"
    });
    running.stop();
}
