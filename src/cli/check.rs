//! `bigiron check`: what a start with these settings would run with, as TOML, so that it can be read, compared and
//! kept as a file. What is weak in them is said after it, on standard error.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
    process::ExitCode,
    time::SystemTime,
};

use super::{SettingsArguments, print};
use crate::{
    config::{Loaded, Setting, Tuning, expired, weak},
    runtime::Host,
    server::Builder,
};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// End with exit code 1 when something is weak, for pipelines
    #[arg(long)]
    strict: bool,

    #[command(flatten)]
    settings: SettingsArguments,
}

pub(super) fn run(server: Builder, arguments: Arguments) -> ExitCode {
    let loaded = match arguments.settings.load() {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    let root = server.toolbox_root(&loaded);
    match server.check(&loaded) {
        Ok(()) => {
            let printed = print(&report(&loaded));
            // Last, where they are seen on a terminal. Nothing can be done about a standard error that is closed.
            let mut told = io::stderr().lock();
            for warning in loaded.warnings().into_iter().chain(expired(&loaded.tuning, SystemTime::now())) {
                let _ = writeln!(told, "bigiron: warning: {warning}");
            }
            if let Some(unasked) = unasked(&loaded.tuning) {
                let _ = writeln!(told, "bigiron: {unasked}");
            }
            let weak = weak(&loaded, root.as_deref());
            for weak in &weak {
                let _ = writeln!(told, "bigiron: weak: {weak}");
            }
            if arguments.strict && !weak.is_empty() { ExitCode::FAILURE } else { printed }
        }
        Err(error) => error.tell(),
    }
}

/// Whom a start would ask and this has not asked, where there is somebody.
fn unasked(tuning: &Tuning) -> Option<String> {
    let redis = tuning.cluster.is_on().then_some("Redis (`bigiron nodes` does)");
    let issuer = (!tuning.auth.jwks_url.is_empty()).then_some("the issuer");
    let unasked: Vec<_> = [redis, issuer].into_iter().flatten().collect();
    (!unasked.is_empty()).then(|| format!("the settings were read; nobody was asked: not {}", unasked.join(", nor ")))
}

/// Values longer than this do not move the remarks of the others to the right.
const VALUE_WIDTH_MAX: usize = 48;

fn report(loaded: &Loaded) -> String {
    let settings = loaded.settings();
    let lines: Vec<(&Setting, String)> = settings.iter().map(|s| (s, format!("{} = {}", s.key, s.toml()))).collect();
    let width = lines.iter().map(|(_, l)| l.len()).filter(|w| *w <= VALUE_WIDTH_MAX).max().unwrap_or(0);

    let mut out = format!("# {}\n", host(&loaded.host));
    let mut section = "";
    for (setting, line) in &lines {
        if setting.section != section {
            section = &setting.section;
            let _ = writeln!(out, "\n[{}]", header(section));
        }
        let _ = write!(out, "{line:width$}  # {}", setting.origin);
        if let Some(derived) = setting.derived {
            let _ = write!(out, "; here {}: {}", derived.value, derived.because);
        }
        out.push('\n');
    }
    out
}

/// A tool's name with a dot in it is one word in TOML only in quotes.
fn header(section: &str) -> String {
    match section.split_once('.') {
        Some((tools, name)) if name.contains('.') => format!("{tools}.\"{name}\""),
        _ => section.to_owned(),
    }
}

fn host(host: &Host) -> String {
    let quota =
        host.cpu_quota_millicores.map_or_else(String::new, |m| format!(", CPU quota {:.1} cores", m as f64 / 1000.0));
    let memory = match host.memory_usable_bytes() {
        u64::MAX => "memory unknown".to_owned(),
        bytes => format!("{:.1} GiB of memory", bytes as f64 / f64::from(1 << 30)),
    };
    let descriptors = match host.descriptors_max {
        u64::MAX => "any number of".to_owned(),
        n => n.to_string(),
    };
    let cores = match host.cores {
        1 => "1 core".to_owned(),
        n => format!("{n} cores"),
    };
    format!("this host: {cores}{quota}, {memory}, {descriptors} open files")
}
