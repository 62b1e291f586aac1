//! Which settings there are and what each may hold, taken from the settings structs themselves (their JSON Schema), so
//! that no second list can disagree. Says what is wrong with a name or a value, and what comes nearest.

use std::{collections::BTreeMap, fmt, sync::LazyLock};

use serde_json::Value;

use super::{fault::shown, nearest, schema::schema};
use crate::{rate::Rule, units::ByteSize};

/// Where a setting stands: `limits.request_timeout_ms`, or `tools.NAME.timeout_ms`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Path {
    pub(super) section: String,
    /// The name of a tool, in the section `tools`.
    pub(super) tool: Option<String>,
    pub(super) key: String,
}

/// The section that has one sub-section for each tool.
pub(super) const TOOLS: &str = "tools";

impl Path {
    /// Splits a path at `separator`. The name of a tool is all between the first and the last one, so that it may hold
    /// the separator itself.
    pub(super) fn parse(text: &str, separator: &str) -> Option<Self> {
        let (section, rest) = text.split_once(separator)?;
        if section != TOOLS {
            return Some(Self { section: section.into(), tool: None, key: rest.into() });
        }
        let (tool, key) = rest.rsplit_once(separator)?;
        Some(Self { section: section.into(), tool: Some(tool.into()), key: key.into() })
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.tool {
            None => write!(f, "{}.{}", shown(&self.section), shown(&self.key)),
            Some(tool) => write!(f, "{}.{}.{}", shown(&self.section), shown(tool), shown(&self.key)),
        }
    }
}

/// What a setting may hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Whole,
    Flag,
    Text,
    Texts,
    /// Names, each by itself or with its issuer.
    Subjects,
    Size,
    /// How often something may happen.
    Rate,
    OneOf(Vec<String>),
    /// A schema that nobody taught this file; a test sees to it that there is none.
    Other,
}

type Keys = BTreeMap<String, Kind>;

/// All settings.
#[derive(Debug)]
pub(super) struct Known {
    sections: BTreeMap<String, Keys>,
    tool: Keys,
}

impl Known {
    /// The settings of this program.
    pub(super) fn settings() -> &'static Self {
        static KNOWN: LazyLock<Known> = LazyLock::new(|| Known::of_schema(&schema()));
        &KNOWN
    }

    fn of_schema(schema: &Value) -> Self {
        let mut sections: BTreeMap<String, Keys> =
            members(&schema["properties"]).map(|(name, section)| (name.clone(), keys(section))).collect();
        sections.remove(TOOLS);
        Self { sections, tool: keys(&schema["properties"][TOOLS]["additionalProperties"]) }
    }

    /// The keys that may stand beside `path`, or what is wrong with its section.
    fn keys_of(&self, path: &Path) -> Result<&Keys, String> {
        if path.section == TOOLS {
            return Ok(&self.tool);
        }
        self.sections.get(&path.section).ok_or_else(|| self.no_section(&path.section))
    }

    /// What the setting may hold.
    ///
    /// # Errors
    /// There is none of this name: says which comes nearest.
    pub(super) fn kind(&self, path: &Path) -> Result<&Kind, String> {
        let keys = self.keys_of(path)?;
        if let Some(kind) = keys.get(&path.key) {
            return Ok(kind);
        }
        let beside = |key: &str| Path { key: key.to_owned(), ..path.clone() }.to_string();
        let suggestion = match (self.elsewhere(&path.key), nearest(&path.key, keys.keys().map(String::as_str))) {
            (_, Some(key)) if path.section == TOOLS => format!("did you mean {}?", beside(key)),
            (Some(setting), _) => format!("did you mean {setting}?"),
            (None, Some(key)) => format!("did you mean {}?", beside(key)),
            (None, None) => format!("[{}] has {}", path.section, list(keys.keys())),
        };
        Err(format!("there is no setting {path}; {suggestion}"))
    }

    /// What to say of a section that there is not.
    pub(super) fn no_section(&self, name: &str) -> String {
        let sections = || self.sections.keys().map(String::as_str).chain([TOOLS]);
        let suggestion = nearest(name, sections())
            .map_or_else(|| format!("there are {}", list(sections())), |n| format!("did you mean [{n}]?"));
        format!("there is no section [{}]; {suggestion}", shown(name))
    }

    /// What to say of a key that stands where a section should.
    pub(super) fn not_a_section(&self, name: &str) -> String {
        let name = shown(name);
        if self.has_section(&name) {
            return format!("{name} is a section: write [{name}] and its settings below it");
        }
        match self.elsewhere(&name) {
            Some(setting) => format!("{name} stands in no section; did you mean {setting}?"),
            None => self.no_section(&name),
        }
    }

    pub(super) fn has_section(&self, name: &str) -> bool {
        name == TOOLS || self.sections.contains_key(name)
    }

    /// A setting of this very name in some section.
    fn elsewhere(&self, key: &str) -> Option<String> {
        self.sections.iter().find(|(_, keys)| keys.contains_key(key)).map(|(section, _)| format!("{section}.{key}"))
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (Path, &Kind)> {
        let own = self.sections.iter().flat_map(|(section, keys)| {
            keys.iter().map(|(key, kind)| (Path { section: section.clone(), tool: None, key: key.clone() }, kind))
        });
        own.chain(
            self.tool
                .iter()
                .map(|(key, kind)| (Path { section: TOOLS.into(), tool: Some("x".into()), key: key.clone() }, kind)),
        )
    }
}

impl Kind {
    fn of(schema: &Value) -> Self {
        if let Some(choices) = schema["oneOf"].as_array() {
            return Self::OneOf(choices.iter().filter_map(|c| c["const"].as_str()).map(str::to_owned).collect());
        }
        match schema["type"].as_str() {
            Some("integer") => Self::Whole,
            Some("boolean") => Self::Flag,
            Some("string") if schema["format"] == "rate" => Self::Rate,
            Some("string") => Self::Text,
            Some("array") if schema["items"]["type"] == "string" => Self::Texts,
            Some("array") if schema["items"]["anyOf"][1]["properties"]["issuer"].is_object() => Self::Subjects,
            None if schema["anyOf"].is_array() => Self::Size,
            _ => Self::Other,
        }
    }

    /// What is wrong with `value`, if anything: what was expected and what was found.
    pub(super) fn refuse(&self, value: &Value) -> Option<String> {
        let fits = match self {
            Self::Whole => value.is_u64(),
            Self::Flag => value.is_boolean(),
            Self::Text => value.is_string(),
            Self::Texts => value.as_array().is_some_and(|all| all.iter().all(Value::is_string)),
            Self::Subjects => value.as_array().is_some_and(|all| all.iter().all(is_subject)),
            Self::Size => match value.as_str() {
                Some(text) => return ByteSize::parse(text).err(),
                None => value.is_u64(),
            },
            Self::Rate => match value.as_str() {
                Some(text) => return text.parse::<Rule>().err(),
                None => false,
            },
            Self::OneOf(names) => match value.as_str() {
                Some(word) if !names.iter().any(|n| n == word) => {
                    let hint = nearest(word, names.iter().map(String::as_str))
                        .map_or_else(String::new, |n| format!("; did you mean \"{n}\"?"));
                    return Some(format!("expected {self}, found \"{}\"{hint}", shown(word)));
                }
                word => word.is_some(),
            },
            Self::Other => true,
        };
        (!fits).then(|| match (self, value) {
            // It may be a secret that was written without its brackets.
            (Self::Texts, Value::String(_)) => format!("expected {self}, found one text that is in no list"),
            _ => format!("expected {self}, found {}", found(value)),
        })
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole => f.write_str("a whole number, 0 or more"),
            Self::Flag => f.write_str("true or false"),
            Self::Text => f.write_str("text in quotes"),
            Self::Texts => f.write_str("a list of texts, such as [\"one\", \"two\"]"),
            Self::Subjects => {
                f.write_str("a list of names, such as [\"ann\", { subject = \"bob\", issuer = \"bigiron:keys\" }]")
            }
            Self::Size => f.write_str("a size: a whole number of bytes, or text such as \"64KiB\""),
            Self::Rate => f.write_str("a rate, such as \"60 per 60s, burst 60, block 60s\", or \"off\""),
            Self::OneOf(names) => write!(f, "one of {}", list(names.iter().map(|n| format!("\"{n}\"")))),
            Self::Other => f.write_str("another value"),
        }
    }
}

/// A name, or a name and its issuer and nothing else.
fn is_subject(value: &Value) -> bool {
    let of_issuer = |table: &serde_json::Map<String, Value>| {
        table.len() == 2 && ["subject", "issuer"].iter().all(|key| table.get(*key).is_some_and(Value::is_string))
    };
    value.is_string() || value.as_object().is_some_and(of_issuer)
}

/// A value, named by what it is and shown when it is short.
fn found(value: &Value) -> String {
    match value {
        Value::Null => "nothing".into(),
        Value::Bool(b) => b.to_string(),
        Value::Number(n) => format!("the number {n}"),
        Value::String(text) => format!("the text \"{}\"", shown(text)),
        Value::Array(_) => "a list".into(),
        Value::Object(_) => "a table".into(),
    }
}

fn keys(section: &Value) -> Keys {
    members(&section["properties"]).map(|(key, schema)| (key.clone(), Kind::of(schema))).collect()
}

fn members(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    value.as_object().into_iter().flatten()
}

fn list<T: fmt::Display>(words: impl Iterator<Item = T>) -> String {
    words.map(|w| w.to_string()).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn say(path: &str) -> String {
        Known::settings().kind(&Path::parse(path, ".").expect(path)).expect_err(path)
    }

    #[test]
    fn every_setting_is_of_a_kind_that_is_known_here() {
        let all: Vec<_> = Known::settings().all().collect();
        assert!(all.len() > 40, "{all:?}");
        for (path, kind) in all {
            assert_ne!(*kind, Kind::Other, "{path}");
        }
    }

    #[test]
    fn a_wrong_name_is_answered_with_the_nearest() {
        for (wrong, expected) in [
            ("limits.request_timeout", "did you mean limits.request_timeout_ms?"),
            ("limit.request_timeout_ms", "there is no section [limit]; did you mean [limits]?"),
            ("limits.listen", "did you mean server.listen?"),
            ("limits.zzz", "[limits] has body_bytes_per_s_min, "),
            ("qqq.zzz", "there is no section [qqq]; there are audit, auth, cache, cluster, fairness, http2, input, "),
            ("tools.read_file.timeout", "did you mean tools.read_file.timeout_ms?"),
            ("tools.a.b.timeout", "did you mean tools.a.b.timeout_ms?"),
        ] {
            assert!(say(wrong).contains(expected), "{wrong}: {}", say(wrong));
        }
    }

    #[test]
    fn a_wrong_value_is_answered_with_what_would_be_right() {
        for (path, value, expected) in [
            ("limits.request_timeout_ms", json!("5s"), "a whole number, 0 or more, found the text \"5s\""),
            ("limits.request_timeout_ms", json!(-1), "found the number -1"),
            ("limits.request_timeout_ms", json!(1.5), "found the number 1.5"),
            ("limits.request_bytes_max", json!("1MB"), "unknown unit \"MB\""),
            ("limits.request_bytes_max", json!(true), "a size: a whole number of bytes"),
            ("server.allowed_hosts", json!("a"), "a list of texts, such as"),
            ("server.allowed_hosts", json!(["a", 1]), "found a list"),
            ("server.listen", json!(5000), "text in quotes, found the number 5000"),
            ("toolbox.enabled", json!("yes"), "true or false"),
            ("pool.on_full", json!("refuse"), "one of \"caller-runs\", \"wait\", \"reject\""),
            ("pool.on_full", json!("rejects"), "did you mean \"reject\"?"),
            ("rate_limit.per_ip", json!("100 per minute"), "\"minute\" is not a time such as 60s"),
            ("rate_limit.per_ip", json!(100), "expected a rate, such as \"60 per 60s"),
            ("tools.x.rate", json!("0 per 1s"), "requests is 0: it must be from 1 to"),
            ("tools.x.subjects", json!("ann"), "issuer = \"bigiron:keys\" }], found the text \"ann\""),
            ("tools.x.subjects", json!([{ "subject": "ann" }]), "issuer = \"bigiron:keys\" }], found a list"),
            ("tools.x.subjects", json!([{ "subject": "ann", "issuer": "i", "x": "" }]), "expected a list of names"),
            ("tools.x.cache_scope", json!("pubic"), "did you mean \"public\"?"),
        ] {
            let kind = Known::settings().kind(&Path::parse(path, ".").expect(path)).expect(path);
            let said = kind.refuse(&value).unwrap_or_default();
            assert!(said.contains(expected), "{path} = {value}: {said:?}");
        }
    }

    #[test]
    fn a_tool_name_may_hold_the_separator() {
        let path = Path::parse("tools.git.log.timeout_ms", ".").expect("three parts");
        assert_eq!((path.tool.as_deref(), path.key.as_str()), (Some("git.log"), "timeout_ms"));
        let path = Path::parse("tools__read__file__timeout_ms", "__").expect("three parts");
        assert_eq!((path.tool.as_deref(), path.key.as_str()), (Some("read__file"), "timeout_ms"));
        for text in ["limits", "tools.x", ""] {
            assert_eq!(Path::parse(text, "."), None, "{text}");
        }
    }
}
