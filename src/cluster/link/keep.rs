//! The task that keeps a connection to Redis: it makes one, looks whether it is of use, and makes the next. How one is made
//! is `way`'s business, and what the link is meanwhile stands in `state`.

use std::{future::pending, sync::atomic::Ordering::Relaxed, time::Duration};

use tokio::time::{Instant, sleep, sleep_until};

use super::{Owner, Shared, connection::Connection, error::LinkError, parts::Missing, sentinels::Master, way::Reached};

/// Between two looks at a connection that is used or idle, so that a Redis that hangs is noticed whoever asks it.
const WATCH: Duration = Duration::from_millis(500);
/// Between two looks whether the part of a cluster is back that it is used without.
const PART_LOOK: Duration = Duration::from_secs(5);
/// Between two questions to the sentinels who the master is. Mostly they end the connections to one that is none any
/// more; where they cannot reach it, or a connection was made a moment too late, it would be used for ever.
const MASTER_LOOK: Duration = Duration::from_secs(5);

/// Keeps a connection, for ever.
pub(super) async fn keep(shared: &Shared) -> std::convert::Infallible {
    let (mut next_attempt, mut missing) = (Instant::now(), Missing::default());
    loop {
        if Instant::now() < next_attempt {
            if !shared.switch.state().is_away() {
                let why = "the connection broke, and the one before was just made";
                shared.switch.away(shared.way.outage(why.to_owned()), shared.probe);
            }
            sleep_until(next_attempt).await;
        }
        next_attempt = Instant::now() + shared.pause();
        shared.counts.connects.fetch_add(1, Relaxed);
        let is_instance = *shared.owner.borrow() != Owner::Anybody;
        let is_back = shared.switch.was_up() && shared.switch.state().is_away();
        let reached = shared.way.connect(is_instance, is_back).await;
        let reached = reached.and_then(|reached| match reached.missing {
            Some(what) if !missing.may_be_used(false, Instant::now()) => Err(what),
            _ => Ok(reached),
        });
        match reached {
            Ok(Reached { connection, master, missing: part }) => {
                if is_back && part.is_none() {
                    missing.may_be_used(true, Instant::now());
                }
                shared.is_stale.store(false, Relaxed);
                shared.master.send_replace(master.clone());
                shared.switch.up(connection.clone(), master.clone(), || shared.owner.borrow().lets_pass());
                tokio::select! {
                    () = watch_over(shared) => {}
                    () = until_moved(shared, master) => shared.switch.connecting(),
                    () = note_whole(shared, &connection, &mut missing) => {}
                }
                shared.master.send_replace(None);
            }
            Err(error) => shared.switch.away(shared.way.why(&error, shared.switch.was_up()).await, shared.probe),
        }
    }
}

/// Notes when the part that is missing is there again, so that it is waited for after the next absence. Never returns.
async fn note_whole(shared: &Shared, connection: &Connection, missing: &mut Missing) {
    while *missing != Missing::Nothing {
        sleep(PART_LOOK).await;
        if shared.way.missing(connection).await.is_none() {
            missing.may_be_used(true, Instant::now());
        }
    }
    pending().await
}

/// Returns when the connection is of no use any more.
async fn watch_over(shared: &Shared) {
    loop {
        tokio::select! {
            () = shared.look.notified() => {}
            () = sleep(WATCH) => {}
        }
        let Ok(current) = shared.switch.connection(Instant::now()).await else { return }; // too many failures
        if shared.is_stale.load(Relaxed) {
            return shared.switch.connecting();
        }
        let error = match shared.way.probe(&mut current.connection.clone()).await {
            Ok(says_whose) => {
                if !says_whose && *shared.owner.borrow() == Owner::Us {
                    shared.forgot_owner.notify_one();
                }
                continue;
            }
            Err(error) => error,
        };
        return match LinkError::of(&error) {
            LinkError::Unknown("the connection broke") => shared.switch.connecting(),
            _ => shared.switch.away(shared.way.why(&error, shared.switch.was_up()).await, shared.probe),
        };
    }
}

/// Returns when the sentinels name another master than this one. That they say nothing is no reason to leave it.
async fn until_moved(shared: &Shared, master: Option<Master>) {
    let (Some(master), Some(mut watchers)) = (master, shared.way.watchers()) else { return pending().await };
    loop {
        sleep(MASTER_LOOK).await;
        match watchers.other_than(&master).await {
            Ok(None) => {}
            Ok(Some(next)) => return tracing::debug!(%master, %next, "the sentinels name another master of Redis"),
            Err(error) => tracing::debug!(%error, "no sentinel says who the master of Redis is"),
        }
    }
}
