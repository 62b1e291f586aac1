//! A cluster of Redis of which a part goes away and comes back.

use std::time::{Duration, Instant};

use super::*;
use crate::cluster::link::{LinkError, cmd};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_whose_part_fails_over_is_away_once_and_back_once() {
    let mut six = Six::start();
    let link = linked(&six.url()).await;
    let masters = six.masters();
    let set = async |key: &str| -> Result<(), LinkError> { link.query(cmd("SET").arg(key).arg("x")).await };
    // What is looked at is elsewhere: there it answers all the time.
    let probed: u16 = six.0[0].cli(&["CLUSTER", "KEYSLOT", "mcp:cluster"]).parse().expect("a slot");
    let down = masters.iter().copied().find(|of| !six.has_slot(*of, probed)).expect("two of three");
    let mut keys = Vec::new();
    for n in 0..100 {
        let key = format!("key-{n}");
        set(&key).await.expect("set");
        keys.extend(six.find(&key, &masters).is_some_and(|(_, of)| of == down).then_some(key));
    }
    six.0[down].kill();
    // Whether it is there is looked at all the time.
    let mut state = link.watch();
    let why = tokio::spawn(async move {
        let away = state.wait_for(State::is_away).await.expect("the link lives").clone();
        let State::Away(why) = away else { panic!("{away:?}") };
        why
    });
    let until = Instant::now() + PATIENCE;
    while set(&keys[0]).await.is_err() || link.times_away() == 0 {
        assert!(Instant::now() < until, "its replica takes over");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    for key in &keys {
        set(key).await.expect("set");
    }
    assert_eq!((link.state(), link.times_away()), (State::Up, 1));
    let why = why.await.expect("it was told");
    assert!(why.contains("a node of the cluster is down"), "{why}");
}
