//! Log lines that input can cause without end: a few each second are written, the rest are counted.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant},
};

use parking_lot::Mutex;

/// Lines of one kind in one second.
const PER_SECOND_MAX: u64 = 10;

/// Says how many lines of one kind may be written.
#[derive(Debug)]
pub(crate) struct Rarely {
    began: Mutex<Option<Instant>>,
    written: AtomicU64,
    left_out: AtomicU64,
}

impl Rarely {
    pub(crate) const fn new() -> Self {
        Self { began: Mutex::new(None), written: AtomicU64::new(0), left_out: AtomicU64::new(0) }
    }

    /// Whether a line may be written at `now`: then, how many were left out since the last one.
    pub(crate) fn may(&self, now: Instant) -> Option<u64> {
        {
            let mut began = self.began.lock();
            if began.is_none_or(|began| now.saturating_duration_since(began) >= Duration::from_secs(1)) {
                *began = Some(now);
                self.written.store(0, Relaxed);
            }
        }
        if self.written.fetch_add(1, Relaxed) < PER_SECOND_MAX {
            return Some(self.left_out.swap(0, Relaxed));
        }
        self.left_out.fetch_add(1, Relaxed);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_a_few_lines_and_a_number() {
        let (rarely, now) = (Rarely::new(), Instant::now());
        assert_eq!((0..1000).filter(|_| rarely.may(now).is_some()).count() as u64, PER_SECOND_MAX);
        let later = now + Duration::from_secs(1);
        assert_eq!(rarely.may(later), Some(1000 - PER_SECOND_MAX));
        assert_eq!(rarely.may(later), Some(0));
    }
}
