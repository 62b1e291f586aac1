//! Where the time of a call goes: a flame graph for each row that matters, of the server under the load of `throughput`.
//!
//! `cargo bench --bench flamegraphs` serves each row from a process that samples itself, loads it from another core, and
//! writes `flamegraphs/ROW.svg` and `flamegraphs/shares.tsv`, the same as a table that a diff can be read of. `-- --rows
//! a,b` draws some rows. What the graphs show is in `flamegraphs/README.md`.
//!
//! Samples are of CPU time, on every thread that has a part in calls. The kernel is not looked into: a system call counts
//! whole as the function of the C library that made it.

#![allow(clippy::print_stdout)] // says what it does

#[allow(dead_code)] // the other benches use the rest
mod support;

#[path = "support/fold.rs"]
mod fold;

use std::{fs, path::Path, process::Command, process::ExitCode, time::Duration};

use clap::Parser;
use support::{
    Result,
    generator::Generator,
    process::{Server, allowed_cores, free_address, pin},
    requests::{Row, probe},
    tools,
};

#[global_allocator]
static ALLOCATOR: tools::allocator::Allocator = tools::allocator::Allocator;

/// The rows that are drawn when none is named.
const ROWS: [Row; 7] =
    [Row::ModernEcho, Row::Cached10KB, Row::LegacyEcho, Row::ToolsList100, Row::Pool, Row::Progress, Row::RefusedRate];
/// As in `throughput`.
const CONNECTIONS: usize = 32;

#[derive(Parser)]
#[command(name = "flamegraphs")]
struct Args {
    /// Rows to draw; those that matter without it.
    #[arg(long, value_delimiter = ',')]
    rows: Vec<Row>,
    /// Seconds of load for each.
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Said by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    if let Some(code) = fold::serve_if_asked() {
        return code;
    }
    let args = Args::parse();
    if !args.bench {
        println!("`cargo bench --bench flamegraphs` draws");
        return ExitCode::SUCCESS;
    }
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("flamegraphs: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("flamegraphs");
    let scratch = Path::new(env!("CARGO_TARGET_TMPDIR"));
    fs::create_dir_all(&folder)?;
    let &[server_core, generator_core, ..] = allowed_cores()?.as_slice() else {
        return Err("server and generator need a core each".into());
    };
    pin(generator_core)?;
    let mut shares = fold::Shares::read(&folder.join("shares.tsv"));
    let rows = if args.rows.is_empty() { &ROWS[..] } else { &args.rows };
    for &row in rows {
        let address = free_address()?;
        let mut command = Command::new(std::env::current_exe()?);
        command.args(tools::arguments(address)).current_dir(scratch);
        command.args(row.settings().iter().flat_map(|set| ["--set", set]));
        let saved = scratch.join(format!("flamegraph-{}.folded", row.name()));
        fold::ask(&mut command, &saved);
        let log = scratch.join(format!("flamegraph-{}.log", row.name()));
        let server = Server::start(command, address, server_core, generator_core, &log)?;
        let (expected, _) = probe(row, address)?;
        let mut generator = Generator::start(row, address, CONNECTIONS, &expected, false)?;
        let driven = generator.drive(Duration::from_secs(args.seconds))?;
        generator.finish()?;
        server.stop()?;
        let drawn = folder.join(format!("{}.svg", row.name()));
        let stacks = fold::draw(&saved, &format!("{}: CPU time of the server", row.name()), &drawn)?;
        let samples = shares.take(row.name(), &stacks)?;
        println!("{}: {} calls, {samples} samples, {}", row.name(), driven.calls, drawn.display());
    }
    shares.write(&folder.join("shares.tsv"))
}
