//! Hosting, without a server around it: what handlers say reaches the call that they say it in, and no other.

#![expect(deprecated)] // logging and its like, which clients go on to use for years

use std::{
    collections::{BTreeMap, HashMap},
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use rmcp::{
    ErrorData, RoleServer, ServerHandler,
    handler::server::router::tool::ToolRouter,
    model::{
        CallToolRequestParams, CallToolResponse, CallToolResult, CompleteRequestParams, CompleteResult, CompletionInfo,
        ContentBlock, CreateTaskResult, ElicitRequestParams, ElicitationAction, GetPromptRequestParams,
        GetPromptResponse, GetPromptResult, InputRequest, InputRequiredResult, ListPromptsResult, ListResourcesResult,
        ListToolsResult, LoggingLevel, LoggingMessageNotificationParam, PaginatedRequestParams,
        ProgressNotificationParam, Prompt, PromptMessage, ReadResourceRequestParams, ReadResourceResponse,
        ReadResourceResult, Reference, Resource, ResourceContents, Role, ServerCapabilities, ServerConfig,
        SubscriptionFilter, Task, TaskStatus,
    },
    service::{Peer, RequestContext, SubscriptionContext, SubscriptionSink},
    tool, tool_handler, tool_router,
};
use serde_json::{Map, Value, json};
use tokio::sync::oneshot;

use super::{Handler, Hosted};
use crate::{
    call::{Caller, ClientCapabilities, Ctx, Deadline, Kind, Lane, Raw, Reply},
    changes::{Change, Changes, Lists, Topic},
    error::CallError,
    input::{Answers, Exchange, Memory, Rounds},
    outbox::{LogLevel, Message, Outbox},
    tool::{Outcome, Run, Work},
};

/// A handler by hand, which knows nothing of bigiron.
#[derive(Clone, Default)]
struct Plain {
    /// What its only resource and prompt are called.
    name: &'static str,
    kept: Arc<Mutex<Option<Peer<RoleServer>>>>,
    inside: Arc<AtomicUsize>,
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

fn question() -> ElicitRequestParams {
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

async fn log(peer: &Peer<RoleServer>, text: &str) {
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
        Ok(ListToolsResult::with_all_items(names.into_iter().map(tool).chain(sums).collect()))
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
struct ByMacros {
    tool_router: ToolRouter<Self>,
}

#[tool_router]
impl ByMacros {
    fn new() -> Self {
        Self { tool_router: Self::tool_router() }
    }

    #[tool(description = "Says hello")]
    fn hello(&self) -> String {
        "hello".into()
    }
}

#[tool_handler(router = self.tool_router)]
impl ServerHandler for ByMacros {}

fn plain(name: &'static str) -> Plain {
    Plain { name, ..Plain::default() }
}

async fn host(handlers: Vec<Handler>) -> Hosted {
    Hosted::new(handlers, Changes::default()).await.expect("hosted")
}

async fn host_plain() -> (Hosted, Plain) {
    let plain = plain("one");
    (host(vec![Handler::new(plain.clone())]).await, plain)
}

/// A call of 2026-07-28 by a client with `able`.
fn modern(able: ClientCapabilities) -> Ctx {
    let mut meta = super::own_meta();
    meta.insert("progressToken".into(), 7.into());
    let mut ctx = Ctx::new(Caller::ANONYMOUS, Deadline::after(Instant::now(), 10_000), able);
    ctx.raw = Some(Box::new(Raw { version: "2026-07-28", id: 1.into(), meta, ..Raw::default() }));
    ctx
}

/// A call that is heard: of which the client wants to hear everything.
fn heard() -> (Ctx, Arc<Outbox>) {
    let mut ctx = modern(ClientCapabilities::default());
    let outbox = Arc::new(Outbox::new(true, Some(LogLevel::Debug), 1 << 20));
    ctx.outbox = Some(Arc::clone(&outbox));
    (ctx, outbox)
}

/// A client of a session, which answers every question.
#[derive(Debug, Default)]
struct Client {
    open: Mutex<HashMap<u64, oneshot::Sender<Result<Value, Value>>>>,
    asked: AtomicUsize,
}

impl Answers for Client {
    fn expect(&self) -> Option<(u64, oneshot::Receiver<Result<Value, Value>>)> {
        let (sender, receiver) = oneshot::channel();
        let id = self.asked.fetch_add(1, Ordering::SeqCst) as u64;
        self.open.lock().insert(id, sender);
        Some((id, receiver))
    }

    fn forget(&self, id: u64) {
        self.open.lock().remove(&id);
    }
}

/// A call of 2025-11-25 whose client answers as Ada.
fn in_session() -> (Ctx, Arc<Client>) {
    let able = ClientCapabilities::ELICITATION;
    let mut ctx = Ctx::new(Caller::ANONYMOUS, Deadline::after(Instant::now(), 10_000), able);
    let initialize = json!({
        "protocolVersion": "2025-11-25",
        "capabilities": { "elicitation": {} },
        "clientInfo": { "name": "ada", "version": "1" }
    });
    let raw = Raw { version: "2025-11-25", id: 1.into(), initialize: Some(Arc::new(initialize)), ..Raw::default() };
    ctx.raw = Some(Box::new(raw));
    let outbox = Arc::new(Outbox::new(false, None, 1 << 20));
    let client = Arc::new(Client::default());
    ctx.outbox = Some(Arc::clone(&outbox));
    ctx.exchange = Exchange::Stream(Arc::clone(&client) as _);
    let answering = Arc::clone(&client);
    tokio::spawn(async move {
        while let Message::Request { id, method, .. } = poll_fn(|cx| outbox.poll_next(cx, true)).await {
            assert_eq!(method, "elicitation/create");
            let answer = json!({ "action": "accept", "content": { "name": "Ada" } });
            let waiting = answering.open.lock().remove(&id);
            let _ = waiting.expect("asked").send(Ok(answer));
        }
    });
    (ctx, client)
}

fn messages(outbox: &Outbox) -> Vec<Value> {
    let told = |message| match message {
        Message::Progress { progress, .. } => json!(progress),
        Message::Ready(json) => serde_json::from_slice(&json).expect("JSON"),
        other => panic!("unexpected {other:?}"),
    };
    outbox.close().into_iter().map(told).collect()
}

async fn run(work: &Work, arguments: Value, ctx: Ctx) -> Outcome {
    match &work.run {
        Run::Async(run) => run(arguments, ctx).await,
        Run::Sync(_) => panic!("{} runs elsewhere", work.name),
    }
}

async fn call(hosted: &Hosted, tool: &str, ctx: Ctx) -> Outcome {
    let tool = hosted.tools.iter().find(|t| t.name() == tool).expect("a tool");
    run(&tool.work, json!({}), ctx).await
}

async fn ask(hosted: &Hosted, method: &str, params: Value, ctx: Ctx) -> Outcome {
    run(&hosted.methods[method], params, ctx).await
}

fn text(outcome: Outcome) -> String {
    let json = outcome.expect("an answer").to_json();
    json["content"][0]["text"].as_str().expect("text").to_owned()
}

async fn eventually(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..400 {
        if is_so() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not in time: {what}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_made_by_macros_is_served() {
    let hosted = host(vec![Handler::new(ByMacros::new()).prefix("m_")]).await;
    assert_eq!(text(call(&hosted, "m_hello", modern(ClientCapabilities::default())).await), "hello");
    assert!(hosted.methods.is_empty(), "it says that it has tools, and nothing else");
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_and_logs_reach_their_call() {
    let (hosted, _) = host_plain().await;
    let (ctx, outbox) = heard();
    assert_eq!(text(call(&hosted, "steps", ctx).await), "stepped");
    let messages = messages(&outbox);
    assert_eq!(messages[0]["params"]["data"], "stepping", "{messages:?}");
    assert_eq!(messages[1], 3.0, "the newest progress: {messages:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn questions_reach_the_client_of_a_session() {
    let (hosted, _) = host_plain().await;
    for tool in ["ask", "rounds"] {
        let (ctx, client) = in_session();
        assert!(text(call(&hosted, tool, ctx).await).contains("Ada"), "{tool}");
        assert_eq!(client.asked.load(Ordering::SeqCst), 1);
    }
    let asked = text(call(&hosted, "ask", modern(ClientCapabilities::ELICITATION)).await);
    assert!(asked.starts_with("not answered"), "nobody can be asked in the middle of a modern call: {asked}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rounds_end_the_call_and_begin_it_again() {
    let (hosted, _) = host_plain().await;
    let again = || {
        let answers = json!({ "who": { "action": "accept", "content": { "name": "Ada" } } });
        let memory = Memory { kept: Some("round 1".into()), ..Memory::default() };
        let mut ctx = modern(ClientCapabilities::ELICITATION);
        ctx.exchange = Exchange::Rounds(Arc::new(Rounds::new(memory, answers.as_object().expect("object").clone())));
        ctx
    };
    let Err(CallError::InputRequired(required)) =
        call(&hosted, "rounds", modern(ClientCapabilities::ELICITATION)).await
    else {
        panic!("a question was expected")
    };
    assert_eq!(required.requests["who"]["method"], "elicitation/create");
    assert_eq!(required.memory.kept, Some("round 1".into()));
    assert_eq!(text(call(&hosted, "rounds", again()).await), "Hello, Ada!");

    let params = json!({ "name": "one" });
    let asked = ask(&hosted, "prompts/get", params.clone(), modern(ClientCapabilities::ELICITATION)).await;
    assert!(matches!(asked, Err(CallError::InputRequired(_))), "{asked:?}");
    let prompt = ask(&hosted, "prompts/get", params, again()).await.expect("a prompt").to_json();
    assert_eq!(prompt["messages"][0]["content"]["text"], "Hello, Ada!");
}

#[tokio::test(flavor = "multi_thread")]
async fn rounds_of_prompts_are_driven_in_sessions() {
    let (hosted, _) = host_plain().await;
    let (ctx, client) = in_session();
    let prompt = ask(&hosted, "prompts/get", json!({ "name": "one" }), ctx).await.expect("a prompt").to_json();
    assert_eq!(prompt["messages"][0]["content"]["text"], "Hello, Ada!");
    assert_eq!(client.asked.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn cache_hints_are_the_handlers_or_none() {
    let (hosted, _) = host_plain().await;
    for (method, params) in [("resources/list", json!({})), ("resources/read", json!({ "uri": "plain://one" }))] {
        let result = ask(&hosted, method, params, modern(ClientCapabilities::default())).await.expect("one").to_json();
        assert!(result.get("ttlMs").is_none(), "the handler set none: {result}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn handlers_side_by_side_answer_for_what_is_theirs() {
    let hosted = host(vec![
        Handler::new(plain("one")),
        Handler::new(plain("two")).prefix("b_"),
        Handler::new(plain("one")).prefix("c_"),
    ])
    .await;
    let plainly = || modern(ClientCapabilities::ELICITATION);
    assert_eq!(text(call(&hosted, "b_nothing", plainly()).await), "nothing");
    let mut names = Vec::new();
    let mut cursor = json!({});
    loop {
        let page = ask(&hosted, "prompts/list", cursor, plainly()).await.expect("a page").to_json();
        names.push(page["prompts"][0]["name"].clone());
        match page.get("nextCursor") {
            Some(next) => cursor = json!({ "cursor": next }),
            None => break,
        }
    }
    assert_eq!(names, ["one", "b_two", "c_one"]);
    for name in ["one", "b_two", "c_one"] {
        let got = ask(&hosted, "prompts/get", json!({ "name": name }), plainly()).await;
        assert!(matches!(got, Err(CallError::InputRequired(_))), "{name}: {got:?}");
        let own = name.trim_start_matches("b_").trim_start_matches("c_");
        let params = json!({ "ref": { "type": "ref/prompt", "name": name }, "argument": { "name": "x", "value": "" } });
        let completed = ask(&hosted, "completion/complete", params, plainly()).await.expect("values").to_json();
        assert_eq!(completed["completion"]["values"], json!([format!("of {own}")]), "{name}");
    }
    for uri in ["plain://one", "plain://two"] {
        let read = ask(&hosted, "resources/read", json!({ "uri": uri }), plainly()).await.expect("read").to_json();
        assert_eq!(read["contents"][0]["uri"], uri);
    }
    let missing = ask(&hosted, "resources/read", json!({ "uri": "plain://x" }), plainly()).await;
    assert_eq!(missing, Err(CallError::NoResource("plain://x".into())));
    let unknown = ask(&hosted, "prompts/get", json!({ "name": "b_x" }), plainly()).await;
    assert!(
        matches!(&unknown, Err(CallError::Rpc { code: -32602, message, .. }) if message == "no prompt x"),
        "{unknown:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_is_only_for_clients_that_know_tasks() {
    let (hosted, _) = host_plain().await;
    let task = call(&hosted, "task", modern(ClientCapabilities::TASKS)).await.expect("a task");
    assert_eq!(task.kind, Kind::Task);
    let refused = call(&hosted, "task", modern(ClientCapabilities::default())).await;
    assert_eq!(refused, Err(CallError::MissingCapability(ClientCapabilities::TASKS)));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_outlives_its_call_reaches_no_other() {
    let (hosted, plain) = host_plain().await;
    // A task that goes on when its call is over.
    assert_eq!(text(call(&hosted, "late", modern(ClientCapabilities::default())).await), "begun");
    let until = Instant::now() + Duration::from_millis(150);
    let mut calls = 0;
    while Instant::now() < until {
        let (ctx, outbox) = heard();
        assert_eq!(text(call(&hosted, "steps", ctx).await), "stepped");
        tokio::time::sleep(Duration::from_millis(3)).await;
        let messages = messages(&outbox);
        assert!(!messages.iter().any(|m| m["params"]["data"] == "a secret"), "{messages:?}");
        calls += 1;
    }
    assert!(calls > 3);
    // A peer that is kept: what is said by it about lists is for everybody, and nothing else is for anybody.
    assert_eq!(text(call(&hosted, "keep", modern(ClientCapabilities::default())).await), "kept");
    let kept = plain.kept.lock().clone().expect("kept");
    for _ in 0..10 {
        let (ctx, outbox) = heard();
        let (done, said) = tokio::join!(call(&hosted, "steps", ctx), log(&kept, "a secret"));
        assert_eq!((text(done), said), ("stepped".into(), ()));
        assert!(!messages(&outbox).iter().any(|m| m["params"]["data"] == "a secret"));
    }
    assert!(kept.create_elicitation(question()).await.is_err(), "nobody can be asked outside a call");
}

#[tokio::test(flavor = "multi_thread")]
async fn changes_are_heard_from_any_peer_at_any_time() {
    let plain = plain("one");
    let changes = Changes::default();
    let subscription = changes.subscribe(Lists::ALL, vec![]);
    let hosted = Hosted::new(vec![Handler::new(plain.clone())], changes).await.expect("hosted");
    assert_eq!(text(call(&hosted, "keep", modern(ClientCapabilities::default())).await), "kept");
    let kept = plain.kept.lock().clone().expect("kept");
    // However many calls there are meanwhile, a peer that is kept goes on to be heard.
    for _ in 0..300 {
        assert_eq!(text(call(&hosted, "nothing", modern(ClientCapabilities::default())).await), "nothing");
    }
    kept.notify_prompt_list_changed().await.expect("heard");
    assert_eq!(poll_fn(|cx| subscription.poll_take(cx)).await, Change::List(Lists::PROMPTS));
    kept.notify_tool_list_changed().await.expect("heard");
    tokio::time::timeout(Duration::from_secs(5), hosted.tools_changed.notified()).await.expect("told");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_dropped_ends_its_handler() {
    let (hosted, plain) = host_plain().await;
    let called =
        tokio::time::timeout(Duration::from_millis(50), call(&hosted, "hang", modern(ClientCapabilities::default())));
    assert!(called.await.is_err());
    assert_eq!(plain.inside.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_is_its_own_calls_and_the_way_back_goes_on() {
    let (hosted, _) = host_plain().await;
    let hosted = Arc::new(hosted);
    for _ in 0..5 {
        let panicking = Arc::clone(&hosted);
        let called =
            tokio::spawn(async move { call(&panicking, "panic", modern(ClientCapabilities::default())).await });
        assert!(called.await.is_err(), "what runs tools contains it");
        let (ctx, outbox) = heard();
        assert_eq!(text(call(&hosted, "steps", ctx).await), "stepped");
        assert_eq!(messages(&outbox).len(), 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_that_is_not_what_its_tool_returns_is_an_error() {
    let (hosted, _) = host_plain().await;
    let sum = async |name| call(&hosted, name, modern(ClientCapabilities::default())).await;
    assert_eq!(sum("sum").await.expect("as it says").to_json()["structuredContent"]["sum"], 3);
    for (name, fault) in [("sum_wrong", "/sum: "), ("sum_missing", "no structured content")] {
        let told = sum(name).await.expect_err("it is not what it says").to_string();
        assert!(told.contains(fault) && told.contains("a fault of the tool"), "{told}");
    }
    assert!(sum("sum_failed").await.expect("it says so itself").is_error());
}

#[tokio::test(flavor = "multi_thread")]
async fn many_questions_at_once_are_bounded_and_all_answered() {
    let (hosted, _) = host_plain().await;
    let refused = text(call(&hosted, "flood", modern(ClientCapabilities::default())).await);
    assert_eq!(refused, "500");
    let (ctx, client) = in_session();
    let refused: usize = text(call(&hosted, "flood", ctx).await).parse().expect("a number");
    assert_eq!(refused + client.asked.load(Ordering::SeqCst), 500, "each is asked or refused");
}

/// Runs a tool of the worker pool as the pool does.
fn run_on_this_thread(work: &Work, ctx: Ctx) -> Result<Reply, CallError> {
    match &work.run {
        Run::Sync(run) => run(json!({}), ctx),
        Run::Async(_) => panic!("{} does not run in the pool", work.name),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn the_pool_runs_handlers_and_lets_go_of_them() {
    let plain = plain("one");
    let handler = Handler::new(plain.clone()).lane("nothing", Lane::Pool).lane("hang", Lane::Pool);
    let hosted = Arc::new(host(vec![handler]).await);
    let work = |name: &str| Arc::clone(&hosted.tools.iter().find(|t| t.name() == name).expect("a tool").work);
    // On a thread of the pool, and on one of the runtime, which the pool borrows when it is full.
    let nothing = work("nothing");
    let other = Arc::clone(&nothing);
    let there = std::thread::spawn(move || run_on_this_thread(&other, modern(ClientCapabilities::default())));
    assert_eq!(text(there.join().expect("no panic")), "nothing");
    assert_eq!(text(run_on_this_thread(&nothing, modern(ClientCapabilities::default()))), "nothing");
    // A client that leaves takes the thread back.
    let hang = work("hang");
    let mut ctx = modern(ClientCapabilities::default());
    let ticket = crate::call::Ticket::default();
    ctx.ticket = Some(ticket.clone());
    let running = std::thread::spawn(move || run_on_this_thread(&hang, ctx));
    eventually("it runs", || plain.inside.load(Ordering::SeqCst) == 1).await;
    ticket.give_up();
    eventually("it has ended", || running.is_finished()).await;
    assert_eq!(plain.inside.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn ways_back_are_used_again_when_nobody_keeps_them() {
    let (hosted, plain) = host_plain().await;
    let made = || hosted.ways_back_made();
    for _ in 0..50 {
        call(&hosted, "nothing", modern(ClientCapabilities::default())).await.expect("an answer");
    }
    eventually("it listens", || made() >= 2).await; // in a task of its own
    assert_eq!(made(), 2, "one that listens at the start, and one for all calls, the listing included");
    call(&hosted, "keep", modern(ClientCapabilities::default())).await.expect("an answer");
    for _ in 0..50 {
        call(&hosted, "nothing", modern(ClientCapabilities::default())).await.expect("an answer");
    }
    assert_eq!(made(), 3, "the one that is kept is set apart");
    // Neither calls that are dropped nor peers that are let go take one for ever.
    *plain.kept.lock() = None;
    for _ in 0..50 {
        let hanging = call(&hosted, "hang", modern(ClientCapabilities::default()));
        assert!(tokio::time::timeout(Duration::from_millis(2), hanging).await.is_err());
    }
    // Each that was dropped is set apart until its loop has settled, and is lent again then.
    let lent_again = async {
        loop {
            let before = made();
            call(&hosted, "nothing", modern(ClientCapabilities::default())).await.expect("an answer");
            if made() == before {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), lent_again).await.expect("none is lost");
}

/// A handler that tells its subscribers of changes by the sinks that it was given.
#[derive(Clone, Default)]
struct Telling {
    sinks: Arc<Mutex<Vec<SubscriptionSink>>>,
}

impl Telling {
    async fn tell(&self, uri: &str) -> usize {
        let sinks = self.sinks.lock().clone();
        let mut told = 0;
        for sink in sinks {
            told += usize::from(sink.notify_resource_updated(uri).await.is_ok());
        }
        told
    }
}

impl ServerHandler for Telling {
    fn get_info(&self) -> ServerConfig {
        let able = ServerCapabilities::builder().enable_resources().enable_resources_subscribe();
        ServerConfig::new(able.enable_resources_list_changed().build())
    }

    fn accepted_subscription_filter(&self, requested: &SubscriptionFilter) -> Option<SubscriptionFilter> {
        Some(requested.clone())
    }

    async fn listen(&self, context: SubscriptionContext) -> Result<(), ErrorData> {
        self.sinks.lock().push(context.sink().clone());
        context.cancelled().await;
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_subscribers_are_told_is_heard_while_somebody_wants_to() {
    let telling = Telling::default();
    let changes = Changes::default();
    let _hosted = Hosted::new(vec![Handler::new(telling.clone())], changes.clone()).await.expect("hosted");
    eventually("it has a subscriber", || !telling.sinks.lock().is_empty()).await;
    assert_eq!(telling.tell("a:1").await, 0, "nobody asked about it");
    let subscription = changes.subscribe(Lists::ALL, vec![Topic::Resource("a:1".into())]);
    let told = async {
        while telling.tell("a:1").await == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await
        }
    };
    tokio::time::timeout(Duration::from_secs(5), told).await.expect("told");
    assert_eq!(poll_fn(|cx| subscription.poll_take(cx)).await, Change::Resource("a:1".into()));
    let sink = telling.sinks.lock()[0].clone();
    let closed = async {
        while sink.notify_resource_list_changed().await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await
        }
    };
    tokio::time::timeout(Duration::from_secs(5), closed).await.expect("the one before is closed");
    drop(subscription);
    let over = async {
        while telling.tell("a:1").await > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await
        }
    };
    tokio::time::timeout(Duration::from_secs(5), over).await.expect("nobody asks any more");
}

/// A handler that ends every subscription to a resource that it does not know.
#[derive(Clone, Default)]
struct Picky {
    telling: Telling,
    refused: Arc<AtomicUsize>,
}

impl ServerHandler for Picky {
    fn get_info(&self) -> ServerConfig {
        self.telling.get_info()
    }

    fn accepted_subscription_filter(&self, requested: &SubscriptionFilter) -> Option<SubscriptionFilter> {
        Some(requested.clone())
    }

    async fn listen(&self, context: SubscriptionContext) -> Result<(), ErrorData> {
        let uris = context.accepted().resource_subscriptions.clone().unwrap_or_default();
        if uris.iter().any(|uri| uri == "bad:panics") {
            panic!("a resource that is too much for it");
        }
        if uris.iter().any(|uri| uri.starts_with("bad:")) {
            self.refused.fetch_add(1, Ordering::SeqCst);
            return Err(ErrorData::invalid_params("no such resource", None));
        }
        self.telling.listen(context).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resource_that_a_handler_does_not_like_keeps_no_other_from_being_heard() {
    let picky = Picky::default();
    let changes = Changes::default();
    let _hosted = Hosted::new(vec![Handler::new(picky.clone())], changes.clone()).await.expect("hosted");
    let hears = |uri: String| {
        let (picky, changes) = (picky.clone(), changes.clone());
        async move {
            let reader = changes.subscribe(Lists::default(), vec![Topic::Resource(uri.as_str().into())]);
            let told = async {
                while picky.telling.tell(&uri).await == 0 {
                    tokio::time::sleep(Duration::from_millis(5)).await
                }
            };
            tokio::time::timeout(Duration::from_secs(10), told).await.unwrap_or_else(|_| panic!("{uri} is heard of"));
            assert_eq!(poll_fn(|cx| reader.poll_take(cx)).await, Change::Resource(uri.as_str().into()));
            reader
        }
    };
    let resource = |uri: &str| Topic::Resource(uri.into());
    let topics = ["bad:1", "a:1", "a:2", "bad:panics", "a:3"].map(resource).into();
    let others = changes.subscribe(Lists::RESOURCES, topics);
    let _one = hears("a:1".into()).await;
    let _two = hears("a:4".into()).await;
    // What was refused is left out soon, and not asked for again with each other resource.
    let left_out = async {
        for n in 5.. {
            let before = picky.refused.load(Ordering::SeqCst);
            let _reader = hears(format!("a:{n}")).await;
            if before > 0 && picky.refused.load(Ordering::SeqCst) == before {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), left_out).await.expect("it is left out");
    // The lists are heard as well.
    let listed = async {
        loop {
            let sinks = picky.telling.sinks.lock().clone();
            for sink in sinks {
                let _ = sink.notify_resource_list_changed().await; // one that is closed says so
            }
            if poll_fn(|cx| others.poll_take(cx)).await == Change::List(Lists::RESOURCES) {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), listed).await.expect("the lists are heard");
}
