//! Runs one tool in its lane, by its deadline, with its panics contained: a panic is an error reply, and the next call
//! works.

use std::{
    any::Any,
    future::poll_fn,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use serde_json::Value;

use crate::{
    call::{Ctx, Deadline, Lane, Reply},
    dispatch::{bulkhead::Inside, deadline::until_extended, polls::Polls, pool::Pool},
    error::CallError,
    telemetry::{calls::Phase, rarely::Rarely},
    tool::{Outcome, Run, Running, Work},
};

/// Runs tools.
#[derive(Debug)]
pub(crate) struct Runner {
    pub(crate) pool: Pool,
    pub(crate) result_bytes_max: usize,
    pub(crate) polls: Polls,
}

impl Runner {
    /// Runs a tool to its end, which has its `place` until it returns, also when the future is dropped before.
    pub(crate) async fn run(
        &self,
        work: &Arc<Work>,
        arguments: Value,
        ctx: Ctx,
        place: Option<Arc<Inside>>,
    ) -> Outcome {
        let reply = match (&work.run, work.lane) {
            (Run::Sync(_), Lane::Pool) => self.pool.run(work, arguments, ctx, place).await?,
            (Run::Sync(_), _) => {
                let _ran = Ran::of(work);
                run_sync(work, arguments, ctx)?
            }
            (Run::Async(start), _) => run_async(work, &self.polls, |ctx| start(arguments, ctx), ctx).await?,
        };
        self.fits(work, reply)
    }

    /// Runs what returns when it is done, on this thread.
    pub(crate) fn run_now(&self, work: &Work, arguments: Value, ctx: Ctx) -> Outcome {
        self.fits(work, run_sync(work, arguments, ctx)?)
    }

    fn fits(&self, work: &Work, reply: Reply) -> Outcome {
        if reply.len() <= self.result_bytes_max {
            return Ok(reply);
        }
        tracing::warn!(name = %work.name, bytes = reply.len(), "a result is over limits.result_bytes_max");
        Err(CallError::Tool(format!(
            "the result is {} bytes, more than the {} that this server sends; ask for less at once",
            reply.len(),
            self.result_bytes_max
        )))
    }
}

/// Runs a tool that returns when it is done, on this thread.
pub(super) fn run_sync(work: &Work, arguments: Value, ctx: Ctx) -> Outcome {
    let Run::Sync(run) = &work.run else { return Err(CallError::Internal) };
    catch_unwind(AssertUnwindSafe(|| run(arguments, ctx))).unwrap_or_else(|payload| Err(panicked(work, payload)))
}

async fn run_async(work: &Arc<Work>, polls: &Polls, start: impl FnOnce(Ctx) -> Running, ctx: Ctx) -> Outcome {
    let (deadline, waits) = (ctx.deadline(), ctx.waits());
    if deadline.passed(Instant::now()) {
        return Err(CallError::DeadlineBeforeStart);
    }
    // Watched like a poll: what a tool does before its first await holds this thread too.
    let starting = polls.begin(work);
    let started = catch_unwind(AssertUnwindSafe(|| start(ctx)));
    starting.end();
    let running = match started {
        Ok(running) => running,
        Err(payload) => return Err(panicked(work, payload)),
    };
    let mut running = Contained { running: Some(running), work, polls, ran: None };
    let contained = poll_fn(move |cx| running.poll(cx));
    until_extended(deadline, || waits.extra_time(), contained).await.unwrap_or_else(|| Err(timed_out(work, deadline)))
}

/// A tool's future, whose panics end here, also those of what it holds when it is dropped.
struct Contained<'w> {
    running: Option<Running>,
    work: &'w Arc<Work>,
    polls: &'w Polls,
    /// From the first poll to the end of the last.
    ran: Option<(Instant, Instant)>,
}

/// Measures how long a tool runs, however it ends.
struct Ran<'w> {
    work: &'w Work,
    began: Instant,
}

impl<'w> Ran<'w> {
    fn of(work: &'w Work) -> Self {
        Self { work, began: Instant::now() }
    }
}

impl Drop for Ran<'_> {
    fn drop(&mut self) {
        if let Some(meter) = &self.work.meter {
            meter.took(Phase::Run, self.began.elapsed());
        }
    }
}

impl Contained<'_> {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Outcome> {
        let Some(running) = &mut self.running else { return Poll::Ready(Err(CallError::Internal)) };
        let polling = self.polls.begin(self.work);
        let polled = catch_unwind(AssertUnwindSafe(|| running.as_mut().poll(cx)));
        let (began, ended) = polling.end();
        self.ran = Some((self.ran.map_or(began, |(first, _)| first), ended));
        match polled.unwrap_or_else(|payload| Poll::Ready(Err(panicked(self.work, payload)))) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(outcome) => Poll::Ready(if self.end() { outcome } else { Err(CallError::Internal) }),
        }
    }

    /// Drops the future; false when that panicked.
    fn end(&mut self) -> bool {
        let running = self.running.take();
        let ended = catch_unwind(AssertUnwindSafe(|| drop(running)));
        ended.map_err(|payload| panicked(self.work, payload)).is_ok()
    }
}

impl Drop for Contained<'_> {
    fn drop(&mut self) {
        self.end();
        if let (Some(meter), Some((began, ended))) = (&self.work.meter, self.ran) {
            meter.took(Phase::Run, ended - began);
        }
    }
}

pub(super) fn timed_out(work: &Work, deadline: Deadline) -> CallError {
    tracing::debug!(name = %work.name, limit_ms = deadline.limit_ms(), "a call was stopped at its deadline");
    CallError::TimedOut { limit_ms: deadline.limit_ms() }
}

/// What a tool threw may itself panic when it is dropped, and what that throws is not dropped at all.
fn panicked(work: &Work, payload: Box<dyn Any + Send>) -> CallError {
    if let Err(thrown) = catch_unwind(AssertUnwindSafe(|| drop(payload))) {
        std::mem::forget(thrown);
    }
    static RARELY: Rarely = Rarely::new();
    if let Some(left_out) = RARELY.may(Instant::now()) {
        tracing::error!(left_out, name = %work.name, "a tool panicked; its call got an error, others go on");
    }
    CallError::Internal
}
