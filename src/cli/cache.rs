//! `bigiron cache invalidate`: asks a server that runs, by its admin listener, to serve no result any more that it kept.

use std::{
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use clap::{Args, Subcommand};
use serde_json::{Map, Value};

use crate::{
    config,
    front::admin::{Invalidation, OTHERS},
    units::Secret,
};

const TIMEOUT: Duration = Duration::from_secs(5);
/// What is read of an answer.
const ANSWER_BYTES_MAX: u64 = 64 * 1024;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Have a running server forget results that it keeps, and not keep those of runs under way
    Invalidate(Invalidate),
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("which").required(true).multiple(true))]
struct Invalidate {
    /// Results of this tool
    #[arg(long, group = "which", conflicts_with = "all")]
    tool: Option<String>,

    /// Of the call with these arguments only, a JSON object; with --caller where results are not public
    #[arg(long, value_name = "JSON", requires = "tool", value_parser = object)]
    arguments: Option<Map<String, Value>>,

    /// Results of this caller
    ///
    /// Without authentication, every caller is "anonymous". With it, a caller is written as the audit log writes it:
    /// issuer, subject and client (when there is one), each with its length in bytes, such as 12:bigiron:keys;3:ann;
    /// for the API keys of ann.
    #[arg(long, value_name = "CALLER", group = "which", conflicts_with = "all")]
    caller: Option<String>,

    /// All results
    #[arg(long, group = "which")]
    all: bool,

    /// The server's admin listener, which server.admin_listen sets, such as localhost:5001
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:5001", value_parser = address)]
    admin: SocketAddr,

    /// File with the API key or token to show, where [auth] is set; - reads standard input
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
}

fn address(text: &str) -> Result<SocketAddr, String> {
    config::listener_address(text)
        .map_err(|_| "expected an IP address and a port, such as 127.0.0.1:5001 or localhost:5001".into())
}

fn object(text: &str) -> Result<Map<String, Value>, String> {
    serde_json::from_str(text).map_err(|error| format!("not a JSON object: {error}"))
}

pub(super) fn run(arguments: Arguments) -> ExitCode {
    let Verb::Invalidate(wish) = arguments.verb;
    let body = Invalidation { tool: wish.tool, arguments: wish.arguments, caller: wish.caller, all: wish.all };
    match super::credentials(wish.key_file.as_deref()).and_then(|key| ask(wish.admin, key.as_ref(), &body)) {
        Ok(None) => super::print("forgotten\n"),
        Ok(Some(others)) => {
            // Who wants it forgotten everywhere, and goes on by this command's end, is not to think that it is.
            super::fail("cache invalidate", &format!("forgotten on this instance only; the others are {others}"))
        }
        Err(message) => super::fail("cache invalidate", &message),
    }
}

/// What is said of other instances that do not know yet, if that is so.
fn ask(admin: SocketAddr, key: Option<&Secret>, wish: &Invalidation) -> Result<Option<String>, String> {
    let unreachable =
        |error: io::Error| format!("no admin listener answers on {admin}: {error}; --admin names another");
    let body = serde_json::to_string(wish).map_err(|error| error.to_string())?;
    let mut stream = TcpStream::connect_timeout(&admin, TIMEOUT).map_err(unreachable)?;
    stream.set_read_timeout(Some(TIMEOUT)).map_err(unreachable)?;
    let length = body.len();
    let authorization = key.map_or_else(String::new, |key| format!("Authorization: Bearer {}\r\n", key.expose()));
    let request = format!(
        "POST /cache/invalidate HTTP/1.1\r\nHost: {admin}\r\n{authorization}Content-Type: application/json\r\n\
         Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
    );
    stream.write_all(request.as_bytes()).map_err(unreachable)?;
    let mut answer = String::new();
    stream.take(ANSWER_BYTES_MAX).read_to_string(&mut answer).map_err(unreachable)?;
    let body = answer.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    let told = serde_json::from_str::<Value>(body).ok();
    if answer.starts_with("HTTP/1.1 200") {
        let others = told.as_ref().and_then(|told| told[OTHERS].as_str());
        return Ok(others.map(str::to_owned));
    }
    let told = told.as_ref().and_then(|told| told["error"]["message"].as_str());
    if told.is_some_and(|told| told.contains("the MCP endpoint is")) {
        return Err(format!(
            "{admin} is the MCP endpoint's address (server.listen); --admin wants that of the admin listener \
             (server.admin_listen, 127.0.0.1:5001 unless it was set otherwise)"
        ));
    }
    let needs_key = ["HTTP/1.1 401", "HTTP/1.1 403"].iter().any(|refused| answer.starts_with(refused));
    if needs_key && let Some(told) = told {
        return Err(format!(
            "{told}; --key-file names the file with a key that has the scope of auth.admin_scope (bigiron:admin, unless \
             it was set otherwise) and those of auth.required_scopes; `bigiron key create --scope` makes one"
        ));
    }
    Err(told.map_or_else(|| format!("{admin} is no admin listener of bigiron"), str::to_owned))
}
