//! `[tls]`: whether connections are secure, and who must show a certificate. The settings and how they hang together;
//! the files that they name are read in `load`.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The most time that a handshake may be given: it holds a connection, and nobody is known yet.
const HANDSHAKE_TIMEOUT_MS_MAX: u64 = 60_000;

/// `[tls]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// File with our certificate and those that lead to its CA, in PEM; empty serves without TLS.
    pub certificate: String,
    /// File with the certificate's private key, in PEM.
    pub key: String,
    /// File with the CAs that sign clients' certificates, in PEM; empty asks for none.
    pub client_ca: String,
    /// Whether clients show a certificate.
    pub client_certificates: ClientCertificates,
    /// The oldest version of TLS that is spoken.
    pub versions_min: Version,
    /// Time between two looks at whether the files have changed, in seconds; 0 looks only when told.
    pub reload_s: u64,
    /// Time for a whole handshake, in milliseconds.
    pub handshake_timeout_ms: u64,
}

/// Whether clients show a certificate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ClientCertificates {
    /// They are not asked for one.
    #[default]
    Off,
    /// Who has one shows it. A wrong one is refused.
    Optional,
    /// Nobody gets in without.
    Required,
}

/// A version of TLS.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Version {
    /// TLS 1.2 (RFC 5246), with forward secrecy and authenticated ciphers only.
    #[default]
    #[serde(rename = "1.2")]
    Tls12,
    /// TLS 1.3 (RFC 8446).
    #[serde(rename = "1.3")]
    Tls13,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            certificate: String::new(),
            key: String::new(),
            client_ca: String::new(),
            client_certificates: ClientCertificates::Off,
            versions_min: Version::Tls12,
            reload_s: 30,
            handshake_timeout_ms: 5000,
        }
    }
}

impl Config {
    /// Whether connections are secure.
    pub fn is_on(&self) -> bool {
        !self.certificate.is_empty()
    }

    /// Whether the settings agree with each other. Reads no file.
    ///
    /// # Errors
    /// The first that does not, and what would be right.
    pub fn check(&self) -> Result<(), String> {
        let asks = self.client_certificates != ClientCertificates::Off;
        if !self.is_on() {
            let unused = [
                ("key", !self.key.is_empty()),
                ("client_ca", !self.client_ca.is_empty()),
                ("client_certificates", asks),
            ];
            return match unused.iter().find(|(_, set)| *set) {
                Some((name, _)) => Err(format!(
                    "tls.{name} is set, but tls.certificate is not, so that there is no TLS; set tls.certificate"
                )),
                None => Ok(()),
            };
        }
        if self.key.is_empty() {
            return Err("tls.certificate is set without its key; set tls.key to the file with the private key".into());
        }
        if asks && self.client_ca.is_empty() {
            return Err("tls.client_certificates asks for certificates, but no CA is trusted to sign them; set \
                        tls.client_ca"
                .into());
        }
        if !asks && !self.client_ca.is_empty() {
            return Err("tls.client_ca is set, but nobody is asked for a certificate; set tls.client_certificates to \
                        \"optional\" or \"required\""
                .into());
        }
        if self.handshake_timeout_ms == 0 || self.handshake_timeout_ms > HANDSHAKE_TIMEOUT_MS_MAX {
            return Err(format!(
                "tls.handshake_timeout_ms is {}; write 1 to {HANDSHAKE_TIMEOUT_MS_MAX}",
                self.handshake_timeout_ms
            ));
        }
        Ok(())
    }

    /// What is allowed and yet weak, a sentence for each. Looks at the key's file.
    pub fn weak(&self) -> Vec<String> {
        use std::os::unix::fs::MetadataExt;
        let mode = if self.is_on() { std::fs::metadata(&self.key).map_or(0, |found| found.mode()) } else { 0 };
        if mode & 0o077 == 0 {
            return Vec::new();
        }
        let (key, mode) = (&self.key, mode & 0o777);
        vec![format!(
            "tls.key: others than its owner can read {key} (mode {mode:03o}), and who can is able to pass for this \
             server; chmod 600, unless its group is meant"
        )]
    }

    /// How often to look whether the files have changed; none says only when told.
    pub fn reload_every(&self) -> Option<Duration> {
        (self.is_on() && self.reload_s > 0).then(|| Duration::from_secs(self.reload_s))
    }

    pub(super) fn handshake_timeout(&self) -> Duration {
        Duration::from_millis(self.handshake_timeout_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn on() -> Config {
        Config { certificate: "us.pem".into(), key: "us.key".into(), ..Config::default() }
    }

    #[test]
    fn defaults_are_off_and_right() {
        assert!(!Config::default().is_on());
        assert_eq!(Config::default().check(), Ok(()));
        assert_eq!(Config::default().reload_every(), None);
        assert!(on().is_on());
        assert_eq!(on().check(), Ok(()));
        assert_eq!(on().reload_every(), Some(Duration::from_secs(30)));
        assert_eq!(Config { reload_s: 0, ..on() }.reload_every(), None);
    }

    #[test]
    fn what_does_not_agree_is_named() {
        type Change = fn(&mut Config);
        let wrong: [(Change, &str); 8] = [
            (|c| c.key.clear(), "tls.key"),
            (|c| c.certificate.clear(), "tls.key is set"),
            (|c| *c = Config { client_ca: "ca.pem".into(), ..Config::default() }, "tls.client_ca is set"),
            (
                |c| *c = Config { client_certificates: ClientCertificates::Required, ..Config::default() },
                "tls.client_certificates is set",
            ),
            (|c| c.client_certificates = ClientCertificates::Optional, "set tls.client_ca"),
            (|c| c.client_ca = "ca.pem".into(), "set tls.client_certificates"),
            (|c| c.handshake_timeout_ms = 0, "tls.handshake_timeout_ms"),
            (|c| c.handshake_timeout_ms = 60_001, "tls.handshake_timeout_ms"),
        ];
        for (change, expected) in wrong {
            let mut config = on();
            change(&mut config);
            let error = config.check().expect_err(expected);
            assert!(error.contains(expected), "{error:?} says nothing of {expected:?}");
        }
    }

    #[test]
    fn words_are_read_as_they_are_documented() {
        let read: Config =
            toml::from_str("client_certificates = \"required\"\nversions_min = \"1.3\"").expect("right words");
        assert_eq!((read.client_certificates, read.versions_min), (ClientCertificates::Required, Version::Tls13));
        for wrong in ["client_certificates = \"maybe\"", "versions_min = \"1.1\"", "certificat = \"\""] {
            assert!(toml::from_str::<Config>(wrong).is_err(), "{wrong}");
        }
    }
}
