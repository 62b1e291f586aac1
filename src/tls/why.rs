//! Why a handshake failed. What a client can cause is told apart by whose fault it is, so that a flood of scanners
//! does not look like an expired certificate.

use std::{fmt, io};

use rustls::{AlertDescription, CertificateError, Error, InvalidMessage, PeerIncompatible};

/// Why there is no secure connection.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Why {
    /// The handshake was not over in time.
    Timeout,
    /// The client left before the handshake was over.
    Closed,
    /// The client spoke HTTP without TLS. It was told so.
    PlainHttp,
    /// What came is not TLS.
    NotTls,
    /// The client speaks only versions that we do not.
    Version,
    /// No cipher, key exchange or signature that both sides know.
    NothingInCommon(String),
    /// The client wants to speak another protocol than HTTP.
    Protocol,
    /// The client showed no certificate, and must.
    CertificateMissing,
    /// The client's certificate is of no CA that we trust.
    CertificateUnknown,
    /// The client's certificate has expired, or is not valid yet.
    CertificateDates,
    /// The client's certificate is wrong in another way.
    CertificateRefused(String),
    /// The client ended the handshake: most often it does not trust our certificate.
    ClientRefused(String),
    /// What the client sent breaks the rules of TLS.
    Broken(String),
    /// The network failed.
    Network(String),
}

impl Why {
    /// Every word that [`Why::kind`] says.
    pub const KINDS: [&'static str; 14] = [
        "timeout",
        "closed",
        "plain_http",
        "not_tls",
        "version",
        "nothing_in_common",
        "protocol",
        "certificate_missing",
        "certificate_unknown",
        "certificate_dates",
        "certificate_refused",
        "client_refused",
        "broken",
        "network",
    ];

    /// A word of a fixed set, for metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::Closed => "closed",
            Self::PlainHttp => "plain_http",
            Self::NotTls => "not_tls",
            Self::Version => "version",
            Self::NothingInCommon(_) => "nothing_in_common",
            Self::Protocol => "protocol",
            Self::CertificateMissing => "certificate_missing",
            Self::CertificateUnknown => "certificate_unknown",
            Self::CertificateDates => "certificate_dates",
            Self::CertificateRefused(_) => "certificate_refused",
            Self::ClientRefused(_) => "client_refused",
            Self::Broken(_) => "broken",
            Self::Network(_) => "network",
        }
    }

    pub(super) fn of_io(error: &io::Error) -> Self {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
        match error.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
            Some(error) => Self::of_tls(error),
            None if matches!(error.kind(), UnexpectedEof | ConnectionReset | ConnectionAborted | BrokenPipe) => {
                Self::Closed
            }
            None => Self::Network(error.to_string()),
        }
    }

    fn of_tls(error: &Error) -> Self {
        match error {
            Error::NoCertificatesPresented => Self::CertificateMissing,
            Error::NoApplicationProtocol => Self::Protocol,
            Error::InvalidMessage(InvalidMessage::InvalidContentType | InvalidMessage::UnknownProtocolVersion) => {
                Self::NotTls
            }
            Error::InvalidCertificate(error) => Self::of_certificate(error),
            Error::PeerIncompatible(error) => match error {
                PeerIncompatible::SupportedVersionsExtensionRequired
                | PeerIncompatible::Tls12NotOffered
                | PeerIncompatible::Tls12NotOfferedOrEnabled
                // Asked for before the version is looked at, and nobody who speaks one of ours leaves it out.
                | PeerIncompatible::SignatureAlgorithmsExtensionRequired => Self::Version,
                error => Self::NothingInCommon(format!("{error:?}")),
            },
            Error::AlertReceived(AlertDescription::ProtocolVersion) => Self::Version,
            Error::AlertReceived(alert) => Self::ClientRefused(format!("{alert:?}")),
            error => Self::Broken(error.to_string()),
        }
    }

    fn of_certificate(error: &CertificateError) -> Self {
        match error {
            CertificateError::UnknownIssuer => Self::CertificateUnknown,
            CertificateError::Expired
            | CertificateError::ExpiredContext { .. }
            | CertificateError::NotValidYet
            | CertificateError::NotValidYetContext { .. } => Self::CertificateDates,
            CertificateError::InvalidPurpose | CertificateError::InvalidPurposeContext { .. } => {
                Self::CertificateRefused("it is not for clients (extendedKeyUsage without clientAuth)".into())
            }
            // What the library that verifies says of its own.
            CertificateError::Other(error) => Self::CertificateRefused(match format!("{error:?}") {
                told if told.contains("UnsupportedCertVersion") => {
                    "it is of X.509 version 1, as openssl makes it without extensions; make one of version 3".into()
                }
                told if told.contains("CaUsedAsEndEntity") => {
                    "it is that of a CA, or signed by itself; make one for the client, signed by the CA".into()
                }
                told => told,
            }),
            error => Self::CertificateRefused(error.to_string()),
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timeout => f.write_str("the handshake was not over in time"),
            Self::Closed => f.write_str("the client left during the handshake"),
            Self::PlainHttp => f.write_str("the client spoke HTTP without TLS; it must use https://"),
            Self::NotTls => f.write_str("what came is not TLS"),
            Self::Version => f.write_str("the client speaks only versions of TLS that are not spoken here"),
            Self::NothingInCommon(what) => write!(f, "the client and we have no way in common: {what}"),
            Self::Protocol => f.write_str("the client asked by ALPN for protocols that are not spoken here"),
            Self::CertificateMissing => f.write_str("the client showed no certificate"),
            Self::CertificateUnknown => f.write_str("the client's certificate is of no CA in tls.client_ca"),
            Self::CertificateDates => f.write_str("the client's certificate has expired or is not valid yet"),
            Self::CertificateRefused(why) => write!(f, "the client's certificate is refused: {why}"),
            Self::ClientRefused(alert) => write!(f, "the client ended the handshake: {alert}"),
            Self::Broken(why) => write!(f, "the handshake broke: {why}"),
            Self::Network(why) => write!(f, "the network failed: {why}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_listed() {
        let text = String::new;
        let all = [
            Why::Timeout,
            Why::Closed,
            Why::PlainHttp,
            Why::NotTls,
            Why::Version,
            Why::NothingInCommon(text()),
            Why::Protocol,
            Why::CertificateMissing,
            Why::CertificateUnknown,
            Why::CertificateDates,
            Why::CertificateRefused(text()),
            Why::ClientRefused(text()),
            Why::Broken(text()),
            Why::Network(text()),
        ];
        assert_eq!(all.map(|why| why.kind()), Why::KINDS);
    }
}
