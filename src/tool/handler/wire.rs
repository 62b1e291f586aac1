//! What is between a loop and the call that it is lent to: what a handler says is taken here, at once, and what it is
//! answered goes in. Who lends loops, and when, is `back`'s business.

use std::{
    collections::VecDeque,
    convert::Infallible,
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::Waker,
};

use parking_lot::Mutex;
use rmcp::{
    RoleServer,
    model::{ErrorData, JsonRpcMessage, RequestId, ServerNotification},
    service::{RxJsonRpcMessage, TxJsonRpcMessage},
    transport::Transport,
};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::{
    changes::Changes,
    outbox::{LogLevel, Outbox},
};

/// Questions of one call without an answer.
const QUESTIONS_MAX: usize = 64;
/// Answers on their way into a loop.
pub(super) const ANSWERS_MAX: usize = 64;
/// What we say to a loop to see that it has taken everything that was said before.
pub(super) const SETTLED: &str = "bigiron/settled";

/// A question of a handler to its client.
#[derive(Debug)]
pub(super) struct Question {
    pub(super) id: RequestId,
    pub(super) method: String,
    pub(super) params: Value,
}

/// Where changes go that a handler tells of.
#[derive(Clone, Debug)]
pub(super) struct Heard {
    pub(super) changes: Changes,
    /// Told when a handler's tools are others.
    pub(super) tools_changed: Arc<tokio::sync::Notify>,
}

/// What is between a loop and the call that it is lent to.
#[derive(Debug)]
pub(super) struct Wire {
    pub(super) heard: Heard,
    pub(super) answers: mpsc::Sender<RxJsonRpcMessage<RoleServer>>,
    pub(super) lent: Mutex<Option<Lending>>,
    /// Whether everything that was said before the last [`SETTLED`] has been taken.
    pub(super) is_settled: AtomicBool,
}

/// The call that a loop is lent to.
#[derive(Debug, Default)]
pub(super) struct Lending {
    pub(super) outbox: Option<Arc<Outbox>>,
    pub(super) progress_token: Option<Value>,
    pub(super) questions: VecDeque<Question>,
    /// Questions without an answer yet.
    pub(super) open: Vec<RequestId>,
    pub(super) waker: Option<Waker>,
}

/// What a question outside a call is answered with.
pub(super) fn over(id: RequestId) -> RxJsonRpcMessage<RoleServer> {
    JsonRpcMessage::error(ErrorData::invalid_request("the call that this was asked in is over", None), Some(id))
}

/// The loop's transport: there is nothing but the wire behind it.
pub(super) struct Pipe {
    pub(super) wire: Arc<Wire>,
    pub(super) inbound: mpsc::Receiver<RxJsonRpcMessage<RoleServer>>,
}

impl Transport<RoleServer> for Pipe {
    type Error = Infallible;

    fn send(
        &mut self,
        message: TxJsonRpcMessage<RoleServer>,
    ) -> impl Future<Output = Result<(), Infallible>> + Send + 'static {
        // At once, and not when the future is polled: what comes first is taken first.
        let refused = self.wire.take(message);
        let answers = self.wire.answers.clone();
        async move {
            if let Some(refused) = refused {
                let _ = answers.send(refused).await; // fails only when the loop has ended
            }
            Ok(())
        }
    }

    async fn receive(&mut self) -> Option<RxJsonRpcMessage<RoleServer>> {
        self.inbound.recv().await
    }

    async fn close(&mut self) -> Result<(), Infallible> {
        Ok(())
    }
}

impl Wire {
    /// Takes what a handler said; what comes back is the answer to a question that nobody can be asked.
    fn take(&self, message: TxJsonRpcMessage<RoleServer>) -> Option<RxJsonRpcMessage<RoleServer>> {
        match message {
            JsonRpcMessage::Request(request) => {
                let json = serde_json::to_value(&request.request).unwrap_or_default();
                return self.ask(request.id, json);
            }
            JsonRpcMessage::Notification(notification) => match &notification.notification {
                ServerNotification::CustomNotification(custom) if custom.method == SETTLED => {
                    self.is_settled.store(true, Ordering::Release);
                }
                notification => self.notify(&serde_json::to_value(notification).unwrap_or_default()),
            },
            _ => {}
        }
        None
    }

    fn ask(&self, id: RequestId, mut request: Value) -> Option<RxJsonRpcMessage<RoleServer>> {
        let method = request["method"].as_str().unwrap_or_default().to_owned();
        let mut lent = self.lent.lock();
        let Some(lending) = lent.as_mut() else { return Some(over(id)) };
        if lending.open.len() >= QUESTIONS_MAX {
            let error = ErrorData::internal_error("too many questions of this call have no answer yet", None);
            return Some(JsonRpcMessage::error(error, Some(id)));
        }
        lending.open.push(id.clone());
        lending.questions.push_back(Question { id, method, params: request["params"].take() });
        let waker = lending.waker.take();
        drop(lent);
        if let Some(waker) = waker {
            waker.wake();
        }
        None
    }

    fn notify(&self, notification: &Value) {
        let params = &notification["params"];
        match notification["method"].as_str().unwrap_or_default() {
            "notifications/tools/list_changed" => self.heard.tools_changed.notify_one(),
            "notifications/prompts/list_changed" => self.heard.changes.prompts(),
            "notifications/resources/list_changed" => self.heard.changes.resources(),
            "notifications/resources/updated" => {
                if let Some(uri) = params["uri"].as_str() {
                    self.heard.changes.resource(uri);
                }
            }
            method => {
                let lent = self.lent.lock();
                let Some(lending) = lent.as_ref() else { return };
                let Some(outbox) = lending.outbox.clone() else { return };
                let own_token = lending.progress_token.as_ref() == Some(&params["progressToken"]);
                drop(lent);
                match method {
                    "notifications/progress" if own_token => {
                        let message = params["message"].as_str().unwrap_or_default();
                        outbox.progress(
                            params["progress"].as_f64().unwrap_or_default(),
                            params["total"].as_f64(),
                            message,
                        );
                    }
                    "notifications/message" => {
                        let level = params["level"].as_str().and_then(LogLevel::parse);
                        if level.is_some_and(|level| outbox.wants_log(level)) {
                            outbox.ready(
                                json!({ "jsonrpc": "2.0", "method": method, "params": params }).to_string().into(),
                            );
                        }
                    }
                    _ => {}
                }
            }
        }
    }
}
