//! What a connection begins with: a handshake, or the first bytes of a request. From it comes what is spoken until its
//! end, so that no request pays for the choice.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{net::TcpStream, time::sleep};

use super::secure::Secure;
use crate::front::{
    connection::Connection,
    http1,
    http2::{self, PREFACE},
};

/// Between two looks at a preface that is not whole. Clients send it whole.
const LOOK_PAUSE: Duration = Duration::from_millis(10);

/// Serves a connection without TLS until it ends.
pub(super) async fn plain(conn: Arc<Connection>, stream: TcpStream) {
    let limits = &conn.front.limits;
    let http2 = &conn.front.http2.config;
    if http2.enabled && http2.prior_knowledge {
        let looking = begins_with_preface(&conn, &stream);
        match conn.opening(looking, limits.idle_timeout()).await {
            Ok(true) => return Box::pin(http2::run(conn, stream)).await,
            Ok(false) => {}
            Err(reason) => return ended(&conn, reason),
        }
    }
    http1::run(conn, stream).await;
}

/// Serves a connection with TLS until it ends.
pub(super) async fn secure(conn: Arc<Connection>, stream: TcpStream, secure: &Secure) {
    // The handshake has a time of its own, which is shorter.
    let limit = conn.front.limits.idle_timeout();
    let accepted = match conn.opening(secure.accept(stream, conn.peer), limit).await {
        Ok(Some(accepted)) => accepted,
        Ok(None) => return, // it was said why
        Err(reason) => return ended(&conn, reason),
    };
    if let Some(peer) = &accepted.peer {
        conn.certify(peer.identity(), accepted.chain());
        // From now on it is found when files change; before, it was not.
        if secure.has_come_too_late(&accepted) {
            conn.disown();
        }
    }
    if accepted.alpn() == Some(b"h2") {
        http2::run(conn, accepted.stream).await;
    } else {
        http1::run(conn, accepted.stream).await;
    }
}

fn ended(conn: &Connection, reason: &str) {
    tracing::debug!(peer = %conn.peer, reason, "a connection ended before its first request");
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
