//! `bigiron bench` against real servers: its counts add up, its files are what they say, and nothing is left behind.

use std::{path::Path, process::Command};

use serde_json::Value;

use crate::support::Process;

/// Runs it in a folder; what it printed, and the JSON that it wrote.
fn bench(folder: &Path, args: &[&str]) -> (String, Value) {
    let json = folder.join("results.json");
    let output = Command::new(env!("CARGO_BIN_EXE_bigiron"))
        .current_dir(folder)
        .arg("bench")
        .args(args)
        .args(["--duration", "300ms", "--warmup", "100ms", "--json"])
        .arg(&json)
        .output()
        .expect("it runs");
    let said = String::from_utf8(output.stderr).expect("text");
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert_eq!(said, "", "nothing but the results, where nobody looks on");
    let json = serde_json::from_slice(&std::fs::read(json).expect("a file")).expect("JSON");
    (String::from_utf8(output.stdout).expect("text"), json)
}

/// What was sent is what ended, each call in one way.
fn adds_up(row: &Value) {
    let count = |name: &str| row[name].as_u64().unwrap_or_else(|| panic!("{name} is not in {row}"));
    let refused: u64 = row["refused"].as_array().expect("a list").iter().filter_map(|r| r["count"].as_u64()).sum();
    let ended = count("ok") + count("tool_errors") + refused + count("broken") + count("timed_out");
    assert_eq!(count("sent"), ended, "{row}");
    assert_eq!((count("broken"), count("timed_out")), (0, 0), "{row}");
}

#[test]
fn closed_and_open_loops_count_every_call() {
    let folder = tempfile::tempdir().expect("a folder");
    let (table, json) = bench(folder.path(), &["--connections", "2,8", "--mode", "mix"]);
    let rows = json["rows"].as_array().expect("rows");
    assert_eq!(rows.len(), 2);
    for row in rows {
        adds_up(row);
        assert!(row["ok"].as_u64() > Some(0), "{row}");
        assert!(table.contains(row["label"].as_str().expect("a label")), "{table}");
    }
    let (_, json) = bench(folder.path(), &["--rate", "100,300", "--arrivals", "even"]);
    for (row, calls) in json["rows"].as_array().expect("rows").iter().zip([30, 90]) {
        adds_up(row);
        let offered = row["sent"].as_u64().unwrap_or(0) + row["not_sent"].as_u64().unwrap_or(0);
        assert!(offered.abs_diff(calls) <= 2, "a timetable is kept whatever the server does: {row}");
    }
}

#[test]
fn what_is_refused_is_told_by_status_and_code() {
    let folder = tempfile::tempdir().expect("a folder");
    let sets = ["--set", "pool.on_full=reject", "--set", "pool.queue_max=1", "--set", "pool.threads_max=1"];
    let load = ["--set", "pool.threads=1", "--tool", "burn", "--connections", "16"];
    let (table, json) = bench(folder.path(), &[&sets[..], &load].concat());
    let row = &json["rows"][0];
    adds_up(row);
    assert_eq!((&row["refused"][0]["status"], &row["refused"][0]["code"]), (&503.into(), &(-31503).into()), "{row}");
    assert!(table.contains("refused with HTTP 503, code -31503"), "{table}");
}

#[test]
fn configurations_are_compared_and_drawn() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("one.toml"), "[pool]\nthreads = 1\n").expect("writes");
    std::fs::write(folder.path().join("two.toml"), "[pool]\nthreads = 2\n").expect("writes");
    let args = ["--tuning", "one.toml", "--tuning", "two.toml", "--rounds", "2", "--svg", "plot.svg"];
    let (table, json) = bench(folder.path(), &args);
    let compared = json["compared"].as_array().expect("a list");
    assert_eq!(compared.len(), 2);
    for one in compared {
        assert_eq!(one["rounds"].as_array().map(Vec::len), Some(2));
        assert!(table.contains(one["name"].as_str().expect("a name")), "{table}");
    }
    let plot = std::fs::read_to_string(folder.path().join("plot.svg")).expect("a plot");
    assert!(plot.starts_with("<svg ") && plot.contains("two.toml"), "{plot}");
}

#[test]
fn a_server_that_runs_is_measured_and_goes_on() {
    let folder = tempfile::tempdir().expect("a folder");
    let server = Process::start(&[]);
    let url = format!("http://{}/mcp", server.addr);
    let (_, json) = bench(folder.path(), &["--url", &url, "--mode", "sessions", "--connections", "4"]);
    adds_up(&json["rows"][0]);
    assert_eq!(crate::support::get(server.addr, "/health").status, 200);
}

#[test]
fn what_cannot_be_measured_is_said() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("wrong.toml"), "[pool]\nthreds = 1\n").expect("writes");
    let server = Process::start(&[]);
    let elsewhere = format!("http://{}/elsewhere", server.addr);
    for (args, code, says) in [
        (&["--url", "http://127.0.0.1:1/mcp"][..], 1, "is a server running there?"),
        (&["--url", "http://203.0.113.1:80/mcp"], 2, "--allow-remote"),
        (&["--tool", "read_file"], 2, "--arguments is missing"),
        (&["--arguments", "[]"], 2, "not an object"),
        (&["--rate", "fast"], 2, "write calls per second"),
        (&["--capacity", "--rate", "5"], 2, "cannot be used with"),
        (&["--tuning", "wrong.toml", "--tuning", "wrong.toml", "--rate", "5,6"], 2, "a comparison has one --rate"),
        (&["--json", "no-folder/results.json"], 1, "cannot write no-folder/results.json"),
        (&["--svg", "."], 1, "cannot write .:"),
        (&["--from", "192.0.2.1"], 1, "--from 192.0.2.1: "),
        (&["--duration", "long"], 2, "such as 10s or 500ms"),
        (&["--tuning", "wrong.toml"], 1, "pool.threads"),
        (&["--tool", "no-such-tool", "--arguments", "{}"], 1, "(error -32602, HTTP "),
        (&["--arguments", "{}", "--mode", "sessions"], 1, "message"),
        (&["--url", &elsewhere], 1, "the MCP endpoint is /mcp"),
        (&["--capacity", "--tool", "no-such-tool", "--arguments", "{}"], 1, "the first call of no-such-tool failed"),
        (&["--capacity", "--tool", "burn", "--p99", "1ms", "--duration", "300ms"], 1, "say a longer one"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_bigiron"))
            .current_dir(folder.path())
            .arg("bench")
            .args(args)
            .output()
            .expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {said}");
        assert!(said.contains(says), "{args:?}: {said}");
        assert_eq!(String::from_utf8_lossy(&output.stdout), "", "{args:?}: nothing was measured");
    }
}
