//! A call on its way to the client: JSON when it is over before it says anything, an event stream from the moment it
//! does. The stream owns the running call, so that nothing is spawned and the client's leaving drops the work.

use std::{
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use hyper::Response;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::{
    front::{
        Place,
        body::Body,
        connection::Connection,
        headers::Takes,
        reply::{self, push_event},
    },
    mcp::{
        calling::{PendingCall, Voice},
        router::Answer,
    },
    outbox::Message,
};

/// The least time between two progress reports to one client; of those that come faster the newest is sent.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(10);

/// So much is sent before more is taken out of the outbox: a tool may fill it as fast as it is emptied.
const EVENT_BYTES_SENT: usize = 16 * 1024;

type Running = Pin<Box<dyn Future<Output = Answer> + Send>>;

/// Runs a call and answers in the form that it needs.
pub(super) async fn run(conn: &Arc<Connection>, call: PendingCall, takes: Takes, place: Place) -> Response<Body> {
    let Some(voice) = call.voice() else {
        let answer = call.run(&conn.front.router).await;
        return finish(answer, takes);
    };
    let owner = Arc::clone(conn);
    let call = Box::pin(async move { call.run(&owner.front.router).await });
    let mut stream = CallStream { voice, call: Some(call), first: None, pace: Pace::default(), _place: place };
    match poll_fn(|cx| stream.poll(cx)).await {
        // It said nothing before it was done.
        Spoken { events, end: Some(answer) } if events.is_empty() => finish(answer, takes),
        spoken => {
            stream.first = spoken.into_event();
            reply::events(Body::events(stream))
        }
    }
}

fn finish(answer: Answer, takes: Takes) -> Response<Body> {
    if answer.payload.len() == 0 { reply::silence(takes) } else { reply::message(answer, takes) }
}

/// A running call, as events.
pub(crate) struct CallStream {
    voice: Voice,
    /// `None` when it is over.
    call: Option<Running>,
    /// What had been said before the stream began.
    first: Option<Bytes>,
    pace: Pace,
    _place: Place,
}

/// What came out of a call at one moment.
#[derive(Default)]
struct Spoken {
    events: Vec<u8>,
    /// The call is over.
    end: Option<Answer>,
}

impl Spoken {
    /// All of it as bytes of the stream; `None` when there is nothing left to say.
    fn into_event(self) -> Option<Bytes> {
        let mut bytes = self.events;
        if let Some(answer) = self.end.filter(|answer| answer.payload.len() > 0) {
            push_event(&mut bytes, &answer.payload.into_bytes());
        }
        (!bytes.is_empty()).then(|| bytes.into())
    }
}

impl CallStream {
    /// The next bytes of the stream; `None` at its end.
    pub(crate) fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if let Some(first) = self.first.take() {
            return Poll::Ready(Some(first));
        }
        self.poll(cx).map(Spoken::into_event)
    }

    /// What the call says next, or its end with all that it said until then.
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Spoken> {
        let Some(call) = &mut self.call else { return Poll::Ready(Spoken::default()) };
        // The call first: what it says while it is polled goes out with this event and not the next.
        let end = match call.as_mut().poll(cx) {
            Poll::Ready(answer) => Some(answer),
            Poll::Pending => None,
        };
        let mut events = Vec::new();
        if end.is_some() {
            self.call = None;
            for message in self.voice.outbox.close() {
                push_event(&mut events, &self.voice.encode(&message));
            }
            return Poll::Ready(Spoken { events, end });
        }
        loop {
            let due = self.pace.is_due(cx);
            match self.voice.outbox.poll_next(cx, due) {
                Poll::Ready(message) => {
                    if matches!(message, Message::Progress { .. }) {
                        self.pace.restart();
                    }
                    push_event(&mut events, &self.voice.encode(&message));
                    if events.len() >= EVENT_BYTES_SENT {
                        return Poll::Ready(Spoken { events, end: None });
                    }
                }
                Poll::Pending if events.is_empty() => return Poll::Pending,
                Poll::Pending => return Poll::Ready(Spoken { events, end: None }),
            }
        }
    }
}

/// Spaces progress reports.
#[derive(Default)]
struct Pace {
    /// Runs while it is too early for the next.
    timer: Option<Pin<Box<Sleep>>>,
}

impl Pace {
    fn restart(&mut self) {
        let at = Instant::now() + PROGRESS_INTERVAL;
        match &mut self.timer {
            Some(timer) => timer.as_mut().reset(at),
            None => self.timer = Some(Box::pin(sleep_until(at))),
        }
    }

    /// Whether the next may go; if not, the task is woken when it may.
    fn is_due(&mut self, cx: &mut Context<'_>) -> bool {
        self.timer.as_mut().is_none_or(|timer| timer.as_mut().poll(cx).is_ready())
    }
}
