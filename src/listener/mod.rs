//! Sockets that listen, and the connections that came from them: a permit before each accept, a list for the drain to
//! wake. What a connection begins with, and what is spoken on it then, is found out in `opening`; `secure` has what that
//! needs for TLS.

mod opening;
mod secure;

use std::{
    collections::HashMap,
    future::Future,
    io,
    net::{SocketAddr, TcpListener as StdListener},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use self::opening::{Opened, Opening};
pub(crate) use self::secure::Secure;
use crate::front::{Front, connection::Connection};

/// Connections that the kernel completes before we accept them. The kernel lowers it to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;
/// How long to wait after an accept failed, which is almost always for want of descriptors: others must end first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Binds and listens, so that a port in use is found before anything runs.
pub(crate) fn bind(addr: SocketAddr) -> io::Result<StdListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?; // a restart must not wait for the old connections to be forgotten
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// The same, `count` times on one port, among which the kernel deals connections out.
pub(crate) fn bind_shared(addr: SocketAddr, count: usize) -> io::Result<Vec<StdListener>> {
    // A port shared so could be shared with a stranger: first without, so that a port in use is found.
    let addr = bind(addr)?.local_addr()?;
    let shared = |_| {
        let socket = Socket::new(Domain::for_address(addr), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.set_reuse_port(true)?;
        socket.bind(&addr.into())?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    };
    (0..count.max(1)).map(shared).collect()
}

/// How many connections there may be, as places that accepting takes; for all listeners together.
pub(crate) fn places(connections_max: usize) -> Arc<Semaphore> {
    Arc::new(Semaphore::new(connections_max.min(Semaphore::MAX_PERMITS)))
}

/// The open connections.
#[derive(Debug, Default)]
pub(crate) struct Connections {
    open: Mutex<Open>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    by_number: HashMap<u64, Arc<Connection>>,
}

/// A place in the list; its drop takes the connection out.
struct Listed {
    connections: Arc<Connections>,
    number: u64,
    _permit: OwnedSemaphorePermit,
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.connections.open.lock().by_number.remove(&self.number);
        self.connections.changed.notify_waiters();
    }
}

impl Connections {
    pub(crate) fn len(&self) -> usize {
        self.open.lock().by_number.len()
    }

    /// Makes every connection look at the drain's state.
    pub(crate) fn wake_all(&self) {
        let open: Vec<_> = self.open.lock().by_number.values().cloned().collect();
        open.iter().for_each(|connection| connection.wake());
    }

    /// Ends those whose client showed certificates that are not taken any more, each with what it is at. Returns how many.
    fn end_those_without(&self, takes: impl Fn(&[CertificateDer<'_>]) -> bool) -> usize {
        let open: Vec<_> = self.open.lock().by_number.values().cloned().collect();
        // Most clients have many connections, and one look at a certificate costs as much as many calls.
        let mut judged = HashMap::new();
        let mut is_taken = |chain: &[CertificateDer<'static>]| match judged.get(chain) {
            Some(taken) => *taken,
            None => *judged.entry(chain.to_vec()).or_insert_with(|| takes(chain)),
        };
        let disowned = open.iter().filter(|connection| connection.chain().is_some_and(|chain| !is_taken(chain)));
        disowned.inspect(|connection| connection.disown()).count()
    }

    /// Returns when no connection is open.
    pub(crate) async fn none_left(&self) {
        loop {
            let changed = self.changed.notified();
            if self.len() == 0 {
                return;
            }
            changed.await;
        }
    }

    fn list(self: &Arc<Self>, connection: &Arc<Connection>, permit: OwnedSemaphorePermit) -> Listed {
        let mut open = self.open.lock();
        let number = open.next;
        open.next += 1;
        open.by_number.insert(number, Arc::clone(connection));
        drop(open);
        Listed { connections: Arc::clone(self), number, _permit: permit }
    }
}

/// Accepts until `stop` is told. At the limit on connections nothing is accepted: clients wait in the kernel's queue.
pub(crate) async fn accept(
    listener: StdListener,
    front: Arc<Front>,
    secure: Option<Arc<Secure>>,
    connections: Arc<Connections>,
    permits: Arc<Semaphore>,
    stop: Arc<Notify>,
) -> io::Result<()> {
    let listener = TcpListener::from_std(listener)?;
    let stopped = stop.notified();
    tokio::pin!(stopped);
    loop {
        let (permit, accepted) = tokio::select! {
            biased;
            () = &mut stopped => break,
            next = next(&listener, &permits) => next,
        };
        match accepted {
            Ok(accepted) => take(accepted, &front, secure.as_ref(), &connections, permit),
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    // What the kernel has completed already would be reset with the socket, though its client was told that it is
    // connected: it is served, as far as there is room.
    while let (Ok(permit), Ok(Ok(accepted))) =
        (Arc::clone(&permits).try_acquire_owned(), timeout(Duration::ZERO, listener.accept()).await)
    {
        take(accepted, &front, secure.as_ref(), &connections, permit);
    }
    Ok(())
}

/// Serves a connection in a task of its own.
fn take(
    (stream, peer): (TcpStream, SocketAddr),
    front: &Arc<Front>,
    secure: Option<&Arc<Secure>>,
    connections: &Arc<Connections>,
    permit: OwnedSemaphorePermit,
) {
    prepare(&stream, front);
    let connection = Arc::new(Connection::new(Arc::clone(front), peer.ip(), Instant::now()));
    let listed = connections.list(&connection, permit);
    let opening = opening::opening(connection, stream, secure.map(Arc::clone));
    tokio::spawn(Task { stage: Stage::Opening(opening), _listed: listed });
}

/// A connection's task.
struct Task {
    stage: Stage,
    /// Until everything else of it is gone.
    _listed: Listed,
}

enum Stage {
    Opening(Opening),
    Opened(Opened),
}

impl Future for Task {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            match &mut self.stage {
                Stage::Opening(opening) => match ready!(opening.as_mut().poll(cx)) {
                    Some(opened) => self.stage = Stage::Opened(opened),
                    None => return Poll::Ready(()),
                },
                Stage::Opened(opened) => return Pin::new(opened).poll(cx),
            }
        }
    }
}

async fn next(
    listener: &TcpListener,
    permits: &Arc<Semaphore>,
) -> (OwnedSemaphorePermit, io::Result<(TcpStream, SocketAddr)>) {
    loop {
        // An error would mean that the semaphore was closed, which nobody does.
        if let Ok(permit) = Arc::clone(permits).acquire_owned().await {
            return (permit, listener.accept().await);
        }
    }
}

/// Answers go out at once, and a peer that is gone without a word is noticed by the kernel. Neither is worth refusing a
/// connection for.
fn prepare(stream: &TcpStream, front: &Front) {
    let socket = SockRef::from(stream);
    let prepared =
        socket.set_tcp_nodelay(true).and_then(|()| socket.set_tcp_user_timeout(Some(front.limits.write_timeout())));
    if let Err(error) = prepared {
        tracing::debug!(%error, "a connection keeps the socket options of the system");
    }
}
