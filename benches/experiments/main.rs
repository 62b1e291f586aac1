//! How bigiron behaves when it is too much: experiments on one host, each by one command, with what must hold and
//! whether it did.
//!
//! `cargo bench --bench experiments` runs all, and those that are named when some are: `-- overload`, `short-calls`,
//! `cores`, `metastability`, `fairness`, `wedged`, `memory`, `quota`, `pool`, `auth`, `tls`, `rate-limit`, `floods`, `timing`,
//! `hanging-issuer` and `cluster`. `--quick` makes every stretch shorter. Loads come from cores that the server does not
//! have. It fails when something did not hold. `memory` and `quota` need to be root, for cgroups of their own, and
//! `cluster` needs redis-server. `--bigiron PATH` tries another program.
#![allow(clippy::print_stdout, clippy::print_stderr)] // a bench tells what it found

mod auth;
mod caller;
mod cgroups;
mod cluster;
mod cores;
mod floods;
mod floor;
mod frames;
mod hanging_issuer;
mod issuer;
mod lab;
mod overload;
mod pool;
mod rate_limit;
/// The parser of answers of `bigiron bench`: what that does not read rightly, neither do these.
#[allow(dead_code)] // that one opens sessions, too
#[path = "../../src/load/reply.rs"]
mod reply;
mod timing;
mod tls;
mod wedged;

use std::{
    process::ExitCode,
    sync::atomic::{AtomicBool, Ordering},
};

use crate::lab::Lab;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;
type Experiment = fn(&Lab) -> Result<()>;

/// The tool that costs a known time on a thread of the pool.
const BURN: [&str; 4] = ["--tool", "burn", "--arguments", r#"{"ms":2}"#];

const EXPERIMENTS: [(&str, Experiment); 16] = [
    ("overload", overload::overload),
    ("short-calls", overload::short_calls),
    ("cores", cores::cores),
    ("metastability", overload::metastability),
    ("fairness", overload::fairness),
    ("wedged", wedged::wedged),
    ("memory", cgroups::memory),
    ("quota", cgroups::quota),
    ("pool", pool::pool),
    ("auth", auth::auth),
    ("tls", tls::tls),
    ("rate-limit", rate_limit::rate_limit),
    ("floods", floods::floods),
    ("timing", timing::timing),
    ("hanging-issuer", hanging_issuer::hanging_issuer),
    ("cluster", cluster::cluster),
];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    if let [name, answer] = &args[..]
        && name == floor::NAME
    {
        return floor::serve(answer).map_or_else(|error| failed(&*error), |()| ExitCode::SUCCESS);
    }
    let quick = args.iter().any(|arg| arg == "--quick");
    let named = args.iter().position(|arg| arg == "--bigiron");
    let program = named.and_then(|at| args.get(at + 1)).map_or(env!("CARGO_BIN_EXE_bigiron"), String::as_str);
    let is_name = |(at, arg): &(usize, &String)| !arg.starts_with("--") && named.is_none_or(|named| *at != named + 1);
    let wanted: Vec<&str> = args.iter().enumerate().filter(is_name).map(|(_, arg)| arg.as_str()).collect();
    let is_known = |wanted: &&&str| EXPERIMENTS.iter().any(|(name, _)| name == *wanted);
    if let Some(unknown) = wanted.iter().find(|wanted| !is_known(wanted)) {
        let names = EXPERIMENTS.map(|(name, _)| name).join(", ");
        return failed(&*Box::<dyn std::error::Error>::from(format!("there is no {unknown}; there are {names}")));
    }
    let lab = match Lab::new(program, quick) {
        Ok(lab) => lab,
        Err(error) => return failed(&*error),
    };
    for (name, run) in EXPERIMENTS {
        if wanted.is_empty() || wanted.contains(&name) {
            println!("\n## {name}\n");
            if let Err(error) = run(&lab) {
                return failed(&*error);
            }
        }
    }
    if ALL_HELD.load(Ordering::Relaxed) { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Whether everything has held so far.
static ALL_HELD: AtomicBool = AtomicBool::new(true);

fn failed(error: &dyn std::error::Error) -> ExitCode {
    eprintln!("experiments: {error}");
    ExitCode::FAILURE
}

/// Says whether something held.
fn verdict(what: &str, holds: bool, figure: String) {
    ALL_HELD.fetch_and(holds, Ordering::Relaxed);
    println!("{} {what}: {figure}", if holds { "held    " } else { "NOT HELD" });
}

/// The middle one; NaN of none.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
