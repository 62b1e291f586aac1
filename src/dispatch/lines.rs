//! What waits, in turn: a line for each caller, so that one caller with a thousand calls does not stand before another
//! with ten. With one caller it is first come, first served. How many may wait is said elsewhere; here nothing blocks.

use std::{
    collections::{HashMap, VecDeque},
    time::Instant,
};

use crate::call::Share;

/// Lines of callers.
#[derive(Debug)]
pub(crate) struct Lines<J> {
    by_caller: HashMap<Share, Line<J>>,
    /// Who has something waiting, the one whose turn it is first.
    turns: VecDeque<Share>,
    len: usize,
}

#[derive(Debug)]
struct Line<J> {
    waiting: VecDeque<(Instant, J)>,
    /// How many more it may send in this turn.
    left: u32,
}

impl<J> Default for Lines<J> {
    fn default() -> Self {
        Self { by_caller: HashMap::new(), turns: VecDeque::new(), len: 0 }
    }
}

impl<J> Lines<J> {
    /// Puts a job at the end of its caller's line.
    pub(crate) fn push(&mut self, caller: Share, now: Instant, job: J) {
        self.len += 1;
        let line = self.by_caller.entry(caller).or_insert_with(|| {
            self.turns.push_back(caller);
            Line { waiting: VecDeque::new(), left: caller.weight() }
        });
        line.waiting.push_back((now, job));
    }

    /// The job whose turn it is, and since when it waited.
    pub(crate) fn pop(&mut self) -> Option<(Instant, J)> {
        let caller = *self.turns.front()?;
        let line = self.by_caller.get_mut(&caller)?;
        let job = line.waiting.pop_front();
        self.len -= usize::from(job.is_some());
        line.left = line.left.saturating_sub(1);
        if line.waiting.is_empty() {
            self.by_caller.remove(&caller);
            self.turns.pop_front();
        } else if line.left == 0 {
            line.left = caller.weight();
            self.turns.rotate_left(1);
        }
        job
    }

    /// Makes room for a caller: takes the newest job of the one who has most waiting for its weight, when that is not
    /// the caller itself and has more than one job over the caller's own.
    pub(crate) fn make_room(&mut self, caller: Share) -> Option<J> {
        if self.len <= self.turns.len() {
            return None; // nobody has more than one waiting
        }
        let own = self.load(caller, 1);
        let (longest, load) =
            self.turns.iter().map(|other| (*other, self.load(*other, 0))).max_by(|a, b| a.1.total_cmp(&b.1))?;
        if longest == caller || load <= own {
            return None;
        }
        let line = self.by_caller.get_mut(&longest)?;
        let (_, job) = line.waiting.pop_back()?;
        self.len -= 1;
        if line.waiting.is_empty() {
            self.by_caller.remove(&longest);
            self.turns.retain(|other| *other != longest);
        }
        Some(job)
    }

    /// How many jobs of a caller wait, and `more`, by its weight.
    #[allow(clippy::cast_precision_loss)] // queues are short
    fn load(&self, caller: Share, more: usize) -> f64 {
        let waiting = self.by_caller.get(&caller).map_or(0, |line| line.waiting.len());
        (waiting + more) as f64 / f64::from(caller.weight())
    }

    /// Takes a certain job of a caller out.
    pub(crate) fn take(&mut self, caller: Share, is_it: impl Fn(&J) -> bool) -> Option<J> {
        let line = self.by_caller.get_mut(&caller)?;
        let place = line.waiting.iter().position(|(_, job)| is_it(job))?;
        let (_, job) = line.waiting.remove(place)?;
        self.len -= 1;
        if line.waiting.is_empty() {
            self.by_caller.remove(&caller);
            self.turns.retain(|other| *other != caller);
        }
        Some(job)
    }

    /// Keeps only what `is_wanted`.
    pub(crate) fn retain(&mut self, is_wanted: impl Fn(&J) -> bool) {
        for line in self.by_caller.values_mut() {
            line.waiting.retain(|(_, job)| is_wanted(job));
        }
        self.by_caller.retain(|_, line| !line.waiting.is_empty());
        self.turns.retain(|caller| self.by_caller.contains_key(caller));
        self.len = self.by_caller.values().map(|line| line.waiting.len()).sum();
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Since when a caller's oldest job waits.
    pub(crate) fn oldest_of(&self, caller: Share) -> Option<Instant> {
        Some(self.by_caller.get(&caller)?.waiting.front()?.0)
    }

    /// Since when the oldest job waits.
    pub(crate) fn oldest(&self) -> Option<Instant> {
        self.by_caller.values().filter_map(|line| Some(line.waiting.front()?.0)).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(lines: &mut Lines<&'static str>) -> String {
        std::iter::from_fn(|| lines.pop()).map(|(_, job)| job).collect()
    }

    #[test]
    fn callers_take_turns_by_weight() {
        let now = Instant::now();
        let (a, b, c) = (Share::new(1, 1), Share::new(2, 1), Share::new(3, 2));
        let mut lines = Lines::default();
        "A".repeat(6).char_indices().for_each(|_| lines.push(a, now, "A"));
        for _ in 0..2 {
            lines.push(b, now, "B");
        }
        for _ in 0..4 {
            lines.push(c, now, "C");
        }
        assert_eq!(lines.len(), 12);
        assert_eq!(order(&mut lines), "ABCCABCCAAAA");
        assert_eq!((lines.len(), lines.oldest()), (0, None));
    }

    #[test]
    fn one_caller_is_served_first_come_first_served() {
        let (caller, now) = (Share::new(1, 1), Instant::now());
        let mut lines = Lines::default();
        for job in ["1", "2", "3"] {
            lines.push(caller, now, job);
        }
        assert_eq!(lines.make_room(caller), None);
        assert_eq!(order(&mut lines), "123");
    }

    #[test]
    fn who_has_most_makes_room_for_who_has_less() {
        let now = Instant::now();
        let (a, b) = (Share::new(1, 1), Share::new(2, 1));
        let mut lines = Lines::default();
        for job in ["1", "2", "3"] {
            lines.push(a, now, job);
        }
        assert_eq!(lines.make_room(b), Some("3"));
        lines.push(b, now, "b");
        // Two of one and one of the other: taking a place would only turn that round.
        assert_eq!(lines.make_room(b), None);
        assert_eq!(lines.make_room(a), None);
        assert_eq!(order(&mut lines), "1b2");
    }
}
