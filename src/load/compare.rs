//! Several configurations side by side: a server for each in turn, over several rounds, so that what else happens on the
//! host meets all of them. Of each the median over the rounds counts, and its ratio to the first.

use std::path::PathBuf;

use super::{
    Child, News, Plan, Progress, Result, Tally, Told, Usage,
    figures::{Figures, median},
    host::Cores,
    is_stopped, probe, run,
    table::{self, Row},
};

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
    let rows = measure_steps(plan, &[label.to_owned()], child, progress)?;
    rows.into_iter().next().ok_or_else(|| "stopped before anything was measured".into())
}

/// Measures steps that follow each other without a pause: a row for each that has begun.
pub(crate) fn measure_steps(
    plan: &Plan,
    labels: &[String],
    child: Option<&Child>,
    progress: Progress<'_>,
) -> Result<Vec<Row>> {
    let read = || -> Result<(Option<Usage>, Cores)> { Ok((child.map(Child::usage).transpose()?, Cores::read()?)) };
    let mut edges = Vec::new();
    let tallies = run(plan, |told| match told {
        Told::Edge => edges.push(read()),
        Told::Progress(passed, is_warming) => {
            let label = labels.get(edges.len().saturating_sub(1)).map_or("", String::as_str);
            progress(News::Running { label, passed, is_warming });
        }
    })?;
    while edges.len() <= labels.len() {
        edges.push(read()); // it was stopped
    }
    let mut edges = edges.into_iter().collect::<Result<Vec<_>>>()?.into_iter();
    let mut before = edges.next();
    let mut rows = Vec::new();
    for (step, (tally, label)) in tallies.into_iter().zip(labels).enumerate() {
        let (Some((used_before, cores_before)), Some((used, cores))) = (before, edges.next()) else { break };
        before = Some((used, cores));
        if tally.elapsed.is_zero() {
            break;
        }
        let used = used.map(|used| Usage {
            cpu: used.cpu.saturating_sub(used_before.unwrap_or_default().cpu),
            resident_bytes: used.resident_bytes,
        });
        let own = used.map(|used| used.cpu + tally.own_cpu);
        rows.push(Row {
            label: label.clone(),
            connections: plan.connections,
            rate: plan.rates.get(step).copied(),
            planned: plan.duration,
            disturbance: cores.since(cores_before, own),
            tally,
            used,
        });
    }
    Ok(rows)
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

impl Compared {
    /// Medians over the rounds.
    pub(crate) fn figures(&self) -> Option<Figures> {
        Figures::median(&self.rounds.iter().map(Figures::of).collect::<Vec<_>>())
    }

    /// Good answers as a ratio to another's in the same round: the median, the least and the most.
    pub(crate) fn ratio_to(&self, other: &Self) -> Option<(f64, f64, f64)> {
        let pairs = self.rounds.iter().zip(&other.rounds);
        let ratios: Vec<f64> = pairs
            .map(|(own, other)| own.tally.goodput() / other.tally.goodput())
            .filter(|ratio| ratio.is_finite())
            .collect();
        let (least, most) = ratios.iter().fold((f64::INFINITY, 0.0_f64), |(l, m), r| (l.min(*r), m.max(*r)));
        median(ratios).map(|middle| (middle, least, most))
    }

    /// How calls of all rounds ended that had no good answer.
    pub(crate) fn counts(&self) -> Vec<String> {
        let all = Tally::new().and_then(|mut all| {
            self.rounds.iter().try_for_each(|row| all.add(&row.tally))?;
            Ok(all)
        });
        all.map(|all| table::counts(&all)).unwrap_or_default()
    }
}

/// Which cores do what, in words.
pub(crate) fn place(cores: &[usize]) -> String {
    let (servers, own) = split(cores);
    let list = |cores: &[usize]| cores.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
    match servers == own {
        true => format!("server and load share core {}", list(own)),
        false => format!("server on core {}, load from core {}", list(servers), list(own)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_and_generator_have_cores_of_their_own() {
        assert_eq!(split(&[0]), (&[0][..], &[0][..]));
        assert_eq!(split(&[0, 1]), (&[0][..], &[1][..]));
        assert_eq!(split(&[0, 1, 2, 3, 4]), (&[0, 1][..], &[2, 3, 4][..]));
    }
}
