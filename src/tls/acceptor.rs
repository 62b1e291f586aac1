//! From a TCP connection to a secure one. The certificate is replaced as a whole, for handshakes that begin afterwards.

use std::{
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use rustls::{ServerConfig, pki_types::CertificateDer};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_rustls::TlsAcceptor;

use super::{Config, Peer, Why, load::Loaded};

/// A secure connection, for reading and writing.
pub type Stream = tokio_rustls::server::TlsStream<TcpStream>;

/// The first byte of a handshake.
const HANDSHAKE: u8 = 22;

const TOLD: &str = "HTTP/1.1 400 Bad Request\r\nconnection: close\r\ncontent-type: text/plain\r\n\
                    content-length: 36\r\n\r\nThis port speaks TLS. Use https://\r\n";

/// Makes connections secure.
#[derive(Debug)]
pub struct Acceptor {
    now: ArcSwap<Loaded>,
    config: Config,
    alpn: Vec<Vec<u8>>,
    handshake_timeout: Duration,
    reloading: Mutex<()>,
}

/// A connection whose handshake is over.
#[derive(Debug)]
pub struct Accepted {
    /// The connection.
    pub stream: Stream,
    /// Whose it is, when a certificate was shown.
    pub peer: Option<Peer>,
    /// What it was made with.
    server: Arc<ServerConfig>,
}

impl Accepted {
    /// What both sides agreed to speak, such as `h2`; none when the client did not ask, and then it is HTTP/1.1.
    pub fn alpn(&self) -> Option<&[u8]> {
        self.stream.get_ref().1.alpn_protocol()
    }

    /// The certificates that the client showed, its own first.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        self.stream.get_ref().1.peer_certificates().unwrap_or_default()
    }
}

impl Acceptor {
    /// Reads the files that `config` names. `alpn` is what is spoken over the connections, the best first, such as
    /// `[b"h2", b"http/1.1"]`.
    ///
    /// # Errors
    /// What is wrong with the settings or with a file, and what would be right.
    pub fn new(config: &Config, alpn: &[&[u8]]) -> Result<Self, String> {
        config.check()?;
        if !config.is_on() {
            return Err("tls.certificate is not set, so that there is no TLS".into());
        }
        let alpn: Vec<Vec<u8>> = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        Ok(Self {
            now: ArcSwap::from_pointee(Loaded::new(config, &alpn)?),
            config: config.clone(),
            alpn,
            handshake_timeout: config.handshake_timeout(),
            reloading: Mutex::new(()),
        })
    }

    /// Does the handshake on a connection. Dropping the future closes the connection.
    ///
    /// # Errors
    /// Why it failed; the connection is closed.
    pub async fn accept(&self, stream: TcpStream) -> Result<Accepted, Why> {
        let now = self.now.load_full();
        timeout(self.handshake_timeout, handshake(&now, stream)).await.unwrap_or(Err(Why::Timeout))
    }

    /// Reads the files again when one of them has changed, and says which. Handshakes from now on have what is new in
    /// them; connections that are open go on as they are, also where the client would not be let in any more: who has
    /// them asks [`Acceptor::takes`]. Costs a look at each file.
    ///
    /// # Errors
    /// What is wrong with a file. What was known before stays in force, and the next call says so again. A certificate
    /// that was replaced before its key is such a fault, and is over with the next call.
    pub fn reload_if_changed(&self) -> Result<Vec<&str>, String> {
        let _one_at_a_time = self.reloading.lock();
        let changed = self.now.load().changed(&self.config)?;
        if !changed.is_empty() {
            self.now.store(Arc::new(Loaded::new(&self.config, &self.alpn)?));
        }
        Ok(changed)
    }

    /// Whether a client with these certificates, its own first, would be let in now.
    pub fn takes(&self, chain: &[CertificateDer<'_>]) -> bool {
        self.now.load().takes(chain)
    }

    /// Whether files have changed since this handshake began.
    pub fn is_outdated(&self, accepted: &Accepted) -> bool {
        !Arc::ptr_eq(&self.now.load().server, &accepted.server)
    }

    /// What is wrong with the dates of our certificate at `now`, a sentence for each. It is used all the same: there is
    /// none better.
    pub fn warnings(&self, now: SystemTime) -> Vec<String> {
        self.now.load().warnings(&self.config, now)
    }

    /// When our certificate ends, for the metrics.
    pub fn not_after(&self) -> SystemTime {
        UNIX_EPOCH + self.now.load().validity.not_after
    }
}

async fn handshake(loaded: &Loaded, stream: TcpStream) -> Result<Accepted, Why> {
    let mut first = [0];
    match stream.peek(&mut first).await.map_err(|error| Why::of_io(&error))? {
        0 => return Err(Why::Closed),
        _ if first[0] == HANDSHAKE => {}
        _ if first[0].is_ascii_uppercase() => return Err(tell(stream).await),
        _ => return Err(Why::NotTls),
    }
    let server = Arc::clone(&loaded.server);
    let stream = TlsAcceptor::from(Arc::clone(&server)).accept(stream).await.map_err(|error| Why::of_io(&error))?;
    let chain = stream.get_ref().1.peer_certificates().unwrap_or_default();
    let peer = loaded.peer(chain).map_err(Why::CertificateRefused)?;
    // A session that is resumed has the certificate of the first handshake, whose dates nobody looked at again.
    if peer.as_ref().is_some_and(|peer| peer.has_ended(SystemTime::now())) {
        return Err(Why::CertificateDates);
    }
    Ok(Accepted { stream, peer, server })
}

/// Answers somebody who wrote `http://` by mistake.
async fn tell(mut stream: TcpStream) -> Why {
    // What was not read when the connection is closed makes the kernel reset it, and the answer with it.
    let mut request = [0; 4096];
    let _ = stream.read(&mut request).await;
    let _ = stream.write_all(TOLD.as_bytes()).await;
    let _ = stream.shutdown().await;
    Why::PlainHttp
}
