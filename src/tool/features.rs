//! What a server offers besides tools: resources, prompts, proposals for their arguments, and methods that a hosted
//! handler answers. Made once at the start.

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::Arc,
};

use bytes::Bytes;
use serde_json::{Map, Value, json};

use crate::tool::{
    Work,
    prompt::{Completions, Prompt},
    resource::Resource,
};

/// A list's entry: the name that it is ordered by, and its JSON.
pub(crate) type Entry = (String, Bytes);

/// What is offered besides tools.
#[derive(Debug, Default)]
pub(crate) struct Features {
    resources: BTreeMap<String, Resource>,
    /// In the order in which they were added: the first that matches is taken.
    templates: Vec<Resource>,
    prompts: BTreeMap<String, Prompt>,
    /// Whole methods that are answered elsewhere, for what is not here.
    pub(crate) methods: BTreeMap<&'static str, Arc<Work>>,
    /// Whether handlers are hosted.
    pub(crate) has_hosted: bool,
}

impl Features {
    /// # Errors
    /// Two of one name, or one that no client could ask for: says which, and why.
    pub(crate) fn new(resources: Vec<Resource>, prompts: Vec<Prompt>) -> Result<Self, String> {
        let mut features = Self::default();
        for resource in resources {
            if let Some(fault) = resource.fault() {
                return Err(fault);
            }
            if let Some(stray) = resource.stray_completion() {
                return Err(format!(
                    "the resource {:?}: values are proposed for {stray:?}, which it does not have",
                    resource.uri()
                ));
            }
            let uri = resource.uri().to_owned();
            if resource.pattern.is_template() {
                if features.templates.iter().any(|t| t.uri() == uri) {
                    return Err(format!("two resource templates are {uri:?}; they must differ"));
                }
                features.templates.push(resource);
            } else if features.resources.insert(uri.clone(), resource).is_some() {
                return Err(format!("two resources have the URI {uri:?}; URIs must differ"));
            }
        }
        for prompt in prompts {
            if let Some(fault) = prompt.fault() {
                return Err(fault);
            }
            let name = prompt.name().to_owned();
            if features.prompts.insert(name.clone(), prompt).is_some() {
                return Err(format!("two prompts have the name {name:?}; names must differ"));
            }
        }
        Ok(features)
    }

    pub(crate) fn has_resources(&self) -> bool {
        !self.resources.is_empty() || !self.templates.is_empty() || self.methods.contains_key("resources/read")
    }

    pub(crate) fn has_prompts(&self) -> bool {
        !self.prompts.is_empty() || self.methods.contains_key("prompts/get")
    }

    pub(crate) fn has_completions(&self) -> bool {
        self.prompts.values().any(|p| !p.completions.is_empty())
            || self.templates.iter().any(|t| !t.completions.is_empty())
            || self.methods.contains_key("completion/complete")
    }

    /// Whether somebody reads what a session's `initialize` said.
    pub(crate) fn wants_initialize(&self) -> bool {
        self.has_hosted
    }

    /// Entries of `resources/list`.
    pub(crate) fn resource_entries(&self) -> Vec<Entry> {
        self.resources.values().map(|r| entry(r.uri(), &r.definition)).collect()
    }

    /// Entries of `resources/templates/list`.
    pub(crate) fn template_entries(&self) -> Vec<Entry> {
        let mut entries: Vec<_> = self.templates.iter().map(|r| entry(r.uri(), &r.definition)).collect();
        entries.sort();
        entries
    }

    /// Entries of `prompts/list`.
    pub(crate) fn prompt_entries(&self) -> Vec<Entry> {
        self.prompts.values().map(|p| entry(p.name(), &p.definition)).collect()
    }

    /// What reads the resource at `uri`, and with which arguments.
    pub(crate) fn resource(&self, uri: &str) -> Option<(&Arc<Work>, Value)> {
        if let Some(resource) = self.resources.get(uri) {
            return Some((&resource.work, json!({ "uri": uri })));
        }
        self.templates.iter().find_map(|template| {
            let values = template.pattern.values(uri)?;
            Some((&template.work, json!({ "uri": uri, "values": values })))
        })
    }

    /// What makes the prompt of this name.
    pub(crate) fn prompt(&self, name: &str) -> Option<&Arc<Work>> {
        self.prompts.get(name).map(|prompt| &prompt.work)
    }

    /// Proposals for an argument of what `reference` names; `None` when there is no such thing here.
    pub(crate) fn complete(&self, reference: &Map<String, Value>, argument: &str, so_far: &str) -> Option<Vec<String>> {
        let text = |key: &str| reference.get(key).and_then(Value::as_str);
        let completions: &Completions = match text("type")? {
            "ref/prompt" => &self.prompts.get(text("name")?)?.completions,
            "ref/resource" => {
                let uri = text("uri")?;
                let template = self.templates.iter().find(|t| t.uri() == uri);
                match template {
                    Some(template) => &template.completions,
                    None => &self.resources.get(uri)?.completions,
                }
            }
            _ => return None,
        };
        let propose = || completions.get(argument).map_or_else(Vec::new, |complete| (complete.0)(so_far));
        // They are the author's, and run where messages are read. One that panics proposes nothing.
        Some(catch_unwind(AssertUnwindSafe(propose)).unwrap_or_else(|_| {
            tracing::error!(argument, "proposing values panicked; nothing was proposed");
            Vec::new()
        }))
    }
}

fn entry(name: &str, definition: &Map<String, Value>) -> Entry {
    (name.to_owned(), Value::Object(definition.clone()).to_string().into())
}
