//! What was invalidated: results carry the generations in which their run began, and count only while these are the
//! present ones. So an invalidation is one step whatever the number of results, and holds for runs under way.

use std::{
    collections::HashMap,
    sync::atomic::{AtomicU64, Ordering},
};

use parking_lot::RwLock;

/// Callers whose generation is remembered. Beyond it everything is invalidated, which is right and costs more.
const CALLERS_MAX: usize = 10_000;

/// The generations at one moment, of one tool and caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    all: u64,
    tool: u64,
    caller: u64,
}

impl Stamp {
    /// Whether all results that there were when it was made have been invalidated since.
    pub(super) fn is_before(self, all: u64) -> bool {
        self.all != all
    }
}

/// The present generations.
#[derive(Debug, Default)]
pub(super) struct Generations {
    all: AtomicU64,
    /// Whether there is one of a tool or caller, so that it costs nothing until then.
    some: AtomicU64,
    tools: RwLock<HashMap<String, u64>>,
    callers: RwLock<HashMap<String, u64>>,
}

impl Generations {
    /// Of results of one caller, or of everybody's.
    pub(super) fn stamp(&self, tool: &str, caller: Option<&str>) -> Stamp {
        let all = self.all();
        if self.some.load(Ordering::Acquire) == 0 {
            return Stamp { all, tool: 0, caller: 0 };
        }
        let of = |map: &RwLock<HashMap<String, u64>>, name: &str| map.read().get(name).copied().unwrap_or(0);
        Stamp { all, tool: of(&self.tools, tool), caller: caller.map_or(0, |caller| of(&self.callers, caller)) }
    }

    /// How often everything was invalidated.
    pub(super) fn all(&self) -> u64 {
        self.all.load(Ordering::Acquire)
    }

    pub(super) fn invalidate_all(&self) {
        self.all.fetch_add(1, Ordering::AcqRel);
    }

    /// Tools are those of the configuration, so they are few.
    pub(super) fn invalidate_tool(&self, tool: &str) {
        let next = self.some.fetch_add(1, Ordering::AcqRel) + 1;
        self.tools.write().insert(tool.to_owned(), next);
    }

    pub(super) fn invalidate_caller(&self, caller: &str) {
        let next = self.some.fetch_add(1, Ordering::AcqRel) + 1;
        let mut callers = self.callers.write();
        if callers.len() >= CALLERS_MAX && !callers.contains_key(caller) {
            self.invalidate_all();
            callers.clear(); // what carried their generations is of the past as a whole
        }
        callers.insert(caller.to_owned(), next);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_generation_ends_what_it_names_and_nothing_else() {
        let generations = Generations::default();
        let everybodys = generations.stamp("b", None);
        let stamps = || ["a", "b"].map(|tool| ["x", "y"].map(|caller| generations.stamp(tool, Some(caller))));
        let first = stamps();
        generations.invalidate_tool("a");
        let second = stamps();
        assert!(first[0] != second[0] && first[1] == second[1]);
        generations.invalidate_caller("y");
        let third = stamps();
        assert!(second[0][0] == third[0][0] && second[0][1] != third[0][1] && second[1][1] != third[1][1]);
        assert_eq!(generations.stamp("b", None), everybodys);
        generations.invalidate_all();
        assert!(stamps().iter().zip(&third).all(|(new, old)| new[0] != old[0] && new[1] != old[1]));
    }

    #[test]
    fn callers_are_not_remembered_without_end() {
        let generations = Generations::default();
        let before = generations.stamp("t", Some("0"));
        for caller in 0..=CALLERS_MAX {
            generations.invalidate_caller(&caller.to_string());
        }
        assert!(generations.callers.read().len() <= CALLERS_MAX);
        assert_ne!(generations.stamp("t", Some("0")), before);
    }
}
