//! The options of `bigiron bench`, and what of them cannot be meant together. Nothing is done here.

use std::{
    net::{IpAddr, SocketAddr, ToSocketAddrs},
    path::PathBuf,
    time::Duration,
};

use clap::Args;
use serde_json::{Value, json};

use crate::load::{Arrivals, Mode};

/// Of descriptors, for all that is no connection.
const DESCRIPTORS_RESERVED: u64 = 64;
const DAY_S: f64 = 86_400.0;

const AFTER_HELP: &str = "\
Examples:
  bigiron bench                                     echo on a server that is started for it, 64 connections, closed loop
  bigiron bench --tool burn --arguments '{\"ms\":2}' --rate 200,400,800
                                                    open loop: latency counts from when a call should have been sent
  bigiron bench --url http://127.0.0.1:5000/mcp --key-file bench.key
                                                    a server that runs, and asks who calls
  bigiron bench --tuning a.toml --tuning b.toml     two configurations side by side, in turns
  bigiron bench --capacity --tool burn --arguments '{\"ms\":2}'
                                                    what this host can take, and the settings that follow
Exit codes: 0 also when calls were refused (the table says so), 1 when there is nothing to measure or no result, 2 for a
wrong command line. Ctrl-C ends the load and tells what was measured until then; a second one ends it at once.";

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(in crate::cli) struct Arguments {
    /// The endpoint of a server that runs, such as http://127.0.0.1:5000/mcp; without it one is started for this
    #[arg(long, conflicts_with_all = ["tuning", "capacity", "sets"])]
    pub(super) url: Option<String>,

    /// File with the API key or token to show to that server, where it asks; - reads standard input
    #[arg(long, value_name = "FILE", requires = "url")]
    pub(super) key_file: Option<PathBuf>,

    /// File of settings for the server that is started; several are compared
    #[arg(long, value_name = "FILE")]
    pub(super) tuning: Vec<PathBuf>,

    /// A setting for the server that is started, as for serve; may be repeated
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    pub(super) sets: Vec<String>,

    /// The tool that is called
    #[arg(long, default_value = "echo")]
    pub(super) tool: String,

    /// Its arguments, a JSON object; the default suits echo and burn
    #[arg(long, value_name = "JSON")]
    pub(super) arguments: Option<String>,

    /// Revision: 2026-07-28 without sessions, 2025-11-25 with one for each connection, or half each
    #[arg(long, value_enum, default_value = "modern")]
    pub(super) mode: Mode,

    /// Connections; a list makes a row for each
    ///
    /// Left out, it is 64 for a closed loop and 256 for an open one, whose calls wait when none is free. There can be as
    /// many as this process may have files open.
    #[arg(long, value_delimiter = ',', conflicts_with = "capacity", value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) connections: Vec<u32>,

    /// Calls per second over all connections, by a timetable (open loop); a list makes a row for each
    ///
    /// From 0.1 to 10000000. Without it each connection sends its next call when the last is answered (closed loop).
    #[arg(long, value_delimiter = ',', conflicts_with = "capacity", value_parser = rate)]
    pub(super) rate: Vec<f64>,

    /// The rates follow each other without a pause, over the same connections
    #[arg(long, requires = "rate", conflicts_with = "capacity")]
    pub(super) continuous: bool,

    /// How the calls of an open loop come
    #[arg(long, value_enum, default_value = "poisson", requires = "rate")]
    pub(super) arrivals: Arrivals,

    /// How long each row is measured, such as 10s or 500ms; a day at most
    #[arg(long, default_value = "10s", value_parser = some_duration)]
    pub(super) duration: Duration,

    /// And how long before that it runs unmeasured
    #[arg(long, default_value = "2s", value_parser = duration)]
    pub(super) warmup: Duration,

    /// How long an answer may take; a day at most
    #[arg(long, default_value = "30s", value_parser = some_duration)]
    pub(super) timeout: Duration,

    /// How often a refused call is sent again, at once
    #[arg(long, default_value_t = 0, conflicts_with = "capacity")]
    pub(super) retries: u32,

    /// Address that connections come from, to be another caller
    #[arg(long, value_name = "ADDRESS")]
    pub(super) from: Option<IpAddr>,

    /// Threads of the generator, up to 1024; 0 is one for each core that the server does not have
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..=1024))]
    pub(super) threads: u16,

    /// Rounds of a comparison, up to 100; left out, 3
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(super) rounds: Option<u32>,

    /// How often a row is measured again when something else used the host meanwhile
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(0..=100))]
    pub(super) repeats: u32,

    /// Find what this host can take of the tool
    #[arg(long)]
    pub(super) capacity: bool,

    /// With --capacity: the latency that callers bear, at p99; left out, ten times that of a call alone, and at least 5ms
    #[arg(long, value_parser = some_duration, requires = "capacity")]
    pub(super) p99: Option<Duration>,

    /// Write the results as JSON
    #[arg(long, value_name = "FILE")]
    pub(super) json: Option<PathBuf>,

    /// Draw the results
    #[arg(long, value_name = "FILE")]
    pub(super) svg: Option<PathBuf>,

    /// Allow a server on another host. Load on what is not yours is an attack
    #[arg(long, requires = "url")]
    pub(super) allow_remote: bool,

    /// Do what follows as a process that ends with this one: how servers are started here
    #[arg(long, hide = true, value_name = "PROCESS", requires = "owned")]
    pub(super) owner: Option<u32>,

    #[arg(last = true, hide = true, requires = "owner")]
    pub(super) owned: Vec<String>,
}

fn duration(text: &str) -> Result<Duration, String> {
    let parsed = match text.strip_suffix("ms") {
        Some(ms) => ms.parse().map(|ms: f64| ms / 1e3),
        None => text.strip_suffix('s').unwrap_or(text).parse(),
    };
    let seconds = parsed.ok().filter(|s: &f64| s.is_finite() && (0.0..=DAY_S).contains(s));
    seconds
        .map(Duration::from_secs_f64)
        .ok_or_else(|| "write seconds or milliseconds, such as 10s or 500ms; a day (86400s) at most".to_owned())
}

fn some_duration(text: &str) -> Result<Duration, String> {
    duration(text).and_then(|duration| match duration {
        Duration::ZERO => Err("this has to last for some time, such as 500ms".to_owned()),
        some => Ok(some),
    })
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse().ok().filter(|r: &f64| r.is_finite() && (0.1..=10_000_000.0).contains(r));
    rate.ok_or_else(|| "write calls per second, such as 500: from 0.1 to 10000000".to_owned())
}

impl Arguments {
    pub(super) fn is_comparison(&self) -> bool {
        self.tuning.len() > 1
    }

    /// What options cannot mean together, beside what clap is told.
    pub(super) fn check(&self, descriptors_max: u64) -> Result<(), String> {
        if self.capacity && self.is_comparison() {
            return Err("--capacity is of one configuration: say one --tuning".to_owned());
        }
        if self.rounds.is_some() && !self.is_comparison() {
            return Err("--rounds is for a comparison: say --tuning for each configuration".to_owned());
        }
        for (option, values) in [("--rate", self.rate.len()), ("--connections", self.connections.len())] {
            if self.is_comparison() && values > 1 {
                return Err(format!("a comparison has one {option}; run it again for each of the others"));
            }
        }
        let room = descriptors_max.saturating_sub(DESCRIPTORS_RESERVED);
        if let Some(most) = self.connections.iter().max().filter(|most| u64::from(**most) > room) {
            return Err(format!(
                "--connections {most}: this process may have {descriptors_max} files open, which is enough for {room}; \
                 raise that with `ulimit -n` (LimitNOFILE= in a unit of systemd)"
            ));
        }
        match (&self.json, &self.svg) {
            (Some(json), Some(svg)) if std::path::absolute(json).ok() == std::path::absolute(svg).ok() => {
                Err(format!("--json and --svg are both {}: say two files", json.display()))
            }
            _ => Ok(()),
        }
    }
}

/// The tool's arguments, or what suits the tools that are there for measuring.
pub(super) fn call_arguments(arguments: &Arguments) -> Result<Value, String> {
    let Some(text) = &arguments.arguments else {
        return match arguments.tool.as_str() {
            "echo" => Ok(json!({ "message": "hello" })),
            "burn" => Ok(json!({ "ms": 2 })),
            tool => Err(format!("--arguments is missing: a JSON object with what {tool} takes")),
        };
    };
    match serde_json::from_str(text) {
        Ok(value @ Value::Object(_)) => Ok(value),
        Ok(_) => Err(format!("--arguments {text}: not an object; write such as '{{\"ms\": 2}}'")),
        Err(error) => Err(format!("--arguments {text}: not JSON: {error}")),
    }
}

/// The address and path of an endpoint on this host, or on another when that is meant.
pub(super) fn endpoint(url: &str, allow_remote: bool) -> Result<(SocketAddr, String), String> {
    let rest = url
        .strip_prefix("http://")
        .ok_or_else(|| format!("--url {url}: only http:// is spoken here, such as http://127.0.0.1:5000/mcp"))?;
    let (host, path) =
        rest.split_once('/').map_or_else(|| (rest, "/mcp".to_owned()), |(host, path)| (host, format!("/{path}")));
    let address = host.to_socket_addrs().ok().and_then(|mut all| all.next());
    let address =
        address.ok_or_else(|| format!("--url {url}: {host:?} is no host with a port, such as 127.0.0.1:5000"))?;
    if !address.ip().is_loopback() && !allow_remote {
        return Err(format!(
            "--url {url}: {} is not this host; say --allow-remote when it is yours to put under load",
            address.ip()
        ));
    }
    Ok((address, path))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        bench: Arguments,
    }

    fn checked(line: &str) -> Result<(), String> {
        let words = std::iter::once("bench").chain(line.split_whitespace());
        let line = Line::try_parse_from(words).map_err(|error| error.to_string())?;
        line.bench.check(20_000)
    }

    #[test]
    fn durations_are_seconds_or_milliseconds() {
        for (text, ms) in [("10s", 10_000), ("10", 10_000), ("500ms", 500), ("0.5s", 500), ("0s", 0)] {
            assert_eq!(duration(text), Ok(Duration::from_millis(ms)), "{text}");
            assert_eq!(some_duration(text).is_ok(), ms > 0, "{text}");
        }
        for text in ["", "s", "ms", "1m", "-1s", "1e9s", "NaN", "inf"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_means_nothing_together_is_refused() {
        for line in [
            "",
            "--capacity --tuning a --p99 10ms --duration 1s --mode mix",
            "--tuning a --tuning b --rounds 2 --rate 5 --arrivals even --connections 7",
            "--rate 5,6 --connections 1,2 --retries 3 --json a --svg b",
            "--url x --allow-remote",
            "--url x --key-file ann.key",
        ] {
            assert_eq!(checked(line), Ok(()), "{line}");
        }
        for (line, says) in [
            ("--capacity --rate 5", "cannot be used with"),
            ("--capacity --connections 5", "cannot be used with"),
            ("--capacity --retries 5", "cannot be used with"),
            ("--capacity --tuning a --tuning b", "say one --tuning"),
            ("--p99 5ms", "--capacity"),
            ("--arrivals even", "--rate"),
            ("--allow-remote", "--url"),
            ("--key-file ann.key", "--url"),
            ("--rounds 5", "is for a comparison"),
            ("--rounds 5 --tuning a", "is for a comparison"),
            ("--tuning a --tuning b --rate 5,6", "a comparison has one --rate"),
            ("--tuning a --tuning b --connections 5,6", "a comparison has one --connections"),
            ("--json ./a --svg a", "say two files"),
            ("--connections 19937", "may have 20000 files open, which is enough for 19936"),
            ("--duration 0", "some time"),
            ("--timeout 0ms", "some time"),
            ("--duration 86401s", "a day"),
            ("--rate 0", "from 0.1 to 10000000"),
            ("--threads 1025", "0..=1024"),
        ] {
            let refused = checked(line).expect_err(line);
            assert!(refused.contains(says), "{line}: {refused}");
        }
    }

    #[test]
    fn only_this_host_is_put_under_load() {
        let local = SocketAddr::from(([127, 0, 0, 1], 5000));
        assert_eq!(endpoint("http://127.0.0.1:5000", false), Ok((local, "/mcp".to_owned())));
        assert_eq!(endpoint("http://127.0.0.1:5000/a/b", false), Ok((local, "/a/b".to_owned())));
        for url in
            ["https://127.0.0.1:5000", "127.0.0.1:5000", "http://127.0.0.1", "http://203.0.113.1:80/mcp", "http://:x"]
        {
            assert!(endpoint(url, false).is_err(), "{url}");
        }
        assert!(endpoint("http://203.0.113.1:80/mcp", true).is_ok());
    }
}
