//! An issuer, for tests: keys made on the spot, and tokens signed with them, right and wrong ones. Signs with
//! aws-lc-rs itself, so that what verifies is not tested by its own kind.

use std::sync::LazyLock;

use aws_lc_rs::{
    encoding::{AsDer, PublicKeyX509Der},
    hmac,
    rand::SystemRandom,
    rsa::KeySize,
    signature::{
        ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair,
        RSA_PKCS1_SHA256, RSA_PSS_SHA256, RsaKeyPair,
    },
};
use base64::{
    Engine,
    engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD},
};
use serde_json::{Value, json};

pub(super) struct Signer {
    kid: &'static str,
    key: Kind,
}

enum Kind {
    Rsa(RsaKeyPair),
    /// With P-256, or P-384.
    Ec(EcdsaKeyPair, bool),
    Ed(Ed25519KeyPair),
    Shared(Vec<u8>),
}

/// Making one takes a moment, so that all tests share it.
pub(super) static RSA: LazyLock<Signer> = LazyLock::new(|| Signer::rsa("rsa", KeySize::Rsa2048));

impl Signer {
    pub(super) fn rsa(kid: &'static str, size: KeySize) -> Self {
        Self { kid, key: Kind::Rsa(RsaKeyPair::generate(size).expect("a key")) }
    }

    pub(super) fn ec(kid: &'static str) -> Self {
        Self { kid, key: Kind::Ec(EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).expect("a key"), false) }
    }

    pub(super) fn ec_384(kid: &'static str) -> Self {
        Self { kid, key: Kind::Ec(EcdsaKeyPair::generate(&ECDSA_P384_SHA384_FIXED_SIGNING).expect("a key"), true) }
    }

    pub(super) fn ed(kid: &'static str) -> Self {
        Self { kid, key: Kind::Ed(Ed25519KeyPair::generate().expect("a key")) }
    }

    pub(super) fn shared(kid: &'static str, secret: &[u8]) -> Self {
        Self { kid, key: Kind::Shared(secret.into()) }
    }

    pub(super) fn alg(&self) -> &'static str {
        match self.key {
            Kind::Rsa(_) => "RS256",
            Kind::Ec(_, false) => "ES256",
            Kind::Ec(_, true) => "ES384",
            Kind::Ed(_) => "EdDSA",
            Kind::Shared(_) => "HS256",
        }
    }

    pub(super) fn jwk(&self) -> Value {
        let mut jwk = match &self.key {
            Kind::Rsa(key) => {
                let public = key.public_key();
                let part = |number: &[u8]| base64(number);
                json!({
                    "kty": "RSA",
                    "n": part(public.modulus().big_endian_without_leading_zero()),
                    "e": part(public.exponent().big_endian_without_leading_zero()),
                })
            }
            Kind::Ec(key, long) => {
                let (x, y) = key.public_key().as_ref()[1..].split_at(if *long { 48 } else { 32 });
                let curve = if *long { "P-384" } else { "P-256" };
                json!({ "kty": "EC", "crv": curve, "x": base64(x), "y": base64(y) })
            }
            Kind::Ed(key) => json!({ "kty": "OKP", "crv": "Ed25519", "x": base64(key.public_key().as_ref()) }),
            Kind::Shared(secret) => json!({ "kty": "oct", "k": base64(secret) }),
        };
        jwk["kid"] = self.kid.into();
        jwk["alg"] = self.alg().into();
        jwk["use"] = "sig".into();
        jwk
    }

    /// The forms in which an RSA public key goes round, each of which somebody has used as a secret.
    pub(super) fn public_forms(&self) -> Vec<Vec<u8>> {
        let Kind::Rsa(key) = &self.key else { panic!("only for RSA") };
        let spki: PublicKeyX509Der<'_> = key.public_key().as_der().expect("DER");
        let pem = |end: &str| {
            let lines: Vec<_> = STANDARD.encode(spki.as_ref()).into_bytes();
            let lines: Vec<_> = lines.chunks(64).map(|line| String::from_utf8_lossy(line).into_owned()).collect();
            format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----{end}", lines.join("\n")).into_bytes()
        };
        vec![
            spki.as_ref().to_vec(),
            key.public_key().as_ref().to_vec(),
            key.public_key().modulus().big_endian_without_leading_zero().to_vec(),
            pem(""),
            pem("\n"),
        ]
    }

    pub(super) fn header(&self) -> Value {
        json!({ "alg": self.alg(), "typ": "at+jwt", "kid": self.kid })
    }

    pub(super) fn token(&self, claims: &Value) -> String {
        self.sign(self.header().to_string(), claims.to_string())
    }

    /// Signs whatever it is given.
    pub(super) fn sign(&self, header: impl AsRef<[u8]>, payload: impl AsRef<[u8]>) -> String {
        let pss = serde_json::from_slice(header.as_ref()).is_ok_and(|header: Value| header["alg"] == "PS256");
        let signed = format!("{}.{}", base64(header.as_ref()), base64(payload.as_ref()));
        let random = SystemRandom::new();
        let message = signed.as_bytes();
        let signature = match &self.key {
            Kind::Rsa(key) => {
                let mut signature = vec![0; key.public_modulus_len()];
                let how = if pss { &RSA_PSS_SHA256 } else { &RSA_PKCS1_SHA256 };
                key.sign(how, &random, message, &mut signature).expect("a signature");
                signature
            }
            Kind::Ec(key, _) => key.sign(&random, message).expect("a signature").as_ref().to_vec(),
            Kind::Ed(key) => key.sign(message).as_ref().to_vec(),
            Kind::Shared(secret) => hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, secret), message).as_ref().to_vec(),
        };
        format!("{signed}.{}", base64(&signature))
    }
}

pub(super) fn base64(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// The key set that an issuer with these keys publishes.
pub(super) fn set(signers: &[&Signer]) -> Vec<u8> {
    json!({ "keys": signers.iter().map(|signer| signer.jwk()).collect::<Vec<_>>() }).to_string().into_bytes()
}
