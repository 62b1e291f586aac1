//! How often a caller may call: the rules as an operator writes them, and what is remembered to keep them. Asked by the
//! front door; what a refusal looks like on the wire is not here, nor who a caller is.
//!
//! ```text
//! Config -> Limiter --claims(who, tool)--> Claims --decide(now)--> Decision
//!              |                                        |
//!            rules                           Store: what is left of each key
//! ```
//!
//! A request comes under at most three rules: the one for its caller (or its address, when nobody knows the caller),
//! the one for its tool, and the one for both together. They are decided together, and when one refuses, none is
//! charged. `real_ip` says which address counts, behind proxies. Where a rule is for a tool and all its callers, all cores
//! share its state: that is what such a rule means.

mod gcra;
mod key;
mod local;
pub mod real_ip;
mod rule;
#[cfg(test)]
mod tests;

use std::{collections::HashMap, sync::Arc, time::Instant};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::{
    gcra::{Quota, State},
    key::{Key, Keys},
    local::{Among, CLAIMS_MAX, Local},
};
pub use self::{key::Who, rule::Rule};

const NS_PER_S: u64 = 1_000_000_000;

/// `[rate_limit]`: how often a caller may call.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Whether there are limits at all.
    pub enabled: bool,
    /// For each authenticated caller.
    pub per_caller: Rule,
    /// For each address (IPv6: each /64) whose callers are not authenticated.
    pub per_ip: Rule,
    /// Whether successful answers say what is left, too.
    pub headers_on_success: bool,
    /// Callers and addresses that are remembered at once, half of each; each takes about 64 bytes.
    pub keys_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            enabled: false,
            per_caller: rule::PER_CALLER,
            per_ip: rule::PER_IP,
            headers_on_success: false,
            keys_max: 100_000,
        }
    }
}

/// The rules for one tool; they are settings of the tool, and off unless they are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ToolRules {
    /// For all its callers together.
    pub for_all: Rule,
    /// For each of its callers.
    pub for_each: Rule,
}

/// Which rule it was, for logs, metrics and answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RuleId {
    /// `rate_limit.per_caller`.
    Caller,
    /// `rate_limit.per_ip`.
    Address,
    /// Of a tool, for all its callers.
    Tool,
    /// Of a tool, for each of its callers.
    ToolAndCaller,
}

impl RuleId {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Caller, Self::Address, Self::Tool, Self::ToolAndCaller];

    /// A name for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Caller => "per_caller",
            Self::Address => "per_ip",
            Self::Tool => "per_tool",
            Self::ToolAndCaller => "per_tool_and_caller",
        }
    }

    /// The setting that says how often; `tool` is the tool that is called, when one is.
    pub fn setting(self, tool: Option<&str>) -> String {
        let tool = tool.unwrap_or("NAME");
        match self {
            Self::Caller => "rate_limit.per_caller".into(),
            Self::Address => "rate_limit.per_ip".into(),
            Self::Tool => format!("tools.{tool}.rate"),
            Self::ToolAndCaller => format!("tools.{tool}.rate_per_caller"),
        }
    }
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// No rule is for it.
    Free,
    /// It may, and has been counted. Of several rules, the one that leaves the least.
    Allowed {
        /// The rule.
        rule: RuleId,
        /// How many in the rule's period.
        limit: u32,
        /// How many more could be made now; never more than `limit`.
        remaining: u32,
        /// Until nothing is used up any more, in seconds, rounded up.
        reset_s: u64,
    },
    /// It may not, and no rule has been charged. Of several rules, the one that takes the longest.
    Refused {
        /// The rule.
        rule: RuleId,
        /// How many in the rule's period.
        limit: u32,
        /// The period, in seconds.
        per_s: u64,
        /// Until one could pass, in seconds, rounded up; at least 1.
        retry_after_s: u64,
        /// Until nothing is used up any more, in seconds, rounded up.
        reset_s: u64,
    },
}

impl Decision {
    fn allowed(claim: &Claim, after: State, now: u64) -> Self {
        let Claim { rule, quota, .. } = claim;
        let remaining = quota.remaining(after, now).min(quota.limit);
        Self::Allowed { rule: *rule, limit: quota.limit, remaining, reset_s: seconds_until(after.idle_at(), now) }
    }

    fn refused(claim: &Claim, after: State, now: u64) -> Self {
        let Claim { rule, quota, .. } = claim;
        let passes_at = quota.charge(after, now).err().unwrap_or(now);
        Self::Refused {
            rule: *rule,
            limit: quota.limit,
            per_s: quota.per_s,
            retry_after_s: seconds_until(passes_at, now).max(1),
            reset_s: seconds_until(after.idle_at().max(passes_at), now),
        }
    }

    /// Of two that allow, the one that leaves less.
    pub(crate) fn tighter(self, other: Self) -> Self {
        match (self, other) {
            (Self::Allowed { remaining: mine, .. }, Self::Allowed { remaining, .. }) if mine <= remaining => self,
            _ => other,
        }
    }

    /// Of two that refuse, the one that takes longer.
    fn longer(known: Option<Self>, other: Self) -> Option<Self> {
        match (known, other) {
            (Some(Self::Refused { retry_after_s: mine, .. }), Self::Refused { retry_after_s, .. })
                if mine >= retry_after_s =>
            {
                known
            }
            _ => Some(other),
        }
    }
}

fn seconds_until(at: u64, now: u64) -> u64 {
    at.saturating_sub(now).div_ceil(NS_PER_S)
}

/// One rule that a request comes under, with the key that it counts for.
#[derive(Clone, Copy, Debug)]
struct Claim {
    rule: RuleId,
    among: Among,
    key: Key,
    /// What it counts for where there is no room for the key.
    shared: Key,
    quota: Quota,
}

/// All rules that a request comes under. Made where it is known who calls and what; charged by [`Limiter::decide`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Claims([Option<Claim>; CLAIMS_MAX]);

/// One rule as it is charged where several instances count together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shared {
    /// Whom and what it counts for: the same in every instance.
    pub key: [u8; 16],
    /// The time that one call costs.
    pub spacing_ns: u64,
    /// How far ahead of now a key may be and still pass.
    pub tolerance_ns: u64,
    /// How long nothing passes after one that was too many.
    pub block_ns: u64,
}

impl Claims {
    /// All of them, as they are charged elsewhere. Their keys are those of [`Limiter::with_shared_keys`].
    pub fn shared(&self) -> impl Iterator<Item = Shared> + '_ {
        self.0.iter().flatten().map(|Claim { key, quota, .. }| Shared {
            key: key.to_bytes(),
            spacing_ns: quota.spacing_ns,
            tolerance_ns: quota.tolerance_ns,
            block_ns: quota.block_ns,
        })
    }

    /// What came of it elsewhere: `states` are when each is whole again and until when it is blocked, after it.
    pub fn decided(&self, passed: bool, now_ns: u64, states: &[(u64, u64)]) -> Decision {
        let states = states.iter().map(|&(whole_at, blocked_until)| State { whole_at, blocked_until });
        let after = self.0.iter().flatten().zip(states);
        if passed {
            return after
                .fold(Decision::Free, |least, (claim, state)| least.tighter(Decision::allowed(claim, state, now_ns)));
        }
        let refused = after.filter(|(claim, state)| claim.quota.charge(*state, now_ns).is_err());
        let longest = refused
            .fold(None, |longest, (claim, state)| Decision::longer(longest, Decision::refused(claim, state, now_ns)));
        longest.unwrap_or(Decision::Free)
    }
}

/// Where it is remembered what is left, in this process. Where several instances count together, it is what is asked
/// while what they share is away.
#[derive(Debug)]
enum Store {
    Local(Local),
}

#[derive(Clone, Copy, Debug)]
struct ToolQuotas {
    for_all: Option<Quota>,
    for_each: Option<Quota>,
    /// What callers count for under `for_each` where there is no room for them.
    shared: Key,
}

/// Keeps the rules. One for a process; cheap to share, and asked from any thread.
#[derive(Clone, Debug)]
pub struct Limiter {
    per_caller: Option<Quota>,
    per_ip: Option<Quota>,
    tools: Arc<HashMap<String, ToolQuotas>>,
    keys: Keys,
    store: Arc<Store>,
    /// The moment that times are counted from.
    began: Instant,
}

impl Limiter {
    /// None when `enabled` is false, so that being off costs nothing. `tools` are those that have rules.
    pub fn new<'a>(
        config: &Config,
        tools: impl IntoIterator<Item = (&'a str, ToolRules)>,
        now: Instant,
    ) -> Option<Self> {
        let store = || Arc::new(Store::Local(Local::new(config.keys_max)));
        config.enabled.then(|| Self::build(config, tools, Keys::new(), store(), now))
    }

    /// The same with other rules, and with all that is remembered. A key's state is a moment and no number, so it
    /// counts under a new rule as well. A changed `keys_max` does not take effect.
    pub fn reconfigured<'a>(
        &self,
        config: &Config,
        tools: impl IntoIterator<Item = (&'a str, ToolRules)>,
    ) -> Option<Self> {
        config.enabled.then(|| Self::build(config, tools, self.keys.clone(), Arc::clone(&self.store), self.began))
    }

    /// The same, with keys that every instance makes alike, so that they can count together.
    #[must_use]
    pub fn with_shared_keys(self) -> Self {
        Self { keys: Keys::Shared, ..self }
    }

    fn build<'a>(
        config: &Config,
        tools: impl IntoIterator<Item = (&'a str, ToolRules)>,
        keys: Keys,
        store: Arc<Store>,
        began: Instant,
    ) -> Self {
        let tools = tools.into_iter().map(|(tool, ToolRules { for_all, for_each })| {
            let shared = keys.key(RuleId::ToolAndCaller.name(), None, Some(tool));
            (tool.to_owned(), ToolQuotas { for_all: Quota::new(for_all), for_each: Quota::new(for_each), shared })
        });
        let tools = Arc::new(tools.collect());
        Self { per_caller: Quota::new(config.per_caller), per_ip: Quota::new(config.per_ip), tools, keys, store, began }
    }

    /// What a request comes under, as far as is known: who calls, and the tool when a header has named it.
    pub fn claims(&self, who: Who<'_>, tool: Option<&str>) -> Claims {
        let mut claims = tool.map_or_else(Claims::default, |tool| self.tool_claims(who, tool));
        let (rule, quota) = match who {
            Who::Caller(_) => (RuleId::Caller, self.per_caller),
            Who::Address(_) => (RuleId::Address, self.per_ip),
        };
        claims.0[0] = self.claim(rule, quota, Some(who), None, Key::default());
        claims
    }

    /// The rest of it, when only the body has named the tool: the rules for the tool, without the caller's own.
    pub fn tool_claims(&self, who: Who<'_>, tool: &str) -> Claims {
        let Some(quotas) = self.tools.get(tool) else { return Claims::default() };
        Claims([
            None,
            self.claim(RuleId::Tool, quotas.for_all, None, Some(tool), quotas.shared),
            self.claim(RuleId::ToolAndCaller, quotas.for_each, Some(who), Some(tool), quotas.shared),
        ])
    }

    /// `shared` is another for each rule that a caller can come under; for its own rule it is none, since that is one.
    fn claim(
        &self,
        rule: RuleId,
        quota: Option<Quota>,
        who: Option<Who<'_>>,
        tool: Option<&str>,
        shared: Key,
    ) -> Option<Claim> {
        let among = match who {
            Some(Who::Caller(_)) => Among::Callers,
            Some(Who::Address(_)) => Among::Addresses,
            None => Among::Tools,
        };
        quota.map(|quota| Claim { rule, among, key: self.keys.key(rule.name(), who, tool), shared, quota })
    }

    /// Whether any tool has rules of its own.
    pub fn has_tool_rules(&self) -> bool {
        !self.tools.is_empty()
    }

    /// Charges all rules, or none when one refuses.
    pub fn decide(&self, claims: &Claims, now: Instant) -> Decision {
        let now = u64::try_from(now.saturating_duration_since(self.began).as_nanos()).unwrap_or(u64::MAX);
        match &*self.store {
            Store::Local(local) => local.decide(claims, now),
        }
    }

    /// Keys that are remembered now, for a gauge.
    pub fn keys(&self) -> usize {
        match &*self.store {
            Store::Local(local) => local.keys(),
        }
    }

    /// Calls that passed without being remembered by themselves, because there was no room for their keys: as those of all
    /// for whom there was none. For a counter; more than 0 says that `keys_max` is too small.
    pub fn unremembered(&self) -> u64 {
        match &*self.store {
            Store::Local(local) => local.unremembered(),
        }
    }
}
