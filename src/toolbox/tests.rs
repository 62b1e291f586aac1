//! What the tests of the tools share: a call's context without a server around it, and a folder to read.

use std::{
    fs,
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;

use super::*;
use crate::{
    call::{Caller, ClientCapabilities, Ctx, Deadline, Ticket},
    error::CallError,
    outbox::Outbox,
    tool::Run,
};

/// A context with plenty of time.
pub(super) fn ctx() -> Ctx {
    ctx_with(600_000)
}

pub(super) fn ctx_with(limit_ms: u64) -> Ctx {
    Ctx::new(Caller::ANONYMOUS, Deadline::after(Instant::now(), limit_ms), ClientCapabilities::default())
}

/// A context that was cancelled before the call began.
pub(super) fn cancelled_ctx() -> Ctx {
    let (ctx, cancel) = cancellable_ctx();
    cancel.give_up();
    ctx
}

pub(super) fn cancellable_ctx() -> (Ctx, Ticket) {
    let cancel = Ticket::default();
    let mut ctx = ctx();
    ctx.ticket = Some(cancel.clone());
    (ctx, cancel)
}

/// A context whose client asked for progress, and what it is told.
pub(super) fn listening_ctx() -> (Ctx, Arc<Outbox>) {
    let outbox = Arc::new(Outbox::new(true, None, 1024));
    let mut ctx = ctx();
    ctx.outbox = Some(Arc::clone(&outbox));
    (ctx, outbox)
}

/// Runs `work` on a thread of its own and takes the call back once it runs; the test hangs when that does not stop it.
pub(super) fn cancelled_while_running<T: Send>(work: impl FnOnce(Ctx) -> T + Send) -> T {
    let (ctx, cancel) = cancellable_ctx();
    std::thread::scope(|scope| {
        let worker = scope.spawn(move || work(ctx));
        std::thread::sleep(Duration::from_millis(50));
        cancel.give_up();
        worker.join().expect("the tool does not panic")
    })
}

/// A folder with the given files.
pub(super) fn folder(files: &[(&str, &[u8])]) -> TempDir {
    let dir = tempfile::tempdir().expect("a temporary folder");
    for (path, content) in files {
        let path = dir.path().join(path);
        fs::create_dir_all(path.parent().expect("a parent")).expect("folders");
        fs::write(path, content).expect("a file");
    }
    dir
}

pub(super) fn root_of(dir: &TempDir) -> Arc<Root> {
    Arc::new(Root::open(dir.path().to_str().expect("text")).expect("opens"))
}

/// The structured content of a tool's answer, or what the agent is told went wrong.
pub(super) fn call(tool: &Tool, arguments: Value, ctx: Ctx) -> Result<Value, CallError> {
    let Run::Sync(run) = &tool.work.run else { panic!("a tool of the toolbox returns when it is done") };
    let reply = run(arguments, ctx)?.to_json();
    Ok(reply.get("structuredContent").unwrap_or_else(|| &reply["content"][0]["text"]).clone())
}

/// What the agent is told when the call fails.
pub(super) fn refused(tool: &Tool, arguments: Value) -> String {
    match call(tool, arguments.clone(), ctx()) {
        Err(CallError::Tool(text)) => text,
        other => panic!("{arguments}: expected words for the agent, got {other:?}"),
    }
}

#[test]
fn every_tool_says_what_it_is() {
    let dir = folder(&[]);
    let config = Config { root: dir.path().to_str().expect("text").into(), ..Config::default() };
    let tools = tools(&config).expect("tools");
    let names: Vec<_> = tools.iter().map(Tool::name).collect();
    assert_eq!(names, ["search_text", "read_file", "query_json", "query_sql", "echo", "burn"]);
    for tool in &tools {
        let definition = serde_json::to_value(&tool.definition).expect("JSON");
        let annotations = &definition["annotations"];
        assert_eq!(annotations["readOnlyHint"], true, "{definition}");
        assert_eq!(annotations["idempotentHint"], true, "{definition}");
        assert_eq!(annotations["openWorldHint"], false, "{definition}");
        assert_eq!(definition["inputSchema"]["additionalProperties"], false, "{definition}");
        for (name, property) in definition["inputSchema"]["properties"].as_object().expect("properties") {
            assert!(property["description"].as_str().is_some_and(|d| d.len() > 10), "{} {name}", tool.name());
        }
        assert!(definition["title"].is_string());
        assert!(tool.name() == "echo" || definition["outputSchema"].is_object(), "{definition}");
        let bytes = definition.to_string().len();
        assert!(bytes < 6_000, "{} takes {bytes} bytes of every agent's context", tool.name());
    }
    assert_eq!(call(&tools[4], serde_json::json!({"message": "hello"}), ctx()), Ok("hello".into()));
}

#[test]
fn settings_that_cannot_be_are_refused() {
    let small = Config { output_bytes_max: ByteSize(100), ..Config::default() };
    assert!(tools(&small).expect_err("too small").contains("toolbox.output_bytes_max"));
    let nowhere = Config { root: "no/such/folder".into(), ..Config::default() };
    assert!(tools(&nowhere).expect_err("no folder").contains("toolbox.root"));
    let off = Config { enabled: false, ..nowhere };
    assert!(tools(&off).expect("nothing to open").is_empty());
}
