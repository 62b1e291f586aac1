//! Every setting as a line: its path, its value as TOML, where it came from, what it came to. Taken from the settings
//! structs by serialising them, in the order of their fields.

use std::fmt;

use serde::{
    Deserialize,
    de::{self, MapAccess, Visitor},
};
use serde_json::{Value, value::RawValue};

use super::{
    Tuning,
    known::TOOLS,
    layers::{Origin, Origins},
    resolved::{Derived, Resolved},
};

/// One setting.
#[derive(Clone, Debug, PartialEq)]
pub struct Setting {
    /// Its section: `limits`, or `tools.NAME`.
    pub section: String,
    /// Its name in the section.
    pub key: String,
    /// Both.
    pub path: String,
    /// Its value.
    pub value: Value,
    /// Where the value came from.
    pub origin: Origin,
    /// What its 0 came to on this host.
    pub derived: Option<Derived>,
}

impl Setting {
    /// The value as TOML.
    pub fn toml(&self) -> String {
        // Settings hold no null and no table but in lists, so JSON would do, but for texts, which TOML quotes its own way.
        toml::Value::try_from(&self.value).map_or_else(|_| self.value.to_string(), |value| value.to_string())
    }
}

/// All settings. Those of a tool are listed when they are written.
pub(super) fn listing(tuning: &Tuning, origins: &Origins, resolved: Option<&Resolved>) -> Vec<Setting> {
    let mut settings = Vec::new();
    let mut add = |section: &str, text: &RawValue| {
        for (key, value) in pairs(text) {
            let path = format!("{section}.{key}");
            settings.push(Setting {
                value: serde_json::from_str(value.get()).unwrap_or_default(),
                origin: origins.get(&path).cloned().unwrap_or_default(),
                derived: resolved.and_then(|r| r.derived().iter().find(|d| d.path == path)).copied(),
                section: section.to_owned(),
                key,
                path,
            });
        }
    };
    let Ok(whole) = serde_json::value::to_raw_value(tuning) else { return settings };
    for (section, text) in pairs(&whole) {
        if section == TOOLS {
            for (tool, text) in pairs(&text) {
                add(&format!("{TOOLS}.{tool}"), &text);
            }
        } else {
            add(&section, &text);
        }
    }
    settings
}

/// The members of a JSON object in the order in which they were written, which a map would lose.
fn pairs(text: &RawValue) -> Vec<(String, Box<RawValue>)> {
    serde_json::from_str::<Pairs>(text.get()).map(|p| p.0).unwrap_or_default()
}

struct Pairs(Vec<(String, Box<RawValue>)>);

impl<'de> Deserialize<'de> for Pairs {
    fn deserialize<D: de::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Members;
        impl<'de> Visitor<'de> for Members {
            type Value = Pairs;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Pairs, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(Pairs(pairs))
            }
        }
        deserializer.deserialize_map(Members)
    }
}
