//! Counters and histograms that threads write without meeting: each thread has a shard of its own, and a reader adds
//! them up. What they are of is said elsewhere.

use std::{
    sync::{
        OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

/// Shards at most: beyond it threads share.
const SHARDS_MAX: usize = 64;

/// Upper ends of a histogram's buckets, in nanoseconds; what takes longer has a bucket of its own. From a call of
/// microseconds to one that nobody waits for.
pub(crate) const BOUNDS_NS: [u64; 18] = [
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    1_000_000,
    2_500_000,
    10_000_000,
    25_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    10_000_000_000,
    30_000_000_000,
];
const BUCKETS: usize = BOUNDS_NS.len() + 1;

/// The shard of this thread.
fn own_shard(shards: usize) -> usize {
    static THREADS: AtomicUsize = AtomicUsize::new(0);
    thread_local!(static OWN: usize = THREADS.fetch_add(1, Relaxed));
    OWN.with(|own| own % shards)
}

fn shard_count() -> usize {
    static COUNT: OnceLock<usize> = OnceLock::new();
    *COUNT.get_or_init(|| thread::available_parallelism().map_or(1, usize::from).next_power_of_two().min(SHARDS_MAX))
}

/// One `T` for each thread that writes, on cache lines of its own. Made at the first write, so that what is never used
/// takes no room.
#[derive(Debug)]
pub(crate) struct Sharded<T>(OnceLock<Box<[Line<T>]>>);

#[derive(Debug, Default)]
#[repr(align(128))]
struct Line<T>(T);

impl<T> Default for Sharded<T> {
    fn default() -> Self {
        Self(OnceLock::new())
    }
}

impl<T: Default> Sharded<T> {
    pub(crate) fn own(&self) -> &T {
        let shards = self.0.get_or_init(|| (0..shard_count()).map(|_| Line::default()).collect());
        &shards[own_shard(shards.len())].0
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        self.0.get().into_iter().flatten().map(|line| &line.0)
    }
}

/// Counts by a small index.
#[derive(Debug)]
pub(crate) struct Counts<const N: usize>([AtomicU64; N]);

impl<const N: usize> Default for Counts<N> {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; N])
    }
}

impl<const N: usize> Counts<N> {
    pub(crate) fn add(&self, index: usize) {
        self.0[index].fetch_add(1, Relaxed);
    }

    pub(crate) fn get(&self, index: usize) -> u64 {
        self.0[index].load(Relaxed)
    }
}

/// Durations, by bucket.
#[derive(Debug, Default)]
pub(crate) struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    sum_ns: AtomicU64,
}

impl Histogram {
    pub(crate) fn record(&self, duration: Duration) {
        let ns = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.buckets[BOUNDS_NS.partition_point(|bound| *bound < ns)].fetch_add(1, Relaxed);
        self.sum_ns.fetch_add(ns, Relaxed);
    }
}

/// What several histograms hold together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Distribution {
    pub(crate) buckets: [u64; BUCKETS],
    pub(crate) sum_ns: u64,
}

impl Distribution {
    pub(crate) fn of<'a>(histograms: impl Iterator<Item = &'a Histogram>) -> Self {
        let mut all = Self::default();
        for histogram in histograms {
            for (sum, bucket) in all.buckets.iter_mut().zip(&histogram.buckets) {
                *sum += bucket.load(Relaxed);
            }
            all.sum_ns = all.sum_ns.wrapping_add(histogram.sum_ns.load(Relaxed));
        }
        all
    }

    pub(crate) fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_falls_into_the_bucket_whose_end_it_does_not_pass() {
        let histogram = Histogram::default();
        for ns in [0, 5_000, 5_001, 30_000_000_000, 30_000_000_001] {
            histogram.record(Duration::from_nanos(ns));
        }
        let all = Distribution::of(std::iter::once(&histogram));
        assert_eq!((all.buckets[0], all.buckets[1], all.buckets[BUCKETS - 2], all.buckets[BUCKETS - 1]), (2, 1, 1, 1));
        assert_eq!((all.count(), all.sum_ns), (5, 60_000_010_002));
    }

    #[test]
    fn shards_add_up() {
        let counts = Sharded::<Counts<2>>::default();
        assert_eq!(counts.iter().count(), 0);
        thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..1000).for_each(|_| counts.own().add(1)));
            }
        });
        assert_eq!(counts.iter().map(|c| c.get(1)).sum::<u64>(), 8000);
        assert_eq!(counts.iter().map(|c| c.get(0)).sum::<u64>(), 0);
    }
}
