//! The official clients, as their users run them: each a program of its own under `tests/clients`, against the real
//! server with its toolbox, on this repository's own tree.

use std::{path::Path, process::Command};

use serde_json::{Value, json};

use crate::support::Process;

const NODE: &str = "tests/clients/node_modules/.bin/node";
const PYTHON: &str = "tests/clients/.venv/bin/python";

/// Runs one client program and returns the line that it prints: what it is, which revisions it spoke, what it found.
fn run(interpreter: &str, program: &str) -> Value {
    run_against(&Process::start(&[]), interpreter, program)
}

fn run_against(server: &Process, interpreter: &str, program: &str) -> Value {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    assert!(
        root.join(interpreter).exists(),
        "{interpreter} is missing: scripts/setup-tests.sh installs the official clients"
    );
    let output = Command::new(root.join(interpreter))
        .arg(root.join("tests/clients").join(program))
        .arg(format!("http://{}/mcp", server.addr))
        .current_dir(root)
        .output()
        .expect("the interpreter runs");
    let said = String::from_utf8_lossy(&output.stdout);
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program}: {said}\n{complaint}\n{}", server.log_lines().join("\n"));
    let line = said.lines().last().unwrap_or_default();
    let line: Value = serde_json::from_str(line).unwrap_or_else(|e| panic!("{program} printed {said:?}: {e}"));
    assert!(line["hits"].as_u64().is_some_and(|hits| hits > 0), "{line}");
    line
}

fn speaks(line: &Value, version: &str) -> bool {
    line["protocol"].as_array().is_some_and(|versions| versions.iter().any(|v| v == version))
}

#[test]
fn typescript_client_2_speaks_both_eras() {
    let line = run(NODE, "ts_client_v2.mjs");
    assert!(speaks(&line, "2026-07-28") && speaks(&line, "2025-11-25"), "{line}");
}

#[test]
fn typescript_sdk_1_has_a_session() {
    let line = run(NODE, "ts_sdk_v1.mjs");
    assert!(speaks(&line, "2025-11-25"), "{line}");
}

#[test]
fn python_mcp_2_speaks_both_eras() {
    let line = run(PYTHON, "py_mcp.py");
    assert!(speaks(&line, "2026-07-28") && speaks(&line, "2025-11-25"), "{line}");
}

#[test]
fn fastmcp_4_speaks_both_eras() {
    let line = run(PYTHON, "py_fastmcp.py");
    assert!(speaks(&line, "2026-07-28") && speaks(&line, "2025-11-25"), "{line}");
}

#[test]
fn the_inspector_lists_and_calls() {
    let line = run(NODE, "inspector_cli.mjs");
    assert!(speaks(&line, "2026-07-28") && speaks(&line, "2025-11-25"), "{line}");
}

/// Questions answered, progress, a resource watched, a stream that broke; rounds, and calls that became tasks: on the
/// everything server.
fn working_day(interpreter: &str, program: &str) {
    let line = run_against(&Process::start_example("everything"), interpreter, program);
    assert!(speaks(&line, "2026-07-28") && speaks(&line, "2025-11-25"), "{line}");
    assert_eq!(line["tasks"], json!(["completed", "asked", "cancelled"]), "{line}");
}

#[test]
fn a_working_day_of_the_typescript_client() {
    working_day(NODE, "story.mjs");
}

#[test]
fn a_working_day_of_the_python_client() {
    working_day(PYTHON, "story.py");
}
