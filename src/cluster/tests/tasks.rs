use std::{
    collections::HashSet,
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde_json::{Map, json, value::RawValue};

use super::*;
use crate::{
    cluster::{Cluster, changes::News, presence::Stake, sessions::Listener},
    tasks::{Change, Config as Limits, Effect, Link, Record, Shared, Status, Store, StoreError, Tasks},
};

async fn cluster(url: &str) -> Arc<Cluster> {
    Cluster::connect(&config(url), own("http://x.example")).await.expect("it is let in")
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

/// Has a process listen to its mail, until what is returned is dropped.
fn listens(redis: &Redis, cluster: &Cluster) -> Listener {
    let listener = cluster.records(Duration::from_secs(60)).listen();
    hears(redis, cluster, true);
    listener
}

fn hears(redis: &Redis, cluster: &Cluster, is_heard: bool) {
    let (mail, count) = (format!("mcp:mail:{:08x}", cluster.tag()), usize::from(is_heard).to_string());
    servers::eventually("it listens, or does not", || {
        redis.cli(&["PUBSUB", "NUMSUB", &mail]).lines().last() == Some(&count)
    });
}

fn lease(cluster: &Cluster) -> String {
    format!("mcp:lives:{:08x}", cluster.tag())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_whose_process_is_gone_has_failed_and_one_that_is_slow_to_say_so_has_not() {
    let redis = Redis::start();
    let (here, there) = (cluster(&redis.url()).await, cluster(&redis.url()).await);
    let (a, b) = (Shared::new(&Limits::default(), &here), Shared::new(&Limits::default(), &there).without_grace());
    let (heard, _hears) = (listens(&redis, &here), listens(&redis, &there));
    let status = async |id: &str| b.load(id).await.expect("asked").expect("there").status;
    let fails = async |id: &str| {
        while status(id).await != Status::Failed {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    for id in ["1", "2", "3"] {
        a.insert(record(id, "ann")).await.expect("room");
        assert_eq!([status(id).await, status(id).await], [Status::Working; 2]);
    }
    there.presence.trust();
    assert_eq!(status("1").await, Status::Working, "it hangs, and is waited for");
    redis.cli(&["SET", &lease(&here), ""]);
    assert_eq!([status("1").await, status("1").await], [Status::Working; 2], "it lives");
    redis.cli(&["DEL", &lease(&here)]);
    assert_eq!(status("1").await, Status::Working);
    fails("1").await;
    let late = a.change("1", Change::Cancel, SystemTime::now()).await.expect("asked").expect("there");
    assert_eq!((late.effect, late.record.status), (Effect::None, Status::Failed), "it ends once");
    redis.cli(&["SET", &lease(&here), "", "PX", "10000"]);
    assert_eq!(status("2").await, Status::Working);
    drop(heard);
    hears(&redis, &here, false);
    assert_eq!(status("2").await, Status::Working, "it does not listen, and is waited for");
    // As long as it says that it lives it does, however often it is not heard.
    for _ in 0..15 {
        redis.cli(&["SET", &lease(&here), "", "PX", "10000"]);
        assert_eq!(status("2").await, Status::Working, "it says that it lives");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    fails("2").await;
    let own = a.load("3").await.expect("asked").expect("there");
    assert_eq!(own.status, Status::Working, "who runs it knows better");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_is_not_run_again_since_its_process_was_not_heard_for_a_moment() {
    let redis = Redis::start();
    let (here, there) = (cluster(&redis.url()).await, cluster(&redis.url()).await);
    let [a, b] = [&here, &there].map(|cluster| Shared::new(&Limits::default(), cluster));
    a.insert(Record { request: Some("the request".into()), ..record("1", "ann") }).await.expect("room");
    let is_found = async || {
        b.load("1").await.expect("asked").expect("there");
        b.take_orphan("1").is_some()
    };
    let pause = || tokio::time::sleep(Duration::from_millis(400));
    there.presence.trust();
    for look in 0..3 {
        assert!(!is_found().await, "look {look}: nobody listens, not who looks either");
        pause().await;
    }
    let own = listens(&redis, &there);
    assert!(!is_found().await, "the first look");
    pause().await;
    let heard = listens(&redis, &here);
    redis.cli(&["SET", &lease(&here), ""]);
    assert!(!is_found().await, "it is there");
    redis.cli(&["DEL", &lease(&here)]);
    drop(heard);
    hears(&redis, &here, false);
    assert!(!is_found().await, "the first look again");
    pause().await;
    there.presence.note_gap();
    assert!(!is_found().await, "others may not be heard yet");
    there.presence.trust();
    assert!(!is_found().await, "the first look once more");
    pause().await;
    assert!(is_found().await);
    drop(own);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes 45 s: cargo test --lib -- --ignored nobody_seems_to_hang"]
async fn nobody_seems_to_hang_since_a_part_of_redis_was_away() {
    let mut six = Six::start();
    for server in &six.0 {
        assert_eq!(server.cli(&["CONFIG", "SET", "cluster-require-full-coverage", "no"]), "OK");
    }
    let masters = six.masters();
    let serve = async || {
        let one = cluster(&six.url()).await;
        let (streams, listener) = (one.streams(PATIENCE, PATIENCE), one.records(PATIENCE).listen());
        let mut at = None;
        servers::eventually("it has a lease", || {
            at = six.find(&lease(&one), &masters);
            at.is_some()
        });
        (at.expect("somewhere").1, one, (streams, listener))
    };
    let (at, here, held) = serve().await;
    // One whose own lease is elsewhere.
    let (there, _there) = loop {
        let (elsewhere, there, held) = serve().await;
        if elsewhere != at {
            break (there, held);
        }
    };
    there.presence.trust();
    // The first of a part is killed, and the second is slow to take its place.
    let port = six.0[at].port.to_string();
    let follows = |server: &Redis| server.cli(&["ROLE"]).lines().nth(2) == Some(&port);
    let second = six.0.iter().position(follows).expect("a replica");
    six.0[second].hang();
    six.0[at].kill();
    tokio::time::sleep(Duration::from_secs(12)).await;
    six.0[second].wake();
    let (mut seemed, began) = (0, std::time::Instant::now());
    while began.elapsed() < Duration::from_secs(15) {
        if began.elapsed() < Duration::from_secs(3) {
            six.0[second].cli(&["DEL", &lease(&here)]); // it takes its time to come back to it
            there.presence.trust(); // that Redis was away is not what keeps it
        }
        if let Some(absent) = there.presence.absent(here.tag()).await {
            seemed += 1;
            assert!(!absent.is_enough_for(Stake::SecondRun), "it lives: {absent:?} after {:?}", began.elapsed());
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(seemed > 0, "nothing was there for it to seem so");
    // Who stops is gone all the same, though one more node is down, whose slots are all there, and nobody says who listens.
    let third = (0..6).find(|of| *of != at && six.0[*of].cli(&["ROLE"]).starts_with("slave")).expect("a replica");
    six.0[third].kill();
    drop(held);
    here.presence.leave().await;
    let is_gone = async || {
        while !there.presence.absent(here.tag()).await.is_some_and(|absent| absent.is_enough_for(Stake::End)) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(PATIENCE, is_gone()).await.expect("in time");
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_that_may_be_run_twice_is_taken_over_by_one_and_its_first_run_ends_in_vain() {
    let redis = Redis::start();
    let clusters = [cluster(&redis.url()).await, cluster(&redis.url()).await, cluster(&redis.url()).await];
    let [a, b, c] = clusters.each_ref().map(|cluster| Shared::new(&Limits::default(), cluster).without_grace());
    let now = SystemTime::now();
    a.insert(Record { request: Some("the request".into()), ..record("1", "ann") }).await.expect("room");
    let question = Map::from_iter([("k".to_owned(), json!({}))]);
    a.change("1", Change::Ask(question), now).await.expect("asked").expect("there");
    let _hear = [listens(&redis, &clusters[1]), listens(&redis, &clusters[2])];
    for store in [&b, &c] {
        loop {
            let found = store.load("1").await.expect("asked").expect("there");
            assert_eq!(found.status, Status::InputRequired, "it has not failed");
            if let Some(gone) = store.take_orphan("1") {
                assert_eq!(gone, clusters[0].run());
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(store.take_orphan("1"), None, "once");
    }
    let gone = clusters[0].run();
    let (of_b, of_c) = tokio::join!(b.adopt("1", gone, now), c.adopt("1", gone, now));
    let (of_b, of_c) = (of_b.expect("asked"), of_c.expect("asked"));
    assert!(of_b.is_some() != of_c.is_some(), "by one: {of_b:?} {of_c:?}");
    let (heir, other) = if of_b.is_some() { (&b, &c) } else { (&c, &b) };
    let (record, request) = of_b.or(of_c).expect("one");
    assert_eq!((&request[..], record.status, record.input_requests.len()), (&b"the request"[..], Status::Working, 0));
    let late = other.adopt("1", gone, now).await.expect("asked");
    assert!(late.is_none(), "who runs it now is not who was gone: {late:?}");
    let said = |text: &str| Change::Working { message: Some(text.into()) };
    assert!(a.change("1", said("late"), now).await.expect("asked").is_none(), "the first run is nobody's");
    assert!(other.change("1", said("late"), now).await.expect("asked").is_none());
    assert!(heir.change("1", said("on time"), now).await.expect("asked").is_some());
    let ended = other.change("1", Change::Cancel, now).await.expect("asked").expect("there");
    assert_eq!(ended.record.status, Status::Cancelled, "what its client does counts from anywhere");
    assert_eq!(redis.cli(&["HEXISTS", "mcp:task:1", "request"]), "0", "not kept for longer");
    for store in [&b, &c] {
        assert!(store.adopt("1", gone, now).await.expect("asked").is_none());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_run_of_a_task_that_was_taken_over_stops() {
    let redis = Redis::start();
    let clusters = [cluster(&redis.url()).await, cluster(&redis.url()).await];
    let tasks = clusters
        .each_ref()
        .map(|cluster| Tasks::new(Limits::default(), Arc::new(Shared::new(&Limits::default(), cluster))));
    let [a, b] = &tasks;
    let [of_a, of_b] = clusters.each_ref().map(|cluster| cluster.run());
    let request = Some("the request".into());
    let create = async || a.create_again("ann", None, None, request.clone()).await.expect("room");
    let stopped = async |link: Link| tokio::time::timeout(PATIENCE, link.cancelled()).await.expect("it stops");
    let question = || Map::from_iter([("k".to_owned(), json!({}))]);

    // One that works hears of it.
    let (record, first) = create().await;
    let (_, second, _) = b.adopt(&record.id, of_a).await.expect("asked").expect("taken over");
    a.heard(&record.id);
    stopped(first.link()).await;
    assert!(first.is_cancelled() && !second.is_cancelled());
    // And when that process has gone too, it may run here again.
    let (again, third, _) = a.adopt(&record.id, of_b).await.expect("asked").expect("taken over");
    assert!(a.running() == 1 && !third.is_cancelled());
    drop(first);
    third.complete(RawValue::from_string("{}".into()).expect("JSON")).await;
    stopped(second.link()).await;
    assert_eq!((again.version, a.running()), (2, 0));
    let end = b.get("ann", &record.id).await.expect("asked").expect("there");
    assert_eq!(end.status, Status::Completed, "the end is that of the last");

    // Where there is no room for it, it is left to others.
    let full = Limits { tasks_max: 1, ..Limits::default() };
    let full = Tasks::new(full, Arc::new(Shared::new(&Limits::default(), &clusters[1])));
    let (record, first) = create().await;
    let (_, own) = full.create_again("bob", None, None, None).await.expect("room");
    assert!(full.adopt(&record.id, of_a).await.expect("asked").is_none());
    assert_eq!(full.get("ann", &record.id).await.expect("asked").expect("there").status, Status::Working);
    assert!(b.adopt(&record.id, of_a).await.expect("asked").is_some());
    drop((own, first));

    // One that asks after it was taken over, or asked before, waits for nobody.
    let (record, first) = create().await;
    let asks = first.link();
    let asked = tokio::spawn(async move { asks.ask(question()).await });
    while b.get("ann", &record.id).await.expect("asked").expect("there").status != Status::InputRequired {
        tokio::task::yield_now().await;
    }
    let (_, second, _) = b.adopt(&record.id, of_a).await.expect("asked").expect("taken over");
    let early = tokio::time::timeout(PATIENCE, asked).await.expect("in time").expect("no panic");
    assert!(early.is_err() && first.is_cancelled());
    let (record, first) = create().await;
    let (_, other, _) = b.adopt(&record.id, of_a).await.expect("asked").expect("taken over");
    assert!(tokio::time::timeout(PATIENCE, first.ask(question())).await.expect("in time").is_err());
    assert!(!second.is_cancelled() && !other.is_cancelled());
}
