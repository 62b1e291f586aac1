//! A server with one tool for each thing that a tool can do, under the names that the official conformance suite looks
//! for. Run it with `cargo run --release --example everything -- --listen 127.0.0.1:5000`.

mod asking;
mod content;
mod steps;
mod tasks;

use std::{process::ExitCode, time::Duration};

use bigiron::{
    Ctx, Lane, LogLevel, Server, Tool,
    call::ClientCapabilities,
    error::CallError,
    rmcp::model::{ContentBlock, EmbeddedResource, ResourceContents},
};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Map, Value, json};

/// A PNG of one red pixel.
pub(crate) const PIXEL_PNG: &str =
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg==";
/// A WAV header with no samples behind it.
const SILENCE_WAV: &str = "UklGRiQAAABXQVZFZm10IBAAAAABAAEAQB8AAEAfAAABAAgAZGF0YQAAAAA=";
/// Between two messages of a tool that sends several.
pub(crate) const PAUSE: Duration = Duration::from_millis(50);

/// A tool that takes no arguments.
#[derive(Debug, Deserialize, JsonSchema)]
pub(crate) struct Nothing {}

#[derive(Debug, Deserialize, JsonSchema)]
struct Region {
    /// Repeated by clients in the header Mcp-Param-Region.
    #[schemars(extend("x-mcp-header" = "Region"))]
    region: String,
}

fn main() -> ExitCode {
    let server = Server::builder().identity("bigiron-everything", env!("CARGO_PKG_VERSION"));
    let server = steps::add(tasks::add(content::add(asking::add(server))));
    let server = server
        .tool(
            "test_simple_text",
            "Returns one text",
            Lane::Inline,
            |_: Nothing, _| "This is a simple text response for testing.",
        )
        .tool("test_image_content", "Returns an image", Lane::Inline, |_: Nothing, _| {
            vec![ContentBlock::image(PIXEL_PNG, "image/png")]
        })
        .tool("test_audio_content", "Returns a sound", Lane::Inline, |_: Nothing, _| {
            vec![ContentBlock::audio(SILENCE_WAV, "audio/wav")]
        })
        .tool("test_embedded_resource", "Returns a resource inside the result", Lane::Inline, |_: Nothing, _| {
            vec![resource("test://embedded-resource", "text/plain", "This is an embedded resource content.")]
        })
        .tool("test_multiple_content_types", "Returns text, image and resource", Lane::Inline, |_: Nothing, _| {
            vec![
                ContentBlock::text("Multiple content types test:"),
                ContentBlock::image(PIXEL_PNG, "image/png"),
                resource("test://mixed-content-resource", "application/json", r#"{"test":"data","value":123}"#),
            ]
        })
        .tool("test_error_handling", "Fails, in words for the agent", Lane::Inline, |_: Nothing, _| {
            Err::<String, _>("This tool intentionally returns an error for testing")
        })
        .async_tool("test_tool_with_progress", "Reports progress while it runs", with_progress)
        .async_tool("test_tool_with_logging", "Logs while it runs", with_logging)
        .async_tool("test_logging_tool", "Logs while it runs, when the client asked for it", with_logging)
        .tool("test_missing_capability", "Needs a client with sampling", Lane::Inline, |_: Nothing, ctx: Ctx| {
            ctx.require(ClientCapabilities::SAMPLING).map(|()| "The client can sample.")
        })
        .tool("test_panic", "Panics, for tests of what that costs", Lane::Inline, |_: Nothing, _| -> String {
            panic!("by request")
        })
        .tool(
            "test_trigger_tool_change",
            "Says that the list of tools has changed",
            Lane::Pool,
            |_: Nothing, ctx: Ctx| {
                ctx.changes().tools();
                "Said."
            },
        )
        .tool(
            "test_trigger_prompt_change",
            "Says that the list of prompts has changed",
            Lane::Pool,
            |_: Nothing, ctx: Ctx| {
                ctx.changes().prompts();
                "Said."
            },
        )
        .tool(
            "test_trigger_resource_change",
            "Says that the watched resource has changed",
            Lane::Pool,
            |_: Nothing, ctx: Ctx| {
                ctx.changes().resource("test://watched-resource");
                "Said."
            },
        )
        .async_tool("test_reconnection", "Lets the connection go and answers when its client is back", reconnection)
        .tool(
            "test_streaming_elicitation",
            "Answers without asking the user",
            Lane::Inline,
            |_: Nothing, _| "There was nothing to ask.",
        )
        .tool("test_custom_header", "Takes an argument that a header repeats", Lane::Inline, |args: Region, _| {
            args.region
        })
        .with(json_schema_tool());
    bigiron::cli::run(server)
}

fn resource(uri: &str, mime_type: &str, text: &str) -> ContentBlock {
    let contents = ResourceContents::text(text, uri).with_mime_type(mime_type);
    ContentBlock::Resource(EmbeddedResource::new(contents))
}

async fn with_progress(_: Nothing, ctx: Ctx) -> &'static str {
    for done in [0.0, 50.0, 100.0] {
        ctx.progress(done, Some(100.0), "working");
        tokio::time::sleep(PAUSE).await;
    }
    "The work is done."
}

async fn with_logging(_: Nothing, ctx: Ctx) -> &'static str {
    for message in ["Tool execution started", "Tool processing data", "Tool execution completed"] {
        ctx.log(LogLevel::Info, &message);
        tokio::time::sleep(PAUSE).await;
    }
    "The work is done and logged."
}

/// Reports six steps and lets the connection go in the middle: a client that comes back hears of each once.
async fn reconnection(_: Nothing, ctx: Ctx) -> &'static str {
    for step in 1..=6 {
        ctx.progress(f64::from(step), Some(6.0), "");
        tokio::time::sleep(PAUSE).await;
        if step == 3 {
            ctx.release_connection();
        }
    }
    "The client came back for this."
}

/// A tool whose schema is written by hand and uses what only JSON Schema 2020-12 has.
fn json_schema_tool() -> Tool {
    let schema = json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "type": "object",
        "$defs": {
            "address": {
                "$anchor": "addressDef",
                "type": "object",
                "properties": { "street": { "type": "string" }, "city": { "type": "string" } }
            }
        },
        "properties": {
            "name": { "type": "string" },
            "address": { "$ref": "#/$defs/address" },
            "contactMethod": { "type": "string", "enum": ["phone", "email"] },
            "phone": { "type": "string" },
            "email": { "type": "string" }
        },
        "allOf": [{ "anyOf": [{ "required": ["phone"] }, { "required": ["email"] }] }],
        "if": { "properties": { "contactMethod": { "const": "phone" } }, "required": ["contactMethod"] },
        "then": { "required": ["phone"] },
        "else": { "required": ["email"] },
        "additionalProperties": false
    });
    let Value::Object(schema) = schema else { unreachable!("it is written as an object above") };
    Tool::new(
        "json_schema_2020_12_tool",
        "Checks its arguments by a schema of 2020-12",
        Lane::Inline,
        |args: Map<String, Value>, _| Ok::<_, CallError>(format!("Valid: {}", Value::Object(args))),
    )
    .input_schema(schema)
}
