//! What a handler tells its subscribers. It has one subscriber, us, for all that it accepts; from here it goes to whom it
//! may concern. The lists are always asked for. Single resources are asked for while somebody wants to hear of them:
//! then the subscription is opened anew with all of them, and the one before is closed when the new one is open.
//!
//! Clients choose the resources, so a handler may well not like one of them and end the subscription. Then the lists are
//! asked for alone and the resources in halves, until those that are not liked are found and left out.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use rmcp::{
    RoleServer,
    model::{ErrorCode, MetaObject, RequestId, RequestMetaObject},
    service::{Peer, RequestContext},
};
use serde_json::json;
use tokio::{
    task::{Id, JoinSet},
    time::{Instant, sleep, sleep_until},
};

use super::{Host, back::Backs, calls::request_of, own_meta};
use crate::changes::Changes;

/// Resources that one handler is asked about: those that were asked for first. Of others it is not heard.
const WATCHED_MAX: usize = 10_000;
/// How long a subscription is kept beside the next one, and how often there is a next one at most.
const OVERLAP: Duration = Duration::from_millis(20);
/// When a handler is asked again for what it has ended: it may have been a passing failure.
const AGAIN_AFTER: Duration = Duration::from_secs(60);

/// Listens to a handler for as long as it may have something to tell and the runtime lives. One task for each handler,
/// made at the start; a handler that has no subscribers ends it at once.
pub(super) async fn listen(host: Arc<dyn Host>, backs: Arc<Backs>, changes: Changes) {
    let (peer, _back) = backs.permanent();
    let mut interest = changes.interest();
    let mut listening = Listening { host, peer, number: 0, left_out: HashSet::new(), again_at: None };
    let mut before = None;
    loop {
        interest.mark_unchanged();
        let mut open = Open::default();
        let uris = listening.wanted(changes.watched(WATCHED_MAX));
        listening.open(&mut open, Asked { lists: true, uris });
        tokio::select! {
            biased;
            Next::Never = listening.keep(&mut open) => return,
            () = sleep(OVERLAP) => {}
        }
        drop(before.take());
        tokio::select! {
            biased;
            next = listening.keep(&mut open) => match next {
                Next::Never => return,
                Next::Again => {}
            },
            _ = interest.changed() => {}
        }
        before = Some(open);
    }
}

/// What one subscription asks for.
#[derive(Debug)]
struct Asked {
    lists: bool,
    uris: Vec<Arc<str>>,
}

/// Subscriptions that are open side by side and ask for all that is wanted. Dropping them closes them.
#[derive(Debug, Default)]
struct Open {
    running: JoinSet<Option<ErrorCode>>,
    asked: HashMap<Id, Asked>,
}

/// When a handler is asked again.
#[derive(Debug)]
enum Next {
    /// Now.
    Again,
    /// It has no subscribers, and never will.
    Never,
}

struct Listening {
    host: Arc<dyn Host>,
    peer: Peer<RoleServer>,
    /// The last subscription's; a handler may know its subscribers by this.
    number: i64,
    /// Resources that the handler did not like.
    left_out: HashSet<Arc<str>>,
    /// When it is asked for them again.
    again_at: Option<Instant>,
}

impl Listening {
    /// What of the watched resources the handler is to be asked for.
    fn wanted(&mut self, watched: Vec<Arc<str>>) -> Vec<Arc<str>> {
        if self.again_at.is_none_or(|at| at <= Instant::now()) {
            self.again_at = None;
            self.left_out.clear();
            return watched;
        }
        let (left_out, wanted): (Vec<_>, Vec<_>) = watched.into_iter().partition(|uri| self.left_out.contains(uri));
        self.left_out = left_out.into_iter().collect(); // without those that nobody asks for any more
        wanted
    }

    fn open(&mut self, open: &mut Open, asked: Asked) {
        let mut filter = json!({});
        if asked.lists {
            filter = json!({ "toolsListChanged": true, "promptsListChanged": true, "resourcesListChanged": true });
        }
        if !asked.uris.is_empty() {
            filter["resourceSubscriptions"] = asked.uris.iter().map(AsRef::as_ref).collect::<Vec<&str>>().into();
        }
        let request = match request_of("subscriptions/listen", json!({ "notifications": filter })) {
            Ok(request) => request,
            Err(error) => return tracing::error!(error, "a handler is not asked for what it tells its subscribers"),
        };
        self.number += 1;
        let mut context = RequestContext::new(RequestId::Number(self.number), self.peer.clone());
        context.meta = RequestMetaObject(MetaObject(own_meta()));
        let host = Arc::clone(&self.host);
        let running = open.running.spawn(async move {
            let _cancels = context.ct.clone().drop_guard();
            host.request(request, context).await.err().map(|error| error.code)
        });
        open.asked.insert(running.id(), asked);
    }

    /// Keeps open what can be kept open.
    async fn keep(&mut self, open: &mut Open) -> Next {
        loop {
            let again_at = self.again_at;
            let (id, error) = tokio::select! {
                Some(ended) = open.running.join_next_with_id() => match ended {
                    Ok(ended) => ended,
                    Err(error) => (error.id(), None), // a handler that panics has ended its subscription too
                },
                () = sleep_until(again_at.unwrap_or_else(Instant::now)), if again_at.is_some() => return Next::Again,
                else => std::future::pending().await,
            };
            let Some(Asked { lists, mut uris }) = open.asked.remove(&id) else { continue };
            tracing::debug!(lists, resources = uris.len(), ?error, "a hosted handler has ended a subscription");
            match (lists, uris.len()) {
                (true, 0) if error == Some(ErrorCode::METHOD_NOT_FOUND) => return Next::Never,
                (true, 0) => self.ask_again(),
                (true, _) => {
                    self.open(open, Asked { lists: true, uris: Vec::new() });
                    self.open(open, Asked { lists: false, uris });
                }
                (false, 1) => {
                    self.left_out.extend(uris.pop());
                    self.ask_again();
                }
                (false, n) => {
                    let rest = uris.split_off(n / 2);
                    self.open(open, Asked { lists: false, uris });
                    self.open(open, Asked { lists: false, uris: rest });
                }
            }
        }
    }

    fn ask_again(&mut self) {
        self.again_at.get_or_insert_with(|| Instant::now() + AGAIN_AFTER);
    }
}
