//! Hosting: an rmcp [`ServerHandler`] served as it is. Its tools become tools, so that they have lanes, limits and a
//! cache like any others (`calls`); its other methods are work that is run when nothing of ours answers (`methods`). What a
//! handler says to its client while it runs (`talk`) leaves by a pooled way back (`back`, `wire`). No loop and no task is
//! made for a request.

mod back;
mod calls;
mod copies;
mod drive;
mod listen;
mod methods;
mod talk;
#[cfg(test)]
mod tests;
mod wire;

use std::{
    collections::{BTreeMap, HashMap},
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    time::Duration,
};

use rmcp::{
    RoleServer, ServerHandler, Service,
    model::{CallToolRequestParams, CallToolResponse, ClientRequest, ErrorData, ServerConfig, ServerResult},
    service::RequestContext,
};
use serde_json::{Map, Value, json};
use tokio::{sync::Notify, time::timeout};

use self::{back::Backs, calls::Calls, wire::Heard};
use crate::{
    call::Lane,
    changes::Changes,
    tool::{Run, Tool, Work},
};

/// How long a handler may take to say what it has, at the start.
const LISTING_TIME_MAX: Duration = Duration::from_secs(10);
/// Tools of one handler.
const TOOLS_MAX: usize = 10_000;

/// Methods that a handler may answer, each with the capability that says so.
const METHODS: [(&str, &str); 14] = [
    ("resources/list", "resources"),
    ("resources/templates/list", "resources"),
    ("resources/read", "resources"),
    ("resources/subscribe", "resources"),
    ("resources/unsubscribe", "resources"),
    ("prompts/list", "prompts"),
    ("prompts/get", "prompts"),
    ("completion/complete", "completions"),
    ("tasks/get", TASKS),
    ("tasks/update", TASKS),
    ("tasks/cancel", TASKS),
    ("skills/list", SKILLS),
    ("skills/get", SKILLS),
    ("resources/directory/read", SKILLS),
];
const TASKS: &str = "io.modelcontextprotocol/tasks";
const SKILLS: &str = "io.modelcontextprotocol/skills";

type Answered<T> = Pin<Box<dyn Future<Output = Result<T, ErrorData>> + Send>>;

/// A handler, whatever its type.
trait Host: Send + Sync {
    fn info(&self) -> ServerConfig;
    fn call(&self, params: CallToolRequestParams, context: RequestContext<RoleServer>) -> Answered<CallToolResponse>;
    fn request(&self, request: ClientRequest, context: RequestContext<RoleServer>) -> Answered<ServerResult>;
}

struct Hosting<H>(Arc<H>);

impl<H: ServerHandler> Host for Hosting<H> {
    fn info(&self) -> ServerConfig {
        ServerHandler::get_info(self.0.as_ref())
    }

    fn call(&self, params: CallToolRequestParams, context: RequestContext<RoleServer>) -> Answered<CallToolResponse> {
        let handler = Arc::clone(&self.0);
        Box::pin(async move { handler.call_tool(params, context).await })
    }

    fn request(&self, request: ClientRequest, context: RequestContext<RoleServer>) -> Answered<ServerResult> {
        let handler = Arc::clone(&self.0);
        // Straight to the handler where rmcp's own way would add what is ours to say, or refuse what is asked for here.
        Box::pin(async move {
            Ok(match request {
                ClientRequest::GetPromptRequest(r) => handler.get_prompt(r.params, context).await?.into(),
                ClientRequest::ReadResourceRequest(r) => handler.read_resource(r.params, context).await?.into(),
                ClientRequest::ListPromptsRequest(r) => {
                    ServerResult::ListPromptsResult(handler.list_prompts(r.params, context).await?)
                }
                ClientRequest::ListResourcesRequest(r) => {
                    ServerResult::ListResourcesResult(handler.list_resources(r.params, context).await?)
                }
                ClientRequest::ListResourceTemplatesRequest(r) => {
                    ServerResult::ListResourceTemplatesResult(handler.list_resource_templates(r.params, context).await?)
                }
                request => return handler.handle_request(request, context).await,
            })
        })
    }
}

/// An rmcp handler to be served, with what is said about it besides.
pub struct Handler {
    host: Arc<dyn Host>,
    prefix: String,
    lanes: HashMap<String, Lane>,
}

impl fmt::Debug for Handler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handler").field("prefix", &self.prefix).field("lanes", &self.lanes).finish_non_exhaustive()
    }
}

impl Handler {
    /// Serves a handler as it is.
    pub fn new(handler: impl ServerHandler) -> Self {
        Self { host: Arc::new(Hosting(Arc::new(handler))), prefix: String::new(), lanes: HashMap::new() }
    }

    /// Puts a text before the names of its tools and prompts, so that several handlers can be served side by side.
    #[must_use]
    pub fn prefix(mut self, prefix: impl Into<String>) -> Self {
        self.prefix = prefix.into();
        self
    }

    /// Where one of its tools runs, by the name that the handler gives it; `Async` when nothing is said. With `Pool` it
    /// may block or burn CPU. A tool whose results have megabytes burns it: what is made of one here, its JSON and the
    /// check of its output schema, takes some three milliseconds for each, on the thread that the tool runs on.
    #[must_use]
    pub fn lane(mut self, tool: impl Into<String>, lane: Lane) -> Self {
        self.lanes.insert(tool.into(), lane);
        self
    }
}

/// The handlers as they are served.
pub(crate) struct Hosted {
    handlers: Arc<[Arc<Calls>]>,
    /// Their tools at the start.
    pub(crate) tools: Vec<Tool>,
    /// What they answer besides calls of tools.
    pub(crate) methods: BTreeMap<&'static str, Arc<Work>>,
    /// What they say that they can do, by capability.
    pub(crate) extensions: Map<String, Value>,
    pub(crate) instructions: Option<String>,
    /// Told when their tools are others.
    pub(crate) tools_changed: Arc<Notify>,
}

impl fmt::Debug for Hosted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hosted").field("handlers", &self.handlers.len()).finish_non_exhaustive()
    }
}

impl Hosted {
    /// Asks the handlers what they have. Needs a runtime, on which what they say outside calls is heard from then on.
    ///
    /// # Errors
    /// A handler that does not say what its tools are, or has one tool under two lanes that it does not have.
    pub(crate) async fn new(handlers: Vec<Handler>, changes: Changes) -> Result<Self, String> {
        let tools_changed = Arc::<Notify>::default();
        let heard = Heard { changes: changes.clone(), tools_changed: Arc::clone(&tools_changed) };
        let backs = Backs::new(heard);
        let handlers: Arc<[Arc<Calls>]> =
            handlers.into_iter().map(|handler| Arc::new(Calls::new(handler, Arc::clone(&backs)))).collect();
        let mut hosted = Self {
            tools: Vec::new(),
            methods: BTreeMap::new(),
            extensions: Map::new(),
            instructions: None,
            tools_changed,
            handlers,
        };
        hosted.tools = hosted.list_tools().await?;
        let mut instructions = Vec::new();
        for handler in hosted.handlers.iter() {
            tokio::spawn(listen::listen(handler.host(), Arc::clone(&backs), changes.clone()));
            let info = handler.info();
            instructions.extend(info.instructions.clone());
            let capabilities = serde_json::to_value(&info.capabilities).unwrap_or_default();
            if let Some(extensions) = capabilities["extensions"].as_object() {
                hosted.extensions.extend(extensions.clone());
            }
        }
        hosted.instructions = (!instructions.is_empty()).then(|| instructions.join("\n\n"));
        for (method, capability) in METHODS {
            let able: Arc<[Arc<Calls>]> =
                hosted.handlers.iter().filter(|h| h.has(capability)).map(Arc::clone).collect();
            if able.is_empty() {
                continue;
            }
            let run = Run::Async(Arc::new(move |params, ctx| {
                let able = Arc::clone(&able);
                Box::pin(async move { methods::answer(&able, method, params, ctx).await })
            }));
            let work = Work { name: method.into(), lane: Lane::Async, run, wants_raw: true, meter: None };
            hosted.methods.insert(method, Arc::new(work));
        }
        Ok(hosted)
    }

    /// How many ways back were ever made.
    #[cfg(test)]
    fn ways_back_made(&self) -> usize {
        self.handlers.first().map_or(0, |handler| handler.ways_back_made())
    }

    /// Whether there is no handler.
    pub(crate) fn is_empty(&self) -> bool {
        self.handlers.is_empty()
    }

    /// The tools that the handlers have at this moment.
    pub(crate) async fn list_tools(&self) -> Result<Vec<Tool>, String> {
        let mut tools = Vec::new();
        for handler in self.handlers.iter() {
            let listed = timeout(LISTING_TIME_MAX, handler.list_tools());
            let listed = listed.await.map_err(|_| {
                format!("a handler did not say within {} s which tools it has", LISTING_TIME_MAX.as_secs())
            })?;
            tools.extend(listed?);
        }
        Ok(tools)
    }
}

/// The `_meta` with which handlers are asked at the start.
fn own_meta() -> Map<String, Value> {
    let meta = json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": { "name": env!("CARGO_PKG_NAME"), "version": env!("CARGO_PKG_VERSION") },
        "io.modelcontextprotocol/clientCapabilities": {}
    });
    if let Value::Object(meta) = meta { meta } else { Map::new() }
}
