//! What is asked, as bytes made beforehand, the handshake of sessions, and how an answer is read.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
};

use memchr::memmem;
use serde_json::json;

use super::{Plan, Result, reply::Reply, tally::End};
use crate::units::Secret;

/// Ids have one width, so that the next is written over the last.
const ID_BYTES: usize = 8;
const MODERN: &str = "2026-07-28";
const LEGACY: &str = "2025-11-25";

/// Which revision calls are made in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Mode {
    /// 2026-07-28, without sessions.
    Modern,
    /// 2025-11-25, a session for each connection.
    Sessions,
    /// Half of the connections each.
    Mix,
}

impl Mode {
    /// Whether the connection of this number has a session.
    pub(super) fn has_session(self, connection: usize) -> bool {
        match self {
            Self::Modern => false,
            Self::Sessions => true,
            Self::Mix => connection % 2 == 1,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Modern => "modern",
            Self::Sessions => "sessions",
            Self::Mix => "mix",
        }
    }
}

/// Whom and what to ask.
#[derive(Debug)]
pub(super) struct Target {
    address: SocketAddr,
    path: String,
    bearer: Option<Secret>,
    tool: String,
    arguments: String,
}

/// A call's bytes, with an id that counts up in place.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) bytes: Vec<u8>,
    id_at: usize,
}

impl Request {
    pub(super) fn next_id(&mut self) {
        for digit in self.bytes[self.id_at..self.id_at + ID_BYTES].iter_mut().rev() {
            if *digit < b'9' {
                *digit += 1;
                return;
            }
            *digit = b'0';
        }
    }
}

impl Target {
    pub(super) fn new(plan: &Plan) -> Self {
        let (tool, arguments) = (plan.tool.clone(), plan.arguments.to_string());
        Self { address: plan.address, path: plan.path.clone(), bearer: plan.bearer.clone(), tool, arguments }
    }

    /// A call, in a session or without.
    pub(super) fn call(&self, session: Option<&str>) -> Request {
        let (name, arguments) = (json!(self.tool), &self.arguments);
        let (headers, meta) = match session {
            Some(session) => (session_headers(session), String::new()),
            None => (
                format!("MCP-Protocol-Version: {MODERN}\r\nMcp-Method: tools/call\r\nMcp-Name: {}\r\n", self.tool),
                format!(
                    r#","_meta":{{"io.modelcontextprotocol/protocolVersion":"{MODERN}","io.modelcontextprotocol/clientInfo":{{"name":"bigiron-bench","version":"1"}},"io.modelcontextprotocol/clientCapabilities":{{}}}}"#
                ),
            ),
        };
        let before_id = r#"{"jsonrpc":"2.0","id":"#;
        let id = "1".repeat(ID_BYTES);
        let params = format!(r#"{{"name":{name},"arguments":{arguments}{meta}}}"#);
        let body = format!(r#"{before_id}{id},"method":"tools/call","params":{params}}}"#);
        let bytes = self.post(&headers, &body);
        let id_at = bytes.len() - body.len() + before_id.len();
        Request { bytes, id_at }
    }

    /// What opens a session.
    pub(super) fn initialize(&self) -> Vec<u8> {
        let body = format!(
            r#"{{"jsonrpc":"2.0","id":1,"method":"initialize","params":{{"protocolVersion":"{LEGACY}","capabilities":{{}},"clientInfo":{{"name":"bigiron-bench","version":"1"}}}}}}"#
        );
        self.post("", &body)
    }

    /// What follows in it.
    pub(super) fn announce(&self, session: &str) -> Vec<u8> {
        self.post(&session_headers(session), r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#)
    }

    /// Opens a session and returns its id.
    pub(super) fn open_session(&self, stream: &mut TcpStream) -> Result<String> {
        let reply = exchange(stream, &self.initialize())?;
        let session = reply.session().filter(|_| reply.status() == 200);
        let session = session.ok_or_else(|| format!("initialize opened no session:\n{}", reply.text()))?.to_owned();
        let reply = exchange(stream, &self.announce(&session))?;
        if reply.status() != 202 {
            return Err(format!("notifications/initialized was refused:\n{}", reply.text()).into());
        }
        Ok(session)
    }

    /// Ends a session, so that nothing of the load stays on the server.
    pub(super) fn close_session(&self, stream: &mut TcpStream, session: &str) -> Result<()> {
        let headers = self.authorization() + &session_headers(session);
        let (path, address) = (&self.path, self.address);
        exchange(stream, format!("DELETE {path} HTTP/1.1\r\nHost: {address}\r\n{headers}\r\n").as_bytes()).map(drop)
    }

    fn authorization(&self) -> String {
        self.bearer.as_ref().map_or_else(String::new, |key| format!("Authorization: Bearer {}\r\n", key.expose()))
    }

    fn post(&self, headers: &str, body: &str) -> Vec<u8> {
        let (path, address, length) = (&self.path, self.address, body.len());
        let headers = self.authorization() + headers;
        format!(
            "POST {path} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\n\
             Accept: application/json, text/event-stream\r\n{headers}Content-Length: {length}\r\n\r\n{body}"
        )
        .into_bytes()
    }
}

fn session_headers(session: &str) -> String {
    format!("MCP-Protocol-Version: {LEGACY}\r\nMcp-Session-Id: {session}\r\n")
}

fn exchange(stream: &mut TcpStream, request: &[u8]) -> Result<Reply> {
    stream.write_all(request)?;
    let mut reply = Reply::new();
    loop {
        let bytes = stream.read(reply.room()?)?;
        if bytes == 0 {
            return Err("the connection ended within an answer".into());
        }
        if reply.received(bytes)? {
            return Ok(reply);
        }
    }
}

/// How a call ended, by its whole answer. Good ones are many, so they are told from the others without parsing.
pub(super) fn end_of(reply: &Reply) -> End {
    let message = reply.message();
    if reply.status() == 200 && memmem::find(message, b"\"result\"").is_some() {
        return if memmem::find(message, b"\"isError\":true").is_some() { End::ToolError } else { End::Ok };
    }
    let parsed = serde_json::from_slice::<serde_json::Value>(message).unwrap_or_default();
    match parsed["error"]["code"].as_i64().and_then(|code| i32::try_from(code).ok()) {
        Some(code) => End::Refused(reply.status(), code),
        None if reply.status() == 200 => End::Broken,
        None => End::Refused(reply.status(), 0),
    }
}
