//! TLS as the listener has it: handshakes with their log and their numbers, and the look at the certificate's files now
//! and then.

use std::{
    net::IpAddr,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use parking_lot::Mutex;
use tokio::net::TcpStream;

use super::Connections;
use crate::{
    identity::keys::Moment,
    telemetry::rarely::Rarely,
    tls::{Accepted, Acceptor, Config, Why},
};

/// Makes connections secure, and counts what fails.
#[derive(Debug)]
pub(crate) struct Secure {
    acceptor: Acceptor,
    reload_every: Option<Duration>,
    handshakes: AtomicU64,
    failed: [AtomicU64; Why::KINDS.len()],
    said: Rarely,
    looked: Mutex<Looked>,
}

#[derive(Debug)]
struct Looked {
    at: Instant,
    /// What was wrong then, so that it is said once.
    fault: Option<String>,
}

impl Secure {
    /// `None` where nothing is secure.
    ///
    /// # Errors
    /// What is wrong with the settings or with a file that they name.
    pub(crate) fn new(config: &Config, with_http2: bool) -> Result<Option<Self>, String> {
        if !config.is_on() {
            return Ok(None);
        }
        let alpn: &[&[u8]] = if with_http2 { &[b"h2", b"http/1.1"] } else { &[b"http/1.1"] };
        Ok(Some(Self {
            acceptor: Acceptor::new(config, alpn)?,
            reload_every: config.reload_every(),
            handshakes: AtomicU64::new(0),
            failed: std::array::from_fn(|_| AtomicU64::new(0)),
            said: Rarely::new(),
            looked: Mutex::new(Looked { at: Instant::now(), fault: None }),
        }))
    }

    /// Does the handshake. `None` when it failed, which has been logged and counted then.
    pub(super) async fn accept(&self, stream: TcpStream, peer: IpAddr) -> Option<Accepted> {
        match self.acceptor.accept(stream).await {
            Ok(accepted) => {
                self.handshakes.fetch_add(1, Relaxed);
                Some(accepted)
            }
            Err(why) => {
                let kind = Why::KINDS.iter().position(|kind| *kind == why.kind()).unwrap_or(Why::KINDS.len() - 1);
                self.failed[kind].fetch_add(1, Relaxed);
                if let Some(left_out) = self.said.may(Instant::now()) {
                    tracing::info!(%peer, kind = why.kind(), reason = %why, left_out, "a TLS handshake failed");
                }
                None
            }
        }
    }

    /// Handshakes that were done.
    pub(crate) fn handshakes(&self) -> u64 {
        self.handshakes.load(Relaxed)
    }

    /// Handshakes that failed, by why.
    pub(crate) fn failures(&self) -> impl Iterator<Item = (&'static str, u64)> {
        Why::KINDS.into_iter().zip(self.failed.iter().map(|count| count.load(Relaxed)))
    }

    /// When the certificate ends, as a date.
    pub(crate) fn until(&self) -> String {
        date(self.not_after_s())
    }

    /// When the certificate ends, in seconds since 1970.
    pub(crate) fn not_after_s(&self) -> u64 {
        self.acceptor.not_after().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
    }

    /// What is wrong with the certificate's dates.
    pub(crate) fn warnings(&self) -> Vec<String> {
        self.acceptor.warnings(SystemTime::now())
    }

    /// Whether this handshake was made with files that have changed since, and would not be made any more.
    pub(super) fn has_come_too_late(&self, accepted: &Accepted) -> bool {
        self.acceptor.is_outdated(accepted) && !self.acceptor.takes(accepted.chain())
    }

    /// To be called often: reads files that have changed, as often as the settings say, and says which.
    pub(crate) fn look_after(&self, now: Instant, connections: &Connections) -> Option<String> {
        let due = |at| self.reload_every.is_some_and(|every| now.saturating_duration_since(at) >= every);
        let mut looked = self.looked.lock();
        if !due(looked.at) {
            return None;
        }
        looked.at = now;
        self.reload(&mut looked, connections)
    }

    /// The same at once, since somebody asks for it.
    pub(crate) fn reload_now(&self, connections: &Connections) -> Option<String> {
        let mut looked = self.looked.lock();
        looked.at = Instant::now();
        looked.fault = None; // who asks is told again
        let read = self.reload(&mut looked, connections);
        if read.is_none() && looked.fault.is_none() {
            tracing::info!("no file of [tls] has changed");
        }
        read
    }

    fn reload(&self, looked: &mut Looked, connections: &Connections) -> Option<String> {
        match self.acceptor.reload_if_changed() {
            Ok(changed) => {
                looked.fault = None;
                if changed.is_empty() {
                    return None;
                }
                let files = changed.join(", ");
                let until = self.until();
                tracing::info!(
                    files,
                    until,
                    "files of [tls] were read again; connections from now on are made with them"
                );
                self.warnings().iter().for_each(|warning| tracing::warn!("{warning}"));
                // Whom another CA let in goes, unless the one that is trusted now would let them in, too.
                let ended = connections.end_those_without(|chain| self.acceptor.takes(chain));
                if ended > 0 {
                    tracing::info!(ended, "connections end whose client's certificate is of no CA that is trusted now");
                }
                Some(files)
            }
            Err(fault) => {
                if looked.fault.as_ref() != Some(&fault) {
                    tracing::error!(fault, "a file of [tls] cannot be read again; what was known of it stays in force");
                }
                looked.fault = Some(fault);
                None
            }
        }
    }
}

/// A time in seconds since 1970, as a date.
fn date(s: u64) -> String {
    // One that no calendar has is told as it is.
    let time = UNIX_EPOCH.checked_add(Duration::from_secs(s)).and_then(|time| Moment::from_time(time).ok());
    time.map_or_else(|| format!("{s} s"), |time| time.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_certificate_is_a_date() {
        assert_eq!(date(1_800_460_360), "2027-01-20T15:52:40Z");
        assert_eq!(date(u64::MAX), format!("{} s", u64::MAX));
    }
}
