//! What instances tell each other, and who here wants to hear it: the one place that connects the cluster's news with the
//! cache, the streams and the tasks.

use std::sync::Arc;

use crate::{
    changes::{Lists, Told},
    cluster::{Cluster, changes::News},
    mcp::router::Router,
};

/// Resources that are told as changed after a gap, of those that somebody here watches.
const WATCHED_MAX: usize = 10_000;

/// Begins, in tasks of the runtime that this is called in.
pub(super) fn begin(cluster: &Cluster, router: &Arc<Router>) {
    let bus = Arc::clone(&cluster.bus);
    router.changes.to_others(move |told| match told {
        Told::Lists(lists) => bus.lists(lists.bits()),
        Told::Resource(uri) => bus.resource(uri),
    });
    let router = Arc::downgrade(router);
    cluster.bus.begin(move |news| {
        if let Some(router) = router.upgrade() {
            hear(&router, news);
        }
    });
}

fn hear(router: &Router, news: News) {
    match news {
        News::Forget(forget) => {
            tracing::debug!(?forget, "another instance had kept results forgotten");
            router.dispatch.forget(&forget);
        }
        News::Lists(bits) => router.changes.heard_lists(Lists::of_bits(bits)),
        News::Resource(uri) => router.changes.heard_resource(&uri),
        News::Resources => all_resources(router),
        News::Task { .. } => {}
        News::Begun => {}
        // Whatever may have changed is taken for changed.
        News::Gap => {
            tracing::debug!("news of other instances may have been missed; what was kept here is forgotten");
            router.dispatch.forget(&crate::cluster::changes::Forget::All);
            router.changes.heard_lists(Lists::ALL);
            all_resources(router);
        }
    }
}

fn all_resources(router: &Router) {
    for uri in router.changes.watched(WATCHED_MAX) {
        router.changes.heard_resource(&uri);
    }
}
