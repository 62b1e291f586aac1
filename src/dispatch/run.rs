//! Runs one tool in its lane, by its deadline, with its panics contained: a panic is an error reply, and the next call
//! works.

use std::{
    future::poll_fn,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    task::Poll,
    time::Instant,
};

use serde_json::Value;

use crate::{
    call::{Ctx, Deadline, Lane, Reply},
    dispatch::{deadline::until, pool::Pool},
    error::CallError,
    tool::{Outcome, Run, Running, registry::ServedTool},
};

/// Runs tools.
#[derive(Debug)]
pub(crate) struct Runner {
    pub(crate) pool: Pool,
    pub(crate) result_bytes_max: usize,
}

impl Runner {
    pub(crate) async fn run(&self, tool: &Arc<ServedTool>, arguments: Value, ctx: Ctx) -> Outcome {
        let reply = match (&tool.tool.run, tool.tool.lane) {
            (Run::Sync(_), Lane::Pool) => self.pool.run(tool, arguments, ctx).await?,
            (Run::Sync(_), _) => run_sync(tool, arguments, ctx)?,
            (Run::Async(start), _) => run_async(tool, |ctx| start(arguments, ctx), ctx).await?,
        };
        self.fits(tool, reply)
    }

    fn fits(&self, tool: &ServedTool, reply: Reply) -> Outcome {
        if reply.len() <= self.result_bytes_max {
            return Ok(reply);
        }
        tracing::warn!(tool = tool.tool.name(), bytes = reply.len(), "a result is over limits.result_bytes_max");
        Err(CallError::Tool(format!(
            "the result is {} bytes, more than the {} that this server sends; ask for less at once",
            reply.len(),
            self.result_bytes_max
        )))
    }
}

/// Runs a tool that returns when it is done, on this thread.
pub(super) fn run_sync(tool: &ServedTool, arguments: Value, ctx: Ctx) -> Outcome {
    let Run::Sync(run) = &tool.tool.run else { return Err(CallError::Internal) };
    catch_unwind(AssertUnwindSafe(|| run(arguments, ctx))).unwrap_or_else(|_| Err(panicked(tool)))
}

async fn run_async(tool: &ServedTool, start: impl FnOnce(Ctx) -> Running, ctx: Ctx) -> Outcome {
    let deadline = ctx.deadline();
    if deadline.passed(Instant::now()) {
        return Err(CallError::DeadlineBeforeStart);
    }
    let Ok(mut running) = catch_unwind(AssertUnwindSafe(|| start(ctx))) else { return Err(panicked(tool)) };
    let contained = poll_fn(move |cx| {
        catch_unwind(AssertUnwindSafe(|| running.as_mut().poll(cx)))
            .unwrap_or_else(|_| Poll::Ready(Err(panicked(tool))))
    });
    until(deadline, contained).await.unwrap_or_else(|| Err(timed_out(tool, deadline)))
}

pub(super) fn timed_out(tool: &ServedTool, deadline: Deadline) -> CallError {
    tracing::debug!(tool = tool.tool.name(), limit_ms = deadline.limit_ms(), "a call was stopped at its deadline");
    CallError::TimedOut { limit_ms: deadline.limit_ms() }
}

fn panicked(tool: &ServedTool) -> CallError {
    tracing::error!(tool = tool.tool.name(), "a tool panicked; its call got an error, others go on");
    CallError::Internal
}
