//! What was written, and what it means on this host: every `0` that stands for "derive it" becomes a number here, with
//! the reason, which the start logs and `check` prints. The arithmetic is `runtime`'s.

use super::Tuning;
use crate::runtime::{self, Count, Host};

/// The settings that `0` leaves to the host, as numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// `runtime.io_threads`.
    pub io_threads: usize,
    /// `pool.threads`.
    pub pool_threads: usize,
    /// `pool.threads_max`.
    pub pool_threads_max: usize,
    /// `limits.connections_max`.
    pub connections_max: usize,
    /// `limits.streams_max`.
    pub streams_max: usize,
    /// `limits.concurrent_requests_max`.
    pub concurrent_requests_max: usize,
    derived: Vec<Derived>,
}

/// A number that the host gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Derived {
    /// The setting that was 0.
    pub path: &'static str,
    /// What it came to.
    pub value: usize,
    /// Where that came from, in words.
    pub because: &'static str,
}

impl Resolved {
    /// What the settings come to on this host.
    pub fn of(tuning: &Tuning, host: &Host) -> Self {
        let (limits, pool) = (&tuning.limits, &tuning.pool);
        let io_threads = runtime::io_threads(tuning.runtime.io_threads, host);
        let threads = runtime::pool_threads(pool.threads, pool.threads_max, host);
        let threads_max = runtime::pool_threads_max(pool.threads_max, threads);
        let connections = runtime::connections_max(limits.connections_max, limits.header_bytes_max.0, host);
        let streams = runtime::streams_max(limits.streams_max, connections);
        let requests =
            runtime::concurrent_requests_max(limits.concurrent_requests_max, limits.request_bytes_max.0, host);
        let derived = [
            ("runtime.io_threads", io_threads),
            ("limits.connections_max", connections),
            ("limits.streams_max", streams),
            ("limits.concurrent_requests_max", requests),
            ("pool.threads", threads),
            ("pool.threads_max", threads_max),
        ];
        Self {
            io_threads: io_threads.value,
            pool_threads: threads.value,
            pool_threads_max: threads_max.value,
            connections_max: connections.value,
            streams_max: streams.value,
            concurrent_requests_max: requests.value,
            derived: derived.into_iter().filter_map(|(path, count)| derived_of(path, count)).collect(),
        }
    }

    /// Together with what was lowered before.
    pub(super) fn with(mut self, lowered: Vec<Derived>) -> Self {
        self.derived.extend(lowered);
        self
    }

    /// The numbers that the host gave; those that were written are not among them.
    pub fn derived(&self) -> &[Derived] {
        &self.derived
    }
}

/// Where the default stands and this host has no memory for it, it is lowered: a small host starts with the defaults, too,
/// and with the file that says them.
pub(super) fn lower_to_host(tuning: &mut Tuning, host: &Host) -> Vec<Derived> {
    let default = Tuning::default();
    let memory = host.memory_usable_bytes();
    let share = |part: u64| usize::try_from(memory / part).unwrap_or(usize::MAX);
    let mut lowered = Vec::new();
    let mut lower = |path: &'static str, value: usize, default: usize, least: usize, because: &'static str| {
        let is_lowered = value == default && least < value;
        if is_lowered {
            lowered.push(Derived { path, value: least, because });
        }
        if is_lowered { least } else { value }
    };
    let bytes = tuning.cache.bytes_max.as_usize();
    let because = "an eighth of the memory, which is less than the default";
    let cache = lower("cache.bytes_max", bytes, default.cache.bytes_max.as_usize(), share(8), because);
    tuning.cache.bytes_max.0 = cache as u64;
    let (sessions, default) = (&mut tuning.sessions, &default.sessions);
    let (bytes, because) = (sessions.resume_bytes_max.as_usize(), "a sixteenth of the memory, less than the default");
    let usual = default.resume_bytes_max.as_usize();
    sessions.resume_bytes_max.0 = lower("sessions.resume_bytes_max", bytes, usual, share(16), because) as u64;
    let because = "a sixteenth of the memory with 1 KiB for each, less than the default";
    let fitting = share(16 << 10).max(1);
    sessions.sessions_max =
        lower("sessions.sessions_max", sessions.sessions_max, default.sessions_max, fitting, because);
    if sessions.per_caller_max > sessions.sessions_max {
        let (own, usual, least) = (sessions.per_caller_max, default.per_caller_max, (fitting / 10).max(1));
        sessions.per_caller_max =
            lower("sessions.per_caller_max", own, usual, least, "a tenth of sessions.sessions_max");
    }
    lowered
}

fn derived_of(path: &'static str, Count { value, because }: Count) -> Option<Derived> {
    because.map(|because| Derived { path, value, because })
}
