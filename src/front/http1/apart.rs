//! What is rare or takes long on a connection whose requests are plain: answers that the kernel does not take at once,
//! streams, bodies that nobody reads, and the end. Each is a future of its own, so that a connection has no room for it
//! while it is at none of them; what is done at once is in `talk`.

use std::{
    future::poll_fn,
    pin::Pin,
    sync::Arc,
    task::{Poll, ready},
};

use hyper::{Response, body::Body as _};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    time::timeout,
};

use super::{
    sending::{self, Framing, LAST_CHUNK, Unsent},
    talk::{Begun, Over, Talk},
};
use crate::front::{
    body::Body,
    came::Fed,
    unread::{self, END_TIME, Ending, Taken, Taking, UNREAD_PAUSE, UNREAD_TIME},
    watched::note_write,
};

/// So much of a stream may wait for its client while what it says is still asked for.
const WAITING_BYTES_MAX: usize = 64 * 1024;
/// Room for the head of a stream and its first event, which mostly leave together.
const FIRST_BYTES: usize = 1024;
/// What a stream keeps of that while it is silent.
const KEPT_BYTES_MAX: usize = 256;

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
        let mut has_said = closes;
        if closes {
            self.end().await;
        }
        let mut taking = Taking::new(unread::bytes_max(&self.conn), UNREAD_TIME, UNREAD_PAUSE);
        loop {
            let taken = poll_fn(|cx| {
                taking.poll(cx, |cx| {
                    let missing = fed.missing();
                    if missing == 0 || fed.is_broken() {
                        return Poll::Ready(None);
                    }
                    self.poll_client(cx, Some(fed)).map(|came| came.is_ok().then(|| missing - fed.missing()))
                })
            });
            if taken.await != Taken::Late || has_said {
                break;
            }
            self.end().await;
            has_said = true;
            taking.begin_again(UNREAD_TIME);
        }
        if has_said || fed.missing() > 0 { Err(Over) } else { Ok(()) }
    }

    /// Says that nothing more comes. For TLS, that is a message of its own.
    async fn end(&mut self) {
        let _ = timeout(END_TIME, self.stream.shutdown()).await;
    }

    /// Ends it.
    pub(super) async fn ended(self) -> Option<Self> {
        let is_dry = self.ahead.is_empty();
        self.ended_when(is_dry).await
    }

    /// Ends it without its client's having been told, whose next request may be on its way.
    pub(super) async fn timed_out(self) -> Option<Self> {
        self.ended_when(false).await
    }

    async fn ended_when(mut self, is_dry: bool) -> Option<Self> {
        self.ahead = Vec::new();
        let mut ending = Ending::new(unread::bytes_max(&self.conn), is_dry);
        poll_fn(|cx| ending.poll(&mut self.stream, cx)).await;
        None
    }
}
