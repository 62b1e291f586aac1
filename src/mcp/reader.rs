//! How `wire` reads: serde visitors over serde_json, for the objects that the protocol knows, for arguments, and for
//! everything that is only walked over. No rule of the protocol is here, only how to look without trusting.

use std::{borrow::Cow, cell::RefCell, collections::HashSet, fmt};

use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value, value::RawValue};

use crate::{
    call::ClientCapabilities,
    mcp::{
        META_CLIENT_CAPABILITIES, META_LOG_LEVEL, META_PROTOCOL_VERSION,
        wire::{Envelope, Id, IdField, Meta, Params, Shape, ShapeLimits, Text, WireFault},
    },
};

/// The longest id, in bytes between its quotes; it is echoed and logged.
const ID_BYTES_MAX: usize = 1024;
/// A number written with a fraction or exponent is taken as an id up to here: beyond, doubles skip integers.
const EXACT_DOUBLE_MAX: f64 = 9_007_199_254_740_992.0;

/// Reads a whole document into `envelope` and says what shape it had.
pub(super) fn read<'a>(bytes: &'a [u8], limits: ShapeLimits, envelope: &mut Envelope<'a>) -> Result<Shape, WireFault> {
    let reader = Reader { limits, fault: RefCell::new(None) };
    let mut json = serde_json::Deserializer::from_slice(bytes);
    json.disable_recursion_limit(); // depth is counted here, wherever there is recursion
    let shape = ObjectSeed { reader: &reader, into: envelope }
        .deserialize(&mut json)
        .and_then(|shape| json.end().map(|()| shape))
        .map_err(|error| WireFault::Parse(format!("not JSON: {error}")))?;
    reader.fault.into_inner().map_or(Ok(shape), Err)
}

/// What all visitors share: the limits, and the first fault that is not one of syntax. Reading goes on after such a
/// fault, because a syntax fault further on is the truer answer, and the id may still come.
struct Reader {
    limits: ShapeLimits,
    fault: RefCell<Option<WireFault>>,
}

impl Reader {
    fn blame(&self, fault: impl FnOnce() -> WireFault) {
        self.fault.borrow_mut().get_or_insert_with(fault);
    }

    fn duplicate(&self, key: &str) {
        let key: String = key.chars().take(64).collect();
        self.blame(|| WireFault::InvalidRequest(format!("the key {key:?} stands twice in one object")));
    }

    fn deeper<E: serde::de::Error>(&self, depth: usize) -> Result<usize, E> {
        if depth >= self.limits.depth_max {
            return Err(E::custom(format_args!("nested deeper than {}", self.limits.depth_max)));
        }
        Ok(depth + 1)
    }

    fn count_keys(&self, keys: usize) {
        let max = self.limits.keys_max;
        if keys > max {
            self.blame(|| WireFault::InvalidParams(format!("an object has more than {max} members")));
        }
    }
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
                self.arguments = Some(value.members.next_value_seed(Build { reader: value.reader, depth: 0 })?);
                Ok(())
            }
            "_meta" => {
                self.meta.shape = value.object(&mut self.meta)?;
                Ok(())
            }
            "uri" => value.text(&mut self.uri),
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
        match key {
            META_PROTOCOL_VERSION => value.text(&mut self.protocol_version),
            META_CLIENT_CAPABILITIES => value.capabilities(&mut self.client_capabilities),
            META_LOG_LEVEL => value.text(&mut self.log_level),
            "progressToken" => value.id(&mut self.progress_token),
            _ => value.skip(),
        }
    }
}

impl<'de> Object<'de> for ClientCapabilities {
    fn member<A: MapAccess<'de>>(&mut self, key: &str, value: Slot<'_, A>) -> Result<(), A::Error> {
        if let Some((_, flag)) = Self::NAMES.iter().find(|(name, _)| *name == key) {
            *self = self.and(*flag);
        }
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
        self.members.next_value_seed(Walk { reader: self.reader, depth: 0 }).map(drop)
    }

    fn text(self, into: &mut Text<'de>) -> Result<(), A::Error> {
        let value = self.members.next_value_seed(Walk { reader: self.reader, depth: 0 })?;
        *into = value.map_or(Text::Wrong, Text::Is);
        Ok(())
    }

    fn id(self, into: &mut IdField<'de>) -> Result<(), A::Error> {
        let raw = self.members.next_value::<&'de RawValue>()?.get();
        *into = read_id(raw).map_err(A::Error::custom)?.map_or(IdField::Wrong, IdField::Is);
        Ok(())
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

/// The visitor methods for the kinds of JSON that all come to the same value.
macro_rules! scalars {
    ($value:expr, $($kind:ident: $type:ty),+) => {
        $(fn $kind<E>(self, _: $type) -> Result<Self::Value, E> {
            Ok($value)
        })+
        fn visit_unit<E>(self) -> Result<Self::Value, E> {
            Ok($value)
        }
        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("any JSON")
        }
    };
}

impl<'de, T: Object<'de>> Visitor<'de> for ObjectSeed<'_, T> {
    type Value = Shape;

    scalars!(Shape::Other, visit_bool: bool, visit_i64: i64, visit_u64: u64, visit_f64: f64, visit_str: &str);

    fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<Shape, A::Error> {
        Walk { reader: self.reader, depth: 0 }.visit_seq(items).map(|_| Shape::Array)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Shape, A::Error> {
        let reader = self.reader;
        let mut keys = Keys::default();
        while let Some(key) = members.next_key_seed(Key)? {
            self.into.member(&key, Slot { members: &mut members, reader })?;
            keys.add(key, reader);
        }
        if keys.count > KNOWN_KEYS_FREE {
            reader.count_keys(keys.count);
        }
        Ok(Shape::Object)
    }
}

/// Members that an object of the protocol itself may have whatever `limits.json_keys_max` says.
const KNOWN_KEYS_FREE: usize = 64;

/// The keys of one object, to find one that stands twice. The first few, which are all that most objects have, are
/// compared one by one and cost no memory.
#[derive(Default)]
struct Keys<'de> {
    few: [Cow<'de, str>; FEW_KEYS],
    many: HashSet<Cow<'de, str>>,
    count: usize,
}

const FEW_KEYS: usize = 8;

impl<'de> Keys<'de> {
    fn add(&mut self, key: Cow<'de, str>, reader: &Reader) {
        let few = self.count.min(FEW_KEYS);
        let twice = self.few[..few].contains(&key) || (self.count > FEW_KEYS && self.many.contains(&key));
        if twice {
            reader.duplicate(&key);
        }
        match self.few.get_mut(self.count) {
            Some(place) => *place = key,
            None => drop(self.many.insert(key)),
        }
        self.count += 1;
    }
}

/// A key, borrowed when it has no escapes.
struct Key;

impl<'de> DeserializeSeed<'de> for Key {
    type Value = Cow<'de, str>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl<'de> Visitor<'de> for Key {
    type Value = Cow<'de, str>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Cow::Borrowed(text))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Cow::Owned(text.to_owned()))
    }
}

/// Walks over any value with all strictness; keeps nothing but a text.
#[derive(Clone, Copy)]
struct Walk<'r> {
    reader: &'r Reader,
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = Option<Cow<'de, str>>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = Option<Cow<'de, str>>;

    scalars!(None, visit_bool: bool, visit_i64: i64, visit_u64: u64, visit_f64: f64);

    fn visit_borrowed_str<E>(self, text: &'de str) -> Result<Self::Value, E> {
        Ok(Some(Cow::Borrowed(text)))
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Some(Cow::Owned(text.to_owned())))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        let inner = Self { depth: self.reader.deeper(self.depth)?, ..self };
        while items.next_element_seed(inner)?.is_some() {}
        Ok(None)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Self::Value, A::Error> {
        let inner = Self { depth: self.reader.deeper(self.depth)?, ..self };
        let mut keys = Keys::default();
        while let Some(key) = members.next_key_seed(Key)? {
            members.next_value_seed(inner)?;
            keys.add(key, self.reader);
            self.reader.count_keys(keys.count);
        }
        Ok(None)
    }
}

/// Builds a value with all strictness: for arguments, which a tool will read.
#[derive(Clone, Copy)]
struct Build<'r> {
    reader: &'r Reader,
    depth: usize,
}

impl<'de> DeserializeSeed<'de> for Build<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Build<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let inner = Self { depth: self.reader.deeper(self.depth)?, ..self };
        let mut array = Vec::new();
        while let Some(item) = items.next_element_seed(inner)? {
            array.push(item);
        }
        Ok(Value::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let inner = Self { depth: self.reader.deeper(self.depth)?, ..self };
        let mut object = Map::new();
        while let Some(key) = members.next_key_seed(Key)? {
            let value = members.next_value_seed(inner)?;
            match object.entry(key.into_owned()) {
                serde_json::map::Entry::Vacant(place) => {
                    place.insert(value);
                }
                serde_json::map::Entry::Occupied(place) => self.reader.duplicate(place.key()),
            }
            self.reader.count_keys(object.len());
        }
        Ok(Value::Object(object))
    }
}
