//! What is asked: the bytes of each row, the handshake of the sessions, and the proof, before anything is
//! timed, that a server's answer is right.
//!
//! A row is one shape of call. Its figure says nothing of other tools, other sizes or other headers, and every
//! call of a row asks the same thing: only the rows of kept results are configured with a cache.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use super::{Result, reply::Reply};

/// Ids have one width, so that the next one is written over the last, and an answer's length does not vary.
pub(crate) const ID_BYTES: usize = 8;
const ID_FIRST: &[u8; ID_BYTES] = b"10000000";
/// Longer than any answer takes on a loaded machine.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

const MODERN: &str = "2026-07-28";
const LEGACY: &str = "2025-11-25";
/// One more than `limits.request_bytes_max` allows by default.
const TOO_LARGE_BYTES: usize = (1 << 20) + 1;
/// One call in a day, so that every call of a run but the first is refused.
const REFUSE_ALL: [&str; 2] = ["rate_limit.enabled=true", "rate_limit.per_ip=1 per 24h, burst 1"];
/// Behind this a refusal counts seconds down.
const RETRY: &[u8] = b"try again in ";
/// How the age of a kept result begins.
const AGE: &[u8] = br#""age_s":"#;
const HELLO: &str = r#"{"message":"hello"}"#;
const MODERN_META: &str = concat!(
    r#""io.modelcontextprotocol/protocolVersion":"2026-07-28","#,
    r#""io.modelcontextprotocol/clientInfo":{"name":"throughput","version":"1.0.0"},"#,
    r#""io.modelcontextprotocol/clientCapabilities":{}"#
);

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Row {
    /// `tools/call` of `echo`, stateless, in the 2026-07-28 revision.
    ModernEcho,
    /// `tools/call` of `echo` in a session of 2025-11-25; each connection has a session of its own.
    LegacyEcho,
    /// `tools/list`, stateless. Servers list their own tools, so their answers differ in size.
    ToolsList,
    /// `tools/list` with a hundred tools.
    #[value(name = "tools-list-100")] // as it is printed
    ToolsList100,
    /// `tools/call` of a tool whose result of 100 bytes is kept.
    #[value(name = "cached-100b")]
    Cached100B,
    /// The same with 10 KB.
    #[value(name = "cached-10kb")]
    Cached10KB,
    /// The same with 1 MB.
    #[value(name = "cached-1mb")]
    Cached1MB,
    /// `tools/call` of a tool that runs on a thread of the pool.
    Pool,
    /// `tools/call` that is answered by an event stream with one message of progress.
    Progress,
    /// `tools/call` that the rate limit refuses.
    RefusedRate,
    /// A head that announces a larger body than is allowed. The refusal ends the connection, so each call takes a new one.
    RefusedSize,
}

/// A request as bytes, with the place of its id.
pub(crate) struct Request {
    pub(crate) bytes: Vec<u8>,
    /// None where no body is sent.
    id_at: Option<usize>,
}

/// The answer that every call must get: all of it but the id.
pub(crate) struct Expected {
    pub(crate) status: u16,
    before_id: Vec<u8>,
    /// None where a server has one answer for everything, as bare hyper has.
    after_id: Option<Vec<u8>>,
    is_whole: bool,
}

impl Row {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::ModernEcho => "modern-echo",
            Self::LegacyEcho => "legacy-echo",
            Self::ToolsList => "tools-list",
            Self::ToolsList100 => "tools-list-100",
            Self::Cached100B => "cached-100b",
            Self::Cached10KB => "cached-10kb",
            Self::Cached1MB => "cached-1mb",
            Self::Pool => "pool",
            Self::Progress => "progress",
            Self::RefusedRate => "refused-rate",
            Self::RefusedSize => "refused-size",
        }
    }

    /// The status of every answer.
    pub(crate) fn status(self) -> u16 {
        match self {
            Self::RefusedRate => 429,
            Self::RefusedSize => 413,
            _ => 200,
        }
    }

    /// Whether bigiron refuses every call.
    pub(crate) fn is_refused(self) -> bool {
        self.status() != 200
    }

    /// What is not as by default.
    pub(crate) fn settings(self) -> &'static [&'static str] {
        if self == Self::RefusedRate { &REFUSE_ALL } else { &[] }
    }

    /// Whether its result is kept.
    pub(crate) fn is_kept(self) -> bool {
        matches!(self, Self::Cached100B | Self::Cached10KB | Self::Cached1MB)
    }

    /// Whether it calls what bigiron's own program does not have, nor any peer.
    pub(crate) fn needs_tools(self) -> bool {
        !self.is_refused() && !matches!(self, Self::ModernEcho | Self::LegacyEcho | Self::ToolsList)
    }

    pub(crate) fn has_session(self) -> bool {
        self == Self::LegacyEcho
    }

    pub(crate) fn request(self, address: SocketAddr, session: Option<&str>) -> Request {
        if self == Self::RefusedSize {
            let (_, headers, _) = modern_call("echo", HELLO, "");
            return Request { bytes: head(address, &headers, TOO_LARGE_BYTES).into_bytes(), id_at: None };
        }
        let id = String::from_utf8_lossy(ID_FIRST);
        let (method, headers, params) = match self {
            Self::ModernEcho | Self::RefusedRate | Self::RefusedSize => modern_call("echo", HELLO, ""),
            Self::Pool => modern_call("pool", HELLO, ""),
            Self::Progress => modern_call("progress", HELLO, r#""progressToken":1,"#),
            Self::Cached100B => modern_call("text", r#"{"bytes":100}"#, ""),
            Self::Cached10KB => modern_call("text", r#"{"bytes":10000}"#, ""),
            Self::Cached1MB => modern_call("text", r#"{"bytes":1000000}"#, ""),
            Self::LegacyEcho => (
                "tools/call",
                session_headers(session),
                r#"{"name":"echo","arguments":{"message":"hello"}}"#.to_owned(),
            ),
            Self::ToolsList | Self::ToolsList100 => (
                "tools/list",
                format!("MCP-Protocol-Version: {MODERN}\r\nMcp-Method: tools/list\r\n"),
                format!(r#"{{"_meta":{{{MODERN_META}}}}}"#),
            ),
        };
        let before_id = r#"{"jsonrpc":"2.0","id":"#;
        let body = format!(r#"{before_id}{id},"method":"{method}","params":{params}}}"#);
        let bytes = post(address, &headers, &body);
        let id_at = Some(bytes.len() - body.len() + before_id.len());
        Request { bytes, id_at }
    }

    /// Whether a message answers this row's question, whatever else it holds.
    fn is_answered_by(self, message: &serde_json::Value) -> bool {
        let result = &message["result"];
        match self {
            Self::Cached100B | Self::Cached10KB | Self::Cached1MB => {
                result["content"][0]["text"].as_str().is_some_and(|text| text.starts_with("xxx"))
            }
            Self::ModernEcho | Self::LegacyEcho | Self::Pool | Self::Progress => {
                let text = result["content"][0]["text"].as_str();
                text.is_some_and(|text| text.contains("hello")) && result["isError"] != true
            }
            Self::RefusedRate | Self::RefusedSize => message["error"]["code"].is_i64(),
            Self::ToolsList | Self::ToolsList100 => {
                result["tools"].as_array().is_some_and(|tools| tools.iter().any(|tool| tool["name"] == "echo"))
            }
        }
    }
}

impl Request {
    pub(crate) fn id(&self) -> &[u8] {
        self.id_at.map_or(&[], |at| &self.bytes[at..at + ID_BYTES])
    }

    /// Counts the id up in place.
    pub(crate) fn next_id(&mut self) {
        let Some(at) = self.id_at else { return };
        for digit in self.bytes[at..at + ID_BYTES].iter_mut().rev() {
            if *digit < b'9' {
                *digit += 1;
                return;
            }
            *digit = b'0';
        }
    }
}

impl Expected {
    pub(crate) fn fixed(status: u16, message: Vec<u8>) -> Self {
        Self { status, before_id: message, after_id: None, is_whole: true }
    }

    /// The same to everybody, but for the seconds that one is told to wait.
    fn refusal(status: u16, message: &[u8]) -> Self {
        let seconds = message.windows(RETRY.len()).position(|window| window == RETRY);
        let before_id = message[..seconds.unwrap_or(message.len())].to_vec();
        Self { status, before_id, after_id: None, is_whole: seconds.is_none() }
    }

    /// Takes the answer to the first request apart at its id.
    fn from_probe(message: &[u8], id: &[u8]) -> Result<Self> {
        let at = message.windows(id.len()).position(|window| window == id).ok_or("the answer lacks the id")?;
        let after_id = &message[at + id.len()..];
        // Of a kept result the age is said at the end, and grows.
        let fixed = after_id.windows(AGE.len()).rposition(|window| window == AGE).unwrap_or(after_id.len());
        Ok(Self {
            status: 200,
            before_id: message[..at].to_vec(),
            after_id: Some(after_id[..fixed].to_vec()),
            is_whole: fixed == after_id.len(),
        })
    }

    /// The whole message, byte for byte: some hundred bytes cost less to compare than a header to find.
    pub(crate) fn matches(&self, message: &[u8], id: &[u8]) -> bool {
        let Some(after_id) = &self.after_id else {
            return message.starts_with(&self.before_id) && (!self.is_whole || message.len() == self.before_id.len());
        };
        let rest = message.strip_prefix(self.before_id.as_slice()).and_then(|rest| rest.strip_prefix(id));
        rest.and_then(|rest| rest.strip_prefix(after_id.as_slice()))
            .is_some_and(|rest| rest.is_empty() || !self.is_whole)
    }
}

/// Asks a server once, as a client would, and learns what every later answer must be.
pub(crate) fn probe(row: Row, address: SocketAddr) -> Result<(Expected, Vec<u8>)> {
    let mut stream = connect(address)?;
    let session = if row.has_session() { open_session(&mut stream, address)? } else { None };
    let request = row.request(address, session.as_deref());
    let mut reply = exchange(&mut stream, &request.bytes)?;
    // The first was made, from now on it is served as it was kept; or was the one that the rate lets pass.
    if row.is_kept() || row == Row::RefusedRate {
        reply = exchange(&mut stream, &request.bytes)?;
    }
    let parsed = serde_json::from_slice::<serde_json::Value>(reply.message());
    let right = reply.status() == row.status() && parsed.is_ok_and(|message| row.is_answered_by(&message));
    if !right {
        return Err(format!("{} got a wrong answer:\n{}", row.name(), reply.text()).into());
    }
    let expected = if row.is_refused() {
        Expected::refusal(row.status(), reply.message())
    } else {
        Expected::from_probe(reply.message(), request.id())?
    };
    let message = reply.message().to_vec();
    close_session(&mut stream, address, session.as_deref())?;
    Ok((expected, message))
}

pub(crate) fn connect(address: SocketAddr) -> Result<TcpStream> {
    let stream = TcpStream::connect(address)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
    Ok(stream)
}

/// The handshake of the session revisions. A server may do without a session id; then there is none.
pub(crate) fn open_session(stream: &mut TcpStream, address: SocketAddr) -> Result<Option<String>> {
    let body = format!(
        r#"{{"jsonrpc":"2.0","id":1,"method":"initialize","params":{{"protocolVersion":"{LEGACY}","capabilities":{{}},"clientInfo":{{"name":"throughput","version":"1.0.0"}}}}}}"#
    );
    let reply = exchange(stream, &post(address, "", &body))?;
    if reply.status() != 200 {
        return Err(format!("initialize was refused:\n{}", reply.text()).into());
    }
    let session = reply.session().map(str::to_owned);
    let body = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
    let reply = exchange(stream, &post(address, &session_headers(session.as_deref()), body))?;
    if reply.status() != 202 {
        return Err(format!("notifications/initialized was refused:\n{}", reply.text()).into());
    }
    Ok(session)
}

/// Leaves nothing behind on the server for the next window to carry. A server may refuse with 405.
pub(crate) fn close_session(stream: &mut TcpStream, address: SocketAddr, session: Option<&str>) -> Result<()> {
    let Some(session) = session else { return Ok(()) };
    let headers = session_headers(Some(session));
    let reply = exchange(stream, format!("DELETE /mcp HTTP/1.1\r\nHost: {address}\r\n{headers}\r\n").as_bytes())?;
    match reply.status() {
        200..300 | 405 => Ok(()),
        _ => Err(format!("DELETE of a session was refused:\n{}", reply.text()).into()),
    }
}

/// Method, headers and parameters of a stateless call.
fn modern_call(tool: &str, arguments: &str, meta: &str) -> (&'static str, String, String) {
    let headers = format!("MCP-Protocol-Version: {MODERN}\r\nMcp-Method: tools/call\r\nMcp-Name: {tool}\r\n");
    let params = format!(r#"{{"name":"{tool}","arguments":{arguments},"_meta":{{{meta}{MODERN_META}}}}}"#);
    ("tools/call", headers, params)
}

fn session_headers(session: Option<&str>) -> String {
    let session = session.map(|session| format!("Mcp-Session-Id: {session}\r\n")).unwrap_or_default();
    format!("MCP-Protocol-Version: {LEGACY}\r\n{session}")
}

fn post(address: SocketAddr, headers: &str, body: &str) -> Vec<u8> {
    (head(address, headers, body.len()) + body).into_bytes()
}

fn head(address: SocketAddr, headers: &str, length: usize) -> String {
    let accept = "application/json, text/event-stream";
    format!(
        "POST /mcp HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nAccept: {accept}\r\n{headers}Content-Length: {length}\r\n\r\n"
    )
}

fn exchange(stream: &mut TcpStream, request: &[u8]) -> Result<Reply> {
    stream.write_all(request)?;
    let mut reply = Reply::new();
    loop {
        let bytes = stream.read(reply.room()?)?;
        if bytes == 0 {
            return Err(format!("the connection ended within an answer:\n{}", reply.text()).into());
        }
        if reply.received(bytes)? {
            return Ok(reply);
        }
    }
}
