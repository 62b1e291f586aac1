//! The log: human-readable on a terminal, JSON lines otherwise. No secrets, no bodies.

use std::{
    io::{self, IsTerminal},
    time::Instant,
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tracing_subscriber::{EnvFilter, fmt};

use crate::telemetry::rarely::Rarely;

/// `[log]`: what is written to standard error.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Least level that is written, or directives such as "info,bigiron::front=debug".
    pub level: String,
    /// How lines look.
    pub format: Format,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// Human-readable on a terminal, JSON otherwise.
    #[default]
    Auto,
    /// Human-readable.
    Human,
    /// One JSON object a line.
    Json,
}

impl Default for Config {
    fn default() -> Self {
        Self { level: "info".into(), format: Format::Auto }
    }
}

/// How much of a panic's message is written; it may quote what a caller sent.
const PANIC_CHARS_MAX: usize = 200;

/// Starts logging to standard error, for the whole process; later calls change nothing.
///
/// # Errors
/// When `level` is neither a level nor directives.
pub fn init(config: &Config) -> Result<(), String> {
    let filter = EnvFilter::try_new(&config.level).map_err(|e| format!("log.level {:?}: {e}", config.level))?;
    let human = match config.format {
        Format::Auto => io::stderr().is_terminal(),
        Format::Human => true,
        Format::Json => false,
    };
    let lines = fmt().with_env_filter(filter).with_writer(io::stderr).with_target(!human);
    // An error says that somebody logs already: an author's program, or a second server in one process.
    let _ = if human {
        lines.with_ansi(io::stderr().is_terminal()).try_init()
    } else {
        lines.json().flatten_event(true).with_current_span(false).with_span_list(false).try_init()
    };
    Ok(())
}

/// Sends panics to the log as one line each, instead of several on standard error.
pub fn log_panics() {
    static RARELY: Rarely = Rarely::new();
    std::panic::set_hook(Box::new(|panic| {
        let Some(left_out) = RARELY.may(Instant::now()) else { return };
        let message: String = panic.payload_as_str().unwrap_or("no message").chars().take(PANIC_CHARS_MAX).collect();
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        tracing::error!(left_out, place, message, thread = std::thread::current().name().unwrap_or(""), "panicked");
    }));
}
