//! The command line: one file for each verb. Reads arguments and prints; what the verbs do is done elsewhere.
//! Exit codes are those that `AFTER_HELP` names.

mod bench;
mod cache;
mod check;
mod key;
mod nodes;
mod schema;
mod serve;
mod token;

use std::{
    fs::File,
    io::{self, Read, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::{Args, Command, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::{
    config::{Faults, Loaded, Sources},
    identity::TOKEN_BYTES_MAX,
    runtime::{self, Host},
    server::Builder,
    units::Secret,
};

/// Settings are wrong: `EX_CONFIG` of sysexits.h, which systemd can be told not to restart on.
const EXIT_CONFIG: u8 = 78;

const AFTER_HELP: &str = "\
Settings come from, each over the one before:
  built-in defaults
  ./tuning.toml when it is there, or the file that --tuning names
  the environment: BIGIRON_SECTION__KEY=value, such as BIGIRON_LIMITS__REQUEST_TIMEOUT_MS=8000;
    for one tool BIGIRON_TOOLS__read_file__TIMEOUT_MS, with the tool's name as it is
  --set section.key=value
  --listen
`bigiron check` prints every setting with where it came from.

Exit codes: 0 after a clean stop, 1 when the host does not give what is needed (a port in use), 2 for a wrong command
line, 78 for wrong settings, 143 or 130 after a second signal.";

/// The MCP server for when one server has to hold.
///
/// Without a verb it serves: `bigiron` is `bigiron serve`.
#[derive(Debug, Parser)]
#[command(name = "bigiron", version, after_help = AFTER_HELP, args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    verb: Option<Verb>,
    #[command(flatten)]
    serve: serve::Arguments,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Serve tools over HTTP (or over standard input and output)
    #[command(after_help = AFTER_HELP)]
    Serve(serve::Arguments),
    /// Check the settings and print each with its value, where it came from, and what 0 came to on this host
    ///
    /// Reads settings and files, and asks nobody: neither Redis nor an issuer is looked for. `bigiron nodes` asks Redis.
    #[command(after_help = AFTER_HELP)]
    Check(check::Arguments),
    /// Put load on a server and measure it, compare configurations, or find what this host can take
    Bench(Box<bench::Arguments>),
    /// Change what a running server keeps of results
    Cache(cache::Arguments),
    /// List the instances that share a Redis
    ///
    /// Ends with 0 as soon as Redis has said who there is, also when that is nobody; with 1 when Redis does not say, and
    /// with 78 for wrong settings, as where the keys are another deployment's.
    #[command(after_help = AFTER_HELP)]
    Nodes(nodes::Arguments),
    /// Make, list and revoke API keys
    Key(Box<key::Arguments>),
    /// Say why a token is accepted or refused
    Token(Box<token::Arguments>),
    /// Print the JSON Schema of tuning.toml, for editors
    Schema,
}

/// Where settings come from: the options that `serve` and `check` share.
#[derive(Debug, Args)]
struct SettingsArguments {
    /// File of settings; without it ./tuning.toml when that is there
    #[arg(long, value_name = "FILE")]
    tuning: Option<PathBuf>,

    /// Address and port of the MCP endpoint: the same as --set server.listen=ADDRESS
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<String>,

    /// One setting, such as pool.threads=8 or limits.request_bytes_max=2MiB; may be repeated
    ///
    /// The value is read as TOML, and as plain text where that does not fit.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE")]
    sets: Vec<String>,

    /// Allow addresses that other hosts can reach
    ///
    /// For the endpoint without [auth], and for the admin listener: everybody who reaches them can use them.
    #[arg(long)]
    insecure_no_auth: bool,
}

impl SettingsArguments {
    /// The settings; or what the process ends with, once standard error has what is wrong with them.
    fn load(self) -> Result<Loaded, ExitCode> {
        runtime::raise_descriptor_limit(); // before the host is read: what can be had is what counts
        let sources = Sources {
            file: self.tuning,
            environment: std::env::vars_os().collect(),
            sets: self.sets,
            listen: self.listen,
            insecure_no_auth: self.insecure_no_auth,
        };
        Loaded::from_sources(sources, Host::read()).map_err(|faults| refuse(&faults))
    }
}

/// The whole command line of `bigiron`, serving `server`: reads the process's arguments and does what they say.
pub fn run(server: Builder) -> ExitCode {
    let matches = command(server.identity_of()).get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    match cli.verb.unwrap_or(Verb::Serve(cli.serve)) {
        Verb::Serve(arguments) => serve::run(server, arguments),
        Verb::Check(arguments) => check::run(server, arguments),
        Verb::Bench(arguments) => bench::run(*arguments),
        Verb::Cache(arguments) => cache::run(arguments),
        Verb::Nodes(arguments) => nodes::run(arguments),
        Verb::Key(arguments) => key::run(*arguments),
        Verb::Token(arguments) => token::run(server, *arguments),
        Verb::Schema => schema::run(),
    }
}

/// The command line, under the name and version of an author's own program.
fn command(identity: Option<(&str, &str)>) -> Command {
    match identity {
        None => Cli::command(),
        Some((name, version)) => {
            Cli::command().name(name.to_owned()).version(version.to_owned()).about("An MCP server, by bigiron")
        }
    }
}

/// Says on standard error what is wrong with the settings.
fn refuse(faults: &Faults) -> ExitCode {
    let count = match faults.count() {
        1 => "one fault".to_owned(),
        n => format!("{n} faults"),
    };
    // Nothing can be done about a standard error that is closed; the exit code says it too.
    let _ = writeln!(io::stderr().lock(), "bigiron: {count} in the settings\n{faults}");
    ExitCode::from(EXIT_CONFIG)
}

/// Writes to standard output. A reader that has left (`bigiron check | head`) is no failure.
fn print(text: &str) -> ExitCode {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => {
            let _ = writeln!(io::stderr().lock(), "bigiron: cannot write to standard output: {e}");
            ExitCode::FAILURE
        }
        _ => ExitCode::SUCCESS,
    }
}

/// Ends a verb in what stood in its way.
fn fail(verb: &str, message: &str) -> ExitCode {
    let _ = writeln!(io::stderr().lock(), "bigiron {verb}: {message}");
    ExitCode::FAILURE
}

/// What is in a file; "-" is standard input.
fn read(file: &Path, bytes_max: u64) -> Result<Vec<u8>, String> {
    fn all(from: impl Read, bytes_max: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        from.take(bytes_max + 1).read_to_end(&mut bytes)?;
        if bytes.len() as u64 > bytes_max {
            return Err(io::Error::other(format!("it has more than {bytes_max} bytes")));
        }
        Ok(bytes)
    }
    let bytes = if file.as_os_str() == "-" {
        all(io::stdin().lock(), bytes_max)
    } else {
        File::open(file).and_then(|file| all(file, bytes_max))
    };
    bytes.map_err(|error| format!("{} cannot be read: {error}", file.display()))
}

/// The API key or token in a file ("-" is standard input), which is shown to nobody but the server.
fn credentials(file: Option<&Path>) -> Result<Option<Secret>, String> {
    let Some(file) = file else { return Ok(None) };
    let bytes = read(file, TOKEN_BYTES_MAX as u64 + 2)?;
    match str::from_utf8(bytes.trim_ascii()) {
        Ok(key) if !key.is_empty() && key.bytes().all(|byte| byte.is_ascii_graphic()) => Ok(Some(Secret::new(key))),
        _ => Err(format!("{} has no API key or token in it, alone on one line", file.display())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        command(None).debug_assert();
        let own = command(Some(("mine", "1.2.3")));
        assert_eq!((own.get_name(), own.get_version()), ("mine", Some("1.2.3")));
        own.debug_assert();
    }

    #[test]
    fn options_work_with_and_without_the_verb() {
        for line in ["bigiron --listen a --set b=c --stdio", "bigiron serve --listen a --set b=c --stdio"] {
            let cli = Cli::try_parse_from(line.split(' ')).expect(line);
            let Verb::Serve(serve) = cli.verb.unwrap_or(Verb::Serve(cli.serve)) else { panic!("{line}") };
            assert_eq!(serve.settings.listen.as_deref(), Some("a"), "{line}");
            assert_eq!(serve.settings.sets, ["b=c"], "{line}");
            assert!(serve.stdio, "{line}");
        }
        for line in
            ["bigiron --listen a check", "bigiron check --stdio", "bigiron schema --listen a", "bigiron --nonsense"]
        {
            assert!(Cli::try_parse_from(line.split(' ')).is_err(), "{line}");
        }
    }
}
