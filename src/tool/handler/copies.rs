//! How many copies of a peer there are. rmcp has no word for it, but a peer is in the end the sending half of a tokio
//! channel, which counts its copies and what waits in it, and shows both in its `Debug` form. That form is nobody's
//! promise: where the numbers are not found, a peer counts as kept by somebody, which costs a new loop for each call and
//! harms nothing else. A test says when it is so.

use std::fmt::{self, Write};

use rmcp::{RoleServer, service::Peer};

/// What there is of a peer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Copies {
    copies: Option<u32>,
    /// Free places of the channel: all, when nothing waits in it.
    room: Option<u32>,
}

/// Counts the copies of a peer.
pub(super) fn of(peer: &Peer<RoleServer>) -> Copies {
    let mut reader = Reader { copies: Number::after("tx_count: "), room: Number::after("permits: ") };
    let written = write!(reader, "{peer:?}");
    debug_assert!(written.is_ok(), "the reader takes everything");
    Copies { copies: reader.copies.value, room: reader.room.value }
}

impl Copies {
    /// Whether there are as many as then, and nothing waits that did not then.
    pub(super) fn are_as_before(self, now: Self) -> bool {
        self == now && now.copies.is_some() && now.room.is_some()
    }
}

/// Reads two numbers out of a text that is never in memory as a whole.
struct Reader {
    copies: Number,
    room: Number,
}

impl Write for Reader {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for byte in text.bytes() {
            self.copies.read(byte);
            self.room.read(byte);
        }
        Ok(())
    }
}

/// The first number after a name.
struct Number {
    name: &'static [u8],
    /// How much of the name has been read.
    matched: usize,
    value: Option<u32>,
    is_over: bool,
}

impl Number {
    const fn after(name: &'static str) -> Self {
        Self { name: name.as_bytes(), matched: 0, value: None, is_over: false }
    }

    fn read(&mut self, byte: u8) {
        if self.is_over {
            return;
        }
        if self.matched < self.name.len() {
            let goes_on = byte == self.name[self.matched];
            self.matched = if goes_on { self.matched + 1 } else { usize::from(byte == self.name[0]) };
        } else if byte.is_ascii_digit() {
            let value = self.value.unwrap_or(0);
            self.value = value.checked_mul(10).and_then(|v| v.checked_add(u32::from(byte - b'0')));
        } else {
            self.is_over = true;
        }
    }
}
