//! Which processes are there: each listens to its mail and says all the time that it lives (its lease). Who does neither
//! is gone, but not at the first look: Redis may just have been away, or be another, and then nobody has found their way
//! back yet. Who is not heard for a moment and renews its lease lives: a subscription breaks by itself, and there may be
//! no room for a new one. How sure one is to be depends on what a mistake costs ([`Stake`]). What is done about what a
//! process left behind is not known here.
//!
//! ```text
//! lives:{PROCESS}    there as long as the process renews it
//! ```
//!
//! | at stake      | does not listen, lease was renewed before   | the same without a lease | listens without a lease |
//! |---------------|---------------------------------------------|--------------------------|-------------------------|
//! | a second run  | 0.2 s, and 1.3 s since the renewal          | 0.2 s                    | 4 s                     |
//! | a call's end  | 0.8 s, and 2.5 s since the renewal          | 4 s                      | 4 s                     |
//! | for ever      | 5 s without a renewal in them, three looks  | 5 s, three looks         | 10 s, three looks       |
//!
//! Whether one listens Redis knows at once of a process that is killed. It takes who lost power or the network, or hangs,
//! for a listener for minutes: those are known by their lease, which runs out after 10 s.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use parking_lot::Mutex;
use tokio::{
    join,
    time::{Instant, sleep, sleep_until},
};

use super::{
    keys::Keys,
    link::{Link, LinkError, cmd},
};

/// So long a process lives that said so, the pause until it says so again, and until it tries that again. What hangs for
/// longer than the lease has lost its calls to whoever asks for them.
const LEASE: Duration = Duration::from_secs(10);
const RENEWAL: Duration = Duration::from_secs(1);
const RETRY: Duration = Duration::from_millis(250);

/// When our own lease was not renewed for longer, others may not have come to it either.
const LATE: Duration = Duration::from_secs(6);
/// Before the first look others may have had nowhere to say that they live.
const BEGINNING: Duration = Duration::from_secs(3);
/// After Redis was away nobody is judged by what is not there for so long: others have to find their way back first. Who
/// comes there by sentinels looks at them every 5 s, and those who moved first see nothing of those who come last.
const UNSTEADY: Duration = Duration::from_secs(9);

/// What a mistake about a process costs, should it live.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stake {
    /// No more than a second run: the first run is stopped then.
    SecondRun,
    /// The end of a call that would have come to a result.
    End,
    /// The same of a task, which is kept.
    ForEver,
}

/// Many look at once for what one process left; what they find counts once.
const COUNTED_APART: Duration = Duration::from_secs(1);
/// Looks that are further apart say nothing together, but for what is for ever: there such count as find no lease.
const APART_MAX: Duration = Duration::from_secs(120);
/// What Redis says of the time that is left where there is no such key.
const NO_KEY: i64 = -2;
/// Processes that are found absent at once.
const ABSENT_MAX: usize = 1024;

/// Whether what is missing in Redis says something of others.
#[derive(Debug, Default)]
struct Steady(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    /// When our own lease was renewed last.
    renewed: Option<Instant>,
    /// How often Redis was away by the last look.
    times_away: u64,
    /// Leases, and those who listen, are there again from then on, if their owners are.
    leases_from: Option<Instant>,
    listeners_from: Option<Instant>,
}

impl Steady {
    /// Our own lease was renewed. When that took long, others may not have come to it at all.
    fn note_renewal(&self, now: Instant) {
        let mut state = self.0.lock();
        match state.renewed.replace(now) {
            Some(before) if now.duration_since(before) <= LATE => {}
            Some(_) => state.leases_from = Some(now + LEASE),
            None => state.leases_from = Some(now + BEGINNING),
        }
    }

    /// Our own connection was another for a moment, or none.
    fn note_gap(&self, now: Instant) {
        self.0.lock().listeners_from = Some(now + UNSTEADY);
    }

    /// Whether it says something that somebody does not listen, and that somebody has no lease.
    fn look(&self, now: Instant, times_away: u64) -> (bool, bool) {
        let mut state = self.0.lock();
        if std::mem::replace(&mut state.times_away, times_away) != times_away {
            state.listeners_from = Some(now + UNSTEADY);
        }
        let is_over = |from: Option<Instant>| from.is_none_or(|from| now >= from);
        let listeners = is_over(state.listeners_from);
        let is_renewed = state.renewed.is_some_and(|renewed| now.duration_since(renewed) <= LATE);
        (listeners, listeners && is_renewed && is_over(state.leases_from))
    }
}

/// What one look at a process found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    There,
    /// It does not listen.
    Silent(Lease),
    /// It listens, as far as is known, and has no lease.
    Hangs,
    /// It cannot be told.
    Unknown,
}

/// How it stands with the lease of a process that does not listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lease {
    /// It was renewed so long ago.
    Renewed(Duration),
    /// There is none. When it was renewed last, or whether Redis had it, is not known.
    None,
    /// There is none, and that says nothing now.
    Untold,
}

/// A process that was looked for and not found.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Absent {
    look: Look,
    /// From the first of the looks in a row that found it so until this one. It said in between that it lives: then they
    /// are no row.
    since: Duration,
    /// Of those, such as are some time apart.
    looks: u32,
    /// The same two of the looks in a row that found no lease, however far apart.
    leaseless: (Duration, u32),
}

impl Absent {
    /// Whether it is gone, as far as must be known for that.
    pub(crate) fn is_enough_for(&self, stake: Stake) -> bool {
        const fn ms(ms: u64) -> Duration {
            Duration::from_millis(ms)
        }
        let (since, unrenewed, looks) = match (self.look, stake) {
            (Look::There | Look::Unknown, _) | (Look::Silent(Lease::Untold), Stake::End | Stake::ForEver) => {
                return false;
            }
            (Look::Silent(_), Stake::SecondRun) => (ms(200), ms(1300), 1),
            (Look::Silent(Lease::Renewed(_)), Stake::End) => (ms(800), ms(2500), 1),
            (Look::Silent(_), Stake::ForEver) => (ms(5000), ms(5000), 3),
            // Where part of Redis was away the leases there ran out, and their owners come back to them in a while.
            (Look::Silent(_), Stake::End) | (Look::Hangs, Stake::SecondRun | Stake::End) => (ms(4000), ms(0), 1),
            (Look::Hangs, Stake::ForEver) => (ms(10_000), ms(0), 3),
        };
        let is_renewed = matches!(self.look, Look::Silent(Lease::Renewed(ago)) if ago < unrenewed);
        let is_row = |row: (Duration, u32)| row.0 >= since && row.1 >= looks;
        !is_renewed && (is_row((self.since, self.looks)) || stake == Stake::ForEver && is_row(self.leaseless))
    }
}

/// Looks in a row: the first, the last that was counted, and how many were.
#[derive(Clone, Copy, Debug)]
struct Row {
    first: Instant,
    counted: Instant,
    looks: u32,
}

impl Row {
    const fn begin(now: Instant) -> Self {
        Self { first: now, counted: now, looks: 1 }
    }

    /// Another look: since when there are any, and how many.
    fn add(&mut self, now: Instant) -> (Duration, u32) {
        if now.saturating_duration_since(self.counted) >= COUNTED_APART {
            (self.counted, self.looks) = (now, self.looks.saturating_add(1));
        }
        (now.saturating_duration_since(self.first), self.looks)
    }
}

/// What looks found a process absent.
#[derive(Clone, Copy, Debug)]
struct Seen {
    last: Instant,
    row: Row,
    /// Those that found no lease, however far apart.
    leaseless: Option<Row>,
}

impl Seen {
    const fn first(now: Instant) -> Self {
        Self { last: now, row: Row::begin(now), leaseless: None }
    }
}

/// The processes, as one of them sees them.
#[derive(Debug)]
pub(crate) struct Presence {
    link: Link,
    keys: Keys,
    /// This process.
    tag: u32,
    steady: Steady,
    absent: Mutex<HashMap<u32, Seen>>,
    /// This process ends: its lease is given back.
    has_left: AtomicBool,
}

impl Presence {
    pub(super) fn new(link: Link, keys: Keys, tag: u32) -> Arc<Self> {
        let (steady, absent, has_left) = Default::default();
        Arc::new(Self { link, keys, tag, steady, absent, has_left })
    }

    /// This process.
    pub(crate) fn tag(&self) -> u32 {
        self.tag
    }

    /// Says that this process lives, again and again, in a task of the runtime that this is called in, as long as it is
    /// of use.
    pub(super) fn keep_lease(self: Arc<Self>, is_of_use: impl Fn() -> bool + Send + 'static) {
        tokio::spawn(async move {
            while !self.has_left.load(Relaxed) && is_of_use() {
                let began = Instant::now();
                let mut set = cmd("SET");
                set.arg(self.keys.lives(self.tag)).arg("").arg("PX").arg(LEASE.as_millis() as u64);
                match self.link.query::<()>(&set).await {
                    Ok(()) => self.steady.note_renewal(Instant::now()),
                    Err(LinkError::Refused(_)) => {} // it is refused again
                    Err(_) => {
                        sleep(RETRY).await;
                        continue;
                    }
                }
                sleep_until(began + RENEWAL).await;
            }
        });
    }

    /// Gives the lease back: this process ends.
    pub(crate) async fn leave(&self) {
        self.has_left.store(true, Relaxed);
        let gone: Result<u64, LinkError> = self.link.query(cmd("DEL").arg(self.keys.lives(self.tag))).await;
        if let Err(error) = gone {
            tracing::debug!(%error, "that this process lives is said until it expires");
        }
    }

    /// What others tell was not heard for a moment.
    pub(crate) fn note_gap(&self) {
        self.steady.note_gap(Instant::now());
    }

    /// Looks for a process. `None` when it is there, and when that cannot be told: then the looks before count no more.
    pub(crate) async fn absent(&self, tag: u32) -> Option<Absent> {
        let look = self.look(tag).await.unwrap_or(Look::Unknown);
        self.note(tag, look, Instant::now())
    }

    async fn look(&self, tag: u32) -> Result<Look, LinkError> {
        if tag == self.tag {
            return Ok(Look::There);
        }
        let (mail, own) = (self.keys.mail(tag), self.keys.mail(self.tag));
        let (mut lease, mut count) = (cmd("PTTL"), cmd("PUBSUB"));
        lease.arg(self.keys.lives(tag));
        count.arg("NUMSUB").arg(&mail).arg(&own);
        // In a cluster all nodes are asked and the answers added up. What was killed listens no more at once.
        let (lease, counted): (_, Result<Vec<(String, u64)>, _>) =
            join!(self.link.query(&lease), self.link.query(&count));
        let left_ms: i64 = lease?;
        let (tell_listeners, tell_leases) = self.steady.look(Instant::now(), self.link.times_away());
        let listens = |counted: &[(String, u64)], mail: &str| {
            counted.iter().any(|(channel, count)| channel == mail && *count > 0)
        };
        // As long as one node of a cluster is down nobody says who listens: then the lease alone tells.
        let is_silent = counted.as_ref().is_ok_and(|counted| !listens(counted, &mail));
        // Who is not heard itself cannot tell whether it is the others.
        let can_tell = match counted {
            Ok(counted) if is_silent => tell_listeners && listens(&counted, &own),
            _ => tell_leases,
        };
        if !can_tell {
            return Ok(Look::Unknown);
        }
        let renewed = (left_ms != NO_KEY).then(|| {
            let left = u64::try_from(left_ms).map_or(LEASE, Duration::from_millis);
            LEASE.saturating_sub(left)
        });
        Ok(match renewed {
            Some(ago) if is_silent => Look::Silent(Lease::Renewed(ago)),
            Some(_) => Look::There,
            None if !is_silent => Look::Hangs,
            None if tell_leases => Look::Silent(Lease::None),
            None => Look::Silent(Lease::Untold),
        })
    }

    /// What all looks in a row say together.
    fn note(&self, tag: u32, look: Look, now: Instant) -> Option<Absent> {
        let mut absent = self.absent.lock();
        if !matches!(look, Look::Silent(_) | Look::Hangs) {
            absent.remove(&tag);
            return None;
        }
        if absent.len() >= ABSENT_MAX && !absent.contains_key(&tag) {
            absent.clear(); // who is absent is found so again
        }
        let seen = absent.entry(tag).or_insert_with(|| Seen::first(now));
        let since = now.saturating_duration_since(seen.row.first);
        let has_lived = matches!(look, Look::Silent(Lease::Renewed(ago)) if ago < since);
        if has_lived || now.saturating_duration_since(seen.last) > APART_MAX {
            seen.row = Row::begin(now);
        }
        seen.last = seen.last.max(now);
        let (since, looks) = seen.row.add(now);
        let leaseless = if matches!(look, Look::Silent(Lease::None) | Look::Hangs) {
            seen.leaseless.get_or_insert_with(|| Row::begin(now)).add(now)
        } else {
            seen.leaseless = None;
            Default::default()
        };
        Some(Absent { look, since, looks, leaseless })
    }

    /// What is missing says something from now on, without the time that this takes.
    #[cfg(test)]
    pub(crate) fn trust(&self) {
        *self.steady.0.lock() =
            State { renewed: Some(Instant::now()), times_away: self.link.times_away(), ..State::default() };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::{Cluster, Config, Own};

    #[test]
    fn nobody_is_judged_while_redis_was_away() {
        let (steady, start) = (Steady::default(), Instant::now());
        let at = |seconds: u64| start + Duration::from_secs(seconds);
        assert_eq!(steady.look(at(0), 0), (true, false), "others may have no lease yet");
        for second in (0..=9).step_by(3) {
            steady.note_renewal(at(second));
        }
        assert_eq!(steady.look(at(10), 0), (true, true));
        assert_eq!(steady.look(at(16), 0), (true, false), "our own is not renewed either");
        steady.note_renewal(at(17));
        assert_eq!(steady.look(at(17), 0), (true, false), "and then others need their time");
        (20..=26).step_by(3).for_each(|second| steady.note_renewal(at(second)));
        assert_eq!(steady.look(at(27), 0), (true, true));
        assert_eq!(steady.look(at(27), 1), (false, false), "Redis was away");
        (29..=38).step_by(3).for_each(|second| steady.note_renewal(at(second)));
        assert_eq!(steady.look(at(35), 1), (false, false), "others may look at their sentinels only now");
        assert_eq!(steady.look(at(36), 1), (true, true));
        steady.note_gap(at(36));
        assert_eq!(steady.look(at(37), 1), (false, false));
    }

    fn presence() -> Arc<Presence> {
        let config = Config { redis: "redis://127.0.0.1:1".into(), ..Config::default() };
        Arc::clone(&Cluster::open(&config, Own::default()).expect("settings").presence)
    }

    #[tokio::test]
    async fn only_looks_in_a_row_count() {
        let (presence, start) = (presence(), Instant::now());
        let note = |look, seconds: u64| {
            presence
                .note(7, look, start + Duration::from_secs(seconds))
                .map(|absent| (absent.since.as_secs(), absent.looks))
        };
        let silent = Look::Silent(Lease::None);
        assert_eq!(
            [note(silent, 0), note(Look::Hangs, 1), note(silent, 3)],
            [Some((0, 1)), Some((1, 2)), Some((3, 3))]
        );
        for other in [Look::There, Look::Unknown] {
            assert_eq!((note(other, 4), note(silent, 5)), (None, Some((0, 1))), "{other:?}");
        }
        assert_eq!(presence.note(7, silent, start + Duration::from_millis(5900)).map(|absent| absent.looks), Some(1));
        assert_eq!(note(silent, 200), Some((0, 1)), "too far apart");
        let renewed = |seconds| Look::Silent(Lease::Renewed(Duration::from_secs(seconds)));
        assert_eq!(note(renewed(3), 202), Some((2, 2)), "before the first look");
        assert_eq!(note(renewed(2), 205), Some((0, 1)), "it has said since that it lives");
        assert_eq!(presence.note(8, silent, start).map(|absent| absent.since), Some(Duration::ZERO), "each for itself");
    }

    /// When each is enough, in milliseconds from the first look, with a look every so often and a lease as of then.
    async fn enough(looks_ms: u64, look: impl Fn(Duration) -> Look) -> [Option<u64>; 3] {
        let (presence, start) = (presence(), Instant::now());
        let mut enough = [None; 3];
        for at_ms in (0..=30_000).step_by(looks_ms as usize) {
            let at = Duration::from_millis(at_ms);
            let absent = presence.note(7, look(at), start + at);
            for (stake, enough) in [Stake::SecondRun, Stake::End, Stake::ForEver].into_iter().zip(&mut enough) {
                if absent.is_some_and(|absent| absent.is_enough_for(stake)) {
                    enough.get_or_insert(at_ms);
                }
            }
        }
        enough
    }

    #[tokio::test]
    async fn who_has_no_lease_is_gone_for_ever_at_the_third_look_however_seldom_one_looks() {
        let (presence, start) = (presence(), Instant::now());
        let is_gone = |look, minutes: u64| {
            let absent = presence.note(7, look, start + Duration::from_secs(60 * minutes)).expect("it is not there");
            [Stake::SecondRun, Stake::End, Stake::ForEver].map(|stake| absent.is_enough_for(stake))
        };
        for (none, at) in [(Look::Silent(Lease::None), 0), (Look::Hangs, 100)] {
            let renewed = Look::Silent(Lease::Renewed(Duration::from_secs(1)));
            for look in [renewed, none, none, Look::Silent(Lease::Untold), none, none].into_iter().enumerate() {
                assert_eq!(is_gone(look.1, at + 10 * look.0 as u64), [false; 3], "{look:?}");
            }
            assert_eq!(is_gone(none, at + 60), [false, false, true], "{none:?}");
        }
    }

    #[tokio::test]
    async fn who_is_not_heard_and_says_that_it_lives_is_never_gone() {
        // At each look it does not listen, whatever that comes from.
        let lives = |late: Duration| {
            move |at: Duration| {
                let ago = Duration::from_nanos((at.as_nanos() % (RENEWAL + late).as_nanos()) as u64);
                Look::Silent(Lease::Renewed(ago))
            }
        };
        for looks_ms in [200, 1000, 5000] {
            assert_eq!(enough(looks_ms, lives(Duration::ZERO)).await, [None; 3], "looks every {looks_ms} ms");
            let once_missed = enough(looks_ms, lives(RENEWAL)).await;
            assert_eq!(once_missed[1..], [None; 2], "one renewal came to nothing, looks every {looks_ms} ms");
        }
    }

    #[tokio::test]
    async fn who_was_killed_is_gone_soon_and_who_seems_to_hang_not_at_once() {
        // Killed just after a renewal, and just before one, and looked for at once.
        for since_renewal in [Duration::ZERO, RENEWAL] {
            let dead = |at| match since_renewal + at {
                ago if ago < LEASE => Look::Silent(Lease::Renewed(ago)),
                _ => Look::Silent(Lease::None),
            };
            let [again, end, for_ever] = enough(250, dead).await.map(|ms| ms.expect("it is gone"));
            assert!(again <= 1500 && end <= 3000 && for_ever == 5000, "{again} {end} {for_ever}");
            assert_eq!(enough(4000, dead).await[2], Some(8000), "two looks that are apart are not enough for ever");
        }
        let times = [Some(250), Some(4000), Some(5000)];
        assert_eq!(enough(250, |_| Look::Silent(Lease::None)).await, times, "long dead");
        assert_eq!(enough(250, |_| Look::Silent(Lease::Untold)).await, [Some(250), None, None]);
        assert_eq!(enough(250, |_| Look::Hangs).await, [Some(4000), Some(4000), Some(10_000)]);
        // Part of a cluster of Redis was away until now: the leases there are back before that says anything.
        let back = |at| if at < BEGINNING + RETRY { Look::Hangs } else { Look::There };
        assert_eq!(enough(200, back).await, [None; 3]);
    }
}
