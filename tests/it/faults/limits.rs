//! Limits at the limit, one over it and far over it, as far as they are no row of their own.

use serde_json::json;

use super::{
    Row,
    json::shown,
    place::{Kind::OwnTools, Place},
    row,
    wire::{FORBIDDEN, Request, Want, echo_text, first, one},
};
use crate::support::{Client, modern};
use Want::{Named, Served};

/// Rows that the table has no number for.
pub(super) const ROWS: &[Row] = &[row("result", "results at, over and far over the limit", &[OwnTools], result)];

const KEYS_MAX: usize = 10_000;
const RESULT_BYTES_MAX: usize = 8 << 20;
/// What stands around a text in a result, at most.
const AROUND_TEXT: usize = 64;

/// An object with this many members.
fn object(keys: usize) -> String {
    let members: Vec<_> = (0..keys).map(|n| format!("\"{n}\":0")).collect();
    format!("{{{}}}", members.join(","))
}

pub(super) fn j48(place: &Place) {
    // `echo` does not take such arguments and says so to the agent: they were let through. Ours takes any.
    let with = |json: &str| {
        if place.kind == OwnTools {
            return Request::of(&modern(1, "tools/call", json!({ "name": "show" }))).body(shown(json));
        }
        Request::good().body(echo_text("1", &format!(r#"{{"message":{json}}}"#)))
    };
    place.case("10,000 keys", &with(&object(KEYS_MAX)), Served);
    place.case("10,001 keys", &with(&object(KEYS_MAX + 1)), Want::Error(-32602));
    place.case("70,000 keys", &with(&object(70_000)), Want::Error(-32602));
    let request = Request::good().body(echo_text("1", &object(KEYS_MAX + 1)));
    place.case("10,001 arguments", &request, Want::Error(-32602));
    // Nor where nobody reads it. The refusal breaks the protocol here, not the method's own rules.
    let unread =
        format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"x":{}}}}}"#, object(KEYS_MAX + 1));
    place.case("10,001 keys that nobody reads", &Request::forbidden().body(unread), Named(400, -32602));
    place.case("an array of 100,000", &with(&format!("[{}0]", "0,".repeat(99_999))), Served);
    let room = (1 << 20) - with("\"\"").body_len();
    place.case("the longest text that fits", &with(&format!("\"{}\"", "x".repeat(room))), Served);
    let over = echo_text("1", &json!({ "message": FORBIDDEN.repeat((1 << 20) / FORBIDDEN.len() + 1) }).to_string());
    place.case("a text of 1 MiB", &Request::forbidden().body(over), Want::End(&[413]));
}

fn result(place: &Place) {
    let big =
        |bytes: usize| Request::of(&modern(1, "tools/call", json!({ "name": "big", "arguments": { "bytes": bytes } })));
    for (what, bytes, fits) in [
        ("8 MiB", RESULT_BYTES_MAX - AROUND_TEXT, true),
        ("8 MiB + 1", RESULT_BYTES_MAX + 1, false),
        ("8 times that", 8 * RESULT_BYTES_MAX, false), // 100 times would need more memory than a test should take
    ] {
        place.noted(what, || {
            let heard = one(place.addr, &big(bytes).bytes());
            let response = first(&heard)?;
            let (is_error, length) = (response.json()["result"]["isError"] == true, response.text().len());
            let right = response.status == 200 && is_error != fits && (length == bytes) == fits;
            if right { Ok(()) } else { Err(format!("{} isError {is_error} and {length} bytes", response.status)) }
        });
    }
    place.noted("a client that leaves while it comes", || {
        let mut client = Client::connect(place.addr);
        client.narrow();
        client.send(&big(RESULT_BYTES_MAX - AROUND_TEXT).bytes());
        client.reset();
        Ok(())
    });
}
