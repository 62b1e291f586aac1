//! Answers that do not depend on the call: lists, `server/discover` and `initialize`, as bytes. They are made when what
//! they tell of changes, not when they are asked for.

use std::{collections::HashMap, sync::Arc};

use arc_swap::ArcSwap;
use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::{Map, Value, json};

use crate::{
    dispatch::{Features, Snapshot},
    identity::{Identity, RightsClass},
    mcp::{
        MODERN_VERSION,
        code::Era,
        listing::{Config, Listing},
    },
};

/// What the server can do, as each era says it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Capabilities {
    pub(crate) modern: Map<String, Value>,
    pub(crate) legacy: Map<String, Value>,
}

impl Capabilities {
    /// Those of `features`; `extensions` are by their names.
    pub(crate) fn of(features: &Features, has_skills: bool, extensions: Map<String, Value>) -> Self {
        let mut legacy = Map::new();
        legacy.insert("tools".into(), json!({ "listChanged": true }));
        legacy.insert("logging".into(), json!({}));
        if has_skills || features.has_resources() {
            legacy.insert("resources".into(), json!({ "subscribe": true, "listChanged": true }));
        }
        if features.has_prompts() {
            legacy.insert("prompts".into(), json!({ "listChanged": true }));
        }
        if features.has_completions() {
            legacy.insert("completions".into(), json!({}));
        }
        let mut modern = legacy.clone();
        if !extensions.is_empty() {
            modern.insert("extensions".into(), Value::Object(extensions));
        }
        Self { modern, legacy }
    }

    /// Whether a method of this family (`prompts/list` is one of `prompts`) is offered.
    pub(crate) fn has(&self, family: &str) -> bool {
        self.legacy.contains_key(family)
    }
}

/// Classes of callers whose lists are kept; with more, all are made anew.
const CLASSES_MAX: usize = 64;

/// The list of tools, and what it was made from.
#[derive(Debug)]
struct Tools {
    snapshot: Arc<Snapshot>,
    /// For who may call all of them.
    listing: Listing,
    /// For others, by what they may call.
    by_class: Mutex<HashMap<RightsClass, Arc<Listing>>>,
}

/// The fixed answers.
#[derive(Debug)]
pub(crate) struct Catalogue {
    config: Config,
    discover: Bytes,
    capabilities: Capabilities,
    instructions: Option<String>,
    tools: ArcSwap<Tools>,
    pub(crate) resources: Listing,
    pub(crate) templates: Listing,
    pub(crate) prompts: Listing,
    /// The hints of 2026-07-28 that go with what is read.
    pub(crate) hints: Bytes,
}

/// Where a list goes on that a hosted handler has a part in.
const HOSTED: &str = "h0:";

impl Catalogue {
    pub(crate) fn new(
        config: Config,
        instructions: &str,
        snapshot: &Arc<Snapshot>,
        features: &Features,
        of_skills: Vec<(String, Bytes)>,
        capabilities: Capabilities,
    ) -> Self {
        let mut resource_entries = features.resource_entries();
        resource_entries.extend(of_skills);
        resource_entries.sort();
        let instructions = (!instructions.is_empty()).then(|| instructions.to_owned());
        let mut discover = json!({
            "supportedVersions": [MODERN_VERSION],
            "capabilities": capabilities.modern,
            "ttlMs": config.ttl_ms,
            "cacheScope": config.cache_scope.name(),
        });
        if let Some(text) = &instructions {
            discover["instructions"] = text.as_str().into();
        }
        let list = |member, method, entries| {
            let goes_on = features.methods.contains_key(method).then_some(HOSTED);
            Listing::new(&config, member, entries, goes_on)
        };
        Self {
            discover: open_object(&discover.to_string()),
            tools: ArcSwap::from_pointee(Tools::new(&config, Arc::clone(snapshot))),
            resources: list("resources", "resources/list", resource_entries),
            templates: list("resourceTemplates", "resources/templates/list", features.template_entries()),
            prompts: list("prompts", "prompts/list", features.prompt_entries()),
            hints: config.hints().into(),
            config,
            capabilities,
            instructions,
        }
    }

    pub(crate) fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    /// Entries on one page of a list.
    pub(crate) fn page_entries_max(&self) -> usize {
        self.config.page_entries_max
    }

    /// Members of the `server/discover` result.
    pub(crate) fn discover(&self) -> &Bytes {
        &self.discover
    }

    /// Members of the `initialize` result.
    pub(crate) fn initialize(&self, version: &str, name: &str, server_version: &str) -> Bytes {
        let mut result = json!({
            "protocolVersion": version,
            "serverInfo": { "name": name, "version": server_version },
            "capabilities": self.capabilities.legacy,
        });
        if let Some(text) = &self.instructions {
            result["instructions"] = text.as_str().into();
        }
        open_object(&result.to_string())
    }

    /// Members of a `tools/list` result for `who`: the page at `cursor`, or the first. `None` for a cursor that is not
    /// ours.
    pub(crate) fn tools(
        &self,
        snapshot: &Arc<Snapshot>,
        who: Option<&Identity>,
        era: Era,
        cursor: Option<&str>,
    ) -> Option<Bytes> {
        let mut tools = self.tools.load();
        if !Arc::ptr_eq(&tools.snapshot, snapshot) {
            self.tools.store(Arc::new(Tools::new(&self.config, Arc::clone(snapshot))));
            tools = self.tools.load();
        }
        match who {
            Some(who) if !tools.snapshot.rights().is_open() => tools.for_caller(&self.config, who).get(era, cursor),
            _ => tools.listing.get(era, cursor),
        }
    }
}

impl Tools {
    fn new(config: &Config, snapshot: Arc<Snapshot>) -> Self {
        let listing = Self::listing(config, &snapshot, |_| true);
        Self { listing, snapshot, by_class: Mutex::default() }
    }

    /// The list of those tools at whose place `shown` says yes.
    fn listing(config: &Config, snapshot: &Snapshot, shown: impl Fn(usize) -> bool) -> Listing {
        let tools = snapshot.ordered().iter().enumerate().filter(|(place, _)| shown(*place));
        let entries = tools.map(|(_, t)| (t.tool.name().to_owned(), t.definition_json.clone())).collect();
        Listing::new(config, "tools", entries, None)
    }

    /// The list of what `who` may call, made once for all who may call the same.
    fn for_caller(&self, config: &Config, who: &Identity) -> Arc<Listing> {
        let class = self.snapshot.rights().class(who);
        if let Some(listing) = self.by_class.lock().get(&class) {
            return Arc::clone(listing);
        }
        let listing = Arc::new(Self::listing(config, &self.snapshot, |place| class.contains(place)));
        let mut by_class = self.by_class.lock();
        if by_class.len() >= CLASSES_MAX {
            by_class.clear();
        }
        by_class.insert(class, Arc::clone(&listing));
        listing
    }
}

/// The members of an object's JSON, without its braces.
fn open_object(json: &str) -> Bytes {
    Bytes::copy_from_slice(json.trim_start_matches('{').strip_suffix('}').unwrap_or(json).as_bytes())
}
