//! Whose the keys are: of one deployment, which says so as long as there can be something of its clients. Another one, that
//! names the same Redis and the same prefix, is told so here, and what it can do.

use std::{sync::LazyLock, time::Duration};

use super::{
    keys::Keys,
    link::{Link, LinkError, Script, pipe},
    registry::{Named, PERIODS_TO_EXPIRY},
};

/// Says whose the keys are and for how long, and renews it when they are ours. It guards what clients have there as
/// long as that can live, so nobody gives them up but who has removed all of that (`last_stop`).
static CLAIM: LazyLock<Script> = LazyLock::new(|| {
    Script::new(
        r"local owner, left = redis.call('GET', KEYS[1]), redis.call('PTTL', KEYS[1])
if owner and owner ~= ARGV[1] then return {owner, left} end
left = math.max(left, tonumber(ARGV[2])) -- another of us may keep things for longer
local kept = redis.pcall('SET', KEYS[1], ARGV[1], 'PX', string.format('%.0f', left))
-- what is ours stays ours in a Redis that takes no writes
if kept.err and not (owner and (string.find(kept.err, 'OOM', 1, true) or string.find(kept.err, 'READONLY', 1, true)
  or string.find(kept.err, 'NOREPLICAS', 1, true) or string.find(kept.err, 'MISCONF', 1, true))) then return kept end
return {ARGV[1], left}",
    )
});

/// Whose the keys are, when they are another deployment's.
#[derive(Debug)]
pub(crate) struct Foreign {
    owner: String,
    /// Until they are nobody's, unless an instance of the other renews it. None when that is never.
    left: Option<Duration>,
    /// What this one is called.
    own: String,
}

impl Foreign {
    /// In words, with what can be done about it.
    pub(crate) fn told(&self, keys: &Keys) -> String {
        let Self { owner, own, left } = self;
        let frees = match left.map(|left| left.as_secs().div_ceil(60)) {
            None => "does not happen by itself".to_owned(),
            Some(minutes) => {
                let (left, unit) = if minutes < 120 { (minutes, "min") } else { (minutes.div_ceil(60), "h") };
                format!("happens by itself in {left} {unit}, unless an instance of {owner:?} runs, which renews it")
            }
        };
        format!(
            "the keys {}* in this Redis are those of another deployment, {owner:?} (here cluster.id is {own:?}); choose \
             another cluster.key_prefix, or the same cluster.id when both are one. When {owner:?} is no more, and what \
             its clients left there (sessions, tasks, kept results) is to be this one's, `DEL {}` in Redis frees them, \
             which {frees}",
            keys.prefix(),
            keys.cluster()
        )
    }
}

/// Whether the keys are this deployment's; if not, whose. Who has served clients claims them for as long as there can be
/// something of theirs, else for a short time: a start that comes to nothing locks nobody out.
pub(crate) async fn claim(link: &Link, named: &Named, has_run: bool) -> Result<Result<(), Foreign>, LinkError> {
    let kept_for = if has_run { named.kept_for } else { Duration::ZERO };
    let expiry = kept_for + named.period * PERIODS_TO_EXPIRY;
    let script = &mut CLAIM.key(named.keys.cluster());
    let (owner, left_ms): (String, i64) =
        link.script_of_anybody(script.arg(&named.cluster).arg(expiry.as_millis() as u64)).await?;
    Ok(owned(link, owner, left_ms, named))
}

/// The same of an instance that is none: it only looks.
pub(crate) async fn whose(link: &Link, named: &Named) -> Result<Result<(), Foreign>, LinkError> {
    let key = named.keys.cluster();
    let mut ask = pipe();
    ask.cmd("GET").arg(&key).cmd("PTTL").arg(&key);
    let (owner, left_ms): (Option<String>, i64) = link.pipeline(&ask).await?;
    Ok(owner.map_or(Ok(()), |owner| owned(link, owner, left_ms, named)))
}

fn owned(link: &Link, owner: String, left_ms: i64, named: &Named) -> Result<(), Foreign> {
    let is_ours = owner == named.cluster;
    link.note_owner(is_ours);
    let left = u64::try_from(left_ms).ok().map(Duration::from_millis);
    if is_ours { Ok(()) } else { Err(Foreign { owner, left, own: named.cluster.clone() }) }
}
