//! `bigiron bench`: what it does with its arguments, its progress line, and where its results go. The load itself is
//! `load`.

mod arguments;

use std::{
    io::{self, IsTerminal, Write},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::atomic::Ordering,
    time::Duration,
};

use serde_json::{Value, json};

pub(super) use self::arguments::Arguments;
use self::arguments::{call_arguments, endpoint};
use crate::{
    load::{
        self, Child, Plan, STOP, capacity,
        compare::{self, Candidate, split},
        plot, table,
        table::Row,
    },
    runtime::Host,
};

/// Connections when nothing is said.
const CONNECTIONS_CLOSED: u32 = 64;
const CONNECTIONS_OPEN: u32 = 256;
const ROUNDS: u32 = 3;
/// A wrong command line: what clap says too.
const EXIT_USAGE: u8 = 2;

/// What went wrong, and the exit code for it.
struct Failure(u8, String);

impl<E: std::fmt::Display> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(1, error.to_string())
    }
}

fn usage(message: impl Into<String>) -> Failure {
    Failure(EXIT_USAGE, message.into())
}

pub(super) fn run(arguments: Arguments) -> ExitCode {
    crate::runtime::raise_descriptor_limit();
    match bench(arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Failure(code, message)) => {
            let _ = writeln!(io::stderr().lock(), "bigiron bench: {message}");
            ExitCode::from(code)
        }
    }
}

fn bench(mut arguments: Arguments) -> Result<(), Failure> {
    if arguments.connections.is_empty() {
        arguments.connections.push(if arguments.rate.is_empty() { CONNECTIONS_CLOSED } else { CONNECTIONS_OPEN });
    }
    let host = Host::read();
    arguments.check(host.descriptors_max).map_err(usage)?;
    let call_arguments = call_arguments(&arguments).map_err(usage)?;
    can_be_written(arguments.json.as_deref())?;
    can_be_written(arguments.svg.as_deref())?;
    stop_on_interrupt()?;
    let cores = load::cores()?;
    let (_, own) = split(&cores);
    let (address, path) = match &arguments.url {
        Some(url) => endpoint(url, arguments.allow_remote).map_err(usage)?,
        None => (SocketAddr::from(([127, 0, 0, 1], 0)), "/mcp".to_owned()),
    };
    let plan = Plan {
        address,
        path,
        from: arguments.from,
        tool: arguments.tool.clone(),
        arguments: call_arguments,
        mode: arguments.mode,
        connections: arguments.connections.first().map_or(64, |n| *n as usize),
        rate: arguments.rate.first().copied(),
        arrivals: arguments.arrivals,
        warmup: arguments.warmup,
        duration: arguments.duration,
        timeout: arguments.timeout,
        retries: arguments.retries,
        threads: if arguments.threads == 0 { own.len() } else { arguments.threads.into() },
        repeats: arguments.repeats,
    };
    let mut progress = progress_line();
    let (text, rows, json) = if arguments.capacity {
        capacity(&arguments, &plan, &cores, &mut progress)?
    } else if arguments.is_comparison() {
        comparison(&arguments, &plan, &cores, &mut progress)?
    } else {
        sweep(&arguments, &plan, &cores, &mut progress)?
    };
    clear_line();
    super::print(&text);
    let title = format!(
        "{} ({}), {}",
        plan.tool,
        plan.mode.name(),
        if plan.rate.is_some() { "open loop" } else { "closed loop" }
    );
    write_file(arguments.json.as_deref(), || format!("{json:#}\n"))?;
    write_file(arguments.svg.as_deref(), || plot::svg(&title, &rows))?;
    Ok(())
}

type Told = (String, Vec<Row>, Value);
type Progress<'a> = &'a mut dyn FnMut(&str, Duration, bool);

/// A row for each number of connections and each rate, on one server.
fn sweep(arguments: &Arguments, plan: &Plan, cores: &[usize], progress: Progress<'_>) -> Result<Told, Failure> {
    let (servers, own) = split(cores);
    let child = match &arguments.url {
        Some(_) => None,
        None => Some(Child::start(arguments.tuning.first().map(PathBuf::as_path), &arguments.sets, servers, own)?),
    };
    let address = child.as_ref().map_or(plan.address, |child| child.address);
    load::probe(&Plan { address, ..plan.clone() })?;
    let mut rows = Vec::new();
    for connections in &arguments.connections {
        let rates: Vec<Option<f64>> =
            if arguments.rate.is_empty() { vec![None] } else { arguments.rate.iter().copied().map(Some).collect() };
        for rate in rates {
            if STOP.load(Ordering::Relaxed) && !rows.is_empty() {
                break;
            }
            let label = match (rate, arguments.connections.len()) {
                (Some(rate), 1) => format!("rate {rate}"),
                (Some(rate), _) => format!("rate {rate}, {connections} conn."),
                (None, _) => format!("{connections} connections"),
            };
            let plan = Plan { address, connections: *connections as usize, rate, ..plan.clone() };
            rows.push(compare::measure(&plan, &label, child.as_ref(), progress)?);
        }
    }
    let json = json!({ "tool": plan.tool, "mode": plan.mode.name(), "rows": rows.iter().map(Row::to_json).collect::<Vec<_>>() });
    Ok((table::table(&rows), rows, json))
}

fn comparison(arguments: &Arguments, plan: &Plan, cores: &[usize], progress: Progress<'_>) -> Result<Told, Failure> {
    let candidates: Vec<_> = arguments
        .tuning
        .iter()
        .map(|file| Candidate {
            name: file.display().to_string(),
            tuning: Some(file.clone()),
            sets: arguments.sets.clone(),
        })
        .collect();
    let compared = compare::compare(plan, &candidates, arguments.rounds.unwrap_or(ROUNDS) as usize, cores, progress)?;
    let rows: Vec<Row> =
        compared.iter().filter_map(|c| Some(Row { label: c.name.clone(), ..c.middle()?.clone() })).collect();
    let of = |c: &compare::Compared| json!({ "name": c.name, "rounds": c.rounds.iter().map(Row::to_json).collect::<Vec<_>>() });
    let json =
        json!({ "tool": plan.tool, "mode": plan.mode.name(), "compared": compared.iter().map(of).collect::<Vec<_>>() });
    Ok((compare::comparison(&compared), rows, json))
}

fn capacity(arguments: &Arguments, plan: &Plan, cores: &[usize], progress: Progress<'_>) -> Result<Told, Failure> {
    let memory = Host::read().memory_usable_bytes();
    let found = capacity::find(
        plan,
        arguments.tuning.first().map(PathBuf::as_path),
        &arguments.sets,
        cores,
        memory,
        arguments.p99,
        progress,
    )?;
    let text = format!("{}\n{}\n{}", table::table(&found.rows), found.summary(), found.fragment());
    let json = found.to_json();
    Ok((text, found.rows, json))
}

/// The first Ctrl-C ends the load, the second the program.
fn stop_on_interrupt() -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::Builder::new().name("signals".into()).spawn(move || {
        runtime.block_on(async {
            for _ in 0..2 {
                if tokio::signal::ctrl_c().await.is_err() {
                    return;
                }
                if STOP.swap(true, Ordering::Relaxed) {
                    std::process::exit(130);
                }
            }
        });
    })?;
    Ok(())
}

/// Tells how it goes, once a second, where somebody may look.
fn progress_line() -> impl FnMut(&str, Duration, bool) {
    let looks = io::stderr().is_terminal();
    let mut last = u64::MAX;
    move |label, passed, warming| {
        if looks && passed.as_secs() != last {
            last = passed.as_secs();
            let state = if warming { ", warming up" } else { "" };
            let _ = write!(io::stderr().lock(), "\r\x1b[K{label}: {last} s{state}");
        }
    }
}

fn clear_line() {
    if io::stderr().is_terminal() {
        let _ = write!(io::stderr().lock(), "\r\x1b[K");
    }
}

/// Found out before the load, and not after it.
fn can_be_written(file: Option<&Path>) -> Result<(), Failure> {
    let Some(file) = file else { return Ok(()) };
    let is_new = !file.exists();
    if !is_new && !file.is_file() && !file.is_dir() {
        return Ok(()); // a pipe or the like, which opening would change
    }
    let opened = std::fs::OpenOptions::new().append(true).create(true).open(file);
    opened.map_err(|error| Failure(1, format!("cannot write {}: {error}", file.display())))?;
    if is_new {
        std::fs::remove_file(file)?;
    }
    Ok(())
}

fn write_file(file: Option<&Path>, text: impl FnOnce() -> String) -> Result<(), Failure> {
    let Some(file) = file else { return Ok(()) };
    std::fs::write(file, text()).map_err(|error| Failure(1, format!("cannot write {}: {error}", file.display())))
}
