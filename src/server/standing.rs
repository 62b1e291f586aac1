//! What a start says of who may call, how secure that is, and what is written down of it.

use crate::{config::Loaded, front::Front, listener::Secure};

const NONE: &str = "none";
const OFF: &str = "off";

/// One line, whatever is off named as such, so that what took effect can be read there.
pub(super) fn announce(loaded: &Loaded, front: &Front, secure: Option<&Secure>) {
    let tuning = &loaded.tuning;
    let auth = if front.doorkeeper.is_some() { "on" } else { OFF };
    let keys = front.doorkeeper.as_ref().map_or(0, |doorkeeper| doorkeeper.api_keys());
    let tls = secure.map_or_else(|| OFF.to_owned(), |secure| format!("on, certificate until {}", secure.until()));
    let rates = if front.limiter.is_some() { "on" } else { OFF };
    tracing::info!(
        auth,
        keys,
        issuer = or(&tuning.auth.issuer, NONE),
        tls,
        client_certificates =
            serde_json::to_value(tuning.tls.client_certificates).ok().as_ref().and_then(|w| w.as_str()),
        rates,
        audit = or(&tuning.audit.file, NONE),
        "who may call, how it is secured, and where it is recorded"
    );
}

fn or<'a>(text: &'a str, otherwise: &'a str) -> &'a str {
    if text.is_empty() { otherwise } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_off_is_named() {
        assert_eq!((or("", NONE), or("a", NONE)), (NONE, "a"));
    }
}
