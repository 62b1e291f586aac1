//! `read_file`: a part of a text file, by lines or, where a line is longer than an answer, by bytes. Whatever the
//! file's size, only what is answered and one buffer is held.

use std::{
    fs::File,
    io::{BufRead, BufReader, Read, Seek, SeekFrom},
    sync::Arc,
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    call::{Ctx, Lane},
    error::CallError,
    tool::{Json, Tool},
    toolbox::{
        output::{Room, json_bytes, stopped},
        root::Root,
    },
};

const LINES_MAX: u64 = 10_000;
const BUFFER_BYTES: usize = 64 << 10;
/// How much of a file's beginning tells whether it is text, as git does it.
const SNIFF_BYTES: usize = 8_000;

const DESCRIPTION: &str = "Reads a text file of the served folder, whole or by lines. Use it after search_text, with \
    `from_line` a little before the hit. An answer holds a limited number of bytes; when `more` is true, call again \
    with `from_line` set to `next_from_line` (or `from_byte` to `next_from_byte`, inside a very long line).";

/// Reads parts of files.
#[derive(Debug)]
pub(super) struct ReadFile {
    pub(super) root: Arc<Root>,
    pub(super) output_bytes_max: usize,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Args {
    /// Path of the file, relative to the served folder, such as "src/main.rs".
    path: String,
    /// First line to read; lines count from 1.
    #[serde(default = "one")]
    #[schemars(range(min = 1))]
    from_line: u64,
    /// Lines to read at most.
    #[serde(default = "lines_default")]
    #[schemars(range(min = 1, max = 10_000))]
    lines: u64,
    /// Byte to start at instead of a line, for going on inside a very long line.
    #[serde(default)]
    from_byte: Option<u64>,
}

fn one() -> u64 {
    1
}

fn lines_default() -> u64 {
    2_000
}

#[derive(Debug, Default, Serialize, JsonSchema)]
struct Part {
    /// The text, with its line ends.
    text: String,
    /// Line that the text starts with; absent when it was asked for by byte.
    #[serde(skip_serializing_if = "Option::is_none")]
    from_line: Option<u64>,
    /// Whole lines in the text.
    lines: u64,
    /// Size of the whole file.
    size_bytes: u64,
    /// Whether the file goes on after the text.
    more: bool,
    /// The `from_line` that goes on.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_from_line: Option<u64>,
    /// The `from_byte` that goes on, when the text ends inside a line.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_from_byte: Option<u64>,
    /// What is unusual about the text.
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<String>,
}

impl ReadFile {
    pub(super) fn tool(self) -> Tool {
        Tool::new("read_file", DESCRIPTION, Lane::Pool, move |args: Args, ctx: Ctx| self.read(&args, &ctx).map(Json))
            .title("Read a file")
            .read_only()
            .idempotent()
            .closed_world()
    }

    fn read(&self, args: &Args, ctx: &Ctx) -> Result<Part, CallError> {
        if args.from_byte.is_some() && args.from_line != 1 {
            return Err(CallError::tool("from_line and from_byte exclude each other; give one of them"));
        }
        let (file, identity) = self.root.open_file(&args.path)?;
        let mut reader = Reader { input: BufReader::with_capacity(BUFFER_BYTES, file), path: &args.path, ctx };
        reader.refuse_binary(identity.size)?;
        let start_byte = match args.from_byte {
            Some(byte) => reader.seek(byte, identity.size)?,
            None => reader.skip_lines(args.from_line.max(1) - 1)?,
        };
        let from_line = args.from_byte.is_none().then_some(args.from_line.max(1));
        let mut part = Part { from_line, size_bytes: identity.size, ..Part::default() };
        reader.fill(&mut part, start_byte, args.lines.clamp(1, LINES_MAX), Room::new(self.output_bytes_max))?;
        Ok(part)
    }
}

struct Reader<'a> {
    input: BufReader<File>,
    path: &'a str,
    ctx: &'a Ctx,
}

impl Reader<'_> {
    fn failed(&self, error: &std::io::Error) -> CallError {
        CallError::tool(format!("{:?} could not be read: {error}; try again or read another file", self.path))
    }

    /// The bytes at hand, read when there are none; empty at the end.
    fn buffer(&mut self) -> Result<&[u8], CallError> {
        if self.ctx.is_cancelled() {
            return Err(stopped(self.ctx));
        }
        let path = self.path;
        self.input.fill_buf().map_err(|error| {
            CallError::tool(format!("{path:?} could not be read: {error}; try again or read another file"))
        })
    }

    fn refuse_binary(&mut self, size: u64) -> Result<(), CallError> {
        let path = self.path;
        let buffer = self.buffer()?;
        let utf16 = buffer.starts_with(&[0xFF, 0xFE]) || buffer.starts_with(&[0xFE, 0xFF]);
        if utf16 || buffer[..buffer.len().min(SNIFF_BYTES)].contains(&0) {
            let what = if utf16 { "UTF-16 text" } else { "a binary file" };
            let hint = if buffer.starts_with(b"SQLite format 3\0") {
                "read it with query_sql, as `database`"
            } else {
                "only UTF-8 text can be read"
            };
            return Err(CallError::tool(format!("{path:?} is {what} of {size} bytes; {hint}")));
        }
        Ok(())
    }

    fn seek(&mut self, byte: u64, size: u64) -> Result<u64, CallError> {
        if byte > size {
            return Err(CallError::tool(format!("from_byte is {byte}, but {:?} has {size} bytes", self.path)));
        }
        self.input.seek(SeekFrom::Start(byte)).map_err(|error| self.failed(&error))
    }

    /// Goes past `lines` lines and says at which byte that is.
    fn skip_lines(&mut self, lines: u64) -> Result<u64, CallError> {
        let (mut left, mut byte) = (lines, 0);
        let mut ends_line = true;
        while left > 0 {
            let buffer = self.buffer()?;
            let Some(last) = buffer.last() else {
                let has = lines - left + u64::from(!ends_line);
                let path = self.path;
                return Err(CallError::tool(format!("{path:?} has {has} lines; from_line is {}", lines + 1)));
            };
            ends_line = *last == b'\n';
            let ends = count_line_ends(buffer);
            let used = if ends < left {
                left -= ends;
                buffer.len()
            } else {
                let nth = usize::try_from(left - 1).unwrap_or(usize::MAX);
                left = 0;
                buffer
                    .iter()
                    .enumerate()
                    .filter(|(_, byte)| **byte == b'\n')
                    .nth(nth)
                    .map_or(buffer.len(), |(at, _)| at + 1)
            };
            self.input.consume(used);
            byte += used as u64;
        }
        Ok(byte)
    }

    fn fill(&mut self, part: &mut Part, start: u64, lines: u64, mut room: Room) -> Result<(), CallError> {
        let mut line = Vec::new();
        let mut byte = start;
        let mut is_lossy = false;
        while part.lines < lines {
            if self.ctx.is_cancelled() {
                return Err(stopped(self.ctx));
            }
            line.clear();
            // One byte more than there is room for tells a line that does not fit.
            let room_for_line = room.left() as u64 + 1;
            (&mut self.input).take(room_for_line).read_until(b'\n', &mut line).map_err(|error| self.failed(&error))?;
            if line.is_empty() {
                break;
            }
            let text = String::from_utf8_lossy(&line);
            let is_whole = line.ends_with(b"\n") || (line.len() as u64) < room_for_line;
            if is_whole && room.take(json_bytes(&text) - 2) {
                is_lossy |= matches!(text, std::borrow::Cow::Owned(_));
                part.text.push_str(&text);
                part.lines += 1;
                byte += line.len() as u64;
                continue;
            }
            if part.lines == 0 {
                let fits = fitting(&line, room.left());
                let text = String::from_utf8_lossy(&line[..fits]);
                is_lossy |= matches!(text, std::borrow::Cow::Owned(_));
                part.text.push_str(&text);
                byte += fits as u64;
                part.next_from_byte = Some(byte);
            }
            break;
        }
        part.more = byte < part.size_bytes || !self.buffer()?.is_empty(); // it may have grown meanwhile
        if part.next_from_byte.is_none() && part.more {
            match part.from_line {
                Some(from) => part.next_from_line = Some(from + part.lines),
                None => part.next_from_byte = Some(byte),
            }
        }
        if is_lossy {
            part.note = Some("bytes that are not UTF-8 are shown as \u{FFFD}".into());
        }
        Ok(())
    }
}

/// How many of `bytes` fit into `room` bytes of JSON, ending between characters.
fn fitting(bytes: &[u8], room: usize) -> usize {
    let mut end = bytes.len().min(room);
    loop {
        let mut cut = end;
        while cut > end.saturating_sub(3) && bytes.get(cut).is_some_and(|byte| byte & 0xC0 == 0x80) {
            cut -= 1;
        }
        if cut <= 1 || json_bytes(&String::from_utf8_lossy(&bytes[..cut])) <= room + 2 {
            return cut.max(1).min(bytes.len());
        }
        end = end / 8 * 7;
    }
}

fn count_line_ends(bytes: &[u8]) -> u64 {
    // In runs of 255 the compiler counts in single bytes, many at a time.
    bytes.chunks(255).map(|run| u64::from(run.iter().map(|byte| u8::from(*byte == b'\n')).sum::<u8>())).sum()
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use serde_json::{Value, json};

    use super::*;
    use crate::toolbox::tests::{call, cancelled_ctx, cancelled_while_running, ctx, folder, refused, root_of};

    fn tool(dir: &tempfile::TempDir, output_bytes_max: usize) -> Tool {
        ReadFile { root: root_of(dir), output_bytes_max }.tool()
    }

    /// Reads on until the end and returns the whole text.
    fn read_all(tool: &Tool, path: &str, bytes_max: usize, lines: u64) -> String {
        let mut text = String::new();
        let mut arguments = json!({"path": path, "lines": lines});
        loop {
            let part = call(tool, arguments, ctx()).expect("reads");
            assert!(part.to_string().len() <= bytes_max, "{} > {bytes_max}", part.to_string().len());
            text.push_str(part["text"].as_str().unwrap());
            if part["more"] == false {
                return text;
            }
            arguments = match (part.get("next_from_line"), part.get("next_from_byte")) {
                (Some(line), None) => json!({"path": path, "from_line": line, "lines": lines}),
                (None, Some(byte)) => json!({"path": path, "from_byte": byte, "lines": lines}),
                other => panic!("no single way on: {other:?}"),
            };
        }
    }

    #[test]
    fn lines_are_read_by_number() {
        let dir = folder(&[("f", b"one\ntwo\nthree\nfour"), ("empty", b"")]);
        let tool = tool(&dir, 65_536);
        let read = |arguments: Value| call(&tool, arguments, ctx()).expect("reads");
        let whole = read(json!({"path": "f"}));
        assert_eq!(
            whole,
            json!({"text": "one\ntwo\nthree\nfour", "from_line": 1, "lines": 4, "size_bytes": 18, "more": false})
        );
        let part = read(json!({"path": "f", "from_line": 2, "lines": 2}));
        assert_eq!(
            (&part["text"], &part["more"], &part["next_from_line"]),
            (&json!("two\nthree\n"), &json!(true), &json!(4))
        );
        let part = read(json!({"path": "f", "from_line": 4}));
        assert_eq!((&part["text"], &part["more"]), (&json!("four"), &json!(false)));
        let part = read(json!({"path": "f", "from_byte": 4, "lines": 1}));
        assert_eq!((&part["text"], &part["next_from_byte"]), (&json!("two\n"), &json!(8)));
        assert_eq!(read(json!({"path": "empty"}))["text"], "");
        assert!(refused(&tool, json!({"path": "f", "from_line": 6})).contains("has 4 lines"));
        assert!(refused(&tool, json!({"path": "f", "from_byte": 19})).contains("has 18 bytes"));
        assert!(refused(&tool, json!({"path": "f", "from_byte": 1, "from_line": 2})).contains("exclude"));
        assert!(refused(&tool, json!({"path": "../f"})).contains("relative"));
    }

    #[test]
    fn parts_make_the_whole() {
        let mut content = String::new();
        for n in 0..3_000 {
            content.push_str(&format!("{n} \"quoted\" \u{1} ünï {}\n", "x".repeat(n % 50)));
        }
        content.push_str(&"long é\u{2} ".repeat(20_000));
        content.push_str("\nend");
        let dir = folder(&[("f", content.as_bytes())]);
        for (bytes_max, lines) in [(4_096, 10_000), (65_536, 7), (20_000, 1_000)] {
            assert!(
                read_all(&tool(&dir, bytes_max), "f", bytes_max, lines) == content,
                "{bytes_max} bytes, {lines} lines"
            );
        }
    }

    #[test]
    fn what_is_not_text_is_said() {
        let dir = folder(&[
            ("bin", b"ab\0cd"),
            ("db", b"SQLite format 3\0..."),
            ("wide", b"\xFF\xFEa\0"),
            ("latin", b"caf\xE9\n"),
        ]);
        let tool = tool(&dir, 65_536);
        assert!(refused(&tool, json!({"path": "bin"})).contains("a binary file of 5 bytes"));
        assert!(refused(&tool, json!({"path": "db"})).contains("query_sql"));
        assert!(refused(&tool, json!({"path": "wide"})).contains("UTF-16"));
        let part = call(&tool, json!({"path": "latin"}), ctx()).expect("reads");
        assert_eq!(part["text"], "caf\u{FFFD}\n");
        assert!(part["note"].as_str().unwrap().contains("UTF-8"));
    }

    #[test]
    fn a_huge_file_is_streamed_and_the_way_there_can_be_cancelled() {
        let dir = folder(&[]);
        let path = dir.path().join("huge");
        let mut file = File::create(&path).unwrap();
        file.write_all("line\n".repeat(2_000).as_bytes()).unwrap();
        file.set_len(1 << 40).unwrap(); // a terabyte that takes no room, without any further line end
        let tool = tool(&dir, 65_536);
        let part = call(&tool, json!({"path": "huge", "from_line": 1_999, "lines": 2}), ctx()).expect("reads");
        assert_eq!((&part["text"], &part["next_from_line"]), (&json!("line\nline\n"), &json!(2_001)));
        assert_eq!(part["size_bytes"], 1_u64 << 40);
        let far = json!({"path": "huge", "from_line": 3_000});
        assert_eq!(call(&tool, far.clone(), cancelled_ctx()), Err(CallError::Cancelled));
        assert_eq!(cancelled_while_running(|ctx| call(&tool, far, ctx)), Err(CallError::Cancelled));
    }
}
