//! What came of all calls, so that it can be printed and added up.

use std::{fmt, time::Duration};

/// Of the calls of one kind of client.
#[derive(Debug, Default)]
pub(super) struct Tally {
    /// Calls that a client sent.
    pub(super) sent: usize,
    /// Calls that came to a result.
    pub(super) results: usize,
    /// Calls that came to an error which says that they may have run.
    pub(super) errors: usize,
    /// Calls whose connection broke, or which the balancer gave up, before their client had anything to come back with.
    pub(super) cut: usize,
    /// Calls that came to anything else: what.
    pub(super) odd: Vec<String>,
    /// Messages of calls, their ends included.
    pub(super) events: usize,
    /// From a broken stream to the answer that goes on with it, and to the first event of that.
    pub(super) resumed: Vec<Duration>,
    pub(super) went_on: Vec<Duration>,
    /// Progress that went back, or was told twice.
    pub(super) back: usize,
    /// Progress that was not told.
    pub(super) skipped: usize,
}

impl Tally {
    pub(super) fn add(&mut self, other: Self) {
        self.sent += other.sent;
        self.results += other.results;
        self.errors += other.errors;
        self.cut += other.cut;
        self.events += other.events;
        self.back += other.back;
        self.skipped += other.skipped;
        self.odd.extend(other.odd);
        self.resumed.extend(other.resumed);
        self.went_on.extend(other.went_on);
    }

    /// Each call has come to exactly one thing.
    pub(super) fn check(&self, what: &str) {
        assert_eq!(self.odd, [""; 0], "{what}");
        assert_eq!(self.sent, self.results + self.errors + self.cut, "{what}: {self}");
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sent, results, errors, cut, odd, events, back, skipped, .. } = self;
        write!(
            f,
            "{sent} calls = {results} results + {errors} errors + {cut} cut before they began + {} odd",
            odd.len()
        )?;
        write!(f, "; {events} events, progress {back} times back and {skipped} not told")?;
        let (resumed, went_on) = (p99(&self.resumed), p99(&self.went_on));
        write!(f, "; {} resumed, p99 {resumed:?}, and went on, p99 {went_on:?}", self.resumed.len())
    }
}

pub(super) fn p99(times: &[Duration]) -> Duration {
    let mut times = times.to_vec();
    times.sort_unstable();
    times.get((times.len() * 99).div_ceil(100).saturating_sub(1)).copied().unwrap_or_default()
}
