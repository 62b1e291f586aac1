//! What a tool's input schema is good for: checking arguments (JSON Schema 2020-12, compiled once, nothing fetched,
//! patterns in linear time), and finding the arguments that clients repeat in headers.

use std::fmt::{self, Write};

use jsonschema::{Draft, PatternOptions, Retrieve, Uri, ValidationError, Validator};
use serde_json::{Map, Value};

/// Nesting of a schema that is still walked for header annotations.
const SCHEMA_DEPTH_MAX: usize = 64;
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

/// An argument that clients repeat in a header: `Mcp-Param-{header}` says what stands at `path`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct HeaderParam {
    /// The whole header name, in lower case.
    pub(crate) header: String,
    /// Keys that lead from the arguments to the value.
    pub(crate) path: Vec<String>,
}

/// The arguments annotated with `x-mcp-header`. Only where the specification allows one: a token as name, unique, on a
/// string, integer or boolean that is reached through `properties` alone. Elsewhere clients drop the tool, so the
/// start is refused instead.
pub(crate) fn header_params(schema: &Map<String, Value>) -> Result<Vec<HeaderParam>, String> {
    let mut found = Vec::new();
    walk(schema, true, &mut Vec::new(), &mut found)?;
    let mut names: Vec<_> = found.iter().map(|p| p.header.as_str()).collect();
    names.sort_unstable();
    if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(format!("two arguments are annotated with the header {}", pair[0]));
    }
    Ok(found)
}

fn walk(
    schema: &Map<String, Value>,
    reachable: bool,
    path: &mut Vec<String>,
    found: &mut Vec<HeaderParam>,
) -> Result<(), String> {
    if path.len() > SCHEMA_DEPTH_MAX {
        return Err(format!("its input schema is nested deeper than {SCHEMA_DEPTH_MAX}"));
    }
    if let Some(name) = schema.get("x-mcp-header") {
        found.push(annotated(schema, name, reachable, path)?);
    }
    for (keyword, value) in schema {
        match (keyword.as_str(), value) {
            ("properties", Value::Object(properties)) => {
                for (key, property) in properties {
                    if let Value::Object(property) = property {
                        path.push(key.clone());
                        walk(property, reachable, path, found)?;
                        path.pop();
                    }
                }
            }
            // Values, not schemas: what looks like an annotation in them is none.
            ("const" | "enum" | "default" | "examples", _) => {}
            (_, Value::Object(inner)) => {
                path.push(keyword.clone());
                walk(inner, false, path, found)?;
                path.pop();
            }
            (_, Value::Array(items)) => {
                path.push(keyword.clone());
                for item in items.iter().filter_map(Value::as_object) {
                    walk(item, false, path, found)?;
                }
                path.pop();
            }
            _ => {}
        }
    }
    Ok(())
}

fn annotated(
    schema: &Map<String, Value>,
    name: &Value,
    reachable: bool,
    path: &[String],
) -> Result<HeaderParam, String> {
    let place = path.join("/");
    let name = name.as_str().filter(|n| !n.is_empty() && n.bytes().all(is_token_byte));
    let name = name.ok_or_else(|| format!("x-mcp-header at {place} is not a header token"))?;
    if !reachable || path.is_empty() {
        return Err(format!("x-mcp-header at {place}: only arguments reached through `properties` can have one"));
    }
    if !matches!(schema.get("type").and_then(Value::as_str), Some("string" | "integer" | "boolean")) {
        return Err(format!("x-mcp-header at {place}: the argument must be a string, integer or boolean"));
    }
    Ok(HeaderParam { header: format!("mcp-param-{}", name.to_ascii_lowercase()), path: path.to_vec() })
}

/// A `tchar` of RFC 9110, section 5.6.2.
fn is_token_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(value: Value) -> Map<String, Value> {
        value.as_object().expect("an object").clone()
    }

    #[test]
    fn headers_are_found_and_misplaced_ones_refused() {
        let good = json!({"type":"object","properties":{"region":{"type":"string","x-mcp-header":"Region"},
            "deep":{"type":"object","properties":{"n":{"type":"integer","x-mcp-header":"N"}}}}});
        let found = header_params(&object(good)).expect("allowed");
        let found: Vec<_> = found.iter().map(|p| (p.header.as_str(), p.path.join("/"))).collect();
        assert_eq!(found, [("mcp-param-n", "deep/n".to_owned()), ("mcp-param-region", "region".to_owned())]);
        for bad in [
            json!({"properties":{"a":{"type":"number","x-mcp-header":"A"}}}),
            json!({"properties":{"a":{"type":"string","x-mcp-header":"a b"}}}),
            json!({"properties":{"a":{"type":"string","x-mcp-header":""}}}),
            json!({"properties":{"a":{"type":"array","items":{"type":"string","x-mcp-header":"A"}}}}),
            json!({"properties":{"a":{"anyOf":[{"type":"string","x-mcp-header":"A"}]}}}),
            json!({"properties":{"a":{"type":"string","x-mcp-header":"X"},"b":{"type":"string","x-mcp-header":"x"}}}),
        ] {
            assert!(header_params(&object(bad.clone())).is_err(), "{bad}");
        }
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
