//! What a start says of who may call, how secure that is, and what is written down of it.

use std::time::{Duration, UNIX_EPOCH};

use crate::{config::Loaded, front::Front, identity::keys::Moment, listener::Secure};

const NONE: &str = "none";
const OFF: &str = "off";

/// One line, whatever is off named as such, so that what took effect can be read there.
pub(super) fn announce(loaded: &Loaded, front: &Front, secure: Option<&Secure>) {
    let tuning = &loaded.tuning;
    let auth = if front.doorkeeper.is_some() { "on" } else { OFF };
    let keys = front.doorkeeper.as_ref().map_or(0, |doorkeeper| doorkeeper.api_keys());
    let tls = secure.map_or_else(|| OFF.to_owned(), |secure| until(secure.not_after_s()));
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

/// Until when the certificate is good, as a date.
fn until(not_after_s: u64) -> String {
    // A date that no calendar has is told as it is.
    let time = UNIX_EPOCH.checked_add(Duration::from_secs(not_after_s)).and_then(|time| Moment::from_time(time).ok());
    time.map_or_else(|| format!("on, certificate until {not_after_s} s"), |end| format!("on, certificate until {end}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_certificate_is_a_date() {
        assert_eq!(until(1_800_460_360), "on, certificate until 2027-01-20T15:52:40Z");
        assert_eq!(until(u64::MAX), format!("on, certificate until {} s", u64::MAX));
        assert_eq!((or("", NONE), or("a", NONE)), (NONE, "a"));
    }
}
