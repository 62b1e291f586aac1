//! With real Redis processes: the link in all that can happen to it, and what is shared over it.

mod last_stop;
mod link;
mod link_parts;
mod link_start;
mod results;
mod servers;
mod sessions;
mod shared;
mod tasks;
mod tls;

use self::servers::{PATIENCE, Redis, Sentinels, Six};
use super::{
    Own,
    config::Config,
    link::{Link, State},
};

/// Patient, so that a busy machine is no Redis that is away; with `hasty` as by default.
fn config(url: &str) -> Config {
    Config { command_timeout_ms: 5000, connect_timeout_ms: 10_000, ..hasty(url) }
}

fn hasty(url: &str) -> Config {
    Config { redis: url.to_owned(), heartbeat_s: 1, ..Config::default() }
}

fn own(address: &str) -> Own {
    Own { host: "host".into(), address: address.into(), ..Own::default() }
}

/// A link that is up.
async fn linked(url: &str) -> Link {
    let link = Link::start(&config(url)).expect("settings");
    up(link).await
}

async fn up(link: Link) -> Link {
    until(&link, |state| *state == State::Up).await;
    link
}

/// Waits until the link is so.
async fn until(link: &Link, is_so: impl FnMut(&State) -> bool) {
    let mut state = link.watch();
    let waited = tokio::time::timeout(PATIENCE, state.wait_for(is_so)).await;
    drop(waited.expect("in time").expect("the link lives"));
}
