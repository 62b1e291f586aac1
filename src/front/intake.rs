//! Reads a body within its limits: size, time as a whole, and a least rate, so that neither a large nor a slow sender
//! holds a place for long.

use std::{
    fmt::Display,
    future::poll_fn,
    pin::Pin,
    sync::atomic::{AtomicUsize, Ordering},
    task::Poll,
    time::{Duration, Instant},
};

use bytes::{Bytes, BytesMut};
use hyper::body::Body;
use tokio::time::{Sleep, sleep_until};

use crate::{
    front::{checks::too_large, limits::Config},
    mcp::code::Refusal,
};

/// How long a body may be slow before its rate counts: a lost packet is no attack.
const RATE_GRACE: Duration = Duration::from_secs(5);
/// How often a slow body is looked at.
const RATE_LOOK: Duration = Duration::from_secs(1);

/// Bytes of bodies that are not whole yet, over all connections. They have no place inside the gate, so that slow senders
/// cannot keep others out; what they can take instead is this.
#[derive(Debug)]
pub(crate) struct Bodies {
    held: AtomicUsize,
    max: usize,
}

impl Bodies {
    pub(crate) fn new(max: usize) -> Self {
        Self { held: AtomicUsize::new(0), max }
    }
}

/// What one body has of it, given back on drop.
struct Held<'a> {
    bodies: &'a Bodies,
    bytes: usize,
}

impl Held<'_> {
    fn add(&mut self, bytes: usize) -> Result<(), Refusal> {
        self.bytes += bytes;
        if self.bodies.held.fetch_add(bytes, Ordering::Relaxed) + bytes <= self.bodies.max {
            return Ok(());
        }
        Err(Refusal::overloaded(1, "too many large bodies are coming in at once"))
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.bodies.held.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

/// The whole body. `length` is what Content-Length said, checked before.
pub(crate) async fn read<B>(
    incoming: &mut B,
    length: Option<usize>,
    limits: &Config,
    bodies: &Bodies,
) -> Result<Bytes, Refusal>
where
    B: Body<Data = Bytes, Error: Display> + Unpin,
{
    let mut whole = BytesMut::new();
    let mut held = Held { bodies, bytes: 0 };
    let mut began: Option<Instant> = None;
    let mut watch: Option<Pin<Box<Sleep>>> = None;
    loop {
        let received = whole.len();
        let frame = poll_fn(|cx| {
            if let Poll::Ready(frame) = Pin::new(&mut *incoming).poll_frame(cx) {
                return Poll::Ready(Ok(frame));
            }
            // Most bodies are there at once; only those that are not get a timer.
            let now = *began.get_or_insert_with(Instant::now);
            let watch = watch.get_or_insert_with(|| Box::pin(sleep_until((now + RATE_LOOK).into())));
            while watch.as_mut().poll(cx).is_ready() {
                let waited = now.elapsed();
                if is_too_slow(received, waited, limits) {
                    return Poll::Ready(Err(too_slow(received, waited)));
                }
                watch.as_mut().reset((Instant::now() + RATE_LOOK).into());
            }
            Poll::Pending
        });
        match frame.await? {
            None => return Ok(whole.freeze()),
            // The connection broke or the framing is wrong; it is closed, and this answer goes nowhere or says so.
            Some(Err(error)) => {
                tracing::debug!(%error, "a body broke off");
                return Err(Refusal::invalid_request("the body broke off or its framing is wrong"));
            }
            Some(Ok(frame)) => {
                let Ok(data) = frame.into_data() else { continue };
                if received + data.len() > limits.request_bytes_max.as_usize() {
                    return Err(too_large(limits));
                }
                if received == 0 && Some(data.len()) == length {
                    return Ok(data); // the usual case: one piece, nothing copied
                }
                held.add(data.len())?;
                whole.extend_from_slice(&data);
            }
        }
    }
}

fn is_too_slow(received: usize, waited: Duration, limits: &Config) -> bool {
    let counted_s = waited.saturating_sub(RATE_GRACE).as_secs();
    waited >= Duration::from_millis(limits.body_timeout_ms)
        || (received as u64) < counted_s.saturating_mul(limits.body_bytes_per_s_min)
}

fn too_slow(received: usize, waited: Duration) -> Refusal {
    let message = format!("only {received} bytes of the body came within {} s", waited.as_secs());
    Refusal { status: 408, ..Refusal::invalid_request(message) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slow_is_a_matter_of_time_and_rate() {
        let limits = Config { body_timeout_ms: 30_000, body_bytes_per_s_min: 1000, ..Config::default() };
        for (received, waited_ms, slow) in [
            (0, 0, false),
            (0, 5_999, false),
            (0, 6_000, true),
            (999, 6_000, true),
            (1000, 6_000, false),
            (10_000, 16_000, true),
            (1 << 20, 30_000, true),
        ] {
            assert_eq!(
                is_too_slow(received, Duration::from_millis(waited_ms), &limits),
                slow,
                "{received} {waited_ms}"
            );
        }
    }
}
