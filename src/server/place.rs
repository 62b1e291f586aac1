//! Where tools run when several instances serve them: this one's part in it. It looks who is there and works out which
//! tools are here, hands calls of the others over, and runs what others hand over to it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{SocketAddr, TcpListener},
    sync::{Arc, Weak},
    time::Duration,
};

use serde_json::Value;
use tokio::{
    runtime::Runtime,
    time::{Instant, sleep},
};

use super::StartError;
use crate::{
    call::Ctx,
    cluster::{
        Cluster, Status, View,
        forward::{self, Forwarder, Hears, Key, Limits, Listener, Outcome, Places, Runs, Turned},
        placement, unlike,
    },
    config::{Loaded, Tuning, listener_address},
    error::CallError,
    front::{Front, pressure::Level},
    listener,
    mcp::router::Router,
    outbox::Outbox,
};

/// Between two looks whether the instances still have one key, and between two attempts to agree on one.
const KEY_PAUSE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(1));
/// A call has some things besides its arguments: what its client answered before, and its session.
const CALL_EXTRA_BYTES: usize = 1 << 20;
/// The least memory for calls that others hand over.
const CALLS_BYTES_MIN: usize = 16 << 20;
/// The most.
const CALLS_BYTES_MAX: u64 = 1 << 30;
/// From a connection of another instance to its proof that it is one.
const PROOF_WITHIN: Duration = Duration::from_secs(5);

/// A tool that nobody can run is said to be so after this many heartbeats, at the look at the others that comes with one: a
/// look is now a bit later and now a bit earlier.
const PATIENCE_HEARTBEATS: f32 = 0.9;

/// Whether some tool is not everywhere, and there is an elsewhere.
pub(super) fn is_on(tuning: &Tuning) -> bool {
    tuning.cluster.is_on() && tuning.tools.values().any(crate::tool::Config::is_placed)
}

/// The tools of which only so many instances have each.
pub(crate) fn spreads(tuning: &Tuning) -> BTreeMap<String, usize> {
    tuning.tools.iter().filter_map(|(name, tool)| Some((name.clone(), tool.spread?))).collect()
}

/// Where tools are to be, for the others to compare.
pub(super) fn wishes(tuning: &Tuning) -> Vec<String> {
    let placed = tuning.tools.iter().filter(|(_, tool)| tool.is_placed());
    placed.map(|(name, tool)| unlike::place(name, tool.roles.as_deref().unwrap_or_default(), tool.spread)).collect()
}

/// Binds, so that a port in use is found before anything runs.
pub(super) fn bind(loaded: &Loaded) -> Result<Option<TcpListener>, StartError> {
    if !is_on(&loaded.tuning) {
        return Ok(None);
    }
    let text = &loaded.tuning.cluster.forward_listen;
    let wrong = |error: &dyn std::fmt::Display| {
        StartError::host(&format!("cannot listen on cluster.forward_listen = \"{text}\""), error)
    };
    let address = listener_address(text).map_err(|error| wrong(&error))?;
    listener::bind(address).map(Some).map_err(|error| wrong(&error))
}

/// Begins to hand calls over and to take them. Says where others reach this instance for that.
pub(super) fn begin(
    loaded: &Loaded,
    cluster: &Arc<Cluster>,
    front: &Arc<Front>,
    socket: TcpListener,
    runtime: &Runtime,
) -> Result<String, StartError> {
    let (tuning, router) = (&loaded.tuning, &front.router);
    let failed = |error: &dyn std::fmt::Display| StartError::host("calls of other instances cannot be taken", error);
    let at: SocketAddr = socket.local_addr().map_err(|error| failed(&error))?;
    let given = tuning
        .cluster
        .read_node_key()
        .map_err(|message| StartError::config(loaded.fault("cluster.node_key_file", message)))?;
    let key = match &given {
        Some(key) => Key::of_file(key.expose()),
        None => {
            let own = cluster.new_node_key().map_err(|error| failed(&error))?;
            // Without Redis nobody is there to hand anything over, and the next look finds the key of all.
            runtime.block_on(cluster.node_key(&own)).map_or_else(|_| Key::own(&own), |key| Key::shared(&key))
        }
    };
    let call_bytes_max = tuning.limits.request_bytes_max.as_usize().saturating_add(CALL_EXTRA_BYTES);
    let config = forward::Config {
        connect_timeout: tuning.cluster.connect_timeout(),
        call_bytes_max,
        result_bytes_max: tuning.limits.result_bytes_max.as_usize(),
        in_flight_max: tuning.cluster.forwards_max,
    };
    let forwarder = Arc::new(Forwarder::new(cluster.id(), key, config, runtime.handle().clone()));
    router.dispatch.hand_over(&forwarder);
    see(&View { nodes: Vec::new(), at: Instant::now() }, cluster, router, &forwarder);
    let share = (loaded.host.memory_usable_bytes() / 16).min(CALLS_BYTES_MAX) as usize;
    let limits = Limits {
        calls_max: tuning.cluster.forwards_max,
        call_bytes_max,
        bytes_max: share.max(CALLS_BYTES_MIN).max(2 * call_bytes_max),
        proof_within: PROOF_WITHIN,
    };
    let _inside = runtime.enter();
    let runs = Box::new(Here(Arc::downgrade(front)));
    let started = Listener::start(socket, cluster.id(), Arc::clone(forwarder.key()), limits, runs);
    cluster.take_calls(started.map_err(|error| failed(&error))?);
    if given.is_none() {
        tokio::spawn(keep_key(Arc::clone(cluster), Arc::clone(&forwarder)));
    }
    let at = match tuning.cluster.forward_advertise.as_str() {
        "" => at.to_string(),
        advertise => advertise.to_owned(),
    };
    tracing::info!(
        at,
        roles = tuning.cluster.roles.join(" "),
        placed = placed_names(tuning),
        "tools are placed: calls of other instances are taken here"
    );
    Ok(at)
}

/// The tools that are not everywhere, each with its roles.
fn placed_names(tuning: &Tuning) -> String {
    let placed = tuning.tools.iter().filter(|(_, tool)| tool.is_placed());
    let named = placed.map(|(name, tool)| match (&tool.roles, tool.spread) {
        (Some(roles), None) => format!("{name} ({})", roles.join(" ")),
        (Some(roles), Some(count)) => format!("{name} ({}, {count} of them)", roles.join(" ")),
        (None, Some(count)) => format!("{name} (any {count})"),
        (None, None) => name.clone(),
    });
    named.collect::<Vec<_>>().join(", ")
}

/// Follows who is there, in a task of the runtime that this is called in. To be called once the instance has joined.
pub(super) fn follow(cluster: &Arc<Cluster>, router: &Arc<Router>) {
    let (Some(registry), Some(forwarder)) = (cluster.registry(), router.dispatch.forwarder()) else { return };
    let (mut views, forwarder) = (registry.watch(), Arc::clone(forwarder));
    let (cluster, router) = (Arc::clone(cluster), Arc::downgrade(router));
    tokio::spawn(async move {
        let patience = Duration::from_secs(cluster.config.heartbeat_s).mul_f32(PATIENCE_HEARTBEATS);
        let mut lacking = Lacking { patience, since: BTreeMap::new(), said: BTreeSet::new(), had: BTreeSet::new() };
        loop {
            {
                let Some(router) = router.upgrade() else { return };
                let view = views.borrow_and_update().clone();
                see(&view, &cluster, &router, &forwarder);
                say_who_lacks(&view, cluster.id(), &router, &mut lacking);
            }
            if views.changed().await.is_err() {
                return;
            }
        }
    });
}

/// The tools that this instance can run, for others to know.
pub(super) fn can_run(router: &Router) -> Vec<String> {
    let tools = router.dispatch.tools();
    let is_fit = |served: &&Arc<crate::dispatch::ServedTool>| {
        served.placement.as_ref().is_none_or(|placement| placement.is_fit())
    };
    tools.ordered().iter().filter(is_fit).map(|served| served.tool.name().to_owned()).collect()
}

/// Requests that this instance is serving: also those of others, and not those that others run for it.
pub(super) fn load(front: &Front) -> usize {
    let taken = front.cluster.as_ref().and_then(|cluster| cluster.listener()).map_or(0, Listener::inside);
    let given = front.router.dispatch.forwarder().map_or(0, |forwarder| forwarder.in_flight());
    (front.gate.inside() + taken).saturating_sub(given)
}

/// Works out where each tool is.
fn see(view: &View, cluster: &Cluster, router: &Router, forwarder: &Forwarder) {
    let tools = router.dispatch.tools();
    let mut table = Vec::new();
    for served in tools.ordered() {
        let Some(place) = &served.placement else { continue };
        let name = served.tool.name();
        place.fit_to(&cluster.config.roles);
        let nodes = placement::placed(name, place.spread(), &view.nodes);
        // Where nobody has it as far as is known, this one does what it can.
        let is_here = nodes.is_empty() || nodes.iter().any(|node| node.id == cluster.id());
        if place.is_here() != (is_here && place.is_fit()) {
            tracing::debug!(tool = name, here = is_here && place.is_fit(), "a tool has another place");
        }
        place.set_here(is_here);
        let placed: Vec<String> = nodes.into_iter().map(|node| node.id.clone()).collect();
        let can = placement::placed(name, None, &view.nodes).into_iter().map(|node| node.id.clone());
        let spare = can.filter(|id| !placed.contains(id)).collect();
        table.push(Places { tool: name.to_owned(), placed, spare });
    }
    forwarder.see(&view.nodes, table);
}

/// Tools that nobody can run, as far as that was said, and tools that somebody could.
struct Lacking {
    /// For so long nobody may have one before it is said: others start at the same time, or restart.
    patience: Duration,
    since: BTreeMap<String, Instant>,
    said: BTreeSet<String>,
    had: BTreeSet<String>,
}

/// Says which tools nobody can run, when that changes and lasts.
fn say_who_lacks(view: &View, own: &str, router: &Router, lacking: &mut Lacking) {
    // Who does not serve yet, or any more, does not count itself in.
    if !view.nodes.iter().any(|node| node.id == own && node.status == Status::Running) {
        return;
    }
    let tools = router.dispatch.tools();
    for served in tools.ordered() {
        let (Some(place), tool) = (&served.placement, served.tool.name()) else { continue };
        let roles = place.roles().join(" ");
        match placement::placed(tool, None, &view.nodes).is_empty() {
            true if view.at < *lacking.since.entry(tool.to_owned()).or_insert(view.at) + lacking.patience => {}
            true if lacking.said.insert(tool.to_owned()) => {
                let mut there: Vec<_> =
                    view.nodes.iter().flat_map(|node| node.roles.iter().map(String::as_str)).collect();
                there.sort_unstable();
                there.dedup();
                // Who has it may just restart: then no name is wrong.
                let is_right =
                    lacking.had.contains(tool) || place.roles().iter().any(|role| there.contains(&role.as_str()));
                let advice = if is_right {
                    " until one does".to_owned()
                } else {
                    format!("; set cluster.roles of one to a role of tools.{tool}.roles, or mend the name of either")
                };
                tracing::warn!(
                    tool,
                    roles,
                    there = there.join(" "),
                    "no instance that runs has a role of this tool: its calls are refused with 503{advice}"
                );
            }
            false => {
                lacking.since.remove(tool);
                if lacking.said.remove(tool) {
                    tracing::info!(tool, roles, "an instance has a role of this tool again");
                }
                if !lacking.had.contains(tool) {
                    lacking.had.insert(tool.to_owned());
                }
            }
            true => {}
        }
    }
}

/// Has the key that the others have.
async fn keep_key(cluster: Arc<Cluster>, forwarder: Arc<Forwarder>) {
    loop {
        let own = forwarder.key().load().text();
        let pause = match cluster.node_key(&own).await {
            Ok(key) => {
                forwarder.take_over(Key::shared(&key));
                KEY_PAUSE.0
            }
            Err(error) => {
                tracing::debug!(%error, "the instances have no key in common yet");
                KEY_PAUSE.1
            }
        };
        tokio::select! {
            () = sleep(pause) => {}
            () = forwarder.key_differs() => sleep(KEY_PAUSE.1).await,
        }
    }
}

/// Runs here what others hand over.
struct Here(Weak<Front>);

impl Runs for Here {
    fn admit(&self, tool: &str) -> Result<(), Turned> {
        let front = self.0.upgrade().ok_or(Turned::Stopping)?;
        if front.router.drain.is_started() {
            return Err(Turned::Stopping);
        }
        // By what it can run, and not by what is placed here: views differ for a moment when somebody comes or goes.
        match front.router.dispatch.tools().get(tool) {
            None => return Err(Turned::NotHere),
            Some(served) if served.placement.as_ref().is_some_and(|placement| !placement.is_fit()) => {
                return Err(Turned::NotHere);
            }
            Some(_) => {}
        }
        if front.pressure.level() >= Level::Calls { Err(Turned::Full) } else { Ok(()) }
    }

    fn outbox(&self, hears: Hears) -> Outbox {
        let Some(front) = self.0.upgrade() else { return Outbox::new(false, None, 0) };
        let router = &front.router;
        let outbox = Outbox::new(hears.progress, hears.log_level(), router.stream_buffer_bytes_max);
        outbox.with_patience(Arc::clone(&router.patience))
    }

    fn run(&self, tool: String, arguments: Value, ctx: Ctx) -> Outcome {
        let front = self.0.clone();
        Box::pin(async move {
            let front = front.upgrade().ok_or(CallError::Draining)?;
            let router = &front.router;
            let served = router.dispatch.tools().get(&tool).map(Arc::clone);
            let served = served.ok_or(CallError::UnknownTool(tool))?;
            tokio::select! {
                biased;
                answered = router.dispatch.call_here(&served, arguments, ctx) => answered.map(|answered| answered.reply),
                () = router.drain.until_over() => {
                    router.drain.count_cut();
                    Err(CallError::Draining)
                }
            }
        })
    }
}
