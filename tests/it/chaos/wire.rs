//! A client that takes broken connections as they come: requests on a connection each, answers and events read until
//! something breaks, and streams resumed where they broke.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use serde_json::Value;

const PATIENCE: Duration = Duration::from_secs(30);

/// An answer whose body is read while it comes.
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    stream: BufReader<TcpStream>,
    unread: String,
}

/// One event: its id, and its message unless it only brings the id.
pub(super) type Event = (Option<String>, Option<Value>);

/// Sends a request and reads the head of the answer.
pub(super) fn send(addr: SocketAddr, method: &str, headers: &[(&str, &str)], body: &str) -> io::Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&addr, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_nodelay(true)?;
    let mut text = format!("{method} /mcp HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n");
    if method == "POST" {
        text += "Content-Type: application/json\r\nAccept: application/json, text/event-stream\r\n";
        text += &format!("Content-Length: {}\r\n", body.len());
    } else {
        text += "Accept: text/event-stream\r\n";
    }
    headers.iter().for_each(|(name, value)| text += &format!("{name}: {value}\r\n"));
    stream.write_all(format!("{text}\r\n{body}").as_bytes())?;
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    stream.read_line(&mut line)?;
    let status = line.split(' ').nth(1).and_then(|status| status.parse().ok()).ok_or_else(broken)?;
    let mut headers = Vec::new();
    loop {
        line.clear();
        if stream.read_line(&mut line)? == 0 {
            return Err(broken());
        }
        match line.trim_end().split_once(": ") {
            Some((name, value)) => headers.push((name.to_ascii_lowercase(), value.to_owned())),
            None => break,
        }
    }
    Ok(Answer { status, headers, stream, unread: String::new() })
}

fn broken() -> io::Error {
    io::Error::new(io::ErrorKind::UnexpectedEof, "the connection broke")
}

impl Answer {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }

    pub(super) fn is_stream(&self) -> bool {
        self.header("content-type") == Some("text/event-stream")
    }

    /// The whole body, as JSON.
    pub(super) fn json(mut self) -> io::Result<Value> {
        let mut body = Vec::new();
        match self.header("content-length").and_then(|length| length.parse().ok()) {
            Some(length) => {
                body.resize(length, 0);
                self.stream.read_exact(&mut body)?;
            }
            None => {
                while let Some(chunk) = self.chunk()? {
                    body.extend_from_slice(&chunk);
                }
            }
        }
        serde_json::from_slice(&body).map_err(io::Error::other)
    }

    /// The next event; `None` at the proper end of the stream, an error where it breaks, or when nothing but comments
    /// comes until then.
    pub(super) fn event(&mut self, until: Instant) -> io::Result<Option<Event>> {
        loop {
            if Instant::now() > until {
                return Err(io::ErrorKind::TimedOut.into());
            }
            if let Some((block, rest)) = self.unread.split_once("\n\n") {
                let (block, rest) = (block.to_owned(), rest.to_owned());
                self.unread = rest;
                let field = |name: &str| {
                    let line = block.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
                    line.map(str::to_owned)
                };
                let (id, data) = (field("id"), field("data").filter(|data| !data.is_empty()));
                if id.is_none() && data.is_none() {
                    continue; // a comment
                }
                let message = data.map(|data| serde_json::from_str(&data).expect("an event is JSON"));
                return Ok(Some((id, message)));
            }
            match self.chunk()? {
                Some(chunk) => self.unread += std::str::from_utf8(&chunk).expect("UTF-8"),
                None => return Ok(None),
            }
        }
    }

    fn chunk(&mut self) -> io::Result<Option<Vec<u8>>> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(broken());
        }
        let size = usize::from_str_radix(line.trim(), 16).map_err(io::Error::other)?;
        let mut chunk = vec![0; size + 2];
        self.stream.read_exact(&mut chunk)?;
        chunk.truncate(size);
        Ok((size > 0).then_some(chunk))
    }
}
