//! Batches, which only 2025-03-26 has: several messages in one array, answered with one array. Its calls run side by
//! side; what they say before they are done has no place in one answer, so they are not asked to say it.

use std::{future::poll_fn, pin::Pin, sync::Arc, task::Poll, time::Instant};

use serde_json::value::RawValue;

use crate::{
    call::Caller,
    mcp::{
        code::Refusal,
        encode::Payload,
        head::{Field, Head},
        legacy::{self, OwnSession},
        router::{Answer, Router, Step},
    },
};

/// The revision that has them.
const VERSION: &str = "2025-03-26";
/// Messages in one batch.
const MESSAGES_MAX: usize = 100;

type Running<'a> = Pin<Box<dyn Future<Output = Answer> + Send + 'a>>;

/// Messages of one batch, each answered or ready to run.
#[derive(Debug)]
pub(crate) struct Batch {
    steps: Vec<Step>,
}

/// Whether a body is an array, by its first byte that says something.
pub(super) fn is_one(body: &[u8]) -> bool {
    body.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b'[')
}

impl Router {
    /// Takes a batch apart.
    pub(super) fn batch(
        &self,
        head: &Head<'_>,
        own: Option<&OwnSession>,
        body: &[u8],
        now: Instant,
    ) -> Result<Step, Refusal> {
        let refused = || {
            Refusal::invalid_request("a batch; only sessions of 2025-03-26 have them, so send each message on its own")
        };
        let spoken = head.protocol_version.text();
        if !matches!(head.protocol_version, Field::Absent) && spoken != Some(VERSION) {
            return Err(refused());
        }
        let session = legacy::session(head, &self.sessions, own, &Caller::ANONYMOUS, now);
        if !session.is_ok_and(|session| session.version() == VERSION) {
            return Err(refused());
        }
        let parts: Vec<&RawValue> = serde_json::from_slice(body)
            .map_err(|error| Refusal::new(400, super::code::PARSE_ERROR, format!("not JSON: {error}")))?;
        if parts.is_empty() || parts.len() > MESSAGES_MAX {
            let message = format!("a batch of {} messages; it must have 1 to {MESSAGES_MAX}", parts.len());
            return Err(Refusal::invalid_request(message));
        }
        let head = Head { takes_events: false, ..*head };
        let step = |part: &&RawValue| {
            let text = part.get().as_bytes();
            if is_one(text) {
                return Step::Done(Answer::refused(None, &Refusal::invalid_request("a batch inside a batch")));
            }
            self.message(&head, own, text, now)
        };
        Ok(Step::Batch(Batch { steps: parts.iter().map(step).collect() }))
    }
}

impl Batch {
    /// All answers in one, in the order of their messages. 202 when there was nothing to answer.
    pub(crate) async fn run(self, router: &Arc<Router>) -> Answer {
        let mut answers: Vec<Option<Answer>> = Vec::with_capacity(self.steps.len());
        let mut running: Vec<(usize, Running<'_>)> = Vec::new();
        for (at, step) in self.steps.into_iter().enumerate() {
            match step {
                Step::Done(answer) => answers.push(Some(answer)),
                Step::Call(call) => {
                    running.push((at, Box::pin(call.run(router))));
                    answers.push(None);
                }
                // Neither can be in a batch: one is of a newer revision, the other was refused above.
                Step::Feed(_) | Step::Batch(_) => answers.push(None),
            }
        }
        poll_fn(|cx| {
            running.retain_mut(|(at, call)| match call.as_mut().poll(cx) {
                Poll::Ready(answer) => {
                    answers[*at] = Some(answer);
                    false
                }
                Poll::Pending => true,
            });
            if running.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        let mut array = Vec::new();
        for answer in answers.into_iter().flatten().filter(|answer| answer.payload.len() > 0) {
            array.push(if array.is_empty() { b'[' } else { b',' });
            array.extend_from_slice(&answer.payload.into_bytes());
        }
        if array.is_empty() {
            return Answer::accepted();
        }
        array.push(b']');
        Answer::ok(Payload::from(array))
    }
}
