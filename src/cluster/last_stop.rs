//! The stop of the last instance where `cluster.last_stop` is "remove": nothing of the deployment is left in Redis, not of
//! clients either, nor of instances that died. Whose the keys are is said to the end, so that they are nobody else's before.
//!
//! Nothing is removed while another instance is in the registry. That is asked after each look for keys, and before what
//! it found is removed: who comes enters the registry first and serves clients then, so that no key of its clients was
//! among them.

use std::{
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio::time::{sleep, timeout};

use super::{
    config::Config,
    link::{Link, LinkError, Script, cmd, pipe},
    look::look,
    node::Node,
    registry::Named,
};

/// After something that may be over in a moment.
const RETRY: Duration = Duration::from_millis(100);
/// What is written to see whether anything can be is there for so long at most.
const WRITTEN_MS: u64 = 1000;

/// Says no more whose the keys are.
static GIVE_UP: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('UNLINK', KEYS[1])",
    )
});

/// Whether this was the last one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    Last,
    /// Another one is in the registry, or something that cannot be read, which may be one of a later version.
    Others,
    /// The keys are not ours, or nobody's any more.
    NotOurs,
}

/// Removes all keys, if this was the last instance, in this time at most. It has left the registry.
pub(super) async fn remove_all(config: &Config, named: &Named, patience: Duration) {
    if patience.is_zero() {
        return tracing::warn!(
            "what clients have in Redis was not removed (cluster.last_stop): nothing is left of server.drain_grace_ms for \
             it; it expires by itself"
        );
    }
    let removed = AtomicU64::new(0);
    let done = timeout(patience, async {
        let patience = config.connect_timeout() + config.command_timeout();
        // One of its own: through the one that all use nothing is written any more.
        let link = Link::start(config)?;
        link.first_word(patience).await?;
        loop {
            match remove(&link, named, &removed).await {
                Err(error) if is_for_now(&error) => {
                    tracing::debug!(%error, "what is left in Redis is looked for again");
                    sleep(RETRY).await;
                }
                done => return done.map_err(|error| error.to_string()),
            }
        }
    });
    let done = done.await.unwrap_or_else(|_| Err(format!("not within {} ms", patience.as_millis())));
    let removed = removed.load(Relaxed);
    match done {
        Ok(Standing::Last) => {
            tracing::info!(removed, "this was the last instance, and nothing of the deployment is left in Redis")
        }
        Ok(Standing::Others) if removed > 0 => tracing::warn!(
            removed,
            "another instance came while the last one removed what clients have in Redis (cluster.last_stop)"
        ),
        Ok(Standing::Others) => tracing::info!("other instances are there, so that what clients have in Redis stays"),
        Ok(Standing::NotOurs) => tracing::info!(removed, "the keys in Redis are not ours, and stay"),
        Err(why) => tracing::warn!(
            why,
            removed,
            "what clients have in Redis was not removed (cluster.last_stop), or not all of it; what is left expires by itself"
        ),
    }
}

/// Whether the same may come to something a little later.
fn is_for_now(error: &LinkError) -> bool {
    match error {
        LinkError::Unknown(_) => true,
        LinkError::Refused(refused) => refused.is_for_now(),
        _ => false,
    }
}

/// Looks through the keys until none is found, and gives them up then.
async fn remove(link: &Link, named: &Named, removed: &AtomicU64) -> Result<Standing, LinkError> {
    let (keys, claim) = (&named.keys, named.keys.cluster());
    loop {
        takes_writes(link, named).await?;
        // Where nothing is to be removed all of Redis is not to be looked through either.
        let standing = standing(link, named).await?;
        if standing != Standing::Last {
            return Ok(standing);
        }
        let (mut scan, mut is_clean) = (link.scan(keys.pattern()).await?, true);
        while let Some(mut found) = link.next_page(&mut scan).await? {
            found.retain(|key| keys.has(key) && key != claim.as_bytes());
            if found.is_empty() {
                continue;
            }
            is_clean = false;
            let standing = remove_found(link, named, &found, removed).await?;
            if standing != Standing::Last {
                return Ok(standing);
            }
        }
        if is_clean {
            return give_up(link, named, removed).await;
        }
    }
}

/// Removes what a look has found, if this is the last one.
pub(super) async fn remove_found(
    link: &Link,
    named: &Named,
    found: &[Vec<u8>],
    removed: &AtomicU64,
) -> Result<Standing, LinkError> {
    let standing = standing(link, named).await?;
    if standing == Standing::Last {
        let mut unlink = pipe();
        for key in found {
            unlink.cmd("UNLINK").arg(key); // one by one: in a cluster they are in many places
        }
        let gone: Vec<u64> = link.pipeline(&unlink).await?;
        removed.fetch_add(gone.iter().sum(), Relaxed);
    }
    Ok(standing)
}

/// Has the keys be nobody's, of which there are none any more.
async fn give_up(link: &Link, named: &Named, removed: &AtomicU64) -> Result<Standing, LinkError> {
    let standing = standing(link, named).await?;
    if standing == Standing::Last {
        let gone: u64 = link.script(GIVE_UP.key(named.keys.cluster()).arg(&named.cluster)).await?;
        removed.fetch_add(gone, Relaxed);
    }
    Ok(standing)
}

async fn standing(link: &Link, named: &Named) -> Result<Standing, LinkError> {
    let owner: Option<String> = link.query(cmd("GET").arg(named.keys.cluster())).await?;
    if owner.as_deref() != Some(&named.cluster) {
        return Ok(Standing::NotOurs);
    }
    let mut found = look(link, &named.keys, None).await?;
    // Who seems gone may only have been kept from saying that it lives, as by a Redis that was away. It has time to.
    if let Some(longest_s) = found.nodes.iter().map(|node| node.heartbeat_s).max()
        && found.corrupt == 0
        && found.nodes.iter().all(Node::is_late)
    {
        let period = Duration::from_secs(longest_s);
        sleep(period + period / 4).await;
        found = look(link, &named.keys, Some(named.late())).await?;
    }
    Ok(if found.nodes.is_empty() && found.corrupt == 0 { Standing::Last } else { Standing::Others })
}

/// Whether Redis takes writes, of anything: where it does not, others cannot say that they live.
async fn takes_writes(link: &Link, named: &Named) -> Result<(), LinkError> {
    let key = format!("{}:absent", named.keys.cluster());
    let () = link.query(cmd("SET").arg(&key).arg("").arg("PX").arg(WRITTEN_MS)).await?;
    link.query(cmd("UNLINK").arg(&key)).await
}
