//! Tools that ask nobody: one for each kind of content, progress, logging, changes, and unusual schemas.
#![expect(deprecated, reason = "sampling, roots and logging are on their way out; clients have them still")]

use std::time::Duration;

use rmcp::{
    ErrorData, RoleServer,
    handler::server::wrapper::Parameters,
    model::{
        CallToolResult, ClientCapabilities, ContentBlock, EmbeddedResource, JsonObject, LoggingLevel,
        LoggingMessageNotificationParam, ProgressNotificationParam, ResourceContents,
    },
    service::RequestContext,
    tool, tool_router,
};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    asking::{is_modern, require},
    content::PIXEL_PNG,
    handler::Everything,
    hub::Change,
};

/// A WAV header with no samples behind it.
const SILENCE_WAV: &str = "UklGRiQAAABXQVZFZm10IBAAAAABAAEAQB8AAEAfAAABAAgAZGF0YQAAAAA=";
/// Between two messages of a tool that sends several.
const PAUSE: Duration = Duration::from_millis(50);
/// Between two steps of the tool whose client may lose the connection: all of them take long enough for a server that
/// answers in one piece whatever is done soon.
const STEP: Duration = Duration::from_millis(300);

#[derive(Debug, Deserialize, JsonSchema)]
struct Region {
    /// Repeated by clients in the header Mcp-Param-Region.
    #[schemars(extend("x-mcp-header" = "Region"))]
    region: String,
}

fn resource(uri: &str, mime_type: &str, text: &str) -> ContentBlock {
    let contents = ResourceContents::text(text, uri).with_mime_type(mime_type);
    ContentBlock::Resource(EmbeddedResource::new(contents))
}

/// A schema with what only JSON Schema 2020-12 has.
fn address_schema() -> JsonObject {
    rmcp::model::object(json!({
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
    }))
}

#[tool_router(router = tools, vis = "pub(crate)")]
impl Everything {
    /// Returns one text
    #[tool]
    fn test_simple_text(&self) -> String {
        "This is a simple text response for testing.".to_owned()
    }

    /// Returns an image
    #[tool]
    fn test_image_content(&self) -> CallToolResult {
        CallToolResult::success(vec![ContentBlock::image(PIXEL_PNG, "image/png")])
    }

    /// Returns a sound
    #[tool]
    fn test_audio_content(&self) -> CallToolResult {
        CallToolResult::success(vec![ContentBlock::audio(SILENCE_WAV, "audio/wav")])
    }

    /// Returns a resource inside the result
    #[tool]
    fn test_embedded_resource(&self) -> CallToolResult {
        let text = "This is an embedded resource content.";
        CallToolResult::success(vec![resource("test://embedded-resource", "text/plain", text)])
    }

    /// Returns text, image and resource
    #[tool]
    fn test_multiple_content_types(&self) -> CallToolResult {
        CallToolResult::success(vec![
            ContentBlock::text("Multiple content types test:"),
            ContentBlock::image(PIXEL_PNG, "image/png"),
            resource("test://mixed-content-resource", "application/json", r#"{"test":"data","value":123}"#),
        ])
    }

    /// Fails, in words for the agent
    #[tool]
    fn test_error_handling(&self) -> CallToolResult {
        CallToolResult::error(vec![ContentBlock::text("This tool intentionally returns an error for testing")])
    }

    /// Reports progress while it runs
    #[tool]
    async fn test_tool_with_progress(&self, context: RequestContext<RoleServer>) -> String {
        for done in [0.0, 50.0, 100.0] {
            if let Some(token) = context.meta.get_progress_token() {
                let progress = ProgressNotificationParam::new(token, done).with_total(100.0).with_message("working");
                // A client that has gone is noticed by whoever serves this handler.
                let _ = context.peer.notify_progress(progress).await;
            }
            tokio::time::sleep(PAUSE).await;
        }
        "The work is done.".to_owned()
    }

    /// Logs while it runs
    #[tool]
    async fn test_tool_with_logging(&self, context: RequestContext<RoleServer>) -> String {
        self.log_work(&context).await
    }

    /// Logs while it runs, when the client asked for it
    #[tool]
    async fn test_logging_tool(&self, context: RequestContext<RoleServer>) -> String {
        self.log_work(&context).await
    }

    /// Needs a client with sampling
    #[tool]
    fn test_missing_capability(&self, context: RequestContext<RoleServer>) -> Result<String, ErrorData> {
        require(&context, ClientCapabilities::builder().enable_sampling().build())?;
        Ok("The client can sample.".to_owned())
    }

    /// Answers without asking the user
    #[tool]
    fn test_streaming_elicitation(&self) -> String {
        "There was nothing to ask.".to_owned()
    }

    /// Says that the list of tools has changed
    #[tool]
    async fn test_trigger_tool_change(&self) -> String {
        self.hub.announce(Change::Tools).await;
        "Said.".to_owned()
    }

    /// Says that the list of prompts has changed
    #[tool]
    async fn test_trigger_prompt_change(&self) -> String {
        self.hub.announce(Change::Prompts).await;
        "Said.".to_owned()
    }

    /// Says that the watched resource has changed
    #[tool]
    async fn test_trigger_resource_change(&self) -> String {
        self.hub.announce(Change::Watched).await;
        "Said.".to_owned()
    }

    /// Takes so long that its client may lose the connection and come back
    #[tool]
    async fn test_reconnection(&self, context: RequestContext<RoleServer>) -> String {
        for step in 1..=6 {
            if let Some(token) = context.meta.get_progress_token() {
                let progress = ProgressNotificationParam::new(token, f64::from(step)).with_total(6.0);
                let _ = context.peer.notify_progress(progress).await;
            }
            tokio::time::sleep(STEP).await;
        }
        "This is for the one who came back.".to_owned()
    }

    /// Takes an argument that a header repeats
    #[tool]
    fn test_custom_header(&self, Parameters(args): Parameters<Region>) -> String {
        args.region
    }

    /// Has a schema of 2020-12
    #[tool(name = "json_schema_2020_12_tool", input_schema = std::sync::Arc::new(address_schema()))]
    fn json_schema_2020_12_tool(&self, arguments: JsonObject) -> String {
        format!("Given: {}", Value::Object(arguments))
    }
}

impl Everything {
    async fn log_work(&self, context: &RequestContext<RoleServer>) -> String {
        // Newer clients say with each call what they want to hear; older ones hear all until they have said otherwise.
        let least = match context.meta.log_level() {
            None if is_modern(context) => None,
            None => Some(self.hub.level(&context.peer).await.unwrap_or(LoggingLevel::Debug)),
            asked => asked,
        };
        let is_wanted = least.is_some_and(|least| LoggingLevel::Info as u8 >= least as u8);
        for message in ["Tool execution started", "Tool processing data", "Tool execution completed"] {
            if is_wanted {
                let message = LoggingMessageNotificationParam::new(LoggingLevel::Info, json!(message));
                let _ = context.peer.notify_logging_message(message).await;
            }
            tokio::time::sleep(PAUSE).await;
        }
        "The work is done.".to_owned()
    }
}
