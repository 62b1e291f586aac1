//! From a call of a tool to its handler and back: rmcp's types on one side, ours on the other. What else a handler answers
//! is `methods`' business, and what is said while it runs `talk`'s.

use std::{borrow::Cow, collections::HashMap, sync::Arc};

use parking_lot::Mutex;
use rmcp::model::{CallToolRequestParams, CallToolResponse, ClientRequest, ErrorCode, ErrorData, ServerConfig};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::runtime;

use super::{
    Handler, Host, TOOLS_MAX,
    back::{Backs, For},
    drive, own_meta,
    talk::{MODERN_VERSION, ROUNDS_MAX, Talk, context, said_before},
};
use crate::{
    call::{ClientCapabilities, Ctx, Kind, Lane, Raw, Reply},
    error::CallError,
    telemetry::calls::CallMeter,
    tool::{IntoReply, Outcome, Run, Running, Tool, Work, native::open_object, results::ResultSchema},
};

/// A handler and how it is called.
pub(super) struct Calls {
    pub(super) host: Arc<dyn Host>,
    pub(super) prefix: String,
    lanes: HashMap<String, Lane>,
    pub(super) backs: Arc<Backs>,
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

pub(super) fn request_of(method: &str, params: Value) -> Result<ClientRequest, String> {
    serde_json::from_value(json!({ "method": method, "params": params }))
        .map_err(|error| format!("params do not fit {method}: {error}"))
}

pub(super) fn failed(error: ErrorData, is_modern: bool) -> CallError {
    // From 2026-07-28 on this code is not to be used.
    let code =
        if is_modern && error.code == ErrorCode::RESOURCE_NOT_FOUND { ErrorCode::INVALID_PARAMS } else { error.code };
    CallError::Rpc { code: code.0, message: error.message.into_owned(), data: error.data }
}

/// A result of rmcp as a reply: `resultType` and `_meta` are said around the other members.
pub(super) fn reply_of(result: &impl Serialize, kind: Kind) -> Outcome {
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
