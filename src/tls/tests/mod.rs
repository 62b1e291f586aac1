//! Handshakes over real sockets, with certificates made on the spot.

mod clients;
mod files;
mod handshakes;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, SanType};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, pem::PemObject},
    version::{TLS12, TLS13},
};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::TlsConnector;

use super::*;

const ALPN: &[&[u8]] = &[b"h2", b"http/1.1"];

type ClientStream = tokio_rustls::client::TlsStream<TcpStream>;

/// Signs certificates.
struct Ca(CertifiedIssuer<'static, KeyPair>);

/// A certificate and its key, in PEM.
#[derive(Clone)]
struct Signed {
    certificate: String,
    key: String,
}

impl Ca {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "Example, Inc.");
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a CA"))
    }

    fn pem(&self) -> String {
        self.0.pem()
    }

    fn sign(&self, change: impl FnOnce(&mut CertificateParams)) -> Signed {
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        change(&mut params);
        let key = KeyPair::generate().expect("a key");
        let certificate = params.signed_by(&key, &self.0).expect("a certificate");
        Signed { certificate: certificate.pem(), key: key.serialize_pem() }
    }

    /// One for the server that all tests call.
    fn server(&self) -> Signed {
        self.sign(|params| params.subject_alt_names = vec![SanType::DnsName("localhost".try_into().expect("a name"))])
    }

    /// One for a client with this common name.
    fn client(&self, name: &str) -> Signed {
        self.sign(|params| params.distinguished_name.push(DnType::CommonName, name))
    }
}

impl Signed {
    fn der(&self) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(self.certificate.as_bytes()).expect("PEM")
    }

    /// It, and those after it.
    fn chain(&self) -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_slice_iter(self.certificate.as_bytes()).collect::<Result<_, _>>().expect("PEM")
    }
}

/// A folder with the files that the settings name.
struct World {
    folder: TempDir,
    ca: Ca,
    clients: Ca,
    config: Config,
}

impl World {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
        let config = Config {
            certificate: path("us.pem"),
            key: path("us.key"),
            handshake_timeout_ms: 60_000, // never met where it is not what is tested
            ..Config::default()
        };
        let world = Self { folder, ca: Ca::new("Servers"), clients: Ca::new("Clients"), config };
        world.put(&world.ca.server());
        world
    }

    /// One that asks for certificates.
    fn asking(how: ClientCertificates) -> Self {
        let mut world = Self::new();
        let path = world.write("clients.pem", &world.clients.pem());
        world.config.client_ca = path.to_string_lossy().into_owned();
        world.config.client_certificates = how;
        world
    }

    /// Writes a file anew, so that it is known to be another one.
    fn write(&self, name: &str, text: &str) -> PathBuf {
        let (path, new) = (self.folder.path().join(name), self.folder.path().join(".new"));
        fs::write(&new, text).expect("written");
        set_mode(&new, 0o600);
        fs::rename(&new, &path).expect("renamed");
        path
    }

    fn put(&self, signed: &Signed) {
        self.write("us.pem", &signed.certificate);
        self.write("us.key", &signed.key);
    }

    fn acceptor(&self) -> Acceptor {
        Acceptor::new(&self.config, ALPN).expect("an acceptor")
    }

    fn refused(&self) -> String {
        Acceptor::new(&self.config, ALPN).expect_err("refused")
    }

    /// A client that trusts the server's CA.
    fn client(&self) -> ClientConfig {
        client(&self.ca, None, &[&TLS13, &TLS12])
    }

    fn client_with(&self, signed: &Signed) -> ClientConfig {
        client(&self.ca, Some(signed), &[&TLS13, &TLS12])
    }
}

fn client(ca: &Ca, signed: Option<&Signed>, versions: &[&'static rustls::SupportedProtocolVersion]) -> ClientConfig {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(ca.pem().as_bytes()).expect("PEM")).expect("a CA");
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_protocol_versions(versions)
        .expect("versions")
        .with_root_certificates(roots);
    match signed {
        None => builder.with_no_client_auth(),
        Some(signed) => {
            let key = PrivateKeyDer::from_pem_slice(signed.key.as_bytes()).expect("PEM");
            builder.with_client_auth_cert(signed.chain(), key).expect("a client")
        }
    }
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("permissions");
}

/// Both ends of a TCP connection.
async fn pair() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let address = listener.local_addr().expect("an address");
    let (client, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    (client.expect("connected"), accepted.expect("accepted").0)
}

/// What the server and the client make of a handshake.
async fn shake(
    acceptor: &Acceptor,
    client: &Arc<ClientConfig>,
) -> (Result<Accepted, Why>, std::io::Result<ClientStream>) {
    let (ours, theirs) = pair().await;
    let name = ServerName::try_from("localhost").expect("a name");
    tokio::join!(acceptor.accept(theirs), TlsConnector::from(Arc::clone(client)).connect(name, ours))
}

/// A handshake that both sides are content with, tried by a byte each way.
async fn connect(acceptor: &Acceptor, client: &Arc<ClientConfig>) -> (Accepted, ClientStream) {
    let (accepted, connected) = shake(acceptor, client).await;
    let mut both = (accepted.expect("accepted"), connected.expect("connected"));
    talk(&mut both.0.stream, &mut both.1).await;
    both
}

/// Why the server is not content.
async fn why(acceptor: &Acceptor, client: ClientConfig) -> Why {
    shake(acceptor, &Arc::new(client)).await.0.expect_err("a handshake that must fail")
}

async fn talk(server: &mut Stream, client: &mut ClientStream) {
    client.write_all(b"?").await.expect("written");
    client.flush().await.expect("flushed");
    assert_eq!(server.read_u8().await.expect("read"), b'?');
    server.write_all(b"!").await.expect("written");
    server.flush().await.expect("flushed");
    assert_eq!(client.read_u8().await.expect("read"), b'!');
}

/// The certificate that the server showed.
fn shown(client: &ClientStream) -> CertificateDer<'static> {
    client.get_ref().1.peer_certificates().expect("certificates")[0].clone().into_owned()
}
