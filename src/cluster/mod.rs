//! What instances share, through one Redis: who there is (`registry`), and what has to hold across all of them. An
//! instance that is alone has none of it: nothing here is made then, and nothing is asked.
//!
//! `placement` says which of them has which tool, and `forward` has one of them run a call of another.
//!
//! `link` is the only place that knows Redis. What it is asked for is written in the parts beside it, as scripts where
//! two things have to happen together; the clock is Redis' own.

pub(crate) mod cache;
pub(crate) mod changes;
mod claim;
pub(crate) mod config;
mod endpoint;
pub(crate) mod forward;
pub(crate) mod keys;
mod last_stop;
pub(crate) mod leases;
pub(crate) mod link;
mod look;
mod member;
mod node;
pub(crate) mod placement;
pub(crate) mod presence;
pub(crate) mod rate;
mod registry;
mod roll;
pub(crate) mod sessions;
mod spool;
mod state_key;
pub(crate) mod streams;
#[cfg(test)]
mod tests;
pub(crate) mod unlike;
pub(crate) mod writing;

use std::{
    collections::BTreeMap,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

use self::{
    cache::Results,
    changes::Bus,
    endpoint::Kind,
    forward::Listener,
    link::{Link, LinkError, State},
    presence::Presence,
    rate::Rates,
    registry::Named,
};
pub(crate) use self::{
    config::HEARTBEAT_S_MAX,
    endpoint::Endpoint,
    keys::Keys,
    registry::{About, Me, Registry, View},
};
pub use self::{
    config::{Config, LastStop, Start, WhileAway},
    node::{Node, Status},
};

/// What one instance has of the others: the link, and what is shared over it.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) config: Config,
    pub(crate) link: Link,
    pub(crate) keys: Keys,
    pub(crate) rates: Rates,
    pub(crate) bus: Arc<Bus>,
    /// Which processes there are, as far as that can be told.
    pub(crate) presence: Arc<Presence>,
    /// Records of sessions that are none.
    pub(crate) corrupt: Arc<AtomicU64>,
    named: Named,
    registry: OnceLock<Registry>,
    listener: OnceLock<Listener>,
    spreads: OnceLock<BTreeMap<String, usize>>,
}

/// What is said of an instance where its settings in `[cluster]` do not say it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Own {
    /// The name of the host.
    pub(crate) host: String,
    /// Where it listens, as a URL.
    pub(crate) address: String,
    /// The longest that it keeps something of clients in Redis.
    pub(crate) kept_for: Duration,
    /// Where it is set that tools are to be.
    pub(crate) placed: Vec<String>,
}

/// Why it could not be had.
#[derive(Debug)]
pub(crate) enum JoinError {
    /// The setting of this name is wrong.
    Setting(&'static str, String),
    /// Redis is away, and the start is to be refused then.
    Away(String),
}

impl Cluster {
    /// Connects, in tasks of the runtime that this is called in.
    ///
    /// # Errors
    /// Settings are wrong, the keys are another deployment's, or Redis is away and that is to end the start.
    pub(crate) async fn connect(config: &Config, own: Own) -> Result<Arc<Self>, JoinError> {
        let link = Link::start_unowned(config);
        let cluster = link.and_then(|link| Self::over(link, config, own));
        let cluster = cluster.map_err(|wrong| JoinError::Setting("cluster.redis", wrong))?;
        let patience = config.connect_timeout() + config.command_timeout();
        match (cluster.link.first_word(patience).await, config.start) {
            (Ok(()), _) => {}
            (Err(why), Start::Refuse) => return Err(JoinError::Away(why)),
            (Err(_), Start::Degraded) => return Ok(Arc::new(cluster)),
        }
        match claim::claim(&cluster.link, &cluster.named, false).await {
            Ok(Err(foreign)) => Err(JoinError::Setting("cluster.key_prefix", foreign.told(&cluster.keys))),
            Err(error) if config.start == Start::Refuse => Err(JoinError::Away(error.to_string())),
            _ => Ok(Arc::new(cluster)),
        }
    }

    /// The same without waiting for Redis, and without a say on whose the keys are: to look at others.
    pub(crate) fn open(config: &Config, own: Own) -> Result<Self, String> {
        Self::over(Link::start(config)?, config, own)
    }

    fn over(link: Link, config: &Config, own: Own) -> Result<Self, String> {
        let endpoint = Endpoint::parse(&config.redis)?;
        let keys = Keys::new(&config.key_prefix, endpoint.kind == Kind::Cluster);
        let run = keys::hex(&random());
        let id = match config.node_id.as_str() {
            "" => {
                let host: String = own
                    .host
                    .chars()
                    .map(|c| if node::is_id(c.encode_utf8(&mut [0; 4])) { c } else { '-' })
                    .take(40)
                    .collect();
                format!("{host}-{}", &run[..8])
            }
            id => id.to_owned(),
        };
        let named = Named {
            keys: keys.clone(),
            cluster: config.id.clone(),
            id,
            run,
            address: own.address,
            roles: config.roles.clone(),
            period: Duration::from_secs(config.heartbeat_s),
            kept_for: own.kept_for,
            placed: own.placed,
        };
        let rates = Rates::new(link.clone(), keys.clone(), config.rate_limit);
        let bus = Bus::new(link.clone(), keys.clone(), &named.run);
        let presence = Presence::new(link.clone(), keys.clone(), tag_of(&named.run).unwrap_or_default());
        Ok(Self {
            config: config.clone(),
            link,
            keys,
            rates,
            bus,
            presence,
            corrupt: Arc::default(),
            named,
            registry: OnceLock::new(),
            listener: OnceLock::new(),
            spreads: OnceLock::new(),
        })
    }

    /// The records of sessions, which live for so long after they were touched.
    pub(crate) fn records(&self, expiry: Duration) -> sessions::Records {
        let (id, corrupt) = (self.id().to_owned(), Arc::clone(&self.corrupt));
        sessions::Records::new(self.link.clone(), self.keys.clone(), id, self.tag(), expiry, corrupt)
    }

    /// The streams of sessions, kept while something is said within `open` and for `ended` after their end. Writes in a
    /// task of the runtime that this is called in.
    pub(crate) fn streams(&self, open: Duration, ended: Duration) -> streams::Streams {
        streams::Streams::start(self.link.clone(), self.keys.clone(), Arc::clone(&self.presence), open, ended)
    }

    /// A number that this process is called by: another in each start.
    pub(crate) fn tag(&self) -> u32 {
        self.presence.tag()
    }

    /// The name of this instance.
    pub(crate) fn id(&self) -> &str {
        &self.named.id
    }

    /// This process: another start of the same instance is another one.
    pub(crate) fn run(&self) -> &str {
        &self.named.run
    }

    /// Kept results of up to so many bytes and for up to so long, shared.
    pub(crate) fn results(&self, entry_bytes_max: usize, ttl_max: Duration) -> Arc<Results> {
        self.bus.outlive(ttl_max);
        Results::new(self.link.clone(), self.keys.clone(), Arc::clone(&self.bus), entry_bytes_max)
    }

    /// Enters the registry, as starting.
    pub(crate) fn join(&self, me: Me) {
        self.registry.get_or_init(|| Registry::start(self.link.clone(), self.named.clone(), me));
    }

    /// Who there is, once this one has joined.
    pub(crate) fn registry(&self) -> Option<&Registry> {
        self.registry.get()
    }

    /// Waits until this instance sees itself in the registry, and so all others; for so long at most.
    pub(crate) async fn first_look(&self, patience: Duration) {
        let Some(mut views) = self.registry().map(Registry::watch) else { return };
        let is_in = |view: &Arc<View>| view.nodes.iter().any(|node| node.id == self.id());
        let _ = timeout(patience, views.wait_for(is_in)).await; // either way it goes on
    }

    /// How many others there are, as of the last look.
    pub(crate) fn others(&self) -> usize {
        self.registry().map_or(0, |registry| registry.view().nodes.iter().filter(|node| node.id != self.id()).count())
    }

    /// Says where this instance stands.
    pub(crate) async fn status(&self, status: Status) {
        if let Some(registry) = self.registry() {
            registry.status(status).await;
        }
    }

    /// Leaves the registry; nothing of this instance stays.
    pub(crate) async fn leave(&self) {
        if let Some(registry) = self.registry() {
            registry.leave().await;
        }
        // Who looks at a task that ran here learns now that it does not any more.
        self.presence.leave().await;
        state_key::leave(&self.link, &self.keys).await;
    }

    /// After that: removes what clients have in Redis, if it is set so and this was the last instance. Takes no longer than
    /// this.
    pub(crate) async fn remove_all_if_last(&self, patience: Duration) {
        if self.config.last_stop == LastStop::Remove {
            self.link.give_up(); // so that nothing is written again meanwhile
            last_stop::remove_all(&self.config, &self.named, patience).await;
        }
    }

    /// The key that seals what clients carry between instances: `own`, or the one that there is.
    pub(crate) async fn state_key(&self, own: &str) -> Result<String, LinkError> {
        state_key::agree(&self.link, self.keys.state_key(), own, state_key::STATE_EXPIRY).await
    }

    /// The key by which instances know each other: `own`, or the one that there is.
    pub(crate) async fn node_key(&self, own: &str) -> Result<String, LinkError> {
        state_key::agree(&self.link, self.keys.node_key(), own, state_key::NODE_EXPIRY).await
    }

    /// One that nobody has yet.
    ///
    /// # Errors
    /// The operating system gives no random numbers.
    pub(crate) fn new_node_key(&self) -> Result<String, getrandom::Error> {
        let mut key = [0; 32];
        getrandom::fill(&mut key)?;
        Ok(keys::hex(&key))
    }

    /// Takes calls of other instances.
    pub(crate) fn take_calls(&self, listener: Listener) {
        let _ = self.listener.set(listener); // there is one
    }

    /// Where calls of other instances are taken, if they are.
    pub(crate) fn listener(&self) -> Option<&Listener> {
        self.listener.get()
    }

    /// Of which tools only so many instances have each.
    pub(crate) fn note_spreads(&self, spreads: BTreeMap<String, usize>) {
        let _ = self.spreads.set(spreads); // they are set once
    }

    /// Whether Redis is there and refuses what is written.
    pub(crate) fn takes_no_writes(&self) -> bool {
        self.registry().is_some_and(|registry| registry.counts().is_refused.load(Relaxed))
    }

    /// Whether Redis is there, in a word. Another deployment's stays so while it is away: it comes right by no restart.
    pub(crate) fn word(&self) -> &'static str {
        match self.link.state() {
            _ if self.link.is_anothers() => "foreign",
            _ if self.link.is_foreign() && !self.link.is_given_up() => "away", // for us it is
            State::Connecting if !self.link.was_up() => "away",                // nobody has seen it yet
            State::Up | State::Connecting if self.takes_no_writes() => "read-only",
            State::Up | State::Connecting if self.link.is_deaf() => "deaf",
            State::Up | State::Connecting => "up",
            State::Away(_) => "away",
        }
    }

    /// All nodes as of the last look, as JSON.
    pub(crate) fn nodes_json(&self) -> Value {
        let view = self.registry().map(Registry::view);
        let mut nodes = view.map_or_else(Vec::new, |view| aged(&view));
        placement::shown(&mut nodes, self.spreads.get().unwrap_or(&BTreeMap::new()));
        json!({ "self": self.id(), "cluster": self.word(), "nodes": nodes })
    }
}

/// The nodes with the age of their heartbeats as of now.
fn aged(view: &View) -> Vec<Node> {
    let since = Instant::now().saturating_duration_since(view.at).as_millis() as u64;
    let mut nodes = view.nodes.clone();
    nodes.iter_mut().for_each(|node| node.heartbeat_age_ms += since);
    nodes
}

/// The nodes that Redis knows of at this moment, for whoever is none of them, and in words where their settings differ that
/// are to be equal. `spreads` are the tools of which only so many have each, for nodes that do not say so.
///
/// # Errors
/// Redis does not say, or says that they are another deployment's.
pub(crate) async fn nodes(
    config: &Config,
    spreads: &BTreeMap<String, usize>,
) -> Result<(Vec<Node>, Vec<String>), JoinError> {
    let wrong = |wrong| JoinError::Setting("cluster.redis", wrong);
    let away = |error: LinkError| JoinError::Away(error.to_string());
    let cluster = Cluster::open(config, Own::default()).map_err(wrong)?;
    let patience = config.connect_timeout() + config.command_timeout();
    cluster.link.first_word(patience).await.map_err(JoinError::Away)?;
    let whose = claim::whose(&cluster.link, &cluster.named).await.map_err(away)?;
    whose.map_err(|foreign| JoinError::Setting("cluster.id", foreign.told(&cluster.keys)))?;
    let found = look::look(&cluster.link, &cluster.keys, None).await.map_err(away)?;
    let mut nodes = found.nodes;
    placement::shown(&mut nodes, spreads);
    let differences = unlike::among(&nodes);
    Ok((nodes, differences))
}

/// The number that a process is called by, of what it is called in the registry and in tasks.
pub(crate) fn tag_of(run: &str) -> Option<u32> {
    u32::from_str_radix(run.get(..8)?, 16).ok()
}

fn random() -> [u8; 16] {
    let mut bytes = [0; 16];
    if getrandom::fill(&mut bytes).is_err() {
        // Without a source of randomness the time and the process have to tell two starts apart.
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        bytes[..12].copy_from_slice(&now.as_nanos().to_be_bytes()[4..]);
        bytes[12..].copy_from_slice(&std::process::id().to_be_bytes());
    }
    bytes
}
