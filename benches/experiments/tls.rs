//! What it costs to be private: calls over connections that stay open, with TLS and without, and over HTTP/2.

use std::{
    fs,
    future::poll_fn,
    os::unix::fs::PermissionsExt,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use hyper::{
    Request,
    body::{Body, Incoming},
    client::conn::http2,
};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::{
    ClientConfig, RootCertStore, pki_types::CertificateDer, pki_types::ServerName, pki_types::pem::PemObject,
};
use tokio::{net::TcpStream, task::JoinSet};
use tokio_rustls::TlsConnector;

use crate::{
    Result,
    caller::{Caller, Driven, Way, drive, echo},
    lab::{Lab, Server},
    median, verdict,
};

const CONNECTIONS: usize = 64;
const SHARE_MIN: f64 = 0.7;
const PAIRS: usize = 7;
/// HTTP/2 has few connections with many calls each.
const H2_CONNECTIONS: usize = 4;

pub(crate) fn tls(lab: &Lab) -> Result<()> {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into()])?;
    let (certificate, key) = (lab.folder.join("us.pem"), lab.folder.join("us.key"));
    fs::write(&certificate, made.cert.pem())?;
    fs::write(&key, made.signing_key.serialize_pem())?;
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600))?;
    let settings = [format!("tls.certificate={}", certificate.display()), format!("tls.key={}", key.display())];
    let plain = lab.serve(None, &[])?;
    let secure = lab.serve(None, &settings.each_ref().map(String::as_str))?;

    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(made.cert.pem().as_bytes())?)?;
    let client = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let mut of_http2 = client.clone();
    of_http2.alpn_protocols = vec![b"h2".to_vec()];

    let time = Duration::from_secs(lab.seconds);
    println!("echo, HTTP/1.1, {CONNECTIONS} connections that stay open, {PAIRS} stretches of each in turn");
    let callers = |way: Way| (0..CONNECTIONS).map(|_| Caller::new(way.clone(), echo(None))).collect::<Vec<_>>();
    let mut clear = callers(Way::to(&plain));
    let mut hidden = callers(Way { tls: Some(Arc::new(client)), ..Way::to(&secure) });
    let share = compare(|| drive(lab, &plain, &mut clear, time, 200), || drive(lab, &secure, &mut hidden, time, 200))?;
    let what = format!("calls per CPU-second with TLS >= {SHARE_MIN} of those without");
    verdict(&what, share >= SHARE_MIN, format!("{share:.3}, median of {PAIRS} pairs"));

    println!("\necho, HTTP/2, {H2_CONNECTIONS} connections with {} calls each", CONNECTIONS / H2_CONNECTIONS);
    let connector = TlsConnector::from(Arc::new(of_http2));
    let share = compare(|| drive_http2(lab, &plain, None, time), || drive_http2(lab, &secure, Some(&connector), time))?;
    println!("         with TLS {share:.3} of the calls per CPU-second without, median of {PAIRS} pairs");
    Ok(())
}

/// Both in turn; the median of what the second does for its CPU time, as a share of the first.
fn compare(mut plain: impl FnMut() -> Result<Driven>, mut secure: impl FnMut() -> Result<Driven>) -> Result<f64> {
    let mut pairs = Vec::new();
    for round in 0..=PAIRS {
        let pair = (plain()?, secure()?);
        // The first is the warm-up.
        if round > 0 {
            pairs.push(pair);
        }
    }
    let of = |of: fn(&(Driven, Driven)) -> f64| median(pairs.iter().map(of).collect());
    println!("{:12} {:>10} {:>16}", "", "calls/s", "calls/CPU-second");
    println!("{:12} {:>10.0} {:>16.0}", "without TLS", of(|pair| pair.0.per_s()), of(|pair| pair.0.per_cpu_s()));
    println!("{:12} {:>10.0} {:>16.0}", "with TLS", of(|pair| pair.1.per_s()), of(|pair| pair.1.per_cpu_s()));
    println!("         by calls/s {:.3}", of(|pair| pair.1.per_s() / pair.0.per_s()));
    Ok(of(|pair| pair.1.per_cpu_s() / pair.0.per_cpu_s()))
}

type Sender = http2::SendRequest<String>;

/// The same over HTTP/2, by one thread.
fn drive_http2(lab: &Lab, server: &Server, tls: Option<&TlsConnector>, time: Duration) -> Result<Driven> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    lab.on_load_cores(|| {
        runtime.block_on(async {
            let mut senders = Vec::new();
            for _ in 0..H2_CONNECTIONS {
                senders.push(connect_http2(server, tls).await?);
            }
            let (began, cpu_s) = (Instant::now(), server.cpu_s()?);
            let mut loops = JoinSet::new();
            for n in 0..CONNECTIONS {
                loops.spawn(call_http2(senders[n % H2_CONNECTIONS].clone(), began + time));
            }
            let mut calls = 0;
            while let Some(done) = loops.join_next().await {
                calls += done??;
            }
            Ok(Driven { calls, elapsed_s: began.elapsed().as_secs_f64(), cpu_s: server.cpu_s()? - cpu_s })
        })
    })
}

async fn connect_http2(server: &Server, tls: Option<&TlsConnector>) -> Result<Sender> {
    let stream = TcpStream::connect(server.address).await?;
    stream.set_nodelay(true)?;
    let builder = http2::Builder::new(TokioExecutor::new());
    let Some(tls) = tls else {
        let (sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
        tokio::spawn(connection);
        return Ok(sender);
    };
    let stream = tls.connect(ServerName::try_from("localhost")?, stream).await?;
    if stream.get_ref().1.alpn_protocol() != Some(b"h2") {
        return Err("the server does not speak HTTP/2 over TLS".into());
    }
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    Ok(sender)
}

/// The same call as over HTTP/1.1, again and again.
async fn call_http2(mut sender: Sender, until: Instant) -> Result<u64> {
    let whole = String::from_utf8(echo(None))?;
    let (head, body) = whole.split_once("\r\n\r\n").ok_or("a request without a head")?;
    let headers: Vec<_> = head.lines().skip(1).filter_map(|line| line.split_once(": ")).collect();
    let mut calls = 0;
    while Instant::now() < until {
        let mut request = Request::post("http://localhost/mcp");
        for (name, value) in headers.iter().filter(|(name, _)| !["Host", "Content-Length"].contains(name)) {
            request = request.header(*name, *value);
        }
        sender.ready().await?;
        let answer = sender.send_request(request.body(body.to_owned())?).await?;
        let status = answer.status();
        let text = whole_text(answer.into_body()).await?;
        if status != 200 || !text.contains("hello") {
            return Err(format!("expected an echo, got {status}:\n{text}").into());
        }
        calls += 1;
    }
    Ok(calls)
}

async fn whole_text(mut body: Incoming) -> Result<String> {
    let mut bytes = Vec::new();
    while let Some(frame) = poll_fn(|context| Pin::new(&mut body).poll_frame(context)).await {
        bytes.extend(frame?.into_data().unwrap_or_default());
    }
    Ok(String::from_utf8(bytes)?)
}
