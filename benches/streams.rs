//! What open streams cost those who only call: the latency of calls alone, beside readers that do not read, and beside
//! thousands of listeners; and how long it takes to tell all of those of one change.
//!
//! `cargo bench --bench streams` takes about a minute. The server is this program itself, started again, on one core; calls
//! and readers come from another. Without `--bench`, as in `cargo test --benches`, it only shows with small numbers that
//! all of it is served.
//!
//! What the numbers do not mean: calls come in a closed loop over a few connections, so that the server is never idle, and
//! their latency is that of a server kept full. All of it is on one core, where work that stands in front of a call is in
//! its way; a second core takes most of that. What open streams take in memory is another bench.

#![allow(clippy::print_stdout)] // the table is the product

#[allow(dead_code)] // this bench needs a part of it
mod support;

use std::{
    env, fs,
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    path::Path,
    process::{Command, ExitCode},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use bigiron::{Ctx, Lane, LogLevel, server::Builder};
use clap::Parser;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use support::{
    Result,
    generator::Generator,
    process::{Server, allowed_cores, free_address},
    requests::{Expected, Row, probe},
};

const TIMEOUT: Duration = Duration::from_secs(20);
/// As in the program.
#[global_allocator]
static ALLOCATOR: support::tools::allocator::Allocator = support::tools::allocator::Allocator;

/// What a call whose client does not read says at once, and then each time that a pause is over.
const FLOOD_LINES: usize = 40;
const LINE_BYTES: usize = 8 * 1024;
const LINE_PAUSE: Duration = Duration::from_millis(100);
/// Half of the readers that do not read take a byte this often.
const TRICKLE: Duration = Duration::from_secs(1);

#[derive(Parser)]
#[command(name = "streams")]
struct Args {
    /// Clients that do not read, or a byte a second, what their calls say.
    #[arg(long, default_value_t = 1_000)]
    stuck: usize,
    /// Open `subscriptions/listen`.
    #[arg(long, default_value_t = 10_000)]
    listeners: usize,
    /// Windows of each kind.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=10))]
    windows: u16,
    /// Connections that call.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    connections: u16,
    /// Said by `cargo bench`; without it the run is a short check.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    if env::args().nth(1).as_deref() == Some("serve") {
        return bigiron::cli::run(server());
    }
    let mut args = Args::parse();
    if !args.bench {
        println!("a short check; `cargo bench --bench streams` measures");
        (args.stuck, args.listeners, args.windows) = (10, 50, 1);
    }
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("streams: {error}");
            ExitCode::FAILURE
        }
    }
}

#[derive(Deserialize, JsonSchema)]
struct Message {
    message: String,
}

fn server() -> Builder {
    bigiron::Server::builder()
        .tool("echo", "Answers what it is given", Lane::Inline, |args: Message, _| args.message)
        .tool("change", "Says that the list of tools has changed", Lane::Inline, |(): (), ctx: Ctx| {
            ctx.changes().tools();
            "said"
        })
        .async_tool("talk", "Talks for as long as there is somebody to talk to", |(): (), ctx: Ctx| async move {
            let line = "x".repeat(LINE_BYTES);
            for _ in 0..FLOOD_LINES {
                ctx.log(LogLevel::Info, &line);
            }
            while !ctx.is_cancelled() {
                tokio::time::sleep(LINE_PAUSE).await;
                ctx.log(LogLevel::Info, &line);
            }
            "talked"
        })
}

/// The server, and the calls that are measured.
struct Rig<'a> {
    args: &'a Args,
    server: Server,
    expected: Expected,
    window: Duration,
}

/// The latency of calls in one window.
struct Measured {
    calls_per_s: f64,
    p50_us: f64,
    p99_us: f64,
    most_us: f64,
}

fn run(args: &Args) -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })?;
    let needed = (args.stuck + args.listeners + 200) as u64;
    if limit.maximum.is_some_and(|most| most < needed) {
        return Err(format!("{needed} open files are needed (ulimit -Hn); give fewer --listeners").into());
    }
    let rig = Rig::start(args)?;
    rig.window(|| Ok(()))?; // what grows once has grown
    let mut table = Table::default();
    table.add("alone", &rig.windows(|| Ok(()))?);

    let stuck = Stuck::open(args.stuck, rig.server.address)?;
    table.add(&format!("beside {} readers that do not read", args.stuck), &rig.windows(|| Ok(()))?);
    stuck.close()?;

    let mut listeners = Listeners::open(args.listeners, rig.server.address)?;
    table.add(&format!("beside {} silent listeners", args.listeners), &rig.windows(|| Ok(()))?);
    let fan_outs =
        (0..args.windows).map(|_| listeners.change_and_read(rig.server.address)).collect::<Result<Vec<_>>>()?;
    let mut changes = Changes::start(rig.server.address);
    let told = rig.windows(|| changes.next());
    changes.stop()?;
    table.add(&format!("beside {} listeners, one change in each window", args.listeners), &told?);

    table.print();
    let ms: Vec<f64> = fan_outs.iter().map(|took| took.as_secs_f64() * 1e3).collect();
    println!("\none change, told to {} listeners and read by all: {} ms", args.listeners, spread(&ms, 0));
    Ok(())
}

impl<'a> Rig<'a> {
    fn start(args: &'a Args) -> Result<Self> {
        let cores = allowed_cores()?;
        let (Some(&first), Some(&last)) = (cores.first(), cores.get(..2).unwrap_or(&cores).last()) else {
            return Err("this process may use no core".into());
        };
        if first == last && args.bench {
            return Err("server and clients need a core each".into());
        }
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("streams");
        fs::create_dir_all(&target)?;
        let address = free_address()?;
        let mut command = Command::new(env::current_exe()?);
        command.args(["serve", "--listen", &address.to_string()]).current_dir(&target);
        for set in [
            "server.admin_listen=",
            "log.level=error",
            "toolbox.enabled=false",
            "limits.request_timeout_ms=120000",
            "server.drain_grace_ms=120000",
            "limits.write_timeout_ms=120000", // they stay for as long as is measured
            &format!("limits.concurrent_requests_max={}", args.stuck + 200),
            &format!("limits.connections_max={}", args.stuck + args.listeners + 200),
            &format!("limits.streams_max={}", args.listeners + 100),
        ] {
            command.args(["--set", set]);
        }
        let server = Server::start(command, address, first, last, &target.join("server.log"))?;
        let (expected, _) = probe(Row::ModernEcho, address)?;
        let window = Duration::from_millis(if args.bench { 2000 } else { 100 });
        println!("{} windows of {window:?}, {} connections", args.windows, args.connections);
        Ok(Self { args, server, expected, window })
    }

    fn windows(&self, mut begin: impl FnMut() -> Result<()>) -> Result<Vec<Measured>> {
        (0..self.args.windows).map(|_| self.window(&mut begin)).collect()
    }

    fn window(&self, mut begin: impl FnMut() -> Result<()>) -> Result<Measured> {
        let connections = usize::from(self.args.connections);
        let mut calls = Generator::start(Row::ModernEcho, self.server.address, connections, &self.expected, false)?;
        calls.drive(self.window / 10)?;
        begin()?;
        let driven = calls.drive(self.window)?;
        calls.finish()?;
        let us = |ns: u64| ns as f64 / 1e3;
        Ok(Measured {
            calls_per_s: driven.calls as f64 / driven.elapsed.as_secs_f64(),
            p50_us: us(driven.latency_ns.value_at_quantile(0.50)),
            p99_us: us(driven.latency_ns.value_at_quantile(0.99)),
            most_us: us(driven.latency_ns.max()),
        })
    }
}

/// Calls that talk to clients that do not read, or only a byte now and then.
struct Stuck {
    silent: Vec<TcpStream>,
    trickling: thread::JoinHandle<Vec<TcpStream>>,
    is_over: Arc<AtomicBool>,
}

impl Stuck {
    fn open(count: usize, address: SocketAddr) -> Result<Self> {
        let mut silent = Vec::with_capacity(count);
        for id in 0..count {
            let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
            // So that the kernels hold little of it, here and there: 1,000 times some MiB are more than many hosts have.
            socket.set_recv_buffer_size(2048)?;
            socket.set_tcp_mss(536)?;
            socket.connect(&address.into())?;
            let mut stream = TcpStream::from(socket);
            stream.write_all(&request(id, "tools/call", "talk", json!({ "name": "talk" })))?;
            read_until(&mut stream, b"notifications/message")?;
            silent.push(stream);
        }
        let mut trickling = silent.split_off(count / 2);
        let is_over = Arc::<AtomicBool>::default();
        let over = Arc::clone(&is_over);
        let trickling = thread::spawn(move || {
            let mut last = Instant::now();
            while !over.load(Ordering::Relaxed) {
                thread::sleep(Duration::from_millis(10));
                if last.elapsed() >= TRICKLE {
                    last = Instant::now();
                    for stream in &mut trickling {
                        // That a connection has ended is seen when all are counted.
                        let _ = stream.read(&mut [0]);
                    }
                }
            }
            trickling
        });
        Ok(Self { silent, trickling, is_over })
    }

    fn close(self) -> Result<()> {
        self.is_over.store(true, Ordering::Relaxed);
        self.trickling.join().map_err(|_| "a reader panicked")?;
        drop(self.silent);
        Ok(())
    }
}

/// Open `subscriptions/listen`.
struct Listeners(Vec<TcpStream>);

impl Listeners {
    fn open(count: usize, address: SocketAddr) -> Result<Self> {
        let mut streams = Vec::with_capacity(count);
        for id in 0..count {
            let mut stream = TcpStream::connect(address)?;
            let params = json!({ "notifications": { "toolsListChanged": true } });
            stream.write_all(&request(id, "subscriptions/listen", "", params))?;
            read_until(&mut stream, b"subscriptions/acknowledged")?;
            streams.push(stream);
        }
        Ok(Self(streams))
    }

    /// One change: the time from before it is caused until all have read of it.
    fn change_and_read(&mut self, address: SocketAddr) -> Result<Duration> {
        let begin = Instant::now();
        change(address)?;
        for stream in &mut self.0 {
            read_until(stream, b"notifications/tools/list_changed")?;
        }
        Ok(begin.elapsed())
    }
}

/// Causes changes from a thread of its own, so that calls go on meanwhile. Nobody reads of them: what they cost a reader
/// is not in the windows.
struct Changes {
    orders: Option<std::sync::mpsc::Sender<()>>,
    thread: thread::JoinHandle<std::result::Result<(), String>>,
}

impl Changes {
    fn start(address: SocketAddr) -> Self {
        let (orders, ordered) = std::sync::mpsc::channel();
        let thread = thread::spawn(move || {
            ordered.into_iter().try_for_each(|()| change(address).map_err(|error| error.to_string()))
        });
        Self { orders: Some(orders), thread }
    }

    fn next(&mut self) -> Result<()> {
        let orders = self.orders.as_ref().ok_or("over")?;
        orders.send(()).map_err(|_| "a change was not answered".into())
    }

    fn stop(mut self) -> Result<()> {
        self.orders = None;
        Ok(self.thread.join().map_err(|_| "the thread of changes panicked")??)
    }
}

fn change(address: SocketAddr) -> Result<()> {
    let mut stream = TcpStream::connect(address)?;
    stream.write_all(&request(0, "tools/call", "change", json!({ "name": "change" })))?;
    read_until(&mut stream, b"said")
}

fn request(id: usize, method: &str, name: &str, mut params: Value) -> Vec<u8> {
    params["_meta"] = json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
        "io.modelcontextprotocol/logLevel": "debug"
    });
    let body = json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params }).to_string();
    let name = if name.is_empty() { String::new() } else { format!("Mcp-Name: {name}\r\n") };
    format!(
        "POST /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n\
         Accept: application/json, text/event-stream\r\nMCP-Protocol-Version: 2026-07-28\r\nMcp-Method: {method}\r\n\
         {name}Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// Reads until these bytes have come, for no longer than the timeout, also when comments keep the stream alive.
fn read_until(stream: &mut TcpStream, wanted: &[u8]) -> Result<()> {
    stream.set_read_timeout(Some(TIMEOUT))?;
    let mut read = Vec::with_capacity(1024);
    let give_up_at = Instant::now() + TIMEOUT;
    while !read.windows(wanted.len()).any(|bytes| bytes == wanted) {
        if Instant::now() > give_up_at {
            return Err(format!("{:?} did not come in {TIMEOUT:?}", String::from_utf8_lossy(wanted)).into());
        }
        let mut room = [0; 1024];
        match stream.read(&mut room) {
            Ok(bytes @ 1..) => read.extend_from_slice(&room[..bytes]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            ended => {
                let (wanted, read) = (String::from_utf8_lossy(wanted), String::from_utf8_lossy(&read));
                return Err(format!("{wanted:?} did not come ({ended:?}); what came:\n{read}").into());
            }
        }
    }
    Ok(())
}

/// Lines of figures, ready for a Markdown file.
#[derive(Default)]
struct Table {
    lines: Vec<[String; 6]>,
    p99_us_alone: Option<f64>,
}

impl Table {
    fn add(&mut self, what: &str, windows: &[Measured]) {
        let all = |figure: fn(&Measured) -> f64| windows.iter().map(figure).collect::<Vec<_>>();
        let p99_us = median(&all(|w| w.p99_us));
        let alone = *self.p99_us_alone.get_or_insert(p99_us);
        self.lines.push([
            what.to_owned(),
            spread(&all(|w| w.calls_per_s), 0),
            spread(&all(|w| w.p50_us), 0),
            spread(&all(|w| w.p99_us), 0),
            format!("{:.2}", p99_us / alone),
            spread(&all(|w| w.most_us), 0),
        ]);
    }

    fn print(&self) {
        let head = ["calls", "calls/s", "p50 µs", "p99 µs", "p99 × alone", "longest µs"].map(str::to_owned);
        let lines: Vec<_> = std::iter::once(&head).chain(&self.lines).collect();
        let widths: [usize; 6] =
            std::array::from_fn(|column| lines.iter().map(|l| l[column].chars().count()).max().unwrap_or_default());
        println!();
        for (index, line) in lines.iter().enumerate() {
            let fields: Vec<String> =
                line.iter().zip(widths).map(|(field, width)| format!("{field:<width$}")).collect();
            println!("| {} |", fields.join(" | "));
            if index == 0 {
                println!("|{}|", widths.map(|width| "-".repeat(width + 2)).join("|"));
            }
        }
    }
}

fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The median, with the least and the most.
fn spread(values: &[f64], digits: usize) -> String {
    let (least, most) = values.iter().fold((f64::MAX, f64::MIN), |(least, most), v| (least.min(*v), most.max(*v)));
    format!("{:.digits$} ({least:.digits$}-{most:.digits$})", median(values))
}
