//! A client of HTTP/2 that writes its frames itself, also those that no client should.

use std::{
    io::{BufReader, Read, Write},
    net::{SocketAddr, TcpStream},
};

use serde_json::json;

use crate::support::{PATIENCE, modern};

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Types of frames.
pub(crate) mod kind {
    pub(crate) const DATA: u8 = 0;
    pub(crate) const HEADERS: u8 = 1;
    pub(crate) const RST_STREAM: u8 = 3;
    pub(crate) const SETTINGS: u8 = 4;
    pub(crate) const PING: u8 = 6;
    pub(crate) const GOAWAY: u8 = 7;
    pub(crate) const WINDOW_UPDATE: u8 = 8;
    pub(crate) const CONTINUATION: u8 = 9;
}

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
pub(crate) const INITIAL_WINDOW_SIZE: u16 = 4;
const ACK: u8 = 1;

#[derive(Debug)]
pub(crate) struct Frame {
    pub(crate) kind: u8,
    pub(crate) stream: u32,
    pub(crate) payload: Vec<u8>,
}

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    let mut bytes = vec![length[1], length[2], length[3], kind, flags];
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

pub(crate) fn settings(values: &[(u16, u32)]) -> Vec<u8> {
    let payload: Vec<u8> =
        values.iter().flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat()).collect();
    frame(kind::SETTINGS, 0, 0, &payload)
}

/// A length in HPACK (RFC 7541, section 5.1), with a prefix of seven bits.
fn length(n: usize) -> Vec<u8> {
    if n < 127 {
        return vec![u8::try_from(n).expect("short")];
    }
    let mut bytes = vec![127];
    let mut rest = n - 127;
    while rest >= 128 {
        bytes.push(u8::try_from(rest % 128).expect("short") | 128);
        rest /= 128;
    }
    bytes.push(u8::try_from(rest).expect("short"));
    bytes
}

/// Headers as they are, without compression.
pub(crate) fn header_block(headers: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in headers {
        block.push(0);
        for text in [name, value] {
            block.extend(length(text.len()));
            block.extend(text.as_bytes());
        }
    }
    block
}

/// The headers of a call.
pub(crate) fn call_headers(tool: &str) -> Vec<u8> {
    header_block(&[
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/mcp"),
        (":authority", "127.0.0.1"),
        ("content-type", "application/json"),
        ("accept", "application/json, text/event-stream"),
        ("mcp-protocol-version", "2026-07-28"),
        ("mcp-method", "tools/call"),
        ("mcp-name", tool),
    ])
}

/// The headers of a request for the list of tools, of an older revision.
pub(crate) fn list_headers() -> Vec<u8> {
    header_block(&[
        (":method", "POST"),
        (":scheme", "http"),
        (":path", "/mcp"),
        (":authority", "127.0.0.1"),
        ("content-type", "application/json"),
        ("accept", "application/json"),
    ])
}

/// A connection.
pub(crate) struct Raw {
    stream: BufReader<TcpStream>,
}

impl Raw {
    /// Connects, and sends nothing.
    pub(crate) fn begin(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect_timeout(&addr, PATIENCE).expect("connects");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        stream.set_write_timeout(Some(PATIENCE)).expect("a timeout");
        stream.set_nodelay(true).expect("nodelay");
        Self { stream: BufReader::new(stream) }
    }

    pub(crate) fn connect(addr: SocketAddr, values: &[(u16, u32)]) -> Self {
        let mut raw = Self::begin(addr);
        raw.send(&[PREFACE, &settings(values)].concat());
        raw
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.get_mut().write_all(bytes).expect("sends");
    }

    /// Sends what the server may not take: whether it took it all.
    pub(crate) fn offer(&mut self, bytes: &[u8]) -> bool {
        self.stream.get_mut().write_all(bytes).is_ok()
    }

    /// Calls a tool.
    pub(crate) fn call(&mut self, stream: u32, tool: &str) {
        let body = modern(1, "tools/call", json!({ "name": tool, "arguments": {} })).to_string();
        self.send(&frame(kind::HEADERS, END_HEADERS, stream, &call_headers(tool)));
        self.send(&frame(kind::DATA, END_STREAM, stream, body.as_bytes()));
    }

    /// The next frame; `None` at the connection's end, however it came.
    pub(crate) fn next(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        if let Err(error) = self.stream.read_exact(&mut head) {
            assert_ne!(error.kind(), std::io::ErrorKind::WouldBlock, "the connection stays open, and is silent");
            return None;
        }
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        let mut payload = vec![0; length];
        self.stream.read_exact(&mut payload).ok()?;
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        if head[3] == kind::SETTINGS && head[4] & ACK == 0 {
            let _ = self.offer(&frame(kind::SETTINGS, ACK, 0, &[]));
        }
        Some(Frame { kind: head[3], stream, payload })
    }

    /// The first frame that is `wanted`; `None` when the connection ends before.
    pub(crate) fn until(&mut self, wanted: impl Fn(&Frame) -> bool) -> Option<Frame> {
        loop {
            let frame = self.next()?;
            if wanted(&frame) {
                return Some(frame);
            }
        }
    }

    /// Reads to the end of the connection: whether it said goodbye first.
    pub(crate) fn ends(&mut self) -> bool {
        let mut has_said_goodbye = false;
        while let Some(frame) = self.next() {
            has_said_goodbye |= frame.kind == kind::GOAWAY;
        }
        has_said_goodbye
    }

    /// A second handle, to read while it is written.
    pub(crate) fn reader(&self) -> Self {
        Self { stream: BufReader::new(self.stream.get_ref().try_clone().expect("a second handle")) }
    }
}
