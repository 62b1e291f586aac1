//! Tools that take some seconds and say how far they are, for clients whose server dies in the middle. One may be run
//! twice; the other leaves a line in a file each time that it runs, so that somebody can count.

use std::{env, fs::OpenOptions, io::Write, time::Duration};

use bigiron::{Ctx, Tool, error::CallError, server::Builder};
use schemars::JsonSchema;
use serde::Deserialize;

/// Names the file that gets the lines; without it there are none.
const EFFECTS: &str = "EVERYTHING_EFFECTS";

#[derive(Debug, Deserialize, JsonSchema)]
struct Steps {
    /// What the result says, and the line.
    label: String,
    /// How many steps there are.
    #[schemars(range(min = 1, max = 1000))]
    steps: u32,
    /// Milliseconds from step to step.
    #[schemars(range(max = 10_000))]
    pause_ms: u64,
}

pub(crate) fn add(server: Builder) -> Builder {
    server
        .with(Tool::new_async("steps", "Takes so many steps, each of which it reports", walk).read_only().idempotent())
        .async_tool("steps_once", "The same, and must not be run twice", |args: Steps, ctx: Ctx| async move {
            note(&args.label)?;
            walk(args, ctx).await
        })
}

async fn walk(args: Steps, ctx: Ctx) -> Result<String, CallError> {
    ctx.become_task().await?;
    let process = format!("process {}", std::process::id());
    for step in 1..=args.steps {
        tokio::time::sleep(Duration::from_millis(args.pause_ms)).await;
        ctx.progress(f64::from(step), Some(f64::from(args.steps)), &process);
    }
    Ok(format!("{} took {} steps", args.label, args.steps))
}

/// Leaves a line: in one write, so that lines of several processes do not mix.
fn note(label: &str) -> Result<(), CallError> {
    let Some(file) = env::var_os(EFFECTS) else { return Ok(()) };
    let line = format!("{}\n", label.replace('\n', " "));
    let written =
        OpenOptions::new().append(true).create(true).open(file).and_then(|mut f| f.write_all(line.as_bytes()));
    written.map_err(|error| CallError::tool(format!("the line was not written: {error}")))
}
