//! Sessions as Redis keeps them, so that any instance resumes any of them: a small record under a hash of the session's
//! id. Redis never sees the id itself, so who reads Redis can use no session. What a session is, is not known here.
//!
//! ```text
//! session:{HASH}         the record; expires some time after the session's last use
//! session:{HASH}:topics  what it subscribes to, where that does not fit into the record
//! session:{HASH}:ended   it was ended, a short while ago
//! session:{HASH}:x       marks of the last calls that its client took back at an instance that does not run them
//! sessions:key           the key of the hash, and the epoch: another in each Redis that began empty
//! sessions               channel: what happened to sessions
//! ```
//!
//! What a record has in it is `record`'s, and what instances tell each other of sessions is in `news`.

mod news;
mod record;

use std::{
    sync::{
        Arc, LazyLock,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use hmac::{Hmac, KeyInit, Mac};
use parking_lot::Mutex;
use sha2::Sha256;
use tokio::sync::watch;

pub(super) use self::news::{cancelled, mark};
pub(crate) use self::{
    news::{Listener, News},
    record::{Hash, Record},
};
use super::{
    keys::{Keys, hex},
    link::{Link, LinkError, Refused, Script, State, cmd, pipe},
};

/// The most that a record has.
pub(crate) const RECORD_BYTES_MAX: usize = 640;
/// The most that is read of a record, and of what it subscribes to; cut off there, it is none.
const READ_BYTES_MAX: usize = 16 << 10;
const TOPICS_BYTES_MAX: usize = 8 << 20;
/// How long it is remembered that a session was ended: longer than a listener may be deaf for a moment.
const ENDED_MS: u64 = 60_000;

/// How long after Redis lost all a record may be missing that will be there again.
const COMES_BACK: Duration = Duration::from_secs(5);

/// Gets the key of the hash and the epoch, and makes them where there are none.
static SECRET: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"redis.call('HSETNX', KEYS[1], 'key', ARGV[1])
redis.call('HSETNX', KEYS[1], 'epoch', ARGV[2])
redis.call('PEXPIRE', KEYS[1], ARGV[3])
return redis.call('HMGET', KEYS[1], 'key', 'epoch')",
    )
});

/// Writes a record over an older one, and with it what does not fit into it.
static CHANGE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r#"local old = redis.call('GET', KEYS[1])
if not old then return 0 end
if (tonumber(string.match(old, '^{"u":(%d+)')) or 0) > tonumber(ARGV[3]) then return 2 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
if KEYS[2] then redis.call('SET', KEYS[2], ARGV[4], 'PX', ARGV[2]) end
return 1"#,
    )
});

/// How a record is to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Write {
    /// It is new.
    New,
    /// It is there; where it is not any more the session has ended.
    Known,
    /// Redis may have lost it.
    Again,
}

/// What became of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Written {
    Yes,
    /// There is none, or there is one already, and there should not be.
    No,
    /// What is there changed later.
    Older,
}

/// Whether a record is there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum There {
    Yes,
    No,
    /// It was ended.
    Ended,
}

#[derive(Clone, PartialEq, Eq)]
struct Secret {
    key: [u8; 32],
    epoch: String,
}

/// The records of all sessions.
pub(crate) struct Records {
    link: Link,
    keys: Keys,
    node: String,
    /// What this process is called in questions and messages: another in each start.
    tag: u32,
    expiry: Duration,
    secret: Mutex<Option<Secret>>,
    /// When it was noticed that Redis had lost everything.
    lost: Mutex<Option<Instant>>,
    is_owed: AtomicBool,
    /// Records that are none of ours.
    corrupt: Arc<AtomicU64>,
}

impl std::fmt::Debug for Records {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Records").field("tag", &self.tag).finish_non_exhaustive()
    }
}

impl Records {
    /// `expiry` is how long a record lives after it was touched.
    pub(crate) fn new(
        link: Link,
        keys: Keys,
        node: String,
        tag: u32,
        expiry: Duration,
        corrupt: Arc<AtomicU64>,
    ) -> Self {
        Self {
            link,
            keys,
            node,
            tag,
            expiry,
            secret: Mutex::default(),
            lost: Mutex::default(),
            is_owed: AtomicBool::new(false),
            corrupt,
        }
    }

    pub(crate) fn node(&self) -> &str {
        &self.node
    }

    /// Whether Redis is there, to wait for a change.
    pub(crate) fn watch(&self) -> watch::Receiver<State> {
        self.link.watch()
    }

    pub(crate) fn is_away(&self) -> bool {
        self.link.is_away()
    }

    /// Learns the key of the hash where it is not known. It is asked for once in a process's life.
    ///
    /// # Errors
    /// Redis does not say.
    pub(crate) async fn ready(&self) -> Result<(), LinkError> {
        if self.secret.lock().is_some() { Ok(()) } else { self.renew().await.map(drop) }
    }

    /// Keeps the key of the hash in Redis, and says whether Redis is another than before: it has lost all records, or has
    /// another key.
    ///
    /// # Errors
    /// Redis does not say.
    pub(crate) async fn renew(&self) -> Result<bool, LinkError> {
        let before = self.secret.lock().clone();
        let mut fresh = [0; 48];
        getrandom::fill(&mut fresh).map_err(|_| LinkError::Odd("no random numbers".into()))?;
        let key = before.as_ref().map_or_else(|| hex(&fresh[..32]), |secret| hex(&secret.key));
        let mut script = SECRET.prepare_invoke();
        let ms = 2 * self.expiry.as_millis() as u64;
        script.key(self.keys.sessions_key()).arg(key).arg(hex(&fresh[32..40])).arg(ms);
        let (key, epoch): (String, String) = self.link.script(&script).await?;
        let halves = key.get(..32).and_then(Hash::parse).zip(key.get(32..).and_then(Hash::parse));
        let (left, right) = halves.ok_or_else(|| LinkError::Odd("a key of sessions that is none".into()))?;
        let mut key = [0; 32];
        key[..16].copy_from_slice(&left.0);
        key[16..].copy_from_slice(&right.0);
        let now = Secret { key, epoch };
        let is_other = before.is_some_and(|before| before != now);
        *self.secret.lock() = Some(now);
        if is_other {
            *self.lost.lock() = Some(Instant::now());
        }
        Ok(is_other)
    }

    /// Whether a record that is not there may be written yet by who has the session: Redis has lost all, or was away, just
    /// now.
    ///
    /// # Errors
    /// Redis does not say.
    pub(crate) async fn may_come_back(&self) -> Result<bool, LinkError> {
        let is_recent = || self.lost.lock().is_some_and(|at| at.elapsed() < COMES_BACK);
        if is_recent() {
            return Ok(true);
        }
        let is_other = self.renew().await?;
        if is_other {
            self.is_owed.store(true, Relaxed);
        }
        Ok(is_other)
    }

    /// Redis was away: what others could not write meanwhile they write now.
    pub(crate) fn note_return(&self) {
        *self.lost.lock() = Some(Instant::now());
    }

    /// Whether that was noticed beside [`Records::renew`] since the last time.
    pub(crate) fn take_owed(&self) -> bool {
        self.is_owed.swap(false, Relaxed)
    }

    /// The name of the session of this id; none before the key is known.
    pub(crate) fn hash(&self, id: &str) -> Option<Hash> {
        self.mac(b"session", id)
    }

    /// A hash of whom a session belongs to.
    pub(crate) fn owner(&self, subject: &str) -> Option<String> {
        self.mac(b"owner", subject).map(|hash| hash.text())
    }

    fn mac(&self, what: &[u8], text: &str) -> Option<Hash> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.secret.lock().as_ref()?.key).ok()?;
        mac.update(what);
        mac.update(b"\0");
        mac.update(text.as_bytes());
        let mut hash = [0; 16];
        hash.copy_from_slice(&mac.finalize().into_bytes()[..16]);
        Some(Hash(hash))
    }

    /// The record of a session: one round trip, or two where it subscribes to much. What is no record of ours counts as
    /// missing, is counted, and is left as it is.
    ///
    /// # Errors
    /// Redis does not say.
    pub(crate) async fn load(&self, hash: Hash) -> Result<Option<Record>, LinkError> {
        let read = async {
            let Some(text) = self.text(self.keys.session(&hash.text()), READ_BYTES_MAX).await? else { return Ok(None) };
            let odd = || LinkError::Odd("a session that is none".into());
            let mut record: Record = serde_json::from_slice(&text).map_err(|_| odd())?;
            if record.has_more {
                let topics = self.text(self.topics(hash), TOPICS_BYTES_MAX).await?;
                record.topics = serde_json::from_slice(&topics.unwrap_or_default()).map_err(|_| odd())?;
            }
            Ok(Some(record))
        };
        match read.await {
            Err(error @ (LinkError::Odd(_) | LinkError::Refused(Refused::WrongType))) => {
                self.corrupt.fetch_add(1, Relaxed);
                tracing::warn!(%error, "what is kept of a session in Redis is no record; it counts as missing, and is left");
                Ok(None)
            }
            read => read,
        }
    }

    /// What a key holds, and no more of it than one of ours may have.
    async fn text(&self, key: String, bytes_max: usize) -> Result<Option<Vec<u8>>, LinkError> {
        let text: Vec<u8> = self.link.query(cmd("GETRANGE").arg(key).arg(0).arg(bytes_max)).await?;
        Ok(Some(text).filter(|text| !text.is_empty()))
    }

    /// Writes a record; whether it was.
    ///
    /// # Errors
    /// Redis did not take it.
    pub(crate) async fn save(&self, hash: Hash, mut record: Record, how: Write) -> Result<Written, LinkError> {
        let (key, ms) = (self.keys.session(&hash.text()), self.expiry.as_millis() as u64);
        let changed_ms = record.changed_ms;
        let mut topics = None;
        let mut text = serde_json::to_vec(&record).unwrap_or_default();
        if text.len() > RECORD_BYTES_MAX && !record.topics.is_empty() {
            topics = Some(serde_json::to_vec(&std::mem::take(&mut record.topics)).unwrap_or_default());
            record.has_more = true;
            text = serde_json::to_vec(&record).unwrap_or_default();
        }
        if how == Write::Known {
            let mut script = CHANGE.prepare_invoke();
            script.key(key).arg(text).arg(ms).arg(changed_ms);
            if let Some(topics) = topics {
                script.key(self.topics(hash)).arg(topics);
            }
            return Ok(match self.link.script(&script).await? {
                0_u8 => Written::No,
                1 => Written::Yes,
                _ => Written::Older,
            });
        }
        if let Some(topics) = topics {
            self.link.query::<()>(cmd("SET").arg(self.topics(hash)).arg(topics).arg("PX").arg(ms)).await?;
        }
        let mut set = cmd("SET");
        set.arg(key).arg(text).arg("PX").arg(ms);
        if how == Write::Again {
            set.arg("NX");
        }
        let done: Option<String> = self.link.query(&set).await?;
        Ok(if done.is_some() { Written::Yes } else { Written::No })
    }

    /// Has a record live for longer, as its session was used.
    ///
    /// # Errors
    /// Redis does not say.
    pub(crate) async fn touch(&self, hash: Hash) -> Result<There, LinkError> {
        let (key, ms) = (self.keys.session(&hash.text()), self.expiry.as_millis() as u64);
        let mut commands = pipe();
        commands.cmd("PEXPIRE").arg(key).arg(ms).cmd("PEXPIRE").arg(self.topics(hash)).arg(ms);
        commands.cmd("EXISTS").arg(self.ended(hash));
        let (is_there, _, is_ended): (bool, bool, bool) = self.link.pipeline(&commands).await?;
        Ok(match (is_there, is_ended) {
            (_, true) => There::Ended,
            (true, false) => There::Yes,
            (false, false) => There::No,
        })
    }

    /// Ends a session, for all instances.
    ///
    /// # Errors
    /// Redis did not take it.
    pub(crate) async fn end(&self, hash: Hash) -> Result<(), LinkError> {
        let mut commands = pipe();
        commands.cmd("SET").arg(self.ended(hash)).arg("").arg("PX").arg(ENDED_MS).ignore();
        // One key each: of several, some may be on their way to another node of a cluster.
        commands.cmd("DEL").arg(self.keys.session(&hash.text())).ignore();
        commands.cmd("DEL").arg(self.topics(hash)).ignore();
        commands.cmd("DEL").arg(cancelled(&self.keys, hash)).ignore();
        self.link.pipeline::<()>(&commands).await?;
        self.tell("e", hash, "").await
    }

    fn topics(&self, hash: Hash) -> String {
        format!("{}:topics", self.keys.session(&hash.text()))
    }

    fn ended(&self, hash: Hash) -> String {
        format!("{}:ended", self.keys.session(&hash.text()))
    }
}
