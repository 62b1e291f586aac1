//! Group J: what clients bring along to a call that is made again, and what they ask for that is not there.

use serde_json::{Value, json};

use super::{
    Row,
    place::{Kind::OwnTools, Place},
    row,
    wire::{Request, Want, first, one, wanted},
};
use crate::support::modern;
use Want::{Named, Text};

pub(super) const ROWS: &[Row] = &[
    row("J41", "a state that is not this call's", &[OwnTools], j41),
    row("J42", "answers to what nobody asked", &[OwnTools], j42),
    row("J51", "resources that are none", &[OwnTools], j51),
];

/// A call of a tool that asks who calls, by a client that can be asked.
fn asking(tool: &str, arguments: Value, more: Value) -> Request {
    let mut params = json!({ "name": tool, "arguments": arguments });
    if let (Some(params), Value::Object(more)) = (params.as_object_mut(), more) {
        params.extend(more);
    }
    let mut request = modern(1, "tools/call", params);
    request["params"]["_meta"]["io.modelcontextprotocol/clientCapabilities"] = json!({ "elicitation": {} });
    Request::of(&request)
}

fn answers() -> Value {
    json!({ "who": { "action": "accept", "content": { "name": "Ann" } } })
}

/// The state that the first round of a call ends with.
fn state(place: &Place) -> Result<String, String> {
    let heard = one(place.addr, &asking("remember", json!({ "message": "a" }), json!({})).bytes());
    let result = first(&heard)?.json()["result"].clone();
    let state = result["requestState"].as_str().map(str::to_owned);
    state.filter(|_| result["resultType"] == "input_required").ok_or_else(|| format!("no state: {result}"))
}

fn j41(place: &Place) {
    let with = |state: &str| json!({ "requestState": state, "inputResponses": answers() });
    place.noted("as it was given", || {
        let again = asking("remember", json!({ "message": "a" }), with(&state(place)?));
        Text("Ann after a").of(place.addr, &again.bytes())
    });
    place.noted("tampered, of another call, of nobody", || {
        let good = state(place)?;
        let longer = format!("{good}AAAA");
        let changed = format!("{}{}", if good.starts_with('A') { 'B' } else { 'A' }, &good[1..]);
        let shorter = good[..good.len() - 5].to_owned();
        for state in [&longer, &changed, &shorter, "", "x", "null"] {
            let again = asking("remember", json!({ "message": "a" }), with(state));
            Named(200, -32602).of(place.addr, &again.bytes()).map_err(|fault| format!("{state:.20}: {fault}"))?;
        }
        // Other arguments, and another tool.
        let other = asking("remember", json!({ "message": "b" }), with(&good));
        Named(200, -32602).of(place.addr, &other.bytes())?;
        let other = asking("remember_too", json!({ "message": "a" }), with(&good));
        Named(200, -32602).of(place.addr, &other.bytes())
    });
    for state in [json!(1), json!({}), json!([])] {
        let more = json!({ "requestState": state, "inputResponses": answers() });
        let again = asking("remember", json!({ "message": "a" }), more);
        place.case(&format!("{state} as a state"), &again, Named(200, -32602));
    }
}

fn j42(place: &Place) {
    let mut both = answers();
    both["nobody"] = json!({ "action": "accept", "content": {} });
    let with = |answers: Value| asking("remember", json!({ "message": "a" }), json!({ "inputResponses": answers }));
    place.case("one more than was asked", &with(both), Text("Ann after nothing"));
    for (what, answers) in
        [("none", json!({})), ("another", json!({ "nobody": {} })), ("no object", json!({ "who": 7 }))]
    {
        place.noted(what, || {
            let heard = one(place.addr, &with(answers).bytes());
            let response = first(&heard)?;
            let asks = response.json()["result"]["resultType"] == "input_required";
            wanted(asks, "the question once more", response)
        });
    }
    for answers in [json!(7), json!("x"), json!([])] {
        place.case(&format!("{answers} as answers"), &with(answers), Named(200, -32602));
    }
}

fn j51(place: &Place) {
    let long = format!("test://{}", "x".repeat(64 << 10));
    for uri in [
        "file:///etc/passwd",
        "test://../../etc/passwd",
        "test://%2e%2e/%2e%2e/etc/passwd",
        "unknown:x",
        "test://one/../one",
        "test://ONE",
        long.as_str(),
    ] {
        let request = modern(1, "resources/read", json!({ "uri": uri }));
        let request = match uri.len() {
            0..1000 => Request::of(&request).with(format!("Mcp-Name: {uri}")),
            _ => Request::of(&request), // no header holds it, so that is what is wrong
        };
        let want = if uri.len() < 1000 { Named(200, -32602) } else { Named(400, -32020) };
        place.case(&format!("{uri:.40}"), &request, want);
    }
    let request = modern(1, "resources/read", json!({ "uri": "test://one" }));
    place.noted("one that is there", || {
        let heard = one(place.addr, &Request::of(&request).with("Mcp-Name: test://one").bytes());
        let response = first(&heard)?;
        wanted(response.json()["result"]["contents"][0]["text"] == "one", "its text", response)
    });
}
