//! Prompts from functions. A prompt's function takes its arguments as one type of texts, from which clients are told what
//! they are, and returns a text or the protocol's own messages.

use std::{collections::BTreeMap, fmt, sync::Arc};

use rmcp::model::{GetPromptResult, PromptMessage, Role};
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::{
    call::{Ctx, Lane, Reply},
    error::CallError,
    tool::{
        Outcome, Run, Work,
        native::{input_schema_of, open_object},
    },
};

type Propose = dyn Fn(&str) -> Vec<String> + Send + Sync;

/// Proposes values for one argument.
#[derive(Clone)]
pub(crate) struct Complete(pub(crate) Arc<Propose>);

impl fmt::Debug for Complete {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Complete")
    }
}

/// Proposals by the argument that they are for.
pub(crate) type Completions = BTreeMap<String, Complete>;

/// A prompt.
#[derive(Clone, Debug)]
pub struct Prompt {
    pub(crate) definition: Map<String, Value>,
    pub(crate) completions: Completions,
    pub(crate) work: Arc<Work>,
    /// An argument that is no text.
    odd_argument: Option<String>,
}

impl Prompt {
    /// A prompt whose function returns when it is done. Its arguments are texts, since that is what clients send.
    ///
    /// # Panics
    /// With `Lane::Async`, which is for [`Prompt::new_async`].
    #[track_caller]
    pub fn new<A: DeserializeOwned + JsonSchema, R: IntoMessages>(
        name: &'static str,
        description: &str,
        lane: Lane,
        get: impl Fn(A, Ctx) -> R + Send + Sync + 'static,
    ) -> Self {
        assert!(
            lane != Lane::Async,
            "a function that returns its messages runs Inline or in the Pool; one that returns a future goes with new_async"
        );
        let run = move |arguments, ctx| get(read(arguments)?, ctx).into_messages();
        Self::of::<A>(name, description, lane, Run::Sync(Arc::new(run)))
    }

    /// A prompt whose function returns a future.
    pub fn new_async<A: DeserializeOwned + JsonSchema, R: IntoMessages, F: Future<Output = R> + Send + 'static>(
        name: &'static str,
        description: &str,
        get: impl Fn(A, Ctx) -> F + Send + Sync + 'static,
    ) -> Self {
        let run = move |arguments, ctx| -> crate::tool::Running {
            match read(arguments) {
                Ok(arguments) => {
                    let getting = get(arguments, ctx);
                    Box::pin(async move { getting.await.into_messages() })
                }
                Err(error) => Box::pin(std::future::ready(Err(error))),
            }
        };
        Self::of::<A>(name, description, Lane::Async, Run::Async(Arc::new(run)))
    }

    /// A name for people.
    #[must_use]
    pub fn title(mut self, title: &str) -> Self {
        self.definition.insert("title".into(), title.into());
        self
    }

    /// Proposes values for an argument while a user types one: those that go on from the text so far.
    #[must_use]
    pub fn complete(mut self, argument: &str, propose: impl Fn(&str) -> Vec<String> + Send + Sync + 'static) -> Self {
        self.completions.insert(argument.to_owned(), Complete(Arc::new(propose)));
        self
    }

    fn of<A: JsonSchema>(name: &'static str, description: &str, lane: Lane, run: Run) -> Self {
        let mut definition = Map::new();
        definition.insert("name".into(), name.into());
        definition.insert("description".into(), description.into());
        let schema = input_schema_of::<A>();
        let arguments = arguments_of(&schema);
        if !arguments.is_empty() {
            definition.insert("arguments".into(), arguments.into());
        }
        let work = Work { name: name.into(), lane, run, wants_raw: false, meter: None };
        Self { definition, completions: Completions::new(), work: Arc::new(work), odd_argument: odd_argument(&schema) }
    }

    pub(crate) fn name(&self) -> &str {
        &self.work.name
    }

    /// What is wrong with it, if anything.
    pub(crate) fn fault(&self) -> Option<String> {
        let name = self.name();
        if let Some(argument) = &self.odd_argument {
            return Some(format!(
                "the prompt {name:?}: its argument {argument:?} is no text, and clients send nothing else; take a String \
                 and read it"
            ));
        }
        let arguments = self.definition.get("arguments").and_then(Value::as_array);
        let has = |wanted: &str| arguments.into_iter().flatten().any(|argument| argument["name"] == wanted);
        let stray = self.completions.keys().find(|argument| !has(argument))?;
        Some(format!("the prompt {name:?}: values are proposed for {stray:?}, which is none of its arguments"))
    }
}

/// A prompt's arguments as clients are told of them, from the schema of the type.
fn arguments_of(schema: &Map<String, Value>) -> Vec<Value> {
    let required = schema.get("required").and_then(Value::as_array);
    let properties = schema.get("properties").and_then(Value::as_object).into_iter().flatten();
    let argument = |(name, property): (&String, &Value)| {
        let is_required = required.is_some_and(|all| all.iter().any(|r| r == name));
        let mut argument = json!({ "name": name, "required": is_required });
        if let Some(description) = property.get("description") {
            argument["description"] = description.clone();
        }
        argument
    };
    properties.map(argument).collect()
}

/// An argument that can be no text.
fn odd_argument(schema: &Map<String, Value>) -> Option<String> {
    let is_odd = |property: &Value| {
        let types = property.get("type");
        let is_text = |kind: &Value| kind == "string" || kind == "null";
        types.is_some_and(|types| types.as_array().map_or_else(|| !is_text(types), |all| !all.iter().any(is_text)))
    };
    let mut properties = schema.get("properties").and_then(Value::as_object).into_iter().flatten();
    properties.find(|(_, property)| is_odd(property)).map(|(name, _)| name.clone())
}

fn read<A: DeserializeOwned>(arguments: Value) -> Result<A, CallError> {
    // No arguments are `{}` to a client and `()` to a function, which serde reads from null.
    let is_empty = arguments.as_object().is_some_and(Map::is_empty);
    if let (true, Ok(unit)) = (is_empty, serde_json::from_value(Value::Null)) {
        return Ok(unit);
    }
    serde_json::from_value(arguments)
        .map_err(|error| CallError::InvalidParams(format!("the prompt's arguments do not fit: {error}")))
}

/// What a prompt's function may return.
pub trait IntoMessages {
    /// The messages as the client gets them.
    ///
    /// # Errors
    /// When the prompt cannot be made.
    fn into_messages(self) -> Outcome;
}

/// One message of the user.
impl IntoMessages for String {
    fn into_messages(self) -> Outcome {
        vec![PromptMessage::new_text(Role::User, self)].into_messages()
    }
}

impl IntoMessages for &str {
    fn into_messages(self) -> Outcome {
        self.to_owned().into_messages()
    }
}

impl IntoMessages for Vec<PromptMessage> {
    fn into_messages(self) -> Outcome {
        GetPromptResult::new(self).into_messages()
    }
}

impl IntoMessages for GetPromptResult {
    fn into_messages(mut self) -> Outcome {
        self.result_type = None; // said around the members, by revision
        let meta = self.meta.take().map(|meta| open_object(&meta)).transpose()?;
        Ok(Reply { meta, ..Reply::of(open_object(&self)?) })
    }
}

impl<T: IntoMessages, E: Into<CallError>> IntoMessages for Result<T, E> {
    fn into_messages(self) -> Outcome {
        self.map_err(Into::into)?.into_messages()
    }
}
