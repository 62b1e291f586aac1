//! `search_text`: lines that match a regular expression, in the files below the root. The searching is ripgrep's; the
//! regular expressions run in linear time. This file is the tool and its way through the files; `page` takes the hits
//! of one file after the other, counting them in the one order that the walk has.

mod page;

#[cfg(test)]
mod tests;

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use grep_matcher::LineTerminator;
use grep_regex::{RegexMatcher, RegexMatcherBuilder};
use grep_searcher::{BinaryDetection, Searcher, SearcherBuilder};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::page::Page;
use crate::{
    call::{Ctx, Lane},
    error::CallError,
    tool::{Json, Tool},
    toolbox::{
        output::{Room, stopped},
        root::{Node, Root},
        walk::{Walk, globs},
    },
};

const PATTERN_BYTES_MAX: usize = 4_096;
/// Size of the compiled pattern and of its state cache, each.
const REGEX_BYTES_MAX: usize = 8 << 20;
/// Longest line that is held in memory; a file with a longer one is not searched.
const LINE_HELD_BYTES_MAX: usize = 8 << 20;
const HITS_MAX: u64 = 1_000;
const CONTEXT_MAX: u64 = 10;
const PROGRESS_EVERY: Duration = Duration::from_millis(50);

const DESCRIPTION: &str = "Finds lines that match a regular expression in the files of the served folder, and says \
    path, line number and text of each. Use it to find where something is before reading it with read_file. Skips \
    binary and hidden files, symbolic links and what .gitignore names. Hits come in the order of paths; when `more` is \
    true, call again with `skip` set to `next_skip`.";

/// Searches the text of files.
#[derive(Debug)]
pub(super) struct SearchText {
    pub(super) root: Arc<Root>,
    pub(super) output_bytes_max: usize,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Args {
    /// Regular expression (Rust and RE2 syntax: no look-around, no backreferences), matched within single lines.
    #[schemars(length(min = 1, max = 4096))]
    pattern: String,
    /// File or folder to search, relative to the served folder. Empty searches everything.
    #[serde(default)]
    path: String,
    /// Globs of paths to take in, such as "*.rs" or "docs/**", or to leave out, such as "!tests/**".
    #[serde(default)]
    #[schemars(length(max = 32))]
    globs: Vec<String>,
    /// Whether case counts; smart: only when the pattern has an upper-case letter.
    #[serde(default)]
    case: Case,
    /// Takes the pattern as plain text instead of a regular expression.
    #[serde(default)]
    literal: bool,
    /// Lines to show before and after each hit.
    #[serde(default)]
    #[schemars(range(max = 10))]
    context: u64,
    /// Hits to return at most.
    #[serde(default = "hits_max_default")]
    #[schemars(range(min = 1, max = 1000))]
    hits_max: u64,
    /// Hits to leave out at the beginning, to get the next page.
    #[serde(default)]
    skip: u64,
    /// Searches hidden files and files that .gitignore names, too.
    #[serde(default)]
    include_ignored: bool,
}

fn hits_max_default() -> u64 {
    100
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
enum Case {
    #[default]
    Smart,
    Sensitive,
    Insensitive,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Found {
    /// Matching lines, by path and line.
    hits: Vec<Hit>,
    files_searched: u64,
    /// Whether there are further hits.
    more: bool,
    /// The `skip` that gets them.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_skip: Option<u64>,
    /// What could not be searched.
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<String>,
}

#[derive(Debug, Serialize, JsonSchema)]
struct Hit {
    path: String,
    line: u64,
    text: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    before: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    after: Vec<String>,
}

impl SearchText {
    pub(super) fn tool(self) -> Tool {
        Tool::new("search_text", DESCRIPTION, Lane::Pool, move |args: Args, ctx: Ctx| {
            self.search(&args, &ctx).map(Json)
        })
        .title("Search text in files")
        .read_only()
        .idempotent()
        .closed_world()
    }

    fn search(&self, args: &Args, ctx: &Ctx) -> Result<Found, CallError> {
        let matcher = matcher(args)?;
        let globs = globs(&args.globs)?;
        let mut searcher = searcher(args.context);
        let hits_max = usize::try_from(args.hits_max.clamp(1, HITS_MAX)).unwrap_or(usize::MAX);
        let mut page = Page::new(&matcher, ctx, hits_max, args.skip, Room::new(self.output_bytes_max));
        let mut tally = Tally::new(ctx);
        let start = if args.path.is_empty() { "." } else { &args.path };
        match self.root.node(start)? {
            Node::File(file, _) => {
                tally.add(page.search(&mut searcher, &args.path, file), 0);
            }
            Node::Folder => {
                let mut walk = Walk::new(&self.root, ctx, start, globs, args.include_ignored);
                while !page.more
                    && let Some(path) = walk.next()
                {
                    if ctx.is_cancelled() {
                        break;
                    }
                    let outcome = match self.root.open_found(&path) {
                        Some(file) => page.search(&mut searcher, &String::from_utf8_lossy(&path), file),
                        None => Err(io::ErrorKind::PermissionDenied.into()),
                    };
                    tally.add(outcome, page.hits.len());
                }
                tally.folders_skipped = walk.folders_skipped;
            }
        }
        if ctx.is_cancelled() {
            return Err(stopped(ctx));
        }
        let shown = u64::try_from(page.hits.len()).unwrap_or(u64::MAX);
        Ok(Found {
            files_searched: tally.files,
            note: tally.note(),
            more: page.more,
            next_skip: page.more.then(|| args.skip.saturating_add(shown)),
            hits: page.hits,
        })
    }
}

fn matcher(args: &Args) -> Result<RegexMatcher, CallError> {
    if args.pattern.is_empty() || args.pattern.len() > PATTERN_BYTES_MAX {
        return Err(CallError::tool(format!("the pattern must have 1 to {PATTERN_BYTES_MAX} bytes")));
    }
    RegexMatcherBuilder::new()
        .case_smart(args.case == Case::Smart)
        .case_insensitive(args.case == Case::Insensitive)
        .fixed_strings(args.literal)
        .size_limit(REGEX_BYTES_MAX)
        .dfa_size_limit(REGEX_BYTES_MAX)
        .crlf(true) // `$` stands before both kinds of line end
        .build(&args.pattern)
        .map_err(|error| {
            CallError::tool(format!(
                "the pattern cannot be used: {error}; mend it, or set literal to true to search for the text as it \
                 stands (matches stay within one line; look-around and backreferences do not exist here)"
            ))
        })
}

fn searcher(context: u64) -> Searcher {
    let context = usize::try_from(context.min(CONTEXT_MAX)).unwrap_or(0);
    SearcherBuilder::new()
        .line_terminator(LineTerminator::crlf())
        .line_number(true)
        .before_context(context)
        .after_context(context)
        .binary_detection(BinaryDetection::quit(0))
        .heap_limit(Some(LINE_HELD_BYTES_MAX))
        .build()
}

/// What was searched and what could not be; tells the client of it as it grows.
struct Tally<'a> {
    ctx: &'a Ctx,
    wants_progress: bool,
    told: Instant,
    files: u64,
    files_skipped: u64,
    folders_skipped: u64,
}

impl<'a> Tally<'a> {
    fn new(ctx: &'a Ctx) -> Self {
        let wants_progress = ctx.wants_progress();
        Self { ctx, wants_progress, told: Instant::now(), files: 0, files_skipped: 0, folders_skipped: 0 }
    }

    fn add(&mut self, outcome: io::Result<()>, hits: usize) {
        match outcome {
            Ok(()) => self.files += 1,
            Err(_) => self.files_skipped += 1,
        }
        if self.wants_progress && self.told.elapsed() >= PROGRESS_EVERY {
            self.told = Instant::now();
            let message = format!("{} files searched, {hits} hits", self.files);
            #[allow(clippy::cast_precision_loss)] // a count of files, for people
            self.ctx.progress(self.files as f64, None, &message);
        }
    }

    fn note(&self) -> Option<String> {
        (self.files_skipped + self.folders_skipped > 0).then(|| {
            format!(
                "not searched: {} files and {} folders (no permission, a line of more than {} MiB, or nested too deep)",
                self.files_skipped,
                self.folders_skipped,
                LINE_HELD_BYTES_MAX >> 20
            )
        })
    }
}
