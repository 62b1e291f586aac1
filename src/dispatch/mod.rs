//! Where a call runs and whether it must: arguments checked, kept results looked up, then the tool's lane. What a call
//! means to the protocol is not known here, and neither is where it came from.

pub mod cache;
mod deadline;
pub mod pool;
mod run;

use std::sync::Arc;

use serde_json::Value;

pub(crate) use self::pool::Pool;
pub(crate) use crate::tool::{HeaderParam, registry::ServedTool, registry::Snapshot};
use crate::{
    call::{Ctx, Reply},
    dispatch::{
        cache::{Cache, CacheKey},
        run::Runner,
    },
    error::CallError,
    tool::Registry,
};

/// A tool's answer, and where it came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Answered {
    pub(crate) reply: Reply,
    pub(crate) served: Served,
}

/// Where an answer came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Served {
    /// The tool ran; its results are not kept.
    Fresh,
    /// The tool ran, and the result is kept.
    Miss,
    /// A kept result.
    Hit {
        /// Seconds since the tool ran.
        age_s: u64,
    },
}

/// Takes calls to their tools.
#[derive(Debug)]
pub(crate) struct Dispatch {
    registry: Registry,
    cache: Cache,
    runner: Runner,
}

impl Dispatch {
    pub(crate) fn new(registry: Registry, cache: &cache::Config, pool: Pool, result_bytes_max: usize) -> Self {
        Self { registry, cache: Cache::new(cache), runner: Runner { pool, result_bytes_max } }
    }

    /// The tools at this moment.
    pub(crate) fn tools(&self) -> arc_swap::Guard<Arc<Snapshot>> {
        self.registry.snapshot()
    }

    /// Answers one call. Dropping the future cancels it.
    pub(crate) async fn call(&self, tool: &Arc<ServedTool>, arguments: Value, ctx: Ctx) -> Result<Answered, CallError> {
        if let Some(fault) = tool.arguments.fault(&arguments) {
            return Err(CallError::Tool(fault));
        }
        let Some(policy) = tool.cache else {
            let reply = self.runner.run(tool, arguments, ctx).await?;
            return Ok(Answered { reply, served: Served::Fresh });
        };
        let key = CacheKey::new(tool, &arguments, policy.scope, ctx.caller());
        if ctx.outbox.is_some() {
            // What a client watches is its own run: not shared with others, and not kept.
            if let Some(hit) = self.cache.get(&key).await {
                return Ok(hit);
            }
            let reply = self.runner.run(tool, arguments, ctx).await?;
            return Ok(Answered { reply, served: Served::Fresh });
        }
        self.cache.get_or_run(key, policy.ttl_s, self.runner.run(tool, arguments, ctx)).await
    }
}
