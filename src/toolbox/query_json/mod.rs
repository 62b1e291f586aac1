//! `query_json`: jq programs over a JSON file, JSON Lines, or a value that the agent sends along. This file is the
//! tool: what it takes, the thread that a program runs on, and how results become an answer. `program` compiles,
//! `value` and its neighbours are what programs work on, `meter` bounds what they use.

mod access;
mod arithmetic;
mod json;
mod meter;
mod program;
mod regex;
mod value;

#[cfg(test)]
mod tests;

use std::{io::Read, panic::resume_unwind, sync::Arc, thread};

use jaq_core::{Ctx as Context, Vars};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, value::RawValue};

use self::{
    meter::{STACK_BYTES, Stop},
    program::{Data, Metered},
    value::Val,
};
use crate::{
    call::{Ctx, Lane},
    error::CallError,
    tool::{Json, Tool},
    toolbox::{
        output::{Room, clipped, stopped},
        root::Root,
    },
    units::ByteSize,
};

const RESULTS_MAX: u64 = 10_000;
/// How much of an error of the program is told; it may quote a value.
const FAULT_BYTES_MAX: usize = 600;

const DESCRIPTION: &str = "Runs a jq program over a JSON file of the served folder (or JSON Lines: the program runs \
    once per line), or over a value given as `json`. Use it to pick, filter, count or reshape instead of reading a \
    large file. Not sure what is in it? Start with `keys`, `type`, `length` or `.[0]`. When `more` is true, call again \
    with `skip` set to `next_skip`. There is no env, input, import or date of the host's zone; a recursive def takes \
    its parameters as values ($x).";

/// Runs jq programs.
#[derive(Debug)]
pub(super) struct QueryJson {
    pub(super) root: Arc<Root>,
    pub(super) output_bytes_max: usize,
    pub(super) file_bytes_max: ByteSize,
    pub(super) memory_bytes_max: ByteSize,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Args {
    /// The jq program, such as `.items[] | select(.price > 10) | .name`.
    #[schemars(length(min = 1, max = 8000))]
    program: String,
    /// Path of the JSON or JSON Lines file, relative to the served folder.
    #[serde(default)]
    path: String,
    /// A value to run the program over instead of a file.
    #[serde(default, deserialize_with = "given")]
    json: Option<Value>,
    /// Runs the program once over an array of all values in the file, as for JSON Lines.
    #[serde(default)]
    slurp: bool,
    /// Results to return at most.
    #[serde(default = "results_max_default")]
    #[schemars(range(min = 1, max = 10_000))]
    results_max: u64,
    /// Results to leave out at the beginning, to get the next page.
    #[serde(default)]
    skip: u64,
}

/// Tells a value that is null from none.
fn given<'de, D: serde::Deserializer<'de>>(value: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(value).map(Some)
}

fn results_max_default() -> u64 {
    200
}

#[derive(Debug, Default, Serialize, JsonSchema)]
struct Results {
    /// What the program yields, in order.
    #[schemars(with = "Vec<Value>")]
    results: Vec<Box<RawValue>>,
    /// Whether it yields more.
    more: bool,
    /// The `skip` that gets it.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_skip: Option<u64>,
}

impl QueryJson {
    pub(super) fn tool(self) -> Tool {
        Tool::new("query_json", DESCRIPTION, Lane::Pool, move |args: Args, ctx: Ctx| self.query(&args, &ctx).map(Json))
            .title("Query JSON with jq")
            .read_only()
            .idempotent()
            .closed_world()
    }

    fn query(&self, args: &Args, ctx: &Ctx) -> Result<Results, CallError> {
        if ctx.is_cancelled() {
            return Err(stopped(ctx));
        }
        let input = match (args.path.as_str(), &args.json) {
            ("", None) => {
                return Err(CallError::tool(
                    "nothing to query: give `path`, a file of the served folder, or `json`, a value (null to run without one)",
                ));
            }
            ("", Some(json)) => serde_json::to_vec(json).map_err(|error| CallError::tool(error.to_string()))?,
            (path, None) => self.read(path)?,
            _ => return Err(CallError::tool("`path` and `json` cannot be queried together; give one of them")),
        };
        // A thread of its own, for a stack of known size and for values that never leave it. It is bounded by the
        // worker that waits for it.
        thread::scope(|scope| {
            let memory_max = self.memory_bytes_max.as_usize();
            let run = move || {
                meter::start(ctx, memory_max);
                self.run(args, &input)
            };
            let thread = thread::Builder::new().name("query_json".into()).stack_size(STACK_BYTES);
            let running = thread.spawn_scoped(scope, run).map_err(|error| {
                tracing::warn!(%error, "no thread for query_json");
                CallError::tool("the server has no thread left to run the program on; try again in a moment")
            })?;
            running.join().unwrap_or_else(|ended| match ended.downcast::<Stop>() {
                Ok(why) => Err(self.explain(*why, ctx)),
                Err(panic) => resume_unwind(panic), // a fault of ours: the worker reports it like any other
            })
        })
    }

    fn read(&self, path: &str) -> Result<Vec<u8>, CallError> {
        let (file, identity) = self.root.open_file(path)?;
        let max = self.file_bytes_max.0;
        let too_large = |bytes: u64| {
            CallError::tool(format!(
                "{path:?} has {bytes} bytes, more than the {max} that are read whole; use search_text or read_file on it"
            ))
        };
        if identity.size > max {
            return Err(too_large(identity.size));
        }
        let mut text = Vec::with_capacity(usize::try_from(identity.size).unwrap_or(0) + 1);
        file.take(max + 1)
            .read_to_end(&mut text)
            .map_err(|error| CallError::tool(format!("{path:?} could not be read: {error}; try again")))?;
        if text.len() as u64 > max {
            return Err(too_large(text.len() as u64));
        }
        if text.starts_with(b"\xEF\xBB\xBF") {
            text.drain(..3);
        }
        Ok(text)
    }

    fn run(&self, args: &Args, input: &[u8]) -> Result<Results, CallError> {
        let filter = program::compile(&args.program).map_err(CallError::Tool)?;
        let _input_counted = meter::Charge::new(input.len());
        let what = if args.path.is_empty() { "json".into() } else { format!("{:?}", args.path) };
        let reader = json::Reader::default();
        let mut source = serde_json::Deserializer::from_slice(input);
        let mut values = std::iter::from_fn(|| reader.next(&mut source))
            .map(|value| value.map_err(|error| CallError::tool(json::fault(&what, &error))));
        let mut page = Page::new(args, self.output_bytes_max);
        if args.slurp {
            let all = values.collect::<Result<Val, _>>()?;
            page.fill(&filter, all)?;
        } else {
            while !page.results.more
                && let Some(value) = values.next()
            {
                page.fill(&filter, value?)?;
            }
        }
        Ok(page.results)
    }

    fn explain(&self, why: Stop, ctx: &Ctx) -> CallError {
        CallError::tool(match why {
            Stop::Cancelled => return stopped(ctx),
            Stop::Memory => format!(
                "the program needs more than the {} of memory that a call may take; select less of the value, avoid \
                 collecting into arrays, or use limit(n; ...). A file takes several times its size when it is read: \
                 when even `.[0]` needs too much, use search_text or read_file on it, or ask the operator to raise \
                 toolbox.json_memory_bytes_max",
                self.memory_bytes_max
            ),
            Stop::Recursion => {
                "the program calls functions too deep inside each other; does a recursion not end? Use recurse, while, \
                 until or reduce"
                    .into()
            }
            Stop::Nesting => "the program builds arrays or objects nested too deep; does a recursion not end?".into(),
        })
    }
}

/// Results of one answer as they come.
struct Page {
    results: Results,
    room: Room,
    skip: u64,
    skip_left: u64,
    results_max: usize,
}

impl Page {
    fn new(args: &Args, bytes_max: usize) -> Self {
        let results_max = usize::try_from(args.results_max.clamp(1, RESULTS_MAX)).unwrap_or(usize::MAX);
        let room = Room::new(bytes_max);
        Self { results: Results::default(), room, skip: args.skip, skip_left: args.skip, results_max }
    }

    /// Adds what the program yields for `input`, until the page is full.
    fn fill(&mut self, filter: &jaq_core::Filter<Metered>, input: Val) -> Result<(), CallError> {
        let context = Context::<Metered>::new(Data::new(&filter.lut), Vars::new([]));
        for result in filter.id.run((context, input)) {
            meter::tick();
            let value = match result {
                Ok(value) => value,
                Err(exception) => return Err(failed(exception)),
            };
            if self.skip_left > 0 {
                self.skip_left -= 1;
                continue;
            }
            if self.results.results.len() == self.results_max || !self.add(&value)? {
                self.results.more = true;
                self.results.next_skip = Some(self.skip.saturating_add(self.results.results.len() as u64));
                break;
            }
        }
        Ok(())
    }

    fn add(&mut self, value: &Val) -> Result<bool, CallError> {
        let json = json::write(value, self.room.left()).filter(|json| self.room.take(json.len() + 1));
        match json {
            Some(json) => {
                let json = RawValue::from_string(json).map_err(|error| {
                    tracing::error!(%error, "a result was not written as JSON");
                    CallError::Internal
                })?;
                self.results.results.push(json);
                Ok(true)
            }
            None if self.results.results.is_empty() => Err(CallError::tool(format!(
                "the result (of type {}) is longer than an answer holds ({} bytes); select a part of it: see its shape \
                 with `keys` or `length`, take `.[:10]` of an array, or yield items one by one with `.[]`",
                value.kind(),
                self.room.left()
            ))),
            None => Ok(false),
        }
    }
}

/// What the agent is told when the program fails.
fn failed(exception: jaq_core::Exn<'_, Val>) -> CallError {
    match exception.get_err() {
        Ok(error) => CallError::tool(format!(
            "the program failed: {}; mend it, or skip such values with `?` or `try`",
            clipped(&error.to_string(), FAULT_BYTES_MAX)
        )),
        Err(_) => CallError::tool("the program breaks to a label that it has left; mend it"),
    }
}
