//! What is given up when memory gets short, before the kernel ends the process: first what can be had again, then new
//! streams, then idle connections, then new calls.

use std::{
    fs,
    sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed},
};

/// From so much of the memory on, in hundredths.
const STREAMS_AT: u64 = 85;
const KEEP_ALIVE_AT: u64 = 92;
const CALLS_AT: u64 = 95;

/// What is given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    Nothing,
    /// New streams, and kept results.
    Streams,
    /// Also connections that wait for their next request.
    KeepAlive,
    /// Also new calls.
    Calls,
}

/// How much memory the process has, and how short it is.
#[derive(Debug)]
pub(crate) struct Pressure {
    /// What it may have, in bytes.
    memory_max: u64,
    resident: AtomicU64,
    level: AtomicU8,
}

impl Pressure {
    pub(crate) fn new(memory_max: u64) -> Self {
        Self { memory_max, resident: AtomicU64::new(0), level: AtomicU8::new(0) }
    }

    pub(crate) fn level(&self) -> Level {
        match self.level.load(Relaxed) {
            0 => Level::Nothing,
            1 => Level::Streams,
            2 => Level::KeepAlive,
            _ => Level::Calls,
        }
    }

    /// What the process had in memory when it was last looked at, in bytes.
    pub(crate) fn resident(&self) -> u64 {
        self.resident.load(Relaxed)
    }

    /// What it may have, in bytes.
    pub(crate) fn memory_max(&self) -> u64 {
        self.memory_max
    }

    /// Looks at the memory. To be called some times a second.
    pub(crate) fn look(&self) -> Level {
        let resident = resident_bytes().unwrap_or(0);
        let level = level_of(resident, self.memory_max);
        self.resident.store(resident, Relaxed);
        let before = self.level();
        self.level.store(level as u8, Relaxed);
        if level != before {
            let (resident, memory_max) = (resident >> 20, self.memory_max >> 20);
            match level {
                Level::Nothing => tracing::info!(resident_mib = resident, "memory is not short any more"),
                _ => tracing::warn!(
                    resident_mib = resident,
                    memory_mib = memory_max,
                    given_up = match level {
                        Level::Streams => "new streams and kept results",
                        Level::KeepAlive => "new streams, kept results and idle connections",
                        _ => "new streams, kept results, idle connections and new calls",
                    },
                    "memory is short"
                ),
            }
        }
        level
    }
}

fn level_of(resident: u64, memory_max: u64) -> Level {
    let at = |hundredths: u64| resident >= memory_max / 100 * hundredths;
    match () {
        () if at(CALLS_AT) => Level::Calls,
        () if at(KEEP_ALIVE_AT) => Level::KeepAlive,
        () if at(STREAMS_AT) => Level::Streams,
        () => Level::Nothing,
    }
}

/// What the process has in memory.
pub(crate) fn resident_bytes() -> Option<u64> {
    let statm = fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shorter_memory_is_the_more_is_given_up() {
        for (resident, level) in [
            (0, Level::Nothing),
            (849, Level::Nothing),
            (850, Level::Streams),
            (920, Level::KeepAlive),
            (950, Level::Calls),
            (2000, Level::Calls),
        ] {
            assert_eq!(level_of(resident, 1000), level, "{resident}");
        }
    }

    #[test]
    fn this_process_has_some_memory() {
        assert!(resident_bytes().is_some_and(|bytes| bytes > 1 << 20));
    }
}
