//! `bigiron bench` against real servers: its counts add up, its files are what they say, and nothing is left behind.

use std::{
    collections::HashSet,
    io::{BufRead, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    time::Instant,
};

use rustix::process::{Pid, Signal, getpgid, kill_process};
use serde_json::Value;

use crate::{
    identity::{Issuer, secret_of},
    support::{PATIENCE, Process},
};

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
    assert!(
        said.lines().all(|line| line.ends_with(" good answers/s")),
        "a line for each row, and nothing else: {said}"
    );
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

/// Sessions are opened and ended with the key, too; and the key stands in no output.
#[test]
fn a_server_that_asks_who_calls_is_shown_a_key() {
    let issuer = Issuer::new();
    let key = issuer.key_for("bench", &[]);
    std::fs::write(issuer.file("bench.key"), format!("{key}\n")).expect("written");
    let keys = format!("auth.keys_file={}", issuer.file("keys.toml").display());
    let server = Process::start(&["--set", &keys]);
    let (url, file) = (format!("http://{}/mcp", server.addr), issuer.file("bench.key").display().to_string());
    let arguments = ["--url", &url, "--key-file", &file, "--connections", "4", "--mode", "mix"];
    let (table, json) = bench(&issuer.file(""), &arguments);
    let row = &json["rows"][0];
    adds_up(row);
    assert!(row["ok"].as_u64() > Some(0) && row["refused"] == serde_json::json!([]), "{row}");
    assert!(!table.contains(secret_of(&key)) && !json.to_string().contains(secret_of(&key)));
    let line = ["bench", "--url", &url, "--duration", "100ms"];
    let refused = Command::new(env!("CARGO_BIN_EXE_bigiron")).args(line).output().expect("it runs");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(1) && said.contains("--key-file"), "{said}");
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
    let (_, json) = bench(folder.path(), &["--connections", "2,8", "--rate", "50,80", "--continuous"]);
    let labels: HashSet<_> =
        json["rows"].as_array().expect("rows").iter().map(|row| row["label"].to_string()).collect();
    assert_eq!(labels.len(), 4, "each row is told from the others: {labels:?}");
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
        // More sessions are opened than this server would have.
        (
            &[
                "--capacity",
                "--tool",
                "burn",
                "--p99",
                "1ms",
                "--duration",
                "300ms",
                "--set",
                "sessions.sessions_max=500",
            ],
            1,
            "say a longer one",
        ),
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
        let out = String::from_utf8_lossy(&output.stdout);
        assert!(!out.contains("_max = "), "{args:?}: settings that follow from nothing: {out}");
    }
}

/// The bench with servers of its own.
fn comparing(folder: &Path, duration: &str) -> Child {
    std::fs::write(folder.join("one.toml"), "").expect("writes");
    Command::new(env!("CARGO_BIN_EXE_bigiron"))
        .current_dir(folder)
        .args(["bench", "--tuning", "one.toml", "--tuning", "one.toml", "--rounds", "100", "--repeats", "0"])
        .args(["--warmup", "100ms", "--duration", duration])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it runs")
}

#[test]
fn an_interrupt_ends_the_load_and_keeps_what_is_finished() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut bench = comparing(folder.path(), "300ms");
    let mut said = BufReader::new(bench.stderr.take().expect("piped")).lines().map_while(Result::ok);
    let first = said.next().unwrap_or_default();
    assert!(first.starts_with("one.toml (1 of 100): "), "{first}");
    kill_process(Pid::from_child(&bench), Signal::INT).expect("it is there");
    let said: Vec<_> = said.collect();
    let output = bench.wait_with_output().expect("it ends");
    assert_eq!(output.status.code(), Some(0), "{said:?}");
    assert!(said.len() < 199, "not to the end");
    assert!(String::from_utf8_lossy(&output.stdout).contains("one.toml "), "{output:?}");
}

/// The server that a bench has started, once it is one.
fn server_of(bench: &Child) -> Option<Pid> {
    let id = bench.id();
    let list = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).ok()?;
    let server = list.split_whitespace().next()?;
    let line = std::fs::read_to_string(format!("/proc/{server}/cmdline")).ok()?;
    (line.split('\0').nth(1) == Some("serve")).then(|| Pid::from_raw(server.parse().ok()?))?
}

/// Whether a process runs: nobody may be there to ask for the exit code of one that has ended.
fn runs(process: Pid) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.as_raw_nonzero())).unwrap_or_default();
    stat.rsplit(") ").next().is_some_and(|rest| !rest.is_empty() && !rest.starts_with('Z'))
}

#[test]
fn a_server_ends_with_its_owner_and_not_with_its_terminal() {
    let folder = tempfile::tempdir().expect("a folder");
    let mut bench = comparing(folder.path(), "1000s");
    let give_up_at = Instant::now() + PATIENCE;
    let server = loop {
        if let Some(server) = server_of(&bench) {
            break server;
        }
        assert!(Instant::now() < give_up_at, "it starts a server");
        std::thread::yield_now();
    };
    let group = getpgid(Some(server)).expect("it runs");
    assert_ne!(group, getpgid(Some(Pid::from_child(&bench))).expect("it runs"), "Ctrl-C is for the load");
    bench.kill().expect("it is there");
    bench.wait().expect("it ends");
    while runs(server) {
        assert!(Instant::now() < give_up_at, "the server goes on without its owner");
        std::thread::yield_now();
    }
}
