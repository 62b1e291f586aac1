//! Keeps the issuer's keys fresh, for as long as the server runs. How often is decided by [`Keys`]; how it is done, by
//! [`Fetcher`].

use std::{
    future::Future,
    pin::pin,
    time::{Duration, SystemTime},
};

use tokio::{sync::Notify, time::sleep};

use super::{Fetcher, Keys};

/// Between two looks at whether the keys are due.
const PAUSE: Duration = Duration::from_secs(1);
/// Between two times that it is told that there are no keys.
const SAY_PAUSE: Duration = Duration::from_secs(60);
/// Keys that are passed over, and have a line in the log.
const PASSED_OVER_SAID: usize = 5;

/// Fetches the keys at once, then each `auth.jwks_refresh_s`, and sooner after a `notify_one` of `wanted`, which is for
/// a refusal that [may pass with newer keys](super::Refused::may_pass_with_newer_keys); never more than once in
/// `auth.jwks_retry_s`, however often it is wanted. What fails leaves the keys as they are. A change from working to
/// failing, or back, is logged once; that no keys are known at all, each minute. Returns when `stop` is over, also in the middle of a fetch.
pub async fn keep(keys: &Keys, fetcher: &Fetcher, wanted: &Notify, stop: impl Future<Output = ()>) {
    let mut keeper = Keeper::new(keys, fetcher);
    let mut stop = pin!(stop);
    let mut unknown = false;
    loop {
        tokio::select! {
            biased;
            () = &mut stop => return,
            turn = keeper.turn(SystemTime::now(), unknown) => unknown &= turn == Turn::NotNow,
        }
        // Once it is wanted nothing more is to be learned from who wants it too: a flood wakes nobody.
        tokio::select! {
            biased;
            () = &mut stop => return,
            () = wanted.notified(), if !unknown => unknown = true,
            () = sleep(PAUSE) => {}
        }
    }
}

/// What came of one look.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// The keys are not due.
    NotNow,
    /// They are as they were.
    Same,
    /// There are others now.
    Changed,
    /// They could not be had, and are as they were.
    Failed(String),
}

pub(super) struct Keeper<'a> {
    keys: &'a Keys,
    fetcher: &'a Fetcher,
    /// Whether the last fetch failed.
    failing: bool,
    /// When it was last said that there are no keys at all.
    said: Option<SystemTime>,
}

impl<'a> Keeper<'a> {
    pub(super) fn new(keys: &'a Keys, fetcher: &'a Fetcher) -> Self {
        Self { keys, fetcher, failing: false, said: None }
    }

    /// One look at whether to fetch, and the fetch when it is due.
    pub(super) async fn turn(&mut self, now: SystemTime, unknown_kid: bool) -> Turn {
        if !self.keys.wants_refresh(now, unknown_kid) {
            return Turn::NotNow;
        }
        let accepted = match self.fetcher.fetch().await {
            Ok(bytes) => self.keys.accept(&bytes, now).map_err(|why| format!("{}: {why}", self.fetcher.url())),
            Err(why) => Err(why),
        };
        let (turn, failed) = match accepted {
            Ok(true) => (Turn::Changed, None),
            Ok(false) => (Turn::Same, None),
            Err(why) => {
                self.keys.failed(now);
                (Turn::Failed(why.clone()), Some(why))
            }
        };
        self.say(&turn, failed.as_deref(), now);
        turn
    }

    fn say(&mut self, turn: &Turn, failed: Option<&str>, now: SystemTime) {
        let was_failing = std::mem::replace(&mut self.failing, failed.is_some());
        let is_bare = self.keys.current(now).is_empty();
        let has_rested = |said| now.duration_since(said).is_ok_and(|passed| passed >= SAY_PAUSE);
        if !is_bare {
            self.said = None;
        }
        match failed {
            _ if is_bare && self.said.is_none_or(has_rested) => {
                self.said = Some(now);
                match failed {
                    Some(why) => tracing::error!(
                        why,
                        "the issuer's keys cannot be fetched and none are known: no token is taken (503)"
                    ),
                    None => tracing::error!(
                        url = self.fetcher.url(),
                        "the issuer's key set has no key that can be used, and none are known: no token is taken (503)"
                    ),
                }
            }
            Some(why) if was_failing || is_bare => tracing::debug!(why, "the issuer's keys still cannot be fetched"),
            Some(why) => tracing::warn!(why, "the issuer's keys cannot be fetched; those that are known stay in force"),
            None if was_failing => tracing::info!(url = self.fetcher.url(), "the issuer's keys can be fetched again"),
            None => {}
        }
        if *turn == Turn::Changed {
            let current = self.keys.current(now);
            tracing::info!(url = self.fetcher.url(), keys = current.len(), "the issuer has other keys");
            for why in current.passed_over().take(PASSED_OVER_SAID) {
                tracing::warn!(why, "a key of the issuer is not used");
            }
        }
    }
}
