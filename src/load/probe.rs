//! One call before any load: what is answered by an error alone is answered so ten thousand times a second as well, and
//! then there is nothing to measure. A server that is busy or slow is no reason not to begin.

use std::{
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use serde_json::Value;

use super::{
    Mode, Plan, Result,
    reply::Reply,
    requests::{Target, end_of},
    tally::End,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A call that takes longer than this may be just what is to be measured.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
/// Of what the server said.
const SAID_CHARS_MAX: usize = 300;

/// Calls the tool once, in each way that the plan does.
///
/// # Errors
/// What the server said, when it was neither a result nor that it is full.
pub(crate) fn probe(plan: &Plan) -> Result<()> {
    let ways: &[bool] = match plan.mode {
        Mode::Modern => &[false],
        Mode::Sessions => &[true],
        Mode::Mix => &[false, true],
    };
    for in_session in ways {
        call(plan, *in_session).map_err(|said| {
            format!("nothing to measure: the first call of {} failed: {}", plan.tool, cut(&said.to_string()))
        })?;
    }
    Ok(())
}

fn call(plan: &Plan, in_session: bool) -> Result<()> {
    let target = Target::new(plan);
    let mut stream = connect(plan)?;
    stream.set_read_timeout(Some(CONNECT_TIMEOUT))?;
    let session = if in_session { Some(target.open_session(&mut stream)?) } else { None };
    stream.set_read_timeout(Some(ANSWER_TIMEOUT.min(plan.timeout)))?;
    stream.write_all(&target.call(session.as_deref()).bytes)?;
    let mut reply = Reply::new();
    loop {
        let bytes = match stream.read(reply.room()?) {
            Ok(0) => return Err("the server ended the connection within its answer".into()),
            Ok(bytes) => bytes,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        if reply.received(bytes)? {
            break;
        }
    }
    if let Some(session) = session {
        let _ = target.close_session(&mut stream, &session); // the server ends it by itself later
    }
    match end_of(&reply) {
        End::Ok | End::Refused(503 | 429, _) => Ok(()),
        End::Refused(401 | 403, _) => {
            let said = said(reply.status(), reply.message(), reply.body());
            Err(format!("{said}; --key-file names the file with the key or token to show").into())
        }
        _ => Err(said(reply.status(), reply.message(), reply.body()).into()),
    }
}

fn connect(plan: &Plan) -> Result<TcpStream> {
    let address = plan.address;
    let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
    if let Some(from) = plan.from {
        socket
            .bind(&SocketAddr::new(from, 0).into())
            .map_err(|error| format!("--from {from}: connections to {address} cannot come from there: {error}"))?;
    }
    socket
        .connect_timeout(&address.into(), CONNECT_TIMEOUT)
        .map_err(|error| format!("cannot connect to {address}: {error}; is a server running there?"))?;
    Ok(socket.into())
}

/// What a server meant by an answer that is no result: its error, or the text of the tool's, or what came at all.
fn said(status: u16, message: &[u8], body: &[u8]) -> String {
    let parsed: Value = serde_json::from_slice(message).unwrap_or_default();
    if let Some(text) = parsed["error"]["message"].as_str() {
        return match parsed["error"]["code"].as_i64() {
            Some(code) => format!("{text} (error {code}, HTTP {status})"),
            None => format!("{text} (HTTP {status})"),
        };
    }
    let content = parsed["result"]["content"].as_array().map(Vec::as_slice).unwrap_or_default();
    if let Some(text) = content.iter().find_map(|part| part["text"].as_str()) {
        return format!("the tool says: {text}");
    }
    let body = String::from_utf8_lossy(body);
    match body.trim() {
        "" => format!("HTTP {status}; is this the path of an MCP server?"),
        text => format!("HTTP {status}; is this the path of an MCP server? It says: {text}"),
    }
}

fn cut(text: &str) -> String {
    let mut chars = text.chars();
    let mut kept: String = chars.by_ref().take(SAID_CHARS_MAX).collect();
    if chars.next().is_some() {
        kept.push('…');
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_quoted() {
        for (message, expected) in [
            (r#"{"error":{"code":-32602,"message":"no such tool"}}"#, "no such tool (error -32602, HTTP 404)"),
            (r#"{"result":{"isError":true,"content":[{"type":"text","text":"no file"}]}}"#, "the tool says: no file"),
            ("", "HTTP 404; is this the path of an MCP server?"),
            ("gone", "HTTP 404; is this the path of an MCP server? It says: gone"),
        ] {
            assert_eq!(said(404, message.as_bytes(), message.as_bytes()), expected);
        }
        assert_eq!(cut(&"ä".repeat(301)), format!("{}…", "ä".repeat(300)));
        assert_eq!(cut("short"), "short");
    }
}
