//! A page of hits as it fills: what is left out before it, what belongs to a hit, and when it is full.

use std::{
    fs::File,
    io::{self, Read},
};

use grep_matcher::Matcher;
use grep_regex::RegexMatcher;
use grep_searcher::{Searcher, Sink, SinkContext, SinkContextKind, SinkMatch};

use super::Hit;
use crate::{
    call::Ctx,
    toolbox::output::{Room, json_bytes},
};

/// How much of a line is shown.
const LINE_SHOWN_BYTES_MAX: usize = 400;

/// The searcher's sink.
pub(super) struct Page<'a> {
    path: String,
    matcher: &'a RegexMatcher,
    ctx: &'a Ctx,
    pub(super) hits: Vec<Hit>,
    hits_max: usize,
    skip_left: u64,
    room: Room,
    /// Lines seen before a hit that has not come yet.
    before: Vec<String>,
    /// Whether lines after a hit belong to the last one of the page.
    follows_hit: bool,
    /// Set when a hit has no place any more.
    pub(super) more: bool,
}

impl<'a> Page<'a> {
    pub(super) fn new(matcher: &'a RegexMatcher, ctx: &'a Ctx, hits_max: usize, skip: u64, room: Room) -> Self {
        Self {
            path: String::new(),
            matcher,
            ctx,
            hits: Vec::new(),
            hits_max,
            skip_left: skip,
            room,
            before: Vec::new(),
            follows_hit: false,
            more: false,
        }
    }

    /// Adds the hits of a file, until the page is full.
    pub(super) fn search(&mut self, searcher: &mut Searcher, path: &str, file: File) -> io::Result<()> {
        path.clone_into(&mut self.path);
        self.before.clear();
        self.follows_hit = false;
        let (matcher, ctx) = (self.matcher, self.ctx);
        searcher.search_reader(matcher, Stoppable { file, ctx }, self)
    }

    fn add(&mut self, line: u64, bytes: &[u8]) -> bool {
        let text = shown(bytes, self.matcher.find(bytes).ok().flatten().map_or(0, |found| found.start()));
        let before = std::mem::take(&mut self.before);
        let mut hit = Hit { path: self.path.clone(), line, text, before, after: Vec::new() };
        if !self.room.take(json_bytes(&hit) + 16) {
            if !self.hits.is_empty() {
                return false;
            }
            // The first hit is always told, without what is around it when that is too much.
            hit.before.clear();
            self.room = Room::new(0);
        }
        self.hits.push(hit);
        true
    }
}

impl Sink for Page<'_> {
    type Error = io::Error;

    fn matched(&mut self, _: &Searcher, found: &SinkMatch<'_>) -> Result<bool, io::Error> {
        if self.ctx.is_cancelled() {
            return Ok(false);
        }
        self.follows_hit = false;
        if self.skip_left > 0 {
            self.skip_left -= 1;
            self.before.clear();
            return Ok(true);
        }
        if self.hits.len() == self.hits_max || !self.add(found.line_number().unwrap_or(0), found.bytes()) {
            self.more = true;
            return Ok(false);
        }
        self.follows_hit = true;
        Ok(true)
    }

    fn context(&mut self, _: &Searcher, line: &SinkContext<'_>) -> Result<bool, io::Error> {
        let text = shown(line.bytes(), 0);
        match line.kind() {
            SinkContextKind::Before => self.before.push(text),
            SinkContextKind::After if self.follows_hit => {
                if self.room.take(json_bytes(&text) + 1)
                    && let Some(hit) = self.hits.last_mut()
                {
                    hit.after.push(text);
                }
            }
            _ => {}
        }
        Ok(true)
    }

    fn context_break(&mut self, _: &Searcher) -> Result<bool, io::Error> {
        self.before.clear();
        Ok(true)
    }
}

/// A line as it is shown: without its end, and when it is long, the part around its match.
fn shown(line: &[u8], match_start: usize) -> String {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.len() <= LINE_SHOWN_BYTES_MAX {
        return String::from_utf8_lossy(line).into_owned();
    }
    let is_inner = |at: usize| line.get(at).is_some_and(|byte| byte & 0xC0 == 0x80);
    let mut from = match_start.saturating_sub(LINE_SHOWN_BYTES_MAX / 4).min(line.len() - LINE_SHOWN_BYTES_MAX);
    let mut to = from + LINE_SHOWN_BYTES_MAX;
    // At most three steps to the next character, so that none is cut.
    (0..3).for_each(|_| from += usize::from(is_inner(from)));
    (0..3).for_each(|_| to -= usize::from(is_inner(to)));
    let text = String::from_utf8_lossy(&line[from..to]);
    let (head, tail) = (if from > 0 { "… " } else { "" }, if to < line.len() { " …" } else { "" });
    format!("{head}{text}{tail} [line of {} bytes]", line.len())
}

/// A file that ends with an error when the call is cancelled, so that a long file without hits stops too.
pub(super) struct Stoppable<'a> {
    pub(super) file: File,
    pub(super) ctx: &'a Ctx,
}

impl Read for Stoppable<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.ctx.is_cancelled() {
            return Err(io::Error::other("cancelled"));
        }
        self.file.read(buffer)
    }
}
