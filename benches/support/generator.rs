//! The load: one thread, raw nonblocking sockets behind epoll, a closed loop over a fixed number of keep-alive
//! connections, each with one call in flight. Requests are bytes made beforehand; of an answer, status and the
//! whole message are checked, every time.
//!
//! A closed loop finds how many calls a server can do when it is never idle. Its latency is the wait behind the
//! other connections (about connections / rate) and says nothing of a lightly loaded server.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;
use rustix::{
    buffer::spare_capacity,
    event::{Timespec, epoll},
    fd::OwnedFd,
    io::Errno,
};

use super::{
    Result,
    reply::Reply,
    requests::{ANSWER_TIMEOUT, Expected, Request, Row, close_session, connect, open_session},
};

const LATENCY_NS_MAX: u64 = 60_000_000_000;
const EVENTS: epoll::EventFlags = epoll::EventFlags::IN.union(epoll::EventFlags::RDHUP).union(epoll::EventFlags::ET);
const NO_SESSION: &str = "00000000-0000-0000-0000-000000000000";

struct Connection {
    stream: TcpStream,
    session: Option<String>,
    request: Request,
    reply: Reply,
    sent_at: Instant,
}

pub(crate) struct Generator<'a> {
    address: SocketAddr,
    expected: &'a Expected,
    connections: Vec<Connection>,
    epoll: OwnedFd,
    ready: Vec<epoll::Event>,
}

/// What was driven in one stretch of time.
pub(crate) struct Driven {
    pub(crate) calls: u64,
    pub(crate) elapsed: Duration,
    pub(crate) latency_ns: Histogram<u64>,
}

impl<'a> Generator<'a> {
    /// Connects, opens sessions where the row has them, and sends the first call on each connection.
    /// `plain` servers have no sessions to open.
    pub(crate) fn start(
        row: Row,
        address: SocketAddr,
        connections: usize,
        expected: &'a Expected,
        plain: bool,
    ) -> Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mut started = Vec::with_capacity(connections);
        for index in 0..connections {
            let mut connection = Connection::open(row, address, plain)?;
            connection.stream.set_nonblocking(true)?;
            epoll::add(&epoll, &connection.stream, epoll::EventData::new_u64(index as u64), EVENTS)?;
            connection.send(Instant::now())?;
            started.push(connection);
        }
        Ok(Self { address, expected, connections: started, epoll, ready: Vec::with_capacity(connections) })
    }

    /// Keeps every connection busy for a while. Calls in flight at the end stay in flight.
    pub(crate) fn drive(&mut self, duration: Duration) -> Result<Driven> {
        let begin = Instant::now();
        let end = begin + duration;
        let mut now = begin;
        let mut calls = 0;
        let mut latency_ns = Histogram::new_with_bounds(1_000, LATENCY_NS_MAX, 3)?;
        while now < end {
            self.wait()?;
            for event in self.ready.drain(..) {
                let connection = &mut self.connections[event.data.u64() as usize];
                if connection.receive(self.expected)? {
                    now = Instant::now();
                    latency_ns.saturating_record((now - connection.sent_at).as_nanos() as u64);
                    calls += 1;
                    connection.request.next_id();
                    if connection.reply.closes() {
                        connection.reconnect(self.address)?;
                        epoll::add(&self.epoll, &connection.stream, event.data, EVENTS)?;
                    }
                    connection.send(now)?;
                }
            }
        }
        Ok(Driven { calls, elapsed: now - begin, latency_ns })
    }

    /// Takes the answers still due, and ends sessions and connections.
    pub(crate) fn finish(mut self) -> Result<()> {
        for connection in &mut self.connections {
            connection.stream.set_nonblocking(false)?;
            while !connection.receive(self.expected)? {}
            close_session(&mut connection.stream, self.address, connection.session.as_deref())?;
        }
        Ok(())
    }

    fn wait(&mut self) -> Result<()> {
        let timeout = Timespec { tv_sec: ANSWER_TIMEOUT.as_secs() as i64, tv_nsec: 0 };
        match epoll::wait(&self.epoll, spare_capacity(&mut self.ready), Some(&timeout)) {
            Ok(0) => Err(format!("no answer on any connection for {ANSWER_TIMEOUT:?}").into()),
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl Connection {
    fn open(row: Row, address: SocketAddr, plain: bool) -> Result<Self> {
        let mut stream = connect(address)?;
        let opened = row.has_session() && !plain;
        let session = if opened { open_session(&mut stream, address)? } else { None };
        // A plain server gets a request of the same size all the same.
        let named = if plain { Some(NO_SESSION) } else { session.as_deref() };
        let request = row.request(address, named);
        Ok(Self { stream, session, request, reply: Reply::new(), sent_at: Instant::now() })
    }

    /// A server that ends the connection with its answer is asked on a new one. What it costs to make is in the figure.
    fn reconnect(&mut self, address: SocketAddr) -> Result<()> {
        self.stream = connect(address)?;
        Ok(self.stream.set_nonblocking(true)?)
    }

    fn send(&mut self, now: Instant) -> Result<()> {
        self.reply.clear();
        self.sent_at = now;
        let sent = self.stream.write(&self.request.bytes)?;
        if sent < self.request.bytes.len() {
            return Err("a request larger than the socket's buffer: this generator sends small ones".into());
        }
        Ok(())
    }

    /// Reads what is there. True when the answer is whole, and it was the right one.
    fn receive(&mut self, expected: &Expected) -> Result<bool> {
        loop {
            let room = self.reply.room()?;
            let room_bytes = room.len();
            let bytes = match self.stream.read(room) {
                Ok(0) => return Err(format!("the server closed a connection in use:\n{}", self.reply.text()).into()),
                Ok(bytes) => bytes,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            };
            if self.reply.received(bytes)? {
                return self.check(expected);
            }
            // Less than asked for: the socket is drained, and the next bytes raise the next event.
            if bytes < room_bytes {
                return Ok(false);
            }
        }
    }

    fn check(&self, expected: &Expected) -> Result<bool> {
        if self.reply.status() == expected.status && expected.matches(self.reply.message(), self.request.id()) {
            return Ok(true);
        }
        Err(format!("a wrong answer under load:\n{}", self.reply.text()).into())
    }
}
