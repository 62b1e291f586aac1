//! The files that `[tls]` names, read into what a handshake needs. All that can be wrong with them is said here, with
//! the file's name.

use std::{path::Path, sync::Arc, time::SystemTime};

use rustls::{
    Error, RootCertStore, ServerConfig, SupportedProtocolVersion,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, UnixTime, pem::PemObject},
    server::{ServerSessionMemoryCache, WebPkiClientVerifier, danger::ClientCertVerifier},
    version,
};

use super::{
    config::{ClientCertificates, Config, Version},
    peer::{self, Peer, Validity},
};
use crate::identity::{
    file::{self, Content, Stamp},
    span,
};

/// Size of a file: some hundred certificates.
const FILE_BYTES_MAX: usize = 1 << 20;
/// Certificates from ours to its CA. Each is sent with each full handshake.
const CHAIN_MAX: usize = 10;
/// Sessions that can be resumed. A handshake makes two of them, of some hundred bytes, and as much more as the
/// client's certificates have.
const SESSIONS_MAX: usize = 4096;
/// From so near to its end on, the certificate is warned of: a renewal by machine would have come by now.
const ENDS_SOON_S: u64 = 7 * 24 * 60 * 60;

/// What handshakes are made with, and the files that it is from.
#[derive(Debug)]
pub(super) struct Loaded {
    pub(super) server: Arc<ServerConfig>,
    pub(super) validity: Validity,
    /// Judges clients' certificates, where they are asked for.
    verifier: Option<Arc<dyn ClientCertVerifier>>,
    /// Each certificate of several CAs by itself, with the CA's name. None where there is one CA.
    authorities: Vec<(String, Arc<dyn ClientCertVerifier>)>,
    stamps: Vec<Stamp>,
}

impl Loaded {
    /// Reads the files.
    pub(super) fn new(config: &Config, alpn: &[Vec<u8>]) -> Result<Self, String> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let (chain, certificate_stamp) = certificates(config.certificate.as_ref())?;
        if chain.len() > CHAIN_MAX {
            return Err(format!("{} has {} certificates, more than {CHAIN_MAX}", config.certificate, chain.len()));
        }
        let (key, key_stamp) = key(config.key.as_ref())?;
        let mut stamps = vec![certificate_stamp, key_stamp];
        let (mut verifier, mut authorities) = (None, Vec::new());
        if config.client_certificates != ClientCertificates::Off {
            let (trusted, stamp) = certificates(config.client_ca.as_ref())?;
            stamps.push(stamp);
            verifier = Some(self::verifier(config, &provider, &trusted)?);
            let each = trusted.iter().map(|authority| {
                let name = peer::name(authority).map_err(|why| format!("{}: {why}", config.client_ca))?;
                Ok((name, self::verifier(config, &provider, std::slice::from_ref(authority))?))
            });
            authorities = each.collect::<Result<Vec<_>, String>>()?;
            // One CA has two certificates while it is renewed.
            if authorities.windows(2).all(|two| two[0].0 == two[1].0) {
                authorities.clear();
            }
        }
        // Before rustls looks, which says less of what is wrong.
        let validity = Validity::read(&chain[0]).map_err(|why| format!("{}: {why}", config.certificate))?;
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(versions(config.versions_min))
            .map_err(|error| format!("tls.versions_min cannot be had: {error}"))?
            .with_client_cert_verifier(verifier.clone().unwrap_or_else(WebPkiClientVerifier::no_client_auth))
            .with_single_cert(chain, key)
            .map_err(|error| match error {
                Error::InconsistentKeys(_) => format!(
                    "{} is not the key of the first certificate in {}; the server's own certificate must be the first",
                    config.key, config.certificate
                ),
                Error::General(_) => format!(
                    "{} holds no key that is taken: it must be RSA of 2048 to 8192 bits, ECDSA (P-256, P-384, P-521) or \
                     Ed25519",
                    config.key
                ),
                error => format!("{} and {} cannot be used: {error}", config.certificate, config.key),
            })?;
        server.alpn_protocols = alpn.to_vec();
        server.session_storage = ServerSessionMemoryCache::new(SESSIONS_MAX);
        server.max_early_data_size = 0;
        Ok(Self { server: Arc::new(server), validity, verifier, authorities, stamps })
    }

    /// Whose these certificates are, which have been verified; the client's own is the first. Of several CAs the one that
    /// they lead to is told, but where it signed the first one itself.
    pub(super) fn peer(&self, chain: &[CertificateDer<'_>]) -> Result<Option<Peer>, String> {
        let Some((own, rest)) = chain.split_first() else { return Ok(None) };
        let now = UnixTime::now();
        let is_under = |verifier: &dyn ClientCertVerifier, rest| verifier.verify_client_cert(own, rest, now).is_ok();
        if rest.is_empty()
            || self.authorities.is_empty()
            || self.verifier.as_deref().is_some_and(|all| is_under(all, &[]))
        {
            return Peer::read(own, None).map(Some);
        }
        let under = self.authorities.iter().find(|(_, verifier)| is_under(&**verifier, rest));
        let (authority, _) = under.ok_or("the CA that it leads to cannot be told")?;
        Peer::read(own, Some(authority)).map(Some)
    }

    /// Whether a client with these certificates, its own first, would be let in.
    pub(super) fn takes(&self, chain: &[CertificateDer<'_>]) -> bool {
        match (&self.verifier, chain.split_first()) {
            (Some(verifier), Some((own, rest))) => verifier.verify_client_cert(own, rest, UnixTime::now()).is_ok(),
            _ => true,
        }
    }

    /// The files that are others than they were.
    pub(super) fn changed<'a>(&self, config: &'a Config) -> Result<Vec<&'a str>, String> {
        let asks = config.client_certificates != ClientCertificates::Off;
        let files = [&config.certificate, &config.key].into_iter().chain(asks.then_some(&config.client_ca));
        let mut changed = Vec::new();
        for (path, stamp) in files.zip(&self.stamps) {
            if file::stamp(path.as_ref())? != *stamp {
                changed.push(path.as_str());
            }
        }
        Ok(changed)
    }

    /// What is wrong with the certificate's dates.
    pub(super) fn warnings(&self, config: &Config, now: SystemTime) -> Vec<String> {
        let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let Validity { not_before, not_after } = self.validity;
        let certificate = &config.certificate;
        let mut warnings = Vec::new();
        if now < not_before {
            warnings.push(format!(
                "{certificate} is not valid yet, for {}; clients refuse it (are the clocks right?)",
                span((not_before - now).as_secs())
            ));
        }
        if now >= not_after {
            warnings.push(format!(
                "{certificate} expired {} ago; clients refuse it: renew it",
                span((now - not_after).as_secs())
            ));
        } else if (not_after - now).as_secs() < ENDS_SOON_S {
            let hours = (not_after - now).as_secs() / 3600;
            warnings.push(format!("{certificate} expires in {hours} hours; renew it"));
        }
        warnings
    }
}

static FROM_TLS12: [&SupportedProtocolVersion; 2] = [&version::TLS13, &version::TLS12];
static FROM_TLS13: [&SupportedProtocolVersion; 1] = [&version::TLS13];

fn versions(min: Version) -> &'static [&'static SupportedProtocolVersion] {
    match min {
        Version::Tls12 => &FROM_TLS12,
        Version::Tls13 => &FROM_TLS13,
    }
}

fn certificates(path: &Path) -> Result<(Vec<CertificateDer<'static>>, Stamp), String> {
    let Content { bytes, stamp, .. } = file::read(path, FILE_BYTES_MAX)?;
    let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    let read = read.map_err(|error| format!("{} is not PEM: {error}", path.display()))?;
    if read.is_empty() {
        return Err(format!("{} has no certificate: no line -----BEGIN CERTIFICATE-----", path.display()));
    }
    Ok((read, stamp))
}

fn key(path: &Path) -> Result<(PrivateKeyDer<'static>, Stamp), String> {
    let content = file::read(path, FILE_BYTES_MAX)?;
    content.check_not_public(path)?;
    let mut keys = PrivateKeyDer::pem_slice_iter(&content.bytes);
    match keys.next() {
        Some(Ok(key)) => Ok((key, content.stamp)),
        Some(Err(error)) => Err(format!("{} is not PEM: {error}", path.display())),
        None if content.bytes.windows(9).any(|it| it == b"ENCRYPTED") => Err(format!(
            "{} has an encrypted key, and there is nobody to ask for its password; write it without: openssl pkey -in \
             OLD -out NEW",
            path.display()
        )),
        None => Err(format!("{} has no private key: no line -----BEGIN PRIVATE KEY-----", path.display())),
    }
}

fn verifier(
    config: &Config,
    provider: &Arc<CryptoProvider>,
    authorities: &[CertificateDer<'static>],
) -> Result<Arc<dyn ClientCertVerifier>, String> {
    let path = &config.client_ca;
    let mut roots = RootCertStore::empty();
    for (number, authority) in authorities.iter().enumerate() {
        let wrong = |error| format!("certificate {} in {path} cannot be trusted: {error}", number + 1);
        roots.add(authority.clone()).map_err(wrong)?;
    }
    let builder = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(provider));
    let builder = match config.client_certificates {
        ClientCertificates::Required => builder,
        ClientCertificates::Off | ClientCertificates::Optional => builder.allow_unauthenticated(),
    };
    builder.build().map_err(|error| format!("{path} cannot be used: {error}"))
}
