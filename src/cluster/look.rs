//! A look at the registry: all nodes that are in it, and the removal of who has had no heartbeat for long. What is done
//! about what it finds is not known here.

use std::{collections::HashMap, pin::pin, sync::LazyLock, time::Duration};

use futures_util::stream::{self, StreamExt as _};

use super::{
    keys::Keys,
    link::{Link, LinkError, Refused, Script, cmd},
    node::{Node, is_id},
};

/// More nodes than this are not looked at.
pub(super) const NODES_MAX: usize = 1000;
/// Reads a node, and removes it when it has had no heartbeat for so many periods of its own, or of ours where it does not
/// say; -1 removes none.
static LOOK: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
local fields = redis.call('HGETALL', KEYS[1])
local periods, period_ms, beat = tonumber(ARGV[1]), tonumber(ARGV[2]), nil
for i = 1, #fields, 2 do
  local number = tonumber(fields[i + 1])
  if fields[i] == 'lastHeartbeat' then beat = number end
  if fields[i] == 'heartbeat' and number and number > 0 then period_ms = number * 1000 end
end
if beat and periods >= 0 and now - beat > periods * period_ms then
  redis.call('DEL', KEYS[1])
  return {now, 1, fields}
end
return {now, 0, fields}",
    )
});

/// Who is taken for gone.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Dead {
    /// For so many periods it has had no heartbeat.
    pub(super) periods: u32,
    /// That of a node that does not say its own.
    pub(super) period: Duration,
}

/// Nodes that are read at once.
const LOOKS_AT_ONCE: usize = 32;

/// What one look found.
#[derive(Debug, Default)]
pub(crate) struct Found {
    pub(crate) nodes: Vec<Node>,
    pub(crate) reaped: Vec<String>,
    pub(crate) corrupt: u64,
}

/// Reads all nodes; with `dead`, removes those.
pub(crate) async fn look(link: &Link, keys: &Keys, dead: Option<Dead>) -> Result<Found, LinkError> {
    let mut ids: Vec<String> = link.query(cmd("SMEMBERS").arg(keys.nodes())).await?;
    let before = ids.len();
    ids.retain(|id| is_id(id));
    let mut found = Found { corrupt: (before - ids.len()) as u64, ..Found::default() };
    ids.sort_unstable();
    ids.truncate(NODES_MAX);
    let (periods, period_ms) = dead.map_or((-1, 0), |dead| (i64::from(dead.periods), dead.period.as_millis() as u64));
    let looks = stream::iter(ids)
        .map(|id| async move { (link.script(LOOK.key(keys.node(&id)).arg(periods).arg(period_ms)).await, id) })
        .buffered(LOOKS_AT_ONCE);
    let mut looks = pin!(looks);
    while let Some((answer, id)) = looks.next().await {
        let (now_ms, is_reaped, fields): (u64, bool, HashMap<String, String>) = match answer {
            Ok(answer) => answer,
            Err(LinkError::Refused(Refused::WrongType) | LinkError::Odd(_)) => {
                found.corrupt += 1; // not ours to remove
                continue;
            }
            Err(error) => return Err(error),
        };
        if is_reaped || fields.is_empty() {
            if dead.is_some() {
                let () = link.query(cmd("SREM").arg(keys.nodes()).arg(&id)).await?;
            }
            if is_reaped {
                found.reaped.push(id); // else it is leaving, and half of it is gone
            }
            continue;
        }
        match Node::read(&id, &fields, now_ms) {
            Some(node) => found.nodes.push(node),
            None => found.corrupt += 1,
        }
    }
    Ok(found)
}
