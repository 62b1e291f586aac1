//! A call while it speaks: it runs, and what it says comes out in order, its answer last. Who polls it decides where that
//! goes: to the client's connection, to the log of a stream, or both.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use tokio::time::{Instant, Sleep, sleep_until};

use crate::{
    mcp::{pending::Voice, router::Answer},
    outbox::Message,
};

/// The least time between two progress reports to one client; of those that come faster the newest is sent.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(10);

/// So much is sent before more is taken out of the outbox: a tool may fill it as fast as it is emptied.
const EVENT_BYTES_SENT: usize = 16 * 1024;

pub(crate) type Running = Pin<Box<dyn Future<Output = Answer> + Send>>;

/// A call that runs and speaks.
pub(crate) struct Speaking {
    pub(crate) voice: Voice,
    /// `None` when it is over.
    call: Option<Running>,
    pace: Pace,
    /// The tool lets the connection go as soon as the client can come back.
    pub(crate) wants_release: bool,
}

/// What came out of a call at one moment.
#[derive(Default)]
pub(crate) struct Spoken {
    pub(crate) said: Vec<Bytes>,
    /// The call is over.
    pub(crate) end: Option<Answer>,
}

impl Spoken {
    /// All messages, the answer last; each with whether it is that.
    pub(crate) fn messages(self) -> impl Iterator<Item = (Bytes, bool)> {
        let answer = self.end.filter(|answer| answer.payload.len() > 0);
        let answer = answer.map(|answer| (answer.payload.into_bytes(), true));
        self.said.into_iter().map(|said| (said, false)).chain(answer)
    }
}

impl Speaking {
    pub(crate) fn new(voice: Voice, call: Running) -> Self {
        Self { voice, call: Some(call), pace: Pace::default(), wants_release: false }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.call.is_none()
    }

    /// The call's end without an answer: its work is dropped.
    pub(crate) fn give_up(&mut self) {
        self.call = None;
    }

    /// The same call for somebody else to poll; here it is over.
    pub(crate) fn hand_over(&mut self) -> Self {
        Self { voice: self.voice.clone(), call: self.call.take(), pace: Pace::default(), wants_release: false }
    }

    /// What the call says next, or its end with all that it said until then.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Spoken> {
        let Some(call) = &mut self.call else { return Poll::Ready(Spoken::default()) };
        // The call first: what it says while it is polled goes out with this event and not the next.
        let end = match call.as_mut().poll(cx) {
            Poll::Ready(answer) => Some(answer),
            Poll::Pending => None,
        };
        let mut said = Vec::new();
        if end.is_some() {
            self.call = None;
            for message in self.voice.outbox.close() {
                if message != Message::Release {
                    said.push(self.voice.encode(&message).into());
                }
            }
            return Poll::Ready(Spoken { said, end });
        }
        let mut bytes = 0;
        loop {
            let due = self.pace.is_due(cx);
            match self.voice.outbox.poll_next(cx, due) {
                Poll::Ready(Message::Release) => {
                    if self.voice.session.is_some() {
                        self.wants_release = true;
                        return Poll::Ready(Spoken { said, end: None });
                    }
                }
                Poll::Ready(message) => {
                    if matches!(message, Message::Progress { .. }) {
                        self.pace.restart();
                    }
                    let json = self.voice.encode(&message);
                    bytes += json.len();
                    said.push(json.into());
                    if bytes >= EVENT_BYTES_SENT {
                        return Poll::Ready(Spoken { said, end: None });
                    }
                }
                Poll::Pending if said.is_empty() => return Poll::Pending,
                Poll::Pending => return Poll::Ready(Spoken { said, end: None }),
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
