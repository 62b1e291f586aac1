//! The answer to a call that is handed over, as it is made: what the call says, what it asks, and its outcome. The call
//! itself is a task of its own, so that a reader who is slow does not hold it up; it ends with this.

use std::{
    collections::VecDeque,
    convert::Infallible,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::{
    task::JoinHandle,
    time::{Sleep, sleep_until},
};

use super::{back::Back, listener::Outcome, session::Place, wire};
use crate::{
    call::Reply,
    error::CallError,
    outbox::{Message, Outbox},
};

/// Between two reports of progress.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(10);

/// An answer.
#[derive(Default)]
pub(super) struct Body {
    ready: VecDeque<Bytes>,
    call: Option<Running>,
}

/// A call that runs.
struct Running {
    task: JoinHandle<Result<Reply, CallError>>,
    outbox: Option<Arc<Outbox>>,
    back: Arc<Back>,
    /// Runs while it is too early for the next report of progress.
    pace: Option<Pin<Box<Sleep>>>,
    _place: Place,
}

impl Body {
    /// One that is there.
    pub(super) fn whole(bytes: Bytes) -> Self {
        Self { ready: VecDeque::from([bytes]), call: None }
    }

    /// That of a call, which begins to run.
    pub(super) fn of_call(run: Outcome, outbox: Option<Arc<Outbox>>, back: Arc<Back>, place: Place) -> Self {
        let task = tokio::spawn(run);
        Self { ready: VecDeque::new(), call: Some(Running { task, outbox, back, pace: None, _place: place }) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort(); // of one that is over, this is nothing
        self.back.end();
    }
}

impl Running {
    /// What it says next; its outcome is the last, with what it said before.
    fn poll(&mut self, cx: &mut Context<'_>, ready: &mut VecDeque<Bytes>) -> Poll<bool> {
        if let Poll::Ready((number, question)) = self.back.poll_next(cx) {
            ready.push_back(wire::question(number, &question));
            return Poll::Ready(false);
        }
        if let Some(outbox) = &self.outbox {
            let is_due = self.pace.as_mut().is_none_or(|pace| pace.as_mut().poll(cx).is_ready());
            if let Poll::Ready(message) = outbox.poll_next(cx, is_due) {
                if matches!(message, Message::Progress { .. }) {
                    let at = (Instant::now() + PROGRESS_INTERVAL).into();
                    match &mut self.pace {
                        Some(pace) => pace.as_mut().reset(at),
                        None => self.pace = Some(Box::pin(sleep_until(at))),
                    }
                }
                ready.push_back(wire::message(message));
                return Poll::Ready(false);
            }
        }
        let outcome = ready!(Pin::new(&mut self.task).poll(cx));
        if let Some(outbox) = &self.outbox {
            ready.extend(outbox.close().into_iter().map(wire::message));
        }
        let outcome = outcome.unwrap_or_else(|error| {
            tracing::error!(%error, "a call that another instance handed over failed");
            Err(CallError::Internal)
        });
        ready.push_back(wire::outcome(outcome));
        Poll::Ready(true)
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let this = self.get_mut();
        loop {
            if let Some(bytes) = this.ready.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(bytes))));
            }
            let Some(call) = &mut this.call else { return Poll::Ready(None) };
            if ready!(call.poll(cx, &mut this.ready)) {
                this.call = None;
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.ready.is_empty() && self.call.is_none()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.call {
            Some(_) => SizeHint::default(),
            None => SizeHint::with_exact(self.ready.iter().map(|bytes| bytes.len() as u64).sum()),
        }
    }
}
