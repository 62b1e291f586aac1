//! The issuer's keys: those of a file, and those that were fetched. Here they are read, kept, and let go; here it is
//! decided when to fetch again. Fetching is done in `fetch` and `refresh`.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, SystemTime},
};

use arc_swap::{ArcSwap, Guard};
use parking_lot::Mutex;

use super::{Config, algorithm::Algorithm, jwk::KeySet, refused::Refused};

/// As long as the first fetch takes at most.
const FIRST_FETCH_S: u32 = 2;

/// All keys that tokens may be signed with, as they are at the moment.
#[derive(Debug)]
pub struct Keys {
    now: ArcSwap<Current>,
    pace: Mutex<Pace>,
    fetches: bool,
    fetched: AtomicU64,
    failed: AtomicU64,
    refresh: Duration,
    retry: Duration,
    keep: Duration,
}

/// The keys at one moment. Replaced as a whole.
#[derive(Debug)]
pub struct Current {
    /// Changes whenever a key may have gone, so that what was verified before must be verified again.
    generation: u64,
    own: KeySet,
    fetched: Option<Fetched>,
}

#[derive(Clone, Debug)]
struct Fetched {
    keys: KeySet,
    bytes: Arc<[u8]>,
    until: SystemTime,
}

#[derive(Debug, Default)]
struct Pace {
    last_attempt: Option<SystemTime>,
    last_success: Option<SystemTime>,
}

impl Keys {
    /// The keys in `own` (those of `auth.jwks_file`), and those to be fetched when `auth.jwks_url` is set.
    pub(super) fn new(config: &Config, own: KeySet) -> Self {
        Self {
            now: ArcSwap::from_pointee(Current { generation: 0, own, fetched: None }),
            pace: Mutex::default(),
            fetches: !config.jwks_url.is_empty(),
            fetched: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            refresh: Duration::from_secs(config.jwks_refresh_s),
            retry: Duration::from_secs(config.jwks_retry_s),
            keep: Duration::from_secs(config.jwks_keep_s),
        }
    }

    /// The keys at `now`: fetched ones that are older than `auth.jwks_keep_s` are let go.
    pub fn current(&self, now: SystemTime) -> Arc<Current> {
        Guard::into_inner(self.borrowed(now))
    }

    /// The same, without a count that all threads would share.
    pub(super) fn borrowed(&self, now: SystemTime) -> Guard<Arc<Current>> {
        let current = self.now.load();
        if current.fetched.as_ref().is_none_or(|fetched| now < fetched.until) {
            return current;
        }
        let _one_at_a_time = self.pace.lock();
        let current = self.now.load();
        if current.fetched.as_ref().is_some_and(|fetched| now >= fetched.until) {
            self.swap(current.own.clone(), None);
        }
        self.now.load()
    }

    /// Whether the keys are to be fetched now: when they are due, or when a token names a key that is not among them.
    /// Says yes at most once in `auth.jwks_retry_s`, whoever asks. Who is told yes fetches, and then calls
    /// [`Keys::accept`] or [`Keys::failed`].
    pub fn wants_refresh(&self, now: SystemTime, unknown_kid: bool) -> bool {
        if !self.fetches {
            return false;
        }
        let mut pace = self.pace.lock();
        let over = |since: Option<SystemTime>, wait| {
            // A clock that was set back must not stop the fetching.
            since.is_none_or(|since| now.duration_since(since).map_or(true, |passed| passed >= wait))
        };
        let wanted = over(pace.last_attempt, self.retry) && (unknown_kid || over(pace.last_success, self.refresh));
        if wanted {
            pace.last_attempt = Some(now);
        }
        wanted
    }

    /// Takes a fetched key set, as it came. True when its keys are others than before.
    ///
    /// # Errors
    /// What is wrong with it. The keys stay as they were.
    pub fn accept(&self, bytes: &[u8], now: SystemTime) -> Result<bool, String> {
        let keys = KeySet::read(bytes, false)?;
        self.fetched.fetch_add(1, Relaxed);
        let mut pace = self.pace.lock();
        pace.last_success = Some(now);
        let current = self.now.load_full();
        let same = current.fetched.as_ref().filter(|before| *before.bytes == *bytes);
        let fetched = Fetched {
            keys: same.map_or(keys, |before| before.keys.clone()),
            bytes: same.map_or_else(|| bytes.into(), |before| Arc::clone(&before.bytes)),
            until: now + self.keep,
        };
        if same.is_some() {
            let (generation, own) = (current.generation, current.own.clone());
            self.now.store(Arc::new(Current { generation, own, fetched: Some(fetched) }));
            return Ok(false);
        }
        self.swap(current.own.clone(), Some(fetched));
        Ok(true)
    }

    /// Fetching failed. The keys stay as they were; the next attempt may come after `auth.jwks_retry_s`.
    pub fn failed(&self, now: SystemTime) {
        self.failed.fetch_add(1, Relaxed);
        self.pace.lock().last_attempt = Some(now);
    }

    /// Whether keys are fetched at all.
    pub fn are_fetched(&self) -> bool {
        self.fetches
    }

    /// How often they were fetched, and how often that failed.
    pub fn fetches(&self) -> (u64, u64) {
        (self.fetched.load(Relaxed), self.failed.load(Relaxed))
    }

    /// In how many seconds there may be keys, for who comes while there are none.
    pub fn retry_after_s(&self, now: SystemTime) -> u32 {
        let pace = self.pace.lock();
        let (fetched, failed) = self.fetches();
        let since = pace.last_attempt.filter(|_| fetched + failed > 0); // a key set may be had, and be empty
        let Some(since) = since else { return FIRST_FETCH_S };
        let rest = self.retry.saturating_sub(now.duration_since(since).unwrap_or_default());
        u32::try_from(rest.as_secs() + 1).unwrap_or(u32::MAX)
    }

    /// When the keys were last fetched, for the metrics.
    pub fn last_success(&self) -> Option<SystemTime> {
        self.pace.lock().last_success
    }

    /// Takes other keys of the own file.
    pub(super) fn replace_own(&self, own: KeySet) {
        let _one_at_a_time = self.pace.lock();
        let fetched = self.now.load().fetched.clone();
        self.swap(own, fetched);
    }

    /// Only under the lock of `pace`, so that no change is lost.
    fn swap(&self, own: KeySet, fetched: Option<Fetched>) {
        let generation = self.now.load().generation + 1;
        self.now.store(Arc::new(Current { generation, own, fetched }));
    }
}

impl Current {
    /// A number that is another one when a key may have gone.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// How many keys there are.
    pub fn len(&self) -> usize {
        self.sets().map(KeySet::len).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Only for `explain`, which asks for one token and keeps nothing.
    pub(super) fn of(own: KeySet, fetched: Option<KeySet>) -> Self {
        let fetched = fetched.map(|keys| Fetched { keys, bytes: Arc::default(), until: SystemTime::UNIX_EPOCH });
        Self { generation: 0, own, fetched }
    }

    /// Why keys of the issuer are not used, a line for each.
    pub fn passed_over(&self) -> impl Iterator<Item = &str> {
        self.sets().flat_map(KeySet::passed_over).map(String::as_str)
    }

    fn sets(&self) -> impl Iterator<Item = &KeySet> {
        [Some(&self.own), self.fetched.as_ref().map(|fetched| &fetched.keys)].into_iter().flatten()
    }

    /// The key that a header names, which must be one for the header's algorithm. A header without a name will do
    /// where one key only can be meant.
    pub(super) fn find(&self, kid: Option<&str>, algorithm: Algorithm) -> Result<&super::jwk::Key, Refused> {
        if self.is_empty() {
            return Err(Refused::NoKeys);
        }
        let named = || self.sets().flat_map(KeySet::iter).filter(|key| kid.is_none_or(|kid| key.is_named(kid)));
        let mut fitting = named().filter(|key| key.is_for(algorithm));
        let (found, other) = (fitting.next(), fitting.next());
        match (found, other, kid) {
            (Some(found), None, _) | (Some(found), _, Some(_)) => Ok(found),
            (Some(_), Some(_), None) => {
                let why = format!("there is no kid, and several keys are for {algorithm}");
                Err(Refused::KeyAlgorithm { why, has_kid: false })
            }
            (None, ..) if named().next().is_some() => {
                let why = format!("alg is {algorithm}, and the key is not one for that");
                Err(Refused::KeyAlgorithm { why, has_kid: kid.is_some() })
            }
            (None, ..) => Err(Refused::UnknownKey(kid.map_or_else(|| "(none)".into(), super::refused::shown))),
        }
    }
}
