//! One thread of load: its connections behind epoll, and a timetable where there is one. Nothing is skipped: a call that
//! finds no free connection waits, and the wait counts.

use std::{
    collections::VecDeque,
    fs,
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use rustix::{
    buffer::spare_capacity,
    event::{Timespec, epoll},
    fd::OwnedFd,
    io::Errno,
};

use super::{
    Arrivals, Plan, Result, is_stopped,
    reply::Reply,
    requests::{Request, Target, end_of},
    tally::{End, Tally},
};

/// Calls that may wait for a connection, for each connection. More than a minute of them helps nobody.
const BACKLOG_PER_CONNECTION: usize = 1000;
/// Between two looks for answers that do not come.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// How late the kernel may wake a thread.
const WAKES_LATE: Duration = Duration::from_millis(2);
/// After the end, for the calls under way.
const LAST_ANSWERS: Duration = Duration::from_secs(2);
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) struct Generator<'p> {
    plan: &'p Plan,
    target: &'p Target,
    connections: Vec<Connection>,
    free: Vec<usize>,
    epoll: OwnedFd,
    timetable: Option<Timetable>,
    threads: usize,
    /// Calls that were due before are of the warm-up.
    measured_from: Instant,
}

struct Connection {
    stream: TcpStream,
    session: Option<String>,
    request: Request,
    reply: Reply,
    call: Option<Call>,
}

/// A call under way.
#[derive(Clone, Copy)]
struct Call {
    /// When it should have been sent.
    due: Instant,
    sent_at: Instant,
    attempts: u32,
}

/// When calls are due.
struct Timetable {
    next: Instant,
    mean: Duration,
    arrivals: Arrivals,
    random: u64,
    /// Due and not sent yet, with how often each was tried.
    waiting: VecDeque<(Instant, u32)>,
    waiting_max: usize,
}

impl Timetable {
    /// The distance to the next call.
    #[allow(clippy::cast_precision_loss)] // 53 bits of randomness are enough
    fn step(&mut self) -> Duration {
        match self.arrivals {
            Arrivals::Even => self.mean,
            Arrivals::Poisson => {
                // xorshift64*: good enough to tell arrivals apart, and the same in each run.
                self.random ^= self.random >> 12;
                self.random ^= self.random << 25;
                self.random ^= self.random >> 27;
                let bits = self.random.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 11;
                let uniform = (bits as f64 + 1.0) / (1_u64 << 53) as f64;
                self.mean.mul_f64(-uniform.ln())
            }
        }
    }
}

impl<'p> Generator<'p> {
    /// Connects, and opens sessions.
    pub(super) fn open(
        plan: &'p Plan,
        target: &'p Target,
        connections: usize,
        index: usize,
        threads: usize,
    ) -> Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let mut opened = Vec::with_capacity(connections);
        for number in 0..connections {
            let connection = Connection::open(plan, target, number)?;
            watch(&epoll, &connection, number)?;
            opened.push(connection);
        }
        let now = Instant::now();
        let timetable = plan.rate.map(|rate| {
            let mean = Duration::from_secs_f64(threads_f64(threads) / rate.max(1e-3));
            Timetable {
                next: now,
                mean,
                arrivals: plan.arrivals,
                random: 0x9E37_79B9_7F4A_7C15 ^ (index as u64 + 1),
                waiting: VecDeque::new(),
                waiting_max: connections * BACKLOG_PER_CONNECTION,
            }
        });
        Ok(Self {
            plan,
            target,
            free: (0..connections).rev().collect(),
            connections: opened,
            epoll,
            timetable,
            threads,
            measured_from: now,
        })
    }

    /// Runs the plan from `begin` on, and ends the sessions.
    pub(super) fn drive(mut self, begin: Instant) -> Result<Tally> {
        std::thread::sleep(begin.saturating_duration_since(Instant::now()));
        self.measured_from = begin + self.plan.warmup;
        let measured_from = self.measured_from;
        let end = measured_from + self.plan.duration;
        if let Some(timetable) = &mut self.timetable {
            // Threads take turns, so that together they send evenly.
            timetable.next = begin + timetable.mean / u32::try_from(self.threads).unwrap_or(1);
        }
        let mut tally = Tally::new()?;
        let mut cpu_from = own_cpu()?;
        let mut measuring = false;
        let mut ready = Vec::with_capacity(256);
        let mut look_at = begin + LOOK_EVERY;
        let ended_at = loop {
            let now = Instant::now();
            if !measuring && now >= measured_from {
                measuring = true;
                cpu_from = own_cpu()?;
            }
            if now >= end || is_stopped() {
                break now;
            }
            self.send_what_is_due(now, &mut tally)?;
            if now >= look_at {
                self.give_up_late(now, &mut tally)?;
                look_at = now + LOOK_EVERY;
            }
            let until = self.timetable.as_ref().map_or(look_at, |t| t.next.min(look_at)).min(end);
            // The kernel wakes us up to a millisecond late, so that the last one is spent looking.
            let at_most = until.saturating_duration_since(Instant::now());
            self.wait(&mut ready, if self.timetable.is_some() { at_most.saturating_sub(WAKES_LATE) } else { at_most })?;
            self.take_answers(&mut ready, &mut tally)?;
        };
        tally.own_cpu = own_cpu()?.saturating_sub(cpu_from);
        tally.elapsed = ended_at.saturating_duration_since(measured_from.min(ended_at));
        tally.threads = 1;
        self.finish(&mut ready, &mut tally)?;
        Ok(tally)
    }

    /// Sends on free connections: in a closed loop at once, by a timetable what is due.
    fn send_what_is_due(&mut self, now: Instant, tally: &mut Tally) -> Result<()> {
        let Some(timetable) = &mut self.timetable else {
            while let Some(number) = self.free.pop() {
                tally.sent += u64::from(now >= self.measured_from);
                self.send(number, now, 0, tally)?;
            }
            return Ok(());
        };
        let mut waited_before = timetable.waiting.len();
        while timetable.next <= now {
            let due = timetable.next;
            timetable.next = due + timetable.step();
            if timetable.waiting.len() < timetable.waiting_max {
                timetable.waiting.push_back((due, 0));
            } else {
                tally.not_sent += u64::from(due >= self.measured_from);
            }
        }
        while !self.free.is_empty() {
            let Some((due, attempts)) = self.timetable.as_mut().and_then(|t| t.waiting.pop_front()) else { break };
            let Some(number) = self.free.pop() else { break };
            let is_measured = due >= self.measured_from;
            tally.sent += u64::from(attempts == 0 && is_measured);
            // Who had to wait for a connection waited for the server, and not for this thread.
            if waited_before == 0 && is_measured {
                let lag = Instant::now().saturating_duration_since(due);
                tally.lag_ns.saturating_record(u64::try_from(lag.as_nanos()).unwrap_or(u64::MAX));
            }
            waited_before = waited_before.saturating_sub(1);
            self.send(number, due, attempts, tally)?;
        }
        Ok(())
    }

    fn send(&mut self, number: usize, due: Instant, attempts: u32, tally: &mut Tally) -> Result<()> {
        let connection = &mut self.connections[number];
        let now = Instant::now();
        connection.reply.clear();
        connection.request.next_id();
        connection.call = Some(Call { due, sent_at: now, attempts });
        match connection.stream.write(&connection.request.bytes) {
            Ok(sent) if sent == connection.request.bytes.len() => Ok(()),
            Ok(_) => Err("a request is larger than the socket's buffer; send smaller arguments".into()),
            Err(_) => self.end(number, End::Broken, true, tally),
        }
    }

    fn wait(&self, ready: &mut Vec<epoll::Event>, at_most: Duration) -> Result<()> {
        let timeout = Timespec {
            tv_sec: i64::try_from(at_most.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: at_most.subsec_nanos().into(),
        };
        match epoll::wait(&self.epoll, spare_capacity(ready), Some(&timeout)) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn take_answers(&mut self, ready: &mut Vec<epoll::Event>, tally: &mut Tally) -> Result<()> {
        for event in ready.drain(..) {
            let number = usize::try_from(event.data.u64()).unwrap_or(usize::MAX);
            match self.connections[number].receive() {
                Ok(false) => {}
                Ok(true) => {
                    let connection = &self.connections[number];
                    let (end, closes) = (end_of(&connection.reply), connection.reply.closes());
                    self.end(number, end, closes, tally)?;
                }
                Err(_) => self.end(number, End::Broken, true, tally)?,
            }
        }
        Ok(())
    }

    /// A call is over. A connection that is not to be used again is replaced.
    fn end(&mut self, number: usize, end: End, broken: bool, tally: &mut Tally) -> Result<()> {
        let call = self.connections[number].call.take();
        if broken {
            self.connections[number] = Connection::open(self.plan, self.target, number)?;
            watch(&self.epoll, &self.connections[number], number)?;
        }
        let Some(call) = call else { return Ok(()) }; // an idle connection that the server ended
        self.free.push(number);
        let took = call.due.elapsed();
        if matches!(end, End::Refused(503 | 429, _)) && call.attempts < self.plan.retries {
            tally.retried += u64::from(call.due >= self.measured_from);
            match &mut self.timetable {
                Some(timetable) => timetable.waiting.push_front((call.due, call.attempts + 1)),
                None => {
                    self.free.pop();
                    return self.send(number, call.due, call.attempts + 1, tally);
                }
            }
            return Ok(());
        }
        if call.due >= self.measured_from {
            tally.end(end, took);
        }
        Ok(())
    }

    fn give_up_late(&mut self, now: Instant, tally: &mut Tally) -> Result<()> {
        for number in 0..self.connections.len() {
            let late = |call: &Call| now.saturating_duration_since(call.sent_at) > self.plan.timeout;
            if self.connections[number].call.as_ref().is_some_and(late) {
                self.end(number, End::TimedOut, true, tally)?;
            }
        }
        Ok(())
    }

    /// Takes the answers that are still due, counts what never was sent, and ends the sessions.
    fn finish(mut self, ready: &mut Vec<epoll::Event>, tally: &mut Tally) -> Result<()> {
        if let Some(timetable) = self.timetable.take() {
            let counts = |(due, attempts): &&(Instant, u32)| *attempts == 0 && *due >= self.measured_from;
            tally.not_sent += timetable.waiting.iter().filter(counts).count() as u64;
        }
        let give_up_at = Instant::now() + LAST_ANSWERS.min(self.plan.timeout);
        while self.connections.iter().any(|c| c.call.is_some()) && Instant::now() < give_up_at {
            self.wait(ready, LOOK_EVERY)?;
            self.take_answers(ready, tally)?;
        }
        for number in 0..self.connections.len() {
            if let Some(call) = self.connections[number].call.take() {
                if call.due >= self.measured_from {
                    tally.end(End::TimedOut, call.due.elapsed());
                }
            } else if let Some(session) = self.connections[number].session.take() {
                let stream = &mut self.connections[number].stream;
                stream.set_nonblocking(false)?;
                let _ = self.target.close_session(stream, &session); // the server ends it by itself later
            }
        }
        Ok(())
    }
}

impl Connection {
    fn open(plan: &Plan, target: &Target, number: usize) -> Result<Self> {
        let mut stream = connect(plan)?;
        stream.set_read_timeout(Some(CONNECT_TIMEOUT))?;
        let session = plan.mode.has_session(number).then(|| target.open_session(&mut stream)).transpose()?;
        let request = target.call(session.as_deref());
        stream.set_nonblocking(true)?;
        Ok(Self { stream, session, request, reply: Reply::new(), call: None })
    }

    /// Reads what is there. True when the answer is whole.
    fn receive(&mut self) -> Result<bool> {
        loop {
            let room = self.reply.room()?;
            let room_bytes = room.len();
            let bytes = match self.stream.read(room) {
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

fn connect(plan: &Plan) -> Result<TcpStream> {
    let address = plan.address;
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
    if let Some(from) = plan.from {
        socket.bind(&SocketAddr::new(from, 0).into())?;
    }
    socket
        .connect_timeout(&address.into(), CONNECT_TIMEOUT)
        .map_err(|error| format!("cannot connect to {address}: {error}; is a server running there?"))?;
    socket.set_tcp_nodelay(true)?;
    Ok(socket.into())
}

fn watch(epoll: &OwnedFd, connection: &Connection, number: usize) -> Result<()> {
    let flags = epoll::EventFlags::IN | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
    Ok(epoll::add(epoll, &connection.stream, epoll::EventData::new_u64(number as u64), flags)?)
}

#[allow(clippy::cast_precision_loss)] // a few
fn threads_f64(threads: usize) -> f64 {
    threads as f64
}

/// CPU time of this thread.
fn own_cpu() -> Result<Duration> {
    let stat = fs::read_to_string("/proc/thread-self/schedstat")?;
    Ok(Duration::from_nanos(stat.split(' ').next().unwrap_or_default().parse()?))
}
