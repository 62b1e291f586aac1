//! What came of the calls: counts that add up, and latencies.

use std::{collections::BTreeMap, time::Duration};

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use super::Result;

const LATENCY_NS_MAX: u64 = 600_000_000_000;

/// How one call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Ok,
    /// The tool said that it failed.
    ToolError,
    /// An error instead of a result: the HTTP status and the JSON-RPC code.
    Refused(u16, i32),
    /// The connection broke, or what came was no answer.
    Broken,
    /// No answer in time.
    TimedOut,
}

/// The counts of a stretch of load. Calls under way at its end are counted when they end.
#[derive(Clone, Debug)]
pub(crate) struct Tally {
    pub(crate) sent: u64,
    pub(crate) ok: u64,
    pub(crate) tool_errors: u64,
    pub(crate) refused: BTreeMap<(u16, i32), u64>,
    pub(crate) broken: u64,
    pub(crate) timed_out: u64,
    /// Calls of an open loop for which there was no connection for too long.
    pub(crate) not_sent: u64,
    /// Not answered when the load had ended, and not late either: they say nothing.
    pub(crate) unfinished: u64,
    /// Connections that could not be opened when others had broken.
    pub(crate) not_opened: u64,
    /// Sent again after a refusal; not counted as sent.
    pub(crate) retried: u64,
    /// From the moment when a call should have been sent.
    pub(crate) ok_ns: Histogram<u64>,
    pub(crate) refused_ns: Histogram<u64>,
    /// How much later than they should calls were sent although a connection was free: the generator's own fault.
    pub(crate) lag_ns: Histogram<u64>,
    pub(crate) elapsed: Duration,
    /// CPU time of the generator.
    pub(crate) own_cpu: Duration,
    pub(crate) threads: usize,
}

impl Tally {
    pub(crate) fn new() -> Result<Self> {
        let histogram = || Histogram::new_with_bounds(1_000, LATENCY_NS_MAX, 3);
        Ok(Self {
            sent: 0,
            ok: 0,
            tool_errors: 0,
            refused: BTreeMap::new(),
            broken: 0,
            timed_out: 0,
            not_sent: 0,
            unfinished: 0,
            not_opened: 0,
            retried: 0,
            ok_ns: histogram()?,
            refused_ns: histogram()?,
            lag_ns: histogram()?,
            elapsed: Duration::ZERO,
            own_cpu: Duration::ZERO,
            threads: 0,
        })
    }

    pub(crate) fn end(&mut self, end: End, took: Duration) {
        let ns = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        match end {
            End::Ok => {
                self.ok += 1;
                self.ok_ns.saturating_record(ns);
            }
            End::ToolError => self.tool_errors += 1,
            End::Refused(status, code) => {
                *self.refused.entry((status, code)).or_default() += 1;
                self.refused_ns.saturating_record(ns);
            }
            End::Broken => self.broken += 1,
            End::TimedOut => self.timed_out += 1,
        }
    }

    /// Takes in what another thread counted in the same time.
    pub(crate) fn add(&mut self, other: &Self) -> Result<()> {
        self.sent += other.sent;
        self.ok += other.ok;
        self.tool_errors += other.tool_errors;
        for (what, count) in &other.refused {
            *self.refused.entry(*what).or_default() += count;
        }
        self.broken += other.broken;
        self.timed_out += other.timed_out;
        self.not_sent += other.not_sent;
        self.unfinished += other.unfinished;
        self.not_opened += other.not_opened;
        self.retried += other.retried;
        self.ok_ns.add(&other.ok_ns)?;
        self.refused_ns.add(&other.refused_ns)?;
        self.lag_ns.add(&other.lag_ns)?;
        self.elapsed = self.elapsed.max(other.elapsed);
        self.own_cpu += other.own_cpu;
        self.threads += other.threads;
        Ok(())
    }

    /// Good answers per second.
    pub(crate) fn goodput(&self) -> f64 {
        per_second(self.ok, self.elapsed)
    }

    /// Calls that should have been answered.
    fn expected(&self) -> u64 {
        (self.sent + self.not_sent).saturating_sub(self.unfinished)
    }

    /// The same per second.
    pub(crate) fn offered(&self) -> f64 {
        per_second(self.expected(), self.elapsed)
    }

    /// The part of what was offered that got a good answer.
    pub(crate) fn success(&self) -> f64 {
        ratio(self.ok, self.expected())
    }

    /// The part of its time that the generator computed. Near 1 it measures itself.
    pub(crate) fn own_load(&self) -> f64 {
        let time = self.elapsed.as_secs_f64() * f64::from(u32::try_from(self.threads).unwrap_or(u32::MAX));
        if time > 0.0 { self.own_cpu.as_secs_f64() / time } else { 0.0 }
    }

    /// Why the figures are not to be trusted, if they are not.
    pub(crate) fn doubt(&self) -> Option<String> {
        let lag = Duration::from_nanos(self.lag_ns.value_at_quantile(0.99));
        if lag > Duration::from_millis(1) && !self.lag_ns.is_empty() {
            return Some(format!(
                "calls were sent up to {:.1} ms late by the generator itself",
                lag.as_secs_f64() * 1e3
            ));
        }
        // An open loop looks at the clock while it waits, and is never idle.
        let is_full = self.lag_ns.is_empty() && self.own_load() > 0.97;
        is_full.then(|| "the generator was busy all the time: it may be what is measured".to_owned())
    }

    /// All counts and percentiles.
    pub(crate) fn to_json(&self) -> Value {
        let refused: Vec<_> = self
            .refused
            .iter()
            .map(|((status, code), count)| json!({ "status": status, "code": code, "count": count }))
            .collect();
        json!({
            "elapsed_s": self.elapsed.as_secs_f64(),
            "sent": self.sent, "ok": self.ok, "tool_errors": self.tool_errors, "refused": refused,
            "broken": self.broken, "timed_out": self.timed_out, "not_sent": self.not_sent, "retried": self.retried,
            "unfinished": self.unfinished, "not_opened": self.not_opened,
            "goodput_per_s": self.goodput(), "offered_per_s": self.offered(), "success": self.success(),
            "ok_us": percentiles(&self.ok_ns), "refused_us": percentiles(&self.refused_ns),
            "generator_load": self.own_load(),
        })
    }
}

#[allow(clippy::cast_precision_loss)] // counts are far below 2^53
fn per_second(count: u64, elapsed: Duration) -> f64 {
    if elapsed.is_zero() { 0.0 } else { count as f64 / elapsed.as_secs_f64() }
}

#[allow(clippy::cast_precision_loss)]
fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// The percentiles that are told, in microseconds.
#[allow(clippy::cast_precision_loss)]
fn percentiles(of: &Histogram<u64>) -> Value {
    let at = |quantile: f64| of.value_at_quantile(quantile) as f64 / 1e3;
    json!({ "p50": at(0.5), "p90": at(0.9), "p99": at(0.99), "p99_9": at(0.999), "max": of.max() as f64 / 1e3 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_add_up_over_threads() {
        let mut all = Tally::new().expect("a tally");
        for _ in 0..2 {
            let mut one = Tally::new().expect("a tally");
            one.sent = 5;
            one.elapsed = Duration::from_secs(2);
            for end in [End::Ok, End::ToolError, End::Refused(503, -31503), End::Broken, End::TimedOut] {
                one.end(end, Duration::from_millis(1));
            }
            all.add(&one).expect("adds");
        }
        assert_eq!(
            (all.sent, all.ok, all.tool_errors, all.refused.values().sum::<u64>(), all.broken, all.timed_out),
            (10, 2, 2, 2, 2, 2)
        );
        assert!((all.goodput() - 1.0).abs() < 1e-9 && (all.success() - 0.2).abs() < 1e-9);
        assert_eq!(all.to_json()["refused"], json!([{ "status": 503, "code": -31503, "count": 2 }]));
    }
}
