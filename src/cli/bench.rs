//! `bigiron bench`: its arguments, its progress line, and where its results go. The load itself is `load`.

use std::{
    io::{self, IsTerminal, Write},
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    path::PathBuf,
    process::ExitCode,
    sync::atomic::Ordering,
    time::Duration,
};

use clap::Args;
use serde_json::{Value, json};

use crate::{
    load::{
        self, Arrivals, Child, Mode, Plan, STOP, capacity,
        compare::{self, Candidate, split},
        plot, table,
        table::Row,
    },
    runtime::Host,
};

/// Connections when nothing is said.
const CONNECTIONS_CLOSED: u32 = 64;
const CONNECTIONS_OPEN: u32 = 256;
/// A wrong command line: what clap says too.
const EXIT_USAGE: u8 = 2;

const AFTER_HELP: &str = "\
Examples:
  bigiron bench                                     echo on a server that is started for it, 64 connections, closed loop
  bigiron bench --tool burn --arguments '{\"ms\":2}' --rate 200,400,800
                                                    open loop: latency counts from when a call should have been sent
  bigiron bench --tuning a.toml --tuning b.toml     two configurations side by side, in turns
  bigiron bench --capacity --tool burn --arguments '{\"ms\":2}'
                                                    what this host can take, and the settings that follow
Exit codes: 0 also when calls were refused (the table says so), 1 when there is nothing to measure, 2 for a wrong
command line. Ctrl-C ends the load and tells what was measured until then.";

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Arguments {
    /// The endpoint of a server that runs, such as http://127.0.0.1:5000/mcp; without it one is started for this
    #[arg(long, conflicts_with_all = ["tuning", "capacity", "sets"])]
    url: Option<String>,

    /// File of settings for the server that is started; several are compared
    #[arg(long, value_name = "FILE")]
    tuning: Vec<PathBuf>,

    /// A setting for the server that is started, as for serve; may be repeated
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    sets: Vec<String>,

    /// The tool that is called
    #[arg(long, default_value = "echo")]
    tool: String,

    /// Its arguments, a JSON object; the default suits echo and burn
    #[arg(long, value_name = "JSON")]
    arguments: Option<String>,

    /// Revision: 2026-07-28 without sessions, 2025-11-25 with one for each connection, or half each
    #[arg(long, value_enum, default_value = "modern")]
    mode: Mode,

    /// Connections; a list makes a row for each
    ///
    /// Left out, it is 64 for a closed loop and 256 for an open one, whose calls wait when none is free.
    #[arg(long, value_delimiter = ',', value_parser = clap::value_parser!(u32).range(1..=100_000))]
    connections: Vec<u32>,

    /// Calls per second over all connections, by a timetable (open loop); a list makes a row for each. Without it each
    /// connection sends its next call when the last is answered (closed loop)
    #[arg(long, value_delimiter = ',', value_parser = rate)]
    rate: Vec<f64>,

    /// How the calls of an open loop come
    #[arg(long, value_enum, default_value = "poisson")]
    arrivals: Arrivals,

    /// How long each row is measured, such as 10s or 500ms
    #[arg(long, default_value = "10s", value_parser = duration)]
    duration: Duration,

    /// And how long before that it runs unmeasured
    #[arg(long, default_value = "2s", value_parser = duration)]
    warmup: Duration,

    /// For an answer
    #[arg(long, default_value = "30s", value_parser = duration)]
    timeout: Duration,

    /// How often a refused call is sent again, at once
    #[arg(long, default_value_t = 0)]
    retries: u32,

    /// Address that connections come from, to be another caller
    #[arg(long, value_name = "ADDRESS")]
    from: Option<IpAddr>,

    /// Threads of the generator; 0 is one for each core that the server does not have
    #[arg(long, default_value_t = 0)]
    threads: usize,

    /// Rounds of a comparison
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,

    /// How often a row is measured again when something else used the host meanwhile
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(0..=100))]
    repeats: u32,

    /// Find what this host can take of the tool
    #[arg(long)]
    capacity: bool,

    /// With --capacity: the latency that callers bear, at p99
    #[arg(long, value_parser = duration)]
    p99: Option<Duration>,

    /// Write the results as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,

    /// Draw the results
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,

    /// Allow a server on another host. Load on what is not yours is an attack
    #[arg(long)]
    allow_remote: bool,
}

fn duration(text: &str) -> Result<Duration, String> {
    let parsed = match text.strip_suffix("ms") {
        Some(ms) => ms.parse().map(|ms: f64| ms / 1e3),
        None => text.strip_suffix('s').unwrap_or(text).parse(),
    };
    let seconds = parsed.ok().filter(|s: &f64| s.is_finite() && (0.0..=86_400.0).contains(s));
    seconds.map(Duration::from_secs_f64).ok_or_else(|| "write seconds or milliseconds, such as 10s or 500ms".to_owned())
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|r: &f64| r.is_finite() && (0.1..=10_000_000.0).contains(r));
    rate.ok_or_else(|| "write calls per second, such as 500".to_owned())
}

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
    let call_arguments = call_arguments(&arguments)?;
    stop_on_interrupt()?;
    let cores = load::cores()?;
    let (_, own) = split(&cores);
    let (address, path) = match &arguments.url {
        Some(url) => endpoint(url, arguments.allow_remote)?,
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
        threads: if arguments.threads == 0 { own.len() } else { arguments.threads },
        repeats: arguments.repeats,
    };
    let mut progress = progress_line();
    let (text, rows, json) = if arguments.capacity {
        capacity(&arguments, &plan, &cores, &mut progress)?
    } else if arguments.tuning.len() > 1 {
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
    let compared = compare::compare(plan, &candidates, arguments.rounds as usize, cores, progress)?;
    let rows: Vec<Row> =
        compared.iter().filter_map(|c| Some(Row { label: c.name.clone(), ..c.middle()?.clone() })).collect();
    let of = |c: &compare::Compared| json!({ "name": c.name, "rounds": c.rounds.iter().map(Row::to_json).collect::<Vec<_>>() });
    let json =
        json!({ "tool": plan.tool, "mode": plan.mode.name(), "compared": compared.iter().map(of).collect::<Vec<_>>() });
    Ok((compare::comparison(&compared), rows, json))
}

fn capacity(arguments: &Arguments, plan: &Plan, cores: &[usize], progress: Progress<'_>) -> Result<Told, Failure> {
    let memory = Host::read().memory_usable_bytes();
    let found = capacity::find(plan, &arguments.sets, cores, memory, arguments.p99, progress)?;
    let text = format!("{}\n{}\n{}", table::table(&found.rows), found.summary(), found.fragment());
    let json = found.to_json();
    Ok((text, found.rows, json))
}

/// The tool's arguments, or what suits the tools that are there for measuring.
fn call_arguments(arguments: &Arguments) -> Result<Value, Failure> {
    let Some(text) = &arguments.arguments else {
        return match arguments.tool.as_str() {
            "echo" => Ok(json!({ "message": "hello" })),
            "burn" => Ok(json!({ "ms": 2 })),
            tool => Err(usage(format!("--arguments is missing: a JSON object with what {tool} takes"))),
        };
    };
    match serde_json::from_str(text) {
        Ok(value @ Value::Object(_)) => Ok(value),
        Ok(_) => Err(usage(format!("--arguments {text}: not an object; write such as '{{\"ms\": 2}}'"))),
        Err(error) => Err(usage(format!("--arguments {text}: not JSON: {error}"))),
    }
}

/// The address and path of an endpoint on this host, or on another when that is meant.
fn endpoint(url: &str, allow_remote: bool) -> Result<(SocketAddr, String), Failure> {
    let rest = url
        .strip_prefix("http://")
        .ok_or_else(|| usage(format!("--url {url}: only http:// is spoken here, such as http://127.0.0.1:5000/mcp")))?;
    let (host, path) =
        rest.split_once('/').map_or_else(|| (rest, "/mcp".to_owned()), |(host, path)| (host, format!("/{path}")));
    let address = host.to_socket_addrs().ok().and_then(|mut all| all.next());
    let address = address
        .ok_or_else(|| usage(format!("--url {url}: {host:?} is no host with a port, such as 127.0.0.1:5000")))?;
    if !address.ip().is_loopback() && !allow_remote {
        return Err(usage(format!(
            "--url {url}: {} is not this host; say --allow-remote when it is yours to put under load",
            address.ip()
        )));
    }
    Ok((address, path))
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

fn write_file(file: Option<&std::path::Path>, text: impl FnOnce() -> String) -> Result<(), Failure> {
    let Some(file) = file else { return Ok(()) };
    std::fs::write(file, text()).map_err(|error| Failure(1, format!("cannot write {}: {error}", file.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_seconds_or_milliseconds() {
        for (text, ms) in [("10s", 10_000), ("10", 10_000), ("500ms", 500), ("0.5s", 500), ("0s", 0)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
        }
        for text in ["", "s", "ms", "1m", "-1s", "1e9s", "NaN", "inf"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn only_this_host_is_put_under_load() {
        let of = |url: &str, remote: bool| endpoint(url, remote).map_err(|Failure(code, message)| (code, message));
        let local = SocketAddr::from(([127, 0, 0, 1], 5000));
        assert_eq!(of("http://127.0.0.1:5000", false).expect("local"), (local, "/mcp".to_owned()));
        assert_eq!(of("http://127.0.0.1:5000/a/b", false).expect("local"), (local, "/a/b".to_owned()));
        for url in
            ["https://127.0.0.1:5000", "127.0.0.1:5000", "http://127.0.0.1", "http://203.0.113.1:80/mcp", "http://:x"]
        {
            assert_eq!(of(url, false).expect_err(url).0, EXIT_USAGE, "{url}");
        }
        assert!(of("http://203.0.113.1:80/mcp", true).is_ok());
    }
}
