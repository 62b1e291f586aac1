//! Calls: from a request's parameters to a [`PendingCall`], and from that to an answer. A call runs a tool, makes a
//! prompt, reads a resource, or is answered by a hosted handler; on the way they are all the same. What a call says while
//! it runs leaves through an outbox, which is made only where somebody may hear it. What needs no waiting is answered in
//! `at_once`.

use std::{
    future::{Future, poll_fn},
    pin::pin,
    sync::Arc,
    task::Poll,
    time::Instant,
};

use bytes::Bytes;
use serde_json::{Map, Value};
use tokio::sync::oneshot;

use crate::{
    audit::{Entry, Outcome},
    call::{Caller, ClientCapabilities, Ctx, Deadline, Kind, Lane, Raw, Reply},
    dispatch::{Answered, Arguments, Served, ServedTool, Work},
    error::CallError,
    input::{Exchange, Memory, Required, Rounds},
    mcp::{
        MODERN_VERSION,
        again::Asker,
        code::{self, Era, Refusal},
        elsewhere,
        encode::{self, OwnedId, Payload},
        events::EventLog,
        head::{Head, Via, param_disagreement},
        router::{Answer, Handled, Request, Router, Step, invalid_log_level},
        seal,
        session::{InFlight, Session},
        tasking::{self, Deferral},
        trail,
        wire::{self, Id, IdField, Params, Text},
    },
    outbox::{LogLevel, Message, Outbox},
    tasks::{Handle, Record},
    telemetry::calls::{CallMeter, Ended, Phase},
};

/// The largest request that is kept for another instance to run it again.
const AGAIN_BYTES_MAX: usize = 64 * 1024;
/// How much of a name that is not one of ours is repeated in an answer.
const NAME_TOLD_CHARS_MAX: usize = 64;

/// A call whose parameters were found good, not started yet.
#[derive(Debug)]
pub(crate) struct PendingCall {
    target: Target,
    arguments: Arguments,
    ctx: Ctx,
    id: OwnedId,
    era: Era,
    in_flight: Option<InFlight>,
    progress_token: Option<OwnedId>,
    /// The session whose streams a client can come back to.
    session: Option<Arc<Session>>,
    /// What the state of another round is good for; made where there can be one.
    bound_to: BoundTo,
    deferral: Option<Arc<Deferral>>,
    /// Its line in the audit trail. Boxed, since most servers have none and every call is moved about.
    entry: Option<Box<Entry>>,
    /// The request, where another instance may have to run it again. Boxed likewise.
    again: Option<Box<Bytes>>,
    /// Who asks for a task, where it may have to be run again here. Boxed likewise.
    asker: Option<Box<Asker>>,
}

/// What a call runs.
#[derive(Clone, Debug)]
pub(super) enum Target {
    Tool(Arc<ServedTool>),
    /// A prompt, a resource, or a hosted handler's method.
    Work(Arc<Work>, Hints),
}

pub(super) fn ended_with(outcome: &Result<Answered, CallError>) -> Ended {
    Ended::with(outcome.as_ref().map(|answered| &answered.reply))
}

/// What the state of a call is bound to that may ask for more.
#[derive(Debug)]
pub(super) enum BoundTo {
    /// It cannot ask.
    Nothing,
    This(Vec<u8>),
    /// To be made of the caller, the method, the name and the arguments when it asks, which is seldom.
    Request(Caller, Box<str>, Box<str>, Value),
}

/// Whether a result says how long it may be kept, from 2026-07-28 on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hints {
    No,
    /// Ours are added.
    Ours,
    /// The handler's own, or ours when it has none.
    Missing,
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

impl Router {
    /// `tools/call`. `scope` is where the call is noted while it runs, so that it can be cancelled by its id.
    pub(super) fn call_tool(&self, request: Request<'_, '_>, scope: Option<Arc<Session>>) -> Handled {
        let Text::Is(name) = &request.params.name else {
            return Err(Refusal::invalid_params(false, "params.name is missing or not text"));
        };
        let tools = self.dispatch.tools();
        let tool = tools.for_caller(name, request.head.identity).ok_or_else(|| {
            let told = name.chars().take(NAME_TOLD_CHARS_MAX).collect();
            Refusal::invalid_params(false, CallError::UnknownTool(told).to_string())
        })?;
        if let Some(rates) = request.head.rates {
            rates.tool(name)?;
        }
        if request.era == Era::Modern && request.head.via == Via::Http {
            for param in &tool.header_params {
                let field = request.head.params.param(&param.header);
                if let Some(fault) = param_disagreement(param, field, request.params.arguments.as_ref()) {
                    return Err(Refusal::header_mismatch(fault));
                }
            }
        }
        let arguments = arguments(request.params)?;
        let arguments = match self.at_once(&request, tool, arguments.into(), scope.as_deref())? {
            Ok(step) => return Ok(step),
            Err(arguments) => arguments,
        };
        self.call(request, Target::Tool(Arc::clone(tool)), arguments, scope)
    }

    /// The call's line in the audit trail, begun, where there is one.
    pub(super) fn admitted(
        &self,
        head: &Head<'_>,
        method: &str,
        params: &Params<'_>,
        tool: bool,
        arguments: &Value,
    ) -> Result<Option<Box<Entry>>, Refusal> {
        let Some(audit) = &self.audit else { return Ok(None) };
        let about = trail::About { method, name: trail::name_of(params), tool, arguments: Some(arguments) };
        Ok(Some(Box::new(audit.admit(&trail::head(head, about)).map_err(trail::unwritable)?)))
    }

    /// `prompts/get`.
    pub(super) fn get_prompt(&self, request: Request<'_, '_>, scope: Option<Arc<Session>>) -> Handled {
        let Text::Is(name) = &request.params.name else {
            return Err(Refusal::invalid_params(false, "params.name is missing or not text"));
        };
        if let Some(work) = self.features.prompt(name) {
            let target = Target::Work(Arc::clone(work), Hints::No);
            let arguments = arguments(request.params)?;
            return self.call(request, target, arguments.into(), scope);
        }
        let told: String = name.chars().take(NAME_TOLD_CHARS_MAX).collect();
        self.call_hosted(request, "prompts/get", Hints::No, scope).unwrap_or_else(|| {
            let message = format!("unknown prompt: {told:?}; prompts/list names those that there are");
            Err(Refusal::invalid_params(false, message))
        })
    }

    /// `resources/read`.
    pub(super) fn read_resource(&self, request: Request<'_, '_>, scope: Option<Arc<Session>>) -> Handled {
        let Text::Is(uri) = &request.params.uri else {
            return Err(Refusal::invalid_params(false, "params.uri is missing or not text"));
        };
        if let Some((work, arguments)) = self.features.resource(uri) {
            let target = Target::Work(Arc::clone(work), Hints::Ours);
            return self.call(request, target, arguments.into(), scope);
        }
        if let Some(members) = self.skills.read(uri) {
            let modern = request.era == Era::Modern;
            let members = if modern { self.with_hints(members) } else { members };
            self.note_answered(&request, uri)?;
            return Ok(self.fixed(request.id, request.era, &members));
        }
        let (uri, era) = (uri.clone().into_owned(), request.era);
        self.call_hosted(request, "resources/read", Hints::Missing, scope).unwrap_or_else(|| {
            match code::of_call(&CallError::NoResource(uri), era, false) {
                Some(Err(refusal)) => Err(refusal),
                _ => Err(Refusal::method_not_found(era, "resources/read")),
            }
        })
    }

    /// A method that a hosted handler answers; `None` when none does.
    pub(super) fn call_hosted(
        &self,
        request: Request<'_, '_>,
        method: &str,
        hints: Hints,
        scope: Option<Arc<Session>>,
    ) -> Option<Handled> {
        let work = self.methods.get(method)?;
        let mut params = wire::member(request.body, self.shape, "params").unwrap_or_else(|| Value::Object(Map::new()));
        if let Some(params) = params.as_object_mut() {
            params.remove("_meta");
            if !method.starts_with("tasks/") {
                params.remove("inputResponses");
                params.remove("requestState");
            }
        }
        Some(self.call(request, Target::Work(Arc::clone(work), hints), params.into(), scope))
    }

    /// Makes a call ready.
    fn call(
        &self,
        request: Request<'_, '_>,
        target: Target,
        arguments: Arguments,
        scope: Option<Arc<Session>>,
    ) -> Handled {
        let (log_level, client) = said_of(&request, scope.as_deref())?;
        let Request { id, era, params, head, body, now, method } = request;
        let (work, timeout_ms) = match &target {
            Target::Tool(tool) => (&tool.tool.work, tool.timeout_ms),
            Target::Work(work, _) => (work, self.request_timeout_ms),
        };
        let progress_token = match params.meta.progress_token {
            IdField::Is(token) => Some(OwnedId::from(token)),
            _ => None,
        };
        let mut ctx = Ctx::new(head.caller.clone(), Deadline::after(now, timeout_ms), client);
        let talks = era == Era::Legacy && work.lane == Lane::Async;
        if head.takes_events && (progress_token.is_some() || log_level.is_some() || talks) {
            let outbox = Outbox::new(progress_token.is_some(), log_level, self.stream_buffer_bytes_max);
            ctx.outbox = Some(Arc::new(outbox.with_patience(Arc::clone(&self.patience))));
        }
        ctx.share = head.share;
        ctx.changes = Some(self.changes());
        let mut bound_to = BoundTo::Nothing;
        if work.lane != Lane::Inline {
            if era == Era::Modern && !method.starts_with("tasks/") && (params.is_retry || !client.is_empty()) {
                let name = params.name.get().or_else(|| params.uri.get()).unwrap_or_default();
                let binding = seal::binding(ctx.caller(), method, name, &arguments.value);
                let rounds = if params.is_retry { self.rounds(body, &binding)? } else { Rounds::default() };
                ctx.exchange = Exchange::Rounds(Arc::new(rounds));
                bound_to = BoundTo::This(binding);
            } else if let (Era::Legacy, Some(session), true) = (era, &scope, ctx.outbox.is_some()) {
                ctx.exchange = Exchange::Stream(Arc::clone(session) as _);
            }
        }
        let mut deferral = None;
        if let (Some(tasks), Target::Tool(tool), Lane::Async, true) =
            (&self.tasks, &target, work.lane, client.contains(ClientCapabilities::TASKS) && era == Era::Modern)
        {
            let call = Deferral::new(Arc::clone(tasks), ctx.caller().clone(), ctx.share, Arc::clone(tool));
            ctx.deferred = Some(Arc::clone(&call) as _);
            deferral = Some(call);
        }
        let id = OwnedId::from(id);
        if work.wants_raw {
            ctx.raw = Some(Box::new(Self::raw(&id, params.meta.whole.take(), era, scope.as_deref())));
            if era == Era::Modern && matches!(bound_to, BoundTo::Nothing) {
                let name = params.name.get().or_else(|| params.uri.get()).unwrap_or_default();
                bound_to = BoundTo::Request(head.caller.clone(), method.into(), name.into(), arguments.value.clone());
            }
        }
        if method.starts_with("tasks/") {
            ctx.raw.get_or_insert_default().may_call = tasking::may_call(&self.dispatch.tools(), head.identity);
        }
        // What is answered at once cannot be cancelled, nor meet another of its id.
        let in_flight = match &scope {
            Some(session) if work.lane != Lane::Inline => Some(session.begin(id.clone()).ok_or_else(|| {
                Refusal::invalid_request("a request with this id is still running in this session; ids must differ")
            })?),
            _ => None,
        };
        let is_shared = method == "tasks/get" && self.tasks.as_ref().is_some_and(|tasks| tasks.is_shared());
        let asker = is_shared.then(|| Box::new(Asker::of(head)));
        let is_tool = matches!(target, Target::Tool(_));
        let entry = self.admitted(head, method, params, is_tool, &arguments.value)?;
        let session = scope.filter(|_| era == Era::Legacy && head.via == Via::Http);
        Ok(Step::Call(PendingCall {
            target,
            arguments,
            ctx,
            id,
            era,
            in_flight,
            progress_token,
            session,
            bound_to,
            deferral,
            entry,
            again: None,
            asker,
        }))
    }

    /// The answers and the state that a call made again brings along.
    fn rounds(&self, body: &[u8], bound_to: &[u8]) -> Result<Rounds, Refusal> {
        let mut params = match wire::member(body, self.shape, "params") {
            Some(Value::Object(params)) => params,
            _ => Map::new(),
        };
        let answers = match params.remove("inputResponses") {
            None => Map::new(),
            Some(Value::Object(answers)) => answers,
            Some(_) => return Err(Refusal::invalid_params(false, "params.inputResponses must be an object")),
        };
        let memory = match params.remove("requestState") {
            None => Memory::default(),
            Some(Value::String(sealed)) => self.sealer.open(&sealed, bound_to)?,
            Some(_) => return Err(Refusal::invalid_params(false, "params.requestState must be text")),
        };
        Ok(Rounds::new(memory, answers))
    }

    /// The request as it came.
    fn raw(id: &OwnedId, meta: Option<Map<String, Value>>, era: Era, session: Option<&Session>) -> Raw {
        let version = match (era, session) {
            (Era::Legacy, Some(session)) => session.version(),
            _ => MODERN_VERSION,
        };
        Raw {
            version,
            id: id.to_value(),
            meta: meta.unwrap_or_default(),
            initialize: session.and_then(Session::initialize).map(Arc::clone),
            parts: None,
            may_call: None,
        }
    }
}

/// What a call is answered with, and to whom.
pub(super) struct Ending<'a> {
    pub(super) router: &'a Router,
    pub(super) id: Id<'a>,
    pub(super) era: Era,
    pub(super) meter: Option<&'a CallMeter>,
    /// Of what is no tool.
    pub(super) hints: Option<Hints>,
    pub(super) client: ClientCapabilities,
    pub(super) bound_to: BoundTo,
}

impl Ending<'_> {
    /// The end of a call that is told to the client; empty for one that was taken back.
    pub(super) fn answer(&self, outcome: Result<Answered, CallError>, entry: Option<Box<Entry>>) -> Answer {
        let began = Instant::now();
        let (answer, outcome) = self.encode(outcome);
        if let Some(entry) = entry {
            entry.finish(outcome);
        }
        if let Some(meter) = self.meter {
            meter.took(Phase::Encode, began.elapsed());
        }
        answer
    }

    /// With the word for it in the audit trail.
    fn encode(&self, outcome: Result<Answered, CallError>) -> (Answer, Outcome<'static>) {
        let refused =
            |refusal: &Refusal| (Answer::refused(Some(self.id), refusal), Outcome::Error(i64::from(refusal.code)));
        let answered = match outcome {
            Ok(answered) => self.with_hints(answered),
            Err(CallError::InputRequired(required)) => match self.ask(&required) {
                Ok(reply) => Answered { reply, served: Served::Fresh },
                Err(refusal) => return refused(&refusal),
            },
            Err(error) => match code::of_call(&error, self.era, self.hints.is_none()) {
                Some(Ok(reply)) => Answered { reply, served: Served::Fresh },
                Some(Err(refusal)) => return refused(&refusal),
                None => return (Answer::ok(Payload::default()), Outcome::Cancelled),
            },
        };
        let outcome = if answered.reply.is_error { Outcome::ToolError } else { Outcome::Ok };
        (Answer::ok(self.router.encoder.reply(self.id, self.era, &answered)), outcome)
    }

    /// A result that says how long it may be kept, where it must.
    fn with_hints(&self, mut answered: Answered) -> Answered {
        let Some(hints) = self.hints else { return answered };
        let wanted = match hints {
            Hints::No => false,
            Hints::Ours => true,
            Hints::Missing => !has_member(&answered.reply.fields, "ttlMs"),
        };
        if wanted && self.era == Era::Modern && answered.reply.is_final() {
            let separator: &[u8] = if answered.reply.fields.is_empty() { b"" } else { b"," };
            answered.reply.fields = [&answered.reply.fields, separator, &self.router.catalogue.hints].concat().into();
        }
        answered
    }

    /// Questions, as the result that has the client make the call again.
    fn ask(&self, required: &Required) -> Result<Reply, Refusal> {
        let needs = required.requests.values().fold(ClientCapabilities::default(), |all, r| all.union(need_of(r)));
        let missing = needs.missing_from(self.client);
        if !missing.is_empty() {
            let error = CallError::MissingCapability(missing);
            if let Some(Err(refusal)) = code::of_call(&error, self.era, false) {
                return Err(refusal);
            }
        }
        let made;
        let bound_to = match &self.bound_to {
            BoundTo::This(bound_to) => bound_to,
            BoundTo::Request(caller, method, name, arguments) => {
                made = seal::binding(caller, method, name, arguments);
                &made
            }
            BoundTo::Nothing => {
                let message = "input is required, and this request has no way to ask for it";
                return Err(Refusal::new(200, code::INTERNAL_ERROR, message));
            }
        };
        let mut members = Map::new();
        if !required.requests.is_empty() {
            members.insert("inputRequests".into(), Value::Object(required.requests.clone()));
        }
        if !required.memory.is_empty() || required.requests.is_empty() {
            let sealed = self.router.sealer.seal(&required.memory, bound_to);
            let sealed =
                sealed.ok_or_else(|| Refusal::new(200, code::INTERNAL_ERROR, "the call's state has no JSON form"))?;
            members.insert("requestState".into(), sealed.into());
        }
        let json = Value::Object(members).to_string();
        let fields = Bytes::copy_from_slice(&json.as_bytes()[1..json.len() - 1]);
        Ok(Reply { kind: Kind::InputRequired, ..Reply::of(fields) })
    }
}

/// What a client must be able to do to answer a question.
fn need_of(request: &Value) -> ClientCapabilities {
    match request.get("method").and_then(Value::as_str) {
        Some("sampling/createMessage") => ClientCapabilities::SAMPLING,
        Some("elicitation/create") => ClientCapabilities::ELICITATION,
        Some("roots/list") => ClientCapabilities::ROOTS,
        _ => ClientCapabilities::default(),
    }
}

fn has_member(fields: &[u8], name: &str) -> bool {
    let whole = [b"{", fields, b"}"].concat();
    serde_json::from_slice::<std::collections::HashMap<String, serde::de::IgnoredAny>>(&whole)
        .is_ok_and(|members| members.contains_key(name))
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

fn arguments(params: &mut Params<'_>) -> Result<Value, Refusal> {
    match params.arguments.take() {
        None => Ok(Value::Object(Map::new())),
        Some(arguments @ Value::Object(_)) => Ok(arguments),
        Some(_) => Err(Refusal::invalid_params(false, "params.arguments must be an object")),
    }
}

/// The level of log messages that the client asked for, and what it can do.
pub(super) fn said_of(
    request: &Request<'_, '_>,
    session: Option<&Session>,
) -> Result<(Option<LogLevel>, ClientCapabilities), Refusal> {
    match (request.era, session) {
        (Era::Legacy, Some(session)) => Ok((session.log_level(), session.client)),
        _ => {
            let params = &request.params;
            Ok((asked_log_level(params)?, params.meta.client_capabilities.unwrap_or_default()))
        }
    }
}

fn asked_log_level(params: &Params<'_>) -> Result<Option<LogLevel>, Refusal> {
    match &params.meta.log_level {
        Text::Absent => Ok(None),
        level => level.get().and_then(LogLevel::parse).map(Some).ok_or_else(invalid_log_level),
    }
}
