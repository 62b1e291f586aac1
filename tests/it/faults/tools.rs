//! Tools for rows that need to see what happens inside, or a tool that the program does not ship.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use bigiron::{
    CallError, Ctx, Input, Json, Lane, LogLevel, Resource, Server, Tool, call::ClientCapabilities, server::Builder,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::wire::FORBIDDEN;

/// What reached the tools.
#[derive(Debug, Default)]
pub(super) struct Seen {
    forbidden: AtomicUsize,
    running: AtomicUsize,
}

impl Seen {
    /// Calls that should have been refused, since the last look.
    pub(super) fn take_forbidden(&self) -> usize {
        self.forbidden.swap(0, Ordering::SeqCst)
    }

    /// Calls of `burn` and `hang` that are running.
    pub(super) fn running(&self) -> usize {
        self.running.load(Ordering::SeqCst)
    }
}

/// Counts a running call until it is dropped.
struct Inside(Arc<Seen>);

impl Inside {
    fn new(seen: &Arc<Seen>) -> Self {
        seen.running.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(seen))
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.running.fetch_sub(1, Ordering::SeqCst);
    }
}

#[derive(Deserialize, JsonSchema)]
struct Nothing {}

#[derive(Deserialize, JsonSchema)]
struct Message {
    message: String,
}

#[derive(Deserialize, JsonSchema)]
struct Burn {
    ms: u64,
}

#[derive(Serialize, JsonSchema)]
struct Burned {
    burned_ms: u64,
}

#[derive(Deserialize, JsonSchema)]
struct Big {
    bytes: usize,
}

/// Arguments that clients repeat in headers.
#[derive(Deserialize, JsonSchema)]
struct Routed {
    #[schemars(extend("x-mcp-header" = "Region"))]
    region: String,
    #[schemars(extend("x-mcp-header" = "Count", "type" = "integer"))]
    count: Option<Value>,
}

/// A server with `echo` and `burn` as the program has them, and those that only tests need.
pub(super) fn server() -> (Builder, Arc<Seen>) {
    let seen = Arc::<Seen>::default();
    let (echoing, burning, hanging) = (Arc::clone(&seen), Arc::clone(&seen), Arc::clone(&seen));
    let server = Server::builder()
        .tool("echo", "Returns the message", Lane::Inline, move |args: Message, _| {
            if args.message == FORBIDDEN {
                echoing.forbidden.fetch_add(1, Ordering::SeqCst);
            }
            args.message
        })
        .tool("burn", "Holds a worker", Lane::Pool, move |args: Burn, ctx: Ctx| {
            let _inside = Inside::new(&burning);
            let until = Instant::now() + Duration::from_millis(args.ms);
            while Instant::now() < until && !ctx.is_cancelled() {
                thread::sleep(Duration::from_millis(1));
            }
            Json(Burned { burned_ms: args.ms })
        })
        .async_tool("hang", "Never ends by itself", move |_: Nothing, _| {
            let inside = Inside::new(&hanging);
            async move {
                let _inside = inside;
                std::future::pending::<&str>().await
            }
        })
        .async_tool("steps", "Reports its own name as progress, and logs", |args: Message, ctx: Ctx| async move {
            for step in 1..=5 {
                ctx.progress(f64::from(step), Some(5.0), &args.message);
                ctx.log(LogLevel::Info, &args.message);
                tokio::time::sleep(Duration::from_millis(12)).await;
            }
            args.message
        })
        .tool("big", "Returns this many bytes", Lane::Inline, |args: Big, _| "b".repeat(args.bytes))
        .tool("needs_sampling", "Needs a client that can sample", Lane::Inline, |_: Nothing, ctx: Ctx| {
            ctx.require(ClientCapabilities::SAMPLING).map(|()| "sampled")
        })
        .tool("routed", "Takes arguments that headers repeat", Lane::Inline, |args: Routed, _| {
            format!("{} {}", args.region, args.count.unwrap_or_default())
        })
        .with(show())
        .with(remember("remember"))
        .with(remember("remember_too"))
        .resource(Resource::new("test://one", "one", "The one", "text/plain", Lane::Inline, |_, _| "one"));
    (server, seen)
}

/// Asks who calls, and keeps its argument until the answer is there.
fn remember(name: &'static str) -> Tool {
    Tool::new_async(name, "Asks who calls, and remembers", |args: Message, ctx: Ctx| async move {
        let kept = ctx.kept().and_then(Value::as_str).unwrap_or("nothing").to_owned();
        ctx.keep(args.message.into());
        let form = json!({ "type": "object", "properties": { "name": { "type": "string" } }, "required": ["name"] });
        let who = ctx.ask("who", Input::elicit("Who are you?", form)).await?;
        Ok::<_, CallError>(format!("{} after {kept}", who["content"]["name"].as_str().unwrap_or("nobody")))
    })
}

/// Takes any arguments and returns them as they came.
fn show() -> Tool {
    let Value::Object(schema) = json!({ "type": "object" }) else { unreachable!("it is written as an object") };
    Tool::new("show", "Returns its arguments", Lane::Inline, |args: Map<String, Value>, _| {
        Value::Object(args).to_string()
    })
    .input_schema(schema)
}
