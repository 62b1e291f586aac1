//! What a client takes back at an instance that does not run it.

use bytes::Bytes;
use serde_json::json;

use super::*;
use crate::cluster::{
    Cluster,
    link::Event,
    sessions::{Hash, Records},
};

const HOUR: std::time::Duration = std::time::Duration::from_secs(3600);

async fn one(redis: &Redis) -> (std::sync::Arc<Cluster>, Records, Hash) {
    let cluster = Cluster::connect(&config(&redis.url()), own("")).await.expect("it is let in");
    let records = cluster.records(HOUR);
    records.ready().await.expect("asked");
    let hash = records.hash("a session").expect("named");
    (cluster, records, hash)
}

#[tokio::test]
async fn a_redis_that_takes_no_writes_loses_no_cancel() {
    let (redis, master) = (Redis::start(), Redis::start());
    let (cluster, records, hash) = one(&redis).await;
    let mut heard = cluster.link.subscribe(vec![cluster.keys.sessions()]);
    assert_eq!(heard.next().await, Some(Event::Begun));
    let streams = cluster.streams(HOUR, HOUR);
    for (id, config) in [
        (1, ["CONFIG", "SET", "maxmemory", "1"]),
        (2, ["CONFIG", "SET", "maxmemory", "0"]),
        (3, ["REPLICAOF", "127.0.0.1", &master.port.to_string(), ""]),
    ] {
        redis.cli(&config.into_iter().filter(|word| !word.is_empty()).collect::<Vec<_>>());
        records.tell_cancelled(hash, &json!(id)).await.expect("told");
        let next = tokio::time::timeout(PATIENCE, heard.next()).await.expect("in time");
        assert!(matches!(next, Some(Event::Message(_))), "{id}: {next:?}");
        if id == 2 {
            assert_eq!(streams.is_cancelled(hash, &json!(1)).await, Ok(false), "it had no room");
            assert_eq!(streams.is_cancelled(hash, &json!(2)).await, Ok(true), "who takes it over is told too");
        }
    }
}

#[tokio::test]
async fn a_later_call_of_the_same_id_is_not_taken_back() {
    let redis = Redis::start();
    let (cluster, records, hash) = one(&redis).await;
    let streams = cluster.streams(HOUR, HOUR);
    for id in [json!(1), json!("1")] {
        records.tell_cancelled(hash, &id).await.expect("told");
    }
    let about = json!({ "request": 1 }).to_string();
    let (_writer, opened) = streams.open(hash, "stream".into(), about, Bytes::from_static(b"call"));
    tokio::time::timeout(PATIENCE, opened).await.expect("in time").expect("kept");
    assert_eq!(streams.is_cancelled(hash, &json!(1)).await, Ok(false));
    assert_eq!(streams.is_cancelled(hash, &json!("1")).await, Ok(true), "another call");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_another_deployments_is_as_if_redis_were_away() {
    let mut redis = Redis::start();
    redis.kill();
    let other = Config { id: "other".into(), ..config(&redis.url()) };
    let late = Cluster::connect(&other, own("")).await.expect("it is let in without Redis");
    let (records, hash) = (late.records(HOUR), Hash::of([7; 16]));
    redis.restart();
    redis.cli(&["SET", "mcp:cluster", "bigiron"]);
    late.join(Box::new(|| Some(crate::cluster::About::default())));
    late.status(crate::cluster::Status::Running).await;
    until(&late.link, |state| *state == State::Up).await;
    late.status(crate::cluster::Status::Running).await;
    assert!(late.link.is_foreign() && late.link.is_away() && late.word() == "foreign");
    assert_eq!(records.load(hash).await, Err(crate::cluster::link::LinkError::Away));
    late.leave().await;
    assert_eq!(redis.cli(&["TTL", "mcp:cluster"]), "-1", "nothing there is touched");
}
