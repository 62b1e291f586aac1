//! A hundred callers at once, whose requests have equal ids and equal arguments, on a server that keeps results, joins
//! equal calls, and has sessions, tasks and rounds. Each result carries the name of whom it was made for, and no byte of
//! anybody else's name reaches a caller; among the calls are those that try, with another's session, task or state.

use std::{
    collections::BTreeMap,
    io::Write,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use bigiron::{
    Ctx, Input, Lane, Prompt, Resource, Server, Tool,
    error::CallError,
    server::Running,
    tool::{CacheScope, Config},
};
use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    identity::Issuer,
    support::{Client, Response, eventually, meta, metric, modern, modern_headers, post_bytes, start},
};

const CALLERS: usize = 100;
/// How every name begins, so that a foreign one is found in whatever comes.
const MARK: &[u8] = b"canary-";
const MARK_CHARS: usize = MARK.len() + 4;

#[derive(Deserialize, JsonSchema)]
struct Number {
    #[serde(default)]
    n: u64,
}

#[derive(Deserialize, JsonSchema)]
struct Nothing {}

/// The name in a subject; each has its own, all of one length.
fn name_of(caller: usize) -> String {
    format!("canary-{caller:03}x")
}

/// How often a tool ran whose results are kept.
#[derive(Default)]
struct Runs {
    kept: AtomicUsize,
    shared: AtomicUsize,
}

fn serve(issuer: &Issuer, runs: &Arc<Runs>) -> Running {
    let (kept, joined, shared) = (Arc::clone(runs), Arc::clone(runs), Arc::clone(runs));
    let me = |ctx: &Ctx, n: u64| format!("{n} for {}", ctx.caller().subject());
    let server = Server::builder()
        .tasks()
        .tool("who", "Says who calls", Lane::Inline, move |it: Number, ctx: Ctx| me(&ctx, it.n))
        .tool("busy", "Says so in the pool", Lane::Pool, move |it: Number, ctx: Ctx| me(&ctx, it.n))
        .with(
            Tool::new("kept", "Is kept for its caller", Lane::Pool, move |it: Number, ctx: Ctx| {
                kept.kept.fetch_add(1, Ordering::Relaxed);
                me(&ctx, it.n)
            })
            .read_only(),
        )
        .with(
            Tool::new_async("joined", "Takes a while, so that equal calls meet", move |it: Number, ctx: Ctx| {
                joined.kept.fetch_add(1, Ordering::Relaxed);
                async move {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                    me(&ctx, it.n)
                }
            })
            .read_only(),
        )
        .with(
            Tool::new("shared", "Is the same for all", Lane::Pool, move |it: Number, _: Ctx| {
                shared.shared.fetch_add(1, Ordering::Relaxed);
                format!("{} for all", it.n)
            })
            .read_only(),
        )
        .async_tool("steps", "Speaks before it is done", move |it: Number, ctx: Ctx| async move {
            for step in 0..3 {
                ctx.progress(f64::from(step), Some(3.0), &me(&ctx, it.n));
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            me(&ctx, it.n)
        })
        .async_tool("later", "Becomes a task, and asks", move |it: Number, ctx: Ctx| async move {
            ctx.become_task().await?;
            ctx.keep(json!(me(&ctx, it.n)));
            let form = json!({ "type": "object", "properties": {} });
            let answer = ctx.ask("sure", Input::elicit(&format!("Sure, {}?", me(&ctx, it.n)), form)).await?;
            Ok::<_, CallError>(format!("{} said {}", me(&ctx, it.n), answer["action"]))
        })
        .resource(Resource::new("who://me", "me", "Who reads", "text/plain", Lane::Inline, move |_, ctx: Ctx| {
            ctx.caller().subject().to_owned()
        }))
        .prompt(Prompt::new("me", "Who asks", Lane::Inline, move |_: Nothing, ctx: Ctx| {
            ctx.caller().subject().to_owned()
        }));
    start(server, |tuning| {
        issuer.tune(tuning);
        let kept = Config { cache_ttl_s: Some(600), ..Config::default() };
        tuning.tools.insert("shared".into(), Config { cache_scope: Some(CacheScope::Public), ..kept.clone() });
        tuning.tools.insert("kept".into(), kept.clone());
        tuning.tools.insert("joined".into(), kept);
        tuning.tasks.tasks_max = 100_000;
        tuning.tasks.per_caller_max = 10_000;
        tuning.limits.request_timeout_ms = 30_000; // a busy machine is no failure here
        tuning.limits.concurrent_requests_max = 1_000;
    })
}

/// What callers leave for others to misuse.
#[derive(Clone, Default)]
struct Left {
    session: String,
    task: String,
    state: Value,
}

struct World<'a> {
    running: &'a Running,
    left: Mutex<Vec<Left>>,
    /// How many calls there were of each kind.
    counts: Mutex<BTreeMap<&'static str, usize>>,
    foreign_names: AtomicUsize,
}

/// One of the hundred.
struct One<'a> {
    world: &'a World<'a>,
    number: usize,
    name: String,
    bearer: String,
    session: String,
    session_version: &'static str,
    /// Two connections, so that two calls can be on their way at once.
    ways: [Client; 2],
    next_id: u64,
    counts: BTreeMap<&'static str, usize>,
    dice: u64,
}

impl<'a> One<'a> {
    fn new(world: &'a World<'a>, number: usize, token: &str) -> Self {
        let ways = [(); 2].map(|()| Client::connect(world.running.addr()));
        let session_version = if number.is_multiple_of(2) { "2025-03-26" } else { "2025-06-18" };
        let mut one = Self {
            world,
            number,
            name: name_of(number),
            bearer: format!("Bearer {token}"),
            session: String::new(),
            session_version,
            ways,
            next_id: 0,
            counts: BTreeMap::new(),
            dice: (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15),
        };
        one.open_session();
        one
    }

    /// Everybody counts from 0.
    fn id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id - 1
    }

    fn roll(&mut self, sides: u64) -> u64 {
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        self.dice % sides
    }

    fn count(&mut self, kind: &'static str, calls: usize) {
        *self.counts.entry(kind).or_default() += calls;
    }

    /// Looks at each byte that came.
    fn seen(&self, response: &Response) {
        let headers = response.headers.iter().map(|(_, value)| value.as_bytes());
        for bytes in headers.chain([response.body.as_slice()]) {
            for at in (0..bytes.len().saturating_sub(MARK.len())).filter(|at| bytes[*at..].starts_with(MARK)) {
                let found = &bytes[at..(at + MARK_CHARS).min(bytes.len())];
                if found != self.name.as_bytes() {
                    self.world.foreign_names.fetch_add(1, Ordering::Relaxed);
                    say(&format!("{} saw {:?}", self.name, String::from_utf8_lossy(found)));
                }
            }
        }
    }

    fn received(&mut self, way: usize) -> Response {
        let response = self.ways[way].receive().expect("an answer");
        self.seen(&response);
        response
    }

    fn send_modern(&mut self, way: usize, id: u64, method: &str, name: &str, mut params: Value, tasks: bool) {
        params["_meta"] = meta();
        let able = &mut params["_meta"]["io.modelcontextprotocol/clientCapabilities"];
        *able = json!({ "elicitation": {} });
        if tasks {
            able["extensions"] = json!({ "io.modelcontextprotocol/tasks": {} });
        }
        if name == "steps" {
            params["_meta"]["progressToken"] = json!(id);
        }
        let mut headers = modern_headers(method, name).to_vec();
        headers.push(("Authorization", &self.bearer));
        let bytes = post_bytes(&headers, modern(id, method, params).to_string().as_bytes());
        self.ways[way].send(&bytes);
    }

    fn modern(&mut self, method: &str, name: &str, params: Value, tasks: bool) -> Response {
        let id = self.id();
        self.send_modern(0, id, method, name, params, tasks);
        let response = self.received(0);
        if response.header("content-type") == Some("application/json") {
            assert_eq!(response.json()["id"], id, "{response:?}");
        }
        response
    }

    fn call(&mut self, tool: &str, n: u64) -> Response {
        self.modern("tools/call", tool, json!({ "name": tool, "arguments": { "n": n } }), false)
    }

    /// In a session, which may be another's.
    fn in_session(&mut self, session: &str, body: &Value) -> Response {
        let headers = [("Mcp-Session-Id", session), ("Authorization", self.bearer.as_str())];
        self.ways[1].send(&post_bytes(&headers, body.to_string().as_bytes()));
        self.received(1)
    }

    fn open_session(&mut self) {
        let params = json!({ "protocolVersion": self.session_version, "capabilities": {},
            "clientInfo": { "name": "t", "version": "1" } });
        let id = self.id();
        let body = json!({ "jsonrpc": "2.0", "id": id, "method": "initialize", "params": params });
        let bytes = post_bytes(&[("Authorization", &self.bearer)], body.to_string().as_bytes());
        self.ways[1].send(&bytes);
        let opened = self.received(1);
        self.session = opened.header("mcp-session-id").unwrap_or_else(|| panic!("no session: {opened:?}")).to_owned();
        let ready = json!({ "jsonrpc": "2.0", "method": "notifications/initialized" });
        assert_eq!(self.in_session(&self.session.clone(), &ready).status, 202);
        self.world.left.lock()[self.number].session = self.session.clone();
    }

    /// Something that another left; empty when it has not yet.
    fn others(&mut self) -> Left {
        let step = 1 + self.roll(CALLERS as u64 - 1) as usize;
        self.world.left.lock()[(self.number + step) % CALLERS].clone()
    }

    fn is_for_me(&self, text: &str, n: u64) {
        assert!(text.starts_with(&format!("{n} for ")) && text.contains(&self.name), "{}: {text:?}", self.name);
    }

    /// One turn; gives how many calls it made.
    fn turn(&mut self) -> usize {
        let n = self.roll(7); // the same few for all, so that keys differ by the caller alone
        let (kind, calls) = match self.roll(40) {
            0..=7 => ("modern, inline", self.told("who", n)),
            8..=10 => ("modern, pool", self.told("busy", n)),
            11..=15 => ("modern, kept for its caller", self.told("kept", n)),
            16..=18 => ("modern, kept for all", {
                assert_eq!(self.call("shared", n).text(), format!("{n} for all"));
                1
            }),
            19..=21 => ("modern, two equal ones at once", self.twice()),
            22..=25 => ("session", self.legacy(n)),
            26 => ("session, a batch", self.batch(n)),
            27 => ("modern, speaks before it is done", self.steps(n)),
            28 => ("resources and prompts", self.read()),
            29 => ("lists", {
                let listed = self.modern("tools/list", "", json!({}), false).json();
                assert_eq!(listed["result"]["tools"].as_array().map(Vec::len), Some(7), "{listed}");
                1
            }),
            30 => ("tasks", self.task(n)),
            31 => ("rounds", self.round(n)),
            32 => ("session ended and opened", {
                let session = std::mem::take(&mut self.session);
                let head = format!("DELETE /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: {}\r\n", self.bearer);
                self.ways[1].send(format!("{head}Mcp-Session-Id: {session}\r\n\r\n").as_bytes());
                assert_eq!(self.received(1).status, 204);
                self.open_session();
                3
            }),
            33 => ("wrong: no token", {
                let bytes = post_bytes(
                    &modern_headers("tools/call", "who"),
                    modern(0, "tools/call", json!({ "name": "who" })).to_string().as_bytes(),
                );
                self.ways[0].send(&bytes);
                assert_eq!(self.received(0).status, 401);
                1
            }),
            34 | 35 => ("wrong: another's session", self.foreign_session(n)),
            36 | 37 => ("wrong: another's task", self.foreign_task()),
            _ => ("wrong: another's state", self.foreign_state(n)),
        };
        self.count(kind, calls);
        calls
    }

    fn told(&mut self, tool: &str, n: u64) -> usize {
        let text = self.call(tool, n).text();
        self.is_for_me(&text, n);
        1
    }

    /// Two calls with one id and the same arguments, on two connections; others send the same meanwhile.
    fn twice(&mut self) -> usize {
        let (id, n) = (self.id(), 1_000 + self.next_id / 10);
        for way in 0..2 {
            let params = json!({ "name": "joined", "arguments": { "n": n } });
            self.send_modern(way, id, "tools/call", "joined", params, false);
        }
        for way in 0..2 {
            let text = self.received(way).text();
            self.is_for_me(&text, n);
        }
        2
    }

    fn legacy(&mut self, n: u64) -> usize {
        for tool in ["who", "kept"] {
            let id = self.id();
            let params = json!({ "name": tool, "arguments": { "n": n } });
            let body = json!({ "jsonrpc": "2.0", "id": id, "method": "tools/call", "params": params });
            let answer = self.in_session(&self.session.clone(), &body);
            assert_eq!(answer.json()["id"], id);
            self.is_for_me(&answer.text(), n);
        }
        2
    }

    fn batch(&mut self, n: u64) -> usize {
        if self.session_version != "2025-03-26" {
            return self.legacy(n); // later revisions have none
        }
        let body: Vec<Value> = ["who", "kept", "busy"]
            .into_iter()
            .enumerate()
            .map(|(id, tool)| {
                let params = json!({ "name": tool, "arguments": { "n": n } });
                json!({ "jsonrpc": "2.0", "id": id, "method": "tools/call", "params": params })
            })
            .collect();
        let answers = self.in_session(&self.session.clone(), &json!(body)).json();
        let answers = answers.as_array().expect("a list");
        assert_eq!(answers.len(), 3);
        for answer in answers {
            self.is_for_me(answer["result"]["content"][0]["text"].as_str().unwrap_or_default(), n);
        }
        3
    }

    fn steps(&mut self, n: u64) -> usize {
        let params = json!({ "name": "steps", "arguments": { "n": n } });
        let response = self.modern("tools/call", "steps", params, false);
        let events = response.events();
        assert!(events.len() > 1, "{response:?}");
        for event in &events[..events.len() - 1] {
            self.is_for_me(event["params"]["message"].as_str().unwrap_or_default(), n);
        }
        self.is_for_me(events[events.len() - 1]["result"]["content"][0]["text"].as_str().unwrap_or_default(), n);
        1
    }

    fn read(&mut self) -> usize {
        let read = self.modern("resources/read", "who://me", json!({ "uri": "who://me" }), false).json();
        let got = self.modern("prompts/get", "me", json!({ "name": "me" }), false).json();
        for told in [&read["result"]["contents"][0]["text"], &got["result"]["messages"][0]["content"]["text"]] {
            assert!(told.as_str().is_some_and(|text| text.contains(&self.name)), "{read} {got}");
        }
        2
    }

    fn get_task(&mut self, id: &str) -> Value {
        self.modern("tasks/get", id, json!({ "taskId": id }), true).json()["result"].clone()
    }

    fn task(&mut self, n: u64) -> usize {
        let begun =
            self.modern("tools/call", "later", json!({ "name": "later", "arguments": { "n": n } }), true).json();
        let id = begun["result"]["taskId"].as_str().unwrap_or_else(|| panic!("no task: {begun}")).to_owned();
        self.world.left.lock()[self.number].task = id.clone();
        let mut calls = 1;
        let mut asked = Value::Null;
        eventually("it asks", || {
            calls += 1;
            asked = self.get_task(&id);
            asked["status"] == "input_required"
        });
        let question = asked["inputRequests"]["sure"]["params"]["message"].as_str().unwrap_or_default();
        assert!(question.contains(&self.name), "{asked}");
        if n < 2 {
            self.modern("tasks/cancel", &id, json!({ "taskId": id }), true);
            assert_eq!(self.get_task(&id)["status"], "cancelled");
            return calls + 2;
        }
        let answers = json!({ "taskId": id, "inputResponses": { "sure": { "action": "accept", "content": {} } } });
        assert_eq!(self.modern("tasks/update", &id, answers, true).status, 200);
        calls += 1;
        let mut ended = Value::Null;
        eventually("it ends", || {
            calls += 1;
            ended = self.get_task(&id);
            ended["status"] == "completed"
        });
        self.is_for_me(ended["result"]["content"][0]["text"].as_str().unwrap_or_default(), n);
        calls
    }

    fn again(&mut self, n: u64, state: &Value) -> Response {
        let answers = json!({ "sure": { "action": "accept", "content": {} } });
        let arguments = json!({ "n": n });
        let params =
            json!({ "name": "later", "arguments": arguments, "inputResponses": answers, "requestState": state });
        self.modern("tools/call", "later", params, false)
    }

    fn round(&mut self, n: u64) -> usize {
        let asked = self.call("later", n).json();
        assert_eq!(asked["result"]["resultType"], "input_required", "{asked}");
        let state = asked["result"]["requestState"].clone();
        self.world.left.lock()[self.number].state = json!({ "n": n, "state": state });
        let text = self.again(n, &state).text();
        self.is_for_me(&text, n);
        2
    }

    fn foreign_session(&mut self, n: u64) -> usize {
        let session = self.others().session;
        if session.is_empty() {
            return self.told("who", n);
        }
        let call = json!({ "name": "who", "arguments": { "n": n } });
        let body = json!({ "jsonrpc": "2.0", "id": 0, "method": "tools/call", "params": call });
        assert_eq!(self.in_session(&session, &body).status, 404);
        for verb in ["GET", "DELETE"] {
            let bearer = &self.bearer;
            let head = format!("{verb} /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n");
            let rest = format!("Authorization: {bearer}\r\nMcp-Session-Id: {session}\r\nLast-Event-ID: 0-1\r\n\r\n");
            self.ways[1].send(format!("{head}{rest}").as_bytes());
            assert_eq!(self.received(1).status, 404, "{verb}");
        }
        3
    }

    fn foreign_task(&mut self) -> usize {
        let id = self.others().task;
        if id.is_empty() {
            return self.told("who", 0);
        }
        let answers = json!({ "taskId": id, "inputResponses": { "sure": { "action": "accept", "content": {} } } });
        let bare = json!({ "taskId": id });
        for (method, params) in [("tasks/get", &bare), ("tasks/cancel", &bare), ("tasks/update", &answers)] {
            let refused = self.modern(method, &id, params.clone(), true);
            assert_eq!(refused.code(), Some(-32602), "{method}: {refused:?}");
        }
        3
    }

    fn foreign_state(&mut self, n: u64) -> usize {
        let left = self.others().state;
        if left.is_null() {
            return self.told("who", n);
        }
        let refused = self.again(left["n"].as_u64().unwrap_or_default(), &left["state"]);
        assert!(refused.code().is_some(), "{refused:?}");
        1
    }
}

/// Half of them have API keys, and half have tokens.
fn credentials(issuer: &Issuer) -> Vec<String> {
    let made = |caller: usize| {
        let name = name_of(caller);
        if caller.is_multiple_of(2) { issuer.token(&name) } else { issuer.key_for(&name, &[]) }
    };
    (0..CALLERS).map(made).collect()
}

/// Past the capture of the test's output, so that the counts are always there to be read.
fn say(line: &str) {
    let _ = writeln!(std::io::stderr().lock(), "{line}");
}

fn everybody_calls(calls_each: usize) {
    let issuer = Issuer::new();
    let tokens = credentials(&issuer);
    let runs = Arc::<Runs>::default();
    let running = serve(&issuer, &runs);
    let world = World {
        running: &running,
        left: Mutex::new(vec![Left::default(); CALLERS]),
        counts: Mutex::default(),
        foreign_names: AtomicUsize::new(0),
    };
    thread::scope(|scope| {
        for (number, token) in tokens.iter().enumerate() {
            let world = &world;
            scope.spawn(move || {
                let mut one = One::new(world, number, token);
                let mut made = 2; // the session
                one.count("session ended and opened", made);
                while made < calls_each {
                    made += one.turn();
                }
                let mut all = world.counts.lock();
                for (kind, calls) in one.counts {
                    *all.entry(kind).or_default() += calls;
                }
            });
        }
    });
    let counts = world.counts.into_inner();
    let all: usize = counts.values().sum();
    for (kind, calls) in &counts {
        say(&format!("{calls:7}  {kind}"));
    }
    let (kept, shared) = (runs.kept.load(Ordering::Relaxed), runs.shared.load(Ordering::Relaxed));
    say(&format!("{all:7}  calls of {CALLERS} callers; tools with kept results ran {kept} and {shared} times"));
    assert!(all >= CALLERS * calls_each, "{all}");
    assert_eq!(counts.len(), 17, "of each kind there were some");
    assert_eq!(world.foreign_names.load(Ordering::Relaxed), 0, "names that reached others");
    // Results were kept and joined, or this would show little.
    let wanting = counts["modern, kept for its caller"] + counts["modern, two equal ones at once"];
    assert!(kept < wanting, "{kept} runs for {wanting} calls and more");
    assert!(
        shared <= 7 && counts["modern, kept for all"] > 7,
        "each of seven once, for all callers together: {shared}"
    );
    assert_eq!(metric(&running, "bigiron_auth_refusals_total{kind=\"missing\"}") as usize, counts["wrong: no token"]);
    running.stop();
}

#[test]
fn a_hundred_callers_with_equal_ids_see_nothing_of_each_other() {
    everybody_calls(100);
}

#[test]
#[ignore = "takes 10 s of two idle cores: cargo test --test it -- --ignored a_hundred_thousand_calls"]
fn a_hundred_thousand_calls_with_equal_ids_show_nothing_of_others() {
    everybody_calls(1_000);
}
