//! What a handler tells its subscribers. It has one subscriber, us, for all that it accepts; from here it goes to whom it
//! may concern. The lists are always asked for. Single resources are asked for while somebody wants to hear of them:
//! then the subscription is opened anew with all of them, and the one before is closed when the new one is open.

use std::{sync::Arc, time::Duration};

use rmcp::{
    model::{MetaObject, RequestId, RequestMetaObject},
    service::RequestContext,
};
use serde_json::json;
use tokio::time::sleep;

use super::{Host, back::Backs, calls::request_of, own_meta};
use crate::changes::Changes;

/// Resources that one handler is asked about. Of others it is not heard.
const WATCHED_MAX: usize = 10_000;
/// How long a subscription is kept beside the next one, and how often there is a next one at most.
const OVERLAP: Duration = Duration::from_millis(20);

/// Listens to a handler for as long as it has something to tell and the runtime lives. One task for each handler, made
/// at the start; a handler that has no subscribers ends it at once.
pub(super) async fn listen(host: Arc<dyn Host>, backs: Arc<Backs>, changes: Changes) {
    let (peer, _back) = backs.permanent();
    let mut interest = changes.interest();
    let mut number = 0;
    let mut before = None; // a subscription, and what closes it when it is dropped
    loop {
        interest.mark_unchanged();
        let mut filter = json!({ "toolsListChanged": true, "promptsListChanged": true, "resourcesListChanged": true });
        let watched = changes.watched(WATCHED_MAX);
        if !watched.is_empty() {
            filter["resourceSubscriptions"] = watched.iter().map(AsRef::as_ref).collect::<Vec<&str>>().into();
        }
        let Ok(request) = request_of("subscriptions/listen", json!({ "notifications": filter })) else { return };
        number += 1; // a handler may know its subscribers by this
        let mut context = RequestContext::new(RequestId::Number(number), peer.clone());
        context.meta = RequestMetaObject(MetaObject(own_meta()));
        let cancels = context.ct.clone().drop_guard();
        let mut running = host.request(request, context);
        let ended = tokio::select! {
            ended = &mut running => Some(ended),
            () = sleep(OVERLAP) => None,
        };
        drop(before.take());
        let ended = match ended {
            Some(ended) => ended,
            None => tokio::select! {
                ended = &mut running => ended,
                _ = interest.changed() => {
                    before = Some((running, cancels));
                    continue;
                }
            },
        };
        tracing::debug!(told = ended.is_ok(), "a hosted handler has ended its subscription");
        return;
    }
}
