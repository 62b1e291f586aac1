//! Bytes out and what comes back: requests that can be wrong in every part, and what a row of the table may want.

use std::{fmt, net::SocketAddr, time::Duration};

use serde_json::{Value, json};

use crate::support::{Client, Response, modern};

/// How long a connection that should end may stay open.
const END_PATIENCE: Duration = Duration::from_secs(3);

/// The message of every call that must be refused; a server that can count its runs finds none with it.
pub(super) const FORBIDDEN: &str = "this must never reach a tool";
/// The message of calls that are served.
pub(super) const GOOD: &str = "good";

/// The id of every request here unless a row is about ids.
pub(super) const ID: i64 = 1;

/// A call of `echo` in the way of 2026-07-28.
pub(super) fn echo(message: &str) -> Value {
    modern(ID, "tools/call", json!({ "name": "echo", "arguments": { "message": message } }))
}

/// A call of `echo` as text, with this JSON as its id and this as its arguments.
pub(super) fn echo_text(id: &str, arguments: &str) -> String {
    let mut request = echo("");
    request["id"] = "ID".into();
    request["params"]["arguments"] = "ARGUMENTS".into();
    request.to_string().replace("\"ID\"", id).replace("\"ARGUMENTS\"", arguments)
}

/// An HTTP request, good until a row breaks it.
#[derive(Clone)]
pub(super) struct Request {
    line: String,
    headers: Vec<Vec<u8>>,
    body: Vec<u8>,
}

impl Request {
    /// A call of `echo` that should be refused.
    pub(super) fn forbidden() -> Self {
        Self::of(&echo(FORBIDDEN))
    }

    /// A call of `echo` that should be served.
    pub(super) fn good() -> Self {
        Self::of(&echo(GOOD))
    }

    /// A POST of this request of 2026-07-28, with its headers.
    pub(super) fn of(request: &Value) -> Self {
        let method = request["method"].as_str().unwrap_or("none");
        let this = Self::post(request.to_string()).with("MCP-Protocol-Version: 2026-07-28");
        let this = this.with(format!("Mcp-Method: {method}"));
        match request["params"]["name"].as_str() {
            Some(name) => this.with(format!("Mcp-Name: {name}")),
            None => this,
        }
    }

    /// A POST without any header of the protocol.
    pub(super) fn post(body: impl Into<Vec<u8>>) -> Self {
        let usual =
            ["Host: 127.0.0.1", "Content-Type: application/json", "Accept: application/json, text/event-stream"];
        let headers = usual.iter().map(|header| header.as_bytes().to_vec()).collect();
        Self { line: "POST /mcp HTTP/1.1".to_owned(), headers, body: body.into() }
    }

    /// A request without a body.
    pub(super) fn bare(line: &str) -> Self {
        Self { line: line.to_owned(), headers: vec![b"Host: 127.0.0.1".to_vec()], body: Vec::new() }
    }

    pub(super) fn line(mut self, line: impl Into<String>) -> Self {
        self.line = line.into();
        self
    }

    pub(super) fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        self
    }

    pub(super) fn body_len(&self) -> usize {
        self.body.len()
    }

    pub(super) fn with(mut self, header: impl AsRef<[u8]>) -> Self {
        self.headers.push(header.as_ref().to_vec());
        self
    }

    pub(super) fn without(mut self, name: &str) -> Self {
        self.headers.retain(|header| !is(header, name));
        self
    }

    /// Replaces a header.
    pub(super) fn but(self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.without(name).with([name.as_bytes(), b": ", value.as_ref()].concat())
    }

    /// Sends the body in one chunk.
    pub(super) fn chunked(self) -> Self {
        let body = [format!("{:x}\r\n", self.body.len()).as_bytes(), &self.body, b"\r\n0\r\n\r\n"].concat();
        self.with("Transfer-Encoding: chunked").body(body)
    }

    /// Adds a header that makes the whole head as long as this.
    pub(super) fn padded_to(self, head_bytes: usize) -> Self {
        let pad = |n: usize| format!("X-Pad: {}", "p".repeat(n));
        let now = self.clone().with(pad(0)).head().len();
        self.with(pad(head_bytes - now))
    }

    fn head(&self) -> Vec<u8> {
        let mut head = self.line.clone().into_bytes();
        let framed = self.headers.iter().any(|h| is(h, "content-length") || is(h, "transfer-encoding"));
        let length = format!("Content-Length: {}", self.body.len()).into_bytes();
        let length = (!framed && !self.body.is_empty()).then_some(&length);
        for header in self.headers.iter().chain(length) {
            head.extend_from_slice(b"\r\n");
            head.extend_from_slice(header);
        }
        head.extend_from_slice(b"\r\n\r\n");
        head
    }

    pub(super) fn bytes(&self) -> Vec<u8> {
        [self.head(), self.body.clone()].concat()
    }
}

fn is(header: &[u8], name: &str) -> bool {
    header.split(|b| *b == b':').next().is_some_and(|n| n.eq_ignore_ascii_case(name.as_bytes()))
}

/// All that came back on one connection.
#[derive(Debug)]
pub(super) struct Heard {
    pub(super) responses: Vec<Response>,
    /// The server ended the connection.
    pub(super) ended: bool,
}

impl Heard {
    pub(super) fn statuses(&self) -> Vec<u16> {
        self.responses.iter().map(|r| r.status).collect()
    }
}

/// Sends, and reads until the server ends the connection.
pub(super) fn until_end(addr: SocketAddr, bytes: &[u8]) -> Heard {
    let mut client = Client::connect(addr);
    client.set_patience(END_PATIENCE);
    client.offer(bytes);
    let responses = std::iter::from_fn(|| client.receive()).collect();
    Heard { responses, ended: client.is_closed() }
}

/// Sends, and reads one response.
pub(super) fn one(addr: SocketAddr, bytes: &[u8]) -> Heard {
    let mut client = Client::connect(addr);
    client.offer(bytes);
    Heard { responses: client.receive().into_iter().collect(), ended: false }
}

/// What has to come back.
#[derive(Clone, Copy, Debug)]
pub(super) enum Want {
    /// A refusal with this status and code.
    Refusal(u16, i64),
    /// The same, for a request of which nothing could be read: without an id.
    Nameless(u16, i64),
    /// The same, under the request's id.
    Named(u16, i64),
    /// An error of this code under the request's id, whether the status says so or not.
    Error(i64),
    /// A refusal with this status and code, and then the end of the connection.
    RefusalThenEnd(u16, i64),
    /// One of these statuses, however it is said, and then the end of the connection. 0 is the end alone.
    End(&'static [u16]),
    /// A call's result, whose first text is this.
    Text(&'static str),
    /// Some result of a call, also one that tells the agent what was wrong.
    Served,
    /// Taken in, and nothing said.
    Accepted,
}

use Want::{Accepted, End, Error, Named, Nameless, Refusal, RefusalThenEnd, Served, Text};

impl Want {
    /// Sends the bytes and says what is wrong with what came back.
    pub(super) fn of(self, addr: SocketAddr, bytes: &[u8]) -> Result<(), String> {
        let heard = match self {
            End(_) | RefusalThenEnd(..) => until_end(addr, bytes),
            _ => one(addr, bytes),
        };
        self.met(&heard).map_err(|wrong| format!("{wrong}; wanted {self:?}, got {}", told(&heard)))
    }

    fn met(self, heard: &Heard) -> Result<(), String> {
        let statuses = heard.statuses();
        if let End(wanted) = self {
            let status = statuses.first().copied().unwrap_or(0);
            wrong_if(!wanted.contains(&status), "another status")?;
        } else {
            wrong_if(statuses.is_empty(), "no answer")?;
        }
        wrong_if(statuses.len() > 1, "more than one answer")?;
        if let End(_) | RefusalThenEnd(..) = self {
            return wrong_if(!heard.ended, "the connection stays open").and_then(|()| match self {
                RefusalThenEnd(status, code) => Refusal(status, code).met(heard),
                _ => Ok(()),
            });
        }
        let response = &heard.responses[0];
        match self {
            Accepted => return wrong_if(response.status != 202, "another status"), // support checks the body
            Refusal(status, _) | Nameless(status, _) | Named(status, _) => {
                wrong_if(response.status != status, "another status")?;
            }
            Served | Text(_) => wrong_if(response.status != 200, "another status")?,
            _ => {}
        }
        let message = message_of(response)?;
        match self {
            Served => wrong_if(message.get("result").is_none(), "no result"),
            Text(text) => wrong_if(message["result"]["content"][0]["text"] != text, "another text"),
            Refusal(_, code) => wrong_if(message["error"]["code"] != code, "another code"),
            Nameless(_, code) => {
                wrong_if(message["error"]["code"] != code, "another code")?;
                wrong_if(message.get("id").is_some(), "an id, where none could be read")
            }
            Named(_, code) | Error(code) => {
                wrong_if(message["error"]["code"] != code, "another code")?;
                wrong_if(message["id"] != ID, "not the request's id")
            }
            _ => Ok(()),
        }
    }
}

/// The first response.
pub(super) fn first(heard: &Heard) -> Result<&Response, String> {
    heard.responses.first().ok_or_else(|| "no answer".to_owned())
}

/// Says what came when it is not what was wanted.
pub(super) fn wanted(right: bool, what: &str, got: impl fmt::Debug) -> Result<(), String> {
    if right { Ok(()) } else { Err(format!("wanted {what}, got {got:?}")) }
}

fn wrong_if(wrong: bool, what: &str) -> Result<(), String> {
    if wrong { Err(what.to_owned()) } else { Ok(()) }
}

/// The one message of a response, in either form.
pub(super) fn message_of(response: &Response) -> Result<Value, String> {
    match response.header("content-type") {
        Some("application/json") => Ok(response.json()),
        Some("text/event-stream") => {
            let mut events = response.events();
            wrong_if(events.len() != 1, "not one event")?;
            Ok(events.remove(0))
        }
        other => Err(format!("the content type is {other:?}")),
    }
}

fn told(heard: &Heard) -> String {
    let one = |r: &Response| format!("{} {}", r.status, String::from_utf8_lossy(&r.body[..r.body.len().min(200)]));
    let all: Vec<_> = heard.responses.iter().map(one).collect();
    format!("{all:?}{}", if heard.ended { ", then the end" } else { "" })
}
