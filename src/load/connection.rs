//! One connection of the generator: opened, given calls one after the other, and opened again when it broke. Nothing here
//! waits: what is not done yet goes on at the next event.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use rustix::io::Errno;

use super::{
    Plan, Result,
    reply::Reply,
    requests::{Request, Target},
};

/// For a connection, with what opens its session.
pub(super) const OPEN_TIMEOUT: Duration = Duration::from_secs(5);
/// Before a connection that could not be opened is tried again.
pub(super) const RETRY_AFTER: Duration = Duration::from_millis(20);

/// A connection and the call on it.
#[derive(Debug)]
pub(super) struct Connection {
    /// None while it could not even be begun.
    stream: Option<TcpStream>,
    state: State,
    since: Instant,
    has_session: bool,
    pub(super) session: Option<String>,
    request: Request,
    reply: Reply,
    /// What of the request, or of what opens the session, is not sent yet.
    handshake: Vec<u8>,
    sent_bytes: usize,
    pub(super) call: Option<Call>,
}

/// A call under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct Call {
    /// When it should have been sent.
    pub(super) due: Instant,
    pub(super) sent_at: Instant,
    pub(super) attempts: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Connecting,
    Initializing,
    Announcing,
    Ready,
    /// It broke, and is opened again later.
    Down,
}

/// What an event led to.
pub(super) enum Progress {
    Nothing,
    /// It can take calls.
    Opened,
    /// The answer of its call is here.
    Answered,
}

impl Connection {
    /// Opens connection `number` and waits until it can take calls.
    pub(super) fn open(plan: &Plan, target: &Target, number: usize) -> Result<Self> {
        let address = plan.address;
        let mut stream: TcpStream = {
            let socket = socket(plan)?;
            socket
                .connect_timeout(&address.into(), OPEN_TIMEOUT)
                .map_err(|error| format!("cannot connect to {address}: {error}; is a server running there?"))?;
            socket.into()
        };
        stream.set_read_timeout(Some(OPEN_TIMEOUT))?;
        let has_session = plan.mode.has_session(number);
        let session = has_session.then(|| target.open_session(&mut stream)).transpose()?;
        stream.set_nonblocking(true)?;
        Ok(Self {
            stream: Some(stream),
            state: State::Ready,
            since: Instant::now(),
            has_session,
            request: target.call(session.as_deref()),
            session,
            reply: Reply::new(),
            handshake: Vec::new(),
            sent_bytes: 0,
            call: None,
        })
    }

    /// Whether it takes calls.
    pub(super) fn is_up(&self) -> bool {
        self.state == State::Ready
    }

    pub(super) fn stream(&self) -> Option<&TcpStream> {
        self.stream.as_ref()
    }

    pub(super) fn into_stream(self) -> Option<TcpStream> {
        self.stream
    }

    /// Begins to open it anew. On an error it is down, and tried again later.
    pub(super) fn reopen(&mut self, plan: &Plan) -> Result<()> {
        self.go_down(); // the old one ends here
        let socket = socket(plan)?;
        socket.set_nonblocking(true)?;
        match socket.connect(&plan.address.into()) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(Errno::INPROGRESS.raw_os_error()) => {}
            Err(error) => return Err(error.into()),
        }
        (self.stream, self.state) = (Some(socket.into()), State::Connecting);
        Ok(())
    }

    pub(super) fn go_down(&mut self) {
        (self.stream, self.session, self.state, self.since) = (None, None, State::Down, Instant::now());
    }

    /// Whether it is to be opened again: it is down for long enough, or its opening takes too long.
    pub(super) fn is_to_be_opened(&self, now: Instant) -> bool {
        let for_long = |time| now.saturating_duration_since(self.since) >= time;
        match self.state {
            State::Ready => false,
            State::Down => for_long(RETRY_AFTER),
            State::Connecting | State::Initializing | State::Announcing => for_long(OPEN_TIMEOUT),
        }
    }

    /// Sends its next call.
    pub(super) fn send(&mut self, call: Call) -> Result<()> {
        self.reply.clear();
        self.request.next_id();
        (self.call, self.sent_bytes) = (Some(call), 0);
        self.write()
    }

    fn write(&mut self) -> Result<()> {
        let Some(stream) = &mut self.stream else { return Err("the connection is down".into()) };
        let bytes = if self.state == State::Ready { &self.request.bytes } else { &self.handshake };
        while self.sent_bytes < bytes.len() {
            match stream.write(&bytes[self.sent_bytes..]) {
                Ok(0) => return Err("the server takes nothing".into()),
                Ok(sent) => self.sent_bytes += sent,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()), // the rest at the next event
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Something can be read or written.
    pub(super) fn advance(&mut self, target: &Target) -> Result<Progress> {
        if self.state == State::Connecting {
            let Some(stream) = &self.stream else { return Ok(Progress::Nothing) };
            if let Some(error) = stream.take_error()? {
                return Err(error.into());
            }
            if stream.peer_addr().is_err() {
                return Ok(Progress::Nothing); // not yet
            }
            if !self.has_session {
                return Ok(self.opened(target));
            }
            self.shake(State::Initializing, target.initialize())?;
        }
        if self.state == State::Ready && self.call.is_none() {
            // Nothing is expected but that the server ends it.
            return if self.receive()? { Err("an answer to nothing".into()) } else { Ok(Progress::Nothing) };
        }
        self.write()?;
        if !self.receive()? {
            return Ok(Progress::Nothing);
        }
        match self.state {
            State::Initializing => {
                let session = self.reply.session().filter(|_| self.reply.status() == 200);
                let session = session.ok_or("initialize opened no session")?.to_owned();
                let announcement = target.announce(&session);
                self.session = Some(session);
                self.shake(State::Announcing, announcement)?;
                Ok(Progress::Nothing)
            }
            State::Announcing if self.reply.status() == 202 => Ok(self.opened(target)),
            State::Announcing => Err("notifications/initialized was refused".into()),
            _ => Ok(Progress::Answered),
        }
    }

    fn shake(&mut self, state: State, bytes: Vec<u8>) -> Result<()> {
        self.reply.clear();
        (self.state, self.handshake, self.sent_bytes) = (state, bytes, 0);
        self.write()
    }

    fn opened(&mut self, target: &Target) -> Progress {
        self.request = target.call(self.session.as_deref());
        (self.state, self.since, self.handshake) = (State::Ready, Instant::now(), Vec::new());
        Progress::Opened
    }

    pub(super) fn reply(&self) -> &Reply {
        &self.reply
    }

    /// Reads what is there. True when the answer is whole.
    fn receive(&mut self) -> Result<bool> {
        let Some(stream) = &mut self.stream else { return Ok(false) };
        loop {
            let room = self.reply.room()?;
            let room_bytes = room.len();
            let bytes = match stream.read(room) {
                Ok(0) => return Err("the server ended the connection".into()),
                Ok(bytes) => bytes,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(false),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            };
            if self.reply.received(bytes)? {
                return Ok(true);
            }
            if bytes < room_bytes {
                return Ok(false); // drained: the next bytes raise the next event
            }
        }
    }
}

fn socket(plan: &Plan) -> Result<socket2::Socket> {
    let socket = socket2::Socket::new(socket2::Domain::for_address(plan.address), socket2::Type::STREAM, None)?;
    socket.set_tcp_nodelay(true)?;
    if let Some(from) = plan.from {
        socket
            .bind(&SocketAddr::new(from, 0).into())
            .map_err(|error| format!("--from {from}: {error}; it must be an address of this host"))?;
    }
    Ok(socket)
}
