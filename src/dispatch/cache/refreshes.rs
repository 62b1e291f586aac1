//! How many results are made anew at once behind the old ones that are served: so many in all, and of one tool only some
//! of these, so that one whose runs hang leaves the others room.

use std::{collections::HashMap, sync::Arc};

use parking_lot::Mutex;

/// Beyond it old results are served on and not made anew.
const REFRESHES_MAX: usize = 64;
/// The same for the results of one tool.
const REFRESHES_OF_TOOL_MAX: usize = 16;

/// Those under way.
#[derive(Debug, Default)]
pub(super) struct Refreshes(Mutex<UnderWay>);

#[derive(Debug, Default)]
struct UnderWay {
    all: usize,
    /// Of tools of which there are some.
    of: HashMap<Box<str>, usize>,
}

/// One under way, until it is dropped.
#[derive(Debug)]
pub(crate) struct Refreshing {
    refreshes: Arc<Refreshes>,
    tool: Box<str>,
}

impl Refreshes {
    /// Room for one more of a tool, when there is some.
    pub(super) fn begin(self: &Arc<Self>, tool: &str) -> Option<Refreshing> {
        let mut under_way = self.0.lock();
        let of_tool = under_way.of.get(tool).copied().unwrap_or(0);
        if under_way.all >= REFRESHES_MAX || of_tool >= REFRESHES_OF_TOOL_MAX {
            return None;
        }
        under_way.all += 1;
        under_way.of.insert(tool.into(), of_tool + 1);
        Some(Refreshing { refreshes: Arc::clone(self), tool: tool.into() })
    }
}

impl Drop for Refreshing {
    fn drop(&mut self) {
        let mut under_way = self.refreshes.0.lock();
        under_way.all -= 1;
        if let Some(of_tool) = under_way.of.get_mut(&self.tool) {
            *of_tool -= 1;
            if *of_tool == 0 {
                under_way.of.remove(&self.tool);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_tool_leaves_the_others_room_and_all_have_an_end() {
        let refreshes = Arc::<Refreshes>::default();
        let hung: Vec<_> = std::iter::from_fn(|| refreshes.begin("hangs")).collect();
        assert_eq!(hung.len(), REFRESHES_OF_TOOL_MAX);
        let others: Vec<_> = (0..100).map_while(|tool: u32| refreshes.begin(&tool.to_string())).collect();
        assert_eq!(hung.len() + others.len(), REFRESHES_MAX);
        assert!(refreshes.begin("another").is_none());
        drop(hung);
        assert!(refreshes.begin("another").is_some() && refreshes.begin("hangs").is_some());
        drop(others);
        assert!(refreshes.0.lock().of.is_empty());
    }
}
