//! The JSON Schema of `tuning.toml`, for editors, made from the settings structs: their words, their defaults, and the
//! ranges that the start checks.

use schemars::{Schema, generate::SchemaSettings, transform::transform_subschemas};
use serde_json::{Value, json};

use super::{Tuning, known::TOOLS, ranges::RANGES};

/// The schema: 2020-12, whole in itself, closed to unknown keys.
pub fn schema() -> Value {
    let settings = SchemaSettings::draft2020_12().with(|s| s.inline_subschemas = true).with_transform(tidy);
    let mut schema = settings.into_generator().into_root_schema_for::<Tuning>().to_value();
    schema["title"] = json!("bigiron: tuning.toml");
    for range in RANGES {
        let (section, key) = range.path.split_once('.').unwrap_or_default();
        let keys = match key.strip_prefix("*.") {
            Some(key) if section == TOOLS => {
                &mut schema["properties"][TOOLS]["additionalProperties"]["properties"][key]
            }
            _ => &mut schema["properties"][section]["properties"][key],
        };
        if keys["type"] == "integer" {
            keys["minimum"] = json!(range.least);
            keys["maximum"] = json!(range.most);
        }
    }
    schema
}

/// Takes out what says something about Rust and nothing about TOML, where an absent key is absent and not null.
fn tidy(schema: &mut Schema) {
    transform_subschemas(&mut tidy, schema);
    schema.remove("title");
    // A section's default is that of its settings, each of which has its own.
    if schema.get("default").is_some_and(|default| default.is_null() || default.is_object()) {
        schema.remove("default");
    }
    if let Some(Value::Array(types)) = schema.get_mut("type") {
        types.retain(|t| t != "null");
        if let [only] = types.as_slice() {
            let only = only.clone();
            schema.insert("type".into(), only);
        }
    }
    let Some(Value::Array(choices)) = schema.get_mut("anyOf") else { return };
    choices.retain(|choice| choice["type"] != "null");
    if let [Value::Object(only)] = choices.as_slice() {
        let only = only.clone();
        schema.remove("anyOf");
        let schema = schema.ensure_object();
        for (key, value) in only {
            schema.entry(key).or_insert(value); // the field's own description comes first
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepts(text: &str) -> Result<(), String> {
        let file: Value = toml::from_str(text).expect("TOML");
        let validator = jsonschema::validator_for(&schema()).expect("a valid JSON Schema");
        validator.validate(&file).map_err(|e| e.to_string())
    }

    #[test]
    fn it_accepts_the_documented_file_and_nothing_unknown() {
        assert_eq!(accepts(include_str!("../../tuning.toml")), Ok(()));
        assert_eq!(accepts("[tools.x]\ntimeout_ms = 5\ncache_ttl_s = 1\ncache_scope = 'public'"), Ok(()));
        assert_eq!(accepts("[tools.x]\nsubjects = ['ann', { subject = 'bob', issuer = 'bigiron:keys' }]"), Ok(()));
        for wrong in [
            "[tools.x]\nsubjects = [{ subject = 'bob' }]",
            "[limits]\nrequest_timeout = 5",
            "[limit]",
            "listen = 'x'",
            "[tools.x]\ntimeout = 5",
            "[limits]\nrequest_timeout_ms = '5'",
            "[limits]\nrequest_timeout_ms = -5",
            "[limits]\nrequest_bytes_max = '1MB'",
            "[pool]\non_full = 'x'",
            "[tools.x]\ncache_scope = 'x'",
            "[limits]\njson_depth_max = 500",
            "[tools.x]\ntimeout_ms = 0",
        ] {
            assert!(accepts(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn it_tells_an_editor_what_a_setting_is() {
        let schema = schema();
        let timeout = &schema["properties"]["limits"]["properties"]["request_timeout_ms"];
        assert_eq!(timeout["default"], 5000, "{timeout}");
        assert!(timeout["description"].as_str().is_some_and(|d| d.contains("milliseconds")), "{timeout}");
        assert!(!schema.to_string().contains("null"), "absent is absent in TOML");
        let scope = &schema["properties"]["tools"]["additionalProperties"]["properties"]["cache_scope"];
        assert_eq!(scope["oneOf"][0]["const"], "caller", "{scope}");
    }
}
