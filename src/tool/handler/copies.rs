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
    let mut reader = Reader { copies: Number::after("tx_count"), room: Number::after("permits") };
    let _ = write!(reader, "{peer:?}"); // ends in an error as soon as both are there
    Copies { copies: reader.copies.value, room: reader.room.value }
}

impl Copies {
    /// Whether there are as many as then, and nothing waits that did not then.
    pub(super) fn are_as_before(self, now: Self) -> bool {
        self == now && now.copies.is_some() && now.room.is_some()
    }
}

/// Reads two numbers out of a text that is never in memory as a whole. It comes in pieces, a piece for each name and each
/// number, and ends where both are known: most of it is never written.
struct Reader {
    copies: Number,
    room: Number,
}

impl Write for Reader {
    fn write_str(&mut self, piece: &str) -> fmt::Result {
        self.copies.read(piece);
        self.room.read(piece);
        if self.copies.value.is_some() && self.room.value.is_some() { Err(fmt::Error) } else { Ok(()) }
    }
}

/// The first number after a name.
struct Number {
    name: &'static str,
    is_named: bool,
    value: Option<u32>,
}

impl Number {
    const fn after(name: &'static str) -> Self {
        Self { name, is_named: false, value: None }
    }

    fn read(&mut self, piece: &str) {
        if !self.is_named {
            self.is_named = piece == self.name;
        } else if self.value.is_none() && piece.as_bytes().first().is_some_and(u8::is_ascii_digit) {
            self.value = piece.parse().ok();
        }
    }
}
