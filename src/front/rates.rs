//! How often the sender of a request may: asked before the body is read as far as headers tell what is wanted, and once
//! more for what only the body says. A rate is charged once for what both say. Where several instances count together,
//! what they share is asked, for all messages of a batch at once.

use std::{
    cell::{Cell, RefCell},
    collections::VecDeque,
    time::Instant,
};

use futures_util::future::join_all;
use hyper::{
    HeaderMap,
    header::{HeaderName, HeaderValue},
};

use crate::{
    cluster::{
        Cluster,
        rate::{Charge, Verdict},
    },
    mcp::{code::Refusal, head::Rates},
    rate::{Claims, Decision, Limiter, Who},
};

const LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");

/// Charges a request for what its headers say: that it is one of its sender, and the tool that it names.
pub(super) fn admit(limiter: &Limiter, who: Who<'_>, tool: Option<&str>) -> (Decision, Result<(), Refusal>) {
    let decision = limiter.decide(&limiter.claims(who, tool), Instant::now());
    (decision, passed(decision, tool))
}

/// The same where several instances count together.
pub(super) async fn admit_shared(
    limiter: &Limiter,
    cluster: &Cluster,
    who: Who<'_>,
    tool: Option<&str>,
) -> (Decision, Result<(), Refusal>) {
    match shared(&limiter.claims(who, tool), cluster, tool).await {
        Some(decided) => decided,
        None => admit(limiter, who, tool),
    }
}

/// What all instances together decide. None when this one is to decide by itself.
async fn shared(claims: &Claims, cluster: &Cluster, tool: Option<&str>) -> Option<(Decision, Result<(), Refusal>)> {
    let charges: Vec<_> = claims
        .shared()
        .map(|rule| Charge {
            key: rule.key,
            spacing_ns: rule.spacing_ns,
            tolerance_ns: rule.tolerance_ns,
            block_ns: rule.block_ns,
        })
        .collect();
    if charges.is_empty() {
        return Some((Decision::Free, Ok(())));
    }
    match cluster.rates.charge(&charges).await {
        Verdict::Shared(outcome) => {
            let decision = claims.decided(outcome.passed, outcome.now_ns, &outcome.states_ns);
            Some((decision, passed(decision, tool)))
        }
        Verdict::Local => None,
        Verdict::Closed => {
            let message = "how often you may call is not known at this moment, because what the instances of this \
                           server share is away; try again in 1 s";
            Some((Decision::Free, Err(Refusal::overloaded(1, message))))
        }
    }
}

/// What came of the rates of one message of a body, asked before it is handed on: what hands it on cannot wait.
pub(super) struct Ahead {
    /// The tool that it was asked for; none where that was charged with the headers, or no tool is called.
    tool: Option<String>,
    decision: Decision,
    passed: Result<(), Refusal>,
}

/// One for each message of a body, in order; none where this instance decides by itself.
pub(super) type Aheads = VecDeque<Option<Ahead>>;

/// Charges for what only the body says: the tools that its messages call, and that there are several messages. `named` is
/// the tool that was charged with the headers.
pub(super) async fn charge_ahead(
    limiter: &Limiter,
    cluster: &Cluster,
    who: Who<'_>,
    mut named: Option<&str>,
    tools: Vec<Option<String>>,
) -> Aheads {
    let charge = |(at, tool): (usize, Option<String>)| {
        let tool = match named {
            Some(_) if tool.as_deref() == named => {
                named = None; // of several calls, one was charged
                None
            }
            _ => tool,
        };
        let claims = match (at, &tool) {
            (0, None) => Claims::default(),
            (0, Some(tool)) => limiter.tool_claims(who, tool),
            (_, tool) => limiter.claims(who, tool.as_deref()),
        };
        async move {
            let (decision, passed) = shared(&claims, cluster, tool.as_deref()).await?;
            Some(Ahead { tool, decision, passed })
        }
    };
    join_all(tools.into_iter().enumerate().map(charge)).await.into()
}

/// `tool` is the one that was asked for, when one was.
fn passed(decision: Decision, tool: Option<&str>) -> Result<(), Refusal> {
    let Decision::Refused { rule, limit, per_s, retry_after_s, .. } = decision else { return Ok(()) };
    let message =
        format!("too often: {} lets {limit} pass in {per_s} s; try again in {retry_after_s} s", rule.setting(tool));
    let refusal = Refusal::rate_limited(u32::try_from(retry_after_s).unwrap_or(u32::MAX), message);
    Err(Refusal { detail: rule.name(), ..refusal })
}

/// The rates of one request whose headers were charged for.
pub(super) struct Charged<'a> {
    limiter: &'a Limiter,
    who: Who<'a>,
    /// The tool that the headers named, until the body has named it too.
    named: Cell<Option<&'a str>>,
    /// What came of the message that is looked at, and of those after it, where others were asked.
    ahead: Cell<Option<Ahead>>,
    further: RefCell<Aheads>,
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
        let (named, decision) = (Cell::new(named), Cell::new(before));
        Self { limiter, who, named, ahead: Cell::new(None), further: RefCell::default(), decision, now }
    }

    /// With what was asked before.
    pub(super) fn with(self, mut aheads: Aheads) -> Self {
        self.ahead.set(aheads.pop_front().flatten());
        self.further.replace(aheads);
        self
    }

    /// What came of all of it: the last refusal, or what leaves the least.
    pub(super) fn decision(&self) -> Decision {
        self.decision.get()
    }

    fn note(&self, decision: Decision, tool: Option<&str>) -> Result<(), Refusal> {
        self.keep(decision);
        passed(decision, tool)
    }

    fn keep(&self, decision: Decision) {
        self.decision.set(match (self.decision.get(), decision) {
            (before @ Decision::Refused { .. }, Decision::Free | Decision::Allowed { .. }) => before,
            (before, Decision::Free) => before,
            (_, refused @ Decision::Refused { .. }) => refused,
            (before, allowed) => before.tighter(allowed),
        });
    }
}

impl Rates for Charged<'_> {
    fn another(&self) -> Result<(), Refusal> {
        if let Some(ahead) = self.further.borrow_mut().pop_front().flatten() {
            self.keep(ahead.decision);
            if ahead.passed.is_err() {
                return ahead.passed;
            }
            self.ahead.set(Some(ahead));
            return Ok(());
        }
        self.ahead.set(None);
        self.note(self.limiter.decide(&self.limiter.claims(self.who, None), self.now), None)
    }

    fn tool(&self, name: &str) -> Result<(), Refusal> {
        if let Some(ahead) = self.ahead.take().filter(|ahead| ahead.tool.as_deref() == Some(name)) {
            self.keep(ahead.decision);
            return ahead.passed;
        }
        if self.named.get() == Some(name) {
            self.named.set(None);
            return Ok(()); // charged with the headers
        }
        self.note(self.limiter.decide(&self.limiter.tool_claims(self.who, name), self.now), Some(name))
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
