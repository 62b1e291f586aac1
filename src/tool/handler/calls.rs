//! From a call to a handler and back: rmcp's types on one side, ours on the other.

use std::{
    borrow::Cow,
    cmp::Reverse,
    collections::HashMap,
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::Poll,
};

use parking_lot::Mutex;
use rmcp::{
    RoleServer,
    model::{
        CallToolRequestParams, CallToolResponse, ClientRequest, ErrorCode, ErrorData, MetaObject, RequestId,
        RequestMetaObject, ServerConfig,
    },
    service::RequestContext,
};
use serde::Serialize;
use serde_json::{Map, Value, json};
use tokio::runtime;

use super::{
    Answered, Handler, Host, TOOLS_MAX,
    back::{Backs, For, Lent, Question},
    drive, own_meta,
};
use crate::{
    call::{ClientCapabilities, Ctx, Kind, Lane, Raw, Reply},
    error::CallError,
    input::{Answers, Exchange, Memory, Required, request_on_stream},
    outbox::Outbox,
    telemetry::calls::CallMeter,
    tool::{IntoReply, Outcome, Run, Running, Tool, Work, native::open_object, results::ResultSchema},
};

/// Rounds of questions of one call in a session, where they are driven here.
const ROUNDS_MAX: usize = 16;
const MODERN_VERSION: &str = "2026-07-28";

/// A handler and how it is called.
pub(super) struct Calls {
    host: Arc<dyn Host>,
    prefix: String,
    lanes: HashMap<String, Lane>,
    backs: Arc<Backs>,
    /// What is measured of its tools, by name: kept when they change, as long as there are not too many.
    meters: Mutex<HashMap<String, Arc<CallMeter>>>,
}

impl Calls {
    pub(super) fn new(handler: Handler, backs: Arc<Backs>) -> Self {
        let Handler { host, prefix, lanes } = handler;
        Self { host, prefix, lanes, backs, meters: Mutex::default() }
    }

    fn meter(&self, tool: &str) -> Arc<CallMeter> {
        let mut meters = self.meters.lock();
        if meters.len() >= TOOLS_MAX && !meters.contains_key(tool) {
            return Arc::default();
        }
        Arc::clone(meters.entry(tool.to_owned()).or_default())
    }

    #[cfg(test)]
    pub(super) fn ways_back_made(&self) -> usize {
        self.backs.made()
    }

    pub(super) fn info(&self) -> ServerConfig {
        self.host.info()
    }

    /// Whether the handler says that it can do this.
    pub(super) fn has(&self, capability: &str) -> bool {
        let capabilities = serde_json::to_value(self.host.info().capabilities).unwrap_or_default();
        let named = |object: &Value| object.get(capability).is_some_and(|value| !value.is_null());
        named(&capabilities) || named(&capabilities["extensions"])
    }

    /// Its tools, page by page.
    pub(super) async fn list_tools(self: &Arc<Self>) -> Result<Vec<Tool>, String> {
        let mut tools = Vec::new();
        if !self.has("tools") {
            return Ok(tools);
        }
        let mut cursor: Option<String> = None;
        loop {
            let mut lent = self.backs.lend(For::Request, None, None);
            let raw = Raw { version: MODERN_VERSION, id: 0.into(), meta: own_meta(), ..Raw::default() };
            let request = request_of("tools/list", cursor.map_or_else(|| json!({}), |c| json!({ "cursor": c })))?;
            let context = context(&lent, raw).ok_or("no way back")?;
            let page =
                self.host.request(request, context).await.map_err(|e| format!("tools/list of a handler: {e}"))?;
            lent.done();
            let mut page = serde_json::to_value(&page).map_err(|e| e.to_string())?;
            let definitions: Vec<rmcp::model::Tool> =
                serde_json::from_value(page["tools"].take()).map_err(|e| format!("tools/list of a handler: {e}"))?;
            tools.extend(definitions.into_iter().map(|definition| self.tool(definition)));
            cursor = page["nextCursor"].as_str().map(str::to_owned);
            if cursor.is_none() {
                break;
            }
            if tools.len() > TOOLS_MAX {
                return Err(format!("a handler has more than {TOOLS_MAX} tools"));
            }
        }
        for stray in
            self.lanes.keys().filter(|name| !tools.iter().any(|t| t.name() == format!("{}{name}", self.prefix)))
        {
            tracing::warn!(tool = stray, "a lane is given for a tool that the handler does not have (by its own name)");
        }
        Ok(tools)
    }

    fn tool(self: &Arc<Self>, mut definition: rmcp::model::Tool) -> Tool {
        let own_name = definition.name.clone();
        let lane = self.lanes.get(own_name.as_ref()).copied().unwrap_or(Lane::Async);
        definition.name = format!("{}{own_name}", self.prefix).into();
        if !definition.input_schema.contains_key("type") {
            // All arguments are objects, and clients want to read that.
            Arc::make_mut(&mut definition.input_schema).insert("type".into(), "object".into());
        }
        // Clients of the older revisions refuse the whole list for another one.
        if definition.output_schema.as_ref().is_some_and(|schema| schema.get("type") != Some(&json!("object"))) {
            definition.output_schema = None;
        }
        let output = definition.output_schema.as_deref();
        let results = output.and_then(|schema| ResultSchema::compile_or_warn(&definition.name, schema)).map(Arc::new);
        let calls = Arc::clone(self);
        let call = move |arguments: Value, ctx: Ctx| -> Running {
            let (calls, name, results) = (Arc::clone(&calls), own_name.clone(), results.clone());
            Box::pin(async move { calls.call_tool(name, arguments, results, ctx).await })
        };
        let run = match (lane, runtime::Handle::try_current()) {
            (Lane::Pool, Ok(runtime)) => Run::Sync(Arc::new(move |arguments, mut ctx| {
                let raw = ctx.raw.take();
                let waiting = ctx.clone();
                ctx.raw = raw;
                drive::on_this_thread(&runtime, call(arguments, ctx), &waiting)
            })),
            _ => Run::Async(Arc::new(call)),
        };
        let meter = Some(self.meter(&definition.name));
        let work = Work { name: definition.name.clone(), lane, run, wants_raw: true, meter };
        Tool { definition, work: Arc::new(work) }
    }

    async fn call_tool(
        &self,
        name: Cow<'static, str>,
        arguments: Value,
        results: Option<Arc<ResultSchema>>,
        mut ctx: Ctx,
    ) -> Outcome {
        let mut params = CallToolRequestParams::new(name);
        if let Value::Object(arguments) = arguments {
            params.arguments = Some(arguments);
        }
        let mut talk = Talk::new(&self.backs, &mut ctx);
        let (answers, kept) = said_before(&ctx);
        if !answers.is_empty() {
            params.input_responses = Some(answers.into_iter().collect());
        }
        params.request_state = kept;
        for _ in 0..ROUNDS_MAX {
            let is_last = talk.client.is_none(); // only in a session can a call be made again from here
            let context = talk.context(is_last).ok_or(CallError::Internal)?;
            let this = if is_last { std::mem::take(&mut params) } else { params.clone() };
            let cancels = context.ct.clone().drop_guard(); // tells the handler's own tasks when the call is dropped
            let response = talk.run(self.host.call(this, context)).await.map_err(|e| failed(e, talk.is_modern))?;
            cancels.disarm();
            match response {
                CallToolResponse::Complete(result) => {
                    if let (Some(results), false) = (&results, result.is_error == Some(true)) {
                        results.check(result.structured_content.as_ref())?;
                    }
                    return result.into_reply();
                }
                CallToolResponse::Task(_) if !ctx.client().contains(ClientCapabilities::TASKS) => {
                    return Err(CallError::MissingCapability(ClientCapabilities::TASKS));
                }
                CallToolResponse::Task(task) => return reply_of(&task, Kind::Task),
                CallToolResponse::InputRequired(required) => {
                    let requests = serde_json::to_value(&required.input_requests).unwrap_or_default();
                    let answers = talk.ask_all(requests, required.request_state.as_deref()).await?;
                    params.input_responses = Some(answers.into_iter().collect());
                    params.request_state = required.request_state;
                }
                _ => return Err(CallError::Internal),
            }
        }
        Err(CallError::tool("the tool asked too many questions"))
    }

    pub(super) fn host(&self) -> Arc<dyn Host> {
        Arc::clone(&self.host)
    }
}

/// Answers a method by the first handler that can.
pub(super) async fn answer(handlers: &[Arc<Calls>], method: &'static str, params: Value, ctx: Ctx) -> Outcome {
    if method.ends_with("/list") {
        return list(handlers, method, params, &ctx).await;
    }
    let mut asked: Vec<(&Arc<Calls>, Value)> =
        handlers.iter().filter_map(|handler| Some((handler, handler.own_params(method, &params)?))).collect();
    asked.sort_by_key(|(handler, _)| Reverse(handler.prefix.len())); // the one that a name fits best is asked first
    let (mut closest, mut nothing) = (None, None);
    for (handler, params) in asked {
        match handler.answer(method, params, &ctx).await {
            Err(error) if handlers.len() > 1 && nearness(&error).is_some() => {
                if closest.as_ref().is_none_or(|before| nearness(&error) > nearness(before)) {
                    closest = Some(error);
                }
            }
            // A handler that knows nothing of what is to be completed proposes nothing.
            Ok(reply) if method == "completion/complete" && proposes_nothing(&reply) => {
                nothing.get_or_insert(reply);
            }
            outcome => return outcome,
        }
    }
    let none = || CallError::InvalidParams("params name nothing that this server has".into());
    nothing.map_or_else(|| Err(closest.unwrap_or_else(none)), Ok)
}

fn proposes_nothing(reply: &Reply) -> bool {
    reply.to_json()["completion"]["values"].as_array().is_none_or(Vec::is_empty)
}

/// One page of what all handlers have. Cursors say whose list they are of: `h1:` and the handler's own.
async fn list(handlers: &[Arc<Calls>], method: &'static str, mut params: Value, ctx: &Ctx) -> Outcome {
    let cursor = params["cursor"].as_str().unwrap_or("h0:").to_owned();
    let place = cursor.strip_prefix('h').and_then(|rest| rest.split_once(':'));
    let place = place.and_then(|(index, own)| Some((index.parse::<usize>().ok()?, own.to_owned())));
    let bad_cursor =
        || CallError::InvalidParams("params.cursor is none that this server gave; start again without one".into());
    let (index, own) = place.ok_or_else(bad_cursor)?;
    let handler = handlers.get(index).ok_or_else(bad_cursor)?;
    if let Some(params) = params.as_object_mut() {
        params.remove("cursor");
        if !own.is_empty() {
            params.insert("cursor".into(), own.into());
        }
    }
    let mut page = handler.request(method, params, ctx).await?;
    if method == "prompts/list" && !handler.prefix.is_empty() {
        for prompt in page["prompts"].as_array_mut().into_iter().flatten() {
            prompt["name"] = format!("{}{}", handler.prefix, prompt["name"].as_str().unwrap_or_default()).into();
        }
    }
    let next = match page["nextCursor"].as_str() {
        Some(next) => Some(format!("h{index}:{next}")),
        None => (index + 1 < handlers.len()).then(|| format!("h{}:", index + 1)),
    };
    if let (Some(page), Some(next)) = (page.as_object_mut(), next) {
        page.insert("nextCursor".into(), next.into());
    }
    reply_of(&page, Kind::Complete)
}

impl Calls {
    /// The params with the names that the handler itself uses; `None` when they name what another handler has.
    fn own_params(&self, method: &str, params: &Value) -> Option<Value> {
        let mut params = params.clone();
        let name = match method {
            "prompts/get" => &mut params["name"],
            "completion/complete" if params["ref"]["type"] == "ref/prompt" => &mut params["ref"]["name"],
            _ => return Some(params),
        };
        let own = name.as_str()?.strip_prefix(self.prefix.as_str())?.to_owned();
        *name = own.into();
        Some(params)
    }

    async fn answer(&self, method: &'static str, params: Value, ctx: &Ctx) -> Outcome {
        let result = self.request(method, params, ctx).await?;
        let kind = if result["resultType"] == "task" { Kind::Task } else { Kind::Complete };
        reply_of(&result, kind)
    }

    /// The result object of any method.
    async fn request(&self, method: &'static str, mut params: Value, ctx: &Ctx) -> Result<Value, CallError> {
        let uri = params["uri"].as_str().map(str::to_owned);
        let mut ctx = ctx.clone();
        let mut talk = Talk::new(&self.backs, &mut ctx);
        let (mut answers, mut kept) = said_before(&ctx);
        for _ in 0..ROUNDS_MAX {
            if let Some(params) = params.as_object_mut() {
                if !answers.is_empty() {
                    params.insert("inputResponses".into(), Value::Object(answers));
                }
                if let Some(kept) = kept {
                    params.insert("requestState".into(), kept.into());
                }
            }
            let is_last = talk.client.is_none();
            let request = request_of(method, params.clone()).map_err(CallError::InvalidParams)?;
            let context = talk.context(is_last).ok_or(CallError::Internal)?;
            let cancels = context.ct.clone().drop_guard();
            let result =
                talk.run(self.host.request(request, context)).await.map_err(|error| match (error.code, &uri) {
                    (ErrorCode::RESOURCE_NOT_FOUND, Some(uri)) => CallError::NoResource(uri.clone()),
                    _ => failed(error, talk.is_modern),
                })?;
            cancels.disarm();
            let mut result = serde_json::to_value(&result).map_err(|_| CallError::Internal)?;
            if result["resultType"] != "input_required" {
                return Ok(result);
            }
            let state = result["requestState"].as_str().map(str::to_owned);
            answers = talk.ask_all(result["inputRequests"].take(), state.as_deref()).await?;
            kept = state;
        }
        Err(CallError::tool(format!("{method} asked too many questions")))
    }
}

/// What a client brings along to a call that is made again.
fn said_before(ctx: &Ctx) -> (Map<String, Value>, Option<String>) {
    let Exchange::Rounds(rounds) = &ctx.exchange else { return (Map::new(), None) };
    (rounds.answers.clone(), rounds.kept.as_ref().and_then(Value::as_str).map(str::to_owned))
}

pub(super) fn request_of(method: &str, params: Value) -> Result<ClientRequest, String> {
    serde_json::from_value(json!({ "method": method, "params": params }))
        .map_err(|error| format!("params do not fit {method}: {error}"))
}

fn failed(error: ErrorData, is_modern: bool) -> CallError {
    // From 2026-07-28 on this code is not to be used.
    let code =
        if is_modern && error.code == ErrorCode::RESOURCE_NOT_FOUND { ErrorCode::INVALID_PARAMS } else { error.code };
    CallError::Rpc { code: code.0, message: error.message.into_owned(), data: error.data }
}

/// How near a handler that answers with this error is to having what it was asked for, so that the best of several
/// errors is told; `None` when it has it.
fn nearness(error: &CallError) -> Option<u8> {
    match error {
        CallError::Rpc { code, .. } if *code == ErrorCode::METHOD_NOT_FOUND.0 => Some(0),
        CallError::NoResource(_) => Some(1),
        CallError::Rpc { code, .. } if *code == ErrorCode::RESOURCE_NOT_FOUND.0 => Some(1),
        CallError::Rpc { code, .. } if *code == ErrorCode::INVALID_PARAMS.0 => Some(2),
        CallError::InvalidParams(_) => Some(2),
        _ => None,
    }
}

/// A result of rmcp as a reply: `resultType` and `_meta` are said around the other members.
fn reply_of(result: &impl Serialize, kind: Kind) -> Outcome {
    let mut result = serde_json::to_value(result).map_err(|_| CallError::Internal)?;
    let mut meta = None;
    if let Some(members) = result.as_object_mut() {
        members.remove("resultType");
        if let Some(Value::Object(mut own)) = members.remove("_meta") {
            own.remove("io.modelcontextprotocol/serverInfo"); // ours is said
            meta = Some(open_object(&own)?).filter(|own| !own.is_empty());
        }
    }
    Ok(Reply { meta, kind, ..Reply::of(open_object(&result)?) })
}

fn context(lent: &Lent, raw: Raw) -> Option<RequestContext<RoleServer>> {
    let id = serde_json::from_value(raw.id).unwrap_or(RequestId::Number(0));
    let mut context = RequestContext::new(id, lent.peer()?);
    context.meta = RequestMetaObject(MetaObject(raw.meta));
    if let Some(parts) = raw.parts {
        context.extensions.insert(parts);
    }
    Some(context)
}

/// A call's talk with its client while its handler runs.
struct Talk {
    lent: Lent,
    raw: Raw,
    is_modern: bool,
    /// The client of a session, which can be asked while the handler runs.
    client: Option<(Arc<dyn Answers>, Arc<Outbox>)>,
}

type Asking<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

impl Talk {
    fn new(backs: &Arc<Backs>, ctx: &mut Ctx) -> Self {
        let raw = ctx.raw.take().map(|raw| *raw).unwrap_or_default();
        let owner = if raw.initialize.is_some() { For::Session } else { For::Request };
        let mut lent = backs.lend(owner, ctx.outbox.clone(), raw.meta.get("progressToken").cloned());
        if let Some(said) = &raw.initialize {
            lent.introduce(said);
        }
        let client = match (&ctx.exchange, &ctx.outbox) {
            (Exchange::Stream(client), Some(outbox)) => Some((Arc::clone(client), Arc::clone(outbox))),
            _ => None,
        };
        Self { lent, is_modern: raw.version == MODERN_VERSION, raw, client }
    }

    /// The handler's view of the request, the last time that it is asked for without a copy.
    fn context(&mut self, is_last: bool) -> Option<RequestContext<RoleServer>> {
        let raw = if is_last { std::mem::take(&mut self.raw) } else { self.raw.clone() };
        context(&self.lent, raw)
    }

    /// Runs the handler, and brings its questions to the client and the answers back meanwhile.
    async fn run<T>(&mut self, mut running: Answered<T>) -> Result<T, ErrorData> {
        self.lent.begun();
        let outcome = self.run_and_ask(&mut running).await;
        drop(running); // and with it the handler's copies of the peer, which would count as kept
        self.lent.done();
        outcome
    }

    async fn run_and_ask<T>(&self, running: &mut Answered<T>) -> Result<T, ErrorData> {
        let mut asking: Vec<Asking<'_>> = Vec::new();
        poll_fn(|cx| {
            loop {
                if let Poll::Ready(outcome) = running.as_mut().poll(cx) {
                    return Poll::Ready(outcome);
                }
                let mut is_new = false;
                while let Poll::Ready(question) = self.lent.poll_question(cx) {
                    asking.push(Box::pin(self.ask(question)));
                    is_new = true;
                }
                let before = asking.len();
                asking.retain_mut(|question| question.as_mut().poll(cx).is_pending());
                if !is_new && asking.len() == before {
                    return Poll::Pending;
                }
            }
        })
        .await
    }

    async fn ask(&self, question: Question) {
        let answer = match &self.client {
            None => Err(json!({ "code": -32600, "message": "this client cannot be asked while its call runs" })),
            Some((client, outbox)) => {
                let mut params = question.params.clone();
                if let Some(Value::Object(meta)) = params.get_mut("_meta") {
                    meta.remove("progressToken"); // rmcp's own, which nobody reports to
                    if meta.is_empty()
                        && let Some(params) = params.as_object_mut()
                    {
                        params.remove("_meta");
                    }
                }
                let answered = request_on_stream(client.as_ref(), outbox, &question.method, params).await;
                answered.unwrap_or_else(|error| Err(json!({ "code": -32603, "message": error.to_string() })))
            }
        };
        self.lent.answer(&question, answer).await;
    }

    /// What a handler needs to know before it goes on: asked here in a session, whose revision has no rounds. Without
    /// one the client makes the call again with the answers.
    async fn ask_all(&self, requests: Value, state: Option<&str>) -> Result<Map<String, Value>, CallError> {
        let requests = if let Value::Object(requests) = requests { requests } else { Map::new() };
        let Some((client, outbox)) = &self.client else {
            let memory = Memory { kept: state.map(Value::from), ..Memory::default() };
            return Err(CallError::InputRequired(Box::new(Required { requests, memory })));
        };
        let mut answers = Map::new();
        for (key, mut request) in requests {
            let params = request["params"].take();
            let method = request["method"].as_str().unwrap_or_default();
            let answer = request_on_stream(client.as_ref(), outbox, method, params).await?;
            answers.insert(key, answer.map_err(|e| CallError::tool(format!("the client refused: {}", e["message"])))?);
        }
        Ok(answers)
    }
}
