//! How `wire` reads the objects that the protocol knows: serde visitors over serde_json that pick members out and leave
//! the rest to `strict`. No rule of the protocol is here.

use std::{borrow::Cow, fmt};

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value, value::RawValue};

use crate::{
    call::{ClientCapabilities, TASKS_EXTENSION},
    mcp::{
        META_CLIENT_CAPABILITIES, META_LOG_LEVEL, META_PROTOCOL_VERSION,
        strict::{Build, Key, Keys, Reader, Walk, scalars},
        wire::{Envelope, Id, IdField, Meta, Params, Shape, ShapeLimits, Text, WireFault},
    },
};

/// The longest id, in bytes between its quotes; it is echoed and logged.
const ID_BYTES_MAX: usize = 1024;
/// A number written with a fraction or exponent is taken as an id up to here: beyond, doubles skip integers.
const EXACT_DOUBLE_MAX: f64 = 9_007_199_254_740_992.0;

/// Reads a whole document into `envelope` and says what shape it had.
pub(super) fn read<'a>(bytes: &'a [u8], limits: ShapeLimits, envelope: &mut Envelope<'a>) -> Result<Shape, WireFault> {
    let reader = Reader::new(limits);
    // Checked once for the whole message, which costs less than once for each text in it.
    let text = std::str::from_utf8(bytes).map_err(|error| WireFault::Parse(format!("not JSON: not UTF-8: {error}")))?;
    let mut json = serde_json::Deserializer::from_str(text);
    json.disable_recursion_limit(); // depth is counted here, wherever there is recursion
    let shape = ObjectSeed { reader: &reader, into: envelope }
        .deserialize(&mut json)
        .and_then(|shape| json.end().map(|()| shape));
    match shape {
        Err(error) if !reader.gave_up() => Err(WireFault::Parse(format!("not JSON: {error}"))),
        shape => reader.into_fault().map_or_else(|| Ok(shape.unwrap_or_default()), Err),
    }
}

/// A whole document as a value, with the same strictness; `None` for what is none.
pub(super) fn build(bytes: &[u8], limits: ShapeLimits) -> Option<Value> {
    let reader = Reader::new(limits);
    let mut json = serde_json::Deserializer::from_str(std::str::from_utf8(bytes).ok()?);
    json.disable_recursion_limit();
    let value = Build::new(&reader).deserialize(&mut json).ok()?;
    (reader.into_fault().is_none() && json.end().is_ok()).then_some(value)
}

/// An object that the protocol knows: reads the value of one key.
trait Object<'de> {
    fn member<A: MapAccess<'de>>(&mut self, key: &str, value: Slot<'_, A>) -> Result<(), A::Error>;
}

impl<'de> Object<'de> for Envelope<'de> {
    fn member<A: MapAccess<'de>>(&mut self, key: &str, value: Slot<'_, A>) -> Result<(), A::Error> {
        match key {
            "jsonrpc" => {
                let mut version = Text::Absent;
                value.text(&mut version)?;
                self.version_ok = version.get() == Some("2.0");
                Ok(())
            }
            "id" => value.id(&mut self.id),
            "method" => value.text(&mut self.method),
            "params" => {
                self.params.shape = value.object(&mut self.params)?;
                Ok(())
            }
            "result" | "error" => {
                self.is_response = true;
                value.skip()
            }
            _ => value.skip(),
        }
    }
}

impl<'de> Object<'de> for Params<'de> {
    fn member<A: MapAccess<'de>>(&mut self, key: &str, value: Slot<'_, A>) -> Result<(), A::Error> {
        match key {
            "name" => value.text(&mut self.name),
            "arguments" => {
                self.arguments = Some(value.members.next_value_seed(Build::new(value.reader))?);
                Ok(())
            }
            "_meta" => {
                self.meta.shape = value.object(&mut self.meta)?;
                Ok(())
            }
            "uri" => value.text(&mut self.uri),
            "taskId" => value.text(&mut self.task_id),
            "inputResponses" | "requestState" => {
                self.is_retry = true;
                value.skip()
            }
            "cursor" => value.text(&mut self.cursor),
            "level" => value.text(&mut self.level),
            "protocolVersion" => value.text(&mut self.protocol_version),
            "requestId" => value.id(&mut self.request_id),
            "capabilities" => value.capabilities(&mut self.capabilities),
            _ => value.skip(),
        }
    }
}

impl<'de> Object<'de> for Meta<'de> {
    fn member<A: MapAccess<'de>>(&mut self, key: &str, value: Slot<'_, A>) -> Result<(), A::Error> {
        if self.whole.is_some() {
            return self.member_and_keep(key, value);
        }
        match key {
            META_PROTOCOL_VERSION => value.text(&mut self.protocol_version),
            META_CLIENT_CAPABILITIES => value.capabilities(&mut self.client_capabilities),
            META_LOG_LEVEL => value.text(&mut self.log_level),
            "progressToken" => value.id(&mut self.progress_token),
            _ => value.skip(),
        }
    }
}

impl<'de> Meta<'de> {
    /// The same for one who wants to see all of it: each value is made once and looked at.
    fn member_and_keep<A: MapAccess<'de>>(&mut self, key: &str, mut slot: Slot<'_, A>) -> Result<(), A::Error> {
        let value = if key == "progressToken" {
            let raw = slot.read_id(&mut self.progress_token)?;
            serde_json::from_str(raw).unwrap_or_default()
        } else {
            slot.members.next_value_seed(Build::new(slot.reader))?
        };
        let text = || value.as_str().map_or(Text::Wrong, |text| Text::Is(text.to_owned().into()));
        match key {
            META_PROTOCOL_VERSION => self.protocol_version = text(),
            META_LOG_LEVEL => self.log_level = text(),
            META_CLIENT_CAPABILITIES => self.client_capabilities = value.as_object().map(capabilities_of),
            _ => {}
        }
        if let Some(whole) = &mut self.whole {
            whole.insert(key.to_owned(), value);
        }
        Ok(())
    }
}

fn capabilities_of(members: &Map<String, Value>) -> ClientCapabilities {
    let named = ClientCapabilities::NAMES.iter().filter(|(name, _)| members.contains_key(*name));
    let all = named.fold(ClientCapabilities::default(), |all, (_, flag)| all.union(*flag));
    let has_tasks = members.get("extensions").is_some_and(|extensions| extensions.get(TASKS_EXTENSION).is_some());
    if has_tasks { all.union(ClientCapabilities::TASKS) } else { all }
}

impl<'de> Object<'de> for ClientCapabilities {
    fn member<A: MapAccess<'de>>(&mut self, key: &str, value: Slot<'_, A>) -> Result<(), A::Error> {
        if key == "extensions" {
            let mut extensions = Extensions::default();
            value.object(&mut extensions)?;
            if extensions.tasks {
                *self = self.union(Self::TASKS);
            }
            return Ok(());
        }
        if let Some((_, flag)) = Self::NAMES.iter().find(|(name, _)| *name == key) {
            *self = self.union(*flag);
        }
        value.skip()
    }
}

/// The extensions that a client has, as far as they concern us.
#[derive(Default)]
struct Extensions {
    tasks: bool,
}

impl<'de> Object<'de> for Extensions {
    fn member<A: MapAccess<'de>>(&mut self, key: &str, value: Slot<'_, A>) -> Result<(), A::Error> {
        self.tasks |= key == TASKS_EXTENSION;
        value.skip()
    }
}

/// The value behind a key, not read yet.
struct Slot<'m, A> {
    members: &'m mut A,
    reader: &'m Reader,
}

impl<'de, A: MapAccess<'de>> Slot<'_, A> {
    fn skip(self) -> Result<(), A::Error> {
        self.members.next_value_seed(Walk::new(self.reader)).map(drop)
    }

    fn text(self, into: &mut Text<'de>) -> Result<(), A::Error> {
        let value = self.members.next_value_seed(Walk::new(self.reader))?;
        *into = value.map_or(Text::Wrong, Text::Is);
        Ok(())
    }

    fn id(mut self, into: &mut IdField<'de>) -> Result<(), A::Error> {
        self.read_id(into).map(drop)
    }

    /// The same; returns it as it was written.
    fn read_id(&mut self, into: &mut IdField<'de>) -> Result<&'de str, A::Error> {
        let raw = self.members.next_value::<&'de RawValue>()?.get();
        *into = read_id(raw).map_err(A::Error::custom)?.map_or(IdField::Wrong, IdField::Is);
        Ok(raw)
    }

    fn object<T: Object<'de>>(self, into: &mut T) -> Result<Shape, A::Error> {
        self.members.next_value_seed(ObjectSeed { reader: self.reader, into })
    }

    fn capabilities(self, into: &mut Option<ClientCapabilities>) -> Result<(), A::Error> {
        let mut found = ClientCapabilities::default();
        *into = (self.object(&mut found)? == Shape::Object).then_some(found);
        Ok(())
    }
}

/// `None` for what is valid JSON and no id.
fn read_id(raw: &str) -> Result<Option<Id<'_>>, serde_json::Error> {
    match raw.as_bytes().first() {
        Some(b'"') => {
            // Raw text was only scanned; this finds lone surrogates.
            serde_json::from_str::<Cow<'_, str>>(raw)?;
            Ok((raw.len() <= ID_BYTES_MAX + 2).then_some(Id::Text(raw)))
        }
        Some(b'-' | b'0'..=b'9') => {
            if let Ok(number) = raw.parse() {
                return Ok(Some(Id::Number(number)));
            }
            let number: f64 = serde_json::from_str(raw)?;
            let exact = number.fract() == 0.0 && number.abs() <= EXACT_DOUBLE_MAX;
            #[allow(clippy::cast_possible_truncation)] // whole and below 2^53
            Ok((exact && raw.contains(['.', 'e', 'E'])).then_some(Id::Number(number as i64)))
        }
        _ => Ok(None),
    }
}

/// Reads an object that the protocol knows; anything else is walked over. Says what shape it was.
struct ObjectSeed<'x, T> {
    reader: &'x Reader,
    into: &'x mut T,
}

impl<'de, T: Object<'de>> DeserializeSeed<'de> for ObjectSeed<'_, T> {
    type Value = Shape;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Shape, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de, T: Object<'de>> Visitor<'de> for ObjectSeed<'_, T> {
    type Value = Shape;

    scalars!(Shape::Other, visit_bool: bool, visit_i64: i64, visit_u64: u64, visit_f64: f64, visit_str: &str);

    fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<Shape, A::Error> {
        Walk::new(self.reader).visit_seq(items).map(|_| Shape::Array)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Shape, A::Error> {
        let reader = self.reader;
        let mut keys = Keys::default();
        while let Some(key) = members.next_key_seed(Key)? {
            self.into.member(&key, Slot { members: &mut members, reader })?;
            keys.add(key, reader);
        }
        if keys.count() > KNOWN_KEYS_FREE {
            reader.count_keys(keys.count());
        }
        Ok(Shape::Object)
    }
}

/// Members that an object of the protocol itself may have whatever `limits.json_keys_max` says.
const KNOWN_KEYS_FREE: usize = 64;
