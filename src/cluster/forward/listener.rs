//! The listener that other instances hand calls over to: where their connections come from, how many there are, how much is
//! taken over, and what is counted of it. What is done on a connection is `session`'s business; those without a proof are
//! in `unproven`.

use std::{
    future::Future,
    net::{SocketAddr, TcpListener as StdListener},
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use parking_lot::Mutex;
use serde_json::Value;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::JoinSet,
    time::{sleep, timeout},
};

use super::{
    key::Key,
    session::{LAST_WORDS, serve},
    unproven::Unproven,
    wire::Hears,
};
use crate::{
    call::{Ctx, Reply},
    error::CallError,
    outbox::Outbox,
    telemetry::rarely::Rarely,
};

/// Connections at once: one of each instance, and those of who does not belong here, which are soon closed.
const CONNECTIONS_MAX: usize = 1024;
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// A unit of the memory that calls may take.
pub(super) const KIB: usize = 1024;

/// Runs what is taken over.
pub(crate) trait Runs: Send + Sync {
    /// Whether a call of this tool may be taken over now.
    ///
    /// # Errors
    /// Why not.
    fn admit(&self, tool: &str) -> Result<(), Turned>;

    /// What the call says before it is done goes here.
    fn outbox(&self, hears: Hears) -> Outbox;

    /// Runs it. Dropping the future cancels it.
    fn run(&self, tool: String, arguments: Value, ctx: Ctx) -> Outcome;
}

/// What a call comes to.
pub(crate) type Outcome = Pin<Box<dyn Future<Output = Result<Reply, CallError>> + Send>>;

/// Why a call is not taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turned {
    NotHere,
    Stopping,
    Full,
}

/// How much is taken over.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Calls at once.
    pub(crate) calls_max: usize,
    /// Size of one.
    pub(crate) call_bytes_max: usize,
    /// Size of all together.
    pub(crate) bytes_max: usize,
    /// From the connection to the first request with a proof.
    pub(crate) proof_within: Duration,
}

/// What is counted.
#[derive(Debug, Default)]
pub(crate) struct TakenCounts {
    pub(crate) inside: AtomicUsize,
    pub(crate) run: AtomicU64,
    pub(crate) not_here: AtomicU64,
    pub(crate) stopping: AtomicU64,
    pub(crate) full: AtomicU64,
    /// Without the proof that it comes from an instance of the deployment.
    pub(crate) forged: AtomicU64,
    /// A hello in another form, as one of another version says it. That it is one is not proven.
    pub(crate) other_form: AtomicU64,
    /// What is no call.
    pub(crate) broken: AtomicU64,
}

/// What all connections share.
pub(super) struct Shared {
    pub(super) id: String,
    pub(super) key: Arc<ArcSwap<Key>>,
    pub(super) runs: Box<dyn Runs>,
    pub(super) limits: Limits,
    pub(super) memory: Arc<Semaphore>,
    pub(super) taken: Arc<TakenCounts>,
    pub(super) said: Rarely,
    pub(super) unproven: Unproven,
}

/// A listener that runs. Its drop ends it at once.
#[derive(Debug)]
pub(crate) struct Listener {
    stop: watch::Sender<bool>,
    taken: Arc<TakenCounts>,
    accepting: Mutex<Option<tokio::task::JoinHandle<()>>>,
}

impl Listener {
    /// Begins, in tasks of the runtime that this is called in. `id` is this instance, `key` the key of the deployment.
    pub(crate) fn start(
        socket: StdListener,
        id: &str,
        key: Arc<ArcSwap<Key>>,
        limits: Limits,
        runs: Box<dyn Runs>,
    ) -> std::io::Result<Self> {
        let socket = TcpListener::from_std(socket)?;
        let taken = Arc::<TakenCounts>::default();
        let memory = Arc::new(Semaphore::new((limits.bytes_max / KIB).clamp(1, Semaphore::MAX_PERMITS)));
        let shared = Shared {
            id: id.to_owned(),
            key,
            runs,
            limits,
            memory,
            taken: Arc::clone(&taken),
            said: Rarely::new(),
            unproven: Unproven::default(),
        };
        let (stop, stopped) = watch::channel(false);
        let accepting = tokio::spawn(accept(socket, Arc::new(shared), stopped));
        Ok(Self { stop, taken, accepting: Mutex::new(Some(accepting)) })
    }

    pub(crate) fn taken(&self) -> &TakenCounts {
        &self.taken
    }

    /// Calls of others that run here.
    pub(crate) fn inside(&self) -> usize {
        self.taken.inside.load(Relaxed)
    }

    /// Ends it: what is under way on its connections is finished, and what comes is sent back unseen.
    pub(crate) async fn end(&self) {
        self.stop.send_replace(true);
        let accepting = self.accepting.lock().take();
        if let Some(accepting) = accepting {
            let _ = accepting.await;
        }
    }
}

async fn accept(socket: TcpListener, shared: Arc<Shared>, mut stopped: watch::Receiver<bool>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut connections = JoinSet::new();
    loop {
        let (stream, at, place) = tokio::select! {
            biased;
            () = async { drop(stopped.wait_for(|stop| *stop).await) } => break,
            Some(_) = connections.join_next() => continue,
            next = next(&socket, &places) => next,
        };
        // Here and not in the task: tasks begin in no order, and the oldest is to be the one that came first.
        let waiting = shared.unproven.enter();
        connections.spawn(serve((stream, at), Arc::clone(&shared), waiting, stopped.clone(), place));
    }
    drop(socket);
    let _ = timeout(LAST_WORDS, async { while connections.join_next().await.is_some() {} }).await;
}

async fn next(socket: &TcpListener, places: &Arc<Semaphore>) -> (TcpStream, SocketAddr, Option<OwnedSemaphorePermit>) {
    loop {
        // Nobody closes the places, so that there always comes one.
        let place = Arc::clone(places).acquire_owned().await.ok();
        match socket.accept().await {
            Ok((stream, at)) => return (stream, at, place),
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection of another instance");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}
