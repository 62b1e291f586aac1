//! Tools that ask for more than an answer: for a name, for several things at once, for one thing after the other, and
//! with a memory that the client carries from round to round.

use rmcp::{
    ErrorData, RoleServer,
    handler::server::tool::{InputResponses, RequestState},
    model::CallToolResponse,
    service::RequestContext,
    tool, tool_router,
};
use serde_json::json;

use crate::{
    asking::{Asked, accepted, ask, field, prompt, roots, said},
    handler::Everything,
    questions::{failure, open, text},
};

type Answered = Result<CallToolResponse, ErrorData>;

#[tool_router(router = rounds, vis = "pub(crate)")]
impl Everything {
    /// Asks for a name
    #[tool]
    async fn test_input_required_result_elicitation(
        &self,
        context: RequestContext<RoleServer>,
        InputResponses(given): InputResponses,
    ) -> Answered {
        match ask(&context, given.as_ref(), [("user_name", field("What is your name?", "name", "string")?)]).await? {
            Asked::Open(questions) => open(questions),
            Asked::Answers(answers) => Ok(match accepted(&answers, "user_name") {
                Some(content) => text(format!("Hello, {}!", content["name"].as_str().unwrap_or_default())),
                None => failure("The user did not say a name."),
            }),
        }
    }

    /// Asks the client's model for a capital
    #[tool]
    async fn test_input_required_result_sampling(
        &self,
        context: RequestContext<RoleServer>,
        InputResponses(given): InputResponses,
    ) -> Answered {
        let question = prompt("What is the capital of France?", 100);
        match ask(&context, given.as_ref(), [("capital_question", question)]).await? {
            Asked::Open(questions) => open(questions),
            Asked::Answers(answers) => Ok(text(said(&answers, "capital_question"))),
        }
    }

    /// Asks for the client's roots
    #[tool]
    async fn test_input_required_result_list_roots(
        &self,
        context: RequestContext<RoleServer>,
        InputResponses(given): InputResponses,
    ) -> Answered {
        match ask(&context, given.as_ref(), [("client_roots", roots())]).await? {
            Asked::Open(questions) => open(questions),
            Asked::Answers(answers) => Ok(text(format!("Roots: {}", answers["client_roots"]["roots"]))),
        }
    }

    /// Remembers something while it asks
    #[tool]
    async fn test_input_required_result_request_state(
        &self,
        context: RequestContext<RoleServer>,
        InputResponses(given): InputResponses,
        RequestState(state): RequestState,
    ) -> Answered {
        self.remember("test_input_required_result_request_state", &context, given.as_ref(), state).await
    }

    /// Does not believe a changed memory
    #[tool]
    async fn test_input_required_result_tampered_state(
        &self,
        context: RequestContext<RoleServer>,
        InputResponses(given): InputResponses,
        RequestState(state): RequestState,
    ) -> Answered {
        self.remember("test_input_required_result_tampered_state", &context, given.as_ref(), state).await
    }

    /// Asks three things at once
    #[tool]
    async fn test_input_required_result_multiple_inputs(
        &self,
        context: RequestContext<RoleServer>,
        InputResponses(given): InputResponses,
        RequestState(state): RequestState,
    ) -> Answered {
        const NAME: &str = "test_input_required_result_multiple_inputs";
        self.memory.recall(NAME, state)?;
        let questions = [
            ("user_name", field("What is your name?", "name", "string")?),
            ("greeting", prompt("Generate a greeting", 50)),
            ("client_roots", roots()),
        ];
        match ask(&context, given.as_ref(), questions).await? {
            Asked::Open(questions) => self.memory.keep(NAME, questions, &json!("asked")),
            Asked::Answers(answers) => {
                let name = accepted(&answers, "user_name").and_then(|content| content["name"].as_str());
                let (greeting, roots) = (said(&answers, "greeting"), &answers["client_roots"]["roots"]);
                Ok(text(format!("{greeting} {}; roots: {roots}", name.unwrap_or("whoever you are"))))
            }
        }
    }

    /// Asks one thing after the other
    #[tool]
    async fn test_input_required_result_multi_round(
        &self,
        context: RequestContext<RoleServer>,
        InputResponses(given): InputResponses,
        RequestState(state): RequestState,
    ) -> Answered {
        const NAME: &str = "test_input_required_result_multi_round";
        let known = self.memory.recall(NAME, state)?.unwrap_or_default();
        let name = match known["name"].as_str() {
            Some(name) => name.to_owned(),
            None => {
                let question = field("Step 1: What is your name?", "name", "string")?;
                match ask(&context, given.as_ref(), [("step1", question)]).await? {
                    Asked::Open(questions) => return self.memory.keep(NAME, questions, &json!({ "step": 1 })),
                    Asked::Answers(answers) => {
                        let Some(content) = accepted(&answers, "step1") else {
                            return Ok(failure("The user did not say a name."));
                        };
                        content["name"].as_str().unwrap_or_default().to_owned()
                    }
                }
            }
        };
        let question = field("Step 2: What is your favorite color?", "color", "string")?;
        match ask(&context, given.as_ref(), [("step2", question)]).await? {
            Asked::Open(questions) => self.memory.keep(NAME, questions, &json!({ "step": 2, "name": name })),
            Asked::Answers(answers) => {
                let color = accepted(&answers, "step2").and_then(|content| content["color"].as_str());
                Ok(text(format!("{name} likes {}", color.unwrap_or("no color"))))
            }
        }
    }

    /// Asks only what the client can answer
    #[tool]
    async fn test_input_required_result_capabilities(
        &self,
        context: RequestContext<RoleServer>,
        InputResponses(given): InputResponses,
    ) -> Answered {
        let declared = context.client_capabilities().unwrap_or_default();
        let mut questions = Vec::new();
        if declared.sampling.is_some() {
            questions.push(("sample", prompt("Say something", 50)));
        }
        if declared.elicitation.is_some() {
            questions.push(("user_name", field("What is your name?", "name", "string")?));
        }
        match ask(&context, given.as_ref(), questions).await? {
            Asked::Open(questions) => open(questions),
            Asked::Answers(answers) => Ok(text(format!("{} answers", answers.len()))),
        }
    }
}

impl Everything {
    async fn remember(
        &self,
        tool: &str,
        context: &RequestContext<RoleServer>,
        given: Option<&rmcp::model::InputResponses>,
        state: Option<String>,
    ) -> Answered {
        let is_known = self.memory.recall(tool, state)? == Some(json!("asked"));
        let question = field("Please confirm", "ok", "boolean")?;
        match ask(context, given, [("confirm", question)]).await? {
            Asked::Open(questions) => self.memory.keep(tool, questions, &json!("asked")),
            Asked::Answers(_) if is_known => Ok(text("state-ok: the state came back unchanged")),
            Asked::Answers(_) => Ok(text("confirmed, and nothing had to be remembered")),
        }
    }
}
