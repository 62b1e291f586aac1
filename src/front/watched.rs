//! A socket that is watched for its connection: whether a write gets on, and what is read. What is looked for in what
//! is read differs by protocol, and is decided when the connection begins.

use std::{
    cell::RefCell,
    io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::front::{
    connection::Connection,
    http2::meter::Meter,
    unread::{self, Ending},
};

/// Pieces of an answer up to this size are copied together: the kernel takes one piece (`send`) in less time than
/// several (`writev`), and the difference is more than the copy.
pub(super) const TOGETHER_BYTES_MAX: usize = 2048;
/// What is read at once where it is looked at.
pub(super) const READ_BYTES: usize = 16 * 1024;

thread_local! {
    /// What was read and is looked at. One for each thread, as nothing stays in it.
    static SEEN: RefCell<Box<[u8]>> = RefCell::new(vec![0; READ_BYTES].into());
}

/// Reads at most `limit` bytes and shows them to `look`. None is the end.
pub(super) fn poll_look<S: AsyncRead + Unpin, T>(
    stream: &mut S,
    cx: &mut Context<'_>,
    limit: usize,
    look: impl FnOnce(&[u8]) -> io::Result<T>,
) -> Poll<io::Result<T>> {
    SEEN.with_borrow_mut(|seen| {
        let room = limit.min(READ_BYTES);
        let mut own = ReadBuf::new(&mut seen[..room]);
        ready!(Pin::new(stream).poll_read(cx, &mut own))?;
        Poll::Ready(look(own.filled()))
    })
}

/// A socket that notes when a request begins to arrive and when a write does not get on.
pub(super) struct Watched<S> {
    stream: TokioIo<S>,
    conn: Arc<Connection>,
    /// What was read before, and comes first.
    ahead: Bytes,
    /// The last read brought something: there may be more.
    is_fed: bool,
    /// Once it has begun.
    ending: Option<Box<Ending>>,
}

impl<S> Watched<S> {
    pub(super) fn new(stream: S, conn: Arc<Connection>) -> Self {
        Self { stream: TokioIo::new(stream), conn, ahead: Bytes::new(), is_fed: false, ending: None }
    }

    /// The same with what was read of it before.
    pub(super) fn after(mut self, ahead: Bytes) -> Self {
        self.ahead = ahead;
        self
    }

    pub(super) fn into_stream(self) -> S {
        self.stream.into_inner()
    }
}

/// Notes that a write waits, or that it does not any more.
pub(super) fn note_write<T>(conn: &Connection, written: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
    conn.note_stalled(written.is_pending());
    written
}

impl<S: AsyncRead + Unpin> Read for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, mut buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        if !self.ahead.is_empty() {
            let length = self.ahead.len().min(buf.remaining());
            buf.put_slice(&self.ahead.split_to(length));
            self.is_fed = true;
            return Poll::Ready(Ok(()));
        }
        let read = Pin::new(&mut self.stream).poll_read(cx, buf);
        self.conn.note_read(read.is_ready());
        self.is_fed = read.is_ready();
        read
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Write for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(cx, buf);
        note_write(&self.conn, written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let bytes: usize = bufs.iter().map(|piece| piece.len()).sum();
        let written = if bytes <= TOGETHER_BYTES_MAX {
            let mut together = [0; TOGETHER_BYTES_MAX];
            let mut room = &mut together[..];
            for piece in bufs {
                let (place, rest) = room.split_at_mut(piece.len());
                place.copy_from_slice(piece);
                room = rest;
            }
            Pin::new(&mut self.stream).poll_write(cx, &together[..bytes])
        } else {
            Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
        };
        note_write(&self.conn, written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    /// A secure connection takes what is written into a buffer of its own, and waits for the client here.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        note_write(&self.conn, flushed)
    }

    /// What is unread is taken before it ends.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let Self { stream, conn, ahead, is_fed, ending } = &mut *self;
        let is_dry = ahead.is_empty() && !*is_fed && !conn.reads_no_more();
        let ending = ending.get_or_insert_with(|| Box::new(Ending::new(unread::bytes_max(conn), is_dry)));
        ending.poll(stream.inner_mut(), cx).map(Ok)
    }
}

/// The same for a connection with streams, whose frames are counted.
pub(super) struct Metered<S> {
    watched: Watched<S>,
    meter: Meter,
}

impl<S> Metered<S> {
    pub(super) fn new(watched: Watched<S>, meter: Meter) -> Self {
        Self { watched, meter }
    }
}

impl<S: AsyncRead + Unpin> Read for Metered<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, mut buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        let Self { watched, meter } = &mut *self;
        let Watched { stream, conn, .. } = watched;
        if conn.reads_no_more() {
            return Poll::Ready(Ok(())); // as if it had ended, so that it is ended on this side too
        }
        poll_look(stream.inner_mut(), cx, buf.remaining(), |seen| {
            meter.read(seen).map_err(|flood| conn.front.http2.flooded(conn.peer, flood))?;
            buf.put_slice(seen);
            Ok(())
        })
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Write for Metered<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.watched).poll_write(cx, buf);
        self.count(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.watched).poll_write_vectored(cx, bufs);
        self.count(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.watched.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.watched).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.watched).poll_shutdown(cx)
    }
}

impl<S> Metered<S> {
    fn count(&mut self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(bytes)) = &written {
            self.meter.wrote(*bytes);
        }
        written
    }
}
