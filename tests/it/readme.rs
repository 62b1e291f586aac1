//! What the README tells people to type works as it says.

use std::{fs, path::Path, process::Command};

use serde_json::Value;

use crate::{
    identity::secret_of,
    support::{Client, Process},
};

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

/// The script itself takes two release builds; what it asks of the program can be asked of any build.
#[test]
fn the_profile_is_made_of_loads_that_there_are() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/build-pgo.sh");
    let script = fs::read_to_string(path).expect("the script");
    let bench = concat!(env!("CARGO_BIN_EXE_bigiron"), " bench --duration 100ms --warmup 0s --repeats 0");
    let loads: Vec<_> = script.lines().filter_map(|line| line.strip_prefix("train --")).collect();
    assert!(!loads.is_empty());
    for load in loads {
        let ran = Command::new("sh").args(["-c", &format!("{bench} --{load}")]).output().expect("it runs");
        assert!(ran.status.success(), "{load}: {}", String::from_utf8_lossy(&ran.stderr));
    }
}

#[test]
fn its_settings_are_settings() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let text = fs::read_to_string(path).expect("the README");
    let blocks = text.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next());
    let mut settings =
        blocks.filter(|block| !["[dependencies]", "[auth]", "[tls]"].iter().any(|other| block.starts_with(other)));
    let (block, folder) = (settings.next().expect("a block"), tempfile::TempDir::new().expect("a folder"));
    let file = folder.path().join("tuning.toml");
    // Not every host has the folder of the audit log.
    let block = block.replace("/var/log/bigiron", folder.path().to_str().expect("a path"));
    fs::write(&file, &block).expect("written");
    let ran = Command::new(env!("CARGO_BIN_EXE_bigiron")).arg("check").arg("--tuning").arg(&file).output();
    let ran = ran.expect("it runs");
    assert!(ran.status.success(), "{block}{}", String::from_utf8_lossy(&ran.stderr));
    assert_eq!(settings.next(), None, "one block is checked");
}

/// Who pastes one block after the other has one file of settings.
#[test]
fn its_settings_can_stand_in_one_file() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let text = fs::read_to_string(path).expect("the README");
    let blocks = text.split("```toml\n").skip(1).filter_map(|rest| rest.split("```").next());
    let blocks: Vec<_> = blocks.filter(|block| !block.starts_with("[dependencies]")).collect();
    assert!(blocks.len() >= 3, "{blocks:?}");
    let whole: toml::Table = blocks.concat().parse().unwrap_or_else(|error| panic!("{error}"));
    for section in ["auth", "audit", "tls", "rate_limit"] {
        assert!(whole.contains_key(section), "{section}");
    }
}

/// In a folder with the settings that stand above them, the commands make a key that these settings take.
#[test]
fn the_commands_of_who_may_call_work_in_turn() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let text = fs::read_to_string(path).expect("the README");
    let settings = text.split("```toml\n").find(|rest| rest.starts_with("[auth]")).expect("a block");
    let settings = settings.split("```").next().expect("its end");
    let folder = tempfile::TempDir::new().expect("a folder");
    fs::write(folder.path().join("tuning.toml"), settings).expect("written");
    let bin = Path::new(env!("CARGO_BIN_EXE_bigiron")).parent().expect("a folder");
    let paths = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default());
    let commands = block("umask");
    let ran = Command::new("bash").args(["-ec", &commands]).env("PATH", &paths).current_dir(folder.path()).output();
    let ran = ran.expect("bash is there");
    let out = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success(), "{out}{}", String::from_utf8_lossy(&ran.stderr));
    for expected in ["  ann  created ", "accepted\n", "keys_file = \"keys.toml\""] {
        assert!(out.contains(expected), "{expected}: {out}");
    }
    let key = fs::read_to_string(folder.path().join("ann.key")).expect("a key");
    assert!(!out.contains(secret_of(&key)), "shown once");
    // And a server with them takes it.
    let mut server = Process::start_in(folder.path(), &[]);
    let headers = [("Authorization", format!("Bearer {}", key.trim_end()))];
    let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let initialize = serde_json::json!({ "jsonrpc": "2.0", "id": 1, "method": "initialize",
        "params": { "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": { "name": "t", "version": "1" } } });
    assert_eq!(Client::connect(server.addr).post(&headers, &initialize).status, 200);
    assert_eq!(Client::connect(server.addr).post(&[], &initialize).status, 401);
    server.signal("TERM");
    assert!(server.wait().success());
}

/// The commands make a certificate that the settings above them take, and that curl trusts.
#[test]
fn the_way_to_secure_connections_works() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
    let text = fs::read_to_string(path).expect("the README");
    let settings = text.split("```toml\n").find(|rest| rest.starts_with("[tls]")).expect("the settings");
    let settings = settings.split("```").next().expect("an end");
    let folder = tempfile::TempDir::new().expect("a folder");
    fs::write(folder.path().join("tuning.toml"), settings).expect("written");
    let commands = block("openssl");
    let (make, call) = commands.split_at(commands.find("curl").expect("curl"));
    let run = |command: &str| {
        let ran = Command::new("bash").args(["-c", command]).current_dir(folder.path()).output();
        let ran = ran.expect("bash, openssl and curl are there");
        assert!(ran.status.success(), "{command}: {ran:?}");
        String::from_utf8_lossy(&ran.stdout).into_owned()
    };
    run(make);
    let server = Process::start_in(folder.path(), &[]);
    assert!(run(&call.replace("5000", &server.addr.port().to_string())).contains("ready"));
}
