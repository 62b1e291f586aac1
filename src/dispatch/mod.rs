//! Where a call runs and whether it must: arguments checked, kept results looked up, then the tool's lane. What a call
//! means to the protocol is not known here, and neither is where it came from.

mod adaptive;
pub(crate) mod bulkhead;
pub mod cache;
mod deadline;
mod elsewhere;
mod lines;
mod polls;
pub mod pool;
mod run;

use std::{
    collections::{BTreeMap, HashMap},
    pin::Pin,
    sync::{Arc, OnceLock},
    time::Instant,
};

use futures_util::future::Either;
use parking_lot::RwLock;
use serde_json::Value;

pub(crate) use self::pool::Pool;
pub(crate) use crate::tool::{Features, HeaderParam, Run, Work, registry::ServedTool, registry::Snapshot};
use crate::{
    call::{Caller, ClientCapabilities, Ctx, Deadline, Reply},
    cluster::{cache::Results, changes::Forget, forward::Forwarder},
    dispatch::{
        bulkhead::Bulkhead,
        cache::{Asked, Cache, CacheKey, Found, Refreshing, Which},
        deadline::until_extended,
        polls::Polls,
        run::Runner,
    },
    error::CallError,
    tool::{
        CacheScope, Concurrency, Config as ToolConfig, Outcome, Registry, Tool,
        registry::{CachePolicy, ToolFault},
    },
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
    /// A kept result whose time is over: a new one is being made, or could not be.
    Stale {
        /// Seconds since the tool ran.
        age_s: u64,
    },
}

/// What a tool is called with, and what has been found out about it, so that it is found out once.
#[derive(Debug)]
pub(crate) struct Arguments {
    pub(crate) value: Value,
    /// The key of the call, when a kept result was looked for: then the arguments are good too.
    key: Option<CacheKey>,
}

impl From<Value> for Arguments {
    fn from(value: Value) -> Self {
        Self { value, key: None }
    }
}

/// Takes calls to their tools.
#[derive(Debug)]
pub(crate) struct Dispatch {
    registry: Registry,
    core: Arc<Core>,
}

/// What runs calls: shared with runs that no call waits for.
#[derive(Debug)]
struct Core {
    cache: Cache,
    runner: Runner,
    /// Of tools that have one, by name.
    bulkheads: RwLock<HashMap<String, Arc<Bulkhead>>>,
    /// Where there are tools that are placed elsewhere.
    forwarder: OnceLock<Arc<Forwarder>>,
}

impl Dispatch {
    pub(crate) fn new(
        registry: Registry,
        cache: &cache::Config,
        second: Option<Arc<Results>>,
        pool: Pool,
        result_bytes_max: usize,
    ) -> Self {
        let runner = Runner { pool, result_bytes_max, polls: Polls::default() };
        let core =
            Core { cache: Cache::new(cache, second), runner, bulkheads: RwLock::default(), forwarder: OnceLock::new() };
        Self { registry, core: Arc::new(core) }
    }

    /// Serves other tools from here on.
    ///
    /// # Errors
    /// A tool that cannot be served: which, and why.
    pub(crate) fn replace_tools(
        &self,
        tools: Vec<Tool>,
        configs: &BTreeMap<String, ToolConfig>,
        request_timeout_ms: u64,
    ) -> Result<(), ToolFault> {
        self.registry.replace(tools, configs, request_timeout_ms)
    }

    /// The tools at this moment.
    pub(crate) fn tools(&self) -> arc_swap::Guard<Arc<Snapshot>> {
        self.registry.snapshot()
    }

    /// Answers one call. Dropping the future cancels it.
    pub(crate) async fn call(
        &self,
        tool: &Arc<ServedTool>,
        arguments: Arguments,
        ctx: Ctx,
    ) -> Result<Answered, CallError> {
        let Arguments { value: arguments, key } = arguments;
        if key.is_none()
            && let Some(fault) = tool.arguments.fault(&arguments)
        {
            return Err(CallError::Tool(fault));
        }
        // What came of a client's answers is its own: neither taken from others nor kept for them.
        let Some(policy) = tool.cache.filter(|_| !ctx.has_answers()) else {
            let outcome = self.core.run_tool(tool, arguments, ctx).await;
            if tool.cache.is_some() {
                cache::count_own_run(tool.tool.work.meter.as_ref());
            }
            return outcome.map(|reply| Answered { reply, served: Served::Fresh });
        };
        let key = key.unwrap_or_else(|| CacheKey::new(tool, &arguments, policy.scope, ctx.caller()));
        let caller = ctx.caller().clone();
        let asked = asked(tool, key, policy, &caller);
        match self.core.cache.find(&asked, Instant::now()) {
            Found::Fresh(answered) => return Ok(answered),
            Found::Stale(answered, refreshing) => {
                if let Some(refreshing) = refreshing {
                    Core::refresh(&self.core, refreshing, tool, key, policy, arguments, &ctx);
                }
                return Ok(answered);
            }
            Found::Nothing => {}
        }
        let (deadline, waits) = (ctx.deadline(), ctx.waits());
        let is_own = || waits.is_of_one_client();
        let alone = ctx.is_watched() || ctx.can_ask_now();
        // Boxed, since this future is large and every connection has room for the largest.
        let run = Box::pin(self.core.cache.run(&asked, self.core.run_tool(tool, arguments, ctx), alone, is_own));
        // Who waits for another's run has a deadline too.
        match until_extended(deadline, || waits.extra_time(), run).await {
            Some(answered) => answered,
            None => self.core.cache.give_up(&asked, CallError::TimedOut { limit_ms: deadline.limit_ms() }),
        }
    }

    /// Size of one result.
    pub(crate) fn result_bytes_max(&self) -> usize {
        self.core.runner.result_bytes_max
    }

    /// To be called some times a second.
    pub(crate) fn look_after(&self, now: Instant) {
        self.core.runner.pool.look_after(now);
        self.core.runner.polls.look_after(now);
        self.core.cache.sweep();
    }

    /// From here on no result is served that was kept, or whose run had begun, before: of everything, or of what is
    /// named. With arguments, of that call alone, for a caller or for all where results are public.
    ///
    /// # Errors
    /// A tool that there is not, or arguments without a tool: says what would be right.
    pub(crate) fn invalidate(
        &self,
        tool: Option<&str>,
        arguments: Option<&Value>,
        caller: Option<&str>,
    ) -> Result<(), String> {
        let tools = self.registry.snapshot();
        let named = match tool {
            None => None,
            Some(name) => {
                let known = || {
                    let cached = tools.ordered().iter().filter(|t| t.cache.is_some()).map(|t| t.tool.name());
                    cached.collect::<Vec<_>>().join(", ")
                };
                Some(
                    tools
                        .get(name)
                        .ok_or_else(|| format!("there is no tool {name:?}; results are kept of: {}", known()))?,
                )
            }
        };
        match (named, arguments, caller) {
            (None, Some(_), _) => return Err("arguments say nothing without a tool; name the tool too".into()),
            (Some(tool), Some(arguments), caller) => {
                let scope = tool.cache.map(|policy| policy.scope).unwrap_or_default();
                let caller = caller.map_or(Caller::ANONYMOUS, Caller::named);
                self.core.cache.invalidate(Which::Key(CacheKey::new(tool, arguments, scope, &caller)));
            }
            (Some(tool), None, None) => self.core.cache.invalidate(Which::Tool(tool.tool.name())),
            (Some(_), None, Some(_)) => {
                return Err("a tool and a caller need the arguments too; or name only one of the two".into());
            }
            (None, None, Some(caller)) => self.core.cache.invalidate(Which::Caller(caller)),
            (None, None, None) => self.core.cache.invalidate(Which::All),
        }
        Ok(())
    }

    /// Another instance had results forgotten: here they are too. What it means that this one does not know is nothing here.
    pub(crate) fn forget(&self, forget: &Forget) {
        self.core.cache.invalidate_here(match forget {
            Forget::All => Which::All,
            Forget::Tool(tool) if self.tools().get(tool).is_none() => return,
            Forget::Tool(tool) => Which::Tool(tool),
            Forget::Caller(caller) => Which::Caller(caller),
            Forget::Key(key) => match CacheKey::from_hex(key) {
                Some(key) => Which::Key(key),
                None => return,
            },
        });
    }

    /// What instances share of kept results.
    pub(crate) fn shared_results(&self) -> Option<&Arc<Results>> {
        self.core.cache.second()
    }

    /// Kept results, and the bytes that they take.
    pub(crate) fn cache_size(&self) -> (u64, u64) {
        self.core.cache.size()
    }

    /// Gives a share of the kept results up, whichever.
    pub(crate) fn give_up_kept(&self, share: f64) {
        self.core.cache.shrink(share);
    }

    /// What a refused caller is to be told to wait, in seconds.
    pub(crate) fn retry_after_s(&self) -> u32 {
        self.core.runner.pool.retry_after_s()
    }

    /// What the pool is at.
    pub(crate) fn pool_load(&self, now: Instant) -> pool::Load {
        self.core.runner.pool.load(now)
    }

    /// Of a tool whose calls at once are limited: how many may run, how many do, how many wait.
    pub(crate) fn bulkhead_load(&self, tool: &str) -> Option<(usize, usize, usize)> {
        self.core.bulkheads.read().get(tool).map(|bulkhead| bulkhead.load())
    }

    /// The kept result of a call, when there is one that is as good as new. The arguments are from then on those of a
    /// call of this tool by this caller, and of no other.
    pub(crate) fn kept(&self, tool: &ServedTool, arguments: &mut Arguments, caller: &Caller) -> Option<Answered> {
        let policy = tool.cache.filter(|_| tool.arguments.fault(&arguments.value).is_none())?;
        let key = CacheKey::new(tool, &arguments.value, policy.scope, caller);
        arguments.key = Some(key);
        self.core.cache.fresh(&asked(tool, key, policy, caller), Instant::now())
    }

    /// Answers a call of a tool that [needs no waiting](ServedTool::needs_no_waiting), here and now.
    pub(crate) fn call_now(&self, tool: &ServedTool, arguments: Value, ctx: Ctx) -> Result<Answered, CallError> {
        if let Some(fault) = tool.arguments.fault(&arguments) {
            return Err(CallError::Tool(fault));
        }
        let reply = self.core.runner.run_now(&tool.tool.work, arguments, ctx)?;
        Ok(Answered { reply, served: Served::Fresh })
    }

    /// Runs what is not a tool. Dropping the future cancels it.
    pub(crate) async fn run(&self, work: &Arc<Work>, arguments: Value, ctx: Ctx) -> Result<Answered, CallError> {
        let reply = self.core.runner.run(work, arguments, ctx, None).await?;
        Ok(Answered { reply, served: Served::Fresh })
    }
}

fn asked<'a>(tool: &'a ServedTool, key: CacheKey, policy: CachePolicy, caller: &'a Caller) -> Asked<'a> {
    let (tool, meter) = (tool.tool.name(), tool.tool.work.meter.as_ref());
    // What is everybody's is not one caller's to be forgotten.
    let caller = (policy.scope == CacheScope::Caller).then(|| caller.subject());
    Asked { key, tool, caller, policy, meter }
}

/// The member of a request's `_meta` by which its client wants to hear of progress.
const PROGRESS_TOKEN: &str = "progressToken";

/// A future that is rare.
type Boxed<'a> = Pin<Box<dyn Future<Output = Outcome> + Send + 'a>>;

impl Core {
    /// Makes a new result in place of one that is still served, in a task that no call waits for: it has the time and
    /// the limits that a call has. What reads the request in its own way reads that of the call that found the old one,
    /// since what it makes is kept for that caller.
    fn refresh(
        core: &Arc<Self>,
        refreshing: Refreshing,
        tool: &Arc<ServedTool>,
        key: CacheKey,
        policy: CachePolicy,
        arguments: Value,
        of: &Ctx,
    ) {
        let (core, tool) = (Arc::clone(core), Arc::clone(tool));
        let mut ctx = Ctx::new(
            of.caller().clone(),
            Deadline::after(Instant::now(), tool.timeout_ms),
            ClientCapabilities::default(),
        );
        ctx.share = of.share;
        ctx.raw = of.raw.clone().map(|mut raw| {
            raw.meta.remove(PROGRESS_TOKEN); // nobody hears of it
            raw
        });
        tokio::spawn(async move {
            let _refreshing = refreshing;
            let caller = ctx.caller().clone();
            let run = core.run_tool(&tool, arguments, ctx);
            core.cache.refresh(&asked(&tool, key, policy, &caller), run).await;
        });
    }

    /// Runs a tool where it is placed. What is rare is boxed, since every connection has room for the largest future; and
    /// no future stands around the common one, which would have room for the arguments twice.
    fn run_tool<'a>(
        &'a self,
        tool: &'a ServedTool,
        arguments: Value,
        ctx: Ctx,
    ) -> Either<Boxed<'a>, impl Future<Output = Outcome> + Send + 'a> {
        if let (Some(placement), Some(forwarder)) = (&tool.placement, self.forwarder.get())
            && !placement.is_here()
        {
            return Either::Left(Box::pin(self.run_elsewhere(forwarder, tool, placement, arguments, ctx)));
        }
        self.run_here(tool, arguments, ctx)
    }

    /// Runs a tool here, after others of it where only so many may run at once.
    fn run_here<'a>(
        &'a self,
        tool: &'a ServedTool,
        arguments: Value,
        ctx: Ctx,
    ) -> Either<Boxed<'a>, impl Future<Output = Outcome> + Send + 'a> {
        let Some(concurrency) = tool.concurrency else {
            return Either::Right(self.runner.run(&tool.tool.work, arguments, ctx, None));
        };
        Either::Left(Box::pin(async move {
            let bulkhead = self.bulkhead(tool.tool.name(), concurrency);
            let inside = Arc::new(bulkhead.enter(ctx.share, ctx.deadline()).await?);
            let outcome = self.runner.run(&tool.tool.work, arguments, ctx, Some(Arc::clone(&inside))).await;
            // A refusal or a failure in no time says nothing of how long the tool takes.
            if matches!(&outcome, Ok(reply) if !reply.is_error()) || matches!(outcome, Err(CallError::TimedOut { .. }))
            {
                inside.served(Instant::now());
            }
            outcome
        }))
    }

    fn bulkhead(&self, tool: &str, concurrency: Concurrency) -> Arc<Bulkhead> {
        if let Some(bulkhead) = self.bulkheads.read().get(tool) {
            return Arc::clone(bulkhead);
        }
        // As many as tools that the configuration names.
        let mut bulkheads = self.bulkheads.write();
        Arc::clone(bulkheads.entry(tool.to_owned()).or_insert_with(|| Arc::new(Bulkhead::new(concurrency))))
    }
}

#[cfg(test)]
mod tests;
