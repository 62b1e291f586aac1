//! A call that is ready: what it will say, and its run. How it came to be is `calling`'s business, and what it is answered
//! with `ending`'s.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::Arc,
    task::Poll,
    time::Instant,
};

use bytes::Bytes;
use tokio::sync::oneshot;

use crate::{
    audit::{Entry, Outcome},
    call::Ctx,
    dispatch::{Answered, Arguments, ServedTool, Work},
    error::CallError,
    mcp::{
        again::Asker,
        code::{Era, Refusal},
        elsewhere,
        encode::{self, OwnedId},
        ending::{BoundTo, Ending, Hints, ended_with},
        events::EventLog,
        router::{Answer, Router},
        session::{InFlight, Session},
        tasking::{self, Deferral},
    },
    outbox::{Message, Outbox},
    tasks::{Handle, Record},
    telemetry::calls::CallMeter,
};

/// The largest request that is kept for another instance to run it again.
const AGAIN_BYTES_MAX: usize = 64 * 1024;

/// A call whose parameters were found good, not started yet.
#[derive(Debug)]
pub(crate) struct PendingCall {
    pub(super) target: Target,
    pub(super) arguments: Arguments,
    pub(super) ctx: Ctx,
    pub(super) id: OwnedId,
    pub(super) era: Era,
    pub(super) in_flight: Option<InFlight>,
    pub(super) progress_token: Option<OwnedId>,
    /// The session whose streams a client can come back to.
    pub(super) session: Option<Arc<Session>>,
    /// What the state of another round is good for; made where there can be one.
    pub(super) bound_to: BoundTo,
    pub(super) deferral: Option<Arc<Deferral>>,
    /// Its line in the audit trail. Boxed, since most servers have none and every call is moved about.
    pub(super) entry: Option<Box<Entry>>,
    /// The request, where another instance may have to run it again. Boxed likewise.
    pub(super) again: Option<Box<Bytes>>,
    /// Who asks for a task, where it may have to be run again here. Boxed likewise.
    pub(super) asker: Option<Box<Asker>>,
}

/// What a call runs.
#[derive(Clone, Debug)]
pub(super) enum Target {
    Tool(Arc<ServedTool>),
    /// A prompt, a resource, or a hosted handler's method.
    Work(Arc<Work>, Hints),
}

/// What a call says before it is done, as messages.
#[derive(Clone, Debug)]
pub(crate) struct Voice {
    pub(crate) outbox: Arc<Outbox>,
    progress_token: Option<OwnedId>,
    /// The request that it is, in a session.
    request: Option<OwnedId>,
    /// Whose client can come back to the stream when its connection ends.
    pub(crate) session: Option<Arc<Session>>,
    /// The tool that speaks.
    tool: Option<Arc<ServedTool>>,
    /// The request, where another instance may have to run it again.
    again: Option<Box<Bytes>>,
}

impl Voice {
    /// Opens a stream of the session that keeps what is said, and says when other instances find it, or will not.
    pub(crate) fn open_log(&self) -> Option<(Arc<EventLog>, Option<oneshot::Receiver<()>>)> {
        let session = self.session.as_ref()?;
        let log = session.live().open_stream(false, Instant::now())?;
        if let Some(tool) = &self.tool {
            log.note_tool(tool.of());
        }
        let again = self.again.as_deref().cloned();
        let about = || elsewhere::about(self.request.as_ref(), log.tool(), again.is_some());
        let opened = session.share_stream(&log, about, again.clone().unwrap_or_default());
        Some((log, opened))
    }

    pub(crate) fn encode(&self, message: &Message) -> Vec<u8> {
        encode::notification(message, self.progress_token.as_ref())
    }
}

impl PendingCall {
    /// What the call will say before it is done, when its client may hear it.
    pub(crate) fn voice(&self) -> Option<Voice> {
        let outbox = self.ctx.outbox.clone()?;
        let tool = if let Target::Tool(tool) = &self.target { Some(Arc::clone(tool)) } else { None };
        let (progress_token, session) = (self.progress_token.clone(), self.session.clone());
        let request = session.is_some().then(|| self.id.clone());
        Some(Voice { outbox, progress_token, request, session, tool, again: self.again.clone() })
    }

    /// Keeps the request for another instance to run it again, should this one die: of a tool with which that may be
    /// done, in a session that others know, when its client can come back for the rest.
    pub(crate) fn may_run_again(&mut self, body: &[u8]) {
        if let Some(deferral) = self.deferral.as_ref().filter(|_| body.len() <= AGAIN_BYTES_MAX) {
            deferral.may_run_again(body);
        }
        if let (Target::Tool(tool), Some(session)) = (&self.target, &self.session)
            && tool.runs_again
            && self.ctx.outbox.is_some()
            && session.is_shared()
            && body.len() <= AGAIN_BYTES_MAX
        {
            self.again = Some(Box::new(Bytes::copy_from_slice(body)));
        }
    }

    /// The call of a task that another instance has run until now.
    ///
    /// # Errors
    /// It cannot be a task: its handle, back.
    pub(super) fn resume_task(self, record: &Record, handle: Handle) -> Result<Self, Handle> {
        match &self.deferral {
            Some(deferral) => deferral.resume(record, handle),
            None => return Err(handle),
        }
        Ok(self)
    }

    /// Gives a hosted handler the HTTP request's head.
    pub(crate) fn wants_parts(&self) -> bool {
        self.ctx.raw.is_some()
    }

    /// See [`PendingCall::wants_parts`].
    pub(crate) fn give_parts(&mut self, parts: http::request::Parts) {
        if let Some(raw) = &mut self.ctx.raw {
            raw.parts = Some(parts);
        }
    }

    /// Answers the call without running it.
    pub(crate) fn refuse(self, refusal: &Refusal) -> Answer {
        if let Some(entry) = self.entry {
            entry.finish(Outcome::Error(i64::from(refusal.code)));
        }
        Answer::refused(Some(self.id.as_id()), refusal)
    }

    /// Runs the call where this future is awaited. Dropping it cancels the call; so does the client's taking it back,
    /// and the end of the drain's grace.
    pub(crate) async fn run(self, router: &Arc<Router>) -> Answer {
        let Self { target, arguments, ctx, id, era, in_flight, bound_to, deferral, entry, asker, .. } = self;
        let asked = asker.map(|asker| (asker, arguments.value.clone()));
        let (meter, hints) = match &target {
            Target::Tool(tool) => (tool.tool.work.meter.as_deref(), None),
            Target::Work(_, hints) => (None, Some(*hints)),
        };
        let ending = Ending { router, id: id.as_id(), era, meter, hints, client: ctx.client(), bound_to };
        let watch = meter.map(CallMeter::watch);
        let call = pin!(async {
            if let Some(deferral) = deferral {
                let (router, target) = (Arc::clone(router), target.clone());
                let call = Box::pin(async move {
                    match &target {
                        Target::Tool(tool) => router.dispatch.call(tool, arguments, ctx).await,
                        Target::Work(work, _) => router.dispatch.run(work, arguments.value, ctx).await,
                    }
                });
                return deferral.run(call).await;
            }
            match &target {
                Target::Tool(tool) => router.dispatch.call(tool, arguments, ctx).await,
                Target::Work(work, _) => router.dispatch.run(work, arguments.value, ctx).await,
            }
        });
        let outcome = match &in_flight {
            None => unless_over(router, call).await,
            Some(in_flight) => tokio::select! {
                biased;
                outcome = unless_over(router, call) => outcome,
                () = in_flight.cancelled() => Err(CallError::Cancelled),
            },
        };
        if let Some(watch) = watch {
            watch.ended(ended_with(&outcome));
        }
        if let (Some((asker, params)), Ok(_)) = (asked, &outcome) {
            tasking::look_after(router, *asker, &params);
        }
        ending.answer(outcome, entry)
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
