//! Calls: from a request's parameters to a [`PendingCall`]. A call runs a tool, makes a prompt, reads a resource, or is
//! answered by a hosted handler; on the way they are all the same. What it says while it runs leaves through an outbox,
//! which is made only where somebody may hear it. What needs no waiting is answered in `at_once`; how a call is run is
//! `pending`'s business, and what is answered `ending`'s.

use std::sync::Arc;

use serde_json::{Map, Value};

use crate::{
    audit::Entry,
    call::{ClientCapabilities, Ctx, Deadline, Lane, Raw},
    dispatch::Arguments,
    error::CallError,
    input::{Exchange, Memory, Rounds},
    mcp::{
        MODERN_VERSION,
        again::Asker,
        code::{self, Era, Refusal},
        encode::OwnedId,
        ending::{BoundTo, Hints},
        head::{Head, Via, param_disagreement},
        pending::{PendingCall, Target},
        router::{Handled, Request, Router, Step, invalid_log_level},
        seal,
        session::Session,
        tasking::{self, Deferral},
        trail,
        wire::{self, Id, IdField, Params, Text},
    },
    outbox::{LogLevel, Outbox},
};

/// How much of a name that is not one of ours is repeated in an answer.
const NAME_TOLD_CHARS_MAX: usize = 64;

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
        id: Id<'_>,
        method: &str,
        params: &Params<'_>,
        tool: bool,
        arguments: &Value,
    ) -> Result<Option<Box<Entry>>, Refusal> {
        let Some(audit) = &self.audit else { return Ok(None) };
        let (id, arguments) = (Some(id), Some(arguments));
        let about = trail::About { id, method, name: trail::name_of(params), tool, arguments };
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
        let (sent_id, id) = (id, OwnedId::from(id));
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
        let entry = self.admitted(head, sent_id, method, params, is_tool, &arguments.value)?;
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
