//! Schemas, and what they find wrong with arguments (JSON Schema 2020-12, compiled once, nothing fetched, patterns in
//! linear time). Results are `results`' business, and what a schema says of headers is `header_params`'.

use std::fmt::{self, Write};

use jsonschema::{Draft, PatternOptions, Retrieve, Uri, ValidationError, Validator};
use serde_json::{Map, Value};

/// Size of one compiled pattern.
const PATTERN_BYTES_MAX: usize = 1 << 20;
/// How much of a fault's text is told: it may quote the value itself.
const FAULT_CHARS_MAX: usize = 300;

/// An input schema, compiled.
#[derive(Debug)]
pub(crate) struct ArgumentSchema {
    validator: Validator,
    /// The names of the arguments, for who gives a wrong one.
    names: String,
}

/// Refuses every reference that leaves the schema.
struct Nowhere;

impl Retrieve for Nowhere {
    fn retrieve(&self, uri: &Uri<String>) -> Result<Value, Box<dyn std::error::Error + Send + Sync>> {
        Err(format!("the schema refers to {uri}; only references inside the schema are followed").into())
    }
}

/// Compiles a schema.
pub(super) fn validator(schema: &Map<String, Value>) -> Result<Validator, ValidationError<'static>> {
    jsonschema::options()
        .with_draft(Draft::Draft202012)
        .with_retriever(Nowhere)
        .with_pattern_options(PatternOptions::regex().size_limit(PATTERN_BYTES_MAX).dfa_size_limit(PATTERN_BYTES_MAX))
        .build(&Value::Object(schema.clone()))
}

/// Where a value is not of a schema.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) place: String,
    /// What is wrong there. It may quote the value.
    told: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.told)
    }
}

/// The first fault only: to find them all takes as long as who made the value likes.
pub(super) fn fault_of(validator: &Validator, value: &Value) -> Option<Fault> {
    if validator.is_valid(value) {
        return None;
    }
    let error = validator.validate(value).err()?;
    let path = error.instance_path().to_string();
    let place = if path.is_empty() { "the object".to_owned() } else { path };
    Some(Fault { place, told: error.to_string().chars().take(FAULT_CHARS_MAX).collect() })
}

impl ArgumentSchema {
    pub(crate) fn compile(schema: &Map<String, Value>) -> Result<Self, String> {
        validator(schema)
            .map(|validator| Self { validator, names: names(schema) })
            .map_err(|error| format!("its input schema does not compile: {error} (at {})", error.instance_path()))
    }

    /// Says what is wrong with `arguments`, for the agent to mend; `None` when nothing is.
    pub(crate) fn fault(&self, arguments: &Value) -> Option<String> {
        let fault = fault_of(&self.validator, arguments)?;
        let mut text = format!("the arguments are not valid: {fault}");
        if !self.names.is_empty() {
            let _ = write!(text, ". The tool takes: {}", self.names);
        }
        Some(text)
    }
}

/// The names of the arguments, those first that must be given.
fn names(schema: &Map<String, Value>) -> String {
    let required: Vec<&str> =
        schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
    let properties = schema.get("properties").and_then(Value::as_object).into_iter().flat_map(Map::keys);
    let mut names: Vec<&str> = properties.map(String::as_str).collect();
    names.sort_by_key(|name| !required.contains(name));
    let named = |name: &&str| if required.contains(name) { format!("{name} (required)") } else { (*name).to_owned() };
    names.iter().map(named).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        value.as_object().expect("an object").clone()
    }

    #[test]
    fn faults_name_the_place() {
        let schema = json!({"type":"object","properties":{"n":{"type":"integer"}},"required":["n"]});
        let schema = ArgumentSchema::compile(&object(schema)).expect("compiles");
        assert_eq!(schema.fault(&json!({"n": 1})), None);
        let fault = schema.fault(&json!({"n": "x"})).expect("a fault");
        assert!(fault.contains("/n") && fault.ends_with("The tool takes: n (required)"), "{fault}");
        assert!(schema.fault(&json!({})).expect("a fault").contains("\"n\" is a required property"));
    }

    #[test]
    fn references_leave_the_schema_nowhere() {
        let schema = json!({"properties":{"a":{"$ref":"http://127.0.0.1:1/x.json"}}});
        let error = ArgumentSchema::compile(&object(schema)).expect_err("refused");
        assert!(error.contains("only references inside"), "{error}");
    }
}
