//! `bigiron serve`, which is what `bigiron` alone does.

use std::process::ExitCode;

use super::SettingsArguments;
use crate::server::Builder;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    pub(super) settings: SettingsArguments,

    /// Serve one client over standard input and output, as clients do that start their servers themselves
    #[arg(long)]
    pub(super) stdio: bool,
}

pub(super) fn run(server: Builder, arguments: Arguments) -> ExitCode {
    match arguments.settings.load() {
        Ok(loaded) => server.serve(&loaded, arguments.stdio),
        Err(code) => code,
    }
}
