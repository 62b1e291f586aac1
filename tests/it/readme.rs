//! What the README tells people to type works as it says.

use std::{fs, path::Path, process::Command};

use serde_json::Value;

use crate::support::Process;

/// The first `sh` block of the README that begins with this word.
fn block(first_word: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let text = fs::read_to_string(path).expect("the README");
    let mut blocks = text.split("```sh\n").skip(1).filter_map(|rest| rest.split("```").next());
    blocks
        .find(|block| block.starts_with(first_word))
        .unwrap_or_else(|| panic!("no block with {first_word}"))
        .to_owned()
}

#[test]
fn the_curl_prints_real_hits() {
    let server = Process::start(&[]);
    let command = block("curl").replace("127.0.0.1:5000", &server.addr.to_string());
    let output = Command::new("bash").args(["-c", &command]).output().expect("bash and curl are there");
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {output:?}"));
    let hits = answer["result"]["structuredContent"]["hits"].as_array().expect("hits");
    assert!(hits.iter().any(|hit| hit["path"] == "src/main.rs"), "{answer}");
}

#[test]
fn the_commands_are_those_of_the_program() {
    for verb in ["check", "schema"] {
        let line = format!("bigiron {verb}");
        assert!(block("bigiron check").lines().any(|l| l.starts_with(&line)), "{line}");
        let ran = Command::new(env!("CARGO_BIN_EXE_bigiron")).arg(verb).output().expect("it runs");
        assert!(ran.status.success(), "{line}: {ran:?}");
    }
}

#[test]
fn its_settings_are_settings() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let text = fs::read_to_string(path).expect("the README");
    let blocks = text.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next());
    let mut settings = blocks.filter(|block| !block.starts_with("[dependencies]"));
    let (block, folder) = (settings.next().expect("a block"), tempfile::TempDir::new().expect("a folder"));
    let file = folder.path().join("tuning.toml");
    fs::write(&file, block).expect("written");
    let ran = Command::new(env!("CARGO_BIN_EXE_bigiron")).arg("check").arg("--tuning").arg(&file).output();
    let ran = ran.expect("it runs");
    assert!(ran.status.success(), "{block}{}", String::from_utf8_lossy(&ran.stderr));
    assert_eq!(settings.next(), None, "one block is checked");
}
