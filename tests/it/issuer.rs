//! A real issuer of tokens, and the official clients: from the refusal of a call without a token they learn where it is,
//! register, log in, and come back with a token that is for this server and no other.

use std::{
    io::{BufRead, BufReader},
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bigiron::{Ctx, Lane, Server, server::Running};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::support::{eventually, metric, start};

const NODE: &str = "tests/clients/node_modules/.bin/node";
const PYTHON: &str = "tests/clients/.venv/bin/python";

#[derive(Deserialize, JsonSchema)]
struct Nothing {}

/// One of the programs beside the clients.
fn program(interpreter: &str, name: &str, arguments: &[&str]) -> Command {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    assert!(
        root.join(interpreter).exists(),
        "{interpreter} is missing: scripts/setup-tests.sh installs the official clients"
    );
    let mut command = Command::new(root.join(interpreter));
    command.arg(root.join("tests/clients").join(name)).args(arguments).current_dir(root);
    command
}

/// The issuer's process. It ends with its standard input, and is killed when dropped.
struct Issuer {
    child: Child,
    url: String,
}

impl Issuer {
    fn start(resource: &str) -> Self {
        let mut command = program(NODE, "issuer.mjs", &[resource]);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the issuer starts");
        let mut line = String::new();
        BufReader::new(child.stdout.take().expect("piped")).read_line(&mut line).expect("a line");
        let said: Value = serde_json::from_str(&line)
            .unwrap_or_else(|e| panic!("the issuer said {line:?} ({e}): scripts/setup-tests.sh installs it"));
        let url = said["issuer"].as_str().unwrap_or_else(|| panic!("no address: {said}")).to_owned();
        Self { child, url }
    }
}

impl Drop for Issuer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An issuer, and a server that believes it.
struct World {
    issuer: Issuer,
    running: Running,
    url: String,
    runs: Arc<AtomicUsize>,
}

fn world() -> World {
    // A token is for a URL, so that the port must be known before the server has it.
    let port = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port").port();
    let url = format!("http://127.0.0.1:{port}/mcp");
    let issuer = Issuer::start(&url);
    let runs = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&runs);
    let server = Server::builder().tool("who", "Says who calls", Lane::Inline, move |_: Nothing, ctx: Ctx| {
        count.fetch_add(1, Ordering::SeqCst);
        ctx.caller().subject().to_owned()
    });
    let running = start(server, |tuning| {
        tuning.server.listen = format!("127.0.0.1:{port}");
        tuning.auth.issuer = issuer.url.clone();
        tuning.auth.audience = vec![url.clone()];
        tuning.auth.algorithms = vec!["ES256".into()];
        tuning.auth.jwks_url = format!("{}/jwks", issuer.url);
        tuning.auth.required_scopes = vec!["mcp:tools".into()];
    });
    World { issuer, running, url, runs }
}

impl World {
    fn login(&self, interpreter: &str, name: &str, login: &str) -> Value {
        let output = program(interpreter, name, &[&self.url, login]).output().expect("the interpreter runs");
        let (said, complaint) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "{name}: {said}\n{complaint}");
        let line = said.lines().last().unwrap_or_default();
        serde_json::from_str(line).unwrap_or_else(|e| panic!("{name} printed {said:?}: {e}"))
    }

    fn log_in_and_call(&self, interpreter: &str, name: &str) {
        let told = self.login(interpreter, name, "alice");
        let subject = told["text"].as_str().unwrap_or_else(|| panic!("no call: {told}"));
        assert!(subject.contains(&self.issuer.url) && subject.contains("5:alice;"), "{told}");
        assert_eq!(told["refusals"][0]["status"], 401, "{told}");
        let challenge = told["refusals"][0]["challenge"].as_str().unwrap_or_default();
        assert!(challenge.contains("/.well-known/oauth-protected-resource/mcp\""), "{challenge}");
        assert!(challenge.contains("scope=\"mcp:tools\""), "{challenge}");
        assert_eq!(self.runs.swap(0, Ordering::SeqCst), 1);

        // Who is known to the issuer and has no right here is told what is missing.
        let told = self.login(interpreter, name, "guest");
        assert!(told["failed"].is_string() && told.get("text").is_none(), "{told}");
        let refusals = told["refusals"].as_array().cloned().unwrap_or_default();
        let lacking = refusals.iter().filter(|refusal| refusal["status"] == 403).collect::<Vec<_>>();
        assert!(!lacking.is_empty(), "{told}");
        for refusal in lacking {
            let challenge = refusal["challenge"].as_str().unwrap_or_default();
            assert!(challenge.contains("error=\"insufficient_scope\""), "{challenge}");
            assert!(challenge.contains("scope=\"mcp:tools\""), "{challenge}");
        }
        assert_eq!(self.runs.load(Ordering::SeqCst), 0, "nothing ran");
        assert!(metric(&self.running, "bigiron_auth_refusals_total{kind=\"scope\"}") >= 1.0);
    }
}

#[test]
fn the_typescript_client_finds_the_issuer_logs_in_and_calls() {
    world().log_in_and_call(NODE, "ts_login.mjs");
}

#[test]
fn the_python_client_finds_the_issuer_logs_in_and_calls() {
    world().log_in_and_call(PYTHON, "py_login.py");
}

/// The issuer is gone: its keys are still known, and whoever has a token goes on.
#[test]
fn who_has_logged_in_goes_on_while_the_issuer_is_away() {
    let mut world = world();
    let told = world.login(PYTHON, "py_login.py", "alice");
    let token = told["token"].as_str().unwrap_or_else(|| panic!("no token: {told}")).to_owned();
    world.issuer.child.kill().expect("killed");
    world.issuer.child.wait().expect("ended");
    let headers = [("Authorization", format!("Bearer {token}"))];
    let mut all = crate::support::modern_headers("tools/call", "who").to_vec();
    all.extend(headers.iter().map(|(name, value)| (*name, value.as_str())));
    let request = crate::support::modern(1, "tools/call", json!({ "name": "who", "arguments": {} }));
    let mut client = crate::support::Client::connect(world.running.addr());
    for _ in 0..20 {
        let answer = client.post(&all, &request);
        assert!(answer.text().contains("5:alice;"), "{answer:?}");
    }
    // A token with one other character is none, whether the issuer is there or not.
    let forged = format!("Bearer {}x", &token[..token.len() - 1]);
    all.pop();
    all.push(("Authorization", &forged));
    eventually("it is refused", || client.post(&all, &request).status == 401);
}
