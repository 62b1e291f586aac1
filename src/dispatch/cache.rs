//! Whether a call must run at all: results kept per tool, arguments and caller, and one run for many equal calls at
//! once. Home of moka.
//!
//! Safe by construction: a key cannot be made without saying for whom, and an outcome that is an error, `isError` or
//! too large never becomes an entry.

use std::{
    fmt,
    future::Future,
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use moka::Expiry;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    call::{Caller, Reply},
    dispatch::{Answered, Served},
    error::CallError,
    tool::{CacheScope, Outcome, registry::ServedTool},
    units::ByteSize,
};

/// What an entry costs besides its bytes: key, table slot, timer, counters. Measured on moka 0.12 as about 400.
const ENTRY_OVERHEAD_BYTES: usize = 400;

/// `[cache]`: results kept in memory. Which tools are cached is said per tool.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Memory for kept results.
    pub bytes_max: ByteSize,
    /// Size of one result; larger ones are not kept.
    pub entry_bytes_max: ByteSize,
}

impl Default for Config {
    fn default() -> Self {
        Self { bytes_max: ByteSize::mib(256), entry_bytes_max: ByteSize::mib(1) }
    }
}

/// What makes two calls the same: the tool as it is defined, for whom, and the arguments in canonical form.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct CacheKey(Arc<[u8]>);

impl CacheKey {
    pub(crate) fn new(tool: &ServedTool, arguments: &Value, scope: CacheScope, caller: &Caller) -> Self {
        let mut key = Vec::with_capacity(128);
        let mut part = |bytes: &[u8]| {
            key.extend_from_slice(&(bytes.len() as u64).to_le_bytes()); // so that no two lists of parts look alike
            key.extend_from_slice(bytes);
        };
        part(&tool.definition_digest);
        match scope {
            CacheScope::Public => part(b"public"),
            CacheScope::Caller => {
                part(b"caller"); // so that no subject, whatever it is, stands for everybody
                part(caller.subject().as_bytes());
            }
        }
        // Object keys are sorted by the map's own order, so equal arguments give equal bytes.
        serde_json::to_writer(&mut key, arguments).unwrap_or_default();
        Self(key.into())
    }
}

#[derive(Clone)]
struct Entry {
    reply: Reply,
    made_at: Instant,
    ttl: Duration,
}

struct ByEntry;

impl Expiry<CacheKey, Entry> for ByEntry {
    fn expire_after_create(&self, _: &CacheKey, entry: &Entry, _: Instant) -> Option<Duration> {
        Some(entry.ttl)
    }
}

/// Kept results.
pub(crate) struct Cache {
    entries: moka::future::Cache<CacheKey, Entry>,
    entry_bytes_max: usize,
}

impl fmt::Debug for Cache {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").field("entries", &self.entries.entry_count()).finish_non_exhaustive()
    }
}

impl Cache {
    pub(crate) fn new(config: &Config) -> Self {
        let entries = moka::future::Cache::builder()
            .max_capacity(config.bytes_max.0)
            .weigher(|key: &CacheKey, entry: &Entry| {
                u32::try_from(key.0.len() + entry.reply.len() + ENTRY_OVERHEAD_BYTES).unwrap_or(u32::MAX)
            })
            .expire_after(ByEntry)
            .build();
        Self { entries, entry_bytes_max: config.entry_bytes_max.as_usize() }
    }

    /// Gives entries up.
    pub(crate) fn shrink(&self, _share: f64) {
        self.entries.invalidate_all();
    }

    /// A kept result that is still good.
    pub(crate) async fn get(&self, key: &CacheKey) -> Option<Answered> {
        self.entries.get(key).await.map(|entry| hit(&entry))
    }

    /// The result of `run`, which is then kept for `ttl_s`. Of equal calls at once one runs and the others wait for it;
    /// when its caller leaves, one of those runs instead.
    pub(crate) async fn run(
        &self,
        key: CacheKey,
        ttl_s: u64,
        run: impl Future<Output = Outcome>,
    ) -> Result<Answered, CallError> {
        let entry_bytes_max = self.entry_bytes_max;
        let mut run = pin!(run);
        let mut led = false;
        let keep = async {
            led = true;
            match run.as_mut().await {
                Ok(reply) if reply.is_final() && !reply.is_error() && reply.len() <= entry_bytes_max => {
                    Ok(Entry { reply, made_at: Instant::now(), ttl: Duration::from_secs(ttl_s) })
                }
                outcome => Err(NotKept(outcome)),
            }
        };
        let outcome = match self.entries.try_get_with(key, keep).await {
            Ok(entry) => return Ok(Answered { reply: entry.reply, served: Served::Miss }),
            Err(not_kept) => not_kept.0.clone(),
        };
        // What befell the call that ran (its deadline, its client) is no answer to those that waited for it.
        let outcome = if led || is_of_the_tool(&outcome) { outcome } else { run.await };
        outcome.map(|reply| Answered { reply, served: Served::Fresh })
    }
}

/// Whether an equal call would come to the same.
fn is_of_the_tool(outcome: &Outcome) -> bool {
    match outcome {
        Ok(reply) => reply.is_final(), // a task is its caller's
        Err(error) => matches!(error, CallError::Tool(_) | CallError::InvalidParams(_)),
    }
}

/// An outcome that goes to those who wait for it and is then forgotten.
#[derive(Debug)]
struct NotKept(Outcome);

fn hit(entry: &Entry) -> Answered {
    Answered { reply: entry.reply.clone(), served: Served::Hit { age_s: entry.made_at.elapsed().as_secs() } }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::BTreeMap,
        sync::atomic::{AtomicU32, Ordering},
    };

    use serde_json::json;

    use super::*;
    use crate::{
        call::Lane,
        tool::{Registry, Tool},
    };

    fn tool() -> Arc<ServedTool> {
        let tool = Tool::new("t", "d", Lane::Inline, |(): (), _| "x");
        let registry = Registry::new(vec![tool], &BTreeMap::new(), 1000).expect("a registry");
        Arc::clone(registry.snapshot().get("t").expect("the tool"))
    }

    fn key(arguments: &Value) -> CacheKey {
        CacheKey::new(&tool(), arguments, CacheScope::Caller, &Caller::ANONYMOUS)
    }

    #[test]
    fn equal_arguments_have_equal_keys_in_any_order() {
        let one: Value = serde_json::from_str(r#"{"a":1,"b":{"c":2,"d":3}}"#).expect("JSON");
        let two: Value = serde_json::from_str(r#"{"b":{"d":3,"c":2},"a":1}"#).expect("JSON");
        assert_eq!(key(&one), key(&two));
        assert_ne!(key(&one), key(&json!({"a":1})));
        let public = CacheKey::new(&tool(), &one, CacheScope::Public, &Caller::ANONYMOUS);
        assert_ne!(key(&one), public);
    }

    #[tokio::test]
    async fn one_run_serves_many_and_errors_are_not_kept() {
        let cache = Cache::new(&Config::default());
        let runs = AtomicU32::new(0);
        let run = |outcome: Outcome| {
            let runs = &runs;
            async move {
                runs.fetch_add(1, Ordering::Relaxed);
                tokio::task::yield_now().await;
                outcome
            }
        };
        let key = key(&json!({}));
        let (a, b) = tokio::join!(
            cache.run(key.clone(), 60, run(Ok(Reply::text("x")))),
            cache.run(key.clone(), 60, run(Ok(Reply::text("x")))),
        );
        assert_eq!((a.map(|a| a.served), b.map(|b| b.served)), (Ok(Served::Miss), Ok(Served::Miss)));
        assert_eq!(runs.load(Ordering::Relaxed), 1);
        let hit = cache.get(&key).await.expect("kept");
        assert!(matches!(hit.served, Served::Hit { .. }));

        for outcome in [Ok(Reply::error("no")), Err(CallError::Internal), Ok(Reply::text(&"x".repeat(2 << 20)))] {
            let key = CacheKey::new(&tool(), &json!({"n": 1}), CacheScope::Caller, &Caller::ANONYMOUS);
            let answered = cache.run(key.clone(), 60, run(outcome.clone())).await;
            assert_eq!(answered.map(|a| a.reply), outcome);
            assert!(cache.get(&key).await.is_none());
        }
    }

    #[tokio::test]
    async fn when_the_leader_leaves_another_runs() {
        let cache = Cache::new(&Config::default());
        let key = key(&json!({}));
        let leader = cache.run(key.clone(), 60, std::future::pending());
        let mut leader = Box::pin(leader);
        assert!(futures_poll(leader.as_mut()).await.is_none());
        let follower = cache.run(key.clone(), 60, async { Ok(Reply::text("mine")) });
        let mut follower = Box::pin(follower);
        assert!(futures_poll(follower.as_mut()).await.is_none());
        drop(leader);
        assert_eq!(follower.await.map(|a| a.reply), Ok(Reply::text("mine")));
    }

    /// Polls once.
    async fn futures_poll<F: Future>(mut future: std::pin::Pin<&mut F>) -> Option<F::Output> {
        std::future::poll_fn(|cx| {
            std::task::Poll::Ready(match future.as_mut().poll(cx) {
                std::task::Poll::Ready(output) => Some(output),
                std::task::Poll::Pending => None,
            })
        })
        .await
    }
}
