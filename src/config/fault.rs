//! What is wrong with the settings, in a form that a person can act on: where, what, what would be right. All faults
//! of a start are collected, because mending them one start at a time is a bad afternoon.

use std::{fmt, ops::Range};

/// Faults that are kept; a file that is wrong everywhere needs no longer list.
const FAULTS_MAX: usize = 50;

/// Characters of a line or a word of the user's that are shown.
const SHOWN_MAX: usize = 200;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Where it stands (`tuning.toml:3:1`, `--set`); empty when the message names the places itself.
    at: String,
    message: String,
    /// The line that is wrong, with a mark under the place.
    excerpt: String,
}

impl Fault {
    pub(super) fn new(at: impl Into<String>, message: impl Into<String>) -> Self {
        Self { at: at.into(), message: message.into(), excerpt: String::new() }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.at.is_empty() {
            write!(f, "{}: ", self.at)?;
        }
        f.write_str(&self.message)?;
        if !self.excerpt.is_empty() {
            write!(f, "\n{}", self.excerpt)?;
        }
        Ok(())
    }
}

/// Everything that is wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    kept: Vec<Fault>,
    dropped: usize,
}

impl Faults {
    /// How many there are.
    pub fn count(&self) -> usize {
        self.kept.len() + self.dropped
    }

    pub(super) fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// Whether further faults are only counted.
    pub(super) fn is_full(&self) -> bool {
        self.kept.len() >= FAULTS_MAX
    }

    pub(super) fn push(&mut self, fault: Fault) {
        if self.is_full() {
            self.dropped += 1;
        } else {
            self.kept.push(fault);
        }
    }

    /// Adds those of `more` that say nothing of the settings in `wrong`: one wrong value is one fault.
    pub(super) fn extend_without(&mut self, more: Self, wrong: &[String]) {
        let says_more = |fault: &Fault| !wrong.iter().any(|name| fault.message.contains(name.as_str()));
        more.kept.into_iter().filter(says_more).for_each(|fault| self.push(fault));
        self.dropped += more.dropped;
    }

    /// `value`, unless something is wrong.
    pub(super) fn or<T>(self, value: T) -> Result<T, Self> {
        if self.is_empty() { Ok(value) } else { Err(self) }
    }
}

impl From<Fault> for Faults {
    fn from(fault: Fault) -> Self {
        Self { kept: vec![fault], dropped: 0 }
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, fault) in self.kept.iter().enumerate() {
            write!(f, "{}{fault}", if i == 0 { "" } else { "\n" })?;
        }
        if self.dropped > 0 {
            write!(f, "\nand {} more", self.dropped)?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}

/// A file's text, able to say where a byte of it is.
pub(super) struct Text<'a> {
    pub(super) name: &'a str,
    text: &'a str,
    line_starts: Vec<usize>,
}

impl<'a> Text<'a> {
    pub(super) fn new(name: &'a str, text: &'a str) -> Self {
        let line_starts = std::iter::once(0).chain(text.match_indices('\n').map(|(i, _)| i + 1)).collect();
        Self { name, text, line_starts }
    }

    /// Number of the line that holds this byte, from 1.
    pub(super) fn line(&self, byte: usize) -> usize {
        self.line_starts.partition_point(|start| *start <= byte)
    }

    /// A fault at these bytes, with the line shown.
    pub(super) fn fault(&self, span: Range<usize>, message: impl Into<String>) -> Fault {
        let number = self.line(span.start);
        let start = self.line_starts[number - 1];
        let line = self.text[start..].lines().next().unwrap_or("");
        let before = self.text.get(start..span.start).unwrap_or(line).chars().count();
        let marked = self.text.get(span).unwrap_or("").lines().next().unwrap_or("").chars().count().max(1);
        let mut excerpt = String::new();
        // The line on which what is wrong begins: a list may go on over several.
        let begins = self.text[..start + line.len()].lines().rev().find(|line| line.contains('=')).unwrap_or(line);
        if before < SHOWN_MAX && !holds_secret(begins) {
            let gutter = number.to_string();
            let mark = "^".repeat(marked.min(SHOWN_MAX - before));
            let blank = " ".repeat(gutter.len());
            excerpt = format!("    {gutter} | {}\n    {blank} | {}{mark}", shown(line), " ".repeat(before));
        }
        Fault { at: format!("{}:{number}:{}", self.name, before + 1), message: message.into(), excerpt }
    }
}

/// Whether what is written here may be a secret, so that it is not shown.
pub(super) fn holds_secret(written: &str) -> bool {
    const SECRET_KEYS: [&str; 3] = ["state_keys", "password", "redis"];
    SECRET_KEYS.iter().any(|key| written.contains(key))
}

/// A word of the user's as it may be printed: one line, no control characters, not endless.
pub(super) fn shown(word: &str) -> String {
    // One character stands for one, so that the mark under a line stays where it belongs.
    let mut shown: String = word.chars().take(SHOWN_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect();
    if word.chars().nth(SHOWN_MAX).is_some() {
        shown.push_str("...");
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_shows_its_line_and_place() {
        let text = Text::new("t.toml", "a = 1\nbb = \"x\"\n");
        let at = |needle: &str| {
            let start = text.text.find(needle).expect(needle);
            text.fault(start..start + needle.len(), "wrong").to_string()
        };
        assert_eq!(at("a"), "t.toml:1:1: wrong\n    1 | a = 1\n      | ^");
        assert_eq!(at("\"x\""), "t.toml:2:6: wrong\n    2 | bb = \"x\"\n      |      ^^^");
    }

    #[test]
    fn places_outside_the_text_are_harmless() {
        for source in ["", "\n", "ä", "x"] {
            let text = Text::new("t", source);
            for span in [0..0, 0..1, 1..2, source.len()..source.len(), source.len() + 5..source.len() + 9] {
                assert!(text.fault(span.clone(), "wrong").to_string().contains("wrong"), "{source:?} {span:?}");
            }
        }
    }

    #[test]
    fn long_lines_and_control_characters_are_not_printed_as_they_are() {
        let line = format!("{}\u{1b}[31m{}", "x".repeat(10), "y".repeat(10_000));
        let fault = Text::new("t", &line).fault(3..4, "wrong").to_string();
        assert!(fault.len() < 600 && !fault.contains('\u{1b}'), "{fault}");
    }

    #[test]
    fn the_list_ends() {
        let mut faults = Faults::default();
        for i in 0..1000 {
            faults.push(Fault::new("t", i.to_string()));
        }
        assert_eq!(faults.count(), 1000);
        assert!(faults.to_string().ends_with("and 950 more"), "{faults}");
    }
}
