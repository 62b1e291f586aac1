//! The way back from a hosted handler to its client. rmcp's handle for that, the [`Peer`], is made by a service loop and
//! nothing else. So that no call needs a loop of its own, loops are pooled: one is lent to a call, and what the handler
//! says through its peer goes to that call while it is lent. A handler may keep a copy of a peer for longer than its
//! call; so a peer is only ever lent to calls of one caller, and what it says outside a call is heard only when it is
//! about lists and resources, which concerns everybody.

use std::{
    collections::{HashMap, VecDeque},
    convert::Infallible,
    future::{Future, ready},
    sync::Arc,
    task::{Context, Poll, Waker},
};

use parking_lot::Mutex;
use rmcp::{
    RoleServer, ServerHandler,
    model::{ErrorData, JsonRpcMessage, RequestId},
    service::{Peer, RunningService, RxJsonRpcMessage, TxJsonRpcMessage, serve_directly},
    transport::Transport,
};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::{
    changes::Changes,
    outbox::{LogLevel, Outbox},
};

/// Ways back that wait for a call, of one caller.
const IDLE_MAX: usize = 32;
/// Callers whose ways back wait for a call.
const CALLERS_MAX: usize = 256;
/// Answers on their way into a loop.
const ANSWERS_MAX: usize = 64;

/// A question of a handler to its client.
#[derive(Debug)]
pub(super) struct Question {
    id: RequestId,
    pub(super) method: String,
    pub(super) params: Value,
}

/// Who a way back is for. Sessions and single requests are kept apart, since a peer remembers what a session said.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct For {
    pub(super) caller: String,
    pub(super) has_session: bool,
}

/// All ways back.
#[derive(Debug)]
pub(super) struct Backs {
    wire_to: Heard,
    idle: Mutex<HashMap<For, Vec<Back>>>,
}

/// Where changes go that a handler tells of.
#[derive(Clone, Debug)]
pub(super) struct Heard {
    pub(super) changes: Changes,
    /// Told when a handler's tools are others.
    pub(super) tools_changed: Arc<tokio::sync::Notify>,
}

/// One way back.
#[derive(Debug)]
struct Back {
    running: RunningService<RoleServer, Nobody>,
    wire: Arc<Wire>,
    /// What the session that it spoke for last said of itself.
    introduced: Option<Arc<Value>>,
}

impl Drop for Back {
    fn drop(&mut self) {
        self.running.cancellation_token().cancel();
    }
}

/// The loop's own handler, which nobody ever asks anything.
#[derive(Debug)]
pub(super) struct Nobody;

impl ServerHandler for Nobody {}

/// What is between a loop and the call that it is lent to.
#[derive(Debug)]
struct Wire {
    heard: Heard,
    answers: mpsc::Sender<RxJsonRpcMessage<RoleServer>>,
    lent: Mutex<Option<Lending>>,
}

/// The call that a loop is lent to.
#[derive(Debug, Default)]
struct Lending {
    outbox: Option<Arc<Outbox>>,
    progress_token: Option<Value>,
    questions: VecDeque<Question>,
    /// Questions without an answer yet.
    open: usize,
    waker: Option<Waker>,
}

/// A way back that is lent to one call, and given back on drop.
#[derive(Debug)]
pub(super) struct Lent {
    back: Option<Back>,
    backs: Arc<Backs>,
    owner: For,
}

impl Backs {
    pub(super) fn new(wire_to: Heard) -> Arc<Self> {
        Arc::new(Self { wire_to, idle: Mutex::default() })
    }

    /// Lends a way back to a call.
    pub(super) fn lend(
        self: &Arc<Self>,
        owner: For,
        outbox: Option<Arc<Outbox>>,
        progress_token: Option<Value>,
    ) -> Lent {
        let idle = self.idle.lock().get_mut(&owner).and_then(Vec::pop);
        let back = idle.unwrap_or_else(|| Back::new(self.wire_to.clone()));
        *back.wire.lent.lock() = Some(Lending { outbox, progress_token, ..Lending::default() });
        Lent { back: Some(back), backs: Arc::clone(self), owner }
    }

    /// A way back that is lent to no call and only hears of changes.
    pub(super) fn permanent(&self) -> (Peer<RoleServer>, impl Sized + Send + use<>) {
        let back = Back::new(self.wire_to.clone());
        (back.running.peer().clone(), back)
    }
}

impl Back {
    fn new(heard: Heard) -> Self {
        let (answers, inbound) = mpsc::channel(ANSWERS_MAX);
        let wire = Arc::new(Wire { heard, answers, lent: Mutex::default() });
        let running = serve_directly(Nobody, Pipe { wire: Arc::clone(&wire), inbound }, None);
        Self { running, wire, introduced: None }
    }
}

impl Lent {
    pub(super) fn peer(&self) -> Option<Peer<RoleServer>> {
        self.back.as_ref().map(|back| back.running.peer().clone())
    }

    /// Tells the handler what the session said of itself.
    pub(super) fn introduce(&mut self, said: &Arc<Value>) {
        let Some(back) = &mut self.back else { return };
        if back.introduced.as_ref().is_some_and(|before| Arc::ptr_eq(before, said)) {
            return;
        }
        if let Ok(info) = serde_json::from_value(said.as_ref().clone()) {
            back.running.peer().set_peer_info(info);
            back.introduced = Some(Arc::clone(said));
        }
    }

    /// The next question of the handler.
    pub(super) fn poll_question(&self, cx: &mut Context<'_>) -> Poll<Question> {
        let Some(back) = &self.back else { return Poll::Pending };
        let mut lent = back.wire.lent.lock();
        let Some(lending) = lent.as_mut() else { return Poll::Pending };
        if let Some(question) = lending.questions.pop_front() {
            return Poll::Ready(question);
        }
        lending.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Brings an answer: the result of a question, or its error.
    pub(super) fn answer(&self, question: &Question, answer: Result<Value, Value>) {
        let Some(back) = &self.back else { return };
        let message = match answer {
            Ok(result) => json!({ "jsonrpc": "2.0", "id": question.id, "result": result }),
            Err(error) => json!({ "jsonrpc": "2.0", "id": question.id, "error": error }),
        };
        let message = serde_json::from_value(message).unwrap_or_else(|error| {
            let message = format!("the client's answer is none to {}: {error}", question.method);
            JsonRpcMessage::error(ErrorData::internal_error(message, None), Some(question.id.clone()))
        });
        if back.wire.answers.try_send(message).is_ok()
            && let Some(lending) = back.wire.lent.lock().as_mut()
        {
            lending.open = lending.open.saturating_sub(1);
        }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let Some(back) = self.back.take() else { return };
        let lending = back.wire.lent.lock().take();
        // A loop remembers questions without an answer for ever, so one that has some is not lent again.
        if lending.is_none_or(|lending| lending.open > 0) {
            return;
        }
        let mut idle = self.backs.idle.lock();
        if idle.len() >= CALLERS_MAX && !idle.contains_key(&self.owner) {
            return;
        }
        let waiting = idle.entry(self.owner.clone()).or_default();
        if waiting.len() < IDLE_MAX {
            waiting.push(back);
        }
    }
}

/// The loop's transport: there is nothing but the wire behind it.
struct Pipe {
    wire: Arc<Wire>,
    inbound: mpsc::Receiver<RxJsonRpcMessage<RoleServer>>,
}

impl Transport<RoleServer> for Pipe {
    type Error = Infallible;

    fn send(
        &mut self,
        message: TxJsonRpcMessage<RoleServer>,
    ) -> impl Future<Output = Result<(), Infallible>> + Send + 'static {
        self.wire.take(message);
        ready(Ok(()))
    }

    async fn receive(&mut self) -> Option<RxJsonRpcMessage<RoleServer>> {
        self.inbound.recv().await
    }

    async fn close(&mut self) -> Result<(), Infallible> {
        Ok(())
    }
}

impl Wire {
    fn take(&self, message: TxJsonRpcMessage<RoleServer>) {
        match message {
            JsonRpcMessage::Request(request) => {
                let id = request.id.clone();
                let json = serde_json::to_value(&request.request).unwrap_or_default();
                self.ask(id, &json);
            }
            JsonRpcMessage::Notification(notification) => {
                let json = serde_json::to_value(&notification.notification).unwrap_or_default();
                self.notify(&json);
            }
            _ => {}
        }
    }

    fn ask(&self, id: RequestId, request: &Value) {
        let method = request["method"].as_str().unwrap_or_default().to_owned();
        let mut lent = self.lent.lock();
        let Some(lending) = lent.as_mut() else {
            drop(lent);
            let error = ErrorData::invalid_request("the call that this was asked in is over", None);
            let _ = self.answers.try_send(JsonRpcMessage::error(error, Some(id)));
            return;
        };
        lending.open += 1;
        lending.questions.push_back(Question { id, method, params: request["params"].clone() });
        let waker = lending.waker.take();
        drop(lent);
        if let Some(waker) = waker {
            waker.wake();
        }
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
