//! How many calls a core answers: bigiron beside bare hyper (the limit), stock rmcp and tower-mcp (the peers), in one run.
//!
//! `cargo bench --bench throughput` builds the peers, then for each row starts every server on one core, loads
//! them in turn from another core, window by window, and prints a table; all windows go to `throughput.json` in
//! the target directory. `-- --help` lists the options. Without `--bench`, as in `cargo test --benches`, it only
//! shows in two seconds that bigiron answers every row rightly under load.
//!
//! What the number does not mean: it is the cost of HTTP, JSON and dispatch around a tool that does nothing, over
//! loopback, from clients that never pause. It is not what a network, TLS, a real tool or a second core give, and
//! the latency is that of a server kept full. Ratios within a run carry over to other hosts; rates do not.

#![allow(clippy::print_stdout)] // the table is the product

mod support;

use std::{
    fs,
    io::Read,
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::{Parser, ValueEnum};
use serde_json::json;
use support::{
    Result,
    allocations::{Counting, count_if_asked},
    generator::Generator,
    process::{Server, allowed_cores, pin},
    requests::{Expected, Row, probe},
    servers::{Kind, Rig, build_peers},
    table::{self, Cell},
    tools::allocator::Allocator,
    window::{Load, Window},
};

#[global_allocator]
static ALLOCATOR: Counting<Allocator> = Counting(Allocator);

/// For how long allocations are counted.
const COUNTED: Duration = Duration::from_millis(400);
/// Tries at one window before its round goes without it.
const TRIES_MAX: usize = 3;

#[derive(Parser)]
#[command(name = "throughput")]
struct Args {
    /// Valid windows wanted for each server in each row.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=100))]
    windows: u16,
    /// Length of a window.
    #[arg(long, default_value = "3", value_parser = seconds)]
    seconds: Duration,
    /// Keep-alive connections, each with one call in flight.
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u16).range(1..=4096))]
    connections: u16,
    /// Rows to run; all without it.
    #[arg(long, value_delimiter = ',')]
    rows: Vec<Row>,
    /// Another server to measure, such as `node=node echo.mjs {port}`: its name and how to start it on loopback, at
    /// `/mcp`, with a tool `echo` that sends `message` back.
    #[arg(long, value_parser = other)]
    other: Vec<(&'static str, String)>,
    /// Servers to leave out.
    #[arg(long, value_delimiter = ',')]
    skip: Vec<Kind>,
    /// Another build of bigiron to measure, for instance a profile-guided one.
    #[arg(long)]
    bigiron: Option<PathBuf>,
    /// Worker threads of the peers; one fits their one core. bigiron finds its own number.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    peer_threads: u16,
    /// rmcp and tower-mcp with the allocator of the system, as they are where nobody chooses one; without it all have
    /// mimalloc, so that it is the servers that differ.
    #[arg(long)]
    system_allocator: bool,
    /// Core of the servers; by default the first that this process may use.
    #[arg(long)]
    server_core: Option<usize>,
    /// Core of the generator; by default the second.
    #[arg(long)]
    generator_core: Option<usize>,
    /// Said by `cargo bench`; without it the run is a short check.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    if let Err(error) = count_if_asked() {
        println!("throughput: allocations cannot be told: {error}");
        return ExitCode::FAILURE;
    }
    if let Some(code) = support::tools::serve_if_asked() {
        return code;
    }
    let mut args = Args::parse();
    if !args.bench {
        println!("a short check of bigiron alone; `cargo bench --bench throughput` measures");
        args.make_short();
    }
    match run(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => {
            println!("\nToo few windows counted: the figures are incomplete. Run it again on a quieter machine.");
            ExitCode::FAILURE
        }
        Err(error) => {
            println!("throughput: {error}");
            ExitCode::FAILURE
        }
    }
}

impl Args {
    fn make_short(&mut self) {
        self.windows = 1;
        self.seconds = Duration::from_millis(200);
        self.skip = Kind::ALL.into_iter().filter(|&kind| kind != Kind::Bigiron).collect();
    }

    fn kinds(&self, row: Row) -> Vec<Kind> {
        let wanted = |kind: &Kind| kind.takes_part_in(row) && !self.skip.contains(kind);
        let others = self.other.iter().map(|(name, _)| Kind::Other(name));
        Kind::ALL.into_iter().chain(others).filter(wanted).collect()
    }

    fn peer_features(&self) -> &[&str] {
        if self.system_allocator { &["system-allocator"] } else { &[] }
    }

    fn rows(&self) -> &[Row] {
        if self.rows.is_empty() { Row::value_variants() } else { &self.rows }
    }

    /// Two cores, and they must not be one: a generator beside the server measures the two of them.
    fn cores(&self) -> Result<(usize, usize)> {
        let allowed = allowed_cores()?;
        let (Some(&first), Some(&last)) = (allowed.first(), allowed.get(..2).unwrap_or(&allowed).last()) else {
            return Err("this process may use no core".into());
        };
        let (server, generator) = (self.server_core.unwrap_or(first), self.generator_core.unwrap_or(last));
        if server == generator && self.bench {
            return Err(format!("server and generator need a core each; both would be on core {server}").into());
        }
        Ok((server, generator))
    }
}

/// Runs all rows. False when a server fell short of the windows wanted.
fn run(args: &Args) -> Result<bool> {
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().ok_or("no target directory")?;
    let bigiron = args.bigiron.clone().unwrap_or_else(|| env!("CARGO_BIN_EXE_bigiron").into());
    let (server_core, generator_core) = args.cores()?;
    let with_peers = Kind::ALL.iter().any(|kind| *kind != Kind::Bigiron && !args.skip.contains(kind));
    // Built before this thread is bound to a core, so that the build has all of them.
    let peers = with_peers.then(|| build_peers(target, args.peer_features())).transpose()?;
    let rig = Rig {
        bigiron,
        peers: peers.unwrap_or_default(),
        peer_threads: args.peer_threads,
        others: args.other.clone(),
        folder: target.join("throughput"),
        server_core,
        generator_core,
    };
    fs::create_dir_all(&rig.folder)?;
    pin(generator_core)?;
    println!(
        "{} windows of {:?}, {} connections, server on core {server_core}, generator on core {generator_core}; {}",
        args.windows,
        args.seconds,
        args.connections,
        host()
    );
    if args.system_allocator {
        println!("rmcp and tower-mcp with the allocator of the system, the others with mimalloc");
    }

    let mut complete = true;
    let mut rows = Vec::new();
    for &row in args.rows() {
        let cells = run_row(args, row, &rig)?;
        complete &= cells.iter().all(|cell| cell.valid() >= usize::from(args.windows));
        rows.push(table::to_json(row, &cells));
    }
    if !args.bench {
        return Ok(complete);
    }
    let file = target.join("throughput.json");
    let report = json!({
        "host": host(), "window_s": args.seconds.as_secs_f64(), "connections": args.connections, "rows": rows,
    });
    fs::write(&file, format!("{report:#}\n"))?;
    println!("\nevery window: {}", file.display());
    Ok(complete)
}

/// All servers of a row at once, idle but for the one whose turn it is.
fn run_row(args: &Args, row: Row, rig: &Rig) -> Result<Vec<Cell>> {
    let mut contestants: Vec<Contestant> = Vec::new();
    let mut kinds = args.kinds(row);
    // The plain servers answer what the first real one answered.
    kinds.sort_by_key(|kind| kind.is_plain());
    let mut answer = Vec::new();
    for kind in kinds {
        let contestant = Contestant::start(kind, row, rig, &answer)?;
        if answer.is_empty() {
            answer = contestant.answer.clone();
        }
        contestants.push(contestant);
    }
    // As they were named, which for those that are not known beforehand is last.
    let place = |contestant: &Contestant| Kind::ALL.iter().position(|kind| *kind == contestant.cell.kind);
    contestants.sort_by_key(|contestant| place(contestant).unwrap_or(Kind::ALL.len()));
    if args.bench {
        for contestant in &mut contestants {
            contestant.count_allocations(row, rig)?;
        }
    }

    // As many rounds again, when windows are lost to other load.
    let wanted = usize::from(args.windows);
    for round in 0..wanted * 2 {
        if round >= wanted && contestants.iter().all(|contestant| contestant.cell.valid() >= wanted) {
            break;
        }
        for contestant in &mut contestants {
            contestant.measure(args, row, rig)?;
        }
    }
    let answer_bytes: Vec<usize> = contestants.iter().map(|contestant| contestant.answer.len()).collect();
    let cells: Vec<Cell> = contestants.into_iter().map(|contestant| contestant.cell).collect();
    if args.bench {
        table::print(row, &cells, &answer_bytes);
    } else {
        println!("{}: every answer was right", row.name());
    }
    Ok(cells)
}

/// A running server, what it must answer, and its windows so far.
struct Contestant {
    server: Server,
    expected: Expected,
    answer: Vec<u8>,
    cell: Cell,
}

impl Contestant {
    fn start(kind: Kind, row: Row, rig: &Rig, answer: &[u8]) -> Result<Self> {
        if kind.is_plain() && answer.is_empty() {
            return Err("bare hyper answers what another server answered: do not skip all of those".into());
        }
        let server = rig.start(kind, row, answer)?;
        let (expected, answer) = if kind.is_plain() {
            (Expected::fixed(row.status(), answer.to_vec()), answer.to_vec())
        } else {
            probe(row, server.address).map_err(|error| format!("{}: {error}", kind.name()))?
        };
        Ok(Self { server, expected, answer, cell: Cell::new(kind) })
    }

    /// In a process of its own, so that what is timed does not count.
    fn count_allocations(&mut self, row: Row, rig: &Rig) -> Result<()> {
        let kind = self.cell.kind;
        let Some((server, told_at)) = rig.start_counting(kind, row, &self.answer)? else { return Ok(()) };
        // Its own answers, which name the address that it listens on or not.
        let expected = match kind {
            _ if kind.is_plain() => Expected::fixed(row.status(), self.answer.clone()),
            _ => probe(row, server.address).map_err(|error| format!("{}: {error}", kind.name()))?.0,
        };
        let mut generator = Generator::start(row, server.address, 1, &expected, kind.is_plain())?;
        generator.drive(COUNTED / 4)?;
        let before = told(told_at)?;
        let driven = generator.drive(COUNTED)?;
        let allocations = told(told_at)? - before;
        generator.finish()?;
        self.cell.allocations = Some(allocations as f64 / driven.calls as f64);
        Ok(())
    }

    /// Its turn in a round: the first window that counts, of a few tries.
    fn measure(&mut self, args: &Args, row: Row, rig: &Rig) -> Result<()> {
        let name = self.cell.kind.name();
        let load = Load {
            row,
            connections: usize::from(args.connections),
            duration: args.seconds,
            expected: &self.expected,
            plain: self.cell.kind.is_plain(),
            server_core: rig.server_core,
            generator_core: rig.generator_core,
        };
        for _ in 0..TRIES_MAX {
            let window = Window::measure(&self.server, &load).map_err(|error| format!("{name}: {error}"))?;
            match window.fault() {
                // A short check asks for right answers, not for a quiet machine.
                Some(fault) if args.bench => {
                    println!("not counted: {}, {name}: {fault}", row.name());
                    self.cell.not_counted.push((window, fault));
                }
                _ => {
                    self.cell.rounds.push(Some(window));
                    return Ok(());
                }
            }
        }
        self.cell.rounds.push(None);
        Ok(())
    }
}

/// What a server says that it has allocated so far.
fn told(at: SocketAddr) -> Result<u64> {
    let mut text = String::new();
    TcpStream::connect(at)?.read_to_string(&mut text)?;
    Ok(text.parse()?)
}

fn other(text: &str) -> std::result::Result<(&'static str, String), String> {
    let (name, command) =
        text.split_once('=').ok_or("NAME=COMMAND is wanted, for instance node='node echo.mjs {port}'")?;
    Ok((String::leak(name.to_owned()), command.to_owned()))
}

fn seconds(text: &str) -> std::result::Result<Duration, String> {
    let duration = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    duration
        .filter(|duration| !duration.is_zero())
        .ok_or_else(|| "seconds above 0 are wanted, for instance 2.5".to_owned())
}

/// Cores and processor, for the reader of the table.
fn host() -> String {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model =
        cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": ")).map(|(_, name)| name);
    let cores = cpuinfo.lines().filter(|line| line.starts_with("processor")).count();
    format!("{cores} cores, {}", model.unwrap_or("processor unknown"))
}
