//! `bigiron token check`: says step by step what becomes of a token by these settings.

use std::{
    fmt::Write as _,
    fs::File,
    io::{self, Read, Write as _},
    path::PathBuf,
    process::ExitCode,
    time::SystemTime,
};

use clap::{Args, Subcommand};

use super::{SettingsArguments, print, refuse};
use crate::identity::{Config, TOKEN_BYTES_MAX, explain};

const AFTER_HELP: &str = "\
Examples:
  bigiron token check token.txt
  printenv TOKEN | bigiron token check -
  bigiron token check --tuning /etc/bigiron/tuning.toml token.txt
The token itself is never shown. Keys of the issuer come from auth.jwks_file, or from --jwks: what the issuer answered
to auth.jwks_url, as in  curl -s https://issuer.example/keys -o keys.json.
Exit codes: 0 when it is accepted, 1 when it is refused or cannot be read, 78 for wrong settings.";

#[derive(Debug, Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Say why a token (or an API key) is accepted or refused
    #[command(after_help = AFTER_HELP)]
    Check(Check),
}

#[derive(Debug, Args)]
struct Check {
    /// File with the token; - reads standard input
    file: PathBuf,

    /// File with what auth.jwks_url answered
    #[arg(long, value_name = "FILE")]
    jwks: Option<PathBuf>,

    #[command(flatten)]
    settings: SettingsArguments,
}

/// More than any token, with what may stand around it.
const FILE_BYTES_MAX: u64 = 4 * TOKEN_BYTES_MAX as u64;

pub(super) fn run(arguments: Arguments) -> ExitCode {
    let Verb::Check(wish) = arguments.verb;
    let loaded = match wish.settings.load() {
        Ok(loaded) => loaded,
        Err(faults) => return refuse(&faults),
    };
    let read = |path: &PathBuf, bytes_max| {
        let bytes = if path.as_os_str() == "-" {
            read(io::stdin().lock(), bytes_max)
        } else {
            File::open(path).and_then(|file| read(file, bytes_max))
        };
        bytes.map_err(|error| format!("{} cannot be read: {error}", path.display()))
    };
    let token = read(&wish.file, FILE_BYTES_MAX).and_then(|bytes| {
        String::from_utf8(bytes).map_err(|_| format!("{} is no text, so it holds no token", wish.file.display()))
    });
    let jwks = wish.jwks.as_ref().map(|path| read(path, crate::identity::JWKS_BYTES_MAX as u64)).transpose();
    match (token, jwks) {
        (Ok(token), Ok(jwks)) => told(&loaded.tuning.auth, jwks.as_deref(), &token),
        (Err(message), _) | (_, Err(message)) => {
            let _ = writeln!(io::stderr().lock(), "bigiron token check: {message}");
            ExitCode::FAILURE
        }
    }
}

fn read(from: impl Read, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(bytes_max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > bytes_max {
        return Err(io::Error::other(format!("it has more than {bytes_max} bytes")));
    }
    Ok(bytes)
}

fn told(config: &Config, jwks: Option<&[u8]>, token: &str) -> ExitCode {
    let steps = explain(config, jwks, token, SystemTime::now());
    let mut out = String::new();
    for step in &steps {
        let _ = match &step.outcome {
            Ok(found) => writeln!(out, "ok       {}: {found}", step.what),
            Err(why) => writeln!(out, "REFUSED  {}: {why}", step.what),
        };
    }
    let refused = steps.iter().filter(|step| step.outcome.is_err()).count();
    out.push_str(if refused == 0 { "accepted\n" } else { "refused\n" });
    let printed = print(&out);
    if refused == 0 { printed } else { ExitCode::FAILURE }
}
