//! One instance at a time makes a result, where a tool asks for it, under a lease: whose lease has ended does not write any
//! more, and who waits goes on as soon as it has.

use std::{
    sync::{Arc, LazyLock},
    time::Duration,
};

use tokio::{task::JoinHandle, time::interval};

use super::{
    ResultId, Results,
    value::{Bad, Entry, Stamp},
};
use crate::cluster::{
    keys::hex,
    link::{LinkError, Script},
    random,
};

/// How long a lease holds without its holder.
const LEASE: Duration = Duration::from_secs(3);
const RENEWAL: Duration = Duration::from_secs(1);

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

/// The duty to make a result, or at least the right. Its drop gives a lease back.
#[derive(Debug)]
pub(crate) struct Turn {
    /// In which generations it began; without them the result is not written.
    pub(super) stamp: Option<Stamp>,
    pub(super) lease: Option<Lease>,
}

/// A lease that is held, and renewed meanwhile.
#[derive(Debug)]
pub(super) struct Lease {
    results: Arc<Results>,
    key: [u8; 32],
    pub(super) token: String,
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

impl Results {
    /// Takes the lease, and sees what there is then; or says how long another has it.
    pub(super) async fn lead(
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
    pub(super) async fn land(
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
