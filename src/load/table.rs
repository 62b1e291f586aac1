//! Results as tables for a terminal: a row for each stretch of load, or for each configuration of a comparison, and
//! below them what the figures do not say by themselves.

use std::{fmt::Write, time::Duration};

use super::{
    Plan, Tally, Usage,
    compare::Compared,
    figures::{Figures, good_ns, quantile_ms},
    host::Disturbance,
};

const PER_CPU: &str = "calls/CPU: good answers for each second of the server's CPU time";
/// Of a label; longer ones lose their beginning, which is what paths have in common.
const LABEL_CHARS_MAX: usize = 40;

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

/// What was measured, how, and where: the line above a table, and the title of a plot.
pub(crate) fn heading(plan: &Plan, loops: &str, place: &str) -> String {
    format!(
        "{} ({}), {loops}, {} s after {} s of warm-up, {place}",
        plan.tool,
        plan.mode.name(),
        plan.duration.as_secs_f64(),
        plan.warmup.as_secs_f64()
    )
}

/// All rows.
pub(crate) fn table(rows: &[Row]) -> String {
    if rows.is_empty() {
        return String::new();
    }
    let figures: Vec<_> = rows.iter().map(Figures::of).collect();
    let of = |value: fn(&Figures) -> Option<f64>| figures.iter().map(value).collect::<Vec<_>>();
    let good = |quantile| rows.iter().map(|r| good_ns(&r.tally).and_then(|of| quantile_ms(of, quantile))).collect();
    let refused = rows.iter().map(|r| quantile_ms(&r.tally.refused_ns, 0.99)).collect();
    let labels: Vec<_> = rows.iter().map(|row| shortened(&row.label)).collect();
    let mut text = laid_out(
        &labels,
        &[
            numbers("offered/s", "", of(|f| f.offered)),
            numbers("good/s", "", of(|f| Some(f.good))),
            numbers("p50 ms", "", good(0.5)),
            numbers("p99 ms", "", good(0.99)),
            numbers("p99.9 ms", "", good(0.999)),
            numbers("max ms", "", good(1.0)),
            numbers("not ok", "%", of(|f| Some(f.not_ok_percent))),
            numbers("ref p99 ms", "", refused),
            numbers("calls/CPU", "", of(|f| f.per_cpu)),
        ],
    );
    for (label, row) in labels.iter().zip(rows) {
        for note in notes(row) {
            let _ = writeln!(text, "{label}: {note}");
        }
    }
    if figures.iter().any(|f| f.per_cpu.is_some()) {
        let _ = writeln!(text, "{PER_CPU}");
    }
    text
}

/// A row for each configuration: medians, and the ratio to the first with its spread over the rounds.
pub(crate) fn comparison(compared: &[Compared]) -> String {
    let measured: Vec<_> = compared.iter().filter_map(|c| Some((shortened(&c.name), c, c.figures()?))).collect();
    let Some((_, first, _)) = measured.first() else { return String::new() };
    let of = |value: fn(&Figures) -> Option<f64>| measured.iter().map(|(_, _, figures)| value(figures)).collect();
    let ratios = measured.iter().map(|(_, candidate, _)| match candidate.ratio_to(first) {
        Some((middle, least, most)) => format!("{middle:.2} ({least:.2} to {most:.2})"),
        None => "-".to_owned(),
    });
    let labels: Vec<_> = measured.iter().map(|(label, ..)| label.clone()).collect();
    let mut text = laid_out(
        &labels,
        &[
            numbers("offered/s", "", of(|f| f.offered)),
            numbers("good/s", "", of(|f| Some(f.good))),
            numbers("p50 ms", "", of(|f| f.p50_ms)),
            numbers("p99 ms", "", of(|f| f.p99_ms)),
            numbers("not ok", "%", of(|f| Some(f.not_ok_percent))),
            numbers("calls/CPU", "", of(|f| f.per_cpu)),
            Column { name: "ratio to the first", cells: ratios.collect() },
        ],
    );
    for (label, candidate, _) in &measured {
        for note in candidate.counts() {
            let _ = writeln!(text, "{label}, all rounds: {note}");
        }
        for (round, row) in candidate.rounds.iter().enumerate() {
            if let Some(doubt) = row.doubt() {
                let _ = writeln!(text, "{label}, round {}: {doubt}", round + 1);
            }
        }
    }
    let _ = writeln!(text, "medians over {} rounds; the ratio is of good/s, round by round", first.rounds.len());
    if measured.iter().any(|(_, _, figures)| figures.per_cpu.is_some()) {
        let _ = writeln!(text, "{PER_CPU}");
    }
    text
}

/// What a row's figures do not say: refusals, failures, and doubts.
pub(super) fn notes(row: &Row) -> Vec<String> {
    let mut notes = counts(&row.tally);
    notes.extend(row.doubt());
    notes
}

/// How calls ended that had no good answer.
pub(super) fn counts(tally: &Tally) -> Vec<String> {
    let refused = tally.refused.iter().map(|((status, code), count)| match (status, code) {
        (200, code) => format!("{count} answered with error {code}"),
        (status, 0) => format!("{count} refused with HTTP {status}"),
        (status, code) => format!("{count} refused with HTTP {status}, code {code}"),
    });
    let mut notes: Vec<_> = refused.collect();
    for (count, what) in [
        (tally.tool_errors, "tool errors"),
        (tally.broken, "broken connections"),
        (tally.timed_out, "calls without an answer in time"),
        (tally.not_sent, "calls that found no connection and were never sent"),
        (tally.unfinished, "calls under way at the end, which are not counted"),
        (tally.not_opened, "connections that could not be opened"),
        (tally.retried, "sent again after a refusal"),
    ] {
        if count > 0 {
            notes.push(format!("{count} {what}"));
        }
    }
    if tally.ok > 0 && good_ns(tally).is_none() {
        notes.push("no latencies: those of tool errors are among them".to_owned());
    }
    notes
}

struct Column {
    name: &'static str,
    cells: Vec<String>,
}

/// As many decimals in all cells as the smallest needs for three digits that mean something.
fn numbers(name: &'static str, unit: &str, values: Vec<Option<f64>>) -> Column {
    let least = values.iter().flatten().copied().filter(|value| *value > 0.0).fold(f64::INFINITY, f64::min);
    let decimals = match least {
        least if least >= 99.95 => 0,
        least if least >= 9.995 => 1,
        least if least >= 0.9995 => 2,
        _ => 3,
    };
    let cell = |value: Option<f64>| value.map_or_else(|| "-".to_owned(), |value| format!("{value:.decimals$}{unit}"));
    Column { name, cells: values.into_iter().map(cell).collect() }
}

/// Labels to the left, figures to the right. A column without a figure is left out.
fn laid_out(labels: &[String], columns: &[Column]) -> String {
    let width_of = |cells: &mut dyn Iterator<Item = &str>| cells.map(|cell| cell.chars().count()).max().unwrap_or(0);
    let columns: Vec<_> = columns
        .iter()
        .filter(|column| column.cells.iter().any(|cell| cell != "-"))
        .map(|column| (column, width_of(&mut column.cells.iter().map(String::as_str).chain([column.name]))))
        .collect();
    let label_width = width_of(&mut labels.iter().map(String::as_str));
    let mut text = " ".repeat(label_width);
    for (column, width) in &columns {
        let _ = write!(text, "  {:>width$}", column.name);
    }
    for (index, label) in labels.iter().enumerate() {
        let _ = write!(text, "\n{label:label_width$}");
        for (column, width) in &columns {
            let _ = write!(text, "  {:>width$}", column.cells[index]);
        }
    }
    text.push('\n');
    text
}

pub(super) fn shortened(label: &str) -> String {
    match label.chars().count().checked_sub(LABEL_CHARS_MAX) {
        Some(more) if more > 0 => format!("…{}", label.chars().skip(more + 1).collect::<String>()),
        _ => label.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::load::tally::End;

    fn row(label: &str, rate: Option<f64>, ms: u64) -> Row {
        let mut tally = Tally::new().expect("a tally");
        (tally.sent, tally.elapsed) = (10, Duration::from_secs(1));
        for _ in 0..8 {
            tally.end(End::Ok, Duration::from_millis(ms));
        }
        tally.end(End::Refused(503, -31503), Duration::from_micros(100));
        tally.end(End::Refused(200, -32602), Duration::from_micros(100));
        let (connections, used, disturbance) = (1, None, Disturbance::default());
        Row { label: label.into(), connections, rate, planned: Duration::from_secs(1), tally, used, disturbance }
    }

    #[test]
    fn columns_are_aligned_and_have_their_decimals() {
        let text = table(&[row("rate 1000", Some(10.0), 2), row("rate 20", Some(10.0), 1234)]);
        let lines: Vec<_> = text.lines().collect();
        let figures: Vec<Vec<_>> = lines[1..3].iter().map(|line| line.split_whitespace().skip(2).collect()).collect();
        assert!(figures[0][2].starts_with("2.0") && figures[1][2].starts_with("123"), "{text}");
        let decimals = |cell: &str| cell.split_once('.').map(|(_, digits)| digits.len());
        assert_eq!(decimals(figures[0][2]), decimals(figures[1][2]), "{text}");
        assert!(lines[..3].iter().all(|line| line.len() == lines[0].len() && line.len() <= 100), "{text}");
        assert!(
            lines[0].contains("offered/s") && lines[0].contains("ref p99 ms") && !lines[0].contains("CPU"),
            "{text}"
        );
        assert!(text.contains("rate 20: 1 refused with HTTP 503, code -31503"), "{text}");
        assert!(text.contains("rate 20: 1 answered with error -32602"), "{text}");
        let closed = table(&[row("1 connection", None, 2)]);
        assert!(!closed.contains("offered/s"), "{closed}");
    }

    #[test]
    fn a_comparison_tells_refusals_and_doubts() {
        let mut stopped = row("", None, 2);
        stopped.planned = Duration::from_secs(2);
        let name = format!("{}/a.toml", "folder/".repeat(9));
        let compared = [Compared { name, rounds: vec![row("", None, 2), stopped] }];
        let text = comparison(&compared);
        assert!(text.contains("/a.toml, all rounds: 2 refused with HTTP 503, code -31503"), "{text}");
        assert!(text.contains("/a.toml, round 2: stopped after 1.0 s of 2 s"), "{text}");
        assert!(text.contains("1.00 (1.00 to 1.00)"), "{text}");
        assert_eq!(comparison(&[]), "");
    }
}
