//! The connections of who has not shown the proof that it belongs here: few, and the oldest gives way to the newest.

use std::{collections::BTreeMap, convert::Infallible};

use parking_lot::Mutex;
use tokio::sync::oneshot;

/// For one more than these the oldest is closed, so that strangers who come faster than their time is over do not hold the
/// places of those who belong here.
const UNPROVEN_MAX: usize = 64;

/// The connections without a proof, from the oldest on: each can be closed here.
#[derive(Debug, Default)]
pub(super) struct Unproven(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    last: u64,
    all: BTreeMap<u64, oneshot::Sender<Infallible>>,
}

impl Unproven {
    /// Another one: its number, and what comes to an error when it is to be closed (or has left).
    pub(super) fn enter(&self) -> (u64, oneshot::Receiver<Infallible>) {
        let (close, closed) = oneshot::channel();
        let mut waiting = self.0.lock();
        if waiting.all.len() >= UNPROVEN_MAX {
            waiting.all.pop_first();
        }
        waiting.last += 1;
        let number = waiting.last;
        waiting.all.insert(number, close);
        (number, closed)
    }

    /// It has shown the proof, or is gone.
    pub(super) fn leave(&self, number: u64) {
        self.0.lock().all.remove(&number);
    }
}
