//! Calls that are answered where their message is read: of tools that need no waiting, and those whose result is kept.
//! What else a call may need (a lane, an outbox, questions, tasks) is `calling`'s.

use std::time::Instant;

use serde_json::Value;

use crate::{
    audit::Entry,
    call::{ClientCapabilities, Ctx, Deadline},
    dispatch::{Answered, Arguments, ServedTool},
    error::CallError,
    mcp::{
        calling::said_of,
        code::Refusal,
        ending::{BoundTo, Ending, ended_with},
        router::{Handled, Request, Router, Step},
        session::Session,
        wire::IdField,
    },
    telemetry::calls::Phase,
};

impl Router {
    /// The answer of a call that has one here and now; else its arguments.
    pub(super) fn at_once(
        &self,
        request: &Request<'_, '_>,
        tool: &ServedTool,
        mut arguments: Arguments,
        session: Option<&Session>,
    ) -> Result<Result<Step, Arguments>, Refusal> {
        if !request.head.at_once {
            return Ok(Err(arguments));
        }
        let (log_level, client) = said_of(request, session)?;
        // What came of a client's answers is its own.
        if tool.cache.is_some()
            && !request.params.is_retry
            && let Some(kept) = self.dispatch.kept(tool, &mut arguments, request.head.caller)
        {
            let entry =
                self.admitted(request.head, request.id, request.method, request.params, true, &arguments.value)?;
            return Ok(Ok(self.answer_at_once(request, tool, client, Ok(kept), entry)));
        }
        let says_nothing = log_level.is_none() && matches!(request.params.meta.progress_token, IdField::Absent);
        if tool.needs_no_waiting() && (says_nothing || !request.head.takes_events) {
            return self.call_at_once(request, tool, arguments.value, client).map(Ok);
        }
        Ok(Err(arguments))
    }

    /// Answers a call that needs no waiting and says nothing before it is done. Most calls of a busy server end here, so
    /// they need no future, and nothing that other threads touch too is counted for them but the tool's own figures.
    fn call_at_once(
        &self,
        request: &Request<'_, '_>,
        tool: &ServedTool,
        arguments: Value,
        client: ClientCapabilities,
    ) -> Handled {
        let head = request.head;
        let mut ctx = Ctx::new(head.caller.clone(), Deadline::after(request.now, tool.timeout_ms), client);
        ctx.share = head.share;
        ctx.changes = Some(self.changes());
        let entry = self.admitted(head, request.id, request.method, request.params, true, &arguments)?;
        let began = Instant::now();
        let outcome = self.dispatch.call_now(tool, arguments, ctx);
        if let Some(meter) = &tool.tool.work.meter {
            meter.took(Phase::Run, began.elapsed());
        }
        Ok(self.answer_at_once(request, tool, client, outcome, entry))
    }

    fn answer_at_once(
        &self,
        request: &Request<'_, '_>,
        tool: &ServedTool,
        client: ClientCapabilities,
        outcome: Result<Answered, CallError>,
        entry: Option<Box<Entry>>,
    ) -> Step {
        let Request { id, era, .. } = *request;
        let meter = tool.tool.work.meter.as_deref();
        if let Some(meter) = meter {
            meter.ended(ended_with(&outcome));
        }
        let ending = Ending { router: self, id, era, meter, hints: None, client, bound_to: BoundTo::Nothing };
        Step::Done(ending.answer(outcome, entry))
    }
}
