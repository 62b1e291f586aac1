//! The server as a whole: `builder` is what it is put together from, `starting` builds every part (`parts`) once, `running`
//! is what runs then and how it stops, `serving` is the program.

mod builder;
mod doors;
mod forget;
mod metrics;
mod parts;
mod place;
mod process;
mod running;
mod serving;
mod share;
mod standing;
mod starting;
mod sweep;
mod watch;

use std::{
    fmt,
    io::{self, Write},
    process::ExitCode,
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub(crate) use self::place::spreads;
pub use self::{
    builder::Builder,
    running::{Running, Stopped},
};

/// `[server]`: where bigiron listens and how it stops.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Address and port of the MCP endpoint.
    pub listen: String,
    /// Address and port of the admin listener; empty switches it off.
    pub admin_listen: String,
    /// Path of the MCP endpoint.
    pub path: String,
    /// Host names that clients may use in the Host header, besides the loopback names and the listening address.
    pub allowed_hosts: Vec<String>,
    /// Origins of browser pages that may call, such as `https://app.example.com`. No page may by default.
    pub allowed_origins: Vec<String>,
    /// Networks of proxies whose `X-Forwarded-For` is believed. None by default.
    pub trusted_proxies: Vec<String>,
    /// How long everything is served as before after the first SIGTERM, while `/ready` says no already, in milliseconds.
    pub drain_delay_ms: u64,
    /// How long calls in flight may go on after that, in milliseconds.
    pub drain_grace_ms: u64,
    /// Text for the agent about this server, sent with server/discover and initialize; empty sends none.
    pub instructions: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:5000".into(),
            admin_listen: "127.0.0.1:5001".into(),
            path: "/mcp".into(),
            allowed_hosts: Vec::new(),
            allowed_origins: Vec::new(),
            trusted_proxies: Vec::new(),
            drain_delay_ms: 100,
            drain_grace_ms: 30_000,
            instructions: String::new(),
        }
    }
}

/// A server of your own tools. Start with [`Server::builder`].
#[derive(Debug)]
pub struct Server;

impl Server {
    /// A server without tools and with the built-in settings.
    pub fn builder() -> Builder {
        Builder::default()
    }
}

/// Why a server did not start.
#[derive(Debug)]
pub struct StartError {
    message: String,
    /// The settings are at fault, and starting again will not help.
    is_config: bool,
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for StartError {}

impl StartError {
    fn config(message: impl fmt::Display) -> Self {
        Self { message: message.to_string(), is_config: true }
    }

    fn host(what: &str, error: impl fmt::Display) -> Self {
        Self { message: format!("{what}: {error}"), is_config: false }
    }

    /// Says it on standard error and returns the exit code that says the same: 78 (`EX_CONFIG`) for settings, 1 for the
    /// host.
    pub fn tell(&self) -> ExitCode {
        // If standard error is closed, the exit code still says it.
        let _ = writeln!(io::stderr().lock(), "bigiron: {self}");
        ExitCode::from(if self.is_config { 78 } else { 1 })
    }
}
