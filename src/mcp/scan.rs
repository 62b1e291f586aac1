//! The grammar of JSON (RFC 8259) over a text that stays where it is: where a value begins and ends, and nothing of what
//! it means. Texts are borrowed; what an escape stands for and what a number comes to is asked of serde_json.
//!
//! It is our own because a message is small and has some twenty texts in it: what a general reader does around each of
//! them costs more than the texts. `cargo bench --bench instructions -- --rows modern-echo` counts what it takes.

use std::borrow::Cow;

/// Where reading stopped, and why.
#[derive(Debug)]
pub(super) struct Broken {
    at: usize,
    why: &'static str,
}

impl Broken {
    pub(super) fn is(&self, why: &str) -> bool {
        self.why == why
    }
}

pub(super) type Read<T> = Result<T, Broken>;

/// One text of JSON, and how far it was read.
pub(super) struct Scanner<'a> {
    text: &'a str,
    at: usize,
}

/// A number as it was written.
#[derive(Clone, Copy)]
pub(super) struct Number<'a> {
    pub(super) text: &'a str,
    /// Neither a fraction nor an exponent, and short enough for 64 bits.
    pub(super) is_short_integer: bool,
}

/// Digits that any 64 bits hold.
const SHORT_DIGITS_MAX: usize = 18;

impl<'a> Scanner<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { text, at: 0 }
    }

    #[cold]
    pub(super) fn broken(&self, why: &'static str) -> Broken {
        Broken { at: self.at, why }
    }

    /// What stopped the reading, in words, with its place.
    pub(super) fn told(&self, broken: &Broken) -> String {
        let before = &self.text.as_bytes()[..broken.at.min(self.text.len())];
        let line = 1 + before.iter().filter(|b| **b == b'\n').count();
        let column = 1 + before.iter().rev().take_while(|b| **b != b'\n').count();
        format!("{} at line {line} column {column}", broken.why)
    }

    /// The byte that is next after white space, which is passed; 0 at the end, as no value begins with that.
    #[inline]
    pub(super) fn next(&mut self) -> u8 {
        loop {
            match self.here() {
                b' ' | b'\n' | b'\t' | b'\r' => self.at += 1,
                byte => return byte,
            }
        }
    }

    #[inline]
    fn here(&self) -> u8 {
        self.text.as_bytes().get(self.at).copied().unwrap_or(0)
    }

    /// How far it was read.
    pub(super) fn at(&self) -> usize {
        self.at
    }

    /// What was read since `start`, which was the place of a value.
    pub(super) fn since(&self, start: usize) -> &'a str {
        self.text.get(start..self.at).unwrap_or_default()
    }

    /// Nothing but white space is left.
    pub(super) fn end(&mut self) -> Read<()> {
        self.next();
        if self.at == self.text.len() { Ok(()) } else { Err(self.broken("more follows after the value,")) }
    }

    /// Steps over the bracket that opens an array or object.
    #[inline]
    pub(super) fn open(&mut self) {
        self.at += 1;
    }

    /// Whether another item or member follows, which is next then; if not, steps over the bracket that closes.
    #[inline]
    pub(super) fn has_more(&mut self, close: u8, is_first: bool) -> Read<bool> {
        let next = self.next();
        if next == close {
            self.at += 1;
            return Ok(false);
        }
        if !is_first {
            if next != b',' {
                return Err(self.broken("a comma or the end of the array or object is missing"));
            }
            self.at += 1;
            self.next();
        }
        Ok(true)
    }

    /// A key, with the colon behind it.
    #[inline]
    pub(super) fn key(&mut self) -> Read<Cow<'a, str>> {
        if self.here() != b'"' {
            return Err(self.broken("a key in quotes is missing"));
        }
        let key = self.text()?;
        if self.next() != b':' {
            return Err(self.broken("a colon is missing"));
        }
        self.at += 1;
        Ok(key)
    }

    /// A text, whose opening quote is next. Borrowed when it has no escapes.
    #[inline]
    pub(super) fn text(&mut self) -> Read<Cow<'a, str>> {
        let start = self.at + 1;
        let end = self.end_of_plain(start);
        if self.text.as_bytes().get(end) == Some(&b'"') {
            self.at = end + 1;
            return Ok(Cow::Borrowed(&self.text[start..end]));
        }
        self.text_with_escapes(end)
    }

    #[cold]
    fn text_with_escapes(&mut self, mut end: usize) -> Read<Cow<'a, str>> {
        let bytes = self.text.as_bytes();
        loop {
            match bytes.get(end) {
                Some(b'"') => break,
                Some(b'\\') => end = self.end_of_plain(end + 2),
                Some(_) => {
                    self.at = end;
                    return Err(self.broken("a control character stands in a text and must be escaped there,"));
                }
                None => {
                    self.at = bytes.len();
                    return Err(self.broken("a text has no end"));
                }
            }
        }
        let decoded = serde_json::from_str(&self.text[self.at..=end]);
        let decoded: String = decoded.map_err(|_| self.broken("a text has an escape that stands for nothing,"))?;
        self.at = end + 1;
        Ok(Cow::Owned(decoded))
    }

    /// Where, from `at` on, a text ends or has what is not plain in it.
    #[inline]
    fn end_of_plain(&self, mut at: usize) -> usize {
        let bytes = self.text.as_bytes();
        while let Some(eight) = bytes.get(at..).and_then(<[u8]>::first_chunk) {
            let stops = not_plain(u64::from_le_bytes(*eight));
            if stops != 0 {
                return at + (stops.trailing_zeros() / 8) as usize;
            }
            at += 8;
        }
        while bytes.get(at).is_some_and(|byte| !matches!(byte, b'"' | b'\\' | ..0x20)) {
            at += 1;
        }
        at
    }

    /// A number, whose sign or first digit is next.
    pub(super) fn number(&mut self) -> Read<Number<'a>> {
        let start = self.at;
        if self.here() == b'-' {
            self.at += 1;
        }
        if self.here() == b'0' {
            self.at += 1;
        } else {
            self.digits()?;
        }
        let integer_end = self.at;
        if self.here() == b'.' {
            self.at += 1;
            self.digits()?;
        }
        if matches!(self.here(), b'e' | b'E') {
            self.at += 1;
            if matches!(self.here(), b'+' | b'-') {
                self.at += 1;
            }
            self.digits()?;
        }
        let text = &self.text[start..self.at];
        let number = Number { text, is_short_integer: self.at == integer_end && text.len() <= SHORT_DIGITS_MAX };
        if !number.is_short_integer && serde_json::from_str::<serde_json::Number>(text).is_err() {
            self.at = start;
            return Err(self.broken("a number is out of range"));
        }
        Ok(number)
    }

    #[inline]
    fn digits(&mut self) -> Read<()> {
        let start = self.at;
        while self.here().is_ascii_digit() {
            self.at += 1;
        }
        if self.at > start { Ok(()) } else { Err(self.broken("a digit is missing")) }
    }

    /// One of the three words.
    pub(super) fn word(&mut self) -> Read<Option<bool>> {
        let rest = &self.text.as_bytes()[self.at.min(self.text.len())..];
        let words = [("null", None), ("true", Some(true)), ("false", Some(false))];
        match words.into_iter().find(|(word, _)| rest.starts_with(word.as_bytes())) {
            Some((word, value)) => {
                self.at += word.len();
                Ok(value)
            }
            None => Err(self.broken("a value is missing")),
        }
    }
}

/// The high bits of those of eight bytes that are a quote, a backslash or a control character. Only the lowest of them is
/// exact.
#[inline]
fn not_plain(eight: u64) -> u64 {
    const ONES: u64 = u64::MAX / 255;
    let is = |byte: u8| {
        let zero_where = eight ^ (ONES * u64::from(byte));
        zero_where.wrapping_sub(ONES) & !zero_where
    };
    let control = eight.wrapping_sub(ONES * 0x20) & !eight;
    (is(b'"') | is(b'\\') | control) & (ONES << 7)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_end_at_each_place_in_a_word() {
        for length in 0..40 {
            for rest in ["", " ", "\n\"", "aaaaaaaaaaaaaaaaa\\"] {
                let plain: String = "aé\u{7f}~!#[]\u{2028}".chars().cycle().take(length).collect();
                let json = format!("\"{plain}\"{rest}");
                let mut scanner = Scanner::new(&json);
                assert!(matches!(scanner.text(), Ok(Cow::Borrowed(text)) if text == plain), "{json}");
                assert_eq!(scanner.at(), plain.len() + 2);
                for bad in ['\0', '\x1f', '\n'] {
                    let json = format!("\"{plain}{bad}\"{rest}");
                    assert!(Scanner::new(&json).text().is_err(), "{json:?}");
                }
                let json = format!("\"{plain}\\n\\\"\\\\{plain}\"");
                let told = Scanner::new(&json).text().expect("a text");
                assert_eq!(told, format!("{plain}\n\"\\{plain}"));
            }
        }
    }

    #[test]
    fn faults_have_their_place() {
        let mut scanner = Scanner::new("{\n  \"a\" 1}");
        scanner.next();
        scanner.open();
        assert!(scanner.has_more(b'}', true).expect("a member"));
        let broken = scanner.key().expect_err("no colon");
        assert_eq!(scanner.told(&broken), "a colon is missing at line 2 column 7");
    }
}
