//! Resources from functions: one at a fixed URI, or all that a URI template stands for (RFC 6570, level 1, and `{+name}`
//! for values with slashes). A function gets the URI as it was asked for with the template's values, and returns text,
//! bytes, or the protocol's own contents.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashSet},
    sync::Arc,
};

use base64::{Engine, engine::general_purpose::STANDARD};
use rmcp::model::ResourceContents;
use serde_json::{Map, Value, json};

use crate::{
    call::{Ctx, Lane, Reply},
    error::CallError,
    tool::{
        Outcome, Run, Work,
        prompt::{Complete, Completions},
    },
};

/// What is asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The URI as the client wrote it.
    pub uri: String,
    /// The values that a template's names stand for, percent-decoded. They are the client's: check them as such.
    pub values: BTreeMap<String, String>,
}

impl Wanted {
    /// The value of a name of the template; empty when there is none.
    pub fn value(&self, name: &str) -> &str {
        self.values.get(name).map_or("", String::as_str)
    }
}

/// A resource, or a template for many.
#[derive(Clone, Debug)]
pub struct Resource {
    pub(crate) definition: Map<String, Value>,
    pub(crate) pattern: Pattern,
    pub(crate) completions: Completions,
    pub(crate) work: Arc<Work>,
}

impl Resource {
    /// A resource whose function returns when it is done. `uri` with names in braces is a template: `{name}` stands for
    /// some text without a slash, `{+name}` for any. Other expressions of RFC 6570 stop the start.
    ///
    /// # Panics
    /// With `Lane::Async`, which is for [`Resource::new_async`].
    #[track_caller]
    pub fn new<R: IntoContents>(
        uri: impl Into<Cow<'static, str>>,
        name: &str,
        description: &str,
        mime_type: &str,
        lane: Lane,
        read: impl Fn(Wanted, Ctx) -> R + Send + Sync + 'static,
    ) -> Self {
        assert!(
            lane != Lane::Async,
            "a function that returns its contents runs Inline or in the Pool; one that returns a future goes with new_async"
        );
        let mime = mime_type.to_owned();
        let run = move |wanted, ctx| {
            let wanted = wanted_of(wanted);
            let uri = wanted.uri.clone();
            read(wanted, ctx).into_contents(&uri, &mime).and_then(to_reply)
        };
        Self::of(uri.into(), name, description, mime_type, lane, Run::Sync(Arc::new(run)))
    }

    /// A resource whose function returns a future.
    pub fn new_async<R: IntoContents, F: Future<Output = R> + Send + 'static>(
        uri: impl Into<Cow<'static, str>>,
        name: &str,
        description: &str,
        mime_type: &str,
        read: impl Fn(Wanted, Ctx) -> F + Send + Sync + 'static,
    ) -> Self {
        let mime: Arc<str> = mime_type.into();
        let run = move |wanted, ctx| -> crate::tool::Running {
            let wanted = wanted_of(wanted);
            let (uri, mime) = (wanted.uri.clone(), Arc::clone(&mime));
            let reading = read(wanted, ctx);
            Box::pin(async move { reading.await.into_contents(&uri, &mime).and_then(to_reply) })
        };
        Self::of(uri.into(), name, description, mime_type, Lane::Async, Run::Async(Arc::new(run)))
    }

    /// A name for people.
    #[must_use]
    pub fn title(mut self, title: &str) -> Self {
        self.definition.insert("title".into(), title.into());
        self
    }

    /// Proposes values for a name of the template while a user types one: those that go on from the text so far.
    #[must_use]
    pub fn complete(mut self, name: &str, propose: impl Fn(&str) -> Vec<String> + Send + Sync + 'static) -> Self {
        self.completions.insert(name.to_owned(), Complete(Arc::new(propose)));
        self
    }

    fn of(uri: Cow<'static, str>, name: &str, description: &str, mime_type: &str, lane: Lane, run: Run) -> Self {
        let pattern = Pattern::parse(&uri);
        let key = if pattern.is_template() { "uriTemplate" } else { "uri" };
        let definition = json!({ key: uri, "name": name, "description": description, "mimeType": mime_type });
        let Value::Object(definition) = definition else { unreachable!("it is written as an object above") };
        Self {
            definition,
            pattern,
            completions: Completions::new(),
            work: Arc::new(Work { name: uri, lane, run, wants_raw: false, meter: None }),
        }
    }

    /// What is wrong with it, if anything.
    pub(crate) fn fault(&self) -> Option<String> {
        let uri = self.uri();
        let wrong = self.pattern.fault(uri)?;
        Some(format!("the resource {uri:?}: {wrong}"))
    }

    /// A name that values are proposed for and that the template does not have.
    pub(crate) fn stray_completion(&self) -> Option<&str> {
        let has = |name: &str| self.pattern.0.iter().any(|part| matches!(part, Part::Name(own, _) if own == name));
        self.completions.keys().map(String::as_str).find(|name| !has(name))
    }

    /// The URI or the template.
    pub(crate) fn uri(&self) -> &str {
        &self.work.name
    }
}

/// What a resource's function may return.
pub trait IntoContents {
    /// The contents as the client gets them.
    ///
    /// # Errors
    /// When there is nothing at this URI, or it could not be read.
    fn into_contents(self, uri: &str, mime_type: &str) -> Result<Vec<ResourceContents>, CallError>;
}

impl IntoContents for String {
    fn into_contents(self, uri: &str, mime_type: &str) -> Result<Vec<ResourceContents>, CallError> {
        Ok(vec![ResourceContents::text(self, uri).with_mime_type(mime_type)])
    }
}

impl IntoContents for &str {
    fn into_contents(self, uri: &str, mime_type: &str) -> Result<Vec<ResourceContents>, CallError> {
        self.to_owned().into_contents(uri, mime_type)
    }
}

impl IntoContents for Vec<u8> {
    fn into_contents(self, uri: &str, mime_type: &str) -> Result<Vec<ResourceContents>, CallError> {
        Ok(vec![ResourceContents::blob(STANDARD.encode(self), uri).with_mime_type(mime_type)])
    }
}

impl IntoContents for Vec<ResourceContents> {
    fn into_contents(self, uri: &str, _: &str) -> Result<Vec<ResourceContents>, CallError> {
        if self.is_empty() { Err(CallError::NoResource(uri.to_owned())) } else { Ok(self) }
    }
}

/// `None` says that there is nothing at this URI.
impl<T: IntoContents> IntoContents for Option<T> {
    fn into_contents(self, uri: &str, mime_type: &str) -> Result<Vec<ResourceContents>, CallError> {
        self.ok_or_else(|| CallError::NoResource(uri.to_owned()))?.into_contents(uri, mime_type)
    }
}

impl<T: IntoContents, E: Into<CallError>> IntoContents for Result<T, E> {
    fn into_contents(self, uri: &str, mime_type: &str) -> Result<Vec<ResourceContents>, CallError> {
        self.map_err(Into::into)?.into_contents(uri, mime_type)
    }
}

fn to_reply(contents: Vec<ResourceContents>) -> Outcome {
    crate::tool::native::open_object(&json!({ "contents": contents })).map(Reply::of)
}

fn wanted_of(arguments: Value) -> Wanted {
    let Value::Object(mut arguments) = arguments else { return Wanted::default() };
    let text = |value: Value| if let Value::String(text) = value { text } else { String::new() };
    let uri = arguments.remove("uri").map(text).unwrap_or_default();
    let values = match arguments.remove("values") {
        Some(Value::Object(values)) => values.into_iter().map(|(name, value)| (name, text(value))).collect(),
        _ => BTreeMap::new(),
    };
    Wanted { uri, values }
}

/// A URI with names in it, cut into its parts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Pattern(Vec<Part>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Part {
    Text(String),
    /// `{name}`: one segment; `{+name}`: also slashes.
    Name(String, bool),
}

impl Pattern {
    fn parse(uri: &str) -> Self {
        let mut parts = Vec::new();
        let mut rest = uri;
        while let Some((before, (name, after))) =
            rest.split_once('{').and_then(|(before, from)| Some((before, from.split_once('}')?)))
        {
            if !before.is_empty() {
                parts.push(Part::Text(before.to_owned()));
            }
            let (name, slashes) = name.strip_prefix('+').map_or((name, false), |name| (name, true));
            parts.push(Part::Name(name.to_owned(), slashes));
            rest = after;
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.to_owned()));
        }
        Self(parts)
    }

    /// What is wrong with the text that it was read from, if anything.
    fn fault(&self, uri: &str) -> Option<String> {
        let scheme = uri.split_once(':').map_or("", |(scheme, _)| scheme);
        let mut letters = scheme.chars();
        let is_scheme = letters.next().is_some_and(|c| c.is_ascii_alphabetic())
            && letters.all(|c| c.is_ascii_alphanumeric() || "+.-".contains(c));
        if !is_scheme {
            return Some("a URI begins with a scheme, such as file: or notes:".into());
        }
        let mut names = HashSet::new();
        let mut before: Option<&Part> = None;
        for part in &self.0 {
            match part {
                Part::Text(text) if text.contains(['{', '}']) => {
                    return Some("a brace is open or closed alone".into());
                }
                Part::Text(_) => {}
                Part::Name(name, _) if name.is_empty() || !name.chars().all(|c| c.is_alphanumeric() || c == '_') => {
                    return Some(format!(
                        "{{{name}}} is not supported; write {{name}}, or {{+name}} for values with slashes"
                    ));
                }
                Part::Name(name, _) if !names.insert(name) => return Some(format!("{{{name}}} stands there twice")),
                Part::Name(name, _) if matches!(before, Some(Part::Name(..))) => {
                    return Some(format!("there must be text before {{{name}}}, or nobody can tell where it begins"));
                }
                Part::Name(..) => {}
            }
            before = Some(part);
        }
        None
    }

    pub(crate) fn is_template(&self) -> bool {
        self.0.iter().any(|part| matches!(part, Part::Name(..)))
    }

    /// The values of the names when the URI is one that the pattern stands for.
    pub(crate) fn values(&self, uri: &str) -> Option<BTreeMap<String, String>> {
        let mut values = BTreeMap::new();
        let mut rest = uri;
        let mut parts = self.0.iter().peekable();
        while let Some(part) = parts.next() {
            match part {
                Part::Text(text) => rest = rest.strip_prefix(text.as_str())?,
                Part::Name(name, slashes) => {
                    let end = match parts.peek() {
                        Some(Part::Text(text)) => rest.find(text.as_str())?,
                        _ => rest.len(),
                    };
                    let (value, after) = rest.split_at(end);
                    if value.is_empty() || (!slashes && value.contains('/')) {
                        return None;
                    }
                    values.insert(name.clone(), percent_decoded(value)?);
                    rest = after;
                }
            }
        }
        rest.is_empty().then_some(values)
    }
}

/// `None` for an escape that is broken or no UTF-8.
fn percent_decoded(text: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        if *first == b'%' {
            let hex = after.get(..2).filter(|hex| hex.iter().all(u8::is_ascii_hexdigit))?;
            let hex = std::str::from_utf8(hex).ok()?;
            bytes.push(u8::from_str_radix(hex, 16).ok()?);
            rest = &after[2..];
        } else {
            bytes.push(*first);
            rest = after;
        }
    }
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_that_nothing_could_match_are_faults() {
        let fault = |uri: &str| Pattern::parse(uri).fault(uri);
        for uri in ["a:b", "test://x/{id}", "file:///{+path}", "a:{x}-{y}"] {
            assert_eq!(fault(uri), None, "{uri}");
        }
        for uri in
            ["", "no uri", "1a:b", "/a/{b}", "q://{a", "q://a}", "q://x{?a,b}", "q://{}", "q://{a}{b}", "q://{a}/{a}"]
        {
            assert!(fault(uri).is_some(), "{uri}");
        }
    }

    #[test]
    fn templates_match_whole_uris_and_decode_values() {
        for (pattern, uri, values) in [
            ("test://template/{id}/data", "test://template/123/data", Some(vec![("id", "123")])),
            ("test://template/{id}/data", "test://template/a%20b/data", Some(vec![("id", "a b")])),
            ("test://template/{id}/data", "test://template/a/b/data", None),
            ("test://template/{id}/data", "test://template//data", None),
            ("test://template/{id}/data", "test://template/1/data/x", None),
            ("test://template/{id}/data", "test://template/%zz/data", None),
            ("test://template/{id}/data", "test://template/%ff/data", None),
            ("test://template/{id}/data", "test://template/%+f/data", None),
            ("file:///{+path}", "file:///a/b.txt", Some(vec![("path", "a/b.txt")])),
            ("a:{x}-{y}", "a:1-2", Some(vec![("x", "1"), ("y", "2")])),
            ("a:fixed", "a:fixed", Some(vec![])),
        ] {
            let expected: Option<BTreeMap<String, String>> =
                values.map(|v| v.into_iter().map(|(a, b)| (a.to_owned(), b.to_owned())).collect());
            assert_eq!(Pattern::parse(pattern).values(uri), expected, "{pattern} {uri}");
        }
    }
}
