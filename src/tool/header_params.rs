//! The arguments that clients repeat in headers, as an input schema says it. Whether a header and its argument agree is
//! the protocol's business.

use serde_json::{Map, Value};

/// Nesting of a schema that is still walked for header annotations.
const SCHEMA_DEPTH_MAX: usize = 64;

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
}
