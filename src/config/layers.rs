//! The layers that settings come from, each putting its values over those of the one before, with a note of where each
//! value came from. A value that is refused is a fault and is not put; the rest goes on, so that one start names them
//! all.

use std::{collections::BTreeMap, ffi::OsString, fmt, sync::Arc};

use serde_json::{Map, Value};
use toml::de::{DeTable, DeValue};

use super::{
    Tuning,
    fault::{Fault, Faults, Text, holds_secret, shown},
    known::{Kind, Known, Path, TOOLS},
    ranges::{is_beyond, too_large},
};

/// Where the value of a setting came from.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Origin {
    /// Nobody wrote it.
    #[default]
    Default,
    /// The program that embeds bigiron.
    Program,
    /// A line of a file.
    File {
        /// The file, as it was named.
        name: Arc<str>,
        /// The line, from 1.
        line: usize,
    },
    /// This environment variable.
    Environment(String),
    /// `--set` on the command line.
    Set,
    /// `--listen` on the command line.
    Listen,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::Program => f.write_str("program"),
            Self::File { name, line } => write!(f, "{name}:{line}"),
            Self::Environment(name) => write!(f, "environment {}", shown(name)),
            Self::Set => f.write_str("--set"),
            Self::Listen => f.write_str("--listen"),
        }
    }
}

/// Origins by path; a path that nobody wrote is not in it.
pub(super) type Origins = BTreeMap<String, Origin>;

/// Environment variables that start so and have [`SEPARATOR`] in them are settings. Others are left alone: Kubernetes
/// makes `BIGIRON_SERVICE_HOST` and more of the kind for every container beside a service named bigiron.
const ENVIRONMENT_PREFIX: &str = "BIGIRON_";
const SEPARATOR: &str = "__";

/// What the layers have come to so far.
#[derive(Debug)]
pub(super) struct Layers {
    known: &'static Known,
    values: Map<String, Value>,
    origins: Origins,
    pub(super) faults: Faults,
}

impl Layers {
    pub(super) fn new() -> Self {
        Self { known: Known::settings(), values: Map::new(), origins: Origins::new(), faults: Faults::default() }
    }

    /// The settings, when no layer had a fault.
    pub(super) fn finish(self) -> Result<(Tuning, Origins), Faults> {
        self.faults.or(())?;
        // Every value was checked when it was put. Were one of them still refused, this says so without a place.
        let tuning = serde_json::from_value(Value::Object(self.values)).map_err(|e| Fault::new("", e.to_string()))?;
        Ok((tuning, self.origins))
    }

    /// The layer of a file.
    pub(super) fn file(&mut self, name: &str, source: &str) {
        let text = Text::new(name, source);
        let (table, errors) = DeTable::parse_recoverable(source);
        if !errors.is_empty() {
            // What follows a syntax error is guesswork; its other faults would mislead.
            for error in errors {
                let span = error.span().unwrap_or(0..0);
                self.faults.push(text.fault(span, format!("not valid TOML: {}", error.message())));
            }
            return;
        }
        let name: Arc<str> = name.into();
        for (section, span, value) in in_order(table.get_ref()) {
            let Some(settings) = value.get_ref().as_table() else {
                self.faults.push(text.fault(span, self.known.not_a_section(section)));
                continue;
            };
            if !self.known.has_section(section) {
                self.faults.push(text.fault(span, self.known.no_section(section)));
            } else if section == TOOLS {
                self.file_tools(&text, &name, settings);
            } else {
                self.file_section(&text, &name, section, None, settings);
            }
        }
    }

    fn file_tools(&mut self, text: &Text<'_>, name: &Arc<str>, tools: &DeTable<'_>) {
        for (tool, span, value) in in_order(tools) {
            let Some(settings) = value.get_ref().as_table() else {
                let tool = shown(tool);
                let message = format!("tools.{tool} stands for a tool: write [tools.{tool}] and its settings below it");
                self.faults.push(text.fault(span, message));
                continue;
            };
            // A section without a setting counts too: whether there is such a tool is asked of it all the same.
            let origin = Origin::File { name: name.clone(), line: text.line(span.start) };
            self.origins.entry(format!("{TOOLS}.{tool}")).or_insert(origin);
            self.tool(tool);
            self.file_section(text, name, TOOLS, Some(tool), settings);
        }
    }

    fn file_section(
        &mut self,
        text: &Text<'_>,
        name: &Arc<str>,
        section: &str,
        tool: Option<&str>,
        settings: &DeTable<'_>,
    ) {
        for (key, span, value) in in_order(settings) {
            let path = Path { section: section.into(), tool: tool.map(Into::into), key: key.into() };
            let kind = match self.known.kind(&path) {
                Ok(kind) => kind,
                Err(message) => {
                    self.faults.push(text.fault(span, message));
                    continue;
                }
            };
            let refused = match plain(value.get_ref()) {
                Err(TOO_LARGE) => Some(too_large(section, key)),
                Err(found) => Some(format!("expected {kind}, found {found}")),
                Ok(plain) => match refuse(kind, section, key, &plain) {
                    None => {
                        let origin = Origin::File { name: name.clone(), line: text.line(span.start) };
                        self.put(&path, plain, origin);
                        None
                    }
                    refused => refused,
                },
            };
            if let Some(message) = refused {
                self.faults.push(text.fault(value.span(), format!("{path}: {message}")));
            }
        }
    }

    /// The layer of the environment: `BIGIRON_LIMITS__REQUEST_TIMEOUT_MS`, `BIGIRON_TOOLS__read_file__TIMEOUT_MS`.
    pub(super) fn environment(&mut self, mut variables: Vec<(OsString, OsString)>) {
        variables.sort(); // the same faults in the same order, whatever the environment's order is
        for (name, value) in variables {
            let Some(name) = name.to_str() else { continue };
            let Some(setting) = name.strip_prefix(ENVIRONMENT_PREFIX) else { continue };
            if !setting.contains(SEPARATOR) {
                // Others may set such names too (Kubernetes does), so only one that must be meant for us is refused.
                let meant = |path: &Path| format!("{}_{}", path.section, path.key).eq_ignore_ascii_case(setting);
                if let Some((path, _)) = self.known.all().find(|(path, _)| meant(path)) {
                    let (section, key) = (path.section.to_ascii_uppercase(), path.key.to_ascii_uppercase());
                    let message = format!("section and key are joined by two underscores: BIGIRON_{section}__{key}");
                    self.faults.push(Fault::new(format!("environment {}", shown(name)), message));
                }
                continue;
            }
            let at = format!("environment {}", shown(name));
            let Some((section, rest)) = setting.split_once(SEPARATOR) else { continue };
            let lowered = format!("{}{SEPARATOR}{rest}", section.to_ascii_lowercase());
            let Some(mut path) = Path::parse(&lowered, SEPARATOR) else {
                self.faults.push(Fault::new(at, "a setting of a tool is named BIGIRON_TOOLS__name__KEY"));
                continue;
            };
            path.key.make_ascii_lowercase(); // the name of a tool stays as it is written
            match value.to_str() {
                Some(value) => self.word(&path, value, at, Origin::Environment(name.to_owned())),
                None => self.faults.push(Fault::new(at, "the value is not UTF-8")),
            }
        }
    }

    /// One `--set section.key=value`.
    pub(super) fn set(&mut self, argument: &str) {
        let at = || match argument.split_once('=') {
            Some((path, _)) if holds_secret(path) => format!("--set {}=***", shown(path)),
            _ => format!("--set {}", shown(argument)),
        };
        let parts = argument.split_once('=').and_then(|(path, value)| Some((Path::parse(path.trim(), ".")?, value)));
        match parts {
            Some((path, value)) => self.word(&path, value, at(), Origin::Set),
            None => {
                let message = "expected section.key=value, for example --set pool.threads=8 (or tools.NAME.key=value)";
                self.faults.push(Fault::new(at(), message));
            }
        }
    }

    /// `--listen`.
    pub(super) fn listen(&mut self, address: &str) {
        let path = Path { section: "server".into(), tool: None, key: "listen".into() };
        self.put(&path, address.into(), Origin::Listen);
    }

    fn word(&mut self, path: &Path, written: &str, at: String, origin: Origin) {
        let value = self
            .known
            .kind(path)
            .and_then(|kind| value_of(kind, path, written).map_err(|refused| format!("{path}: {refused}")));
        match value {
            Ok(value) => self.put(path, value, origin),
            Err(message) => self.faults.push(Fault::new(at, message)),
        }
    }

    fn put(&mut self, path: &Path, value: Value, origin: Origin) {
        let settings = match &path.tool {
            Some(tool) => {
                self.origins.entry(format!("{TOOLS}.{tool}")).or_insert_with(|| origin.clone());
                self.tool(tool)
            }
            None => table(&mut self.values, &path.section),
        };
        if let Some(settings) = settings {
            settings.insert(path.key.clone(), value);
        }
        self.origins.insert(path.to_string(), origin);
    }

    fn tool(&mut self, name: &str) -> Option<&mut Map<String, Value>> {
        table(table(&mut self.values, TOOLS)?, name)
    }
}

fn table<'a>(parent: &'a mut Map<String, Value>, name: &str) -> Option<&'a mut Map<String, Value>> {
    parent.entry(name).or_insert_with(|| Value::Object(Map::new())).as_object_mut()
}

/// What is wrong with a value, also when its type could not hold it.
fn refuse(kind: &Kind, section: &str, key: &str, value: &Value) -> Option<String> {
    let beyond = |number: u64| *kind == Kind::Whole && is_beyond(section, key, number);
    match value.as_u64() {
        Some(number) if beyond(number) => Some(too_large(section, key)),
        _ => kind.refuse(value),
    }
}

/// Reads a value as TOML where that gives what the setting wants, and otherwise as the text that it is, so that a
/// shell needs no second pair of quotes: `--set log.level=debug`, `--set toolbox.root=2024`.
fn value_of(kind: &Kind, path: &Path, written: &str) -> Result<Value, String> {
    let text = Value::String(written.to_owned());
    let refused = match DeValue::parse(written.trim()).map(|value| plain(value.get_ref())) {
        Ok(Ok(value)) => match refuse(kind, &path.section, &path.key, &value) {
            None => return Ok(value),
            refused => refused,
        },
        Ok(Err(TOO_LARGE)) if *kind == Kind::Whole => Some(too_large(&path.section, &path.key)),
        _ => None,
    };
    match kind.refuse(&text) {
        None => Ok(text),
        Some(as_text) => Err(refused.unwrap_or(as_text)),
    }
}

/// A number that 64 bits do not hold.
const TOO_LARGE: &str = "a number that does not fit into 64 bits";

type Entry<'a> = (&'a str, std::ops::Range<usize>, &'a toml::Spanned<DeValue<'a>>);

/// The entries of a table as they stand in the file, with the places of their keys.
fn in_order<'a>(table: &'a DeTable<'_>) -> Vec<Entry<'a>> {
    let mut entries: Vec<Entry<'a>> =
        table.iter().map(|(key, value)| (key.get_ref().as_ref(), key.span(), value)).collect();
    entries.sort_by_key(|(_, span, _)| span.start);
    entries
}

/// A TOML value without its places, or what it is when no setting can hold such a thing.
fn plain(value: &DeValue<'_>) -> Result<Value, &'static str> {
    Ok(match value {
        DeValue::String(text) => text.as_ref().into(),
        DeValue::Integer(number) => {
            let (digits, radix) = (number.as_str(), number.radix());
            match (u64::from_str_radix(digits, radix), i64::from_str_radix(digits, radix)) {
                (Ok(number), _) => number.into(),
                (_, Ok(number)) => number.into(),
                _ => return Err(TOO_LARGE),
            }
        }
        DeValue::Float(number) => {
            let number: f64 = number.as_str().parse().map_err(|_| "a number")?;
            serde_json::Number::from_f64(number).ok_or("a number that is not finite")?.into()
        }
        DeValue::Boolean(flag) => (*flag).into(),
        DeValue::Datetime(_) => return Err("a date"),
        DeValue::Array(all) => all.iter().map(|v| plain(v.get_ref())).collect::<Result<Vec<_>, _>>()?.into(),
        DeValue::Table(all) => {
            let mut members = Map::new();
            for (key, value) in all {
                members.insert(key.get_ref().to_string(), plain(value.get_ref())?);
            }
            members.into()
        }
    })
}
