//! What it costs to be one of several instances: calls with `cluster.redis` set against the same without, and how often
//! Redis is asked for a session that this instance knows, and for one that it does not.
//!
//! The Redis is a process of its own, beside the load; it ends with the experiment.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use crate::{
    Result,
    caller::{Caller, Driven, Way, drive, echo, request},
    lab::{Lab, Server, pin},
    median, verdict,
};

const CALLERS: usize = 64;
/// Pairs of servers, at least five.
const PAIRS: usize = 13;
const WARM_UP: Duration = Duration::from_millis(500);
const STATELESS_MIN: f64 = 0.97;
const SESSION_MIN: f64 = 0.9;
/// Sessions that are opened at one instance and used at another.
const MOVED: usize = 500;
const REVISION: &str = "2025-11-25";

/// A Redis without files.
struct Redis {
    child: Child,
    address: SocketAddr,
}

impl Redis {
    fn start(lab: &Lab) -> Result<Self> {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut command = Command::new("redis-server");
        command.args(["--bind", "127.0.0.1", "--port", &port.to_string(), "--save", "", "--appendonly", "no"]);
        command.current_dir(&**lab.folder).stdin(Stdio::null()).stdout(Stdio::null());
        pin(&lab.cores.1)?;
        let child = command.spawn();
        pin(&lab.all_cores())?;
        let child = child.map_err(|error| format!("redis-server: {error}; apt-get install redis-server"))?;
        let redis = Self { child, address: SocketAddr::from(([127, 0, 0, 1], port)) };
        let until = Instant::now() + Duration::from_secs(10);
        while redis.ask("PING").is_err() {
            if Instant::now() > until {
                return Err("redis-server does not answer".into());
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(redis)
    }

    fn setting(&self) -> String {
        format!("cluster.redis=redis://{}", self.address)
    }

    /// All that Redis says to one command.
    fn ask(&self, command: &str) -> Result<String> {
        let mut stream = TcpStream::connect(self.address)?;
        stream.write_all(format!("{command}\r\nQUIT\r\n").as_bytes())?;
        let mut said = String::new();
        stream.read_to_string(&mut said)?;
        Ok(said)
    }

    /// How often a session was asked for so far: by a command that is used for nothing else.
    fn gets(&self) -> Result<f64> {
        let said = self.ask("INFO commandstats")?;
        let calls = said.lines().find_map(|line| line.strip_prefix("cmdstat_getrange:calls=")?.split(',').next());
        Ok(calls.map_or(Ok(0.0), str::parse)?)
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Opens a session of an older revision; what calls in it begin with.
fn open(server: &Server) -> Result<String> {
    let body = format!(
        r#"{{"jsonrpc":"2.0","id":0,"method":"initialize","params":{{"protocolVersion":"{REVISION}","capabilities":{{}},"clientInfo":{{"name":"experiments","version":"1"}}}}}}"#
    );
    let mut caller = Caller::new(Way::to(server), request("POST", None, "", &body));
    let status = caller.call()?;
    let session = caller.reply().session().filter(|_| status == 200).ok_or("no session was opened")?;
    let head = format!("MCP-Protocol-Version: {REVISION}\r\nMcp-Session-Id: {session}\r\n");
    caller.set_request(request("POST", None, &head, r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#));
    if caller.call()? != 202 {
        return Err("a session was not begun".into());
    }
    Ok(head)
}

fn echo_in(session: &str) -> Vec<u8> {
    let body =
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","arguments":{"message":"hello"}}}"#;
    request("POST", None, session, body)
}

/// Inline echo calls with and without `cluster.redis`, in both eras, and sessions that another instance opened.
pub(crate) fn cluster(lab: &Lab) -> Result<()> {
    let redis = Redis::start(lab)?;
    let setting = redis.setting();
    let attached = [setting.as_str()];
    println!("echo, HTTP/1.1, {CALLERS} connections, {PAIRS} pairs of new servers");
    println!("{:55} {:>10} {:>16}", "", "calls/s", "calls/CPU-second");
    for (what, is_session, least) in
        [("stateless calls", false, STATELESS_MIN), ("calls in a session known here", true, SESSION_MIN)]
    {
        let stretch = |settings: &[&str]| {
            let server = lab.serve(None, settings)?;
            let bytes =
                || -> Result<Vec<u8>> { if is_session { Ok(echo_in(&open(&server)?)) } else { Ok(echo(None)) } };
            let mut callers =
                (0..CALLERS).map(|_| Ok(Caller::new(Way::to(&server), bytes()?))).collect::<Result<Vec<_>>>()?;
            drive(lab, &server, &mut callers, WARM_UP, 200)?;
            drive(lab, &server, &mut callers, Duration::from_secs(lab.seconds.div_ceil(3)), 200)
        };
        let mut driven: Vec<[Driven; 2]> = Vec::new();
        for round in 0..PAIRS {
            // New ones each time, since of two equal processes one is often faster by some percent; and each is the
            // first in turn.
            driven.push(if round % 2 == 0 {
                let alone = stretch(&[])?;
                [alone, stretch(&attached)?]
            } else {
                let attached = stretch(&attached)?;
                [stretch(&[])?, attached]
            });
        }
        for (side, name) in [(0, "alone"), (1, "with cluster.redis")] {
            println!(
                "{:55} {:>10.0} {:>16.0}",
                format!("{what}, {name}"),
                median(driven.iter().map(|pair| pair[side].per_s()).collect()),
                median(driven.iter().map(|pair| pair[side].per_cpu_s()).collect()),
            );
        }
        let share = median(driven.iter().map(|pair| pair[1].per_cpu_s() / pair[0].per_cpu_s()).collect());
        let by_time = median(driven.iter().map(|pair| pair[1].per_s() / pair[0].per_s()).collect());
        verdict(
            &format!("{what} per CPU-second with cluster.redis >= {least} of those without"),
            share >= least,
            format!("{share:.3}, median of {PAIRS} pairs ({by_time:.3} by calls/s)"),
        );
    }
    moved(lab, &redis)
}

/// Sessions that one instance opened are used at another, twice each.
fn moved(lab: &Lab, redis: &Redis) -> Result<()> {
    let setting = redis.setting();
    let (first, second) = (lab.serve(None, &[&setting])?, lab.serve(None, &[&setting])?);
    let sessions = (0..MOVED).map(|_| open(&first)).collect::<Result<Vec<_>>>()?;
    let mut caller = Caller::new(Way::to(&second), Vec::new());
    let mut asked = Vec::new();
    for _ in 0..2 {
        let before = redis.gets()?;
        for session in &sessions {
            caller.set_request(echo_in(session));
            let status = caller.call()?;
            if status != 200 {
                return Err(format!("a session of another instance: {status}: {}", caller.reply().text()).into());
            }
        }
        asked.push(redis.gets()? - before);
    }
    verdict(
        "a session that this instance does not know costs one round trip to Redis, once",
        asked == [MOVED as f64, 0.0],
        format!("{} at the first calls in {MOVED} sessions, {} at the second ones", asked[0], asked[1]),
    );
    Ok(())
}
