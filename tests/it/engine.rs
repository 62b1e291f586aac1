//! What the engine does when tools misbehave and callers want too much: threads that hang are replaced, tools have so
//! many calls at once, callers take turns, and the metrics tell.
//!
//! Each fault of a tool, or of the host that is short of something, has one outcome, here or elsewhere:
//!
//! | fault | outcome | test |
//! |---|---|---|
//! | panics, holding a lock or while it is dropped | an error of the call; the next one works | `edges::panics_in_odd_places_cost_one_call` |
//! | panics all the time | each is answered; the log is not flooded | `edges::a_flood_of_panics_is_answered_and_does_not_flood_the_log` |
//! | computes or blocks for ever | answered at its deadline; its thread is replaced, so often | `a_thread_that_hangs_is_replaced_and_leaves_when_its_tool_returns`, `no_more_threads_are_lost_than_may_be` |
//! | as many hung calls as there are threads and places | the last I/O thread runs none; what needs no tool answers | `pool::caller_runs_takes_an_io_thread_and_never_the_last`, `pool::with_every_thread_in_a_hung_tool_the_rest_answers` |
//! | an async tool that blocks | told with its name, and counted | `metrics_tell_what_happened_and_nothing_that_was_sent` |
//! | asks for more memory than there is | an error of the call where the allocator can say so | `edges::memory_that_cannot_be_had_costs_the_call_alone` |
//! | the queue is full | refused at once, with when to come again | `pool::reject_refuses_at_once` |
//! | waits for longer than its deadline or the queue allows | not run | `pool::wait_ends_at_the_deadline_without_a_run`, `a_caller_whose_calls_have_waited_too_long_is_refused` |
//! | takes longer than its deadline | an error at the deadline; what it returns then is not used | `pool::what_a_tool_returns_after_its_deadline_is_not_used_and_not_kept` |
//! | a result that is no JSON, or not of its output schema | JSON all the same, or an error of the call | `edges::whatever_a_tool_returns_the_wire_is_json`; `tool::results` and `tool::handler` in the library |
//! | terminal escapes, bidirectional marks, a description of 1 MiB | text, and nothing else changes | `edges::odd_text_in_results_and_descriptions_is_text` |
//! | speaks after its end | dropped | `edges::nothing_is_said_after_the_end` |
//! | its client leaves: queued, running, writing | not run, dropped, dropped | `edges::who_leaves_takes_the_work_along`, `pool::a_job_whose_client_left_does_not_run` |
//! | a cancel meets its end | one answer or none | `edges::a_cancel_races_with_the_end_and_there_is_one_answer_or_none` |
//! | memory is short | no new streams and fewer kept results, then no idle connections, then no new calls; and back | `server::watch` in the library; `cargo bench --bench experiments -- memory` in a cgroup |
//! | next to no CPU time | slower, nothing wrong, and back | `cargo bench --bench experiments -- quota` |

use std::{
    collections::{HashMap, HashSet},
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc, Condvar,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use bigiron::{Ctx, Lane, Server, Tool, config::Tuning, dispatch::pool::OnFull, server::Running, tool::Config};
use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::json;

use crate::support::{Client, Response, call, eventually, get, metric, metrics, modern, modern_headers, start};

#[derive(Deserialize, JsonSchema)]
struct Named {
    #[serde(default)]
    name: String,
}

/// Where a tool stops until it is let through.
#[derive(Default)]
struct Barrier {
    open: std::sync::Mutex<bool>,
    opened: Condvar,
    inside: AtomicUsize,
    /// Who came in, in order.
    names: Mutex<Vec<String>>,
}

impl Barrier {
    fn pass(&self, name: String) {
        self.names.lock().push(name);
        self.inside.fetch_add(1, Ordering::SeqCst);
        let mut open = self.open.lock().unwrap();
        while !*open {
            open = self.opened.wait(open).unwrap();
        }
        self.inside.fetch_sub(1, Ordering::SeqCst);
    }

    fn open(&self) {
        *self.open.lock().unwrap() = true;
        self.opened.notify_all();
    }

    fn inside(&self) -> usize {
        self.inside.load(Ordering::SeqCst)
    }
}

/// A server with a tool that stops at a barrier and one that does not, both in a pool of one thread.
fn server(tune: impl FnOnce(&mut Tuning)) -> (Running, Arc<Barrier>) {
    let barrier = Arc::<Barrier>::default();
    let tool = |barrier: Arc<Barrier>| {
        Tool::new("stop", "Stops", Lane::Pool, move |args: Named, _: Ctx| {
            barrier.pass(args.name);
            "passed"
        })
    };
    let server = Server::builder()
        .with(tool(Arc::clone(&barrier)))
        .tool("work", "Works", Lane::Pool, |_: Named, _: Ctx| "done")
        .async_tool("hold", "Holds its thread", |_: Named, _: Ctx| async {
            thread::sleep(Duration::from_millis(150)); // what an async tool must not do
            "held"
        });
    let running = start(server, |tuning| {
        (tuning.pool.threads, tuning.pool.threads_max) = (1, 1);
        tuning.limits.request_timeout_ms = 20_000;
        tune(tuning);
    });
    (running, barrier)
}

/// Calls from a thread and an address of its own: 127.0.0.`caller`.
fn aside(addr: SocketAddr, caller: u8, name: &str) -> thread::JoinHandle<Response> {
    let request = modern(1, "tools/call", json!({ "name": "stop", "arguments": { "name": name } }));
    let mut client = Client::connect_from(Ipv4Addr::new(127, 0, 0, caller).into(), addr);
    thread::spawn(move || client.post(&modern_headers("tools/call", "stop"), &request))
}

#[test]
fn a_thread_that_hangs_is_replaced_and_leaves_when_its_tool_returns() {
    let (running, barrier) = server(|tuning| tuning.limits.request_timeout_ms = 100);
    let hung = call(running.addr(), "stop", json!({}));
    assert!(hung.text().contains("timed out"), "{hung:?}");
    assert_eq!(barrier.inside(), 1);
    let works = || call(running.addr(), "work", json!({})).text() == "done";
    eventually("another thread works in its place", works);
    assert_eq!(metric(&running, "bigiron_pool_threads{state=\"lost\"}"), 1.0);
    assert_eq!(metric(&running, "bigiron_pool_threads_replaced_total"), 1.0);
    barrier.open();
    eventually("it leaves", || metric(&running, "bigiron_pool_threads{state=\"lost\"}") == 0.0);
    let threads =
        ["idle", "running"].map(|state| metric(&running, &format!("bigiron_pool_threads{{state=\"{state}\"}}")));
    assert_eq!(threads.iter().sum::<f64>(), 1.0);
    assert!(works());
    running.stop();
}

#[test]
fn no_more_threads_are_lost_than_may_be() {
    let (running, barrier) = server(|tuning| {
        tuning.limits.request_timeout_ms = 100;
        tuning.pool.lost_max = 2;
    });
    for lost in 1..=2 {
        assert!(call(running.addr(), "stop", json!({})).text().contains("timed out"));
        eventually("it is replaced", || metric(&running, "bigiron_pool_threads_replaced_total") == f64::from(lost));
    }
    assert!(call(running.addr(), "stop", json!({})).text().contains("timed out"));
    eventually("the last one hangs", || barrier.inside() == 3);
    let late = call(running.addr(), "work", json!({}));
    assert_eq!((late.status, late.code()), (503, Some(-31504)), "{late:?}");
    assert_eq!(metric(&running, "bigiron_pool_threads_replaced_total"), 2.0);
    barrier.open();
    eventually("all come back", || call(running.addr(), "work", json!({})).text() == "done");
    running.stop();
}

#[test]
fn a_tool_has_so_many_calls_at_once_and_the_next_wait() {
    let (running, barrier) = server(|tuning| {
        (tuning.pool.threads, tuning.pool.threads_max) = (4, 4);
        let config = Config { concurrency_max: Some(2), waiting_max: Some(1), ..Config::default() };
        tuning.tools.insert("stop".into(), config);
    });
    let first: Vec<_> = ["a", "b"].map(|name| aside(running.addr(), 1, name)).into_iter().collect();
    eventually("two are inside", || barrier.inside() == 2);
    let waits = aside(running.addr(), 1, "c");
    eventually("the third waits", || metric(&running, "bigiron_tool_waiting{tool=\"stop\"}") == 1.0);
    let refused = call(running.addr(), "stop", json!({}));
    assert_eq!((refused.status, refused.code()), (503, Some(-31503)), "{refused:?}");
    assert!(refused.header("retry-after").is_some());
    assert_eq!(call(running.addr(), "work", json!({})).text(), "done", "other tools go on");
    assert_eq!(barrier.inside(), 2);
    assert_eq!(metric(&running, "bigiron_tool_running{tool=\"stop\"}"), 2.0);
    barrier.open();
    for call in first.into_iter().chain([waits]) {
        assert_eq!(call.join().unwrap().text(), "passed");
    }
    running.stop();
}

#[test]
fn callers_take_turns_in_the_queue() {
    let (running, barrier) = server(|_| {});
    let mut calls = vec![aside(running.addr(), 1, "first")];
    eventually("the thread is taken", || barrier.inside() == 1);
    for (n, caller) in [1, 1, 1, 2].into_iter().enumerate() {
        calls.push(aside(running.addr(), caller, &format!("{caller}")));
        let queued = n as f64 + 1.0;
        eventually("it waits", || metric(&running, "bigiron_pool_queue_jobs") == queued);
    }
    barrier.open();
    for call in calls {
        assert_eq!(call.join().unwrap().text(), "passed");
    }
    assert_eq!(*barrier.names.lock(), ["first", "2", "1", "1", "1"], "the other caller is next, and not last");
    running.stop();
}

#[test]
fn who_has_most_waiting_makes_room_for_who_has_nothing() {
    let (running, barrier) = server(|tuning| {
        tuning.pool.queue_max = 2;
        tuning.pool.on_full = OnFull::Reject;
    });
    let mut calls = vec![aside(running.addr(), 1, "first")];
    eventually("the thread is taken", || barrier.inside() == 1);
    for queued in [1.0, 2.0] {
        calls.push(aside(running.addr(), 1, "1"));
        eventually("it waits", || metric(&running, "bigiron_pool_queue_jobs") == queued);
    }
    let full = aside(running.addr(), 1, "1").join().unwrap();
    assert_eq!(full.code(), Some(-31503), "{full:?}");
    let other = aside(running.addr(), 2, "2");
    // The newest of the caller who has two waiting is refused for it.
    assert_eq!(calls.pop().unwrap().join().unwrap().code(), Some(-31503));
    barrier.open();
    for call in calls.into_iter().chain([other]) {
        assert_eq!(call.join().unwrap().text(), "passed");
    }
    assert_eq!(*barrier.names.lock(), ["first", "2", "1"]);
    running.stop();
}

#[test]
fn one_caller_does_not_take_every_place() {
    let (running, barrier) = server(|tuning| tuning.limits.concurrent_requests_max = 10);
    let mut calls: Vec<_> = (0..9).map(|_| aside(running.addr(), 1, "1")).collect();
    eventually("nine of ten places are taken", || running.in_flight() == 9);
    let over = aside(running.addr(), 1, "1").join().unwrap();
    assert_eq!((over.status, over.code()), (503, Some(-31503)), "{over:?}");
    calls.push(aside(running.addr(), 2, "2"));
    eventually("another caller has the tenth", || running.in_flight() == 10);
    barrier.open();
    for call in calls {
        assert_eq!(call.join().unwrap().text(), "passed");
    }
    running.stop();
}

/// The same for callers who come through one proxy.
#[test]
fn who_is_behind_a_trusted_proxy_has_a_share_of_his_own() {
    let (running, barrier) = server(|tuning| {
        tuning.limits.concurrent_requests_max = 10;
        tuning.server.trusted_proxies = vec!["127.0.0.1".into()];
    });
    let behind = |client: &'static str| {
        let mut proxy = Client::connect(running.addr());
        let mut headers = modern_headers("tools/call", "stop").to_vec();
        headers.push(("X-Forwarded-For", client));
        let request = modern(1, "tools/call", json!({ "name": "stop", "arguments": { "name": client } }));
        thread::spawn(move || proxy.post(&headers, &request))
    };
    let mut calls: Vec<_> = (0..9).map(|_| behind("192.0.2.1")).collect();
    eventually("nine of ten places are taken", || running.in_flight() == 9);
    let over = behind("192.0.2.1").join().unwrap();
    assert_eq!((over.status, over.code()), (503, Some(-31503)), "{over:?}");
    calls.push(behind("192.0.2.2"));
    eventually("another caller has the tenth", || running.in_flight() == 10);
    assert_eq!(metric(&running, "bigiron_callers"), 3.0, "the two, and the proxy");
    barrier.open();
    for call in calls {
        assert_eq!(call.join().unwrap().text(), "passed");
    }
    eventually("all are forgotten", || metric(&running, "bigiron_callers") <= 0.0);
    running.stop();
}

#[test]
fn a_caller_whose_calls_have_waited_too_long_is_refused() {
    let (running, barrier) = server(|tuning| tuning.pool.queue_wait_ms_max = 50);
    let first = aside(running.addr(), 1, "first");
    eventually("the thread is taken", || barrier.inside() == 1);
    let waits = aside(running.addr(), 1, "1");
    eventually("one has waited long", || metric(&running, "bigiron_pool_queue_oldest_seconds") > 0.05);
    let refused = aside(running.addr(), 1, "1").join().unwrap();
    assert_eq!((refused.status, refused.code()), (503, Some(-31503)), "{refused:?}");
    let other = aside(running.addr(), 2, "2"); // has not waited at all
    eventually("it waits", || metric(&running, "bigiron_pool_queue_jobs") == 2.0);
    barrier.open();
    for call in [first, waits, other] {
        assert_eq!(call.join().unwrap().text(), "passed");
    }
    running.stop();
}

#[test]
fn metrics_tell_what_happened_and_nothing_that_was_sent() {
    let (running, _) = server(|_| {});
    for _ in 0..3 {
        assert_eq!(call(running.addr(), "work", json!({})).text(), "done");
    }
    assert_eq!(call(running.addr(), "hold", json!({})).text(), "held");
    assert_eq!(call(running.addr(), "secret-tool", json!({ "name": "secret-name" })).code(), Some(-32602));
    assert_eq!(get(running.addr(), "/secret-path").status, 404);
    for (series, value) in [
        ("bigiron_calls_total{tool=\"work\",ended=\"ok\"}", 3.0),
        ("bigiron_calls_total{tool=\"hold\",ended=\"ok\"}", 1.0),
        ("bigiron_calls_total{tool=\"stop\",ended=\"ok\"}", 0.0),
        ("bigiron_call_duration_seconds_count{tool=\"work\",phase=\"queue\"}", 3.0),
        ("bigiron_call_duration_seconds_count{tool=\"work\",phase=\"run\"}", 3.0),
        ("bigiron_call_duration_seconds_bucket{tool=\"work\",phase=\"encode\",le=\"+Inf\"}", 3.0),
        ("bigiron_slow_polls_total{tool=\"hold\"}", 1.0),
        ("bigiron_refusals_total{reason=\"invalid_params\"}", 1.0),
        ("bigiron_refusals_total{reason=\"not_found\"}", 1.0),
        ("bigiron_requests_in_flight", 0.0),
        ("bigiron_sessions", 0.0),
        ("bigiron_memory_pressure", 0.0),
    ] {
        eventually(series, || metric(&running, series) == value);
    }
    let text = metrics(&running);
    assert!(!text.contains("secret"), "{text}");
    well_formed(&text);
    for name in ["process_cpu_seconds_total", "process_resident_memory_bytes", "process_open_fds", "process_max_fds"] {
        eventually(name, || metric(&running, name) > 0.0);
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    assert!((now - metric(&running, "process_start_time_seconds")).abs() < 86_400.0, "{text}");
    assert!(text.contains("bigiron_build_info{version=\""), "{text}");
    for (setting, value) in
        [("pool.queue_max", 1000.0), ("pool.threads_max", 1.0), ("sessions.sessions_max", 100_000.0)]
    {
        assert_eq!(metric(&running, &format!("bigiron_limit{{setting=\"{setting}\"}}")), value);
    }
    running.stop();
}

/// Every family has its help and its kind said, once and before its values; every line can be read; nothing is there
/// twice.
fn well_formed(text: &str) {
    let (mut helped, mut kinds, mut seen) = (HashSet::new(), HashMap::new(), HashSet::new());
    for line in text.lines() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, words) = help.split_once(' ').unwrap_or_else(|| panic!("no words: {line}"));
            assert!(helped.insert(name) && words.len() > 5, "{line}");
        } else if let Some(kind) = line.strip_prefix("# TYPE ") {
            let (name, kind) = kind.split_once(' ').unwrap_or_else(|| panic!("no kind: {line}"));
            assert!(helped.contains(name) && ["counter", "gauge", "histogram"].contains(&kind), "{line}");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            assert!(name.starts_with("bigiron_") || name.starts_with("process_"), "{line}");
            assert_eq!(kinds.insert(name, kind), None, "{line}");
        } else {
            let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no value: {line}"));
            assert!(value.parse::<f64>().is_ok_and(|value| value >= 0.0), "{line}");
            assert!(seen.insert(series), "twice: {line}");
            let (name, labels) = series.split_once('{').map_or((series, None), |(name, rest)| (name, Some(rest)));
            let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| name.strip_suffix(end));
            let of_histogram = family.is_some_and(|family| kinds.get(family) == Some(&"histogram"));
            assert!(of_histogram || kinds.get(name).is_some_and(|kind| *kind != "histogram"), "{line}");
            if let Some(labels) = labels {
                let labels = labels.strip_suffix("\"}").unwrap_or_else(|| panic!("no end: {line}"));
                for label in labels.split("\",") {
                    let (key, value) = label.split_once("=\"").unwrap_or_else(|| panic!("no label: {line}"));
                    assert!(key.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'), "{line}");
                    assert!(!value.contains('"'), "{line}");
                }
            }
        }
    }
    assert_eq!(helped.len(), kinds.len());
}

#[test]
fn a_thousand_tools_can_be_scraped() {
    const TOOLS: usize = 1000;
    let mut server = Server::builder();
    for i in 0..TOOLS {
        let name: &'static str = format!("tool_{i}").leak();
        server = server.with(Tool::new(name, "Does nothing", Lane::Inline, |_: Named, _: Ctx| "done").read_only());
    }
    let running = start(server, |tuning| {
        for i in 0..TOOLS {
            let config = Config { cache_ttl_s: Some(60), concurrency_max: Some(8), ..Config::default() };
            tuning.tools.insert(format!("tool_{i}"), config);
        }
    });
    let mut client = Client::connect(running.addr());
    for i in 0..TOOLS {
        let name = format!("tool_{i}");
        let request = modern(1, "tools/call", json!({ "name": name, "arguments": {} }));
        assert_eq!(client.post(&modern_headers("tools/call", &name), &request).text(), "done");
    }
    let text = metrics(&running);
    well_formed(&text);
    for (series, count) in [
        ("bigiron_calls_total{", 9 * TOOLS),
        ("bigiron_call_duration_seconds_count{", 2 * TOOLS), // an inline tool waits for no thread
        ("bigiron_cache_requests_total{", 4 * TOOLS),
        ("bigiron_tool_concurrency_limit{", TOOLS),
    ] {
        assert_eq!(text.lines().filter(|line| line.starts_with(series)).count(), count, "{series}");
    }
    assert!(text.contains("bigiron_calls_total{tool=\"tool_999\",ended=\"ok\"} 1\n"));
    running.stop();
}

#[test]
fn the_admin_listener_ends_with_the_server() {
    let (running, _) = server(|_| {});
    let admin = running.admin_addr().unwrap();
    assert_eq!(get(admin, "/health").status, 200);
    running.stop();
    eventually("nobody listens", || std::net::TcpStream::connect(admin).is_err());
}
