//! Values from JSON and back. Reading is serde_json's, with its limit on nesting; names that repeat are held once.

use std::{cell::RefCell, collections::HashSet, fmt, hash::Hash, rc::Rc};

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use super::{
    meter::{Charge, tick},
    value::{Items, Members, Text, Val},
};

/// Names that are held once; enough for the columns of any table.
const NAMES_MAX: usize = 4_096;

/// Reads values, sharing the names of their members.
#[derive(Debug, Default)]
pub(super) struct Reader {
    names: RefCell<HashSet<Name>>,
}

#[derive(Debug)]
struct Name(Rc<Text>);

impl Reader {
    /// The next of several values in a row; `None` at the end.
    pub(super) fn next<'de>(
        &self,
        input: &mut serde_json::Deserializer<serde_json::de::SliceRead<'de>>,
    ) -> Option<serde_json::Result<Val>> {
        match input.end() {
            Ok(()) => None,
            Err(_) => Some(self.deserialize(input)),
        }
    }

    /// One value from a text.
    pub(super) fn one(&self, text: &[u8]) -> serde_json::Result<Val> {
        let mut input = serde_json::Deserializer::from_slice(text);
        let value = self.deserialize(&mut input)?;
        input.end()?;
        Ok(value)
    }

    fn name(&self, name: &str) -> Rc<Text> {
        let mut names = self.names.borrow_mut();
        if let Some(known) = names.get(name) {
            return Rc::clone(&known.0);
        }
        let new = Rc::new(Text::new(name.to_owned(), 0));
        if names.len() < NAMES_MAX {
            names.insert(Name(Rc::clone(&new)));
        }
        new
    }
}

impl<'de> DeserializeSeed<'de> for &Reader {
    type Value = Val;

    fn deserialize<D: Deserializer<'de>>(self, input: D) -> Result<Val, D::Error> {
        input.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for &Reader {
    type Value = Val;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Val, E> {
        Ok(Val::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Val, E> {
        Ok(Val::Int(value))
    }

    #[allow(clippy::cast_precision_loss)] // said in the tool's description
    fn visit_u64<E>(self, value: u64) -> Result<Val, E> {
        Ok(i64::try_from(value).map_or(Val::Float(value as f64), Val::Int))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Val, E> {
        Ok(Val::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Val, E> {
        Ok(Val::text(value))
    }

    fn visit_unit<E>(self) -> Result<Val, E> {
        Ok(Val::NULL)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut input: A) -> Result<Val, A::Error> {
        let mut array = Items::default();
        while let Some(value) = input.next_element_seed(self)? {
            tick();
            array.push(value);
        }
        Ok(Val::Arr(Rc::new(array)))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut input: A) -> Result<Val, A::Error> {
        let mut members = Members::default();
        while let Some(name) = input.next_key_seed(NameSeed(self))? {
            tick();
            let value = input.next_value_seed(self)?;
            members.insert(name, value);
        }
        Ok(Val::object(members))
    }
}

struct NameSeed<'r>(&'r Reader);

impl<'de> DeserializeSeed<'de> for NameSeed<'_> {
    type Value = Rc<Text>;

    fn deserialize<D: Deserializer<'de>>(self, input: D) -> Result<Rc<Text>, D::Error> {
        input.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for NameSeed<'_> {
    type Value = Rc<Text>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the name of a member")
    }

    fn visit_str<E: serde::de::Error>(self, name: &str) -> Result<Rc<Text>, E> {
        Ok(self.0.name(name))
    }
}

impl std::borrow::Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0.text
    }
}

impl Hash for Name {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.0.text.hash(state);
    }
}

impl PartialEq for Name {
    fn eq(&self, other: &Self) -> bool {
        self.0.text == other.0.text
    }
}

impl Eq for Name {}

/// The value as JSON, unless it takes more than `bytes_max` bytes.
pub(super) fn write(value: &Val, bytes_max: usize) -> Option<String> {
    let mut out = Out { text: String::new(), bytes_max, charge: Charge::default() };
    out.value(value).ok().map(|()| out.text)
}

/// The value as a text of JSON, as large as memory allows.
pub(super) fn to_text(value: &Val) -> Val {
    Val::text(write(value, usize::MAX).unwrap_or_default())
}

/// The beginning of the value's JSON.
pub(super) fn beginning(value: &Val, bytes_max: usize) -> String {
    let mut out = Out { text: String::new(), bytes_max, charge: Charge::default() };
    match out.value(value) {
        Ok(()) => out.text,
        Err(Full) => format!("{}...", crate::toolbox::output::head(&out.text, bytes_max)),
    }
}

/// JSON as it is written; a value that shares its parts can be far longer than it is large.
struct Out {
    text: String,
    bytes_max: usize,
    charge: Charge,
}

struct Full;

impl Out {
    fn value(&mut self, value: &Val) -> Result<(), Full> {
        tick();
        match value {
            Val::Null(_) => self.push("null"),
            Val::Bool(true) => self.push("true"),
            Val::Bool(false) => self.push("false"),
            Val::Int(number) => self.push(&number.to_string()),
            Val::Float(number) if number.is_finite() => self.push(&serde_json::Value::from(*number).to_string()),
            Val::Float(_) => self.push("null"),
            Val::Str(text) => self.quoted(&text.text),
            Val::Arr(array) => {
                self.push("[")?;
                for (at, item) in array.items.iter().enumerate() {
                    self.push(if at == 0 { "" } else { "," })?;
                    self.value(item)?;
                }
                self.push("]")
            }
            Val::Obj(members) => {
                self.push("{")?;
                for (at, (name, member)) in members.iter().enumerate() {
                    self.push(if at == 0 { "" } else { "," })?;
                    self.quoted(&name.text)?;
                    self.push(":")?;
                    self.value(member)?;
                }
                self.push("}")
            }
        }
    }

    fn quoted(&mut self, text: &str) -> Result<(), Full> {
        if text.len() > self.bytes_max {
            self.push(crate::toolbox::output::head(text, self.bytes_max))?; // only for showing a beginning
            return Err(Full);
        }
        let _room = Charge::new(text.len());
        let quoted = serde_json::to_string(text).map_err(|_| Full)?;
        self.push(&quoted)
    }

    fn push(&mut self, text: &str) -> Result<(), Full> {
        if self.text.len() + text.len() > self.text.capacity() {
            let capacity = (self.text.len() + text.len()).max(self.text.capacity() * 2);
            self.charge.set(capacity);
            self.text.reserve_exact(capacity - self.text.len());
        }
        self.text.push_str(text);
        if self.text.len() > self.bytes_max { Err(Full) } else { Ok(()) }
    }
}

/// Says where JSON is broken.
pub(super) fn fault(what: &str, error: &serde_json::Error) -> String {
    let custom = serde_json::Error::custom("");
    debug_assert!(custom.line() == 0, "an error of ours has no place");
    if error.to_string().starts_with("recursion limit") {
        return format!("{what} is nested deeper than 127 levels, which is more than can be read");
    }
    format!("{what} is not valid JSON: {error}")
}
