//! Looks after what cannot look after itself, some times a second, on a thread that does nothing else: threads that hang,
//! polls that take too long, and memory.

use std::{
    sync::{Arc, Weak},
    thread,
    time::{Duration, Instant},
};

use crate::{
    front::{Front, pressure::Level},
    listener::{Connections, Secure},
    mcp::router::Router,
};

/// Between two looks: as long as memory may fill unseen.
const PAUSE: Duration = Duration::from_millis(25);
/// How much of the kept results goes at each look while memory is short.
const CACHE_GIVEN_UP: f64 = 0.25;

/// Starts the thread for a front door. It ends some time after the last who serves by it.
pub(super) fn start(
    front: &Arc<Front>,
    connections: &Arc<Connections>,
    secure: Option<&Arc<Secure>>,
) -> std::io::Result<()> {
    let (front, connections, secure) = (Arc::downgrade(front), Arc::downgrade(connections), secure.map(Arc::clone));
    spawn(move || {
        if let (Some(secure), Some(connections)) = (&secure, connections.upgrade())
            && let Some(files) = secure.look_after(Instant::now(), &connections)
            && let Some(front) = front.upgrade()
        {
            super::running::note(&front.router, "reload", &files);
        }
        look(&front, &connections)
    })
}

/// The same for a server that has no front door: over pipes.
pub(super) fn start_without_front(router: &Arc<Router>) -> std::io::Result<()> {
    let router = Arc::downgrade(router);
    spawn(move || {
        let router = router.upgrade();
        if let Some(router) = &router {
            router.dispatch.look_after(Instant::now());
        }
        router.is_some()
    })
}

/// `look` says false when there is nothing left to look after.
fn spawn(look: impl Fn() -> bool + Send + 'static) -> std::io::Result<()> {
    let looks = move || {
        while look() {
            thread::sleep(PAUSE);
        }
    };
    thread::Builder::new().name("watch".into()).spawn(looks).map(drop)
}

fn look(front: &Weak<Front>, connections: &Weak<Connections>) -> bool {
    let Some(front) = front.upgrade() else { return false };
    front.router.dispatch.look_after(Instant::now());
    if let Some(news) = front.doorkeeper.as_ref().and_then(|doorkeeper| doorkeeper.look_after(Instant::now())) {
        super::running::note(&front.router, "reload", &news);
    }
    let before = front.pressure.level();
    let level = front.pressure.look();
    if level >= Level::Streams {
        front.router.dispatch.give_up_kept(CACHE_GIVEN_UP);
    }
    if before < Level::KeepAlive
        && level >= Level::KeepAlive
        && let Some(connections) = connections.upgrade()
    {
        connections.wake_all(); // those with nothing on them end
    }
    true
}
