//! One connection that calls, over TCP or TLS, and what can be done with some of them: calls without a pause, to
//! see what one costs, and calls at a pace, to see how long each takes.
//!
//! Blocking sockets and HTTP/1.1. Every answer is read to its end, and its status counted.

use std::{
    collections::BTreeMap,
    io::{ErrorKind, Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use rustls::{ClientConfig, ClientConnection, StreamOwned, pki_types::ServerName};

use crate::{
    Result,
    lab::{Lab, Server},
    reply::Reply,
};

/// Longer than an answer takes anywhere.
const PATIENCE: Duration = Duration::from_secs(20);
const MODERN: &str = "2026-07-28";

/// The bytes of a call in the revision without sessions.
pub(crate) fn call(token: Option<&str>, tool: &str, arguments: &str) -> Vec<u8> {
    let body = format!(
        r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"{tool}","arguments":{arguments},"_meta":{{"io.modelcontextprotocol/protocolVersion":"{MODERN}","io.modelcontextprotocol/clientInfo":{{"name":"experiments","version":"1"}},"io.modelcontextprotocol/clientCapabilities":{{}}}}}}}}"#
    );
    let headers = format!("MCP-Protocol-Version: {MODERN}\r\nMcp-Method: tools/call\r\nMcp-Name: {tool}\r\n");
    request("POST", token, &headers, &body)
}

/// The call that everything is measured with.
pub(crate) fn echo(token: Option<&str>) -> Vec<u8> {
    call(token, "echo", r#"{"message":"hello"}"#)
}

/// Any request to the endpoint.
pub(crate) fn request(method: &str, token: Option<&str>, headers: &str, body: &str) -> Vec<u8> {
    let token = token.map(|token| format!("Authorization: Bearer {token}\r\n")).unwrap_or_default();
    let accepted = if method == "GET" { "text/event-stream" } else { "application/json, text/event-stream" };
    let about = if body.is_empty() {
        String::new()
    } else {
        format!("Content-Type: application/json\r\nContent-Length: {}\r\n", body.len())
    };
    format!("{method} /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: {accepted}\r\n{token}{headers}{about}\r\n{body}")
        .into()
}

/// Whom to call, and how.
#[derive(Clone)]
pub(crate) struct Way {
    pub(crate) to: SocketAddr,
    /// An address of this host, where it matters.
    pub(crate) from: Option<IpAddr>,
    pub(crate) tls: Option<Arc<ClientConfig>>,
}

impl Way {
    pub(crate) fn to(server: &Server) -> Self {
        Self { to: server.address, from: None, tls: None }
    }

    /// A connection with nothing on it yet.
    pub(crate) fn open(&self) -> Result<TcpStream> {
        let socket = socket2::Socket::new(socket2::Domain::for_address(self.to), socket2::Type::STREAM, None)?;
        if let Some(from) = self.from {
            socket.bind(&SocketAddr::new(from, 0).into())?;
        }
        socket.connect_timeout(&self.to.into(), PATIENCE)?;
        let stream: TcpStream = socket.into();
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.set_write_timeout(Some(PATIENCE))?;
        Ok(stream)
    }

    fn connect(&self) -> Result<Wire> {
        let stream = self.open()?;
        let Some(tls) = &self.tls else { return Ok(Wire::Plain(stream)) };
        let session = ClientConnection::new(Arc::clone(tls), ServerName::try_from("localhost")?)?;
        Ok(Wire::Secure(Box::new(StreamOwned::new(session, stream))))
    }
}

enum Wire {
    Plain(TcpStream),
    Secure(Box<StreamOwned<ClientConnection, TcpStream>>),
}

/// A connection, opened anew when the server has ended it.
pub(crate) struct Caller {
    way: Way,
    wire: Option<Wire>,
    request: Vec<u8>,
    reply: Reply,
}

impl Caller {
    pub(crate) fn new(way: Way, request: Vec<u8>) -> Self {
        Self { way, wire: None, request, reply: Reply::new() }
    }

    fn send(&mut self) -> Result<()> {
        self.reply.clear();
        if self.wire.is_none() {
            self.wire = Some(self.way.connect()?);
        }
        match &mut self.wire {
            Some(Wire::Plain(stream)) => stream.write_all(&self.request)?,
            Some(Wire::Secure(stream)) => {
                stream.write_all(&self.request)?;
                stream.flush()?;
            }
            None => {}
        }
        Ok(())
    }

    /// Waits for the answer; its status.
    fn receive(&mut self) -> Result<u16> {
        loop {
            let room = self.reply.room()?;
            let bytes = match &mut self.wire {
                Some(Wire::Plain(stream)) => stream.read(room),
                Some(Wire::Secure(stream)) => stream.read(room),
                None => Ok(0),
            };
            let bytes = bytes.map_err(|error| match error.kind() {
                ErrorKind::WouldBlock => format!("no whole answer within {PATIENCE:?}, only {:?}", self.reply.text()),
                _ => error.to_string(),
            })?;
            if bytes == 0 {
                return Err(format!("the server ended a connection within an answer: {}", self.reply.text()).into());
            }
            if self.reply.received(bytes)? {
                break;
            }
        }
        if self.reply.closes() {
            self.wire = None;
        }
        Ok(self.reply.status())
    }

    /// One call; its status.
    pub(crate) fn call(&mut self) -> Result<u16> {
        self.send()?;
        self.receive()
    }

    /// Calls with these bytes from now on.
    pub(crate) fn set_request(&mut self, request: Vec<u8>) {
        self.request = request;
    }

    pub(crate) fn reply(&self) -> &Reply {
        &self.reply
    }
}

/// What calls without a pause came to.
#[derive(Clone, Copy)]
pub(crate) struct Driven {
    pub(crate) calls: u64,
    pub(crate) elapsed_s: f64,
    /// Of the server.
    pub(crate) cpu_s: f64,
}

impl Driven {
    pub(crate) fn per_s(self) -> f64 {
        self.calls as f64 / self.elapsed_s
    }

    pub(crate) fn per_cpu_s(self) -> f64 {
        self.calls as f64 / self.cpu_s
    }
}

/// Keeps one call under way on every connection for so long, in turn; all have to be answered with `status`.
pub(crate) fn drive(lab: &Lab, server: &Server, callers: &mut [Caller], time: Duration, status: u16) -> Result<Driven> {
    let share = callers.len().div_ceil(lab.cores.1.len().max(1));
    lab.on_load_cores(|| {
        let (began, cpu_s) = (Instant::now(), server.cpu_s()?);
        let calls = thread::scope(|scope| {
            let running: Vec<_> =
                callers.chunks_mut(share).map(|some| scope.spawn(move || drive_some(some, time, status))).collect();
            running.into_iter().map(|thread| thread.join().map_err(|_| "a load panicked")?).sum::<Result<u64>>()
        })?;
        Ok(Driven { calls, elapsed_s: began.elapsed().as_secs_f64(), cpu_s: server.cpu_s()? - cpu_s })
    })
}

fn drive_some(callers: &mut [Caller], time: Duration, status: u16) -> Result<u64> {
    let until = Instant::now() + time;
    callers.iter_mut().try_for_each(Caller::send)?;
    let mut calls = 0;
    let mut is_over = false;
    // The server works on the others while one is read: it is never without a call.
    while !is_over {
        is_over = Instant::now() >= until;
        for caller in callers.iter_mut() {
            let got = caller.receive()?;
            if got != status {
                return Err(format!("expected {status}, got:\n{}", caller.reply.text()).into());
            }
            calls += 1;
            if !is_over {
                caller.send()?;
            }
        }
    }
    Ok(calls)
}

/// What calls at a pace came to.
pub(crate) struct Paced {
    pub(crate) latency_ns: Histogram<u64>,
    pub(crate) statuses: BTreeMap<u16, u64>,
    pub(crate) elapsed_s: f64,
}

impl Paced {
    pub(crate) fn new() -> Result<Self> {
        let latency_ns = Histogram::new_with_bounds(1, 60_000_000_000, 3)?;
        Ok(Self { latency_ns, statuses: BTreeMap::new(), elapsed_s: 0.0 })
    }

    pub(crate) fn add(&mut self, other: &Self) -> Result<()> {
        self.latency_ns.add(&other.latency_ns)?;
        other.statuses.iter().for_each(|(status, count)| *self.statuses.entry(*status).or_default() += count);
        self.elapsed_s = self.elapsed_s.max(other.elapsed_s);
        Ok(())
    }

    pub(crate) fn of(&self, status: u16) -> u64 {
        self.statuses.get(&status).copied().unwrap_or(0)
    }

    pub(crate) fn success(&self) -> f64 {
        self.of(200) as f64 / self.statuses.values().sum::<u64>() as f64
    }

    pub(crate) fn p99_ms(&self) -> f64 {
        self.latency_ns.value_at_quantile(0.99) as f64 / 1e6
    }
}

/// Calls at an even pace for so long. A call's time begins when it was due, if the one before took that long.
pub(crate) fn pace(caller: &mut Caller, per_s: f64, time: Duration) -> Result<Paced> {
    let mut paced = Paced::new()?;
    let began = Instant::now();
    for n in 0.. {
        let after = Duration::from_secs_f64(f64::from(n) / per_s);
        if after >= time {
            break;
        }
        let mut due = began + after;
        if let Some(early) = due.checked_duration_since(Instant::now()) {
            thread::sleep(early);
            due = Instant::now(); // that we sleep too long is not the server's
        }
        let status = caller.call()?;
        paced.latency_ns.record(u64::try_from(due.elapsed().as_nanos())?.max(1))?;
        *paced.statuses.entry(status).or_default() += 1;
    }
    paced.elapsed_s = began.elapsed().as_secs_f64();
    Ok(paced)
}

/// The same with each caller on a thread of its own.
pub(crate) fn pace_all(callers: &mut [Caller], per_s_each: f64, time: Duration) -> Result<Paced> {
    thread::scope(|scope| {
        let running: Vec<_> =
            callers.iter_mut().map(|caller| scope.spawn(move || pace(caller, per_s_each, time))).collect();
        let mut all = Paced::new()?;
        for thread in running {
            all.add(&thread.join().map_err(|_| "a load panicked")??)?;
        }
        Ok(all)
    })
}
