//! What is done on a connection whose requests are plain: each is read, answered and written here, with no buffer kept
//! between them. What a client does while it waits is seen too: when it leaves, what it waited for is dropped.

use std::{
    future::{Future, poll_fn},
    io, mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use hyper::{Response, body::Body as _, header};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    time::{Instant, timeout, timeout_at},
};

use super::{
    sending::{self, Framing, LAST_CHUNK, Unsent},
    wire::{self, Look},
};
use crate::front::{
    body::Body,
    came::{Came, Fed, Inflow, Plain},
    connection::Connection,
    serve,
    watched::{READ_BYTES, note_write, poll_look},
};

/// A head that comes in more pieces than this is hyper's, and so is one that is not whole after as much as is read at once.
const HEAD_PIECES_MAX: usize = 4;
/// So much of the requests after the present one is read ahead. With more in the kernel, a client's leaving goes unseen.
const AHEAD_BYTES_MAX: usize = 16 * 1024;
/// So much of a stream may wait for its client while what it says is still asked for.
const WAITING_BYTES_MAX: usize = 64 * 1024;
/// Room for the head of a stream and its first event, which mostly leave together.
const FIRST_BYTES: usize = 1024;
/// What a stream keeps of that while it is silent.
const KEPT_BYTES_MAX: usize = 256;
/// With more than this to come of a body that was refused unread, the connection is not used again.
const UNREAD_BYTES_MAX: u64 = 64 * 1024;
/// What is on its way that nobody reads is taken for so long, as long as it comes without such a pause: an end with bytes
/// unread would be a reset, which takes the answer with it.
const UNREAD_TIME: Duration = Duration::from_secs(3);
const UNREAD_PAUSE: Duration = Duration::from_millis(500);
/// How long the end of a connection may take.
const END_TIME: Duration = Duration::from_secs(1);

/// What is said on a connection, by both sides.
pub(super) struct Talk<S> {
    pub(super) stream: S,
    pub(super) conn: Arc<Connection>,
    /// What has come after the present request.
    ahead: Vec<u8>,
}

/// It ends.
pub(super) struct Over;

/// A request that is being answered.
pub(super) type Serving = Pin<Box<dyn Future<Output = Response<Body>> + Send>>;

/// What comes next.
pub(super) enum Next {
    /// A plain request, whose body may still be on its way.
    Plain(Serving, Option<Arc<Fed>>),
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
        serving: &mut Serving,
        fed: Option<&Fed>,
    ) -> Poll<Result<(Begun, bool), Over>> {
        loop {
            if let Poll::Ready(response) = serving.as_mut().poll(cx) {
                return Poll::Ready(self.begin_answer(cx, response, fed));
            }
            ready!(self.poll_client(cx, fed))?; // some of the body, which is there for who waits for it
        }
    }

    /// Sends what is left of an answer, and takes what is left of its request.
    pub(super) async fn finish(mut self, begun: Begun, closes: bool, fed: Option<Arc<Fed>>) -> Option<Self> {
        match self.send_rest(begun, closes, fed.as_deref()).await {
            Ok(()) => Some(self),
            Err(Over) => self.ended().await,
        }
    }

    async fn send_rest(&mut self, begun: Begun, closes: bool, fed: Option<&Fed>) -> Result<(), Over> {
        match begun {
            Begun::Sent => {}
            Begun::Partly(unsent) => self.send_on(unsent).await?,
            Begun::Stream(response) => Box::pin(self.send_stream(*response, closes, fed)).await?,
        }
        if let Some(fed) = fed.filter(|fed| fed.missing() > 0 && !fed.is_broken()) {
            Box::pin(self.take_unread(fed, closes)).await?;
        }
        if closes { Err(Over) } else { Ok(()) }
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
    fn poll_client(&mut self, cx: &mut Context<'_>, fed: Option<&Fed>) -> Poll<Result<(), Over>> {
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

    /// Sends what the kernel did not take at once.
    async fn send_on(&mut self, mut unsent: Box<Unsent>) -> Result<(), Over> {
        let sent = poll_fn(|cx| {
            let Self { stream, conn, .. } = self;
            ready!(sending::poll_write(stream, conn, cx, &mut *unsent))?;
            note_write(conn, Pin::new(stream).poll_flush(cx))
        });
        sent.await.map_err(|error| self.broken(&error))
    }

    /// Sends an answer as it comes. What it comes from goes on while the client takes its time, as far as there is room.
    async fn send_stream(&mut self, response: Response<Body>, closes: bool, fed: Option<&Fed>) -> Result<(), Over> {
        let (head, mut body) = response.into_parts();
        let mut out = Vec::with_capacity(FIRST_BYTES);
        sending::write_head(&mut out, head.status, &head.headers, Framing::Chunked, closes);
        let (mut sent, mut is_over) = (0, false);
        poll_fn(|cx| {
            let mut is_silent = false;
            loop {
                while !is_over && !is_silent && out.len() - sent < WAITING_BYTES_MAX {
                    match Pin::new(&mut body).poll_frame(cx) {
                        Poll::Ready(Some(Ok(frame))) => {
                            if let Ok(piece) = frame.into_data() {
                                sending::write_chunk(&mut out, piece);
                            }
                        }
                        Poll::Ready(None) => {
                            is_over = true;
                            out.extend_from_slice(LAST_CHUNK);
                        }
                        Poll::Pending => is_silent = true,
                    }
                }
                let Self { stream, conn, .. } = self;
                let mut unsent = &out[sent..];
                let written = sending::poll_write(stream, conn, cx, &mut unsent);
                sent = out.len() - unsent.len();
                let flushed = match written {
                    Poll::Ready(Ok(())) => note_write(conn, Pin::new(stream).poll_flush(cx)),
                    other => other,
                };
                match flushed {
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(self.broken(&error))),
                    Poll::Ready(Ok(())) if is_over => return Poll::Ready(Ok(())),
                    Poll::Ready(Ok(())) => {
                        out.clear();
                        sent = 0;
                        if is_silent {
                            out.shrink_to(KEPT_BYTES_MAX);
                            break;
                        }
                    }
                    Poll::Pending => {
                        if sent > out.len() / 2 {
                            out.drain(..sent);
                            sent = 0;
                        }
                        if !is_over && !is_silent && out.len() - sent < WAITING_BYTES_MAX {
                            continue; // there is room again, and who speaks has not been heard to its end
                        }
                        break;
                    }
                }
            }
            match ready!(self.poll_client(cx, fed)) {
                Err(over) => Poll::Ready(Err(over)),
                Ok(()) => {
                    cx.waker().wake_by_ref(); // it was of a body that nobody reads, and more may be there
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// Takes what is on its way of a body that nobody reads. When not all of it comes, the client is told that this is the
    /// end before it is.
    async fn take_unread(&mut self, fed: &Fed, closes: bool) -> Result<(), Over> {
        let mut end = Instant::now() + UNREAD_TIME;
        let least = fed.missing().saturating_sub(self.unread_bytes_max());
        let mut has_said = closes;
        if closes {
            self.end().await;
        }
        while fed.missing() > least && !fed.is_broken() {
            let until = (Instant::now() + UNREAD_PAUSE).min(end);
            match timeout_at(until, poll_fn(|cx| self.poll_client(cx, Some(fed)))).await {
                Ok(came) => came?,
                Err(_) if has_said => return Err(Over),
                Err(_) => {
                    self.end().await;
                    (has_said, end) = (true, Instant::now() + UNREAD_TIME);
                }
            }
        }
        if has_said || fed.missing() > 0 { Err(Over) } else { Ok(()) }
    }

    /// Says that nothing more comes. For TLS, that is a message of its own.
    async fn end(&mut self) {
        let _ = timeout(END_TIME, self.stream.shutdown()).await;
    }

    /// Ends it. With bytes unread that were a reset, which takes with it what is left of the last answer on its way: what
    /// the client has sent behind its request is taken, and it has time to see the end.
    pub(super) async fn ended(mut self) -> Option<Self> {
        self.end().await;
        let end = Instant::now() + UNREAD_TIME;
        let mut bytes_left = self.unread_bytes_max();
        let mut has_sent_ahead = !mem::take(&mut self.ahead).is_empty();
        while bytes_left > 0 {
            let stream = &mut self.stream;
            let more = poll_fn(|cx| match poll_look(stream, cx, READ_BYTES, |came| Ok(came.len())) {
                Poll::Pending if !has_sent_ahead => Poll::Ready(Ok(0)),
                came => came,
            });
            match timeout_at((Instant::now() + UNREAD_PAUSE).min(end), more).await {
                Ok(Ok(bytes @ 1..)) => bytes_left = bytes_left.saturating_sub(bytes as u64),
                _ => break,
            }
            has_sent_ahead = true;
        }
        None
    }

    /// The most that is taken of what nobody reads: no more than somebody might have read.
    fn unread_bytes_max(&self) -> u64 {
        self.conn.front.limits.request_bytes_max.0.max(UNREAD_BYTES_MAX)
    }

    fn broken(&self, error: &io::Error) -> Over {
        tracing::debug!(peer = %self.conn.peer, %error, "a connection broke");
        Over
    }
}
