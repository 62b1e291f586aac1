//! Looks after what cannot look after itself, some times a second, on a thread that does nothing else: threads that hang,
//! polls that take too long, and memory.

use std::{
    sync::{Arc, Weak},
    thread,
    time::{Duration, Instant},
};

use crate::front::{Front, pressure::Level};

/// Between two looks: as long as memory may fill unseen.
const PAUSE: Duration = Duration::from_millis(25);
/// How much of the kept results goes at each look while memory is short.
const CACHE_GIVEN_UP: f64 = 0.25;

/// Starts the thread. It ends some time after the last who serves by this front door.
pub(super) fn start(front: &Arc<Front>) -> std::io::Result<()> {
    let front = Arc::downgrade(front);
    thread::Builder::new().name("watch".into()).spawn(move || while look(&front) {}).map(drop)
}

/// False when there is nothing left to look after.
fn look(front: &Weak<Front>) -> bool {
    thread::sleep(PAUSE);
    let Some(front) = front.upgrade() else { return false };
    front.router.dispatch.look_after(Instant::now());
    if front.pressure.look() >= Level::Streams {
        front.router.dispatch.give_up_kept(CACHE_GIVEN_UP);
    }
    true
}
