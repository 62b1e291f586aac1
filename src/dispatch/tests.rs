//! Calls on their way to a tool: what they cost, what is found out once, and what the cache is to them.

use std::time::{Duration, Instant};

use serde_json::{Map, json};
use tokio::sync::{mpsc, oneshot};

use super::*;
use crate::{
    call::{Caller, ClientCapabilities, Deadline, Lane, Raw},
    input::{Answers, Defers, Exchange, Input, Parks, Waiting},
    outbox::{LogLevel, Outbox},
    telemetry::calls::Cached,
};

fn dispatch(registry: Registry) -> Dispatch {
    let sizes = pool::Sizes { threads: 1, threads_max: 1, io_threads: 1 };
    let pool = Pool::start(&pool::Config::default(), sizes).expect("a pool");
    Dispatch::new(registry, &cache::Config::default(), None, pool, 1000)
}

fn ctx() -> Ctx {
    Ctx::new(Caller::ANONYMOUS, Deadline::after(Instant::now(), 1000), ClientCapabilities::default())
}

/// Each call that waits keeps room for this, so a large one costs a large host dearly.
#[test]
fn a_call_takes_little_room() {
    let tool = Tool::new("t", "d", Lane::Inline, |(): (), _| "x");
    let registry = Registry::new(vec![tool], &BTreeMap::new(), 1000).expect("a registry");
    let tool = Arc::clone(registry.snapshot().get("t").expect("the tool"));
    let dispatch = dispatch(registry);
    let call = dispatch.call(&tool, Value::Null.into(), ctx());
    assert!(size_of_val(&call) <= 2560, "{} bytes", size_of_val(&call));
}

#[derive(serde::Deserialize, schemars::JsonSchema)]
struct Nothing {}

#[derive(serde::Deserialize, schemars::JsonSchema)]
struct N {
    n: u32,
}

/// A dispatch with this one tool.
fn serving(tool: Tool, config: ToolConfig) -> (Dispatch, Arc<ServedTool>) {
    let name = tool.name().to_owned();
    let registry = Registry::new(vec![tool], &BTreeMap::from([(name.clone(), config)]), 1000).expect("a registry");
    let tool = Arc::clone(registry.snapshot().get(&name).expect("the tool"));
    (dispatch(registry), tool)
}

#[tokio::test]
async fn what_all_share_stays_shared_after_one_callers_results_are_forgotten() {
    let config = ToolConfig { cache_ttl_s: Some(60), cache_scope: Some(CacheScope::Public), ..ToolConfig::default() };
    let tool = Tool::new("t", "d", Lane::Inline, |_: Nothing, _: Ctx| "x").read_only();
    let (dispatch, tool) = serving(tool, config);
    let served = async |caller: &str| {
        let ctx = Ctx { caller: Caller::named(caller), ..ctx() };
        dispatch.call(&tool, json!({}).into(), ctx).await.map(|answered| answered.served)
    };
    dispatch.invalidate(None, None, Some("ann")).expect("known");
    assert_eq!(served("ann").await, Ok(Served::Miss));
    for caller in ["bob", "ann", "bob"] {
        assert!(matches!(served(caller).await, Ok(Served::Hit { .. })), "{caller}");
    }
    dispatch.invalidate(None, None, Some("bob")).expect("known");
    assert!(matches!(served("bob").await, Ok(Served::Hit { .. })), "they are not one caller's to be forgotten");
}

/// Has an old result of the call without arguments kept, from before.
async fn keep_old(dispatch: &Dispatch, tool: &Arc<ServedTool>) {
    let policy = CachePolicy { ttl_s: 0, ..tool.cache.expect("its results are kept") };
    let key = CacheKey::new(tool, &json!({}), policy.scope, &Caller::ANONYMOUS);
    let asked = Asked { meter: None, ..asked(tool, key, policy, &Caller::ANONYMOUS) };
    let kept = dispatch.core.cache.run(&asked, std::future::ready(Ok(Reply::text("old"))), false, || false).await;
    assert_eq!(kept.map(|answered| answered.served), Ok(Served::Miss));
}

/// Hits, misses, old results and coalesced calls.
fn counted(tool: &ServedTool) -> [u64; 4] {
    let meter = tool.tool.work.meter.as_ref().expect("a meter");
    Cached::REQUESTS.map(|(what, _)| meter.cached_count(what))
}

#[tokio::test]
async fn who_waits_for_anothers_run_past_its_time_gets_the_old_result_too() {
    let config = ToolConfig { cache_ttl_s: Some(60), stale_if_error_s: Some(60), ..ToolConfig::default() };
    let tool = Tool::new_async("t", "d", |_: Nothing, _: Ctx| std::future::pending::<&str>());
    let (dispatch, tool) = serving(tool.read_only(), config);
    keep_old(&dispatch, &tool).await;
    let call = |ctx: Ctx| dispatch.call(&tool, json!({}).into(), ctx);
    let mut runs = std::pin::pin!(call(ctx()));
    assert!(futures_util::poll!(runs.as_mut()).is_pending());
    let late = Ctx { deadline: Deadline::after(Instant::now(), 0), ..ctx() };
    let old = call(late).await.expect("the old one");
    assert_eq!((old.reply, old.served), (Reply::text("old"), Served::Stale { age_s: 0 }));
    assert_eq!(counted(&tool), [0, 0, 1, 0]);
}

/// A client on whose stream everything may be said.
#[derive(Debug)]
struct Nobody;

impl Answers for Nobody {
    fn expect(&self) -> Option<(u64, oneshot::Receiver<Result<Value, Value>>)> {
        None
    }

    fn forget(&self, _: u64) {}
}

#[tokio::test]
async fn what_was_said_or_asked_on_the_way_is_its_clients_alone_and_what_might_have_been_is_not() {
    let config = ToolConfig { cache_ttl_s: Some(60), ..ToolConfig::default() };
    let tool = Tool::new_async("t", "d", |which: N, ctx: Ctx| async move {
        match which.n {
            0 => {}
            1 => ctx.progress(1.0, None, ""),
            2 => ctx.log(LogLevel::Error, &"no"),
            _ => drop(ctx.ask("who", Input::roots()).await),
        }
        "done"
    });
    let (dispatch, tool) = serving(tool.read_only(), config);
    let call = async |n: u32, is_open: bool| {
        let mut ctx = Ctx { client: ClientCapabilities::ROOTS, ..ctx() };
        if is_open {
            ctx.outbox = Some(Arc::new(Outbox::new(true, Some(LogLevel::Info), 1024)));
            ctx.exchange = Exchange::Stream(Arc::new(Nobody));
        }
        dispatch.call(&tool, json!({ "n": n }).into(), ctx).await.map(|answered| answered.served)
    };
    for n in 1..=3 {
        assert_eq!((call(n, true).await, call(n, true).await), (Ok(Served::Fresh), Ok(Served::Fresh)), "{n}");
    }
    assert_eq!(call(0, true).await, Ok(Served::Miss));
    for is_open in [true, false] {
        assert!(matches!(call(0, is_open).await, Ok(Served::Hit { .. })));
    }
    assert_eq!(counted(&tool), [2, 7, 0, 0]);
}

#[tokio::test]
async fn a_call_that_may_ask_gets_the_old_result_for_a_failure_too() {
    let config = ToolConfig { cache_ttl_s: Some(60), stale_if_error_s: Some(60), ..ToolConfig::default() };
    let tool = Tool::new("t", "d", Lane::Inline, |_: Nothing, _: Ctx| Err::<&str, _>("no"));
    let (dispatch, tool) = serving(tool.read_only(), config);
    keep_old(&dispatch, &tool).await;
    let ctx = Ctx { exchange: Exchange::Stream(Arc::new(Nobody)), ..ctx() };
    let old = dispatch.call(&tool, json!({}).into(), ctx).await.expect("the old one");
    assert_eq!((old.reply, old.served), (Reply::text("old"), Served::Stale { age_s: 0 }));
    assert_eq!(counted(&tool), [0, 0, 1, 0]);
}

/// A hosted handler may answer by what it reads in the request, such as a header that says for which tenant.
#[tokio::test]
async fn what_is_made_anew_is_made_of_a_request_like_the_one_that_wants_it() {
    let config = ToolConfig { cache_ttl_s: Some(60), stale_while_revalidate_s: Some(60), ..ToolConfig::default() };
    let (seen, mut requests) = mpsc::channel(1);
    let mut tool = Tool::new("t", "d", Lane::Inline, move |_: Nothing, ctx: Ctx| {
        let _ = seen.try_send(ctx.raw);
        "new"
    });
    Arc::get_mut(&mut tool.work).expect("nobody else's").wants_raw = true;
    let (dispatch, tool) = serving(tool.read_only(), config);
    keep_old(&dispatch, &tool).await;
    let (head, ()) = http::Request::builder().header("x-tenant", "blue").body(()).expect("a request").into_parts();
    let meta = json!({ PROGRESS_TOKEN: 1, "x": 2 }).as_object().expect("an object").clone();
    let raw = Raw { version: "2025-11-25", parts: Some(head), meta, ..Raw::default() };
    let ctx = Ctx { raw: Some(Box::new(raw)), ..ctx() };
    let old = dispatch.call(&tool, json!({}).into(), ctx).await.map(|answered| answered.served);
    assert_eq!(old, Ok(Served::Stale { age_s: 0 }));
    let raw = requests.recv().await.flatten().expect("the request");
    assert_eq!((raw.version, raw.meta), ("2025-11-25", json!({ "x": 2 }).as_object().expect("an object").clone()));
    assert_eq!(raw.parts.expect("a head").headers["x-tenant"], "blue");
}

/// A call that became a task.
#[derive(Debug)]
struct Task;

impl Defers for Task {
    fn begin(&self) -> Waiting<'_, ()> {
        Box::pin(async { Ok(()) })
    }

    fn task(&self) -> Option<Arc<dyn Parks>> {
        Some(Arc::new(Self))
    }

    fn is_cancelled(&self) -> bool {
        false
    }

    fn extra_time(&self) -> Duration {
        Duration::ZERO
    }
}

impl Parks for Task {
    fn ask(&self, _: Map<String, Value>) -> Waiting<'_, Map<String, Value>> {
        Box::pin(async { Err(CallError::Cancelled) })
    }
}

/// A task is asked by another way than the call, so nothing of that is seen here.
#[tokio::test]
async fn what_came_of_a_task_is_kept_for_nobody() {
    let config = ToolConfig { cache_ttl_s: Some(60), ..ToolConfig::default() };
    let tool = Tool::new("t", "d", Lane::Inline, |_: Nothing, _: Ctx| "x").read_only();
    let (dispatch, tool) = serving(tool, config);
    let deferred: [Option<Arc<dyn Defers>>; 2] = [Some(Arc::new(Task)), None];
    for (deferred, served) in deferred.into_iter().zip([Served::Fresh, Served::Miss]) {
        let ctx = Ctx { deferred, ..ctx() };
        assert_eq!(dispatch.call(&tool, json!({}).into(), ctx).await.map(|answered| answered.served), Ok(served));
    }
}

/// Arguments of a call are checked and walked once: where a kept result is looked for, or where there is none.
#[tokio::test]
async fn what_was_found_out_about_arguments_is_not_found_out_again() {
    let kept = ToolConfig { cache_ttl_s: Some(60), cache_not_read_only: Some(true), ..ToolConfig::default() };
    let tool = Tool::new("t", "d", Lane::Inline, |_: N, _: Ctx| "x");
    let registry = Registry::new(vec![tool], &BTreeMap::from([("t".into(), kept)]), 1000).expect("a registry");
    let tool = Arc::clone(registry.snapshot().get("t").expect("the tool"));
    let dispatch = dispatch(registry);
    let looked_for = |n: Value| {
        let mut arguments = Arguments::from(json!({ "n": n }));
        let kept = dispatch.kept(&tool, &mut arguments, &Caller::ANONYMOUS);
        (arguments, kept)
    };
    let (wrong, _) = looked_for(json!("x"));
    assert!(wrong.key.is_none(), "what is not good has none");
    assert!(matches!(dispatch.call(&tool, wrong, ctx()).await, Err(CallError::Tool(_))));
    let (one, none) = looked_for(json!(1));
    assert!(none.is_none());
    let (two, _) = looked_for(json!(2));
    let mixed = Arguments { value: two.value, key: one.key };
    assert_eq!(dispatch.call(&tool, mixed, ctx()).await.map(|answered| answered.served), Ok(Served::Miss));
    assert!(looked_for(json!(1)).1.is_some(), "it is kept under the key that was there");
    assert!(looked_for(json!(2)).1.is_none());
}
