//! `serve --stdio`: one message a line, both eras, and nothing on standard output that is not a message.

use std::{
    io::{BufRead, BufReader, Write},
    process::{Child, Command, Stdio},
};

use serde_json::{Value, json};

use crate::support::modern;

/// Starts the program with pipes to its input and output.
fn spawn() -> Child {
    Command::new(env!("CARGO_BIN_EXE_bigiron"))
        .args(["serve", "--stdio"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the program starts")
}

/// Runs the program with these lines as its input, and returns its messages and exit code.
fn converse(lines: &[Vec<u8>]) -> (Vec<Value>, Option<i32>) {
    let mut child = spawn();
    let mut input = child.stdin.take().expect("piped");
    for line in lines {
        input.write_all(line).expect("it reads");
        input.write_all(b"\n").expect("it reads");
    }
    drop(input);
    let output = child.wait_with_output().expect("it ends");
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let messages = text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{line:?}: {e}")));
    (messages.collect(), output.status.code())
}

fn line(message: &Value) -> Vec<u8> {
    message.to_string().into_bytes()
}

fn by_id<'a>(messages: &'a [Value], id: &Value) -> &'a Value {
    messages.iter().find(|m| m["id"] == *id).unwrap_or_else(|| panic!("no answer to {id}: {messages:?}"))
}

/// At least what was asked for; more where others have the cores.
fn burned_ms(answer: &Value) -> Option<u64> {
    answer["result"]["structuredContent"]["burned_ms"].as_u64()
}

#[test]
fn both_eras_side_by_side() {
    let initialize =
        json!({ "protocolVersion": "2025-03-26", "capabilities": {}, "clientInfo": { "name": "t", "version": "1" } });
    let (messages, code) = converse(&[
        line(&json!({ "jsonrpc": "2.0", "id": "early", "method": "ping" })),
        line(&json!({ "jsonrpc": "2.0", "id": "none", "method": "tools/list" })),
        line(&json!({ "jsonrpc": "2.0", "id": "i", "method": "initialize", "params": initialize })),
        line(&json!({ "jsonrpc": "2.0", "method": "notifications/initialized" })),
        line(
            &json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": { "name": "echo", "arguments": { "message": "a" } } }),
        ),
        line(&modern(2, "tools/call", json!({ "name": "echo", "arguments": { "message": "b" } }))),
        line(&modern(3, "server/discover", json!({}))),
        line(&modern(4, "tools/call", json!({ "name": "burn", "arguments": { "ms": 1 } }))),
    ]);
    assert_eq!(code, Some(0), "the end of the input is a clean stop");
    assert_eq!(by_id(&messages, &json!("early"))["result"], json!({}));
    assert_eq!(by_id(&messages, &json!("none"))["error"]["code"], -32600);
    assert_eq!(by_id(&messages, &json!("i"))["result"]["protocolVersion"], "2025-03-26");
    assert_eq!(by_id(&messages, &json!(1))["result"]["content"][0]["text"], "a");
    let modern = &by_id(&messages, &json!(2))["result"];
    assert_eq!((&modern["content"][0]["text"], &modern["resultType"]), (&json!("b"), &json!("complete")));
    assert_eq!(by_id(&messages, &json!(3))["result"]["supportedVersions"], json!(["2026-07-28"]));
    assert!(burned_ms(by_id(&messages, &json!(4))) >= Some(1));
    assert_eq!(messages.len(), 7, "notifications have no answer");
}

#[test]
fn bad_lines_are_answered_and_the_next_one_works() {
    let long = [br#"{"jsonrpc":"2.0","id":1,"method":""#.to_vec(), vec![b'x'; 3 << 20], br#""}"#.to_vec()].concat();
    let (messages, code) = converse(&[
        b"{".to_vec(),
        b"".to_vec(),
        b"\xff\xfe".to_vec(),
        long,
        [b"\xEF\xBB\xBF".to_vec(), line(&modern("ok", "tools/list", json!({})))].concat(),
    ]);
    assert_eq!(code, Some(0));
    let codes: Vec<_> = messages.iter().filter_map(|m| m["error"]["code"].as_i64()).collect();
    assert_eq!(codes, [-32700, -32700, -32600]);
    assert!(by_id(&messages, &json!("ok"))["result"]["tools"].is_array());
}

#[test]
fn a_call_is_cancelled_in_either_era() {
    let cancel = |id: Value| {
        line(&json!({ "jsonrpc": "2.0", "method": "notifications/cancelled", "params": { "requestId": id } }))
    };
    let (messages, code) = converse(&[
        line(&modern(1, "tools/call", json!({ "name": "burn", "arguments": { "ms": 60_000 } }))),
        cancel(json!(1)),
        line(&modern(2, "tools/list", json!({}))),
    ]);
    assert_eq!(code, Some(0), "the end did not wait for the call that was taken back");
    assert_eq!(messages.len(), 1, "{messages:?}");
}

fn listen(id: usize) -> Vec<u8> {
    line(&modern(id, "subscriptions/listen", json!({ "notifications": { "toolsListChanged": true } })))
}

/// What came of a request, in the order in which it came: the acknowledgement of a stream, and answers.
fn of_request(messages: &[Value], id: usize) -> Vec<&Value> {
    let key = "io.modelcontextprotocol/subscriptionId";
    messages.iter().filter(|m| m["id"] == id || (m.get("id").is_none() && m["params"]["_meta"][key] == id)).collect()
}

#[test]
fn streams_are_taken_back_and_those_that_are_too_many_are_refused() {
    const MAX: usize = 64;
    let cancel = |id: usize| {
        line(&json!({ "jsonrpc": "2.0", "method": "notifications/cancelled", "params": { "requestId": id } }))
    };
    let mut lines: Vec<_> = (0..=MAX).map(listen).collect();
    lines.push(cancel(0));
    lines.push(listen(MAX + 1));
    lines.push(listen(1));
    lines.push(listen(MAX + 2));
    let (messages, code) = converse(&lines);
    assert_eq!(code, Some(0));
    for id in [MAX, MAX + 2] {
        let [refused] = of_request(&messages, id)[..] else { panic!("one answer: {messages:?}") };
        assert_eq!(refused["error"]["code"], -31429, "{refused}");
    }
    assert!(of_request(&messages, 0).iter().all(|m| m.get("id").is_none()), "what was taken back has no answer");
    for id in (2..MAX).chain([MAX + 1]) {
        let [acknowledged, ended] = of_request(&messages, id)[..] else { panic!("{id} opens and ends: {messages:?}") };
        assert_eq!(acknowledged["method"], "notifications/subscriptions/acknowledged");
        assert_eq!(ended["result"]["resultType"], "complete", "the end of the input ends what is open: {ended}");
    }
}

#[test]
fn a_stream_has_no_id_that_runs() {
    let (messages, _) = converse(&[listen(1), listen(1)]);
    assert_eq!(messages.iter().filter(|m| m["error"]["code"] == -32600).count(), 1, "{messages:?}");
    assert_eq!(messages.iter().filter(|m| m["result"].is_object()).count(), 1, "{messages:?}");
}

#[test]
fn a_signal_drains_it() {
    let mut child = spawn();
    let mut input = child.stdin.take().expect("piped");
    let mut output = BufReader::new(child.stdout.take().expect("piped"));
    let mut next = || {
        let mut line = String::new();
        output.read_line(&mut line).expect("a line");
        serde_json::from_str::<Value>(&line).expect("a message")
    };
    for request in [
        modern(0, "subscriptions/listen", json!({ "notifications": { "toolsListChanged": true } })),
        modern(1, "tools/call", json!({ "name": "burn", "arguments": { "ms": 300 } })),
        modern(2, "tools/list", json!({})),
    ] {
        writeln!(input, "{request}").expect("it reads");
    }
    let first = [next(), next()];
    assert!(first.iter().any(|m| m["method"] == "notifications/subscriptions/acknowledged"), "{first:?}");
    assert_eq!(by_id(&first, &json!(2))["error"], Value::Null, "so the call before it has been read");
    let sent = Command::new("kill").args(["-s", "TERM", &child.id().to_string()]).status();
    assert!(sent.expect("kill (package procps) is there").success());
    let last = [next(), next()];
    assert_eq!(by_id(&last, &json!(0))["result"]["resultType"], "complete", "the stream is ended");
    assert!(burned_ms(by_id(&last, &json!(1))) >= Some(300));
    assert_eq!(child.wait().expect("it ends").code(), Some(0));
    drop(input);
}
