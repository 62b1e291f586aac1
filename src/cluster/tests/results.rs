use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use bytes::Bytes;
use tokio::time::timeout;

use super::*;
use crate::cluster::{
    Cluster,
    cache::{Entry, Look, ResultId, Results, Turn},
    changes::{Forget, News},
};

/// An instance's share of what there is; it hears what others tell.
struct Instance {
    cluster: Arc<Cluster>,
    results: Arc<Results>,
    heard: tokio::sync::mpsc::Receiver<News>,
}

impl Instance {
    async fn at(url: &str, id: &str) -> Self {
        let config = Config { node_id: id.into(), ..config(url) };
        let cluster = Cluster::connect(&config, own("http://x.example")).await.expect("it is let in");
        let (tell, heard) = tokio::sync::mpsc::channel(1000);
        cluster.bus.begin(move |news| drop(tell.try_send(news)));
        let results = cluster.results(1000, Duration::from_secs(60));
        let mut instance = Self { cluster, results, heard };
        assert_eq!(instance.hears().await, News::Begun);
        instance
    }

    async fn hears(&mut self) -> News {
        timeout(PATIENCE, self.heard.recv()).await.expect("in time").expect("it listens")
    }

    async fn look(&self, of: ResultId<'_>, alone: bool) -> Look {
        timeout(PATIENCE, self.results.look(of, alone)).await.expect("in time")
    }

    /// Makes a result and waits until it is written.
    async fn make(&self, of: ResultId<'_>, text: &'static str) {
        let Look::Make(turn) = self.look(of, false).await else { panic!("there is none") };
        self.keep(of, turn, text).await;
    }

    async fn keep(&self, of: ResultId<'_>, turn: Turn, text: &'static str) {
        let before = self.results.counts().written.load(Relaxed);
        self.results.keep(of, turn, &entry(text));
        while self.results.counts().written.load(Relaxed) == before {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn found(&self, of: ResultId<'_>) -> Option<Bytes> {
        match self.look(of, false).await {
            Look::Found(entry) => Some(entry.fields),
            Look::Make(_) => None,
        }
    }

    /// Has all forget, and waits until Redis has it.
    async fn forget(&self, forget: Forget) {
        let told = self.cluster.bus.counts().told.load(Relaxed);
        self.results.forget(forget);
        while self.cluster.bus.counts().told.load(Relaxed) == told {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }
}

fn entry(text: &'static str) -> Entry {
    let ttl = Duration::from_secs(60);
    Entry { fields: Bytes::from_static(text.as_bytes()), meta: None, is_error: false, ttl, left: ttl }
}

fn of<'a>(key: &'a [u8; 32], caller: &'a str) -> ResultId<'a> {
    ResultId { key, tool: "t", caller: Some(caller) }
}

/// All that can happen to results, at any kind of Redis.
async fn come_and_go(url: &str) {
    let (a, mut b) = (Instance::at(url, "a").await, Instance::at(url, "b").await);
    let (one, two) = ([1; 32], [2; 32]);
    for forget in [
        Forget::All,
        Forget::Tool("t".into()),
        Forget::Caller("x".into()),
        Forget::Key(crate::cluster::keys::hex(&one)),
    ] {
        a.make(of(&one, "x"), "one").await;
        a.make(of(&two, "y"), "two").await;
        assert_eq!(b.found(of(&one, "x")).await.as_deref(), Some(b"one".as_slice()));
        // A run that began before is not written as if it were of after.
        let Look::Make(late) = b.look(of(&[3; 32], "x"), false).await else { panic!("there is none") };
        a.forget(forget.clone()).await;
        assert_eq!(b.hears().await, News::Forget(forget.clone()));
        assert_eq!((a.found(of(&one, "x")).await, b.found(of(&one, "x")).await), (None, None), "{forget:?}");
        let is_two_left = matches!(forget, Forget::Caller(_) | Forget::Key(_));
        assert_eq!(b.found(of(&two, "y")).await.is_some(), is_two_left, "{forget:?}");
        b.keep(of(&[3; 32], "x"), late, "late").await;
        assert_eq!(a.found(of(&[3; 32], "x")).await.is_some(), matches!(forget, Forget::Key(_)), "{forget:?}");
        a.forget(Forget::All).await;
        assert_eq!(b.hears().await, News::Forget(Forget::All));
    }
    leads(&a, &b).await;
}

/// One makes it, and the others wait for that.
async fn leads(a: &Instance, b: &Instance) {
    let key = [9; 32];
    let of = of(&key, "x");
    let Look::Make(turn) = a.look(of, true).await else { panic!("there is none") };
    let results = Arc::clone(&b.results);
    let waits = tokio::spawn(async move { results.look(self::of(&[9; 32], "x"), true).await });
    tokio::task::yield_now().await;
    a.results.keep(of, turn, &entry("made"));
    let Look::Found(found) = timeout(PATIENCE, waits).await.expect("in time").expect("no panic") else {
        panic!("it waits for it")
    };
    assert_eq!(found.fields, "made");
    // One that ends without a result, by whatever, lets the others go on.
    let other = self::of(&[8; 32], "x");
    let Look::Make(turn) = a.look(other, true).await else { panic!("there is none") };
    let results = Arc::clone(&b.results);
    let waits = tokio::spawn(async move { results.look(self::of(&[8; 32], "x"), true).await });
    tokio::task::yield_now().await;
    drop(turn);
    assert!(matches!(timeout(PATIENCE, waits).await.expect("in time").expect("no panic"), Look::Make(_)));
}

#[tokio::test]
async fn results_come_and_go_at_one_server() {
    let redis = Redis::start();
    come_and_go(&redis.url()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn results_come_and_go_in_a_cluster() {
    come_and_go(&Six::start().url()).await;
}

#[tokio::test]
async fn whose_lease_has_ended_does_not_write() {
    let redis = Redis::start();
    let (a, b) = (Instance::at(&redis.url(), "a").await, Instance::at(&redis.url(), "b").await);
    let key = [9; 32];
    let of = of(&key, "x");
    let Look::Make(old) = a.look(of, true).await else { panic!("there is none") };
    let lease = redis.keys("mcp:lease:");
    assert_eq!((lease.len(), redis.cli(&["DEL", &lease[0]])), (1, "1".into()), "as if its holder had hung for long");
    let Look::Make(new) = b.look(of, true).await else { panic!("it is free") };
    a.results.keep(of, old, &entry("old"));
    while a.results.counts().fenced.load(Relaxed) == 0 {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    assert!(redis.keys("mcp:tool:").is_empty(), "it was not written");
    assert_eq!(redis.keys("mcp:lease:").len(), 1, "and the other's lease holds");
    b.keep(of, new, "new").await;
    assert_eq!(a.found(of).await.as_deref(), Some(b"new".as_slice()));
}

#[tokio::test]
async fn a_redis_that_is_away_is_a_plain_miss() {
    let mut redis = Redis::start();
    let a = Instance::at(&redis.url(), "a").await;
    redis.kill();
    until(&a.cluster.link, State::is_away).await;
    let key = [9; 32];
    for alone in [false, true] {
        let Look::Make(turn) = a.look(of(&key, "x"), alone).await else { panic!("nobody has it") };
        a.results.keep(of(&key, "x"), turn, &entry("one"));
    }
    assert_eq!(a.results.counts().unknown.load(Relaxed), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_invalidated_shortly_before_a_gap_is_told_again() {
    let mut redis = Redis::start();
    let (a, mut b) = (Instance::at(&redis.url(), "a").await, Instance::at(&redis.url(), "b").await);
    a.forget(Forget::Tool("t".into())).await;
    assert_eq!(b.hears().await, News::Forget(Forget::Tool("t".into())));
    let generation = redis.cli(&["GET", "mcp:generation:tool:t"]);
    redis.kill();
    redis.restart();
    assert_eq!(b.hears().await, News::Gap);
    servers::eventually("the generation is the same", || redis.cli(&["GET", "mcp:generation:tool:t"]) == generation);
}
