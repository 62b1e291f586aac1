//! Whether a cluster of Redis is there with all its parts, and for how long what is there waits for the rest. Its nodes
//! go on alone for a while when one is down, and what is asked of them says nothing of that one.

use std::{collections::HashMap, time::Duration};

use redis::{ErrorKind, RedisResult, ServerErrorKind};
use tokio::time::Instant;

use super::{
    connection::Connection,
    error::{LinkError, Refused},
    scan::{ask_each_master, size},
};

/// A cluster that was away is back once all its masters answer: where one is down, some of what is asked fails, and it
/// would be away again at once. When a part has answered alone for so long it is used, since the rest may never come.
const WHOLE_PATIENCE: Duration = Duration::from_secs(30);
/// Where no part was seen to answer for so long, none was there. Single attempts fail while a part is: they wait for
/// it.
const ABSENCE: Duration = Duration::from_secs(10);
/// Nodes that are named; of more than this all may be meant.
const NAMED_MAX: usize = 3;

/// What of it is missing, as far as that decides when it is used again.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Missing {
    #[default]
    Nothing,
    /// A part, since the others answer, which they were last seen to do then: mostly for a moment, while it comes back.
    Part { since: Instant, seen: Instant },
    /// A part, for as long as can be said: the others are used, after each absence without a wait.
    PartForLong,
}

impl Missing {
    /// Notes what an attempt after an absence found, and says whether that is to be used.
    pub(super) fn may_be_used(&mut self, is_whole: bool, now: Instant) -> bool {
        *self = match *self {
            _ if is_whole => Self::Nothing,
            Self::Nothing => Self::Part { since: now, seen: now },
            // Nothing answered for a while: then the wait for the rest has not begun.
            Self::Part { seen, .. } if now.saturating_duration_since(seen) >= ABSENCE => {
                Self::Part { since: now, seen: now }
            }
            Self::Part { since, .. } if now.saturating_duration_since(since) >= WHOLE_PATIENCE => Self::PartForLong,
            Self::Part { since, .. } => Self::Part { since, seen: now },
            Self::PartForLong => Self::PartForLong,
        };
        !matches!(self, Self::Part { .. })
    }
}

/// That each master with keys answers, and that none misses another one. Who may not ask goes on.
pub(super) async fn is_whole(connection: &mut Connection) -> RedisResult<()> {
    let mut ask = redis::cmd("CLUSTER");
    let told: HashMap<String, String> = match ask_each_master(connection, ask.arg("INFO")).await {
        Err(error) if LinkError::of(&error) == LinkError::Refused(Refused::Denied) => return Ok(()),
        told => told?,
    };
    // The client leaves those out that it has no connection to.
    let is_well = |info: &String| info.contains("cluster_state:ok") && size(info) == Some(told.len());
    if !told.is_empty() && told.values().all(is_well) {
        return Ok(());
    }
    let mut ask = redis::cmd("CLUSTER");
    // It is not known, or there is nobody to ask: then it is said without names.
    let nodes = ask.arg("NODES").query_async::<String>(connection).await.unwrap_or_default();
    let down = missing(&nodes, &told).join(", ");
    let down = if down.is_empty() { "it is not known which one yet".to_owned() } else { down };
    Err((ErrorKind::Server(ServerErrorKind::ClusterDown), "a node of the cluster is down", down).into())
}

/// The masters with keys that did not answer, as one of the others names them in `CLUSTER NODES`.
fn missing(nodes: &str, told: &HashMap<String, String>) -> Vec<String> {
    let address = |line: &str| {
        let fields: Vec<_> = line.split(' ').collect();
        let (at, flags) = (*fields.get(1)?, *fields.get(2)?);
        let is_master = flags.split(',').any(|flag| flag == "master") && fields.len() > 8;
        // HOST:PORT@PORT,NAME
        let (address, rest) = at.split_once('@').unwrap_or((at, ""));
        let (_, port) = address.rsplit_once(':')?;
        let name = rest.split(',').nth(1).map(|name| format!("{name}:{port}")).unwrap_or_default();
        (is_master && !told.contains_key(address) && !told.contains_key(&name)).then(|| address.to_owned())
    };
    nodes.lines().filter_map(address).take(NAMED_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_waits_for_the_rest_from_when_it_answers_and_once() {
        let (start, mut missing) = (Instant::now(), Missing::default());
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        assert!(missing.may_be_used(true, at(0)));
        assert!(!missing.may_be_used(false, at(1)), "the others answer for a moment, and then nobody does");
        // After minutes the part comes back, one node after the other.
        for second in (300..330).step_by(9) {
            assert!(!missing.may_be_used(false, at(second)), "the time in which nobody answered is no wait");
        }
        assert!(missing.may_be_used(true, at(329)));
        // Another absence, in which some attempts fail by themselves.
        for second in [400, 401, 410, 419, 428] {
            assert!(!missing.may_be_used(false, at(second)), "{second}");
        }
        assert!(missing.may_be_used(false, at(430)), "the rest may never come");
        assert!(missing.may_be_used(false, at(500)) && missing == Missing::PartForLong, "it is not waited for again");
        assert!(missing.may_be_used(true, at(501)));
        assert!(!missing.may_be_used(false, at(600)), "until it was there");
    }

    #[test]
    fn who_is_missing_is_named() {
        let nodes = "a 127.0.0.1:7000@17000 myself,master - 0 1 1 connected 0-5460\n\
                     b 127.0.0.1:7001@17001,redis-b master,fail? - 1 2 2 disconnected 5461-10922\n\
                     c 127.0.0.1:7002@17002,redis-c master - 0 3 3 connected 10923-16383\n\
                     d 127.0.0.1:7003@17003 slave,fail b 0 3 3 connected\n\
                     e 127.0.0.1:7004@17004 master,fail - 0 3 3 connected\n\
                     odd\n";
        let told = |of: &[&str]| of.iter().map(|of| ((*of).to_owned(), String::new())).collect();
        assert_eq!(missing(nodes, &told(&["127.0.0.1:7000", "redis-c:7002"])), ["127.0.0.1:7001"]);
        assert_eq!(missing("", &told(&[])), [""; 0]);
    }
}
