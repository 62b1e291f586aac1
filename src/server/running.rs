//! A server that runs: what can be asked of it, how it announces itself, and its stop, from the wish to the last byte.

use std::{convert::Infallible, net::SocketAddr, process::ExitCode, sync::Arc, time::Duration};

use tokio::{
    runtime::{Handle, Runtime},
    signal::unix::{SignalKind, signal},
    sync::oneshot,
    time::{Instant, timeout},
};

use super::{
    doors::{Door, Life},
    parts::scheme,
};
use crate::{
    cluster::{Status, forward::Listener},
    config::Loaded,
    front::Front,
    listener::{Connections, Secure},
    mcp::router::Router,
    shutdown::{Drain, Signals},
};

/// After the grace: time for the errors that end the last calls to be written.
const LAST_WORDS: Duration = Duration::from_secs(1);
/// For the last lines of the audit trail to be written.
const LAST_LINES: Duration = Duration::from_secs(2);
/// Between two looks at calls that go on without a connection.
const LOOK_PAUSE: Duration = Duration::from_millis(10);
/// How many tools the start names; the rest are counted.
const TOOLS_NAMED_MAX: usize = 12;

/// A server that runs. Dropping it without [`Running::stop`] leaves calls in flight unanswered.
#[derive(Debug)]
pub struct Running {
    pub(super) io: Handle,
    pub(super) _io_threads: IoThreads,
    /// Its drop ends the admin listener.
    pub(super) _admin: Option<oneshot::Sender<Infallible>>,
    pub(super) front: Arc<Front>,
    pub(super) secure: Option<Arc<Secure>>,
    pub(super) connections: Arc<Connections>,
    /// What is told of each listener, and by each.
    pub(super) doors: Vec<Arc<Door>>,
    pub(super) drain: Arc<Drain>,
    pub(super) addr: SocketAddr,
    pub(super) admin_addr: Option<SocketAddr>,
    /// Between the signal and the end of accepting: what was sent before is on its way, and a balancer has to notice.
    pub(super) delay: Duration,
    pub(super) grace: Duration,
}

/// The I/O threads. Their end waits for nobody: a tool that hangs in one must not hold the stop.
#[derive(Debug)]
pub(super) struct IoThreads {
    shared: Option<Runtime>,
    _own: Vec<Life>,
}

impl IoThreads {
    pub(super) fn new(shared: Runtime, own: Vec<Life>) -> Self {
        Self { shared: Some(shared), _own: own }
    }
}

impl Drop for IoThreads {
    fn drop(&mut self) {
        if let Some(runtime) = self.shared.take() {
            runtime.shutdown_background();
        }
    }
}

/// How a server stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopped {
    /// Calls that were still running at the end of the grace, each answered with an error.
    pub cut: u64,
}

impl Running {
    /// The address of the MCP endpoint.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The address of the admin listener.
    pub fn admin_addr(&self) -> Option<SocketAddr> {
        self.admin_addr
    }

    /// Requests being served at this moment, those that other instances handed over among them.
    pub fn in_flight(&self) -> usize {
        let taken = self.front.cluster.as_ref().and_then(|cluster| cluster.listener()).map_or(0, Listener::inside);
        self.front.gate.inside() + taken
    }

    /// Connections open at this moment.
    pub fn connections(&self) -> usize {
        self.connections.len()
    }

    /// Sessions open at this moment.
    pub fn sessions(&self) -> usize {
        self.front.router.sessions.len()
    }

    /// Stops: takes nothing new in, finishes what is in flight within the grace, answers the rest with an error.
    pub fn stop(self) -> Stopped {
        self.io.block_on(self.drained());
        end_audit(&self.front.router);
        Stopped { cut: self.drain.cut() }
    }

    /// Everything that happens between the wish to stop and the last byte, in order.
    async fn drained(&self) {
        self.drain.start(); // /ready says so
        note(&self.front.router, "drain", "");
        let Some(cluster) = &self.front.cluster else { return self.finished().await };
        let began = Instant::now();
        // A Redis that is slow must not keep the listener open: the balancer asks /ready.
        let _ = timeout(LAST_WORDS, cluster.status(Status::Stopping)).await;
        self.finished().await;
        if let Some(listener) = cluster.listener() {
            listener.end().await; // only now: until here others were told to ask the next one
        }
        if let Some(shared) = &self.front.sessions {
            shared.flush().await;
        }
        cluster.leave().await;
        // In what calls left of the time that a stop may take, and no longer: who sends the signal may end the process then.
        let left = (self.delay + self.grace).saturating_sub(began.elapsed());
        cluster.remove_all_if_last(left).await;
    }

    /// Takes nothing new in, and finishes what is in flight.
    async fn finished(&self) {
        tokio::time::sleep(self.delay).await;
        self.doors.iter().for_each(|door| door.stop.notify_one()); // nothing new is accepted
        // A failure to end in time would only mean that a connection just accepted is not waited for.
        let _ = timeout(LAST_WORDS, async {
            for door in &self.doors {
                door.ended.notified().await;
            }
        })
        .await;
        self.drain.hang_up(); // connections end with the request that they are at
        self.connections.wake_all();
        if timeout(self.grace, self.nothing_left()).await.is_ok() {
            return;
        }
        self.drain.end(); // what still runs is answered with an error
        self.connections.wake_all();
        if timeout(LAST_WORDS, self.nothing_left()).await.is_err() {
            tracing::warn!(connections = self.connections.len(), "some connections did not take their last answer");
        }
    }

    /// Returns when no connection is open, and no call goes on without one.
    async fn nothing_left(&self) {
        self.connections.none_left().await;
        while self.in_flight() > 0 {
            tokio::time::sleep(LOOK_PAUSE).await;
        }
    }

    /// Runs until a signal says to stop, and stops.
    pub(super) fn until_signal(self, mut signals: Signals) -> ExitCode {
        let second = self.io.block_on(async {
            let (signal, _) = signals.next().await;
            self.drain.start(); // before it is said: who reads the log finds /ready saying so too
            tracing::info!(signal, in_flight = self.in_flight(), grace_ms = self.grace.as_millis() as u64, "draining");
            tokio::select! {
                () = self.drained() => None,
                second = signals.next() => Some(second),
            }
        });
        end_audit(&self.front.router);
        if let Some((signal, code)) = second {
            tracing::warn!(signal, in_flight = self.in_flight(), "stopped at once by a second signal");
            return ExitCode::from(code);
        }
        match self.drain.cut() {
            0 => tracing::info!("stopped; every call was answered"),
            cut => tracing::warn!(cut, "stopped; some calls outlasted the grace and were answered with an error"),
        }
        ExitCode::SUCCESS
    }

    /// Has SIGHUP mean that the certificate's files are read again, as far as they have changed. It never ends the server,
    /// which is what it would do by itself: those who rotate logs send it to everybody.
    pub(super) fn reload_on_hangup(&self) -> std::io::Result<()> {
        let (secure, connections) = (self.secure.clone(), Arc::clone(&self.connections));
        let router = Arc::clone(&self.front.router);
        let mut hangup = {
            let _inside = self.io.enter();
            signal(SignalKind::hangup())?
        };
        self.io.spawn(async move {
            while hangup.recv().await.is_some() {
                match &secure {
                    Some(secure) => {
                        if let Some(files) = secure.reload_now(&connections) {
                            note(&router, "reload", &files);
                        }
                    }
                    None => tracing::info!(
                        "SIGHUP: there is no certificate to read again; keys and the audit file are \
                                            looked at by themselves, and other settings are read at a start"
                    ),
                }
            }
        });
        Ok(())
    }

    /// What a start says.
    pub(super) fn announce(&self, loaded: &Loaded, toolbox_root: Option<&str>) {
        let config = &loaded.tuning.server;
        let url = format!("{}{}{}", scheme(&loaded.tuning), self.addr, config.path);
        tracing::info!(url, tools = tool_names(&self.front.router), "serving MCP");
        if let Some(root) = toolbox_root {
            announce_root(root);
        }
        if let Some(addr) = self.admin_addr {
            let at = |path: &str| format!("http://{addr}{path}");
            tracing::info!(health = at("/health"), ready = at("/ready"), metrics = at("/metrics"), "admin");
        }
        if let Some(cluster) = &self.front.cluster {
            tracing::info!(
                node = cluster.id(),
                cluster = cluster.config.id,
                redis = cluster.link.address(),
                state = cluster.word(),
                others = cluster.others(),
                "one of several instances"
            );
        }
        announce_settings(loaded, &self.front.router);
        let resolved = &loaded.resolved;
        tracing::info!(
            cores = loaded.host.cores,
            io_threads = resolved.io_threads,
            connections_max = resolved.connections_max,
            concurrent_requests_max = resolved.concurrent_requests_max,
            "derived from this host and the settings; `check` says how"
        );
        if let Some(secure) = &self.secure {
            secure.warnings().iter().for_each(|warning| tracing::warn!("{warning}"));
        }
    }
}

/// Says where the settings are from, what the pool has, and what works and is hardly meant.
pub(super) fn announce_settings(loaded: &Loaded, router: &Router) {
    tracing::info!(file = loaded.base, "settings; the environment and the command line go over them");
    let (pool, resolved) = (&loaded.tuning.pool, &loaded.resolved);
    tracing::info!(
        threads = resolved.pool_threads,
        threads_max = resolved.pool_threads_max,
        queue_max = pool.queue_max,
        on_full = serde_json::to_value(pool.on_full).ok().as_ref().and_then(|word| word.as_str()),
        "pool"
    );
    if router.dispatch.tools().ordered().is_empty() {
        tracing::warn!("no tool is served: toolbox.enabled is false, and there are no others");
    }
    for warning in loaded.warnings() {
        tracing::warn!("{warning}");
    }
}

/// Says which folder the toolbox reads, by its whole name.
pub(super) fn announce_root(root: &str) {
    let whole = std::fs::canonicalize(root).map_or_else(|_| root.to_owned(), |path| path.display().to_string());
    tracing::info!(root = whole, "the toolbox reads this folder and nothing outside it");
}

/// The names of the first few tools, for the log.
pub(super) fn tool_names(router: &Router) -> String {
    let tools = router.dispatch.tools();
    let named: Vec<_> = tools.ordered().iter().take(TOOLS_NAMED_MAX).map(|t| t.tool.name()).collect();
    match tools.ordered().len() - named.len() {
        0 => named.join(" "),
        more => format!("{} and {more} more", named.join(" ")),
    }
}

/// Puts something that is no call into the audit trail.
pub(super) fn note(router: &Router, event: &str, detail: &str) {
    if let Some(audit) = &router.audit {
        audit.note(event, detail);
    }
}

/// Writes what the audit trail still has to say.
pub(super) fn end_audit(router: &Router) {
    if let Some(audit) = &router.audit
        && let Err(problem) = audit.stop(LAST_LINES)
    {
        tracing::error!("{problem}");
    }
}
