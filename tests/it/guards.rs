//! What nobody gets past, on a server as it starts: names and pages that are not ours, ids that were not given out, paths
//! that are not there, an issuer that goes wrong, and logs that tell what is nobody's business.

use std::{
    fs,
    io::{Read, Write},
    net::TcpListener,
    path::Path,
    process::{Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::SystemTime,
};

use bigiron::{
    Ctx, Lane, Server, Tool,
    config::Tuning,
    error::CallError,
    rmcp::model::{CallToolResult, ContentBlock, MetaObject},
    server::Running,
    tasks::{After, Change, Record, Store, StoreFuture},
    tool::Config,
};
use parking_lot::Mutex;
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    identity::{Issuer, secret_of},
    support::{
        Client, Process, Response, Session, call, eventually, get, meta, metric, modern, modern_headers, post_bytes,
        start,
    },
};

#[derive(Deserialize, JsonSchema)]
struct Nothing {}

/// A server with all its settings as they are built in, and how often its tool ran.
fn as_built(tune: impl FnOnce(&mut Tuning)) -> (Running, Arc<AtomicUsize>) {
    let runs = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&runs);
    let server = Server::builder().tool("quick", "Answers at once", Lane::Inline, move |_: Nothing, _: Ctx| {
        count.fetch_add(1, Ordering::SeqCst);
        "done"
    });
    (start(server, tune), runs)
}

fn ask(running: &Running, headers: &[(&str, &str)]) -> Response {
    let mut all = modern_headers("tools/call", "quick").to_vec();
    all.extend(headers);
    Client::connect(running.addr()).post(&all, &modern(1, "tools/call", json!({ "name": "quick", "arguments": {} })))
}

#[test]
fn pages_of_others_call_nothing_whatever_a_library_has_as_its_default() {
    let (running, runs) = as_built(|_| {});
    for origin in [
        "https://evil.example",
        "null",
        "https://allowed.example.evil.com",
        "http://127.0.0.1:1", // another port is another page
        "https://user:pass@127.0.0.1",
        "file://",
        "*",
    ] {
        assert_eq!(ask(&running, &[("Origin", origin)]).status, 403, "{origin}");
    }
    let own = format!("http://{}", running.addr());
    assert_eq!(ask(&running, &[("Origin", &own), ("Origin", &own)]).status, 403, "twice");
    // What a page may send without asking first.
    for form in ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "application/jsonp"] {
        assert_eq!(ask(&running, &[("Content-Type", form)]).status, 415, "{form}");
    }
    assert_eq!(runs.load(Ordering::SeqCst), 0, "nothing ran");
    assert_eq!(ask(&running, &[]).status, 200, "no browser, no Origin");
    assert_eq!(runs.load(Ordering::SeqCst), 1);
}

#[test]
fn an_allowed_page_is_allowed_to_the_letter() {
    let (running, runs) = as_built(|tuning| tuning.server.allowed_origins = vec!["https://allowed.example".into()]);
    assert_eq!(ask(&running, &[("Origin", "https://allowed.example")]).status, 200);
    for origin in [
        "https://allowed.example.evil.com",
        "http://allowed.example",
        "https://allowed.example:8443",
        "https://user:pass@allowed.example",
        "https://allowed.example/",
        "https://evil.example https://allowed.example",
        "null",
    ] {
        assert_eq!(ask(&running, &[("Origin", origin)]).status, 403, "{origin}");
    }
    assert_eq!(runs.load(Ordering::SeqCst), 1);
}

/// A name that leads here by someone's trick is not served, on no listener and on no path.
#[test]
fn a_name_that_is_not_ours_is_served_nowhere() {
    let (running, runs) = as_built(|_| {});
    let admin = running.admin_addr().expect("an admin listener");
    for (address, path) in [
        (running.addr(), "/mcp"),
        (running.addr(), "/health"),
        (admin, "/metrics"),
        (admin, "/health"),
        (admin, "/cache/invalidate"),
    ] {
        for host in ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example", "169.254.169.254"] {
            let verb = if path.len() > 10 || path == "/mcp" { "POST" } else { "GET" };
            let mut client = Client::connect(address);
            let head = format!("{verb} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Type: application/json\r\n");
            client.send(format!("{head}Content-Length: 2\r\n\r\n{{}}").as_bytes());
            assert_eq!(client.receive().expect("an answer").status, 403, "{host} {path}");
        }
    }
    assert_eq!(runs.load(Ordering::SeqCst), 0);
}

#[test]
fn the_public_listener_has_its_endpoint_and_nothing_to_manage() {
    let (running, _) = as_built(|_| {});
    for path in [
        "/metrics",
        "/cache/invalidate",
        "/admin",
        "/admin/tools",
        "/tools",
        "/servers",
        "/api/servers",
        "/debug",
        "/mcp/servers",
        "/mcp/tools/preview",
        "/mcp/",
        "/config",
        "/.env",
        "/mcp/../metrics",
    ] {
        for verb in ["GET", "POST", "PUT", "PATCH", "DELETE"] {
            let mut client = Client::connect(running.addr());
            let body = json!({ "command": "touch", "args": ["/tmp/x"] }).to_string();
            let head = format!("{verb} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n");
            client.send(format!("{head}Content-Length: {}\r\n\r\n{body}", body.len()).as_bytes());
            assert_eq!(client.receive().expect("an answer").status, 404, "{verb} {path}");
        }
    }
    // The admin listener takes a wish to forget kept results, and none to change what is served.
    for path in ["/tools", "/servers", "/config", "/mcp", "/log", "/keys"] {
        let mut client = Client::connect(running.admin_addr().expect("an admin listener"));
        client.send(format!("POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\n\r\n").as_bytes());
        assert_eq!(client.receive().expect("an answer").status, 404, "{path}");
    }
}

/// A store that has nothing, and counts who asks it.
#[derive(Debug, Default)]
struct Asked(AtomicUsize);

impl Store for Asked {
    fn insert(&self, _: Record) -> StoreFuture<'_, ()> {
        Box::pin(async { Ok(()) })
    }

    fn load<'a>(&'a self, _: &'a str) -> StoreFuture<'a, Option<Record>> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Box::pin(async { Ok(None) })
    }

    fn change<'a>(&'a self, _: &'a str, _: Change, _: SystemTime) -> StoreFuture<'a, Option<After>> {
        self.0.fetch_add(1, Ordering::SeqCst);
        Box::pin(async { Ok(None) })
    }

    fn sweep(&self, _: SystemTime) -> StoreFuture<'_, usize> {
        Box::pin(async { Ok(0) })
    }
}

fn random_id(chars: usize) -> String {
    let mut bytes = vec![0; chars / 2];
    aws_lc_rs::rand::fill(&mut bytes).expect("random bytes");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn odd_ids() -> Vec<String> {
    let odd = ["1", "0", "-", "..", "null", "%00", "*", "' OR 1=1", "\u{202e}", "a/../b"].map(str::to_owned);
    odd.into_iter().chain([random_id(46), random_id(50), random_id(48).to_uppercase(), "a".repeat(8_000)]).collect()
}

#[test]
fn no_id_is_guessed_and_what_is_none_asks_no_store() {
    let store = Arc::<Asked>::default();
    let server = Server::builder().tasks_in(Arc::clone(&store) as _).async_tool(
        "later",
        "Becomes a task",
        |_: Nothing, ctx: Ctx| async move {
            ctx.become_task().await?;
            Ok::<_, CallError>("done")
        },
    );
    let running = start(server, |_| {});
    let addr = running.addr();
    let session = Session::open(addr, "2025-11-25");
    let mut client = Client::connect(addr);
    // Sessions: those that were not given out are not there, whatever they look like.
    let ping = json!({ "jsonrpc": "2.0", "id": 1, "method": "ping" });
    let unknown = client.post(&[("Mcp-Session-Id", &random_id(48))], &ping);
    assert_eq!(unknown.status, 404);
    for _ in 0..5_000 {
        let refused = client.post(&[("Mcp-Session-Id", &random_id(session.id.len()))], &ping);
        assert_eq!((refused.status, &refused.body), (404, &unknown.body));
    }
    for id in odd_ids() {
        let refused = Client::connect(addr).post(&[("Mcp-Session-Id", &id)], &ping);
        assert!(matches!(refused.status, 400 | 404), "{id:.20}: {refused:?}");
    }
    // Streams of a session: an event of another, or of none, opens nothing.
    for id in [format!("{}-1", random_id(8)), "0-0".into(), "-1".into(), "a".repeat(100)] {
        assert!(session.listen(addr, Some(&id)).has_nothing(), "{id}");
    }
    // Tasks: what has not the form of an id is asked of no store.
    let mut get = |id: &str| {
        let mut params = json!({ "taskId": id, "_meta": meta() });
        params["_meta"]["io.modelcontextprotocol/clientCapabilities"] =
            json!({ "extensions": { "io.modelcontextprotocol/tasks": {} } });
        client.post(&modern_headers("tasks/get", id), &modern(1, "tasks/get", params))
    };
    for id in odd_ids().iter().filter(|id| id.is_ascii()) {
        let refused = get(id);
        assert_eq!(refused.code(), Some(-32602), "{id:.20}: {refused:?}");
    }
    assert_eq!(store.0.load(Ordering::SeqCst), 0, "the store was not asked");
    for _ in 0..1_000 {
        assert_eq!(get(&random_id(48)).code(), Some(-32602));
    }
    assert_eq!(store.0.load(Ordering::SeqCst), 1_000, "once for each that could have been one");
    assert_eq!(metric(&running, "bigiron_sessions"), 1.0);
}

#[test]
fn who_guesses_ids_is_slowed_down() {
    let (running, _) = as_built(|tuning| {
        tuning.rate_limit.enabled = true;
        tuning.rate_limit.per_ip = "50 per 1h, burst 50".parse().expect("a rate");
    });
    let ping = json!({ "jsonrpc": "2.0", "id": 1, "method": "ping" });
    let mut client = Client::connect(running.addr());
    let answers: Vec<u16> =
        (0..200).map(|_| client.post(&[("Mcp-Session-Id", &random_id(48))], &ping).status).collect();
    assert!(answers[..50].iter().all(|status| *status == 404), "{answers:?}");
    assert!(answers[50..].iter().all(|status| *status == 429), "{answers:?}");
}

#[test]
fn a_session_id_that_a_client_chose_is_none() {
    let (running, _) = as_built(|_| {});
    let params =
        json!({ "protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": { "name": "t", "version": "1" } });
    let initialize = json!({ "jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params });
    let chosen = "0".repeat(48);
    let mut seen = std::collections::HashSet::new();
    for _ in 0..500 {
        let opened = Client::connect(running.addr()).post(&[("Mcp-Session-Id", &chosen)], &initialize);
        let Some(id) = opened.header("mcp-session-id") else {
            assert!(opened.status >= 400, "{opened:?}"); // refused, which is as good
            continue;
        };
        assert_ne!(id, chosen);
        assert!(id.len() * 4 >= 122 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
        assert!(seen.insert(id.to_owned()), "given out twice: {id}");
    }
    for _ in 0..500 {
        assert!(seen.insert(Session::open(running.addr(), "2025-11-25").id), "given out twice");
    }
    let ping = json!({ "jsonrpc": "2.0", "id": 1, "method": "ping" });
    assert_eq!(Client::connect(running.addr()).post(&[("Mcp-Session-Id", &chosen)], &ping).status, 404);
}

/// What a result says of itself does not make it everybody's: the operator's settings do.
#[test]
fn a_result_that_calls_itself_public_is_kept_for_its_caller() {
    let issuer = Issuer::new();
    issuer.key_for("somebody", &[]);
    let server = Server::builder().with(
        Tool::new("mine", "Says that it is for all, and is not", Lane::Pool, |_: Nothing, ctx: Ctx| {
            let mut result = CallToolResult::success(vec![ContentBlock::text(ctx.caller().subject())]);
            let Value::Object(says) = json!({ "cacheScope": "public", "ttlMs": 60_000 }) else {
                unreachable!("an object")
            };
            result.meta = Some(MetaObject(says));
            result
        })
        .read_only(),
    );
    let running = start(server, |tuning| {
        issuer.tune(tuning);
        tuning.tools.insert("mine".into(), Config { cache_ttl_s: Some(600), ..Config::default() });
    });
    let ask = |subject: &str| {
        let bearer = format!("Bearer {}", issuer.token(subject));
        let mut headers = modern_headers("tools/call", "mine").to_vec();
        headers.push(("Authorization", &bearer));
        Client::connect(running.addr())
            .post(&headers, &modern(1, "tools/call", json!({ "name": "mine", "arguments": {} })))
            .text()
    };
    assert!(ask("ann").contains("ann"));
    let other = ask("bob");
    assert!(other.contains("bob") && !other.contains("ann"), "{other}");
    assert!(ask("ann").contains("ann"));
}

/// An issuer's address whose answer the test decides.
struct FalseIssuer {
    url: String,
    answer: Arc<Mutex<Answer>>,
    asked: Arc<AtomicUsize>,
}

#[derive(Clone)]
enum Answer {
    Keys(String),
    Head(String),
    /// So many bytes of nothing.
    Long(usize),
    Silence,
}

impl FalseIssuer {
    fn start(answer: Answer) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://127.0.0.1:{}/jwks", listener.local_addr().expect("an address").port());
        let (answer, asked) = (Arc::new(Mutex::new(answer)), Arc::<AtomicUsize>::default());
        let (answers, count) = (Arc::clone(&answer), Arc::clone(&asked));
        // It ends with the process: nothing of it can be left behind.
        thread::spawn(move || {
            let mut kept = Vec::new();
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let _ = stream.read(&mut [0; 4096]);
                count.fetch_add(1, Ordering::SeqCst);
                let text = match answers.lock().clone() {
                    Answer::Keys(keys) => format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{keys}", keys.len()),
                    Answer::Head(head) => format!("HTTP/1.1 {head}\r\n\r\n"),
                    Answer::Long(bytes) => {
                        format!("HTTP/1.1 200 OK\r\nContent-Length: {bytes}\r\n\r\n{}", " ".repeat(bytes))
                    }
                    Answer::Silence => {
                        kept.push(stream);
                        continue;
                    }
                };
                let _ = stream.write_all(text.as_bytes());
            }
        });
        Self { url, answer, asked }
    }

    fn now_says(&self, answer: Answer) {
        *self.answer.lock() = answer;
        let before = self.asked.load(Ordering::SeqCst);
        eventually("it is asked again", || self.asked.load(Ordering::SeqCst) > before);
    }
}

fn public_keys(issuer: &Issuer) -> String {
    let set: Value = serde_json::from_str(&fs::read_to_string(issuer.file("jwks.json")).expect("keys")).expect("JSON");
    json!({ "keys": [set["keys"][0]] }).to_string()
}

/// A server that fetches the keys of `issuer` from there, each second.
fn fetching(issuer: &Issuer, from: &FalseIssuer) -> Running {
    let (running, _) = as_built(|tuning| {
        issuer.tune(tuning);
        tuning.auth.keys_file = String::new();
        tuning.auth.jwks_file = String::new();
        tuning.auth.jwks_url = from.url.clone();
        tuning.auth.algorithms = vec!["ES256".into()];
        (tuning.auth.jwks_refresh_s, tuning.auth.jwks_retry_s) = (1, 1);
    });
    running
}

#[test]
fn an_issuer_that_goes_wrong_changes_nothing_for_who_is_known() {
    let (issuer, next) = (Issuer::new(), Issuer::new());
    let from = FalseIssuer::start(Answer::Keys(public_keys(&issuer)));
    let running = fetching(&issuer, &from);
    let status = |token: &str| ask(&running, &[("Authorization", &format!("Bearer {token}"))]).status;
    eventually("the keys are there", || status(&issuer.token("ann")) == 200);
    let inside = TcpListener::bind("127.0.0.1:0").expect("a port");
    let redirect = format!("302 Found\r\nLocation: http://{}/", inside.local_addr().expect("an address"));
    for wrong in [
        Answer::Head("500 Oh\r\nContent-Length: 0".into()),
        Answer::Keys("garbage".into()),
        Answer::Long(10 << 20),
        Answer::Head(format!("{redirect}\r\nContent-Length: 0")),
    ] {
        let kind = match &wrong {
            Answer::Head(text) | Answer::Keys(text) => text.clone(),
            _ => "long".into(),
        };
        from.now_says(wrong);
        // It is the key that is known, not the token: one that was not seen before is as good.
        assert_eq!(status(&issuer.token(&format!("who {kind:.3}"))), 200, "{kind}");
        assert_eq!(status(&next.token("eve")), 401, "{kind}");
    }
    from.now_says(Answer::Silence); // and while a fetch hangs, nobody waits for it
    assert_eq!((status(&issuer.token("somebody new")), status(&next.token("eve"))), (200, 401));
    inside.set_nonblocking(true).expect("set");
    assert!(inside.accept().is_err(), "no redirect was followed");
}

#[test]
fn a_key_that_the_issuer_took_back_opens_nothing() {
    let (issuer, next) = (Issuer::new(), Issuer::new());
    let from = FalseIssuer::start(Answer::Keys(public_keys(&issuer)));
    let running = fetching(&issuer, &from);
    let status = |token: &str| ask(&running, &[("Authorization", &format!("Bearer {token}"))]).status;
    let (old, new) = (issuer.token("ann"), next.token("ann"));
    eventually("the keys are there", || status(&old) == 200);
    assert_eq!(status(&new), 401);
    from.now_says(Answer::Keys(public_keys(&next)));
    eventually("the new key is taken", || status(&new) == 200);
    assert_eq!(status(&old), 401, "though it was verified before");
}

/// At the loudest level, with tokens wherever a client can put one.
#[test]
fn no_log_has_a_token_an_argument_or_a_query_in_it() {
    let issuer = Issuer::new();
    let key = issuer.key_for("ann", &[]);
    let keys_file = format!("auth.keys_file={}", issuer.file("keys.toml").display());
    let server =
        Process::start_in(Path::new(env!("CARGO_MANIFEST_DIR")), &["--set", &keys_file, "--set", "log.level=trace"]);
    let secret = secret_of(&key);
    let bearer = format!("Bearer {key}");
    let argument = "canary-argument";
    let echo = modern(1, "tools/call", json!({ "name": "echo", "arguments": { "message": argument } }));
    let mut headers = modern_headers("tools/call", "echo").to_vec();
    headers.push(("Authorization", &bearer));
    let mut client = Client::connect(server.addr);
    assert_eq!(client.post(&headers, &echo).status, 200);
    // In the query, in the body, in a cookie, in the wrong scheme, cut off, and in the wrong header.
    client.send(
        format!("GET /mcp?access_token={key}&q={argument} HTTP/1.1\r\nHost: 127.0.0.1\r\nCookie: t={key}\r\n\r\n")
            .as_bytes(),
    );
    assert_eq!(client.receive().expect("an answer").status, 401);
    for value in [format!("Basic {key}"), format!("Bearer {key}x"), format!("Bearer bi_{secret}"), key.clone()] {
        let mut headers = modern_headers("tools/call", "echo").to_vec();
        headers.push(("Authorization", &value));
        let body = modern(1, "tools/call", json!({ "name": "echo", "access_token": key }));
        assert_eq!(Client::connect(server.addr).post(&headers, &body).status, 401, "{value:.6}");
    }
    headers.push(("X-Token", &key));
    let wrong = modern(1, "tools/call", json!({ "name": argument, "arguments": { argument: key } }));
    assert!(client.post(&headers, &wrong).status >= 400);
    client.send(&post_bytes(&headers, format!("{{\"{secret}").as_bytes()));
    assert!(client.receive().expect("an answer").status >= 400);
    server.signal("TERM");
    let mut server = server;
    assert!(server.wait().success());
    let lines = server.log_lines();
    assert!(lines.iter().any(|line| line.contains("\"DEBUG\"") || line.contains("\"TRACE\"")), "it is loud: {lines:?}");
    for line in &lines {
        assert!(!line.contains(secret) && !line.contains(argument) && !line.contains("access_token"), "{line}");
    }
}

/// Patterns run in linear time, so that no argument is worth hours.
#[test]
fn a_pattern_that_others_hang_on_is_matched_at_once() {
    let Value::Object(schema) = json!({
        "type": "object",
        "properties": { "text": { "type": "string", "pattern": "^(a+)+$" } },
        "required": ["text"],
    }) else {
        unreachable!("it is written as an object")
    };
    let tool = Tool::new("match", "Matches", Lane::Inline, |_: Value, _: Ctx| "matched").input_schema(schema);
    let running = start(Server::builder().with(tool), |_| {});
    let nearly = format!("{}!", "a".repeat(100_000));
    let refused = call(running.addr(), "match", json!({ "text": nearly })).json();
    assert_eq!(refused["result"]["isError"], true, "{refused:.200}");
    assert_eq!(call(running.addr(), "match", json!({ "text": "a".repeat(100_000) })).text(), "matched");
    // What needs to look back cannot be matched in linear time, and is refused at the start.
    let Value::Object(schema) = json!({ "type": "object", "properties": { "t": { "pattern": "(a)\\1" } } }) else {
        unreachable!("it is written as an object")
    };
    let tool = Tool::new("back", "Looks back", Lane::Inline, |_: Value, _: Ctx| "").input_schema(schema);
    let mut tuning = Tuning::default();
    tuning.server.listen = "127.0.0.1:0".into();
    tuning.server.admin_listen = String::new();
    let error = Server::builder().with(tool).start(tuning).map(Running::stop).expect_err("refused");
    assert!(error.to_string().contains("back"), "{error}");
    assert_eq!(get(running.addr(), "/health").status, 200);
}

/// Asked for by name or in whatever else a client writes, another's things stay another's.
#[test]
fn who_one_is_comes_from_the_token_and_from_nothing_else() {
    let issuer = Issuer::new();
    issuer.key_for("somebody", &[]);
    let server = Server::builder()
        .tool("who", "Says who calls", Lane::Inline, |_: Value, ctx: Ctx| ctx.caller().subject().to_owned());
    let running = start(server, |tuning| issuer.tune(tuning));
    let bearer = format!("Bearer {}", issuer.token("bob"));
    let mut params = json!({ "name": "who", "arguments": { "subject": "ann", "tenant": "ann", "sub": "ann" } });
    params["_meta"] = meta();
    for name in ["sub", "subject", "tenant", "bigiron/caller", "io.modelcontextprotocol/clientInfo"] {
        params["_meta"][name] = json!({ "name": "ann", "version": "ann", "sub": "ann" });
    }
    let mut headers = modern_headers("tools/call", "who").to_vec();
    headers.push(("Authorization", &bearer));
    for header in ["X-Tenant", "X-Tenant-Id", "X-User", "X-Forwarded-User", "X-Remote-User", "X-Subject", "Remote-User"]
    {
        headers.push((header, "ann"));
    }
    let told = Client::connect(running.addr()).post(&headers, &modern(1, "tools/call", params)).text();
    assert!(told.contains("3:bob;") && !told.contains("ann"), "{told}");
    let mut client = Client::connect(running.addr());
    let list = modern(1, "tools/list", json!({})).to_string();
    let head = format!("POST /mcp/ann HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: {bearer}\r\n");
    client.send(format!("{head}Content-Length: {}\r\n\r\n{list}", list.len()).as_bytes());
    assert_eq!(client.receive().expect("an answer").status, 404, "no path is anybody's");
}

/// Who can reach the admin listener can read there; to change something takes a key, on this host too.
#[test]
fn the_admin_listener_changes_nothing_without_a_key_for_it() {
    let issuer = Issuer::new();
    let (admin, other) = (issuer.key_for("operator", &["bigiron:admin"]), issuer.key_for("ann", &["read"]));
    let (running, _) = as_built(|tuning| {
        issuer.tune(tuning);
        tuning.tools.insert(
            "quick".into(),
            Config { cache_ttl_s: Some(600), cache_not_read_only: Some(true), ..Config::default() },
        );
    });
    let address = running.admin_addr().expect("an admin listener");
    let post = |key: Option<&str>| {
        let authorization = key.map_or_else(String::new, |key| format!("Authorization: Bearer {key}\r\n"));
        let mut client = Client::connect(address);
        let head = "POST /cache/invalidate HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n";
        client.send(format!("{head}{authorization}Content-Length: 12\r\n\r\n{{\"all\":true}}").as_bytes());
        client.receive().expect("an answer")
    };
    let refused = post(None);
    assert_eq!(refused.status, 401, "{refused:?}");
    assert!(refused.header("www-authenticate").is_some_and(|told| told.starts_with("Bearer")), "{refused:?}");
    let refused = post(Some(&other));
    assert_eq!(refused.status, 403, "{refused:?}");
    let challenge = refused.header("www-authenticate").unwrap_or_default().to_owned();
    assert!(challenge.contains("scope=\"bigiron:admin\"") && challenge.contains("insufficient_scope"), "{challenge}");
    assert_eq!(post(Some(&admin)).status, 200);
    assert_eq!(get(address, "/metrics").status, 200, "what only reads asks nobody");
    // From the shell, with the key in a file and never on the command line.
    let file = issuer.file("admin.key");
    let invalidate = |key: &str| {
        fs::write(&file, format!("{key}\n")).expect("written");
        let mut command = Command::new(env!("CARGO_BIN_EXE_bigiron"));
        command.args(["cache", "invalidate", "--all", "--admin", &address.to_string(), "--key-file"]).arg(&file);
        let ran = command.output().expect("it runs");
        (ran.status.code(), String::from_utf8_lossy(&ran.stderr).into_owned())
    };
    assert_eq!(invalidate(&admin).0, Some(0));
    let (code, said) = invalidate(&other);
    assert!(code == Some(1) && said.contains("--key-file") && !said.contains(&other), "{said}");
    assert!(invalidate("two words").1.contains("no API key"), "and nothing was sent");
}

/// A client that asks for the scopes that it is told gets a token that is enough.
#[test]
fn what_the_admin_listener_asks_for_is_all_that_is_needed() {
    let issuer = Issuer::new();
    let (nothing, some) = (issuer.token_with("ann", "other"), issuer.token_with("ann", "read write"));
    let all = issuer.token_with("ann", "write bigiron:admin read");
    let (running, _) = as_built(|tuning| {
        issuer.tune(tuning);
        issuer.key_for("somebody", &[]);
        tuning.auth.required_scopes = vec!["read".into(), "write".into()];
    });
    let post = |token: Option<&str>| {
        let authorization = token.map_or_else(String::new, |token| format!("Authorization: Bearer {token}\r\n"));
        let mut client = Client::connect(running.admin_addr().expect("an admin listener"));
        let head = "POST /cache/invalidate HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n";
        client.send(format!("{head}{authorization}Content-Length: 12\r\n\r\n{{\"all\":true}}").as_bytes());
        client.receive().expect("an answer")
    };
    for (token, status) in [(None, 401), (Some(&nothing), 403), (Some(&some), 403)] {
        let refused = post(token.map(String::as_str));
        let challenge = refused.header("www-authenticate").unwrap_or_default();
        assert_eq!(refused.status, status, "{refused:?}");
        assert!(challenge.contains("scope=\"read write bigiron:admin\""), "{challenge}");
    }
    assert_eq!(post(Some(&all)).status, 200);
}

/// What `bigiron check` says with these settings.
fn check(folder: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bigiron"));
    let command = command.arg("check").args(arguments).current_dir(folder).env_clear().stdin(Stdio::null());
    let ran = command.output().expect("bigiron starts");
    (ran.status.code(), String::from_utf8_lossy(&ran.stderr).into_owned())
}

#[test]
fn check_tells_what_is_weak_and_nothing_of_what_is_not() {
    let issuer = Issuer::new();
    let folder = issuer.file("");
    let (key, log) = (issuer.key_for("ann", &[]), folder.join("audit.log"));
    let keys = format!("auth.keys_file={}", issuer.file("keys.toml").display());
    let audit = format!("audit.file={}", log.display());
    let fine = ["--set", &keys, "--set", &audit, "--set", "audit.policy=required", "--set", "rate_limit.enabled=true"];
    let root = folder.join("served");
    fs::create_dir(&root).expect("a folder");
    let root = format!("toolbox.root={}", root.display());
    let open = ["--listen", "0.0.0.0:0", "--set", &root];
    let (_, said) = check(&folder, &["--set", &keys, "--set", &audit]);
    for setting in ["auth.keys_file", "audit.file"] {
        let expected = format!("weak: {setting} is ");
        assert!(said.lines().any(|line| line.contains(&expected) && line.contains("toolbox.root")), "{said}");
    }
    for (arguments, expected) in [
        (&["--insecure-no-auth"][..], "nobody is asked who they are"),
        (&["--insecure-no-auth"], "rate_limit.enabled is false"),
        (&["--set", &keys], &format!("keys without an end: {}", &key[3..11])),
        (&["--set", &keys], "audit.file is empty"),
        (&["--set", &keys, "--set", &audit], "audit.policy is \"best-effort\""),
        (
            &["--set", &keys, "--set", "server.trusted_proxies=[\"0.0.0.0/0\"]"],
            "server.trusted_proxies has \"0.0.0.0/0\"",
        ),
        (&["--set", &keys, "--set", "server.allowed_origins=[\"http://app.example\"]"], "server.allowed_origins has"),
    ] {
        let (code, said) = check(&folder, &[&open, arguments].concat());
        assert_eq!(code, Some(0), "{arguments:?}: {said}");
        let (code, strictly) = check(&folder, &[&open, arguments, &["--strict"]].concat());
        assert_eq!((code, &strictly), (Some(1), &said), "{arguments:?}");
        let found = said.lines().any(|line| line.starts_with("bigiron: weak: ") && line.contains(expected));
        assert!(found, "{arguments:?} says nothing of {expected:?}:\n{said}");
        assert!(!said.contains(secret_of(&key)), "{said}");
    }
    issuer.revoke(&key);
    let made = Command::new(env!("CARGO_BIN_EXE_bigiron"))
        .args(["key", "create", "--subject", "ann", "--expires", "90d", "--file"])
        .arg(issuer.file("keys.toml"))
        .output()
        .expect("bigiron starts");
    assert!(made.status.success(), "{made:?}");
    let (code, said) = check(&folder, &[&open, &fine[..]].concat());
    let others = said.lines().filter(|line| line.contains("weak") && !line.contains("[tls] is off"));
    assert_eq!((code, others.count()), (Some(0), 0), "{said}");
    // As it is out of the box, for this host alone, there is nothing to say.
    let (code, said) = check(&folder, &["--strict"]);
    assert_eq!((code, said.contains("weak")), (Some(0), false), "{said}");
}

/// What check calls weak, the start does too; and check says it last.
#[test]
fn what_is_weak_is_told_at_the_start_too() {
    let folder = tempfile::TempDir::new().expect("a folder");
    let weak = ["--set", "rate_limit.enabled=true", "--set", "rate_limit.per_ip=off"];
    let process = Process::start_in(folder.path(), &weak);
    let line = process.log_line_with("rate_limit.per_ip is");
    assert!(line.contains("WARN") && line.contains("weak: "), "{line}");
    let said = fs::File::create(folder.path().join("said")).expect("a file");
    let both = (said.try_clone().expect("a file"), said);
    let mut command = Command::new(env!("CARGO_BIN_EXE_bigiron"));
    let command = command.arg("check").args(weak).current_dir(folder.path()).env_clear().stdin(Stdio::null());
    assert!(command.stdout(both.0).stderr(both.1).status().expect("bigiron starts").success());
    let said = fs::read_to_string(folder.path().join("said")).expect("text");
    assert!(said.lines().last().is_some_and(|line| line.starts_with("bigiron: weak: rate_limit.per_ip")), "{said}");
}

/// The word that lets others reach the admin listener may have been said for the endpoint alone.
#[test]
fn an_admin_listener_that_others_reach_is_told_at_the_start_and_again() {
    let issuer = Issuer::new();
    issuer.key_for("ann", &[]);
    let keys = format!("auth.keys_file={}", issuer.file("keys.toml").display());
    let open = ["--insecure-no-auth", "--set", "server.admin_listen=0.0.0.0:0", "--set", &keys];
    let process = Process::start(&open);
    // A task of its own says the second, so that either may come first, and before it is said that all is served.
    let mut missing = vec!["weak: server.admin_listen is", "everybody who reaches the admin listener"];
    let mut began = process.began.iter().filter(|line| line.contains("WARN")).cloned();
    while !missing.is_empty() {
        let line = began.next().unwrap_or_else(|| process.log_line_with("WARN"));
        assert!(!line.contains("no authentication"), "keys are asked for: {line}");
        missing.retain(|text| !line.contains(text));
    }
    assert!(process.log_lines().iter().all(|line| !line.contains("no authentication")), "keys are asked for");
}

/// What manuals print is no secret.
#[test]
fn a_placeholder_for_a_secret_stops_the_start() {
    let folder = tempfile::TempDir::new().expect("a folder");
    for secret in [
        "changeme-changeme-changeme-changeme",
        "your-256-bit-key-goes-here-0123456789",
        "a-string-secret-at-least-256-bits-long",
        "00000000000000000000000000000000",
    ] {
        fs::write(folder.path().join("tuning.toml"), format!("[input]\nstate_keys = [\"{secret}\"]\n"))
            .expect("written");
        let (code, said) = check(folder.path(), &[]);
        assert_eq!(code, Some(78), "{secret}: {said}");
        assert!(said.contains("input.state_keys") && said.contains("placeholder") && !said.contains(secret), "{said}");
    }
    let made = random_id(64);
    fs::write(folder.path().join("tuning.toml"), format!("[input]\nstate_keys = [\"{made}\"]\n")).expect("written");
    assert_eq!(check(folder.path(), &[]).0, Some(0));
}

/// A limit that is set holds to the byte: as much passes, and one more does not.
#[test]
fn each_limit_of_the_front_door_is_crossed_by_one() {
    const BYTES: usize = 2048;
    const HEADERS: usize = 20;
    const DEPTH: usize = 12;
    let server = Server::builder().tool("any", "Takes anything", Lane::Inline, |_: Value, _: Ctx| "done");
    let running = start(server, |tuning| {
        tuning.limits.request_bytes_max = bigiron::units::ByteSize::kib(BYTES as u64 / 1024);
        tuning.limits.body_bytes_per_s_min = 0;
        tuning.limits.headers_max = HEADERS;
        tuning.limits.json_depth_max = DEPTH;
    });
    let call = |arguments: Value| modern(1, "tools/call", json!({ "name": "any", "arguments": arguments })).to_string();
    let status = |more: &[(String, String)], body: &str| {
        let mut headers = modern_headers("tools/call", "any").to_vec();
        headers.extend(more.iter().map(|(name, value)| (name.as_str(), value.as_str())));
        let mut client = Client::connect(running.addr());
        client.send(&post_bytes(&headers, body.as_bytes()));
        client.receive().expect("an answer").status
    };
    let long = |bytes: usize| {
        let body = call(json!({}));
        format!("{body}{}", " ".repeat(bytes - body.len()))
    };
    assert_eq!((status(&[], &long(BYTES)), status(&[], &long(BYTES + 1))), (200, 413));
    // Four that every request has, and three of the revision.
    let many = |count: usize| (7..count).map(|n| (format!("X-{n}"), "x".to_owned())).collect::<Vec<_>>();
    let body = call(json!({}));
    assert_eq!((status(&many(HEADERS), &body), status(&many(HEADERS + 1), &body)), (200, 431));
    // The arguments themselves are the first level.
    let deep = |depth: usize| call(json!({ "x": (2..depth).fold(json!([]), |inner, _| json!([inner])) }));
    assert_eq!((status(&[], &deep(DEPTH)), status(&[], &deep(DEPTH + 1))), (200, 400));
}
