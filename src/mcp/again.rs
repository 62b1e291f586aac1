//! Calls that are run again: their instance has gone, their client has come back here, and what they call may be run
//! twice. The request is read once more, as if today's caller had sent it, so all that holds for a call holds again: who
//! may call, what arguments must be, limits, the audit trail. But for rates: it is no other call.
//!
//! What a second run says goes on where the first was broken off, under the numbers that follow. Progress that the client
//! was told is not told again. Log messages are those of this run, from its beginning, and questions are asked again:
//! nobody knows what the first run had of the answers. The answer is the one end that the call has.

use std::{future::poll_fn, net::IpAddr, pin::pin, sync::Arc, time::Instant};

use bytes::Bytes;
use serde_json::Value;

use crate::{
    call::{Caller, Share},
    identity::Identity,
    mcp::{
        events::EventLog,
        head::{Field, Head, Via},
        router::{Router, Step},
        speaking::Speaking,
    },
};

/// Who came back for the rest of a call.
#[derive(Clone, Debug)]
pub(crate) struct Asker {
    pub(super) caller: Caller,
    identity: Option<Identity>,
    share: Share,
    peer: Option<IpAddr>,
    session_id: String,
}

impl Asker {
    pub(crate) fn of(head: &Head<'_>) -> Self {
        Self {
            caller: head.caller.clone(),
            identity: head.identity.cloned(),
            share: head.share,
            peer: head.peer,
            session_id: head.session_id.text().unwrap_or_default().to_owned(),
        }
    }

    pub(super) fn identity(&self) -> Option<&Identity> {
        self.identity.as_ref()
    }

    /// What stands around the request when it is read again.
    fn head(&self) -> Head<'_> {
        Head {
            via: Via::Http,
            peer: self.peer,
            caller: &self.caller,
            identity: self.identity.as_ref(),
            share: self.share,
            protocol_version: Field::Absent,
            method: Field::Absent,
            name: Field::Absent,
            session_id: Field::Is(self.session_id.as_bytes()),
            params: &(),
            rates: None,
            takes_events: true,
            at_once: false,
        }
    }
}

impl Asker {
    /// The same around the request of a task, which has no stream and no session.
    pub(super) fn head_of_task(&self) -> Head<'_> {
        Head { via: Via::Stdio, session_id: Field::Absent, takes_events: false, ..self.head() }
    }
}

/// What the client was told of the first run.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Told {
    /// The last progress that is known.
    progress: Option<f64>,
    /// Messages after it that only the client has.
    missing: u64,
}

impl Told {
    /// Of the newest messages of a stream, the newest first, after which the client has some more.
    pub(super) fn of(messages: &[Bytes], missing: u64) -> Self {
        let progress = messages.iter().find_map(|message| {
            let message: Value = serde_json::from_slice(message).ok()?;
            message["params"]["progress"].as_f64().filter(|_| message["method"] == "notifications/progress")
        });
        Self { progress, missing }
    }
}

/// Runs a call again, to its end; what it says is kept in `log`. Whether its client has taken it back is asked once it can
/// be taken back here, so that no cancel falls in between. It has no place among the requests that are served: its
/// client holds one for a stream, and its tool's limits count it.
///
/// # Errors
/// It may not be run any more: why.
pub(super) async fn run(
    router: &Arc<Router>,
    log: &EventLog,
    asker: &Asker,
    request: &[u8],
    told: Told,
    is_cancelled: impl Future<Output = bool>,
) -> Result<(), String> {
    let call = match router.message(&asker.head(), None, request, Instant::now()) {
        Step::Call(call) => call,
        Step::Done(answer) => return Err(why(&answer.payload.into_bytes())),
        Step::Feed(_) | Step::Batch(_) => return Err("it is no call".into()),
    };
    let Some(voice) = call.voice() else { return Err("it has no stream".into()) };
    if is_cancelled.await {
        log.finish(None).await;
        return Ok(());
    }
    voice.outbox.go_on_after(told.progress, told.missing);
    let runs = Arc::clone(router);
    let mut speaking = Speaking::new(voice, Box::pin(async move { call.run(&runs).await }));
    let mut over = pin!(router.drain.until_over());
    let mut is_over = false;
    while !speaking.is_over() {
        let spoken = poll_fn(|cx| {
            // As for every call without a connection: nobody else wakes it at the end of a drain.
            is_over = is_over || over.as_mut().poll(cx).is_ready();
            if log.poll_lost(cx).is_ready() {
                speaking.give_up(); // it seemed to be gone in its turn, and another runs it now
            }
            speaking.poll(cx)
        });
        let mut answer = None;
        for (json, is_answer) in spoken.await.messages() {
            if is_answer {
                answer = Some(json);
            } else {
                log.push(json);
            }
        }
        if speaking.is_over() {
            log.finish(answer).await;
        }
    }
    Ok(())
}

/// What a refusal says.
pub(super) fn why(answer: &[u8]) -> String {
    let answer: Value = serde_json::from_slice(answer).unwrap_or_default();
    answer["error"]["message"].as_str().unwrap_or("it is answered without being run").to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_progress_that_was_told_is_found() {
        let message = |text: &str| Bytes::from(text.to_owned());
        let progress = |value: f64| {
            message(&format!(
                r#"{{"method":"notifications/progress","params":{{"progressToken":1,"progress":{value}}}}}"#
            ))
        };
        let log = message(r#"{"method":"notifications/message","params":{"data":{"progress":9}}}"#);
        let told = Told::of(&[log.clone(), message("no JSON"), progress(3.0), progress(2.0)], 2);
        assert_eq!((told.progress, told.missing), (Some(3.0), 2));
        assert_eq!(Told::of(&[log], 0).progress, None);
    }
}
