//! An answer on its way to a client that says itself how much of it it takes (the windows of HTTP/2): given out in small
//! pieces, so that what it does not take stays ours, and with a note of since when it takes nothing.

use std::{
    convert::Infallible,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    task::{Context, Poll},
};

use hyper::body::{Buf, Frame, SizeHint};

use crate::front::{
    body::{Body, Pieces},
    connection::{Busy, Connection, NEVER},
    http2::Open,
};

/// What is given out at once. So much of each answer may lie with hyper, untaken.
const PIECE_BYTES: usize = 16 * 1024;

/// Since when the client has had something to take and has not: a note of the connection, or `NEVER`.
#[derive(Debug, Default)]
pub(super) struct Untaken(AtomicU64);

impl Untaken {
    pub(super) fn since(&self) -> Option<u64> {
        Some(self.0.load(Relaxed)).filter(|since| *since != NEVER)
    }
}

/// The body of an answer.
pub(super) struct Paced {
    body: Body,
    rest: Option<Pieces>,
    conn: Arc<Connection>,
    untaken: Arc<Untaken>,
    /// The connection is busy until the body is gone, and the request is one of those that there may be.
    _busy: (Busy, Option<Open>),
}

impl Paced {
    pub(super) fn new(body: Body, conn: &Arc<Connection>, untaken: Arc<Untaken>, busy: (Busy, Option<Open>)) -> Self {
        untaken.0.store(conn.note(), Relaxed);
        Self { body, rest: None, conn: Arc::clone(conn), untaken, _busy: busy }
    }
}

impl Drop for Paced {
    fn drop(&mut self) {
        self.untaken.0.store(NEVER, Relaxed);
    }
}

impl hyper::body::Body for Paced {
    type Data = Pieces;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Pieces>, Infallible>>> {
        let next = match self.rest.take() {
            Some(rest) => Some(rest),
            None => match Pin::new(&mut self.body).poll_frame(cx) {
                Poll::Ready(frame) => frame.and_then(Result::ok).and_then(|frame| frame.into_data().ok()),
                Poll::Pending => {
                    self.untaken.0.store(NEVER, Relaxed); // it is we who have nothing
                    return Poll::Pending;
                }
            },
        };
        self.untaken.0.store(self.conn.note(), Relaxed);
        Poll::Ready(next.map(|mut pieces| {
            if pieces.remaining() > PIECE_BYTES {
                let piece = pieces.split_to(PIECE_BYTES);
                self.rest = Some(pieces);
                return Ok(Frame::data(piece));
            }
            Ok(Frame::data(pieces))
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match &self.rest {
            None => self.body.size_hint(),
            Some(_) => SizeHint::default(), // asked for once, before the first piece
        }
    }
}
