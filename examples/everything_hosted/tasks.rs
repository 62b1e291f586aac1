//! Tools that become tasks, for clients that fetch answers later.

use std::{future::Future, time::Duration};

use rmcp::{
    ErrorData, RoleServer,
    handler::server::{tool::InputResponses, wrapper::Parameters},
    model::{CallToolResponse, CallToolResult, ClientCapabilities, ContentBlock, CreateTaskResult, InputRequest},
    service::RequestContext,
    task_manager::{TaskContext, TaskExit, TaskOptions},
    tool, tool_router,
};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::Value;

use crate::{
    asking::{Asked, accepted, ask, checked, field, is_modern, require},
    handler::Everything,
    questions::{failure, open, text},
};

/// How long a job takes that only ends.
const SHORT: Duration = Duration::from_millis(200);
/// How long a call may take that is no task.
const SECONDS_MAX: f64 = 600.0;
/// Tasks that run at the same time.
const RUNNING_MAX: usize = 1000;
/// How long a task is kept.
const KEPT_MS: u64 = 900_000;
/// How often a client should ask for it.
const POLL_INTERVAL_MS: u64 = 200;

type Answered = Result<CallToolResponse, ErrorData>;
type Done = Result<CallToolResult, TaskExit>;

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

#[derive(Debug, Deserialize, JsonSchema)]
struct Delete {
    /// What is deleted.
    #[serde(default)]
    filename: Option<String>,
}

fn done(text: impl Into<String>) -> CallToolResult {
    CallToolResult::success(vec![ContentBlock::text(text)])
}

/// Whether this call may be answered with a task.
fn takes_tasks(context: &RequestContext<RoleServer>) -> bool {
    is_modern(context) && context.client_capabilities().is_some_and(|declared| declared.supports_tasks())
}

fn requires_tasks(context: &RequestContext<RoleServer>) -> Result<(), ErrorData> {
    require(context, ClientCapabilities::builder().enable_tasks().build())
}

/// Asks from within a task: its client finds the question when it fetches the task.
async fn ask_in(task: &TaskContext, key: &str, question: InputRequest) -> Result<Value, TaskExit> {
    let answer = task.request_input(key, question.clone()).await?;
    Ok(checked(key, &question, answer)?)
}

fn agreed(answer: &Value, name: &str) -> bool {
    answer["action"] == "accept" && answer["content"][name] != Value::Bool(false)
}

fn deleted(name: &str, is_agreed: bool) -> String {
    if is_agreed { format!("Deleted {name}") } else { format!("Kept {name}") }
}

#[tool_router(router = jobs, vis = "pub(crate)")]
impl Everything {
    /// Greets at once
    #[tool]
    fn greet(&self, Parameters(who): Parameters<Named>) -> String {
        format!("Hello, {}!", who.name)
    }

    /// Takes its time
    #[tool]
    async fn slow_compute(&self, Parameters(args): Parameters<Slow>, context: RequestContext<RoleServer>) -> Answered {
        let time = Duration::from_secs_f64(args.seconds.clamp(0.0, SECONDS_MAX));
        let result = format!("{} took {} seconds", args.label.as_deref().unwrap_or("It"), time.as_secs_f64());
        if !takes_tasks(&context) {
            tokio::time::sleep(time).await;
            return Ok(text(result));
        }
        self.task(|task| async move {
            tokio::select! {
                () = tokio::time::sleep(time) => Ok(done(result)),
                () = task.cancelled() => Err(TaskExit::Cancelled),
            }
        })
    }

    /// Fails after a while, in words for the agent
    #[tool]
    async fn failing_job(&self, context: RequestContext<RoleServer>) -> Answered {
        requires_tasks(&context)?;
        self.task(|_| async {
            tokio::time::sleep(SHORT).await;
            Ok(CallToolResult::error(vec![ContentBlock::text("The job failed, as it should.")]))
        })
    }

    /// Ends with an error of the protocol
    #[tool]
    async fn protocol_error_job(&self, context: RequestContext<RoleServer>) -> Answered {
        requires_tasks(&context)?;
        self.task(|_| async {
            tokio::time::sleep(SHORT).await;
            Err(TaskExit::Error(ErrorData::internal_error("The job ended with an error, as it should.", None)))
        })
    }

    /// Asks before it does anything
    #[tool]
    async fn confirm_delete(
        &self,
        Parameters(args): Parameters<Delete>,
        context: RequestContext<RoleServer>,
        InputResponses(given): InputResponses,
    ) -> Answered {
        let name = args.filename.unwrap_or_else(|| "the file".to_owned());
        let question = field(format!("Delete {name}?"), "confirm", "boolean")?;
        if takes_tasks(&context) {
            return self.task(|task| async move {
                let answer = ask_in(&task, "confirm", question).await?;
                Ok(done(deleted(&name, agreed(&answer, "confirm"))))
            });
        }
        match ask(&context, given.as_ref(), [("confirm", question)]).await? {
            Asked::Open(questions) => open(questions),
            Asked::Answers(answers) => Ok(text(deleted(&name, agreed(&answers["confirm"], "confirm")))),
        }
    }

    /// Asks for two things at once
    #[tool]
    async fn multi_input(&self, context: RequestContext<RoleServer>) -> Answered {
        requires_tasks(&context)?;
        let (first, second) = (field("The first?", "name", "string")?, field("The second?", "confirm", "boolean")?);
        self.task(|task| async move {
            let (first, second) = tokio::try_join!(ask_in(&task, "first", first), ask_in(&task, "second", second))?;
            Ok(done(format!("first: {}, second: {}", first["content"]["name"], agreed(&second, "confirm"))))
        })
    }

    /// Asks first and becomes a task then
    #[tool]
    async fn test_tool_with_task(
        &self,
        context: RequestContext<RoleServer>,
        InputResponses(given): InputResponses,
    ) -> Answered {
        requires_tasks(&context)?;
        match ask(&context, given.as_ref(), [("user_name", field("What is your name?", "name", "string")?)]).await? {
            Asked::Open(questions) => open(questions),
            Asked::Answers(answers) => {
                let Some(content) = accepted(&answers, "user_name") else {
                    return Ok(failure("The user did not say a name."));
                };
                let greeting = format!("Hello, {}!", content["name"].as_str().unwrap_or_default());
                self.task(|_| async {
                    tokio::time::sleep(SHORT).await;
                    Ok(done(greeting))
                })
            }
        }
    }
}

impl Everything {
    /// Lets the work go on by itself and answers with what the client can fetch.
    fn task<F: Future<Output = Done> + Send + 'static>(&self, work: impl FnOnce(TaskContext) -> F) -> Answered {
        if self.tasks.running_task_count() >= RUNNING_MAX {
            return Ok(failure(format!("{RUNNING_MAX} tasks run already. Try again when one has ended.")));
        }
        let options = TaskOptions::new().with_ttl_ms(KEPT_MS).with_poll_interval_ms(POLL_INTERVAL_MS);
        Ok(CreateTaskResult::new(self.tasks.spawn(options, |task| Box::pin(work(task)))).into())
    }
}
