//! What the instance that runs a task knows of it besides the record: whether to stop, what was asked, and how it
//! ended while the store does not know yet. Plain state under short locks; who waits on it is in `handle`.

use std::collections::HashSet;

use parking_lot::Mutex;
use tokio::{runtime, sync::watch};

use super::record::{Change, Record};

/// Questions of one task, over its life; their keys are remembered, since none may come twice.
pub(super) const QUESTIONS_MAX: usize = 1000;

/// A task that runs here.
#[derive(Debug)]
pub(super) struct Live {
    id: Box<str>,
    /// When its time is over, in milliseconds since 1970.
    ends_at_ms: u64,
    signal: watch::Sender<Signal>,
    end: Mutex<End>,
    /// The version of the record when this run began, where another was lost before; 0 for the first.
    since: u64,
    /// The keys of all questions so far.
    asked: Mutex<HashSet<Box<str>>>,
    /// The version that was last told of.
    told: Mutex<Option<u64>>,
    /// Where to finish what a drop begins. `None` leaves that to the sweep.
    runtime: Option<runtime::Handle>,
}

/// What a run is woken by.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Signal {
    /// The task has ended, for whatever reason.
    pub(super) is_over: bool,
    /// Counts reasons to look at the record.
    news: u64,
}

/// How far a task is with its end.
#[derive(Debug, Default)]
enum End {
    #[default]
    Open,
    /// It ended so, and the store is yet to hear of it.
    Pending(Change),
    /// The store has it.
    Settled,
}

impl Live {
    pub(super) fn new(id: &str, ends_at_ms: u64) -> Self {
        Self {
            id: id.into(),
            ends_at_ms,
            signal: watch::Sender::default(),
            end: Mutex::default(),
            since: 0,
            asked: Mutex::default(),
            told: Mutex::default(),
            runtime: runtime::Handle::try_current().ok(),
        }
    }

    /// The same for a task that another instance ran before, up to this version of its record.
    pub(super) fn again(id: &str, ends_at_ms: u64, since: u64) -> Self {
        Self { since, ..Self::new(id, ends_at_ms) }
    }

    pub(super) fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn runtime(&self) -> Option<&runtime::Handle> {
        self.runtime.as_ref()
    }

    /// Hears of every wake after this call.
    pub(super) fn subscribe(&self) -> watch::Receiver<Signal> {
        self.signal.subscribe()
    }

    pub(super) fn is_over(&self) -> bool {
        self.signal.borrow().is_over
    }

    /// The record has changed.
    pub(super) fn wake(&self, is_over: bool) {
        self.signal.send_modify(|signal| {
            signal.is_over |= is_over;
            signal.news += 1;
        });
    }

    /// Notes how the task ended. The first end counts; false for a later one.
    pub(super) fn end_with(&self, change: Change) -> bool {
        let mut end = self.end.lock();
        let is_first = matches!(*end, End::Open);
        if is_first {
            *end = End::Pending(change);
        }
        is_first
    }

    /// The end that the store is yet to hear of.
    pub(super) fn pending(&self) -> Option<Change> {
        if let End::Pending(change) = &*self.end.lock() { Some(change.clone()) } else { None }
    }

    /// The store knows of the end.
    pub(super) fn settle(&self) {
        *self.end.lock() = End::Settled;
        self.wake(true);
    }

    pub(super) fn is_settled(&self) -> bool {
        matches!(*self.end.lock(), End::Settled)
    }

    /// Whether its time is over.
    pub(super) fn is_overdue(&self, now_ms: u64) -> bool {
        now_ms >= self.ends_at_ms
    }

    /// Whether the sweep has something to do for it.
    pub(super) fn needs_sweep(&self, now_ms: u64) -> bool {
        match *self.end.lock() {
            End::Open => self.is_overdue(now_ms),
            End::Pending(_) => true,
            End::Settled => false,
        }
    }

    /// A key for each question that this task has not used before: the question's own at its first time, numbered
    /// later. `None` when the task has asked as much as it may.
    pub(super) fn name_questions<'k>(&self, keys: impl ExactSizeIterator<Item = &'k String>) -> Option<Vec<String>> {
        let mut asked = self.asked.lock();
        if asked.len() + keys.len() > QUESTIONS_MAX {
            return None;
        }
        let fresh = |key: &String| {
            // What the run before asked is not known here, only that it asked nothing of a version like this.
            let key = &if self.since == 0 { key.clone() } else { format!("{key}-v{}", self.since) };
            let names = std::iter::once(key.clone()).chain((2..).map(|n: usize| format!("{key}-{n}")));
            // One of so many names is new: the set holds fewer.
            let mut names = names.take(QUESTIONS_MAX + 1);
            names.find(|name| asked.insert(name.as_str().into())).unwrap_or_else(|| key.clone())
        };
        Some(keys.map(fresh).collect())
    }

    /// Tells of a record unless something newer was told before. One teller at a time, so that what a client hears
    /// last is the newest; `tell` must be short and not come back here.
    pub(super) fn tell(&self, record: &Record, tell: impl FnOnce(&Record)) {
        let mut told = self.told.lock();
        if told.is_none_or(|version| record.version > version) {
            *told = Some(record.version);
            tell(record);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    fn names(live: &Live, keys: &[&str]) -> Option<Vec<String>> {
        let keys: Vec<String> = keys.iter().map(|key| (*key).to_owned()).collect();
        live.name_questions(keys.iter())
    }

    #[test]
    fn no_key_comes_twice() {
        let live = Live::new("id", 0);
        assert_eq!(names(&live, &["a", "b"]), Some(vec!["a".into(), "b".into()]));
        assert_eq!(names(&live, &["a", "a-2"]), Some(vec!["a-2".into(), "a-2-2".into()]));
        assert_eq!(names(&live, &["a"]), Some(vec!["a-3".into()]));
    }

    #[test]
    fn a_second_run_asks_under_keys_of_its_own() {
        assert_eq!(names(&Live::again("id", 0, 7), &["a", "a"]), Some(vec!["a-v7".into(), "a-v7-2".into()]));
    }

    #[test]
    fn questions_are_limited() {
        let live = Live::new("id", 0);
        for n in 0..QUESTIONS_MAX {
            assert!(names(&live, &["a"]).is_some(), "question {n}");
        }
        assert_eq!(names(&live, &["b"]), None);
    }

    #[test]
    fn the_first_end_counts() {
        let live = Live::new("id", 1000);
        assert!(!live.needs_sweep(999));
        assert!(live.needs_sweep(1000));
        assert!(live.end_with(Change::Cancel));
        assert!(!live.end_with(Change::Working { message: None }));
        assert!(live.needs_sweep(0) && matches!(live.pending(), Some(Change::Cancel)));
        assert!(!live.is_over());
        live.settle();
        assert!(live.is_over() && live.is_settled() && !live.needs_sweep(2000) && live.pending().is_none());
    }

    #[test]
    fn old_news_is_not_told() {
        let live = Live::new("id", 0);
        let mut record = Record::new("id".into(), "owner", SystemTime::UNIX_EPOCH, 1, 1);
        let mut told = Vec::new();
        for version in [0, 2, 1, 2, 3] {
            record.version = version;
            live.tell(&record, |record| told.push(record.version));
        }
        assert_eq!(told, [0, 2, 3]);
    }
}
