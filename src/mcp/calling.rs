//! `tools/call`: from its parameters to a [`PendingCall`], and from that to an answer. What a tool says while it runs
//! leaves through an outbox, which is made only when the client asked to hear something.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::Arc,
    task::Poll,
    time::Instant,
};

use serde_json::{Map, Value};

use crate::{
    call::{Caller, Ctx, Deadline, Lane},
    dispatch::{Answered, Served, ServedTool},
    error::CallError,
    mcp::{
        code::{self, Era, Refusal},
        encode::{self, OwnedId, Payload},
        head::{Head, Via, param_disagreement},
        router::{Answer, Handled, Router, Step, invalid_log_level},
        session::{InFlight, Session},
        wire::{Id, IdField, Params, Text},
    },
    outbox::{LogLevel, Message, Outbox},
};

/// How much of a name that is not one of ours is repeated in an answer.
const NAME_TOLD_CHARS_MAX: usize = 64;

/// A call whose parameters were found good, not started yet.
#[derive(Debug)]
pub(crate) struct PendingCall {
    tool: Arc<ServedTool>,
    arguments: Value,
    ctx: Ctx,
    id: OwnedId,
    era: Era,
    in_flight: Option<InFlight>,
    progress_token: Option<OwnedId>,
}

/// What a call says before it is done, as messages.
#[derive(Clone, Debug)]
pub(crate) struct Voice {
    pub(crate) outbox: Arc<Outbox>,
    progress_token: Option<OwnedId>,
}

impl Voice {
    pub(crate) fn encode(&self, message: &Message) -> Vec<u8> {
        encode::notification(message, self.progress_token.as_ref())
    }
}

impl Router {
    /// Makes a call ready. `scope` is where it is noted while it runs, so that it can be cancelled by its id.
    pub(super) fn call(
        &self,
        id: Id<'_>,
        era: Era,
        params: Params<'_>,
        head: &Head<'_>,
        scope: Option<Arc<Session>>,
        now: Instant,
    ) -> Handled {
        let Text::Is(name) = &params.name else {
            return Err(Refusal::invalid_params(false, "params.name is missing or not text"));
        };
        let tools = self.dispatch.tools();
        let tool = tools.get(name).ok_or_else(|| {
            let told = name.chars().take(NAME_TOLD_CHARS_MAX).collect();
            Refusal::invalid_params(false, CallError::UnknownTool(told).to_string())
        })?;
        if era == Era::Modern && head.via == Via::Http {
            for param in &tool.header_params {
                let field = head.params.param(&param.header);
                if let Some(fault) = param_disagreement(param, field, params.arguments.as_ref()) {
                    return Err(Refusal::header_mismatch(fault));
                }
            }
        }
        let (log_level, client) = match (era, &scope) {
            (Era::Legacy, Some(session)) => (session.log_level(), session.client),
            _ => (asked_log_level(&params)?, params.meta.client_capabilities.unwrap_or_default()),
        };
        let arguments = match params.arguments {
            None => Value::Object(Map::new()),
            Some(arguments @ Value::Object(_)) => arguments,
            Some(_) => return Err(Refusal::invalid_params(false, "params.arguments must be an object")),
        };
        let progress_token = match params.meta.progress_token {
            IdField::Is(token) => Some(OwnedId::from(token)),
            _ => None,
        };
        let mut ctx = Ctx::new(Caller::ANONYMOUS, Deadline::after(now, tool.timeout_ms), client);
        if head.takes_events && (progress_token.is_some() || log_level.is_some()) {
            ctx.outbox = Some(Arc::new(Outbox::new(progress_token.is_some(), log_level, self.stream_buffer_bytes_max)));
        }
        let id = OwnedId::from(id);
        // What is answered at once cannot be cancelled, nor meet another of its id.
        let in_flight = match scope.filter(|_| tool.tool.work.lane != Lane::Inline) {
            Some(session) => Some(session.begin(id.clone()).ok_or_else(|| {
                Refusal::invalid_request("a request with this id is still running in this session; ids must differ")
            })?),
            None => None,
        };
        Ok(Step::Call(PendingCall { tool: Arc::clone(tool), arguments, ctx, id, era, in_flight, progress_token }))
    }

    /// The end of a call that is told to the client; empty for one that was taken back.
    fn answer(&self, id: &OwnedId, era: Era, outcome: Result<Answered, CallError>) -> Answer {
        let answered = match outcome {
            Ok(answered) => answered,
            Err(error) => match code::of_call(&error, era) {
                Some(Ok(reply)) => Answered { reply, served: Served::Fresh },
                Some(Err(refusal)) => return Answer::refused(Some(id.as_id()), &refusal),
                None => return Answer::ok(Payload::default()),
            },
        };
        Answer::ok(self.encoder.reply(id.as_id(), era, &answered))
    }
}

impl PendingCall {
    /// What the call will say before it is done, when its client asked to hear it.
    pub(crate) fn voice(&self) -> Option<Voice> {
        let outbox = self.ctx.outbox.clone()?;
        Some(Voice { outbox, progress_token: self.progress_token.clone() })
    }

    /// Runs the call where this future is awaited. Dropping it cancels the call; so does the client's taking it back,
    /// and the end of the drain's grace.
    pub(crate) async fn run(self, router: &Router) -> Answer {
        let Self { tool, arguments, ctx, id, era, in_flight, .. } = self;
        let call = pin!(router.dispatch.call(&tool, arguments, ctx));
        let outcome = match &in_flight {
            None => unless_over(router, call).await,
            Some(in_flight) => tokio::select! {
                biased;
                outcome = unless_over(router, call) => outcome,
                () = in_flight.cancelled() => Err(CallError::Cancelled),
            },
        };
        router.answer(&id, era, outcome)
    }
}

/// The call's outcome, or the refusal that ends it when the grace of a drain is over. The connection is woken then, so
/// that a look at a flag at each poll is all that this needs.
async fn unless_over<F: Future<Output = Result<Answered, CallError>> + Unpin>(
    router: &Router,
    mut call: F,
) -> Result<Answered, CallError> {
    poll_fn(|cx| match pin!(&mut call).poll(cx) {
        Poll::Pending if router.drain.is_over() => {
            router.drain.count_cut();
            Poll::Ready(Err(CallError::Draining))
        }
        polled => polled,
    })
    .await
}

fn asked_log_level(params: &Params<'_>) -> Result<Option<LogLevel>, Refusal> {
    match &params.meta.log_level {
        Text::Absent => Ok(None),
        level => level.get().and_then(LogLevel::parse).map(Some).ok_or_else(invalid_log_level),
    }
}
