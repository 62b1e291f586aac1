//! Tools and a prompt that ask one question and answer. What asks more, or more than once, is in `rounds`.

use rmcp::{
    ErrorData, RoleServer,
    handler::server::{tool::InputResponses, wrapper::Parameters},
    model::{
        CallToolResponse, CallToolResult, ContentBlock, GetPromptRequestParams, GetPromptResponse, GetPromptResult,
        InputRequests, InputRequiredResult, PromptMessage, Role,
    },
    service::RequestContext,
    tool, tool_router,
};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    asking::{Asked, accepted, ask, field, form, prompt, said},
    handler::Everything,
};

type Answered = Result<CallToolResponse, ErrorData>;

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

pub(crate) fn text(text: impl Into<String>) -> CallToolResponse {
    CallToolResult::success(vec![ContentBlock::text(text)]).into()
}

pub(crate) fn failure(text: impl Into<String>) -> CallToolResponse {
    CallToolResult::error(vec![ContentBlock::text(text)]).into()
}

pub(crate) fn open(questions: InputRequests) -> Answered {
    Ok(InputRequiredResult::from_input_requests(questions).into())
}

fn completed(answer: Option<&Value>) -> CallToolResponse {
    let answer = answer.unwrap_or(&Value::Null);
    let action = answer["action"].as_str().unwrap_or_default();
    text(format!("Elicitation completed: action={action}, content={}", answer["content"]))
}

#[tool_router(router = questions, vis = "pub(crate)")]
impl Everything {
    /// Asks the client's model
    #[tool]
    async fn test_sampling(
        &self,
        Parameters(question): Parameters<Question>,
        context: RequestContext<RoleServer>,
        InputResponses(given): InputResponses,
    ) -> Answered {
        match ask(&context, given.as_ref(), [("sample", prompt(question.prompt, 100))]).await? {
            Asked::Open(questions) => open(questions),
            Asked::Answers(answers) => Ok(text(format!("LLM response: {}", said(&answers, "sample")))),
        }
    }

    /// Asks the user
    #[tool]
    async fn test_elicitation(
        &self,
        Parameters(message): Parameters<Message>,
        context: RequestContext<RoleServer>,
        InputResponses(given): InputResponses,
    ) -> Answered {
        let schema = json!({
            "type": "object",
            "properties": {
                "username": { "type": "string", "description": "User's response" },
                "email": { "type": "string", "description": "User's email address" }
            },
            "required": ["username", "email"]
        });
        match ask(&context, given.as_ref(), [("user", form(message.message, schema)?)]).await? {
            Asked::Open(questions) => open(questions),
            Asked::Answers(answers) => {
                let answer = answers.get("user").unwrap_or(&Value::Null);
                let action = answer["action"].as_str().unwrap_or_default();
                Ok(text(format!("User response: action: {action}, content: {}", answer["content"])))
            }
        }
    }

    /// Asks the user, with proposals
    #[tool]
    async fn test_elicitation_sep1034_defaults(
        &self,
        context: RequestContext<RoleServer>,
        InputResponses(given): InputResponses,
    ) -> Answered {
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
            }
        });
        match ask(&context, given.as_ref(), [("user", form("Please review what is proposed", schema)?)]).await? {
            Asked::Open(questions) => open(questions),
            Asked::Answers(answers) => Ok(completed(answers.get("user"))),
        }
    }

    /// Asks the user to choose
    #[tool]
    async fn test_elicitation_sep1330_enums(
        &self,
        context: RequestContext<RoleServer>,
        InputResponses(given): InputResponses,
    ) -> Answered {
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
            }
        });
        match ask(&context, given.as_ref(), [("user", form("Please choose", schema)?)]).await? {
            Asked::Open(questions) => open(questions),
            Asked::Answers(answers) => Ok(completed(answers.get("user"))),
        }
    }
}

impl Everything {
    /// The prompt that asks for its context.
    pub(crate) async fn asking_prompt(
        &self,
        request: &GetPromptRequestParams,
        context: &RequestContext<RoleServer>,
    ) -> Result<GetPromptResponse, ErrorData> {
        let question = field("What context should the prompt use?", "context", "string")?;
        match ask(context, request.input_responses.as_ref(), [("user_context", question)]).await? {
            Asked::Open(questions) => Ok(InputRequiredResult::from_input_requests(questions).into()),
            Asked::Answers(answers) => {
                let wanted = accepted(&answers, "user_context").and_then(|content| content["context"].as_str());
                let text = format!("Use this context: {}", wanted.unwrap_or("none"));
                Ok(GetPromptResult::new(vec![PromptMessage::new_text(Role::User, text)]).into())
            }
        }
    }
}
