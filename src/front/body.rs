//! The body of a response: nothing, one message in up to three pieces that are written together, or a stream of
//! events.

use std::{
    convert::Infallible,
    io::IoSlice,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::{Buf, Bytes};
use hyper::body::{Frame, SizeHint};

use crate::{
    front::{connection::Busy, feed::FeedStream, stream::CallStream},
    mcp::encode::Payload,
};

/// The body of a response.
pub(crate) struct Body {
    kind: Kind,
    /// The connection is busy until the body is gone.
    busy: Option<Busy>,
}

enum Kind {
    Once(Option<Pieces>),
    Events(Box<CallStream>),
    Feed(Box<FeedStream>),
}

impl Body {
    pub(crate) fn empty() -> Self {
        Self { kind: Kind::Once(None), busy: None }
    }

    pub(crate) fn events(stream: CallStream) -> Self {
        Self { kind: Kind::Events(Box::new(stream)), busy: None }
    }

    pub(crate) fn feed(stream: FeedStream) -> Self {
        Self { kind: Kind::Feed(Box::new(stream)), busy: None }
    }

    /// Whether it comes piece by piece, for as long as that takes.
    pub(crate) fn is_stream(&self) -> bool {
        !matches!(self.kind, Kind::Once(_))
    }

    /// What is there of it, which is all unless it is a stream.
    pub(crate) fn into_pieces(self) -> Pieces {
        match self.kind {
            Kind::Once(pieces) => pieces.unwrap_or_default(),
            Kind::Events(_) | Kind::Feed(_) => Pieces::default(),
        }
    }

    /// Keeps the connection counted as busy for as long as a stream is open. A message that is there at once needs no
    /// keeping: what is not written yet is watched as such.
    pub(crate) fn hold(&mut self, busy: Busy) {
        if matches!(self.kind, Kind::Events(_) | Kind::Feed(_)) {
            self.busy = Some(busy);
        }
    }
}

impl From<Payload> for Body {
    fn from(payload: Payload) -> Self {
        Self { kind: Kind::Once((payload.len() > 0).then(|| Pieces::new(payload))), busy: None }
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Payload { parts: [bytes, Bytes::new(), Bytes::new()] }.into()
    }
}

impl hyper::body::Body for Body {
    type Data = Pieces;
    type Error = Infallible;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Pieces>, Infallible>>> {
        let pieces = match &mut self.kind {
            Kind::Once(pieces) => Poll::Ready(pieces.take()),
            Kind::Events(stream) => stream.poll_event(cx).map(|event| event.map(Pieces::from)),
            Kind::Feed(stream) => stream.poll_event(cx).map(|event| event.map(Pieces::from)),
        };
        pieces.map(|pieces| pieces.map(|p| Ok(Frame::data(p))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self.kind, Kind::Once(None))
    }

    fn size_hint(&self) -> SizeHint {
        match &self.kind {
            Kind::Once(pieces) => SizeHint::with_exact(pieces.as_ref().map_or(0, |p| p.remaining() as u64)),
            Kind::Events(_) | Kind::Feed(_) => SizeHint::default(),
        }
    }
}

/// Bytes in a few pieces, written with one gathering call.
#[derive(Debug, Default)]
pub(crate) struct Pieces {
    parts: [Bytes; 3],
}

impl Pieces {
    fn new(payload: Payload) -> Self {
        let mut pieces = Self { parts: payload.parts };
        pieces.settle();
        pieces
    }

    /// Moves pieces that are empty to the end, so that the first is where reading goes on.
    fn settle(&mut self) {
        for _ in 0..self.parts.len() - 1 {
            if !self.parts[0].is_empty() {
                break;
            }
            self.parts.rotate_left(1);
        }
    }
}

impl Pieces {
    /// The first `n` bytes, which are taken out; there are as many.
    pub(crate) fn split_to(&mut self, mut n: usize) -> Self {
        let mut front = Self { parts: [Bytes::new(), Bytes::new(), Bytes::new()] };
        for (into, from) in front.parts.iter_mut().zip(&mut self.parts) {
            let here = n.min(from.len());
            *into = from.split_to(here);
            n -= here;
        }
        self.settle();
        front
    }
}

impl From<Bytes> for Pieces {
    fn from(bytes: Bytes) -> Self {
        Self { parts: [bytes, Bytes::new(), Bytes::new()] }
    }
}

impl Buf for Pieces {
    fn remaining(&self) -> usize {
        self.parts.iter().map(Bytes::len).sum()
    }

    fn chunk(&self) -> &[u8] {
        &self.parts[0]
    }

    fn advance(&mut self, mut n: usize) {
        for part in &mut self.parts {
            let here = n.min(part.len());
            part.advance(here);
            n -= here;
        }
        self.settle();
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let mut used = 0;
        for (slice, part) in slices.iter_mut().zip(self.parts.iter().filter(|p| !p.is_empty())) {
            *slice = IoSlice::new(part);
            used += 1;
        }
        used
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_cut_anywhere() {
        let whole = Pieces { parts: ["ab", "c", "def"].map(|p| Bytes::from_static(p.as_bytes())) };
        for at in 0..=6 {
            let mut back = Pieces { parts: whole.parts.clone() };
            let front = back.split_to(at);
            assert_eq!((front.remaining(), back.remaining()), (at, 6 - at));
            let read = [front, back].map(|mut pieces| pieces.copy_to_bytes(pieces.remaining())).concat();
            assert_eq!(read, b"abcdef", "{at}");
        }
    }

    #[test]
    fn pieces_read_as_one() {
        for parts in [["ab", "c", "def"], ["", "", "x"], ["a", "", "b"], ["", "b", ""], ["", "", ""]] {
            let payload = Payload { parts: parts.map(|p| Bytes::from_static(p.as_bytes())) };
            let whole = parts.concat();
            for step in 1..=whole.len().max(1) {
                let mut pieces = Pieces::new(payload.clone());
                let mut read = String::new();
                while pieces.has_remaining() {
                    let mut slices = [IoSlice::new(b""); 8];
                    let used = pieces.chunks_vectored(&mut slices);
                    let gathered: usize = slices[..used].iter().map(|s| s.len()).sum();
                    assert_eq!(gathered, pieces.remaining());
                    let n = step.min(pieces.chunk().len());
                    assert!(n > 0, "a piece that is empty must not be in front");
                    read.push_str(std::str::from_utf8(&pieces.chunk()[..n]).expect("ASCII"));
                    pieces.advance(n);
                }
                assert_eq!(read, whole);
            }
        }
    }
}
