//! Who came and who left, for the log: each look at the registry is compared with the one before. Who only was late is
//! neither, nor is anybody where Redis was emptied and has all of them again in a moment.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use tokio::time::Instant;

use super::node::{Node, Status};
use crate::telemetry::rarely::Rarely;

/// Who is missing and nobody knows why is waited for as long as this many of its periods.
const PERIODS_TO_MISSED: u32 = 3;
/// Who was silent for more than so many halves of its period was not in time to leave.
const HALVES_TO_SILENT: u32 = 5;
/// The period of who does not say it.
const PERIOD: Duration = Duration::from_secs(5);

/// What became of another instance.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Change {
    Came(String),
    Left(String),
    /// It fell silent, and another instance has removed it.
    Died(String),
    /// It is there no more, and why is not known.
    Missing(String),
}

/// The other instances as they were said to be there.
#[derive(Debug)]
pub(super) struct Roll {
    known: BTreeMap<String, Known>,
    /// Of the look before; none before the first one.
    looked: Option<Instant>,
    rarely: Rarely,
}

#[derive(Debug)]
struct Known {
    period: Duration,
    is_stopping: bool,
    /// Its last heartbeat that was seen.
    beat: Instant,
    missing_since: Option<Instant>,
}

impl Roll {
    pub(super) fn new() -> Self {
        Self { known: BTreeMap::new(), looked: None, rarely: Rarely::new() }
    }

    /// What changed since the look before. `reaped` were removed by this look, which says that itself; `told` have told
    /// something of themselves.
    pub(super) fn note(
        &mut self,
        others: &[&Node],
        reaped: &[String],
        told: &BTreeSet<String>,
        now: Instant,
    ) -> Vec<Change> {
        let before = self.looked.replace(now);
        let mut changes = Vec::new();
        for node in others {
            let period = if node.heartbeat_s > 0 { Duration::from_secs(node.heartbeat_s) } else { PERIOD };
            let beat = now.checked_sub(Duration::from_millis(node.heartbeat_age_ms)).unwrap_or(now);
            let is_stopping = node.status == Status::Stopping;
            let known = Known { period, is_stopping, beat, missing_since: None };
            if self.known.insert(node.id.clone(), known).is_none() && before.is_some() {
                changes.push(Change::Came(node.id.clone()));
            }
        }
        let there: BTreeSet<_> = others.iter().map(|node| node.id.as_str()).collect();
        self.known.retain(|id, known| {
            if there.contains(id.as_str()) {
                return true;
            }
            if reaped.contains(id) {
                return false;
            }
            let since = *known.missing_since.get_or_insert(now);
            // A look that came late shows nothing of what was in between.
            let is_prompt = before.is_some_and(|before| now.saturating_duration_since(before) < 2 * known.period);
            let silent = since.saturating_duration_since(known.beat);
            let change = if known.is_stopping || told.contains(id) {
                Change::Left
            } else if since == now && is_prompt && silent * 2 > known.period * HALVES_TO_SILENT {
                Change::Died
            } else if now.saturating_duration_since(since) >= known.period * PERIODS_TO_MISSED {
                Change::Missing
            } else {
                return true;
            };
            changes.push(change(id.clone()));
            false
        });
        changes
    }

    /// Writes what changed, not without end. `instances` are there now.
    pub(super) fn say(&self, changes: &[Change], instances: usize) {
        for change in changes {
            let Some(left_out) = self.rarely.may(std::time::Instant::now()) else { continue };
            match change {
                Change::Came(node) => tracing::info!(node, instances, left_out, "an instance came"),
                Change::Left(node) => tracing::info!(node, instances, left_out, "an instance left"),
                Change::Missing(node) => tracing::info!(node, instances, left_out, "an instance is there no more"),
                Change::Died(node) => tracing::warn!(
                    node,
                    instances,
                    left_out,
                    "an instance has had no heartbeat for a while, and was taken for gone by another one"
                ),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: &str, status: Status, heartbeat_age_ms: u64) -> Node {
        Node { status, heartbeat_age_ms, ..Node::running(id) }
    }

    #[test]
    fn who_comes_and_goes_is_said_once_and_who_is_late_is_not() {
        let (mut roll, start) = (Roll::new(), Instant::now());
        let mut look = |at_s: u64, nodes: &[&Node], reaped: &[&str], told: &[&str]| {
            let (reaped, told): (Vec<_>, BTreeSet<_>) =
                (reaped.iter().map(|id| (*id).to_owned()).collect(), told.iter().map(|id| (*id).to_owned()).collect());
            roll.note(nodes, &reaped, &told, start + Duration::from_secs(at_s))
        };
        let at = |id: &str, age_s: u64| node(id, Status::Running, age_s * 1000);
        let (a, b, c) = (at("a", 1), at("b", 1), at("c", 1));
        assert_eq!(look(100, &[&a, &b], &[], &[]), [], "who was there before");
        assert_eq!(look(105, &[&a, &b, &c], &[], &[]), [Change::Came("c".into())]);
        assert_eq!(look(110, &[&a, &at("b", 12), &c], &[], &[]), [], "it is late");
        assert_eq!(look(115, &[&a, &b, &c], &[], &[]), [], "and there again");
        // A clean end is told, or was seen to begin.
        assert_eq!(look(116, &[&a, &b], &[], &["c"]), [Change::Left("c".into())]);
        assert_eq!(look(120, &[&a, &node("b", Status::Stopping, 0)], &[], &[]), []);
        assert_eq!(look(121, &[&a], &[], &[]), [Change::Left("b".into())]);
        // Redis was emptied, and has them again.
        assert_eq!(look(125, &[], &[], &[]), []);
        assert_eq!(look(126, &[&a], &[], &[]), []);
        // One falls silent and is removed by another one, or by this one.
        assert_eq!(look(130, &[&a, &b, &c], &[], &[]).len(), 2);
        assert_eq!(look(135, &[&at("a", 6), &b, &at("c", 6)], &[], &[]), []);
        assert_eq!(look(140, &[&at("a", 11), &b, &at("c", 11)], &[], &[]), []);
        assert_eq!(look(145, &[&b], &["c"], &[]), [Change::Died("a".into())]);
        assert_eq!(look(150, &[&b], &[], &[]), []);
        // Nobody knows, after a time without Redis.
        assert_eq!(look(250, &[], &[], &[]), []);
        assert_eq!(look(255, &[], &[], &[]), []);
        assert_eq!(look(266, &[], &[], &[]), [Change::Missing("b".into())]);
        assert_eq!(look(270, &[&b], &[], &[]), [Change::Came("b".into())]);
    }
}
