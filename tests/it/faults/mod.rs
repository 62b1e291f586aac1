//! The fault table: bad input over raw sockets, each row with its exact outcome. Every row runs alone and while good
//! clients call, and after each the gate must hold: the same process answers on a new connection, and holds no more
//! than before. What is wrong is collected, so that one run tells all of it.

mod calls;
mod connection;
mod head;
mod http;
mod json;
mod left_out;
mod limits;
mod place;
mod protocol;
mod rounds;
mod tools;
mod traffic;
mod wire;

use std::{
    collections::{BTreeMap, BTreeSet},
    io::Write,
};

use place::{Kind, Place};
use traffic::Traffic;

/// One row of the table.
#[derive(Clone, Copy)]
struct Row {
    id: &'static str,
    what: &'static str,
    /// The places where it is run.
    at: &'static [Kind],
    run: fn(&Place),
}

const fn row(id: &'static str, what: &'static str, at: &'static [Kind], run: fn(&Place)) -> Row {
    Row { id, what, at, run }
}

fn rows() -> impl Iterator<Item = Row> {
    [head::ROWS, http::ROWS, connection::ROWS, json::ROWS, protocol::ROWS, rounds::ROWS, calls::ROWS, limits::ROWS]
        .into_iter()
        .flatten()
        .copied()
}

/// What one place has found.
#[derive(Default)]
struct Found {
    runs: usize,
    good_calls: u64,
    faults: Vec<String>,
}

/// Runs all rows of a kind of place, first alone and then beside good clients.
fn run_at(kind: Kind) -> Found {
    let place = Place::start(kind);
    let mut found = Found::default();
    for beside in ["alone", "beside good clients"] {
        let traffic = (beside != "alone").then(|| Traffic::start(place.addr));
        place.settle();
        for row in rows().filter(|row| row.at.contains(&kind)) {
            place.noted("the row", || {
                (row.run)(&place);
                Ok(())
            });
            place.gate();
            found.runs += 1;
            let told = |fault: String| format!("{} ({}) at {kind:?}, {beside}: {fault}", row.id, row.what);
            found.faults.extend(place.take_faults().into_iter().map(told));
        }
        match traffic.map(Traffic::stop) {
            None => {}
            Some(Ok(calls)) => found.good_calls += calls,
            Some(Err(fault)) => found.faults.push(format!("{kind:?}: {fault}")),
        }
    }
    found
}

#[test]
fn bad_input_has_its_exact_outcome_and_hurts_nobody_else() {
    let found = [Kind::Program, Kind::OwnTools, Kind::Hurried].map(run_at);
    let runs: usize = found.iter().map(|f| f.runs).sum();
    let good_calls: u64 = found.iter().map(|f| f.good_calls).sum();
    let faults: Vec<_> = found.into_iter().flat_map(|f| f.faults).collect();
    report(runs, good_calls);
    assert!(good_calls > 100, "good clients have hardly called");
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

/// Says what was run and what was not, past the capture of the test's output.
fn report(runs: usize, good_calls: u64) {
    let all = left_out::ALL.split_whitespace().count();
    let mut text = format!(
        "\nfault table: {} of {all} rows of the groups H and J, in {runs} runs beside {good_calls} good calls\n",
        all - left_out::ROWS.len()
    );
    for (title, table) in [("left out", left_out::ROWS), ("in part", left_out::PARTS)] {
        table.iter().for_each(|(id, why)| text.push_str(&format!("  {title} {id:<4} {why}\n")));
    }
    std::io::stderr().lock().write_all(text.as_bytes()).expect("standard error is open");
}

#[test]
fn every_row_is_run_or_left_out_for_a_reason() {
    let all: BTreeSet<_> = left_out::ALL.split_whitespace().collect();
    let mut known: BTreeMap<&str, usize> = BTreeMap::new();
    rows().filter(|row| all.contains(row.id)).for_each(|row| *known.entry(row.id).or_default() += 1);
    left_out::ROWS.iter().for_each(|(id, _)| *known.entry(id).or_default() += 1);
    assert_eq!(known.keys().copied().collect::<BTreeSet<_>>(), all);
    assert!(known.values().all(|times| *times == 1), "a row is run once, or left out: {known:?}");
    let run: BTreeSet<_> = rows().map(|row| row.id).collect();
    let in_part: Vec<_> = left_out::PARTS.iter().filter(|(id, _)| !run.contains(id)).collect();
    assert!(in_part.is_empty(), "only what is run can be run in part: {in_part:?}");
    assert!(rows().all(|row| !row.at.is_empty()), "a row without a place does not run");
}
