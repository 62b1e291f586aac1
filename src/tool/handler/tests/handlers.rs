//! A handler by hand with all that a handler can do, and one by rmcp's macros.

use super::*;

/// A handler by hand, which knows nothing of bigiron.
#[derive(Clone, Default)]
pub(super) struct Plain {
    /// What its only resource and prompt are called.
    pub(super) name: &'static str,
    pub(super) kept: Arc<Mutex<Option<Peer<RoleServer>>>>,
    pub(super) inside: Arc<AtomicUsize>,
}

/// Counts a running call, down again when it is dropped.
struct Inside(Arc<AtomicUsize>);

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

fn said(text: impl Into<String>) -> Result<CallToolResponse, ErrorData> {
    Ok(CallToolResult::success(vec![ContentBlock::text(text.into())]).into())
}

pub(super) fn question() -> ElicitRequestParams {
    let params =
        json!({ "mode": "form", "message": "Who?", "requestedSchema": { "type": "object", "properties": {} } });
    serde_json::from_value(params).expect("a question")
}

fn required() -> InputRequiredResult {
    let question = json!({ "method": "elicitation/create", "params": question() });
    let question: InputRequest = serde_json::from_value(question).expect("a question");
    InputRequiredResult::new(Some([("who".to_owned(), question)].into()), Some("round 1".into()))
}

fn answered(answers: Option<&BTreeMap<String, Value>>, state: Option<&str>) -> Option<String> {
    let answer = answers?.get("who").filter(|_| state == Some("round 1"))?;
    Some(format!("Hello, {}!", answer["content"]["name"].as_str().unwrap_or("nobody")))
}

pub(super) async fn log(peer: &Peer<RoleServer>, text: &str) {
    let message = LoggingMessageNotificationParam::new(LoggingLevel::Info, text.into());
    let _ = peer.notify_logging_message(message).await;
}

impl ServerHandler for Plain {
    fn get_info(&self) -> ServerConfig {
        let able = ServerCapabilities::builder().enable_tools().enable_prompts().enable_resources();
        ServerConfig::new(able.enable_completions().build()).with_instructions("Plain.")
    }

    async fn list_tools(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListToolsResult, ErrorData> {
        let names = ["steps", "ask", "rounds", "keep", "late", "hang", "panic", "task", "nothing", "flood"];
        let tool = |name| rmcp::model::Tool::new(name, "A tool", Map::new());
        let sum = json!({ "type": "object", "properties": { "sum": { "type": "integer" } }, "required": ["sum"] });
        let Value::Object(sum) = sum else { panic!("an object") };
        let sums = ["sum", "sum_wrong", "sum_missing", "sum_failed"];
        let sums = sums.map(|name| tool(name).with_raw_output_schema(Arc::new(sum.clone())));
        let pair = |name, draft| {
            let list = json!({ "type": "array", "items": [{ "type": "string" }], "additionalItems": false });
            let pair = json!({ "$schema": draft, "type": "object", "properties": { "pair": list } });
            let Value::Object(pair) = pair else { panic!("an object") };
            tool(name).with_raw_output_schema(Arc::new(pair))
        };
        let pairs = [
            pair("pair", "http://json-schema.org/draft-07/schema#"),
            pair("pair_wrong", "http://json-schema.org/draft-07/schema#"),
            pair("pair_unknown", "urn:own"),
        ];
        Ok(ListToolsResult::with_all_items(names.into_iter().map(tool).chain(sums).chain(pairs).collect()))
    }

    async fn call_tool(
        &self,
        request: CallToolRequestParams,
        context: RequestContext<RoleServer>,
    ) -> Result<CallToolResponse, ErrorData> {
        match request.name.as_ref() {
            "steps" => {
                let token = context.meta.get_progress_token().expect("a token");
                for step in 1..=3 {
                    let step = ProgressNotificationParam::new(token.clone(), f64::from(step));
                    context.peer.notify_progress(step).await.expect("heard");
                }
                log(&context.peer, "stepping").await;
                said("stepped")
            }
            "ask" => match context.peer.create_elicitation(question()).await {
                Ok(answer) if answer.action == ElicitationAction::Accept => {
                    said(answer.content.unwrap_or_default()["name"].as_str().unwrap_or("nobody"))
                }
                answer => said(format!("not answered: {answer:?}")),
            },
            "rounds" => match answered(request.input_responses.as_ref(), request.request_state.as_deref()) {
                Some(text) => said(text),
                None => Ok(required().into()),
            },
            "keep" => {
                *self.kept.lock() = Some(context.peer);
                said("kept")
            }
            "late" => {
                let peer = context.peer.clone();
                // Outlives its call, and says what only this call's caller may hear.
                tokio::spawn(async move {
                    for _ in 0..20 {
                        tokio::time::sleep(Duration::from_millis(5)).await;
                        log(&peer, "a secret").await;
                    }
                });
                said("begun")
            }
            "hang" => {
                self.inside.fetch_add(1, Ordering::SeqCst);
                let _inside = Inside(Arc::clone(&self.inside));
                tokio::time::sleep(Duration::from_secs(3600)).await;
                said("never")
            }
            "panic" => panic!("as asked"),
            "sum" => Ok(CallToolResult::structured(json!({ "sum": 3 })).into()),
            "sum_wrong" => Ok(CallToolResult::structured(json!({ "sum": "three" })).into()),
            "pair" => Ok(CallToolResult::structured(json!({ "pair": ["a"] })).into()),
            "pair_wrong" | "pair_unknown" => Ok(CallToolResult::structured(json!({ "pair": ["a", 1] })).into()),
            "sum_missing" => said("three"),
            "sum_failed" => Ok(CallToolResult::error(vec![ContentBlock::text("no sum")]).into()),
            "task" => {
                let then = "2026-01-01T00:00:00Z";
                let task = Task::new("t1".to_owned(), TaskStatus::Working, then.to_owned(), then.to_owned());
                Ok(CallToolResponse::Task(CreateTaskResult::new(task)))
            }
            "flood" => {
                let questions = (0..500).map(|_| {
                    let peer = context.peer.clone();
                    tokio::spawn(async move { peer.create_elicitation(question()).await })
                });
                let mut refused = 0;
                for question in questions.collect::<Vec<_>>() {
                    refused += usize::from(question.await.expect("no panic").is_err());
                }
                said(refused.to_string())
            }
            _ => said("nothing"),
        }
    }

    async fn list_prompts(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListPromptsResult, ErrorData> {
        Ok(ListPromptsResult::with_all_items(vec![Prompt::new(self.name, Some("A prompt"), None)]))
    }

    async fn get_prompt(
        &self,
        request: GetPromptRequestParams,
        _: RequestContext<RoleServer>,
    ) -> Result<GetPromptResponse, ErrorData> {
        if request.name != self.name {
            return Err(ErrorData::invalid_params(format!("no prompt {}", request.name), None));
        }
        match answered(request.input_responses.as_ref(), request.request_state.as_deref()) {
            Some(text) => Ok(GetPromptResult::new(vec![PromptMessage::new_text(Role::User, text)]).into()),
            None => Ok(required().into()),
        }
    }

    async fn complete(
        &self,
        request: CompleteRequestParams,
        _: RequestContext<RoleServer>,
    ) -> Result<CompleteResult, ErrorData> {
        let name = match &request.r#ref {
            Reference::Prompt(prompt) => prompt.name.clone(),
            other => format!("{other:?}"),
        };
        let values = if name == self.name { vec![format!("of {name}")] } else { vec![] };
        Ok(CompleteResult::new(CompletionInfo::new(values).map_err(|e| ErrorData::internal_error(e, None))?))
    }

    async fn list_resources(
        &self,
        _: Option<PaginatedRequestParams>,
        _: RequestContext<RoleServer>,
    ) -> Result<ListResourcesResult, ErrorData> {
        Ok(ListResourcesResult::with_all_items(vec![Resource::new(format!("plain://{}", self.name), "one")]))
    }

    async fn read_resource(
        &self,
        request: ReadResourceRequestParams,
        _: RequestContext<RoleServer>,
    ) -> Result<ReadResourceResponse, ErrorData> {
        if request.uri != format!("plain://{}", self.name) {
            return Err(ErrorData::resource_not_found("no such resource", None));
        }
        Ok(ReadResourceResult::new(vec![ResourceContents::text("one", request.uri)]).into())
    }
}

/// A handler by rmcp's macros.
pub(super) struct ByMacros {
    tool_router: ToolRouter<Self>,
}

#[tool_router]
impl ByMacros {
    pub(super) fn new() -> Self {
        Self { tool_router: Self::tool_router() }
    }

    #[tool(description = "Says hello")]
    fn hello(&self) -> String {
        "hello".into()
    }
}

#[tool_handler(router = self.tool_router)]
impl ServerHandler for ByMacros {}
