//! Where rows run: the real program, a server of our own tools that counts what reaches them, and the program with
//! short time limits. Each has the gate that must hold after every row: the same process answers a new connection, and
//! nothing of the row is left.

use std::{
    cell::RefCell,
    fs,
    net::SocketAddr,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use bigiron::server::Running;
use serde_json::json;

use super::{
    tools::{self, Seen},
    wire::{Request, Want, echo_text},
};
use crate::support::{Process, Session, call, start};

/// The page that may call from a browser.
pub(super) const PAGE: &str = "https://page.example";
/// A secret that clients send and that nothing here may write down.
pub(super) const SECRET: &str = "canary-4f1c9be2";
/// The short limits of [`Kind::Hurried`].
pub(super) const SHORT_MS: u64 = 500;

/// Descriptors that may come and go by themselves.
const DESCRIPTORS_MORE_MAX: usize = 2;
/// How long what a row has left may take to go.
const LEFT_PATIENCE: Duration = Duration::from_secs(5);
/// Clients that warm it up at once.
const WARM_UP_CLIENTS: usize = 4;
/// Memory that a row may leave behind, in KiB: what allocators keep.
const MEMORY_MORE_MAX_KIB: u64 = 16 * 1024;
/// A log line says what happened, not what was sent.
const LOG_LINE_BYTES_MAX: usize = 2048;

/// A kind of place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// The program.
    Program,
    /// A server in this process, with tools of our own beside `echo` and `burn`.
    OwnTools,
    /// The program with time limits of half a second.
    Hurried,
}

/// A running server and what it looked like before the first row.
pub(super) struct Place {
    pub(super) kind: Kind,
    pub(super) addr: SocketAddr,
    server: Server,
    before: RefCell<Footprint>,
    faults: RefCell<Vec<String>>,
}

enum Server {
    Program(Box<Process>),
    Own(Box<Running>, Arc<Seen>),
}

/// What a server holds.
#[derive(Clone, Copy, Debug, Default)]
struct Footprint {
    descriptors: usize,
    memory_kib: u64,
    connections: usize,
    sessions: usize,
}

impl Place {
    pub(super) fn start(kind: Kind) -> Self {
        let (server, addr) = match kind {
            Kind::OwnTools => {
                let (builder, seen) = tools::server();
                let running = start(builder, |tuning| {
                    tuning.server.allowed_origins = vec![PAGE.to_owned()];
                    tuning.server.drain_grace_ms = 60_000;
                    tuning.limits.request_timeout_ms = 60_000;
                    (tuning.pool.threads, tuning.pool.threads_max) = (1, 1);
                });
                let addr = running.addr();
                (Server::Own(Box::new(running), seen), addr)
            }
            Kind::Program | Kind::Hurried => {
                let page = format!("server.allowed_origins=[\"{PAGE}\"]");
                let mut settings = vec![
                    // One thread in the pool: a call that should be over and is not would hold up the next one.
                    "server.drain_grace_ms=60000",
                    "limits.request_timeout_ms=60000",
                    "pool.threads=1",
                    "pool.threads_max=1",
                    "tools.query_sql.enabled=false",
                    "log.level=debug",
                    page.as_str(),
                ];
                let (header, idle) =
                    (format!("limits.header_timeout_ms={SHORT_MS}"), format!("limits.idle_timeout_ms={SHORT_MS}"));
                if kind == Kind::Hurried {
                    settings.extend([header.as_str(), idle.as_str()]);
                }
                let arguments: Vec<_> = settings.iter().flat_map(|setting| ["--set", setting]).collect();
                let process = Process::start(&arguments);
                let addr = process.addr;
                (Server::Program(Box::new(process)), addr)
            }
        };
        let place = Self { kind, addr, server, before: RefCell::default(), faults: RefCell::default() };
        place.warm_up();
        place
    }

    /// Does once what needs most. What an allocator keeps after that is no leak, and neither are threads.
    fn warm_up(&self) {
        thread::scope(|scope| {
            let addr = self.addr;
            for _ in 0..WARM_UP_CLIENTS {
                scope.spawn(move || Want::Served.of(addr, &large()).expect("a large body is read"));
            }
        });
        assert_eq!(call(self.addr, "burn", json!({ "ms": 1 })).status, 200);
    }

    /// Takes the present state as the one to return to.
    pub(super) fn settle(&self) {
        thread::sleep(Duration::from_millis(50)); // the last connections of the preparation close
        let now = self.footprint();
        let mut before = self.before.borrow_mut();
        *before = Footprint { memory_kib: now.memory_kib.max(before.memory_kib), ..now };
    }

    /// Sends the bytes of one case and notes what is wrong with what comes back.
    pub(super) fn case(&self, what: &str, request: &Request, want: Want) {
        self.case_of_bytes(what, &request.bytes(), want);
    }

    pub(super) fn case_of_bytes(&self, what: &str, bytes: &[u8], want: Want) {
        self.noted(what, || want.of(self.addr, bytes));
    }

    /// A body that is refused whatever the revision: sent alone, and in a session.
    pub(super) fn in_both_eras(&self, what: &str, body: impl Into<Vec<u8>>, want: Want) {
        let body = body.into();
        self.case(what, &Request::forbidden().body(body.clone()), want);
        let session = self.session();
        let request = Request::post(body).with(format!("Mcp-Session-Id: {}", session.id));
        self.case(&format!("{what}, in a session"), &request, want);
        session.end();
    }

    /// Does something, and notes what was wrong.
    pub(super) fn noted(&self, what: &str, check: impl FnOnce() -> Result<(), String>) {
        let checked = catch_unwind(AssertUnwindSafe(check)).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            Err(text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("panicked").to_owned())
        });
        if let Err(fault) = checked {
            self.faults.borrow_mut().push(format!("{what}: {fault}"));
        }
    }

    pub(super) fn take_faults(&self) -> Vec<String> {
        self.faults.take()
    }

    pub(super) fn session(&self) -> Session {
        Session::open(self.addr, "2025-11-25")
    }

    /// What reached the tools, where they are ours.
    pub(super) fn seen(&self) -> Option<&Seen> {
        if let Server::Own(_, seen) = &self.server { Some(seen) } else { None }
    }

    /// Memory of the process, in KiB. Of our own process there is nothing to say: other tests run in it.
    pub(super) fn memory_kib(&self) -> Option<u64> {
        let Server::Program(process) = &self.server else { return None };
        let status = fs::read_to_string(format!("/proc/{}/status", process.pid())).expect("the process is there");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("it has memory");
        line.split_whitespace().next().expect("a number").parse().ok()
    }

    fn footprint(&self) -> Footprint {
        match &self.server {
            Server::Program(process) => Footprint {
                descriptors: fs::read_dir(format!("/proc/{}/fd", process.pid())).expect("the process is there").count(),
                memory_kib: self.memory_kib().expect("a process of its own"),
                ..Footprint::default()
            },
            Server::Own(running, _) => {
                Footprint { connections: running.connections(), sessions: running.sessions(), ..Footprint::default() }
            }
        }
    }

    /// What must hold after every row.
    pub(super) fn gate(&self) {
        self.noted("gate, a call on a new connection", || {
            let response = call(self.addr, "echo", json!({ "message": "alive" }));
            if response.status == 200 && response.text() == "alive" { Ok(()) } else { Err(format!("{response:?}")) }
        });
        self.noted("gate, nothing is left", || self.is_as_before());
        self.noted("gate, what was written and run", || self.is_innocent());
    }

    fn is_as_before(&self) -> Result<(), String> {
        let before = *self.before.borrow();
        let until = Instant::now() + LEFT_PATIENCE;
        loop {
            let now = self.footprint();
            let in_flight =
                if let Server::Own(running, seen) = &self.server { running.in_flight() + seen.running() } else { 0 };
            let same = now.descriptors.abs_diff(before.descriptors) <= DESCRIPTORS_MORE_MAX
                && now.memory_kib <= before.memory_kib + MEMORY_MORE_MAX_KIB
                && now.connections == before.connections
                && now.sessions == before.sessions
                && in_flight == 0;
            if same {
                return Ok(());
            }
            if Instant::now() > until {
                return Err(format!("it was {before:?}, and is {now:?} with {in_flight} in flight"));
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    fn is_innocent(&self) -> Result<(), String> {
        match &self.server {
            Server::Own(_, seen) => match seen.take_forbidden() {
                0 => Ok(()),
                n => Err(format!("{n} calls that should have been refused have reached the tool")),
            },
            Server::Program(process) => {
                let bad = |line: &&String| {
                    let loud = ["panicked", "\"level\":\"ERROR\"", SECRET].iter().any(|word| line.contains(word));
                    loud || line.len() > LOG_LINE_BYTES_MAX
                };
                match process.log_lines().iter().find(bad) {
                    None => Ok(()),
                    Some(line) => Err(format!("the log says {:.400}", line)),
                }
            }
        }
    }
}

/// A call with a body of nearly 1 MiB, of many small values.
fn large() -> Vec<u8> {
    let arguments = format!(r#"{{"message":[{}0]}}"#, "0,".repeat(500_000));
    Request::good().body(echo_text("1", &arguments)).bytes()
}
