//! Calls of tools that are placed on other instances: handed over, and run here only when nobody else can take them and
//! this instance can.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::{
    call::Ctx,
    cluster::forward::{Forwarder, Wanted},
    dispatch::{Answered, Core, Dispatch, Served, ServedTool, deadline::until_extended},
    error::CallError,
    tool::{Outcome, Placement},
};

/// For the other instance to say that the time is up.
const LAST_WORD: Duration = Duration::from_millis(500);

impl Dispatch {
    /// Hands calls of tools that are not here over from now on.
    pub(crate) fn hand_over(&self, forwarder: &Arc<Forwarder>) {
        let _ = self.core.forwarder.set(Arc::clone(forwarder)); // said once
    }

    /// Those who hand over, where tools are placed.
    pub(crate) fn forwarder(&self) -> Option<&Arc<Forwarder>> {
        self.core.forwarder.get()
    }

    /// Runs a call that another instance handed over: it is not handed on, and what it comes to is kept there.
    pub(crate) async fn call_here(&self, tool: &ServedTool, arguments: Value, ctx: Ctx) -> Result<Answered, CallError> {
        if let Some(fault) = tool.arguments.fault(&arguments) {
            return Err(CallError::Tool(fault));
        }
        let reply = self.core.run_here(tool, arguments, ctx).await?;
        Ok(Answered { reply, served: Served::Fresh })
    }
}

impl Core {
    /// Runs a tool that is placed elsewhere.
    pub(super) async fn run_elsewhere(
        &self,
        forwarder: &Forwarder,
        tool: &ServedTool,
        placement: &Placement,
        arguments: Value,
        ctx: Ctx,
    ) -> Outcome {
        let deadline = ctx.deadline();
        if deadline.passed(Instant::now()) {
            return Err(CallError::DeadlineBeforeStart);
        }
        let waits = ctx.waits();
        let extra = || waits.extra_time() + LAST_WORD;
        let wanted = Wanted {
            tool: tool.tool.name(),
            roles: placement.roles(),
            is_repeatable: tool.runs_again,
            is_last: !placement.is_fit(),
        };
        let called = until_extended(deadline, extra, forwarder.call(wanted, &arguments, &ctx)).await;
        match called {
            None => Err(CallError::TimedOut { limit_ms: deadline.limit_ms() }),
            Some(Ok(outcome)) => outcome,
            Some(Err(_)) if placement.is_fit() => self.run_here(tool, arguments, ctx).await,
            Some(Err(error)) => {
                forwarder.note_end(&error);
                Err(error)
            }
        }
    }
}
