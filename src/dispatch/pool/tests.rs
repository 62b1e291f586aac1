//! The pool by itself: what becomes of jobs that nobody waits for any more.

use std::{
    future::Future,
    pin::pin,
    sync::mpsc,
    task::{Context, Poll, Waker},
};

use serde_json::json;

use super::*;
use crate::{
    call::{Caller, ClientCapabilities, Lane},
    dispatch::bulkhead::Bulkhead,
    input::{Defers, Parks, Waiting},
    tool::{Concurrency, Tool},
};

/// A pool with one thread and a queue of two, and a tool that runs until it is told to end.
fn held() -> (Pool, Arc<Work>, mpsc::Receiver<()>, mpsc::Sender<()>) {
    let (began, begun) = mpsc::channel();
    let (end, ends) = mpsc::channel();
    let (began, ends) = (Mutex::new(began), Mutex::new(ends));
    let tool = Tool::new("held", "Runs until it is told to end", Lane::Pool, move |(): (), _: Ctx| {
        began.lock().send(()).expect("the test waits");
        ends.lock().recv().expect("the test says when");
        "done"
    });
    let config = Config { queue_max: 2, on_full: OnFull::Reject, ..Config::default() };
    let pool = Pool::start(&config, Sizes { threads: 1, threads_max: 1, io_threads: 1 }).expect("a pool");
    (pool, Arc::clone(&tool.work), begun, end)
}

fn ctx(limit_ms: u64) -> Ctx {
    Ctx::new(Caller::ANONYMOUS, Deadline::after(Instant::now(), limit_ms), ClientCapabilities::default())
}

fn poll<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    pin!(future).poll(&mut Context::from_waker(Waker::noop()))
}

#[tokio::test]
async fn who_leaves_while_queued_leaves_the_place_to_others() {
    let (pool, work, begun, end) = held();
    let call = || Box::pin(pool.run(&work, json!({}), ctx(60_000), None));
    let mut running = call();
    assert!(poll(&mut running).is_pending());
    begun.recv().expect("the thread has it");
    for _ in 0..10 {
        let mut queued = [call(), call()];
        assert!(queued.iter_mut().all(|call| poll(call).is_pending()));
        assert_eq!(pool.load(Instant::now()).queued, 2);
        let refused = poll(&mut call());
        assert!(matches!(refused, Poll::Ready(Err(CallError::Overloaded { .. }))), "{refused:?}");
        drop(queued);
        assert_eq!(pool.load(Instant::now()).queued, 0, "nothing is held for who has left");
    }
    let mut last = [call(), call()];
    assert!(last.iter_mut().all(|call| poll(call).is_pending()));
    (0..3).for_each(|_| end.send(()).expect("the tool waits"));
    let mut done = Vec::from([running.await]);
    for call in last {
        done.push(call.await);
    }
    assert!(done.iter().all(Result::is_ok), "{done:?}");
    // The thread gives its place back after it has answered.
    let all = pool.shared.room.acquire_many(3).await.expect("every place is given back");
    assert_eq!(pool.shared.room.available_permits(), 0, "and none twice");
    drop(all);
}

#[tokio::test]
async fn what_waits_past_its_deadline_takes_no_place_and_never_runs() {
    let (pool, work, begun, end) = held();
    let mut running = Box::pin(pool.run(&work, json!({}), ctx(60_000), None));
    assert!(poll(&mut running).is_pending());
    begun.recv().expect("the thread has it");
    for _ in 0..5 {
        assert_eq!(pool.run(&work, json!({}), ctx(5), None).await, Err(CallError::DeadlineBeforeStart));
        assert_eq!(pool.load(Instant::now()).queued, 0);
    }
    end.send(()).expect("the tool waits");
    assert!(running.await.is_ok());
    assert!(begun.try_recv().is_err(), "no other ran");
}

#[tokio::test]
async fn refusals_gather_while_the_queue_holds_work_for_long() {
    let (pool, work, begun, end) = held();
    let mut running = Box::pin(pool.run(&work, json!({}), ctx(60_000), None));
    assert!(poll(&mut running).is_pending());
    begun.recv().expect("the thread has it");
    let mut queued = [(); 2].map(|()| Box::pin(pool.run(&work, json!({}), ctx(60_000), None)));
    assert!(queued.iter_mut().all(|call| poll(call).is_pending()));
    let refuse = || {
        let refused = poll(&mut Box::pin(pool.run(&work, json!({}), ctx(60_000), None)));
        assert!(matches!(refused, Poll::Ready(Err(CallError::Overloaded { .. }))), "{refused:?}");
        gather::pause()
    };
    assert_eq!(refuse(), Duration::ZERO, "how long the queue lasts is not known yet");
    let busy = |jobs_per_s: u64| {
        let mut rate = Rate::new(Instant::now());
        (1..=20).for_each(|half_s| {
            let progress = Progress { done: u64::from(half_s) * jobs_per_s / 2, ran: Duration::ZERO, threads: 1 };
            rate.measure(Instant::now() + half_s * Duration::from_millis(500), progress, true);
        });
        *pool.rate.lock() = rate;
    };
    busy(100);
    assert_eq!(refuse(), Duration::from_micros(500), "20 ms");
    busy(100_000);
    assert_eq!(refuse(), Duration::ZERO, "20 us, which the pause would outlast");
    (0..3).for_each(|_| end.send(()).expect("the tool waits"));
    assert!(running.await.is_ok());
    for call in queued {
        assert!(call.await.is_ok());
    }
}

#[tokio::test]
async fn who_leaves_a_running_tool_leaves_its_place_taken_until_it_returns() {
    let (pool, work, begun, end) = held();
    let door = Bulkhead::new(Concurrency { max: 1, waiting_max: 0, is_adaptive: false });
    let place = Arc::new(door.enter(Share::NOBODY, ctx(60_000).deadline()).await.expect("a place"));
    let mut running = Box::pin(pool.run(&work, json!({}), ctx(60_000), Some(place)));
    assert!(poll(&mut running).is_pending());
    begun.recv().expect("the thread has it");
    drop(running);
    assert_eq!(door.load(), (1, 1, 0), "the tool is still at it");
    end.send(()).expect("the tool waits");
    drop(pool.shared.room.acquire_many(3).await.expect("the thread is done"));
    assert_eq!(door.load(), (1, 0, 0));
}

/// Has a minute more.
#[derive(Debug)]
struct Longer;

impl Defers for Longer {
    fn begin(&self) -> Waiting<'_, ()> {
        Box::pin(async { Err(CallError::Internal) })
    }

    fn task(&self) -> Option<Arc<dyn Parks>> {
        None
    }

    fn is_cancelled(&self) -> bool {
        false
    }

    fn extra_time(&self) -> Duration {
        Duration::from_secs(60)
    }
}

#[tokio::test]
async fn a_wait_for_the_client_is_not_the_tools_time() {
    let (pool, work, begun, end) = held();
    let mut ctx = ctx(5);
    let deadline = ctx.deadline();
    ctx.deferred = Some(Arc::new(Longer));
    let mut running = Box::pin(pool.run(&work, json!({}), ctx, None));
    assert!(poll(&mut running).is_pending());
    begun.recv().expect("the thread has it");
    tokio::time::sleep_until((deadline.at() + Duration::from_millis(5)).into()).await;
    assert!(poll(&mut running).is_pending(), "its time is not over");
    let hung = |at: Duration| pool.shared.workers.give_up_hung(deadline.at() + at, 1).len();
    assert_eq!(hung(Duration::from_secs(59)), 0);
    end.send(()).expect("the tool waits");
    assert!(running.await.is_ok());
}
