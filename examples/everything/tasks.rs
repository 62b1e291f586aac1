//! Tools that become tasks, for clients that fetch answers later.

use std::time::Duration;

use bigiron::{Ctx, Input, Lane, Skill, error::CallError, server::Builder};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::Nothing;

#[derive(Debug, Deserialize, JsonSchema)]
struct Named {
    /// Who is greeted.
    name: String,
}

#[derive(Debug, Deserialize, JsonSchema)]
struct Slow {
    /// How long it takes.
    seconds: f64,
    /// What it is called, for people.
    #[serde(default)]
    label: Option<String>,
}

/// How long a job takes that only ends.
const SHORT: Duration = Duration::from_millis(200);
/// The skill that this server has, beside the program's source.
const SKILL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/everything/skills/log-triage");

pub(crate) fn add(server: Builder) -> Builder {
    let server = match Skill::from_dir(SKILL) {
        Ok(skill) => server.skill(skill),
        // The program may have been moved away from its source; all else goes on without.
        Err(_) => server.skill(Skill::new("nothing", "A skill that stands for one that was not found")),
    };
    server
        .tasks()
        .tool("greet", "Greets at once", Lane::Inline, |who: Named, _| format!("Hello, {}!", who.name))
        .async_tool("slow_compute", "Takes its time", slow)
        .async_tool("failing_job", "Fails after a while, in words for the agent", |_: Nothing, ctx: Ctx| async move {
            ctx.require_task().await?;
            tokio::time::sleep(SHORT).await;
            Err::<String, _>(CallError::tool("The job failed, as it should."))
        })
        .async_tool("protocol_error_job", "Ends with an error of the protocol", |_: Nothing, ctx: Ctx| async move {
            ctx.become_task().await?;
            tokio::time::sleep(SHORT).await;
            Err::<String, _>(CallError::Internal)
        })
        .async_tool("confirm_delete", "Asks before it does anything", confirm)
        .async_tool("multi_input", "Asks for two things at once", two)
        .async_tool("test_tool_with_task", "Asks first and becomes a task then", asks_first)
}

async fn slow(args: Slow, ctx: Ctx) -> Result<String, CallError> {
    ctx.become_task().await?;
    tokio::time::sleep(Duration::from_secs_f64(args.seconds.clamp(0.0, 600.0))).await;
    Ok(format!("{} took {} seconds", args.label.as_deref().unwrap_or("It"), args.seconds))
}

fn yes_or_no(message: &str, name: &str) -> Input {
    Input::elicit(
        message,
        json!({ "type": "object", "properties": { name: { "type": "boolean" } }, "required": [name] }),
    )
}

#[derive(Debug, Deserialize, JsonSchema)]
struct Delete {
    /// What is deleted.
    #[serde(default)]
    filename: Option<String>,
}

async fn confirm(args: Delete, ctx: Ctx) -> Result<String, CallError> {
    ctx.become_task().await?;
    let name = args.filename.as_deref().unwrap_or("the file");
    let answer = ctx.ask("confirm", yes_or_no(&format!("Delete {name}?"), "confirm")).await?;
    let agreed = answer["action"] == "accept" && answer["content"]["confirm"] != Value::Bool(false);
    Ok(if agreed { format!("Deleted {name}") } else { format!("Kept {name}") })
}

async fn two(_: Nothing, ctx: Ctx) -> Result<String, CallError> {
    ctx.become_task().await?;
    let answers =
        ctx.ask_all([("first", yes_or_no("The first?", "ok")), ("second", yes_or_no("The second?", "ok"))]).await?;
    Ok(format!("{} answers", answers.len()))
}

async fn asks_first(_: Nothing, ctx: Ctx) -> Result<String, CallError> {
    let schema = json!({ "type": "object", "properties": { "name": { "type": "string" } }, "required": ["name"] });
    let answer = ctx.ask("user_name", Input::elicit("What is your name?", schema)).await?;
    ctx.require_task().await?;
    tokio::time::sleep(SHORT).await;
    Ok(format!("Hello, {}!", answer["content"]["name"].as_str().unwrap_or_default()))
}
