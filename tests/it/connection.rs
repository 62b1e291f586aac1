//! How a connection over HTTP/1.1 ends: its client leaves or ends what it sends, a time limit is met, or the server
//! drains; each at every moment of a request, in both ways in which requests are read, and with both flavors of I/O
//! threads.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use bigiron::{
    Ctx, Lane, Server,
    config::Tuning,
    runtime::Flavor,
    server::{Running, Stopped},
};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::{
    plain::NOT_PLAIN,
    support::{Client, eventually, meta, modern, modern_headers, post_bytes, start},
};

const FLAVORS: [Flavor; 2] = [Flavor::MultiThread, Flavor::CurrentThread];
/// What is sent first on a connection, and which way its requests are read after that.
const WAYS: [(&str, &[u8]); 2] = [("plain", b""), ("general", NOT_PLAIN)];
/// No limit of a test is met that has this one.
const NEVER_MS: u64 = 600_000;
/// Longer than any test waits for the end of a call.
const CALL_MS_MAX: u64 = 120_000;
/// What a client sends may be on its way for so long when its connection ends, and for longer.
const ON_THE_WAY: Duration = Duration::from_millis(50);
/// How often something is tried that a host that is busy can thwart.
const TRIES: usize = 5;
/// More than a connection reads ahead of the request that it is at.
const MUCH_AHEAD_BYTES: usize = 200_000;

/// Counts a call until it is dropped.
struct Inside(Arc<AtomicUsize>);

impl Inside {
    fn of(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::SeqCst);
        Self(Arc::clone(count))
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

/// A server whose calls last until they are let go.
struct Held {
    running: Running,
    /// Calls that run.
    inside: Arc<AtomicUsize>,
    /// A permit lets one call go.
    gate: Arc<Semaphore>,
}

impl Held {
    fn start(flavor: Flavor, tune: impl FnOnce(&mut Tuning)) -> Self {
        let (inside, gate) = (Arc::<AtomicUsize>::default(), Arc::new(Semaphore::new(0)));
        let waits = |size: usize, is_stream: bool| {
            let (inside, gate) = (Arc::clone(&inside), Arc::clone(&gate));
            move |(): (), ctx: Ctx| {
                let (inside, gate) = (Inside::of(&inside), Arc::clone(&gate));
                async move {
                    let _inside = inside;
                    if is_stream {
                        ctx.progress(1.0, None, "begun");
                    }
                    gate.acquire().await.expect("it is never closed").forget();
                    "x".repeat(size)
                }
            }
        };
        let counted = Arc::clone(&inside);
        let server = Server::builder()
            .tool("quick", "Answers at once", Lane::Inline, |(): (), _: Ctx| "x")
            .async_tool("wait", "Waits", waits(1, false))
            .async_tool("large", "Waits, and has much to say", waits(4 << 20, false))
            .async_tool("stream", "Says that it waits", waits(1, true))
            .tool("pool", "Waits elsewhere", Lane::Pool, move |(): (), ctx: Ctx| {
                let _inside = Inside::of(&counted);
                while !ctx.is_cancelled() {
                    thread::sleep(Duration::from_millis(1));
                }
                "x"
            });
        let running = start(server, |tuning| {
            tuning.runtime.flavor = flavor;
            tuning.runtime.io_threads = 2;
            tuning.limits.request_timeout_ms = CALL_MS_MAX;
            tuning.server.drain_grace_ms = CALL_MS_MAX;
            tuning.limits.write_timeout_ms = NEVER_MS;
            tuning.limits.header_timeout_ms = NEVER_MS;
            tuning.limits.idle_timeout_ms = NEVER_MS;
            tuning.server.drain_delay_ms = 0;
            tune(tuning);
        });
        Self { running, inside, gate }
    }

    /// A connection that is read in one of the ways.
    fn connect(&self, first: &[u8]) -> Client {
        begun(Client::connect(self.running.addr()), first)
    }

    fn runs(&self, count: usize) {
        eventually("so many calls run", || self.inside.load(Ordering::SeqCst) == count);
    }
}

fn begun(mut client: Client, first: &[u8]) -> Client {
    if !first.is_empty() {
        client.send(first);
        assert_eq!(client.receive().expect("an answer").status, 200);
    }
    client
}

fn call_bytes(tool: &str) -> Vec<u8> {
    let mut meta = meta();
    meta["progressToken"] = json!(1);
    let call = modern(1, "tools/call", json!({ "name": tool, "_meta": meta }));
    post_bytes(&modern_headers("tools/call", tool), call.to_string().as_bytes())
}

/// The length of the text that a call came to, however it was answered, and whether its connection goes on.
fn answered(client: &mut Client) -> Option<(usize, bool)> {
    let answer = client.receive()?;
    assert_eq!(answer.status, 200, "{answer:?}");
    let message: Value = match answer.header("content-type") {
        Some("application/json") => answer.json(),
        _ => answer.events().pop().expect("an event"),
    };
    let text = message["result"]["content"][0]["text"].as_str().unwrap_or_else(|| panic!("a result: {message}"));
    Some((text.len(), answer.header("connection") != Some("close")))
}

/// A request that ends in the middle of its head, and one that ends in the middle of its body.
fn parts() -> [(Vec<u8>, Vec<u8>); 2] {
    let whole = call_bytes("quick");
    [60, whole.len() - 20].map(|at| (whole[..at].to_vec(), whole[at..].to_vec()))
}

/// From the end of the idle connections to when all others know of the drain, at the latest.
const TOLD: Duration = Duration::from_secs(1);

fn in_each_case(case: impl Fn(Flavor, &'static str, &'static [u8])) {
    for flavor in FLAVORS {
        for (way, first) in WAYS {
            case(flavor, way, first);
        }
    }
}

/// Who ends what it sends is taken to have left, as hosts do that close a connection.
#[test]
fn a_client_that_ends_what_it_sends_has_left() {
    in_each_case(|flavor, way, first| {
        let held = Held::start(flavor, |_| {});
        let case = |what: &str| format!("{flavor:?}, {way}: {what}");
        for sent in [b"".as_slice(), &parts()[0].0] {
            let mut client = held.connect(first);
            client.send(sent);
            client.half_close();
            assert!(client.receive().is_none(), "{}", case("before a request or in its head"));
        }
        let mut client = held.connect(first);
        client.send(&parts()[1].0);
        client.half_close();
        assert_eq!(client.receive().map(|refused| refused.status), Some(400), "{}", case("in a body"));
        assert!(client.is_closed());
        let mut client = held.connect(first);
        client.send(&call_bytes("quick"));
        assert_eq!(answered(&mut client), Some((1, true)));
        client.half_close();
        assert!(client.is_closed(), "{}", case("between two requests"));
        for tool in ["wait", "pool"] {
            let mut client = held.connect(first);
            client.send(&call_bytes(tool));
            held.runs(1);
            client.half_close();
            assert!(client.receive().is_none(), "{}", case(tool));
            held.runs(0);
        }
        let mut client = held.connect(first);
        client.send(&call_bytes("stream"));
        held.runs(1);
        client.half_close();
        while client.read_some(1000) > 0 {}
        held.runs(0);
        eventually("nothing is left of them", || held.running.connections() + held.running.in_flight() == 0);
        held.running.stop();
    });
}

#[test]
fn a_client_that_vanishes_takes_its_call_along() {
    in_each_case(|flavor, way, first| {
        let held = Held::start(flavor, |_| {});
        for tool in ["quick", "wait", "pool", "stream", "large"] {
            // With the next request in its hands, the general reader does not look at the socket.
            for with_next in [false, way == "plain"] {
                let mut client = held.connect(first);
                let next = if with_next { call_bytes("quick") } else { Vec::new() };
                client.send(&[call_bytes(tool), next].concat());
                if tool != "quick" {
                    held.runs(1);
                }
                client.reset();
                held.runs(0);
            }
        }
        eventually("nothing is left of them", || held.running.connections() + held.running.in_flight() == 0);
        held.running.stop();
    });
}

/// Each limit alone can end the connection here.
#[test]
fn time_limits_hold_after_a_stream_and_after_a_long_call() {
    const SHORT_MS: u64 = 800; // a host that is busy may have a test wait between two lines of it
    in_each_case(|flavor, way, first| {
        let limits = ["idle_timeout_ms", "header_timeout_ms"];
        let cases = limits.into_iter().flat_map(|limit| ["wait", "stream"].map(|tool| (limit, tool)));
        thread::scope(|scope| {
            cases.for_each(|(limit, tool)| {
                drop(scope.spawn(move || {
                    let held = Held::start(flavor, |tuning| match limit {
                        "idle_timeout_ms" => tuning.limits.idle_timeout_ms = SHORT_MS,
                        _ => tuning.limits.header_timeout_ms = SHORT_MS,
                    });
                    let mut client = held.connect(first);
                    for pause_ms in [2 * SHORT_MS, 0] {
                        client.send(&call_bytes(tool));
                        held.runs(1);
                        thread::sleep(Duration::from_millis(pause_ms)); // a call is no idling
                        held.gate.add_permits(1);
                        assert_eq!(answered(&mut client), Some((1, true)), "{flavor:?}, {way}, {tool}: {limit}");
                    }
                    if limit == "header_timeout_ms" {
                        client.send(&parts()[0].0);
                    }
                    assert!(client.is_closed(), "{flavor:?}, {way}, {tool}: {limit}");
                    held.running.stop();
                }))
            });
        });
    });
}

/// What is to come of a connection after the drain has begun.
struct Moment {
    what: &'static str,
    client: Client,
    /// What the client sends then.
    rest: Vec<u8>,
    /// The length of the answer's text.
    answer: Option<usize>,
    /// A second request was sent, which is answered or not.
    has_next: bool,
}

#[test]
fn a_drain_ends_each_connection_with_what_it_is_at() {
    in_each_case(|flavor, way, first| {
        let held = Held::start(flavor, |tuning| tuning.limits.request_bytes_max = bigiron::units::ByteSize::mib(1));
        let quick = call_bytes("quick");
        let moment = |what, sent: &[u8], rest: &[u8], answer, has_next| {
            let mut client = held.connect(first);
            client.send(sent);
            Moment { what, client, rest: rest.to_vec(), answer, has_next }
        };
        let after_one = |what, (sent, rest): &(Vec<u8>, Vec<u8>)| {
            let mut moment = moment(what, &quick, rest, Some(1), false);
            assert_eq!(answered(&mut moment.client), Some((1, true)));
            moment.client.send(sent);
            moment
        };
        let with_next = |tool| [call_bytes(tool), quick.clone()].concat();
        let [head, body] = parts();
        let mut moments = vec![
            moment("in its first head", &head.0, &head.1, Some(1), false),
            moment("in its first body", &body.0, &body.1, Some(1), false),
            after_one("in a head", &head),
            after_one("in a body", &body),
            moment("in a call", &call_bytes("wait"), b"", Some(1), false),
            moment("in a call, with the next one sent", &with_next("wait"), b"", Some(1), true),
            moment("in a stream", &call_bytes("stream"), b"", Some(1), false),
            moment("in a stream, with the next one sent", &with_next("stream"), b"", Some(1), true),
        ];
        let running_calls = 4;
        let mut idle = [held.connect(first), held.connect(first)];
        idle[0].send(&quick);
        assert_eq!(answered(&mut idle[0]), Some((1, true)));
        held.runs(running_calls);
        let Held { running, gate, inside } = held;
        let stopping = thread::spawn(move || running.stop());
        for client in &mut idle {
            assert!(client.is_closed(), "{flavor:?}, {way}: idle");
        }
        // Who was idle has been told, and so have the others by now: they all wait for the same time.
        thread::sleep(TOLD);
        assert_eq!(inside.load(Ordering::SeqCst), running_calls, "{flavor:?}, {way}: calls go on");
        gate.add_permits(running_calls);
        for Moment { what, client, rest, answer, has_next } in &mut moments {
            let case = format!("{flavor:?}, {way}: {what}");
            client.send(rest);
            let first = answered(client);
            assert_eq!(first.map(|(length, _)| length), *answer, "{case}");
            if what.starts_with("in a stream") {
                // Its head was sent before.
            } else {
                assert_eq!(first.map(|(_, goes_on)| goes_on), Some(false), "{case}: it says that it is the last");
            }
            if !*has_next || answered(client).is_some() {
                assert!(client.is_closed(), "{case}");
            }
        }
        assert_eq!(stopping.join().expect("no panic"), Stopped { cut: 0 });
    });
}

/// An end with bytes unread is a reset, which takes with it what is still on its way.
#[test]
fn what_was_sent_ahead_does_not_take_the_last_answer_with_it() {
    in_each_case(|flavor, way, first| {
        let held = Held::start(flavor, |_| {});
        let mut client = begun(Client::connect_narrow(held.running.addr()), first);
        client.send(&call_bytes("large"));
        held.runs(1);
        // More than the server reads while it is at a call.
        let mut writer = client.writer();
        let ahead = call_bytes("quick").repeat(MUCH_AHEAD_BYTES / call_bytes("quick").len());
        let sent = thread::spawn(move || std::io::Write::write_all(&mut writer, &ahead));
        let mut idle = held.connect(first);
        let Held { running, gate, .. } = held;
        let stopping = thread::spawn(move || running.stop());
        assert!(idle.is_closed(), "{flavor:?}, {way}");
        thread::sleep(TOLD); // who was idle has been told, and so has the other by now
        gate.add_permits(1);
        assert_eq!(answered(&mut client), Some((4 << 20, false)), "{flavor:?}, {way}");
        let _ = sent.join();
        drop(client);
        stopping.join().expect("no panic");
    });
}

/// The request of a client may be on its way when its time is over. It sees that the connection has ended, and may ask
/// again on another; a reset could be anything.
#[test]
fn who_sends_as_its_time_is_over_sees_an_end_and_no_reset() {
    const SHORT_MS: u64 = 200;
    let [head, body] = parts();
    let (nothing, quick) = ((Vec::new(), call_bytes("quick")), call_bytes("quick"));
    let cases = [
        ("idle from the start", "idle", false, &nothing),
        ("idle after a request", "idle", true, &nothing),
        ("in its first head", "header", false, &head),
        ("in a head", "header", true, &head),
        ("in a body", "body", true, &body),
    ];
    in_each_case(|flavor, way, first| {
        let sees_an_end = |held: &Held, limit, has_answer, (sent, then): &(Vec<u8>, Vec<u8>)| {
            let mut client = held.connect(first);
            if has_answer {
                client.send(&quick);
                assert_eq!(answered(&mut client), Some((1, true)));
            }
            client.send(sent);
            if limit == "body" {
                assert_eq!(client.receive().map(|late| late.status), Some(408), "{flavor:?}, {way}");
            }
            assert!(client.is_closed(), "{flavor:?}, {way}: {limit}");
            thread::sleep(ON_THE_WAY);
            // What is sent first would bring the reset, and what is sent after it would meet it.
            client.offer(then) && client.offer(&quick) && client.ends()
        };
        thread::scope(|scope| {
            for (what, limit, has_answer, bytes) in cases {
                scope.spawn(move || {
                    let held = Held::start(flavor, |tuning| match limit {
                        "idle" => tuning.limits.idle_timeout_ms = SHORT_MS,
                        "header" => tuning.limits.header_timeout_ms = SHORT_MS,
                        _ => tuning.limits.body_timeout_ms = SHORT_MS,
                    });
                    // On a host that is busy the end may be over before the client sends, so it has some tries.
                    let has_seen_it = (0..TRIES).any(|_| sees_an_end(&held, limit, has_answer, bytes));
                    assert!(has_seen_it, "{flavor:?}, {way}: {what}");
                    eventually("nothing is left of them", || held.running.connections() == 0);
                    assert_eq!(held.running.stop(), Stopped { cut: 0 });
                });
            }
        });
    });
}

/// A head that begins behind a request has waited for it, and has its time from then on. (What hyper reads ahead is not
/// seen: there it has the time of an idle connection.)
#[test]
fn a_head_behind_a_request_has_the_time_of_a_head() {
    const SHORT_MS: u64 = 800; // a host that is busy may have a test wait between two lines of it
    for flavor in FLAVORS {
        let held = Held::start(flavor, |tuning| tuning.limits.header_timeout_ms = SHORT_MS);
        let part = &parts()[0].0;
        let mut clients = Vec::new();
        for (tool, is_together) in [("wait", true), ("wait", false), ("quick", true), ("stream", false)] {
            let mut client = held.connect(b"");
            let call = call_bytes(tool);
            if is_together {
                client.send(&[&call[..], part].concat());
            } else {
                client.send(&call);
            }
            clients.push((client, tool, is_together));
        }
        held.runs(3);
        for (client, ..) in clients.iter_mut().filter(|(.., is_together)| !is_together) {
            client.send(part);
        }
        let mut calm = held.connect(b"");
        calm.send(&call_bytes("quick"));
        assert_eq!(answered(&mut calm), Some((1, true)));
        thread::sleep(Duration::from_millis(2 * SHORT_MS)); // behind a call it has no time of its own
        held.gate.add_permits(3);
        for (client, tool, is_together) in &mut clients {
            let case = format!("{flavor:?}: {tool}, {is_together}");
            assert_eq!(answered(client), Some((1, true)), "{case}");
            assert!(client.is_closed(), "{case}");
        }
        calm.send(&call_bytes("quick"));
        assert_eq!(answered(&mut calm), Some((1, true)), "{flavor:?}: nothing stood behind its request");
        held.running.stop();
    }
}
