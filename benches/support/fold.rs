//! A server that samples itself, and what becomes of the samples: stacks with names that stay the same from build to
//! build, a graph, and a table of shares.
//!
//! Not here: what is asked of the server.

use std::{
    collections::{BTreeMap, HashMap},
    env,
    fmt::Write as _,
    fs,
    path::Path,
    process::{Command, ExitCode},
};

use pprof::{ProfilerGuard, Report, flamegraph};

use crate::support::{Result, tools};

/// Names the file for the samples; the process that has it samples itself.
const SAVED: &str = "FLAMEGRAPH_SAMPLES";
/// Asked for; the kernel's clock tick decides how many there are, on many hosts 100. Not a divisor of anything that the
/// server does at intervals.
const SAMPLES_PER_S: i32 = 997;
/// Threads that have a part in calls: their names begin so.
const THREADS: [&str; 2] = ["io", "pool"];
/// From here on a thread of the runtime works.
const WORKER: &str = "tokio::runtime::scheduler::multi_thread::worker::Context::run";
/// Lines in the table for each row, of blocks and of functions.
const SHARES_MAX: usize = 12;
/// Functions that do nothing but enter the kernel.
const SYSTEM_CALLS: [&str; 10] =
    ["writev", "write", "send", "recv", "read", "epoll_wait", "epoll_ctl", "accept4", "syscall", "setsockopt"];

/// Asks the server that the command starts for samples, which it writes when it ends.
pub(crate) fn ask(command: &mut Command, saved: &Path) {
    command.env(SAVED, saved);
}

/// Serves and samples when this process was asked to; `None` when it is to measure.
pub(crate) fn serve_if_asked() -> Option<ExitCode> {
    let saved = env::var_os(SAVED)?;
    let guard = match ProfilerGuard::new(SAMPLES_PER_S) {
        Ok(guard) => guard,
        Err(error) => return Some(failed(&error.to_string())),
    };
    let code = tools::serve_if_asked()?;
    let saving = guard.report().build().map_err(Into::into).and_then(|report| save(&report, Path::new(&saved)));
    Some(saving.map_or_else(|error| failed(&error.to_string()), |()| code))
}

#[allow(clippy::print_stderr)] // it goes into the log of the server
fn failed(why: &str) -> ExitCode {
    eprintln!("no samples: {why}");
    ExitCode::FAILURE
}

/// One line for each stack: the thread, the functions from the outermost on, and how many samples found it.
fn save(report: &Report, file: &Path) -> Result<()> {
    let mut text = String::new();
    for (frames, count) in &report.data {
        let thread = frames.thread_name_or_id();
        if !THREADS.iter().any(|name| thread.starts_with(name)) {
            continue;
        }
        text.push_str(&thread);
        for symbol in frames.frames.iter().rev().flat_map(|inlined| inlined.iter().rev()) {
            let _ = write!(text, ";{}", symbol.name());
        }
        let _ = writeln!(text, " {count}");
    }
    Ok(fs::write(file, text)?)
}

/// Draws what a server saved.
pub(crate) fn draw(saved: &Path, title: &str, drawn: &Path) -> Result<Stacks> {
    let mut stacks: Stacks = BTreeMap::new();
    for line in fs::read_to_string(saved)?.lines() {
        let (names, count) = line.rsplit_once(' ').ok_or("a stack without a count")?;
        *stacks.entry(stack(names)).or_default() += count.parse::<u64>()?;
    }
    let lines: Vec<String> = stacks.iter().map(|(stack, count)| format!("{stack} {count}")).collect();
    let mut options = flamegraph::Options::default();
    options.title = title.to_owned();
    options.count_name = "samples".to_owned();
    options.deterministic = true;
    options.hash = true; // the colour of a name is the same in every graph
    options.min_width = 0.1;
    options.image_width = Some(1600);
    let mut svg = Vec::new();
    flamegraph::from_lines(&mut options, lines.iter().map(String::as_str), &mut svg)?;
    fs::write(drawn, svg)?;
    Ok(stacks)
}

/// Samples by stack, with names as they are shown.
pub(crate) type Stacks = BTreeMap<String, u64>;

/// A stack as it is shown. Functions of the standard library count for who called them: which of them are there is up to
/// the compiler, and says nothing of this program.
fn stack(names: &str) -> String {
    let (thread, names) = names.split_once(';').unwrap_or((names, ""));
    let mut shown: Vec<String> = Vec::new();
    for name in names.split(';').map(short) {
        if !name.is_empty() && !is_std(&name) && shown.last() != Some(&name) {
            shown.push(name);
        }
    }
    // How a thread of the runtime comes to its work is the same in every stack.
    if let Some(at) = shown.iter().rposition(|name| name.as_str() == WORKER) {
        shown.drain(..at);
    }
    let thread = thread.trim_end_matches(|c: char| c.is_ascii_digit() || c == '-');
    [&[thread.to_owned()], shown.as_slice()].concat().join(";")
}

/// Also what it does for any type, which then has a letter for a name, and for slices.
fn is_std(name: &str) -> bool {
    let Some((first, _)) = name.split_once("::") else { return false };
    ["core", "std", "alloc"].contains(&first) || first.starts_with(['[', '(']) || first.trim_end_matches(':').len() == 1
}

/// A name without what differs from build to build or is too long to show: type parameters, closures, the trait that a
/// function belongs to.
fn short(name: &str) -> String {
    let name = match name.strip_prefix('<') {
        Some(rest) => {
            let end = closing(rest);
            let own = rest[..end].split(" as ").next().unwrap_or_default();
            format!(
                "{}{}",
                own.trim_start_matches(['&', '*']).trim_start_matches("mut "),
                rest.get(end + 1..).unwrap_or("")
            )
        }
        None => name.to_owned(),
    };
    let mut out = String::with_capacity(name.len());
    let mut depth = 0_usize;
    for (at, c) in name.char_indices() {
        match c {
            '<' => depth += 1,
            // not the arrow of a function's type
            '>' if !name[..at].ends_with('-') => depth = depth.saturating_sub(1),
            _ if depth == 0 => out.push(c),
            _ => {}
        }
    }
    if !out.contains("::") {
        return c_name(&out).to_owned();
    }
    let parts = out.split("::").filter(|part| !part.is_empty() && !part.starts_with('{'));
    parts.collect::<Vec<_>>().join("::")
}

/// The name of a function of the C library as the manual has it, whichever variant of it this processor got.
fn c_name(name: &str) -> &str {
    let name = name.strip_prefix("__GI_").unwrap_or(name).trim_start_matches('_');
    let name = name.strip_prefix("libc_").unwrap_or(name);
    ["memcpy", "memmove", "memcmp", "memset", "memchr"]
        .into_iter()
        .find(|plain| name.starts_with(plain))
        .unwrap_or(name)
}

/// What a function belongs to: a system call, a part of this program, or a library.
fn block(function: &str) -> String {
    if SYSTEM_CALLS.contains(&function) {
        return format!("system call {function}");
    }
    match function.split_once("::") {
        Some(("bigiron", rest)) => format!("bigiron::{}", rest.split("::").next().unwrap_or_default()),
        Some((name, _)) => name.to_owned(),
        None if function.starts_with("mi_") => "mimalloc".to_owned(),
        None => "C library".to_owned(),
    }
}

/// Where the angle bracket that was opened before is closed.
fn closing(text: &str) -> usize {
    let mut depth = 1;
    for (at, c) in text.char_indices() {
        match c {
            '<' => depth += 1,
            '>' if !text[..at].ends_with('-') => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return at;
        }
    }
    text.len()
}

/// Which share of each row's time each block had for itself, and each function.
pub(crate) struct Shares(BTreeMap<String, Vec<String>>);

impl Shares {
    /// What an earlier run wrote, for the rows that this one does not draw.
    pub(crate) fn read(file: &Path) -> Self {
        let mut rows: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for line in fs::read_to_string(file).unwrap_or_default().lines().skip(1) {
            if let Some((row, rest)) = line.split_once('\t') {
                rows.entry(row.to_owned()).or_default().push(rest.to_owned());
            }
        }
        Self(rows)
    }

    /// Reckons a row anew. Returns how many samples there were.
    pub(crate) fn take(&mut self, row: &str, stacks: &Stacks) -> Result<u64> {
        let all: u64 = stacks.values().sum();
        if all == 0 {
            return Err(format!("{row}: no samples").into());
        }
        let (mut blocks, mut functions) = (HashMap::<String, u64>::new(), HashMap::<String, u64>::new());
        for (stack, count) in stacks {
            let function = stack.rsplit(';').next().unwrap_or(stack);
            *blocks.entry(block(function)).or_default() += count;
            *functions.entry(function.to_owned()).or_default() += count;
        }
        let mut lines = largest("block", blocks, all);
        lines.extend(largest("function", functions, all));
        self.0.insert(row.to_owned(), lines);
        Ok(all)
    }

    pub(crate) fn write(&self, file: &Path) -> Result<()> {
        let mut text = "row\twhat\tpercent\tname\n".to_owned();
        for (row, lines) in &self.0 {
            for line in lines {
                let _ = writeln!(text, "{row}\t{line}");
            }
        }
        Ok(fs::write(file, text)?)
    }
}

#[allow(clippy::cast_precision_loss)] // some thousands
fn largest(what: &str, counts: HashMap<String, u64>, all: u64) -> Vec<String> {
    let mut counts: Vec<(String, u64)> = counts.into_iter().collect();
    counts.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    counts.truncate(SHARES_MAX);
    let line = |(name, count): (String, u64)| format!("{what}\t{:.1}\t{name}", count as f64 * 100.0 / all as f64);
    counts.into_iter().map(line).collect()
}
