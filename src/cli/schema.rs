//! `bigiron schema`.

use std::process::ExitCode;

pub(super) fn run() -> ExitCode {
    super::print(&format!("{:#}\n", crate::config::schema()))
}
