//! Answers that do not depend on the call: `tools/list` and `server/discover`, as bytes. They are made when the
//! registry changes, not when they are asked for.

use std::sync::Arc;

use arc_swap::ArcSwap;
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::{
    dispatch::Snapshot,
    mcp::{MODERN_VERSION, code::Era},
};

/// What a cursor starts with, so that one of an older form is told from a broken one.
const CURSOR_FORM: &[u8] = b"t1:";

/// `[lists]`: how lists are paged and how long clients may keep them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Entries on one page of a list.
    pub page_entries_max: usize,
    /// How long a client may keep a list without asking again, in milliseconds.
    pub ttl_ms: u64,
    /// Who may share a kept list.
    pub cache_scope: CacheScope,
}

/// Who may share what a client keeps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum CacheScope {
    /// Anybody.
    Public,
    /// Only the caller who asked.
    #[default]
    Private,
}

impl CacheScope {
    fn name(self) -> &'static str {
        match self {
            Self::Public => "public",
            Self::Private => "private",
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self { page_entries_max: 100, ttl_ms: 60_000, cache_scope: CacheScope::Private }
    }
}

/// Members of a result, for each era.
#[derive(Clone, Debug)]
struct ByEra {
    modern: Bytes,
    legacy: Bytes,
}

impl ByEra {
    fn get(&self, era: Era) -> Bytes {
        match era {
            Era::Modern => self.modern.clone(),
            Era::Legacy => self.legacy.clone(),
        }
    }
}

#[derive(Debug)]
struct Lists {
    /// What the pages were made from.
    snapshot: Arc<Snapshot>,
    /// Pages at their usual starts: the first, and each after the last entry of the one before.
    pages: Vec<(String, ByEra)>,
}

/// The fixed answers.
#[derive(Debug)]
pub(crate) struct Catalogue {
    config: Config,
    discover: Bytes,
    capabilities_json: String,
    instructions: Option<String>,
    lists: ArcSwap<Lists>,
}

impl Catalogue {
    pub(crate) fn new(config: Config, instructions: &str, snapshot: &Arc<Snapshot>) -> Self {
        let capabilities_json = json!({ "tools": {}, "logging": {} }).to_string();
        let instructions = (!instructions.is_empty()).then(|| instructions.to_owned());
        let mut discover = json!({
            "supportedVersions": [MODERN_VERSION],
            "capabilities": { "tools": {}, "logging": {} },
            "ttlMs": config.ttl_ms,
            "cacheScope": config.cache_scope.name(),
        });
        if let Some(text) = &instructions {
            discover["instructions"] = text.as_str().into();
        }
        let lists = ArcSwap::from_pointee(Lists::new(&config, Arc::clone(snapshot)));
        Self { discover: open_object(&discover.to_string()), config, capabilities_json, instructions, lists }
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
            "capabilities": serde_json::from_str::<serde_json::Value>(&self.capabilities_json).unwrap_or_default(),
        });
        if let Some(text) = &self.instructions {
            result["instructions"] = text.as_str().into();
        }
        open_object(&result.to_string())
    }

    /// Members of a `tools/list` result: the page at `cursor`, or the first. `None` for a cursor that is not ours.
    pub(crate) fn tools(&self, snapshot: &Arc<Snapshot>, era: Era, cursor: Option<&str>) -> Option<Bytes> {
        let mut lists = self.lists.load();
        if !Arc::ptr_eq(&lists.snapshot, snapshot) {
            self.lists.store(Arc::new(Lists::new(&self.config, Arc::clone(snapshot))));
            lists = self.lists.load();
        }
        let Some(cursor) = cursor else { return lists.pages.first().map(|(_, page)| page.get(era)) };
        if let Some((_, page)) = lists.pages.iter().skip(1).find(|(start, _)| start == cursor) {
            return Some(page.get(era));
        }
        // A cursor from before a change: it names the last entry that its client has seen, so it still says where to go on.
        let after = read_cursor(cursor)?;
        let start = snapshot.ordered().partition_point(|tool| tool.tool.name() <= after.as_str());
        Some(self.config.page(snapshot, start).get(era))
    }
}

impl Lists {
    fn new(config: &Config, snapshot: Arc<Snapshot>) -> Self {
        let tools = snapshot.ordered();
        let mut pages = vec![(String::new(), config.page(&snapshot, 0))];
        let mut start = config.page_entries_max;
        while start < tools.len() {
            pages.push((write_cursor(tools[start - 1].tool.name()), config.page(&snapshot, start)));
            start += config.page_entries_max;
        }
        Self { snapshot, pages }
    }
}

impl Config {
    /// The page that starts with entry `start`.
    fn page(&self, snapshot: &Snapshot, start: usize) -> ByEra {
        let tools = &snapshot.ordered()[start.min(snapshot.ordered().len())..];
        let (here, rest) = tools.split_at(tools.len().min(self.page_entries_max));
        let mut json = b"\"tools\":[".to_vec();
        for (n, tool) in here.iter().enumerate() {
            if n > 0 {
                json.push(b',');
            }
            json.extend_from_slice(&tool.definition_json);
        }
        json.push(b']');
        if let (false, Some(last)) = (rest.is_empty(), here.last()) {
            json.extend_from_slice(format!(",\"nextCursor\":\"{}\"", write_cursor(last.tool.name())).as_bytes());
        }
        let legacy = Bytes::copy_from_slice(&json);
        let scope = self.cache_scope.name();
        json.extend_from_slice(format!(",\"ttlMs\":{},\"cacheScope\":\"{scope}\"", self.ttl_ms).as_bytes());
        ByEra { modern: json.into(), legacy }
    }
}

/// The cursor of the page after the entry `name`.
fn write_cursor(name: &str) -> String {
    URL_SAFE_NO_PAD.encode([CURSOR_FORM, name.as_bytes()].concat())
}

fn read_cursor(cursor: &str) -> Option<String> {
    let bytes = URL_SAFE_NO_PAD.decode(cursor).ok()?;
    String::from_utf8(bytes.strip_prefix(CURSOR_FORM)?.to_vec()).ok()
}

/// The members of an object's JSON, without its braces.
fn open_object(json: &str) -> Bytes {
    Bytes::copy_from_slice(json.trim_start_matches('{').strip_suffix('}').unwrap_or(json).as_bytes())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::Value;

    use super::*;
    use crate::{
        call::Lane,
        tool::{Registry, Tool},
    };

    fn snapshot(names: &[&str]) -> Arc<Snapshot> {
        let tools = names.iter().map(|n| Tool::new((*n).to_owned(), "d", Lane::Inline, |(): (), _| "x")).collect();
        let registry = Registry::new(tools, &BTreeMap::new(), 1000).expect("a registry");
        Arc::clone(&registry.snapshot())
    }

    fn names(page: &Bytes) -> (Vec<String>, Option<String>) {
        let page: Value = serde_json::from_str(&format!("{{{}}}", String::from_utf8_lossy(page))).expect("JSON");
        let names =
            page["tools"].as_array().expect("tools").iter().map(|t| t["name"].as_str().unwrap_or("").to_owned());
        (names.collect(), page["nextCursor"].as_str().map(str::to_owned))
    }

    #[test]
    fn pages_cover_the_list_once_in_order_and_survive_a_change() {
        let config = Config { page_entries_max: 2, ..Config::default() };
        let five = snapshot(&["e", "b", "a", "d", "c"]);
        let catalogue = Catalogue::new(config, "", &five);
        let mut seen = Vec::new();
        let mut cursor: Option<String> = None;
        loop {
            let page = catalogue.tools(&five, Era::Legacy, cursor.as_deref()).expect("a page");
            let (some, next) = names(&page);
            seen.extend(some);
            match next {
                Some(next) => cursor = Some(next),
                None => break,
            }
        }
        assert_eq!(seen, ["a", "b", "c", "d", "e"]);

        let after_b = write_cursor("b");
        let changed = snapshot(&["a", "bb", "c"]);
        let page = catalogue.tools(&changed, Era::Modern, Some(&after_b)).expect("a page");
        assert_eq!(names(&page).0, ["bb", "c"]);
        for broken in ["", "x", "!!", "dDE6"] {
            let page = catalogue.tools(&changed, Era::Modern, Some(broken));
            assert_eq!(page.is_some(), broken == "dDE6", "{broken:?}: only a cursor of our form is one");
        }
    }
}
