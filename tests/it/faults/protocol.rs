//! Group J: what a request says of itself. Its parameters, its revision, and whether its headers say the same.

use serde_json::{Value, json};

use super::{
    Row,
    place::{
        Kind::{OwnTools, Program},
        Place,
    },
    row,
    wire::{FORBIDDEN, GOOD, Request, Want, echo, first, message_of, one, wanted},
};
use crate::support::modern;
use Want::{Named, Served, Text};

pub(super) const ROWS: &[Row] = &[
    row("J26", "params that are no object", &[Program, OwnTools], j26),
    row("J28", "_meta, and no version header", &[Program, OwnTools], j28),
    row("J29", "versions that differ", &[Program, OwnTools], j29),
    row("J30", "versions that nobody has", &[Program, OwnTools], j30),
    row("J31", "an unknown version header, and no _meta", &[Program, OwnTools], j31),
    row("J32", "Mcp-Method", &[Program, OwnTools], j32),
    row("J33", "Mcp-Name", &[Program, OwnTools], j33),
    row("J34", "Mcp-Param", &[OwnTools], j34),
    row("J35", "a capability that is needed and not declared", &[OwnTools], j35),
    row("J46", "names of tools that there are not", &[Program, OwnTools], j46),
    row("J52", "headers of sessions where there are none", &[Program, OwnTools], j52),
];

fn j26(place: &Place) {
    for params in [json!([]), json!([1]), json!("x"), json!(1), json!(true), Value::Null] {
        let mut request = echo(FORBIDDEN);
        request["params"] = params.clone();
        place.case(&params.to_string(), &Request::forbidden().body(request.to_string()), Named(400, -32602));
        let mut session = place.session();
        let response = session.client.post(&[("Mcp-Session-Id", &session.id)], &request);
        place.noted(&format!("{params}, in a session"), || wanted(response.code() == Some(-32602), "-32602", response));
        session.end();
    }
}

fn j28(place: &Place) {
    place.case("none", &Request::forbidden().without("MCP-Protocol-Version"), Named(400, -32020));
    let twice = Request::forbidden().with("MCP-Protocol-Version: 2026-07-28");
    place.case("two", &twice, Named(400, -32020));
}

/// A call whose `_meta` names this version.
fn of_version(version: &str) -> Value {
    let mut request = echo(FORBIDDEN);
    request["params"]["_meta"]["io.modelcontextprotocol/protocolVersion"] = version.into();
    request
}

fn j29(place: &Place) {
    for (header, body) in [
        ("2026-07-28", "2025-11-25"),
        ("2025-11-25", "2026-07-28"),
        ("2099-01-01", "2026-07-28"),
        ("2026-07-28 x", "2026-07-28"),
    ] {
        let request = Request::of(&of_version(body)).but("MCP-Protocol-Version", header);
        place.case(&format!("{header} and {body}"), &request, Named(400, -32020));
    }
}

fn j30(place: &Place) {
    for version in ["1900-01-01", "2099-01-01", "abc", "2025-11-25"] {
        place.noted(version, || {
            let heard =
                one(place.addr, &Request::of(&of_version(version)).but("MCP-Protocol-Version", version).bytes());
            let response = first(&heard)?;
            let error = &response.json()["error"];
            let told = (response.status, response.code(), &error["data"]["requested"], &error["data"]["supported"]);
            let supported = json!(["2026-07-28"]);
            wanted(told == (400, Some(-32022), &json!(version), &supported), "-32022 with its data", response)
        });
    }
}

fn j31(place: &Place) {
    for version in ["2099-01-01", "1900-01-01", "abc", "2026-07-29"] {
        let mut request = echo(FORBIDDEN);
        request["params"].as_object_mut().expect("an object").remove("_meta");
        place.noted(version, || {
            let heard = one(place.addr, &Request::of(&request).but("MCP-Protocol-Version", version).bytes());
            let response = first(&heard)?;
            let right = response.status == 400 && matches!(response.code(), Some(-32602 | -32022));
            wanted(right, "400 with -32602 or -32022", response)
        });
    }
}

fn j32(place: &Place) {
    let refused = Named(400, -32020);
    place.case("none", &Request::forbidden().without("Mcp-Method"), refused);
    for value in [
        &b"tools/list"[..],
        b"Tools/Call",
        b"",
        b"tools/c\xc3\xa4ll",
        b"\xff",
        b"tools/call, tools/call",
        b"tools/call\ttools",
    ] {
        let what = String::from_utf8_lossy(value);
        place.case(&what, &Request::forbidden().but("Mcp-Method", value), refused);
    }
    place.case("twice", &Request::forbidden().with("Mcp-Method: tools/call"), refused);
    place.case("twice and different", &Request::forbidden().with("Mcp-Method: tools/list"), refused);
    place.case("spaces around it", &Request::good().but("mCp-mEtHoD", "  tools/call  "), Text(GOOD));
}

fn j33(place: &Place) {
    let refused = Named(400, -32020);
    place.case("none", &Request::forbidden().without("Mcp-Name"), refused);
    for value in [
        &b"burn"[..],
        b"Echo",
        b"",
        b"=?base64?ZWNobw?=",
        b"=?base64?ZWNo!bw==?=",
        b"=?base64?/w==?=",
        b"=?BASE64?ZWNobw==?=",
        b"=?base64?ZWNobw==",
        b"ZWNobw==",
        b"ech\xc3\xb6",
        b"=?base64??=",
        b"=?base64?YnVybg==?=",
    ] {
        let what = String::from_utf8_lossy(value);
        place.case(&what, &Request::forbidden().but("Mcp-Name", value), refused);
    }
    place.case("twice", &Request::forbidden().with("Mcp-Name: echo"), refused);
    place.case("in base64", &Request::good().but("Mcp-Name", "=?base64?ZWNobw==?="), Text(GOOD));
}

fn j34(place: &Place) {
    let routed =
        |arguments: Value| Request::of(&modern(1, "tools/call", json!({ "name": "routed", "arguments": arguments })));
    let refused = Named(400, -32020);
    let both = || routed(json!({ "region": "north", "count": 42 }));
    place.case("region is missing", &both().with("Mcp-Param-Count: 42"), refused);
    place.case("count is missing", &both().with("Mcp-Param-Region: north"), refused);
    place.case("region differs", &both().with("Mcp-Param-Region: North").with("Mcp-Param-Count: 42"), refused);
    for count in ["43", "42.5", "0x2a", "forty", "=?base64?NDI=", "", "42, 42", "42\r\nMcp-Param-Count: 42"] {
        let request = both().with("Mcp-Param-Region: north").with(format!("Mcp-Param-Count: {count}"));
        place.case(&format!("count is {count:?}"), &request, refused);
    }
    let null = || routed(json!({ "region": "north", "count": null })).with("Mcp-Param-Region: north");
    place.case("there for null", &null().with("Mcp-Param-Count: null"), refused);
    let absent = || routed(json!({ "region": "north" })).with("Mcp-Param-Region: north");
    place.case("there for nothing", &absent().with("Mcp-Param-Count: 1"), refused);
    place.case("not there for nothing", &absent(), Text("north null"));
    for count in ["42", "42.0", " 42 "] {
        let request = both().with("Mcp-Param-Region: =?base64?bm9ydGg=?=").with(format!("Mcp-Param-Count: {count}"));
        place.case(&format!("count is {count:?}"), &request, Text("north 42"));
    }
}

fn j35(place: &Place) {
    let mut request = modern(1, "tools/call", json!({ "name": "needs_sampling", "arguments": {} }));
    place.noted("not declared", || {
        let heard = one(place.addr, &Request::of(&request).bytes());
        let response = first(&heard)?;
        let needed = &response.json()["error"]["data"]["requiredCapabilities"];
        let told = (response.status, response.code(), needed == &json!({ "sampling": {} }));
        wanted(told == (400, Some(-32021), true), "-32021 with what is required", response)
    });
    request["params"]["_meta"]["io.modelcontextprotocol/clientCapabilities"] = json!({ "sampling": {} });
    place.case("declared", &Request::of(&request), Text("sampled"));
}

/// What is said of a tool's name when there is none.
fn unknown(place: &Place, name: &str, header: &str) -> Result<String, String> {
    let request = modern(1, "tools/call", json!({ "name": name, "arguments": { "message": FORBIDDEN } }));
    let heard = one(place.addr, &Request::of(&request).but("Mcp-Name", header).bytes());
    let response = first(&heard)?;
    wanted((response.status, response.code()) == (200, Some(-32602)), "200 and -32602", response)?;
    let message = response.json()["error"]["message"].as_str().unwrap_or_default().to_owned();
    wanted(message.len() <= 512, "a short message", &message)?;
    Ok(message)
}

fn j46(place: &Place) {
    let long = "n".repeat(10 << 10);
    for (name, header) in [
        ("../x", "../x"),
        ("", ""),
        ("e\0cho", "=?base64?ZQBjaG8=?="),
        ("\u{435}cho", "=?base64?0LVjaG8=?="), // the first letter is Cyrillic
        ("ECHO", "ECHO"),
        ("echo ", "=?base64?ZWNobyA=?="),
        (long.as_str(), long.as_str()),
    ] {
        place.noted(&format!("{name:.20?}"), || unknown(place, name, header).map(drop));
    }
    place.noted("one that is switched off and one that never was", || {
        let off = unknown(place, "query_sql", "query_sql")?.replace("query_sql", "NAME");
        let never = unknown(place, "query_sqx", "query_sqx")?.replace("query_sqx", "NAME");
        wanted(off == never, "the same text", (off, never))
    });
}

fn j52(place: &Place) {
    let long = "a".repeat(2000);
    for (name, value) in [
        ("Mcp-Session-Id", "no-such-session"),
        ("Mcp-Session-Id", &long),
        ("Last-Event-ID", "7"),
        ("Last-Event-ID", "\u{e9}"),
    ] {
        place.noted(&format!("{name} {value:.20}"), || {
            let heard = one(place.addr, &Request::good().with(format!("{name}: {value}")).bytes());
            let response = first(&heard)?;
            let right = response.text() == GOOD && response.header("mcp-session-id").is_none();
            wanted(right && message_of(response)?["id"] == 1, "a result without a session", response)
        });
    }
    let session = place.session();
    place.case("a session that is there", &Request::good().with(format!("Mcp-Session-Id: {}", session.id)), Text(GOOD));
    session.end();
    let list = Request::of(&modern(1, "tools/list", json!({})));
    place.case("a list", &list.with("Mcp-Session-Id: no-such-session"), Served);
}
