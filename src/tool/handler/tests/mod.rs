//! Hosting, without a server around it: the clients that the tests here use. The handlers are in `handlers`.

#![expect(deprecated)] // logging and its like, which clients go on to use for years

mod calls;
mod handlers;
mod listen;
mod methods;
mod ways_back;

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

use self::handlers::{ByMacros, Plain, log, question};
use super::{Handler, Hosted};
use crate::{
    call::{Caller, ClientCapabilities, Ctx, Deadline, Kind, Lane, Raw, Reply},
    changes::{Change, Changes, Lists, Topic},
    error::CallError,
    input::{Answers, Exchange, Memory, Rounds},
    outbox::{LogLevel, Message, Outbox},
    tool::{Outcome, Run, Work},
};

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
