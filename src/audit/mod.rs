//! The audit trail: one line of JSON for each call and each refusal, and for what else an auditor asks about. Handed
//! over here, written by a thread of its own. What is worth a line, and what happens when none can be written, is
//! decided by who asks.
//!
//! A call is let in with [`Audit::admit`], which gives an [`Entry`]; its end, whichever it is, makes the line. With
//! `policy = "required"` the entry holds a place in the queue, so that a call that was let in has its line: who gets
//! no entry must not call. With `"best-effort"` a line without a place is dropped and counted. Lines that were handed
//! over are kept until they can be written, and are written once, whole, and in order.
//!
//! All who call share the one queue: that is what a trail in one file costs. Off, it is a `None`.

mod line;
#[cfg(test)]
mod tests;
mod writer;

use std::{
    fmt, io, mem,
    sync::{
        Arc,
        atomic::{
            AtomicBool, AtomicU64,
            Ordering::{Acquire, Relaxed},
        },
    },
    thread,
    time::{Duration, Instant, SystemTime},
};

use crossbeam_channel::{Sender, bounded};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

pub use self::line::{Head, Outcome, RequestId};
use self::writer::{Open, Order, Progress, Writer};

/// Orders that wait; each is from who waits for its answer.
const ORDERS_MAX: usize = 4;

/// `[audit]`: who called what, when, and what came of it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Where lines go: a file, made with mode 0600 and only ever appended to; "-" is standard error, "" is nowhere.
    pub file: String,
    /// What happens to calls when no line can be written.
    pub policy: Policy,
    /// What is written of a call's arguments.
    pub arguments: Arguments,
    /// Lines that wait to be written, and with "required" also calls that run. A line is at most 8 KiB.
    pub queue_max: usize,
}

/// What happens to calls when no line can be written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Policy {
    /// They are refused.
    Required,
    /// They are served, and the lines that are missing are counted.
    #[default]
    BestEffort,
}

/// What is written of a call's arguments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Arguments {
    /// Their SHA-256, which says whether two calls were alike. Who guesses short arguments can confirm the guess.
    #[default]
    Hash,
    /// They themselves, up to about 5 KB.
    Full,
    /// Nothing.
    None,
}

impl Default for Config {
    fn default() -> Self {
        Self { file: String::new(), policy: Policy::default(), arguments: Arguments::default(), queue_max: 10_000 }
    }
}

/// No line can be written, and calls need one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unwritable;

impl fmt::Display for Unwritable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("calls are recorded here, and this one cannot be now; try again later")
    }
}

impl std::error::Error for Unwritable {}

/// How many lines there were. Each line that was asked for is in one of `written`, `dropped` and `waiting`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Lines in the file, with those that say that it begins and ends.
    pub written: u64,
    /// Lines that are nowhere: there was no place, or it had stopped.
    pub dropped: u64,
    /// Lines handed over and not written. After the stop: lost.
    pub waiting: u64,
    /// Calls that got no entry, because no line could be written.
    pub refused: u64,
    /// Whether the last write failed.
    pub failing: bool,
}

/// The way to the trail, for all who add to it. Clones are the same trail.
#[derive(Clone, Debug)]
pub struct Audit(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    node: String,
    policy: Policy,
    arguments: Arguments,
    queue_max: usize,
    lines: Sender<Vec<u8>>,
    orders: Sender<Order>,
    progress: Arc<Progress>,
    dropped: AtomicU64,
    refused: AtomicU64,
    stopped: AtomicBool,
}

impl Audit {
    /// Opens the file and starts the thread. None when no file is named. `node` is what this instance is called.
    ///
    /// # Errors
    /// When the file cannot be opened.
    pub fn start(config: &Config, node: &str) -> Result<Option<Self>, String> {
        if config.file.is_empty() {
            return Ok(None);
        }
        Self::start_with(config, node, writer::open(&config.file)).map(Some)
    }

    /// Whether [`Audit::start`] could open the file. Makes none, and writes nothing.
    ///
    /// # Errors
    /// What the start would say.
    pub fn check(config: &Config) -> Result<(), String> {
        if config.file.is_empty() || config.file == "-" {
            return Ok(());
        }
        writer::could_open(config.file.as_ref()).map_err(|error| cannot_open(config, &error))
    }

    fn start_with(config: &Config, node: &str, open: Open) -> Result<Self, String> {
        let queue_max = config.queue_max.max(1);
        let (lines, lines_out) = bounded(queue_max);
        let (orders, orders_out) = bounded(ORDERS_MAX);
        let progress = Arc::new(Progress::default());
        let writer = Writer::start(
            open,
            config.file.clone().into(),
            node.to_owned(),
            lines_out,
            orders_out,
            Arc::clone(&progress),
        )
        .map_err(|error| cannot_open(config, &error))?;
        thread::Builder::new()
            .name("audit".into())
            .spawn(move || writer.run())
            .map_err(|error| format!("the thread that writes the audit log cannot be started: {error}"))?;
        Ok(Self(Arc::new(Shared {
            node: node.to_owned(),
            policy: config.policy,
            arguments: config.arguments,
            queue_max,
            lines,
            orders,
            progress,
            dropped: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
        })))
    }

    /// Asked before a call, whose line the entry will be.
    ///
    /// # Errors
    /// When the policy is "required" and no line can be written: the call must not be made.
    pub fn admit(&self, head: &Head<'_>) -> Result<Entry, Unwritable> {
        let shared = &*self.0;
        let required = shared.policy == Policy::Required;
        if required
            && (shared.progress.failing.load(Relaxed)
                || shared.stopped.load(Relaxed)
                || !shared.take_place(shared.queue_max))
        {
            shared.refused.fetch_add(1, Relaxed);
            return Err(Unwritable);
        }
        let line = line::begin(&shared.node, "call", SystemTime::now(), head, shared.arguments);
        Ok(Entry { audit: self.clone(), line, began: Instant::now(), has_place: required })
    }

    /// Whether every call is refused at the moment, since its line could not be written. Those that wait for the disk
    /// do not count: that passes.
    pub fn stops_calls(&self) -> bool {
        self.0.policy == Policy::Required && self.0.progress.failing.load(Relaxed)
    }

    /// A request that was not let in. Nothing was done for it, so a line that finds no place is dropped and counted,
    /// whatever the policy. Refusals take at most half of the places, so that a flood of them stops no call.
    pub fn refusal(&self, head: &Head<'_>, reason: &str) {
        self.0.hand_over_if(self.line("refusal", head, Outcome::Refused(reason)), self.0.queue_max / 2);
    }

    /// Something that somebody did who is not a caller of tools: what an operator had changed.
    pub fn deed(&self, event: &str, head: &Head<'_>) {
        self.0.hand_over_if(self.line(event, head, Outcome::Ok), self.0.queue_max);
    }

    fn line(&self, event: &str, head: &Head<'_>, outcome: Outcome<'_>) -> Vec<u8> {
        let mut line = line::begin(&self.0.node, event, SystemTime::now(), head, self.0.arguments);
        line::end(&mut line, outcome, None);
        line
    }

    /// Something that is no request: a reload, a drain, a key that was revoked.
    pub fn note(&self, event: &str, detail: &str) {
        self.0.hand_over_if(line::note(&self.0.node, event, SystemTime::now(), detail), self.0.queue_max);
    }

    /// Goes on in the file that has the name now, for who has moved the old one away and does not want to wait until
    /// that is noticed. Blocks until it is done, or
    /// until `patience` is over.
    ///
    /// # Errors
    /// When it cannot be opened, and then lines go on to where they went; or when the thread does not answer.
    pub fn reopen(&self, patience: Duration) -> Result<(), String> {
        self.order(patience, Order::Reopen)?
    }

    /// Writes all that was handed over, then ends. What comes later is dropped and counted; with "required", calls are
    /// refused. Blocks until it is done, or until `patience` is over.
    ///
    /// # Errors
    /// How many lines could not be written.
    pub fn stop(&self, patience: Duration) -> Result<(), String> {
        if self.0.stopped.swap(true, Relaxed) {
            return Ok(());
        }
        let ended = self.order(patience, Order::Stop);
        match self.counts().waiting {
            0 => ended,
            waiting => Err(format!("{waiting} lines of the audit log could not be written before the end")),
        }
    }

    /// How many lines there were.
    pub fn counts(&self) -> Counts {
        let Shared { progress, dropped, refused, .. } = &*self.0;
        let written = progress.written.load(Acquire);
        let handed_over = progress.handed_over.load(Relaxed);
        Counts {
            written,
            dropped: dropped.load(Relaxed),
            waiting: handed_over.saturating_sub(written),
            refused: refused.load(Relaxed),
            failing: progress.failing.load(Relaxed),
        }
    }

    fn order<T>(&self, patience: Duration, order: impl FnOnce(Sender<T>) -> Order) -> Result<T, String> {
        let (answer, answered) = bounded(1);
        self.0
            .orders
            .try_send(order(answer))
            .map_err(|_| "the audit log has stopped, or does not answer earlier orders".to_owned())?;
        answered.recv_timeout(patience).map_err(|_| format!("the audit log does not answer within {patience:?}"))
    }
}

fn cannot_open(config: &Config, error: &io::Error) -> String {
    format!("audit.file {:?} cannot be opened: {error}", config.file)
}

impl Shared {
    fn take_place(&self, places_max: usize) -> bool {
        let taken = &self.progress.taken;
        taken.fetch_update(Relaxed, Relaxed, |taken| (taken < places_max).then_some(taken + 1)).is_ok()
    }

    /// Hands over a line when one of so many places is free.
    fn hand_over_if(&self, line: Vec<u8>, places_max: usize) {
        if self.take_place(places_max) {
            self.hand_over(line);
        } else {
            self.dropped.fetch_add(1, Relaxed);
        }
    }

    /// Hands over a line that has its place.
    fn hand_over(&self, line: Vec<u8>) {
        self.progress.handed_over.fetch_add(1, Relaxed);
        // The queue has as much room as there are places, so only the end of the thread makes this fail.
        if self.stopped.load(Relaxed) || self.lines.try_send(line).is_err() {
            self.progress.handed_over.fetch_sub(1, Relaxed);
            self.progress.taken.fetch_sub(1, Relaxed);
            self.dropped.fetch_add(1, Relaxed);
        }
    }
}

/// A call that was let in. Its end is its line; when it is dropped, the line says that the call was cancelled.
#[derive(Debug)]
#[must_use = "when it is dropped, the line says that the call was cancelled"]
pub struct Entry {
    audit: Audit,
    line: Vec<u8>,
    began: Instant,
    has_place: bool,
}

impl Entry {
    /// Says what came of the call.
    pub fn finish(mut self, outcome: Outcome<'_>) {
        self.end(outcome);
    }

    fn end(&mut self, outcome: Outcome<'_>) {
        let mut line = mem::take(&mut self.line);
        line::end(&mut line, outcome, Some(self.began.elapsed()));
        let shared = &*self.audit.0;
        if self.has_place { shared.hand_over(line) } else { shared.hand_over_if(line, shared.queue_max) }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if !self.line.is_empty() {
            self.end(Outcome::Cancelled);
        }
    }
}
