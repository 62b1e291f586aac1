//! Answers on their way out: the head as bytes, the date, and the framing of what follows. What is there at once leaves
//! in one call to the kernel.

use std::{
    cell::RefCell,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll, ready},
    time::{Duration, SystemTime},
};

use bytes::{Buf, Bytes};
use httpdate::HttpDate;
use hyper::{HeaderMap, Response, StatusCode, header};
use rustix::time::{ClockId, clock_gettime};
use tokio::io::AsyncWrite;

use crate::front::{
    body::{Body, Pieces},
    connection::Connection,
    watched::{TOGETHER_BYTES_MAX, note_write},
};

/// The most pieces of an answer: its head, and those of its body.
const PIECES_MAX: usize = 4;

/// How the end of a body is found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Framing {
    Length(usize),
    Chunked,
}

thread_local! {
    /// What is being written. One for each thread, as nothing stays in it.
    static OUT: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
    static DATE: RefCell<Date> = const { RefCell::new(Date { second: i64::MIN, text: String::new() }) };
}

/// The present second as headers say it.
struct Date {
    second: i64,
    text: String,
}

impl Date {
    fn write(&mut self, out: &mut Vec<u8>) {
        let now = clock_gettime(ClockId::RealtimeCoarse).tv_sec;
        if now != self.second {
            let at = SystemTime::UNIX_EPOCH + Duration::from_secs(now.unsigned_abs());
            (self.second, self.text) = (now, HttpDate::from(at).to_string());
        }
        out.extend_from_slice(self.text.as_bytes());
    }
}

/// Appends the head of an answer.
pub(super) fn write_head(out: &mut Vec<u8>, status: StatusCode, headers: &HeaderMap, framing: Framing, closes: bool) {
    if status == StatusCode::OK {
        out.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
    } else {
        let reason = status.canonical_reason().unwrap_or("<none>");
        out.extend_from_slice(format!("HTTP/1.1 {} {reason}\r\n", status.as_u16()).as_bytes());
    }
    // How it ends, and when it was said, is decided below.
    let own = [header::CONNECTION, header::CONTENT_LENGTH, header::TRANSFER_ENCODING, header::DATE];
    for (name, value) in headers {
        if !own.contains(name) {
            write_line(out, name.as_str(), value.as_bytes());
        }
    }
    if closes {
        write_line(out, "connection", b"close");
    }
    match framing {
        _ if has_no_body(status) => {}
        Framing::Chunked => write_line(out, "transfer-encoding", b"chunked"),
        Framing::Length(bytes) => write_line(out, "content-length", itoa::Buffer::new().format(bytes).as_bytes()),
    }
    out.extend_from_slice(b"date: ");
    DATE.with_borrow_mut(|date| date.write(out));
    out.extend_from_slice(b"\r\n\r\n");
}

/// Answers of which HTTP knows that nothing follows.
fn has_no_body(status: StatusCode) -> bool {
    status.is_informational() || status == StatusCode::NO_CONTENT || status == StatusCode::NOT_MODIFIED
}

fn write_line(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.reserve(name.len() + value.len() + b": \r\n".len());
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Appends a piece of a body whose length nobody knows.
pub(super) fn write_chunk(out: &mut Vec<u8>, mut piece: Pieces) {
    if piece.has_remaining() {
        out.extend_from_slice(format!("{:x}\r\n", piece.remaining()).as_bytes());
        while piece.has_remaining() {
            let length = piece.chunk().len();
            out.extend_from_slice(piece.chunk());
            piece.advance(length);
        }
        out.extend_from_slice(b"\r\n");
    }
}

/// The end of such a body.
pub(super) const LAST_CHUNK: &[u8] = b"0\r\n\r\n";

/// What the kernel has not taken yet.
#[derive(Default)]
pub(super) struct Unsent {
    head: Bytes,
    body: Pieces,
}

impl Buf for Unsent {
    fn remaining(&self) -> usize {
        self.head.len() + self.body.remaining()
    }

    fn chunk(&self) -> &[u8] {
        if self.head.is_empty() { self.body.chunk() } else { &self.head }
    }

    fn advance(&mut self, n: usize) {
        let of_head = n.min(self.head.len());
        self.head.advance(of_head);
        self.body.advance(n - of_head);
    }

    fn chunks_vectored<'a>(&'a self, slices: &mut [IoSlice<'a>]) -> usize {
        let of_head = self.head.chunks_vectored(slices);
        of_head + self.body.chunks_vectored(&mut slices[of_head..])
    }
}

/// Writes an answer whose body is there, as far as that goes at once. `None` when all of it is gone.
pub(super) fn send<S: AsyncWrite + Unpin>(
    stream: &mut S,
    conn: &Connection,
    cx: &mut Context<'_>,
    response: Response<Body>,
    closes: bool,
) -> io::Result<Option<Unsent>> {
    let (head, body) = response.into_parts();
    let mut body = if has_no_body(head.status) { Pieces::default() } else { body.into_pieces() };
    OUT.with_borrow_mut(|out| {
        out.clear();
        write_head(out, head.status, &head.headers, Framing::Length(body.remaining()), closes);
        if out.len() + body.remaining() > TOGETHER_BYTES_MAX {
            let mut unsent = Unsent { head: Bytes::copy_from_slice(out), body };
            return match poll_write(stream, conn, cx, &mut unsent) {
                Poll::Ready(sent) => sent.map(|()| None),
                Poll::Pending => Ok(Some(unsent)),
            };
        }
        while body.has_remaining() {
            let length = body.chunk().len();
            out.extend_from_slice(body.chunk());
            body.advance(length);
        }
        let mut sent = 0;
        while sent < out.len() {
            match Pin::new(&mut *stream).poll_write(cx, &out[sent..]) {
                Poll::Ready(Ok(0)) => return Err(io::ErrorKind::WriteZero.into()),
                Poll::Ready(written) => sent += written?,
                Poll::Pending => {
                    return Ok(Some(Unsent { head: Bytes::copy_from_slice(&out[sent..]), body }));
                }
            }
        }
        Ok(None)
    })
}

/// Writes on until all of it is gone. Each piece that the kernel takes is noted: who gets on is not cut off.
pub(super) fn poll_write<S: AsyncWrite + Unpin>(
    stream: &mut S,
    conn: &Connection,
    cx: &mut Context<'_>,
    unsent: &mut impl Buf,
) -> Poll<io::Result<()>> {
    while unsent.has_remaining() {
        let mut slices = [IoSlice::new(&[]); PIECES_MAX];
        let used = unsent.chunks_vectored(&mut slices);
        let written = Pin::new(&mut *stream).poll_write_vectored(cx, &slices[..used]);
        let written = ready!(note_write(conn, written))?;
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        unsent.advance(written);
    }
    Poll::Ready(Ok(()))
}

#[cfg(test)]
mod tests {
    use hyper::header::HeaderValue;

    use super::*;

    fn head(status: StatusCode, framing: Framing, closes: bool) -> String {
        let mut headers = HeaderMap::new();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        let mut out = Vec::new();
        write_head(&mut out, status, &headers, framing, closes);
        let text = String::from_utf8(out).expect("ASCII");
        let (before, after) = text.split_once("date: ").expect("a date");
        let (date, after) = after.split_once("\r\n").expect("a line");
        httpdate::parse_http_date(date).expect("a date as headers say it");
        assert_eq!(after, "\r\n", "the date is the last line");
        before.replace("\r\n", "|")
    }

    #[test]
    fn heads_say_how_the_end_is_found_and_whether_it_is_the_last() {
        let length = Framing::Length;
        for (status, framing, closes, expected) in [
            (200, length(0), false, "HTTP/1.1 200 OK|content-type: application/json|content-length: 0|"),
            (
                200,
                length(1234567890),
                false,
                "HTTP/1.1 200 OK|content-type: application/json|content-length: 1234567890|",
            ),
            (
                429,
                length(9),
                true,
                "HTTP/1.1 429 Too Many Requests|content-type: application/json|connection: close|content-length: 9|",
            ),
            (
                200,
                Framing::Chunked,
                false,
                "HTTP/1.1 200 OK|content-type: application/json|transfer-encoding: chunked|",
            ),
            (204, length(0), false, "HTTP/1.1 204 No Content|content-type: application/json|"),
            (799, length(1), false, "HTTP/1.1 799 <none>|content-type: application/json|content-length: 1|"),
        ] {
            assert_eq!(head(StatusCode::from_u16(status).expect("a status"), framing, closes), expected);
        }
    }

    #[test]
    fn chunks_have_a_size_and_none_is_empty() {
        let mut out = Vec::new();
        for piece in ["", "a", "0123456789abcdef"] {
            write_chunk(&mut out, Bytes::from_static(piece.as_bytes()).into());
        }
        out.extend_from_slice(LAST_CHUNK);
        assert_eq!(out, b"1\r\na\r\n10\r\n0123456789abcdef\r\n0\r\n\r\n");
    }

    #[test]
    fn what_is_unsent_is_cut_anywhere() {
        for cut in 0..=6 {
            let mut unsent = Unsent { head: Bytes::from_static(b"head"), body: Bytes::from_static(b"bo").into() };
            unsent.advance(cut);
            let mut slices = [IoSlice::new(&[]); PIECES_MAX];
            let used = unsent.chunks_vectored(&mut slices);
            let gathered: Vec<u8> = slices[..used].iter().flat_map(|slice| slice.to_vec()).collect();
            assert_eq!((gathered.as_slice(), unsent.remaining()), (&b"headbo"[cut..], 6 - cut));
            assert!(!unsent.chunk().is_empty() || cut == 6);
        }
    }
}
