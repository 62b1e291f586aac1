//! Single parts of a server, as the settings want them, with the error that names the setting.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::runtime::Runtime;

use super::{StartError, place, share};
use crate::{
    cluster::{About, Cluster, JoinError, Own, Status},
    config::{Loaded, Tuning},
    dispatch::pool::gather,
    front::{Front, doorkeeper::Doorkeeper},
    identity::Fetcher,
    listener::Secure,
    mcp::{router::Router, seal::Sealer, shared::Shared as SharedSessions},
    rate::{Limiter, ToolRules},
    runtime::{self, Flavor},
    tool::{Tool, handler::Hosted},
};

/// How long a start waits to see the other instances, to say how many there are.
const FIRST_LOOK: Duration = Duration::from_secs(1);

/// How often callers may call, when that is limited.
pub(super) fn limiter(tuning: &Tuning) -> Option<Limiter> {
    let tools = tuning.tools.iter().map(|(name, tool)| {
        let rules =
            ToolRules { for_all: tool.rate.unwrap_or_default(), for_each: tool.rate_per_caller.unwrap_or_default() };
        (name.as_str(), rules)
    });
    Limiter::new(&tuning.rate_limit, tools, Instant::now())
}

/// Connects to what instances share, when there are several. `addr` is where this one listens.
pub(super) fn connect(
    loaded: &Loaded,
    addr: SocketAddr,
    runtime: &Runtime,
) -> Result<Option<Arc<Cluster>>, StartError> {
    let tuning = &loaded.tuning;
    if !tuning.cluster.is_on() {
        return Ok(None);
    }
    let base = match tuning.cluster.advertise.as_str() {
        "" => format!("{}{addr}", scheme(tuning)),
        advertise => advertise.to_owned(),
    };
    let address = format!("{base}{}", tuning.server.path);
    let own =
        Own { host: runtime::host_name(), address, kept_for: share::kept_for(tuning), placed: place::wishes(tuning) };
    let connected = runtime.block_on(Cluster::connect(&tuning.cluster, own));
    connected.map(Some).map_err(|error| match error {
        JoinError::Setting(path, message) => StartError::config(loaded.fault(path, message)),
        JoinError::Away(why) => StartError::host("Redis is away, and cluster.start = \"refuse\"", why),
    })
}

/// Shares the sessions of the older revisions. A record outlives its session's time a little, so that none expires
/// between its use and the moment when that is noted.
pub(super) fn share_sessions(
    cluster: &Cluster,
    router: &Arc<Router>,
    idle_timeout_s: u64,
    runtime: &Runtime,
) -> Arc<SharedSessions> {
    let (pause, expiry) = share::session_times(idle_timeout_s);
    let _inside = runtime.enter();
    SharedSessions::start(cluster.records(expiry), Arc::clone(router), pause)
}

/// Tells the other instances that this one is there, and then that it serves.
pub(super) async fn join(cluster: &Arc<Cluster>, front: &Arc<Front>, max_load: usize, forwards: String) {
    share::begin(cluster, &front.router);
    let server = Arc::downgrade(front);
    cluster.join(Box::new(move || {
        let front = server.upgrade()?;
        let (tools, load) = (place::can_run(&front.router), place::load(&front));
        let node_key = front.router.dispatch.forwarder().and_then(|forwarder| forwarder.key().load().listed());
        let (forwards, node_key) = (forwards.clone(), node_key.unwrap_or_default());
        Some(About { load: load as u64, max_load: max_load as u64, tools, forwards, node_key })
    }));
    place::follow(cluster, &front.router);
    cluster.status(Status::Running).await;
    if !cluster.link.is_away() {
        cluster.first_look(FIRST_LOOK).await;
    }
}

/// What gets the issuer's keys, where they are fetched.
pub(super) fn fetcher(loaded: &Loaded) -> Result<Option<Fetcher>, StartError> {
    let url = &loaded.tuning.auth.jwks_url;
    let made = (!url.is_empty()).then(|| Fetcher::new(url)).transpose();
    made.map_err(|message| StartError::config(loaded.fault("auth.jwks_url", message)))
}

/// Who tells who calls, when anybody is asked. `addr` is where it listens.
pub(super) fn doorkeeper(loaded: &Loaded, addr: SocketAddr) -> Result<Option<Doorkeeper>, StartError> {
    let tuning = &loaded.tuning;
    Doorkeeper::new(&tuning.auth, &format!("{}{addr}", scheme(tuning)), &tuning.server.path)
        .map_err(|message| StartError::config(loaded.fault("auth.keys_file", format!("[auth]: {message}"))))
}

/// What makes connections secure, when they are.
pub(super) fn secure(loaded: &Loaded) -> Result<Option<Secure>, StartError> {
    let tuning = &loaded.tuning;
    Secure::new(&tuning.tls, tuning.http2.enabled)
        .map_err(|message| StartError::config(loaded.fault("tls.certificate", format!("[tls]: {message}"))))
}

/// What this server's URL begins with.
pub(super) fn scheme(tuning: &Tuning) -> &'static str {
    if tuning.tls.is_on() { "https://" } else { "http://" }
}

/// What seals the state of rounds.
pub(super) fn sealer(loaded: &Loaded) -> Result<Sealer, StartError> {
    Sealer::new(&loaded.tuning.input).map_err(|message| StartError::config(loaded.fault("input.state_keys", message)))
}

/// Serves the tools that hosted handlers have, whenever they say that they are others.
pub(super) async fn keep_tools(
    router: Arc<Router>,
    hosted: Hosted,
    own: Vec<Tool>,
    configs: std::collections::BTreeMap<String, crate::tool::Config>,
) {
    loop {
        hosted.tools_changed.notified().await;
        let listed = hosted.list_tools().await.map(|theirs| own.iter().cloned().chain(theirs).collect());
        let replaced = listed.and_then(|tools| {
            let replaced = router.dispatch.replace_tools(tools, &configs, router.request_timeout_ms);
            replaced.map_err(|fault| format!("tool {:?}: {}", fault.name, fault.message))
        });
        match replaced {
            Ok(()) => router.changes.tools(),
            Err(error) => tracing::warn!(error, "a handler has other tools that cannot be served; the old ones stay"),
        }
    }
}

/// Turns of an I/O thread between two looks at what is ready in the kernel: tokio's own number.
const TURNS: u32 = 61;
/// Connections that an I/O thread is told of at one look. As many as have their turn until the next: more would pile up, in
/// an order that lets some wait for seconds where thousands are busy, and what was touched to wake one would be far away
/// again when it is served. In the kernel they wait in the order of their coming.
const READY_AT_ONCE: usize = TURNS as usize;
/// Turns of an I/O thread between two looks at what was woken from other threads, such as those of the pool. tokio's own
/// number is so high that with many busy connections such a call waits for a hundred times as long as others.
const GLOBAL_QUEUE_INTERVAL: u32 = 4;

/// Threads of the runtime that all share. Where each I/O thread has its own, one is left for what is no connection's.
pub(super) fn shared_threads(flavor: Flavor, io_threads: usize) -> usize {
    match flavor {
        Flavor::MultiThread => io_threads,
        Flavor::CurrentThread => 1,
    }
}

pub(super) fn io_runtime(threads: usize) -> Result<Runtime, StartError> {
    let mut runtime = tokio::runtime::Builder::new_multi_thread();
    runtime.worker_threads(threads).thread_name("io").global_queue_interval(GLOBAL_QUEUE_INTERVAL);
    moving_bytes(&mut runtime).build().map_err(|e| StartError::host("cannot start the I/O threads", e))
}

/// What threads that move bytes have, whether they share a runtime or each has its own.
pub(super) fn moving_bytes(runtime: &mut tokio::runtime::Builder) -> &mut tokio::runtime::Builder {
    runtime.event_interval(TURNS).max_io_events_per_tick(READY_AT_ONCE).on_thread_park(gather::before_wait).enable_all()
}

/// An address as a Host header names it, without the port.
pub(super) fn addr_host(addr: SocketAddr) -> String {
    match addr {
        SocketAddr::V4(addr) => addr.ip().to_string(),
        SocketAddr::V6(addr) => format!("[{}]", addr.ip()),
    }
}
