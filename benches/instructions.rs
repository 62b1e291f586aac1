//! Instructions of a call in user space, counted by callgrind: a table that does not depend on the machine's mood.
//!
//! `cargo bench --bench instructions` counts each row for bigiron and for bare hyper answering the same bytes, with and
//! without parsing the body, and fails when bigiron's figure is more than 5 % above the one in
//! `benches/instructions.tsv`. `-- --accept` writes the figures there; `-- --rows a,b` counts some rows. It also counts
//! allocations, and looks that no kept result is serialised again. It needs valgrind (`apt-get install valgrind`).
//!
//! What it does not say: system calls are the kernel's, so they count nothing here; nor do waits and cache misses.
#![allow(clippy::print_stdout)] // the table is the product

#[allow(dead_code)] // the other benches use the rest
mod support;

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    thread,
    time::{Duration, Instant},
};

use clap::{Parser, ValueEnum};
use rustix::process::{Pid, Signal, kill_process};
use support::{
    Result,
    process::free_address,
    reply::Reply,
    requests::{Request, Row, connect, open_session, probe},
    servers::{bare_arguments, build_peers},
    tools,
};

#[global_allocator]
static ALLOCATOR: tools::allocator::Allocator = tools::allocator::Allocator;

/// Calls before counting, so that everything is there that grows once.
const WARM_UP: usize = 200;
const COUNTED: usize = 500;
/// Growth that fails.
const GROWTH_MAX: f64 = 1.05;
/// Under valgrind a start takes its time.
const START_TIMEOUT: Duration = Duration::from_secs(120);
/// Functions of the allocator that give memory out.
const ALLOCATES: [&str; 6] = ["mi_malloc", "mi_zalloc", "mi_calloc", "mi_realloc", "mi_heap_malloc", "mi_theap_malloc"];
/// In which nothing of a kept result may pass.
const SERIALISES: &str = "serde_json::ser";

#[derive(Parser)]
#[command(name = "instructions")]
struct Args {
    /// Rows to count; all without it.
    #[arg(long, value_delimiter = ',')]
    rows: Vec<Row>,
    /// Write the figures that later runs are compared with.
    #[arg(long)]
    accept: bool,
    /// Only bigiron, without bare hyper beside it.
    #[arg(long)]
    alone: bool,
    /// Said by `cargo bench`.
    #[arg(long, hide = true)]
    bench: bool,
}

/// What one call costs.
#[derive(Clone, Copy)]
struct Cost {
    instructions: f64,
    allocations: f64,
}

fn main() -> ExitCode {
    if let Some(code) = tools::serve_if_asked() {
        return code;
    }
    let args = Args::parse();
    if !args.bench {
        println!("`cargo bench --bench instructions` counts");
        return ExitCode::SUCCESS;
    }
    match run(&args) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            println!("instructions: {error}");
            ExitCode::FAILURE
        }
    }
}

/// False when a row grew too much.
fn run(args: &Args) -> Result<bool> {
    let valgrind = Command::new("valgrind").arg("--version").stdout(Stdio::null()).status();
    if !valgrind.is_ok_and(|status| status.success()) {
        return Err("valgrind is missing: apt-get install valgrind".into());
    }
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().ok_or("no target directory")?;
    let peers = if args.alone { None } else { Some(build_peers(target, &[])?) };
    let folder = target.join("instructions");
    fs::create_dir_all(&folder)?;
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/instructions.tsv");
    let mut accepted = read(&fs::read_to_string(&file).unwrap_or_default());
    let rows = if args.rows.is_empty() { Row::value_variants() } else { &args.rows };
    println!(
        "{:16} {:>12} {:>9} {:>8} {:>12} {:>12} {:>7} {:>7}",
        "row", "instructions", "accepted", "allocs", "bare parsing", "bare fixed", "ratio", "ratio"
    );
    let mut held = true;
    for &row in rows {
        let lab = Lab { row, folder: &folder };
        let (own, answer) = lab.bigiron()?;
        let bare = |fixed| peers.as_ref().map(|peers| lab.bare(peers, &answer, fixed)).transpose();
        let (parsing, fixed) = (bare(false)?, bare(true)?);
        let before = accepted.insert(row.name().to_owned(), own.instructions);
        let figure = |cost: Option<Cost>| cost.map_or_else(String::new, |cost| format!("{:.0}", cost.instructions));
        let ratio = |cost: Option<Cost>| {
            cost.map_or_else(String::new, |cost| format!("{:.2}", own.instructions / cost.instructions))
        };
        println!(
            "{:16} {:>12.0} {:>9} {:>8.1} {:>12} {:>12} {:>7} {:>7}",
            row.name(),
            own.instructions,
            before.map_or_else(|| "-".to_owned(), |before| format!("{before:.0}")),
            own.allocations,
            figure(parsing),
            figure(fixed),
            ratio(parsing),
            ratio(fixed),
        );
        if let Some(before) = before.filter(|before| !args.accept && own.instructions > before * GROWTH_MAX) {
            println!("  {} grew from {before:.0} to {:.0} instructions: more than 5 %", row.name(), own.instructions);
            held = false;
        }
    }
    if args.accept {
        let mut text = "row\tinstructions of a call in user space\n".to_owned();
        for (row, instructions) in &accepted {
            let _ = writeln!(text, "{row}\t{instructions:.0}");
        }
        fs::write(&file, text)?;
    }
    Ok(held)
}

fn read(text: &str) -> BTreeMap<String, f64> {
    let line = |line: &str| {
        let (row, figure) = line.split_once('\t')?;
        Some((row.to_owned(), figure.parse().ok()?))
    };
    text.lines().filter_map(line).collect()
}

/// Where one row is counted.
struct Lab<'a> {
    row: Row,
    folder: &'a Path,
}

impl Lab<'_> {
    /// What bigiron's call costs, and the message that it answered.
    fn bigiron(&self) -> Result<(Cost, Vec<u8>)> {
        let address = free_address()?;
        let mut arguments = vec![std::env::current_exe()?.display().to_string()];
        arguments.extend(tools::arguments(address));
        for set in ["runtime.io_threads=1", "pool.threads=1"].iter().chain(self.row.settings()) {
            arguments.extend(["--set".to_owned(), (*set).to_owned()]);
        }
        let (profile, answer) = self.count("bigiron", &arguments, address, false)?;
        if self.row.is_kept() && profile.has_called(SERIALISES) {
            return Err(format!("{}: a kept result was serialised again", self.row.name()).into());
        }
        Ok((profile.cost(), answer))
    }

    fn bare(&self, peers: &Path, answer: &[u8], fixed: bool) -> Result<Cost> {
        let body = self.folder.join("answer.json");
        fs::write(&body, answer)?;
        let address = free_address()?;
        let program = peers.join("bare-hyper").display().to_string();
        let body = body.display().to_string();
        let listen = address.to_string();
        let mut arguments = vec![program, "--threads".into(), "1".into(), "--listen".into(), listen];
        arguments.extend(["--body".to_owned(), body]);
        arguments.extend(bare_arguments(self.row));
        if fixed {
            arguments.push("--no-parse".to_owned());
        }
        let name = if fixed { "bare-fixed" } else { "bare-parsing" };
        self.count(name, &arguments, address, true).map(|(profile, _)| profile.cost())
    }

    fn count(&self, name: &str, program: &[String], address: SocketAddr, plain: bool) -> Result<(Profile, Vec<u8>)> {
        let file = self.folder.join(format!("{}-{name}.callgrind", self.row.name()));
        let log = fs::File::create(self.folder.join(format!("{name}.log")))?;
        let _ = fs::remove_file(&file);
        let child = Command::new("valgrind")
            .args(["--tool=callgrind", "--instr-atstart=no"])
            .arg(format!("--callgrind-out-file={}", file.display()))
            .args(program)
            .current_dir(self.folder)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let mut server = Server(child);
        server.wait_for(address)?;
        let answer = if plain { Vec::new() } else { probe(self.row, address)?.1 };
        let mut stream = connect(address)?;
        stream.set_read_timeout(Some(START_TIMEOUT))?;
        let session = if self.row.has_session() && !plain { open_session(&mut stream, address)? } else { None };
        let named = if plain { Some("00000000-0000-0000-0000-000000000000") } else { session.as_deref() };
        let mut request = self.row.request(address, named);
        self.call(&mut stream, &mut request, address, WARM_UP)?;
        server.count(true)?;
        self.call(&mut stream, &mut request, address, COUNTED)?;
        server.count(false)?;
        drop(stream);
        server.stop()?;
        Ok((Profile::read(&file)?, answer))
    }

    fn call(&self, stream: &mut TcpStream, request: &mut Request, address: SocketAddr, times: usize) -> Result<()> {
        let mut reply = Reply::new();
        for _ in 0..times {
            request.next_id();
            stream.write_all(&request.bytes)?;
            reply.clear();
            loop {
                let bytes = stream.read(reply.room()?)?;
                if bytes == 0 {
                    return Err("the server ended the connection".into());
                }
                if reply.received(bytes)? {
                    break;
                }
            }
            if reply.status() != self.row.status() {
                return Err(format!("a wrong answer:\n{}", reply.text()).into());
            }
            if reply.closes() {
                *stream = connect(address)?;
                stream.set_read_timeout(Some(START_TIMEOUT))?;
            }
        }
        Ok(())
    }
}

/// A server under callgrind; it ends with its owner.
struct Server(Child);

impl Server {
    fn wait_for(&mut self, address: SocketAddr) -> Result<()> {
        let give_up_at = Instant::now() + START_TIMEOUT;
        while TcpStream::connect(address).is_err() {
            if Instant::now() > give_up_at || self.0.try_wait()?.is_some() {
                return Err(format!(
                    "no server came up on {address} under valgrind; see the .log files in target/instructions"
                )
                .into());
            }
            thread::sleep(Duration::from_millis(50));
        }
        Ok(())
    }

    fn count(&self, on: bool) -> Result<()> {
        let state = if on { "on" } else { "off" };
        let told = Command::new("callgrind_control").args(["-i", state, &self.0.id().to_string()]).output()?;
        if !told.status.success() {
            return Err("callgrind_control failed".into());
        }
        Ok(())
    }

    fn stop(mut self) -> Result<()> {
        self.end();
        self.0.wait()?;
        Ok(())
    }

    fn end(&self) {
        if let Some(pid) = i32::try_from(self.0.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::TERM); // an error means that it has ended
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
        let _ = self.0.wait();
    }
}

/// What callgrind wrote.
struct Profile {
    instructions: u64,
    allocations: u64,
    functions: Vec<String>,
}

impl Profile {
    fn read(file: &PathBuf) -> Result<Self> {
        let text = fs::read_to_string(file)?;
        let number = |key: &str| {
            text.lines().rev().find_map(|line| line.strip_prefix(key)?.split_whitespace().next()?.parse().ok())
        };
        let instructions = number("totals:").or_else(|| number("summary:")).ok_or("callgrind counted nothing")?;
        let mut names = BTreeMap::new();
        let (mut caller, mut callee, mut allocations) = (String::new(), String::new(), 0);
        let mut resolve = |compressed: &str| {
            let (number, name) = compressed.split_once(')').unwrap_or((compressed, ""));
            if !name.trim().is_empty() {
                names.insert(number.to_owned(), name.trim().to_owned());
            }
            names.get(number).cloned().unwrap_or_default()
        };
        for line in text.lines() {
            if let Some(name) = line.strip_prefix("fn=") {
                caller = resolve(name);
            } else if let Some(name) = line.strip_prefix("cfn=") {
                callee = resolve(name);
            } else if let Some(calls) = line.strip_prefix("calls=") {
                let allocates = |name: &str| ALLOCATES.iter().any(|start| name.starts_with(start));
                if allocates(&callee) && !caller.trim_start_matches('_').starts_with("mi_") {
                    allocations += calls.split(' ').next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
                }
            }
        }
        Ok(Self { instructions, allocations, functions: names.into_values().collect() })
    }

    fn has_called(&self, part: &str) -> bool {
        self.functions.iter().any(|name| name.contains(part))
    }

    #[allow(clippy::cast_precision_loss)] // far below 2^53
    fn cost(&self) -> Cost {
        let each = |count: u64| count as f64 / COUNTED as f64;
        Cost { instructions: each(self.instructions), allocations: each(self.allocations) }
    }
}
