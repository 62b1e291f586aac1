//! Where an answer comes from: a [`Tool`], a [`Prompt`] or a [`Resource`] is a name, what it says of itself, a lane and
//! something to run. `native`, `prompt` and `resource` make them from functions, `handler` from an rmcp handler;
//! `registry` holds the tools and `features` the rest; `schema` checks arguments and `results` results, both
//! by a `checker`; `header_params` are the arguments that clients repeat in headers. Where and whether something runs is
//! `dispatch`'s business.

mod checker;
mod features;
pub(crate) mod handler;
mod header_params;
mod native;
mod placement;
mod prompt;
pub(crate) mod registry;
mod resource;
mod results;
mod schema;

use std::{borrow::Cow, fmt, future::Future, pin::Pin, sync::Arc};

pub(crate) use features::Features;
pub use handler::Handler;
pub(crate) use header_params::HeaderParam;
pub use native::{IntoReply, Json};
pub(crate) use placement::Placement;
pub use prompt::{IntoMessages, Prompt};
pub(crate) use registry::{Registry, Right};
pub use resource::{IntoContents, Resource, Wanted};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    call::{Ctx, Lane, Reply},
    error::CallError,
    rate::Rule,
    telemetry::calls::CallMeter,
};

/// `[tools.NAME]`: what differs for one tool. Absent keys take the general setting.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Whether the tool is served.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    /// Time for the tool to answer, in milliseconds; absent is `limits.request_timeout_ms`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
    /// How long a result is kept, in seconds; absent keeps none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_ttl_s: Option<u64>,
    /// How long after its time a result is served while a new one is made, in seconds; absent is not at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stale_while_revalidate_s: Option<u64>,
    /// How long after its time a result is served when no new one can be made, in seconds; absent is not at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stale_if_error_s: Option<u64>,
    /// How long a result is kept that says that the tool failed, in seconds; absent keeps none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_error_ttl_s: Option<u64>,
    /// Who shares kept results: `caller` (default) or `public`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_scope: Option<CacheScope>,
    /// Where equal calls at once run once: on each `instance` (default) or in the whole `cluster`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_one_run: Option<OneRun>,
    /// Calls that run at once; absent sets no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrency_max: Option<usize>,
    /// Whether the number that run at once follows what the tool bears, up to `concurrency_max`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrency_adaptive: Option<bool>,
    /// Calls that may wait for others to end; absent is 100.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waiting_max: Option<usize>,
    /// How often it may be called, by all its callers together; absent sets no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate: Option<Rule>,
    /// How often each of its callers may call it; absent sets no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_per_caller: Option<Rule>,
    /// Scopes, one of which a caller needs; absent asks for none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub scopes_any: Option<Vec<String>>,
    /// Subjects, one of which the caller must be, each by its name or with its issuer; absent asks for none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subjects: Option<Vec<crate::identity::Subject>>,
    /// Groups, one of which the caller must be in; absent asks for none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub groups: Option<Vec<String>>,
    /// Roles (`cluster.roles`), one of which an instance needs to run it; absent lets every instance.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub roles: Option<Vec<String>>,
    /// Instances that run it, of those that can; absent sets no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spread: Option<usize>,
    /// Allows keeping results of a tool that does not say that it is read-only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_not_read_only: Option<bool>,
    /// Whether another instance runs a call again whose instance has died; absent is when the tool says of itself that it
    /// only reads, or that calling twice does what calling once does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub run_again: Option<bool>,
}

impl Config {
    /// Whether it is not on every instance.
    pub(crate) fn is_placed(&self) -> bool {
        self.roles.is_some() || self.spread.is_some()
    }

    /// Who may call it.
    pub(crate) fn rule(&self) -> crate::identity::Rule {
        let all = |entries: &Option<Vec<String>>| entries.clone().unwrap_or_default();
        crate::identity::Rule {
            scopes_any: all(&self.scopes_any),
            subjects: self.subjects.clone().unwrap_or_default(),
            groups: all(&self.groups),
        }
    }
}

/// Who shares kept results of a tool.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum CacheScope {
    /// Each caller has its own.
    #[default]
    Caller,
    /// All callers share them.
    Public,
}

/// Where equal calls at once, whose result is kept, run once.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum OneRun {
    /// On each instance.
    #[default]
    Instance,
    /// In the whole cluster: on one instance, and the others wait for its result.
    Cluster,
}

/// How many calls of a tool run at once.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Concurrency {
    pub(crate) max: usize,
    /// Calls that may wait.
    pub(crate) waiting_max: usize,
    /// Whether the number follows what the tool bears, up to `max`.
    pub(crate) is_adaptive: bool,
}

pub(crate) type Outcome = Result<Reply, CallError>;
pub(crate) type Running = Pin<Box<dyn Future<Output = Outcome> + Send>>;

/// What a tool runs, by the kind of its function.
#[derive(Clone)]
pub(crate) enum Run {
    /// Returns when it is done: lanes Inline and Pool.
    Sync(Arc<dyn Fn(Value, Ctx) -> Outcome + Send + Sync>),
    /// Returns a future: lane Async.
    Async(Arc<dyn Fn(Value, Ctx) -> Running + Send + Sync>),
}

/// Something to run for a call, and where: what tools, prompts and resources have in common.
pub(crate) struct Work {
    /// Who it is in the log: a tool's or prompt's name, a resource's URI.
    pub(crate) name: Cow<'static, str>,
    pub(crate) lane: Lane,
    pub(crate) run: Run,
    /// It reads the request in its own way: [`crate::call::Raw`].
    pub(crate) wants_raw: bool,
    /// What is measured of it: of tools.
    pub(crate) meter: Option<Arc<CallMeter>>,
}

impl fmt::Debug for Work {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Work").field("name", &self.name).field("lane", &self.lane).finish_non_exhaustive()
    }
}

/// A tool: what it says of itself, and what it runs.
#[derive(Clone, Debug)]
pub struct Tool {
    pub(crate) definition: rmcp::model::Tool,
    pub(crate) work: Arc<Work>,
}

impl Tool {
    /// The name that clients call it by.
    pub fn name(&self) -> &str {
        &self.definition.name
    }

    /// A name for people.
    #[must_use]
    pub fn title(mut self, title: impl Into<String>) -> Self {
        self.definition.title = Some(title.into());
        self
    }

    /// Says that the tool changes nothing, so that clients may call it freely and its results may be kept.
    #[must_use]
    pub fn read_only(self) -> Self {
        self.annotate(|a| a.read_only(true).destructive(false))
    }

    /// Says that calling twice does what calling once does.
    #[must_use]
    pub fn idempotent(self) -> Self {
        self.annotate(|a| a.idempotent(true))
    }

    /// Says that the tool reaches nothing outside this host.
    #[must_use]
    pub fn closed_world(self) -> Self {
        self.annotate(|a| a.open_world(false))
    }

    fn annotate(mut self, with: impl FnOnce(rmcp::model::ToolAnnotations) -> rmcp::model::ToolAnnotations) -> Self {
        self.definition.annotations = Some(with(self.definition.annotations.take().unwrap_or_default()));
        self
    }

    pub(crate) fn is_read_only(&self) -> bool {
        self.definition.annotations.as_ref().and_then(|a| a.read_only_hint).unwrap_or(false)
    }

    /// Whether a second run, after one of which nothing is known, does no harm.
    pub(crate) fn is_repeatable(&self) -> bool {
        self.is_read_only() || self.definition.annotations.as_ref().and_then(|a| a.idempotent_hint).unwrap_or(false)
    }
}
