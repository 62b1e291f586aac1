//! The protocol, pure: bytes and values in, values out. No sockets here, and `now` is an argument.
//!
//! In the order of a message's way: `wire` reads it (by `reader`, `strict` and `scan`), `batch` takes several apart,
//! `modern` says which rules it follows, `modern` and `legacy` check it by them, `router` sends it to its handler,
//! `encode` writes the answer. Handlers: `calling` for what runs (tools, prompts, resources; `at_once` for what needs no
//! waiting; `pending` is a call that is ready, `ending` what it is answered with), `tasking` for calls that become tasks,
//! `feed` for streams that no call owns, `catalogue` and `listing` for answers that do not depend on the call.
//!
//! What is remembered: `session` is the record, `live` what a session has while more goes on in it, `events` what its
//! streams keep for who lost the connection, `seal` what clients carry for us; `trail` is what the audit trail is told.
//! With several instances: `shared` has the sessions of all, `elsewhere` reads streams that others began, `again` runs
//! calls whose instance has gone. `speaking` is a call while it runs and speaks.
//! `code` is the one table from failures to statuses and codes.

pub(crate) mod again;
mod at_once;
pub(crate) mod batch;
mod calling;
pub(crate) mod catalogue;
pub(crate) mod code;
mod elsewhere;
pub(crate) mod encode;
mod ending;
pub(crate) mod events;
pub(crate) mod feed;
pub(crate) mod head;
pub(crate) mod legacy;
pub mod listing;
pub(crate) mod live;
mod modern;
pub(crate) mod pending;
mod reader;
pub(crate) mod router;
mod scan;
pub mod seal;
pub mod session;
pub(crate) mod shared;
pub(crate) mod speaking;
mod strict;
pub(crate) mod tasking;
pub(crate) mod trail;
pub(crate) mod wire;

/// The revision without sessions.
pub const MODERN_VERSION: &str = "2026-07-28";
/// The revisions with sessions, newest first.
pub const LEGACY_VERSIONS: [&str; 4] = ["2025-11-25", "2025-06-18", "2025-03-26", "2024-11-05"];

pub(crate) const META_PROTOCOL_VERSION: &str = "io.modelcontextprotocol/protocolVersion";
pub(crate) const META_CLIENT_CAPABILITIES: &str = "io.modelcontextprotocol/clientCapabilities";
pub(crate) const META_LOG_LEVEL: &str = "io.modelcontextprotocol/logLevel";
