//! What clients notice while the Redis of two instances changes: a primary that dies under load and comes back as a
//! replica, and a cluster whose slots move. Calls without a session never fail. What a session was told is done is done
//! afterwards on both instances, or the session is unknown, which its client sees.

#![allow(clippy::print_stdout)] // what was counted and measured is for who runs it

use std::{
    net::SocketAddr,
    sync::{
        Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
    thread,
    time::{Duration, Instant},
};

use serde_json::{Value, json};

use crate::{
    cluster::metric,
    redis::{Redis, Sentinels, Six, eventually},
    rolling::request,
    support::{Process, get, modern, modern_headers, post_bytes},
};

/// Sessions that are used at once, and threads that call without one.
const SESSIONS: usize = 4;
const CALLERS: usize = 2;
/// Between two requests of one client.
const PAUSE: Duration = Duration::from_millis(5);

/// One of two instances that share the Redis at a URL.
fn instance(url: &str, id: &str) -> Process {
    let [redis, id] = [format!("cluster.redis={url}"), format!("cluster.node_id={id}")];
    // With the times of Redis as they are by default.
    Process::start_example_with("everything", &["--set", &redis, "--set", &id, "--set", "cluster.heartbeat_s=1"])
}

/// What came of requests. Every one that was sent is in one of the others.
#[derive(Debug, Default)]
struct Counts {
    calls_sent: AtomicU64,
    calls_answered: AtomicU64,
    sent: AtomicU64,
    answered: AtomicU64,
    /// 503: the session may be one of another instance, and Redis does not say.
    later: AtomicU64,
    /// 404: its client opens another one.
    lost: AtomicU64,
    opened: AtomicU64,
    ended: AtomicU64,
    /// Of the changes that were answered with 200, by session and instance: looked up afterwards.
    checked: AtomicU64,
    /// The longest time from a session's first refusal to its next answer.
    longest_ms: AtomicU64,
    failed: Mutex<Vec<String>>,
}

impl Counts {
    fn fail(&self, what: String) {
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).push(what);
    }

    /// # Panics
    /// When something failed, or requests are missing.
    fn settle(&self, what: &str) {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner);
        let count = |count: &AtomicU64| count.load(SeqCst);
        println!(
            "{what}\n  {} calls without a session, {} answered\n  {} requests in sessions: {} answered, {} told to come \
             later, {} to sessions unknown by then, {} failed\n  {} sessions opened, {} ended; {} states that had been \
             acknowledged found on an instance\n  {} ms at most until a session was served again",
            count(&self.calls_sent),
            count(&self.calls_answered),
            count(&self.sent),
            count(&self.answered),
            count(&self.later),
            count(&self.lost),
            failed.len(),
            count(&self.opened),
            count(&self.ended),
            count(&self.checked),
            count(&self.longest_ms)
        );
        assert!(failed.is_empty(), "{:#?}", &failed[..failed.len().min(10)]);
        assert_eq!(count(&self.calls_sent), count(&self.calls_answered));
        assert_eq!(count(&self.sent), count(&self.answered) + count(&self.later) + count(&self.lost));
        assert!(count(&self.checked) > 0 && count(&self.ended) > 0);
    }
}

/// A session, as its client knows it.
#[derive(Default)]
struct Own {
    id: Option<String>,
    /// The level that was set last, where that was acknowledged.
    level: Option<&'static str>,
    /// Refused since, on each instance.
    since: [Option<Instant>; 2],
    /// Ended ones that must stay so.
    ended: Vec<String>,
}

struct Load {
    addrs: [SocketAddr; 2],
    counts: Counts,
    sessions: [Mutex<Own>; SESSIONS],
    /// Held by who sends, and by who wants that nobody does.
    gate: RwLock<()>,
    is_over: AtomicBool,
}

impl Load {
    fn new(addrs: [SocketAddr; 2]) -> Self {
        let (counts, sessions) = (Counts::default(), Default::default());
        Self { addrs, counts, sessions, gate: RwLock::default(), is_over: AtomicBool::new(false) }
    }

    /// Runs all clients while `what` happens, and then looks at what there is.
    fn during(addrs: [SocketAddr; 2], what: impl FnOnce(&Self)) -> Counts {
        let load = Self::new(addrs);
        thread::scope(|scope| {
            for n in 0..CALLERS {
                let load = &load;
                scope.spawn(move || load.call(n));
            }
            for n in 0..SESSIONS {
                let load = &load;
                scope.spawn(move || load.use_session(n));
            }
            let ends = Ends(&load);
            what(&load);
            drop(ends);
        });
        load.counts
    }

    /// Calls without a session, on both instances in turn.
    fn call(&self, of: usize) {
        for n in 0_u64.. {
            if self.is_over.load(SeqCst) {
                return;
            }
            let addr = self.addrs[n as usize % 2];
            let text = format!("{of}-{n}.");
            let call = modern(n, "tools/call", json!({ "name": "test_simple_text", "arguments": {} }));
            let [version, method, name] = modern_headers("tools/call", "test_simple_text");
            let bytes = post_bytes(&[("Connection", "close"), version, method, name], call.to_string().as_bytes());
            self.counts.calls_sent.fetch_add(1, SeqCst);
            match request(addr, &bytes) {
                Ok(answer) if answer.starts_with("HTTP/1.1 200") && answer.contains("\"content\":") => {
                    self.counts.calls_answered.fetch_add(1, SeqCst);
                }
                other => self.counts.fail(format!("call {text} {other:?}")),
            }
            thread::sleep(PAUSE);
        }
    }

    fn use_session(&self, of: usize) {
        for n in 0_u64.. {
            if self.is_over.load(SeqCst) {
                return;
            }
            let open = self.gate.read().unwrap_or_else(PoisonError::into_inner);
            let mut own = self.sessions[of].lock().unwrap_or_else(PoisonError::into_inner);
            let at = self.addrs[(n as usize + of) % 2];
            match own.id.clone() {
                None => self.open(at, &mut own),
                // Not all at once, and one of them soon.
                Some(id) if (n + 270 * of as u64) % 997 == 996 => self.end(at, id, &mut own),
                Some(id) if n % 7 == 0 => {
                    let level = if n % 2 == 0 { "debug" } else { "error" };
                    let before = own.level.take(); // without an answer it may be either
                    match self.ask(at, &id, "logging/setLevel", json!({ "level": level }), &mut own) {
                        Some(200) => own.level = Some(level),
                        Some(503) => own.level = before, // it was not asked
                        _ => {}
                    }
                }
                Some(id) => drop(self.ask(at, &id, "ping", json!({}), &mut own)),
            }
            drop((own, open));
            thread::sleep(PAUSE);
        }
    }

    /// One request in a session; its status, and nothing where there was no answer that a client may get.
    fn ask(&self, at: SocketAddr, id: &str, method: &str, params: Value, own: &mut Own) -> Option<u16> {
        self.counts.sent.fetch_add(1, SeqCst);
        let body = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params }).to_string();
        let bytes = post_bytes(&[("Connection", "close"), ("Mcp-Session-Id", id)], body.as_bytes());
        let status = self.note(&format!("{method} in {id}"), at, &bytes, own);
        if status == Some(404) {
            (own.id, own.level) = (None, None); // said, and its client begins anew
        }
        status
    }

    fn note(&self, what: &str, at: SocketAddr, bytes: &[u8], own: &mut Own) -> Option<u16> {
        let answer = request(at, bytes);
        let status: Option<u16> = answer.as_ref().ok().and_then(|text| text.get(9..12)?.parse().ok());
        let since = &mut own.since[usize::from(at != self.addrs[0])];
        let count = match status {
            Some(200 | 202 | 204) => {
                if let Some(since) = since.take() {
                    self.counts.longest_ms.fetch_max(since.elapsed().as_millis() as u64, SeqCst);
                }
                &self.counts.answered
            }
            Some(503) => {
                since.get_or_insert_with(Instant::now);
                &self.counts.later
            }
            Some(404) => &self.counts.lost,
            _ => {
                self.counts.fail(format!("{what}: {answer:?}"));
                return None;
            }
        };
        count.fetch_add(1, SeqCst);
        status
    }

    fn open(&self, at: SocketAddr, own: &mut Own) {
        own.since = [None; 2];
        let client = json!({ "name": "tests", "version": "1" });
        let params = json!({ "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": client });
        let body = json!({ "jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params }).to_string();
        self.counts.sent.fetch_add(1, SeqCst);
        match request(at, &post_bytes(&[("Connection", "close")], body.as_bytes())) {
            Ok(answer) if answer.starts_with("HTTP/1.1 200") => {
                self.counts.answered.fetch_add(1, SeqCst);
                self.counts.opened.fetch_add(1, SeqCst);
                let id = answer.lines().find_map(|line| line.strip_prefix("mcp-session-id: "));
                own.id = Some(id.expect("a session").trim().to_owned());
            }
            other => self.counts.fail(format!("initialize: {other:?}")),
        }
    }

    fn end(&self, at: SocketAddr, id: String, own: &mut Own) {
        self.counts.sent.fetch_add(1, SeqCst);
        let head = "DELETE /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\nMcp-Session-Id:";
        match self.note(&format!("the end of {id}"), at, format!("{head} {id}\r\n\r\n").as_bytes(), own) {
            Some(204) => {
                self.counts.ended.fetch_add(1, SeqCst);
                own.ended.push(id);
                (own.id, own.level) = (None, None);
            }
            Some(404) => (own.id, own.level) = (None, None),
            _ => {}
        }
    }

    /// With nobody sending anything: what was acknowledged holds on both instances, or the session is unknown.
    fn check(&self, redis_is_one: impl Fn() -> bool) {
        let _closed = self.gate.write().unwrap_or_else(PoisonError::into_inner);
        eventually("both instances use Redis again", redis_is_one);
        for own in &self.sessions {
            let mut own = own.lock().unwrap_or_else(PoisonError::into_inner);
            for ended in std::mem::take(&mut own.ended) {
                for at in self.addrs {
                    eventually("what was ended stays so", || self.level(at, &ended) == Seen::Unknown);
                }
            }
            let (Some(id), Some(level)) = (own.id.clone(), own.level) else { continue };
            for at in self.addrs {
                let mut seen = Seen::Later;
                let wanted = if level == "debug" { Seen::Lines } else { Seen::Silence };
                eventually(&format!("{level} was acknowledged in {id}"), || {
                    seen = self.level(at, &id);
                    seen == wanted || seen == Seen::Unknown
                });
                if seen == Seen::Unknown {
                    self.counts.sent.fetch_add(1, SeqCst);
                    self.counts.lost.fetch_add(1, SeqCst);
                    (own.id, own.level) = (None, None);
                    break;
                }
                self.counts.checked.fetch_add(1, SeqCst);
            }
        }
    }

    /// Whether a session hears what a tool logs.
    fn level(&self, at: SocketAddr, id: &str) -> Seen {
        let params = json!({ "name": "test_tool_with_logging", "arguments": {} });
        let body = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params }).to_string();
        let bytes = post_bytes(&[("Connection", "close"), ("Mcp-Session-Id", id)], body.as_bytes());
        let answer = request(at, &bytes).expect("an answer");
        match answer.get(9..12) {
            Some("200") if answer.contains("notifications/message") => Seen::Lines,
            Some("200") => Seen::Silence,
            Some("404") => Seen::Unknown,
            Some("503") => Seen::Later,
            _ => panic!("{answer}"),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    Lines,
    Silence,
    Unknown,
    Later,
}

/// Ends the load, also where a test gives up.
struct Ends<'a>(&'a Load);

impl Drop for Ends<'_> {
    fn drop(&mut self) {
        self.0.is_over.store(true, SeqCst);
    }
}

fn is_up(server: &Process) -> bool {
    get(server.admin_addr, "/ready").json()["cluster"] == "up"
}

/// The primary is killed so often.
/// Returns what came of it, and the longest time without a primary.
fn failovers(times: usize) -> (Counts, Duration) {
    let mut all = Sentinels::start_with(1000);
    let (a, b) = (instance(&all.url(), "a"), instance(&all.url(), "b"));
    let mut kept = Vec::new();
    let counts = Load::during([a.addr, b.addr], |load| {
        for _ in 0..times {
            thread::sleep(Duration::from_millis(500)); // of load, with all well
            kept.push(all.fail_over());
            load.check(|| is_up(&a) && is_up(&b));
        }
    });
    let (before, after): (u64, u64) = kept.iter().fold((0, 0), |(b, a), (before, after, _)| (b + before, a + after));
    let without = kept.iter().map(|(.., without)| *without).max().unwrap_or_default();
    counts.settle(&format!(
        "{times} failovers; Redis itself had {before} keys at the kills and {after} when the next primary was named, which \
         took {} ms at most",
        without.as_millis()
    ));
    for server in [&a, &b] {
        let times_away = metric(server, "bigiron_cluster_away_total");
        println!("  Redis was away {times_away} times for one of the instances");
        // It is said which one is the master by now, whether Redis was away in between or not.
        server.log_line_with(&format!("\"master\":\"127.0.0.1:{}\"", all.master()));
    }
    (counts, without)
}

#[test]
fn when_the_primary_dies_calls_go_on_and_nothing_is_lost_silently() {
    failovers(1);
}

#[test]
#[ignore = "takes 4 min: cargo test --test it -- --ignored --nocapture failover::when_the_primary"]
fn when_the_primary_dies_20_times_sessions_are_back_within_5_s() {
    let (counts, without) = failovers(20);
    // On a busy host the sentinels may take long to agree; that is not the instances' time.
    assert!(u128::from(counts.longest_ms.load(SeqCst)) <= without.as_millis() + 5000);
}

/// Nobody notices: not one answer but the good ones. Nor was a command ever about keys in different places.
fn unnoticed(six: &Six, counts: &Counts, what: &str) {
    counts.settle(what);
    for server in &six.0 {
        let errors = server.cli(&["INFO", "errorstats"]);
        assert!(errors.starts_with("# Errorstats") && !errors.contains("CROSSSLOT"), "{errors}");
    }
    assert_eq!((counts.later.load(SeqCst), counts.lost.load(SeqCst)), (0, 0), "nobody notices");
}

#[test]
fn while_slots_of_sessions_move_nobody_notices() {
    let six = Six::start();
    let (a, b) = (instance(&six.url(), "a"), instance(&six.url(), "b"));
    let (masters, mut moved) = (six.masters(), 0);
    let counts = Load::during([a.addr, b.addr], |load| {
        eventually("all sessions are open", || load.counts.opened.load(SeqCst) >= SESSIONS as u64);
        for n in 0..8 {
            let keys: Vec<_> = masters.iter().flat_map(|of| six.0[*of].keys("mcp:session*}")).collect();
            let Some(key) = keys.get(n % keys.len().max(1)) else { continue };
            let Some((slot, from)) = six.find(key, &masters) else { continue }; // it has ended
            let to = *masters.iter().find(|of| **of != from).expect("three");
            six.move_slot(slot, from, to, || thread::sleep(Duration::from_millis(100)));
            six.move_slot(slot, to, from, || thread::sleep(Duration::from_millis(100)));
            moved += 1;
        }
        eventually("one has ended", || load.counts.ended.load(SeqCst) > 0);
        load.check(|| is_up(&a) && is_up(&b));
    });
    assert!(moved > 0);
    unnoticed(&six, &counts, &format!("{moved} slots with keys moved there and back"));
}

#[test]
#[ignore = "takes 3 min: cargo test --test it -- --ignored --nocapture failover::while_all_slots"]
fn while_all_slots_move_there_and_back_three_times_nobody_notices() {
    let six = Six::start();
    let (a, b) = (instance(&six.url(), "a"), instance(&six.url(), "b"));
    let mut moved = 0;
    let counts = Load::during([a.addr, b.addr], |load| {
        for _ in 0..3 {
            for (from, to) in [(0, 1), (1, 0), (1, 2), (2, 1), (2, 0), (0, 2)] {
                // A third stays, so that there is always a cluster of three.
                let slots = 16_384 / 3 - 100;
                six.reshard(from, to, slots);
                moved += slots;
            }
            load.check(|| is_up(&a) && is_up(&b));
        }
    });
    let left: usize = six.masters().into_iter().map(|of| six.slots_of(of)).sum();
    assert_eq!(left, 16_384, "each slot is somewhere");
    unnoticed(&six, &counts, &format!("{moved} times a slot moved"));
}

/// As a replica that becomes the primary does, which has not got the last writes; and as news do that nobody heard.
#[test]
fn what_redis_forgot_is_told_again_and_what_was_not_heard_is_looked_up() {
    let redis = Redis::start();
    let [a, b] = ["a", "b"].map(|id| instance(&redis.url(), id));
    let client = Load::new([a.addr, b.addr]);
    let mut own = Own::default();
    client.open(a.addr, &mut own);
    let id = own.id.clone().expect("a session");
    let set = |level: &str, own: &mut Own| client.ask(a.addr, &id, "logging/setLevel", json!({ "level": level }), own);
    let both_see = |what: &str, seen: Seen| {
        for at in [a.addr, b.addr] {
            eventually(what, || client.level(at, &id) == seen);
        }
    };
    assert_eq!(set("error", &mut own), Some(200));
    both_see("the first level", Seen::Silence);
    let key = redis.keys("mcp:session:{").pop().expect("a record");
    let before = redis.cli(&["GET", &key]);
    assert_eq!(set("debug", &mut own), Some(200));
    both_see("the second level", Seen::Lines);
    let after = redis.cli(&["GET", &key]);
    let gap = || redis.cli(&["CLIENT", "KILL", "TYPE", "pubsub"]);
    assert_eq!(redis.cli(&["SET", &key, &before, "KEEPTTL"]), "OK");
    gap();
    // Whoever does it is named in it as well.
    let without_name = |text: &str| text.split_once("\"n\":").map(|(rest, _)| rest.to_owned());
    eventually("who was told writes it again", || without_name(&redis.cli(&["GET", &key])) == without_name(&after));
    both_see("the second level", Seen::Lines);
    // Another instance was told later, and nobody heard it.
    let changed = after.split_once("\"u\":").and_then(|(_, rest)| rest.split_once(',')).expect("a time").0;
    let later = (changed.parse::<u64>().expect("a number") + 1).to_string();
    let level = |text: &str| text.split_once("\"l\":").map(|(_, rest)| rest[..1].to_owned()).expect("a level");
    let told = after.replacen(changed, &later, 1);
    let told = told.replacen(&format!("\"l\":{}", level(&after)), &format!("\"l\":{}", level(&before)), 1);
    assert_eq!(redis.cli(&["SET", &key, &told, "KEEPTTL"]), "OK");
    gap();
    both_see("what another was told", Seen::Silence);
    // An end is told again, too.
    client.end(b.addr, id.clone(), &mut own);
    both_see("it has ended", Seen::Unknown);
    redis.cli(&["DEL", &format!("{key}:ended")]);
    assert_eq!(redis.cli(&["SET", &key, &told, "PX", "60000"]), "OK");
    gap();
    eventually("it is ended again", || redis.cli(&["EXISTS", &key]) == "0");
    let c = instance(&redis.url(), "c");
    assert_eq!(client.level(c.addr, &id), Seen::Unknown);
}
