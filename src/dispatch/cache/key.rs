//! What makes two calls the same: the tool as it is defined, for whom, and the arguments. A key cannot be made without
//! saying for whom. It is a digest of a walk over the parsed arguments, so that nothing is written as JSON for it.

use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::{
    call::Caller,
    tool::{CacheScope, registry::ServedTool},
};

/// The key of a result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct CacheKey([u8; 32]);

impl CacheKey {
    pub(crate) fn new(tool: &ServedTool, arguments: &Value, scope: CacheScope, caller: &Caller) -> Self {
        let mut walk = Walk(Sha256::new());
        walk.0.update(tool.definition_digest);
        match scope {
            CacheScope::Public => walk.text(b'P', ""),
            CacheScope::Caller => walk.text(b'C', caller.subject()), // no subject, whatever it is, stands for everybody
        }
        walk.value(arguments);
        Self(walk.0.finalize().into())
    }

    /// All of it, for who keeps results elsewhere.
    pub(crate) fn bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// The key that was written so.
    pub(crate) fn from_hex(text: &str) -> Option<Self> {
        let mut key = [0; 32];
        if text.len() != 64 || !text.is_ascii() {
            return None;
        }
        for (byte, at) in key.iter_mut().zip((0..64).step_by(2)) {
            *byte = u8::from_str_radix(&text[at..at + 2], 16).ok()?;
        }
        Some(Self(key))
    }

    /// A few of its bits, which are as good as any.
    pub(super) fn bits(&self) -> usize {
        usize::from_le_bytes([self.0[0], self.0[1], self.0[2], self.0[3], self.0[4], self.0[5], self.0[6], self.0[7]])
    }
}

/// Takes a value in. Each part says its kind and its length, so that no two values look alike.
struct Walk(Sha256);

impl Walk {
    fn value(&mut self, value: &Value) {
        match value {
            Value::Null => self.0.update(b"n"),
            Value::Bool(value) => self.0.update(if *value { b"t" } else { b"f" }),
            Value::Number(number) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
                (Some(n), _, _) => self.number(b'i', n.cast_unsigned()),
                (None, Some(n), _) => self.number(b'u', n),
                (None, None, n) => self.number(b'd', n.unwrap_or(f64::NAN).to_bits()),
            },
            Value::String(text) => self.text(b's', text),
            Value::Array(items) => {
                self.number(b'a', items.len() as u64);
                items.iter().for_each(|item| self.value(item));
            }
            // Members are in the order of their names, so equal objects are walked alike.
            Value::Object(members) => {
                self.number(b'o', members.len() as u64);
                for (name, value) in members {
                    self.text(b'k', name);
                    self.value(value);
                }
            }
        }
    }

    fn number(&mut self, kind: u8, number: u64) {
        self.0.update([kind]);
        self.0.update(number.to_le_bytes());
    }

    fn text(&mut self, kind: u8, text: &str) {
        self.number(kind, text.len() as u64);
        self.0.update(text);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use crate::dispatch::cache::tests::tool;

    fn key(arguments: &Value) -> CacheKey {
        CacheKey::new(&tool(), arguments, CacheScope::Caller, &Caller::ANONYMOUS)
    }

    #[test]
    fn equal_arguments_have_equal_keys_in_any_order() {
        let one: Value = serde_json::from_str(r#"{"a":1,"b":{"c":2,"d":3}}"#).expect("JSON");
        let two: Value = serde_json::from_str(r#"{"b":{"d":3,"c":2},"a":1}"#).expect("JSON");
        assert_eq!(key(&one), key(&two));
        assert_ne!(CacheKey::new(&tool(), &one, CacheScope::Public, &Caller::ANONYMOUS), key(&one));
    }

    #[test]
    fn different_arguments_have_different_keys() {
        let mut seen = HashMap::new();
        for text in [
            "{}",
            "[]",
            "null",
            "true",
            "false",
            "0",
            "1",
            "-1",
            "1.5",
            "18446744073709551615",
            r#""""#,
            r#""1""#,
            r#""n""#,
            r#"{"a":1}"#,
            r#"{"a":"1"}"#,
            r#"{"a":null}"#,
            r#"{"b":1}"#,
            r#"{"a":1,"b":2}"#,
            r#"{"a":{"b":2}}"#,
            r#"{"a":[]}"#,
            r#"{"a":[[]]}"#,
            r#"{"a":[1,2]}"#,
            r#"{"a":[[1],2]}"#,
            r#"{"a":[1,[2]]}"#,
            r#"["a","b"]"#,
            r#"["ab",""]"#,
            r#"["","ab"]"#,
            r#"{"ab":""}"#,
            r#"{"a":"b"}"#,
            r#"{"":"ab"}"#,
        ] {
            let value: Value = serde_json::from_str(text).expect("JSON");
            if let Some(other) = seen.insert(key(&value), text) {
                panic!("{text} and {other} have one key");
            }
        }
    }
}
