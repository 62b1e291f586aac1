//! Results as a table for a terminal: a row for each stretch of load, at most 100 characters wide.

use std::{fmt::Write, time::Duration};

use super::{Tally, Usage, host::Disturbance};

/// A stretch of load and what came of it.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    /// What distinguishes it from the others, such as "rate 1000".
    pub(crate) label: String,
    pub(crate) connections: usize,
    pub(crate) rate: Option<f64>,
    /// How long it should have been measured.
    pub(crate) planned: Duration,
    pub(crate) tally: Tally,
    /// What the server used meanwhile, where that is known.
    pub(crate) used: Option<Usage>,
    pub(crate) disturbance: Disturbance,
}

impl Row {
    /// Good answers per second of the server's CPU time.
    #[allow(clippy::cast_precision_loss)]
    pub(crate) fn per_cpu_second(&self) -> Option<f64> {
        let used = self.used?.cpu.as_secs_f64();
        (used > 0.0).then(|| self.tally.ok as f64 / used)
    }

    /// Whether it was stopped before its end.
    pub(crate) fn is_cut_short(&self) -> bool {
        self.tally.elapsed < self.planned
    }

    /// Why the figures are not to be trusted, if they are not.
    pub(crate) fn doubt(&self) -> Option<String> {
        if self.is_cut_short() {
            let (elapsed, planned) = (self.tally.elapsed.as_secs_f64(), self.planned.as_secs_f64());
            return Some(format!("stopped after {elapsed:.1} s of {planned} s"));
        }
        self.tally.doubt().or_else(|| self.disturbance.told())
    }

    pub(crate) fn to_json(&self) -> serde_json::Value {
        let mut json = self.tally.to_json();
        json["label"] = self.label.clone().into();
        json["connections"] = self.connections.into();
        json["rate"] = self.rate.into();
        json["others_cores"] = self.disturbance.others.into();
        json["stolen_cores"] = self.disturbance.stolen.into();
        json["doubt"] = self.doubt().into();
        if let Some(used) = &self.used {
            json["server_cpu_s"] = used.cpu.as_secs_f64().into();
            json["server_resident_bytes"] = used.resident_bytes.into();
        }
        json
    }
}

/// All rows, and below them what the figures do not say by themselves.
pub(crate) fn table(rows: &[Row]) -> String {
    let mut text = String::new();
    let width = rows.iter().map(|row| row.label.chars().count()).max().unwrap_or(0).clamp(6, 22);
    let _ = writeln!(
        text,
        "{:width$}  {:>9} {:>8} {:>8} {:>8} {:>8} {:>8} {:>9} {:>9}",
        "", "good/s", "p50 ms", "p99 ms", "p99.9 ms", "max ms", "not ok", "ref p99", "calls/CPU"
    );
    for row in rows {
        let tally = &row.tally;
        let label: String = row.label.chars().take(width).collect();
        let ms = |of: &hdrhistogram::Histogram<u64>, quantile: f64| match of.is_empty() {
            true => "-".to_owned(),
            false => milliseconds(of.value_at_quantile(quantile)),
        };
        let share = if tally.sent + tally.not_sent == 0 { 0.0 } else { (1.0 - tally.success()) * 100.0 };
        let per_cpu = row.per_cpu_second().map_or_else(|| "-".to_owned(), |calls| format!("{calls:.0}"));
        let _ = writeln!(
            text,
            "{label:width$}  {:>9.0} {:>8} {:>8} {:>8} {:>8} {:>7.1}% {:>9} {per_cpu:>9}",
            tally.goodput(),
            ms(&tally.ok_ns, 0.5),
            ms(&tally.ok_ns, 0.99),
            ms(&tally.ok_ns, 0.999),
            ms(&tally.ok_ns, 1.0),
            share,
            ms(&tally.refused_ns, 0.99),
        );
    }
    for row in rows {
        for note in notes(row) {
            let _ = writeln!(text, "{}: {note}", row.label);
        }
    }
    text
}

/// What a row's figures do not say: refusals, failures, and doubts.
pub(super) fn notes(row: &Row) -> Vec<String> {
    let tally = &row.tally;
    let mut notes = Vec::new();
    for ((status, code), count) in &tally.refused {
        notes.push(format!("{count} refused with HTTP {status}, code {code}"));
    }
    for (count, what) in [
        (tally.tool_errors, "tool errors"),
        (tally.broken, "broken connections"),
        (tally.timed_out, "calls without an answer in time"),
        (tally.not_sent, "calls that found no connection and were never sent"),
        (tally.retried, "sent again after a refusal"),
    ] {
        if count > 0 {
            notes.push(format!("{count} {what}"));
        }
    }
    notes.extend(row.doubt());
    notes
}

/// Nanoseconds as milliseconds, with three digits that mean something.
#[allow(clippy::cast_precision_loss)]
fn milliseconds(ns: u64) -> String {
    let ms = ns as f64 / 1e6;
    match ms {
        ms if ms < 10.0 => format!("{ms:.3}"),
        ms if ms < 100.0 => format!("{ms:.2}"),
        ms => format!("{ms:.1}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::tally::End;

    #[test]
    fn rows_are_aligned_and_narrow() {
        let mut tally = Tally::new().expect("a tally");
        (tally.sent, tally.elapsed) = (10, Duration::from_secs(1));
        for _ in 0..9 {
            tally.end(End::Ok, Duration::from_micros(1234));
        }
        tally.end(End::Refused(503, -31503), Duration::from_micros(100));
        let row = |label: &str| Row {
            label: label.into(),
            connections: 1,
            rate: None,
            planned: Duration::from_secs(1),
            tally: tally.clone(),
            used: None,
            disturbance: Disturbance::default(),
        };
        let text = table(&[row("rate 1000"), row("a much longer label than there is room for, really")]);
        let lines: Vec<_> = text.lines().collect();
        assert!(lines.iter().take(3).all(|line| line.chars().count() <= 100), "{text}");
        assert!(lines[1].starts_with("rate 1000 ") && lines[1].contains("1.2") && lines[1].contains("10.0%"), "{text}");
        assert!(text.contains("rate 1000: 1 refused with HTTP 503, code -31503"), "{text}");
    }
}
