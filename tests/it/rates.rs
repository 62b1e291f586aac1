//! How often callers may call: who is told 429, with what, at which moment, and that nobody else notices.

use std::net::Ipv4Addr;

use bigiron::{Ctx, Lane, Server, config::Tuning, server::Running};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::support::{Client, Response, Session, get, meta, metric, modern, modern_headers, post_bytes, start};

#[derive(Deserialize, JsonSchema)]
struct Nothing {}

/// A server with three tools whose rates are on. What passes within an hour is what the burst lets pass, so that no
/// test depends on the time it takes.
fn server(per_ip: &str, tune: impl FnOnce(&mut Tuning)) -> Running {
    let server = ["quick", "dear", "other"].into_iter().fold(Server::builder(), |server, name| {
        server.tool(name, "Answers at once", Lane::Inline, |_: Nothing, _: Ctx| "done")
    });
    start(server, |tuning| {
        tuning.rate_limit.enabled = true;
        tuning.rate_limit.per_ip = per_ip.parse().expect(per_ip);
        tune(tuning);
    })
}

fn rule(text: &str) -> Option<bigiron::rate::Rule> {
    Some(text.parse().expect(text))
}

/// Connected from 127.0.0.`host`.
fn from(running: &Running, host: u8) -> Client {
    Client::connect_from(Ipv4Addr::new(127, 0, 0, host).into(), running.addr())
}

fn request(tool: &str) -> Value {
    modern(7, "tools/call", json!({ "name": tool }))
}

fn post(client: &mut Client, tool: &str) -> Response {
    client.post(&modern_headers("tools/call", tool), &request(tool))
}

/// The same behind a proxy.
fn post_for(client: &mut Client, tool: &str, forwarded: &[&str]) -> Response {
    let mut headers = modern_headers("tools/call", tool).to_vec();
    headers.extend(forwarded.iter().map(|line| ("X-Forwarded-For", *line)));
    client.post(&headers, &request(tool))
}

/// How many of so many calls pass.
fn passed(calls: usize, mut call: impl FnMut() -> Response) -> usize {
    (0..calls).filter(|_| call().status == 200).count()
}

fn number(response: &Response, header: &str) -> u64 {
    let value = response.header(header).unwrap_or_else(|| panic!("{header} is missing: {response:?}"));
    value.parse().unwrap_or_else(|_| panic!("{header} is no number: {value}"))
}

#[test]
fn over_the_limit_it_is_429_with_all_that_a_client_needs_and_others_go_on() {
    let running = server("5 per 1h, burst 5", |_| {});
    let mut client = from(&running, 1);
    for _ in 0..5 {
        let answer = post(&mut client, "quick");
        assert_eq!((answer.status, answer.text().as_str()), (200, "done"));
        assert_eq!(answer.header("x-ratelimit-limit"), None, "not asked for");
    }
    let refused = post(&mut client, "quick");
    assert_eq!(refused.status, 429);
    let retry_after_s = number(&refused, "retry-after");
    assert!((1..=720).contains(&retry_after_s), "{retry_after_s}: one each 720 s");
    assert_eq!(number(&refused, "x-ratelimit-limit"), 5);
    assert_eq!(number(&refused, "x-ratelimit-remaining"), 0);
    assert!((2_880..=3_600).contains(&number(&refused, "x-ratelimit-reset")), "{refused:?}");
    let body = refused.json();
    assert_eq!(body["error"]["code"], -31429, "{body}");
    assert_eq!(body["error"]["data"]["retryAfter"], retry_after_s, "{body}");
    assert!(body["error"]["message"].as_str().is_some_and(|text| text.contains("per_ip")), "{body}");
    assert_eq!(body.get("id"), None, "the body was not read");
    // Whatever is asked for, and on any connection of this address; but not of another.
    assert_eq!(client.post(&modern_headers("tools/list", ""), &modern(8, "tools/list", json!({}))).status, 429);
    assert_eq!(post(&mut from(&running, 1), "other").status, 429);
    let mut other = from(&running, 2);
    assert_eq!(passed(5, || post(&mut other, "quick")), 5);
    // Whether it lives is for everybody to ask.
    assert_eq!((get(running.addr(), "/health").status, get(running.addr(), "/ready").status), (200, 200));
    assert_eq!(metric(&running, "bigiron_refusals_total{reason=\"rate_limited\"}"), 3.0);
    assert_eq!(metric(&running, "bigiron_rate_limit_keys"), 2.0);
    assert_eq!(metric(&running, "bigiron_rate_limit_unremembered_total"), 0.0);
}

#[test]
fn it_is_decided_before_the_body_is_there() {
    let running = server("1 per 1h, burst 1", |_| {});
    assert_eq!(post(&mut from(&running, 1), "quick").status, 200);
    let mut client = from(&running, 1);
    let mut headers = modern_headers("tools/call", "quick").to_vec();
    headers.push(("Content-Length", "100000"));
    client.send(&post_bytes(&headers, b""));
    let refused = client.receive().expect("an answer, though no byte of the body was sent");
    assert_eq!((refused.status, refused.code()), (429, Some(-31429)));
    // Nor is the client asked to send it.
    let mut client = from(&running, 1);
    headers.push(("Expect", "100-continue"));
    client.send(&post_bytes(&headers, b""));
    assert_eq!(client.receive().expect("an answer").status, 429);
}

#[test]
fn tools_have_rates_of_their_own_for_all_callers_and_for_each() {
    let running = server("off", |tuning| {
        tuning.tools.entry("quick".into()).or_default().rate = rule("6 per 1h");
        tuning.tools.entry("dear".into()).or_default().rate_per_caller = rule("2 per 1h");
    });
    let (mut one, mut two) = (from(&running, 1), from(&running, 2));
    assert_eq!(passed(4, || post(&mut one, "quick")), 4);
    assert_eq!(passed(4, || post(&mut two, "quick")), 2, "six for all");
    assert_eq!(passed(4, || post(&mut one, "dear")), 2);
    assert_eq!(passed(4, || post(&mut two, "dear")), 2, "two for each");
    assert_eq!(passed(20, || post(&mut one, "other")), 20, "no rate");
    let refused = post(&mut one, "quick");
    assert!(
        refused.json()["error"]["message"]
            .as_str()
            .is_some_and(|text| text.contains("tools.quick.rate lets 6 pass in 3600 s")),
        "{refused:?}"
    );
    let refused = post(&mut one, "dear");
    let message = refused.json()["error"]["message"].as_str().map(str::to_owned);
    assert!(message.is_some_and(|text| text.contains("tools.dear.rate_per_caller lets 2 pass in")), "{refused:?}");
}

#[test]
fn what_is_refused_uses_up_nothing() {
    let running = server("10 per 1h", |tuning| {
        tuning.tools.entry("quick".into()).or_default().rate = rule("1 per 1h");
    });
    let mut client = from(&running, 1);
    assert_eq!(passed(20, || post(&mut client, "quick")), 1);
    assert_eq!(passed(20, || post(&mut client, "other")), 9, "the tool's refusals did not count for the caller");
}

#[test]
fn successful_answers_say_what_is_left_when_that_is_asked_for() {
    let running = server("7 per 1h", |tuning| {
        tuning.rate_limit.headers_on_success = true;
        tuning.tools.entry("dear".into()).or_default().rate_per_caller = rule("3 per 1h");
    });
    let mut client = from(&running, 1);
    let left = |answer: &Response| (number(answer, "x-ratelimit-limit"), number(answer, "x-ratelimit-remaining"));
    let answer = post(&mut client, "quick");
    assert_eq!((answer.status, left(&answer)), (200, (7, 6)));
    assert!((1..=515).contains(&number(&answer, "x-ratelimit-reset")), "{answer:?}");
    assert_eq!(left(&post(&mut client, "dear")), (3, 2), "of two, what leaves less");
    assert_eq!(left(&post(&mut client, "quick")), (7, 4));
    let wrong = client.post(&[("Content-Type", "text/plain")], &json!({}));
    assert_eq!((wrong.status, wrong.header("x-ratelimit-limit")), (415, None), "it is no success, and counts");
    // In a session, too, where only the body names the tool.
    let mut session = Session::open(running.addr(), "2025-06-18"); // initialize and notifications/initialized
    let answer = session.request(1, "tools/call", json!({ "name": "dear" }));
    assert_eq!((answer.status, left(&answer)), (200, (7, 0)), "one is left of the tool's three");
}

#[test]
fn the_body_decides_where_headers_say_nothing_or_something_else() {
    let running = server("off", |tuning| {
        tuning.tools.entry("dear".into()).or_default().rate_per_caller = rule("2 per 1h");
    });
    // A session names its tools in bodies.
    let mut session = Session::open(running.addr(), "2025-06-18");
    let mut in_session = || session.request(9, "tools/call", json!({ "name": "dear" }));
    assert_eq!((in_session().status, in_session().status), (200, 200));
    let refused = in_session();
    assert_eq!((refused.status, refused.code()), (429, Some(-31429)));
    assert_eq!(refused.json()["id"], 9, "the body was read");
    assert_eq!(number(&refused, "x-ratelimit-remaining"), 0);
    assert!(number(&refused, "retry-after") >= 1);
    // Headers that name a tool without a rate let nobody past the one that the body names.
    let headers = [("Mcp-Session-Id", session.id.as_str()), ("Mcp-Method", "tools/call"), ("Mcp-Name", "quick")];
    let call = json!({ "jsonrpc": "2.0", "id": 10, "method": "tools/call", "params": { "name": "dear" } });
    assert_eq!(Client::connect(running.addr()).post(&headers, &call).status, 429);
    // And from 2026-07-28 on, they are refused as such, before the tool.
    let mut other = from(&running, 2);
    let lie = other.post(&modern_headers("tools/call", "quick"), &request("dear"));
    assert_eq!((lie.status, lie.code()), (400, Some(-32020)));
    // Named in another way, it is the same tool, and is charged once.
    let mut coded = || from(&running, 3).post(&modern_headers("tools/call", "=?base64?ZGVhcg==?="), &request("dear"));
    assert_eq!(passed(4, &mut coded), 2);
}

#[test]
fn each_message_of_a_batch_counts() {
    let running = server("8 per 1h", |tuning| {
        tuning.tools.entry("dear".into()).or_default().rate = rule("2 per 1h");
    });
    let session = Session::open(running.addr(), "2025-03-26"); // 2 of 8
    let call =
        |id: u64, tool: &str| json!({ "jsonrpc": "2.0", "id": id, "method": "tools/call", "params": { "name": tool } });
    let batch = json!([call(1, "dear"), call(2, "dear"), call(3, "dear"), call(4, "quick"), call(5, "quick")]);
    let answer = Client::connect(running.addr()).post(&[("Mcp-Session-Id", &session.id)], &batch); // 7 of 8
    assert_eq!(answer.status, 200);
    let codes: Vec<_> = answer.json().as_array().expect("a list").iter().map(|a| a["error"]["code"].as_i64()).collect();
    assert_eq!(codes, [None, None, Some(-31429), None, None]);
    let batch = json!([call(6, "quick"), call(7, "quick"), { "jsonrpc": "2.0", "method": "notifications/progress" }]);
    let answer = Client::connect(running.addr()).post(&[("Mcp-Session-Id", &session.id)], &batch).json();
    assert_eq!(answer[0]["id"], 6);
    assert_eq!((&answer[1]["id"], &answer[1]["error"]["code"]), (&json!(7), &json!(-31429)), "{answer}");
    assert_eq!(answer.as_array().map(Vec::len), Some(2), "a notification has no answer: {answer}");
    assert_eq!(metric(&running, "bigiron_refusals_total{reason=\"rate_limited\"}"), 2.0);
}

#[test]
fn an_untrusted_peer_is_itself_whatever_it_says_about_others() {
    for trusted in [vec![], vec!["10.0.0.0/8".to_owned(), "127.0.0.9".to_owned()]] {
        let running = server("5 per 1h", |tuning| tuning.server.trusted_proxies = trusted);
        let mut client = from(&running, 1);
        let mut forged = 0u32;
        let call = || {
            forged += 1;
            let address = Ipv4Addr::from_bits(0x0b00_0000 + forged).to_string();
            post_for(&mut client, "quick", &[&address])
        };
        assert_eq!(passed(2_000, call), 5, "as without the header");
        assert_eq!(metric(&running, "bigiron_rate_limit_keys"), 1.0);
    }
}

#[test]
fn through_a_trusted_proxy_each_client_has_its_own_rate() {
    let running = server("3 per 1h", |tuning| tuning.server.trusted_proxies = vec!["127.0.0.9".into()]);
    let mut proxy = from(&running, 9);
    for (forwarded, passes) in [
        (&["192.0.2.1"][..], 3),
        (&["192.0.2.2"], 3),
        (&["198.51.100.5, 192.0.2.1"], 0), // what a client wrote itself is not believed
        (&["198.51.100.5", "192.0.2.3"], 3), // two lines are one list
        (&["192.0.2.3:4711"], 0),          // with a port, the same
        (&["2001:db8::1"], 3),             // IPv6 counts by /64
        (&["[2001:db8::ffff]:80"], 0),
        (&["garbage"], 3),              // the proxy itself
        (&["192.0.2.4, unknown"], 0),   // likewise
        (&["192.0.2.4, 127.0.0.9"], 3), // through two of them
        (&[], 0),
    ] {
        assert_eq!(passed(5, || post_for(&mut proxy, "quick", forwarded)), passes, "{forwarded:?}");
    }
    // Shares count by it too, and are given back.
    assert_eq!(running.in_flight(), 0);
    assert_eq!(passed(5, || post_for(&mut from(&running, 1), "quick", &["192.0.2.9"])), 3, "a client without a proxy");
    drop(proxy);
    crate::support::eventually("nobody is left", || metric(&running, "bigiron_callers") <= 0.0);
}

/// In small: a million keys are shown by the limiter's own tests.
#[test]
fn a_flood_of_addresses_fills_no_memory_and_frees_nobody() {
    let running = server("1 per 1h, block 1h", |tuning| {
        tuning.rate_limit.keys_max = 1024;
        tuning.server.trusted_proxies = vec!["127.0.0.9".into()];
    });
    let mut proxy = from(&running, 9);
    assert_eq!(passed(5, || post_for(&mut proxy, "quick", &["192.0.2.1"])), 1);
    let mut networks = 0..5_000;
    let flood = |network| post_for(&mut proxy, "quick", &[&format!("2001:db8:0:{network:x}::1")]).status == 200;
    let passed = networks.by_ref().map(flood).filter(|passed| *passed).count();
    // Half of the places are for addresses; who has none shares one call for each of 64 parts.
    assert!((512..=512 + 64).contains(&passed), "{passed}");
    assert!(metric(&running, "bigiron_rate_limit_keys") <= 512.0);
    assert!((1.0..=64.0).contains(&metric(&running, "bigiron_rate_limit_unremembered_total")));
    assert_eq!(post_for(&mut proxy, "quick", &["192.0.2.1"]).status, 429, "who is blocked stays so");
}

#[test]
fn streams_and_ends_of_sessions_count_and_preflights_do_not() {
    let running = server("4 per 1h", |tuning| tuning.server.allowed_origins = vec!["https://app.example".into()]);
    let session = Session::open(running.addr(), "2025-06-18"); // 2 of 4
    assert_eq!(session.listen(running.addr(), None).status, 200);
    let preflight = "OPTIONS /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nOrigin: https://app.example\r\n\
        Access-Control-Request-Method: POST\r\n\r\n";
    for _ in 0..10 {
        let mut page = Client::connect(running.addr());
        page.send(preflight.as_bytes());
        assert_eq!(page.receive().expect("an answer").status, 204);
    }
    session.end(); // 4 of 4
    let mut page = Client::connect(running.addr());
    let headers = [("Origin", "https://app.example")];
    let refused = page.post(&headers, &modern(1, "tools/list", json!({ "_meta": meta() })));
    assert_eq!(refused.status, 429);
    let exposed = refused.header("access-control-expose-headers").unwrap_or_default();
    assert!(exposed.contains("retry-after") && exposed.contains("x-ratelimit-reset"), "{exposed}");
}

#[test]
fn what_is_refused_before_it_is_known_who_asks_counts_for_the_address() {
    let running = server("4 per 1h", |_| {});
    let ask = |host: u8, text: &str| {
        let mut client = from(&running, host);
        client.send(format!("{text}\r\n\r\n").as_bytes());
        client.receive().expect("an answer")
    };
    let wrong = [
        (404, "GET /nowhere HTTP/1.1\r\nHost: 127.0.0.1"),
        (403, "POST /mcp HTTP/1.1\r\nHost: evil.example\r\nContent-Length: 0"),
        (405, "OPTIONS /mcp HTTP/1.1\r\nHost: 127.0.0.1"),
        (400, "POST /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: localhost\r\nContent-Length: 0"),
    ];
    for (status, text) in wrong {
        assert_eq!(ask(1, text).status, status, "{text}");
    }
    for (status, text) in wrong {
        let refused = ask(1, text);
        assert_eq!((refused.status, number(&refused, "x-ratelimit-limit")), (429, 4), "{text}");
        assert!(number(&refused, "retry-after") >= 1, "{refused:?}");
        let ends = refused.header("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
        assert_eq!(ends, status == 400, "what follows for the connection stays: {refused:?}");
    }
    assert_eq!(post(&mut from(&running, 1), "quick").status, 429);
    assert_eq!(post(&mut from(&running, 2), "quick").status, 200);
    assert_eq!(ask(1, "GET /health HTTP/1.1\r\nHost: 127.0.0.1").status, 200, "that is no refusal");
    assert_eq!(metric(&running, "bigiron_refusals_total{reason=\"rate_limited\"}"), 5.0);
}
