//! Every setting in one value. Each part owns its section; this module only puts them side by side, loads them from
//! their layers (`load`, `layers`), checks them (`ranges`, `relations`), and says what they came to on this host
//! (`resolved`, `listing`). Which settings there are is asked of the structs (`known`, `schema`).

mod address;
mod fault;
mod known;
mod layers;
mod listing;
mod load;
mod ranges;
mod readable;
mod relations;
mod resolved;
mod schema;
#[cfg(test)]
mod tests;
mod weak;

use std::collections::BTreeMap;

pub(crate) use address::listener as listener_address;
pub use fault::{Fault, Faults};
pub use layers::Origin;
pub use listing::Setting;
pub use load::{Loaded, Sources};
pub use resolved::{Derived, Resolved};
pub use schema::schema;
pub(crate) use weak::{expired, weak};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Every setting: the content of `tuning.toml`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Tuning {
    /// Where bigiron listens and how it stops.
    pub server: crate::server::Config,
    /// Threads that move bytes.
    pub runtime: crate::runtime::Config,
    /// Whether connections are secure, and who must show a certificate.
    pub tls: crate::tls::Config,
    /// Who may call at all.
    pub auth: crate::identity::Config,
    /// What the front door lets in, and for how long.
    pub limits: crate::front::limits::Config,
    /// What one connection of HTTP/2 may do.
    pub http2: crate::front::http2::Config,
    /// Who gets how much when there is not enough for all.
    pub fairness: crate::front::gate::Config,
    /// How often a caller may call.
    pub rate_limit: crate::rate::Config,
    /// Sessions of the older revisions.
    pub sessions: crate::mcp::session::Config,
    /// How lists are paged and kept.
    pub lists: crate::mcp::listing::Config,
    /// Questions to clients.
    pub input: crate::mcp::seal::Config,
    /// Calls whose answer is fetched later.
    pub tasks: crate::tasks::Config,
    /// Threads for tools that burn CPU or block.
    pub pool: crate::dispatch::pool::Config,
    /// Results kept in memory.
    pub cache: crate::dispatch::cache::Config,
    /// What instances share.
    pub cluster: crate::cluster::Config,
    /// The tools that ship with bigiron.
    pub toolbox: crate::toolbox::Config,
    /// Who called what, when, and what came of it.
    pub audit: crate::audit::Config,
    /// What is written to standard error.
    pub log: crate::telemetry::log::Config,
    /// What differs for one tool, by its name.
    pub tools: BTreeMap<String, crate::tool::Config>,
}

/// The candidate that is most like `word`, when one is like enough to be meant.
pub(crate) fn nearest<'a>(word: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    candidates
        .map(|c| (strsim::jaro_winkler(word, c), c))
        .filter(|(likeness, candidate)| *likeness > 0.7 && is_close(word, candidate))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, c)| c)
}

/// Whether one may be a slip for the other: two letters at most are wrong, or both begin alike.
fn is_close(word: &str, candidate: &str) -> bool {
    const EDITS_MAX: usize = 2;
    const PREFIX_CHARS: usize = 3;
    let edits = strsim::osa_distance(word, candidate);
    let alike = word.chars().zip(candidate.chars()).take_while(|(a, b)| a == b).count();
    edits <= EDITS_MAX && edits < word.chars().count() || alike >= PREFIX_CHARS
}
