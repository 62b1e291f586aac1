//! What a call may ask its client for before it is done: an answer of the user, a sample of the client's model, the
//! client's roots. A tool asks in one way, by [`Ctx::ask`]; how the question travels depends on the revision. Up to
//! 2025-11-25 it is a request on the call's own stream, and the call waits. From 2026-07-28 on the call ends with
//! `input_required`, and the client makes it again with the answers: then the same function runs anew, finds them, and
//! goes on. A call that runs as a task parks until the answer is there.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings};
use serde::Serialize;
use serde_json::{Map, Value, json};
use tokio::{sync::oneshot, time::timeout};

use crate::{
    call::{ClientCapabilities, Ctx},
    error::CallError,
    outbox::Outbox,
};

/// One thing to ask the client for.
#[derive(Clone, Debug, PartialEq)]
pub struct Input {
    method: &'static str,
    params: Value,
    needs: ClientCapabilities,
}

impl Input {
    /// A question to the user (`elicitation/create`). `schema` says what a good answer looks like: an object with flat
    /// properties.
    pub fn elicit(message: &str, schema: Value) -> Self {
        let params = json!({ "mode": "form", "message": message, "requestedSchema": schema });
        Self { method: "elicitation/create", params, needs: ClientCapabilities::ELICITATION }
    }

    /// The same, with the schema made from a type.
    pub fn elicit_as<T: JsonSchema>(message: &str) -> Self {
        let settings = SchemaSettings::draft2020_12().with(|s| s.inline_subschemas = true);
        let mut schema = SchemaGenerator::new(settings).into_root_schema_for::<T>();
        schema.remove("title");
        schema.remove("$schema");
        Self::elicit(message, schema.to_value())
    }

    /// A sample of the client's model (`sampling/createMessage`), from `params` as the protocol has them.
    pub fn sample(params: Value) -> Self {
        Self { method: "sampling/createMessage", params, needs: ClientCapabilities::SAMPLING }
    }

    /// The same for one text of the user.
    pub fn sample_text(prompt: &str, max_tokens: u32) -> Self {
        let message = json!({ "role": "user", "content": { "type": "text", "text": prompt } });
        Self::sample(json!({ "messages": [message], "maxTokens": max_tokens }))
    }

    /// The folders that the client works in (`roots/list`).
    pub fn roots() -> Self {
        Self { method: "roots/list", params: Value::Null, needs: ClientCapabilities::ROOTS }
    }

    /// Whether a client's answer has the form that answers to this have. One that has not is none: the question is
    /// asked again.
    fn is_answered_by(&self, answer: &Value) -> bool {
        match self.method {
            "elicitation/create" => match answer.get("action").and_then(Value::as_str) {
                Some("accept") => answer.get("content").is_none_or(Value::is_object),
                Some("decline" | "cancel") => true,
                _ => false,
            },
            "sampling/createMessage" => answer.get("content").is_some_and(|c| c.is_object() || c.is_array()),
            "roots/list" => answer.get("roots").is_some_and(Value::is_array),
            _ => answer.is_object(),
        }
    }

    /// As an entry of `inputRequests`.
    fn to_request(&self) -> Value {
        match &self.params {
            Value::Null => json!({ "method": self.method }),
            params => json!({ "method": self.method, "params": params }),
        }
    }
}

/// What a call needs before it can go on, for a client that makes it again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Required {
    /// The open questions, by the keys that their answers will have.
    pub(crate) requests: Map<String, Value>,
    /// What the call remembers until then; empty for nothing.
    pub(crate) memory: Memory,
}

/// What travels with a call that is made again, sealed by the server.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, serde::Deserialize)]
pub(crate) struct Memory {
    /// Answers of earlier rounds.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub(crate) answers: Map<String, Value>,
    /// What the tool wants to remember.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) kept: Option<Value>,
}

impl Memory {
    pub(crate) fn is_empty(&self) -> bool {
        self.answers.is_empty() && self.kept.is_none()
    }
}

/// How a question of a call reaches its client.
#[derive(Clone, Debug, Default)]
pub(crate) enum Exchange {
    /// Not at all: nobody can be asked here.
    #[default]
    None,
    /// With the call's own end and its next beginning.
    Rounds(Arc<Rounds>),
    /// As a request on the call's stream.
    Stream(Arc<dyn Answers>),
}

/// What a call knows of the rounds before.
#[derive(Debug, Default)]
pub(crate) struct Rounds {
    /// Answers of all rounds so far.
    pub(crate) answers: Map<String, Value>,
    /// What the call kept in the round before.
    pub(crate) kept: Option<Value>,
    keep: Mutex<Option<Value>>,
}

impl Rounds {
    pub(crate) fn new(memory: Memory, answers: Map<String, Value>) -> Self {
        let mut all = memory.answers;
        all.extend(answers);
        Self { answers: all, kept: memory.kept, keep: Mutex::default() }
    }

    /// Whether this is not the first round.
    pub(crate) fn has_begun(&self) -> bool {
        !self.answers.is_empty() || self.kept.is_some()
    }
}

/// The answers of a client that come by another way than the call.
pub(crate) trait Answers: fmt::Debug + Send + Sync {
    /// A new question: its id and where its answer will be. `None` when too many are open.
    fn expect(&self) -> Option<(u64, oneshot::Receiver<Result<Value, Value>>)>;
    /// Nobody waits for the answer any more.
    fn forget(&self, id: u64);
}

/// What takes a while, in a trait whose values are told apart only when it runs.
pub(crate) type Waiting<'a, T> = Pin<Box<dyn Future<Output = Result<T, CallError>> + Send + 'a>>;

/// A task that waits for answers.
pub(crate) trait Parks: fmt::Debug + Send + Sync {
    /// Waits for answers to all of `requests`.
    fn ask(&self, requests: Map<String, Value>) -> Waiting<'_, Map<String, Value>>;
}

/// A call that can become a task.
pub(crate) trait Defers: fmt::Debug + Send + Sync {
    /// Makes it one: it is kept when this resolves.
    fn begin(&self) -> Waiting<'_, ()>;
    /// What parks it, once it is one.
    fn task(&self) -> Option<Arc<dyn Parks>>;
    /// Whether its client took it back.
    fn is_cancelled(&self) -> bool;
    /// How much longer it may run because it is one.
    fn extra_time(&self) -> Duration;
}

impl Ctx {
    /// Makes the call a task, when the client can fetch its answer later: the client is told so at once, and the
    /// function goes on by itself, for as long as `tasks.timeout_ms` says. False when the client cannot, or the server
    /// has no tasks: then the client goes on waiting.
    ///
    /// # Errors
    /// [`CallError::Overloaded`] when there is no room for another task, [`CallError::CallerLimit`] when there is none for
    /// this caller, and [`CallError::StoreAway`] when it cannot be kept; pass them on with `?`.
    pub async fn become_task(&self) -> Result<bool, CallError> {
        let Some(deferred) = &self.deferred else { return Ok(false) };
        if deferred.task().is_none() {
            deferred.begin().await?;
            tokio::task::yield_now().await; // who runs this sees that it is a task, and answers the client
        }
        Ok(true)
    }

    /// The same for work that is too long for a client to wait for.
    ///
    /// # Errors
    /// [`CallError::MissingCapability`] when the client cannot fetch its answer later, and those of
    /// [`Ctx::become_task`].
    pub async fn require_task(&self) -> Result<(), CallError> {
        if self.become_task().await? {
            return Ok(());
        }
        if self.client.contains(ClientCapabilities::TASKS) {
            tracing::warn!("a tool runs only as a task, and this server keeps none: add .tasks() to its builder");
            return Err(CallError::tool("this tool runs only as a task, and this server keeps none"));
        }
        Err(CallError::MissingCapability(ClientCapabilities::TASKS))
    }

    /// Asks the client and returns its answer: the result object of the request, such as
    /// `{"action": "accept", "content": {...}}`. `key` names the question within this call; the same key must mean the
    /// same question whenever the function runs, since with 2026-07-28 it runs once for each round of questions, from
    /// its beginning.
    ///
    /// # Errors
    /// [`CallError::MissingCapability`] when the client cannot be asked this; [`CallError::InputRequired`], to be
    /// passed on with `?`, when the call must be made again; [`CallError::Tool`] when the client refuses or does not
    /// answer in time.
    pub async fn ask(&self, key: &str, input: Input) -> Result<Value, CallError> {
        let mut answers = self.ask_all([(key, input)]).await?;
        answers.remove(key).ok_or(CallError::Internal)
    }

    /// Asks several things at once; the answers are under their keys.
    ///
    /// # Errors
    /// As [`Ctx::ask`].
    pub async fn ask_all<'k>(
        &self,
        inputs: impl IntoIterator<Item = (&'k str, Input)>,
    ) -> Result<Map<String, Value>, CallError> {
        let inputs: Vec<_> = inputs.into_iter().collect();
        let needs = inputs.iter().fold(ClientCapabilities::default(), |all, (_, input)| all.union(input.needs));
        self.require(needs)?;
        if let Some(task) = self.deferred.as_ref().and_then(|deferred| deferred.task()) {
            let requests = inputs.iter().map(|(key, input)| ((*key).to_owned(), input.to_request())).collect();
            return task.ask(requests).await;
        }
        match &self.exchange {
            Exchange::None => Err(CallError::tool("this call cannot ask its client: its answer is not a stream")),
            Exchange::Rounds(rounds) => rounds.ask(&inputs),
            Exchange::Stream(client) => {
                let outbox = self.outbox.as_ref().ok_or(CallError::Internal)?;
                let mut answers = Map::new();
                for (key, input) in inputs {
                    let answer = ask_on_stream(client.as_ref(), outbox, input).await?;
                    answers.insert(key.to_owned(), answer);
                }
                Ok(answers)
            }
        }
    }

    /// What [`Ctx::keep`] kept in the round before.
    pub fn kept(&self) -> Option<&Value> {
        if let Exchange::Rounds(rounds) = &self.exchange { rounds.kept.as_ref() } else { None }
    }

    /// Remembers a value for the next round, should this one end with a question. The client carries it; it cannot
    /// change it, and can read it.
    pub fn keep(&self, value: Value) {
        if let Exchange::Rounds(rounds) = &self.exchange {
            *rounds.keep.lock() = Some(value);
        }
    }
}

impl Rounds {
    fn ask(&self, inputs: &[(&str, Input)]) -> Result<Map<String, Value>, CallError> {
        let is_answered =
            |key: &str, input: &Input| self.answers.get(key).is_some_and(|answer| input.is_answered_by(answer));
        let missing = inputs.iter().filter(|(key, input)| !is_answered(key, input));
        let requests: Map<_, _> = missing.map(|(key, input)| ((*key).to_owned(), input.to_request())).collect();
        if requests.is_empty() {
            let answer = |key: &str| self.answers.get(key).cloned().unwrap_or_default();
            return Ok(inputs.iter().map(|(key, _)| ((*key).to_owned(), answer(key))).collect());
        }
        let good = |(key, _): &(&String, &Value)| !requests.contains_key(*key);
        let answers = self.answers.iter().filter(good).map(|(k, v)| (k.clone(), v.clone())).collect();
        let memory = Memory { answers, kept: self.keep.lock().clone() };
        Err(CallError::InputRequired(Box::new(Required { requests, memory })))
    }
}

/// Stops waiting on every path.
struct Forget<'a>(&'a dyn Answers, u64);

impl Drop for Forget<'_> {
    fn drop(&mut self) {
        self.0.forget(self.1);
    }
}

async fn ask_on_stream(client: &dyn Answers, outbox: &Outbox, input: Input) -> Result<Value, CallError> {
    request_on_stream(client, outbox, input.method, input.params).await?.map_err(|error| {
        let message = error.get("message").and_then(Value::as_str).unwrap_or("no reason given");
        CallError::tool(format!("the client refused {}: {message}", input.method))
    })
}

/// Sends any request to the client and waits for its answer: the result, or the error object.
pub(crate) async fn request_on_stream(
    client: &dyn Answers,
    outbox: &Outbox,
    method: &str,
    params: Value,
) -> Result<Result<Value, Value>, CallError> {
    let Some(_waiting) = outbox.wait_from(Instant::now()) else {
        return Err(CallError::tool("too many calls wait for their clients at the moment; try again later"));
    };
    let (id, answer) =
        client.expect().ok_or_else(|| CallError::tool("too many questions to this client are open at once"))?;
    let _forget = Forget(client, id);
    if !outbox.request(id, method, params) {
        return Err(CallError::tool("the client does not take what it is sent, so it cannot be asked"));
    }
    let limit = outbox.answer_timeout();
    match timeout(limit, answer).await {
        Ok(Ok(answer)) => Ok(answer),
        Ok(Err(_)) => Err(CallError::Cancelled), // the session has ended
        Err(_) => Err(CallError::tool(format!("the client did not answer {method} within {} s", limit.as_secs()))),
    }
}
