//! Asking the client: the user, the client's model, its roots. A client of 2026-07-28 is answered with the questions and
//! calls again with the answers; an older one is asked while its call waits. Tools see only that there are answers now,
//! or that there are none yet.
#![expect(deprecated, reason = "sampling, roots and logging are on their way out; clients have them still")]

use std::{collections::BTreeMap, time::Duration};

use rmcp::{
    ErrorData, RoleServer,
    model::{
        ClientCapabilities, CreateMessageRequest, CreateMessageRequestParams, CreateMessageResult, ElicitRequest,
        ElicitRequestParams, ElicitResult, ElicitationAction, ElicitationSchema, InputRequest, InputRequests,
        InputResponses, ListRootsRequest, ListRootsResult, ProtocolVersion, SamplingMessage, ServerRequest,
    },
    service::{PeerRequestOptions, RequestContext},
};
use serde_json::{Value, json};

/// How long a user or a model of an older client may take.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(60);

/// Answers by the key of their question.
pub(crate) type Answers = BTreeMap<String, Value>;

pub(crate) enum Asked {
    /// All answers are there.
    Answers(Answers),
    /// The client has to be asked these and to call again.
    Open(InputRequests),
}

/// Whether a request says everything itself, as it does since revision 2026-07-28.
pub(crate) fn is_modern(context: &RequestContext<RoleServer>) -> bool {
    context.protocol_version().is_some_and(|version| version >= ProtocolVersion::V_2026_07_28)
}

/// Asks all questions at once. `given` is what came with the call; keys in it that nobody asked for do not matter.
///
/// # Errors
/// A client that cannot be asked, or does not answer, or with something that is no answer to the question.
pub(crate) async fn ask(
    context: &RequestContext<RoleServer>,
    given: Option<&InputResponses>,
    questions: impl IntoIterator<Item = (&'static str, InputRequest)>,
) -> Result<Asked, ErrorData> {
    let questions: Vec<_> = questions.into_iter().collect();
    for (_, question) in &questions {
        require(context, needs(question))?;
    }
    let mut answers = Answers::new();
    if !is_modern(context) {
        for (key, question) in questions {
            let answer = ask_now(context, key, question.clone()).await?;
            answers.insert(key.to_owned(), checked(key, &question, answer)?);
        }
        return Ok(Asked::Answers(answers));
    }
    for (key, question) in &questions {
        if let Some(answer) = given.and_then(|given| given.get(*key)) {
            answers.insert((*key).to_owned(), checked(key, question, answer.clone())?);
        }
    }
    if answers.len() == questions.len() {
        return Ok(Asked::Answers(answers));
    }
    // All of them once more: what was answered is not kept anywhere.
    Ok(Asked::Open(questions.into_iter().map(|(key, question)| (key.to_owned(), question)).collect()))
}

/// Refuses a client that has not declared what is needed.
pub(crate) fn require(context: &RequestContext<RoleServer>, needed: ClientCapabilities) -> Result<(), ErrorData> {
    let declared = context.client_capabilities().unwrap_or_default();
    let is_there = (needed.sampling.is_none() || declared.sampling.is_some())
        && (needed.elicitation.is_none() || declared.elicitation.is_some())
        && (needed.roots.is_none() || declared.roots.is_some())
        && (!needed.supports_tasks() || declared.supports_tasks());
    let refusal = ErrorData::missing_required_client_capability(needed);
    match is_there {
        true => Ok(()),
        false if is_modern(context) => Err(refusal),
        // Older revisions do not have that code.
        false => Err(ErrorData::invalid_request(refusal.message, refusal.data)),
    }
}

fn needs(question: &InputRequest) -> ClientCapabilities {
    let builder = ClientCapabilities::builder();
    match question {
        InputRequest::CreateMessage(_) => builder.enable_sampling().build(),
        InputRequest::ListRoots(_) => builder.enable_roots().build(),
        _ => builder.enable_elicitation().build(),
    }
}

async fn ask_now(context: &RequestContext<RoleServer>, key: &str, question: InputRequest) -> Result<Value, ErrorData> {
    let request = match question {
        InputRequest::CreateMessage(request) => ServerRequest::CreateMessageRequest(request),
        InputRequest::Elicitation(request) => ServerRequest::ElicitRequest(request),
        InputRequest::ListRoots(request) => ServerRequest::ListRootsRequest(request),
        other => return Err(ErrorData::internal_error(format!("nobody can be asked {other:?}"), None)),
    };
    let unanswered = |error: &dyn std::fmt::Display| {
        ErrorData::internal_error(format!("the client did not answer the question {key:?}: {error}"), None)
    };
    let options = PeerRequestOptions::with_timeout(ANSWER_TIME_MAX);
    let asked = context.peer.send_request_with_option(request, options).await.map_err(|e| unanswered(&e))?;
    let answer = tokio::select! {
        answer = asked.await_response() => answer.map_err(|e| unanswered(&e))?,
        () = context.ct.cancelled() => return Err(unanswered(&"it cancelled the call")),
    };
    serde_json::to_value(answer).map_err(|e| unanswered(&e))
}

/// An answer that is one: clients can send anything.
pub(crate) fn checked(key: &str, question: &InputRequest, answer: Value) -> Result<Value, ErrorData> {
    let fault = match question {
        InputRequest::CreateMessage(_) => serde_json::from_value::<CreateMessageResult>(answer.clone()).err(),
        InputRequest::ListRoots(_) => serde_json::from_value::<ListRootsResult>(answer.clone()).err(),
        _ => serde_json::from_value::<ElicitResult>(answer.clone()).err(),
    };
    let fault = fault.map(|error| error.to_string()).or_else(|| missing_member(question, &answer));
    match fault {
        None => Ok(answer),
        Some(fault) => Err(ErrorData::invalid_params(format!("inputResponses.{key} is no answer: {fault}"), None)),
    }
}

/// The first member of an accepted form that was to be filled in and is not.
fn missing_member(question: &InputRequest, answer: &Value) -> Option<String> {
    let InputRequest::Elicitation(ElicitRequest { params, .. }) = question else { return None };
    let ElicitRequestParams::FormElicitationParams { requested_schema, .. } = params else { return None };
    let required = requested_schema.required.as_deref().unwrap_or_default();
    let missing = required.iter().find(|name| answer["content"][name.as_str()].is_null())?;
    (answer["action"] == json!(ElicitationAction::Accept)).then(|| format!("content.{missing} is missing"))
}

/// What the user filled in, or nothing when he declined or closed the form.
pub(crate) fn accepted<'a>(answers: &'a Answers, key: &str) -> Option<&'a Value> {
    let answer = answers.get(key)?;
    (answer["action"] == json!(ElicitationAction::Accept)).then(|| &answer["content"])
}

/// The text that the client's model said.
pub(crate) fn said<'a>(answers: &'a Answers, key: &str) -> &'a str {
    let content = answers.get(key).map_or(&Value::Null, |answer| &answer["content"]);
    content["text"].as_str().or_else(|| content[0]["text"].as_str()).unwrap_or_default()
}

/// A form for the user. Its schema is JSON as the protocol has it, so that each kind of field can be read off it.
///
/// # Errors
/// A schema that has more than the simple fields which forms may have.
pub(crate) fn form(message: impl Into<String>, schema: Value) -> Result<InputRequest, ErrorData> {
    let requested_schema: ElicitationSchema = serde_json::from_value(schema)
        .map_err(|error| ErrorData::internal_error(format!("this is no schema of a form: {error}"), None))?;
    let params = ElicitRequestParams::FormElicitationParams { meta: None, message: message.into(), requested_schema };
    Ok(InputRequest::Elicitation(ElicitRequest::new(params)))
}

/// A form with one field that has to be filled in.
pub(crate) fn field(message: impl Into<String>, name: &str, kind: &str) -> Result<InputRequest, ErrorData> {
    form(message, json!({ "type": "object", "properties": { name: { "type": kind } }, "required": [name] }))
}

/// A question for the client's model.
pub(crate) fn prompt(text: impl Into<String>, tokens_max: u32) -> InputRequest {
    let params = CreateMessageRequestParams::new(vec![SamplingMessage::user_text(text)], tokens_max);
    InputRequest::CreateMessage(CreateMessageRequest::new(params))
}

pub(crate) fn roots() -> InputRequest {
    InputRequest::ListRoots(ListRootsRequest::default())
}
