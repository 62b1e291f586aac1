//! What a client's certificate says of who the client is. It has been verified before anybody looks at it here.

use std::{
    fmt::Write,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use sha2::{Digest, Sha256};
use x509_cert::{
    Certificate,
    der::{Decode, oid::db::rfc4519::COMMON_NAME},
    ext::pkix::{
        SubjectAltName,
        name::{DirectoryString, GeneralName},
    },
    name::Name,
};

use crate::identity::Identity;

/// As long as a name may be, in bytes: as long as that of an API key.
const NAME_BYTES_MAX: usize = 1024;

/// Who showed a certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Peer {
    /// Who it is to the CA: the first URI among the certificate's alternative names (as SPIFFE has it), or else the
    /// first mail address there, or else the common name (CN) of its subject. A common name that could be a URI or a mail
    /// address (it has a `:` or an `@`) is refused, since it would be the same caller as who has it as an alternative
    /// name, which CAs check and common names often are not.
    pub subject: String,
    /// The name of the CA that signed the certificate, as RFC 4514 writes it: `CN=Example CA,O=Example`. An
    /// intermediate CA, when one signed it; of several CAs that are trusted, with the one that it is under, since each of
    /// them names its intermediates as it likes: `CN=Teams under CN=Example CA,O=Example`.
    pub issuer: String,
    /// From then on the certificate is not valid.
    pub not_after: SystemTime,
    /// SHA-256 of the whole certificate in DER, as 64 hexadecimal digits: for the audit, and for tokens that are bound
    /// to a certificate.
    pub fingerprint_sha256: String,
}

impl Peer {
    /// Reads a certificate. `under` is the name of the CA that is trusted, where that has to be told.
    ///
    /// # Errors
    /// Why no caller can be made of it.
    pub fn read(der: &[u8], under: Option<&str>) -> Result<Self, String> {
        let certificate = parse(der)?;
        let certificate = certificate.tbs_certificate();
        let issuer = match under {
            None => certificate.issuer().to_string(),
            Some(authority) => format!("{} under {authority}", certificate.issuer()),
        };
        check_name("the CA's name", &issuer)?;
        let alternatives = certificate
            .get_extension::<SubjectAltName>()
            .map_err(|error| format!("its alternative names cannot be read: {error}"))?;
        let alternatives = alternatives.as_ref().map_or(&[][..], |(_, names)| &names.0);
        let subject = match alternative(alternatives) {
            Some(name) => name.to_owned(),
            None => common_name(certificate.subject())?,
        };
        check_name("its subject", &subject)?;
        Ok(Self {
            subject,
            issuer,
            not_after: UNIX_EPOCH + certificate.validity().not_after.to_unix_duration(),
            fingerprint_sha256: hex(&Sha256::digest(der)),
        })
    }

    /// Whether the certificate has ended. A connection and a resumed session may outlive it.
    pub fn has_ended(&self, now: SystemTime) -> bool {
        now >= self.not_after
    }

    /// The caller whose certificate it is: issuer and subject as they are here, without client, scopes and groups,
    /// good until the certificate ends. A renewed certificate makes the same caller.
    pub fn identity(&self) -> Identity {
        Identity::new(self.issuer.as_str().into(), &self.subject, None, [], [], Some(self.not_after))
    }
}

/// From when until when a certificate is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Validity {
    pub(super) not_before: Duration,
    pub(super) not_after: Duration,
}

impl Validity {
    pub(super) fn read(der: &[u8]) -> Result<Self, String> {
        let certificate = parse(der)?;
        let validity = certificate.tbs_certificate().validity();
        Ok(Self {
            not_before: validity.not_before.to_unix_duration(),
            not_after: validity.not_after.to_unix_duration(),
        })
    }
}

/// The name of whose certificate it is, as [`Peer::issuer`] has those of CAs.
pub(super) fn name(der: &[u8]) -> Result<String, String> {
    Ok(parse(der)?.tbs_certificate().subject().to_string())
}

fn parse(der: &[u8]) -> Result<Certificate, String> {
    Certificate::from_der(der).map_err(|error| format!("it cannot be read: {error}"))
}

fn alternative(names: &[GeneralName]) -> Option<&str> {
    let uri = names.iter().find_map(|name| match name {
        GeneralName::UniformResourceIdentifier(uri) => Some(uri.as_str()),
        _ => None,
    });
    uri.or_else(|| {
        names.iter().find_map(|name| match name {
            GeneralName::Rfc822Name(mail) => Some(mail.as_str()),
            _ => None,
        })
    })
}

fn common_name(subject: &Name) -> Result<String, String> {
    let mut names = subject.iter().filter(|attribute| attribute.oid == COMMON_NAME);
    let (Some(name), None) = (names.next(), names.next()) else {
        return Err(
            "it has no URI and no mail address among its alternative names, and not one common name (CN)".into()
        );
    };
    let name = DirectoryString::try_from(&name.value)
        .map_err(|error| format!("its common name (CN) cannot be read: {error}"))?;
    let name = name.value();
    if name.contains([':', '@']) {
        return Err(format!(
            "its common name {} looks like a URI or a mail address (it has a : or an @); let the CA write it as an \
             alternative name",
            name.escape_debug()
        ));
    }
    Ok(name.into_owned())
}

fn check_name(what: &str, name: &str) -> Result<(), String> {
    if name.is_empty() || name.len() > NAME_BYTES_MAX || name.chars().any(char::is_control) {
        return Err(format!("{what} is not 1 to {NAME_BYTES_MAX} bytes without control characters"));
    }
    Ok(())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut all, byte| {
        let _ = write!(all, "{byte:02x}");
        all
    })
}
