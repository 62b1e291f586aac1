//! TLS as the listener has it: handshakes with their log and their numbers, and the look at the certificate's files now
//! and then.

use std::{
    net::IpAddr,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::{Duration, Instant, SystemTime},
};

use parking_lot::Mutex;
use tokio::net::TcpStream;

use crate::{
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

    /// When the certificate ends, in seconds since 1970.
    pub(crate) fn not_after_s(&self) -> u64 {
        self.acceptor.not_after().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
    }

    /// What is wrong with the certificate's dates.
    pub(crate) fn warnings(&self) -> Vec<String> {
        self.acceptor.warnings(SystemTime::now())
    }

    /// To be called often: reads files that have changed, as often as the settings say.
    pub(crate) fn look_after(&self, now: Instant) {
        let due = |at| self.reload_every.is_some_and(|every| now.saturating_duration_since(at) >= every);
        let mut looked = self.looked.lock();
        if due(looked.at) {
            looked.at = now;
            self.reload(&mut looked);
        }
    }

    /// Reads files that have changed, since somebody asks for it.
    pub(crate) fn reload_now(&self) {
        let mut looked = self.looked.lock();
        looked.at = Instant::now();
        looked.fault = None; // who asks is told again
        if !self.reload(&mut looked) && looked.fault.is_none() {
            tracing::info!("no file of [tls] has changed");
        }
    }

    fn reload(&self, looked: &mut Looked) -> bool {
        match self.acceptor.reload_if_changed() {
            Ok(changed) => {
                looked.fault = None;
                if changed {
                    let not_after_s = self.not_after_s();
                    tracing::info!(not_after_s, "the certificate was read again; connections from now on are shown it");
                    self.warnings().iter().for_each(|warning| tracing::warn!("{warning}"));
                }
                changed
            }
            Err(fault) => {
                if looked.fault.as_ref() != Some(&fault) {
                    tracing::error!(fault, "a file of [tls] cannot be read again; what was known of it stays in force");
                }
                looked.fault = Some(fault);
                false
            }
        }
    }
}
