//! What waits, in turn: a line for each caller, so that one caller with a thousand calls does not stand before another
//! with ten. Who had nothing waiting comes first, once, and then takes turns like the others; some places stay with
//! those. With one caller it is first come, first served. How many may wait is said elsewhere; here nothing blocks.

use std::{
    collections::{HashMap, VecDeque},
    time::Instant,
};

use crate::call::Share;

/// Places in a row that go to callers who are new while others wait.
const NEW_IN_A_ROW_MAX: u32 = 8;
/// Callers without anything waiting who are remembered, besides as many as have something: they took their turn, and
/// are not new when they come again before the others have taken theirs.
const IDLE_MAX: usize = 64;

/// Lines of callers.
#[derive(Debug)]
pub(crate) struct Lines<J> {
    by_caller: HashMap<Share, Line<J>>,
    /// Callers who had nothing waiting, the one whose turn it is first.
    new: VecDeque<Share>,
    /// All others.
    turns: VecDeque<Share>,
    /// How many of the last places went to callers who were new.
    new_in_a_row: u32,
    len: usize,
    /// Callers who have something waiting.
    active: usize,
}

#[derive(Debug)]
struct Line<J> {
    waiting: VecDeque<(Instant, J)>,
    /// How many more it may send in this turn.
    left: u32,
}

impl<J> Default for Lines<J> {
    fn default() -> Self {
        Self {
            by_caller: HashMap::new(),
            new: VecDeque::new(),
            turns: VecDeque::new(),
            new_in_a_row: 0,
            len: 0,
            active: 0,
        }
    }
}

impl<J> Lines<J> {
    /// Puts a job at the end of its caller's line.
    pub(crate) fn push(&mut self, caller: Share, now: Instant, job: J) {
        let line = self.by_caller.entry(caller).or_insert_with(|| {
            self.new.push_back(caller);
            Line { waiting: VecDeque::new(), left: caller.weight() }
        });
        self.len += 1;
        self.active += usize::from(line.waiting.is_empty());
        line.waiting.push_back((now, job));
    }

    /// The job whose turn it is, and since when it waited.
    pub(crate) fn pop(&mut self) -> Option<(Instant, J)> {
        if self.len == 0 {
            self.forget_idle(); // nobody's turn is over before another's
            return None;
        }
        loop {
            let from_new = !self.new.is_empty() && (self.new_in_a_row < NEW_IN_A_ROW_MAX || self.turns.is_empty());
            let caller = if from_new { self.new.pop_front() } else { self.turns.pop_front() }?;
            let Some(line) = self.by_caller.get_mut(&caller) else { continue };
            let Some(job) = line.waiting.pop_front() else {
                self.by_caller.remove(&caller); // a whole turn without a job: it is new when it comes again
                continue;
            };
            self.new_in_a_row = if from_new { self.new_in_a_row.saturating_add(1) } else { 0 };
            self.len -= 1;
            self.active -= usize::from(line.waiting.is_empty());
            line.left = line.left.saturating_sub(1);
            if line.left == 0 || line.waiting.is_empty() {
                line.left = caller.weight();
                self.turns.push_back(caller);
            } else {
                self.turns.push_front(caller);
            }
            if self.turns.len() > 2 * self.active + IDLE_MAX {
                self.forget_idle();
            }
            return Some(job);
        }
    }

    fn waiting_of(&self, caller: Share) -> usize {
        self.by_caller.get(&caller).map_or(0, |line| line.waiting.len())
    }

    fn forget_idle(&mut self) {
        self.by_caller.retain(|_, line| !line.waiting.is_empty());
        self.turns.retain(|caller| self.by_caller.contains_key(caller));
        self.new.retain(|caller| self.by_caller.contains_key(caller));
    }

    /// Makes room for a caller: takes the newest job of the one who has most waiting for its weight, when that is not
    /// the caller itself and has more than one job over the caller's own.
    pub(crate) fn make_room(&mut self, caller: Share) -> Option<J> {
        if self.len <= self.active {
            return None; // nobody has more than one waiting
        }
        let own = self.load(caller, 1);
        let all = self.by_caller.keys().map(|other| (*other, self.load(*other, 0)));
        let (longest, load) = all.max_by(|a, b| a.1.total_cmp(&b.1))?;
        if longest == caller || load <= own {
            return None;
        }
        let line = self.by_caller.get_mut(&longest)?;
        let (_, job) = line.waiting.pop_back()?;
        self.len -= 1;
        self.active -= usize::from(line.waiting.is_empty());
        Some(job)
    }

    /// How many jobs of a caller wait, and `more`, by its weight.
    #[allow(clippy::cast_precision_loss)] // queues are short
    fn load(&self, caller: Share, more: usize) -> f64 {
        (self.waiting_of(caller) + more) as f64 / f64::from(caller.weight())
    }

    /// Takes a certain job of a caller out.
    pub(crate) fn take(&mut self, caller: Share, is_it: impl Fn(&J) -> bool) -> Option<J> {
        let line = self.by_caller.get_mut(&caller)?;
        let place = line.waiting.iter().position(|(_, job)| is_it(job))?;
        let (_, job) = line.waiting.remove(place)?;
        self.len -= 1;
        self.active -= usize::from(line.waiting.is_empty());
        // Where nothing is popped any more, those who come and leave would be kept for ever.
        if self.by_caller.len() > 2 * self.active + IDLE_MAX {
            self.forget_idle();
        }
        Some(job)
    }

    /// Keeps only what `is_wanted`.
    pub(crate) fn retain(&mut self, is_wanted: impl Fn(&J) -> bool) {
        for line in self.by_caller.values_mut() {
            line.waiting.retain(|(_, job)| is_wanted(job));
        }
        self.forget_idle();
        self.len = self.by_caller.values().map(|line| line.waiting.len()).sum();
        self.active = self.by_caller.len();
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
    fn who_is_new_comes_first_once() {
        let now = Instant::now();
        let (a, b) = (Share::new(1, 1), Share::new(2, 1));
        let mut lines = Lines::default();
        for job in ["1", "2", "3", "4"] {
            lines.push(a, now, job);
        }
        assert_eq!(lines.pop().map(|(_, job)| job), Some("1"));
        lines.push(b, now, "b");
        assert_eq!(lines.pop().map(|(_, job)| job), Some("b"), "before the others of who was there");
        lines.push(b, now, "c");
        assert_eq!(lines.pop().map(|(_, job)| job), Some("2"), "but it has had its turn");
        assert_eq!(order(&mut lines), "c34");
    }

    #[test]
    fn callers_who_are_new_without_end_leave_places_and_are_forgotten() {
        let now = Instant::now();
        let old = Share::new(0, 1);
        let mut lines = Lines::default();
        (0..200).for_each(|_| lines.push(old, now, "old"));
        lines.pop();
        let mut served = 0;
        for n in 1..=900 {
            lines.push(Share::new(n, 1), now, "new");
            served += u64::from(lines.pop().is_some_and(|(_, job)| job == "old"));
            assert!(lines.turns.len() + lines.new.len() <= 2 * lines.active + IDLE_MAX + 1);
        }
        assert_eq!(served, 100);
        while lines.pop().is_some() {}
        assert_eq!((lines.pop(), lines.by_caller.len(), lines.active), (None, 0, 0));
    }

    #[test]
    fn callers_who_come_and_leave_are_forgotten_though_nothing_is_popped() {
        let now = Instant::now();
        let mut lines = Lines::default();
        lines.push(Share::new(0, 1), now, "stays");
        for n in 1..=900 {
            lines.push(Share::new(n, 1), now, "leaves");
            assert_eq!(lines.take(Share::new(n, 1), |_| true), Some("leaves"));
            assert!(lines.by_caller.len() + lines.new.len() <= 2 * (2 * lines.active + IDLE_MAX + 1));
        }
        assert_eq!(order(&mut lines), "stays");
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
