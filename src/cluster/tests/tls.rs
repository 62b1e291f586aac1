//! A Redis that is reached by TLS as well, with a certificate of its own that names `localhost`.

use tempfile::TempDir;

use super::servers::{Redis, free_port};

pub(super) struct Secure {
    /// The server; its own port is the one without TLS.
    pub(super) redis: Redis,
    /// The port with TLS.
    pub(super) port: u16,
    folder: TempDir,
}

impl Secure {
    pub(super) fn start_with(args: &[&str]) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let at = |name: &str| folder.path().join(name).display().to_string();
        let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).expect("a certificate");
        let (cert, key, port) = (at("cert.pem"), at("key.pem"), free_port());
        std::fs::write(&cert, made.cert.pem()).expect("written");
        std::fs::write(&key, made.signing_key.serialize_pem()).expect("written");
        let port_text = port.to_string();
        let tls = ["--tls-port", &port_text, "--tls-cert-file", &cert, "--tls-key-file", &key];
        let clients = ["--tls-ca-cert-file", &cert, "--tls-auth-clients", "no"];
        let redis = Redis::start_with(&[&tls[..], &clients, args].concat());
        Self { redis, port, folder }
    }

    /// The file with its certificate.
    pub(super) fn certificate(&self) -> String {
        self.folder.path().join("cert.pem").display().to_string()
    }
}
