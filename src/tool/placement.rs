//! Where a tool runs when several instances serve it: everywhere, or only where it is placed. Which instances those are
//! is worked out elsewhere; here is what was wished for, and whether this instance is one of them, to be read by each call.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use crate::tool::Config;

/// The place of one tool.
#[derive(Debug)]
pub(crate) struct Placement {
    roles: Vec<String>,
    /// Instances that have it at most.
    spread: Option<usize>,
    /// Whether this instance can run it: it has one of the roles.
    is_fit: AtomicBool,
    /// Whether calls of it run here.
    is_here: AtomicBool,
}

impl Placement {
    /// None for a tool that is everywhere. Until it is said otherwise, it is here.
    pub(super) fn of(config: &Config) -> Option<Self> {
        config.is_placed().then(|| Self {
            roles: config.roles.clone().unwrap_or_default(),
            spread: config.spread,
            is_fit: AtomicBool::new(true),
            is_here: AtomicBool::new(true),
        })
    }

    pub(crate) fn is_here(&self) -> bool {
        self.is_here.load(Relaxed)
    }

    pub(crate) fn is_fit(&self) -> bool {
        self.is_fit.load(Relaxed)
    }

    /// Those that run it; none where any does.
    pub(crate) fn roles(&self) -> &[String] {
        &self.roles
    }

    pub(crate) fn spread(&self) -> Option<usize> {
        self.spread
    }

    /// Notes what this instance is for.
    pub(crate) fn fit_to(&self, own: &[String]) {
        let is_fit = self.roles.is_empty() || self.roles.iter().any(|role| own.contains(role));
        self.is_fit.store(is_fit, Relaxed);
        if !is_fit {
            self.is_here.store(false, Relaxed);
        }
    }

    /// Notes whether calls of it run here. Where it cannot run, they never do.
    pub(crate) fn set_here(&self, is_here: bool) {
        self.is_here.store(is_here && self.is_fit(), Relaxed);
    }

    /// Whether the same was wished for.
    pub(super) fn is_as(&self, other: &Self) -> bool {
        self.roles == other.roles && self.spread == other.spread
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tool_runs_where_a_role_fits() {
        let placed = |roles: &[&str], spread| {
            let roles = (!roles.is_empty()).then(|| roles.iter().map(|role| (*role).to_owned()).collect());
            Placement::of(&Config { roles, spread, ..Config::default() })
        };
        assert!(placed(&[], None).is_none(), "it is everywhere");
        let own = ["gpu".to_owned(), "big".to_owned()];
        for (roles, fits) in [(&[][..], true), (&["gpu"], true), (&["small", "big"], true), (&["small"], false)] {
            let placement = placed(roles, Some(1)).expect("placed");
            assert!(placement.is_here() && placement.is_fit(), "until it is said otherwise");
            placement.fit_to(&own);
            assert_eq!((placement.is_here(), placement.is_fit()), (fits, fits), "{roles:?}");
            placement.set_here(false);
            assert!(!placement.is_here());
            placement.set_here(true);
            assert_eq!(placement.is_here(), fits);
        }
    }
}
