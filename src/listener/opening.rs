//! What a connection begins with: a handshake, or the first bytes of a request. From it comes what is spoken until its
//! end, so that no request pays for the choice.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use tokio::{net::TcpStream, time::sleep};

use super::secure::Secure;
use crate::front::{
    connection::Connection,
    driven::Driven,
    http1::{self, Http1},
    http2::{self, PREFACE},
};

/// Between two looks at a preface that is not whole. Clients send it whole.
const LOOK_PAUSE: Duration = Duration::from_millis(10);

/// What a connection turned out to be, which drives it until it ends.
pub(super) enum Opened {
    /// Mostly; not boxed, so that a request finds all that is kept of its connection in one place.
    Cleartext(Driven<Http1<TcpStream>>),
    Other(Pin<Box<dyn Future<Output = ()> + Send>>),
}

impl Future for Opened {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        match self.get_mut() {
            Self::Cleartext(driven) => Pin::new(driven).poll(cx),
            Self::Other(other) => other.as_mut().poll(cx),
        }
    }
}

/// Finds out what is spoken on a connection. None when it has ended. Each way is boxed by itself: a connection keeps this
/// until its first bytes come, and the longer way needs much more room.
pub(super) type Opening = Pin<Box<dyn Future<Output = Option<Opened>> + Send>>;

pub(super) fn opening(conn: Arc<Connection>, stream: TcpStream, secure: Option<Arc<Secure>>) -> Opening {
    match secure {
        None => Box::pin(cleartext(conn, stream)),
        Some(secure) => Box::pin(encrypted(conn, stream, secure)),
    }
}

async fn cleartext(conn: Arc<Connection>, stream: TcpStream) -> Option<Opened> {
    let http2 = &conn.front.http2.config;
    if http2.enabled && http2.prior_knowledge {
        let looking = Box::pin(begins_with_preface(&conn, &stream));
        // When nothing has come in time, it ends as one that idles.
        if let Ok(true) = conn.opening(looking, conn.front.limits.idle_timeout()).await {
            return Some(Opened::Other(Box::pin(http2::drive(conn, stream))));
        }
    }
    Some(Opened::Cleartext(http1::drive(conn, stream)))
}

async fn encrypted(conn: Arc<Connection>, stream: TcpStream, secure: Arc<Secure>) -> Option<Opened> {
    // The handshake has a time of its own, which is shorter.
    let limit = conn.front.limits.idle_timeout();
    let accepting = Box::pin(secure.accept(stream, conn.peer));
    let accepted = match conn.opening(accepting, limit).await {
        Ok(accepted) => accepted?, // when it is not, it was said why
        Err(reason) => return ended(&conn, reason),
    };
    if let Some(peer) = &accepted.peer {
        conn.certify(peer.identity(), accepted.chain());
        // From now on it is found when files change; before, it was not.
        if secure.has_come_too_late(&accepted) {
            conn.disown();
        }
    }
    Some(Opened::Other(match accepted.alpn() == Some(b"h2") {
        true => Box::pin(http2::drive(conn, accepted.stream)),
        false => Box::pin(http1::drive(conn, accepted.stream)),
    }))
}

fn ended(conn: &Connection, reason: &str) -> Option<Opened> {
    tracing::debug!(peer = %conn.peer, reason, "a connection ended before its first request");
    None
}

/// Whether the client speaks HTTP/2 without having been asked. Looks at what has come and leaves it there.
async fn begins_with_preface(conn: &Connection, stream: &TcpStream) -> bool {
    let mut seen = [0; PREFACE.len()];
    let mut began: Option<Instant> = None;
    let mut pause = LOOK_PAUSE;
    loop {
        // An error is met again by who reads.
        let length = stream.peek(&mut seen).await.unwrap_or(0);
        if length == PREFACE.len() {
            return seen == *PREFACE;
        }
        let waited = began.get_or_insert_with(Instant::now).elapsed();
        if length == 0 || !PREFACE.starts_with(&seen[..length]) || waited >= conn.front.limits.header_timeout() {
            return false;
        }
        conn.note_read(true); // if it is a head of HTTP/1.1, this is when it began
        sleep(pause).await;
        pause *= 2; // who sends some bytes and then nothing costs little
    }
}
