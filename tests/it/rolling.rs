//! Behind HAProxy, as `deploy/haproxy.cfg` sets it up: instances are restarted one after the other and no request on a
//! new connection fails, a call is never sent twice, and streams pass.

#![allow(clippy::print_stdout)] // what was counted and measured is for who runs it

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread,
    time::Duration,
};

use serde_json::json;
use tempfile::TempDir;

use crate::{
    cluster::{metric, node},
    redis::{Redis, free_port},
    support::{PATIENCE, Process, Session, call, eventually, get, modern, modern_headers, post_bytes},
};

/// HAProxy by the file that ships, with the addresses of a test in it.
struct Balancer {
    child: Child,
    addr: SocketAddr,
    folder: TempDir,
}

impl Balancer {
    fn start(a: SocketAddr, b: SocketAddr) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let addr = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/deploy/haproxy.cfg");
        let mut text = std::fs::read_to_string(file).expect("the file that ships");
        let told = format!("global\n    stats socket {} level user\n", folder.path().join("told").display());
        for (shipped, here) in [
            ("global\n", told),
            ("bind 127.0.0.1:8080\n", format!("bind {addr}\n")),
            ("server a 127.0.0.1:5000\n", format!("server a {a}\n")),
            ("server b 127.0.0.1:5010\n", format!("server b {b}\n")),
        ] {
            assert_eq!(text.matches(shipped).count(), 1, "{file} has {shipped:?}");
            text = text.replace(shipped, &here);
        }
        let file = folder.path().join("haproxy.cfg");
        std::fs::write(&file, text).expect("written");
        let mut command = Command::new("haproxy");
        command.args(["-db", "-f"]).arg(&file).stdin(Stdio::null()).stdout(Stdio::null());
        let said = std::fs::File::create(folder.path().join("said")).expect("a file");
        let mut child = command.stderr(said).spawn().unwrap_or_else(|e| {
            panic!("haproxy does not start ({e}): run scripts/setup-tests.sh, or apt-get install haproxy")
        });
        eventually("it listens", || {
            if let Some(status) = child.try_wait().expect("a child of ours") {
                let said = std::fs::read_to_string(folder.path().join("said"));
                panic!("haproxy does not run ({status}): {}", said.unwrap_or_default());
            }
            TcpStream::connect(addr).is_ok()
        });
        let balancer = Self { child, addr, folder };
        balancer.sees("a", "UP");
        balancer.sees("b", "UP");
        balancer
    }

    fn told(&self) -> PathBuf {
        self.folder.path().join("told")
    }

    /// Waits until an instance counts so.
    fn sees(&self, server: &str, state: &str) {
        eventually(&format!("{server} is {state}"), || {
            // Its addresses may be there before this socket is.
            let Ok(mut socket) = UnixStream::connect(self.told()) else { return false };
            socket.write_all(b"show stat\n").expect("asked");
            let start = format!("bigiron,{server},");
            let line = BufReader::new(socket).lines().map_while(Result::ok).find(|line| line.starts_with(&start));
            line.expect("an instance").split(',').nth(17) == Some(state)
        });
    }
}

impl Drop for Balancer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An instance at an address that it has again after a restart.
struct Instance {
    id: &'static str,
    addr: SocketAddr,
    args: Vec<String>,
    process: Process,
}

impl Instance {
    fn start(redis: &Redis, id: &'static str) -> Self {
        let addr = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let mut args = node(redis, id);
        // Half a second between two checks, two that fail, and some time more for a busy host.
        args.extend(["--set", "server.drain_delay_ms=2000", "--listen"].map(str::to_owned));
        args.push(addr.to_string());
        let process = Self::run(&args);
        Self { id, addr, args, process }
    }

    fn run(args: &[String]) -> Process {
        Process::start(&args.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// Stops it as an operator does, and starts it again; returns when it is in service.
    fn restart(&mut self, balancer: &Balancer) {
        self.process.signal("TERM");
        balancer.sees(self.id, "DOWN");
        assert_eq!(self.process.wait().code(), Some(0));
        self.process.log_line_with("every call was answered");
        self.process = Self::run(&self.args);
        balancer.sees(self.id, "UP");
    }
}

/// What came of requests, each on a connection of its own.
#[derive(Default)]
struct Load {
    sent: AtomicU64,
    echoed: AtomicU64,
    pinged: AtomicU64,
    failed: Mutex<Vec<String>>,
    is_over: AtomicBool,
}

impl Load {
    /// Sends until it is over: calls, and now and then something in a session.
    fn run(&self, addr: SocketAddr, session: &str, thread: usize) {
        for n in 0_u64.. {
            if self.is_over.load(SeqCst) {
                return;
            }
            self.sent.fetch_add(1, SeqCst);
            let text = format!("{thread}-{n}.");
            let (bytes, wanted, count) = if n % 10 == 9 {
                let ping = json!({ "jsonrpc": "2.0", "id": n, "method": "ping" }).to_string();
                let headers = [("Connection", "close"), ("Mcp-Session-Id", session)];
                (post_bytes(&headers, ping.as_bytes()), format!("\"id\":{n}"), &self.pinged)
            } else {
                let request = modern(n, "tools/call", json!({ "name": "echo", "arguments": { "message": text } }));
                let [version, method, name] = modern_headers("tools/call", "echo");
                let headers = [("Connection", "close"), version, method, name];
                (post_bytes(&headers, request.to_string().as_bytes()), text, &self.echoed)
            };
            match request(addr, &bytes) {
                Ok(answer) if answer.starts_with("HTTP/1.1 200") && answer.contains(&wanted) => {
                    count.fetch_add(1, SeqCst);
                }
                other => self.failed.lock().expect("no panic").push(format!("{wanted}: {other:?}")),
            }
        }
    }
}

/// The whole answer to one request on a new connection.
pub(crate) fn request(addr: SocketAddr, bytes: &[u8]) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&addr, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(bytes)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// Restarts both instances so often while at least so many requests are sent, of which none fails.
fn rolling(restarts: usize, requests: u64) {
    let redis = Redis::start();
    let (mut a, mut b) = (Instance::start(&redis, "a"), Instance::start(&redis, "b"));
    let balancer = Balancer::start(a.addr, b.addr);
    let session = Session::open(balancer.addr, "2025-11-25").id;
    let load = Arc::<Load>::default();
    let threads: Vec<_> = (0..8)
        .map(|thread| {
            let (load, session, addr) = (Arc::clone(&load), session.clone(), balancer.addr);
            thread::spawn(move || load.run(addr, &session, thread))
        })
        .collect();
    let mut restarted = 0;
    for _ in 0..restarts {
        for instance in [&mut a, &mut b] {
            let before = load.sent.load(SeqCst);
            instance.restart(&balancer);
            restarted += 1;
            assert!(load.sent.load(SeqCst) > before, "all the while");
        }
    }
    while load.sent.load(SeqCst) < requests {
        thread::sleep(Duration::from_millis(10));
    }
    load.is_over.store(true, SeqCst);
    threads.into_iter().for_each(|thread| thread.join().expect("no panic"));
    let count = |count: &AtomicU64| count.load(SeqCst);
    let (sent, echoed, pinged) = (count(&load.sent), count(&load.echoed), count(&load.pinged));
    let failed = load.failed.lock().expect("no panic");
    println!(
        "{restarted} restarts of 2 instances; {sent} requests on new connections: {echoed} calls and {pinged} pings in \
         a session answered, {} failed",
        failed.len()
    );
    assert!(failed.is_empty(), "{:#?}", &failed[..failed.len().min(10)]);
    assert_eq!((restarted, sent), (2 * restarts, echoed + pinged), "each is counted once");
    assert!(sent >= requests && pinged > 0);
}

#[test]
fn no_request_fails_while_both_instances_are_restarted() {
    rolling(1, 2000);
}

#[test]
#[ignore = "takes 2 min: cargo test --test it -- --ignored --nocapture rolling::"]
fn no_request_of_100_000_fails_while_both_instances_are_restarted_ten_times() {
    rolling(10, 100_000);
}

#[test]
fn a_call_whose_instance_dies_is_not_sent_to_another() {
    let redis = Redis::start();
    let (a, b) = (Instance::start(&redis, "a"), Instance::start(&redis, "b"));
    let balancer = Balancer::start(a.addr, b.addr);
    let burn = modern(1, "tools/call", json!({ "name": "burn", "arguments": { "ms": 4000 } })).to_string();
    let [version, method, name] = modern_headers("tools/call", "burn");
    let bytes = post_bytes(&[("Connection", "close"), version, method, name], burn.as_bytes());
    let addr = balancer.addr;
    let answer = thread::spawn(move || request(addr, &bytes).expect("an answer"));
    let runs = |instance: &Instance| metric(&instance.process, "bigiron_requests_in_flight") == 1.0;
    eventually("it runs", || runs(&a) || runs(&b));
    let (runs, other) = if runs(&a) { (&a, &b) } else { (&b, &a) };
    runs.process.signal("KILL");
    let answer = answer.join().expect("no panic");
    assert!(answer.starts_with("HTTP/1.1 502"), "only its client knows whether it may run again: {answer}");
    // A process that ends may close its listener last.
    eventually("nobody listens there", || TcpStream::connect(runs.addr).is_err());
    // What comes now is served by the other, at once: nothing was sent to who is gone.
    for n in 0..10 {
        let text = n.to_string();
        assert_eq!(call(balancer.addr, "echo", json!({ "message": text })).text(), text);
    }
    let told = String::from_utf8(get(other.process.admin_addr, "/metrics").body).expect("text");
    let burned = told.lines().find(|line| line.contains("tool=\"burn\"") && !line.ends_with(" 0"));
    assert_eq!(burned, None, "it did not run there");
}

#[test]
fn a_stream_passes_as_it_comes() {
    let redis = Redis::start();
    let everything = |id: &str| {
        let args = node(&redis, id);
        Process::start_example_with("everything", &args.iter().map(String::as_str).collect::<Vec<_>>())
    };
    let (a, b) = (everything("a"), everything("b"));
    let balancer = Balancer::start(a.addr, b.addr);
    let mut session = Session::open(balancer.addr, "2025-11-25");
    let mut stream = session.listen(balancer.addr, None);
    stream.comment();
    // Of each pair, one is not made where the stream is.
    for id in 1..=2 {
        let params = json!({ "name": "test_trigger_tool_change", "arguments": {} });
        assert_eq!(session.request(id, "tools/call", params).status, 200);
        assert_eq!(stream.message()["method"], "notifications/tools/list_changed");
    }
}
