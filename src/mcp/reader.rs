//! How `wire` reads the objects that the protocol knows: picks the members out that some method reads and leaves the rest
//! to `strict`. No rule of the protocol is here.

use serde_json::{Map, Value};

use crate::{
    call::{ClientCapabilities, TASKS_EXTENSION},
    mcp::{
        META_CLIENT_CAPABILITIES, META_LOG_LEVEL, META_PROTOCOL_VERSION,
        scan::Read,
        strict::Reader,
        wire::{Envelope, Id, IdField, Meta, Params, Shape, ShapeLimits, Text, WireFault},
    },
};

/// The longest id, in bytes between its quotes; it is echoed and logged.
const ID_BYTES_MAX: usize = 1024;
/// A number written with a fraction or exponent is taken as an id up to here: beyond, doubles skip integers.
const EXACT_DOUBLE_MAX: f64 = 9_007_199_254_740_992.0;
/// Members that an object of the protocol itself may have whatever `limits.json_keys_max` says.
const KNOWN_KEYS_FREE: usize = 64;

/// Reads a whole document into `envelope` and says what shape it had.
pub(super) fn read<'a>(bytes: &'a [u8], limits: ShapeLimits, envelope: &mut Envelope<'a>) -> Result<Shape, WireFault> {
    // Checked once for the whole message, which costs less than once for each text in it.
    let text = std::str::from_utf8(bytes).map_err(|error| WireFault::Parse(format!("not JSON: not UTF-8: {error}")))?;
    let mut reader = Reader::new(text, limits);
    let shape = object(&mut reader, envelope);
    reader.finish(shape)
}

/// A whole document as a value, with the same strictness; `None` for what is none.
pub(super) fn build(bytes: &[u8], limits: ShapeLimits) -> Option<Value> {
    let mut reader = Reader::new(std::str::from_utf8(bytes).ok()?, limits);
    let value = reader.value();
    reader.finish(value).ok()
}

/// An object that the protocol knows.
trait Object<'a> {
    /// Reads the value of one key, which is next.
    fn member(&mut self, key: &str, reader: &mut Reader<'a>) -> Read<()>;
}

impl<'a> Object<'a> for Envelope<'a> {
    fn member(&mut self, key: &str, reader: &mut Reader<'a>) -> Read<()> {
        match key {
            "jsonrpc" => self.version_ok = text(reader)?.get() == Some("2.0"),
            "id" => self.id = id(reader)?,
            "method" => self.method = text(reader)?,
            "params" => self.params.shape = object(reader, &mut self.params)?,
            "result" | "error" => {
                self.is_response = true;
                reader.skip()?;
            }
            _ => reader.skip()?,
        }
        Ok(())
    }
}

impl<'a> Object<'a> for Params<'a> {
    fn member(&mut self, key: &str, reader: &mut Reader<'a>) -> Read<()> {
        match key {
            "name" => self.name = text(reader)?,
            "arguments" => self.arguments = Some(reader.value()?),
            "_meta" => self.meta.shape = object(reader, &mut self.meta)?,
            "uri" => self.uri = text(reader)?,
            "taskId" => self.task_id = text(reader)?,
            "inputResponses" | "requestState" => {
                self.is_retry = true;
                reader.skip()?;
            }
            "cursor" => self.cursor = text(reader)?,
            "level" => self.level = text(reader)?,
            "protocolVersion" => self.protocol_version = text(reader)?,
            "requestId" => self.request_id = id(reader)?,
            "capabilities" => self.capabilities = capabilities(reader)?,
            _ => reader.skip()?,
        }
        Ok(())
    }
}

impl<'a> Object<'a> for Meta<'a> {
    fn member(&mut self, key: &str, reader: &mut Reader<'a>) -> Read<()> {
        if self.whole.is_some() {
            return self.member_and_keep(key, reader);
        }
        match key {
            META_PROTOCOL_VERSION => self.protocol_version = text(reader)?,
            META_CLIENT_CAPABILITIES => self.client_capabilities = capabilities(reader)?,
            META_LOG_LEVEL => self.log_level = text(reader)?,
            "progressToken" => self.progress_token = id(reader)?,
            _ => reader.skip()?,
        }
        Ok(())
    }
}

impl<'a> Meta<'a> {
    /// The same for one who wants to see all of it: each value is made once and looked at.
    fn member_and_keep(&mut self, key: &str, reader: &mut Reader<'a>) -> Read<()> {
        let value = if key == "progressToken" {
            reader.json.next();
            let start = reader.json.at();
            self.progress_token = id(reader)?;
            serde_json::from_str(reader.json.since(start)).unwrap_or_default()
        } else {
            reader.value()?
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

impl<'a> Object<'a> for ClientCapabilities {
    fn member(&mut self, key: &str, reader: &mut Reader<'a>) -> Read<()> {
        if key == "extensions" {
            let mut extensions = Extensions::default();
            object(reader, &mut extensions)?;
            if extensions.tasks {
                *self = self.union(Self::TASKS);
            }
            return Ok(());
        }
        if let Some((_, flag)) = Self::NAMES.iter().find(|(name, _)| *name == key) {
            *self = self.union(*flag);
        }
        reader.skip()
    }
}

/// The extensions that a client has, as far as they concern us.
#[derive(Default)]
struct Extensions {
    tasks: bool,
}

impl<'a> Object<'a> for Extensions {
    fn member(&mut self, key: &str, reader: &mut Reader<'a>) -> Read<()> {
        self.tasks |= key == TASKS_EXTENSION;
        reader.skip()
    }
}

/// Reads an object that the protocol knows; anything else is walked over. Says what shape it was.
fn object<'a, T: Object<'a>>(reader: &mut Reader<'a>, into: &mut T) -> Read<Shape> {
    let shape = match reader.json.next() {
        b'{' => {
            let keys = reader.members(|reader, key| into.member(key, reader))?;
            if keys > KNOWN_KEYS_FREE {
                reader.count_keys(keys);
            }
            return Ok(Shape::Object);
        }
        b'[' => Shape::Array,
        _ => Shape::Other,
    };
    reader.skip()?;
    Ok(shape)
}

fn text<'a>(reader: &mut Reader<'a>) -> Read<Text<'a>> {
    if reader.json.next() == b'"' {
        return Ok(Text::Is(reader.json.text()?));
    }
    reader.skip()?;
    Ok(Text::Wrong)
}

fn id<'a>(reader: &mut Reader<'a>) -> Read<IdField<'a>> {
    let (kind, start) = (reader.json.next(), reader.json.at());
    match kind {
        b'"' => {
            reader.json.text()?;
            let json = reader.json.since(start);
            Ok(if json.len() <= ID_BYTES_MAX + 2 { IdField::Is(Id::Text(json)) } else { IdField::Wrong })
        }
        b'-' | b'0'..=b'9' => {
            let text = reader.json.number()?.text;
            if let Ok(number) = text.parse() {
                return Ok(IdField::Is(Id::Number(number)));
            }
            let number = text.parse::<f64>().unwrap_or(f64::NAN);
            let exact = number.fract() == 0.0 && number.abs() <= EXACT_DOUBLE_MAX;
            #[allow(clippy::cast_possible_truncation)] // whole and below 2^53
            let id = Id::Number(number as i64);
            Ok(if exact && text.contains(['.', 'e', 'E']) { IdField::Is(id) } else { IdField::Wrong })
        }
        _ => {
            reader.skip_scalar("an id")?;
            Ok(IdField::Wrong)
        }
    }
}

fn capabilities(reader: &mut Reader<'_>) -> Read<Option<ClientCapabilities>> {
    let mut found = ClientCapabilities::default();
    Ok((object(reader, &mut found)? == Shape::Object).then_some(found))
}
