//! What instances tell each other, and who here wants to hear it: the one place that connects the cluster's news with the
//! cache, the streams, the tasks and the seal.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::{sync::Notify, time::timeout};

use crate::{
    changes::{Changes, Lists, Told},
    cluster::{
        Cluster,
        changes::{Forget, GENERATION as INVALIDATED, News},
    },
    config::Tuning,
    mcp::{router::Router, seal::Sealer},
    tasks::Tasks,
};

/// Resources, and tasks, that are told as changed after a gap, of those that somebody here watches.
const WATCHED_MAX: usize = 10_000;
/// Between two looks whether the instances still seal by one key.
const SEAL_PAUSE: Duration = Duration::from_secs(30);

/// The longest that a result is kept.
pub(super) fn ttl_max(tuning: &Tuning) -> Duration {
    let ttls = tuning.tools.values().flat_map(|tool| [tool.cache_ttl_s, tool.cache_error_ttl_s]).flatten();
    Duration::from_secs(ttls.max().unwrap_or(0))
}

/// Between two moments when uses of sessions are noted in Redis, and how long it keeps a session after that.
pub(super) fn session_times(idle_timeout_s: u64) -> (Duration, Duration) {
    let pause = Duration::from_secs((idle_timeout_s / 8).clamp(1, 10));
    (pause, Duration::from_secs(idle_timeout_s) + 2 * pause)
}

/// The longest that Redis keeps anything of clients after the last instance has written it.
pub(super) fn kept_for(tuning: &Tuning) -> Duration {
    let (_, session) = session_times(tuning.sessions.idle_timeout_s);
    let of_tools = tuning.tools.values().flat_map(|tool| [tool.rate, tool.rate_per_caller]).flatten();
    let rates = of_tools.chain([tuning.rate_limit.per_caller, tuning.rate_limit.per_ip]).filter(|rule| !rule.is_off());
    let rates = rates.map(|rule| u64::from(rule.burst()) * rule.per_s() / u64::from(rule.requests()) + rule.block_s());
    [
        2 * session, // the key of their hash, for as long as a session may still be touched
        Duration::from_secs(tuning.sessions.resume_s),
        Duration::from_millis(tuning.tasks.ttl_ms),
        INVALIDATED + ttl_max(tuning),
        Duration::from_secs(rates.max().unwrap_or(0) + 2),
    ]
    .into_iter()
    .max()
    .unwrap_or_default()
}

/// Takes the key over that the others seal by, unless the settings have keys. Without Redis, the next look does.
pub(super) async fn state_key(cluster: &Cluster, sealer: &Sealer) {
    let Some(own) = sealer.own_key() else { return };
    match cluster.state_key(&own).await {
        Ok(key) => sealer.take_over(&key),
        Err(error) => tracing::debug!(%error, "what this instance seals, others cannot open yet"),
    }
}

/// Begins, in tasks of the runtime that this is called in.
pub(super) fn begin(cluster: &Arc<Cluster>, router: &Arc<Router>) {
    let bus = Arc::clone(&cluster.bus);
    router.changes.to_others(move |told| match told {
        Told::Lists(lists) => bus.lists(lists.bits()),
        Told::Resource(uri) => bus.resource(uri),
    });
    let (seal, look) = (Arc::<Notify>::default(), Arc::<Watched>::default());
    let ears = Ears { router: Arc::downgrade(router), seal: Arc::clone(&seal), look: Arc::clone(&look) };
    cluster.bus.begin(move |news| ears.hear(news));
    if let Some(tasks) = &router.tasks {
        tokio::spawn(look_at_tasks(look, Arc::clone(tasks), router.changes.clone()));
    }
    if router.sealer.own_key().is_some() {
        let (cluster, router) = (Arc::clone(cluster), Arc::downgrade(router));
        tokio::spawn(async move {
            loop {
                let _ = timeout(SEAL_PAUSE, seal.notified()).await; // either way it is time to look
                let Some(router) = router.upgrade() else { return };
                state_key(&cluster, &router.sealer).await;
            }
        });
    }
}

/// What is done with what is heard. Nothing of it waits.
struct Ears {
    router: std::sync::Weak<Router>,
    seal: Arc<Notify>,
    look: Arc<Watched>,
}

/// Tasks that may have changed, of those that somebody here watches.
#[derive(Debug, Default)]
struct Watched {
    tasks: Mutex<BTreeSet<(Arc<str>, Arc<str>)>>,
    more: Notify,
}

impl Watched {
    fn add(&self, tasks: impl IntoIterator<Item = (Arc<str>, Arc<str>)>) {
        self.tasks.lock().extend(tasks);
        self.more.notify_one();
    }
}

impl Ears {
    fn hear(&self, news: News) {
        let Some(router) = self.router.upgrade() else { return };
        let changes = &router.changes;
        match news {
            News::Forget(forget) => {
                tracing::debug!(?forget, "another instance had kept results forgotten");
                router.dispatch.forget(&forget);
            }
            News::Lists(bits) => changes.heard_lists(Lists::of_bits(bits)),
            News::Resource(uri) => changes.heard_resource(&uri),
            News::Resources => all_resources(changes),
            News::Task { owner, id, version, is_own } => {
                if let Some(tasks) = router.tasks.as_ref().filter(|_| !is_own) {
                    tasks.heard(&id);
                }
                if changes.is_task_behind(&owner, &id, version) {
                    self.look.add([(owner.into(), id.into())]);
                }
            }
            News::Begun => {
                router.dispatch.forget(&Forget::All); // what was kept before anything could be heard
                self.seal.notify_one();
            }
            // Whatever may have changed is taken for changed.
            News::Gap => {
                tracing::debug!("news of other instances may have been missed: what was kept here is forgotten");
                router.dispatch.forget(&Forget::All);
                changes.heard_lists(Lists::ALL);
                all_resources(changes);
                self.look.add(changes.watched_tasks(WATCHED_MAX));
                self.seal.notify_one();
            }
        }
    }
}

fn all_resources(changes: &Changes) {
    for uri in changes.watched(WATCHED_MAX) {
        changes.heard_resource(&uri);
    }
}

/// Tells the streams here of tasks that changed elsewhere, as they are by then.
async fn look_at_tasks(look: Arc<Watched>, tasks: Arc<Tasks>, changes: Changes) {
    loop {
        let Some((owner, id)) = look.tasks.lock().pop_first() else {
            look.more.notified().await;
            continue;
        };
        match tasks.get(&owner, &id).await {
            Ok(Some(record)) => {
                let members = record.detailed_members();
                changes.task(&owner, &id, record.version, &members, record.made_by.as_deref());
            }
            Ok(None) => {}
            // After a gap all are looked at again.
            Err(error) => tracing::debug!(%error, task = &*id, "a task that changed could not be looked at"),
        }
    }
}
