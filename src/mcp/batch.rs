//! Batches, which only 2025-03-26 has: several messages in one array, answered with one array. Its calls run side by
//! side; what they say before they are done has no place in one answer, so they are not asked to say it.

use std::{collections::VecDeque, future::poll_fn, pin::Pin, sync::Arc, task::Poll, time::Instant};

use serde_json::value::RawValue;

use crate::{
    mcp::{
        code::Refusal,
        encode::Payload,
        head::{Field, Head},
        legacy::{self, OwnSession},
        router::{Answer, Router, Step},
        wire,
    },
    telemetry::refusals::Reason,
};

/// The revision that has them.
const VERSION: &str = "2025-03-26";
/// Messages in one batch.
const MESSAGES_MAX: usize = 100;
/// Calls of one batch that run at once.
const RUNNING_MAX: usize = 4;

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
    /// The tool that each message of a batch calls, for who has to know it before the batch is taken in. None when a body
    /// is no batch that could be.
    pub(crate) fn tools_called(&self, body: &[u8]) -> Option<Vec<Option<String>>> {
        let parts: Vec<&RawValue> = is_one(body).then(|| serde_json::from_slice(body).ok()).flatten()?;
        let is_in_bounds = (1..=MESSAGES_MAX).contains(&parts.len());
        is_in_bounds.then(|| parts.iter().map(|part| self.tool_called(part.get().as_bytes())).collect())
    }

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
        let session = legacy::session(head, &self.sessions, own, head.caller, now);
        if !session.is_ok_and(|session| session.version() == VERSION) {
            return Err(refused());
        }
        let parts: Vec<&RawValue> = serde_json::from_slice(body)
            .map_err(|error| Refusal::new(400, super::code::PARSE_ERROR, format!("not JSON: {error}")))?;
        if parts.is_empty() || parts.len() > MESSAGES_MAX {
            let message = format!("a batch of {} messages; it must have 1 to {MESSAGES_MAX}", parts.len());
            return Err(Refusal::invalid_request(message));
        }
        let head = Head { takes_events: false, at_once: false, ..*head };
        let step = |(at, part): (usize, &&RawValue)| {
            let text = part.get().as_bytes();
            if at > 0
                && let Some(rates) = head.rates
                && let Err(refusal) = rates.another()
            {
                self.note_refusal(&head, text, &refusal);
                let id = wire::read(text, self.shape).0.request_id();
                return Step::Done(id.map_or_else(Answer::accepted, |id| Answer::refused(Some(id), &refusal)));
            }
            if is_one(text) {
                let refusal = Refusal::invalid_request("a batch inside a batch");
                self.note_refusal(&head, text, &refusal);
                return Step::Done(Answer::refused(None, &refusal));
            }
            let step = self.message(&head, own, text, now);
            if matches!(step, Step::Feed(_) | Step::Batch(_)) {
                self.note_refusal(&head, text, &no_stream());
            }
            step
        };
        Ok(Step::Batch(Batch { steps: parts.iter().enumerate().map(step).collect() }))
    }
}

impl Batch {
    /// All answers in one, in the order of their messages. 202 when there was nothing to answer. A batch has one place
    /// among the requests that are served, so that few of its calls run at once, and what it comes to has a limit. Each
    /// that was refused is told to `refused`, since the answer to all is none.
    pub(crate) async fn run(self, router: &Arc<Router>, refused: impl Fn(Reason)) -> Answer {
        let bytes_max = router.dispatch.result_bytes_max();
        let mut answers: Vec<Option<Answer>> = Vec::with_capacity(self.steps.len());
        let mut waiting = VecDeque::new();
        for (at, step) in self.steps.into_iter().enumerate() {
            answers.push(match step {
                Step::Done(answer) => Some(answer),
                Step::Call(call) => {
                    waiting.push_back((at, call));
                    None
                }
                Step::Feed(_) | Step::Batch(_) => Some(Answer::refused(None, &no_stream())),
            });
        }
        let mut bytes = 0;
        let mut running: Vec<(usize, Running<'_>)> = Vec::new();
        poll_fn(|cx| {
            loop {
                while running.len() < RUNNING_MAX
                    && let Some((at, call)) = waiting.pop_front()
                {
                    if bytes > bytes_max {
                        answers[at] = Some(call.refuse(&too_large(bytes_max)));
                    } else {
                        running.push((at, Box::pin(call.run(router))));
                    }
                }
                let before = running.len();
                running.retain_mut(|(at, call)| match call.as_mut().poll(cx) {
                    Poll::Ready(answer) => {
                        bytes += answer.payload.len();
                        answers[*at] = Some(answer);
                        false
                    }
                    Poll::Pending => true,
                });
                match running.len() {
                    0 if waiting.is_empty() => return Poll::Ready(()),
                    now if now == before => return Poll::Pending,
                    _ => {} // one is over, so the next may begin
                }
            }
        })
        .await;
        answers.iter().flatten().filter_map(|answer| answer.refused).for_each(refused);
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

fn no_stream() -> Refusal {
    Refusal::invalid_request("a stream cannot be opened in a batch; send it by itself")
}

fn too_large(bytes_max: usize) -> Refusal {
    let message = format!("the answers before this one are {bytes_max} bytes or more; send the call again by itself");
    Refusal::new(200, super::code::INTERNAL_ERROR, message)
}
