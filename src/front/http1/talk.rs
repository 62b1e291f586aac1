//! What is done on a connection whose requests are plain: each is read, answered and written here, with no buffer kept
//! between them. What a client does while it waits is seen too: when it leaves, what it waited for is dropped. What does
//! not end at once goes on in `apart`.

use std::{
    future::Future,
    io, mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use hyper::{Response, header};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{
    sending::{self, Unsent},
    wire::{self, Look},
};
use crate::front::{
    body::Body,
    came::{Came, Fed, Inflow, Plain},
    connection::Connection,
    serve,
    unread::UNREAD_BYTES_MAX,
    watched::{READ_BYTES, note_write, poll_look},
};

/// A head that comes in more pieces than this is hyper's, and so is one that is not whole after as much as is read at once.
const HEAD_PIECES_MAX: usize = 4;
/// So much of the requests after the present one is read ahead. With more in the kernel, a client's leaving goes unseen.
const AHEAD_BYTES_MAX: usize = 16 * 1024;

/// What is said on a connection, by both sides.
pub(super) struct Talk<S> {
    pub(super) stream: S,
    pub(super) conn: Arc<Connection>,
    /// What has come after the present request.
    pub(super) ahead: Vec<u8>,
}

/// It ends.
pub(super) struct Over;

/// A request that is being answered.
pub(super) type Answering = Pin<Box<dyn Future<Output = Response<Body>> + Send>>;

/// What comes next.
pub(super) enum Next {
    /// A plain request, whose body may still be on its way.
    Plain(Answering, Option<Arc<Fed>>),
    Other(Vec<u8>),
}

/// How far an answer got at once. What is rare is boxed, as it is large and handed on.
pub(super) enum Begun {
    Sent,
    Partly(Box<Unsent>),
    Stream(Box<Response<Body>>),
}

impl<S: AsyncRead + AsyncWrite + Unpin> Talk<S> {
    pub(super) fn new(conn: Arc<Connection>, stream: S) -> Self {
        Self { stream, conn, ahead: Vec::new() }
    }

    /// Waits for the next request, of which so many pieces have come.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>, pieces: &mut usize) -> Poll<Result<Next, Over>> {
        loop {
            if *pieces == 0 && !self.ahead.is_empty() {
                self.conn.note_read(true); // it came behind the one before
            } else {
                ready!(self.poll_head(cx))?;
            }
            *pieces += 1;
            let front = &self.conn.front;
            match wire::look(mem::take(&mut self.ahead), &front.path, front.limits.headers_max) {
                Look::Plain { plain, body_bytes, after } => {
                    self.ahead = after;
                    return Poll::Ready(Ok(self.begin(plain, body_bytes)));
                }
                Look::Part(bytes) if *pieces < HEAD_PIECES_MAX && bytes.len() < READ_BYTES => self.ahead = bytes,
                Look::Part(bytes) | Look::Other(bytes) => return Poll::Ready(Ok(Next::Other(bytes))),
            }
        }
    }

    fn begin(&self, plain: Plain, body_bytes: usize) -> Next {
        let (inflow, fed) = if plain.is_whole {
            (Inflow::Whole(body_bytes), None)
        } else {
            let fed = Arc::new(Fed::new(body_bytes as u64, &plain.bytes[plain.head_bytes..]));
            (Inflow::Fed(Arc::clone(&fed)), Some(fed))
        };
        Next::Plain(Box::pin(serve(Arc::clone(&self.conn), Came::Plain(plain), inflow)), fed)
    }

    /// Lets a request be answered while the client is looked after, and begins to send the answer.
    pub(super) fn poll_answer(
        &mut self,
        cx: &mut Context<'_>,
        answering: &mut Answering,
        fed: Option<&Fed>,
    ) -> Poll<Result<(Begun, bool), Over>> {
        loop {
            if let Poll::Ready(response) = answering.as_mut().poll(cx) {
                return Poll::Ready(self.begin_answer(cx, response, fed));
            }
            ready!(self.poll_client(cx, fed))?; // some of the body, which is there for who waits for it
        }
    }

    /// Sends an answer as far as that goes at once, and says whether it is the last.
    fn begin_answer(
        &mut self,
        cx: &mut Context<'_>,
        response: Response<Body>,
        fed: Option<&Fed>,
    ) -> Result<(Begun, bool), Over> {
        let closes = self.conn.is_hung_up()
            || fed.is_some_and(|fed| fed.is_broken() || fed.missing() > UNREAD_BYTES_MAX)
            || response.headers().get(header::CONNECTION).is_some_and(|value| value == "close");
        if let Some(fed) = fed {
            fed.is_not_read();
        }
        if response.body().is_stream() {
            return Ok((Begun::Stream(Box::new(response)), closes));
        }
        let Self { stream, conn, .. } = self;
        let unsent = match sending::send(stream, conn, cx, response, closes) {
            Ok(None) => match note_write(conn, Pin::new(stream).poll_flush(cx)) {
                Poll::Ready(Ok(())) => return Ok((Begun::Sent, closes)),
                Poll::Ready(Err(error)) => return Err(self.broken(&error)),
                Poll::Pending => Unsent::default(),
            },
            Ok(Some(unsent)) => unsent,
            Err(error) => return Err(self.broken(&error)),
        };
        Ok((Begun::Partly(Box::new(unsent)), closes))
    }

    /// Waits for bytes of a head.
    fn poll_head(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Over>> {
        let Self { stream, conn, ahead } = self;
        let came = poll_look(stream, cx, READ_BYTES, |came| {
            ahead.extend_from_slice(came);
            Ok(came.len())
        });
        if came.is_pending() && ahead.is_empty() && conn.is_hung_up() {
            return Poll::Ready(Err(Over)); // not before what is here has been read
        }
        match ready!(came) {
            Ok(1..) => {
                conn.note_read(true);
                Poll::Ready(Ok(()))
            }
            Ok(0) => Poll::Ready(Err(Over)),
            Err(error) => Poll::Ready(Err(self.broken(&error))),
        }
    }

    /// Reads what the client sends while it waits. Ready when something has come of the body, if only its end, or when the
    /// client has left.
    pub(super) fn poll_client(&mut self, cx: &mut Context<'_>, fed: Option<&Fed>) -> Poll<Result<(), Over>> {
        loop {
            let of_body = fed.filter(|fed| fed.missing() > 0);
            let limit = match of_body {
                Some(fed) if fed.wants() => READ_BYTES,
                Some(_) => 0,
                None => AHEAD_BYTES_MAX.saturating_sub(self.ahead.len()),
            };
            if limit == 0 {
                return Poll::Pending;
            }
            let Self { stream, ahead, .. } = self;
            let came = poll_look(stream, cx, limit, |came| {
                let own = of_body.map_or(0, |fed| fed.feed(came));
                ahead.extend_from_slice(&came[own..]);
                Ok(came.len())
            });
            match (ready!(came), of_body) {
                (Ok(1..), None) => {}
                (Ok(1..), Some(_)) => return Poll::Ready(Ok(())),
                (Ok(0), Some(fed)) => {
                    fed.break_off();
                    return Poll::Ready(Ok(()));
                }
                (Ok(0), None) => return Poll::Ready(Err(Over)),
                (Err(error), Some(fed)) => {
                    let Over = self.broken(&error);
                    fed.break_off(); // it is counted as one that ended
                    return Poll::Ready(Ok(()));
                }
                (Err(error), None) => return Poll::Ready(Err(self.broken(&error))),
            }
        }
    }

    pub(super) fn broken(&self, error: &io::Error) -> Over {
        tracing::debug!(peer = %self.conn.peer, %error, "a connection broke");
        Over
    }
}
