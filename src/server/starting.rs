//! Builds every part once, in order: the only file that sees the whole. What runs then, and how it stops, is `running`.

use std::{
    io::{self, Write},
    net::{IpAddr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use tokio::runtime::Runtime;

use super::{
    StartError,
    builder::{Builder, TaskStore},
    doors, forget, metrics,
    parts::{
        addr_host, connect, doorkeeper, fetcher, io_runtime, join, keep_tools, limiter, scheme, sealer, secure,
        share_sessions, shared_threads,
    },
    place,
    running::{IoThreads, Running},
    share, sweep, watch,
};
use crate::{
    audit::Audit,
    call::TASKS_EXTENSION,
    cluster::Cluster,
    config::{Loaded, Tuning},
    dispatch::{
        Dispatch,
        pool::{Pool, Sizes},
    },
    front::{
        Front,
        admin::{self, Admin, Invalidation, Wishing},
        checks::{Hosts, Origins},
        gate::{Gate, Weights},
        headers::Headers,
        http2,
        intake::Bodies,
        pressure::Pressure,
    },
    identity,
    listener::{self, Connections},
    mcp::{
        catalogue::{Capabilities, Catalogue},
        encode::Encoder,
        events::Kept,
        live::Settings,
        router::{Identity, Router},
        session::Sessions,
        tasking,
        wire::ShapeLimits,
    },
    outbox::Patience,
    rate::{Limiter, real_ip::Trusted},
    runtime::{self, Flavor, Host},
    shutdown::Drain,
    skill::{SKILLS_EXTENSION, Skills},
    tasks::{Memory, Record, Shared, Store, Tasks},
    telemetry::{meter::Sharded, refusals::Refusals},
    tool::{Features, Registry, Right, Tool, handler::Hosted},
    toolbox,
};

impl Builder {
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
            cluster.note_spreads(place::spreads(&loaded.tuning));
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

    /// All tools that a start would serve, and of each whether `who` may call it.
    ///
    /// # Errors
    /// What would stop a start, of the tools and their settings.
    pub(crate) fn rights_of(mut self, loaded: &Loaded, who: &identity::Identity) -> Result<Vec<Right>, StartError> {
        let runtime = io_runtime(1)?;
        let hosted = self.hosted(&runtime)?;
        Ok(self.registry(loaded, &hosted)?.snapshot().rights_of(who))
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
    pub(super) fn router(
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
}
