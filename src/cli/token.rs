//! `bigiron token check`: says step by step what becomes of a token by these settings, and which tools it opens.

use std::{fmt::Write as _, path::PathBuf, process::ExitCode, time::SystemTime};

use clap::{Args, Subcommand};
use serde_json::{Value, json};

use super::{SettingsArguments, fail, print, read};
use crate::{
    identity::{Explained, JWKS_BYTES_MAX, Step, TOKEN_BYTES_MAX, explain},
    server::Builder,
    tool::Right,
};

const AFTER_HELP: &str = "\
Examples:
  bigiron token check token.txt
  printenv TOKEN | bigiron token check -
  bigiron token check --tuning /etc/bigiron/tuning.toml token.txt
The token itself is never shown. When it is accepted, all tools are listed: which its holder may call, and which not.
Keys of the issuer come from auth.jwks_file, or from --jwks: what the issuer answered to auth.jwks_url, as in
  curl -s https://issuer.example/keys -o keys.json
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

    /// Print JSON: {"accepted": ..., "steps": [...], "tools": [...]}
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    settings: SettingsArguments,
}

/// More than any token, with what may stand around it.
const FILE_BYTES_MAX: u64 = 4 * TOKEN_BYTES_MAX as u64;

const VERB: &str = "token check";

pub(super) fn run(server: Builder, arguments: Arguments) -> ExitCode {
    let Verb::Check(wish) = arguments.verb;
    let loaded = match wish.settings.load() {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    let token = read(&wish.file, FILE_BYTES_MAX).and_then(|bytes| {
        String::from_utf8(bytes).map_err(|_| format!("{} is no text, so it holds no token", wish.file.display()))
    });
    let jwks = wish.jwks.as_ref().map(|path| read(path, JWKS_BYTES_MAX as u64)).transpose();
    let (token, jwks) = match (token, jwks) {
        (Ok(token), Ok(jwks)) => (token, jwks),
        (Err(message), _) | (_, Err(message)) => return fail(VERB, &message),
    };
    let Explained { steps, who } = explain(&loaded.tuning.auth, jwks.as_deref(), &token, SystemTime::now());
    let tools = match who.as_ref().map(|who| server.rights_of(&loaded, who)).transpose() {
        Ok(tools) => tools.unwrap_or_default(),
        Err(error) => return error.tell(),
    };
    let told = if wish.json { json(&steps, who.is_some(), &tools) } else { text(&steps, who.is_some(), &tools) };
    let printed = print(&told);
    if who.is_some() { printed } else { ExitCode::FAILURE }
}

fn text(steps: &[Step], is_accepted: bool, tools: &[Right]) -> String {
    let mut out = String::new();
    for step in steps {
        let _ = match &step.outcome {
            Ok(found) => writeln!(out, "ok       {}: {found}", step.what),
            Err(why) => writeln!(out, "REFUSED  {}: {why}", step.what),
        };
    }
    for Right { name, may, unmet } in tools {
        let _ = match may {
            true => writeln!(out, "may      {name}"),
            false => writeln!(out, "may not  {name}: its {} are not met", unmet.join(" and ")),
        };
    }
    out.push_str(if is_accepted { "accepted\n" } else { "refused\n" });
    out
}

fn json(steps: &[Step], is_accepted: bool, tools: &[Right]) -> String {
    let steps = steps.iter().map(|step| match &step.outcome {
        Ok(found) => json!({ "what": step.what, "ok": true, "found": found }),
        Err(why) => json!({ "what": step.what, "ok": false, "why": why }),
    });
    let tools = tools.iter().map(|Right { name, may, unmet }| json!({ "name": name, "may": may, "unmet": unmet }));
    let (steps, tools): (Vec<Value>, Vec<Value>) = (steps.collect(), tools.collect());
    format!("{}\n", json!({ "accepted": is_accepted, "steps": steps, "tools": tools }))
}
