//! One key for all instances that have none of their settings: with which they seal what a client carries from one to
//! another, and one by which they know each other. Each is made by the first and kept in Redis while there are instances;
//! who reads Redis can read it, which is what keys of the settings are for.

use std::{sync::LazyLock, time::Duration};

use super::{
    keys::Keys,
    link::{Link, LinkError, Script, cmd},
};

/// What clients carry can be opened when all instances died and others come.
pub(super) const STATE_EXPIRY: Duration = Duration::from_secs(86_400);
/// Longer than instances are without a look at it: nobody needs it when they are gone.
pub(super) const NODE_EXPIRY: Duration = Duration::from_secs(300);
/// What who leaves gives them while he sees others: living ones look again before it is over, and dead ones do not.
const OTHERS_EXPIRY: Duration = Duration::from_secs(90);
/// Hex of 32 bytes.
const KEY_CHARS: usize = 64;

static AGREE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"if redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return ARGV[1] end
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return redis.call('GET', KEYS[1])",
    )
});

/// The key that there is; `own` when there is none yet.
pub(super) async fn agree(link: &Link, name: String, own: &str, expiry: Duration) -> Result<String, LinkError> {
    let mut script = AGREE.prepare_invoke();
    script.key(name).arg(own).arg(expiry.as_millis() as u64);
    let key: String = link.script(&script).await?;
    if key.len() != KEY_CHARS || !key.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return Err(LinkError::Odd("a key of all instances that is none".into()));
    }
    Ok(key)
}

/// The last one to leave takes them along, so that none is left. Who joins at this moment has them, and brings them back
/// with its next look.
pub(super) async fn leave(link: &Link, keys: &Keys) {
    let gone = async {
        let others: u64 = link.query(cmd("SCARD").arg(keys.nodes())).await?;
        // One by one: in a cluster they are in two places.
        for name in [keys.state_key(), keys.node_key()] {
            let _: u64 = match others {
                0 => link.query(cmd("DEL").arg(name)).await?,
                _ => link.query(cmd("PEXPIRE").arg(name).arg(OTHERS_EXPIRY.as_millis() as u64)).await?,
            };
        }
        Ok::<_, LinkError>(())
    };
    if let Err(error) = gone.await {
        tracing::debug!(%error, "the keys of all instances stay until they expire");
    }
}
