//! Ways back from a call to the instance that has its client: questions to that client, and the wish to become a task.
//! Where the call runs, a question is a number and a place for its answer; where the client is, it is asked as if the
//! call ran there.

use std::{
    collections::{HashMap, VecDeque},
    future::Future,
    pin::Pin,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
    time::Duration,
};

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use tokio::sync::oneshot;

use super::wire::{Question, wrong_from_json, wrong_to_json};
use crate::{
    call::Ctx,
    error::CallError,
    input::{Answers, Defers, Exchange, Parks, Waiting, request_on_stream},
};

/// Questions of one call that are open at once.
const OPEN_MAX: usize = 32;

/// Where the call runs: its open questions.
#[derive(Debug, Default)]
pub(super) struct Back {
    state: Mutex<Open>,
    /// Nobody waits for the call any more.
    is_gone: AtomicBool,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    waiting: HashMap<u64, oneshot::Sender<Result<Value, Value>>>,
    /// Not sent yet. Those to the client go by the call's outbox.
    unsent: VecDeque<(u64, Question)>,
    waker: Option<Waker>,
}

impl Back {
    fn expect(&self) -> Option<(u64, oneshot::Receiver<Result<Value, Value>>)> {
        let mut state = self.state.lock();
        if state.waiting.len() >= OPEN_MAX || self.is_gone.load(Relaxed) {
            return None;
        }
        let (sender, answer) = oneshot::channel();
        let number = state.next;
        state.next += 1;
        state.waiting.insert(number, sender);
        Some((number, answer))
    }

    fn forget(&self, number: u64) {
        self.state.lock().waiting.remove(&number);
    }

    /// Asks what is no question to a client of a session.
    async fn ask(&self, question: Question) -> Result<Value, CallError> {
        let (number, answer) = self.expect().ok_or(CallError::Internal)?;
        let waker = {
            let mut state = self.state.lock();
            state.unsent.push_back((number, question));
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        match answer.await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(wrong)) => Err(wrong_from_json(wrong)),
            Err(_) => Err(CallError::Cancelled),
        }
    }

    /// The next question that is to be sent.
    pub(super) fn poll_next(&self, cx: &Context<'_>) -> Poll<(u64, Question)> {
        let mut state = self.state.lock();
        if let Some(next) = state.unsent.pop_front() {
            return Poll::Ready(next);
        }
        state.waker = Some(cx.waker().clone());
        Poll::Pending
    }

    /// Hands an answer to who waits for it; false when nobody does.
    pub(super) fn answered(&self, number: u64, answer: Result<Value, Value>) -> bool {
        let waiting = self.state.lock().waiting.remove(&number);
        waiting.is_some_and(|waiting| waiting.send(answer).is_ok())
    }

    /// Nobody waits for the call, so nobody answers it.
    pub(super) fn end(&self) {
        self.is_gone.store(true, Relaxed);
        self.state.lock().waiting.clear();
    }
}

/// A client that is asked by way of another instance.
#[derive(Debug)]
pub(super) struct Client(pub(super) Arc<Back>);

impl Answers for Client {
    fn expect(&self) -> Option<(u64, oneshot::Receiver<Result<Value, Value>>)> {
        self.0.expect()
    }

    fn forget(&self, id: u64) {
        self.0.forget(id);
    }
}

/// A call that becomes a task at another instance.
#[derive(Debug)]
pub(super) struct Deferred {
    back: Arc<Back>,
    /// How much more time it has as one.
    begun: OnceLock<Duration>,
}

impl Deferred {
    pub(super) fn new(back: Arc<Back>) -> Self {
        Self { back, begun: OnceLock::new() }
    }
}

impl Defers for Deferred {
    fn begin(&self) -> Waiting<'_, ()> {
        Box::pin(async {
            let begun = self.back.ask(Question::Task).await?;
            let _ = self.begun.set(Duration::from_millis(begun["extra_ms"].as_u64().unwrap_or_default()));
            Ok(())
        })
    }

    fn task(&self) -> Option<Arc<dyn Parks>> {
        self.begun.get().map(|_| Arc::new(Parked(Arc::clone(&self.back))) as _)
    }

    fn is_cancelled(&self) -> bool {
        self.back.is_gone.load(Relaxed)
    }

    fn extra_time(&self) -> Duration {
        self.begun.get().copied().unwrap_or_default()
    }
}

#[derive(Debug)]
struct Parked(Arc<Back>);

impl Parks for Parked {
    fn ask(&self, requests: Map<String, Value>) -> Waiting<'_, Map<String, Value>> {
        Box::pin(async {
            match self.0.ask(Question::Input(requests)).await? {
                Value::Object(answers) => Ok(answers),
                _ => Err(CallError::Internal),
            }
        })
    }
}

/// Where the client is: answers that are being made.
#[derive(Default)]
pub(super) struct Answering(FuturesUnordered<Pin<Box<dyn Future<Output = ()> + Send>>>);

impl Answering {
    /// One more, which is told whether there is room for it.
    pub(super) fn add<F: Future<Output = ()> + Send + 'static>(&mut self, make: impl FnOnce(bool) -> F) {
        let is_room = self.0.len() < OPEN_MAX;
        self.0.push(Box::pin(make(is_room)));
    }

    /// Returns when one more was made; never while there are none.
    pub(super) async fn next(&mut self) {
        if self.0.is_empty() {
            return std::future::pending().await;
        }
        self.0.next().await;
    }
}

/// What is answered when too much is asked at once.
pub(super) fn no_room() -> Result<Value, Value> {
    Err(json!({ "code": -32603, "message": "too many questions to this client are open at once" }))
}

/// Asks as if the call ran here.
pub(super) async fn answer(question: Question, ctx: &Ctx) -> Result<Value, Value> {
    match question {
        Question::Client { method, params } => match (&ctx.exchange, &ctx.outbox) {
            (Exchange::Stream(client), Some(outbox)) => {
                let answered = request_on_stream(client.as_ref(), outbox, &method, params).await;
                answered.unwrap_or_else(|error| Err(json!({ "code": -32603, "message": error.to_string() })))
            }
            _ => Err(json!({ "code": -32600, "message": "this client cannot be asked while its call runs" })),
        },
        Question::Task => {
            let deferred = ctx.deferred.as_ref().ok_or_else(|| wrong_to_json(CallError::Internal))?;
            deferred.begin().await.map_err(wrong_to_json)?;
            Ok(json!({ "extra_ms": deferred.extra_time().as_millis() as u64 }))
        }
        Question::Input(requests) => {
            let task = ctx.deferred.as_ref().and_then(|deferred| deferred.task());
            let task = task.ok_or_else(|| wrong_to_json(CallError::Internal))?;
            task.ask(requests).await.map(Value::Object).map_err(wrong_to_json)
        }
    }
}
