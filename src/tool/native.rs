//! Tools from functions. A function takes its arguments as one type, from which the input schema is made, and a
//! [`Ctx`]; it returns text, [`Json`] of a type (from which the output schema is made), the protocol's own result
//! type, or a `Result` of one of them.

use std::{borrow::Cow, future::Future, sync::Arc};

use rmcp::model::{CallToolResult, ContentBlock};
use schemars::{
    JsonSchema,
    generate::{Contract, SchemaSettings},
    transform::RestrictFormats,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use crate::{
    call::{Ctx, Lane, Reply},
    error::CallError,
    tool::{Outcome, Run, Tool, Work, results::ResultSchema},
};

impl Tool {
    /// A tool whose function returns when it is done.
    ///
    /// # Panics
    /// With `Lane::Async`, which is for [`Tool::new_async`].
    #[track_caller]
    pub fn new<A, R>(
        name: impl Into<Cow<'static, str>>,
        description: impl Into<Cow<'static, str>>,
        lane: Lane,
        run: impl Fn(A, Ctx) -> R + Send + Sync + 'static,
    ) -> Self
    where
        A: DeserializeOwned + JsonSchema,
        R: IntoReply,
    {
        assert!(
            lane != Lane::Async,
            "a function that returns its result runs Inline or in the Pool; one that returns a future is added with \
             async_tool, or made with Tool::new_async"
        );
        let (name, output): (Cow<'static, str>, _) = (name.into(), R::output_schema());
        let results = output.as_ref().and_then(|schema| ResultSchema::of_type(&name, schema));
        let run = move |arguments, ctx| checked(run(read_arguments(arguments)?, ctx).into_reply(), results.as_ref());
        Self::of(
            name,
            description.into(),
            schema_of::<A>(Contract::Deserialize),
            output,
            lane,
            Run::Sync(Arc::new(run)),
        )
    }

    /// A tool whose function returns a future; it runs in the lane [`Lane::Async`].
    pub fn new_async<A, R, F>(
        name: impl Into<Cow<'static, str>>,
        description: impl Into<Cow<'static, str>>,
        run: impl Fn(A, Ctx) -> F + Send + Sync + 'static,
    ) -> Self
    where
        A: DeserializeOwned + JsonSchema,
        R: IntoReply,
        F: Future<Output = R> + Send + 'static,
    {
        let (name, output): (Cow<'static, str>, _) = (name.into(), R::output_schema());
        let results = output.as_ref().and_then(|schema| ResultSchema::of_type(&name, schema)).map(Arc::new);
        let run = move |arguments, ctx| -> crate::tool::Running {
            match read_arguments(arguments) {
                Ok(arguments) => {
                    let (running, results) = (run(arguments, ctx), results.clone());
                    Box::pin(async move { checked(running.await.into_reply(), results.as_deref()) })
                }
                Err(error) => Box::pin(std::future::ready(Err(error))),
            }
        };
        let lane = Lane::Async;
        Self::of(
            name,
            description.into(),
            schema_of::<A>(Contract::Deserialize),
            output,
            lane,
            Run::Async(Arc::new(run)),
        )
    }

    /// Replaces the input schema that was made from the argument type by one written by hand. It is sent to clients as
    /// it stands; arguments are checked against it, as the draft of JSON Schema that its `$schema` names, or 2020-12.
    #[must_use]
    pub fn input_schema(mut self, schema: Map<String, Value>) -> Self {
        self.definition.input_schema = Arc::new(schema);
        self
    }

    fn of(
        name: Cow<'static, str>,
        description: Cow<'static, str>,
        input: Map<String, Value>,
        output: Option<Map<String, Value>>,
        lane: Lane,
        run: Run,
    ) -> Self {
        let mut definition = rmcp::model::Tool::new(name.clone(), description, input);
        definition.output_schema = output.map(Arc::new);
        Self { definition, work: Arc::new(Work { name, lane, run, wants_raw: false, meter: Some(Arc::default()) }) }
    }
}

fn checked(outcome: Outcome, results: Option<&ResultSchema>) -> Outcome {
    match results {
        None => outcome,
        Some(results) => results.checked(outcome?),
    }
}

/// What a tool's function may return.
pub trait IntoReply {
    /// The schema of `structuredContent`, when there is one.
    fn output_schema() -> Option<Map<String, Value>> {
        None
    }

    /// The answer as the caller gets it.
    ///
    /// # Errors
    /// When the tool failed or its result has no JSON form.
    fn into_reply(self) -> Outcome;
}

/// A result as structured content, with its JSON as text for clients that do not read that. Where its type has a number
/// and the value has one that JSON does not know (NaN, the infinite ones), the call is answered with an error instead.
#[derive(Clone, Copy, Debug)]
pub struct Json<T>(
    /// The value; its type makes the output schema.
    pub T,
);

impl<T: Serialize + JsonSchema> IntoReply for Json<T> {
    fn output_schema() -> Option<Map<String, Value>> {
        Some(schema_of::<T>(Contract::Serialize))
    }

    fn into_reply(self) -> Outcome {
        Reply::structured(&self.0)
    }
}

impl IntoReply for String {
    fn into_reply(self) -> Outcome {
        Ok(Reply::text(&self))
    }
}

impl IntoReply for &str {
    fn into_reply(self) -> Outcome {
        Ok(Reply::text(self))
    }
}

impl IntoReply for Reply {
    fn into_reply(self) -> Outcome {
        Ok(self)
    }
}

impl IntoReply for Vec<ContentBlock> {
    fn into_reply(self) -> Outcome {
        CallToolResult::success(self).into_reply()
    }
}

impl IntoReply for CallToolResult {
    fn into_reply(mut self) -> Outcome {
        self.result_type = None; // said around the fields, by revision
        let meta = self.meta.take().map(|meta| open_object(&meta)).transpose()?;
        let is_error = self.is_error == Some(true);
        Ok(Reply { meta, is_error, ..Reply::of(open_object(&self)?) })
    }
}

impl<T: IntoReply, E: Into<CallError>> IntoReply for Result<T, E> {
    fn output_schema() -> Option<Map<String, Value>> {
        T::output_schema()
    }

    fn into_reply(self) -> Outcome {
        self.map_err(Into::into)?.into_reply()
    }
}

/// The members of an object's JSON, without its braces.
pub(super) fn open_object(value: &impl Serialize) -> Result<bytes::Bytes, CallError> {
    let json = serde_json::to_vec(value).map_err(|error| {
        tracing::error!(%error, "a tool's result has no JSON form");
        CallError::Internal
    })?;
    let json = bytes::Bytes::from(json);
    Ok(if json.len() >= 2 { json.slice(1..json.len() - 1) } else { bytes::Bytes::new() })
}

/// The arguments as the function wants them. The schema was checked before, so what fails here is what a schema made
/// from the type cannot say.
fn read_arguments<A: DeserializeOwned>(arguments: Value) -> Result<A, CallError> {
    // No arguments are `{}` to a client and `()` to a function, which serde reads from null.
    let is_unit = size_of::<A>() == 0 && arguments.as_object().is_some_and(Map::is_empty);
    if is_unit && let Ok(unit) = serde_json::from_value(Value::Null) {
        return Ok(unit);
    }
    serde_json::from_value(arguments).map_err(|error| CallError::Tool(format!("the arguments do not fit: {error}")))
}

/// The schema of a type of arguments.
pub(super) fn input_schema_of<T: JsonSchema>() -> Map<String, Value> {
    schema_of::<T>(Contract::Deserialize)
}

/// A JSON Schema (2020-12) of a type, as it is read or as it is written (members with defaults may be left out only by
/// who writes to us), with its definitions inlined so that every client can read it.
fn schema_of<T: JsonSchema>(contract: Contract) -> Map<String, Value> {
    let read = contract.is_deserialize();
    let settings = SchemaSettings::draft2020_12().with_transform(RestrictFormats::default()).with(|s| {
        s.inline_subschemas = true;
        s.contract = contract;
    });
    let mut schema = settings.into_generator().into_root_schema_for::<T>();
    schema.remove("title"); // the Rust type's name says nothing to an agent
    let Value::Object(mut schema) = schema.to_value() else { return Map::new() };
    if read && schema.get("type").is_some_and(|kind| kind == "null") {
        schema.insert("type".into(), "object".into()); // a function that takes `()`
    }
    schema.entry("type").or_insert_with(|| "object".into());
    if schema["type"] == "object" {
        schema.entry("properties").or_insert_with(|| Value::Object(Map::new()));
    }
    schema
}
