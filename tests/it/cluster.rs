//! Several processes at one Redis: that they see each other, lose each other, count together, and serve without it.

use std::process::{Command, Output};

use serde_json::{Value, json};

use crate::{
    redis::Redis,
    support::{Process, Session, call, eventually, get},
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
    // But for the lease of who was killed, which runs out.
    let (leases, left): (Vec<_>, Vec<_>) = redis.keys("mcp:").into_iter().partition(|key| key.contains(":lives:"));
    assert_eq!(left, [""; 0], "nothing is left");
    assert!(leases.iter().all(|key| redis.cli(&["PTTL", key]) != "-1"), "{leases:?}");
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

/// Clients of the older revisions name a tool in the body only.
#[test]
fn a_rate_of_a_tool_holds_for_older_clients_too() {
    let redis = Redis::start();
    let rates = [
        "--set",
        "rate_limit.enabled=true",
        "--set",
        "rate_limit.per_ip=off",
        "--set",
        "rate_limit.per_caller=off",
        "--set",
        "tools.echo.rate=3 per 24h, burst 3",
    ];
    let (a, b) = (start(&redis, "a", &rates), start(&redis, "b", &rates));
    let (mut old, mut other) = (Session::open(a.addr, "2025-06-18"), Session::open(b.addr, "2025-06-18"));
    let params = json!({ "name": "echo", "arguments": { "text": "x" } });
    let mut echo = |id: u32| [&mut old, &mut other].map(|s| s.request(id, "tools/call", params.clone()).status);
    let statuses: Vec<_> = (0..3).flat_map(&mut echo).collect();
    assert_eq!(statuses, [200, 200, 200, 429, 429, 429]);
}
