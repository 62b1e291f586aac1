//! Who is told when something changed: open subscriptions (revision 2026-07-28), and the sessions of older revisions.
//! What changed is said by tools; nothing here decides it.
#![expect(deprecated, reason = "sampling, roots and logging are on their way out; clients have them still")]

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use rmcp::{
    Peer, RoleServer, ServiceError,
    model::{InitializeRequestParams, LoggingLevel, ResourceUpdatedNotificationParam},
    service::{SubscriptionContext, SubscriptionSendError},
};
use tokio::sync::{Mutex, broadcast, broadcast::error::RecvError};

/// The one resource whose changes can be subscribed to.
pub(crate) const WATCHED: &str = "test://watched-resource";
/// Changes that a slow subscription may be behind.
const BEHIND_MAX: usize = 64;
/// Sessions that are remembered. One more, and the oldest is no longer told.
const SESSIONS_MAX: usize = 10_000;
/// How long a session may take to accept one notification.
const TELLING_TIME_MAX: Duration = Duration::from_secs(1);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Change {
    Tools,
    Prompts,
    Watched,
}

impl Change {
    const ALL: [Self; 3] = [Self::Tools, Self::Prompts, Self::Watched];
}

/// What a session of an older revision has said, which newer clients say with each request.
#[derive(Debug)]
struct Session {
    /// A peer has no name, but it hands out its handshake as one shared value: that tells sessions apart.
    handshake: Arc<InitializeRequestParams>,
    peer: Peer<RoleServer>,
    watches: BTreeSet<String>,
    level: Option<LoggingLevel>,
}

#[derive(Debug)]
pub(crate) struct Hub {
    changes: broadcast::Sender<Change>,
    sessions: Mutex<Vec<Session>>,
}

impl Hub {
    pub(crate) fn new() -> Self {
        Self { changes: broadcast::Sender::new(BEHIND_MAX), sessions: Mutex::default() }
    }

    /// Tells everybody who wants to know.
    pub(crate) async fn announce(&self, change: Change) {
        // An error means only that there is no subscription at the moment.
        let _ = self.changes.send(change);
        let mut sessions = self.sessions.lock().await;
        sessions.retain(|session| !session.peer.is_transport_closed());
        let told = sessions.iter().filter(|s| change != Change::Watched || s.watches.contains(WATCHED));
        let told: Vec<_> = told.map(|session| session.peer.clone()).collect();
        drop(sessions);
        for peer in told {
            // Each on its own, so that one that does not read keeps nobody waiting.
            tokio::spawn(async move { tokio::time::timeout(TELLING_TIME_MAX, tell(&peer, change)).await });
        }
    }

    /// Serves one subscription until its client has gone.
    pub(crate) async fn serve(&self, subscription: &SubscriptionContext) {
        let mut changes = self.changes.subscribe();
        loop {
            let change = tokio::select! {
                () = subscription.cancelled() => return,
                change = changes.recv() => change,
            };
            let changed = match change {
                Ok(change) => vec![change],
                // Which ones were missed is not known, so it is told of all.
                Err(RecvError::Lagged(_)) => Change::ALL.to_vec(),
                Err(RecvError::Closed) => return,
            };
            for change in changed {
                let sink = subscription.sink();
                let sent = match change {
                    Change::Tools => sink.notify_tool_list_changed().await,
                    Change::Prompts => sink.notify_prompt_list_changed().await,
                    Change::Watched => sink.notify_resource_updated(WATCHED).await,
                };
                // What was not asked for is refused by the sink; any other error means that nobody reads any more.
                if !matches!(sent, Ok(()) | Err(SubscriptionSendError::NotificationNotAccepted(_))) {
                    return;
                }
            }
        }
    }

    /// A session has begun.
    pub(crate) async fn enter(&self, peer: Peer<RoleServer>) {
        let Some(handshake) = peer.peer_info() else { return };
        let mut sessions = self.sessions.lock().await;
        sessions.retain(|session| !session.peer.is_transport_closed());
        if sessions.len() == SESSIONS_MAX {
            sessions.remove(0);
        }
        sessions.push(Session { handshake, peer, watches: BTreeSet::new(), level: None });
    }

    pub(crate) async fn watch(&self, peer: &Peer<RoleServer>, uri: String) {
        self.with_session(peer, |session| session.watches.insert(uri)).await;
    }

    pub(crate) async fn unwatch(&self, peer: &Peer<RoleServer>, uri: &str) {
        self.with_session(peer, |session| session.watches.remove(uri)).await;
    }

    pub(crate) async fn set_level(&self, peer: &Peer<RoleServer>, level: LoggingLevel) {
        self.with_session(peer, |session| session.level = Some(level)).await;
    }

    /// The least level that a session wants to hear of, if it has said so.
    pub(crate) async fn level(&self, peer: &Peer<RoleServer>) -> Option<LoggingLevel> {
        self.with_session(peer, |session| session.level).await.flatten()
    }

    /// A session that never said that it was initialized is not known: then there is nothing to do, and whoever serves
    /// this handler keeps what the session says.
    async fn with_session<T>(&self, peer: &Peer<RoleServer>, run: impl FnOnce(&mut Session) -> T) -> Option<T> {
        let handshake = peer.peer_info()?;
        let mut sessions = self.sessions.lock().await;
        sessions.iter_mut().find(|session| Arc::ptr_eq(&session.handshake, &handshake)).map(run)
    }
}

async fn tell(peer: &Peer<RoleServer>, change: Change) -> Result<(), ServiceError> {
    match change {
        Change::Tools => peer.notify_tool_list_changed().await,
        Change::Prompts => peer.notify_prompt_list_changed().await,
        Change::Watched => peer.notify_resource_updated(ResourceUpdatedNotificationParam::new(WATCHED)).await,
    }
}
