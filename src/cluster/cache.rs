//! Kept results that all instances share: the level behind each one's own memory. A look is one round trip, and whatever
//! comes of it that is not a good value is a plain miss; what was made here is written behind the answer. A value says
//! its form, its key and the generations in which its run began, and counts only while these are the present ones, so
//! that an invalidation is one write and goes through nothing.
//!
//! Where a tool asks for it, one instance at a time makes a result, under a lease: whose lease has ended does not write
//! any more, and who waits goes on as soon as it has.

use std::{
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::future::try_join_all;
use sha2::{Digest, Sha256};
use tokio::{
    sync::{Semaphore, broadcast::error::RecvError},
    task::JoinHandle,
    time::{interval, timeout},
};

use super::{
    changes::{Bus, Forget},
    keys::{Keys, hex},
    link::{Link, LinkError, Refused, Script, cmd, pipe},
    random,
};

/// What a value begins with: a name, and the form of the rest.
const MAGIC: [u8; 3] = *b"bgr";
const FORM: u8 = 1;
/// Name, form, digest, time, generations, flags, length of the fields.
const HEAD_BYTES: usize = 4 + 32 + 8 + 16 + 1 + 4;
/// KiB of values that are written at once; of more, some are not.
const WRITES_KIB_MAX: usize = 16 * 1024;
/// How long a lease holds without its holder.
const LEASE: Duration = Duration::from_secs(3);
const RENEWAL: Duration = Duration::from_secs(1);
/// The longest that an operator waits to hear whether others know what is to be forgotten.
const FORGOT_WITHIN: Duration = Duration::from_secs(1);
/// The longest that who waits does not look.
const LOOK: Duration = Duration::from_millis(250);

const IS_ERROR: u8 = 1;
const HAS_META: u8 = 2;

/// Takes the lease when nobody has it, and then says what there is by now.
static LEAD: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then
  if redis.call('TYPE', KEYS[2]).ok ~= 'string' then return {1, '', -2} end
  return {1, redis.call('GETRANGE', KEYS[2], 0, ARGV[3]), redis.call('PTTL', KEYS[2])}
end
return {0, '', redis.call('PTTL', KEYS[1])}",
    )
});

static RENEW: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end return 0",
    )
});

/// Writes a value, and gives the lease back, for who has it only; and says so.
static LAND: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if ARGV[2] ~= '' then redis.call('SET', KEYS[2], ARGV[2], 'PX', ARGV[3]) end
redis.call('DEL', KEYS[1])
redis.call('PUBLISH', ARGV[4], ARGV[5])
return 1",
    )
});

/// Which result.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ResultId<'a> {
    pub(crate) key: &'a [u8; 32],
    pub(crate) tool: &'a str,
    /// Whose it is, when it is not everybody's.
    pub(crate) caller: Option<&'a str>,
}

/// A result, as it is shared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) fields: Bytes,
    pub(crate) meta: Option<Bytes>,
    pub(crate) is_error: bool,
    /// How long it was to be kept when it was made.
    pub(crate) ttl: Duration,
    /// What is left of that.
    pub(crate) left: Duration,
}

/// The generations at one moment, as far as they count for one result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp([u8; 16]);

/// What came of shared results, since the start.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) hits: AtomicU64,
    pub(crate) misses: AtomicU64,
    /// Redis did not say.
    pub(crate) unknown: AtomicU64,
    /// Values that could not be read.
    pub(crate) corrupt: AtomicU64,
    pub(crate) written: AtomicU64,
    /// Results that were not written: Redis said no, or too many were.
    pub(crate) not_written: AtomicU64,
    /// Results that another instance made while this one waited for it.
    pub(crate) awaited: AtomicU64,
    /// Results that were not written because the lease had ended.
    pub(crate) fenced: AtomicU64,
}

/// Results in Redis.
#[derive(Debug)]
pub(crate) struct Results {
    link: Link,
    keys: Keys,
    bus: Arc<Bus>,
    entry_bytes_max: usize,
    writes: Arc<Semaphore>,
    counts: Counts,
}

/// What a look comes to.
#[derive(Debug)]
pub(crate) enum Look {
    Found(Entry),
    /// It is to be made here.
    Make(Turn),
}

/// The duty to make a result, or at least the right. Its drop gives a lease back.
#[derive(Debug)]
pub(crate) struct Turn {
    /// In which generations it began; without them the result is not written.
    stamp: Option<Stamp>,
    lease: Option<Lease>,
}

/// A lease that is held, and renewed meanwhile.
#[derive(Debug)]
struct Lease {
    results: Arc<Results>,
    key: [u8; 32],
    token: String,
    renewing: JoinHandle<()>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.renewing.abort();
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return }; // it ends by itself
        let (results, key, token) = (Arc::clone(&self.results), self.key, std::mem::take(&mut self.token));
        if !token.is_empty() {
            runtime.spawn(async move { drop(results.land(&key, None, &token).await) });
        }
    }
}

/// What is under a key at one moment.
struct Seen {
    value: Result<Entry, Bad>,
    stamp: Option<Stamp>,
}

/// Why there is no value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bad {
    Missing,
    /// It was, and is invalidated.
    Old,
    Corrupt,
    /// It is of another version, or none of ours: it is left as it is.
    Foreign,
}

impl Results {
    pub(super) fn new(link: Link, keys: Keys, bus: Arc<Bus>, entry_bytes_max: usize) -> Arc<Self> {
        let (writes, counts) = (Arc::new(Semaphore::new(WRITES_KIB_MAX)), Counts::default());
        Arc::new(Self { link, keys, bus, entry_bytes_max, writes, counts })
    }

    pub(crate) fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Whether others know what is to be forgotten, now or within a moment. Else they hear of it later: Redis is away, or
    /// takes no writes.
    pub(crate) async fn forgot(&self) -> bool {
        !self.link.is_away() && timeout(FORGOT_WITHIN, self.bus.forgot()).await.is_ok()
    }

    /// Has all instances forget results.
    pub(crate) fn forget(&self, forget: Forget) {
        self.bus.forget(forget);
    }

    /// Looks for a result. With `alone`, one instance at a time is told to make it, and the others wait for that.
    pub(crate) async fn look(self: &Arc<Self>, of: ResultId<'_>, alone: bool) -> Look {
        if self.bus.owes_forgetting() {
            return Look::Make(Turn { stamp: None, lease: None });
        }
        let mut landings = alone.then(|| self.bus.landings());
        let mut waited = false;
        let mut seen = self.see(of).await;
        loop {
            let stamp = match seen {
                Seen { value: Ok(entry), .. } => {
                    let count = if waited { &self.counts.awaited } else { &self.counts.hits };
                    count.fetch_add(1, Relaxed);
                    return Look::Found(entry);
                }
                Seen { stamp, .. } => stamp,
            };
            let (Some(landings), Some(now)) = (&mut landings, stamp) else {
                return Look::Make(Turn { stamp, lease: None });
            };
            match self.lead(of, now).await {
                // Redis does not say: as if there were no others.
                Err(_) => return Look::Make(Turn { stamp, lease: None }),
                Ok(Ok((Ok(entry), _gives_back))) => {
                    self.counts.hits.fetch_add(1, Relaxed);
                    return Look::Found(entry);
                }
                Ok(Ok((Err(_), lease))) => return Look::Make(Turn { stamp, lease: Some(lease) }),
                Ok(Err(left)) => {
                    waited = true;
                    let key = hex(of.key);
                    let heard = async {
                        loop {
                            match landings.recv().await {
                                Ok((landed, is_kept)) if landed == key => return is_kept,
                                Ok(_) => {}
                                Err(RecvError::Lagged(_)) => return true, // it may have been this one
                                Err(RecvError::Closed) => std::future::pending().await,
                            }
                        }
                    };
                    match timeout(left.clamp(Duration::from_millis(1), LOOK), heard).await {
                        // There is none to be had: all who wait go on by themselves.
                        Ok(false) => return Look::Make(Turn { stamp, lease: None }),
                        Ok(true) | Err(_) => seen = self.see(of).await,
                    }
                }
            }
        }
    }

    /// Ends a turn with a result, which is written behind the caller's back; or without, by dropping it.
    pub(crate) fn keep(self: &Arc<Self>, of: ResultId<'_>, turn: Turn, entry: &Entry) {
        let Turn { stamp: Some(stamp), lease } = turn else { return };
        let bytes = entry.fields.len() + entry.meta.as_ref().map_or(0, Bytes::len) + HEAD_BYTES;
        let kib = (bytes / 1024 + 1).min(WRITES_KIB_MAX);
        let permit = u32::try_from(kib).ok().and_then(|kib| Arc::clone(&self.writes).try_acquire_many_owned(kib).ok());
        let Some(permit) = permit.filter(|_| bytes <= self.bytes_max()) else {
            self.counts.not_written.fetch_add(1, Relaxed);
            return;
        };
        let (results, key) = (Arc::clone(self), *of.key);
        let name = self.keys.result(of.tool, of.key);
        let entry = entry.clone();
        tokio::spawn(async move {
            let _permit = permit;
            let value = written(&key, stamp, &entry);
            let ttl_ms = entry.left.as_millis().max(1) as u64;
            let outcome = match lease {
                None => results.link.query(cmd("SET").arg(name).arg(value).arg("PX").arg(ttl_ms)).await.map(|()| true),
                Some(mut lease) => {
                    let token = std::mem::take(&mut lease.token);
                    results.land(&key, Some((name, value, ttl_ms)), &token).await
                }
            };
            let count = match outcome {
                Ok(true) => &results.counts.written,
                Ok(false) => &results.counts.fenced,
                Err(error) => {
                    tracing::debug!(%error, "a result was not shared");
                    &results.counts.not_written
                }
            };
            count.fetch_add(1, Relaxed);
        });
    }

    /// The most that a value may take.
    fn bytes_max(&self) -> usize {
        self.entry_bytes_max + HEAD_BYTES
    }

    /// What is there: one round trip.
    async fn see(&self, of: ResultId<'_>) -> Seen {
        let seen = self.read(of).await;
        let count = match &seen {
            Err(LinkError::Refused(Refused::WrongType)) => &self.counts.corrupt,
            Err(_) => &self.counts.unknown,
            Ok(Seen { value: Err(Bad::Corrupt | Bad::Foreign), .. }) => &self.counts.corrupt,
            Ok(Seen { value: Err(_), .. }) => &self.counts.misses,
            Ok(Seen { value: Ok(_), .. }) => return seen.unwrap_or_else(|_| Seen::nothing()),
        };
        count.fetch_add(1, Relaxed);
        seen.unwrap_or_else(|error| {
            tracing::debug!(%error, "a shared result could not be looked up");
            Seen::nothing()
        })
    }

    async fn read(&self, of: ResultId<'_>) -> Result<Seen, LinkError> {
        let name = self.keys.result(of.tool, of.key);
        let mut ask = pipe();
        ask.cmd("GETRANGE").arg(&name).arg(0).arg(self.bytes_max()).cmd("PTTL").arg(&name);
        let generations = self.generations(of);
        let ((bytes, left_ms), generations): ((Vec<u8>, i64), Vec<Option<String>>) = if self.keys.is_cluster() {
            // They are in several places, so they are asked for at once but each for itself.
            let value = self.link.pipeline(&ask);
            let each = try_join_all(generations.iter().map(|name| async move {
                let mut ask = cmd("GET");
                self.link.query(ask.arg(name)).await
            }));
            futures_util::future::try_join(value, each).await?
        } else {
            ask.cmd("MGET").arg(generations);
            let (bytes, left_ms, generations) = self.link.pipeline(&ask).await?;
            ((bytes, left_ms), generations)
        };
        let stamp = stamp(&generations);
        let value = self.value(of.key, &bytes, left_ms, stamp);
        // What is not ours is not written over.
        let stamp = (value.as_ref().err() != Some(&Bad::Foreign)).then_some(stamp);
        Ok(Seen { value, stamp })
    }

    fn value(&self, key: &[u8; 32], bytes: &[u8], left_ms: i64, stamp: Stamp) -> Result<Entry, Bad> {
        if bytes.len() > self.bytes_max() {
            return Err(Bad::Foreign);
        }
        read(key, bytes, u64::try_from(left_ms).unwrap_or(0), stamp)
    }

    fn generations(&self, of: ResultId<'_>) -> Vec<String> {
        let key = Forget::Key(hex(of.key));
        let all = [Some(Forget::All), Some(Forget::Tool(of.tool.into())), of.caller.map(|c| Forget::Caller(c.into()))];
        all.into_iter().flatten().chain([key]).map(|of| self.keys.generation(&of.generation())).collect()
    }

    /// Takes the lease, and sees what there is then; or says how long another has it.
    async fn lead(
        self: &Arc<Self>,
        of: ResultId<'_>,
        stamp: Stamp,
    ) -> Result<Result<(Result<Entry, Bad>, Lease), Duration>, LinkError> {
        let token = hex(&random());
        let mut script = LEAD.prepare_invoke();
        script.key(self.keys.lease(of.key)).key(self.keys.result(of.tool, of.key));
        script.arg(&token).arg(LEASE.as_millis() as u64).arg(self.bytes_max());
        let (is_ours, bytes, left_ms): (u8, Vec<u8>, i64) = self.link.script(&script).await?;
        if is_ours == 0 {
            return Ok(Err(Duration::from_millis(u64::try_from(left_ms).unwrap_or(0))));
        }
        let lease = self.lease(*of.key, token);
        Ok(Ok((self.value(of.key, &bytes, left_ms, stamp), lease)))
    }

    fn lease(self: &Arc<Self>, key: [u8; 32], token: String) -> Lease {
        let (results, renewed) = (Arc::clone(self), token.clone());
        let renewing = tokio::spawn(async move {
            let mut every = interval(RENEWAL);
            every.tick().await;
            loop {
                every.tick().await;
                let mut script = RENEW.prepare_invoke();
                script.key(results.keys.lease(&key)).arg(&renewed).arg(LEASE.as_millis() as u64);
                if let Ok(0) = results.link.script::<u64>(&script).await {
                    return; // it has ended, and another may have it
                }
            }
        });
        Lease { results: Arc::clone(self), key, token, renewing }
    }

    /// Writes a value and gives the lease back. False when it had ended, and nothing was written.
    async fn land(
        &self,
        key: &[u8; 32],
        value: Option<(String, Vec<u8>, u64)>,
        token: &str,
    ) -> Result<bool, LinkError> {
        let (channel, message) = self.bus.of_landed(hex(key), value.is_some());
        let lease = self.keys.lease(key);
        let (name, value, ttl_ms) = value.unwrap_or_else(|| (lease.clone(), Vec::new(), 0));
        let mut script = LAND.prepare_invoke();
        script.key(lease).key(name).arg(token).arg(value).arg(ttl_ms).arg(channel).arg(message);
        self.link.script::<u64>(&script).await.map(|done| done == 1)
    }
}

impl Seen {
    fn nothing() -> Self {
        Self { value: Err(Bad::Missing), stamp: None }
    }
}

fn stamp(generations: &[Option<String>]) -> Stamp {
    let mut digest = Sha256::new();
    for generation in generations {
        let text = generation.as_deref().unwrap_or_default();
        digest.update((text.len() as u64).to_le_bytes());
        digest.update(text);
    }
    let mut stamp = [0; 16];
    stamp.copy_from_slice(&digest.finalize()[..16]);
    Stamp(stamp)
}

/// Of everything after it, and of the key: a value counts under its own key alone.
fn digest(key: &[u8; 32], rest: &[u8]) -> [u8; 32] {
    Sha256::new().chain_update(key).chain_update(rest).finalize().into()
}

fn written(key: &[u8; 32], stamp: Stamp, entry: &Entry) -> Vec<u8> {
    let meta = entry.meta.as_deref().unwrap_or_default();
    let mut rest = BytesMut::with_capacity(HEAD_BYTES + entry.fields.len() + meta.len());
    rest.put_u64(entry.ttl.as_millis() as u64);
    rest.put_slice(&stamp.0);
    rest.put_u8(if entry.is_error { IS_ERROR } else { 0 } | if entry.meta.is_some() { HAS_META } else { 0 });
    rest.put_u32(u32::try_from(entry.fields.len()).unwrap_or(u32::MAX));
    rest.put_slice(&entry.fields);
    rest.put_slice(meta);
    let mut value = Vec::with_capacity(36 + rest.len());
    value.extend_from_slice(&MAGIC);
    value.push(FORM);
    value.extend_from_slice(&digest(key, &rest));
    value.extend_from_slice(&rest);
    value
}

/// Reads what [`written`] wrote. Never more than there is, whatever it says.
fn read(key: &[u8; 32], value: &[u8], left_ms: u64, now: Stamp) -> Result<Entry, Bad> {
    if value.is_empty() {
        return Err(Bad::Missing);
    }
    let rest = match value.split_first_chunk::<4>() {
        Some(([a, b, c, FORM], rest)) if [*a, *b, *c] == MAGIC => rest,
        _ => return Err(Bad::Foreign),
    };
    let (said, rest) = rest.split_first_chunk::<32>().ok_or(Bad::Corrupt)?;
    if *said != digest(key, rest) {
        return Err(Bad::Corrupt);
    }
    let (ttl_ms, rest) = rest.split_first_chunk::<8>().ok_or(Bad::Corrupt)?;
    let (stamp, rest) = rest.split_first_chunk::<16>().ok_or(Bad::Corrupt)?;
    let (flags, rest) = rest.split_first().ok_or(Bad::Corrupt)?;
    let (length, rest) = rest.split_first_chunk::<4>().ok_or(Bad::Corrupt)?;
    let length = u32::from_be_bytes(*length) as usize;
    let (fields, meta) = rest.split_at_checked(length).ok_or(Bad::Corrupt)?;
    if *stamp != now.0 {
        return Err(Bad::Old);
    }
    if left_ms == 0 {
        return Err(Bad::Missing); // its time is over
    }
    let ttl_ms = u64::from_be_bytes(*ttl_ms);
    Ok(Entry {
        fields: Bytes::copy_from_slice(fields),
        meta: (flags & HAS_META != 0).then(|| Bytes::copy_from_slice(meta)),
        is_error: flags & IS_ERROR != 0,
        ttl: Duration::from_millis(ttl_ms),
        left: Duration::from_millis(left_ms.min(ttl_ms)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry() -> Entry {
        let second = Duration::from_secs(1);
        Entry {
            fields: Bytes::from_static(b"\"content\":[]"),
            meta: Some(Bytes::from_static(b"{}")),
            is_error: true,
            ttl: second * 9,
            left: second * 4,
        }
    }

    #[test]
    fn a_value_is_read_under_its_key_in_its_generations_and_not_otherwise() {
        let (key, now) = ([7; 32], stamp(&[None, Some("a".into())]));
        let value = written(&key, now, &entry());
        assert_eq!(read(&key, &value, 4000, now), Ok(entry()));
        assert_eq!(
            read(&key, &value, 1 << 40, now).map(|e| e.left),
            Ok(entry().ttl),
            "no longer than it was to be kept"
        );
        assert_eq!(read(&[8; 32], &value, 4000, now), Err(Bad::Corrupt));
        for other in [stamp(&[Some("a".into()), None]), stamp(&[None, Some("b".into())]), stamp(&[])] {
            assert_eq!(read(&key, &value, 4000, other), Err(Bad::Old));
        }
        assert_eq!((read(&key, b"", 1, now), read(&key, &value, 0, now)), (Err(Bad::Missing), Err(Bad::Missing)));
    }

    #[test]
    fn what_is_damaged_or_of_another_version_is_no_value() {
        let (key, now) = ([7; 32], stamp(&[]));
        let value = written(&key, now, &entry());
        for at in 0..value.len() {
            let mut damaged = value.clone();
            damaged[at] ^= 1;
            let bad = read(&key, &damaged, 4000, now).expect_err("damaged");
            assert_eq!(bad, if at < 4 { Bad::Foreign } else { Bad::Corrupt }, "byte {at}");
            assert!(read(&key, &value[..at], 4000, now).is_err(), "the first {at} bytes");
        }
        assert_eq!(read(&key, b"something else entirely", 1, now), Err(Bad::Foreign));
    }
}
