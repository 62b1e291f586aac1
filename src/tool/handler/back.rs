//! The way back from a hosted handler to its client. rmcp's handle for that, the [`Peer`], is made by a service loop and
//! nothing else. So that no call needs a loop of its own, loops are pooled: one is lent to a call, and what the handler
//! says through its peer goes to that call while it is lent. A handler may keep a copy of a peer for longer than its
//! call; such a loop is set apart and never lent again while the copy lives (`copies` says how that is seen), so that
//! what is said by it reaches nobody else's call. What concerns everybody, changes of lists and of resources, is heard
//! from it for as long as the handler keeps it. What goes over a way back is `wire`'s business.

use std::{
    collections::VecDeque,
    future::Future,
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, Waker},
};

use parking_lot::Mutex;
use rmcp::{
    RoleServer, ServerHandler,
    model::{CustomNotification, ErrorData, InitializeRequestParams, JsonRpcMessage, ServerNotification},
    service::{Peer, RunningService, serve_directly},
};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::{
    copies::{self, Copies},
    wire::{ANSWERS_MAX, Heard, Lending, Pipe, Question, SETTLED, Wire, over},
};
use crate::outbox::Outbox;

/// Ways back that wait for a call, of one kind. Each is a task and some 40 KiB.
const IDLE_MAX: usize = 64;
/// Ways back that are set apart. Beyond it the oldest is closed, and who kept its peer is told so when it speaks.
const APART_MAX: usize = 1024;
/// Ways back set apart that are looked at for each one more, to see whether they can be lent again.
const LOOKED_AT: usize = 2;
/// Whom a way back is for: a peer remembers what a session said of itself, so that single requests have their own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum For {
    Request,
    Session,
}

/// All ways back.
#[derive(Debug)]
pub(super) struct Backs {
    heard: Heard,
    parked: Mutex<Parked>,
    #[cfg(test)]
    made: std::sync::atomic::AtomicUsize,
}

/// Ways back that are lent to no call.
#[derive(Debug, Default)]
struct Parked {
    idle_for_requests: Vec<Back>,
    idle_for_sessions: Vec<Back>,
    /// Those that may still be spoken by: a handler has kept a peer, or has stopped in the middle of a word.
    apart: VecDeque<(For, Back)>,
}

/// One way back.
#[derive(Debug)]
struct Back {
    running: RunningService<RoleServer, Nobody>,
    wire: Arc<Wire>,
    /// The copies of its peer that there are when no handler has one.
    copies: Copies,
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

/// A way back that is lent to one call, and given back on drop.
#[derive(Debug)]
pub(super) struct Lent {
    back: Option<Back>,
    backs: Arc<Backs>,
    owner: For,
    /// The handler came to its end by itself, so that it is in the middle of no word.
    is_done: bool,
}

impl Backs {
    pub(super) fn new(heard: Heard) -> Arc<Self> {
        Arc::new(Self {
            heard,
            parked: Mutex::default(),
            #[cfg(test)]
            made: std::sync::atomic::AtomicUsize::new(0),
        })
    }

    fn make(&self) -> Back {
        #[cfg(test)]
        self.made.fetch_add(1, Ordering::SeqCst);
        Back::new(self.heard.clone())
    }

    /// How many there ever were.
    #[cfg(test)]
    pub(super) fn made(&self) -> usize {
        self.made.load(Ordering::SeqCst)
    }

    /// Lends a way back to a call.
    pub(super) fn lend(
        self: &Arc<Self>,
        owner: For,
        outbox: Option<Arc<Outbox>>,
        progress_token: Option<Value>,
    ) -> Lent {
        let idle = self.parked.lock().idle(owner).pop();
        let back = idle.unwrap_or_else(|| self.make());
        *back.wire.lent.lock() = Some(Lending { outbox, progress_token, ..Lending::default() });
        Lent { back: Some(back), backs: Arc::clone(self), owner, is_done: false }
    }

    /// A way back that is lent to no call and only hears of changes.
    pub(super) fn permanent(&self) -> (Peer<RoleServer>, impl Sized + Send + use<>) {
        let back = self.make();
        (back.running.peer().clone(), back)
    }

    /// Takes a way back that a call does not need any more. What is closed is given back, to be dropped without a lock.
    fn park(&self, owner: For, back: Back, is_done: bool) -> Vec<Back> {
        let mut closed = Vec::new();
        let mut parked = self.parked.lock();
        if is_done && back.is_free() {
            closed.extend(parked.keep_idle(owner, back));
            return closed;
        }
        back.settle();
        parked.apart.push_back((owner, back));
        for _ in 0..LOOKED_AT {
            match parked.apart.pop_front() {
                Some((owner, back)) if back.is_settled() => closed.extend(parked.keep_idle(owner, back)),
                Some(kept) => parked.apart.push_back(kept),
                None => break,
            }
        }
        if parked.apart.len() > APART_MAX {
            closed.extend(parked.apart.pop_front().map(|(_, back)| back));
        }
        closed
    }
}

impl Parked {
    fn idle(&mut self, owner: For) -> &mut Vec<Back> {
        match owner {
            For::Request => &mut self.idle_for_requests,
            For::Session => &mut self.idle_for_sessions,
        }
    }

    /// Gives the way back back when there are enough.
    fn keep_idle(&mut self, owner: For, back: Back) -> Option<Back> {
        let idle = self.idle(owner);
        if idle.len() >= IDLE_MAX {
            return Some(back);
        }
        idle.push(back);
        None
    }
}

impl Back {
    fn new(heard: Heard) -> Self {
        let (answers, inbound) = mpsc::channel(ANSWERS_MAX);
        let wire = Arc::new(Wire { heard, answers, lent: Mutex::default(), is_settled: AtomicBool::new(false) });
        let running = serve_directly(Nobody, Pipe { wire: Arc::clone(&wire), inbound }, None);
        let copies = copies::of(running.peer());
        Self { running, wire, copies, introduced: None }
    }

    /// Whether no handler can speak by it: none has a copy of its peer, and nothing said by one waits.
    fn is_free(&self) -> bool {
        self.copies.are_as_before(copies::of(self.running.peer()))
    }

    /// Has the loop tell when it has taken everything that was said so far. Nothing waits for it here: a message is in
    /// the loop's queue once its future was polled.
    fn settle(&self) {
        self.wire.is_settled.store(false, Ordering::Release);
        let settled = ServerNotification::CustomNotification(CustomNotification::new(SETTLED, None));
        let said = pin!(self.running.peer().send_notification(settled));
        let _ = said.poll(&mut Context::from_waker(Waker::noop()));
    }

    fn is_settled(&self) -> bool {
        self.wire.is_settled.load(Ordering::Acquire) && self.is_free()
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
        // Always something, or the handler would see what the session before had said.
        if let Some(info) = introduction(said) {
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

    /// The handler runs.
    pub(super) fn begun(&mut self) {
        self.is_done = false;
    }

    /// The handler came to its end by itself.
    pub(super) fn done(&mut self) {
        self.is_done = true;
    }

    /// Brings an answer: the result of a question, or its error.
    pub(super) async fn answer(&self, question: &Question, answer: Result<Value, Value>) {
        let Some(back) = &self.back else { return };
        let message = match answer {
            Ok(result) => json!({ "jsonrpc": "2.0", "id": question.id, "result": result }),
            Err(error) => json!({ "jsonrpc": "2.0", "id": question.id, "error": error }),
        };
        let message = serde_json::from_value(message).unwrap_or_else(|error| {
            let message = format!("the client's answer is none to {}: {error}", question.method);
            JsonRpcMessage::error(ErrorData::internal_error(message, None), Some(question.id.clone()))
        });
        if back.wire.answers.send(message).await.is_ok()
            && let Some(lending) = back.wire.lent.lock().as_mut()
        {
            lending.open.retain(|id| *id != question.id);
        }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        let Some(back) = self.back.take() else { return };
        let open = back.wire.lent.lock().take().map(|lending| lending.open).unwrap_or_default();
        // A loop remembers questions until they have an answer.
        for id in open {
            if back.wire.answers.try_send(over(id)).is_err() {
                return;
            }
        }
        let closed = self.backs.park(self.owner, back, self.is_done);
        drop(closed);
    }
}

/// What a session said of itself, as rmcp has it; of one that left out what rmcp wants, so much as there is.
fn introduction(said: &Value) -> Option<InitializeRequestParams> {
    serde_json::from_value(said.clone()).ok().or_else(|| {
        let unknown = json!({ "name": "unknown", "version": "unknown" });
        let least = |capabilities: &Value| {
            json!({ "protocolVersion": said["protocolVersion"], "capabilities": capabilities, "clientInfo": unknown })
        };
        let with_capabilities = serde_json::from_value(least(&said["capabilities"])).ok();
        with_capabilities.or_else(|| serde_json::from_value(least(&json!({}))).ok())
    })
}
