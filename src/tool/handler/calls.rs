//! From a call to a handler and back: rmcp's types on one side, ours on the other.

use std::{
    collections::HashMap,
    future::{Future, poll_fn},
    pin::Pin,
    sync::Arc,
    task::Poll,
};

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
    own_meta,
};
use crate::{
    call::{Ctx, Kind, Lane, Raw, Reply},
    error::CallError,
    input::{Answers, Exchange, Memory, Required, request_on_stream},
    outbox::Outbox,
    tool::{IntoReply, Outcome, Run, Running, Tool, Work, native::open_object},
};

/// Rounds of questions of one call in a session, where they are driven here.
const ROUNDS_MAX: usize = 16;
const MODERN_VERSION: &str = "2026-07-28";
const RESOURCE_NOT_FOUND: i32 = -32002;

/// A handler and how it is called.
pub(super) struct Calls {
    host: Arc<dyn Host>,
    prefix: String,
    lanes: HashMap<String, Lane>,
    backs: Arc<Backs>,
}

impl Calls {
    pub(super) fn new(handler: Handler, backs: Arc<Backs>) -> Self {
        let Handler { host, prefix, lanes } = handler;
        Self { host, prefix, lanes, backs }
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
            let lent = self.backs.lend(For { caller: String::new(), has_session: false }, None, None);
            let raw = Raw { version: MODERN_VERSION, id: 0.into(), meta: own_meta(), ..Raw::default() };
            let request = request_of("tools/list", cursor.map_or_else(|| json!({}), |c| json!({ "cursor": c })))?;
            let context = context(&lent, raw).ok_or("no way back")?;
            let page =
                self.host.request(request, context).await.map_err(|e| format!("tools/list of a handler: {e}"))?;
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
        Ok(tools)
    }

    fn tool(self: &Arc<Self>, mut definition: rmcp::model::Tool) -> Tool {
        let own_name = definition.name.clone();
        let lane = self.lanes.get(own_name.as_ref()).copied().unwrap_or(Lane::Async);
        definition.name = format!("{}{own_name}", self.prefix).into();
        let calls = Arc::clone(self);
        let call = move |arguments: Value, ctx: Ctx| -> Running {
            let (calls, name) = (Arc::clone(&calls), own_name.clone());
            Box::pin(async move { calls.call_tool(name, arguments, ctx).await })
        };
        let run = match (lane, runtime::Handle::try_current()) {
            // A worker thread may block, and that is what it does for the handler.
            (Lane::Pool, Ok(runtime)) => {
                Run::Sync(Arc::new(move |arguments, ctx| runtime.block_on(call(arguments, ctx))))
            }
            _ => Run::Async(Arc::new(call)),
        };
        let work = Work { name: definition.name.clone(), lane, run, wants_raw: true };
        Tool { definition, work: Arc::new(work) }
    }

    async fn call_tool(&self, name: std::borrow::Cow<'static, str>, arguments: Value, mut ctx: Ctx) -> Outcome {
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
            // Only in a session can a call be made again from here.
            let context = talk.context(!matches!(ctx.exchange, Exchange::Stream(_))).ok_or(CallError::Internal)?;
            let cancels = context.ct.clone().drop_guard(); // tells the handler's own tasks when the call is dropped
            let response = talk.run(self.host.call(params.clone(), context)).await.map_err(failed)?;
            cancels.disarm();
            match response {
                CallToolResponse::Complete(result) => return result.into_reply(),
                CallToolResponse::Task(task) => return reply_of(&task, Kind::Task),
                CallToolResponse::InputRequired(required) => {
                    let requests = serde_json::to_value(&required.input_requests).unwrap_or_default();
                    let requests = if let Value::Object(requests) = requests { requests } else { Map::new() };
                    let (Exchange::Stream(client), Some(outbox)) = (&ctx.exchange, &ctx.outbox) else {
                        let memory = Memory { kept: required.request_state.map(Value::String), ..Memory::default() };
                        return Err(CallError::InputRequired(Box::new(Required { requests, memory })));
                    };
                    // The session's revision has no rounds, so they are driven here.
                    let mut answers = std::collections::BTreeMap::new();
                    for (key, request) in requests {
                        let method = request["method"].as_str().unwrap_or_default();
                        let answer =
                            request_on_stream(client.as_ref(), outbox, method, request["params"].clone()).await?;
                        answers.insert(
                            key,
                            answer.map_err(|e| CallError::tool(format!("the client refused: {}", e["message"])))?,
                        );
                    }
                    params.input_responses = Some(answers);
                    params.request_state = required.request_state;
                }
                _ => return Err(CallError::Internal),
            }
        }
        Err(CallError::tool("the tool asked too many questions"))
    }

    /// Listens for what the handler tells its subscribers, for as long as the runtime lives.
    pub(super) fn listen(&self, backs: &Arc<Backs>) {
        let filter = json!({ "toolsListChanged": true, "promptsListChanged": true, "resourcesListChanged": true });
        let Ok(request) = request_of("subscriptions/listen", json!({ "notifications": filter })) else { return };
        let (peer, back) = backs.permanent();
        let mut context = RequestContext::new(RequestId::Number(0), peer);
        context.meta = serde_json::from_value::<RequestMetaObject>(Value::Object(own_meta())).unwrap_or_default();
        let listening: Answered<_> = self.host.request(request, context);
        // One task for each handler, at the start: a handler that tells nobody answers at once.
        tokio::spawn(async move {
            let ended = listening.await;
            tracing::debug!(told = ended.is_ok(), "a hosted handler has ended its subscription");
            drop(back);
        });
    }
}

/// Answers a method by the first handler that can.
pub(super) async fn answer(handlers: &[Arc<Calls>], method: &'static str, params: Value, ctx: Ctx) -> Outcome {
    if method.ends_with("/list") {
        return list(handlers, method, params, &ctx).await;
    }
    let mut not_found = None;
    for handler in handlers {
        let mut params = params.clone();
        if method == "prompts/get" {
            let name = params["name"].as_str().unwrap_or_default();
            let Some(own) = name.strip_prefix(handler.prefix.as_str()) else { continue };
            params["name"] = own.into();
        }
        match handler.answer(method, params, &ctx).await {
            Err(error) if handlers.len() > 1 && is_not_found(&error) => not_found = Some(error),
            outcome => return outcome,
        }
    }
    Err(not_found.unwrap_or_else(|| CallError::InvalidParams("params name nothing that this server has".into())))
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
    async fn answer(&self, method: &'static str, params: Value, ctx: &Ctx) -> Outcome {
        let mut result = self.request(method, params, ctx).await?;
        match result["resultType"].as_str() {
            Some("input_required") => {
                let requests = match result["inputRequests"].take() {
                    Value::Object(requests) => requests,
                    _ => Map::new(),
                };
                let kept = Some(result["requestState"].take()).filter(Value::is_string);
                let memory = Memory { kept, ..Memory::default() };
                Err(CallError::InputRequired(Box::new(Required { requests, memory })))
            }
            Some("task") => reply_of(&result, Kind::Task),
            _ => reply_of(&result, Kind::Complete),
        }
    }

    /// The result object of any method.
    async fn request(&self, method: &'static str, mut params: Value, ctx: &Ctx) -> Result<Value, CallError> {
        let (answers, kept) = said_before(ctx);
        if let Some(params) = params.as_object_mut() {
            if !answers.is_empty() {
                params.insert("inputResponses".into(), Value::Object(answers));
            }
            if let Some(kept) = kept {
                params.insert("requestState".into(), kept.into());
            }
        }
        let uri = params["uri"].as_str().map(str::to_owned);
        let request = request_of(method, params).map_err(CallError::InvalidParams)?;
        let mut ctx = ctx.clone();
        let mut talk = Talk::new(&self.backs, &mut ctx);
        let context = talk.context(true).ok_or(CallError::Internal)?;
        let cancels = context.ct.clone().drop_guard();
        let result = talk.run(self.host.request(request, context)).await.map_err(|error| match (error.code, uri) {
            (ErrorCode::RESOURCE_NOT_FOUND, Some(uri)) => CallError::NoResource(uri),
            _ => failed(error),
        })?;
        cancels.disarm();
        serde_json::to_value(&result).map_err(|_| CallError::Internal)
    }
}

/// What a client brings along to a call that is made again.
fn said_before(ctx: &Ctx) -> (Map<String, Value>, Option<String>) {
    let Exchange::Rounds(rounds) = &ctx.exchange else { return (Map::new(), None) };
    (rounds.answers.clone(), rounds.kept.as_ref().and_then(Value::as_str).map(str::to_owned))
}

fn request_of(method: &str, params: Value) -> Result<ClientRequest, String> {
    serde_json::from_value(json!({ "method": method, "params": params }))
        .map_err(|error| format!("params do not fit {method}: {error}"))
}

fn failed(error: ErrorData) -> CallError {
    CallError::Rpc { code: error.code.0, message: error.message.into_owned(), data: error.data }
}

fn is_not_found(error: &CallError) -> bool {
    match error {
        CallError::NoResource(_) | CallError::InvalidParams(_) => true,
        CallError::Rpc { code, .. } => matches!(*code, RESOURCE_NOT_FOUND | -32601 | -32602),
        _ => false,
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
    client: Option<(Arc<dyn Answers>, Arc<Outbox>)>,
}

type Asking<'a> = Pin<Box<dyn Future<Output = ()> + Send + 'a>>;

impl Talk {
    fn new(backs: &Arc<Backs>, ctx: &mut Ctx) -> Self {
        let raw = ctx.raw.take().map(|raw| *raw).unwrap_or_default();
        let has_session = raw.version != MODERN_VERSION;
        let owner = For { caller: ctx.caller().subject().to_owned(), has_session };
        let mut lent = backs.lend(owner, ctx.outbox.clone(), raw.meta.get("progressToken").cloned());
        if let Some(said) = &raw.initialize {
            lent.introduce(said);
        }
        let client = match (&ctx.exchange, &ctx.outbox) {
            (Exchange::Stream(client), Some(outbox)) => Some((Arc::clone(client), Arc::clone(outbox))),
            _ => None,
        };
        Self { lent, raw, client }
    }

    /// The handler's view of the request, the last time that it is asked for without a copy.
    fn context(&mut self, is_last: bool) -> Option<RequestContext<RoleServer>> {
        let raw = if is_last { std::mem::take(&mut self.raw) } else { self.raw.clone() };
        context(&self.lent, raw)
    }

    /// Runs the handler, and brings its questions to the client and the answers back meanwhile.
    async fn run<T>(&self, mut running: Answered<T>) -> Result<T, ErrorData> {
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
        self.lent.answer(&question, answer);
    }
}
