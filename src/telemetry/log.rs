//! The log: human-readable on a terminal, JSON lines otherwise. No secrets, no bodies.

use std::{
    io::{self, IsTerminal},
    time::Instant,
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tracing_subscriber::{EnvFilter, filter::LevelFilter, fmt};

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

/// What crates that we use may say at most where nothing is set for them: what an operator is to know of it is said here in
/// our own words. The client of Redis says each attempt to reach each node, the toolkit each session.
const QUIET: [(&str, LevelFilter); 2] = [("redis", LevelFilter::OFF), ("rmcp", LevelFilter::WARN)];

/// How much of a panic's message is written; it may quote what a caller sent.
const PANIC_CHARS_MAX: usize = 200;

/// Starts logging to standard error, for the whole process; later calls change nothing.
///
/// # Errors
/// When `level` is neither a level nor directives.
pub fn init(config: &Config) -> Result<(), String> {
    let filter = filter(&config.level)?;
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

/// What is written at this level. A directive that names a crate says all there is to say of it.
fn filter(level: &str) -> Result<EnvFilter, String> {
    let of_all = level.split(',').map(str::trim).filter(|directive| !directive.is_empty());
    let of_all = of_all.filter_map(|directive| directive.parse::<LevelFilter>().ok()).next_back();
    let of_all = of_all.unwrap_or(LevelFilter::ERROR); // as where only targets are named
    let quiet = QUIET.iter().filter(|(_, most)| *most < of_all).map(|(target, most)| format!("{target}={most},"));
    let directives = quiet.collect::<String>() + level; // of two for one target the later one holds
    EnvFilter::try_new(directives).map_err(|e| format!("log.level {level:?}: {e}"))
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// The words that are written at this level, of each of those said.
    fn written(level: &str) -> Vec<String> {
        let lines = Lines::default();
        let to = lines.clone();
        let subscriber =
            fmt().with_env_filter(filter(level).expect(level)).with_ansi(false).with_writer(move || to.clone());
        tracing::subscriber::with_default(subscriber.finish(), || {
            tracing::warn!(target: "redis::cluster_handling::async_connection", "node");
            tracing::info!(target: "redis::client", "client");
            tracing::info!(target: "rmcp::service", "session");
            tracing::warn!(target: "rmcp::service", "odd");
            tracing::info!(target: "bigiron::cluster", "ours");
            tracing::error!(target: "author", "theirs");
        });
        let text = String::from_utf8(lines.0.lock().clone()).expect("text");
        text.lines().filter_map(|line| line.split(' ').next_back()).map(str::to_owned).collect()
    }

    #[test]
    fn what_other_crates_say_is_left_out_where_nobody_asks_for_it() {
        for (level, words) in [
            ("info", &["odd", "ours", "theirs"][..]),
            ("debug", &["odd", "ours", "theirs"]),
            ("warn", &["odd", "theirs"]),
            ("error", &["theirs"]),
            ("info,redis=debug", &["node", "client", "odd", "ours", "theirs"]),
            ("redis::cluster_handling=warn,info", &["node", "odd", "ours", "theirs"]),
            ("info,rmcp=info", &["session", "odd", "ours", "theirs"]),
            ("rmcp=info", &["session", "odd"]),
            ("info,author=off,", &["odd", "ours"]),
        ] {
            assert_eq!(written(level), words, "{level}");
        }
        assert!(filter("info,redis=loud").expect_err("no level").contains("\"info,redis=loud\""));
    }
}
