//! The rules of 2026-07-28: each request stands alone, says its revision and what its client can do, and its headers
//! repeat what a proxy needs. Here are the checks that hold for every method, in the order in which a client must be
//! told of them.

use crate::mcp::{
    LEGACY_VERSIONS, MODERN_VERSION,
    code::{Era, Refusal},
    head::{Field, Head, Via, disagreement},
    wire::{Envelope, IdField, Shape, Text},
};

/// Methods that only this revision has.
const MODERN_ONLY: [&str; 2] = ["server/discover", "subscriptions/listen"];

/// Which family of rules a message follows: basic/versioning, "Backward Compatibility with Initialization-Based
/// Versions".
pub(crate) fn era(envelope: &Envelope<'_>, head: &Head<'_>) -> Era {
    let params = &envelope.params;
    let method = envelope.method.get();
    let asked = params.meta.protocol_version.get();
    if method == Some("initialize")
        && params.protocol_version != Text::Absent
        && asked.is_none_or(|version| LEGACY_VERSIONS.contains(&version))
    {
        return Era::Legacy;
    }
    let header_is_legacy = match head.protocol_version {
        Field::Absent => true,
        Field::Is(version) => is_legacy(version),
        Field::Repeated => false,
    };
    let modern = params.meta.protocol_version != Text::Absent
        || !header_is_legacy
        || method.is_some_and(|m| MODERN_ONLY.contains(&m));
    if modern { Era::Modern } else { Era::Legacy }
}

/// Whether a header names a revision with sessions.
pub(crate) fn is_legacy(version: &[u8]) -> bool {
    version != MODERN_VERSION.as_bytes() && LEGACY_VERSIONS.iter().any(|legacy| legacy.as_bytes() == version)
}

/// What must hold for every request of this revision.
pub(crate) fn check(envelope: &Envelope<'_>, head: &Head<'_>) -> Result<(), Refusal> {
    let params = &envelope.params;
    let meta = &params.meta;
    let missing = |what: &str| {
        Refusal::invalid_params(
            true,
            format!("params._meta[\"io.modelcontextprotocol/{what}\"] is missing or of the wrong type"),
        )
    };
    if !matches!(params.shape, Shape::Object | Shape::Absent) {
        return Err(Refusal::invalid_params(true, "params must be an object"));
    }
    let Some(version) = meta.protocol_version.get() else {
        return Err(match head.protocol_version.text() {
            // Neither a modern request nor one of a revision that we know.
            Some(header) if header != MODERN_VERSION && meta.shape == Shape::Absent => {
                Refusal::unsupported_version(header)
            }
            _ => missing("protocolVersion"),
        });
    };
    if meta.client_capabilities.is_none() {
        return Err(missing("clientCapabilities"));
    }
    let agrees =
        |header, field, body| disagreement(header, field, body).map_or(Ok(()), |d| Err(Refusal::header_mismatch(d)));
    let http = head.via == Via::Http;
    // Both say the one that we serve, as almost always, or are compared.
    if http && (version != MODERN_VERSION || head.protocol_version != Field::Is(MODERN_VERSION.as_bytes())) {
        agrees("MCP-Protocol-Version", head.protocol_version, Some(version))?;
    }
    if version != MODERN_VERSION {
        return Err(Refusal::unsupported_version(version));
    }
    let method = envelope.method.get();
    if http {
        agrees("Mcp-Method", head.method, method)?;
        let named = match method {
            Some("tools/call" | "prompts/get") => Some(&params.name),
            Some("resources/read") => Some(&params.uri),
            Some("tasks/get" | "tasks/update" | "tasks/cancel") => Some(&params.task_id),
            _ => None,
        };
        if let Some(name) = named.and_then(Text::get) {
            agrees("Mcp-Name", head.name, Some(name))?;
        }
    }
    if meta.progress_token == IdField::Wrong {
        return Err(Refusal::invalid_params(true, "params._meta.progressToken must be text or an integer"));
    }
    Ok(())
}
