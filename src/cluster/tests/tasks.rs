use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde_json::{Map, json};

use super::*;
use crate::{
    cluster::{Cluster, changes::News},
    tasks::{Change, Config as Limits, Effect, Record, Shared, Status, Store, StoreError},
};

async fn cluster(url: &str) -> Arc<Cluster> {
    Cluster::connect(&config(url), "host", "http://x.example").await.expect("it is let in")
}

fn record(id: &str, owner: &str) -> Record {
    Record::new(id.into(), owner, SystemTime::now(), 60_000, 1000)
}

/// All that can happen to records, at any kind of Redis.
async fn come_and_go(url: &str) {
    let limits = Limits { tasks_max: 3, per_caller_max: 2, ..Limits::default() };
    let cluster = cluster(url).await;
    let (tell, mut heard) = tokio::sync::mpsc::channel(1000);
    cluster.bus.begin(move |news| drop(tell.try_send(news)));
    assert_eq!(heard.recv().await, Some(News::Begun));
    let (a, b) = (Shared::new(&limits, &cluster), Arc::new(Shared::new(&limits, &cluster)));
    a.insert(record("1", "ann")).await.expect("room");
    a.insert(record("2", "ann")).await.expect("room");
    assert_eq!(b.insert(record("3", "ann")).await, Err(StoreError::CallerFull));
    b.insert(record("3", "bob")).await.expect("room");
    assert_eq!(a.insert(record("4", "eve")).await, Err(StoreError::Full));
    assert_eq!(b.load("1").await.expect("asked").map(|record| record.owner), Some("ann".into()));
    assert!(b.load("4").await.expect("asked").is_none());
    // Many at once on one record: each change is made once, on top of the others.
    let keys: Vec<String> = (0..16).map(|n| format!("k{n}")).collect();
    let open = keys.iter().map(|key| (key.clone(), json!({}))).collect();
    a.change("1", Change::Ask(open), SystemTime::now()).await.expect("asked").expect("there");
    let mut answers = tokio::task::JoinSet::new();
    for key in keys {
        let store = Arc::clone(&b);
        answers.spawn(async move {
            let answer = Change::Answer(Map::from_iter([(key, json!(1))]));
            store.change("1", answer, SystemTime::now()).await.expect("asked").expect("there").effect
        });
    }
    assert!(answers.join_all().await.iter().all(|effect| *effect == Effect::Visible));
    let after = a.load("1").await.expect("asked").expect("there");
    assert_eq!((after.inputs.len(), after.version, after.status), (16, 17, Status::Working));
    for version in 1..=17 {
        let news = News::Task { owner: "ann".into(), id: "1".into(), version, is_own: true };
        assert_eq!(heard.recv().await, Some(news), "in the order of the changes");
    }
    let ended = b.change("2", Change::Cancel, SystemTime::now()).await.expect("asked").expect("there");
    assert_eq!((ended.record.status, ended.effect), (Status::Cancelled, Effect::Visible));
    let again = a.change("2", Change::Cancel, SystemTime::now()).await.expect("asked").expect("there");
    assert_eq!(again.effect, Effect::None);
    assert!(a.change("4", Change::Cancel, SystemTime::now()).await.expect("asked").is_none());
}

#[tokio::test]
async fn tasks_come_and_go_at_one_server() {
    let redis = Redis::start();
    come_and_go(&redis.url()).await;
    let left = |key: &str| redis.cli(&["PTTL", key]).parse::<i64>().expect("a number");
    assert!(redis.keys("mcp:task").iter().all(|key| (1..=60_000).contains(&left(key))), "all expire by themselves");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tasks_come_and_go_in_a_cluster() {
    come_and_go(&Six::start().url()).await;
}

#[tokio::test]
async fn what_is_no_record_is_missing_and_stays() {
    let redis = Redis::start();
    let cluster = cluster(&redis.url()).await;
    let store = Shared::new(&Limits::default(), &cluster);
    store.insert(record("1", "ann")).await.expect("room");
    for spoil in [
        vec!["HSET", "mcp:task:1", "record", "{"],
        vec!["HSET", "mcp:task:1", "record", r#"{"id":"2"}"#],
        vec!["SET", "mcp:task:1", "x"],
    ] {
        redis.cli(&spoil);
        assert!(store.load("1").await.expect("asked").is_none(), "{spoil:?}");
        assert!(store.change("1", Change::Cancel, SystemTime::now()).await.expect("asked").is_none());
        assert_eq!(redis.keys("mcp:task:"), ["mcp:task:1"]);
    }
    let expired = Record::new("9".into(), "ann", SystemTime::now() - Duration::from_secs(5), 5000, 1000);
    store.insert(expired).await.expect("taken");
    assert!(store.load("9").await.expect("asked").is_none(), "its time is over");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_whose_process_is_gone_has_failed_and_one_that_is_slow_to_say_so_has_not() {
    let redis = Redis::start();
    let (here, there) = (cluster(&redis.url()).await, cluster(&redis.url()).await);
    let (a, b) = (Shared::new(&Limits::default(), &here), Shared::new(&Limits::default(), &there).without_grace());
    let _listens = here.records(Duration::from_secs(60)).listen();
    let mail = format!("mcp:mail:{:08x}", here.tag());
    servers::eventually("it listens", || redis.cli(&["PUBSUB", "NUMSUB", &mail]).ends_with('1'));
    let status = async |id: &str| b.load(id).await.expect("asked").expect("there").status;
    for id in ["1", "2"] {
        a.insert(record(id, "ann")).await.expect("room");
        assert_eq!([status(id).await, status(id).await], [Status::Working; 2]);
    }
    let alive = redis.keys("mcp:alive:");
    assert_eq!((alive.len(), redis.cli(&["DEL", &alive[0]])), (1, "1".into()));
    assert_eq!(status("1").await, Status::Working, "it is waited for");
    a.sweep(SystemTime::now()).await.expect("said");
    assert_eq!([status("1").await, status("1").await], [Status::Working; 2], "it lives");
    redis.cli(&["DEL", &alive[0]]);
    assert_eq!([status("1").await, status("1").await], [Status::Working, Status::Failed]);
    let late = a.change("1", Change::Cancel, SystemTime::now()).await.expect("asked").expect("there");
    assert_eq!((late.effect, late.record.status), (Effect::None, Status::Failed), "it ends once");
    let own = a.load("2").await.expect("asked").expect("there");
    assert_eq!(own.status, Status::Working, "who runs it knows better");
}

#[tokio::test]
async fn instances_agree_on_one_key_of_their_states() {
    let mut redis = Redis::start();
    let cluster = cluster(&redis.url()).await;
    let own = |n: u32| format!("{n:064x}");
    let agreed: HashSet<_> = [cluster.state_key(&own(1)).await, cluster.state_key(&own(2)).await]
        .map(|key| key.expect("asked"))
        .into_iter()
        .collect();
    assert_eq!(agreed, HashSet::from([own(1)]));
    redis.cli(&["SET", "mcp:state-key", "something else"]);
    assert!(cluster.state_key(&own(1)).await.is_err(), "what is no key is not taken over");
    redis.kill();
    assert!(cluster.state_key(&own(1)).await.is_err());
}

#[tokio::test]
async fn a_task_that_may_be_run_twice_is_taken_over_by_one_and_its_first_run_ends_in_vain() {
    let redis = Redis::start();
    let clusters = [cluster(&redis.url()).await, cluster(&redis.url()).await, cluster(&redis.url()).await];
    let [a, b, c] = clusters.each_ref().map(|cluster| Shared::new(&Limits::default(), cluster).without_grace());
    let now = SystemTime::now();
    a.insert(Record { request: Some("the request".into()), ..record("1", "ann") }).await.expect("room");
    let question = Map::from_iter([("k".to_owned(), json!({}))]);
    a.change("1", Change::Ask(question), now).await.expect("asked").expect("there");
    redis.cli(&["DEL", &redis.keys("mcp:alive:")[0]]);
    for store in [&b, &c] {
        let found = store.load("1").await.expect("asked").expect("there");
        assert_eq!(found.status, Status::InputRequired, "it has not failed");
        assert!(store.take_orphan("1") && !store.take_orphan("1"), "to be run again");
    }
    let (of_b, of_c) = tokio::join!(b.adopt("1", now), c.adopt("1", now));
    let (of_b, of_c) = (of_b.expect("asked"), of_c.expect("asked"));
    assert!(of_b.is_some() != of_c.is_some(), "by one: {of_b:?} {of_c:?}");
    let (heir, other) = if of_b.is_some() { (&b, &c) } else { (&c, &b) };
    let (record, request) = of_b.or(of_c).expect("one");
    assert_eq!((&request[..], record.status, record.input_requests.len()), (&b"the request"[..], Status::Working, 0));
    let said = |text: &str| Change::Working { message: Some(text.into()) };
    assert!(a.change("1", said("late"), now).await.expect("asked").is_none(), "the first run is nobody's");
    assert!(other.change("1", said("late"), now).await.expect("asked").is_none());
    assert!(heir.change("1", said("on time"), now).await.expect("asked").is_some());
    let ended = other.change("1", Change::Cancel, now).await.expect("asked").expect("there");
    assert_eq!(ended.record.status, Status::Cancelled, "what its client does counts from anywhere");
    assert_eq!(redis.cli(&["HEXISTS", "mcp:task:1", "request"]), "0", "not kept for longer");
    assert!(b.adopt("1", now).await.expect("asked").is_none() && c.adopt("1", now).await.expect("asked").is_none());
}
