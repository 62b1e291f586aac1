//! Whether a value is of its schema, and what is wrong where it is not. The first takes time by the size of the value
//! alone. The second would not: of a union (`anyOf`, `oneOf`) the validator gathers all that is wrong by each of its
//! forms, and in all forms of what is inside, so that a schema which refers to itself takes twice the time and more for
//! each step that a value is deeper. Who sends a value chooses that. So it is worked out beforehand of how large a
//! value faults are told in detail; of a larger one it is said which member is wrong. What a schema is, is `schema`'s
//! business.

use std::fmt;

use jsonschema::{ValidationError, Validator};
use serde_json::{Map, Value};

use super::schema::{VALUES, validator};

/// Pairs of a schema and a value inside that may be looked at to tell a fault: some four milliseconds.
const PAIRS_MAX: usize = 20_000;
/// Values in a value, up to which faults are usually to be told.
const USUAL_VALUES: usize = 100;
/// Schemas inside a schema that are counted, each as often as it is referred to. One that refers to itself has more.
const SCHEMAS_MAX: usize = 10_000;
/// How much of a fault's place is told, and of its text: they may quote the value itself.
const TOLD_CHARS_MAX: usize = 300;
/// Keywords by which a value is looked at more than once.
const REPEATING: [&str; 11] = [
    "allOf",
    "anyOf",
    "oneOf",
    "then",
    "else",
    "dependentSchemas",
    "dependencies",
    "patternProperties",
    "contains",
    "unevaluatedItems",
    "unevaluatedProperties",
];
/// The same where they stand beside a reference.
const REPEATING_A_REFERENCE: [&str; 5] =
    ["properties", "additionalProperties", "items", "prefixItems", "additionalItems"];
const REFERENCES: [&str; 3] = ["$ref", "$dynamicRef", "$recursiveRef"];
/// Keywords whose values are objects of schemas by names.
const NAMED: [&str; 6] =
    ["properties", "patternProperties", "dependentSchemas", "dependencies", "$defs", "definitions"];

/// A schema, compiled.
#[derive(Debug)]
pub(super) struct Checker {
    validator: Validator,
    /// Values in a value, itself included, up to which its fault is told in detail.
    values_max: usize,
    /// What the members of an object have to be, each by itself: where usual objects are too large to tell more.
    members: Option<Validator>,
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

impl Fault {
    fn of(error: &ValidationError<'_>) -> Self {
        let told = error.to_string().chars().take(TOLD_CHARS_MAX).collect();
        Self { place: place(error.instance_path().as_str()), told }
    }

    fn somewhere_in(path: &str) -> Self {
        Self { place: place(path), told: "it has none of the forms that the schema allows".into() }
    }
}

fn place(path: &str) -> String {
    if path.is_empty() { "the object".into() } else { path.chars().take(TOLD_CHARS_MAX).collect() }
}

impl Checker {
    /// # Errors
    /// It does not compile, and why.
    pub(super) fn compile(schema: &Map<String, Value>) -> Result<Self, String> {
        let values_max = values_max(&Value::Object(schema.clone()));
        let members = (values_max < USUAL_VALUES).then(|| members(schema)).flatten();
        Ok(Self { validator: validator(schema)?, values_max, members })
    }

    /// The first fault only: to find them all takes as long as who made the value likes.
    pub(super) fn fault(&self, value: &Value) -> Option<Fault> {
        if self.validator.is_valid(value) {
            return None;
        }
        let fault = if has_at_most(self.values_max, value) {
            self.validator.validate(value).err().map(|error| Fault::of(&error))
        } else {
            self.fault_of_member(value)
        };
        Some(fault.unwrap_or_else(|| Fault::somewhere_in("")))
    }

    fn fault_of_member(&self, value: &Value) -> Option<Fault> {
        let members = self.members.as_ref()?;
        value.as_object()?.iter().find_map(|(name, member)| {
            let alone = Value::Object(Map::from_iter([(name.clone(), member.clone())]));
            if members.is_valid(&alone) {
                return None;
            }
            // Of a single value the rest is told as well: nothing is inside that would be looked at again and again.
            let is_single = !matches!(member, Value::Array(_) | Value::Object(_));
            let error = if is_single { members.validate(&alone).err() } else { None };
            Some(error.map_or_else(|| Fault::somewhere_in(&format!("/{name}")), |error| Fault::of(&error)))
        })
    }
}

/// Of the members alone. None where they cannot be told from the rest.
fn members(schema: &Map<String, Value>) -> Option<Validator> {
    let kept = ["$schema", "$id", "id", "$defs", "definitions", "properties"];
    let members = schema.iter().filter(|(keyword, _)| kept.contains(&keyword.as_str()));
    validator(&members.map(|(keyword, value)| (keyword.clone(), value.clone())).collect()).ok()
}

/// See [`Checker::values_max`].
fn values_max(root: &Value) -> usize {
    if !repeats(root) {
        return usize::MAX; // it is looked at once, whatever it is
    }
    schemas_in(root).map_or(0, |schemas| PAIRS_MAX / schemas)
}

/// Whether there is a keyword in it by which a value is looked at more than once.
fn repeats(root: &Value) -> bool {
    let mut open = vec![root];
    while let Some(schema) = open.pop() {
        if let Value::Object(schema) = schema {
            let count = |keywords: &[&str]| keywords.iter().filter(|keyword| schema.contains_key(**keyword)).count();
            let references = count(&REFERENCES);
            if count(&REPEATING) > 0 || references > 1 || (references > 0 && count(&REPEATING_A_REFERENCE) > 0) {
                return true;
            }
        }
        open.extend(inside(schema));
    }
    false
}

/// How many schemas there are in it, each as often as it is referred to. None where they are too many, or without end.
fn schemas_in(root: &Value) -> Option<usize> {
    let (mut count, mut open) = (0, vec![root]);
    while let Some(schema) = open.pop() {
        count += 1;
        if count > SCHEMAS_MAX {
            return None;
        }
        for (keyword, value) in schema.as_object().into_iter().flatten() {
            match (keyword.as_str(), value) {
                ("$ref", Value::String(to)) => open.push(root.pointer(to.strip_prefix('#')?)?),
                // What they refer to, and from where others do, is seen by the validator alone.
                ("$dynamicRef" | "$recursiveRef", _) => return None,
                ("$id" | "id", Value::String(_)) if !std::ptr::eq(schema, root) => return None,
                _ => {}
            }
        }
        open.extend(inside(schema));
    }
    Some(count)
}

/// The schemas that stand in a schema, or in a list of them.
fn inside(schema: &Value) -> Vec<&Value> {
    match schema {
        Value::Array(items) => items.iter().collect(),
        Value::Object(schema) => schema
            .iter()
            .filter(|(keyword, _)| !VALUES.contains(&keyword.as_str()))
            .flat_map(|(keyword, value)| match value {
                Value::Object(named) if NAMED.contains(&keyword.as_str()) => named.values().collect(),
                value => vec![value],
            })
            .filter(|value| value.is_object() || value.is_array())
            .collect(),
        _ => Vec::new(),
    }
}

/// Whether it is no more values than these, itself included.
fn has_at_most(values_max: usize, value: &Value) -> bool {
    if values_max == usize::MAX {
        return true;
    }
    let (mut values, mut open) = (1, vec![value]);
    while let Some(value) = open.pop() {
        values += match value {
            Value::Array(items) => items.len(),
            Value::Object(members) => members.len(),
            _ => 0,
        };
        if values > values_max {
            return false;
        }
        match value {
            Value::Array(items) => open.extend(items),
            Value::Object(members) => open.extend(members.values()),
            _ => {}
        }
    }
    values <= values_max
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn checker(schema: Value) -> Checker {
        Checker::compile(schema.as_object().expect("an object")).expect("it compiles")
    }

    fn told(checker: &Checker, value: &Value) -> String {
        checker.fault(value).expect("a fault").to_string()
    }

    /// `(((1)))`, as deep as this.
    fn nested(depth: usize, inmost: Value) -> Value {
        (0..depth).fold(inmost, |inside, _| json!({ "op": "or", "left": inside }))
    }

    /// A filter that is made of filters.
    fn filters() -> Checker {
        let of = |op: &str| {
            json!({ "type": "object", "required": ["op", "left"], "properties": {
                "op": { "const": op }, "left": { "$ref": "#/$defs/filter" } } })
        };
        checker(json!({ "type": "object", "required": ["filter"], "$defs": { "filter": {
            "oneOf": [of("and"), of("or"), of("xor"), { "type": "integer" }] } }, "properties": {
            "filter": { "$ref": "#/$defs/filter" }, "limit": { "type": "integer" } } }))
    }

    #[test]
    fn what_is_wrong_deep_inside_a_schema_that_refers_to_itself_is_told_without_a_search() {
        let filters = filters();
        assert!(filters.fault(&json!({ "filter": nested(60, json!(1)) })).is_none());
        let wrong = json!({ "filter": nested(10, json!("x")), "limit": 1 });
        assert_eq!(told(&filters, &wrong), "/filter: it has none of the forms that the schema allows");
        let wrong = json!({ "filter": nested(10, json!(1)), "limit": "1" });
        assert_eq!(told(&filters, &wrong), "/limit: \"1\" is not of type \"integer\"");
        assert!(told(&filters, &json!({})).starts_with("the object: "));
    }

    #[test]
    fn what_is_wrong_in_a_large_value_is_told_without_a_search() {
        let list = |kind: &str| json!({ "type": "array", "items": { "type": kind } });
        let lists = json!({ "properties": { "n": { "anyOf": [list("integer"), list("string")] } } });
        let lists = checker(lists);
        let wrong = |count: usize| told(&lists, &json!({ "n": vec![true; count] }));
        assert!(wrong(10).starts_with("/n: [true,true"), "{}", wrong(10));
        assert_eq!(wrong(PAIRS_MAX), "the object: it has none of the forms that the schema allows");
    }

    #[test]
    fn what_is_looked_at_once_is_told_whatever_its_size() {
        let tree = json!({ "$defs": { "tree": { "type": "object", "properties": {
            "not": { "type": "integer" }, "inside": { "type": "array", "items": { "$ref": "#/$defs/tree" } } } } },
            "properties": { "tree": { "$ref": "#/$defs/tree" } } });
        assert_eq!(values_max(&tree), usize::MAX);
        let wrong = (0..30).fold(json!({ "not": "x" }), |inside, _| json!({ "inside": [1_i32, inside] }));
        let wrong = json!({ "tree": wrong });
        assert!(told(&checker(tree), &wrong).contains("is not of type \"object\""));
    }

    #[test]
    fn keywords_by_which_a_value_is_looked_at_again_are_seen_wherever_they_stand() {
        for keyword in REPEATING {
            let inside = json!({ "items": [{ "not": { keyword: {} } }] });
            assert!(repeats(&inside), "{keyword}");
            let named = json!({ "properties": { keyword: { "enum": [{ keyword: 1 }] } }, "$defs": { keyword: {} } });
            assert!(!repeats(&named), "{keyword} as a name");
        }
        for (reference, beside) in REFERENCES.iter().flat_map(|to| REPEATING_A_REFERENCE.map(|beside| (to, beside))) {
            let both = json!({ "$defs": { "a": { *reference: "#", beside: {} } } });
            assert!(repeats(&both), "{both}");
        }
        assert!(repeats(&json!({ "$ref": "#/$defs/a", "$dynamicRef": "#b" })), "two are two");
        assert!(!repeats(&json!({ "$ref": "#/definitions/a", "definitions": { "a": { "properties": {} } } })));
    }

    #[test]
    fn schemas_are_counted_as_often_as_they_are_referred_to() {
        let count = |schema: Value| schemas_in(&schema);
        let name = json!({ "anyOf": [{ "type": "string" }, { "type": "null" }] });
        assert_eq!(count(name.clone()), Some(4), "itself, the list and what is in it");
        let (one, more) = (json!({ "$ref": "#/$defs/n" }), json!([{ "$ref": "#/$defs/n" }, { "$ref": "#/$defs/n" }]));
        let with = |value: &Value| json!({ "$defs": { "n": name }, "properties": { "a": value } });
        assert_eq!(count(with(&more)).zip(count(with(&one))).map(|(more, one)| more - one), Some(6));
        for endless in [
            json!({ "properties": { "a": { "$ref": "#" } } }),
            json!({ "properties": { "a": { "$dynamicRef": "#a" } } }),
            json!({ "properties": { "a": { "$ref": "#elsewhere" } } }),
            json!({ "properties": { "a": { "$id": "urn:a", "$ref": "#" } } }),
        ] {
            assert_eq!(count(endless.clone()), None, "{endless}");
        }
    }
}
