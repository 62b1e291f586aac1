//! What the tools' answers have in common: how much room is left in one, how long text is cut, and what an answer is
//! when nobody waits for it any more.

use std::time::Instant;

use serde::Serialize;

use crate::{call::Ctx, error::CallError};

/// The room of one answer, in bytes of its JSON.
#[derive(Debug)]
pub(super) struct Room {
    left: usize,
}

impl Room {
    /// Room for results in an answer of `bytes_max`; a part is kept for the names and numbers around them.
    pub(super) fn new(bytes_max: usize) -> Self {
        Self { left: bytes_max.saturating_sub(512) }
    }

    pub(super) fn left(&self) -> usize {
        self.left
    }

    /// Takes `bytes` when there is room for them.
    pub(super) fn take(&mut self, bytes: usize) -> bool {
        let fits = bytes <= self.left;
        if fits {
            self.left -= bytes;
        }
        fits
    }
}

/// Bytes that a value takes as JSON.
pub(super) fn json_bytes(value: &impl Serialize) -> usize {
    struct Count(usize);
    impl std::io::Write for Count {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0 += bytes.len();
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut count = Count(0);
    match serde_json::to_writer(&mut count, value) {
        Ok(()) => count.0,
        Err(_) => usize::MAX, // a value without a JSON form fits nowhere
    }
}

/// The longest beginning of `text` that has at most `bytes` bytes and ends between characters.
pub(super) fn head(text: &str, bytes: usize) -> &str {
    &text[..text.floor_char_boundary(bytes)]
}

/// `text`, cut to about `bytes` with a mark that says so.
pub(super) fn clipped(text: &str, bytes: usize) -> String {
    if text.len() <= bytes {
        text.to_owned()
    } else {
        format!("{}… [{} bytes in all]", head(text, bytes), text.len())
    }
}

/// The answer of a call that was stopped: nobody waits for it, or its time is over.
pub(super) fn stopped(ctx: &Ctx) -> CallError {
    let deadline = ctx.deadline();
    if deadline.passed(Instant::now()) {
        CallError::TimedOut { limit_ms: deadline.limit_ms() }
    } else {
        CallError::Cancelled
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_what_it_says() {
        let mut room = Room::new(612);
        assert!(!room.take(101));
        assert!(room.take(60) && room.take(40));
        assert!(!room.take(1) && room.take(0));
        assert_eq!(json_bytes(&"a\n\u{1}"), r#""a\n\u0001""#.len());
    }

    #[test]
    fn text_is_cut_between_characters() {
        assert_eq!(head("aéé", 2), "a");
        assert_eq!(head("aé", 99), "aé");
        assert_eq!(clipped("aéé", 3), "aé… [5 bytes in all]");
        assert_eq!(clipped("abc", 3), "abc");
    }
}
