//! From the host to thread counts and limits: pure arithmetic on what the host has, and the reading of what it has
//! (cgroups are read in `cgroup`). Home of num_cpus. Which setting holds which number is `config`'s business.

mod cgroup;

use std::fs;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// `[runtime]`: threads that move bytes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Threads that read and write sockets; 0 is one for each core.
    pub io_threads: usize,
    /// How they share the connections.
    pub flavor: Flavor,
}

/// How I/O threads share the connections, by the names that tokio has for its runtimes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Flavor {
    /// One runtime over all threads: whichever is idle goes on with what is ready.
    #[default]
    MultiThread,
    /// A runtime for each thread, with a listener of its own on the same port: a connection stays with the thread that the
    /// kernel gave it to.
    CurrentThread,
}

/// Descriptors that are not for connections: listeners, the log, files that tools hold open, SQLite.
const DESCRIPTORS_RESERVED: u64 = 64;

/// Connections that a derived limit allows at most. More has to be asked for in so many words.
const CONNECTIONS_DERIVED_MAX: u64 = 65_536;

/// Requests at once for each core, when the limit is derived.
const REQUESTS_PER_CORE: usize = 100;

/// What this process may use of the machine that it runs on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Host {
    /// Cores that the scheduler gives to this process.
    pub cores: usize,
    /// CPU time that the cgroup allows, in thousandths of a core.
    pub cpu_quota_millicores: Option<u64>,
    /// Memory of the machine; 0 when it cannot be told.
    pub memory_bytes: u64,
    /// Memory that the cgroup allows.
    pub memory_limit_bytes: Option<u64>,
    /// Files and sockets that this process may have open.
    pub descriptors_max: u64,
}

impl Host {
    /// Reads the host. What cannot be read counts as unlimited: a missing file is no reason not to start.
    pub fn read() -> Self {
        let limits = cgroup::read();
        Self {
            cores: num_cpus::get().max(1),
            cpu_quota_millicores: limits.cpu_millicores,
            memory_bytes: fs::read_to_string("/proc/meminfo").ok().and_then(|text| memory_total(&text)).unwrap_or(0),
            memory_limit_bytes: limits.memory_bytes,
            descriptors_max: getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX),
        }
    }

    /// Cores that are worth a thread each: a quota of 1.5 cores keeps two threads busy, and not 64.
    pub fn cores_usable(&self) -> usize {
        let quota =
            self.cpu_quota_millicores.map_or(usize::MAX, |m| usize::try_from(m.div_ceil(1000)).unwrap_or(usize::MAX));
        self.cores.min(quota).max(1)
    }

    /// Memory before the kernel kills something.
    pub fn memory_usable_bytes(&self) -> u64 {
        let machine = if self.memory_bytes == 0 { u64::MAX } else { self.memory_bytes };
        machine.min(self.memory_limit_bytes.unwrap_or(u64::MAX))
    }

    /// Descriptors that connections may take.
    pub fn descriptors_for_connections(&self) -> u64 {
        self.descriptors_max.saturating_sub(DESCRIPTORS_RESERVED)
    }
}

/// Takes all the descriptors that the system allows this process (the hard limit): the soft limit of 1,024 that many
/// systems start with is there for programs that use `select`. Does nothing when the system refuses.
pub fn raise_descriptor_limit() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current.is_some() && current != maximum {
        let _ = setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum });
    }
}

/// A number that was written, or what its `0` came to on this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Count {
    /// The number to use.
    pub value: usize,
    /// Where a derived number came from, in words; nothing when it was written.
    pub because: Option<&'static str>,
}

impl Count {
    fn written_or(written: usize, derive: impl FnOnce() -> (usize, &'static str)) -> Self {
        if written != 0 {
            return Self { value: written, because: None };
        }
        let (value, because) = derive();
        Self { value: value.max(1), because: Some(because) }
    }
}

/// Threads that read and write sockets.
pub fn io_threads(written: usize, host: &Host) -> Count {
    Count::written_or(written, || (host.cores_usable(), "one for each core"))
}

/// Threads of the pool that are always there. A derived number yields to a written `threads_max`.
pub fn pool_threads(threads: usize, threads_max: usize, host: &Host) -> Count {
    Count::written_or(threads, || match host.cores_usable() {
        cores if threads_max != 0 && threads_max < cores => (threads_max, "as many as pool.threads_max allows"),
        cores => (cores, "one for each core"),
    })
}

/// Threads of the pool at most.
pub fn pool_threads_max(threads_max: usize, threads: Count) -> Count {
    Count::written_or(threads_max, || (threads.value.saturating_mul(2), "twice pool.threads"))
}

/// Connections at once. Each may hold a whole head in memory, and an eighth of the memory is for heads.
pub fn connections_max(written: usize, header_bytes_max: u64, host: &Host) -> Count {
    Count::written_or(written, || {
        least([
            (host.descriptors_for_connections(), "the limit on open files, less 64"),
            (host.memory_usable_bytes() / 8 / header_bytes_max.max(1), "an eighth of the memory, in heads"),
            (CONNECTIONS_DERIVED_MAX, "the most that is derived"),
        ])
    })
}

/// Streams open at once that no call owns. Each holds a connection, and some must be left for calls.
pub fn streams_max(written: usize, connections: Count) -> Count {
    Count::written_or(written, || (connections.value - connections.value / 4, "three quarters of the connections"))
}

/// Requests being served at once. Each may hold a whole body in memory, what is read
/// from it and what comes of it, which is some four times as much; a quarter of the memory is for that.
pub fn concurrent_requests_max(written: usize, request_bytes_max: u64, host: &Host) -> Count {
    Count::written_or(written, || {
        least([
            (host.cores_usable().saturating_mul(REQUESTS_PER_CORE) as u64, "100 for each core"),
            (host.memory_usable_bytes() / 16 / request_bytes_max.max(1), "a sixteenth of the memory, in bodies"),
        ])
    })
}

fn least<const N: usize>(bounds: [(u64, &'static str); N]) -> (usize, &'static str) {
    let (value, because) = bounds.into_iter().min_by_key(|(value, _)| *value).unwrap_or((1, "nothing to go by"));
    (usize::try_from(value).unwrap_or(usize::MAX), because)
}

/// The `MemTotal` line of `/proc/meminfo`, in bytes.
fn memory_total(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kib.checked_mul(1024)
}

/// What this host calls itself; empty when it does not say.
pub(crate) fn host_name() -> String {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    name.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    fn host(cores: usize, quota: Option<u64>, memory: u64, limit: Option<u64>, descriptors: u64) -> Host {
        Host {
            cores,
            cpu_quota_millicores: quota,
            memory_bytes: memory,
            memory_limit_bytes: limit,
            descriptors_max: descriptors,
        }
    }

    #[test]
    fn sizes_follow_the_quota_as_well_as_the_cores() {
        for (cores, quota, usable) in [
            (1, None, 1),
            (64, None, 64),
            (64, Some(4_000), 4),
            (64, Some(1_500), 2),
            (64, Some(100), 1),
            (2, Some(64_000), 2),
            (2, Some(0), 1),
        ] {
            let host = host(cores, quota, GIB, None, 1024);
            assert_eq!(host.cores_usable(), usable, "{cores} cores, quota {quota:?}");
            assert_eq!(io_threads(0, &host).value, usable);
            assert_eq!(io_threads(7, &host), Count { value: 7, because: None });
        }
    }

    #[test]
    fn pool_threads_for_what_was_written() {
        // cores, threads, threads_max => threads, threads_max
        for (cores, threads, threads_max, expected) in [
            (8, 0, 0, (8, 16)),
            (1, 0, 0, (1, 2)),
            (8, 3, 0, (3, 6)),
            (8, 0, 5, (5, 5)),
            (8, 0, 12, (8, 12)),
            (8, 3, 4, (3, 4)),
        ] {
            let core = pool_threads(threads, threads_max, &host(cores, None, GIB, None, 1024));
            let most = pool_threads_max(threads_max, core);
            assert_eq!((core.value, most.value), expected, "{cores} cores, {threads} and {threads_max} written");
        }
    }

    #[test]
    fn connections_are_bounded_by_descriptors_then_memory_then_a_ceiling() {
        for (descriptors, memory, value, because) in [
            (1024, 64 * GIB, 960, "the limit on open files, less 64"),
            (20_000, 64 * GIB, 19_936, "the limit on open files, less 64"),
            (1 << 20, 64 * GIB, 65_536, "the most that is derived"),
            (1 << 20, GIB, 8192, "an eighth of the memory, in heads"),
            (u64::MAX, 64 * GIB, 65_536, "the most that is derived"),
            (10, 64 * GIB, 1, "the limit on open files, less 64"),
        ] {
            let count = connections_max(0, 16 << 10, &host(4, None, memory, None, descriptors));
            assert_eq!(count, Count { value, because: Some(because) }, "{descriptors} descriptors, {memory} bytes");
        }
        assert_eq!(connections_max(5, 16 << 10, &host(4, None, GIB, None, 9)).value, 5);
    }

    #[test]
    fn requests_are_bounded_by_cores_then_memory() {
        for (cores, memory, limit, value) in [
            (2, 4 * GIB, None, 200),
            (64, 256 * GIB, None, 6400),
            (64, 256 * GIB, Some(GIB), 64), // a container of 1 GiB on a large machine
            (64, 0, None, 6400),            // memory unknown
        ] {
            let host = host(cores, None, memory, limit, 1024);
            assert_eq!(concurrent_requests_max(0, 1 << 20, &host).value, value, "{cores} cores, {memory} {limit:?}");
        }
        let small = host(1, None, 1 << 20, None, 1024);
        assert_eq!(concurrent_requests_max(0, GIB, &small).value, 1, "never 0: that would serve nobody");
    }

    #[test]
    fn memory_is_read_from_meminfo() {
        assert_eq!(memory_total("MemTotal:       24731708 kB\nMemFree: 1 kB\n"), Some(24_731_708 << 10));
        for text in ["", "MemFree: 1 kB", "MemTotal: x kB", "MemTotal: 99999999999999999999 kB"] {
            assert_eq!(memory_total(text), None, "{text}");
        }
    }

    #[test]
    fn this_host_can_be_read() {
        let host = Host::read();
        assert!(host.cores_usable() >= 1 && host.memory_usable_bytes() > 0 && host.descriptors_max > 0, "{host:?}");
    }
}
