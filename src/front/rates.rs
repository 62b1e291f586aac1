//! How often the sender of a request may: asked before the body is read as far as headers tell what is wanted, and once
//! more for what only the body says. A rate is charged once for what both say.

use std::{cell::Cell, time::Instant};

use hyper::{
    HeaderMap,
    header::{HeaderName, HeaderValue},
};

use crate::{
    mcp::{code::Refusal, head::Rates},
    rate::{Decision, Limiter, Who},
};

const LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

/// Charges a request for what its headers say: that it is one of its sender, and the tool that it names.
pub(super) fn admit(limiter: &Limiter, who: Who<'_>, tool: Option<&str>) -> (Decision, Result<(), Refusal>) {
    let decision = limiter.decide(&limiter.claims(who, tool), Instant::now());
    (decision, passed(decision))
}

fn passed(decision: Decision) -> Result<(), Refusal> {
    let Decision::Refused { rule, limit, retry_after_s, .. } = decision else { return Ok(()) };
    let message = format!(
        "too often: the rate limit {} lets {limit} pass in its time; try again in {retry_after_s} s",
        rule.name()
    );
    Err(Refusal::rate_limited(u32::try_from(retry_after_s).unwrap_or(u32::MAX), message))
}

/// The rates of one request whose headers were charged for.
pub(super) struct Charged<'a> {
    limiter: &'a Limiter,
    who: Who<'a>,
    /// The tool that the headers named, until the body has named it too.
    named: Cell<Option<&'a str>>,
    decision: Cell<Decision>,
    now: Instant,
}

impl<'a> Charged<'a> {
    /// `named` is the tool of the headers, and `before` what came of it.
    pub(super) fn new(
        limiter: &'a Limiter,
        who: Who<'a>,
        named: Option<&'a str>,
        before: Decision,
        now: Instant,
    ) -> Self {
        Self { limiter, who, named: Cell::new(named), decision: Cell::new(before), now }
    }

    /// What came of all of it: the last refusal, or what leaves the least.
    pub(super) fn decision(&self) -> Decision {
        self.decision.get()
    }

    fn note(&self, decision: Decision) -> Result<(), Refusal> {
        self.decision.set(match (self.decision.get(), decision) {
            (before @ Decision::Refused { .. }, Decision::Free | Decision::Allowed { .. }) => before,
            (before, Decision::Free) => before,
            (_, refused @ Decision::Refused { .. }) => refused,
            (before, allowed) => before.tighter(allowed),
        });
        passed(decision)
    }
}

impl Rates for Charged<'_> {
    fn another(&self) -> Result<(), Refusal> {
        self.note(self.limiter.decide(&self.limiter.claims(self.who, None), self.now))
    }

    fn tool(&self, name: &str) -> Result<(), Refusal> {
        if self.named.take() == Some(name) {
            return Ok(()); // charged with the headers
        }
        self.note(self.limiter.decide(&self.limiter.tool_claims(self.who, name), self.now))
    }
}

/// Says what is left, on any answer.
pub(super) fn tell(headers: &mut HeaderMap, decision: Decision) {
    let (limit, remaining, reset_s) = match decision {
        Decision::Free => return,
        Decision::Allowed { limit, remaining, reset_s, .. } => (limit, remaining, reset_s),
        Decision::Refused { limit, reset_s, .. } => (limit, 0, reset_s),
    };
    headers.insert(LIMIT, HeaderValue::from(limit));
    headers.insert(REMAINING, HeaderValue::from(remaining));
    headers.insert(RESET, HeaderValue::from(reset_s));
}
