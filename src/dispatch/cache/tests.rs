//! The cache by itself: what is kept and for how long, one run for many, old results, invalidation; and random schedules
//! against the rules.

use std::{
    collections::BTreeMap,
    future::poll_fn,
    pin::Pin,
    sync::atomic::{AtomicU32, Ordering},
    task::Poll,
    time::Duration,
};

use serde_json::json;

use super::*;
use crate::{
    call::{Caller, Ctx, Lane, Reply},
    error::CallError,
    tool::{CacheScope, Outcome, Registry, Tool, registry::ServedTool},
};

pub(super) fn tool() -> Arc<ServedTool> {
    let tool = Tool::new("t", "d", Lane::Inline, |(): (), _: Ctx| "x");
    let registry = Registry::new(vec![tool], &BTreeMap::new(), 1000).expect("a registry");
    Arc::clone(registry.snapshot().get("t").expect("the tool"))
}

const POLICY: CachePolicy = CachePolicy {
    ttl_s: 60,
    scope: CacheScope::Caller,
    is_alone: false,
    stale_while_revalidate_s: None,
    stale_if_error_s: None,
    error_ttl_s: None,
};

/// A call number `n` of a caller.
fn asked(n: u64, caller: &'static str, policy: CachePolicy) -> Asked<'static> {
    let key = CacheKey::new(&tool(), &json!({ "n": n }), policy.scope, &Caller::named(caller));
    Asked { key, tool: "t", caller: Some(caller), policy, meter: None }
}

fn cache() -> Cache {
    Cache::new(&Config { ttl_jitter_percent: 0, ..Config::default() }, None)
}

impl Cache {
    /// A call that says and asks nothing.
    async fn call(&self, asked: &Asked<'_>, run: impl Future<Output = Outcome>) -> Result<Answered, CallError> {
        self.run(asked, run, false, || false).await
    }
}

async fn ok(text: &str) -> Outcome {
    tokio::task::yield_now().await;
    Ok(Reply::text(text))
}

fn found(cache: &Cache, asked: &Asked<'_>, later_s: u64) -> Option<Answered> {
    match cache.find(asked, later(later_s)) {
        Found::Fresh(answered) | Found::Stale(answered, _) => Some(answered),
        Found::Nothing => None,
    }
}

fn later(seconds: u64) -> Instant {
    Instant::now() + Duration::from_secs(seconds)
}

/// Polls once.
async fn poll_once<F: Future + Unpin>(future: &mut F) -> Option<F::Output> {
    poll_fn(|cx| {
        Poll::Ready(match Pin::new(&mut *future).poll(cx) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        })
    })
    .await
}

#[tokio::test]
async fn a_thousand_equal_calls_run_once_also_when_the_time_is_over() {
    let (cache, runs) = (cache(), AtomicU32::new(0));
    let call = asked(1, "a", CachePolicy { ttl_s: 0, ..POLICY });
    for round in 1..=2 {
        let mut calls: Vec<_> = (0..1000)
            .map(|_| {
                let run = async {
                    runs.fetch_add(1, Ordering::Relaxed);
                    ok("x").await
                };
                Box::pin(cache.call(&call, run))
            })
            .collect();
        for call in &mut calls {
            assert!(poll_once(call).await.is_none());
        }
        for call in calls {
            assert_eq!(call.await.map(|answered| answered.reply), Ok(Reply::text("x")));
        }
        assert_eq!(runs.load(Ordering::Relaxed), round);
        assert_eq!(cache.flights.len(), 0);
    }
}

#[tokio::test]
async fn errors_questions_and_large_results_are_not_kept() {
    let cache = cache();
    let large = Reply::text(&"x".repeat(2 << 20));
    let outcomes = [Ok(Reply::error("no")), Err(CallError::Internal), Err(CallError::Tool("no".into())), Ok(large)];
    for (n, outcome) in (0..).zip(outcomes) {
        let call = asked(n, "a", POLICY);
        let answered = cache.call(&call, std::future::ready(outcome.clone())).await;
        assert_eq!(answered.map(|a| a.reply), outcome);
        assert!(found(&cache, &call, 0).is_none());
    }
}

#[tokio::test]
async fn a_failure_is_kept_for_its_time_however_the_tool_says_it() {
    let cache = cache();
    for (n, outcome) in (0..).zip([Ok(Reply::error("no")), Err(CallError::Tool("no".into()))]) {
        let call = asked(n, "a", CachePolicy { error_ttl_s: Some(5), ..POLICY });
        let failed = cache.call(&call, std::future::ready(outcome.clone())).await.expect("a result that says so");
        assert_eq!((failed.reply, failed.served), (Reply::error("no"), Served::Miss));
        assert_eq!(found(&cache, &call, 4).map(|a| a.reply), Some(Reply::error("no")), "{outcome:?}");
        assert!(found(&cache, &call, 6).is_none());
    }
}

#[tokio::test]
async fn a_failure_that_is_kept_takes_no_good_result_away() {
    let failures = [Ok(Reply::error("no")), Err(CallError::Tool("no".into()))];
    let policy = CachePolicy { ttl_s: 0, stale_if_error_s: Some(20), error_ttl_s: Some(5), ..POLICY };
    for (n, failure) in (0..).zip(failures) {
        let (cache, call) = (cache(), asked(n, "a", policy));
        let _ = cache.call(&call, ok("old")).await;
        let instead = cache.call(&call, std::future::ready(failure.clone())).await.expect("the old one");
        assert_eq!((instead.reply, instead.served), (Reply::text("old"), Served::Stale { age_s: 0 }), "{failure:?}");
        assert!(matches!(cache.find(&call, later(4)), Found::Stale(Answered { reply, .. }, None) if !reply.is_error()));
        assert!(found(&cache, &call, 6).is_none(), "the failure counts no more: the tool is tried");
        let _ = cache.call(&call, ok("new")).await;
        assert_eq!(cache.valid(&call).map(|kept| kept.reply.clone()), Some(Reply::text("new")));
        // A refresh is the same.
        let call = Asked { policy: CachePolicy { stale_while_revalidate_s: Some(60), ..policy }, ..call };
        let _ = cache.call(&call, ok("newer")).await;
        assert!(!cache.refresh(&call, std::future::ready(failure)).await);
        assert!(matches!(cache.find(&call, later(4)), Found::Stale(Answered { reply, .. }, None) if !reply.is_error()));
        assert!(matches!(cache.find(&call, later(6)), Found::Stale(_, Some(_))), "and then another is tried");
        // Where nothing is good for a failure, the failure is what there is.
        cache.invalidate(Which::All);
        let _ = cache.call(&call, std::future::ready(Err(CallError::Tool("no".into())))).await;
        assert!(found(&cache, &call, 0).is_some_and(|answered| answered.reply.is_error()));
    }
}

#[tokio::test]
async fn when_who_runs_leaves_another_runs_however_often() {
    let cache = cache();
    let call = asked(1, "a", POLICY);
    for _ in 0..1000 {
        let mut leader = Box::pin(cache.call(&call, std::future::pending()));
        assert!(poll_once(&mut leader).await.is_none());
    }
    let mut leader = Box::pin(cache.call(&call, std::future::pending()));
    assert!(poll_once(&mut leader).await.is_none());
    let mut follower = Box::pin(cache.call(&call, ok("mine")));
    assert!(poll_once(&mut follower).await.is_none());
    drop(leader);
    assert_eq!(follower.await.map(|a| a.reply), Ok(Reply::text("mine")));
}

/// An outcome after a moment, so that others can come to wait for it.
async fn soon(outcome: Outcome) -> Outcome {
    tokio::task::yield_now().await;
    outcome
}

#[tokio::test]
async fn what_befell_one_call_is_no_answer_to_another() {
    let (cache, call) = (cache(), asked(1, "a", POLICY));
    for error in [
        CallError::Cancelled,
        CallError::DeadlineBeforeStart,
        CallError::TimedOut { limit_ms: 1 },
        CallError::Overloaded { retry_after_s: 1 },
        CallError::MissingCapability(crate::call::ClientCapabilities::ROOTS),
    ] {
        let failing = soon(Err(error.clone()));
        let (first, second) = tokio::join!(cache.call(&call, failing), cache.call(&call, ok("fine")));
        assert_eq!(first.map(|a| a.reply), Err(error));
        assert_eq!(second.map(|a| a.reply), Ok(Reply::text("fine")));
        cache.invalidate(Which::All);
    }
}

/// Who waits for a run that fails does not wait for all that run after it, too.
#[tokio::test]
async fn what_the_tool_does_is_told_to_all_and_of_a_refusal_all_are_free() {
    let (cache, call) = (cache(), asked(1, "a", POLICY));
    let rpc = CallError::Rpc { code: 1, message: "no".into(), data: None };
    let refused = CallError::Overloaded { retry_after_s: 1 };
    for (error, expected) in [(CallError::Internal, 1), (CallError::Tool("no".into()), 1), (rpc, 1), (refused, 10)] {
        let runs = AtomicU32::new(0);
        let mut calls: Vec<_> = (0..10)
            .map(|_| {
                let run = async {
                    runs.fetch_add(1, Ordering::Relaxed);
                    soon(Err(error.clone())).await
                };
                Box::pin(cache.call(&call, run))
            })
            .collect();
        for call in &mut calls {
            assert!(poll_once(call).await.is_none());
        }
        assert_eq!(runs.load(Ordering::Relaxed), 1);
        let first = calls.remove(0).await;
        assert_eq!(first.map(|a| a.reply), Err(error.clone()));
        for call in &mut calls {
            let heard = poll_once(call).await;
            assert_eq!(heard.is_some(), expected == 1, "{error}: at once");
            assert!(heard.is_none_or(|heard| heard.map(|a| a.reply) == Err(error.clone())));
        }
        assert_eq!(runs.load(Ordering::Relaxed), expected, "{error}");
    }
}

#[tokio::test]
async fn old_results_are_served_while_a_new_one_is_made_and_when_none_can_be() {
    let cache = cache();
    let policy = CachePolicy { ttl_s: 0, stale_while_revalidate_s: Some(10), stale_if_error_s: Some(20), ..POLICY };
    let call = asked(1, "a", policy);
    let _ = cache.call(&call, ok("old")).await;
    let served = found(&cache, &call, 5).expect("old").served;
    assert_eq!(served, Served::Stale { age_s: 5 });
    assert!(found(&cache, &call, 11).is_none(), "past the time in which it is refreshed");
    assert!(cache.refresh(&call, ok("new")).await);
    assert_eq!(found(&cache, &call, 5).map(|a| a.reply), Some(Reply::text("new")));
    assert!(!cache.refresh(&call, std::future::ready(Err(CallError::Internal))).await);
    let failed = cache.call(&call, std::future::ready(Err(CallError::Internal))).await.expect("the old one");
    assert_eq!((failed.reply, failed.served), (Reply::text("new"), Served::Stale { age_s: 0 }));
    let refused = cache.call(&call, std::future::ready(Err(CallError::InvalidParams("no".into())))).await;
    assert!(refused.is_err(), "a caller's fault is told");
}

#[tokio::test]
async fn what_is_invalidated_is_not_served_nor_kept_by_runs_under_way() {
    let cache = cache();
    let (call, other) = (asked(1, "a", POLICY), asked(2, "b", POLICY));
    for (which, spares_other) in
        [(Which::All, false), (Which::Tool("t"), false), (Which::Caller("a"), true), (Which::Key(call.key), true)]
    {
        let _ = cache.call(&call, ok("before")).await;
        let _ = cache.call(&other, ok("other")).await;
        cache.invalidate(which);
        assert!(found(&cache, &call, 0).is_none(), "{which:?}");
        assert_eq!(found(&cache, &other, 0).is_some(), spares_other, "{which:?}");
        let mut running = Box::pin(cache.call(&call, ok("begun before")));
        assert!(poll_once(&mut running).await.is_none());
        cache.invalidate(which);
        let _ = running.await;
        assert!(found(&cache, &call, 0).is_none(), "{which:?} while it ran");
    }
}

/// What nobody is served any more takes no memory until its time is over.
#[tokio::test]
async fn the_memory_of_what_was_invalidated_with_everything_else_is_given_back() {
    let (cache, late) = (cache(), asked(2000, "a", POLICY));
    for n in 0..1000 {
        cache.call(&asked(n, "a", POLICY), ok("x")).await.expect("runs");
    }
    let mut running = Box::pin(cache.call(&late, ok("begun before")));
    assert!(poll_once(&mut running).await.is_none());
    cache.invalidate(Which::All);
    cache.call(&asked(1, "a", POLICY), ok("new")).await.expect("runs");
    running.await.expect("runs");
    cache.sweep();
    assert_eq!(cache.size().0, 1, "what is new stays, and what began before is not kept");
    assert_eq!(found(&cache, &asked(1, "a", POLICY), 0).map(|a| a.reply), Some(Reply::text("new")));
}

/// A run that nobody may wait for is kept like any other, unless what it came to is its caller's alone.
#[tokio::test]
async fn a_run_by_itself_is_kept_when_it_was_nobodys_own_and_not_when_it_was_invalidated() {
    for (is_own, served) in [(false, Served::Miss), (true, Served::Fresh)] {
        let (cache, call) = (cache(), asked(1, "a", POLICY));
        let answered = cache.run(&call, ok("x"), true, || is_own).await;
        assert_eq!(answered.map(|answered| answered.served), Ok(served));
        assert_eq!(found(&cache, &call, 0).is_some(), !is_own);
    }
    let (cache, call) = (cache(), asked(1, "a", POLICY));
    for which in [Which::All, Which::Tool("t"), Which::Caller("a"), Which::Key(call.key)] {
        let mut running = Box::pin(cache.run(&call, ok("begun before"), true, || false));
        assert!(poll_once(&mut running).await.is_none());
        cache.invalidate(which);
        assert_eq!(running.await.map(|answered| answered.served), Ok(Served::Fresh), "{which:?}");
        assert!(found(&cache, &call, 0).is_none(), "{which:?}");
    }
    // What came of asking one client is nothing for who waited, and is not kept.
    let (asks, waits) = (cache.run(&call, ok("mine"), false, || true), cache.call(&call, ok("theirs")));
    let (asks, waits) = tokio::join!(asks, waits);
    assert_eq!(asks.map(|a| (a.reply, a.served)), Ok((Reply::text("mine"), Served::Fresh)));
    assert_eq!(waits.map(|a| (a.reply, a.served)), Ok((Reply::text("theirs"), Served::Miss)));
    assert_eq!(found(&cache, &call, 0).map(|a| a.reply), Some(Reply::text("theirs")));
}

#[tokio::test]
async fn who_comes_after_an_invalidation_waits_for_no_run_from_before_it() {
    let call = asked(1, "a", POLICY);
    for which in [Which::All, Which::Tool("t"), Which::Caller("a"), Which::Key(call.key)] {
        let cache = cache();
        let mut before = Box::pin(cache.call(&call, ok("old")));
        assert!(poll_once(&mut before).await.is_none());
        let mut waits = Box::pin(cache.call(&call, ok("not run")));
        assert!(poll_once(&mut waits).await.is_none());
        cache.invalidate(which);
        let mut after = Box::pin(cache.call(&call, ok("new")));
        assert!(poll_once(&mut after).await.is_none());
        assert_eq!(before.await.map(|answered| answered.reply), Ok(Reply::text("old")), "{which:?}");
        let mut joins = Box::pin(cache.call(&call, ok("not run either")));
        assert!(poll_once(&mut joins).await.is_none(), "the older run has not ended the younger one");
        for (call, text) in [(after, "new"), (joins, "new"), (waits, "old")] {
            assert_eq!(call.await.map(|answered| answered.reply), Ok(Reply::text(text)), "{which:?}");
        }
        assert_eq!(found(&cache, &call, 0).map(|answered| answered.reply), Some(Reply::text("new")), "{which:?}");
        assert_eq!(cache.flights.len(), 0);
    }
}

#[tokio::test]
async fn an_old_result_is_refreshed_by_one_and_after_a_failure_not_at_once() {
    let policy = CachePolicy { ttl_s: 0, stale_while_revalidate_s: Some(120), ..POLICY };
    let (cache, call) = (cache(), asked(1, "a", policy));
    cache.call(&call, ok("old")).await.expect("runs");
    let wants = |later_s: u64| match cache.find(&call, later(later_s)) {
        Found::Stale(_, refreshing) => refreshing.is_some(),
        _ => panic!("not stale"),
    };
    assert!(wants(61));
    let mut refresh = Box::pin(cache.refresh(&call, async {
        tokio::task::yield_now().await;
        Err(CallError::Internal)
    }));
    assert!(poll_once(&mut refresh).await.is_none());
    assert!(!wants(61), "somebody does");
    assert!(!refresh.await);
    let old = cache.valid(&call).expect("is kept");
    assert!(!old.is_due(Instant::now()), "the next is put off");
    old.put_off(later(69), REFRESH_PAUSE);
    assert!(!wants(69) && wants(71));
}

/// Every call counts once, by what served it.
#[tokio::test]
async fn the_counts_add_up_to_the_calls() {
    let (cache, meter) = (cache(), Arc::<CallMeter>::default());
    let counted = || {
        let of = |all: &[(Cached, &'static str)]| {
            all.iter().map(|(what, word)| (*word, meter.cached_count(*what))).collect::<BTreeMap<_, _>>()
        };
        (of(&Cached::REQUESTS), of(&Cached::REFRESHES))
    };
    let policy = CachePolicy { stale_if_error_s: Some(60), ..POLICY };
    let call = |n: u64, ttl_s: u64| Asked { meter: Some(&meter), ..asked(n, "a", CachePolicy { ttl_s, ..policy }) };
    let failing = || std::future::ready(Err(CallError::Internal));
    let (old, new) = (call(1, 0), call(2, 60));
    let _ = cache.call(&old, ok("x")).await; // miss
    assert!(cache.call(&old, failing()).await.is_ok()); // stale
    assert!(cache.give_up(&old, CallError::TimedOut { limit_ms: 1 }).is_ok()); // stale
    let _ = cache.call(&call(3, 60), std::future::ready(Err(CallError::Overloaded { retry_after_s: 1 }))).await; // miss
    let _ = tokio::join!(cache.call(&new, ok("x")), cache.call(&new, ok("x"))); // miss, coalesced
    let _ = cache.fresh(&new, Instant::now()); // hit
    let _ = cache.call(&new, ok("x")).await; // hit: kept between the look and the lead
    let (own, a_task) = (call(4, 60), Ok(Reply { kind: crate::call::Kind::Task, ..Reply::text("x") }));
    let _ = tokio::join!(cache.call(&own, soon(a_task.clone())), cache.call(&own, soon(a_task))); // miss, miss
    let (requests, _) = counted();
    assert_eq!(requests, BTreeMap::from([("hit", 2), ("miss", 5), ("stale", 2), ("coalesced", 1)]));
    // What is forgotten while it is made anew is not kept.
    let mut refresh = Box::pin(cache.refresh(&old, ok("y")));
    assert!(poll_once(&mut refresh).await.is_none());
    cache.invalidate(Which::Key(old.key));
    assert!(!refresh.await);
    assert!(cache.refresh(&old, ok("y")).await);
    assert_eq!(counted(), (requests, BTreeMap::from([("kept", 1), ("failed", 1)])));
}

#[tokio::test]
async fn a_failure_of_another_instance_takes_no_good_result_away() {
    let policy = CachePolicy { ttl_s: 0, stale_if_error_s: Some(20), error_ttl_s: Some(5), ..POLICY };
    let (cache, call) = (cache(), asked(1, "a", policy));
    let found = |reply: Reply| {
        let stamp = cache.generations.stamp(call.tool, call.caller);
        cache.or_old(&call, Kept::new(&call, reply, Instant::now(), later(5), stamp)).reply.clone()
    };
    assert_eq!(found(Reply::error("no")), Reply::error("no"), "there is nothing else");
    let _ = cache.call(&call, ok("old")).await;
    assert_eq!(found(Reply::text("new")), Reply::text("new"));
    assert!(matches!(cache.find(&call, later(4)), Found::Nothing));
    assert_eq!(found(Reply::error("no")), Reply::text("old"));
    assert!(matches!(cache.find(&call, later(4)), Found::Stale(_, None)), "for as long as the failure counts");
    assert!(matches!(cache.find(&call, later(6)), Found::Nothing));
}

#[tokio::test]
async fn jitter_shortens_and_never_lengthens() {
    let cache = Cache::new(&Config { ttl_jitter_percent: 50, ..Config::default() }, None);
    let mut gone = 0;
    for n in 0..200 {
        let call = asked(n, "a", POLICY);
        let _ = cache.call(&call, std::future::ready(Ok(Reply::text("x")))).await;
        assert!(found(&cache, &call, 29).is_some());
        assert!(found(&cache, &call, 60).is_none());
        gone += u32::from(found(&cache, &call, 45).is_none());
    }
    assert!((20..180).contains(&gone), "{gone} of 200 after three quarters of the time");
}

/// Random schedules of two callers, a few calls, failures, leavings and invalidations: nobody gets what is another's,
/// nothing is served that is older than it may be or invalidated, and no call runs twice at once.
#[tokio::test]
async fn random_schedules_break_no_rule() {
    const CALLERS: [&str; 2] = ["a", "b"];
    for seed in 1..=60_u64 {
        let mut random = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let mut next = |below: u64| {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            random % below
        };
        let cache = cache();
        let (running, most, now) = (AtomicU32::new(0), AtomicU32::new(0), AtomicU32::new(0));
        let mut floor = [[0_u64; 3]; 2]; // results from runs that began before this step are invalid
        let mut under_way: Vec<(usize, u64, UnderWay<'_>)> = Vec::new();
        for step in 1..=120_u64 {
            now.store(step as u32, Ordering::SeqCst);
            let (caller, n) = (next(2) as usize, next(3));
            match next(10) {
                0 => {
                    cache.invalidate(Which::Caller(CALLERS[caller]));
                    floor[caller] = [step; 3];
                }
                1 => {
                    cache.invalidate(Which::Key(asked(n, CALLERS[caller], POLICY).key));
                    floor[caller][n as usize] = step;
                }
                2 if !under_way.is_empty() => {
                    let at = next(under_way.len() as u64) as usize;
                    drop(under_way.swap_remove(at)); // its client leaves
                }
                3..=5 => {
                    let (pauses, fails) = (next(4), next(5) == 0);
                    let (running, most, now, cache) = (&running, &most, &now, &cache);
                    let call = Box::pin(async move {
                        let call = asked(n, CALLERS[caller], POLICY);
                        let run = async move {
                            let began = now.load(Ordering::SeqCst);
                            if n == 0 {
                                most.fetch_max(running.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                            }
                            let _guard = (n == 0).then(|| Ends(running));
                            for _ in 0..pauses {
                                tokio::task::yield_now().await;
                            }
                            if fails {
                                Err(CallError::Internal)
                            } else {
                                Ok(Reply::text(&format!("{caller}-{n}-{began}")))
                            }
                        };
                        cache.call(&call, run).await
                    });
                    under_way.push((caller, n, call));
                }
                _ => {
                    let mut over = Vec::new();
                    for (at, (_, _, call)) in under_way.iter_mut().enumerate() {
                        if let Some(outcome) = poll_once(call).await {
                            over.push((at, outcome));
                        }
                    }
                    for (at, outcome) in over.into_iter().rev() {
                        let (caller, n, _) = under_way.swap_remove(at);
                        if let Ok(answered) = outcome {
                            let text = answered.reply.to_json()["content"][0]["text"].as_str().unwrap_or("").to_owned();
                            assert!(
                                text.starts_with(&format!("{caller}-{n}-")),
                                "seed {seed}: {text} for {caller}-{n}"
                            );
                        }
                    }
                }
            }
            for (caller, name) in CALLERS.into_iter().enumerate() {
                for n in 0..3 {
                    let Some(kept) = found(&cache, &asked(n, name, POLICY), 0) else { continue };
                    let text = kept.reply.to_json()["content"][0]["text"].as_str().unwrap_or("").to_owned();
                    let began: u64 = text.rsplit('-').next().and_then(|s| s.parse().ok()).unwrap_or(0);
                    assert!(text.starts_with(&format!("{caller}-{n}-")), "seed {seed}: {text} for {caller}-{n}");
                    assert!(began > floor[caller][n as usize], "seed {seed}: {text} was invalidated");
                }
            }
        }
        drop(under_way);
        assert!(most.load(Ordering::SeqCst) <= 2, "seed {seed}: one run for each of two callers");
        assert_eq!((running.load(Ordering::SeqCst), cache.flights.len()), (0, 0), "seed {seed}");
    }
}

/// A call of the schedule.
type UnderWay<'a> = Pin<Box<dyn Future<Output = Result<Answered, CallError>> + 'a>>;

/// Counts a run's end, however it ends.
struct Ends<'a>(&'a AtomicU32);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}
