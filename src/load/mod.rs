//! Load on a server, and what came of it: `bigiron bench`. A [`Plan`] says what is called, over how many connections and
//! at what rate; [`run`] does it and counts. A closed loop has one call under way on each connection; an open one has a
//! timetable, and a call's latency begins when it should have been sent, so that a server that stands still is seen as
//! such. One thread for each core that is given to the generator, raw sockets behind epoll: what it costs must be less
//! than what it measures.

pub(crate) mod capacity;
mod child;
pub(crate) mod compare;
mod connection;
mod figures;
mod generator;
pub(crate) mod host;
pub(crate) mod plot;
mod probe;
mod reply;
mod requests;
pub(crate) mod table;
mod tally;
mod timetable;

use std::{
    net::{IpAddr, SocketAddr},
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

pub(crate) use self::{
    child::{Child, Usage, become_owned, cores},
    probe::probe,
    requests::Mode,
    tally::Tally,
};
use self::{generator::Generator, requests::Target};
use crate::units::Secret;

pub(crate) type Result<T> = std::result::Result<T, Box<dyn std::error::Error + Send + Sync>>;

/// Between two looks at the clock by the thread that tells of progress.
const TICK: Duration = Duration::from_millis(100);

/// A stretch of load.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) address: SocketAddr,
    pub(crate) path: String,
    /// The API key or token that is shown.
    pub(crate) bearer: Option<Secret>,
    /// The address that connections come from, where it matters.
    pub(crate) from: Option<IpAddr>,
    pub(crate) tool: String,
    pub(crate) arguments: serde_json::Value,
    pub(crate) mode: Mode,
    pub(crate) connections: usize,
    /// Calls per second, in steps that follow each other without a pause; none is a closed loop.
    pub(crate) rates: Vec<f64>,
    pub(crate) arrivals: Arrivals,
    pub(crate) warmup: Duration,
    /// Of each step.
    pub(crate) duration: Duration,
    /// For an answer.
    pub(crate) timeout: Duration,
    /// How often a refused call is sent again, at once.
    pub(crate) retries: u32,
    pub(crate) threads: usize,
    /// How often a stretch is measured again when something else disturbed it.
    pub(crate) repeats: u32,
}

/// What is told while a load runs.
pub(crate) enum News<'a> {
    Running { label: &'a str, passed: Duration, is_warming: bool },
    Finished(&'a table::Row),
}

pub(crate) type Progress<'a> = &'a mut dyn FnMut(News<'_>);

/// How the calls of an open loop come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Arrivals {
    /// One after the other at equal distances.
    Even,
    /// As from many callers who do not know of each other.
    Poisson,
}

/// Set when the user wants to stop: what was measured until then is told.
pub(crate) static STOP: AtomicBool = AtomicBool::new(false);

impl Plan {
    fn steps(&self) -> usize {
        self.rates.len().max(1)
    }

    #[cfg(test)]
    fn example() -> Self {
        Self {
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            path: "/mcp".into(),
            bearer: None,
            from: None,
            tool: "echo".into(),
            arguments: serde_json::json!({}),
            mode: Mode::Modern,
            connections: 1,
            rates: Vec::new(),
            arrivals: Arrivals::Even,
            warmup: Duration::ZERO,
            duration: Duration::from_secs(1),
            timeout: Duration::from_secs(1),
            retries: 0,
            threads: 1,
            repeats: 0,
        }
    }
}

/// What is told while a plan runs.
pub(crate) enum Told {
    /// It has run for so long, and whether it still warms up.
    Progress(Duration, bool),
    /// A step ends, or the next begins.
    Edge,
}

/// Runs a plan, and returns a tally for each step. `tell` hears of it in time.
///
/// # Errors
/// A server that cannot be reached or does not speak the protocol.
pub(crate) fn run(plan: &Plan, mut tell: impl FnMut(Told)) -> Result<Vec<Tally>> {
    let threads = plan.threads.clamp(1, plan.connections.max(1));
    let target = Target::new(plan);
    let mut generators = Vec::with_capacity(threads);
    for index in 0..threads {
        let share = plan.connections / threads + usize::from(index < plan.connections % threads);
        generators.push(Generator::open(plan, &target, share, index, threads)?);
    }
    let begin = Instant::now() + Duration::from_millis(10);
    thread::scope(|scope| {
        let running: Vec<_> = generators
            .into_iter()
            .map(|generator| {
                thread::Builder::new().name("load".into()).spawn_scoped(scope, move || generator.drive(begin))
            })
            .collect::<std::io::Result<_>>()?;
        let (mut edges, mut tick_at) = (0, begin + TICK);
        while running.iter().any(|thread| !thread.is_finished()) {
            let edge_at = begin + plan.warmup + plan.duration * u32::try_from(edges).unwrap_or(u32::MAX);
            let is_edge = edges <= plan.steps() && edge_at <= tick_at;
            thread::sleep(if is_edge { edge_at } else { tick_at }.saturating_duration_since(Instant::now()));
            if is_edge {
                tell(Told::Edge);
                edges += 1;
            } else {
                let passed = begin.elapsed();
                tell(Told::Progress(passed, passed < plan.warmup));
                tick_at += TICK;
            }
        }
        let mut all = (0..plan.steps()).map(|_| Tally::new()).collect::<Result<Vec<_>>>()?;
        for thread in running {
            let tallies = thread.join().map_err(|_| "a thread of the generator panicked")??;
            all.iter_mut().zip(&tallies).try_for_each(|(all, one)| all.add(one))?;
        }
        Ok(all)
    })
}

pub(crate) fn is_stopped() -> bool {
    STOP.load(Ordering::Relaxed)
}
