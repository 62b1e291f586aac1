//! An issuer of tokens: signs them, has its keys in a file, and serves them for as long as it likes.

use std::{
    fs,
    io::{Read, Write},
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{SystemTime, UNIX_EPOCH},
};

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair},
};
use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD as BASE64};
use serde_json::{Value, json};

use crate::Result;

const ISSUER: &str = "https://issuer.example";
const AUDIENCE: &str = "https://mcp.example.com/mcp";
/// Of tokens: longer than any experiment.
const VALID_S: u64 = 6 * 60 * 60;

pub(crate) struct Issuer {
    pair: EcdsaKeyPair,
    kid: &'static str,
}

impl Issuer {
    pub(crate) fn new(kid: &'static str) -> Result<Self> {
        let pair = EcdsaKeyPair::generate(&ECDSA_P256_SHA256_FIXED_SIGNING).map_err(|_| "no key could be made")?;
        Ok(Self { pair, kid })
    }

    /// Its public keys.
    pub(crate) fn keys(&self) -> String {
        let point = self.pair.public_key().as_ref();
        let (x, y) = (BASE64.encode(&point[1..33]), BASE64.encode(&point[33..]));
        let key = json!({ "kty": "EC", "crv": "P-256", "kid": self.kid, "alg": "ES256", "use": "sig", "x": x, "y": y });
        json!({ "keys": [key] }).to_string()
    }

    /// Settings of a server that takes its tokens, besides where its keys are.
    pub(crate) fn settings() -> Vec<String> {
        vec![
            format!("auth.issuer={ISSUER}"),
            format!(r#"auth.audience=["{AUDIENCE}"]"#),
            r#"auth.algorithms=["ES256"]"#.into(),
        ]
    }

    /// The same with its keys in a file of this folder.
    pub(crate) fn settings_with_file(&self, folder: &Path) -> Result<Vec<String>> {
        let file = folder.join(format!("{}.json", self.kid));
        fs::write(&file, self.keys())?;
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
        Ok([Self::settings(), vec![format!("auth.jwks_file={}", file.display())]].concat())
    }

    /// A token of this subject.
    pub(crate) fn token(&self, subject: &str) -> Result<String> {
        let until = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() + VALID_S;
        let part = |value: &Value| BASE64.encode(value.to_string());
        let header = json!({ "alg": "ES256", "kid": self.kid });
        let claims = json!({ "iss": ISSUER, "sub": subject, "aud": AUDIENCE, "exp": until, "scope": "read" });
        let text = format!("{}.{}", part(&header), part(&claims));
        let signed =
            self.pair.sign(&SystemRandom::new(), text.as_bytes()).map_err(|_| "a token could not be signed")?;
        Ok(format!("{text}.{}", BASE64.encode(signed.as_ref())))
    }
}

/// Where keys are fetched. It ends with the process.
pub(crate) struct KeysServer {
    pub(crate) url: String,
    /// It takes connections and says nothing.
    pub(crate) hangs: Arc<AtomicBool>,
    /// How often it was asked.
    pub(crate) asked: Arc<AtomicU64>,
}

impl KeysServer {
    pub(crate) fn start(keys: String) -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let url = format!("http://{}/jwks", listener.local_addr()?);
        let (hangs, asked) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let (is_hanging, count) = (Arc::clone(&hangs), Arc::clone(&asked));
        thread::spawn(move || {
            let mut held = Vec::new();
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                count.fetch_add(1, Ordering::SeqCst);
                if is_hanging.load(Ordering::SeqCst) {
                    held.push(stream);
                    continue;
                }
                held.clear();
                let _ = stream.read(&mut [0; 4096]);
                let head = format!("HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", keys.len());
                let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(keys.as_bytes()));
            }
        });
        Ok(Self { url, hangs, asked })
    }
}
