//! Where `bigiron bench` tells how it goes, and the files that it writes.

use std::{
    fs::{self, OpenOptions},
    io::{self, IsTerminal, Write},
    path::Path,
};

use super::Failure;
use crate::load::News;

/// Tells how it goes: on a terminal in one line, once a second; elsewhere in a line for each row that is finished.
pub(super) fn progress_line() -> impl FnMut(News<'_>) {
    let is_terminal = io::stderr().is_terminal();
    let mut last = u64::MAX;
    move |news| match news {
        News::Running { label, passed, is_warming } if is_terminal && passed.as_secs() != last => {
            last = passed.as_secs();
            let state = if is_warming { ", warming up" } else { "" };
            let _ = write!(io::stderr().lock(), "\r\x1b[K{label}: {last} s{state}");
        }
        News::Finished(row) if !is_terminal => {
            let _ = writeln!(io::stderr().lock(), "{}: {:.0} good answers/s", row.label, row.tally.goodput());
        }
        _ => {}
    }
}

pub(super) fn clear_line() {
    if io::stderr().is_terminal() {
        let _ = write!(io::stderr().lock(), "\r\x1b[K");
    }
}

/// Found out before the load, and not after it.
pub(super) fn can_be_written(file: Option<&Path>) -> Result<(), Failure> {
    let Some(file) = file else { return Ok(()) };
    let is_new = !file.exists();
    if !is_new && !file.is_file() && !file.is_dir() {
        return Ok(()); // a pipe or the like, which opening would change
    }
    let opened = OpenOptions::new().append(true).create(true).open(file);
    opened.map_err(|error| Failure(1, format!("cannot write {}: {error}", file.display())))?;
    if is_new {
        fs::remove_file(file)?;
    }
    Ok(())
}

pub(super) fn write_file(file: Option<&Path>, text: impl FnOnce() -> String) -> Result<(), Failure> {
    let Some(file) = file else { return Ok(()) };
    fs::write(file, text()).map_err(|error| Failure(1, format!("cannot write {}: {error}", file.display())))
}
