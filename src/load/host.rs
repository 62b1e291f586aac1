//! Whether the host did something else meanwhile: what its cores ran beside the server and the generator, and what the
//! hypervisor took. A stretch of load that met such a thing is no figure of the server.

use std::{
    fs,
    time::{Duration, Instant},
};

use super::Result;

/// What others may use of the cores, as a part of one core. A quiet host has up to a tenth of one for itself.
const OTHERS_MAX: f64 = 0.2;
/// What may be taken of all cores' time.
const STOLEN_MAX: f64 = 0.01;

/// What the cores have done since boot.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cores {
    read_at: Instant,
    busy: Duration,
    stolen: Duration,
}

/// What disturbed a stretch of load.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Disturbance {
    /// Time that others ran, as a part of one core's.
    pub(crate) others: f64,
    /// Time that the hypervisor took, as a part of one core's.
    pub(crate) stolen: f64,
}

impl Cores {
    pub(super) fn read() -> Result<Self> {
        Self::parse(&fs::read_to_string("/proc/stat")?, rustix::param::clock_ticks_per_second())
            .ok_or_else(|| "/proc/stat is not as expected".into())
    }

    fn parse(stat: &str, ticks_per_s: u64) -> Option<Self> {
        let all = stat.lines().next()?.strip_prefix("cpu ")?;
        let ticks: Vec<u64> = all.split_whitespace().take(8).map_while(|field| field.parse().ok()).collect();
        // Guests' time, which follows, is part of user time already.
        let [user, nice, system, _idle, _waiting, irq, softirq, stolen] = ticks[..] else { return None };
        let time = |ticks: u64| Duration::from_millis(ticks * 1000 / ticks_per_s.max(1));
        Some(Self { read_at: Instant::now(), busy: time(user + nice + system + irq + softirq), stolen: time(stolen) })
    }

    /// What happened since `earlier`, beside what is known to have run for `own`.
    pub(super) fn since(self, earlier: Self, own: Option<Duration>) -> Disturbance {
        let passed = (self.read_at - earlier.read_at).as_secs_f64().max(1e-3);
        let share = |time: Duration| time.as_secs_f64() / passed;
        let busy = self.busy.saturating_sub(earlier.busy);
        Disturbance {
            others: own.map_or(0.0, |own| share(busy.saturating_sub(own))),
            stolen: share(self.stolen.saturating_sub(earlier.stolen)),
        }
    }
}

impl Disturbance {
    /// What it was, when it was too much.
    pub(crate) fn told(self) -> Option<String> {
        let (of, what) = match self {
            Self { others, .. } if others > OTHERS_MAX => (others, "others on this host used"),
            Self { stolen, .. } if stolen > STOLEN_MAX => (stolen, "the hypervisor took"),
            _ => return None,
        };
        Some(format!("{what} {:.0} % of a core meanwhile", of * 100.0))
    }

    pub(super) fn is_worse_than(self, other: Self) -> bool {
        self.others + self.stolen > other.others + other.stolen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_of_others_is_what_nobody_here_used() {
        let read = |stat: &str| Cores::parse(stat, 100).expect("reads");
        let before = read("cpu  100 0 100 900 5 0 10 7 0 0\ncpu0 1 1 1 1\n");
        let mut after = read("cpu  150 10 120 1800 5 5 25 8 0 0\n"); // a second of work, and 10 ms were taken
        after.read_at = before.read_at + Duration::from_secs(2);
        let found = after.since(before, Some(Duration::from_millis(800)));
        assert!((found.others - 0.1).abs() < 1e-9 && (found.stolen - 0.005).abs() < 1e-9, "{found:?}");
        assert_eq!(found.told(), None, "a quiet host does a little");
        let told = after.since(before, Some(Duration::from_millis(400))).told();
        assert_eq!(told.as_deref(), Some("others on this host used 30 % of a core meanwhile"));
        assert_eq!(after.since(before, None).told(), None, "not known whose it was");
        assert!(Cores::read().is_ok());
        assert!(Cores::parse("cpu  1 2 3\n", 100).is_none() && Cores::parse("", 100).is_none());
    }
}
