//! Group J: calls beside each other, and what is said about them. Ids that meet, taking back, progress, logs, traces.

use std::{sync::mpsc, thread};

use serde_json::{Value, json};

use super::{
    Row,
    place::{
        Kind::{OwnTools, Program},
        Place,
    },
    row,
    wire::{FORBIDDEN, GOOD, Request, Want, echo, first, one, wanted},
};
use crate::support::{Client, PATIENCE, Response, meta, modern};
use Want::{Accepted, Error, Refusal, Text};

/// Clients that ask at once under one id. A thousand are a load test's business.
const CLIENTS_OF_ONE_ID: usize = 200;
/// How long a call runs that others are to meet.
const CALL_MS: u64 = 300;

pub(super) const ROWS: &[Row] = &[
    row("J21", "many clients with one id", &[Program, OwnTools], j21),
    row("J22", "one id twice at a time, without a session", &[Program, OwnTools], j22),
    row("J23", "one id twice at a time in a session", &[Program, OwnTools], j23),
    row("J37", "responses that nobody asked for", &[Program, OwnTools], j37),
    row("J38", "notifications", &[Program, OwnTools], j38),
    row("J39", "taking back what is not one's own", &[Program, OwnTools], j39),
    row("J43", "progress tokens", &[Program, OwnTools], j43),
    row("J44", "log levels", &[Program, OwnTools], j44),
    row("J45", "trace contexts", &[Program, OwnTools], j45),
];

fn burn(id: impl Into<Value>, ms: u64) -> Value {
    modern(id, "tools/call", json!({ "name": "burn", "arguments": { "ms": ms } }))
}

fn j21(place: &Place) {
    place.noted("each gets its own", || {
        let mut clients: Vec<_> = (0..CLIENTS_OF_ONE_ID).map(|_| Client::connect(place.addr)).collect();
        for (n, client) in clients.iter_mut().enumerate() {
            let mut request = echo(&format!("canary {n}"));
            request["id"] = 0.into();
            client.send(&Request::of(&request).bytes());
        }
        clients.iter_mut().enumerate().try_for_each(|(n, client)| {
            let response = client.receive().ok_or("no answer")?;
            wanted(response.text() == format!("canary {n}") && response.json()["id"] == 0, "its own", response)
        })
    });
}

fn j22(place: &Place) {
    place.noted("both are answered", || {
        let mut clients = [20, 10].map(|ms| (ms, Client::connect(place.addr)));
        for (ms, client) in &mut clients {
            client.send(&Request::of(&burn(7, *ms)).bytes());
        }
        clients.iter_mut().try_for_each(|(ms, client)| {
            let response = client.receive().ok_or("no answer")?;
            let burned_ms = response.json()["result"]["structuredContent"]["burned_ms"].as_u64();
            wanted(
                burned_ms.is_some_and(|burned_ms| burned_ms >= *ms) && response.json()["id"] == 7,
                "its own",
                response,
            )
        })
    });
}

/// A call in a session, on a connection of its own.
fn session_call(place: &Place, session_id: &str, id: u64, ms: u64) -> Client {
    let request = json!({ "jsonrpc": "2.0", "id": id, "method": "tools/call", "params": { "name": "burn", "arguments": { "ms": ms } } });
    let mut client = Client::connect(place.addr);
    client.send(&Request::post(request.to_string()).with(format!("Mcp-Session-Id: {session_id}")).bytes());
    client
}

/// Two calls at once under one id: the answer that comes first, which is the refusal of the one that came second, and a
/// way to wait for the other.
fn two_of_one_id(place: &Place, session_id: &str, id: u64, ms: u64) -> (Response, mpsc::Receiver<Option<Response>>) {
    let (answers, answered) = mpsc::sync_channel(2);
    for _ in 0..2 {
        let mut client = session_call(place, session_id, id, ms);
        let answers = answers.clone();
        thread::spawn(move || answers.send(client.receive()));
    }
    let second = answered.recv_timeout(PATIENCE).expect("one is refused at once").expect("an answer");
    (second, answered)
}

fn the_other(answered: &mpsc::Receiver<Option<Response>>) -> Result<Response, String> {
    answered.recv_timeout(PATIENCE).map_err(|e| e.to_string())?.ok_or_else(|| "no answer".to_owned())
}

fn has_burned(response: Response) -> Result<(), String> {
    wanted(response.json()["result"]["structuredContent"]["burned_ms"].is_u64(), "a result", response)
}

fn j23(place: &Place) {
    let mut session = place.session();
    place.noted("the second is refused, the first goes on", || {
        let (second, first) = two_of_one_id(place, &session.id, 7, CALL_MS);
        wanted((second.status, second.code()) == (400, Some(-32600)), "400 and -32600", second)?;
        has_burned(the_other(&first)?)
    });
    place.noted("the first is taken back", || {
        let (_, first) = two_of_one_id(place, &session.id, 8, 59_000);
        let taken_back = session.notify("notifications/cancelled", json!({ "requestId": 8 }));
        wanted(taken_back.status == 202, "202", taken_back)?;
        let ended = the_other(&first)?;
        wanted(!String::from_utf8_lossy(&ended.body).contains("result"), "nothing more", ended)
    });
    session.end();
}

fn j37(place: &Place) {
    for response in [
        json!({ "jsonrpc": "2.0", "id": 1, "result": {} }),
        json!({ "jsonrpc": "2.0", "id": "x", "error": { "code": -1, "message": "no" } }),
        json!({ "jsonrpc": "2.0", "id": 1, "result": {}, "error": { "code": 1, "message": "both" } }),
    ] {
        place.in_both_eras(&response.to_string(), response.to_string(), Refusal(400, -32600));
    }
}

fn j38(place: &Place) {
    let cancelled =
        json!({ "jsonrpc": "2.0", "method": "notifications/cancelled", "params": { "requestId": 1, "_meta": meta() } });
    place.in_both_eras("valid", cancelled.to_string(), Accepted);
    let plain = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
    place.in_both_eras("valid, without params", plain, Accepted);
    place.in_both_eras(
        "unknown",
        r#"{"jsonrpc":"2.0","method":"notifications/nobody/knows","params":{"x":[1]}}"#,
        Accepted,
    );
    for malformed in
        [r#"{"jsonrpc":"2.0","method":7}"#, r#"{"method":"notifications/x"}"#, r#"{"jsonrpc":"2.0","params":{}}"#]
    {
        place.in_both_eras(malformed, malformed, Refusal(400, -32600));
    }
}

fn j39(place: &Place) {
    let (mut own, mut foreign) = (place.session(), place.session());
    place.noted("foreign, unknown and finished", || {
        let (_, running) = two_of_one_id(place, &own.id, 5, CALL_MS);
        let cancel = |id: Value| json!({ "requestId": id, "reason": "because" });
        for id in [json!(5), json!("5"), json!(99)] {
            let answer = foreign.notify("notifications/cancelled", cancel(id));
            wanted(answer.status == 202, "202", answer)?;
        }
        let stateless = json!({ "jsonrpc": "2.0", "method": "notifications/cancelled", "params": cancel(json!(5)) });
        Accepted.of(place.addr, &Request::of(&stateless).bytes())?;
        for id in [json!(6), json!("5"), json!(null), json!({})] {
            let answer = own.notify("notifications/cancelled", cancel(id));
            wanted(answer.status == 202, "202", answer)?;
        }
        has_burned(the_other(&running)?)?;
        let answer = own.notify("notifications/cancelled", cancel(json!(5)));
        wanted(answer.status == 202, "202", answer)
    });
    own.end();
    foreign.end();
}

/// A call with one more member in its `_meta`.
fn with_meta(mut request: Value, key: &str, value: Value) -> Request {
    request["params"]["_meta"][key] = value;
    Request::of(&request)
}

fn j43(place: &Place) {
    for token in [json!({}), json!([]), json!(1.5), json!(true), json!(null), json!(1e30), json!("t".repeat(2000))] {
        let what = format!("{:.40}", token.to_string());
        place.case(&what, &with_meta(echo(FORBIDDEN), "progressToken", token), Error(-32602));
    }
    place.case("an integer", &with_meta(echo(GOOD), "progressToken", json!(0)), Text(GOOD));
    if place.kind != OwnTools {
        return;
    }
    place.noted("one token in two calls", || {
        let names = ["left", "right"];
        let mut clients = names.map(|name| {
            let call = modern(1, "tools/call", json!({ "name": "steps", "arguments": { "message": name } }));
            let mut client = Client::connect(place.addr);
            client.send(&with_meta(call, "progressToken", json!("same")).bytes());
            (name, client)
        });
        clients.iter_mut().try_for_each(|(name, client)| {
            let response = client.receive().ok_or("no answer")?;
            let events = response.events();
            let (last, progress) = events.split_last().ok_or("no events")?;
            let own = |e: &Value| e["params"]["message"] == *name && e["params"]["progressToken"] == "same";
            let right =
                !progress.is_empty() && progress.iter().all(own) && last["result"]["content"][0]["text"] == *name;
            wanted(right, "its own progress and result", events)
        })
    });
}

fn j44(place: &Place) {
    const KEY: &str = "io.modelcontextprotocol/logLevel";
    for level in [json!("loud"), json!("INFO"), json!(""), json!(3), json!(null), json!(["info"])] {
        place.case(&level.to_string(), &with_meta(echo(FORBIDDEN), KEY, level), Error(-32602));
    }
    place.case("info", &with_meta(echo(GOOD), KEY, json!("info")), Text(GOOD));
    if place.kind != OwnTools {
        return;
    }
    let call = || modern(1, "tools/call", json!({ "name": "steps", "arguments": { "message": GOOD } }));
    place.case("not asked for", &Request::of(&call()), Text(GOOD));
    place.case("above what is said", &with_meta(call(), KEY, json!("error")), Text(GOOD));
    place.noted("asked for", || {
        let heard = one(place.addr, &with_meta(call(), KEY, json!("info")).bytes());
        let events = first(&heard)?.events();
        let logs = events.iter().filter(|e| e["method"] == "notifications/message" && e["params"]["level"] == "info");
        wanted(logs.count() == 5 && events.len() == 6, "five log messages and the result", events)
    });
}

fn j45(place: &Place) {
    let long = "k=v,".repeat(2560);
    for (key, value) in [
        ("traceparent", json!("00-0-0-0")),
        ("traceparent", json!("zz-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01")),
        ("traceparent", json!(7)),
        ("traceparent", json!({})),
        ("tracestate", json!("=,=,=")),
        ("baggage", json!(long)),
        ("baggage", Value::Null),
    ] {
        let what = format!("{key} {:.40}", value.to_string());
        place.case(&what, &with_meta(echo(GOOD), key, value), Text(GOOD));
    }
    let headers = Request::good().with("traceparent: not-one").with("traceparent: nor-two");
    place.case("in headers", &headers.with(format!("baggage: {long}")), Text(GOOD));
}
