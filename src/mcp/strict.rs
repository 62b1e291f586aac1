//! Reading JSON without trusting it: values that are only walked over, and values that a tool will read, both with depth
//! and breadth counted and no key standing twice. What a value means is not known here.

use std::{
    borrow::Cow,
    cell::{Cell, RefCell},
    collections::HashSet,
    fmt,
};

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::mcp::wire::{ShapeLimits, WireFault};

/// Memory that the arguments of one call may take as values. They come from a body of limited size, but an object of
/// eight bytes takes 600 in memory.
const BUILT_BYTES_MAX: usize = 32 << 20;
/// What the smallest map with a member takes: a node has room for eleven.
const MAP_BYTES: usize = 640;

/// What all visitors share: the limits, and the first fault that is not one of syntax. Reading goes on after such a
/// fault, because a syntax fault further on is the truer answer, and the id may still come.
pub(super) struct Reader {
    limits: ShapeLimits,
    fault: RefCell<Option<WireFault>>,
    /// What the values built so far take in memory.
    built_bytes: Cell<usize>,
}

impl Reader {
    pub(super) fn new(limits: ShapeLimits) -> Self {
        Self { limits, fault: RefCell::new(None), built_bytes: Cell::new(0) }
    }

    pub(super) fn into_fault(self) -> Option<WireFault> {
        self.fault.into_inner()
    }

    /// Counts what a value takes; fails when all of them take too much, since a short text can make a large value.
    fn charge<E: serde::de::Error>(&self, bytes: usize) -> Result<(), E> {
        let built = self.built_bytes.get() + bytes;
        self.built_bytes.set(built);
        if built <= BUILT_BYTES_MAX {
            return Ok(());
        }
        let max_mib = BUILT_BYTES_MAX >> 20;
        let message = format!("the arguments take more than {max_mib} MiB of memory; send less at once");
        *self.fault.borrow_mut() = Some(WireFault::InvalidParams(message));
        Err(E::custom("too large in memory"))
    }

    /// Whether reading ended because of a limit and not of a fault in the JSON.
    pub(super) fn gave_up(&self) -> bool {
        self.built_bytes.get() > BUILT_BYTES_MAX
    }

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

    pub(super) fn count_keys(&self, keys: usize) {
        let max = self.limits.keys_max;
        if keys > max {
            self.blame(|| WireFault::InvalidParams(format!("an object has more than {max} members")));
        }
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
pub(super) use scalars;

/// The keys of one object, to find one that stands twice. The first few, which are all that most objects have, are
/// compared one by one and cost no memory.
#[derive(Default)]
pub(super) struct Keys<'de> {
    few: [Cow<'de, str>; FEW_KEYS],
    many: HashSet<Cow<'de, str>>,
    count: usize,
}

const FEW_KEYS: usize = 8;

impl<'de> Keys<'de> {
    pub(super) fn count(&self) -> usize {
        self.count
    }

    pub(super) fn add(&mut self, key: Cow<'de, str>, reader: &Reader) {
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
pub(super) struct Key;

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
pub(super) struct Walk<'r> {
    reader: &'r Reader,
    depth: usize,
}

impl<'r> Walk<'r> {
    pub(super) fn new(reader: &'r Reader) -> Self {
        Self { reader, depth: 0 }
    }
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
pub(super) struct Build<'r> {
    reader: &'r Reader,
    depth: usize,
}

impl<'r> Build<'r> {
    pub(super) fn new(reader: &'r Reader) -> Self {
        Self { reader, depth: 0 }
    }
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

    fn visit_str<E: serde::de::Error>(self, value: &str) -> Result<Value, E> {
        self.reader.charge(value.len())?;
        Ok(Value::String(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let inner = Self { depth: self.reader.deeper(self.depth)?, ..self };
        let mut array = Vec::new();
        while let Some(item) = items.next_element_seed(inner)? {
            self.reader.charge(2 * size_of::<Value>())?; // a vector may have twice the room that it needs
            array.push(item);
        }
        Ok(Value::Array(array))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Value, A::Error> {
        let inner = Self { depth: self.reader.deeper(self.depth)?, ..self };
        let mut object = Map::new();
        self.reader.charge(MAP_BYTES)?;
        while let Some(key) = members.next_key_seed(Key)? {
            let value = members.next_value_seed(inner)?;
            self.reader.charge(key.len() + 2 * (size_of::<String>() + size_of::<Value>()))?;
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
