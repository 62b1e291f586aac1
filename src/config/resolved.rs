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

    /// The numbers that the host gave; those that were written are not among them.
    pub fn derived(&self) -> &[Derived] {
        &self.derived
    }
}

fn derived_of(path: &'static str, Count { value, because }: Count) -> Option<Derived> {
    because.map(|because| Derived { path, value, because })
}
