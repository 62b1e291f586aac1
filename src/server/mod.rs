//! Builds every part once, in order. The only file that sees the whole; what runs then, and how it stops, is `running`.

mod doors;
mod forget;
mod metrics;
mod place;
mod process;
mod running;
mod share;
mod standing;
mod sweep;
mod watch;

use std::{
    fmt,
    io::{self, Write},
    net::{IpAddr, SocketAddr},
    process::ExitCode,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tokio::{runtime::Runtime, sync::Notify, time::timeout};

pub(crate) use self::place::spreads;
use self::running::{IoThreads, announce_root, announce_settings, tool_names};
pub use self::running::{Running, Stopped};
use crate::{
    audit::Audit,
    call::TASKS_EXTENSION,
    changes::Changes,
    cluster::{About, Cluster, JoinError, Status},
    config::{Loaded, Tuning, weak},
    dispatch::{
        Dispatch,
        pool::{Pool, Sizes},
    },
    front::{
        Front,
        admin::{self, Admin, Invalidation, Wishing},
        checks::{Hosts, Origins},
        doorkeeper::Doorkeeper,
        gate::{Gate, Weights},
        headers::Headers,
        http2,
        intake::Bodies,
        pressure::Pressure,
    },
    identity::Fetcher,
    listener::{self, Connections, Secure},
    mcp::{
        catalogue::{Capabilities, Catalogue},
        encode::Encoder,
        events::Kept,
        live::Settings,
        router::{Identity, Router},
        seal::Sealer,
        session::Sessions,
        shared::Shared as SharedSessions,
        tasking,
        wire::ShapeLimits,
    },
    outbox::Patience,
    rate::{Limiter, ToolRules, real_ip::Trusted},
    runtime::{self, Flavor, Host},
    shutdown::{Drain, Signals},
    skill::{SKILLS_EXTENSION, Skill, Skills},
    stdio,
    tasks::{Memory, Record, Shared, Store, Tasks},
    telemetry::{self, meter::Sharded, refusals::Refusals},
    tool::{Features, Handler, Prompt, Registry, Resource, Tool, handler::Hosted},
    toolbox,
};

/// `[server]`: where bigiron listens and how it stops.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Address and port of the MCP endpoint.
    pub listen: String,
    /// Address and port of the admin listener; empty switches it off.
    pub admin_listen: String,
    /// Path of the MCP endpoint.
    pub path: String,
    /// Host names that clients may use in the Host header, besides the loopback names and the listening address.
    pub allowed_hosts: Vec<String>,
    /// Origins of browser pages that may call, such as `https://app.example.com`. No page may by default.
    pub allowed_origins: Vec<String>,
    /// Networks of proxies whose `X-Forwarded-For` is believed. None by default.
    pub trusted_proxies: Vec<String>,
    /// How long everything is served as before after the first SIGTERM, while `/ready` says no already, in milliseconds.
    pub drain_delay_ms: u64,
    /// How long calls in flight may go on after that, in milliseconds.
    pub drain_grace_ms: u64,
    /// Text for the agent about this server, sent with server/discover and initialize; empty sends none.
    pub instructions: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            listen: "127.0.0.1:5000".into(),
            admin_listen: "127.0.0.1:5001".into(),
            path: "/mcp".into(),
            allowed_hosts: Vec::new(),
            allowed_origins: Vec::new(),
            trusted_proxies: Vec::new(),
            drain_delay_ms: 100,
            drain_grace_ms: 30_000,
            instructions: String::new(),
        }
    }
}

/// A server of your own tools. Start with [`Server::builder`].
#[derive(Debug)]
pub struct Server;

impl Server {
    /// A server without tools and with the built-in settings.
    pub fn builder() -> Builder {
        Builder::default()
    }
}

/// Where tasks are kept.
#[derive(Debug)]
enum TaskStore {
    Memory,
    Own(Arc<dyn Store>),
}

/// A server being put together.
#[derive(Debug, Default)]
pub struct Builder {
    tools: Vec<Tool>,
    resources: Vec<Resource>,
    prompts: Vec<Prompt>,
    changes: Changes,
    skills: Vec<Skill>,
    handlers: Vec<Handler>,
    tasks: Option<TaskStore>,
    toolbox: bool,
    identity: Option<Identity>,
}

/// Why a server did not start.
#[derive(Debug)]
pub struct StartError {
    message: String,
    /// The settings are at fault, and starting again will not help.
    is_config: bool,
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for StartError {}

impl StartError {
    fn config(message: impl fmt::Display) -> Self {
        Self { message: message.to_string(), is_config: true }
    }

    fn host(what: &str, error: impl fmt::Display) -> Self {
        Self { message: format!("{what}: {error}"), is_config: false }
    }

    /// Says it on standard error and returns the exit code that says the same: 78 (`EX_CONFIG`) for settings, 1 for the
    /// host.
    pub fn tell(&self) -> ExitCode {
        // If standard error is closed, the exit code still says it.
        let _ = writeln!(io::stderr().lock(), "bigiron: {self}");
        ExitCode::from(if self.is_config { 78 } else { 1 })
    }
}

impl Builder {
    /// The name and version that clients are told. Without it they are bigiron's own.
    #[must_use]
    pub fn identity(mut self, name: impl Into<String>, version: impl Into<String>) -> Self {
        self.identity = Some(Identity { name: name.into(), version: version.into() });
        self
    }

    /// Adds a tool whose function returns when it is done; see [`Tool::new`].
    #[must_use]
    pub fn tool<A, R>(
        self,
        name: &'static str,
        description: &'static str,
        lane: crate::call::Lane,
        run: impl Fn(A, crate::call::Ctx) -> R + Send + Sync + 'static,
    ) -> Self
    where
        A: serde::de::DeserializeOwned + JsonSchema,
        R: crate::tool::IntoReply,
    {
        self.with(Tool::new(name, description, lane, run))
    }

    /// Adds a tool whose function returns a future; see [`Tool::new_async`].
    #[must_use]
    pub fn async_tool<A, R, F>(
        self,
        name: &'static str,
        description: &'static str,
        run: impl Fn(A, crate::call::Ctx) -> F + Send + Sync + 'static,
    ) -> Self
    where
        A: serde::de::DeserializeOwned + JsonSchema,
        R: crate::tool::IntoReply,
        F: Future<Output = R> + Send + 'static,
    {
        self.with(Tool::new_async(name, description, run))
    }

    /// Adds a tool.
    #[must_use]
    pub fn with(mut self, tool: Tool) -> Self {
        self.tools.push(tool);
        self
    }

    /// Adds a resource, or a template for many.
    #[must_use]
    pub fn resource(mut self, resource: Resource) -> Self {
        self.resources.push(resource);
        self
    }

    /// Adds a prompt.
    #[must_use]
    pub fn prompt(mut self, prompt: Prompt) -> Self {
        self.prompts.push(prompt);
        self
    }

    /// Serves an rmcp handler as it is, besides what else there is.
    #[must_use]
    pub fn host(mut self, handler: Handler) -> Self {
        self.handlers.push(handler);
        self
    }

    /// Adds a skill.
    #[must_use]
    pub fn skill(mut self, skill: Skill) -> Self {
        self.skills.push(skill);
        self
    }

    /// Lets calls become tasks ([`crate::Ctx::become_task`]), kept in this process's memory; with `cluster.redis`, in Redis,
    /// so that every instance finds them.
    #[must_use]
    pub fn tasks(mut self) -> Self {
        self.tasks = Some(TaskStore::Memory);
        self
    }

    /// The same, kept in a store of yours.
    #[must_use]
    pub fn tasks_in(mut self, store: Arc<dyn Store>) -> Self {
        self.tasks = Some(TaskStore::Own(store));
        self
    }

    /// A way to tell clients that a list or a resource has changed, for use outside calls.
    pub fn changes(&self) -> Changes {
        self.changes.clone()
    }

    /// Adds the tools that ship with bigiron, as far as the settings have them on.
    #[must_use]
    pub fn toolbox(mut self) -> Self {
        self.toolbox = true;
        self
    }

    /// The name and version that the author gave.
    pub(crate) fn identity_of(&self) -> Option<(&str, &str)> {
        self.identity.as_ref().map(|identity| (identity.name.as_str(), identity.version.as_str()))
    }

    /// Starts on threads of its own and returns.
    ///
    /// # Errors
    /// When settings are wrong, a tool is, or the host does not give what is needed.
    pub fn start(self, tuning: Tuning) -> Result<Running, StartError> {
        let loaded = Loaded::from_program(tuning, Host::read(), false).map_err(StartError::config)?;
        self.start_with(&loaded)
    }

    /// The same, with settings that were loaded and checked before.
    ///
    /// # Errors
    /// When a tool or its settings are wrong, or the host does not give what is needed.
    pub fn start_with(self, loaded: &Loaded) -> Result<Running, StartError> {
        let config = &loaded.tuning.server;
        let (flavor, io_threads) = (loaded.tuning.runtime.flavor, loaded.resolved.io_threads);
        let sockets = match flavor {
            Flavor::MultiThread => listener::bind(loaded.listen).map(|socket| vec![socket]),
            Flavor::CurrentThread => listener::bind_shared(loaded.listen, io_threads),
        }
        .map_err(|e| StartError::host(&format!("cannot listen on server.listen = \"{}\"", config.listen), e))?;
        let admin_socket = loaded.admin_listen.map(listener::bind).transpose().map_err(|e| {
            StartError::host(&format!("cannot listen on server.admin_listen = \"{}\"", config.admin_listen), e)
        })?;
        let address = |socket: &std::net::TcpListener| {
            socket.local_addr().map_err(|e| StartError::host("cannot read an own address", e))
        };
        let addr = sockets.first().map_or(Ok(loaded.listen), address)?;
        let secure = secure(loaded)?.map(Arc::new);
        let admin_addr = admin_socket.as_ref().map(address).transpose()?;
        let forward_socket = place::bind(loaded)?;

        let drain = Arc::<Drain>::default();
        let runtime = io_runtime(shared_threads(flavor, io_threads))?;
        let cluster = connect(loaded, addr, &runtime)?;
        let front = Arc::new(self.front(loaded, addr, cluster.clone(), Arc::clone(&drain), &runtime)?);
        let connections = Arc::<Connections>::default();
        let invalidations = Arc::<AtomicU64>::default();
        let started = admin_socket.map(|socket| {
            let hosts = Hosts::new(&addr_host(admin_addr.unwrap_or(addr)), &config.allowed_hosts);
            let metrics = metrics::reader(loaded, &front, &connections, secure.as_ref(), &invalidations);
            let (server, is_asked) = (Arc::downgrade(&front), loaded.asks_who_calls());
            let invalidate = Box::new(move |wish: &Invalidation, who: &Wishing| {
                let front = server.upgrade()?;
                let forgot = forget::results(&front.router, wish, who, is_asked);
                if forgot.is_ok() {
                    invalidations.fetch_add(1, Relaxed);
                }
                Some(forgot)
            });
            let server = Arc::downgrade(&front);
            let administrator = Box::new(move |headers: &Headers<'_>, address: IpAddr, path: &str| {
                // Without a server there is nothing to change either.
                server.upgrade().map_or(Ok(None), |front| front.administrator(headers, address, path))
            });
            let (drain, cluster, audit) = (Arc::clone(&drain), cluster.clone(), front.router.audit.clone());
            admin::start(socket, Admin { hosts, drain, metrics, administrator, audit, cluster, invalidate })
        });
        let admin = started.transpose().map_err(|e| StartError::host("cannot start the admin listener", e))?;
        watch::start(&front, &connections, secure.as_ref())
            .map_err(|e| StartError::host("cannot start the watching thread", e))?;
        // Each listener holds a place while it waits for a connection.
        let waiting = sockets.len().saturating_sub(1);
        let places = listener::places(loaded.resolved.connections_max.saturating_add(waiting));
        let (doors, own_threads) = doors::open(sockets, flavor, &runtime, |socket, stop| {
            let (front, connections, places) = (Arc::clone(&front), Arc::clone(&connections), Arc::clone(&places));
            listener::accept(socket, front, secure.clone(), connections, places, stop)
        })
        .map_err(|e| StartError::host("cannot start the I/O threads", e))?;
        if let Some(cluster) = &cluster {
            let forwards = match forward_socket {
                None => String::new(),
                Some(socket) => place::begin(loaded, cluster, &front, socket, &runtime)?,
            };
            cluster.note_spreads(spreads(&loaded.tuning));
            runtime.block_on(join(cluster, &front, loaded.resolved.concurrent_requests_max, forwards));
        }
        runtime.spawn(sweep::sessions(Arc::clone(&front), loaded.tuning.sessions.idle_timeout_s));
        if loaded.insecure_no_auth && !loaded.asks_who_calls() {
            runtime.spawn(sweep::say_that_all_may_call(sweep::REMINDER_PAUSE));
        }
        if let Some(fetcher) = fetcher(loaded)? {
            let front = Arc::clone(&front);
            // Ends with the runtime.
            runtime.spawn(async move {
                if let Some(doorkeeper) = &front.doorkeeper {
                    doorkeeper.keep_keys(&fetcher).await;
                }
            });
        }
        let delay = Duration::from_millis(config.drain_delay_ms);
        let grace = Duration::from_millis(config.drain_grace_ms);
        let io = runtime.handle().clone();
        let _io_threads = IoThreads::new(runtime, own_threads);
        Ok(Running {
            io,
            _io_threads,
            _admin: admin,
            front,
            secure,
            connections,
            doors,
            drain,
            addr,
            admin_addr,
            delay,
            grace,
        })
    }

    fn front(
        self,
        loaded: &Loaded,
        addr: SocketAddr,
        cluster: Option<Arc<Cluster>>,
        drain: Arc<Drain>,
        runtime: &Runtime,
    ) -> Result<Front, StartError> {
        let tuning = &loaded.tuning;
        let router = self.router(
            loaded,
            &format!("{}:{}", runtime::host_name(), addr.port()),
            cluster.as_deref(),
            drain,
            runtime,
        )?;
        Ok(Front {
            path: tuning.server.path.clone(),
            hosts: Hosts::new(&addr_host(addr), &tuning.server.allowed_hosts),
            origins: Origins::new(&tuning.server.allowed_origins, scheme(tuning)),
            limits: tuning.limits.clone(),
            http2: http2::Shared::new(tuning.http2.clone(), loaded.resolved.connections_max),
            gate: Gate::new(loaded.resolved.concurrent_requests_max),
            fairness: Weights::new(&tuning.fairness)
                .map_err(|message| StartError::config(loaded.fault("fairness.weights", message)))?,
            pressure: Pressure::new(loaded.host.memory_usable_bytes()),
            bodies: Bodies::new(
                loaded.resolved.concurrent_requests_max.saturating_mul(tuning.limits.request_bytes_max.as_usize()),
            ),
            refusals: Refusals::default(),
            streams: Gate::new(loaded.resolved.streams_max),
            trusted: Trusted::new(&tuning.server.trusted_proxies)
                .map_err(|message| StartError::config(loaded.fault("server.trusted_proxies", message)))?,
            doorkeeper: doorkeeper(loaded, addr)?,
            limiter: match &cluster {
                None => limiter(tuning),
                Some(_) => limiter(tuning).map(Limiter::with_shared_keys),
            },
            sessions: cluster
                .as_ref()
                .map(|cluster| share_sessions(cluster, &router, tuning.sessions.idle_timeout_s, runtime)),
            router,
            cluster,
            tells_rates: tuning.rate_limit.headers_on_success,
        })
    }

    /// Checks the tools and their settings, as far as that goes without starting anything.
    ///
    /// # Errors
    /// What would stop a start.
    pub fn check(mut self, loaded: &Loaded) -> Result<(), StartError> {
        let runtime = io_runtime(1)?;
        let hosted = self.hosted(&runtime)?;
        self.registry(loaded, &hosted)?;
        doorkeeper(loaded, loaded.listen)?;
        if let Some(secure) = secure(loaded)? {
            for warning in secure.warnings() {
                // Nothing can be done about a standard error that is closed.
                let _ = writeln!(io::stderr().lock(), "bigiron: warning: {warning}");
            }
        }
        fetcher(loaded)?;
        if place::is_on(&loaded.tuning) {
            loaded
                .tuning
                .cluster
                .read_node_key()
                .map_err(|message| StartError::config(loaded.fault("cluster.node_key_file", message)))?;
        }
        Audit::check(&loaded.tuning.audit)
            .map_err(|message| StartError::config(loaded.fault("audit.file", message)))?;
        Features::new(self.resources, self.prompts).map_err(StartError::config)?;
        Skills::new(self.skills).map_err(StartError::config)?;
        sealer(loaded).map(drop)
    }

    /// The folder that the toolbox reads, when there is one.
    pub(crate) fn toolbox_root(&self, loaded: &Loaded) -> Option<String> {
        let toolbox = &loaded.tuning.toolbox;
        (self.toolbox && toolbox.enabled).then(|| toolbox.root.clone())
    }

    /// Asks the hosted handlers what they have.
    fn hosted(&mut self, runtime: &Runtime) -> Result<Hosted, StartError> {
        let handlers = std::mem::take(&mut self.handlers);
        runtime.block_on(Hosted::new(handlers, self.changes.clone())).map_err(StartError::config)
    }

    fn registry(&mut self, loaded: &Loaded, hosted: &Hosted) -> Result<Registry, StartError> {
        let tuning = &loaded.tuning;
        let mut tools = self.tools.clone();
        if self.toolbox && tuning.toolbox.enabled {
            tools.extend(toolbox::tools(&tuning.toolbox).map_err(StartError::config)?);
        }
        self.tools.clone_from(&tools); // kept for when the handlers' tools change
        tools.extend(hosted.tools.iter().cloned());
        loaded.check_tools(tools.iter().map(Tool::name)).map_err(StartError::config)?;
        Registry::new(tools, &tuning.tools, tuning.limits.request_timeout_ms).map_err(|fault| {
            let path = format!("tools.{}", fault.name);
            StartError::config(loaded.fault(&path, format!("tool {:?}: {}", fault.name, fault.message)))
        })
    }

    /// `node` is what the audit trail calls this process.
    fn router(
        mut self,
        loaded: &Loaded,
        node: &str,
        cluster: Option<&Cluster>,
        drain: Arc<Drain>,
        runtime: &Runtime,
    ) -> Result<Arc<Router>, StartError> {
        let (tuning, resolved) = (&loaded.tuning, &loaded.resolved);
        let hosted = self.hosted(runtime)?;
        let registry = self.registry(loaded, &hosted)?;
        let mut features = Features::new(self.resources, self.prompts).map_err(StartError::config)?;
        features.methods.clone_from(&hosted.methods);
        features.has_hosted = !hosted.is_empty();
        let skills = Skills::new(self.skills).map_err(StartError::config)?;
        let tasks = self.tasks.map(|store| {
            let store = match store {
                TaskStore::Memory => match cluster {
                    None => Arc::new(Memory::new(&tuning.tasks)) as Arc<dyn Store>,
                    Some(cluster) => Arc::new(Shared::new(&tuning.tasks, cluster)),
                },
                TaskStore::Own(store) => store,
            };
            let changes = self.changes.clone();
            let told = move |record: &Record| {
                let members = record.detailed_members();
                changes.task(&record.owner, &record.id, record.version, &members, record.made_by.as_deref());
            };
            Tasks::with_on_change(tuning.tasks.clone(), store, Arc::new(told))
        });
        let mut methods = features.methods.clone();
        let mut extensions = hosted.extensions.clone();
        if let Some(tasks) = &tasks {
            runtime.spawn(sweep::tasks(Arc::clone(tasks)));
            methods.extend(tasking::methods(tasks, &features.methods));
            extensions.insert(TASKS_EXTENSION.into(), serde_json::json!({}));
        }
        if !skills.is_empty() {
            extensions.insert(SKILLS_EXTENSION.into(), serde_json::json!({ "directoryRead": true }));
        }
        let capabilities = Capabilities::of(&features, !skills.is_empty(), extensions);
        let own = (!tuning.server.instructions.is_empty()).then(|| tuning.server.instructions.clone());
        let instructions = own.or_else(|| hosted.instructions.clone()).unwrap_or_default();
        let of_skills = skills.resource_entries().map(|(uri, json)| (uri.clone(), json.clone())).collect();
        let catalogue = Catalogue::new(
            tuning.lists.clone(),
            &instructions,
            &registry.snapshot(),
            &features,
            of_skills,
            capabilities,
        );
        let sizes = Sizes {
            threads: resolved.pool_threads,
            threads_max: resolved.pool_threads_max,
            // A thread with a runtime of its own that ran a call would hold its connections up: nobody else has them.
            io_threads: shared_threads(tuning.runtime.flavor, resolved.io_threads),
        };
        let pool = Pool::start(&tuning.pool, sizes).map_err(|e| StartError::host("the worker pool", e))?;
        let limits = &tuning.limits;
        let second =
            cluster.map(|cluster| cluster.results(tuning.cache.entry_bytes_max.as_usize(), share::ttl_max(tuning)));
        let dispatch = Dispatch::new(registry, &tuning.cache, second, pool, limits.result_bytes_max.as_usize());
        let shape = ShapeLimits { depth_max: limits.json_depth_max, keys_max: limits.json_keys_max };
        let identity = self.identity.unwrap_or_else(|| Identity {
            name: env!("CARGO_PKG_NAME").into(),
            version: env!("CARGO_PKG_VERSION").into(),
        });
        let stream_buffer_bytes_max = limits.stream_buffer_bytes_max.as_usize();
        let streams = Settings {
            changes: self.changes.clone(),
            kept: Arc::new(Kept::new(tuning.sessions.resume_bytes_max.as_usize())),
            buffer_bytes_max: stream_buffer_bytes_max,
            retention: Duration::from_secs(tuning.sessions.resume_s),
            tag: cluster.map(Cluster::tag),
            streams: cluster.map(|cluster| {
                let _inside = runtime.enter();
                let time = Duration::from_secs;
                cluster.streams(time(tuning.sessions.idle_timeout_s), time(tuning.sessions.resume_s))
            }),
        };
        let sealer = sealer(loaded)?;
        if let Some(cluster) = cluster {
            runtime.block_on(share::state_key(cluster, &sealer));
        }
        let audit = Audit::start(&tuning.audit, node)
            .map_err(|message| StartError::config(loaded.fault("audit.file", message)))?;
        let router = Arc::new(Router {
            dispatch,
            features,
            methods,
            tasks,
            audit,
            skills,
            sessions: Sessions::new(tuning.sessions.clone(), streams, Instant::now()),
            drain,
            changes: self.changes,
            changes_here: Sharded::default(),
            catalogue,
            encoder: Encoder::new(&identity.name, &identity.version),
            identity,
            sealer,
            shape,
            stream_buffer_bytes_max,
            // At most half of the places, so that clients who do not answer leave room for those who call.
            patience: Arc::new(Patience::new(
                Duration::from_secs(tuning.input.answer_timeout_s),
                (resolved.concurrent_requests_max / 2).max(1),
            )),
            request_timeout_ms: limits.request_timeout_ms,
        });
        if !hosted.is_empty() {
            runtime.spawn(keep_tools(Arc::clone(&router), hosted, self.tools, tuning.tools.clone()));
        }
        Ok(router)
    }

    /// Serves by settings that were loaded: over HTTP until a signal stops it, or over standard input and output until
    /// the input ends. Logs, and returns the process's exit code.
    pub fn serve(self, loaded: &Loaded, stdio: bool) -> ExitCode {
        if let Err(message) = telemetry::log::init(&loaded.tuning.log) {
            return StartError::config(message).tell();
        }
        telemetry::log::log_panics();
        let served = if stdio { self.serve_stdio(loaded) } else { self.serve_http(loaded) };
        served.unwrap_or_else(|error| error.tell())
    }

    fn serve_http(self, loaded: &Loaded) -> Result<ExitCode, StartError> {
        let root = self.toolbox_root(loaded);
        let running = self.start_with(loaded)?;
        let signals = {
            let _inside = running.io.enter();
            Signals::listen().map_err(|e| StartError::host("cannot listen for signals", e))?
        };
        running.announce(loaded, root.as_deref());
        standing::announce(loaded, &running.front, running.secure.as_deref());
        for weak in weak(loaded, root.as_deref()) {
            tracing::warn!("weak: {weak}");
        }
        running.reload_on_hangup().map_err(|e| StartError::host("cannot listen for signals", e))?;
        Ok(running.until_signal(signals))
    }

    fn serve_stdio(self, loaded: &Loaded) -> Result<ExitCode, StartError> {
        let root = self.toolbox_root(loaded);
        let runtime = io_runtime(loaded.resolved.io_threads)?;
        let router = self.router(loaded, &runtime::host_name(), None, Arc::default(), &runtime)?;
        watch::start_without_front(&router).map_err(|e| StartError::host("cannot start the watching thread", e))?;
        tracing::info!(tools = tool_names(&router), "serving MCP on standard input and output");
        if let Some(root) = root {
            announce_root(&root);
        }
        announce_settings(loaded, &router);
        let (input, output) = (tokio::io::stdin(), tokio::io::stdout());
        let line_bytes_max = loaded.tuning.limits.request_bytes_max.as_usize();
        let calls_max = loaded.resolved.concurrent_requests_max;
        let grace = Duration::from_millis(loaded.tuning.server.drain_grace_ms);
        let served = runtime.block_on(async {
            let mut signals = Signals::listen()?;
            let stop = Notify::new();
            let served = stdio::serve(Arc::clone(&router), input, output, line_bytes_max, calls_max, &stop);
            tokio::pin!(served);
            tokio::select! {
                served = &mut served => return served.map(|()| 0),
                (signal, _) = signals.next() => {
                    tracing::info!(signal, "draining");
                    note(&router, "drain", signal);
                }
            }
            stop.notify_one(); // nothing more is read; what runs is answered
            tokio::select! {
                served = timeout(grace, served) => served.unwrap_or(Ok(())).map(|()| 0),
                (_, code) = signals.next() => Ok(code),
            }
        });
        end_audit(&router);
        runtime.shutdown_background(); // a read from standard input cannot be called back
        served.map(ExitCode::from).map_err(|e| StartError::host("standard input or output", e))
    }
}

/// How often callers may call, when that is limited.
fn limiter(tuning: &Tuning) -> Option<Limiter> {
    let tools = tuning.tools.iter().map(|(name, tool)| {
        let rules =
            ToolRules { for_all: tool.rate.unwrap_or_default(), for_each: tool.rate_per_caller.unwrap_or_default() };
        (name.as_str(), rules)
    });
    Limiter::new(&tuning.rate_limit, tools, Instant::now())
}

/// For the last lines of the audit trail to be written.
const LAST_LINES: Duration = Duration::from_secs(2);

/// Puts something that is no call into the audit trail.
fn note(router: &Router, event: &str, detail: &str) {
    if let Some(audit) = &router.audit {
        audit.note(event, detail);
    }
}

/// Writes what the audit trail still has to say.
fn end_audit(router: &Router) {
    if let Some(audit) = &router.audit
        && let Err(problem) = audit.stop(LAST_LINES)
    {
        tracing::error!("{problem}");
    }
}

/// Connects to what instances share, when there are several. `addr` is where this one listens.
fn connect(loaded: &Loaded, addr: SocketAddr, runtime: &Runtime) -> Result<Option<Arc<Cluster>>, StartError> {
    let tuning = &loaded.tuning;
    if !tuning.cluster.is_on() {
        return Ok(None);
    }
    let base = match tuning.cluster.advertise.as_str() {
        "" => format!("{}{addr}", scheme(tuning)),
        advertise => advertise.to_owned(),
    };
    let address = format!("{base}{}", tuning.server.path);
    let connected = runtime.block_on(Cluster::connect(&tuning.cluster, &runtime::host_name(), &address));
    connected.map(Some).map_err(|error| match error {
        JoinError::Setting(path, message) => StartError::config(loaded.fault(path, message)),
        JoinError::Away(why) => StartError::host("Redis is away, and cluster.start = \"refuse\"", why),
    })
}

/// Shares the sessions of the older revisions. A record outlives its session's time a little, so that none expires
/// between its use and the moment when that is noted.
fn share_sessions(
    cluster: &Cluster,
    router: &Arc<Router>,
    idle_timeout_s: u64,
    runtime: &Runtime,
) -> Arc<SharedSessions> {
    let pause = Duration::from_secs((idle_timeout_s / 8).clamp(1, 10));
    let expiry = Duration::from_secs(idle_timeout_s) + 2 * pause;
    let _inside = runtime.enter();
    SharedSessions::start(cluster.records(expiry), Arc::clone(router), pause)
}

/// Tells the other instances that this one is there, and then that it serves.
async fn join(cluster: &Arc<Cluster>, front: &Arc<Front>, max_load: usize, forwards: String) {
    share::begin(cluster, &front.router);
    let server = Arc::downgrade(front);
    cluster.join(Box::new(move || {
        let front = server.upgrade()?;
        let (tools, load) = (place::can_run(&front.router), place::load(&front));
        Some(About { load: load as u64, max_load: max_load as u64, tools, forwards: forwards.clone() })
    }));
    place::follow(cluster, &front.router);
    cluster.status(Status::Running).await;
}

/// What gets the issuer's keys, where they are fetched.
fn fetcher(loaded: &Loaded) -> Result<Option<Fetcher>, StartError> {
    let url = &loaded.tuning.auth.jwks_url;
    let made = (!url.is_empty()).then(|| Fetcher::new(url)).transpose();
    made.map_err(|message| StartError::config(loaded.fault("auth.jwks_url", message)))
}

/// Who tells who calls, when anybody is asked. `addr` is where it listens.
fn doorkeeper(loaded: &Loaded, addr: SocketAddr) -> Result<Option<Doorkeeper>, StartError> {
    let tuning = &loaded.tuning;
    Doorkeeper::new(&tuning.auth, &format!("{}{addr}", scheme(tuning)), &tuning.server.path)
        .map_err(|message| StartError::config(loaded.fault("auth.keys_file", format!("[auth]: {message}"))))
}

/// What makes connections secure, when they are.
fn secure(loaded: &Loaded) -> Result<Option<Secure>, StartError> {
    let tuning = &loaded.tuning;
    Secure::new(&tuning.tls, tuning.http2.enabled)
        .map_err(|message| StartError::config(loaded.fault("tls.certificate", format!("[tls]: {message}"))))
}

/// What this server's URL begins with.
fn scheme(tuning: &Tuning) -> &'static str {
    if tuning.tls.is_on() { "https://" } else { "http://" }
}

/// What seals the state of rounds.
fn sealer(loaded: &Loaded) -> Result<Sealer, StartError> {
    Sealer::new(&loaded.tuning.input).map_err(|message| StartError::config(loaded.fault("input.state_keys", message)))
}

/// Serves the tools that hosted handlers have, whenever they say that they are others.
async fn keep_tools(
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

/// Turns of an I/O thread between two looks at what waits for any thread.
const GLOBAL_QUEUE_INTERVAL: u32 = 4;

/// Threads of the runtime that all share. Where each I/O thread has its own, one is left for what is no connection's.
fn shared_threads(flavor: Flavor, io_threads: usize) -> usize {
    match flavor {
        Flavor::MultiThread => io_threads,
        Flavor::CurrentThread => 1,
    }
}

fn io_runtime(threads: usize) -> Result<Runtime, StartError> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(threads)
        .thread_name("io")
        // With many busy connections most wait in the runtime's shared queue, which it looks at every so many turns: by
        // its own default so seldom that some connections starve for a hundred times as long as others wait.
        .global_queue_interval(GLOBAL_QUEUE_INTERVAL)
        .enable_all()
        .build()
        .map_err(|e| StartError::host("cannot start the I/O threads", e))
}

/// An address as a Host header names it, without the port.
fn addr_host(addr: SocketAddr) -> String {
    match addr {
        SocketAddr::V4(addr) => addr.ip().to_string(),
        SocketAddr::V6(addr) => format!("[{}]", addr.ip()),
    }
}
