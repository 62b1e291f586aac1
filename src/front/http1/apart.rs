//! What is rare or takes long on a connection whose requests are plain: answers that the kernel does not take at once,
//! streams, bodies that nobody reads, and the end. Each is a future of its own, so that a connection has no room for it
//! while it is at none of them; what is done at once is in `talk`.

use std::{
    future::poll_fn,
    mem,
    pin::Pin,
    sync::Arc,
    task::{Poll, ready},
    time::Duration,
};

use hyper::{Response, body::Body as _};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    time::{Instant, timeout, timeout_at},
};

use super::{
    sending::{self, Framing, LAST_CHUNK, Unsent},
    talk::{Begun, Over, Talk, UNREAD_BYTES_MAX},
};
use crate::front::{
    body::Body,
    came::Fed,
    watched::{READ_BYTES, note_write, poll_look},
};

/// So much of a stream may wait for its client while what it says is still asked for.
const WAITING_BYTES_MAX: usize = 64 * 1024;
/// Room for the head of a stream and its first event, which mostly leave together.
const FIRST_BYTES: usize = 1024;
/// What a stream keeps of that while it is silent.
const KEPT_BYTES_MAX: usize = 256;
/// What is on its way that nobody reads is taken for so long, as long as it comes without such a pause: an end with bytes
/// unread would be a reset, which takes the answer with it.
const UNREAD_TIME: Duration = Duration::from_secs(3);
const UNREAD_PAUSE: Duration = Duration::from_millis(500);
/// How long the end of a connection may take.
const END_TIME: Duration = Duration::from_secs(1);

impl<S: AsyncRead + AsyncWrite + Unpin> Talk<S> {
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
}
