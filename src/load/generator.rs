//! One thread of load: its connections behind epoll, and a timetable where there is one. Nothing is skipped: a call that
//! finds no free connection waits, and the wait counts. Nothing here waits for one connection.

use std::time::{Duration, Instant};

use rustix::{
    buffer::spare_capacity,
    event::{Timespec, epoll},
    fd::OwnedFd,
    io::Errno,
    time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, timerfd_create, timerfd_settime},
};

use super::{
    Plan, Result,
    connection::{Call, Connection, OPEN_TIMEOUT, Progress},
    is_stopped,
    requests::{Target, end_of},
    tally::{End, Tally},
    timetable::Timetable,
};

/// Between two looks for answers that do not come, and for connections to be opened again.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// What a thread needs to wake up. The last of it is spent looking at the clock, so that calls are sent in time.
const WAKES_LATE: Duration = Duration::from_micros(60);
/// After the end, for the calls under way: as long as the load itself, and at least so long.
const LAST_ANSWERS_MIN: Duration = Duration::from_secs(2);
/// The timer's place among the connections' numbers.
const TIMER: u64 = u64::MAX;

pub(super) struct Generator<'p> {
    plan: &'p Plan,
    target: &'p Target,
    connections: Vec<Connection>,
    free: Vec<usize>,
    /// Connections that are not open.
    down: usize,
    epoll: OwnedFd,
    timer: OwnedFd,
    timetable: Option<Timetable>,
    index: usize,
    threads: usize,
    /// Calls that were due before are of the warm-up.
    measured_from: Instant,
    /// One for each step.
    tallies: Vec<Tally>,
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
        let timer = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK)?;
        let flags = epoll::EventFlags::IN | epoll::EventFlags::ET;
        epoll::add(&epoll, &timer, epoll::EventData::new_u64(TIMER), flags)?;
        let mut opened = Vec::with_capacity(connections);
        for number in 0..connections {
            opened.push(Connection::open(plan, target, number)?);
        }
        let generator = Self {
            plan,
            target,
            free: (0..connections).rev().collect(),
            down: 0,
            connections: opened,
            epoll,
            timer,
            timetable: None,
            index,
            threads,
            measured_from: Instant::now(),
            tallies: (0..plan.steps()).map(|_| Tally::new()).collect::<Result<_>>()?,
        };
        (0..connections).try_for_each(|number| generator.watch(number))?;
        Ok(generator)
    }

    fn watch(&self, number: usize) -> Result<()> {
        let flags = epoll::EventFlags::IN | epoll::EventFlags::OUT | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
        let Some(stream) = self.connections[number].stream() else { return Ok(()) };
        Ok(epoll::add(&self.epoll, stream, epoll::EventData::new_u64(number as u64), flags)?)
    }

    /// Runs the plan from `begin` on, and ends the sessions. A tally for each step.
    pub(super) fn drive(mut self, begin: Instant) -> Result<Vec<Tally>> {
        std::thread::sleep(begin.saturating_duration_since(Instant::now()));
        self.measured_from = begin + self.plan.warmup;
        self.timetable = Timetable::new(self.plan, begin, self.connections.len(), self.index, self.threads);
        let step = |steps: usize| self.plan.duration * u32::try_from(steps).unwrap_or(u32::MAX);
        let end = self.measured_from + step(self.tallies.len());
        let mut edges = (0..=self.tallies.len()).map(|n| self.measured_from + step(n)).collect::<Vec<_>>().into_iter();
        let mut next_edge = edges.next();
        let (mut entered, mut cpu_from) = (0_usize, Duration::ZERO);
        let mut ready = Vec::with_capacity(256);
        let mut look_at = begin + LOOK_EVERY;
        let ended_at = loop {
            let now = Instant::now();
            while next_edge.is_some_and(|edge| now >= edge) {
                let cpu = own_cpu()?;
                if let Some(tally) = entered.checked_sub(1).and_then(|step: usize| self.tallies.get_mut(step)) {
                    (tally.own_cpu, tally.elapsed) = (cpu.saturating_sub(cpu_from), self.plan.duration);
                }
                (entered, cpu_from, next_edge) = (entered + 1, cpu, edges.next());
            }
            if now >= end || is_stopped() {
                break now;
            }
            self.send_what_is_due(now)?;
            if now >= look_at {
                self.look_after_connections(now);
                look_at = now + LOOK_EVERY;
            }
            let until = self.timetable.as_ref().map_or(look_at, |t| t.next().min(look_at)).min(end);
            self.wait(&mut ready, until.saturating_duration_since(Instant::now()))?;
            self.take_events(&mut ready)?;
        };
        // A step that was not whole.
        if let Some(tally) = entered.checked_sub(1).and_then(|step| self.tallies.get_mut(step)) {
            let since = self.measured_from + self.plan.duration * u32::try_from(entered - 1).unwrap_or(u32::MAX);
            (tally.own_cpu, tally.elapsed) = (own_cpu()?.saturating_sub(cpu_from), ended_at - since);
        }
        self.tallies.iter_mut().for_each(|tally| tally.threads = 1);
        self.finish(&mut ready)?;
        Ok(self.tallies)
    }

    /// The tally of calls that were due at a moment; `None` in the warm-up.
    fn tally(&mut self, due: Instant) -> Option<&mut Tally> {
        let passed = due.checked_duration_since(self.measured_from)?;
        let step = passed.as_nanos() / self.plan.duration.as_nanos().max(1);
        let last = self.tallies.len() - 1;
        self.tallies.get_mut(usize::try_from(step).unwrap_or(last).min(last))
    }

    /// Sends on free connections: in a closed loop at once, by a timetable what is due.
    fn send_what_is_due(&mut self, now: Instant) -> Result<()> {
        let Some(mut timetable) = self.timetable.take() else {
            while let Some(number) = self.free.pop() {
                let now = Instant::now();
                if let Some(tally) = self.tally(now) {
                    tally.sent += 1;
                }
                self.send(number, now, 0)?;
            }
            return Ok(());
        };
        let has_free = !self.free.is_empty();
        timetable.advance(now, has_free, |due| {
            if let Some(tally) = self.tally(due) {
                tally.not_sent += 1;
            }
        });
        self.timetable = Some(timetable);
        while !self.free.is_empty() {
            let Some(due) = self.timetable.as_mut().and_then(Timetable::pop) else { break };
            let Some(number) = self.free.pop() else { break };
            if let Some(tally) = self.tally(due.at).filter(|_| due.attempts == 0) {
                tally.sent += 1;
                // Who had to wait for a connection waited for the server, and not for this thread.
                if !due.has_waited {
                    let lag = Instant::now().saturating_duration_since(due.at);
                    tally.lag_ns.saturating_record(u64::try_from(lag.as_nanos()).unwrap_or(u64::MAX));
                }
            }
            self.send(number, due.at, due.attempts)?;
        }
        Ok(())
    }

    fn send(&mut self, number: usize, due: Instant, attempts: u32) -> Result<()> {
        let call = Call { due, sent_at: Instant::now(), attempts };
        match self.connections[number].send(call) {
            Ok(()) => Ok(()),
            Err(_) => self.end(number, End::Broken, true),
        }
    }

    /// Waits for events, for `at_most` so long.
    fn wait(&self, ready: &mut Vec<epoll::Event>, at_most: Duration) -> Result<()> {
        let mut timeout = Some(&Timespec { tv_sec: 0, tv_nsec: 0 });
        if let Some(sleeps) = at_most.checked_sub(WAKES_LATE).filter(|sleeps| !sleeps.is_zero()) {
            // The timer is exact, while epoll's own timeout is in milliseconds.
            let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
            let it_value = Timespec { tv_nsec: sleeps.subsec_nanos().into(), tv_sec: sleeps.as_secs().cast_signed() };
            let once = Itimerspec { it_interval: zero, it_value };
            timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once)?;
            timeout = None;
        }
        match epoll::wait(&self.epoll, spare_capacity(ready), timeout) {
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn take_events(&mut self, ready: &mut Vec<epoll::Event>) -> Result<()> {
        for event in ready.drain(..) {
            let number = event.data.u64();
            let Some(number) = (number != TIMER).then(|| usize::try_from(number).unwrap_or(usize::MAX)) else {
                continue;
            };
            let connection = &mut self.connections[number];
            match connection.advance(self.target) {
                Ok(Progress::Nothing) => {}
                Ok(Progress::Opened) => {
                    self.down -= 1;
                    self.free.push(number);
                }
                Ok(Progress::Answered) => {
                    let (end, closes) = (end_of(connection.reply()), connection.reply().closes());
                    self.end(number, end, closes)?;
                }
                Err(_) => self.end(number, End::Broken, true)?,
            }
        }
        Ok(())
    }

    /// A call is over, or a connection without one broke. A connection that is not to be used again is opened anew.
    fn end(&mut self, number: usize, end: End, broken: bool) -> Result<()> {
        let call = self.connections[number].call.take();
        if broken {
            self.break_off(number);
        } else {
            self.free.push(number);
        }
        let Some(call) = call else { return Ok(()) };
        let took = call.due.elapsed();
        if matches!(end, End::Refused(503 | 429, _)) && call.attempts < self.plan.retries {
            if let Some(tally) = self.tally(call.due) {
                tally.retried += 1;
            }
            match &mut self.timetable {
                Some(timetable) => timetable.again(call.due, call.attempts + 1),
                None if broken => {}
                None => {
                    self.free.pop();
                    return self.send(number, call.due, call.attempts + 1);
                }
            }
            return Ok(());
        }
        if let Some(tally) = self.tally(call.due) {
            tally.end(end, took);
        }
        Ok(())
    }

    /// Opens a connection anew. One that cannot even be begun is tried again later.
    fn break_off(&mut self, number: usize) {
        if let Some(place) = self.free.iter().position(|free| *free == number) {
            self.free.swap_remove(place); // it was idle
        }
        if self.connections[number].is_up() {
            self.down += 1;
        } else if let Some(tally) = self.tally(Instant::now()) {
            tally.not_opened += 1; // it was being opened
        }
        if self.connections[number].reopen(self.plan).and_then(|()| self.watch(number)).is_err() {
            self.connections[number].go_down();
        }
    }

    fn look_after_connections(&mut self, now: Instant) {
        for number in 0..self.connections.len() {
            let connection = &self.connections[number];
            let is_late = |call: &Call| now.saturating_duration_since(call.sent_at) > self.plan.timeout;
            if let Some(call) = connection.call.filter(is_late) {
                self.connections[number].call = None;
                self.break_off(number);
                if let Some(tally) = self.tally(call.due) {
                    tally.end(End::TimedOut, call.due.elapsed());
                }
            } else if self.down > 0 && connection.is_to_be_opened(now) {
                self.break_off(number);
            }
        }
    }

    /// Takes the answers that are still due, counts what never was sent, and ends the sessions.
    fn finish(&mut self, ready: &mut Vec<epoll::Event>) -> Result<()> {
        for due in self.timetable.take().into_iter().flat_map(Timetable::never_sent) {
            if let Some(tally) = self.tally(due) {
                tally.not_sent += 1;
            }
        }
        let patience = if is_stopped() { LAST_ANSWERS_MIN } else { self.plan.duration.max(LAST_ANSWERS_MIN) };
        let give_up_at = Instant::now() + patience.min(self.plan.timeout);
        while self.connections.iter().any(|c| c.call.is_some()) && Instant::now() < give_up_at {
            self.wait(ready, LOOK_EVERY)?;
            self.take_events(ready)?;
            self.free.clear();
        }
        let timeout = self.plan.timeout;
        for connection in std::mem::take(&mut self.connections) {
            if let Some(call) = connection.call {
                let Some(tally) = self.tally(call.due) else { continue };
                if call.sent_at.elapsed() >= timeout {
                    tally.end(End::TimedOut, call.due.elapsed());
                } else {
                    tally.unfinished += 1;
                }
            } else if let Some(session) = connection.session.clone()
                && let Some(mut stream) = connection.into_stream()
            {
                stream.set_nonblocking(false)?;
                stream.set_read_timeout(Some(OPEN_TIMEOUT))?;
                let _ = self.target.close_session(&mut stream, &session); // the server ends it by itself later
            }
        }
        Ok(())
    }
}

/// CPU time of this thread.
fn own_cpu() -> Result<Duration> {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat")?;
    Ok(Duration::from_nanos(stat.split(' ').next().unwrap_or_default().parse()?))
}
