//! Who calls, and what they may: API keys and tokens at the door, what is bound to the caller, and tools that only some
//! have.

use std::{
    fs,
    io::{Read, Write},
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::{
    hmac,
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair},
};
use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use bigiron::{
    Ctx, Lane, Server, Tool,
    config::Tuning,
    identity::keys::{self, Wanted},
    server::{Builder, Running},
};
use schemars::JsonSchema;
use serde::Deserialize;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{Client, Response, eventually, get, metric, modern, modern_headers, start};

const ISSUER: &str = "https://issuer.example";
const AUDIENCE: &str = "https://mcp.example.com/mcp";

#[derive(Deserialize, JsonSchema)]
struct Nothing {}

/// The part of an API key that only its owner knows: what follows `bi_`, eight digits and `_`. It may have a `_` in it.
pub(crate) fn secret_of(key: &str) -> &str {
    let secret = &key.trim_end()[12..];
    assert_eq!(secret.len(), 43, "32 bytes in base64url");
    secret
}

/// An issuer of tokens, and a folder with its keys and a file of API keys.
pub(crate) struct Issuer {
    folder: TempDir,
    pair: EcdsaKeyPair,
    shared: [u8; 32],
}

impl Issuer {
    pub(crate) fn new() -> Self {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key");
        let mut shared = [0; 32];
        aws_lc_rs::rand::fill(&mut shared).expect("random bytes");
        let issuer = Self { folder: TempDir::new().expect("a folder"), pair, shared };
        let point = issuer.pair.public_key().as_ref();
        let set = json!({ "keys": [
            { "kty": "EC", "crv": "P-256", "kid": "ec", "alg": "ES256", "use": "sig",
              "x": URL_SAFE_NO_PAD.encode(&point[1..33]), "y": URL_SAFE_NO_PAD.encode(&point[33..]) },
            { "kty": "oct", "kid": "shared", "alg": "HS256", "k": URL_SAFE_NO_PAD.encode(issuer.shared) },
        ]});
        fs::write(issuer.file("jwks.json"), set.to_string()).expect("written");
        fs::set_permissions(issuer.file("jwks.json"), fs::Permissions::from_mode(0o600)).expect("private");
        issuer
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn key_for(&self, subject: &str, scopes: &[&str]) -> String {
        let file = self.file("keys.toml");
        let ran = cli(self.folder.path(), &create(&file.display().to_string(), subject, scopes), "");
        assert!(ran.status.success(), "{ran:?}");
        String::from_utf8(ran.stdout).expect("text").trim_end().to_owned()
    }

    pub(crate) fn tune(&self, tuning: &mut Tuning) {
        let auth = &mut tuning.auth;
        auth.issuer = ISSUER.into();
        auth.audience = vec![AUDIENCE.into()];
        auth.algorithms = vec!["ES256".into(), "HS256".into()];
        auth.jwks_file = self.file("jwks.json").display().to_string();
        auth.keys_file = self.file("keys.toml").display().to_string();
    }

    fn claims(subject: &str) -> Value {
        json!({ "iss": ISSUER, "sub": subject, "aud": AUDIENCE, "exp": now_s() + 600, "scope": "read" })
    }

    /// A token with this header and these claims, signed by what the header says.
    fn sign(&self, header: &Value, claims: &Value) -> String {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let text = format!("{}.{}", part(header), part(claims));
        let signature = match header["alg"].as_str() {
            Some("ES256") => self.pair.sign(&SystemRandom::new(), text.as_bytes()).expect("signs").as_ref().to_vec(),
            Some("HS256") => {
                hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, &self.shared), text.as_bytes()).as_ref().to_vec()
            }
            _ => Vec::new(),
        };
        format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))
    }

    fn token_of(&self, claims: &Value) -> String {
        self.sign(&json!({ "alg": "ES256", "kid": "ec" }), claims)
    }

    pub(crate) fn token(&self, subject: &str) -> String {
        self.token_of(&Self::claims(subject))
    }

    pub(crate) fn token_with(&self, subject: &str, scope: &str) -> String {
        let mut claims = Self::claims(subject);
        claims["scope"] = scope.into();
        self.token_of(&claims)
    }

    /// One that ends so soon.
    pub(crate) fn token_for(&self, subject: &str, seconds: u64) -> String {
        let mut claims = Self::claims(subject);
        claims["exp"] = (now_s() + seconds).into();
        self.token_of(&claims)
    }

    pub(crate) fn revoke(&self, key: &str) {
        let file = self.file("keys.toml").display().to_string();
        let ran = cli(self.folder.path(), &["key", "revoke", "--file", &file, &key[3..11]], "");
        assert!(ran.status.success(), "{ran:?}");
    }
}

fn create<'a>(file: &'a str, subject: &'a str, scopes: &[&'a str]) -> Vec<&'a str> {
    let mut arguments = vec!["key", "create", "--file", file, "--subject", subject];
    arguments.extend(scopes.iter().flat_map(|scope| ["--scope", scope]));
    arguments
}

fn cli(folder: &Path, arguments: &[&str], input: &str) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bigiron"));
    command.args(arguments).current_dir(folder).env_clear();
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().expect("bigiron starts");
    let _ = child.stdin.take().expect("piped").write_all(input.as_bytes()); // it may not want it
    child.wait_with_output().expect("ends")
}

fn now_s() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_secs()
}

/// How often its tools ran.
type Runs = Arc<AtomicUsize>;

/// A tool that says who calls it (its results are kept), and one that only some may call.
fn builder() -> (Builder, Runs) {
    let runs = Runs::default();
    let (one, two) = (Arc::clone(&runs), Arc::clone(&runs));
    let who = Tool::new("who", "Says who calls", Lane::Pool, move |_: Nothing, ctx: Ctx| {
        one.fetch_add(1, Ordering::SeqCst);
        ctx.caller().subject().to_owned()
    });
    let server = Server::builder().with(who.read_only()).tool(
        "secret",
        "Only some may call it",
        Lane::Inline,
        move |_: Nothing, _: Ctx| {
            two.fetch_add(1, Ordering::SeqCst);
            "the secret"
        },
    );
    (server, runs)
}

fn server(issuer: &Issuer, tune: impl FnOnce(&mut Tuning)) -> (Running, Runs) {
    if !issuer.file("keys.toml").exists() {
        issuer.key_for("somebody", &[]);
    }
    let (server, runs) = builder();
    let running = start(server, |tuning| {
        issuer.tune(tuning);
        let config = bigiron::tool::Config { scopes_any: Some(vec!["secrets".into()]), ..Default::default() };
        tuning.tools.insert("secret".into(), config);
        let config = bigiron::tool::Config { cache_ttl_s: Some(600), ..Default::default() };
        tuning.tools.insert("who".into(), config);
        tune(tuning);
    });
    (running, runs)
}

/// A call with these headers besides the usual ones.
fn call_with(running: &Running, tool: &str, more: &[(&str, &str)]) -> Response {
    let mut headers = modern_headers("tools/call", tool).to_vec();
    headers.extend(more);
    Client::connect(running.addr()).post(&headers, &modern(1, "tools/call", json!({ "name": tool, "arguments": {} })))
}

fn call(running: &Running, tool: &str, token: &str) -> Response {
    call_with(running, tool, &[("Authorization", &format!("Bearer {token}"))])
}

fn list(running: &Running, token: &str) -> Vec<String> {
    let mut headers = modern_headers("tools/list", "").to_vec();
    let authorization = format!("Bearer {token}");
    headers.push(("Authorization", &authorization));
    let answer = Client::connect(running.addr()).post(&headers, &modern(1, "tools/list", json!({}))).json();
    let tools = answer["result"]["tools"].as_array().unwrap_or_else(|| panic!("no list: {answer}")).clone();
    tools.iter().map(|tool| tool["name"].as_str().expect("a name").to_owned()).collect()
}

/// A refusal for what came with the request: nothing ran, and the body says nothing of why.
fn assert_401(answer: &Response, what: &str) {
    assert_eq!(answer.status, 401, "{what}: {answer:?}");
    let challenge = answer.header("www-authenticate").unwrap_or_else(|| panic!("{what}: no challenge"));
    assert!(challenge.starts_with("Bearer "), "{what}: {challenge}");
    let metadata = "resource_metadata=\"https://mcp.example.com/.well-known/oauth-protected-resource/mcp\"";
    assert!(challenge.contains(metadata), "{what}: {challenge}");
    let body = answer.json();
    assert!(body["error"]["code"].is_i64() && body.get("result").is_none(), "{what}: {body}");
}

/// All that needs no credentials is there for all.
#[test]
fn without_a_token_nothing_is_done_and_clients_learn_where_to_get_one() {
    let issuer = Issuer::new();
    let (running, runs) = server(&issuer, |tuning| tuning.auth.required_scopes = vec!["read".into()]);
    let refused = call_with(&running, "who", &[]);
    assert_401(&refused, "no token");
    assert!(!refused.header("www-authenticate").expect("checked").contains("error="), "nothing was wrong with it");
    // No byte of the body is waited for.
    let mut client = Client::connect(running.addr());
    client.send(
        b"POST /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: 9999\r\n\r\n",
    );
    assert_401(&client.receive().expect("an answer"), "no body");
    for path in ["/.well-known/oauth-protected-resource", "/.well-known/oauth-protected-resource/mcp"] {
        let told = get(running.addr(), path);
        assert_eq!(told.status, 200, "{path}");
        let expected = json!({
            "resource": AUDIENCE,
            "authorization_servers": [ISSUER],
            "scopes_supported": ["read"],
            "bearer_methods_supported": ["header"],
        });
        assert_eq!(told.json(), expected, "{path}");
    }
    assert_eq!(get(running.addr(), "/health").status, 200);
    // Who is known and lacks what all need is told so.
    let mut claims = Issuer::claims("ann");
    claims["scope"] = "write".into();
    let refused = call(&running, "who", &issuer.token_of(&claims));
    assert_eq!(refused.status, 403, "{refused:?}");
    let challenge = refused.header("www-authenticate").expect("a challenge");
    assert!(challenge.contains("error=\"insufficient_scope\"") && challenge.contains("scope=\"read\""), "{challenge}");
    assert_eq!(runs.load(Ordering::SeqCst), 0, "nothing ran");
    assert_eq!(metric(&running, "bigiron_auth_refusals_total{kind=\"missing\"}"), 2.0);
    assert_eq!(metric(&running, "bigiron_auth_refusals_total{kind=\"scope\"}"), 1.0);
    assert_eq!(metric(&running, "bigiron_refusals_total{reason=\"unauthorized\"}"), 2.0);
    assert_eq!(call(&running, "who", &issuer.token("ann")).status, 200);
}

/// Behind a proxy that serves it under another path, what is told is found where the challenge says.
#[test]
fn what_is_told_is_where_the_challenge_says() {
    let issuer = Issuer::new();
    let (running, _) = server(&issuer, |tuning| tuning.auth.audience = vec!["https://a.example/tools/mcp".into()]);
    let refused = call_with(&running, "who", &[]);
    let challenge = refused.header("www-authenticate").expect("a challenge");
    let url = challenge.split('"').nth(1).expect("a quoted URL");
    let path = url.strip_prefix("https://a.example").unwrap_or_else(|| panic!("{challenge}"));
    assert_eq!(path, "/.well-known/oauth-protected-resource/tools/mcp");
    assert_eq!(get(running.addr(), path).json()["resource"], "https://a.example/tools/mcp");
    assert_eq!(get(running.addr(), "/.well-known/oauth-protected-resource/other").status, 404);
}

#[test]
fn tokens_that_are_not_right_are_refused() {
    let issuer = Issuer::new();
    let (running, runs) = server(&issuer, |_| {});
    let with = |change: &dyn Fn(&mut Value)| {
        let mut claims = Issuer::claims("ann");
        change(&mut claims);
        issuer.token_of(&claims)
    };
    let remove = |claim: &'static str| with(&|claims| drop(claims.as_object_mut().expect("claims").remove(claim)));
    let set = |claim: &'static str, value: Value| with(&|claims| claims[claim] = value.clone());
    let algorithm = |alg: &str| issuer.sign(&json!({ "alg": alg, "kid": "ec" }), &Issuer::claims("ann"));
    let right = issuer.token("ann");
    for (what, token) in [
        ("expired", set("exp", json!(now_s() - 100))),
        ("no exp", remove("exp")),
        ("exp as text", set("exp", json!((now_s() + 600).to_string()))),
        ("nbf in the future", set("nbf", json!(now_s() + 600))),
        ("iat in the future", set("iat", json!(now_s() + 600))),
        ("aud of another", set("aud", json!("https://other.example"))),
        ("no aud", remove("aud")),
        ("aud a number", set("aud", json!(7))),
        ("aud a list without us", set("aud", json!(["https://other.example", "x"]))),
        ("iss of another", set("iss", json!("https://evil.example"))),
        ("alg none", algorithm("none")),
        ("alg NONE", algorithm("NONE")),
        ("alg nOnE", algorithm("nOnE")),
        ("empty signature", right.rsplit_once('.').map(|(start, _)| format!("{start}.")).expect("dots")),
        ("another's signature", Issuer::new().token("ann")),
        ("a key of nobody", format!("bi_00000000_{}", "x".repeat(43))),
        ("HS256 with the key for ES256", issuer.sign(&json!({ "alg": "HS256", "kid": "ec" }), &Issuer::claims("ann"))),
    ] {
        let refused = call(&running, "who", &token);
        assert_401(&refused, what);
        assert!(refused.header("www-authenticate").expect("checked").contains("error=\"invalid_token\""), "{what}");
        let body = String::from_utf8_lossy(&refused.body);
        assert!(!body.contains("exp") || body.contains("expired, revoked"), "it does not say which: {body}");
    }
    assert_eq!(runs.load(Ordering::SeqCst), 0, "nothing ran");
    // What is right beside them: a list with us in it, a shared key, and clocks that differ a little.
    assert_eq!(call(&running, "who", &set("aud", json!(["x", AUDIENCE]))).status, 200);
    assert_eq!(call(&running, "who", &set("nbf", json!(now_s() + 3))).status, 200);
    let shared = issuer.sign(&json!({ "alg": "HS256", "kid": "shared" }), &Issuer::claims("bob"));
    assert_eq!(call(&running, "who", &shared).status, 200);
}

#[test]
fn the_header_has_one_form() {
    let issuer = Issuer::new();
    let (running, _) = server(&issuer, |tuning| tuning.limits.header_bytes_max = bigiron::units::ByteSize::kib(64));
    let token = issuer.token("ann");
    let long = "a".repeat((16 << 10) + 1);
    let bearer = format!("Bearer {token}");
    for (what, headers, status) in [
        ("too long", &[("Authorization", format!("Bearer {long}"))][..], 431),
        ("two", &[("Authorization", bearer.clone()), ("authorization", bearer)], 400),
        ("lower case", &[("Authorization", format!("bearer {token}"))], 200),
        ("two spaces", &[("Authorization", format!("Bearer  {token}"))], 401),
        ("another scheme", &[("Authorization", "Basic YTpi".into())], 401),
        ("a space in it", &[("Authorization", format!("Bearer {} {}", &token[..9], &token[9..]))], 401),
        ("a space after it, which is none of the value", &[("Authorization", format!("Bearer {token} "))], 200),
        ("a tab before it", &[("Authorization", format!("Bearer\t{token}"))], 401),
        ("nothing after it", &[("Authorization", "Bearer".into())], 401),
    ] {
        let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        assert_eq!(call_with(&running, "who", &headers).status, status, "{what}");
    }
}

#[test]
fn a_token_elsewhere_is_none() {
    let issuer = Issuer::new();
    let (running, runs) = server(&issuer, |_| {});
    let token = issuer.token("ann");
    let mut client = Client::connect(running.addr());
    let body = modern(1, "tools/call", json!({ "name": "who", "access_token": token })).to_string();
    let request = format!(
        "POST /mcp?access_token={token} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    client.send(request.as_bytes());
    assert_401(&client.receive().expect("an answer"), "in the query and the body");
    assert_401(&call_with(&running, "who", &[("Cookie", &format!("access_token={token}"))]), "in a cookie");
    assert_eq!(runs.load(Ordering::SeqCst), 0);
}

#[test]
fn a_tool_that_one_may_not_call_is_none() {
    let issuer = Issuer::new();
    let (may, may_not) = (issuer.key_for("ann", &["secrets"]), issuer.key_for("bob", &["secret", "secrets:read"]));
    let (running, runs) = server(&issuer, |_| {});
    assert_eq!(list(&running, &may), ["secret", "who"]);
    assert_eq!(list(&running, &may_not), ["who"]);
    assert_eq!(list(&running, &issuer.token("eve")), ["who"]);
    assert_eq!(call(&running, "secret", &may).text(), "the secret");
    let (hidden, unknown) = (call(&running, "secret", &may_not), call(&running, "sekret", &may_not));
    assert_eq!(hidden.status, unknown.status);
    let as_if = |answer: &Response| String::from_utf8_lossy(&answer.body).replace("sekret", "secret");
    assert_eq!(as_if(&hidden), as_if(&unknown));
    assert_eq!(runs.load(Ordering::SeqCst), 1, "it ran for who may");
}

/// Who one is comes from the token alone, and what is kept for one is for nobody else.
#[test]
fn callers_are_told_apart_by_their_tokens_alone() {
    let issuer = Issuer::new();
    let (running, runs) = server(&issuer, |_| {});
    let (ann, bob) = (issuer.token("ann"), issuer.token("bob"));
    let first = call(&running, "who", &ann).text();
    assert!(first.contains("ann"), "{first}");
    assert_eq!(call(&running, "who", &ann).text(), first);
    assert_eq!(runs.load(Ordering::SeqCst), 1, "the second was kept");
    let other = call(&running, "who", &bob).text();
    assert!(other.contains("bob") && !other.contains("ann"), "{other}");
    assert_eq!(runs.load(Ordering::SeqCst), 2, "what is kept for ann is not bob's");
    // The next token of the same caller is the same caller.
    let mut claims = Issuer::claims("ann");
    claims["jti"] = "another".into();
    assert_eq!(call(&running, "who", &issuer.token_of(&claims)).text(), first);
    assert_eq!(runs.load(Ordering::SeqCst), 2);
    // Nothing that a client writes beside it makes it another.
    let bearer = format!("Bearer {bob}");
    let headers = [("Authorization", bearer.as_str()), ("X-Tenant", "ann"), ("X-Forwarded-User", "ann")];
    assert_eq!(call_with(&running, "who", &headers).text(), other);
}

/// One request in a session, as somebody.
fn in_session(running: &Running, verb: &str, id: &str, token: &str) -> Response {
    let body = if verb == "POST" {
        json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/list" }).to_string()
    } else {
        String::new()
    };
    let mut client = Client::connect(running.addr());
    let request = format!(
        "{verb} /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nAccept: application/json, \
         text/event-stream\r\nAuthorization: Bearer {token}\r\nMcp-Session-Id: {id}\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
    client.send(request.as_bytes());
    client.receive().expect("an answer")
}

#[test]
fn a_session_is_its_callers_alone() {
    let issuer = Issuer::new();
    let (running, _) = server(&issuer, |_| {});
    let (ann, bob) = (issuer.token("ann"), issuer.token("bob"));
    let params =
        json!({ "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": { "name": "t", "version": "1" } });
    let initialize = json!({ "jsonrpc": "2.0", "id": 0, "method": "initialize", "params": params });
    let mut claims = Issuer::claims("ann");
    claims["scope"] = "secrets".into();
    let bearer = format!("Bearer {}", issuer.token_of(&claims));
    let opened = Client::connect(running.addr()).post(&[("Authorization", &bearer)], &initialize);
    let id = opened.header("mcp-session-id").expect("a session").to_owned();
    let unknown: String = id.chars().rev().collect();
    for verb in ["POST", "GET", "DELETE"] {
        let (foreign, unknown) = (in_session(&running, verb, &id, &bob), in_session(&running, verb, &unknown, &bob));
        assert_eq!((foreign.status, &foreign.body), (404, &unknown.body), "{verb}");
        let names = |answer: &Response| answer.headers.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&foreign), names(&unknown), "{verb}");
    }
    // It is there still, and each request is judged by what its own token grants.
    let tools = |answer: Response| answer.json()["result"]["tools"].as_array().map_or(0, Vec::len);
    assert_eq!(tools(in_session(&running, "POST", &id, bearer.trim_start_matches("Bearer "))), 2);
    assert_eq!(tools(in_session(&running, "POST", &id, &ann)), 1);
    assert_eq!(in_session(&running, "DELETE", &id, &ann).status, 204);
}

/// A key that is revoked, or has other scopes from now on, while the server runs and keeps results.
#[test]
fn a_revoked_key_is_none_though_results_are_kept() {
    let issuer = Issuer::new();
    let (key, stays) = (issuer.key_for("ann", &["secrets"]), issuer.key_for("bob", &[]));
    let (running, _) = server(&issuer, |_| {});
    assert_eq!(call(&running, "who", &key).status, 200);
    let file = issuer.file("keys.toml").display().to_string();
    let listed = cli(issuer.folder.path(), &["key", "list", "--file", &file], "");
    let listed = String::from_utf8(listed.stdout).expect("text");
    assert!(listed.contains("  ann  created ") && listed.contains("scopes secrets"), "{listed}");
    assert!(!listed.contains(secret_of(&key)), "{listed}");
    issuer.revoke(&key);
    eventually("the key is refused", || call(&running, "who", &key).status == 401);
    assert_eq!(call(&running, "who", &stays).status, 200);
}

/// Who guesses is slowed down; who is known is counted by name, whatever address it comes from.
#[test]
fn rates_count_the_known_by_name_and_others_by_address() {
    let issuer = Issuer::new();
    let (running, _) = server(&issuer, |tuning| {
        tuning.rate_limit.enabled = true;
        tuning.rate_limit.per_ip = "2 per 1h, burst 2".parse().expect("a rate");
        tuning.rate_limit.per_caller = "3 per 1h, burst 3".parse().expect("a rate");
    });
    let guesses: Vec<u16> = (0..4).map(|_| call(&running, "who", "a.b.c").status).collect();
    assert_eq!(guesses, [401, 401, 429, 429]);
    let (ann, bob) = (issuer.token("ann"), issuer.token("bob"));
    let calls: Vec<u16> = (0..4).map(|_| call(&running, "who", &ann).status).collect();
    assert_eq!(calls, [200, 200, 200, 429]);
    assert_eq!(call(&running, "who", &bob).status, 200);
}

#[test]
fn keys_and_tokens_on_the_command_line() {
    let issuer = Issuer::new();
    let folder = issuer.folder.path();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("text");
    // A key, by a file of settings, and what is wrong with a wish.
    fs::write(folder.join("tuning.toml"), "[auth]\nkeys_file = 'mine.toml'\n").expect("written");
    let made = cli(folder, &["key", "create", "--subject", "ann", "--expires", "90d", "--note", "laptop"], "");
    let key = text(&made.stdout);
    assert!(made.status.success() && key.starts_with("bi_") && key.lines().count() == 1, "{made:?}");
    let kept = fs::read_to_string(folder.join("mine.toml")).expect("the file");
    assert!(!kept.contains(secret_of(&key)), "only a hash is kept");
    let checked = cli(folder, &["token", "check", "-"], &key);
    assert!(checked.status.success() && text(&checked.stdout).contains("subject \"ann\""), "{checked:?}");
    assert!(text(&checked.stdout).ends_with("may      search_text\naccepted\n"), "all tools are listed: {checked:?}");
    for (arguments, expected) in [
        (&["key", "create"][..], "--subject"),
        (&["key", "create", "--subject", "ann", "--expires", "soon"], "90d"),
        (&["key", "create", "--subject", "ann", "--scope", "a b"], "no scope"),
        (&["key", "revoke", "00000000"], "bigiron key list"),
        (&["key", "list", "--file", "none.toml"], "none.toml"),
        (&["token", "check", "none.txt"], "none.txt cannot be read"),
        (&["--set", "auth.issuer=x", "--listen", "127.0.0.1:0"], "auth."),
    ] {
        let ran = cli(folder, arguments, "");
        assert!(!ran.status.success() && text(&ran.stderr).contains(expected), "{arguments:?}: {ran:?}");
    }
    // A token that is wrong in two ways: both are told, and the token is not.
    let jwks = issuer.file("jwks.json").display().to_string();
    let settings = format!(
        "[auth]\nissuer = '{ISSUER}'\naudience = ['{AUDIENCE}']\nalgorithms = ['ES256', 'HS256']\njwks_file = '{jwks}'\n"
    );
    fs::write(folder.join("tuning.toml"), settings).expect("written");
    let mut claims = Issuer::claims("ann");
    claims["exp"] = json!(now_s() - 100);
    claims["aud"] = json!("https://other.example");
    let token = issuer.token_of(&claims);
    fs::write(folder.join("token.txt"), format!("{token}\n")).expect("written");
    let ran = cli(folder, &["token", "check", "token.txt"], "");
    let told = text(&ran.stdout);
    assert_eq!(ran.status.code(), Some(1), "{told}");
    assert!(told.contains("REFUSED  exp: expired") && told.contains("REFUSED  aud: "), "{told}");
    assert!(told.contains("ok       signature") && !told.contains(token.rsplit('.').next().expect("one")), "{told}");
    let ran = cli(folder, &["check"], "");
    assert!(ran.status.success() && text(&ran.stderr).contains("weak: auth.algorithms has HS256"), "{ran:?}");
}

/// What is told of a key's tools is what their settings say, and nothing is told when a key is refused.
#[test]
fn which_tools_a_key_opens_is_told_before_it_is_used() {
    let issuer = Issuer::new();
    let folder = issuer.folder.path();
    let key = issuer.key_for("ann", &["read"]);
    let keys_file = issuer.file("keys.toml").display().to_string();
    let settings = |more: &str| format!("[auth]\nkeys_file = '{keys_file}'\n{more}");
    let checked = |arguments: &[&str], more: &str| {
        fs::write(folder.join("tuning.toml"), settings(more)).expect("written");
        let ran = cli(folder, &[&["token", "check", "-"], arguments].concat(), &key);
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
        (ran.status.code(), text(ran.stdout), text(ran.stderr))
    };
    let rules = "[tools.echo]\nscopes_any = ['read', 'write']\nsubjects = ['ann']\n\
                 [tools.burn]\nscopes_any = ['admin']\ngroups = ['staff']\n\
                 [tools.query_sql]\nsubjects = [{ subject = 'bob', issuer = 'bigiron:keys' }]\n\
                 [tools.query_json]\nenabled = false\n";
    let (code, told, why) = checked(&[], rules);
    let (_, tools) = told.split_once("ok       scopes: it has read\n").unwrap_or_else(|| panic!("{told}{why}"));
    let expected = "may not  burn: its scopes_any and groups are not met\nmay      echo\n\
                    may not  query_sql: its subjects are not met\nmay      read_file\nmay      search_text\naccepted\n";
    assert_eq!((code, tools), (Some(0), expected));

    let (code, told, _) = checked(&["--json"], rules);
    let told: Value = serde_json::from_str(&told).expect("JSON");
    assert_eq!((code, &told["accepted"]), (Some(0), &json!(true)));
    assert_eq!(told["tools"][0], json!({ "name": "burn", "may": false, "unmet": ["scopes_any", "groups"] }));
    assert_eq!(told["tools"][1], json!({ "name": "echo", "may": true, "unmet": [] }));
    assert_eq!(told["steps"][1]["what"], "keys file");

    let (code, told, _) = checked(&["--json", "--set", "auth.required_scopes=[\"admin\"]"], rules);
    let told: Value = serde_json::from_str(&told).expect("JSON");
    assert_eq!((code, &told["accepted"], &told["tools"]), (Some(1), &json!(false), &json!([])));

    let (code, told, why) = checked(&[], "[tools.ecko]\ntimeout_ms = 1000\n");
    assert_eq!((code, told.as_str()), (Some(78), ""), "no start goes by these settings: {why}");
    assert!(why.contains("tools.ecko"), "{why}");
}

/// The library makes keys as the command line does; one that has expired is refused at the door.
#[test]
fn a_key_that_has_expired_is_refused() {
    let issuer = Issuer::new();
    let file = issuer.file("keys.toml");
    let then = SystemTime::now() - Duration::from_secs(7200);
    let expires = keys::Moment::from_time(then + Duration::from_secs(3600)).expect("a time");
    let wanted = Wanted { subject: "ann".into(), expires: Some(expires), ..Wanted::default() };
    keys::create(&file, wanted, then).expect("made");
    let listed = cli(issuer.folder.path(), &["key", "list", "--file", &file.display().to_string()], "");
    assert!(String::from_utf8_lossy(&listed.stdout).contains("EXPIRED"), "{listed:?}");
}

/// The keys come from the issuer itself; a token that names a key which is not there is refused and not waited for.
#[test]
fn keys_are_fetched_from_the_issuer() {
    let issuer = Issuer::new();
    let set: Value = serde_json::from_str(&fs::read_to_string(issuer.file("jwks.json")).expect("keys")).expect("JSON");
    let public = json!({ "keys": [set["keys"][0]] }).to_string();
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://127.0.0.1:{}/jwks", listener.local_addr().expect("an address").port());
    let asked = Arc::<AtomicUsize>::default();
    let count = Arc::clone(&asked);
    thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.expect("a connection");
            let mut head = [0; 4096];
            let _ = stream.read(&mut head);
            count.fetch_add(1, Ordering::SeqCst);
            let length = public.len();
            let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{public}");
            let _ = stream.write_all(answer.as_bytes());
        }
    });
    let (running, runs) = server(&issuer, |tuning| {
        tuning.auth.jwks_file = String::new();
        tuning.auth.jwks_url = url;
        tuning.auth.algorithms = vec!["ES256".into()];
    });
    eventually("the keys are fetched", || call(&running, "who", &issuer.token("alice")).status == 200);
    let unknown = issuer.sign(&json!({ "alg": "ES256", "kid": "new" }), &Issuer::claims("alice"));
    let before = runs.load(Ordering::SeqCst);
    for _ in 0..20 {
        assert_401(&call(&running, "who", &unknown), "an unknown key");
    }
    assert_eq!(runs.load(Ordering::SeqCst), before, "nothing ran");
    assert!(asked.load(Ordering::SeqCst) <= 2, "the issuer is left in peace");
    running.stop();
}

/// A token may be as good as any while the issuer's keys cannot be had: nobody is told to throw it away.
#[test]
fn without_the_issuers_keys_a_token_is_put_off_and_not_refused() {
    let issuer = Issuer::new();
    let nobody = TcpListener::bind("127.0.0.1:0").expect("a port");
    let url = format!("http://{}/keys", nobody.local_addr().expect("an address"));
    drop(nobody);
    let (running, runs) = server(&issuer, |tuning| {
        tuning.auth.jwks_file = String::new();
        tuning.auth.jwks_url = url;
        tuning.auth.algorithms = vec!["ES256".into()];
    });
    let failed = "bigiron_auth_issuer_fetches_total{outcome=\"failed\"}";
    eventually("a fetch fails", || metric(&running, failed) >= 1.0);
    let put_off = call(&running, "who", &issuer.token("alice"));
    assert_eq!(put_off.status, 503, "{put_off:?}");
    let seconds: u32 = put_off.header("retry-after").and_then(|text| text.parse().ok()).expect("when to come back");
    assert!((1..=31).contains(&seconds), "{seconds}");
    assert_eq!(put_off.header("www-authenticate"), None, "nothing is wrong with the token");
    assert_401(&call(&running, "who", "a.b.c"), "what is no token is refused all the same");
    let key = issuer.key_for("ann", &[]);
    eventually("the key is known", || call(&running, "who", &key).status == 200);
    assert_eq!(runs.load(Ordering::SeqCst), 1, "of the one with a key");
    assert_eq!(metric(&running, "bigiron_auth_issuer_keys"), 0.0);
    assert_eq!(metric(&running, "bigiron_auth_issuer_keys_fetched_timestamp_seconds"), 0.0);
    assert_eq!(metric(&running, "bigiron_auth_refusals_total{kind=\"no_keys\"}"), 1.0);
    running.stop();
}
