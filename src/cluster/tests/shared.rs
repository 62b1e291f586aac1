use std::{sync::Arc, time::Duration};

use super::{tls::Secure, *};
use crate::{
    cluster::{
        About, Cluster, Endpoint, JoinError, Node, Own, Start, Status, WhileAway,
        rate::{Charge, Outcome, Verdict},
    },
    units::Secret,
};

pub(super) async fn joined(config: &Config, id: &str) -> Arc<Cluster> {
    let config = Config { node_id: id.into(), ..config.clone() };
    let address = format!("http://{id}.example/mcp");
    let cluster = Cluster::connect(&config, own(&address)).await.expect("it is let in");
    cluster.join(Box::new(|| Some(About { load: 1, max_load: 200, tools: vec!["echo".into()], ..About::default() })));
    cluster.status(Status::Running).await;
    cluster
}

/// Waits until this instance sees exactly these.
pub(super) async fn sees(cluster: &Cluster, expected: &[(&str, Status)]) -> Vec<Node> {
    let mut view = cluster.registry().expect("it has joined").watch();
    let seen = view
        .wait_for(|view| view.nodes.iter().map(|node| (node.id.as_str(), node.status)).eq(expected.iter().copied()));
    let seen = tokio::time::timeout(PATIENCE, seen).await.expect("in time").expect("it takes part");
    seen.nodes.clone()
}

/// All that can happen to nodes, at any kind of Redis. `keys` are those that there are.
async fn come_and_go(config: Config, keys: impl Fn() -> Vec<String>) {
    let a = joined(&config, "a").await;
    let b = joined(&config, "b").await;
    let both = [("a", Status::Running), ("b", Status::Running)];
    let nodes = sees(&a, &both).await;
    assert_eq!((nodes[1].address.as_str(), nodes[1].load, nodes[1].max_load), ("http://b.example/mcp", 1, 200));
    assert_eq!(nodes[1].tools, ["echo"]);
    sees(&b, &both).await;
    b.status(Status::Stopping).await;
    sees(&a, &[("a", Status::Running), ("b", Status::Stopping)]).await;
    b.leave().await;
    sees(&a, &[("a", Status::Running)]).await;
    a.leave().await;
    assert_eq!(keys(), ["mcp:cluster"], "nothing is left, but for whose the keys of clients are");
}

#[tokio::test]
async fn nodes_come_and_go_at_one_server() {
    let redis = Redis::start();
    come_and_go(config(&redis.url()), || redis.keys("mcp:")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_come_and_go_in_a_cluster() {
    let six = Six::start();
    let keys = || six.0.iter().flat_map(|server| server.keys("mcp:")).collect::<Vec<_>>();
    come_and_go(config(&six.url()), || {
        servers::eventually("replicas follow", || keys() == ["mcp:cluster", "mcp:cluster"]);
        vec!["mcp:cluster".to_owned()]
    })
    .await;
    let link = linked(&six.url()).await;
    let rates = crate::cluster::rate::Rates::new(link, crate::cluster::Keys::new("mcp:", true), WhileAway::Closed);
    let Verdict::Shared(outcome) = rates.charge(&[charge(1, 10, 1, 0), charge(2, 10, 1, 0)]).await else {
        panic!("several rates are decided together")
    };
    assert!(outcome.passed && outcome.states_ns.len() == 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_falls_silent_is_removed_and_what_was_lost_is_written_again() {
    let mut redis = Redis::start();
    let a = joined(&config(&redis.url()), "a").await;
    let b = joined(&config(&redis.url()), "b").await;
    let both = [("a", Status::Running), ("b", Status::Running)];
    sees(&a, &both).await;
    drop(b); // its task ends, and nobody deregisters it
    sees(&a, &[("a", Status::Running)]).await;
    assert_eq!(a.registry().expect("joined").counts().reaped.load(std::sync::atomic::Ordering::Relaxed), 1);
    assert_eq!(redis.keys("mcp:node:"), ["mcp:node:a"]);
    for key in redis.keys("mcp:") {
        let left_ms: i64 = redis.cli(&["PTTL", &key]).parse().expect("a number");
        assert!(left_ms > 0 && left_ms <= 6000, "{key} expires by itself: {left_ms}");
    }
    redis.kill();
    until(&a.link, State::is_away).await;
    assert_eq!(a.word(), "away");
    redis.restart();
    until(&a.link, |state| *state == State::Up).await;
    servers::eventually("it is in the registry again", || redis.keys("mcp:node:") == ["mcp:node:a"]);
    a.leave().await;
    assert_eq!(redis.keys("mcp:"), ["mcp:cluster"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_was_emptied_is_ours_again_before_the_next_heartbeat() {
    let redis = Redis::start();
    let seldom = Config { heartbeat_s: 300, ..config(&redis.url()) };
    let a = joined(&seldom, "a").await;
    sees(&a, &[("a", Status::Running)]).await;
    redis.cli(&["FLUSHALL"]);
    servers::eventually("it is ours again", || redis.cli(&["GET", "mcp:cluster"]) == "bigiron");
    servers::eventually("all is there again", || {
        redis.keys("mcp:node:") == ["mcp:node:a"] && redis.keys("mcp:nodes").len() == 1
    });
    let theirs = Config { id: "another".into(), ..seldom };
    assert!(matches!(Cluster::connect(&theirs, own("")).await, Err(JoinError::Setting(..))));
}

#[tokio::test]
async fn whose_the_keys_are_is_known_as_long_as_something_of_clients_can_be_there() {
    let redis = Redis::start();
    let ours = config(&redis.url());
    let keeping = |kept_s| Own { kept_for: Duration::from_secs(kept_s), ..own("") };
    let left_s = || redis.cli(&["PTTL", "mcp:cluster"]).parse::<i64>().expect("a number") / 1000;
    for (kept_s, at_least) in [(1000, 1000), (20_000, 20_000), (1, 19_900)] {
        let one = Cluster::connect(&ours, keeping(kept_s)).await.expect("it is let in");
        one.join(Box::new(|| Some(About::default())));
        one.status(Status::Running).await;
        one.leave().await;
        assert!((at_least..at_least + 110).contains(&left_s()), "{kept_s}: {}", left_s());
    }
    let theirs = Config { id: "another".into(), ..ours };
    let Err(JoinError::Setting(_, why)) = Cluster::connect(&theirs, keeping(1)).await else { panic!("it is let in") };
    for part in ["\"bigiron\"", "\"another\"", "`DEL mcp:cluster`", "6 h"] {
        assert!(why.contains(part), "{part}: {why}");
    }
    assert!(left_s() > 19_000, "who is not let in changes nothing");
    redis.cli(&["DEL", "mcp:cluster"]);
    assert!(Cluster::connect(&theirs, keeping(1)).await.is_ok());
}

#[tokio::test]
async fn the_last_one_out_takes_the_keys_of_all_and_the_dead_along() {
    let redis = Redis::start();
    let patient = Config { heartbeat_s: 60, ..config(&redis.url()) };
    let listed = |id: &str, silent_s: u64, heartbeat_s: &str| {
        let now: u64 = redis.cli(&["TIME"]).lines().next().and_then(|line| line.parse().ok()).expect("seconds");
        let beat = ((now - silent_s) * 1000).to_string();
        let node = format!("mcp:node:{id}");
        let fields = ["status", "running", "load", "0", "maxLoad", "1", "lastHeartbeat", &beat];
        redis.cli(&[&["HSET", &node][..], &fields, &["heartbeat", heartbeat_s]].concat());
        redis.cli(&["EXPIRE", &node, "1000"]);
        redis.cli(&["SADD", "mcp:nodes", id]);
    };
    let all = ["mcp:cluster", "mcp:node-key", "mcp:node:other", "mcp:nodes"];
    // Who does not say how often it beats does so as often as who looks. Who beats more seldom than that lives.
    for (silent_s, heartbeat_s, left) in
        [(150, "", &all[..1]), (5, "1", &all[..1]), (250, "100", &all[..1]), (5, "", &all), (150, "100", &all)]
    {
        listed("other", silent_s, heartbeat_s);
        let a = joined(&patient, "a").await;
        if silent_s != 5 || heartbeat_s.is_empty() {
            sees(&a, &[("a", Status::Running), ("other", Status::Running)]).await;
        }
        a.node_key(&"ab".repeat(32)).await.expect("a key");
        a.leave().await;
        let mut there = redis.keys("mcp:");
        there.sort_unstable();
        assert_eq!(there, left, "silent for {silent_s} s, a period of {heartbeat_s:?}");
        let reaped = a.registry().expect("joined").counts().reaped.load(std::sync::atomic::Ordering::Relaxed);
        assert_eq!(reaped, u64::from(left.len() == 1), "it is counted");
    }
    let left_ms: i64 = redis.cli(&["PTTL", "mcp:node-key"]).parse().expect("a number");
    assert!((1..=90_000).contains(&left_ms), "who lives renews it, and who does not lets it go: {left_ms}");
}

#[tokio::test]
async fn what_others_left_there_is_neither_believed_nor_removed() {
    let redis = Redis::start();
    redis.cli(&["SADD", "mcp:nodes", "text", "odd", "a b", "x}{*"]);
    redis.cli(&["SET", "mcp:node:text", "no hash"]);
    redis.cli(&["HSET", "mcp:node:odd", "status", "asleep"]);
    let a = joined(&config(&redis.url()), "a").await;
    sees(&a, &[("a", Status::Running)]).await;
    assert_eq!(redis.cli(&["GET", "mcp:node:text"]), "no hash");
    assert_eq!(redis.cli(&["HGET", "mcp:node:odd", "status"]), "asleep");
    let counts = a.registry().expect("joined").counts();
    assert!(counts.corrupt.load(std::sync::atomic::Ordering::Relaxed) >= 4);
}

#[tokio::test]
async fn keys_of_another_deployment_and_a_redis_that_is_away_end_the_start() {
    let mut redis = Redis::start();
    let ours = config(&redis.url());
    let a = joined(&ours, "a").await;
    let theirs = Config { id: "another".into(), ..ours.clone() };
    match Cluster::connect(&theirs, own("")).await {
        Err(JoinError::Setting("cluster.key_prefix", message)) => assert!(message.contains("\"bigiron\""), "{message}"),
        other => panic!("{other:?}"),
    }
    let beside = Config { key_prefix: "other:".into(), ..theirs };
    let b = joined(&beside, "a").await;
    sees(&b, &[("a", Status::Running)]).await;
    b.leave().await;
    a.leave().await;
    redis.kill();
    let refusing = Config { start: Start::Refuse, ..ours.clone() };
    assert!(matches!(Cluster::connect(&refusing, own("")).await, Err(JoinError::Away(_))));
    let late = joined(&ours, "late").await;
    assert_eq!(late.word(), "away");
    redis.restart();
    sees(&late, &[("late", Status::Running)]).await;
}

#[tokio::test]
async fn a_name_that_two_processes_have_is_the_newer_ones() {
    let redis = Redis::start();
    let old = joined(&config(&redis.url()), "a").await;
    let new = joined(&config(&redis.url()), "a").await;
    sees(&new, &[("a", Status::Running)]).await;
    let run = redis.cli(&["HGET", "mcp:node:a", "run"]);
    old.status(Status::Stopping).await;
    assert_eq!(redis.cli(&["HGET", "mcp:node:a", "status"]), "running", "the older one leaves it alone");
    old.leave().await;
    assert_eq!(redis.cli(&["HGET", "mcp:node:a", "run"]), run);
}

fn charge(key: u8, per_s: u64, burst: u64, block_s: u64) -> Charge {
    let spacing_ns = 1_000_000_000 / per_s;
    Charge { key: [key; 16], spacing_ns, tolerance_ns: spacing_ns * (burst - 1), block_ns: block_s * 1_000_000_000 }
}

async fn shared(cluster: &Cluster, charges: &[Charge]) -> Outcome {
    match cluster.rates.charge(charges).await {
        Verdict::Shared(outcome) => outcome,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn a_rate_holds_over_two_instances_and_charges_all_or_none() {
    let redis = Redis::start();
    let open = || Cluster::open(&config(&redis.url()), own("")).expect("settings");
    let (a, b) = (open(), open());
    // So slow that nothing comes back while the test runs.
    let slow = Charge { spacing_ns: 3_600_000_000_000, tolerance_ns: 9 * 3_600_000_000_000, ..charge(1, 1, 1, 0) };
    let mut passed = 0;
    for _ in 0..20 {
        passed += u32::from(shared(&a, &[slow]).await.passed) + u32::from(shared(&b, &[slow]).await.passed);
    }
    assert_eq!(passed, 10, "the burst, once, however many ask");
    let other = Charge { key: [2; 16], ..slow };
    for _ in 0..5 {
        let outcome = shared(&a, &[other, slow]).await;
        assert!(!outcome.passed);
        assert_eq!(outcome.states_ns[0], (0, 0), "of two rates none is charged when one refuses");
    }
    assert_eq!(redis.keys("mcp:rl:").len(), 1);
    // A block begins with the first one too many, and knocking does not make it longer.
    let blocking = Charge { block_ns: 60_000_000_000, ..Charge { key: [3; 16], tolerance_ns: 0, ..slow } };
    assert!(shared(&a, &[blocking]).await.passed);
    let first = shared(&b, &[blocking]).await;
    let second = shared(&a, &[blocking]).await;
    assert!(!first.passed && !second.passed && first.states_ns == second.states_ns, "{first:?} {second:?}");
    assert_eq!(first.states_ns[0].1, first.now_ns + 60_000_000_000);
    for key in redis.keys("mcp:rl:") {
        assert!(redis.cli(&["PTTL", &key]).parse::<i64>().expect("a number") > 0, "{key} expires");
    }
    redis.cli(&["SET", &redis.keys("mcp:rl:")[0], "no such thing"]);
    assert!(shared(&a, &[slow]).await.now_ns > 0, "what is none is taken for missing");
}

#[tokio::test]
async fn without_redis_a_rate_follows_its_policy() {
    let mut redis = Redis::start();
    let with = |rate_limit| Config { rate_limit, ..config(&redis.url()) };
    let open = |config: &Config| Cluster::open(config, own("")).expect("settings");
    let (local, closed) = (open(&with(WhileAway::Local)), open(&with(WhileAway::Closed)));
    shared(&local, &[charge(1, 1, 1, 0)]).await;
    redis.kill();
    for cluster in [&local, &closed] {
        until(&cluster.link, State::is_away).await;
    }
    assert_eq!(local.rates.charge(&[charge(1, 1, 1, 0)]).await, Verdict::Local);
    assert_eq!(closed.rates.charge(&[charge(1, 1, 1, 0)]).await, Verdict::Closed);
    assert_eq!(closed.rates.alone(), 1);
}

#[tokio::test]
async fn a_connection_by_tls_is_to_whom_its_certificates_name() {
    let of = Secure::start_with(&["--requirepass", "right"]);
    let secure = |host: &str, port: u16, ca_file: String| Config {
        password: Secret::new("right"),
        ca_file,
        ..config(&format!("rediss://{host}:{port}"))
    };
    let why = async |config: Config| {
        assert!(Endpoint::parse(&config.redis).expect("a form").tls);
        let link = Link::start(&config).expect("settings");
        link.first_word(PATIENCE + Duration::from_secs(1)).await
    };
    assert_eq!(why(secure("localhost", of.port, of.certificate())).await, Ok(()));
    why(secure("localhost", of.port, String::new())).await.expect_err("nobody vouches for it");
    why(secure("127.0.0.1", of.port, of.certificate())).await.expect_err("it is named otherwise");
    let plain = why(secure("localhost", of.redis.port, of.certificate())).await.expect_err("this port has no TLS");
    assert!(!plain.contains("right"), "{plain}");
    let missing = Link::start(&secure("localhost", of.port, "/nowhere/none.pem".into())).expect_err("no such file");
    assert!(missing.contains("none.pem"), "{missing}");
}
