//! What the stop of the last instance leaves where `cluster.last_stop` is "remove".

use std::{sync::atomic::AtomicU64, time::Duration};

use super::{
    shared::{joined, sees},
    *,
};
use crate::cluster::{
    LastStop, Status,
    last_stop::{Standing, remove_found},
    link::{LinkError, cmd, pipe},
};

/// More than one look finds at once, so that there are several of them.
const SESSIONS: usize = 1200;
/// What is not ours: of prefixes that begin as ours, and of one that ours matches when its signs have a meaning.
const OTHERS: [&str; 5] = ["mcp:b:session:{1}", "mcp:b:cluster", "mcp2:task:1", "session:{1}", "ab-:session:{1}"];

fn removing(url: &str) -> Config {
    Config { last_stop: LastStop::Remove, ..config(url) }
}

async fn write(link: &Link, names: impl Iterator<Item = String>) {
    let mut set = pipe();
    for name in names {
        set.cmd("SET").arg(name).arg("x").ignore();
    }
    let () = link.pipeline(&set).await.expect("written");
}

/// All of one deployment, at any kind of Redis. `keys` are all that there are, each once.
async fn come_and_go(config: Config, keys: impl Fn() -> Vec<String>) {
    let link = up(Link::start(&config).expect("settings")).await;
    let prefix = &config.key_prefix;
    let of_clients = (0..SESSIONS).map(|n| format!("{prefix}session:{{{n}}}"));
    write(&link, of_clients.chain(["tool:t:{1}", "{tasks}:all", "{rl}:1"].map(|rest| format!("{prefix}{rest}")))).await;
    write(&link, OTHERS.iter().map(|name| (*name).to_owned())).await;
    let [a, b, c] = [joined(&config, "a").await, joined(&config, "b").await, joined(&config, "c").await];
    let running = |id| (id, Status::Running);
    sees(&b, &["a", "b", "c"].map(running)).await;
    a.leave().await;
    a.remove_all_if_last(PATIENCE).await;
    let is_there = |name: &str| keys().iter().any(|key| *key == format!("{prefix}{name}"));
    assert!(keys().len() >= SESSIONS + OTHERS.len() && is_there("cluster"), "others live");
    drop(c); // its task ends, and nobody deregisters it
    sees(&b, &[running("b")]).await;
    b.leave().await;
    b.remove_all_if_last(PATIENCE).await;
    let mut left = keys();
    left.sort_unstable();
    let mut others = OTHERS;
    others.sort_unstable();
    assert_eq!(left, others);
    assert_eq!(b.link.query::<()>(cmd("PING").arg("x")).await, Err(LinkError::Away), "and nothing is written again");
    assert_eq!((b.word(), b.link.is_anothers()), ("up", false), "that it has left makes Redis nobody else's");
}

#[tokio::test]
async fn nothing_is_left_at_one_server() {
    let redis = Redis::start();
    come_and_go(removing(&redis.url()), || redis.keys("")).await;
}

#[tokio::test]
async fn a_prefix_matches_itself_alone() {
    let redis = Redis::start();
    come_and_go(Config { key_prefix: "a[b]?:".into(), ..removing(&redis.url()) }, || redis.keys("")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_left_on_any_master_of_a_cluster() {
    let six = Six::start();
    let masters = six.masters();
    come_and_go(removing(&six.url()), || {
        let all: Vec<_> = masters.iter().flat_map(|of| six.0[*of].keys("")).collect();
        assert!(all.len() < SESSIONS || masters.iter().all(|of| six.0[*of].keys("mcp:").len() > SESSIONS / 6));
        all
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_left_at_the_master_of_sentinels() {
    let of = Sentinels::start();
    come_and_go(removing(&of.url()), || of.servers[0].keys("")).await;
}

#[tokio::test]
async fn nothing_is_removed_once_another_one_is_there_or_the_keys_are_not_ours() {
    let redis = Redis::start();
    let link = linked(&redis.url()).await;
    let a = joined(&removing(&redis.url()), "a").await;
    a.leave().await;
    let session = "mcp:session:{1}";
    let found = [session.as_bytes().to_vec()];
    let removed = AtomicU64::new(0);
    let remove = async || {
        write(&link, [session.to_owned()].into_iter()).await;
        let standing = remove_found(&link, &a.named, &found, &removed).await.expect("asked");
        (standing, redis.keys(session).len())
    };
    assert_eq!(remove().await, (Standing::Last, 0));
    let b = joined(&config(&redis.url()), "b").await;
    assert_eq!(remove().await, (Standing::Others, 1), "it came after the keys were found");
    let silent = |id: &str| redis.cli(&["HSET", &format!("mcp:node:{id}"), "lastHeartbeat", "1"]);
    silent("b");
    assert_eq!(remove().await, (Standing::Others, 1), "it was late, and says in time that it lives");
    redis.cli(&["COPY", "mcp:node:b", "mcp:node:dead"]);
    redis.cli(&["SADD", "mcp:nodes", "dead"]);
    b.leave().await;
    silent("dead");
    assert_eq!(remove().await, (Standing::Last, 0), "it says nothing any more");
    redis.cli(&["SADD", "mcp:nodes", "later"]);
    redis.cli(&["HSET", "mcp:node:later", "status", "of another version"]);
    assert_eq!(remove().await, (Standing::Others, 1), "who cannot be read may live");
    redis.cli(&["DEL", "mcp:node:later"]);
    for way in [&["SET", "mcp:cluster", "another"][..], &["DEL", "mcp:cluster"]] {
        redis.cli(way);
        assert_eq!(remove().await, (Standing::NotOurs, 1), "{way:?}");
    }
    assert_eq!(removed.into_inner(), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_does_not_answer_holds_no_stop() {
    let redis = Redis::start();
    let a = joined(&removing(&redis.url()), "a").await;
    write(&linked(&redis.url()).await, ["mcp:session:{1}".to_owned()].into_iter()).await;
    a.leave().await;
    redis.hang();
    a.remove_all_if_last(Duration::from_millis(300)).await;
    redis.wake();
    let mut left = redis.keys("mcp:");
    left.sort_unstable();
    assert_eq!(left, ["mcp:cluster", "mcp:session:{1}"], "and whose that is stays said");
    a.remove_all_if_last(PATIENCE).await;
    assert_eq!(redis.keys(""), [""; 0]);
}
