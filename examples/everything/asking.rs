//! Tools and a prompt that ask the client before they answer: the user, the client's model, its roots.

use bigiron::{Ctx, Input, Prompt, error::CallError, server::Builder};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::Nothing;

#[derive(Debug, Deserialize, JsonSchema)]
struct Question {
    /// What the model is asked.
    prompt: String,
}

#[derive(Debug, Deserialize, JsonSchema)]
struct Message {
    /// What the user is told.
    message: String,
}

pub(crate) fn add(server: Builder) -> Builder {
    server
        .async_tool("test_sampling", "Asks the client's model", sampling)
        .async_tool("test_elicitation", "Asks the user", elicitation)
        .async_tool("test_elicitation_sep1034_defaults", "Asks the user, with proposals", defaults)
        .async_tool("test_elicitation_sep1330_enums", "Asks the user to choose", enums)
        .async_tool("test_input_required_result_elicitation", "Asks for a name", hello)
        .async_tool("test_input_required_result_sampling", "Asks the client's model for a capital", capital)
        .async_tool("test_input_required_result_list_roots", "Asks for the client's roots", roots)
        .async_tool("test_input_required_result_request_state", "Remembers something while it asks", remembers)
        .async_tool("test_input_required_result_tampered_state", "Does not believe a changed memory", remembers)
        .async_tool("test_input_required_result_multiple_inputs", "Asks three things at once", three)
        .async_tool("test_input_required_result_multi_round", "Asks one thing after the other", rounds)
        .async_tool("test_input_required_result_capabilities", "Asks only what the client can answer", as_able)
        .prompt(Prompt::new_async(
            "test_input_required_result_prompt",
            "A prompt that asks for its context",
            |_: Nothing, ctx: Ctx| async move {
                let schema = text_schema("context");
                let answer =
                    ctx.ask("user_context", Input::elicit("What context should the prompt use?", schema)).await?;
                Ok::<_, CallError>(format!("Use this context: {}", content(&answer, "context")))
            },
        ))
}

/// The schema of an answer with one text.
fn text_schema(name: &str) -> Value {
    json!({ "type": "object", "properties": { name: { "type": "string" } }, "required": [name] })
}

/// A text that the user filled in.
fn content<'a>(answer: &'a Value, name: &str) -> &'a str {
    answer["content"][name].as_str().unwrap_or_default()
}

/// What the client's model said.
fn sampled(answer: &Value) -> &str {
    answer["content"]["text"].as_str().or_else(|| answer["content"][0]["text"].as_str()).unwrap_or_default()
}

async fn sampling(question: Question, ctx: Ctx) -> Result<String, CallError> {
    let answer = ctx.ask("sample", Input::sample_text(&question.prompt, 100)).await?;
    Ok(format!("LLM response: {}", sampled(&answer)))
}

async fn elicitation(message: Message, ctx: Ctx) -> Result<String, CallError> {
    let schema = json!({
        "type": "object",
        "properties": {
            "username": { "type": "string", "description": "User's response" },
            "email": { "type": "string", "description": "User's email address" }
        },
        "required": ["username", "email"]
    });
    let answer = ctx.ask("user", Input::elicit(&message.message, schema)).await?;
    Ok(format!("User response: {answer}"))
}

fn completed(answer: &Value) -> String {
    let action = answer["action"].as_str().unwrap_or_default();
    format!("Elicitation completed: action={action}, content={}", answer["content"])
}

async fn defaults(_: Nothing, ctx: Ctx) -> Result<String, CallError> {
    let schema = json!({
        "type": "object",
        "properties": {
            "name": { "type": "string", "description": "User name", "default": "John Doe" },
            "age": { "type": "integer", "description": "User age", "default": 30 },
            "score": { "type": "number", "description": "User score", "default": 95.5 },
            "status": {
                "type": "string",
                "description": "User status",
                "enum": ["active", "inactive", "pending"],
                "default": "active"
            },
            "verified": { "type": "boolean", "description": "Verification status", "default": true }
        },
        "required": []
    });
    let answer = ctx.ask("user", Input::elicit("Please review what is proposed", schema)).await?;
    Ok(completed(&answer))
}

async fn enums(_: Nothing, ctx: Ctx) -> Result<String, CallError> {
    let titled = json!([
        { "const": "value1", "title": "First Option" },
        { "const": "value2", "title": "Second Option" },
        { "const": "value3", "title": "Third Option" }
    ]);
    let plain = json!(["option1", "option2", "option3"]);
    let schema = json!({
        "type": "object",
        "properties": {
            "untitledSingle": { "type": "string", "enum": plain },
            "titledSingle": { "type": "string", "oneOf": titled },
            "legacyEnum": {
                "type": "string",
                "enum": ["opt1", "opt2", "opt3"],
                "enumNames": ["Option One", "Option Two", "Option Three"]
            },
            "untitledMulti": { "type": "array", "items": { "type": "string", "enum": plain } },
            "titledMulti": { "type": "array", "items": { "anyOf": titled } }
        },
        "required": []
    });
    let answer = ctx.ask("user", Input::elicit("Please choose", schema)).await?;
    Ok(completed(&answer))
}

fn name_question() -> Input {
    Input::elicit("What is your name?", text_schema("name"))
}

async fn hello(_: Nothing, ctx: Ctx) -> Result<String, CallError> {
    let answer = ctx.ask("user_name", name_question()).await?;
    Ok(format!("Hello, {}!", content(&answer, "name")))
}

async fn capital(_: Nothing, ctx: Ctx) -> Result<String, CallError> {
    let answer = ctx.ask("capital_question", Input::sample_text("What is the capital of France?", 100)).await?;
    Ok(sampled(&answer).to_owned())
}

async fn roots(_: Nothing, ctx: Ctx) -> Result<String, CallError> {
    let answer = ctx.ask("client_roots", Input::roots()).await?;
    Ok(format!("Roots: {}", answer["roots"]))
}

async fn remembers(_: Nothing, ctx: Ctx) -> Result<String, CallError> {
    let schema = json!({ "type": "object", "properties": { "ok": { "type": "boolean" } }, "required": ["ok"] });
    let is_known = ctx.kept() == Some(&json!("asked"));
    ctx.keep(json!("asked"));
    ctx.ask("confirm", Input::elicit("Please confirm", schema)).await?;
    Ok(if is_known { "state-ok: the state came back unchanged" } else { "confirmed, and nothing was remembered" }
        .into())
}

async fn three(_: Nothing, ctx: Ctx) -> Result<String, CallError> {
    ctx.keep(json!("three"));
    let greeting = Input::sample_text("Generate a greeting", 50);
    let inputs = [("user_name", name_question()), ("greeting", greeting), ("client_roots", Input::roots())];
    let answers = ctx.ask_all(inputs).await?;
    let (name, greeting) = (content(&answers["user_name"], "name"), sampled(&answers["greeting"]));
    Ok(format!("{greeting} {name}; roots: {}", answers["client_roots"]["roots"]))
}

async fn rounds(_: Nothing, ctx: Ctx) -> Result<String, CallError> {
    ctx.keep(json!(1));
    let first = ctx.ask("step1", Input::elicit("Step 1: What is your name?", text_schema("name"))).await?;
    ctx.keep(json!(2));
    let question = Input::elicit("Step 2: What is your favorite color?", text_schema("color"));
    let second = ctx.ask("step2", question).await?;
    Ok(format!("{} likes {}", content(&first, "name"), content(&second, "color")))
}

async fn as_able(_: Nothing, ctx: Ctx) -> Result<String, CallError> {
    use bigiron::call::ClientCapabilities as Can;
    let mut inputs = Vec::new();
    if ctx.client().contains(Can::SAMPLING) {
        inputs.push(("sample", Input::sample_text("Say something", 50)));
    }
    if ctx.client().contains(Can::ELICITATION) {
        inputs.push(("user", name_question()));
    }
    let answers = ctx.ask_all(inputs).await?;
    Ok(format!("{} answers", answers.len()))
}
