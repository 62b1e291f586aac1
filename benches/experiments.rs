//! How bigiron behaves when it is too much: experiments on one host, each by one command, with what must hold and
//! whether it did.
//!
//! `cargo bench --bench experiments` runs all, `-- overload`, `-- short-calls`, `-- metastability`, `-- fairness`,
//! `-- wedged`, `-- memory` or `-- quota` one; `--quick` makes every stretch shorter. Loads come from `bigiron bench` on cores that
//! the server does not have. It fails when something did not hold. `memory` and `quota` need to be
//! root, for cgroups of their own. `--bigiron PATH` tries another program.
#![allow(clippy::print_stdout, clippy::print_stderr)] // a bench tells what it found

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde_json::Value;

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;
type Experiment = fn(&Lab) -> Result<()>;

/// The tool that costs a known time on a thread of the pool.
const BURN: [&str; 4] = ["--tool", "burn", "--arguments", r#"{"ms":2}"#];

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let quick = args.iter().any(|arg| arg == "--quick");
    let named = args.iter().position(|arg| arg == "--bigiron");
    let program = named.and_then(|at| args.get(at + 1)).map_or(env!("CARGO_BIN_EXE_bigiron"), String::as_str);
    let is_name = |(at, arg): &(usize, &String)| !arg.starts_with("--") && named.is_none_or(|named| *at != named + 1);
    let wanted: Vec<&str> = args.iter().enumerate().filter(is_name).map(|(_, arg)| arg.as_str()).collect();
    let experiments: [(&str, Experiment); 7] = [
        ("overload", overload),
        ("short-calls", short_calls),
        ("metastability", metastability),
        ("fairness", fairness),
        ("wedged", wedged),
        ("memory", memory),
        ("quota", quota),
    ];
    let lab = match Lab::new(program, quick) {
        Ok(lab) => lab,
        Err(error) => return failed(&*error),
    };
    for (name, run) in experiments {
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

struct Lab {
    program: String,
    folder: PathBuf,
    seconds: u64,
    /// Of the server, and of the load.
    cores: (Vec<usize>, Vec<usize>),
}

/// One row of what `bigiron bench` wrote.
struct Row(Value);

impl Row {
    fn number(&self, name: &str) -> f64 {
        name.split('.').fold(&self.0, |value, key| &value[key]).as_f64().unwrap_or(f64::NAN)
    }

    fn p99_ms(&self) -> f64 {
        self.number("ok_us.p99") / 1e3
    }

    fn refusals(&self) -> f64 {
        self.0["refused"].as_array().into_iter().flatten().filter_map(|r| r["count"].as_f64()).sum::<f64>() + 0.0
    }
}

/// A server process; it ends with its owner.
struct Server {
    child: Child,
    address: SocketAddr,
    admin: SocketAddr,
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Lab {
    fn new(program: &str, quick: bool) -> Result<Self> {
        let set = sched_getaffinity(None)?;
        let cores: Vec<_> = (0..CpuSet::MAX_CPU).filter(|&core| set.is_set(core)).collect();
        let cores = if cores.len() < 2 {
            (cores.clone(), cores)
        } else {
            let (own, others) = cores.split_at(cores.len() / 2);
            (own.to_vec(), others.to_vec())
        };
        let folder = std::env::temp_dir().join(format!("bigiron-experiments-{}", std::process::id()));
        fs::create_dir_all(&folder)?;
        println!("server on cores {:?}, load on {:?}", cores.0, cores.1);
        Ok(Self { program: program.to_owned(), folder, seconds: if quick { 3 } else { 10 }, cores })
    }

    /// Runs `bigiron bench` and returns its JSON.
    fn bench(&self, args: &[&str]) -> Result<Value> {
        let json = self.folder.join(format!("{:?}.json", thread::current().id()));
        let seconds = format!("{}s", self.seconds);
        let mut command = Command::new(&self.program);
        command.arg("bench").args(args).arg("--json").arg(&json);
        if !args.contains(&"--duration") {
            command.args(["--duration", &seconds]);
        }
        // Where it starts the server itself, it keeps away from that by itself.
        let own = if args.contains(&"--url") { self.cores.1.clone() } else { self.all_cores() };
        pin(&own)?;
        let output = command.stdout(Stdio::piped()).stderr(Stdio::piped()).output();
        pin(&self.all_cores())?;
        let output = output?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned().into());
        }
        print!("{}", String::from_utf8_lossy(&output.stdout));
        Ok(serde_json::from_slice(&fs::read(&json)?)?)
    }

    fn all_cores(&self) -> Vec<usize> {
        [&self.cores.0[..], &self.cores.1].concat()
    }

    fn rows(&self, args: &[&str]) -> Result<Vec<Row>> {
        let mut json = self.bench(args)?;
        match json["rows"].take() {
            Value::Array(rows) => Ok(rows.into_iter().map(Row).collect()),
            _ => Err("bigiron bench wrote no rows".into()),
        }
    }

    /// What the host can take of the tool, and a file with the settings that follow.
    fn capacity(&self) -> Result<(f64, f64, PathBuf)> {
        let found = self.bench(&[&BURN[..], &["--capacity", "--duration", "3s", "--warmup", "1s"]].concat())?;
        let file = self.folder.join("capacity.toml");
        fs::write(&file, found["tuning"].as_str().ok_or("no settings were found")?)?;
        let of = |name: &str| found[name].as_f64().ok_or_else(|| format!("{name} was not found"));
        Ok((of("peak_per_s")?, of("p99_max_ms")?, file))
    }

    fn serve(&self, tuning: Option<&Path>, sets: &[&str]) -> Result<Server> {
        let mut command = Command::new(&self.program);
        command.args(["serve", "--listen", "127.0.0.1:0", "--set", "server.admin_listen=127.0.0.1:0"]);
        command.args(["--set", "log.format=json"]);
        if let Some(file) = tuning {
            command.arg("--tuning").arg(file);
        }
        for set in sets {
            command.args(["--set", set]);
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        pin(&self.cores.0)?;
        let child = command.spawn();
        pin(&self.all_cores())?;
        let mut child = child?;
        let mut log = BufReader::new(child.stderr.take().ok_or("no log")?);
        let (mut address, mut admin) = (None, None);
        while address.is_none() || admin.is_none() {
            let mut line = String::new();
            if log.read_line(&mut line)? == 0 {
                return Err("the server did not start".into());
            }
            let line: Value = serde_json::from_str(&line).unwrap_or_default();
            let host = |key: &str| line[key].as_str()?.strip_prefix("http://")?.split('/').next()?.parse().ok();
            address = address.or_else(|| host("url"));
            admin = admin.or_else(|| host("health"));
        }
        thread::spawn(move || std::io::copy(&mut log, &mut std::io::sink()));
        let (address, admin) = (address.ok_or("no address")?, admin.ok_or("no address")?);
        Ok(Server { child, address, admin })
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn pin(cores: &[usize]) -> Result<()> {
    let mut set = CpuSet::new();
    cores.iter().for_each(|&core| set.set(core));
    Ok(sched_setaffinity(None, &set)?)
}

/// Rates as `bigiron bench` takes them.
fn rates(peak: f64, factors: &[f64]) -> String {
    factors.iter().map(|factor| format!("{:.1}", peak * factor)).collect::<Vec<_>>().join(",")
}

/// A tool of 2 ms at the peak and far beyond it, with each policy.
fn overload(lab: &Lab) -> Result<()> {
    let (peak, _, tuning) = lab.capacity()?;
    let tuning = tuning.to_str().ok_or("a path that is no text")?;
    for policy in ["reject", "wait", "caller-runs"] {
        println!("\npool.on_full = \"{policy}\", 1000 connections, open loop");
        let (set, rates) = (format!("pool.on_full=\"{policy}\""), rates(peak, &[0.8, 1.0, 2.0, 5.0, 10.0]));
        let load = ["--tuning", tuning, "--set", &set, "--connections", "1000", "--rate", &rates];
        let rows = lab.rows(&[&BURN[..], &load].concat())?;
        let [calm, full, overloaded @ ..] = &rows[..] else { return Err("rows are missing".into()) };
        // What this policy does to latencies is shown and not judged: it lets clients wait, and runs calls meanwhile.
        let is_judged = policy != "caller-runs";
        for ((row, times), least) in overloaded.iter().zip([2, 5, 10]).zip([0.97, 0.95, 0.90]) {
            let share = row.number("goodput_per_s") / peak;
            let ratio = row.p99_ms() / calm.p99_ms();
            if !is_judged {
                println!("         at {times} times: goodput {share:.3} of the peak, p99 {ratio:.2} x that at 80 %");
                continue;
            }
            verdict(&format!("goodput at {times} times >= {least} of the peak"), share >= least, format!("{share:.3}"));
            let what = format!("p99 of admitted calls at {times} times <= 2 x that at 80 % ({:.1} ms)", calm.p99_ms());
            verdict(&what, ratio <= 2.0, format!("{:.1} ms, {ratio:.2} x", row.p99_ms()));
            if row.refusals() > 0.0 {
                let p99 = row.number("refused_us.p99") / 1e3;
                verdict(
                    &format!("refusals at {times} times answer in 5 ms at p99"),
                    p99 <= 5.0,
                    format!("{p99:.2} ms"),
                );
            }
        }
        // What the server spends besides good answers, by refusal.
        let per_good = full.number("server_cpu_s") / full.number("ok");
        if let Some(row) = overloaded.last().filter(|row| row.refusals() > 0.0) {
            let cost = (row.number("server_cpu_s") - row.number("ok") * per_good) / row.refusals() * 1e6;
            println!("         a refusal costs the server about {cost:.0} us of CPU time");
        }
    }
    Ok(())
}

/// Calls of microseconds over more and more connections.
fn short_calls(lab: &Lab) -> Result<()> {
    let rows = lab.rows(&["--connections", "256,1000,5000"])?;
    let first = rows.first().map_or(f64::NAN, |row| row.number("goodput_per_s"));
    for row in &rows[1..] {
        let share = row.number("goodput_per_s") / first;
        let label = row.0["label"].as_str().unwrap_or_default();
        verdict(&format!("throughput with {label} >= 0.90 of that with 256"), share >= 0.90, format!("{share:.3}"));
    }
    Ok(())
}

/// Ten times the load with clients that try again at once, and back.
fn metastability(lab: &Lab) -> Result<()> {
    let (peak, _, tuning) = lab.capacity()?;
    let tuning = tuning.to_str().ok_or("a path that is no text")?;
    // Second by second, over the same connections and without a pause.
    let seconds = usize::try_from(lab.seconds)?;
    let factors = [vec![0.8; seconds], vec![8.0; seconds], vec![0.8; seconds + 1]].concat();
    let rates = rates(peak, &factors);
    let load = ["--tuning", tuning, "--connections", "1000", "--retries", "3", "--warmup", "1s", "--rate", &rates];
    let load = [&BURN[..], &load, &["--continuous", "--duration", "1s"]].concat();
    let rows = lab.rows(&load)?;
    if rows.len() != factors.len() {
        return Err("rows are missing".into());
    }
    let (before, after) = (&rows[..seconds], &rows[2 * seconds + 1..]);
    let mean = |rows: &[Row], of: fn(&Row) -> f64| rows.iter().map(of).sum::<f64>() / rows.len() as f64;
    let success: fn(&Row) -> f64 = |row| row.number("success");
    let (was, is) = (mean(before, success), mean(after, success));
    verdict(
        "success from 1 s after the overload on >= 0.99 of before",
        is >= 0.99 * was,
        format!("{is:.3} of {was:.3}"),
    );
    let (was, is) = (mean(before, Row::p99_ms), mean(after, Row::p99_ms));
    let figure = format!("{:.2} x ({is:.1} ms, before {was:.1} ms)", is / was);
    verdict("p99 from 1 s after on <= 1.5 x that before, mean over seconds", is <= 1.5 * was, figure);
    Ok(())
}

/// One caller at ten times its share, another at a fifth of its own.
fn fairness(lab: &Lab) -> Result<()> {
    let (peak, _, tuning) = lab.capacity()?;
    let share = peak / 2.0;
    let server = lab.serve(Some(&tuning), &[])?;
    let url = format!("http://{}/mcp", server.address);
    let greedy = format!("{:.1}", share * 10.0);
    let modest = format!("{:.1}", share * 0.2);
    let of = |from: &'static str, rate: &str, connections: &str, seconds: u64| -> Vec<String> {
        let seconds = format!("{seconds}s");
        let args =
            ["--url", &url, "--from", from, "--rate", rate, "--connections", connections, "--duration", &seconds];
        BURN.iter().chain(&args).map(|arg| (*arg).to_owned()).collect()
    };
    let run =
        |args: Vec<String>| lab.rows(&args.iter().map(String::as_str).collect::<Vec<_>>()).map_err(|e| e.to_string());
    let alone = run(of("127.0.0.2", &modest, "16", lab.seconds))?.remove(0);
    let beside = thread::scope(|scope| {
        let other = scope.spawn(|| run(of("127.0.0.1", &greedy, "1000", lab.seconds + 6)));
        thread::sleep(Duration::from_secs(3));
        let beside = run(of("127.0.0.2", &modest, "16", lab.seconds));
        let other = other.join().map_err(|_| "the other load panicked".to_owned())?;
        other.and(beside)
    })?
    .remove(0);
    let success = beside.number("success");
    verdict("success of the modest caller >= 99.9 %", success >= 0.999, format!("{:.2} %", success * 100.0));
    let ratio = beside.p99_ms() / alone.p99_ms();
    let figure = format!("{ratio:.2} x ({:.1} ms, alone {:.1} ms)", beside.p99_ms(), alone.p99_ms());
    verdict("its p99 <= 2 x its p99 alone", ratio <= 2.0, figure);
    Ok(())
}

/// Every worker and the whole queue taken by calls that do not end in time.
fn wedged(lab: &Lab) -> Result<()> {
    let sets = ["pool.queue_max=50", "limits.request_timeout_ms=20000"];
    let server = lab.serve(None, &sets)?;
    let url = format!("http://{}/mcp", server.address);
    let load = ["--url", &url, "--tool", "burn", "--arguments", r#"{"ms":60000}"#, "--connections", "80"];
    let seconds = lab.seconds + 4;
    let wedge = Command::new(&lab.program)
        .arg("bench")
        .args(load)
        .args(["--warmup", "0s", "--duration", &format!("{seconds}s"), "--timeout", "60s"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    thread::sleep(Duration::from_secs(2));
    let mut times: BTreeMap<&str, Vec<f64>> = BTreeMap::new();
    let list = concat!(
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{"_meta":{"#,
        r#""io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientInfo":"#,
        r#"{"name":"x","version":"1"},"io.modelcontextprotocol/clientCapabilities":{}}}}"#
    );
    let until = Instant::now() + Duration::from_secs(lab.seconds);
    while Instant::now() < until {
        for (name, address, path, body) in [
            ("/health", server.address, "/health", None),
            ("/ready", server.admin, "/ready", None),
            ("/metrics", server.admin, "/metrics", None),
            ("tools/list", server.address, "/mcp", Some(list)),
        ] {
            times.entry(name).or_default().push(ask(address, path, body)?);
        }
        thread::sleep(Duration::from_millis(10));
    }
    let mut wedge = wedge;
    wedge.kill()?;
    wedge.wait()?;
    for (name, mut times) in times {
        times.sort_by(f64::total_cmp);
        let p99 = times[times.len() * 99 / 100];
        let most = if name == "tools/list" { 100.0 } else { 50.0 };
        verdict(&format!("{name} p99 <= {most} ms"), p99 <= most, format!("{p99:.2} ms of {} asked", times.len()));
    }
    Ok(())
}

/// Milliseconds for one answer on a new connection.
fn ask(address: SocketAddr, path: &str, body: Option<&str>) -> Result<f64> {
    let began = Instant::now();
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    let request = match body {
        None => format!("GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"),
        Some(body) => format!(
            "POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Accept: application/json, text/event-stream\r\nMCP-Protocol-Version: 2026-07-28\r\n\
             Mcp-Method: tools/list\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ),
    };
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    if !answer.starts_with("HTTP/1.1 200") {
        return Err(format!("{path} answered {answer:.200}").into());
    }
    Ok(began.elapsed().as_secs_f64() * 1e3)
}

/// A cgroup of 256 MiB, and clients that want the server to hold more than that.
fn memory(lab: &Lab) -> Result<()> {
    const LIMIT: u64 = 256 << 20;
    let group = Group::new("memory")?;
    group.set(("memory.limit_in_bytes", "memory.max"), &LIMIT.to_string())?;
    let server = group.around(|| lab.serve(None, &["cache.bytes_max=64MiB", "tools.echo.cache_ttl_s=600"]))?;
    let pid = server.child.id();
    let resident = || {
        let statm = fs::read_to_string(format!("/proc/{pid}/statm")).unwrap_or_default();
        statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4 / 1024
    };
    println!("at the start {} MiB", resident());
    let (mut answered, mut refused, mut most) = (0_u64, 0_u64, 0);
    let large = "x".repeat(900 << 10);
    thread::scope(|scope| {
        let senders: Vec<_> = (0..200)
            .map(|n| {
                let (address, large) = (server.address, &large);
                scope.spawn(move || {
                    let mut counts = (0_u64, 0_u64);
                    for turn in 0..10 {
                        match echo(address, &format!("{n}-{turn}-{large}")) {
                            Ok(200) => counts.0 += 1,
                            Ok(_) => counts.1 += 1,
                            Err(_) => {}
                        }
                    }
                    counts
                })
            })
            .collect();
        while senders.iter().any(|sender| !sender.is_finished()) {
            most = most.max(resident());
            thread::sleep(Duration::from_millis(5));
        }
        for sender in senders {
            let (good, bad) = sender.join().unwrap_or_default();
            answered += good;
            refused += bad;
        }
    });
    let kills = group.kills()?;
    verdict("the kernel kills nothing", kills == 0, format!("{kills} kills, at most {most} MiB of 256"));
    verdict("some are answered, some refused", answered > 0, format!("{answered} answered, {refused} refused"));
    let normal = Instant::now() + Duration::from_secs(5);
    let mut after = 0;
    while Instant::now() < normal && after != 200 {
        after = echo(server.address, "hello").unwrap_or(0);
        thread::sleep(Duration::from_millis(50));
    }
    verdict("normal afterwards", after == 200, format!("HTTP {after}, {} MiB", resident()));
    Ok(())
}

/// Calls echo on a new connection; the HTTP status.
fn echo(address: SocketAddr, message: &str) -> Result<u16> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(10))?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let body = format!(
        r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"echo","arguments":{{"message":"{message}"}},"_meta":{{"io.modelcontextprotocol/protocolVersion":"2026-07-28","io.modelcontextprotocol/clientInfo":{{"name":"x","version":"1"}},"io.modelcontextprotocol/clientCapabilities":{{}}}}}}}}"#
    );
    let head = format!(
        "POST /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nContent-Type: application/json\r\n\
         Accept: application/json, text/event-stream\r\nMCP-Protocol-Version: 2026-07-28\r\n\
         Mcp-Method: tools/call\r\nMcp-Name: echo\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    let _ = stream.write_all(body.as_bytes()); // a refusal may come before the body is read
    let mut status = [0; 12];
    stream.read_exact(&mut status)?;
    let _ = std::io::copy(&mut stream, &mut std::io::sink());
    Ok(std::str::from_utf8(&status[9..])?.parse()?)
}

/// A memory cgroup, version 1 or 2, gone with its owner.
struct Group {
    folder: PathBuf,
    is_v2: bool,
}

/// So little CPU time that everything is late, and then all of it again.
fn quota(lab: &Lab) -> Result<()> {
    const PERIOD_US: u64 = 100_000;
    let group = Group::new("cpu")?;
    let server = lab.serve(None, &[])?;
    let url = format!("http://{}/mcp", server.address);
    let load = |seconds: u64| -> Result<Row> {
        let duration = format!("{seconds}s");
        let args = ["--url", &url, "--connections", "64", "--warmup", "1s", "--duration", &duration];
        lab.rows(&args)?.pop().ok_or_else(|| "no row".into())
    };
    let before = load(lab.seconds)?;
    group.set_cpu_quota(Some(PERIOD_US / 20), PERIOD_US)?;
    group.take_in(server.child.id())?;
    let during = load(lab.seconds * 3)?;
    group.set_cpu_quota(None, PERIOD_US)?;
    thread::sleep(Duration::from_secs(1));
    let after = load(lab.seconds)?;
    let wrong: f64 = ["broken", "tool_errors", "timed_out"].iter().map(|name| during.number(name)).sum();
    let refused = during.0["refused"].as_array().into_iter().flatten();
    let is_right = wrong == 0.0 && refused.clone().all(|refused| refused["status"] == 503);
    let figure = format!("{:.0} answered, {:.0} refused with 503", during.number("ok"), during.refusals());
    verdict("with 5 % of a core nothing is answered wrongly", is_right && during.number("ok") > 0.0, figure);
    let share = after.number("goodput_per_s") / before.number("goodput_per_s");
    verdict("from 1 s after on >= 0.90 of before", share >= 0.90, format!("{share:.3}"));
    drop(server); // the group is removed when nobody is in it
    Ok(())
}

impl Group {
    fn new(controller: &str) -> Result<Self> {
        let v1 = Path::new("/sys/fs/cgroup").join(controller);
        let (root, is_v2) = if v1.is_dir() { (v1, false) } else { (PathBuf::from("/sys/fs/cgroup"), true) };
        let folder = root.join(format!("bigiron-experiment-{}", std::process::id()));
        fs::create_dir(&folder)
            .map_err(|error| format!("cannot make the cgroup {}: {error}; run as root", folder.display()))?;
        Ok(Self { folder, is_v2 })
    }

    /// Sets a limit, by the names of its file in version 1 and 2.
    fn set(&self, file: (&str, &str), value: &str) -> Result<()> {
        let file = self.folder.join(if self.is_v2 { file.1 } else { file.0 });
        fs::write(&file, value).map_err(|error| format!("cannot write {}: {error}", file.display()).into())
    }

    fn set_cpu_quota(&self, quota_us: Option<u64>, period_us: u64) -> Result<()> {
        if self.is_v2 {
            let quota = quota_us.map_or_else(|| "max".to_owned(), |quota| quota.to_string());
            return self.set(("", "cpu.max"), &format!("{quota} {period_us}"));
        }
        self.set(("cpu.cfs_period_us", ""), &period_us.to_string())?;
        self.set(("cpu.cfs_quota_us", ""), &quota_us.map_or_else(|| "-1".to_owned(), |quota| quota.to_string()))
    }

    fn take_in(&self, process: u32) -> Result<()> {
        Ok(fs::write(self.folder.join("cgroup.procs"), process.to_string())?)
    }

    /// What is started inside belongs to the group; this process leaves it again.
    fn around<T>(&self, start: impl FnOnce() -> Result<T>) -> Result<T> {
        let own = std::process::id();
        self.take_in(own)?;
        let started = start();
        fs::write(self.folder.parent().ok_or("no parent")?.join("cgroup.procs"), own.to_string())?;
        started
    }

    fn kills(&self) -> Result<u64> {
        let file = if self.is_v2 { "memory.events" } else { "memory.oom_control" };
        let text = fs::read_to_string(self.folder.join(file))?;
        let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        Ok(line.ok_or("the kernel does not count kills")?.trim().parse()?)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for _ in 0..50 {
            if fs::remove_dir(&self.folder).is_ok() {
                return;
            }
            thread::sleep(Duration::from_millis(100)); // until its processes are gone
        }
    }
}
