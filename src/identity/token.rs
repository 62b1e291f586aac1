//! A token (a signed JWT): its three parts, its header, its signature. What it claims is read in `claims`, and only
//! after the signature was found to be right. Nothing in a header says where keys are to be had: `jku`, `jwk`, `x5u`
//! and `x5c` are not read at all.

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::{Map, Value};

use super::{
    algorithm::Algorithm,
    json,
    jwks::Current,
    refused::{Refused, shown},
};

/// Size of a token.
pub const BYTES_MAX: usize = 16 << 10;
/// Size of a key's name.
const KID_BYTES_MAX: usize = 256;

/// A token that has the form of one.
pub(super) struct Token<'a> {
    /// Header and payload as they are signed, with the dot between.
    signed: &'a str,
    header: &'a str,
    payload: &'a str,
    signature: &'a str,
}

/// What a header says that is of use.
#[derive(Debug)]
pub(super) struct Header {
    pub(super) algorithm: Algorithm,
    pub(super) kid: Option<String>,
}

impl<'a> Token<'a> {
    pub(super) fn new(token: &'a str) -> Result<Self, Refused> {
        if token.len() > BYTES_MAX {
            return Err(Refused::TooLong { bytes: token.len() });
        }
        let malformed = |why: &str| Err(Refused::Malformed(why.into()));
        match token.bytes().filter(|byte| *byte == b'.').count() {
            2 => {}
            4 => return malformed("it is an encrypted token (five parts); only signed ones are taken"),
            0 => return malformed("it has no dots, and a signed token has three parts with dots between"),
            dots => return malformed(&format!("it has {} parts, not the three of a signed token", dots + 1)),
        }
        let parts = token.rsplit_once('.').and_then(|(signed, signature)| {
            let (header, payload) = signed.split_once('.')?;
            Some(Self { signed, header, payload, signature })
        });
        match parts {
            Some(parts) if parts.header.is_empty() => malformed("its header is empty"),
            Some(parts) if parts.payload.is_empty() => malformed("its payload is empty"),
            Some(parts) if parts.signature.is_empty() => malformed("its signature is empty: it is not signed"),
            Some(parts) => Ok(parts),
            None => malformed("it has no three parts"),
        }
    }

    pub(super) fn header(&self, accepted: &[Algorithm]) -> Result<Header, Refused> {
        let header = members("header", self.header)?;
        let algorithm = match header.get("alg") {
            Some(Value::String(name)) => Algorithm::from_name(name)
                .filter(|algorithm| accepted.contains(algorithm))
                .ok_or_else(|| Refused::Algorithm(shown(name)))?,
            _ => return Err(Refused::Algorithm("missing or no text".into())),
        };
        // Nothing that could be demanded is done here, so that whatever is demanded is too much.
        if let Some(demanded) = header.get("crit") {
            return Err(Refused::Critical(shown(&demanded.to_string())));
        }
        // `b64: false` (RFC 7797) changes what is signed, and compression and nesting what the payload is.
        for name in ["b64", "zip", "enc"] {
            if header.contains_key(name) {
                return Err(Refused::Malformed(format!("its header has {name}, which no access token needs")));
            }
        }
        if let Some(cty) = header.get("cty") {
            return Err(Refused::Malformed(format!(
                "its header has cty {}: a token within a token is not taken",
                shown(&cty.to_string())
            )));
        }
        let kid = match header.get("kid") {
            None => None,
            Some(Value::String(kid)) if kid.len() <= KID_BYTES_MAX => Some(kid.clone()),
            Some(Value::String(kid)) => {
                let bytes = kid.len();
                return Err(Refused::Malformed(format!("its kid has {bytes} bytes, more than {KID_BYTES_MAX}")));
            }
            Some(_) => return Err(Refused::Malformed("its kid is no text".into())),
        };
        Ok(Header { algorithm, kid })
    }

    pub(super) fn signature(&self, header: &Header, keys: &Current) -> Result<(), Refused> {
        let key = keys.find(header.kid.as_deref(), header.algorithm)?;
        if key.verifies(self.signed.as_bytes(), self.signature, header.algorithm) {
            Ok(())
        } else {
            Err(Refused::Signature)
        }
    }

    pub(super) fn claims(&self) -> Result<Map<String, Value>, Refused> {
        members("payload", self.payload)
    }
}

fn members(part: &str, text: &str) -> Result<Map<String, Value>, Refused> {
    let bytes = URL_SAFE_NO_PAD
        .decode(text)
        .map_err(|_| Refused::Malformed(format!("its {part} is not base64url without padding")))?;
    json::object(&bytes).map_err(|why| Refused::Malformed(format!("its {part} cannot be read: {why}")))
}
