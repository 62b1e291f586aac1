//! A request as it came, in one of two ways: read by hyper, or read here as it stands on the wire (see `http1`). What
//! answers it asks here and does not see which. Its body is here too, as far as it has come and as the rest comes.

use std::{
    fmt,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use bytes::{Bytes, BytesMut};
use hyper::{
    Method, Request, Version,
    body::{Body, Frame, Incoming, SizeHint},
    http::request::Parts,
};
use parking_lot::Mutex;

use crate::front::{
    headers::{Headers, Spot, Spots},
    http1::wire,
};

/// What has come before the body, with a short body at once.
pub(crate) enum Came {
    ByHyper(Box<Parts>),
    Plain(Plain),
}

/// A plain request as it stood on the wire.
pub(crate) struct Plain {
    /// The head, and after it what had come of the body.
    pub(super) bytes: Vec<u8>,
    pub(super) head_bytes: usize,
    pub(super) method: Method,
    pub(super) path: Spot,
    pub(super) spots: Spots,
    /// Whether all of the body is there.
    pub(super) is_whole: bool,
}

impl Plain {
    fn head(&self) -> &[u8] {
        &self.bytes[..self.head_bytes]
    }
}

impl Came {
    pub(super) fn headers(&self) -> Headers<'_> {
        match self {
            Self::ByHyper(head) => Headers::scan(&head.headers),
            Self::Plain(plain) => Headers::at(plain.head(), &plain.spots),
        }
    }

    pub(super) fn method(&self) -> &Method {
        match self {
            Self::ByHyper(head) => &head.method,
            Self::Plain(plain) => &plain.method,
        }
    }

    pub(super) fn version(&self) -> Version {
        match self {
            Self::ByHyper(head) => head.version,
            Self::Plain(_) => Version::HTTP_11,
        }
    }

    pub(super) fn path(&self) -> &str {
        match self {
            Self::ByHyper(head) => head.uri.path(),
            Self::Plain(plain) => std::str::from_utf8(plain.path.within(plain.head())).unwrap_or_default(),
        }
    }

    /// The host that the target names, when it does.
    pub(super) fn authority(&self) -> Option<&str> {
        match self {
            Self::ByHyper(head) => head.uri.authority().map(|authority| authority.as_str()),
            Self::Plain(_) => None,
        }
    }

    /// How long the target is, without a host.
    pub(super) fn target_bytes(&self) -> usize {
        match self {
            Self::ByHyper(head) => head.uri.path_and_query().map_or(0, |target| target.as_str().len()),
            Self::Plain(plain) => plain.path.within(plain.head()).len(),
        }
    }

    /// The body, when it has come with the head.
    pub(super) fn body(&self) -> Option<&[u8]> {
        match self {
            Self::Plain(plain) if plain.is_whole => Some(&plain.bytes[plain.head_bytes..]),
            _ => None,
        }
    }

    /// The head as hosted handlers are given it.
    pub(super) fn into_parts(self) -> Parts {
        match self {
            Self::ByHyper(head) => *head,
            Self::Plain(plain) => {
                let mut request = Request::builder().method(plain.method.clone());
                request = request.uri(plain.path.within(plain.head()));
                wire::each_line(plain.head(), |line| {
                    let now = std::mem::take(&mut request);
                    request = now.header(line.name, line.value);
                });
                // It was parsed, so that nothing of it can be wrong; an empty head would be seen as such.
                request.body(()).unwrap_or_default().into_parts().0
            }
        }
    }
}

/// The body, as what is not there comes.
pub(crate) enum Inflow {
    ByHyper(Incoming),
    /// It came with the head: so many bytes.
    Whole(usize),
    Fed(Arc<Fed>),
}

/// Why a body broke off.
pub(crate) enum Broken {
    AtHyper(hyper::Error),
    /// The client has ended what it sends.
    Ended,
}

impl fmt::Display for Broken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::AtHyper(error) => error.fmt(f),
            Self::Ended => f.write_str("the client has ended it"),
        }
    }
}

impl Body for Inflow {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        match self.get_mut() {
            Self::ByHyper(incoming) => {
                Pin::new(incoming).poll_frame(cx).map(|frame| frame.map(|frame| frame.map_err(Broken::AtHyper)))
            }
            Self::Whole(_) => Poll::Ready(None),
            Self::Fed(fed) => fed.poll().map(|piece| piece.map(|piece| piece.map(Frame::data))),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::ByHyper(incoming) => incoming.size_hint(),
            Self::Whole(bytes) => SizeHint::with_exact(*bytes as u64),
            Self::Fed(fed) => SizeHint::with_exact(fed.said),
        }
    }
}

/// So much of a body waits for being read; what comes beyond it stays in the kernel.
const FED_BYTES_MAX: usize = 64 * 1024;

/// A body of which some is still to come. Who reads it and who feeds it are one task, and the reader is polled after each
/// feeding, so that nobody needs to be woken: it must not be read in a task of its own.
pub(crate) struct Fed {
    /// What the head said, in bytes.
    said: u64,
    state: Mutex<FedState>,
}

#[derive(Default)]
struct FedState {
    waiting: BytesMut,
    missing: u64,
    is_broken: bool,
    /// Nobody reads it.
    is_unread: bool,
}

impl Fed {
    /// Of a body of `said` bytes, the first of which are in `first`.
    pub(super) fn new(said: u64, first: &[u8]) -> Self {
        let mut state = FedState { missing: said, ..FedState::default() };
        state.take(first);
        Self { said, state: Mutex::new(state) }
    }

    /// Takes what belongs to the body off the front of what has come, and says how much that was.
    pub(super) fn feed(&self, came: &[u8]) -> usize {
        self.state.lock().take(came)
    }

    /// No more of it comes.
    pub(super) fn break_off(&self) {
        self.state.lock().is_broken = true;
    }

    pub(super) fn is_broken(&self) -> bool {
        self.state.lock().is_broken
    }

    /// Whether more of it is wanted now.
    pub(super) fn wants(&self) -> bool {
        let state = self.state.lock();
        state.missing > 0 && !state.is_broken && state.waiting.len() < FED_BYTES_MAX
    }

    /// How much of it has not come.
    pub(super) fn missing(&self) -> u64 {
        self.state.lock().missing
    }

    /// What comes from now on is thrown away.
    pub(super) fn is_not_read(&self) {
        let mut state = self.state.lock();
        (state.waiting, state.is_unread) = (BytesMut::new(), true);
    }

    fn poll(&self) -> Poll<Option<Result<Bytes, Broken>>> {
        let mut state = self.state.lock();
        if !state.waiting.is_empty() {
            return Poll::Ready(Some(Ok(state.waiting.split().freeze())));
        }
        match (state.missing, state.is_broken) {
            (0, _) => Poll::Ready(None),
            (_, true) => Poll::Ready(Some(Err(Broken::Ended))),
            (_, false) => Poll::Pending,
        }
    }
}

impl FedState {
    fn take(&mut self, came: &[u8]) -> usize {
        let own = came.len().min(usize::try_from(self.missing).unwrap_or(usize::MAX));
        self.missing -= own as u64;
        if !self.is_unread {
            self.waiting.extend_from_slice(&came[..own]);
        }
        own
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(fed: &Fed) -> Option<Vec<u8>> {
        match fed.poll() {
            Poll::Ready(Some(Ok(piece))) => Some(piece.to_vec()),
            Poll::Ready(None) => Some(Vec::new()),
            Poll::Ready(Some(Err(_))) | Poll::Pending => None,
        }
    }

    #[test]
    fn a_body_is_fed_to_its_end_and_no_further() {
        let fed = Fed::new(6, b"ab");
        assert_eq!((piece(&fed), piece(&fed)), (Some(b"ab".to_vec()), None));
        assert_eq!((fed.feed(b"c"), fed.feed(b"d"), fed.missing()), (1, 1, 2));
        assert_eq!(fed.feed(b"efnext"), 2, "what comes after it is not of it");
        assert_eq!((fed.missing(), fed.wants()), (0, false));
        assert_eq!((piece(&fed), piece(&fed)), (Some(b"cdef".to_vec()), Some(Vec::new())));
    }

    #[test]
    fn only_so_much_of_a_body_waits() {
        let fed = Fed::new(10 * FED_BYTES_MAX as u64, b"");
        assert!(fed.wants());
        fed.feed(&vec![0; FED_BYTES_MAX]);
        assert!(!fed.wants());
        assert_eq!(piece(&fed).map(|piece| piece.len()), Some(FED_BYTES_MAX));
        assert!(fed.wants());
        fed.is_not_read();
        fed.feed(&vec![0; 2 * FED_BYTES_MAX]);
        assert!(fed.wants() && piece(&fed).is_none(), "it is thrown away");
    }

    #[test]
    fn a_body_that_ends_early_is_an_error_after_what_came() {
        let fed = Fed::new(3, b"a");
        fed.break_off();
        assert_eq!((piece(&fed), fed.wants()), (Some(b"a".to_vec()), false));
        assert!(matches!(fed.poll(), Poll::Ready(Some(Err(Broken::Ended)))));
    }
}
