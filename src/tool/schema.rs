//! Schemas, and what is told of arguments that are not of theirs (JSON Schema of the draft that they name, compiled
//! once, nothing fetched, patterns in linear time). Results are `results`' business, and what a schema says of headers
//! is `header_params`'.

use std::fmt::Write;

use jsonschema::{Draft, PatternOptions, Retrieve, Uri, Validator};
use serde_json::{Map, Value};

use super::checker::Checker;

/// Size of one compiled pattern.
const PATTERN_BYTES_MAX: usize = 1 << 20;

/// The drafts that are known, each with or without `#` at its end, and by http or https.
const KNOWN: [&str; 5] = [
    "https://json-schema.org/draft/2020-12/schema",
    "https://json-schema.org/draft/2019-09/schema",
    "http://json-schema.org/draft-07/schema#",
    "http://json-schema.org/draft-06/schema#",
    "http://json-schema.org/draft-04/schema#",
];

/// Keywords whose values are no schemas.
pub(super) const VALUES: [&str; 4] = ["const", "default", "enum", "examples"];

/// An input schema, compiled.
#[derive(Debug)]
pub(crate) struct ArgumentSchema {
    checker: Checker,
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

/// Compiles a schema, as the draft that it names. One that names none is of 2020-12, as MCP has it.
///
/// What is no more than a note in 2020-12 is one in every draft: `format` and `contentEncoding` are read differently by
/// each who checks them, and the older drafts leave it open whether they are.
///
/// # Errors
/// It does not compile, or names a draft that is not known: says why.
pub(super) fn validator(schema: &Map<String, Value>) -> Result<Validator, String> {
    jsonschema::options()
        .with_draft(draft(schema)?)
        .with_retriever(Nowhere)
        .with_pattern_options(PatternOptions::regex().size_limit(PATTERN_BYTES_MAX).dfa_size_limit(PATTERN_BYTES_MAX))
        .should_validate_formats(false)
        .without_content_encoding_support("base64")
        .without_content_media_type_support("application/json")
        .build(&Value::Object(schema.clone()))
        .map_err(|error| format!("{error} (at {})", error.instance_path()))
}

fn draft(schema: &Map<String, Value>) -> Result<Draft, String> {
    if let Some(named) = unknown_draft(schema) {
        return Err(format!("its $schema is {named:?}, which is not known; known are {}", KNOWN.join(", ")));
    }
    // What is no text there is a fault of the schema like any other, and is found when it is compiled.
    Ok(schema.get("$schema").and_then(Value::as_str).map_or(Draft::Draft202012, Draft::from_schema_uri))
}

/// The name of a draft that is not known, in the schema or in one inside it.
fn unknown_draft(schema: &Map<String, Value>) -> Option<&str> {
    fn inside(value: &Value) -> Option<&str> {
        match value {
            Value::Object(schema) => unknown_draft(schema),
            Value::Array(items) => items.iter().find_map(inside),
            _ => None,
        }
    }
    let named = schema.get("$schema").and_then(Value::as_str);
    let unknown = named.filter(|named| Draft::from_schema_uri(named) == Draft::Unknown);
    // Values, not schemas, are what some keywords have; and what keywords of one's own have is for who knows them.
    let is_schema = |keyword: &str| !VALUES.contains(&keyword) && !keyword.starts_with("x-");
    let schemas = || schema.iter().filter(|(keyword, _)| is_schema(keyword));
    unknown.or_else(|| schemas().find_map(|(_, value)| inside(value)))
}

impl ArgumentSchema {
    pub(crate) fn compile(schema: &Map<String, Value>) -> Result<Self, String> {
        Checker::compile(schema)
            .map(|checker| Self { checker, names: names(schema) })
            .map_err(|error| format!("its input schema does not compile: {error}"))
    }

    /// Says what is wrong with `arguments`, for the agent to mend; `None` when nothing is.
    pub(crate) fn fault(&self, arguments: &Value) -> Option<String> {
        let fault = self.checker.fault(arguments)?;
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

    /// Whether arguments are good, by a schema that names this draft, or none.
    fn is_good(draft: Option<&str>, mut schema: Value, arguments: &Value) -> bool {
        if let Some(draft) = draft {
            schema["$schema"] = draft.into();
        }
        ArgumentSchema::compile(&object(schema)).expect("compiles").fault(arguments).is_none()
    }

    const DRAFT_07: &str = "http://json-schema.org/draft-07/schema#";

    #[test]
    fn a_schema_is_read_as_the_draft_that_it_names() {
        let pair = json!({"type":"object","properties":{
            "pair":{"type":"array","items":[{"type":"string"},{"type":"integer"}],"additionalItems":false}}});
        for draft in [KNOWN[1], KNOWN[2], KNOWN[3], KNOWN[4], "https://json-schema.org/draft-07/schema"] {
            for (arguments, good) in [
                (json!({"pair":["a",1]}), true),
                (json!({"pair":["a"]}), true),
                (json!({"pair":[1,"a"]}), false),
                (json!({"pair":["a",1,2]}), false),
            ] {
                assert_eq!(is_good(Some(draft), pair.clone(), &arguments), good, "{draft}: {arguments}");
            }
        }
        let pair = json!({"type":"object","properties":{
            "pair":{"type":"array","prefixItems":[{"type":"string"},{"type":"integer"}],"items":false}}});
        for draft in [None, Some(KNOWN[0]), Some("https://json-schema.org/schema")] {
            assert!(is_good(draft, pair.clone(), &json!({"pair":["a",1]})), "{draft:?}");
            assert!(!is_good(draft, pair.clone(), &json!({"pair":["a",1,2]})), "{draft:?}");
        }
    }

    #[test]
    fn what_stands_beside_a_reference_counts_from_2019_on() {
        let schema = json!({"type":"object","definitions":{"name":{"type":"string"}},
            "properties":{"name":{"$ref":"#/definitions/name","maxLength":1}}});
        for (draft, counts) in KNOWN.iter().zip([true, true, false, false, false]) {
            assert_eq!(is_good(Some(draft), schema.clone(), &json!({"name":"ab"})), !counts, "{draft}");
            assert!(!is_good(Some(draft), schema.clone(), &json!({"name":1})), "{draft}");
        }
    }

    #[test]
    fn notes_are_no_demands_in_any_draft() {
        let schema = json!({"type":"object","properties":{
            "mail":{"type":"string","format":"email"},
            "data":{"type":"string","contentEncoding":"base64"},
            "json":{"type":"string","contentMediaType":"application/json"}}});
        for (draft, name) in KNOWN.iter().flat_map(|draft| ["mail", "data", "json"].map(|name| (draft, name))) {
            assert!(is_good(Some(draft), schema.clone(), &json!({name:"?"})), "{draft}: {name}");
        }
    }

    #[test]
    fn a_draft_that_is_not_known_is_named_with_those_that_are() {
        for named in ["http://127.0.0.1:1/own.json", "http://json-schema.org/draft-03/schema#", ""] {
            let error = ArgumentSchema::compile(&object(json!({"$schema":named}))).expect_err("refused");
            assert!(error.contains(&format!("{named:?}")), "{error}");
            assert!(error.contains(DRAFT_07) && error.contains("2020-12"), "{error}");
        }
        assert!(ArgumentSchema::compile(&object(json!({"$schema":7}))).is_err());
        let own = json!({"$schema":"http://127.0.0.1:1/own.json"});
        let inner = json!({"$schema":DRAFT_07,"properties":{"a":{"anyOf":[own]}}});
        let error = ArgumentSchema::compile(&object(inner)).expect_err("refused");
        assert!(error.contains("own.json"), "{error}");
        let value =
            json!({"x-of":own,"properties":{"$schema":{"type":"string","default":"own.json"},"a":{"const":own}}});
        ArgumentSchema::compile(&object(value)).expect("it is an argument that is named so");
    }
}
