//! TLS at the endpoint, with the clients that people use: what is spoken, who gets in, whose calls they are, and that
//! certificates are renewed under open connections.

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::Arc,
};

use bigiron::{
    Ctx, Lane, Server,
    config::Tuning,
    server::Running,
    tls::{ClientCertificates, Version},
};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
};
use serde_json::json;
use tempfile::TempDir;

use crate::{
    identity::Issuer,
    support::{PATIENCE, Process, eventually, metric, modern, modern_headers, post_bytes, start},
};

/// Signs certificates.
struct Ca(CertifiedIssuer<'static, KeyPair>);

impl Ca {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a CA"))
    }

    /// A certificate of this name and its key, in PEM.
    fn sign(&self, name: &str) -> [String; 2] {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.subject_alt_names =
            if name == "localhost" { vec![SanType::DnsName(name.try_into().expect("a name"))] } else { Vec::new() };
        let key = KeyPair::generate().expect("a key");
        [params.signed_by(&key, &self.0).expect("a certificate").pem(), key.serialize_pem()]
    }
}

/// The files of a server and its clients.
struct World {
    folder: TempDir,
    servers: Ca,
    clients: Ca,
}

impl World {
    fn new() -> Self {
        let world = Self {
            folder: tempfile::tempdir().expect("a folder"),
            servers: Ca::new("Servers"),
            clients: Ca::new("Clients"),
        };
        world.renew();
        world.write("servers.pem", &world.servers.0.pem());
        world.write("clients.pem", &world.clients.0.pem());
        world
    }

    /// Puts a new certificate in the place of the server's, and says which it is.
    fn renew(&self) -> CertificateDer<'static> {
        let [certificate, key] = self.servers.sign("localhost");
        self.write("us.key", &key);
        self.write("us.pem", &certificate);
        CertificateDer::from_pem_slice(certificate.as_bytes()).expect("PEM")
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).to_string_lossy().into_owned()
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let (path, new) = (self.folder.path().join(name), self.folder.path().join(".new"));
        fs::write(&new, text).expect("written");
        fs::set_permissions(&new, fs::Permissions::from_mode(0o600)).expect("private");
        fs::rename(&new, &path).expect("renamed");
        path
    }

    /// The arguments of curl that show this certificate.
    fn shown(&self, ca: &Ca, name: &str) -> Vec<String> {
        let [certificate, key] = ca.sign(name);
        let (certificate, key) = (self.write("client.pem", &certificate), self.write("client.key", &key));
        let text = |path: PathBuf| path.to_string_lossy().into_owned();
        vec!["--cert".into(), text(certificate), "--key".into(), text(key)]
    }

    fn tune(&self, tuning: &mut Tuning, asks: ClientCertificates) {
        tuning.tls.certificate = self.path("us.pem");
        tuning.tls.key = self.path("us.key");
        tuning.tls.client_certificates = asks;
        if asks != ClientCertificates::Off {
            tuning.tls.client_ca = self.path("clients.pem");
        }
    }

    fn serve_with(&self, asks: ClientCertificates, tune: impl FnOnce(&mut Tuning)) -> Running {
        let server = Server::builder()
            .tool("who", "Tells who calls", Lane::Inline, |(): (), ctx: Ctx| ctx.caller().subject().to_owned());
        start(server, |tuning| {
            self.tune(tuning, asks);
            tune(tuning);
        })
    }

    fn serve(&self, asks: ClientCertificates) -> Running {
        self.serve_with(asks, |_| {})
    }

    /// Asks by curl who calls.
    fn curl(&self, addr: SocketAddr, arguments: &[&str]) -> Curl {
        let url = format!("https://localhost:{}/mcp", addr.port());
        let call = modern(1, "tools/call", json!({ "name": "who", "arguments": {} })).to_string();
        let output = Command::new("curl")
            .args(["--silent", "--show-error", "--max-time", "30", "--noproxy", "*"])
            .args(["--resolve", &format!("localhost:{}:127.0.0.1", addr.port())])
            .args(["--cacert", &self.path("servers.pem"), "--write-out", "\n%{http_code} %{http_version}"])
            .args(["--header", "Content-Type: application/json", "--header", "Accept: application/json"])
            .args(modern_headers("tools/call", "who").iter().flat_map(|(n, v)| ["-H".into(), format!("{n}: {v}")]))
            .args(["--data", &call])
            .args(arguments)
            .arg(url)
            .output()
            .expect("curl is there (apt-get install curl)");
        Curl::read(&output)
    }

    /// What openssl says of a connection that it makes with these arguments.
    fn openssl(&self, addr: SocketAddr, arguments: &[&str]) -> (bool, String) {
        let output = Command::new("openssl")
            .args(["s_client", "-connect", &addr.to_string(), "-servername", "localhost"])
            .args(["-CAfile", &self.path("servers.pem"), "-verify_return_error", "-alpn", "h2,http/1.1"])
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .expect("openssl is there (apt-get install openssl)");
        (
            output.status.success(),
            [output.stdout, output.stderr].map(|o| String::from_utf8_lossy(&o).into_owned()).concat(),
        )
    }

    /// A connection that trusts the servers' CA.
    fn connect(&self, addr: SocketAddr) -> Secure {
        self.connect_as(addr, None).expect("a handshake")
    }

    /// The same with a certificate of this CA for this name.
    fn connect_as(&self, addr: SocketAddr, client: Option<(&Ca, &str)>) -> std::io::Result<Secure> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.servers.0.pem().as_bytes()).expect("PEM")).expect("a CA");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_root_certificates(roots);
        let config = match client {
            None => config.with_no_client_auth(),
            Some((ca, name)) => {
                let [certificate, key] = ca.sign(name);
                let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).expect("PEM")];
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("PEM");
                config.with_client_auth_cert(chain, key).expect("a certificate and its key")
            }
        };
        let name = ServerName::try_from("localhost").expect("a name");
        let client = ClientConnection::new(Arc::new(config), name).expect("a client");
        let stream = TcpStream::connect_timeout(&addr, PATIENCE).expect("connects");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let mut secure = Secure(StreamOwned::new(client, stream));
        while secure.0.conn.is_handshaking() {
            secure.0.conn.complete_io(&mut secure.0.sock)?;
        }
        Ok(secure)
    }
}

/// What came of a call of curl.
#[derive(Debug)]
struct Curl {
    /// 0 when there was an answer.
    exit: i32,
    status: u16,
    version: String,
    /// The text of the tool's result, or else the body.
    text: String,
}

impl Curl {
    fn read(output: &Output) -> Self {
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        let (body, last) = said.rsplit_once('\n').expect("the status stands last");
        let (status, version) = last.split_once(' ').expect("status and version");
        let answer: serde_json::Value = serde_json::from_str(body).unwrap_or_default();
        let text = answer["result"]["content"][0]["text"].as_str().unwrap_or(body).to_owned();
        let exit = output.status.code().expect("an exit code");
        Self { exit, status: status.parse().expect("a status"), version: version.into(), text }
    }

    /// The connection was refused before there was an answer.
    fn is_refused(&self) -> bool {
        self.exit != 0 && self.status == 0
    }
}

/// A secure connection of HTTP/1.1.
struct Secure(StreamOwned<ClientConnection, TcpStream>);

impl Secure {
    fn shown(&self) -> CertificateDer<'static> {
        self.0.conn.peer_certificates().expect("a certificate")[0].clone().into_owned()
    }

    /// The status of one call.
    fn call(&mut self) -> String {
        let call = modern(1, "tools/call", json!({ "name": "who", "arguments": {} })).to_string();
        let headers = modern_headers("tools/call", "who");
        self.0.write_all(&post_bytes(&headers, call.as_bytes())).expect("sends");
        let mut answer = Vec::new();
        let mut part = [0; 4096];
        while !answer.ends_with(b"}") {
            let length = self.0.read(&mut part).expect("an answer");
            assert!(length > 0, "the connection ended: {}", String::from_utf8_lossy(&answer));
            answer.extend_from_slice(&part[..length]);
        }
        String::from_utf8_lossy(&answer[9..12]).into_owned()
    }
}

const NONE: &[&str] = &[];

fn words(words: &[String]) -> Vec<&str> {
    words.iter().map(String::as_str).collect()
}

#[test]
fn curl_calls_by_http2_and_by_http1() {
    let world = World::new();
    let running = world.serve(ClientCertificates::Off);
    for (arguments, version) in [(&["--http2"][..], "2"), (&["--http1.1"], "1.1"), (NONE, "2"), (&["--no-alpn"], "1.1")]
    {
        let answer = world.curl(running.addr(), arguments);
        assert_eq!((answer.exit, answer.status, answer.version.as_str()), (0, 200, version), "{answer:?}");
    }
    assert_eq!(metric(&running, "bigiron_tls_handshakes_total"), 4.0);
    let running = world.serve_with(ClientCertificates::Off, |tuning| tuning.http2.enabled = false);
    assert_eq!(world.curl(running.addr(), &["--http2"]).version, "1.1");
}

#[test]
fn another_ca_is_not_trusted_by_clients() {
    let world = World::new();
    let running = world.serve(ClientCertificates::Off);
    let other = World::new();
    assert!(other.curl(running.addr(), NONE).is_refused());
    let series = "bigiron_tls_handshake_failures_total{reason=\"client_refused\"}";
    eventually("it is counted", || metric(&running, series) == 1.0);
}

#[test]
fn old_versions_are_refused() {
    let world = World::new();
    let old = ["-cipher", "DEFAULT@SECLEVEL=0"];
    let running = world.serve(ClientCertificates::Off);
    for (version, is_spoken) in [("-tls1", false), ("-tls1_1", false), ("-tls1_2", true), ("-tls1_3", true)] {
        let (done, said) = world.openssl(running.addr(), &[&[version], &old[..]].concat());
        assert_eq!(done, is_spoken, "{version}: {said}");
        assert_eq!(said.contains("ALPN protocol: h2"), is_spoken, "{version}: {said}");
    }
    let series = "bigiron_tls_handshake_failures_total{reason=\"version\"}";
    eventually("both are counted", || metric(&running, series) == 2.0);
    let running = world.serve_with(ClientCertificates::Off, |tuning| tuning.tls.versions_min = Version::Tls13);
    assert!(!world.openssl(running.addr(), &["-tls1_2"]).0);
    assert!(world.openssl(running.addr(), &["-tls1_3"]).0);
}

#[test]
fn required_certificates_name_the_caller() {
    let world = World::new();
    let running = world.serve(ClientCertificates::Required);
    let own = world.shown(&world.clients, "robot-7");
    for version in ["--http2", "--http1.1"] {
        let answer = world.curl(running.addr(), &[&words(&own)[..], &[version]].concat());
        assert_eq!((answer.exit, answer.status), (0, 200), "{answer:?}");
        assert!(answer.text.contains("CN=Clients") && answer.text.contains("robot-7"), "{answer:?}");
    }
    assert!(world.curl(running.addr(), NONE).is_refused(), "without one");
    for ca in ["Others", "Clients"] {
        let shown = world.shown(&Ca::new(ca), "robot-7");
        assert!(world.curl(running.addr(), &words(&shown)).is_refused(), "one of a CA that calls itself {ca}");
    }
    for (reason, count) in [("certificate_missing", 1.0), ("certificate_unknown", 1.0), ("certificate_refused", 1.0)] {
        let series = format!("bigiron_tls_handshake_failures_total{{reason=\"{reason}\"}}");
        eventually(reason, || metric(&running, &series) == count);
    }
}

#[test]
fn optional_certificates_may_be_missing_and_may_not_be_wrong() {
    let world = World::new();
    let running = world.serve(ClientCertificates::Optional);
    let nobody = world.curl(running.addr(), NONE);
    assert!(nobody.status == 200 && !nobody.text.contains("CN="), "{nobody:?}");
    let shown = world.shown(&world.clients, "robot-7");
    assert!(world.curl(running.addr(), &words(&shown)).text.contains("robot-7"));
    let shown = world.shown(&Ca::new("Others"), "robot-7");
    assert!(world.curl(running.addr(), &words(&shown)).is_refused());
}

#[test]
fn what_a_header_says_goes_before_the_certificate() {
    let world = World::new();
    let issuer = Issuer::new();
    let key = issuer.key_for("by-key", &[]);
    let running = world.serve_with(ClientCertificates::Optional, |tuning| issuer.tune(tuning));
    let shown = world.shown(&world.clients, "by-certificate");
    let (right, wrong) = (format!("Authorization: Bearer {key}"), "Authorization: Bearer wrong");
    for (header, certificate, status, name) in [
        (Some(right.as_str()), true, 200, "by-key"),
        (Some(right.as_str()), false, 200, "by-key"),
        (None, true, 200, "by-certificate"),
        (None, false, 401, ""),
        (Some(wrong), true, 401, ""),
    ] {
        let mut arguments = if certificate { words(&shown) } else { Vec::new() };
        arguments.extend(header.iter().flat_map(|header| ["--header", header]));
        let answer = world.curl(running.addr(), &arguments);
        assert!(answer.status == status && answer.text.contains(name), "{header:?} {certificate}: {answer:?}");
    }
}

#[test]
fn the_certificate_of_a_proxy_is_nobody_who_comes_by_it() {
    let world = World::new();
    let issuer = Issuer::new();
    let key = format!("Authorization: Bearer {}", issuer.key_for("by-key", &[]));
    let shown = world.shown(&world.clients, "the-proxy");
    for asks in [ClientCertificates::Optional, ClientCertificates::Required] {
        let running = world.serve_with(asks, |tuning| {
            issuer.tune(tuning);
            tuning.server.trusted_proxies = vec!["127.0.0.0/8".into()];
        });
        let nobody = world.curl(running.addr(), &words(&shown));
        assert_eq!(nobody.status, 401, "{asks:?}: {nobody:?}");
        let known = world.curl(running.addr(), &[&words(&shown)[..], &["--header", &key]].concat());
        assert!(known.status == 200 && known.text.contains("by-key"), "{asks:?}: {known:?}");
    }
    // Where nothing else says who calls, it is what there is.
    let running = world.serve_with(ClientCertificates::Required, |tuning| {
        tuning.server.trusted_proxies = vec!["127.0.0.0/8".into()];
    });
    assert!(world.curl(running.addr(), &words(&shown)).text.contains("the-proxy"));
}

#[test]
fn a_new_certificate_is_shown_to_new_connections() {
    let world = World::new();
    let first = world.renew();
    let running = world.serve_with(ClientCertificates::Off, |tuning| tuning.tls.reload_s = 1);
    let mut open = world.connect(running.addr());
    assert_eq!((open.call().as_str(), open.shown()), ("200", first));
    let second = world.renew();
    eventually("the new one is shown", || world.connect(running.addr()).shown() == second);
    assert_eq!(open.call(), "200", "the old connection goes on");
    let expiry = metric(&running, "bigiron_tls_certificate_expiry_timestamp_seconds");
    assert!(expiry > 1_700_000_000.0, "{expiry}");
}

/// Whom a CA let in that is trusted no more goes, with what is open; who would be let in by the new one stays.
#[test]
fn a_ca_that_is_taken_back_ends_the_connections_of_its_clients() {
    let world = World::new();
    let others = Ca::new("Others");
    let trail = world.path("audit.log");
    let running = world.serve_with(ClientCertificates::Required, |tuning| {
        tuning.tls.reload_s = 1;
        tuning.audit.file.clone_from(&trail);
    });
    let connect = |ca: &Ca, name: &str| world.connect_as(running.addr(), Some((ca, name)));
    let mut ann = connect(&world.clients, "ann").expect("she is let in");
    assert_eq!(ann.call(), "200");
    let mut listener = connect(&world.clients, "ann").expect("she is let in");
    let request = modern(1, "subscriptions/listen", json!({ "notifications": { "toolsListChanged": true } }));
    let headers = [("MCP-Protocol-Version", "2026-07-28"), ("Mcp-Method", "subscriptions/listen")];
    listener.0.write_all(&post_bytes(&headers, request.to_string().as_bytes())).expect("sends");
    let mut some = [0; 512];
    assert!(listener.0.read(&mut some).expect("a stream") > 0 && some.starts_with(b"HTTP/1.1 200"));
    // Both are trusted: all stay.
    world.write("clients.pem", &(world.clients.0.pem() + &others.0.pem()));
    let mut bob = None;
    eventually("the other CA is trusted, too", || {
        bob = connect(&others, "bob").ok();
        bob.as_mut().is_some_and(try_call)
    });
    assert_eq!(ann.call(), "200", "her connection goes on");
    // Only the other is.
    world.write("clients.pem", &others.0.pem());
    let mut rest = Vec::new();
    let _ = listener.0.read_to_end(&mut rest); // ends, with or without the farewell of TLS
    let ended = ann.0.read(&mut some);
    assert!(matches!(ended, Ok(0)) || ended.is_err_and(|error| error.kind() == ErrorKind::UnexpectedEof));
    assert_eq!(bob.expect("open").call(), "200", "his connection goes on");
    running.stop();
    let trail = fs::read_to_string(trail).expect("the trail");
    let reloads = trail.lines().filter(|line| line.contains("\"event\":\"reload\"")).collect::<Vec<_>>();
    assert!(reloads.len() == 2 && reloads.iter().all(|line| line.contains("clients.pem")), "{reloads:?}");
}

/// Whether one call is answered. With TLS 1.3 a client learns only so that its certificate was not taken.
fn try_call(secure: &mut Secure) -> bool {
    let call = modern(1, "tools/call", json!({ "name": "who", "arguments": {} })).to_string();
    let sent = secure.0.write_all(&post_bytes(&modern_headers("tools/call", "who"), call.as_bytes()));
    let mut answer = [0; 4096];
    sent.is_ok() && secure.0.read(&mut answer).is_ok_and(|length| length > 0 && answer.starts_with(b"HTTP/1.1 200"))
}

fn process(world: &World, more: &[&str]) -> Process {
    let set = |key: &str, file: &str| format!("tls.{key}={}", world.path(file));
    let (certificate, key) = (set("certificate", "us.pem"), set("key", "us.key"));
    Process::start(&[&["--set", &certificate, "--set", &key, "--set", "tls.reload_s=0"], more].concat())
}

#[test]
fn a_signal_renews_the_certificate_and_keeps_the_old_when_the_new_is_wrong() {
    let world = World::new();
    let first = world.renew();
    let process = process(&world, &[]);
    let mut open = world.connect(process.addr);
    assert_eq!((open.call().as_str(), open.shown()), ("200", first));
    let second = world.renew();
    process.signal("HUP");
    let line = process.log_line_with("files of [tls] were read again");
    assert!(line.contains("us.pem") && line.contains("us.key") && line.contains("Z\""), "{line}");
    assert_eq!(world.connect(process.addr).shown(), second);
    world.write("us.pem", "nothing of a certificate");
    process.signal("HUP");
    let line = process.log_line_with("cannot be read again");
    assert!(line.contains("us.pem"), "{line}");
    assert_eq!(world.connect(process.addr).shown(), second);
    assert_eq!(open.call(), "200", "the old connection goes on");
}

#[test]
fn plain_requests_are_told_where_to_go() {
    let world = World::new();
    let process = process(&world, &[]);
    let mut stream = TcpStream::connect(process.addr).expect("connects");
    stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
    stream.write_all(b"POST /mcp HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n").expect("sends");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains("https://"), "{answer}");
    let line = process.log_line_with("a TLS handshake failed");
    assert!(line.contains("plain_http") && line.contains("127.0.0.1"), "{line}");
    // A flood of them is a few lines.
    for _ in 0..200 {
        let mut stream = TcpStream::connect(process.addr).expect("connects");
        stream.write_all(b"GET / HTTP/1.1\r\n\r\n").expect("sends");
        let mut told = Vec::new();
        let _ = stream.read_to_end(&mut told);
    }
    let lines = process.log_lines().iter().filter(|line| line.contains("a TLS handshake failed")).count();
    assert!(lines < 100, "{lines} lines");
}

#[test]
fn who_says_nothing_is_not_waited_for() {
    let world = World::new();
    let running = world.serve_with(ClientCertificates::Off, |tuning| tuning.tls.handshake_timeout_ms = 100);
    // Nothing, and half a handshake.
    for begun in [&b""[..], b"\x16\x03\x01\x02\x00\x01"] {
        let mut stream = TcpStream::connect(running.addr()).expect("connects");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.write_all(begun).expect("sends");
        let closed = stream.read(&mut [0; 64]).map_err(|error| error.kind());
        assert!(matches!(closed, Ok(0) | Err(ErrorKind::ConnectionReset)), "{closed:?}");
    }
    let series = "bigiron_tls_handshake_failures_total{reason=\"timeout\"}";
    eventually("both are counted", || metric(&running, series) == 2.0);
    eventually("their permits are back", || running.connections() == 0);
}

/// An end that TLS does not say could have been made by anybody on the way.
#[test]
fn an_idle_connection_is_told_that_it_ends() {
    let world = World::new();
    let running = world.serve_with(ClientCertificates::Off, |tuning| tuning.limits.idle_timeout_ms = 200);
    for calls in [0, 1] {
        let mut secure = world.connect(running.addr());
        (0..calls).for_each(|_| assert_eq!(secure.call(), "200"));
        assert_eq!(secure.0.read(&mut [0]).expect("an end that was said"), 0, "after {calls} calls");
    }
    eventually("nothing is left of them", || running.connections() == 0);
}

#[test]
fn a_stop_waits_for_no_handshake() {
    let world = World::new();
    let running = world.serve_with(ClientCertificates::Off, |tuning| tuning.tls.handshake_timeout_ms = 10_000);
    let _silent = TcpStream::connect(running.addr()).expect("connects");
    let mut open = world.connect(running.addr());
    assert_eq!(open.call(), "200");
    eventually("both are accepted", || running.connections() == 2);
    assert_eq!(running.stop().cut, 0);
    assert!(matches!(open.0.read(&mut [0; 16]), Ok(0) | Err(_)), "closed");
}

fn check(arguments: &[&str]) -> (Option<i32>, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_bigiron"));
    let output = command.arg("check").args(arguments).current_dir(env!("CARGO_MANIFEST_DIR")).output();
    let output = output.expect("it runs");
    (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn check_says_what_is_weak_or_wrong() {
    let world = World::new();
    let certificate = format!("tls.certificate={}", world.path("us.pem"));
    let key = format!("tls.key={}", world.path("us.key"));
    let ca = format!("tls.client_ca={}", world.path("clients.pem"));
    let on = ["--set", &certificate, "--set", &key];
    assert_eq!(check(&on), (Some(0), String::new()));
    let (code, said) = check(&["--listen", "0.0.0.0:5000", "--insecure-no-auth"]);
    assert!(code == Some(0) && said.contains("weak") && said.contains("[tls] is off"), "{said}");
    // Asking nobody who he is is refused at an open address; required certificates ask.
    let open = [&on[..], &["--listen", "0.0.0.0:5000"]].concat();
    let (code, said) = check(&open);
    assert!(code == Some(78) && said.contains("client_certificates"), "{said}");
    let log = format!("audit.file={}", world.path("audit.log"));
    let strict = ["--set", &log, "--set", "audit.policy=required", "--set", "rate_limit.enabled=true"];
    let asks = [&open[..], &strict, &["--set", &ca, "--set", "tls.client_certificates=required"]].concat();
    assert_eq!(check(&asks), (Some(0), String::new()));
    let optional = [&open[..], &["--set", &ca, "--set", "tls.client_certificates=optional"]].concat();
    assert_eq!(check(&optional).0, Some(78));
    let mode = |mode| fs::set_permissions(Path::new(&world.path("us.key")), fs::Permissions::from_mode(mode));
    mode(0o640).expect("set");
    let (code, said) = check(&on);
    assert!(code == Some(0) && said.contains("weak") && said.contains("mode 640"), "{said}");
    mode(0o644).expect("set");
    let (code, said) = check(&on);
    assert!(code == Some(78) && said.contains("us.key"), "{said}");
    mode(0o600).expect("set");
    let (code, said) = check(&[&on[..], &["--set", "tls.handshake_timeout_ms=20000"]].concat());
    assert!(code == Some(78) && said.contains("limits.header_timeout_ms"), "{said}");
    let (code, said) = check(&["--set", &key]);
    assert!(code == Some(78) && said.contains("tls.certificate"), "{said}");
}
