//! Reading JSON without trusting it: values that are only walked over, and values that a tool will read, both with depth
//! and breadth counted and no key standing twice. What a value means is not known here.

use std::{borrow::Cow, collections::HashSet};

use serde_json::{Map, Value};

use crate::mcp::{
    scan::{Broken, Number, Read, Scanner},
    wire::{ShapeLimits, WireFault},
};

/// Memory that the arguments of one call may take as values. They come from a body of limited size, but an object of
/// eight bytes takes 600 in memory.
const BUILT_BYTES_MAX: usize = 32 << 20;
/// What the smallest map with a member takes: a node has room for eleven.
const MAP_BYTES: usize = 640;

const TOO_DEEP: &str = "arrays and objects are nested deeper than limits.json_depth_max allows,";

/// Reads one text: the limits, and the first fault that is not one of syntax. Reading goes on after such a fault, because
/// a syntax fault further on is the truer answer, and the id may still come.
pub(super) struct Reader<'a> {
    pub(super) json: Scanner<'a>,
    limits: ShapeLimits,
    fault: Option<WireFault>,
    /// What the values built so far take in memory.
    built_bytes: usize,
    /// Reading ended because of `fault`, which is no fault of syntax.
    gave_up: bool,
}

impl<'a> Reader<'a> {
    pub(super) fn new(text: &'a str, limits: ShapeLimits) -> Self {
        Self { json: Scanner::new(text), limits, fault: None, built_bytes: 0, gave_up: false }
    }

    /// What reading the whole text came to.
    pub(super) fn finish<T>(mut self, read: Read<T>) -> Result<T, WireFault> {
        let read = read.and_then(|value| self.json.end().map(|()| value));
        match (read, self.fault) {
            (Ok(value), None) => Ok(value),
            (Ok(_), Some(fault)) => Err(fault),
            (Err(_), Some(fault)) if self.gave_up => Err(fault),
            (Err(broken), _) => Err(WireFault::Parse(format!("not JSON: {}", self.json.told(&broken)))),
        }
    }

    /// Walks over any value with all strictness and keeps nothing.
    pub(super) fn skip(&mut self) -> Read<()> {
        self.skip_at(0)
    }

    /// Walks over what may only be a text or a number. When something nested stands there, it is refused for that, however
    /// deep it goes.
    pub(super) fn skip_scalar(&mut self, what: &str) -> Read<()> {
        let nested = matches!(self.json.next(), b'{' | b'[');
        self.skip().map_err(|broken| match nested && broken.is(TOO_DEEP) {
            true => self.give_up(WireFault::InvalidRequest(format!("{what} must not be an array or object"))),
            false => broken,
        })
    }

    fn skip_at(&mut self, depth: usize) -> Read<()> {
        match self.json.next() {
            b'"' => self.json.text().map(drop),
            b'{' => {
                let depth = self.deeper(depth)?;
                let keys = self.members(|reader, _| reader.skip_at(depth))?;
                self.count_keys(keys);
                Ok(())
            }
            b'[' => {
                let depth = self.deeper(depth)?;
                self.items(|reader| reader.skip_at(depth))
            }
            b'-' | b'0'..=b'9' => self.json.number().map(drop),
            _ => self.json.word().map(drop),
        }
    }

    /// Builds a value with all strictness: for arguments, which a tool will read.
    pub(super) fn value(&mut self) -> Read<Value> {
        self.value_at(0)
    }

    fn value_at(&mut self, depth: usize) -> Read<Value> {
        match self.json.next() {
            b'"' => {
                let text = self.json.text()?;
                self.charge(text.len())?;
                Ok(Value::String(text.into_owned()))
            }
            b'{' => self.object_at(depth),
            b'[' => {
                let depth = self.deeper(depth)?;
                let mut array = Vec::new();
                self.items(|reader| {
                    let item = reader.value_at(depth)?;
                    reader.charge(2 * size_of::<Value>())?; // a vector may have twice the room that it needs
                    array.push(item);
                    Ok(())
                })?;
                Ok(Value::Array(array))
            }
            b'-' | b'0'..=b'9' => self.json.number().map(number),
            _ => Ok(self.json.word()?.map_or(Value::Null, Value::Bool)),
        }
    }

    fn object_at(&mut self, depth: usize) -> Read<Value> {
        let depth = self.deeper(depth)?;
        let mut object = Map::new();
        self.charge(MAP_BYTES)?;
        self.json.open();
        let mut is_first = true;
        while self.json.has_more(b'}', is_first)? {
            is_first = false;
            let key = self.json.key()?;
            let value = self.value_at(depth)?;
            self.charge(key.len() + 2 * (size_of::<String>() + size_of::<Value>()))?;
            match object.entry(key.into_owned()) {
                serde_json::map::Entry::Vacant(place) => {
                    place.insert(value);
                }
                serde_json::map::Entry::Occupied(place) => self.duplicate(place.key()),
            }
        }
        self.count_keys(object.len());
        Ok(Value::Object(object))
    }

    /// Reads the object that is next, each value by `read`, and says how many members it has.
    #[inline]
    pub(super) fn members(&mut self, mut read: impl FnMut(&mut Self, &str) -> Read<()>) -> Read<usize> {
        self.json.open();
        let mut keys = Keys::default();
        while self.json.has_more(b'}', keys.count == 0)? {
            let key = self.json.key()?;
            read(self, &key)?;
            keys.add(key, self);
        }
        Ok(keys.count)
    }

    #[inline]
    fn items(&mut self, mut read: impl FnMut(&mut Self) -> Read<()>) -> Read<()> {
        self.json.open();
        let mut is_first = true;
        while self.json.has_more(b']', is_first)? {
            is_first = false;
            read(self)?;
        }
        Ok(())
    }

    /// Counts what a value takes; fails when all of them take too much, since a short text can make a large value.
    fn charge(&mut self, bytes: usize) -> Read<()> {
        self.built_bytes += bytes;
        if self.built_bytes <= BUILT_BYTES_MAX { Ok(()) } else { Err(self.too_large()) }
    }

    #[cold]
    fn too_large(&mut self) -> Broken {
        let max_mib = BUILT_BYTES_MAX >> 20;
        let message = format!("the arguments take more than {max_mib} MiB of memory; send less at once");
        self.give_up(WireFault::InvalidParams(message))
    }

    /// Ends the reading for a reason that is no fault of syntax.
    #[cold]
    pub(super) fn give_up(&mut self, fault: WireFault) -> Broken {
        self.fault = Some(fault);
        self.gave_up = true;
        self.json.broken("given up")
    }

    #[cold]
    fn blame(&mut self, fault: WireFault) {
        self.fault.get_or_insert(fault);
    }

    #[cold]
    fn duplicate(&mut self, key: &str) {
        let key: String = key.chars().take(64).collect();
        self.blame(WireFault::InvalidRequest(format!("the key {key:?} stands twice in one object")));
    }

    fn deeper(&self, depth: usize) -> Read<usize> {
        if depth < self.limits.depth_max {
            return Ok(depth + 1);
        }
        Err(self.json.broken(TOO_DEEP))
    }

    pub(super) fn count_keys(&mut self, keys: usize) {
        let max = self.limits.keys_max;
        if keys > max {
            self.blame(WireFault::InvalidParams(format!("an object has more than {max} members")));
        }
    }
}

fn number(number: Number<'_>) -> Value {
    match number.text.parse::<i64>() {
        // Zero below zero is no integer to who minds the sign.
        Ok(integer) if number.is_short_integer && number.text != "-0" => integer.into(),
        _ => serde_json::from_str(number.text).unwrap_or_default(), // looked at when it was found
    }
}

/// The keys of one object, to find one that stands twice. The first few, which are all that most objects have, are
/// compared one by one and cost no memory.
#[derive(Default)]
struct Keys<'a> {
    few: [&'a str; FEW_KEYS],
    in_few: usize,
    /// Those after them, and those with escapes.
    #[allow(clippy::box_collection)] // a word in every object, and the rest in few
    more: Option<Box<HashSet<Cow<'a, str>>>>,
    count: usize,
}

const FEW_KEYS: usize = 8;

impl<'a> Keys<'a> {
    #[inline]
    fn add(&mut self, key: Cow<'a, str>, reader: &mut Reader<'_>) {
        self.count += 1;
        if self.few[..self.in_few].contains(&key.as_ref()) || self.more.as_ref().is_some_and(|m| m.contains(&key)) {
            reader.duplicate(&key);
        }
        match (key, self.few.get_mut(self.in_few)) {
            (Cow::Borrowed(key), Some(place)) => {
                *place = key;
                self.in_few += 1;
            }
            (key, _) => drop(self.more.get_or_insert_default().insert(key)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: ShapeLimits = ShapeLimits { depth_max: 100, keys_max: 10_000 };

    fn built(text: &str) -> Result<Value, WireFault> {
        let mut reader = Reader::new(text, LIMITS);
        let read = reader.value();
        reader.finish(read)
    }

    fn skipped(text: &str) -> Result<(), WireFault> {
        let mut reader = Reader::new(text, LIMITS);
        let read = reader.skip();
        reader.finish(read)
    }

    #[test]
    fn a_key_stands_once_however_it_is_written() {
        for text in [
            r#"{"a":1,"a":2}"#,
            r#"{"a":1,"\u0061":2}"#,
            r#"{"\u0061":1,"a":2}"#,
            r#"{"\u0061":1,"\u0061":2}"#,
            r#"{"":1,"":2}"#,
            r#"[{"a":{"b":1,"b":1}}]"#,
            r#"{"a":1,"b":2,"c":3,"d":4,"e":5,"f":6,"g":7,"h":8,"i":9,"j":10,"i":11}"#,
            r#"{"a":1,"b":2,"c":3,"d":4,"e":5,"f":6,"g":7,"h":8,"i":9,"j":10,"a":11}"#,
        ] {
            assert!(matches!(built(text), Err(WireFault::InvalidRequest(_))), "{text}: {:?}", built(text));
            assert!(matches!(skipped(text), Err(WireFault::InvalidRequest(_))), "{text}: {:?}", skipped(text));
        }
        assert!(skipped(r#"{"\u0061":1,"":2,"b":{"a":1,"b":2}}"#).is_ok());
    }

    /// Pieces of which JSON is made, and of which what is none is made.
    fn pieces() -> impl Strategy<Value = String> {
        let piece = prop::sample::select(vec![
            "{",
            "}",
            "[",
            "]",
            ",",
            ":",
            "\"",
            "\"a\"",
            "\"b\":",
            "\"\\u00e9\"",
            "\"\\ud800\"",
            "\"\\",
            "\\\"",
            "\\n",
            "é",
            " ",
            "\n",
            "\t",
            "\r",
            "\u{b}",
            "\0",
            "0",
            "1",
            "-",
            "-0",
            "12",
            "0.5",
            "1e5",
            "E+",
            "1e999",
            ".",
            "true",
            "false",
            "null",
            "nul",
            "123456789012345678901",
            "9223372036854775808",
            "[1,2]",
            "{\"a\":1}",
            "abcdefgh",
        ]);
        prop::collection::vec(piece, 0..24).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(20_000))]

        /// What is JSON, and what it says, is as serde_json sees it; only keys that stand twice are refused beyond that.
        #[test]
        fn it_is_read_as_others_read_it(text in pieces()) {
            let theirs = serde_json::from_str::<Value>(&text);
            match (built(&text), theirs) {
                (Ok(ours), theirs) => prop_assert_eq!(Some(ours), theirs.ok()),
                (Err(WireFault::Parse(_)), theirs) => prop_assert!(theirs.is_err(), "{}", text),
                (Err(WireFault::InvalidRequest(fault)), Ok(_)) => prop_assert!(fault.contains("twice")),
                (Err(fault), theirs) => prop_assert!(false, "{:?} {:?}", fault, theirs),
            }
            prop_assert_eq!(built(&text).map(drop), skipped(&text));
        }

        /// The same for JSON that serde_json wrote, whole and cut off.
        #[test]
        fn what_others_wrote_is_read_as_it_was_meant(text in ".{0,40}", number: f64, integer: i64, cut: prop::sample::Index) {
            let value = serde_json::json!({ "t": &text, &text: [number, integer, { "x": null, "y": [true, false] }] });
            for json in [value.to_string(), format!("{value:#}")] {
                prop_assert_eq!(built(&json), Ok(serde_json::from_str::<Value>(&json).expect("JSON")));
                let cut = json.char_indices().map(|(at, _)| at).nth(cut.index(json.chars().count())).unwrap_or(0);
                prop_assert!(matches!(built(&json[..cut]), Err(WireFault::Parse(_))));
            }
        }
    }
}
