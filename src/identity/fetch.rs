//! Gets the issuer's keys. One request to one address: no redirect is followed, no proxy asked, no cookie kept, and
//! nothing is sent that an attacker on the way or at the other end could use. When to ask is decided elsewhere.

use std::{
    future::poll_fn,
    net::{IpAddr, SocketAddr},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Request, StatusCode, Uri, header};
use hyper::{
    body::{Body, Incoming},
    client::conn::http1,
};
use hyper_util::rt::TokioIo;
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, ServerName},
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, lookup_host},
    time::timeout,
};
use tokio_rustls::TlsConnector;

use super::{address, jwk::BYTES_MAX, refused::shown};

/// For everything together: the name, the connection, the answer to its last byte. So long does somebody with a new
/// key wait at most.
const WITHIN: Duration = Duration::from_secs(2);
/// Addresses of the issuer that are tried, one after the other, each for its part of the time.
const ADDRESSES_MAX: usize = 4;
/// Size of the answer's head.
const HEAD_BYTES_MAX: usize = 64 << 10;

/// Gets the issuer's keys from one URL.
#[derive(Debug)]
pub struct Fetcher {
    shown: String,
    host: String,
    port: u16,
    authority: HeaderValue,
    path: Uri,
    /// Whether the URL names this host itself, so that the address may be its own.
    local: bool,
    /// None for plain HTTP.
    tls: Option<(Arc<ClientConfig>, ServerName<'static>)>,
    within: Duration,
}

impl Fetcher {
    /// Prepares to fetch from `url`: https, trusting the CAs that the host trusts (those in `SSL_CERT_FILE` and
    /// `SSL_CERT_DIR`, or else the system's), or http to the host itself.
    ///
    /// # Errors
    /// What is wrong with the URL, or that the host trusts no CA.
    pub fn new(url: &str) -> Result<Self, String> {
        Self::trusting(url, system_roots)
    }

    pub(super) fn trusting(url: &str, roots: impl FnOnce() -> Result<RootCertStore, String>) -> Result<Self, String> {
        let wrong = |why: &str| format!("auth.jwks_url is {}; {why}", shown(url));
        let uri: Uri = url.parse().map_err(|_| wrong("that is no URL"))?;
        let authority = uri.authority().ok_or_else(|| wrong("write a URL with https:// and a host"))?;
        if authority.as_str().contains('@') {
            return Err(wrong("leave out what stands before the @: no password is sent"));
        }
        let host = authority.host().trim_matches(['[', ']']).to_owned();
        let literal: Option<IpAddr> = host.parse().ok();
        let local = host.eq_ignore_ascii_case("localhost") || literal.is_some_and(|it| it.to_canonical().is_loopback());
        if let Some(literal) = literal {
            address::check(literal, local).map_err(|why| wrong(&why))?;
        }
        let (tls, port) = match uri.scheme_str() {
            Some("https") => {
                let name = ServerName::try_from(host.clone())
                    .map_err(|_| wrong("the host is neither a name nor an address"))?;
                (Some((trust(roots()?)?, name)), 443)
            }
            Some("http") if local => (None, 80),
            _ => return Err(wrong("write a URL with https:// (http:// is for the own host)")),
        };
        Ok(Self {
            shown: shown(url),
            port: uri.port_u16().unwrap_or(port),
            authority: HeaderValue::from_str(authority.as_str()).map_err(|_| wrong("the host cannot be sent"))?,
            path: uri.path_and_query().map_or("/", |path| path.as_str()).parse().map_err(|_| wrong("no path"))?,
            host,
            local,
            tls,
            within: WITHIN,
        })
    }

    /// The same, with other than the two seconds.
    #[cfg(test)]
    pub(super) fn within(self, within: Duration) -> Self {
        Self { within, ..self }
    }

    /// Where the keys are fetched, for the log.
    pub fn url(&self) -> &str {
        &self.shown
    }

    /// Fetches once, in at most two seconds. Dropping the future ends it.
    ///
    /// # Errors
    /// Why there is nothing, in a sentence for the log.
    pub async fn fetch(&self) -> Result<Bytes, String> {
        match timeout(self.within, self.ask()).await {
            Ok(result) => result.map_err(|why| format!("{}: {why}", self.shown)),
            Err(_) => Err(format!("{}: there was no whole answer in {} ms", self.shown, self.within.as_millis())),
        }
    }

    async fn ask(&self) -> Result<Bytes, String> {
        let stream = self.connect().await?;
        match &self.tls {
            None => self.exchange(stream).await,
            Some((tls, name)) => {
                let secured = TlsConnector::from(Arc::clone(tls)).connect(name.clone(), stream).await;
                self.exchange(secured.map_err(|error| format!("there is no secure connection: {error}"))?).await
            }
        }
    }

    /// The name is resolved once. What was checked is what is connected to.
    async fn connect(&self) -> Result<TcpStream, String> {
        let resolved = lookup_host((self.host.as_str(), self.port)).await;
        let resolved = resolved.map_err(|error| format!("the host cannot be found: {error}"))?;
        self.reach(&resolved.take(ADDRESSES_MAX).collect::<Vec<_>>()).await
    }

    /// Connects to the first of these that answers, when none is wrong: a name with one wrong address is not trusted
    /// with the others.
    pub(super) async fn reach(&self, addresses: &[SocketAddr]) -> Result<TcpStream, String> {
        for address in addresses {
            address::check(address.ip(), self.local)?;
        }
        let part = self.within.div_f64(addresses.len().max(1) as f64);
        let mut failed = "the host has no address".to_owned();
        for address in addresses {
            match timeout(part, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(error)) => failed = format!("cannot connect to {address}: {error}"),
                Err(_) => failed = format!("cannot connect to {address}: it does not answer"),
            }
        }
        Err(failed)
    }

    async fn exchange(&self, stream: impl AsyncRead + AsyncWrite + Unpin) -> Result<Bytes, String> {
        let broke = |error: hyper::Error| format!("the answer broke off: {error}");
        let mut builder = http1::Builder::new();
        builder.max_buf_size(HEAD_BYTES_MAX);
        let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(broke)?;
        let mut connection = pin!(connection);
        let mut answer = pin!(async {
            let answer = sender.send_request(self.request()?).await.map_err(broke)?;
            check_head(answer.status(), answer.headers())?;
            read(answer.into_body()).await
        });
        tokio::select! {
            biased;
            answer = &mut answer => return answer,
            _ = &mut connection => {} // what it has read is on its way to the answer
        }
        answer.await
    }

    fn request(&self) -> Result<Request<String>, String> {
        Request::get(self.path.clone())
            .header(header::HOST, &self.authority)
            .header(header::ACCEPT, "application/jwk-set+json, application/json")
            .header(header::USER_AGENT, "bigiron")
            .header(header::CONNECTION, "close")
            .body(String::new())
            .map_err(|error| format!("no request can be made: {error}"))
    }
}

fn check_head(status: StatusCode, headers: &HeaderMap) -> Result<(), String> {
    if status.is_redirection() {
        let to = headers.get(header::LOCATION).map_or(&b"(nowhere)"[..], HeaderValue::as_bytes);
        return Err(format!(
            "the answer is {} to {}, and redirects are not followed; set auth.jwks_url to where the keys are",
            status.as_u16(),
            shown(&String::from_utf8_lossy(to))
        ));
    }
    if status != StatusCode::OK {
        return Err(format!("the answer is {}, not 200", status.as_u16()));
    }
    if let Some(encoding) = headers.get(header::CONTENT_ENCODING) {
        return Err(format!("the answer is compressed ({encoding:?}), which was not asked for"));
    }
    Ok(())
}

async fn read(body: Incoming) -> Result<Bytes, String> {
    let too_long = || Err(format!("the answer has more than {BYTES_MAX} bytes"));
    if body.size_hint().lower() > BYTES_MAX as u64 {
        return too_long();
    }
    let mut body = pin!(body);
    let mut all = BytesMut::new();
    while let Some(frame) = poll_fn(|cx| body.as_mut().poll_frame(cx)).await {
        let frame = frame.map_err(|error| format!("the answer broke off: {error}"))?;
        let Ok(data) = frame.into_data() else { continue };
        if all.len() + data.len() > BYTES_MAX {
            return too_long();
        }
        all.extend_from_slice(&data);
    }
    Ok(all.freeze())
}

fn trust(roots: RootCertStore) -> Result<Arc<ClientConfig>, String> {
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| format!("TLS cannot be had: {error}"))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(Arc::new(config))
}

/// The CAs that the host trusts.
fn system_roots() -> Result<RootCertStore, String> {
    let found = rustls_native_certs::load_native_certs();
    store(found.certs).ok_or_else(|| {
        let why = found.errors.first().map(|error| format!(": {error}")).unwrap_or_default();
        format!("this host trusts no CA{why}; install ca-certificates, or set SSL_CERT_FILE")
    })
}

fn store(certificates: Vec<CertificateDer<'static>>) -> Option<RootCertStore> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates);
    (!roots.is_empty()).then_some(roots)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_that_are_not_fetched_are_said_to_be_so() {
        let none = || Err("no CA is needed".to_owned());
        for (url, expected) in [
            ("keys", "https://"),
            ("ftp://issuer.example/keys", "https://"),
            ("http://issuer.example/keys", "https://"),
            ("http://127.1/keys", "https://"),
            ("http://localhost.issuer.example/keys", "https://"),
            ("http://169.254.169.254/latest", "link-local"),
            ("https://169.254.169.254/latest", "link-local"),
            ("https://[fe80::1]/keys", "link-local"),
            ("https://[::ffff:169.254.169.254]/keys", "link-local"),
            ("https://user:secret@issuer.example/keys", "before the @"),
            ("http://localhost@issuer.example/keys", "before the @"),
            ("https://", "URL"),
        ] {
            let error = Fetcher::trusting(url, none).expect_err(url);
            assert!(error.contains(expected), "{url}: {error}");
        }
        for (url, port) in [("http://localhost/keys?a=b", 80), ("http://[::1]:8080", 8080), ("http://127.0.0.2/", 80)] {
            let fetcher = Fetcher::trusting(url, none).expect(url);
            assert_eq!((fetcher.port, fetcher.within), (port, Duration::from_secs(2)), "{url}");
        }
        assert!(Fetcher::trusting("https://issuer.example/keys", none).is_err(), "https needs CAs");
        assert_eq!(
            Fetcher::trusting("https://issuer.example/", || Ok(RootCertStore::empty())).expect("a fetcher").port,
            443
        );
    }

    #[test]
    fn the_cas_of_the_host_are_trusted_or_it_is_said_that_there_are_none() {
        match Fetcher::new("https://issuer.example/keys") {
            Ok(fetcher) => assert!(fetcher.tls.is_some()),
            Err(error) => assert!(error.contains("install ca-certificates"), "{error}"),
        }
        assert!(store(Vec::new()).is_none());
        assert!(store(vec![CertificateDer::from(b"garbage".to_vec())]).is_none());
    }
}
