//! Tasks whose process is gone, and that may be run again: found at a look of their client, and taken over then by the
//! instance that was asked. Of several one succeeds, since it is noted in the record who runs it; what the run before
//! writes, should it still be there, is refused from then on.

use std::{collections::HashMap, sync::LazyLock, time::SystemTime};

use bytes::Bytes;
use parking_lot::Mutex;

use super::{
    record::Record,
    shared::{Shared, said, written},
    store::StoreError,
};
use crate::cluster::link::{LinkError, Script, cmd};

/// Tasks that were found and not taken over, since who asked was not their owner.
const FOUND_MAX: usize = 1000;

/// How often a task is run again: what ends one instance after the other is given up.
const AGAIN_MAX: u32 = 3;

/// Takes a task over from the run and version that are expected: its request. Nothing when either is another, or there
/// is none.
static ADOPT: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"local now = redis.call('HMGET', KEYS[1], 'version', 'by', 'request')
if now[1] ~= ARGV[1] or now[2] ~= ARGV[2] or not now[3] then return false end
if redis.call('HINCRBY', KEYS[1], 'again', 1) > tonumber(ARGV[8]) then
  redis.call('HDEL', KEYS[1], 'request')
  return false
end
redis.call('HSET', KEYS[1], 'version', ARGV[3], 'record', ARGV[4], 'by', ARGV[5])
if ARGV[7] ~= '' then redis.call('PUBLISH', ARGV[6], ARGV[7]) end
return now[3]",
    )
});

/// Tasks that were found without a process, and the run of each that was judged to be gone.
#[derive(Debug, Default)]
pub(super) struct Found(Mutex<HashMap<String, String>>);

impl Found {
    pub(super) fn note(&self, id: &str, run: &str) {
        let mut found = self.0.lock();
        if found.len() >= FOUND_MAX {
            found.clear(); // who asks again finds them again
        }
        found.insert(id.to_owned(), run.to_owned());
    }

    /// The run that was, since the last time that this was asked.
    pub(super) fn take(&self, id: &str) -> Option<String> {
        self.0.lock().remove(id)
    }
}

impl Shared {
    /// Whether the request of a task is kept.
    pub(super) async fn may_run_again(&self, id: &str) -> Result<bool, LinkError> {
        let there: u64 = self.link.query(cmd("HEXISTS").arg(self.keys.task(id)).arg("request")).await?;
        Ok(there > 0)
    }

    /// From the run that was judged to be gone, and from no other: who has the task by now may live.
    pub(super) async fn adopt_now(
        &self,
        id: &str,
        gone: &str,
        now: SystemTime,
    ) -> Result<Option<(Record, Bytes)>, StoreError> {
        let Some((mut record, run)) = self.read(id).await? else { return Ok(None) };
        if record.status.is_final() || run != gone {
            return Ok(None);
        }
        let before = record.version;
        record.begin_again(now);
        let (channel, news) = self.bus.of_task(&record.owner, id, record.version);
        let mut script = ADOPT.prepare_invoke();
        script.key(self.keys.task(id)).arg(before).arg(run).arg(record.version).arg(written(&record)?).arg(&self.run);
        script.arg(channel).arg(news).arg(AGAIN_MAX);
        let request: Option<Vec<u8>> = self.link.script(&script).await.map_err(said)?;
        Ok(request.map(|request| (record, request.into())))
    }
}
