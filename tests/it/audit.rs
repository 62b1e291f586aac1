//! The audit trail of a whole server: one line for each call and each refusal, whatever becomes of them and of the file.

use std::{
    collections::BTreeMap,
    fs,
    io::Write,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
};

use bigiron::{
    CallError, Ctx, Lane, Resource, Server, audit::Arguments, audit::Policy, config::Tuning, server::Running,
};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::identity::Issuer;
use crate::support::{
    Client, Session, call, eventually, get, metric, metrics, modern, modern_headers, post_bytes, start,
};

#[derive(Deserialize, JsonSchema)]
struct Words {
    #[serde(default)]
    #[allow(dead_code)] // it is there to be sent
    text: String,
}

/// A server whose trail is a file in a folder of its own.
struct Trailed {
    running: Running,
    file: PathBuf,
    _folder: TempDir,
}

fn serve(tune: impl FnOnce(&mut Tuning)) -> Trailed {
    let folder = TempDir::new().expect("a folder");
    let file = folder.path().join("audit.log");
    let server = Server::builder()
        .tool("quick", "Answers at once", Lane::Inline, |_: Words, _: Ctx| "done")
        .tool("busy", "Answers from the pool", Lane::Pool, |_: Words, _: Ctx| "done")
        .tool("fail", "Fails", Lane::Inline, |_: Words, _: Ctx| Err::<String, _>(CallError::Tool("it failed".into())))
        .tool("panic", "Panics", Lane::Pool, |_: Words, _: Ctx| -> String { panic!("by request") })
        .async_tool("hang", "Never ends", |_: Words, _: Ctx| async {
            std::future::pending::<()>().await;
            "never"
        })
        .resource(Resource::new("memo://one", "one", "The one", "text/plain", Lane::Inline, |_, _| "text"));
    let running = start(server, |tuning| {
        tuning.audit.file = file.to_str().expect("a path").into();
        tune(tuning);
    });
    Trailed { running, file, _folder: folder }
}

impl Trailed {
    /// Stops it, and reads the whole trail.
    fn stop(self) -> Vec<Value> {
        self.running.stop();
        lines(&self.file)
    }
}

fn lines(file: &Path) -> Vec<Value> {
    let text = fs::read_to_string(file).expect("the trail");
    assert!(text.is_empty() || text.ends_with('\n'), "the last line is whole");
    assert!(text.lines().all(|line| line.len() < 8 << 10), "no line is long");
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line:?}"))).collect()
}

fn of<'a>(lines: &'a [Value], event: &str) -> Vec<&'a Value> {
    lines.iter().filter(|line| line["event"] == event).collect()
}

/// How many lines of an event have each value of a member.
fn counted(lines: &[Value], event: &str, member: &str) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for line in of(lines, event) {
        *counts.entry(line[member].as_str().unwrap_or_default().to_owned()).or_default() += 1;
    }
    counts
}

fn counts<const N: usize>(expected: [(&str, usize); N]) -> BTreeMap<String, usize> {
    expected.into_iter().map(|(word, count)| (word.to_owned(), count)).collect()
}

#[test]
fn each_call_and_each_refusal_is_one_line_and_the_counts_agree() {
    let served = serve(|tuning| tuning.limits.request_timeout_ms = 1_000);
    let addr = served.running.addr();
    assert_eq!(call(addr, "quick", json!({ "text": "secret" })).text(), "done");
    assert_eq!(call(addr, "busy", json!({})).text(), "done");
    assert_eq!(call(addr, "fail", json!({})).json()["result"]["isError"], true);
    assert_eq!(call(addr, "panic", json!({})).code(), Some(-32603));
    assert_eq!(call(addr, "hang", json!({})).json()["result"]["isError"], true, "its time is up");
    let read = Client::connect(addr).post(
        &modern_headers("resources/read", "memo://one"),
        &modern(1, "resources/read", json!({ "uri": "memo://one" })),
    );
    assert_eq!(read.status, 200, "{read:?}");
    let mut session = Session::open(addr, "2025-03-26");
    assert_eq!(session.request(3, "tools/call", json!({ "name": "quick" })).text(), "done");
    let batch = json!([
        { "jsonrpc": "2.0", "id": 4, "method": "tools/call", "params": { "name": "quick" } },
        { "jsonrpc": "2.0", "id": 5, "method": "tools/call", "params": { "name": "nothing" } },
        { "jsonrpc": "2.0", "id": 6, "method": "tools/call", "params": { "name": "busy" } },
    ]);
    assert_eq!(Client::connect(addr).post(&[("Mcp-Session-Id", &session.id)], &batch).status, 200);
    // Who leaves takes the call back.
    let mut client = Client::connect(addr);
    let request = modern(1, "tools/call", json!({ "name": "hang" }));
    client.send(&post_bytes(&modern_headers("tools/call", "hang"), request.to_string().as_bytes()));
    eventually("it runs", || served.running.in_flight() == 1);
    drop(client);
    eventually("it is over", || served.running.in_flight() == 0);
    // Refusals: by the front door, by the protocol, and of a session that there is not.
    assert_eq!(get(addr, "/elsewhere").status, 404);
    let mut client = Client::connect(addr);
    assert_eq!(client.post(&[("Content-Type", "text/plain")], &json!({})).status, 415);
    assert_eq!(Client::connect(addr).post(&[("Host", "evil.example")], &json!({})).status, 403);
    assert_eq!(call(addr, "nothing", json!({})).code(), Some(-32602));
    let mut client = Client::connect(addr);
    client.send(&post_bytes(&modern_headers("tools/call", "quick"), b"{"));
    assert_eq!(client.receive().expect("an answer").status, 400);
    let gone = Client::connect(addr)
        .post(&[("Mcp-Session-Id", "none")], &json!({ "jsonrpc": "2.0", "id": 1, "method": "ping" }));
    assert_eq!(gone.status, 404);
    // What is no call and was not refused has no line: lists, and what opens a session.
    assert_eq!(get(addr, "/health").status, 200);
    let refusals = metrics(&served.running);

    let lines = served.stop();
    let outcomes = counts([("ok", 6), ("tool_error", 2), ("error", 1), ("cancelled", 1)]);
    assert_eq!(counted(&lines, "call", "outcome"), outcomes, "{lines:#?}");
    let reasons = counts([
        ("not_found", 2),
        ("unsupported_media_type", 1),
        ("forbidden", 1),
        ("invalid_params", 2),
        ("parse_error", 1),
    ]);
    assert_eq!(counted(&lines, "refusal", "reason"), reasons, "{lines:#?}");
    for (reason, count) in reasons {
        let series = format!("bigiron_refusals_total{{reason=\"{reason}\"}} {count}\n");
        assert!(refusals.contains(&series), "{series} is not in\n{refusals}");
    }
    for (event, times) in [("start", 1), ("drain", 1), ("stop", 1)] {
        assert_eq!(of(&lines, event).len(), times, "{event}");
    }
    // Who, what, when, from where, where, how long; and no arguments but their hash.
    let first = of(&lines, "call")[0];
    assert_eq!((&first["caller"], &first["address"]), (&json!("anonymous"), &json!("127.0.0.1")));
    assert_eq!((&first["method"], &first["tool"]), (&json!("tools/call"), &json!("quick")));
    assert_eq!(first["arguments_sha256"].as_str().map(str::len), Some(64), "{first}");
    assert!(first["time"].is_string() && first["node"].is_string() && first["duration_us"].is_u64(), "{first}");
    assert!(!lines.iter().any(|line| line.to_string().contains("secret")));
    let panicked = of(&lines, "call").into_iter().find(|line| line["tool"] == "panic").expect("a line");
    assert_eq!(panicked["code"], -32603);
    let read = of(&lines, "call").into_iter().find(|line| line["method"] == "resources/read").expect("a line");
    assert_eq!(read["name"], "memo://one", "{read}");
    let sessions = lines.iter().filter(|line| line.get("session_sha256").is_some()).count();
    assert_eq!(sessions, 5, "four of the session that there is, and one that there is not");
    assert!(!lines.iter().any(|line| line.to_string().contains(&session.id)), "its id opens the session");
}

/// Whatever becomes of a request, its line has the id by which its client's log knows it; of one that is in no message
/// there is none.
#[test]
fn a_line_is_found_by_the_id_of_its_request() {
    let served = serve(|_| {});
    let addr = served.running.addr();
    let sent = |id: Value, method: &str, name: &str, params: Value| {
        let mut request = modern(1, method, params);
        request["id"] = id;
        Client::connect(addr).post(&modern_headers(method, name), &request)
    };
    let call = |id: Value, tool: &str| sent(id, "tools/call", tool, json!({ "name": tool }));
    let ids = [json!(i64::MAX), json!("7"), json!("a\"\n\u{2028}é"), json!(-7), json!(""), json!("x".repeat(1000))];
    for (id, tool) in ids.iter().zip(["quick", "busy", "quick", "panic", "nothing", "busy"]) {
        assert_eq!(call(id.clone(), tool).json()["id"], *id, "{tool}");
    }
    assert_eq!(sent(json!("r"), "resources/read", "memo://one", json!({ "uri": "memo://one" })).status, 200);
    assert_eq!(get(addr, "/elsewhere").status, 404);
    let mut session = Session::open(addr, "2025-03-26");
    assert_eq!(session.request(3, "tools/call", json!({ "name": "quick" })).text(), "done");

    let lines = served.stop();
    let mut noted: Vec<Value> = of(&lines, "call").iter().map(|line| line["request_id"].clone()).collect();
    let long = noted.remove(4);
    assert!(long.as_str().is_some_and(|id| id.starts_with("xxx") && id.ends_with('…') && id.len() < 300), "{long}");
    assert_eq!(noted, [ids[0].clone(), ids[1].clone(), ids[2].clone(), ids[3].clone(), json!("r"), json!(3)]);
    let refused: Vec<Option<&Value>> = of(&lines, "refusal").iter().map(|line| line.get("request_id")).collect();
    assert_eq!(refused, [Some(&ids[4]), None]);
}

#[test]
fn many_callers_at_once_lose_no_line() {
    let served = serve(|tuning| tuning.audit.policy = Policy::Required);
    let addr = served.running.addr();
    let done = AtomicUsize::new(0);
    let (callers, calls) = (8, 250);
    thread::scope(|scope| {
        for caller in 0..callers {
            let done = &done;
            scope.spawn(move || {
                let mut client = Client::connect(addr);
                for id in 0..calls {
                    let tool = if id % 5 == 0 { "busy" } else { "quick" };
                    let request =
                        modern(id, "tools/call", json!({ "name": tool, "arguments": { "text": caller.to_string() } }));
                    if client.post(&modern_headers("tools/call", tool), &request).status == 200 {
                        done.fetch_add(1, Ordering::SeqCst);
                    }
                }
            });
        }
    });
    let done = done.load(Ordering::SeqCst);
    assert_eq!(done, callers * calls);
    eventually("all is written", || metric(&served.running, "bigiron_audit_waiting_lines") <= 0.0);
    assert_eq!(metric(&served.running, "bigiron_audit_lines_total{what=\"dropped\"}"), 0.0);
    assert_eq!(
        metric(&served.running, "bigiron_audit_lines_total{what=\"written\"}"),
        (done + 1) as f64,
        "and the start"
    );
    assert_eq!(counted(&served.stop(), "call", "outcome"), counts([("ok", done)]));
}

#[test]
fn a_trail_that_cannot_be_written_stops_calls_only_where_it_is_required() {
    for (policy, status) in [(Policy::Required, 503), (Policy::BestEffort, 200)] {
        let served = serve(|tuning| {
            tuning.audit.file = "/dev/full".into();
            tuning.audit.policy = policy;
        });
        let addr = served.running.addr();
        for _ in 0..3 {
            let answer = call(addr, "quick", json!({}));
            assert_eq!(answer.status, status, "{policy:?}: {answer:?}");
            if status == 503 {
                assert_eq!(answer.code(), Some(-31503));
                assert_eq!(answer.json()["id"], 1);
                assert!(answer.header("retry-after").is_some(), "{answer:?}");
            }
        }
        assert_eq!(metric(&served.running, "bigiron_audit_failing"), 1.0);
        for address in [served.running.addr(), served.running.admin_addr().expect("an admin listener")] {
            let ready = get(address, "/ready");
            assert_eq!(ready.status, status, "{ready:?}");
            let said = String::from_utf8_lossy(&ready.body);
            assert_eq!(said.contains("the audit log cannot be written"), status == 503, "{said}");
        }
        let refused = if policy == Policy::Required { 3.0 } else { 0.0 };
        assert_eq!(metric(&served.running, "bigiron_audit_refused_total"), refused);
        assert_eq!((get(addr, "/health").status, get(addr, "/ready").status), (200, status));
    }
}

#[test]
fn a_trail_that_was_moved_away_goes_on_in_a_new_file() {
    let served = serve(|tuning| tuning.audit.policy = Policy::Required);
    let addr = served.running.addr();
    let mut found = Vec::new();
    for round in 0..2 {
        for _ in 0..20 {
            assert_eq!(call(addr, "quick", json!({})).status, 200);
        }
        let old = served.file.with_extension(round.to_string());
        fs::rename(&served.file, &old).expect("moved");
        eventually("it is made anew", || served.file.exists());
        found.extend(lines(&old));
    }
    assert_eq!(call(addr, "quick", json!({})).status, 200);
    found.extend(served.stop());
    assert_eq!(of(&found, "call").len(), 41);
    assert_eq!((of(&found, "start").len(), of(&found, "stop").len()), (1, 1));
}

/// Keys that are others from now on are in the trail, since they decide who may call.
#[test]
fn keys_that_were_read_again_leave_a_line() {
    let issuer = Issuer::new();
    let key = issuer.key_for("ann", &[]);
    let served = serve(|tuning| issuer.tune(tuning));
    let bearer = format!("Bearer {key}");
    let mut headers = modern_headers("tools/call", "quick").to_vec();
    headers.push(("Authorization", &bearer));
    let request = modern(1, "tools/call", json!({ "name": "quick" }));
    let mut client = Client::connect(served.running.addr());
    assert_eq!(client.post(&headers, &request).status, 200);
    issuer.revoke(&key);
    eventually("the key is refused", || client.post(&headers, &request).status == 401);
    let lines = served.stop();
    assert_eq!(of(&lines, "reload").len(), 1, "{lines:#?}");
    let subject = of(&lines, "call")[0]["caller"].as_str().unwrap_or_default();
    assert!(subject.contains("3:ann;"), "{subject}");
    assert!(of(&lines, "refusal").iter().all(|line| line["reason"] == "unauthorized"), "{lines:#?}");
    assert!(!lines.iter().any(|line| line.to_string().contains(&key)));
}

/// Two keys of one caller are told apart, a refusal says what exactly was wrong, and who looks for tools that are not for
/// him is found.
#[test]
fn a_line_says_which_key_it_was_and_what_exactly_was_wrong() {
    let issuer = Issuer::new();
    let (one, two) = (issuer.key_for("ann", &[]), issuer.key_for("ann", &[]));
    let served = serve(|tuning| {
        issuer.tune(tuning);
        tuning.rate_limit.enabled = true;
        let tool = bigiron::tool::Config { rate_per_caller: "1 per 1h".parse().ok(), ..Default::default() };
        tuning.tools.insert("busy".into(), tool);
        let tool = bigiron::tool::Config { subjects: Some(vec!["bob".into()]), ..Default::default() };
        tuning.tools.insert("fail".into(), tool);
    });
    let call = |tool: &str, token: &str| {
        let bearer = format!("Bearer {token}");
        let mut headers = modern_headers("tools/call", tool).to_vec();
        headers.push(("Authorization", &bearer));
        Client::connect(served.running.addr()).post(&headers, &modern(1, "tools/call", json!({ "name": tool })))
    };
    assert_eq!((call("quick", &one).status, call("busy", &two).status), (200, 200));
    let refused = call("busy", &two);
    assert_eq!(refused.status, 429);
    let told = refused.json()["error"]["message"].to_string();
    assert!(told.contains("tools.busy.rate_per_caller lets 1 pass in 3600 s"), "{told}");
    let unknown = format!("bi_00000000_{}", "x".repeat(43));
    assert_eq!((call("quick", &unknown).status, call("quick", "a.b.c").status), (401, 401));
    assert_eq!(call("fail", &one).code(), Some(-32602));
    assert_eq!(call("nothing", &one).code(), Some(-32602));
    let keys = [&one, &two].map(|key| key[3..11].to_owned());
    let lines = served.stop();
    assert_eq!(of(&lines, "call").iter().map(|line| &line["key"]).collect::<Vec<_>>(), [&keys[0], &keys[1]]);
    let refusals: Vec<_> = of(&lines, "refusal")
        .iter()
        .map(|line| ["reason", "detail", "key"].map(|member| line[member].clone()))
        .collect();
    let expected = [
        json!(["rate_limited", "per_tool_and_caller", keys[1]]),
        json!(["unauthorized", "unknown_api_key", null]),
        json!(["unauthorized", "malformed", null]),
        json!(["invalid_params", "no_right", keys[0]]),
        json!(["invalid_params", null, keys[0]]),
    ];
    assert_eq!(refusals.into_iter().map(Value::from_iter).collect::<Vec<_>>(), expected, "{lines:#?}");
}

/// Who is let in nowhere for want of a scope is known all the same.
#[test]
fn who_lacks_a_scope_is_named() {
    let issuer = Issuer::new();
    let key = issuer.key_for("ann", &[]);
    let served = serve(|tuning| {
        issuer.tune(tuning);
        tuning.auth.required_scopes = vec!["read".into()];
    });
    let authorization = format!("Bearer {key}");
    let headers = [&modern_headers("tools/call", "quick")[..], &[("Authorization", authorization.as_str())]].concat();
    let request = modern(1, "tools/call", json!({ "name": "quick", "arguments": { "text": "a" } }));
    assert_eq!(Client::connect(served.running.addr()).post(&headers, &request).status, 403);
    let lines = served.stop();
    let refusal = &of(&lines, "refusal")[0];
    assert_eq!((&refusal["caller"], &refusal["detail"]), (&json!("12:bigiron:keys;3:ann;"), &json!("scope")));
    assert_eq!(refusal["key"], json!(key[3..11]));
}

/// Who guesses at the admin listener is slowed down and seen, as at the endpoint; who changes something there is named.
#[test]
fn at_the_admin_listener_guessing_is_limited_and_deeds_have_lines() {
    let issuer = Issuer::new();
    let (admin, other) = (issuer.key_for("root", &["bigiron:admin"]), issuer.key_for("ann", &[]));
    let served = serve(|tuning| {
        issuer.tune(tuning);
        tuning.rate_limit.enabled = true;
        tuning.rate_limit.per_ip = "3 per 1h".parse().expect("a rate");
        let tool =
            bigiron::tool::Config { cache_ttl_s: Some(60), cache_not_read_only: Some(true), ..Default::default() };
        tuning.tools.insert("quick".into(), tool);
    });
    let invalidate = |key: &str, body: &str| {
        let mut client = Client::connect(served.running.admin_addr().expect("on"));
        let (head, length) = ("POST /cache/invalidate HTTP/1.1\r\nHost: 127.0.0.1", body.len());
        let about = format!("Authorization: Bearer {key}\r\nContent-Type: application/json");
        client.send(format!("{head}\r\n{about}\r\nContent-Length: {length}\r\n\r\n{body}").as_bytes());
        client.receive().expect("an answer")
    };
    let all = r#"{"all":true}"#;
    let wrong = format!("bi_00000000_{}", "x".repeat(43));
    let refused: Vec<u16> = (0..4).map(|n| invalidate(if n == 0 { &other } else { &wrong }, all).status).collect();
    assert_eq!(refused, [403, 401, 401, 429]);
    assert_eq!(invalidate(&admin, r#"{"tool":"nothing"}"#).status, 404);
    for body in [all, r#"{"tool":"quick","arguments":{"text":"a"},"caller":"12:bigiron:keys;3:ann;"}"#] {
        assert_eq!(invalidate(&admin, body).status, 200, "who is known is not slowed down");
    }
    assert_eq!(metric(&served.running, "bigiron_refusals_total{reason=\"unauthorized\"}"), 2.0);
    assert_eq!(metric(&served.running, "bigiron_refusals_total{reason=\"rate_limited\"}"), 1.0);
    let lines = served.stop();
    let refusals = of(&lines, "refusal");
    let details: Vec<_> = refusals.iter().map(|line| line["detail"].as_str().unwrap_or_default()).collect();
    assert_eq!(details, ["scope", "unknown_api_key", "unknown_api_key", "per_ip"]);
    assert!(refusals.iter().all(|line| line["address"] == "127.0.0.1" && line["name"] == "/cache/invalidate"));
    let (known, unknown) = (&refusals[0], &refusals[1]);
    assert_eq!((&known["caller"], &known["key"]), (&json!("12:bigiron:keys;3:ann;"), &json!(other[3..11])));
    assert_eq!((&unknown["caller"], &unknown["key"]), (&json!("anonymous"), &Value::Null));
    let deeds = of(&lines, "invalidate");
    assert_eq!(deeds.len(), 2, "{lines:#?}");
    for line in &deeds {
        assert_eq!((&line["caller"], &line["address"]), (&json!("12:bigiron:keys;4:root;"), &json!("127.0.0.1")));
        assert_eq!((&line["key"], &line["outcome"]), (&json!(admin[3..11]), &json!("ok")));
    }
    assert_eq!(deeds[0]["detail"], "all");
    assert_eq!(deeds[1]["detail"], "of 12:bigiron:keys;3:ann;");
    assert_eq!((&deeds[1]["tool"], deeds[1]["arguments_sha256"].is_string()), (&json!("quick"), true));
}

#[test]
fn whatever_is_sent_a_line_is_one_line() {
    let served = serve(|tuning| tuning.audit.arguments = Arguments::Full);
    let addr = served.running.addr();
    let mut session = Session::open(addr, "2025-06-18");
    let nasty = "a\r\n{\"event\":\"forged\"}\u{1b}[2J\u{2028}\u{202e}";
    let long = "x\u{2028}".repeat(150_000);
    for text in [nasty, long.as_str()] {
        let said = session.request(1, "tools/call", json!({ "name": "quick", "arguments": { "text": text } }));
        assert_eq!(said.text(), "done");
        assert_eq!(session.request(2, "tools/call", json!({ "name": text })).code(), Some(-32602));
        assert_eq!(session.request(3, text, json!({})).code(), Some(-32601));
    }
    // In headers, as far as HTTP lets them through: ESC, CR and LF it does not.
    let request = modern(1, "tools/call", json!({ "name": "quick" }));
    let answer = Client::connect(addr).post(&modern_headers("tools/call", "a\u{202e}"), &request);
    assert_eq!(answer.status, 400);
    served.running.stop();
    let lines = lines(&served.file); // reads each as JSON, and looks at its length
    assert_eq!(of(&lines, "forged").len(), 0);
    assert_eq!((of(&lines, "call").len(), of(&lines, "refusal").len()), (2, 5), "{lines:#?}");
    let first = of(&lines, "call")[0];
    assert_eq!(first["arguments"]["text"], nasty);
    let text = fs::read_to_string(&served.file).expect("the trail");
    assert!(!text.chars().any(|c| c != '\n' && (c.is_control() || matches!(c, '\u{2028}' | '\u{202e}'))));
}

#[test]
fn the_address_is_the_peers_unless_a_trusted_proxy_says_otherwise() {
    for (trusted, address) in [(vec![], "127.0.0.1"), (vec!["127.0.0.1".to_owned()], "192.0.2.7")] {
        let served = serve(|tuning| tuning.server.trusted_proxies = trusted);
        for tool in ["quick", "nothing"] {
            let mut headers = modern_headers("tools/call", tool).to_vec();
            headers.push(("X-Forwarded-For", "198.51.100.1, 192.0.2.7"));
            Client::connect(served.running.addr()).post(&headers, &modern(1, "tools/call", json!({ "name": tool })));
        }
        let lines = served.stop();
        assert_eq!(counted(&lines, "call", "address"), counts([(address, 1)]));
        assert_eq!(counted(&lines, "refusal", "address"), counts([(address, 1)]));
    }
}

#[test]
fn over_standard_input_calls_leave_lines_too() {
    let folder = TempDir::new().expect("a folder");
    let file = folder.path().join("audit.log");
    let mut child = Command::new(env!("CARGO_BIN_EXE_bigiron"))
        .args(["serve", "--stdio", "--set", &format!("audit.file={}", file.display())])
        .args(["--set", "limits.request_bytes_max=1KiB", "--set", "limits.body_bytes_per_s_min=0"])
        // Rates are for callers, of whom there is one here.
        .args(["--set", "rate_limit.enabled=true", "--set", "rate_limit.per_ip=1 per 1h"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("the program starts");
    let mut input = child.stdin.take().expect("piped");
    let call = |name: &str| modern(1, "tools/call", json!({ "name": name, "arguments": { "message": "a" } }));
    for message in [call("echo").to_string(), call("nothing").to_string(), call("echo").to_string(), "x".repeat(2_000)]
    {
        writeln!(input, "{message}").expect("it reads");
    }
    drop(input);
    assert!(child.wait().expect("it ends").success());
    let lines = lines(&file);
    assert_eq!(counted(&lines, "call", "outcome"), counts([("ok", 2)]), "{lines:#?}");
    assert_eq!(counted(&lines, "refusal", "reason"), counts([("invalid_params", 1), ("invalid_request", 1)]));
    assert!(of(&lines, "call").iter().all(|line| line.get("address").is_none() && line["tool"] == "echo"));
    assert_eq!(of(&lines, "stop").len(), 1);
}

#[test]
fn a_trail_that_cannot_be_opened_stops_the_start() {
    let ran = Command::new(env!("CARGO_BIN_EXE_bigiron"))
        .args(["serve", "--listen", "127.0.0.1:0", "--set", "server.admin_listen=127.0.0.1:0"])
        .args(["--set", "audit.file=/nonexistent/audit.log"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()
        .expect("it runs");
    let said = String::from_utf8_lossy(&ran.stderr);
    assert_eq!(ran.status.code(), Some(78), "{said}");
    assert!(said.contains("--set: audit.file \"/nonexistent/audit.log\" cannot be opened"), "{said}");
}
