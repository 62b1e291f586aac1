//! Counts the frames of a connection that neither ask for anything nor carry anything: settings, pings, resets, empty
//! data and their like. Each costs work and is answered by nothing, so that a flood of them has no other limit.
//!
//! What is read here is where frames begin, and nothing else of them; hyper reads them.

use std::time::Instant;

/// A frame's head: length (3), type (1), flags (1), stream (4).
const HEAD_BYTES: usize = 9;
/// What a client sends before its first frame.
const PREFACE_BYTES: usize = 24;
/// So many bytes that were written let the client send one such frame more: it says that it has read them.
const WRITTEN_PER_FRAME: u64 = 512;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const END_STREAM: u8 = 1;

/// More frames came that do nothing than may.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Flood {
    /// The type of the last one.
    pub(crate) frame: &'static str,
}

/// What is known of the frames of one connection.
#[derive(Debug)]
pub(crate) struct Meter {
    head: [u8; HEAD_BYTES],
    head_has: usize,
    /// Bytes until the next head.
    skip: usize,
    per_s_max: u64,
    left: u64,
    written: u64,
    filled_at: Instant,
}

impl Meter {
    pub(crate) fn new(per_s_max: u32, now: Instant) -> Self {
        let per_s_max = u64::from(per_s_max);
        let head = [0; HEAD_BYTES];
        Self { head, head_has: 0, skip: PREFACE_BYTES, per_s_max, left: per_s_max, written: 0, filled_at: now }
    }

    /// Bytes went to the client.
    pub(crate) fn wrote(&mut self, bytes: usize) {
        self.written += bytes as u64;
        self.left = self.per_s_max.min(self.left + self.written / WRITTEN_PER_FRAME);
        self.written %= WRITTEN_PER_FRAME;
    }

    /// Bytes came from the client.
    ///
    /// # Errors
    /// There were too many frames that do nothing.
    pub(crate) fn read(&mut self, mut bytes: &[u8]) -> Result<(), Flood> {
        while !bytes.is_empty() {
            if self.skip > 0 {
                let skipped = self.skip.min(bytes.len());
                self.skip -= skipped;
                bytes = &bytes[skipped..];
                continue;
            }
            let taken = (HEAD_BYTES - self.head_has).min(bytes.len());
            self.head[self.head_has..self.head_has + taken].copy_from_slice(&bytes[..taken]);
            self.head_has += taken;
            bytes = &bytes[taken..];
            if self.head_has == HEAD_BYTES {
                self.head_has = 0;
                self.frame()?;
            }
        }
        Ok(())
    }

    fn frame(&mut self) -> Result<(), Flood> {
        let [high, middle, low, kind, flags, ..] = self.head;
        self.skip = usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low);
        let does_something = match kind {
            DATA => self.skip > 0 || flags & END_STREAM != 0,
            HEADERS => true,
            _ => false,
        };
        if does_something {
            return Ok(());
        }
        if self.left == 0 {
            self.refill(Instant::now());
        }
        self.left = self.left.checked_sub(1).ok_or_else(|| Flood { frame: name(kind) })?;
        Ok(())
    }

    fn refill(&mut self, now: Instant) {
        let since = now.saturating_duration_since(self.filled_at);
        let micros = u64::try_from(since.as_micros()).unwrap_or(u64::MAX);
        let more = micros.saturating_mul(self.per_s_max) / 1_000_000;
        if more > 0 {
            self.left = self.per_s_max.min(self.left + more);
            self.filled_at = now;
        }
    }
}

/// Types of frames (RFC 9113, section 6).
fn name(kind: u8) -> &'static str {
    const NAMES: [&str; 10] = [
        "empty DATA",
        "HEADERS",
        "PRIORITY",
        "RST_STREAM",
        "SETTINGS",
        "PUSH_PROMISE",
        "PING",
        "GOAWAY",
        "WINDOW_UPDATE",
        "CONTINUATION",
    ];
    NAMES.get(usize::from(kind)).copied().unwrap_or("unknown")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn frame(kind: u8, flags: u8, payload: usize) -> Vec<u8> {
        let length = u32::try_from(payload).expect("short").to_be_bytes();
        let mut bytes = vec![length[1], length[2], length[3], kind, flags, 0, 0, 0, 1];
        bytes.resize(HEAD_BYTES + payload, 0);
        bytes
    }

    fn meter(per_s_max: u32) -> Meter {
        let mut meter = Meter::new(per_s_max, Instant::now() + Duration::from_secs(3600)); // which never refills
        meter.read(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n").expect("a preface");
        meter
    }

    #[test]
    fn frames_that_do_nothing_are_counted_wherever_reads_end() {
        for step in [1, 3, 9, 10, 1000] {
            let mut meter = meter(3);
            let mut bytes = Vec::new();
            for (kind, flags, payload) in [(1, 4, 100), (0, 0, 7), (0, 1, 0), (4, 0, 12), (6, 0, 8), (0, 0, 0)] {
                bytes.extend(frame(kind, flags, payload));
            }
            for part in bytes.chunks(step) {
                assert_eq!(meter.read(part), Ok(()), "{step}");
            }
            assert_eq!(meter.left, 0, "{step}");
            assert_eq!(meter.read(&frame(1, 4, 10)), Ok(()));
            assert_eq!(meter.read(&frame(9, 0, 0)), Err(Flood { frame: "CONTINUATION" }));
        }
    }

    #[test]
    fn what_was_written_and_time_let_more_pass() {
        let mut meter = meter(2);
        meter.read(&[frame(8, 0, 4), frame(8, 0, 4)].concat()).expect("two");
        meter.wrote(WRITTEN_PER_FRAME as usize - 1);
        assert_eq!(meter.left, 0);
        meter.wrote(1);
        assert_eq!(meter.read(&frame(8, 0, 4)), Ok(()));
        assert_eq!(meter.read(&frame(8, 0, 4)), Err(Flood { frame: "WINDOW_UPDATE" }));
        meter.refill(meter.filled_at + Duration::from_millis(499));
        assert_eq!(meter.left, 0);
        meter.refill(meter.filled_at + Duration::from_millis(500));
        assert_eq!(meter.left, 1);
        meter.refill(meter.filled_at + Duration::from_secs(5));
        assert_eq!(meter.left, 2);
    }
}
