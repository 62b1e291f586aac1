//! What was refused, by reason.

use crate::telemetry::meter::{Counts, Sharded};

/// Reasons, with the statuses and codes that stand for them. The first that fits is it.
type Fits = fn(u16, i32) -> bool;
const REASONS: [(&str, Fits); 20] = [
    ("unauthorized", |status, _| status == 401),
    ("forbidden", |status, _| status == 403),
    ("body_too_large", |status, _| status == 413),
    ("head_too_large", |status, _| matches!(status, 414 | 431)),
    ("too_slow", |status, _| status == 408),
    ("not_acceptable", |status, _| status == 406),
    ("unsupported_media_type", |status, _| status == 415),
    ("method_not_allowed", |status, _| status == 405),
    ("overloaded", |_, code| code == -31503),
    ("rate_limited", |_, code| code == -31429),
    ("expired", |_, code| code == -31504),
    ("parse_error", |_, code| code == -32700),
    ("invalid_request", |status, code| code == -32600 && status != 404),
    ("method_not_found", |_, code| code == -32601),
    ("invalid_params", |_, code| code == -32602),
    ("header_mismatch", |_, code| code == -32020),
    ("missing_capability", |_, code| code == -32021),
    ("unsupported_version", |_, code| code == -32022),
    ("not_found", |status, code| status == 404 || code == -32002),
    ("failed", |_, _| true),
];

/// What each reason means, for who reads the metrics.
pub(crate) const HELP: &str = "Requests that were refused, by reason. unauthorized: no key or token, or none that is \
    valid (401). forbidden: a Host or an Origin that is not allowed, or a token without the scope (403). body_too_large: over limits.request_bytes_max (413). head_too_large: over limits.header_bytes_max or \
    limits.headers_max (414, 431). too_slow: the body came too slowly (408). not_acceptable: the Accept header names \
    neither JSON nor events (406). unsupported_media_type: the body is not JSON (415). method_not_allowed: another HTTP \
    method than POST (405). overloaded: a limit, a queue or the memory was full (503, come back after Retry-After). \
    rate_limited: the caller has its share already. expired: the time was over before the tool began. parse_error: not \
    valid JSON. invalid_request: no valid JSON-RPC or HTTP request (400). method_not_found: a method that the server does \
    not have. invalid_params: wrong parameters, such as the name of no tool. header_mismatch: headers and body say \
    different things. missing_capability: the client lacks what the call needs. unsupported_version: an unknown revision \
    of the protocol. not_found: no such path, session or resource (404). failed: a fault of the server";

/// Why something was refused: the place in the list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Reason(usize);

impl Reason {
    /// The reason behind an HTTP status and a JSON-RPC code.
    pub(crate) fn of(status: u16, code: i32) -> Self {
        Self(REASONS.iter().position(|(_, fits)| fits(status, code)).unwrap_or(REASONS.len() - 1))
    }

    /// Its word.
    pub(crate) fn name(self) -> &'static str {
        REASONS[self.0].0
    }
}

/// Counts refusals.
#[derive(Debug, Default)]
pub(crate) struct Refusals(Sharded<Counts<{ REASONS.len() }>>);

impl Refusals {
    pub(crate) fn count(&self, reason: Reason) {
        self.0.own().add(reason.0);
    }

    /// Every reason with how often it was one.
    pub(crate) fn counts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        REASONS.iter().enumerate().map(|(index, (name, _))| (*name, self.0.iter().map(|c| c.get(index)).sum()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_is_explained() {
        for (reason, _) in REASONS {
            assert!(HELP.contains(&format!(" {reason}: ")), "{reason}");
        }
    }

    #[test]
    fn refusals_are_counted_by_reason() {
        let refusals = Refusals::default();
        for (status, code) in [(503, -31503), (503, -31503), (400, -32700), (404, -32600), (200, 7), (404, -32601)] {
            refusals.count(Reason::of(status, code));
        }
        let counted: Vec<_> = refusals.counts().filter(|(_, count)| *count > 0).collect();
        assert_eq!(
            counted,
            [("overloaded", 2), ("parse_error", 1), ("method_not_found", 1), ("not_found", 1), ("failed", 1)]
        );
    }
}
