//! Whether a result is what its tool says that it returns. Clients check that as well, and fail where it is not; here it is
//! known which tool is at fault. Arguments are `schema`'s business.
//!
//! A result is checked on the thread that its tool runs on, whatever its size: a megabyte of rows takes 0.6 ms, where the
//! JSON that is made of it takes 0.9 ms, and letting go of it another 1.5 ms. To hand the check alone to another thread
//! would spare that thread the smallest part; who returns so much puts the tool into the pool, and all of it goes there.

use std::time::Instant;

use memchr::memmem;
use serde_json::{Map, Value};

use super::checker::Checker;
use crate::{call::Reply, error::CallError, telemetry::rarely::Rarely};

/// An output schema, compiled.
#[derive(Debug)]
pub(crate) struct ResultSchema {
    checker: Checker,
    /// Whose it is.
    tool: String,
}

impl ResultSchema {
    /// # Errors
    /// It does not compile, and why.
    fn compile(tool: &str, schema: &Map<String, Value>) -> Result<Self, String> {
        Checker::compile(schema)
            .map(|checker| Self { checker, tool: tool.to_owned() })
            .map_err(|error| format!("its output schema does not compile: {error}"))
    }

    /// Of a schema that was made from a type. What becomes of a value of that type is valid by itself, but for numbers that
    /// JSON does not have: NaN and the infinite ones become null. None where the type has none of these.
    pub(crate) fn of_type(tool: &str, schema: &Map<String, Value>) -> Option<Self> {
        if !has_floats(schema) {
            return None;
        }
        Self::compile_or_warn(tool, schema)
    }

    /// Where it does not compile results go unchecked, as that is said.
    pub(crate) fn compile_or_warn(tool: &str, schema: &Map<String, Value>) -> Option<Self> {
        Self::compile(tool, schema)
            .inspect_err(|error| tracing::warn!(name = tool, error, "its results are not checked"))
            .ok()
    }

    /// # Errors
    /// An answer that tells the agent what is wrong with `structured`, and that it cannot mend it.
    pub(crate) fn check(&self, structured: Option<&Value>) -> Result<(), CallError> {
        static RARELY: Rarely = Rarely::new();
        let (place, fault) = match structured {
            None => ("the result".to_owned(), "it has no structured content".to_owned()),
            Some(structured) => match self.checker.fault(structured) {
                None => return Ok(()),
                Some(fault) => (fault.place.clone(), fault.to_string()),
            },
        };
        // What is wrong there quotes the result, which is the caller's alone.
        if let Some(left_out) = RARELY.may(Instant::now()) {
            tracing::error!(left_out, name = self.tool, place, "a result is not of its tool's output schema");
        }
        Err(CallError::tool(format!(
            "the tool ran, and its result is not what it says that it returns: {fault}. This is a fault of the tool; other \
             arguments may avoid it"
        )))
    }

    /// The reply of a tool whose schema is its type's.
    pub(crate) fn checked(&self, reply: Reply) -> Result<Reply, CallError> {
        let may_have_none = !reply.is_error() && reply.is_final() && memmem::find(&reply.fields, b"null").is_some();
        if may_have_none {
            self.check(reply.to_json().get("structuredContent"))?;
        }
        Ok(reply)
    }
}

/// Whether there is a number that may be no integer, and may not be null, anywhere in it.
fn has_floats(schema: &Map<String, Value>) -> bool {
    fn of(value: &Value) -> bool {
        match value {
            Value::Object(object) => has_floats(object),
            Value::Array(items) => items.iter().any(of),
            _ => false,
        }
    }
    let is = |name: &str, value: &Value| match value {
        Value::String(text) => text == name,
        Value::Array(names) => names.iter().any(|one| one == name),
        _ => false,
    };
    schema.get("type").is_some_and(|named| is("number", named) && !is("null", named)) || schema.values().any(of)
}

#[cfg(test)]
mod tests {
    use schemars::JsonSchema;
    use serde::Serialize;
    use serde_json::json;

    use super::*;
    use crate::tool::{IntoReply, Json};

    #[derive(Serialize, JsonSchema)]
    struct Plain {
        n: u32,
        note: Option<String>,
        perhaps: Option<f64>,
    }

    #[derive(Serialize, JsonSchema)]
    struct Mean {
        plain: Plain,
        means: Vec<f64>,
    }

    fn mean(mean: f64) -> Json<Mean> {
        Json(Mean { plain: Plain { n: 1, note: None, perhaps: None }, means: vec![1.0, mean] })
    }

    #[test]
    fn a_type_that_cannot_be_wrong_is_not_checked() {
        assert!(ResultSchema::of_type("x", &Json::<Plain>::output_schema().expect("it has one")).is_none());
        assert!(ResultSchema::of_type("x", &Json::<Mean>::output_schema().expect("it has one")).is_some());
    }

    #[test]
    fn a_number_that_json_does_not_have_is_a_fault_and_what_may_be_null_is_none() {
        let schema = ResultSchema::of_type("x", &Json::<Mean>::output_schema().expect("it has one")).expect("floats");
        let right = mean(2.0).into_reply().expect("a reply");
        assert_eq!(schema.checked(right.clone()), Ok(right));
        for wrong in [f64::NAN, f64::INFINITY] {
            let told = schema.checked(mean(wrong).into_reply().expect("a reply")).expect_err("a fault");
            assert!(told.to_string().contains("/means/1: null is not of type \"number\""), "{told}");
        }
    }

    #[test]
    fn what_lacks_or_is_of_another_type_is_a_fault() {
        let schema = json!({ "type": "object", "properties": { "n": { "type": "integer" } }, "required": ["n"] });
        let schema = ResultSchema::compile("n", schema.as_object().expect("an object")).expect("it compiles");
        assert_eq!(schema.check(Some(&json!({ "n": 1 }))), Ok(()));
        for wrong in [None, Some(json!({ "n": "x" })), Some(json!({})), Some(json!([]))] {
            assert!(schema.check(wrong.as_ref()).is_err(), "{wrong:?}");
        }
        assert!(ResultSchema::compile("n", json!({ "type": 1 }).as_object().expect("an object")).is_err());
        let unknown = json!({ "$schema": "urn:own" });
        let error = ResultSchema::compile("n", unknown.as_object().expect("an object")).expect_err("not known");
        assert!(error.contains("output schema") && error.contains("\"urn:own\""), "{error}");
    }
}
