//! The least of HTTP/1.1 that tells when an answer is whole: status, Content-Length or chunks, and, in an SSE
//! body, the message that ends the call. Fed from one connection that never pipelines.
//!
//! Not a client: no trailers, no `100 Continue`, no body that only the end of the connection delimits. What it
//! does not know is an error, so that no server looks fast by answering in a way that was not read.

use super::Result;

/// Larger answers are taken for a server gone wrong.
const REPLY_BYTES_MAX: usize = 64 << 20;
const READ_BYTES: usize = 16 << 10;

#[derive(Clone, Copy, Debug)]
enum Framing {
    Length(usize),
    Chunked,
}

#[derive(Clone, Copy, Debug)]
struct Head {
    status: u16,
    bytes: usize,
    framing: Framing,
    /// Where the value of `Mcp-Session-Id` lies, when there is one.
    session: Option<(usize, usize)>,
    closes: bool,
}

/// One answer as it arrives. Reused from call to call, so that receiving allocates nothing once warm.
#[derive(Debug)]
pub(crate) struct Reply {
    buffer: Vec<u8>,
    filled: usize,
    head: Option<Head>,
    /// The body without its chunk framing, and how far the framing was read.
    unchunked: Vec<u8>,
    unchunked_to: usize,
}

impl Reply {
    pub(crate) fn new() -> Self {
        Self { buffer: vec![0; READ_BYTES], filled: 0, head: None, unchunked: Vec::new(), unchunked_to: 0 }
    }

    pub(crate) fn clear(&mut self) {
        self.filled = 0;
        self.head = None;
        self.unchunked.clear();
        self.unchunked_to = 0;
    }

    /// Room for the next read; never empty.
    pub(crate) fn room(&mut self) -> Result<&mut [u8]> {
        if self.filled == self.buffer.len() {
            if self.filled >= REPLY_BYTES_MAX {
                return Err(format!("an answer of more than {REPLY_BYTES_MAX} bytes").into());
            }
            self.buffer.resize(self.filled * 2, 0);
        }
        Ok(&mut self.buffer[self.filled..])
    }

    /// Takes note of bytes read into `room` and says whether the answer is whole.
    pub(crate) fn received(&mut self, bytes: usize) -> Result<bool> {
        self.filled += bytes;
        if self.head.is_none() {
            self.head = parse_head(&self.buffer[..self.filled])?;
        }
        let Some(head) = self.head else { return Ok(false) };
        let end = match head.framing {
            Framing::Length(length) => Some(head.bytes + length),
            Framing::Chunked => self.unchunk(head.bytes)?,
        };
        match end {
            Some(end) if self.filled > end => Err(format!("{} bytes after the answer", self.filled - end).into()),
            Some(end) => Ok(self.filled == end),
            None => Ok(false),
        }
    }

    pub(crate) fn status(&self) -> u16 {
        self.head.map_or(0, |head| head.status)
    }

    pub(crate) fn session(&self) -> Option<&str> {
        let (from, to) = self.head?.session?;
        std::str::from_utf8(&self.buffer[from..to]).ok()
    }

    pub(crate) fn body(&self) -> &[u8] {
        match self.head {
            Some(Head { framing: Framing::Length(_), bytes, .. }) => &self.buffer[bytes..self.filled],
            Some(Head { framing: Framing::Chunked, .. }) => &self.unchunked,
            None => &[],
        }
    }

    /// Whether the server ends the connection after this answer.
    pub(crate) fn closes(&self) -> bool {
        self.head.is_some_and(|head| head.closes)
    }

    /// The JSON-RPC message: the body itself, or the data of the last SSE event that carries any.
    pub(crate) fn message(&self) -> &[u8] {
        let body = self.body();
        if body.first() == Some(&b'{') {
            return body;
        }
        let lines = body.split(|&byte| byte == b'\n').rev();
        let mut data = lines.filter_map(|line| line.strip_prefix(b"data:")).map(<[u8]>::trim_ascii);
        data.find(|data| !data.is_empty()).unwrap_or_default()
    }

    /// What came, for an error text.
    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.buffer[..self.filled]).into_owned()
    }

    /// Goes on where it stopped; the end of the answer once the last chunk is there.
    fn unchunk(&mut self, body_at: usize) -> Result<Option<usize>> {
        if self.unchunked_to == 0 {
            self.unchunked_to = body_at;
        }
        loop {
            let rest = &self.buffer[self.unchunked_to..self.filled];
            let Some(line) = rest.iter().position(|&byte| byte == b'\n') else { return Ok(None) };
            let size = std::str::from_utf8(rest[..line].trim_ascii_end())
                .ok()
                .and_then(|size| usize::from_str_radix(size, 16).ok())
                .filter(|size| *size <= REPLY_BYTES_MAX)
                .ok_or("a chunk without a size, or a larger one than any answer")?;
            // size line, data, CRLF
            let next = line + 1 + size + 2;
            if rest.len() < next {
                return Ok(None);
            }
            self.unchunked.extend_from_slice(&rest[line + 1..line + 1 + size]);
            self.unchunked_to += next;
            if size == 0 {
                return Ok(Some(self.unchunked_to));
            }
        }
    }
}

fn parse_head(bytes: &[u8]) -> Result<Option<Head>> {
    let mut at = 0;
    let mut status = 0;
    let mut framing = None;
    let mut session = None;
    let mut closes = false;
    loop {
        let Some(line_bytes) = bytes[at..].iter().position(|&byte| byte == b'\n') else { return Ok(None) };
        let line = &bytes[at..at + line_bytes].trim_ascii_end();
        if at == 0 {
            status = parse_status(line)?;
        } else if line.is_empty() {
            // A 202 or 204 has no body and need not say so.
            let framing = match framing {
                None if matches!(status, 202 | 204) => Framing::Length(0),
                framing => framing.ok_or("an answer with neither Content-Length nor chunks")?,
            };
            return Ok(Some(Head { status, bytes: at + line_bytes + 1, framing, session, closes }));
        } else if let Some(value) = header(line, b"content-length:") {
            let length = std::str::from_utf8(value).ok().and_then(|value| value.parse().ok());
            let length = length.filter(|length| *length <= REPLY_BYTES_MAX);
            framing = Some(Framing::Length(length.ok_or("a Content-Length that is none, or of more than any answer")?));
        } else if let Some(value) = header(line, b"transfer-encoding:") {
            if !value.eq_ignore_ascii_case(b"chunked") {
                return Err("a transfer encoding other than chunked".into());
            }
            framing = Some(Framing::Chunked);
        } else if let Some(value) = header(line, b"connection:") {
            closes = value.eq_ignore_ascii_case(b"close");
        } else if let Some(value) = header(line, b"mcp-session-id:") {
            let end = at + line.len();
            session = Some((end - value.len(), end));
        }
        at += line_bytes + 1;
    }
}

fn parse_status(line: &[u8]) -> Result<u16> {
    let digits = line.strip_prefix(b"HTTP/1.1 ").and_then(|rest| rest.get(..3));
    let status = digits.and_then(|digits| std::str::from_utf8(digits).ok()).and_then(|digits| digits.parse().ok());
    status.ok_or_else(|| format!("no HTTP/1.1 status line: {}", String::from_utf8_lossy(line)).into())
}

fn header<'line>(line: &'line [u8], name: &[u8]) -> Option<&'line [u8]> {
    let (head, value) = line.split_at_checked(name.len())?;
    head.eq_ignore_ascii_case(name).then(|| value.trim_ascii())
}
