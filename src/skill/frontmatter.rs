//! The block of YAML that `SKILL.md` opens with, read into JSON and written from it. Clients read the same block with
//! parsers of their own and refuse a skill whose listed fields differ, so what is more than plain data is refused here:
//! anchors, tags, merges, keys that are not text. Values without quotes mean what the core schema of YAML 1.2 says.

use std::fmt::Write as _;

use saphyr_parser::{Event, Parser, ScalarStyle, StrInput};
use serde_json::{Map, Number, Value};

/// The bytes between the two lines of dashes.
const BYTES_MAX: usize = 64 << 10;
/// Lists and maps in each other.
const DEPTH_MAX: usize = 16;
const WRONG_FORM: &str = "it must open with a line \"---\", fields such as \"name: ...\", and another line \"---\"";

/// Reads the fields that the text of a `SKILL.md` opens with.
///
/// # Errors
/// What is wrong, in which line of the file, and what would be right.
pub(super) fn read(text: &str) -> Result<Map<String, Value>, String> {
    let (yaml, _) = parts(text).ok_or(WRONG_FORM)?;
    if yaml.len() > BYTES_MAX {
        return Err(format!("its frontmatter has {} bytes; at most {BYTES_MAX} are read", yaml.len()));
    }
    let mut reader = Reader { events: Parser::new_from_str(yaml), line: 1 };
    reader.document().map_err(|fault| format!("line {} of its frontmatter: {fault}", reader.line))
}

/// A `SKILL.md` of these fields and this body. Text is always in quotes, so that none is taken for a number.
pub(super) fn write(fields: &Map<String, Value>, body: &str) -> String {
    let mut text = String::from("---\n");
    let first = |key: &str| matches!(key, "name" | "description");
    let (mut head, others): (Vec<_>, Vec<_>) = fields.iter().partition(|(key, _)| first(key));
    head.reverse(); // fields are in the order of their keys; the name goes first
    for (key, value) in head.into_iter().chain(others) {
        let simple = key.bytes().all(|b| b.is_ascii_lowercase() || b == b'-') && !key.starts_with('-');
        if simple && matches!(plain(key), Ok(Value::String(_))) {
            text.push_str(key)
        } else {
            quote(&mut text, key)
        }
        text.push_str(": ");
        flow(&mut text, value);
        text.push('\n');
    }
    text.push_str("---\n");
    if !body.is_empty() {
        text.push('\n');
        text.push_str(body.trim_start_matches('\n'));
        if !body.ends_with('\n') {
            text.push('\n');
        }
    }
    text
}

/// What a `SKILL.md` says after its fields.
pub(super) fn body(text: &str) -> &str {
    parts(text).map_or("", |(_, body)| body)
}

/// What stands between the two lines of dashes, and what comes after them.
fn parts(text: &str) -> Option<(&str, &str)> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let yaml = text.strip_prefix("---\n").or_else(|| text.strip_prefix("---\r\n"))?;
    let mut end = 0;
    for line in yaml.split_inclusive('\n') {
        if line.strip_prefix("---").is_some_and(|rest| rest.trim_end_matches(['\n', '\r', '\t', ' ']).is_empty()) {
            return Some((&yaml[..end], &yaml[end + line.len()..]));
        }
        end += line.len();
    }
    None
}

/// Builds a value from the parser's events.
struct Reader<'a> {
    events: Parser<'a, StrInput<'a>>,
    /// The line of the file that the last event stood in.
    line: usize,
}

impl<'a> Reader<'a> {
    fn document(&mut self) -> Result<Map<String, Value>, String> {
        let value = loop {
            match self.next()? {
                Event::StreamStart | Event::DocumentStart(_) => {}
                Event::StreamEnd => return Err("it is empty; write \"name: ...\" and \"description: ...\"".into()),
                event => break self.value(event, 0)?,
            }
        };
        loop {
            match self.next()? {
                Event::DocumentEnd => {}
                Event::StreamEnd => break,
                _ => return Err("a second document begins here; the frontmatter is one map".into()),
            }
        }
        match value {
            Value::Object(fields) => Ok(fields),
            _ => Err("this is not a map; write \"name: ...\" and \"description: ...\"".into()),
        }
    }

    fn next(&mut self) -> Result<Event<'a>, String> {
        match self.events.next() {
            Some(Ok((event, span))) => {
                self.line = span.start.line() + 1; // the line of dashes is not part of the block
                Ok(event)
            }
            Some(Err(fault)) => {
                self.line = fault.marker().line() + 1;
                Err(format!("this is not YAML: {}", fault.info()))
            }
            None => Ok(Event::StreamEnd),
        }
    }

    fn value(&mut self, event: Event<'a>, depth: usize) -> Result<Value, String> {
        if depth > DEPTH_MAX {
            return Err(format!("more than {DEPTH_MAX} lists and maps in each other"));
        }
        let (anchor, tag) = match &event {
            Event::Scalar(_, _, anchor, tag) | Event::SequenceStart(anchor, tag) | Event::MappingStart(anchor, tag) => {
                (*anchor, tag.is_some())
            }
            _ => (0, false),
        };
        if anchor != 0 {
            return Err("anchors (&name) are not read; write the value out".into());
        }
        if tag {
            return Err("tags (!name) are not read; put text in quotes and leave the tag away".into());
        }
        match event {
            Event::Scalar(text, ScalarStyle::Plain, ..) => plain(&text),
            Event::Scalar(text, ..) => Ok(Value::String(text.into_owned())),
            Event::SequenceStart(..) => self.list(depth),
            Event::MappingStart(..) => self.map(depth),
            Event::Alias(_) => Err("aliases (*name) are not read; write the value out".into()),
            _ => Err("a value is missing here".into()),
        }
    }

    fn list(&mut self, depth: usize) -> Result<Value, String> {
        let mut values = Vec::new();
        loop {
            match self.next()? {
                Event::SequenceEnd => return Ok(Value::Array(values)),
                event => values.push(self.value(event, depth + 1)?),
            }
        }
    }

    fn map(&mut self, depth: usize) -> Result<Value, String> {
        let mut fields = Map::new();
        loop {
            let event = self.next()?;
            if event == Event::MappingEnd {
                return Ok(Value::Object(fields));
            }
            let merges = matches!(&event, Event::Scalar(text, ScalarStyle::Plain, ..) if text == "<<");
            let key = match self.value(event, depth + 1)? {
                Value::String(_) if merges => return Err("merges (<<) are not read; write the fields out".into()),
                Value::String(key) => key,
                other => return Err(format!("the key {other} is not text; put it in quotes")),
            };
            if fields.contains_key(&key) {
                return Err(format!("the key {key:?} is there twice"));
            }
            let event = self.next()?;
            let value = self.value(event, depth + 1)?;
            fields.insert(key, value);
        }
    }
}

/// What text without quotes stands for.
fn plain(text: &str) -> Result<Value, String> {
    let value = match text {
        "" | "~" | "null" | "Null" | "NULL" => Value::Null,
        "true" | "True" | "TRUE" => true.into(),
        "false" | "False" | "FALSE" => false.into(),
        _ => match number(text) {
            Some(Ok(number)) => Value::Number(number),
            Some(Err(())) => return Err(format!("the number {text} has no place in JSON; put it in quotes")),
            None => text.into(),
        },
    };
    Ok(value)
}

/// `None` for what is no number; an error for one that JSON cannot say.
fn number(text: &str) -> Option<Result<Number, ()>> {
    let unsigned = text.strip_prefix(['-', '+']).unwrap_or(text);
    let all = |digits: &str, radix: u32| !digits.is_empty() && digits.chars().all(|c| c.is_digit(radix));
    for (prefix, radix) in [("0o", 8), ("0x", 16)] {
        if let Some(digits) = text.strip_prefix(prefix).filter(|digits| all(digits, radix)) {
            return Some(u64::from_str_radix(digits, radix).map(Number::from).map_err(drop));
        }
    }
    if all(unsigned, 10) {
        let negative = text.starts_with('-');
        let found =
            if negative { text.parse::<i64>().map(Number::from) } else { unsigned.parse::<u64>().map(Number::from) };
        return Some(found.map_err(drop));
    }
    if matches!(unsigned, ".inf" | ".Inf" | ".INF") || matches!(text, ".nan" | ".NaN" | ".NAN") {
        return Some(Err(()));
    }
    let (mantissa, exponent) = match unsigned.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, Some(exponent.strip_prefix(['-', '+']).unwrap_or(exponent))),
        None => (unsigned, None),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    let digits = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
    let is_float = digits(whole)
        && digits(fraction)
        && !(whole.is_empty() && fraction.is_empty())
        && exponent.is_none_or(|exponent| all(exponent, 10));
    is_float.then(|| text.parse::<f64>().ok().and_then(Number::from_f64).ok_or(()))
}

/// A value in one line.
fn flow(text: &mut String, value: &Value) {
    match value {
        Value::String(value) => quote(text, value),
        Value::Array(values) => {
            text.push('[');
            for (n, value) in values.iter().enumerate() {
                text.push_str(if n > 0 { ", " } else { "" });
                flow(text, value);
            }
            text.push(']');
        }
        Value::Object(fields) => {
            text.push('{');
            for (n, (key, value)) in fields.iter().enumerate() {
                text.push_str(if n > 0 { ", " } else { "" });
                quote(text, key);
                text.push_str(": ");
                flow(text, value);
            }
            text.push('}');
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => text.push_str(&value.to_string()),
    }
}

/// Text in double quotes, with escapes for what must not stand in YAML as it is.
fn quote(text: &mut String, value: &str) {
    text.push('"');
    for c in value.chars() {
        match c {
            '"' => text.push_str("\\\""),
            '\\' => text.push_str("\\\\"),
            '\n' => text.push_str("\\n"),
            '\t' => text.push_str("\\t"),
            c if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{feff}' | '\u{fffe}' | '\u{ffff}') => {
                // A String takes what is written to it.
                let _ = write!(text, "\\u{:04x}", u32::from(c));
            }
            c => text.push(c),
        }
    }
    text.push('"');
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn fields(yaml: &str) -> Value {
        Value::Object(read(&format!("---\n{yaml}\n---\nbody")).unwrap_or_else(|fault| panic!("{yaml:?}: {fault}")))
    }

    fn fault(yaml: &str) -> String {
        match read(&format!("---\n{yaml}\n---\n")) {
            Err(fault) => fault,
            Ok(fields) => panic!("{yaml:?} was read as {fields:?}"),
        }
    }

    #[test]
    fn fields_mean_what_the_core_schema_says() {
        let yaml = "name: pdf\ndescription: >-\n  Fill\n  forms\nlicense: 'It''s: free' # why\nallowed-tools: [Read, \"a:b\"]\n\
                    metadata:\n  version: \"1.0\"\n  tags:\n    - a\n    - 2\n  none: ~\n  off: no\n  on: 2024-01-31";
        let expected = json!({
            "name": "pdf", "description": "Fill forms", "license": "It's: free", "allowed-tools": ["Read", "a:b"],
            "metadata": { "version": "1.0", "tags": ["a", 2], "none": null, "off": "no", "on": "2024-01-31" },
        });
        assert_eq!(fields(yaml), expected);
        for (text, value) in [
            ("12", json!(12)),
            ("-3", json!(-3)),
            ("+7", json!(7)),
            ("007", json!(7)),
            ("0o17", json!(15)),
            ("0xfF", json!(255)),
            ("18446744073709551615", json!(u64::MAX)),
            ("1.5", json!(1.5)),
            ("-.5", json!(-0.5)),
            ("2.", json!(2.0)),
            ("1e3", json!(1000.0)),
            ("1.2.3", json!("1.2.3")),
            ("1_000", json!("1_000")),
            (".", json!(".")),
            ("-", json!([null])),
            ("e5", json!("e5")),
            ("inf", json!("inf")),
            ("TRUE", json!(true)),
            ("tRUE", json!("tRUE")),
            ("", json!(null)),
        ] {
            assert_eq!(fields(&format!("a:\n  {text}"))["a"], value, "{text:?}");
        }
    }

    #[test]
    fn what_is_more_than_plain_data_is_refused_with_its_line() {
        for (yaml, says) in [
            ("name: a\nb: &x 1", "line 3 of its frontmatter: anchors"),
            ("a: *x", "line 2"),
            ("a: !!str 1", "tags"),
            ("a:\n  <<: {b: 1}", "line 3 of its frontmatter: merges"),
            ("a: 1\na: 2", "\"a\" is there twice"),
            ("1: x", "the key 1 is not text"),
            ("[a]: x", "not text"),
            ("? {a: 1}\n: x", "not text"),
            ("a: .inf", "no place in JSON"),
            ("a: -.INF", "no place in JSON"),
            ("a: .nan", "no place in JSON"),
            ("a: 1e999", "no place in JSON"),
            ("a: 18446744073709551616", "no place in JSON"),
            ("a: -9223372036854775809", "no place in JSON"),
            ("just text", "not a map"),
            ("- a", "not a map"),
            ("", "it is empty"),
            ("# nothing", "it is empty"),
            ("a: b\n...\nc: d", "second document"),
            ("a: [b", "not YAML"),
            ("a: b: c", "line 2 of its frontmatter: this is not YAML"),
        ] {
            let told = fault(yaml);
            assert!(told.contains(says), "{yaml:?}: {told}");
        }
        assert!(fault(&format!("a: {}{}", "[".repeat(20), "]".repeat(20))).contains("in each other"));
        assert!(fault(&format!("a: {}{}", "[".repeat(2000), "]".repeat(2000))).contains("line 2"));
        assert!(fault(&format!("a: {}", "x".repeat(BYTES_MAX))).contains("at most 65536"));
    }

    #[test]
    fn the_block_is_between_two_lines_of_dashes() {
        for text in
            ["---\na: 1\n---", "---\r\na: 1\r\n---\r\nbody", "\u{feff}---\na: 1\n---  \t\n---\nb", "---\na: 1\n---\n"]
        {
            assert_eq!(Value::Object(read(text).unwrap()), json!({ "a": 1 }), "{text:?}");
        }
        for text in [
            "",
            "a: 1",
            "---",
            "---\na: 1",
            "--- \na: 1\n---\n",
            "\n---\na: 1\n---\n",
            "---\na: 1\n----\n",
            "---\na: 1\n ---",
        ] {
            assert!(read(text).is_err_and(|fault| fault.contains("open with a line")), "{text:?}");
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        let Value::Object(written) = json!({
            "name": "123", "description": "a \"b\" \\ \u{7}\u{7f}\u{85}\u{2028}\u{feff} # c: d\n\n---\n\té",
            "license": "no", "null": null, "-x": 1, "two words": [true, { "a: b": -1.5, "": [] }], "on": {}, "big": u64::MAX, "e": 1e300,
        }) else {
            panic!("an object")
        };
        let text = write(&written, "# Title\nbody");
        assert_eq!(read(&text).as_ref(), Ok(&written), "{text}");
        assert!(text.starts_with("---\nname: \"123\"\ndescription: \""), "{text}");
        assert!(text.ends_with("---\n\n# Title\nbody\n"), "{text}");
        assert!(write(&written, "").ends_with("\n---\n"));
    }
}
