//! All tools, as an immutable snapshot that is swapped whole: a call that started goes on with the tools it saw. What
//! can be worked out once for a tool is worked out here, when the snapshot is made.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use arc_swap::ArcSwap;
use bytes::Bytes;
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::{
    call::Lane,
    identity::{Identity, Rights, Rule},
    tool::{
        CacheScope, Concurrency, Config, OneRun, Placement, Run, Tool,
        header_params::{HeaderParam, header_params},
        schema::ArgumentSchema,
    },
};

/// A tool as it is served: the tool, its settings resolved, and what was made of it once.
#[derive(Debug)]
pub(crate) struct ServedTool {
    pub(crate) tool: Tool,
    /// Its entry in `tools/list`, as JSON.
    pub(crate) definition_json: Bytes,
    /// Tells this definition from any other, for keys.
    pub(crate) definition_digest: [u8; 32],
    pub(crate) arguments: ArgumentSchema,
    /// The arguments that clients repeat in `Mcp-Param-*` headers.
    pub(crate) header_params: Vec<HeaderParam>,
    pub(crate) timeout_ms: u64,
    pub(crate) cache: Option<CachePolicy>,
    pub(crate) concurrency: Option<Concurrency>,
    /// Whether a call of it may be run twice: another instance runs it again when its instance has died.
    pub(crate) runs_again: bool,
    /// Of a tool that is not on every instance.
    pub(crate) placement: Option<Arc<Placement>>,
    /// Who may call it.
    rule: Rule,
}

/// Whose call it is, of what is kept for longer than its tool may be there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CalledTool {
    pub(crate) name: Box<str>,
    /// Not everybody may call it.
    pub(crate) is_guarded: bool,
}

impl ServedTool {
    /// What is noted of it with what its calls say.
    pub(crate) fn of(&self) -> CalledTool {
        CalledTool { name: self.tool.name().into(), is_guarded: !self.rule.is_open() }
    }

    /// Whether a call of it is over when its function returns: in the lane `Inline`, with results that are not kept, any
    /// number of calls at once, and here.
    pub(crate) fn needs_no_waiting(&self) -> bool {
        let work = &self.tool.work;
        work.lane == Lane::Inline
            && self.cache.is_none()
            && self.concurrency.is_none()
            && self.placement.as_ref().is_none_or(|placement| placement.is_here())
            && !work.wants_raw
            && matches!(work.run, Run::Sync(_))
    }
}

/// How long a tool's results are kept, and for whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct CachePolicy {
    pub(crate) ttl_s: u64,
    pub(crate) scope: CacheScope,
    /// Whether of all instances one makes a result, and the others wait for it.
    pub(crate) is_alone: bool,
    /// How long after its time a result is served while a new one is made.
    pub(crate) stale_while_revalidate_s: Option<u64>,
    /// And when none can be made.
    pub(crate) stale_if_error_s: Option<u64>,
    /// How long a result is kept that says that the tool failed.
    pub(crate) error_ttl_s: Option<u64>,
}

/// Whether somebody may call a tool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Right {
    pub(crate) name: String,
    pub(crate) may: bool,
    /// The settings of the tool that stand against it.
    pub(crate) unmet: Vec<&'static str>,
}

/// The tools at one moment.
#[derive(Debug)]
pub(crate) struct Snapshot {
    by_name: HashMap<Arc<str>, Arc<ServedTool>>,
    /// In the order of their names, which is the order of `tools/list`.
    ordered: Vec<Arc<ServedTool>>,
    /// Who may call which, by the place in that order.
    rights: Rights,
}

impl Snapshot {
    pub(crate) fn get(&self, name: &str) -> Option<&Arc<ServedTool>> {
        self.by_name.get(name)
    }

    /// The tool of this name, if there is one that `who` may call. Where nobody is asked who they are, all may.
    ///
    /// Lists, calls, answers from the cache and tasks all come by this or by [`Snapshot::rights`], which say the same.
    pub(crate) fn for_caller(&self, name: &str, who: Option<&Identity>) -> Option<&Arc<ServedTool>> {
        let tool = self.get(name)?;
        let Some(who) = who.filter(|_| !self.rights.is_open()) else { return Some(tool) };
        let place = self.ordered.binary_search_by(|other| other.tool.name().cmp(name)).ok()?;
        self.rights.may(who, place).then_some(tool)
    }

    /// All tools, and of each whether `who` may call it.
    pub(crate) fn rights_of(&self, who: &Identity) -> Vec<Right> {
        let right = |(place, served): (usize, &Arc<ServedTool>)| {
            let name = served.tool.name();
            let may = self.for_caller(name, Some(who)).is_some();
            Right { name: name.to_owned(), may, unmet: self.rights.unmet(who, place).collect() }
        };
        self.ordered.iter().enumerate().map(right).collect()
    }

    /// Whether `who` may not read what a call of this tool said. One that is not here has no rule here: it counts what it
    /// had where it was called, and whether there are any.
    pub(crate) fn is_hidden(&self, tool: &CalledTool, who: Option<&Identity>) -> bool {
        match self.get(&tool.name) {
            Some(_) => self.for_caller(&tool.name, who).is_none(),
            None => who.is_some() && (tool.is_guarded || !self.rights.is_open()),
        }
    }

    /// Who may call which, by the place in [`Snapshot::ordered`].
    pub(crate) fn rights(&self) -> &Rights {
        &self.rights
    }

    pub(crate) fn ordered(&self) -> &[Arc<ServedTool>] {
        &self.ordered
    }

    /// Leaves tools that are there still where they were. To be called before anybody else has this.
    fn keep_places(&mut self, before: &Self) {
        for served in &mut self.ordered {
            let name = served.tool.name().to_owned();
            let old = before.get(&name).and_then(|old| old.placement.as_ref());
            let (Some(new), Some(old)) = (&served.placement, old) else { continue };
            if new.is_as(old) {
                let old = Arc::clone(old);
                self.by_name.remove(name.as_str()); // so that there is one handle
                if let Some(served) = Arc::get_mut(served) {
                    served.placement = Some(old);
                }
                self.by_name.insert(name.into(), Arc::clone(served));
            }
        }
    }
}

/// Holds the snapshot.
#[derive(Debug)]
pub(crate) struct Registry {
    current: ArcSwap<Snapshot>,
}

impl Registry {
    /// Serves `tools`, each with its settings from `configs`.
    ///
    /// # Errors
    /// Two tools of one name, a name or schema that clients would refuse, or a cache for a tool that may change
    /// something: says which and what would be right.
    pub(crate) fn new(
        tools: Vec<Tool>,
        configs: &BTreeMap<String, Config>,
        request_timeout_ms: u64,
    ) -> Result<Self, ToolFault> {
        Ok(Self { current: ArcSwap::from_pointee(snapshot(tools, configs, request_timeout_ms)?) })
    }

    /// Serves other tools from here on; calls that run go on with the tools they saw.
    ///
    /// # Errors
    /// As [`Registry::new`].
    pub(crate) fn replace(
        &self,
        tools: Vec<Tool>,
        configs: &BTreeMap<String, Config>,
        request_timeout_ms: u64,
    ) -> Result<(), ToolFault> {
        let mut new = snapshot(tools, configs, request_timeout_ms)?;
        new.keep_places(&self.current.load());
        self.current.store(Arc::new(new));
        Ok(())
    }

    pub(crate) fn snapshot(&self) -> arc_swap::Guard<Arc<Snapshot>> {
        self.current.load()
    }
}

/// A tool that cannot be served, and why.
#[derive(Debug)]
pub(crate) struct ToolFault {
    pub(crate) name: String,
    pub(crate) message: String,
}

fn snapshot(
    tools: Vec<Tool>,
    configs: &BTreeMap<String, Config>,
    request_timeout_ms: u64,
) -> Result<Snapshot, ToolFault> {
    let mut ordered = Vec::with_capacity(tools.len());
    for tool in tools {
        let config = configs.get(tool.name()).cloned().unwrap_or_default();
        if config.enabled == Some(false) {
            continue;
        }
        let name = tool.name().to_owned();
        let served = serve(tool, &config, request_timeout_ms).map_err(|message| ToolFault { name, message })?;
        ordered.push(Arc::new(served));
    }
    ordered.sort_by(|a, b| a.tool.name().cmp(b.tool.name()));
    if let Some(pair) = ordered.windows(2).find(|pair| pair[0].tool.name() == pair[1].tool.name()) {
        let name = pair[0].tool.name().to_owned();
        return Err(ToolFault { name, message: "two tools have this name; names must differ".into() });
    }
    let by_name = ordered.iter().map(|t| (Arc::from(t.tool.name()), Arc::clone(t))).collect();
    let rights = Rights::new(ordered.iter().map(|tool| tool.rule.clone()));
    Ok(Snapshot { by_name, ordered, rights })
}

fn serve(tool: Tool, config: &Config, request_timeout_ms: u64) -> Result<ServedTool, String> {
    let name = tool.name().to_owned();
    check_name(&name)?;
    if tool.definition.input_schema.get("type").and_then(Value::as_str) != Some("object") {
        return Err(format!(
            "the arguments of {name} are not an object, which those of every tool are: take a struct that derives \
             Deserialize and JsonSchema, or () for none"
        ));
    }
    let output = tool.definition.output_schema.as_deref();
    if output.is_some_and(|schema| schema.get("type").and_then(Value::as_str) != Some("object")) {
        return Err(format!(
            "what {name} returns is not an object, which clients of the older revisions refuse together with the whole \
             list of tools: return a struct in Json(..), with the value as a member"
        ));
    }
    let cache = match config.cache_ttl_s {
        None | Some(0) => None,
        Some(_) if !tool.is_read_only() && config.cache_not_read_only != Some(true) => {
            return Err(format!(
                "cache_ttl_s is set, but {name} does not say that it is read-only; remove it, or set \
                 cache_not_read_only = true when a kept result does no harm"
            ));
        }
        Some(ttl_s) => Some(CachePolicy {
            ttl_s,
            scope: config.cache_scope.unwrap_or_default(),
            is_alone: config.cache_one_run == Some(OneRun::Cluster),
            stale_while_revalidate_s: config.stale_while_revalidate_s,
            stale_if_error_s: config.stale_if_error_s,
            error_ttl_s: config.cache_error_ttl_s,
        }),
    };
    let definition_json = serde_json::to_vec(&tool.definition).map_err(|e| format!("{e}"))?;
    Ok(ServedTool {
        arguments: ArgumentSchema::compile(&tool.definition.input_schema)?,
        header_params: header_params(&tool.definition.input_schema)?,
        timeout_ms: config.timeout_ms.unwrap_or(request_timeout_ms),
        definition_digest: Sha256::digest(&definition_json).into(),
        definition_json: definition_json.into(),
        cache,
        concurrency: concurrency(config)?,
        runs_again: config.run_again.unwrap_or_else(|| tool.is_repeatable()),
        placement: Placement::of(config).map(Arc::new),
        rule: config.rule(),
        tool,
    })
}

fn concurrency(config: &Config) -> Result<Option<Concurrency>, String> {
    let is_adaptive = config.concurrency_adaptive.unwrap_or(false);
    match config.concurrency_max {
        Some(max) => {
            let waiting_max = config.waiting_max.unwrap_or(WAITING_MAX);
            Ok(Some(Concurrency { max, waiting_max, is_adaptive }))
        }
        None if is_adaptive => {
            Err("concurrency_adaptive is set and concurrency_max, up to which it may go, is not".into())
        }
        None if config.waiting_max.is_some() => {
            Err("waiting_max has no effect without concurrency_max: nobody waits; remove it, or set concurrency_max"
                .into())
        }
        None => Ok(None),
    }
}

/// `waiting_max` where it is not set.
const WAITING_MAX: usize = 100;

/// Names that every client accepts: 1 to 64 of `A-Z a-z 0-9 _ . / -`.
fn check_name(name: &str) -> Result<(), String> {
    let good = |b: u8| b.is_ascii_alphanumeric() || b"_./-".contains(&b);
    if (1..=64).contains(&name.len()) && name.bytes().all(good) {
        return Ok(());
    }
    Err(format!("{name:?} is no name for a tool: use 1 to 64 letters, digits, '_', '.', '/' or '-'"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::call::Ctx;

    #[test]
    fn a_tool_stays_where_it_was_when_others_change() {
        let tool = |name: &'static str| Tool::new(name, "d", Lane::Inline, |(): (), _: Ctx| "x");
        let configs = |spread| {
            let placed = Config { spread: Some(spread), ..Config::default() };
            BTreeMap::from([("t".to_owned(), placed)])
        };
        let registry = Registry::new(vec![tool("t"), tool("u")], &configs(1), 1000).expect("a registry");
        let here =
            |name: &str| registry.snapshot().get(name).expect("it is there").placement.as_ref().map(|p| p.is_here());
        assert_eq!((here("t"), here("u")), (Some(true), None));
        registry.snapshot().get("t").and_then(|t| t.placement.as_ref()).expect("placed").set_here(false);
        assert!(!registry.snapshot().get("t").expect("it is there").needs_no_waiting(), "it runs elsewhere");
        registry.replace(vec![tool("t"), tool("v")], &configs(1), 1000).expect("others");
        assert_eq!((here("t"), here("v")), (Some(false), None));
        let snapshot = registry.snapshot();
        let listed = snapshot.ordered().iter().find(|served| served.tool.name() == "t").expect("listed");
        assert!(Arc::ptr_eq(listed, snapshot.get("t").expect("it is there")), "one handle");
        registry.replace(vec![tool("t")], &configs(2), 1000).expect("another wish");
        assert_eq!(here("t"), Some(true), "until it is said otherwise");
    }
}
