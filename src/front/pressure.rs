//! What is given up when memory gets short, before the kernel ends the process: first what can be had again, then new
//! streams, then idle connections, then new calls.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    sync::atomic::{AtomicU8, AtomicU64, Ordering::Relaxed},
};

/// From so much of the memory on, in hundredths.
const STREAMS_AT: u64 = 85;
const KEEP_ALIVE_AT: u64 = 92;
const CALLS_AT: u64 = 95;
/// So much below, in hundredths, it is over: at the border itself it would begin and end all the time.
const OVER_BELOW: u64 = 2;

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
    /// Kept open: when descriptors are short, memory is looked at all the same.
    statm: Option<File>,
    resident: AtomicU64,
    level: AtomicU8,
    /// What the process is to seem to have in memory, in bytes; 0 is what it has.
    #[cfg(test)]
    pretended: AtomicU64,
}

impl Pressure {
    pub(crate) fn new(memory_max: u64) -> Self {
        Self {
            memory_max,
            statm: statm(),
            resident: AtomicU64::new(0),
            level: AtomicU8::new(0),
            #[cfg(test)]
            pretended: AtomicU64::new(0),
        }
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

    fn seen(&self) -> Option<u64> {
        #[cfg(test)]
        if let pretended @ 1.. = self.pretended.load(Relaxed) {
            return Some(pretended);
        }
        self.statm.as_ref().and_then(resident_bytes)
    }

    /// From now on so many hundredths of the memory seem to be in use.
    #[cfg(test)]
    pub(crate) fn pretend(&self, hundredths: u64) {
        self.pretended.store(self.memory_max / 100 * hundredths, Relaxed);
    }

    /// Looks at the memory. To be called some times a second.
    pub(crate) fn look(&self) -> Level {
        let resident = self.seen().unwrap_or_else(|| self.resident());
        let before = self.level();
        let level = level_of(resident, self.memory_max, before);
        self.resident.store(resident, Relaxed);
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

fn level_of(resident: u64, memory_max: u64, before: Level) -> Level {
    let is = |level: Level, hundredths: u64| {
        let over_below = if before >= level { OVER_BELOW } else { 0 };
        resident >= memory_max / 100 * (hundredths - over_below)
    };
    [(Level::Calls, CALLS_AT), (Level::KeepAlive, KEEP_ALIVE_AT), (Level::Streams, STREAMS_AT)]
        .into_iter()
        .find(|(level, at)| is(*level, *at))
        .map_or(Level::Nothing, |(level, _)| level)
}

fn statm() -> Option<File> {
    let opened = File::open("/proc/self/statm");
    if let Err(error) = &opened {
        tracing::warn!(%error, "cannot read /proc/self/statm; nothing is given up when memory is short");
    }
    opened.ok()
}

/// What the process has in memory.
fn resident_bytes(statm: &File) -> Option<u64> {
    let mut text = [0; 128];
    let length = statm.read_at(&mut text, 0).ok()?;
    let pages: u64 = std::str::from_utf8(&text[..length]).ok()?.split(' ').nth(1)?.parse().ok()?;
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
            assert_eq!(level_of(resident, 1000, Level::Nothing), level, "{resident}");
        }
    }

    #[test]
    fn at_a_border_it_is_over_a_little_later() {
        assert_eq!(level_of(940, 1000, Level::Calls), Level::Calls);
        assert_eq!(level_of(929, 1000, Level::Calls), Level::KeepAlive);
        assert_eq!(level_of(831, 1000, Level::Calls), Level::Streams);
        assert_eq!(level_of(829, 1000, Level::Calls), Level::Nothing);
        assert_eq!(level_of(949, 1000, Level::KeepAlive), Level::KeepAlive);
    }

    #[test]
    fn this_process_has_some_memory() {
        let pressure = Pressure::new(u64::MAX);
        assert_eq!(pressure.look(), Level::Nothing);
        assert!(pressure.resident() > 1 << 20);
    }
}
