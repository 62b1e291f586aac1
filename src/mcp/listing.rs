//! A list as pages of bytes: made once, read by cursor. A cursor names the last entry that its client has seen, so it
//! still says where to go on when the list has changed in between.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use bytes::Bytes;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::mcp::code::Era;

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
    pub(crate) fn name(self) -> &'static str {
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

impl Config {
    /// The hints of 2026-07-28 for whoever keeps a result, as members.
    pub(crate) fn hints(&self) -> String {
        format!("\"ttlMs\":{},\"cacheScope\":\"{}\"", self.ttl_ms, self.cache_scope.name())
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

/// A list, in pages.
#[derive(Debug)]
pub(crate) struct Listing {
    config: Config,
    /// The member of the result that has the entries.
    member: &'static str,
    /// In the order of their names.
    entries: Vec<(String, Bytes)>,
    /// The cursor of the last page, where the list goes on elsewhere.
    goes_on_at: Option<&'static str>,
    /// Pages at their usual starts: the first, and each after the last entry of the one before.
    pages: Vec<(String, ByEra)>,
}

impl Listing {
    /// `entries` are in the order of their names.
    pub(crate) fn new(
        config: &Config,
        member: &'static str,
        entries: Vec<(String, Bytes)>,
        goes_on_at: Option<&'static str>,
    ) -> Self {
        let mut listing = Self { config: config.clone(), member, entries, goes_on_at, pages: Vec::new() };
        listing.pages.push((String::new(), listing.page(0)));
        let mut start = config.page_entries_max;
        while start < listing.entries.len() {
            listing.pages.push((write_cursor(&listing.entries[start - 1].0), listing.page(start)));
            start += config.page_entries_max;
        }
        listing
    }

    /// Members of the page at `cursor`, or of the first. `None` for a cursor that is not ours.
    pub(crate) fn get(&self, era: Era, cursor: Option<&str>) -> Option<Bytes> {
        let Some(cursor) = cursor else { return self.pages.first().map(|(_, page)| page.get(era)) };
        if let Some((_, page)) = self.pages.iter().skip(1).find(|(start, _)| start == cursor) {
            return Some(page.get(era));
        }
        let after = read_cursor(cursor)?;
        let start = self.entries.partition_point(|(name, _)| *name <= after);
        Some(self.page(start).get(era))
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// The page that starts with entry `start`.
    fn page(&self, start: usize) -> ByEra {
        let entries = &self.entries[start.min(self.entries.len())..];
        let (here, rest) = entries.split_at(entries.len().min(self.config.page_entries_max));
        let mut json = format!("\"{}\":[", self.member).into_bytes();
        for (n, (_, entry)) in here.iter().enumerate() {
            if n > 0 {
                json.push(b',');
            }
            json.extend_from_slice(entry);
        }
        json.push(b']');
        let next = match here.last() {
            Some((last, _)) if !rest.is_empty() => Some(write_cursor(last)),
            _ => self.goes_on_at.map(str::to_owned),
        };
        if let Some(next) = next {
            json.extend_from_slice(format!(",\"nextCursor\":\"{next}\"").as_bytes());
        }
        let legacy = Bytes::copy_from_slice(&json);
        json.push(b',');
        json.extend_from_slice(self.config.hints().as_bytes());
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

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn listing(names: &[&str]) -> Listing {
        let config = Config { page_entries_max: 2, ..Config::default() };
        let entries = names.iter().map(|n| ((*n).to_owned(), Bytes::from(format!("{{\"name\":\"{n}\"}}")))).collect();
        Listing::new(&config, "tools", entries, None)
    }

    fn names(page: &Bytes) -> (Vec<String>, Option<String>) {
        let page: Value = serde_json::from_str(&format!("{{{}}}", String::from_utf8_lossy(page))).expect("JSON");
        let names =
            page["tools"].as_array().expect("tools").iter().map(|t| t["name"].as_str().unwrap_or("").to_owned());
        (names.collect(), page["nextCursor"].as_str().map(str::to_owned))
    }

    #[test]
    fn pages_cover_the_list_once_in_order_and_survive_a_change() {
        let five = listing(&["a", "b", "c", "d", "e"]);
        let mut seen = Vec::new();
        let mut cursor: Option<String> = None;
        loop {
            let page = five.get(Era::Legacy, cursor.as_deref()).expect("a page");
            let (some, next) = names(&page);
            seen.extend(some);
            match next {
                Some(next) => cursor = Some(next),
                None => break,
            }
        }
        assert_eq!(seen, ["a", "b", "c", "d", "e"]);

        let after_b = write_cursor("b");
        let changed = listing(&["a", "bb", "c"]);
        let page = changed.get(Era::Modern, Some(&after_b)).expect("a page");
        assert_eq!(names(&page).0, ["bb", "c"]);
        for broken in ["", "x", "!!", "dDE6"] {
            let page = changed.get(Era::Modern, Some(broken));
            assert_eq!(page.is_some(), broken == "dDE6", "{broken:?}: only a cursor of our form is one");
        }
    }

    #[test]
    fn a_list_that_goes_on_elsewhere_says_where_on_its_last_page() {
        let config = Config { page_entries_max: 2, ..Config::default() };
        let entry = |n: &str| (n.to_owned(), Bytes::from(format!("{{\"name\":\"{n}\"}}")));
        for entries in [vec![], vec![entry("a")], vec![entry("a"), entry("b")]] {
            let list = Listing::new(&config, "tools", entries, Some("h0:"));
            let page = list.get(Era::Modern, None).expect("a page");
            assert_eq!(names(&page).1.as_deref(), Some("h0:"));
        }
    }
}
