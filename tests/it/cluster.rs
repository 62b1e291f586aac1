//! Several processes at one Redis: that they see each other, lose each other, count together, and serve without it.

use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::{
    identity::Issuer,
    redis::Redis,
    support::{Client, Process, Session, call, eventually, get},
};

/// Settings of a node of this name; quick to notice who is gone.
pub(crate) fn node(redis: &Redis, id: &str) -> Vec<String> {
    ["cluster.heartbeat_s=1", "cluster.command_timeout_ms=2000", "cluster.connect_timeout_ms=1000"]
        .map(str::to_owned)
        .into_iter()
        .chain([format!("cluster.redis={}", redis.url()), format!("cluster.node_id={id}")])
        .flat_map(|set| ["--set".to_owned(), set])
        .collect()
}

pub(crate) fn start(redis: &Redis, id: &str, more: &[&str]) -> Process {
    let args = node(redis, id);
    let args: Vec<_> = args.iter().map(String::as_str).chain(more.iter().copied()).collect();
    Process::start(&args)
}

fn bigiron(verb: &str, redis: &Redis, more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bigiron"));
    command.arg(verb).args(node(redis, "asks")).args(more);
    command.output().expect("it runs")
}

/// What a process says of one series.
pub(crate) fn metric(server: &Process, series: &str) -> f64 {
    let text = String::from_utf8(get(server.admin_addr, "/metrics").body).expect("text");
    let line = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("no {series} in {text}")).parse().expect("a number")
}

/// The ids and states that a process tells.
fn told(server: &Process) -> Vec<(String, String)> {
    let nodes = get(server.admin_addr, "/nodes").json();
    let text = |node: &Value, key: &str| node[key].as_str().expect("text").to_owned();
    let nodes = nodes["nodes"].as_array().expect("nodes");
    nodes.iter().map(|node| (text(node, "id"), text(node, "status"))).collect()
}

fn running(ids: &[&str]) -> Vec<(String, String)> {
    ids.iter().map(|id| ((*id).to_owned(), "running".to_owned())).collect()
}

#[test]
fn two_processes_see_each_other_and_nothing_is_left_of_them() {
    let redis = Redis::start();
    let (mut a, b) = (start(&redis, "a", &[]), start(&redis, "b", &[]));
    for server in [&a, &b] {
        eventually("both are seen", || told(server) == running(&["a", "b"]));
        let ready = get(server.admin_addr, "/ready");
        assert_eq!((ready.status, &ready.json()), (200, &json!({ "status": "ready", "cluster": "up" })));
    }
    let table = bigiron("nodes", &redis, &[]);
    let text = String::from_utf8(table.stdout).expect("text");
    assert!(table.status.success() && text.starts_with("ID  STATUS   HEARTBEAT"), "{text}");
    assert_eq!(text.lines().count(), 3, "who asks is none of them: {text}");
    assert!(text.contains(&format!("http://{}/mcp", a.addr)), "{text}");
    let listed: Value = serde_json::from_slice(&bigiron("nodes", &redis, &["--json"]).stdout).expect("JSON");
    let tools = listed["nodes"][1]["tools"].as_array().expect("tools");
    assert!(tools.contains(&json!("echo")) && listed["nodes"][1]["max_load"].as_u64() > Some(0), "{listed}");
    b.signal("KILL");
    eventually("who was killed is gone", || told(&a) == running(&["a"]));
    assert_eq!(metric(&a, "bigiron_cluster_reaped_total"), 1.0);
    a.signal("TERM");
    assert_eq!(a.wait().code(), Some(0));
    // But for the lease of who was killed, and for whose the keys of clients are, which both run out.
    let keys = redis.keys("mcp:");
    assert!(keys.iter().all(|key| redis.cli(&["PTTL", key]) != "-1"), "{keys:?}");
    let left: Vec<_> = keys.into_iter().filter(|key| !key.contains(":lives:")).collect();
    assert_eq!(left, ["mcp:cluster"], "nothing else is left");
    let other = bigiron("serve", &redis, &["--listen", "127.0.0.1:0", "--set", "cluster.id=other"]);
    let err = String::from_utf8_lossy(&other.stderr).into_owned();
    assert_eq!(other.status.code(), Some(78), "{err}");
    assert!(err.contains("DEL mcp:cluster") && err.contains(" h, unless an instance of \"bigiron\" runs"), "{err}");
    let other = bigiron("nodes", &redis, &["--set", "cluster.id=other"]);
    let err = String::from_utf8_lossy(&other.stderr).into_owned();
    assert_eq!((other.status.code(), &*other.stdout), (Some(78), &b""[..]), "{err}");
    assert!(err.contains("cluster.id") && err.contains("\"bigiron\""), "{err}");
    let nobody = bigiron("nodes", &redis, &[]);
    let text = String::from_utf8(nobody.stdout).expect("text");
    assert!(nobody.status.success() && text.starts_with("no instance of \"bigiron\""), "{text}");
    assert!(text.contains(&redis.url()) && text.contains("mcp:*"), "{text}");
}

#[test]
fn a_start_says_which_redis_it_has_and_why_it_is_away_is_said_when_it_changes() {
    let mut redis = Redis::start();
    let (a, b) = (start(&redis, "a", &[]), start(&redis, "b", &[]));
    let said = |server: &Process, text: &str| -> Value {
        serde_json::from_str(&server.log_line_with(text)).expect("a log line is JSON")
    };
    for (server, id, others) in [(&a, "a", 0), (&b, "b", 1)] {
        let line = said(server, "one of several instances");
        let told = [&line["node"], &line["redis"], &line["state"], &line["others"]];
        assert_eq!(told, [&json!(id), &json!(redis.url()), &json!("up"), &json!(others)], "{line}");
    }
    redis.kill();
    let line = said(&a, "Redis is away;");
    assert_eq!((&line["level"], &line["redis"]), (&json!("WARN"), &json!(redis.url())), "{line}");
    // It comes back and wants a password: that is no outage any more.
    redis.restart_with_password("right");
    let line = said(&a, "Redis is away for as long as");
    assert_eq!((&line["level"], &line["redis"]), (&json!("ERROR"), &json!(redis.url())), "{line}");
    assert!(line["why"].as_str().is_some_and(|why| why.contains("cluster.password_file")), "{line}");
    let c = start(&redis, "c", &[]);
    let line = said(&c, "one of several instances");
    assert_eq!([&line["state"], &line["others"]], [&json!("away"), &json!(0)], "{line}");
}

#[test]
fn all_others_say_who_comes_who_leaves_and_who_dies() {
    let redis = Redis::start();
    let (a, b) = (start(&redis, "a", &[]), start(&redis, "b", &[]));
    let said = |server: &Process, text: &str| -> Value {
        serde_json::from_str(&server.log_line_with(text)).expect("a log line is JSON")
    };
    let came = said(&a, "an instance came");
    assert_eq!([&came["level"], &came["node"], &came["instances"]], [&json!("INFO"), &json!("b"), &json!(2)], "{came}");
    let mut c = start(&redis, "c", &[]);
    for server in [&a, &b] {
        let came = said(server, "an instance came");
        assert_eq!([&came["node"], &came["instances"]], [&json!("c"), &json!(3)], "{came}");
    }
    c.signal("TERM");
    assert!(c.wait().success());
    for server in [&a, &b] {
        let left = said(server, "an instance left");
        assert_eq!([&left["node"], &left["instances"]], [&json!("c"), &json!(2)], "{left}");
    }
    let d = start(&redis, "d", &[]);
    assert_eq!([&a, &b].map(|server| said(server, "an instance came")["node"].clone()), [json!("d"), json!("d")]);
    d.signal("KILL");
    // Who removes it says that, and the other one that it is gone.
    for server in [&a, &b] {
        let gone = loop {
            let line: Value = serde_json::from_str(&server.log_line_with("\"node\":\"d\"")).expect("JSON");
            assert_ne!(line["message"], "an instance left", "{line}");
            if line["message"].as_str().is_some_and(|text| text.contains("for gone") || text.contains("no more")) {
                break line;
            }
        };
        assert_eq!(gone["node"], "d", "{gone}");
    }
    assert_eq!(told(&a), running(&["a", "b"]));
    let more: Vec<_> = [&a, &b].into_iter().flat_map(Process::log_lines).collect();
    assert!(!more.iter().any(|line| line.contains("an instance ")), "each is said once: {more:#?}");
}

#[test]
fn who_comes_and_is_set_otherwise_than_the_others_says_so() {
    let redis = Redis::start();
    let placed = ["--set", "tools.read_file.roles=[\"files\"]", "--set", "tools.echo.spread=2"];
    let same = [&placed[..], &["--set", "cluster.roles=[\"files\"]"]].concat();
    let (a, b) = (start(&redis, "a", &same), start(&redis, "b", &same));
    let told = |server: &Process| -> Vec<String> {
        let line = |text: &String| serde_json::from_str::<Value>(text).expect("a log line is JSON");
        let is_told = |line: &Value| line["level"] == "WARN" && line["node"].is_string();
        let lines = server.began.iter().map(line).filter(is_told);
        lines.map(|line| line["message"].as_str().expect("text").to_owned()).collect()
    };
    assert_eq!([told(&a), told(&b)], [const { Vec::<String>::new() }; 2]);
    let other = ["--set", "cluster.heartbeat_s=30", "--set", "tools.read_file.roles=[\"web\"]"];
    let c = start(&redis, "c", &[&other[..], &["--set", "tools.echo.spread=2"]].concat());
    let found = told(&c);
    assert_eq!(found.len(), 2, "{found:?}");
    for (told, part) in found.iter().zip([
        "cluster.heartbeat_s is 30 here, and 1 at \"a\", \"b\"",
        "tools.read_file.roles is [\"web\"] here, and [\"files\"] at \"a\", \"b\"",
    ]) {
        assert!(told.contains(part), "{told}");
    }
    // Who is none of them shows what they say, and not what it is told itself.
    let listed = bigiron("nodes", &redis, &["--json", "--set", "tools.echo.spread=1"]);
    let nodes: Value = serde_json::from_slice(&listed.stdout).expect("JSON");
    let has_echo = |node: &&Value| node["tools"].as_array().is_some_and(|tools| tools.contains(&json!("echo")));
    let having = nodes["nodes"].as_array().expect("nodes").iter().filter(has_echo).count();
    assert_eq!(having, 2, "{nodes}");
    let err = String::from_utf8_lossy(&listed.stderr).into_owned();
    let difference = "tools.read_file.roles is [\"files\"] at \"a\", \"b\", and [\"web\"] at \"c\"";
    assert!(err.contains(difference) && !err.contains("echo"), "{err}");
    // Another process under the name of one that lives: both say so, and the first one when it is back.
    let twin = start(&redis, "b", &same);
    let found = told(&twin);
    assert!(found[0].contains("cluster.node_id"), "{found:?}");
    assert!(b.log_line_with("not in the registry").contains("ERROR"));
    twin.signal("TERM");
    b.log_line_with("in the registry again");
    let table = String::from_utf8(bigiron("nodes", &redis, &[]).stdout).expect("text");
    assert!(table.lines().any(|line| line.starts_with("a ") && line.ends_with(" files")), "roles are shown: {table}");
}

#[test]
fn a_tool_whose_role_nobody_has_is_told_in_the_log_and_to_who_calls_it() {
    let redis = Redis::start();
    let placed = ["--set", "tools.echo.roles=[\"voice\"]"];
    let a = start(&redis, "a", &[&placed[..], &["--set", "cluster.roles=[\"vioce\"]"]].concat());
    let warning = "has a role of this tool: its calls";
    let said = a.began.iter().find(|line| line.contains(warning)).cloned();
    let line: Value = serde_json::from_str(&said.unwrap_or_else(|| a.log_line_with(warning))).expect("JSON");
    let told = [&line["level"], &line["tool"], &line["roles"], &line["there"]];
    assert_eq!(told, [&json!("WARN"), &json!("echo"), &json!("voice"), &json!("vioce")], "{line}");
    let advice = "a role of tools.echo.roles, or mend the name";
    assert!(line["message"].as_str().is_some_and(|text| text.contains(advice)), "{line}");
    let refused = call(a.addr, "echo", json!({ "message": "x" }));
    assert_eq!(refused.status, 503);
    let message = refused.json()["error"]["message"].to_string();
    assert!(message.contains("echo") && !message.contains("voice"), "how tools are placed is no client's: {message}");
    let b = start(&redis, "b", &[&placed[..], &["--set", "cluster.roles=[\"voice\"]"]].concat());
    a.log_line_with("has a role of this tool again");
    assert_eq!(call(a.addr, "echo", json!({ "message": "x" })).text(), "x");
    assert!(!b.began.iter().any(|line| line.contains(warning)), "{:?}", b.began);
    b.signal("KILL");
    let gone = a.log_line_with(warning);
    assert!(gone.contains("until one does") && !gone.contains("mend"), "the names are right, as was seen: {gone}");
}

#[test]
fn without_redis_calls_are_served_and_it_is_said() {
    let mut redis = Redis::start();
    redis.kill();
    let refused = bigiron("serve", &redis, &["--set", "cluster.start=refuse", "--listen", "127.0.0.1:0"]);
    let err = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(1), "{err}");
    assert!(err.contains("Redis is away"), "{err}");
    assert_eq!(bigiron("nodes", &redis, &[]).status.code(), Some(1));
    let server = start(&redis, "a", &[]);
    let cluster = || get(server.addr, "/ready").json()["cluster"].clone();
    // It is said once for each change and not for each failure, so never twice in a row. A line is written after what it
    // tells of; on a busy host Redis may look away for a moment besides.
    let mut changes = Vec::new(); // the first one was mostly said before it served
    let mut is_told = |change: &str| {
        while changes.last() != Some(&change) {
            let line = server.log_line_with("Redis is ");
            let now = if line.contains("Redis is back") { "back" } else { "away" };
            assert_ne!(changes.last(), Some(&now), "{line}");
            changes.push(now);
        }
    };
    for _ in 0..2 {
        assert_eq!(cluster(), "away");
        assert_eq!(call(server.addr, "echo", json!({ "text": "x" })).status, 200);
        redis.restart();
        eventually("it is used again", || cluster() == "up" && told(&server) == running(&["a"]));
        is_told("back");
        redis.kill();
        eventually("it is missed", || cluster() == "away");
        is_told("away");
    }
    assert_eq!(metric(&server, "bigiron_cluster_up"), 0.0);
}

/// Neither waits for the next heartbeat, which may be minutes away.
#[test]
fn a_redis_is_back_as_soon_as_it_says_that_it_is_ours() {
    type Step<'a> = &'a [&'a str];
    let cases: [(Step<'_>, Step<'_>, &str, &str, u16); 2] = [
        (&["CLIENT", "PAUSE", "600000", "WRITE"], &["CLIENT", "UNPAUSE"], "a heartbeat was not taken", "away", 200),
        // Clients that a balancer sent there would be known to no other instance.
        (&["SET", "mcp:cluster", "other"], &["DEL", "mcp:cluster"], "not in the registry", "foreign", 503),
    ];
    for (begin, end, said, word, status) in cases {
        let redis = Redis::start();
        assert_eq!(redis.cli(begin), "OK");
        redis.hang();
        // In the times that there are by default, but for the heartbeat.
        let sets = [format!("cluster.redis={}", redis.url()), "cluster.heartbeat_s=300".into()];
        let args: Vec<_> = sets.iter().flat_map(|set| ["--set", set]).collect();
        let server = Process::start(&args);
        let cluster = || get(server.addr, "/ready").json()["cluster"].clone();
        assert_eq!(cluster(), "away");
        redis.wake();
        server.log_line_with(said);
        let missed = || metric(&server, "bigiron_cluster_heartbeats_missed_total");
        let before = missed();
        eventually("it asks again", || missed() >= before + 2.0);
        for addr in [server.addr, server.admin_addr] {
            let ready = get(addr, "/ready");
            assert_eq!((ready.status, &ready.json()["cluster"]), (status, &json!(word)));
        }
        assert_eq!(metric(&server, "bigiron_cluster_up"), 0.0);
        let lines: Vec<_> = server.began.iter().cloned().chain(server.log_lines()).collect();
        assert!(!lines.iter().any(|line| line.contains("Redis is back")), "it is of no use yet: {lines:#?}");
        assert!(lines.iter().filter(|line| line.contains(said)).count() <= 1, "{lines:#?}");
        redis.cli(end);
        eventually("it is used", || cluster() == "up");
        server.log_line_with("Redis is back");
    }
}

/// Calls are served that need no other instance, so that it stays in service; but it says at once that it is alone, and
/// which setting is wrong, and says so once.
#[test]
fn settings_that_redis_refuses_are_told_and_are_no_redis_that_is_up() {
    let redis = Redis::with_password("right");
    redis.cli(&["ACL", "SETUSER", "reader", "on", ">right", "~mcp:*", "&mcp:*", "+@all", "-@write"]);
    for (password, user, parts) in [
        ("hunter2", "", ["password is wrong", "cluster.password_file"]),
        ("right", "reader", ["NOPERM", "cluster.user"]),
    ] {
        let args = [node(&redis, "a"), vec!["--set".into(), format!("cluster.user={user}")]].concat();
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        let password = [("BIGIRON_CLUSTER__PASSWORD", password)];
        let server = Process::start_example_at("everything", 0, &password, &args);
        for addr in [server.addr, server.admin_addr] {
            let ready = get(addr, "/ready");
            assert_eq!((ready.status, &ready.json()), (200, &json!({ "status": "ready", "cluster": "away" })));
        }
        assert_eq!(metric(&server, "bigiron_cluster_up"), 0.0);
        assert_eq!(call(server.addr, "test_simple_text", json!({})).status, 200);
        eventually("it tries again", || metric(&server, "bigiron_cluster_connects_total") >= 4.0);
        let said: Vec<_> = server.began.iter().cloned().chain(server.log_lines()).collect();
        let said: Vec<_> =
            said.iter().filter(|line| line.contains("Redis is ") || line.contains("heartbeat")).collect();
        assert!(said.len() == 1 && said[0].contains("ERROR"), "{user:?}: {said:#?}");
        assert!(parts.iter().all(|part| said[0].contains(part)) && !said[0].contains("hunter2"), "{said:?}");
    }
}

#[test]
fn who_may_not_listen_is_told_so() {
    let redis = Redis::start();
    redis.cli(&["ACL", "SETUSER", "mute", "on", ">right", "~mcp:*", "&mcp:*", "+@all", "-@admin", "-subscribe"]);
    let args = [node(&redis, "a"), vec!["--set".into(), "cluster.user=mute".into()]].concat();
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let server = Process::start_example_at("everything", 0, &[("BIGIRON_CLUSTER__PASSWORD", "right")], &args);
    let mut began = server.began.iter();
    let is_told = |line: &String| line.contains("may not SUBSCRIBE") && line.contains("'subscribe' command");
    if !began.any(is_told) {
        let line = server.log_line_with("may not SUBSCRIBE");
        assert!(line.contains("ERROR") && is_told(&line), "{line}");
    }
    let told = |word: &str| {
        for addr in [server.addr, server.admin_addr] {
            let ready = get(addr, "/ready");
            assert_eq!((ready.status, &ready.json()), (200, &json!({ "status": "ready", "cluster": word })));
        }
        ["up", "writable", "heard"].map(|what| metric(&server, &format!("bigiron_cluster_{what}")))
    };
    assert_eq!(told("deaf"), [1.0, 1.0, 0.0]);
    redis.cli(&["ACL", "SETUSER", "mute", "+subscribe"]);
    server.log_line_with("what other instances tell is heard");
    assert_eq!(told("up"), [1.0; 3]);
}

#[test]
fn another_deployment_is_not_let_in_and_secrets_stay_secret() {
    let redis = Redis::with_password("right");
    let folder = tempfile::TempDir::new().expect("a folder");
    let file = folder.path().join("password");
    std::fs::write(&file, "right\n").expect("written");
    let only_ours = std::os::unix::fs::PermissionsExt::from_mode(0o600);
    std::fs::set_permissions(&file, only_ours).expect("set");
    let password = format!("cluster.password_file={}", file.display());
    let _server = start(&redis, "a", &["--set", &password]);
    let listen = ["--listen", "127.0.0.1:0", "--set", "server.admin_listen=", "--set", "cluster.id=other"];
    let other = bigiron("serve", &redis, &[&listen[..], &["--set", &password]].concat());
    let err = String::from_utf8_lossy(&other.stderr).into_owned();
    assert_eq!(other.status.code(), Some(78), "{err}");
    assert!(err.contains("another deployment, \"bigiron\"") && err.contains("cluster.key_prefix"), "{err}");
    for (set, part) in [
        ("cluster.password=hunter2", "BIGIRON_CLUSTER__PASSWORD"),
        ("cluster.redis=redis://:hunter2@127.0.0.1", "cluster.password_file"),
        ("cluster.redis=redis://192.0.2.1", "rediss://"),
    ] {
        let refused = bigiron("check", &redis, &["--set", set]);
        let err = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert_eq!(refused.status.code(), Some(78), "{set}: {err}");
        assert!(err.contains(part) && !err.contains("hunter2"), "{set}: {err}");
    }
    let wrong = Command::new(env!("CARGO_BIN_EXE_bigiron"))
        .arg("nodes")
        .args(node(&redis, "asks"))
        .env("BIGIRON_CLUSTER__PASSWORD", "hunter2")
        .output()
        .expect("it runs");
    let err = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(err.contains("password is wrong") && !err.contains("hunter2"), "{err}");
}

#[test]
fn a_rate_holds_over_two_processes_and_follows_its_policy_without_redis() {
    let mut redis = Redis::start();
    let rates = [
        "--set",
        "rate_limit.enabled=true",
        "--set",
        "rate_limit.per_ip=10 per 24h, burst 10",
        "--set",
        "tools.burn.rate=2 per 24h, burst 2",
        "--set",
        "cluster.rate_limit=closed",
    ];
    let (a, b) = (start(&redis, "a", &rates), start(&redis, "b", &rates));
    let echo = |server: &Process| call(server.addr, "echo", json!({ "text": "x" }));
    let burn = |server: &Process| call(server.addr, "burn", json!({ "ms": 1 })).status;
    assert_eq!([burn(&a), burn(&b), burn(&a), burn(&b)], [200, 200, 429, 429], "of the tool, by its header");
    let statuses: Vec<_> = (0..10).flat_map(|_| [echo(&a).status, echo(&b).status]).collect();
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 8, "{statuses:?}");
    let refused = echo(&b);
    assert_eq!((refused.status, refused.header("x-ratelimit-limit")), (429, Some("10")));
    assert!(refused.header("retry-after").is_some());
    for key in redis.keys("mcp:rl:") {
        assert_eq!(key.len(), "mcp:rl:".len() + 32, "{key}: nothing of a caller is in it");
    }
    redis.kill();
    eventually("it is missed", || metric(&a, "bigiron_cluster_up") == 0.0);
    let closed = echo(&a);
    assert_eq!((closed.status, closed.code()), (503, Some(-31503)));
    assert!(metric(&a, "bigiron_cluster_rates_alone_total") >= 1.0);
}

/// Rates of tools alone.
fn of_tools<'a>(rates: &[&'a str]) -> Vec<&'a str> {
    let sets = ["rate_limit.enabled=true", "rate_limit.per_ip=off", "rate_limit.per_caller=off"];
    sets.into_iter().chain(rates.iter().copied()).flat_map(|set| ["--set", set]).collect()
}

/// Clients of the older revisions name a tool in the body only.
#[test]
fn a_rate_of_a_tool_holds_for_older_clients_too() {
    let redis = Redis::start();
    let rates = of_tools(&["tools.echo.rate=3 per 24h, burst 3"]);
    let (a, b) = (start(&redis, "a", &rates), start(&redis, "b", &rates));
    let (mut old, mut other) = (Session::open(a.addr, "2025-06-18"), Session::open(b.addr, "2025-06-18"));
    let params = json!({ "name": "echo", "arguments": { "text": "x" } });
    let mut echo = |id: u32| [&mut old, &mut other].map(|s| s.request(id, "tools/call", params.clone()).status);
    let statuses: Vec<_> = (0..3).flat_map(&mut echo).collect();
    assert_eq!(statuses, [200, 200, 200, 429, 429, 429]);
}

#[test]
fn each_message_of_a_batch_and_each_wrong_key_counts_over_two_processes() {
    let (redis, issuer) = (Redis::start(), Issuer::new());
    let key = format!("Bearer {}", issuer.key_for("ann", &[]));
    let keys_file = format!("auth.keys_file={}", issuer.file("keys.toml").display());
    let rates = [
        "--set",
        "rate_limit.enabled=true",
        "--set",
        "rate_limit.per_caller=20 per 24h, burst 20",
        "--set",
        "rate_limit.per_ip=5 per 24h, burst 5",
        "--set",
        "tools.burn.rate=2 per 24h, burst 2",
        "--set",
        &keys_file,
    ];
    let (a, b) = (start(&redis, "a", &rates), start(&redis, "b", &rates));
    let message = |id: u64, tool: &str| {
        let arguments = if tool == "burn" { json!({ "ms": 1 }) } else { json!({ "text": "x" }) };
        json!({ "jsonrpc": "2.0", "id": id, "method": "tools/call", "params": { "name": tool, "arguments": arguments } })
    };
    let begun = Client::connect(a.addr).post(
        &[("Authorization", &key)],
        &json!({ "jsonrpc": "2.0", "id": 1, "method": "initialize", "params": { "protocolVersion": "2025-03-26",
            "capabilities": {}, "clientInfo": { "name": "a test", "version": "1" } } }),
    );
    let session = begun.header("mcp-session-id").expect("a session");
    let headers = [("Authorization", key.as_str()), ("Mcp-Session-Id", session)];
    let batch =
        json!([message(1, "burn"), message(2, "burn"), message(3, "burn"), message(4, "echo"), message(5, "echo")]);
    let answer = Client::connect(a.addr).post(&headers, &batch).json();
    let codes: Vec<_> = answer.as_array().expect("a list").iter().map(|a| a["error"]["code"].as_i64()).collect();
    assert_eq!(codes.iter().filter(|code| **code == Some(-31429)).count(), 1, "two for the tool: {answer}");
    assert_eq!(codes.iter().filter(|code| code.is_none()).count(), 4, "{answer}");
    let alone =
        |server: &Process, tool: &str| Client::connect(server.addr).post(&headers[..], &message(6, tool)).status;
    assert_eq!(alone(&b, "burn"), 429, "the other process has heard of it");
    // Of 20, the session, and each message but the one that its tool refused; which of them that is may differ.
    let passed = (0..20).filter(|_| alone(&b, "echo") == 200).count();
    assert!((13..=15).contains(&passed), "{passed}");

    let wrong = |server: &Process| call(server.addr, "echo", json!({ "text": "x" })).status;
    let statuses: Vec<_> = (0..4).flat_map(|_| [wrong(&a), wrong(&b)]).collect();
    assert_eq!(statuses, [401, 401, 401, 401, 401, 429, 429, 429]);
}

/// Headers of the older revisions bind nobody: what they name is charged, and what the body names too.
#[test]
fn a_header_that_names_another_tool_takes_no_rate_away() {
    let redis = Redis::start();
    let rates = of_tools(&["tools.echo.rate=3 per 24h, burst 3", "tools.burn.rate=4 per 24h, burst 4"]);
    let (a, b) = (start(&redis, "a", &rates), start(&redis, "b", &rates));
    let sessions = [&a, &b].map(|server| (server.addr, Session::open(server.addr, "2025-06-18").id));
    let call = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/call",
        "params": { "name": "echo", "arguments": { "text": "x" } } });
    let lie = |tool: &str| {
        sessions.each_ref().map(|(addr, id)| {
            let headers = [("Mcp-Session-Id", id.as_str()), ("Mcp-Method", "tools/call"), ("Mcp-Name", tool)];
            Client::connect(*addr).post(&headers, &call).status
        })
    };
    let statuses: Vec<_> = (0..3).flat_map(|_| lie("read_file")).collect();
    assert_eq!(statuses, [200, 200, 200, 429, 429, 429], "of the one that is called");
    let statuses: Vec<_> = (0..3).flat_map(|_| lie("burn")).collect();
    assert_eq!(statuses, [429; 6]);
    let burn = json!({ "ms": 1 });
    assert_eq!(crate::support::call(a.addr, "burn", burn).status, 429, "of the one that is named: four are gone");
}
