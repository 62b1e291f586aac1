//! The issuer's keys, fetched over real sockets from an issuer that does what it should not.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering},
};

use parking_lot::Mutex;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, SanType};
use rustls::{RootCertStore, ServerConfig, pki_types::PrivateKeyDer};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpListener,
    sync::Notify,
    task::JoinHandle,
};
use tokio_rustls::TlsAcceptor;

use super::{
    super::{
        Fetcher, JWKS_BYTES_MAX, Keys, keep,
        refresh::{Keeper, Turn},
        signer::{RSA, Signer},
    },
    *,
};
use crate::telemetry::heard::Heard;

/// As long as a test waits for what must fail; nothing that must work is measured by it.
const SHORT: Duration = Duration::from_millis(50);
const LONG: Duration = Duration::from_secs(60);

/// What the issuer does with a request.
#[derive(Clone)]
enum Answer {
    /// Writes this, and closes.
    Bytes(Vec<u8>),
    /// Writes this, and nothing more, and does not close.
    Stalls(Vec<u8>),
    /// Writes pieces of a body until the client has gone.
    Endless,
}

fn ok(body: &[u8]) -> Answer {
    let mut answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len()).into_bytes();
    answer.extend_from_slice(body);
    Answer::Bytes(answer)
}

fn head(lines: &str) -> Answer {
    Answer::Bytes(format!("HTTP/1.1 {lines}\r\n\r\n").into_bytes())
}

/// An issuer on this host. Its tasks end with it.
struct Issuer {
    address: SocketAddr,
    state: Arc<State>,
    task: JoinHandle<()>,
}

struct State {
    answer: Mutex<Answer>,
    heads: Mutex<Vec<String>>,
    requests: AtomicUsize,
    changed: Notify,
    tls: Option<TlsAcceptor>,
}

impl Drop for Issuer {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Issuer {
    async fn new(answer: Answer) -> Self {
        Self::with(answer, None).await
    }

    async fn with(answer: Answer, tls: Option<TlsAcceptor>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let state = Arc::new(State {
            answer: Mutex::new(answer),
            heads: Mutex::default(),
            requests: AtomicUsize::new(0),
            changed: Notify::new(),
            tls,
        });
        let serving = Arc::clone(&state);
        let task = tokio::spawn(async move {
            // One after the other, so that the end of the task is the end of all of them.
            while let Ok((stream, _)) = listener.accept().await {
                match &serving.tls {
                    None => serving.serve(stream).await,
                    Some(tls) => {
                        if let Ok(stream) = tls.accept(stream).await {
                            serving.serve(stream).await;
                        }
                    }
                }
            }
        });
        Self { address, state, task }
    }

    fn url(&self) -> String {
        format!("http://{}/keys?v=1", self.address)
    }

    fn fetcher(&self) -> Fetcher {
        Fetcher::new(&self.url()).expect("a fetcher").within(LONG)
    }

    fn answer(&self, answer: Answer) {
        *self.state.answer.lock() = answer;
    }

    fn requests(&self) -> usize {
        self.state.requests.load(Ordering::SeqCst)
    }

    async fn asked(&self, times: usize) {
        loop {
            let changed = self.state.changed.notified();
            if self.requests() >= times {
                return;
            }
            changed.await;
        }
    }
}

impl State {
    async fn serve(&self, mut stream: impl AsyncRead + AsyncWrite + Unpin) {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let Ok(byte) = stream.read_u8().await else { return };
            head.push(byte);
        }
        self.heads.lock().push(String::from_utf8_lossy(&head).into_owned());
        self.requests.fetch_add(1, Ordering::SeqCst);
        self.changed.notify_waiters();
        let answer = self.answer.lock().clone();
        match answer {
            Answer::Bytes(bytes) => {
                let _ = stream.write_all(&bytes).await;
                let _ = stream.shutdown().await;
            }
            Answer::Stalls(bytes) => {
                let _ = stream.write_all(&bytes).await;
                let _ = stream.read_u8().await; // until the client has gone
            }
            Answer::Endless => {
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
                let piece = format!("2000\r\n{}\r\n", " ".repeat(0x2000));
                while stream.write_all(piece.as_bytes()).await.is_ok() {}
            }
        }
    }
}

/// A door that waits for keys, and its keys.
fn waiting() -> Door {
    World::without_keys().door()
}

fn keys(door: &Door) -> &Keys {
    door.keys().expect("tokens are taken")
}

/// A token that is good for long.
fn token(signer: &Signer) -> String {
    let mut claims = claims();
    claims["exp"] = json!(NOW_S + 1_000_000);
    signer.token(&claims)
}

#[tokio::test]
async fn a_fetch_is_one_plain_request() {
    let issuer = Issuer::new(ok(b"keys")).await;
    assert_eq!(issuer.fetcher().fetch().await.expect("keys"), &b"keys"[..]);
    let heads = issuer.state.heads.lock().clone();
    assert_eq!(heads.len(), 1);
    let head = heads[0].to_ascii_lowercase();
    assert!(head.starts_with("get /keys?v=1 http/1.1\r\n"), "{head}");
    assert!(head.contains(&format!("\r\nhost: {}\r\n", issuer.address)), "{head}");
    for secret in ["cookie", "authorization", "referer"] {
        assert!(!head.contains(secret), "{head}");
    }
}

#[tokio::test]
async fn each_way_to_fail_is_told_apart() {
    let issuer = Issuer::new(head("500 Oh")).await;
    let mib_10 = 10 << 20;
    let too_long = format!("more than {JWKS_BYTES_MAX} bytes");
    for (answer, expected) in [
        (head("500 Oh\r\ncontent-length: 0"), "the answer is 500, not 200"),
        (head("204 No Content"), "the answer is 204, not 200"),
        (head("404 Not Found\r\ncontent-length: 0"), "the answer is 404, not 200"),
        (head(&format!("200 OK\r\ncontent-length: {mib_10}")), &too_long), // refused before it comes
        (ok(&vec![b' '; mib_10]), &too_long),
        (Answer::Endless, &too_long),
        (head("200 OK\r\ncontent-length: 10"), "broke off"),
        (head("200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 0"), "compressed"),
        (Answer::Bytes(b"garbage\r\n\r\n".to_vec()), "broke off"),
        (Answer::Bytes(Vec::new()), "broke off"),
        (head(&format!("200 OK\r\nlong: {}", "a".repeat(1 << 20))), "broke off"),
        (head(&format!("200 OK\r\n{}long: a", "many: b\r\n".repeat(1000))), "broke off"),
    ] {
        issuer.answer(answer);
        let error = issuer.fetcher().fetch().await.expect_err(expected);
        assert!(error.contains(expected) && error.contains("/keys?v=1"), "{error} does not say {expected}");
    }
}

#[tokio::test]
async fn an_issuer_that_is_down_or_slow_is_given_up() {
    let issuer = Issuer::new(Answer::Stalls(Vec::new())).await;
    for start in ["", "HTTP/1.1 200 OK\r\n", "HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\n12345"] {
        issuer.answer(Answer::Stalls(start.into()));
        let error = issuer.fetcher().within(SHORT).fetch().await.expect_err(start);
        assert!(error.contains("no whole answer in 50 ms"), "{error}");
    }
    let url = issuer.url();
    drop(issuer);
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let silent = format!("http://{}/", listener.local_addr().expect("an address")); // accepts in the kernel only
    let fetcher = Fetcher::new(&silent).expect("a fetcher").within(SHORT);
    assert!(fetcher.fetch().await.expect_err("silent").contains("no whole answer"));
    drop(listener);
    let error = Fetcher::new(&silent).expect("a fetcher").within(LONG).fetch().await.expect_err("down");
    assert!(error.contains("cannot connect to 127.0.0.1:"), "{error}");
    assert!(Fetcher::new(&url).is_ok(), "whether it is up is not asked at the start");
}

#[tokio::test]
async fn redirects_are_not_followed() {
    let target = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let nearby = format!("http://{}/keys", target.local_addr().expect("an address"));
    let issuer = Issuer::new(ok(b"")).await;
    for status in [301, 302, 303, 307, 308] {
        for to in ["http://169.254.169.254/latest/meta-data/", &nearby] {
            issuer.answer(head(&format!("{status} Moved\r\nlocation: {to}\r\ncontent-length: 0")));
            let error = issuer.fetcher().fetch().await.expect_err("redirected");
            for expected in [&status.to_string(), to, "redirects are not followed", "auth.jwks_url"] {
                assert!(error.contains(expected), "{error} does not say {expected}");
            }
        }
    }
    assert_eq!(issuer.requests(), 10);
    let target = target.into_std().expect("a listener"); // which does not block
    assert_eq!(target.accept().expect_err("nobody").kind(), std::io::ErrorKind::WouldBlock);
}

#[tokio::test]
async fn a_name_with_a_wrong_address_is_not_connected_to() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let here = listener.local_addr().expect("an address");
    let named = Fetcher::trusting("https://issuer.example/", || Ok(RootCertStore::empty())).expect("a fetcher");
    let cloud: SocketAddr = "169.254.169.254:80".parse().expect("an address");
    let own = Fetcher::new("http://localhost/").expect("a fetcher");
    for (fetcher, addresses, expected) in [
        (&named, vec![here], "this host itself"),
        (&named, vec![cloud], "link-local"),
        (&own, vec![here, cloud], "link-local"), // though the first would do
        (&own, vec![], "no address"),
    ] {
        let error = fetcher.reach(&addresses).await.expect_err(expected);
        assert!(error.contains(expected), "{error}");
    }
    let nobody = listener.into_std().expect("a listener"); // which does not block
    assert_eq!(nobody.accept().expect_err("nobody").kind(), std::io::ErrorKind::WouldBlock);
    own.reach(&[here]).await.expect("the same address is right where the URL says so");
}

/// An issuer with a certificate for `localhost`, and the CA that signed it.
async fn secure(answer: Answer, host: &str) -> (Issuer, RootCertStore) {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a CA");
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![SanType::DnsName(host.try_into().expect("a name"))];
    let key = KeyPair::generate().expect("a key");
    let certificate = params.signed_by(&key, &ca).expect("a certificate");
    let config = ServerConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).expect("a key"))
        .expect("a server");
    let mut roots = RootCertStore::empty();
    roots.add(ca.der().clone()).expect("a CA");
    (Issuer::with(answer, Some(TlsAcceptor::from(Arc::new(config)))).await, roots)
}

#[tokio::test]
async fn only_a_certificate_of_a_trusted_ca_for_the_host_will_do() {
    let (issuer, roots) = secure(ok(b"keys"), "localhost").await;
    let url = format!("https://localhost:{}/keys", issuer.address.port());
    let fetch = async |url: &str, roots: RootCertStore| {
        Fetcher::trusting(url, || Ok(roots)).expect("a fetcher").within(LONG).fetch().await
    };
    assert_eq!(fetch(&url, roots).await.expect("keys"), &b"keys"[..]);
    let (other, others) = secure(ok(b"keys"), "issuer.example").await;
    let error = fetch(&url, others.clone()).await.expect_err("another CA");
    assert!(error.contains("no secure connection"), "{error}");
    let elsewhere = format!("https://localhost:{}/keys", other.address.port());
    let error = fetch(&elsewhere, others).await.expect_err("another host");
    assert!(error.contains("no secure connection"), "{error}");
    assert_eq!((issuer.requests(), other.requests()), (1, 0), "nothing was asked of others");
}

#[tokio::test]
async fn whatever_the_issuer_does_its_known_keys_stay() {
    let issuer = Issuer::new(ok(&set(&[&RSA]))).await;
    let (door, fetcher) = (waiting(), issuer.fetcher());
    let mut keeper = Keeper::new(keys(&door), &fetcher);
    assert_eq!(keeper.turn(now(), false).await, Turn::Changed);
    let mut at_s = NOW_S;
    for answer in [
        head("500 Oh\r\ncontent-length: 0"),
        ok(b"garbage"),
        ok(b"{}"),
        ok(&vec![b' '; 10 << 20]),
        Answer::Endless,
        head("302 Found\r\nlocation: http://169.254.169.254/\r\ncontent-length: 0"),
        Answer::Bytes(Vec::new()),
    ] {
        issuer.answer(answer);
        at_s += 300;
        assert!(matches!(keeper.turn(at(at_s), false).await, Turn::Failed(_)));
        assert!(who(&door, &token(&RSA), at(at_s)).is_ok(), "a known key");
        let unknown = who(&door, &token(&Signer::ec("new")), at(at_s)).expect_err("an unknown key");
        assert!(unknown.may_pass_with_newer_keys());
        assert_eq!(keeper.turn(at(at_s + 29), true).await, Turn::NotNow);
    }
    issuer.answer(ok(&set(&[&RSA])));
    assert_eq!(keeper.turn(at(at_s + 30), false).await, Turn::Same, "it was due, and is tried again");
    assert_eq!(keeper.turn(at(at_s + 31), false).await, Turn::NotNow);
    assert_eq!(issuer.requests(), 9);
}

#[tokio::test]
async fn an_issuer_that_stays_down_is_trusted_for_a_day() {
    let issuer = Issuer::new(ok(&set(&[&RSA]))).await;
    let (door, fetcher) = (waiting(), issuer.fetcher());
    let mut keeper = Keeper::new(keys(&door), &fetcher);
    assert_eq!(keeper.turn(now(), false).await, Turn::Changed);
    drop(issuer);
    assert!(matches!(keeper.turn(at(NOW_S + 86_000), false).await, Turn::Failed(_)));
    assert!(who(&door, &token(&RSA), at(NOW_S + 86_399)).is_ok());
    assert_eq!(who(&door, &token(&RSA), at(NOW_S + 86_400)), Err(Refused::NoKeys));
}

#[tokio::test]
async fn a_new_key_is_found_and_an_old_one_let_go() {
    let new = Signer::ec("new");
    let issuer = Issuer::new(ok(&set(&[&RSA]))).await;
    let (door, fetcher) = (waiting(), issuer.fetcher());
    let mut keeper = Keeper::new(keys(&door), &fetcher);
    assert_eq!(keeper.turn(now(), false).await, Turn::Changed);
    issuer.answer(ok(&set(&[&new])));
    assert!(matches!(who(&door, &token(&new), now()), Err(Refused::UnknownKey(_))));
    assert_eq!(keeper.turn(at(NOW_S + 30), true).await, Turn::Changed);
    assert!(who(&door, &token(&new), at(NOW_S + 30)).is_ok());
    assert!(matches!(who(&door, &token(&RSA), at(NOW_S + 30)), Err(Refused::UnknownKey(_))));
}

#[tokio::test]
async fn a_storm_of_unknown_keys_causes_one_fetch() {
    let issuer = Issuer::new(ok(&set(&[&RSA]))).await;
    let (door, fetcher) = (waiting(), issuer.fetcher());
    let mut keeper = Keeper::new(keys(&door), &fetcher);
    for _ in 0..10_000 {
        let _ = keeper.turn(now(), true).await;
    }
    assert_eq!(issuer.requests(), 1);
    for s in 1..=90 {
        let _ = keeper.turn(at(NOW_S + s), true).await;
    }
    assert_eq!(issuer.requests(), 4, "one each 30 s");
}

#[tokio::test]
async fn each_change_is_logged_once() {
    let heard = Heard::from_now_on();
    let issuer = Issuer::new(head("500 Oh\r\ncontent-length: 0")).await;
    let (door, fetcher) = (waiting(), issuer.fetcher());
    let mut keeper = Keeper::new(keys(&door), &fetcher);
    for s in [0, 30, 60] {
        assert!(matches!(keeper.turn(at(NOW_S + s), false).await, Turn::Failed(_)));
    }
    issuer.answer(ok(&set(&[&RSA])));
    assert_eq!(keeper.turn(at(NOW_S + 90), false).await, Turn::Changed);
    assert_eq!(keeper.turn(at(NOW_S + 390), false).await, Turn::Same);
    issuer.answer(head("500 Oh\r\ncontent-length: 0"));
    for s in [690, 720] {
        assert!(matches!(keeper.turn(at(NOW_S + s), false).await, Turn::Failed(_)));
    }
    let text = heard.text();
    for (line, times) in [
        ("none are known", 2), // at once, and each minute
        ("those that are known stay in force", 1),
        ("can be fetched again", 1),
        ("has other keys", 1),
        ("the answer is 500", 3),
    ] {
        assert_eq!(text.matches(line).count(), times, "{line}: {text}");
    }
    assert_eq!(text.lines().count(), 5, "{text}");
}

#[tokio::test]
async fn that_the_issuer_has_no_keys_is_an_error_in_the_log() {
    let heard = Heard::from_now_on();
    let unusable = json!({ "keys": [{ "kty": "oct", "k": "c2VjcmV0" }] }).to_string();
    let issuer = Issuer::new(ok(&set(&[&RSA]))).await;
    let (door, fetcher) = (waiting(), issuer.fetcher());
    let mut keeper = Keeper::new(keys(&door), &fetcher);
    assert_eq!(keeper.turn(now(), false).await, Turn::Changed);
    let errors = || heard.text().matches("has no key that can be used, and none are known").count();
    for (s, answer, turn) in [(300, set(&[]), Turn::Changed), (330, unusable.into(), Turn::Changed)] {
        issuer.answer(ok(&answer));
        assert_eq!(keeper.turn(at(NOW_S + s), true).await, turn);
        assert_eq!(who(&door, &token(&RSA), at(NOW_S + s)), Err(Refused::NoKeys));
        assert_eq!(errors(), 1, "and not again within a minute: {}", heard.text());
    }
    assert_eq!(keeper.turn(at(NOW_S + 360), true).await, Turn::Same);
    assert_eq!(errors(), 2, "{}", heard.text());
    issuer.answer(head("500 Oh\r\ncontent-length: 0"));
    assert!(matches!(keeper.turn(at(NOW_S + 390), true).await, Turn::Failed(_)));
    assert!(!heard.text().contains("stay in force"), "there are none: {}", heard.text());
    issuer.answer(ok(&set(&[&RSA])));
    assert_eq!(keeper.turn(at(NOW_S + 420), true).await, Turn::Changed);
    assert!(who(&door, &token(&RSA), at(NOW_S + 420)).is_ok());
    assert_eq!(errors(), 2);
}

#[tokio::test]
async fn keeping_fetches_at_once_and_ends_when_told() {
    let issuer = Issuer::new(ok(&set(&[&RSA]))).await;
    let (door, fetcher, wanted, stop) = (Arc::new(waiting()), issuer.fetcher(), Arc::new(Notify::new()), Notify::new());
    let stop = Arc::new(stop);
    let kept = tokio::spawn({
        let (door, wanted, stop) = (Arc::clone(&door), Arc::clone(&wanted), Arc::clone(&stop));
        async move { keep(keys(&door), &fetcher, &wanted, stop.notified()).await }
    });
    issuer.asked(1).await;
    for _ in 0..10_000 {
        wanted.notify_one();
        tokio::task::yield_now().await;
    }
    stop.notify_one();
    kept.await.expect("ended");
    assert_eq!(issuer.requests(), 1);
    assert!(keys(&door).last_success().is_some());
}

#[tokio::test]
async fn keeping_ends_in_the_middle_of_a_fetch() {
    let issuer = Issuer::new(Answer::Stalls(Vec::new())).await;
    let (door, fetcher, wanted) = (waiting(), issuer.fetcher(), Notify::new());
    keep(keys(&door), &fetcher, &wanted, issuer.asked(1)).await;
    assert_eq!(keys(&door).last_success(), None);
}
