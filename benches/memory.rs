//! What a session and an open stream cost: resident bytes of the server, over how many of them it holds.
//!
//! `cargo bench --bench memory` opens 100,000 sessions that then do nothing, and stock rmcp's beside them (fewer: each
//! costs so much); then as many open streams as `--streams` says, of both kinds (the GET stream of a session, and
//! `subscriptions/listen`), beside a bare hyper server that holds as many open chunked responses. Without `--bench`, as
//! in `cargo test --benches`, it only shows with small numbers that all of it is served.
//!
//! Resident bytes are the server's `Rss` in `/proc/PID/smaps_rollup`, after less before; what the kernel holds for
//! sockets is not in it, and is the same for all. Throughput is another bench.

#![allow(clippy::print_stdout)] // the figures are the product

use std::{
    env, fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, ExitCode, Stdio},
    thread,
    time::{Duration, Instant},
};

use clap::Parser;
use rustix::process::{Resource, getrlimit, setrlimit};
use serde_json::{Value, json};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

/// Opened before the first reading, so that what grows once has grown.
const WARM_UP: usize = 100;
const START_TIMEOUT: Duration = Duration::from_secs(20);
/// For what was opened last to be at rest.
const SETTLE: Duration = Duration::from_secs(1);

#[derive(Parser)]
#[command(name = "memory")]
struct Args {
    /// Idle sessions.
    #[arg(long, default_value_t = 100_000)]
    sessions: usize,
    /// Idle sessions of stock rmcp.
    #[arg(long, default_value_t = 2_000)]
    rmcp_sessions: usize,
    /// Open streams of each kind.
    #[arg(long, default_value_t = 5_000)]
    streams: usize,
    /// Another build of bigiron to measure.
    #[arg(long)]
    bigiron: Option<PathBuf>,
    /// Said by `cargo bench`; without it the run is a short check.
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> ExitCode {
    let mut args = Args::parse();
    if !args.bench {
        println!("a short check of bigiron alone; `cargo bench --bench memory` measures");
        (args.sessions, args.streams) = (50, 20);
    }
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("memory: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, rustix::process::Rlimit { current: limit.maximum, ..limit })?;
    let needed = args.streams as u64 * 2 + 200;
    if limit.maximum.is_some_and(|most| most < needed) {
        return Err(format!("{needed} open files are needed (ulimit -Hn); give fewer --streams").into());
    }
    let bigiron = args.bigiron.clone().unwrap_or_else(|| env!("CARGO_BIN_EXE_bigiron").into());
    let server = Server::bigiron(&bigiron, args)?;
    let (bytes, ids) = sessions(&server, args.sessions)?;
    println!("bigiron      {:>7} idle sessions      {bytes:>8.0} bytes each", args.sessions);
    let get = streams(&server, args.streams, |n| get_request(&ids[n % ids.len()]))?;
    println!("bigiron      {:>7} GET streams        {:>8.0} bytes each", args.streams, get.bytes);
    let listens = streams(&server, args.streams, listen_request)?;
    println!("bigiron      {:>7} listen streams     {:>8.0} bytes each", args.streams, listens.bytes);
    drop(server);
    if !args.bench {
        return Ok(());
    }
    let peers = build_peers()?;
    let bare = Server::bare_hyper(&peers)?;
    let open = streams(&bare, args.streams, |_| get_request("none"))?;
    println!("bare hyper   {:>7} open responses     {:>8.0} bytes each", args.streams, open.bytes);
    for (name, stream) in [("GET", &get), ("listen", &listens)] {
        println!("bigiron / bare hyper, {name:<6} streams  {:>8.2}", stream.bytes / open.bytes);
    }
    let stock = Server::start(Command::new(peers.join("stock-rmcp")).args(["--threads", "2"]))?;
    let (bytes, _) = sessions(&stock, args.rmcp_sessions)?;
    println!("stock rmcp   {:>7} idle sessions      {bytes:>8.0} bytes each", args.rmcp_sessions);
    Ok(())
}

/// Resident bytes for each session, and the ids.
fn sessions(server: &Server, count: usize) -> Result<(f64, Vec<String>)> {
    let mut client = Client::connect(server.addr)?;
    for _ in 0..WARM_UP {
        client.open_session()?;
    }
    let before = server.resident_bytes()?;
    let ids = (0..count).map(|_| client.open_session()).collect::<Result<Vec<_>>>()?;
    drop(client);
    thread::sleep(SETTLE);
    #[allow(clippy::cast_precision_loss)] // figures for people
    let bytes = server.resident_bytes()?.saturating_sub(before) as f64 / count as f64;
    Ok((bytes, ids))
}

/// Streams that are held open, and what each costs the server.
struct Held {
    bytes: f64,
    _clients: Vec<Client>,
}

fn streams(server: &Server, count: usize, request: impl Fn(usize) -> String) -> Result<Held> {
    let before = server.resident_bytes()?;
    let mut clients = Vec::with_capacity(count);
    for n in 0..count {
        let mut client = Client::connect(server.addr)?;
        client.stream.get_mut().write_all(request(n).as_bytes())?;
        let (status, headers) = client.head()?;
        if status != 200 || !headers.iter().any(|(_, value)| value == "text/event-stream") {
            return Err(format!("stream {n} was answered with {status} {headers:?}").into());
        }
        let mut first = String::new();
        client.stream.read_line(&mut first)?; // the size of the first chunk: the stream has begun
        clients.push(client);
    }
    thread::sleep(SETTLE);
    #[allow(clippy::cast_precision_loss)]
    let bytes = server.resident_bytes()?.saturating_sub(before) as f64 / count as f64;
    Ok(Held { bytes, _clients: clients })
}

fn get_request(session: &str) -> String {
    format!("GET /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\nMcp-Session-Id: {session}\r\n\r\n")
}

fn listen_request(id: usize) -> String {
    let meta = json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {}
    });
    let params = json!({ "notifications": { "toolsListChanged": true }, "_meta": meta });
    let body = json!({ "jsonrpc": "2.0", "id": id, "method": "subscriptions/listen", "params": params }).to_string();
    let extra = "MCP-Protocol-Version: 2026-07-28\r\nMcp-Method: subscriptions/listen\r\n";
    post(extra, &body)
}

fn post(extra: &str, body: &str) -> String {
    format!(
        "POST /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n\
         Accept: application/json, text/event-stream\r\n{extra}Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// A connection.
struct Client {
    stream: BufReader<TcpStream>,
}

impl Client {
    fn connect(addr: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(addr)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(START_TIMEOUT))?;
        Ok(Self { stream: BufReader::with_capacity(1024, stream) })
    }

    fn head(&mut self) -> Result<(u16, Vec<(String, String)>)> {
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        let status = line.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or("no status line")?;
        let mut headers = Vec::new();
        loop {
            line.clear();
            self.stream.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(": ") else { return Ok((status, headers)) };
            headers.push((name.to_ascii_lowercase(), value.to_owned()));
        }
    }

    /// One message and its answer, read to its end.
    fn say(&mut self, extra: &str, message: &Value) -> Result<(u16, Vec<(String, String)>)> {
        self.stream.get_mut().write_all(post(extra, &message.to_string()).as_bytes())?;
        let (status, headers) = self.head()?;
        let header = |name: &str| headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str());
        if let Some(length) = header("content-length") {
            self.stream.read_exact(&mut vec![0; length.parse()?])?;
        } else if header("transfer-encoding").is_some() {
            loop {
                let mut size = String::new();
                self.stream.read_line(&mut size)?;
                let size = usize::from_str_radix(size.trim(), 16)?;
                self.stream.read_exact(&mut vec![0; size + 2])?;
                if size == 0 {
                    break;
                }
            }
        }
        Ok((status, headers))
    }

    fn open_session(&mut self) -> Result<String> {
        let client = json!({ "name": "memory", "version": "1" });
        let params = json!({ "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": client });
        let message = json!({ "jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params });
        let (status, headers) = self.say("", &message)?;
        let id = headers.into_iter().find(|(name, _)| name == "mcp-session-id").map(|(_, id)| id);
        let id = id.ok_or_else(|| format!("initialize was answered with {status} and no session"))?;
        let (status, _) = self.say(
            &format!("Mcp-Session-Id: {id}\r\n"),
            &json!({ "jsonrpc": "2.0", "method": "notifications/initialized" }),
        )?;
        if status == 202 { Ok(id) } else { Err(format!("notifications/initialized was answered with {status}").into()) }
    }
}

/// A server process. Ends with its owner.
struct Server {
    child: Child,
    addr: SocketAddr,
}

impl Server {
    fn bigiron(program: &Path, args: &Args) -> Result<Self> {
        let sessions = args.sessions + 2 * WARM_UP;
        let mut command = Command::new(program);
        command.args(["serve", "--set", "server.admin_listen=", "--set", "log.level=error"]);
        command.args(["--set", &format!("sessions.sessions_max={sessions}")]);
        command.args(["--set", &format!("sessions.per_caller_max={sessions}")]);
        command.args(["--set", &format!("limits.connections_max={}", args.streams * 2 + 100)]);
        command.args(["--set", &format!("limits.streams_max={}", args.streams * 2)]);
        Self::start(&mut command)
    }

    fn bare_hyper(peers: &Path) -> Result<Self> {
        let body = env::temp_dir().join(format!("bigiron-memory-{}.json", std::process::id()));
        fs::write(&body, "{}")?;
        let started = Self::start(Command::new(peers.join("bare-hyper")).args(["--threads", "2", "--body"]).arg(&body));
        fs::remove_file(&body)?;
        started
    }

    fn start(command: &mut Command) -> Result<Self> {
        let addr = TcpListener::bind("127.0.0.1:0")?.local_addr()?;
        let command = command.args(["--listen", &addr.to_string()]).current_dir(env::temp_dir());
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn()?;
        let mut server = Self { child, addr };
        let give_up_at = Instant::now() + START_TIMEOUT;
        while TcpStream::connect(addr).is_err() {
            if let Some(status) = server.child.try_wait()? {
                return Err(format!("a server ended at once ({status})").into());
            }
            if Instant::now() > give_up_at {
                return Err(format!("nothing listens on {addr}").into());
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(server)
    }

    fn resident_bytes(&self) -> Result<u64> {
        let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.child.id()))?;
        let kib =
            rollup.lines().find_map(|line| line.strip_prefix("Rss:")?.trim().strip_suffix("kB")?.trim().parse().ok());
        let kib: u64 = kib.ok_or("no Rss in smaps_rollup")?;
        Ok(kib * 1024)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Builds the package of the peers and says where its programs are.
fn build_peers() -> Result<PathBuf> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("peers");
    let mut build = Command::new(cargo);
    build.args(["build", "--release", "--locked", "--manifest-path"]).arg(folder.join("benches/peers/Cargo.toml"));
    let status = build.arg("--target-dir").arg(&target).status()?;
    if status.success() {
        Ok(target.join("release"))
    } else {
        Err(format!("the peers did not build ({status})").into())
    }
}
