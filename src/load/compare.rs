//! Several configurations side by side: a server for each in turn, over several rounds, so that what else happens on the
//! host meets all of them. Of each the median over the rounds counts, and its ratio to the first.

use std::{fmt::Write, path::PathBuf};

use super::{Child, News, Plan, Progress, Result, Usage, host::Cores, is_stopped, probe, run, table::Row};

/// What is compared.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    pub(crate) name: String,
    pub(crate) tuning: Option<PathBuf>,
    pub(crate) sets: Vec<String>,
}

/// One configuration over all rounds.
#[derive(Clone, Debug)]
pub(crate) struct Compared {
    pub(crate) name: String,
    pub(crate) rounds: Vec<Row>,
}

/// The cores of servers, and of the generator: the first half and the rest; with one core, the same.
pub(crate) fn split(cores: &[usize]) -> (&[usize], &[usize]) {
    if cores.len() < 2 { (cores, cores) } else { cores.split_at(cores.len() / 2) }
}

/// Measures one stretch of load on a server that is there; again when something else disturbed it, and then the least
/// disturbed one counts.
pub(crate) fn measure(plan: &Plan, label: &str, child: Option<&Child>, progress: Progress<'_>) -> Result<Row> {
    let mut best = measure_once(plan, label, child, progress)?;
    for _ in 0..plan.repeats {
        if best.disturbance.told().is_none() || is_stopped() {
            break;
        }
        let again = measure_once(plan, label, child, progress)?;
        if !again.is_cut_short() && best.disturbance.is_worse_than(again.disturbance) {
            best = again;
        }
    }
    progress(News::Finished(&best));
    Ok(best)
}

fn measure_once(plan: &Plan, label: &str, child: Option<&Child>, progress: Progress<'_>) -> Result<Row> {
    let mut before: Option<(Usage, Cores)> = None;
    let tally = run(plan, |passed, warming| {
        if !warming && before.is_none() {
            let usage = child.and_then(|child| child.usage().ok()).unwrap_or_default();
            before = Cores::read().ok().map(|cores| (usage, cores));
        }
        progress(News::Running { label, passed, is_warming: warming });
    })?;
    if tally.elapsed.is_zero() {
        return Err("stopped before anything was measured".into());
    }
    let (after, cores) = (child.map(Child::usage).transpose()?, Cores::read()?);
    let (before, cores_before) = before.unwrap_or_else(|| (Usage::default(), cores));
    let used =
        after.map(|after| Usage { cpu: after.cpu.saturating_sub(before.cpu), resident_bytes: after.resident_bytes });
    let own = used.map(|used| used.cpu + tally.own_cpu);
    Ok(Row {
        label: label.to_owned(),
        connections: plan.connections,
        rate: plan.rate,
        planned: plan.duration,
        disturbance: cores.since(cores_before, own),
        tally,
        used,
    })
}

/// Runs the plan on each candidate, `rounds` times, or until it is stopped; then what is finished counts.
pub(crate) fn compare(
    plan: &Plan,
    candidates: &[Candidate],
    rounds: usize,
    cores: &[usize],
    compared: &mut Vec<Compared>,
    progress: Progress<'_>,
) -> Result<()> {
    let (servers, own) = split(cores);
    *compared = candidates.iter().map(|c| Compared { name: c.name.clone(), rounds: Vec::new() }).collect();
    'rounds: for round in 1..=rounds {
        for (candidate, compared) in candidates.iter().zip(&mut *compared) {
            let child = Child::start(candidate.tuning.as_deref(), &candidate.sets, servers, own)
                .map_err(|error| format!("{}: {error}", candidate.name))?;
            let plan = Plan { address: child.address, ..plan.clone() };
            probe(&plan).map_err(|error| format!("{}: {error}", candidate.name))?;
            let label = format!("{} ({round} of {rounds})", candidate.name);
            match measure(&plan, &label, Some(&child), progress) {
                Ok(row) if !row.is_cut_short() => compared.rounds.push(row),
                _ if is_stopped() => break 'rounds,
                other => return other.map(drop),
            }
        }
    }
    match compared.iter().all(|c| c.rounds.is_empty()) {
        true => Err("stopped before a round had ended".into()),
        false => Ok(()),
    }
}

/// The middle value; of an even number the lower of the two.
pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len().saturating_sub(1) / 2).copied().unwrap_or(f64::NAN)
}

impl Compared {
    pub(crate) fn median_of(&self, value: impl Fn(&Row) -> f64) -> f64 {
        median(self.rounds.iter().map(value).collect())
    }

    /// The row of the middle round, by good answers per second.
    pub(crate) fn middle(&self) -> Option<&Row> {
        let goodput = self.median_of(|row| row.tally.goodput());
        self.rounds.iter().min_by(|a, b| {
            let off = |row: &Row| (row.tally.goodput() - goodput).abs();
            off(a).total_cmp(&off(b))
        })
    }
}

/// A row for each configuration: medians, and the ratio to the first with its spread over the rounds.
pub(crate) fn comparison(compared: &[Compared]) -> String {
    let mut text = String::new();
    let width = compared.iter().map(|c| c.name.chars().count()).max().unwrap_or(0).clamp(6, 34);
    let _ = writeln!(
        text,
        "{:width$}  {:>9} {:>8} {:>8} {:>8} {:>9}  ratio to the first",
        "", "good/s", "p50 ms", "p99 ms", "not ok", "calls/CPU"
    );
    let Some(first) = compared.first() else { return text };
    for candidate in compared {
        let ms = |quantile: f64| {
            #[allow(clippy::cast_precision_loss)]
            candidate.median_of(|row| row.tally.ok_ns.value_at_quantile(quantile) as f64 / 1e6)
        };
        let pairs: Vec<f64> = candidate
            .rounds
            .iter()
            .zip(&first.rounds)
            .map(|(own, first)| own.tally.goodput() / first.tally.goodput())
            .collect();
        let (least, most) = pairs.iter().fold((f64::INFINITY, 0.0_f64), |(l, m), r| (l.min(*r), m.max(*r)));
        let name: String = candidate.name.chars().take(width).collect();
        let _ = writeln!(
            text,
            "{name:width$}  {:>9.0} {:>8.3} {:>8.3} {:>7.1}% {:>9.0}  {:.2} ({least:.2} to {most:.2})",
            candidate.median_of(|row| row.tally.goodput()),
            ms(0.5),
            ms(0.99),
            candidate.median_of(|row| (1.0 - row.tally.success()) * 100.0),
            candidate.median_of(|row| row.per_cpu_second().unwrap_or(0.0)),
            median(pairs),
        );
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_the_middle() {
        assert!((median(vec![3.0, 1.0, 2.0]) - 2.0).abs() < 1e-9);
        assert!((median(vec![4.0, 1.0, 2.0, 3.0]) - 2.0).abs() < 1e-9);
        assert!(median(Vec::new()).is_nan());
    }

    #[test]
    fn servers_and_generator_have_cores_of_their_own() {
        assert_eq!(split(&[0]), (&[0][..], &[0][..]));
        assert_eq!(split(&[0, 1]), (&[0][..], &[1][..]));
        assert_eq!(split(&[0, 1, 2, 3, 4]), (&[0, 1][..], &[2, 3, 4][..]));
    }
}
