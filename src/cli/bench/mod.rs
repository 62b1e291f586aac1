//! `bigiron bench`: from its arguments to what is measured and told. The load itself is `load`.

mod arguments;
mod output;

use std::{
    io::{self, Write},
    net::SocketAddr,
    path::PathBuf,
    process::ExitCode,
    sync::atomic::Ordering,
};

use serde_json::{Value, json};

pub(super) use self::arguments::Arguments;
use self::{
    arguments::{call_arguments, endpoint},
    output::{can_be_written, clear_line, progress_line, write_file},
};
use crate::{
    load::{
        self, Child, Plan, Progress, STOP, capacity,
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

/// What is told at the end, also of what was finished before a failure.
struct Told {
    text: String,
    svg: String,
    json: Value,
    result: Result<(), Failure>,
}

pub(super) fn run(arguments: Arguments) -> ExitCode {
    crate::runtime::raise_descriptor_limit();
    let result = match arguments.owner {
        Some(owner) => load::become_owned(owner, &arguments.owned).map(|never| match never {}).map_err(Failure::from),
        None => bench(arguments),
    };
    match result {
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
        bearer: super::credentials(arguments.key_file.as_deref())?,
        from: arguments.from,
        tool: arguments.tool.clone(),
        arguments: call_arguments,
        mode: arguments.mode,
        connections: arguments.connections.first().map_or(64, |n| *n as usize),
        rates: arguments.rate.first().copied().into_iter().collect(),
        arrivals: arguments.arrivals,
        warmup: arguments.warmup,
        duration: arguments.duration,
        timeout: arguments.timeout,
        retries: arguments.retries,
        threads: if arguments.threads == 0 { own.len() } else { arguments.threads.into() },
        repeats: arguments.repeats,
    };
    let loops = match (arguments.capacity, plan.rates.is_empty()) {
        (true, _) => "closed and open loops",
        (false, false) => "open loop",
        (false, true) => "closed loop",
    };
    let place = match &arguments.url {
        Some(_) => format!("server at {address}, threads of load: {}", plan.threads),
        None => compare::place(&cores),
    };
    let heading = table::heading(&plan, loops, &place);
    let mut progress = progress_line();
    let told = if arguments.capacity {
        capacity(&arguments, &plan, &cores, &host, &heading, &mut progress)
    } else if arguments.is_comparison() {
        comparison(&arguments, &plan, &cores, &heading, &mut progress)
    } else {
        sweep(&arguments, &plan, &cores, &heading, &mut progress)
    };
    clear_line();
    if !told.text.is_empty() {
        super::print(&format!("{heading}\n\n{}", told.text));
        write_file(arguments.json.as_deref(), || format!("{:#}\n", told.json))?;
        write_file(arguments.svg.as_deref(), || told.svg)?;
    }
    told.result
}

/// A row for each number of connections and each rate, on one server.
fn sweep(arguments: &Arguments, plan: &Plan, cores: &[usize], title: &str, progress: Progress<'_>) -> Told {
    let mut rows = Vec::new();
    let result = sweep_into(&mut rows, arguments, plan, cores, progress);
    let json = json!({ "tool": plan.tool, "mode": plan.mode.name(), "rows": rows.iter().map(Row::to_json).collect::<Vec<_>>() });
    Told { text: table::table(&rows), svg: plot::rows(title, &rows), json, result }
}

fn sweep_into(
    rows: &mut Vec<Row>,
    arguments: &Arguments,
    plan: &Plan,
    cores: &[usize],
    progress: Progress<'_>,
) -> Result<(), Failure> {
    let (servers, own) = split(cores);
    let child = match &arguments.url {
        Some(_) => None,
        None => Some(Child::start(arguments.tuning.first().map(PathBuf::as_path), &arguments.sets, servers, own)?),
    };
    let address = child.as_ref().map_or(plan.address, |child| child.address);
    load::probe(&Plan { address, ..plan.clone() })?;
    for connections in &arguments.connections {
        if arguments.continuous {
            let labels: Vec<_> =
                arguments.rate.iter().map(|rate| label(arguments, Some(*rate), *connections)).collect();
            let connections = *connections as usize;
            let plan = Plan { address, connections, rates: arguments.rate.clone(), ..plan.clone() };
            rows.extend(compare::measure_steps(&plan, &labels, child.as_ref(), progress)?);
            continue;
        }
        let rates: Vec<Option<f64>> =
            if arguments.rate.is_empty() { vec![None] } else { arguments.rate.iter().copied().map(Some).collect() };
        for rate in rates {
            if load::is_stopped() && !rows.is_empty() {
                return Ok(());
            }
            let label = label(arguments, rate, *connections);
            let plan =
                Plan { address, connections: *connections as usize, rates: rate.into_iter().collect(), ..plan.clone() };
            match compare::measure(&plan, &label, child.as_ref(), progress) {
                Err(_) if load::is_stopped() && !rows.is_empty() => return Ok(()),
                row => rows.push(row?),
            }
        }
    }
    Ok(())
}

/// What tells a row from the others.
fn label(arguments: &Arguments, rate: Option<f64>, connections: u32) -> String {
    match (rate, arguments.connections.len()) {
        (Some(rate), 1) => format!("rate {rate}"),
        (Some(rate), _) => format!("rate {rate}, {connections} conn."),
        (None, _) => format!("{connections} connections"),
    }
}

fn comparison(arguments: &Arguments, plan: &Plan, cores: &[usize], title: &str, progress: Progress<'_>) -> Told {
    let candidates: Vec<_> = arguments.tuning.iter().map(|file| server(arguments, Some(file))).collect();
    let rounds = arguments.rounds.unwrap_or(ROUNDS) as usize;
    let mut compared = Vec::new();
    let result = compare::compare(plan, &candidates, rounds, cores, &mut compared, progress);
    let of = |c: &compare::Compared| json!({ "name": c.name, "rounds": c.rounds.iter().map(Row::to_json).collect::<Vec<_>>() });
    let json =
        json!({ "tool": plan.tool, "mode": plan.mode.name(), "compared": compared.iter().map(of).collect::<Vec<_>>() });
    Told {
        text: table::comparison(&compared),
        svg: plot::compared(title, &compared),
        json,
        result: result.map_err(Failure::from),
    }
}

fn capacity(
    arguments: &Arguments,
    plan: &Plan,
    cores: &[usize],
    host: &Host,
    title: &str,
    progress: Progress<'_>,
) -> Told {
    let mut rows = Vec::new();
    let memory = host.memory_usable_bytes();
    let server = server(arguments, arguments.tuning.first());
    let found = capacity::find(plan, &server, cores, memory, arguments.p99, &mut rows, progress);
    let (text, svg) = (table::table(&rows), plot::rows(title, &rows));
    match found {
        Ok(found) => {
            let text = format!("{text}\n{}\n{}", found.summary(), found.fragment());
            Told { text, svg, json: found.to_json(&rows), result: Ok(()) }
        }
        Err(error) => {
            let json = json!({ "tool": plan.tool, "rows": rows.iter().map(Row::to_json).collect::<Vec<_>>() });
            Told { text, svg, json, result: Err(error.into()) }
        }
    }
}

fn server(arguments: &Arguments, tuning: Option<&PathBuf>) -> Candidate {
    let name = tuning.map_or_else(String::new, |file| file.display().to_string());
    Candidate { name, tuning: tuning.cloned(), sets: arguments.sets.clone() }
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
