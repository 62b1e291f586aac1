//! Every metric, its name and its meaning, gathered when somebody asks. Names begin with `bigiron_`, but for those that
//! every program is expected to have (`process_`); values of labels come from the configuration and the code, never
//! from a request.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Instant, SystemTime, UNIX_EPOCH},
};

use super::process;
use crate::{
    cluster::{
        Cluster,
        cache::Results,
        forward::{Forwarder, Listener},
        streams::Streams,
    },
    config::Loaded,
    dispatch::ServedTool,
    front::Front,
    listener::{Connections, Secure},
    telemetry::{
        calls::{Cached, CallMeter, Ended, Phase},
        exposition::{Exposition, Labels},
        refusals,
    },
};

/// Reads all metrics as Prometheus text, as long as there is what they are of.
pub(super) fn reader(
    loaded: &Loaded,
    front: &Arc<Front>,
    connections: &Arc<Connections>,
    secure: Option<&Arc<Secure>>,
    invalidations: &Arc<AtomicU64>,
) -> Box<dyn Fn() -> Option<String> + Send + Sync> {
    let (front, connections) = (Arc::downgrade(front), Arc::downgrade(connections));
    let secure = secure.map(Arc::clone);
    let (limits, invalidations) = (limits(loaded), Arc::clone(invalidations));
    let started_at_s = process::started_at_s();
    Box::new(move || {
        let front = front.upgrade()?;
        let connections = connections.upgrade()?;
        let invalidations = invalidations.load(Relaxed);
        Some(Sources { front, connections, secure: secure.clone(), limits, invalidations, started_at_s }.text())
    })
}

/// What may be divided by, each under the name of its setting.
type Limits = [(&'static str, u64); 7];

/// What instances share.
fn shared(out: &mut Exposition, cluster: &Cluster) {
    let link = &cluster.link;
    let is_away = matches!(cluster.word(), "away" | "foreign"); // as `/ready` says it
    out.gauge("bigiron_cluster_up", "1 while what instances share can be had, 0 while Redis is away or not ours")
        .only(u8::from(!is_away));
    out.gauge("bigiron_cluster_writable", "1 while Redis is there and takes writes, 0 while it is away or full")
        .only(u8::from(!is_away && !cluster.takes_no_writes()));
    out.gauge(
        "bigiron_cluster_heard",
        "1 while what other instances tell is heard, 0 while Redis is away or forbids it",
    )
    .only(u8::from(!is_away && !link.is_deaf()));
    out.counter("bigiron_cluster_away_total", "Times that Redis went away").only(link.times_away());
    out.gauge("bigiron_cluster_commands_in_flight", "Commands to Redis under way")
        .only(link.in_flight(cluster.config.in_flight_max));
    out.counter("bigiron_cluster_commands_total", "Commands to Redis, by what came of them");
    let counts = link.counts();
    each(
        out,
        "outcome",
        [
            ("answered", &counts.answered),
            ("refused", &counts.refused),
            ("unknown", &counts.unknown),
            ("away", &counts.away),
            ("crowded", &counts.crowded),
        ],
    );
    out.counter("bigiron_cluster_connects_total", "Attempts to connect to Redis").only(counts.connects.load(Relaxed));
    out.counter(
        "bigiron_cluster_messages_missed_total",
        "Messages of other instances that came faster than they were read",
    )
    .only(counts.missed.load(Relaxed));
    out.counter("bigiron_cluster_rates_alone_total", "Rates that Redis did not decide").only(cluster.rates.alone());
    let news = cluster.bus.counts();
    out.counter(
        "bigiron_cluster_news_total",
        "News of changes: told to other instances, heard from them, or unreadable",
    );
    each(out, "what", [("told", &news.told), ("heard", &news.heard), ("odd", &news.odd)]);
    let help = "Times that news may have been missed, so that everything was taken for changed";
    out.counter("bigiron_cluster_news_gaps_total", help).only(news.gaps.load(Relaxed));
    let Some(registry) = cluster.registry() else { return };
    out.gauge("bigiron_cluster_nodes", "Instances, this one among them").only(registry.view().nodes.len());
    let counts = registry.counts();
    out.counter("bigiron_cluster_reaped_total", "Instances without heartbeats that this one removed")
        .only(counts.reaped.load(Relaxed));
    out.counter("bigiron_cluster_heartbeats_missed_total", "Heartbeats of this instance that were not taken")
        .only(counts.missed.load(Relaxed));
    out.counter("bigiron_cluster_corrupt_total", "Records of instances and of sessions that could not be read")
        .only(counts.corrupt.load(Relaxed) + cluster.corrupt.load(Relaxed));
}

/// A value for each of these counts, told apart by a label.
fn each<const N: usize>(out: &mut Exposition, label: &str, counts: [(&str, &AtomicU64); N]) {
    for (name, count) in counts {
        out.value(&Labels::new(&[(label, name)]), count.load(Relaxed));
    }
}

/// What became of calls whose instance had gone.
fn taken_over(out: &mut Exposition, streams: &Streams) {
    let counts = streams.counts();
    let help = "Calls whose instance had gone and whose client came back here. again: run again. error: ended, since it \
                may have run. task: a task that was run again. lost: one of this instance that another took over";
    out.counter("bigiron_cluster_calls_taken_over_total", help);
    each(
        out,
        "what",
        [("again", &counts.again), ("error", &counts.given_up), ("task", &counts.tasks), ("lost", &counts.lost)],
    );
}

/// Calls of tools that are placed: those that others run for this instance, and those that it runs for others.
fn forwards(out: &mut Exposition, forwarder: &Forwarder, listener: &Listener) {
    let (given, taken) = (forwarder.counts(), listener.taken());
    let help = "Calls of tools that are placed on other instances, by what came of it. answered: another instance ran it. \
                nowhere: no instance could take it, and it did not run. lost: the instance that may have run it is gone";
    out.counter("bigiron_forwarded_calls_total", help);
    each(out, "ended", [("answered", &given.answered), ("nowhere", &given.nowhere), ("lost", &given.lost)]);
    let help = "Attempts to hand a call over that were followed by the next instance, by why. unreachable: no connection. \
                not_here: it has not the tool. stopping: it takes nothing new. full: it has no room. strange: it is none of \
                the deployment, or has another key. broken: it was lost, and the call may be repeated";
    out.counter("bigiron_forward_retries_total", help);
    each(
        out,
        "why",
        [
            ("unreachable", &given.unreachable),
            ("not_here", &given.not_here),
            ("stopping", &given.stopping),
            ("full", &given.full),
            ("strange", &given.strange),
            ("broken", &given.broken),
        ],
    );
    out.gauge("bigiron_forwarded_calls_in_flight", "Calls under way at other instances").only(forwarder.in_flight());
    let help = "Calls that other instances wanted to hand over, by what came of it. run: it ran here. not_here: this \
                instance has not the tool. stopping: it takes nothing new. full: there was no room. forged: no proof that \
                it comes from an instance of the deployment. other_form: a connection that began as those of another \
                version do. broken: it was no call";
    out.counter("bigiron_forwards_total", help);
    each(
        out,
        "what",
        [
            ("run", &taken.run),
            ("not_here", &taken.not_here),
            ("stopping", &taken.stopping),
            ("full", &taken.full),
            ("forged", &taken.forged),
            ("other_form", &taken.other_form),
            ("broken", &taken.broken),
        ],
    );
    out.gauge("bigiron_forwards_in_flight", "Calls of other instances that run here").only(listener.inside());
}

/// What instances share of kept results.
fn shared_results(out: &mut Exposition, results: &Results) {
    let counts = results.counts();
    let help = "Looks for results that instances share, after none was in memory. hit: one was found. awaited: another \
                instance made it meanwhile. miss: there was none. corrupt: what was there is no result of this version. \
                unknown: Redis did not say";
    out.counter("bigiron_cache_shared_looks_total", help);
    each(
        out,
        "result",
        [
            ("hit", &counts.hits),
            ("awaited", &counts.awaited),
            ("miss", &counts.misses),
            ("corrupt", &counts.corrupt),
            ("unknown", &counts.unknown),
        ],
    );
    let help = "Results made here, by whether the others have them. not_written: Redis did not take it, or too many were \
                under way. fenced: another instance had taken over";
    out.counter("bigiron_cache_shared_writes_total", help);
    each(
        out,
        "result",
        [("written", &counts.written), ("not_written", &counts.not_written), ("fenced", &counts.fenced)],
    );
}

fn limits(loaded: &Loaded) -> Limits {
    let (tuning, resolved) = (&loaded.tuning, &loaded.resolved);
    [
        ("limits.connections_max", resolved.connections_max as u64),
        ("limits.streams_max", resolved.streams_max as u64),
        ("limits.concurrent_requests_max", resolved.concurrent_requests_max as u64),
        ("sessions.sessions_max", tuning.sessions.sessions_max as u64),
        ("pool.threads_max", resolved.pool_threads_max as u64),
        ("pool.queue_max", tuning.pool.queue_max as u64),
        ("cache.bytes_max", tuning.cache.bytes_max.0),
    ]
}

/// What metrics are read from.
struct Sources {
    front: Arc<Front>,
    connections: Arc<Connections>,
    secure: Option<Arc<Secure>>,
    limits: Limits,
    invalidations: u64,
    started_at_s: Option<f64>,
}

impl Sources {
    fn text(&self) -> String {
        let mut out = Exposition::new();
        self.process(&mut out);
        self.doors(&mut out);
        self.secure(&mut out);
        self.identity(&mut out);
        self.rates(&mut out);
        if let Some(cluster) = &self.front.cluster {
            shared(&mut out, cluster);
            if let (Some(forwarder), Some(listener)) = (self.front.router.dispatch.forwarder(), cluster.listener()) {
                forwards(&mut out, forwarder, listener);
            }
            if let Some(results) = self.front.router.dispatch.shared_results() {
                shared_results(&mut out, results);
            }
            if let Some(streams) = self.front.router.sessions.streams() {
                taken_over(&mut out, streams);
            }
        }
        self.audit(&mut out);
        self.pool(&mut out);
        let tools = self.front.router.dispatch.tools();
        calls(&mut out, tools.ordered());
        self.cache(&mut out, tools.ordered());
        self.bulkheads(&mut out, tools.ordered());
        out.into_text()
    }

    fn process(&self, out: &mut Exposition) {
        let pressure = &self.front.pressure;
        let version = Labels::new(&[("version", env!("CARGO_PKG_VERSION"))]);
        out.gauge("bigiron_build_info", "Always 1; the label version says which version runs").value(&version, 1);
        if let Some(started_at_s) = self.started_at_s {
            out.gauge("process_start_time_seconds", "Start of the process, in seconds since 1970").only(started_at_s);
        }
        out.counter("process_cpu_seconds_total", "CPU time of all threads of the process").only(process::cpu_s());
        out.gauge("process_resident_memory_bytes", "Memory of the process").only(pressure.resident());
        if let Some(count) = process::open_fds() {
            out.gauge("process_open_fds", "Files that the process has open, connections among them").only(count);
        }
        if let Some(count) = process::max_fds() {
            out.gauge("process_max_fds", "Files that the process may have open").only(count);
        }
        if pressure.memory_max() != u64::MAX {
            out.gauge("bigiron_memory_max_bytes", "Memory that the process may have").only(pressure.memory_max());
        }
        let help = "How short memory is. 0: not at all. 1: kept results and new streams are given up. 2: also idle \
                    connections. 3: also new calls";
        out.gauge("bigiron_memory_pressure", help).only(pressure.level() as u8);
        out.gauge(
            "bigiron_limit",
            "Settings that bound other metrics, as resolved on this host, by the setting's name",
        );
        for (setting, value) in self.limits {
            out.value(&Labels::new(&[("setting", setting)]), value);
        }
    }

    fn doors(&self, out: &mut Exposition) {
        let front = &self.front;
        out.gauge("bigiron_connections", "Connections open at the endpoint").only(self.connections.len());
        out.gauge("bigiron_requests_in_flight", "Requests being served").only(front.gate.inside());
        out.gauge("bigiron_callers", "Callers with open connections, or with requests behind a proxy")
            .only(front.gate.callers());
        out.gauge("bigiron_streams", "Streams open that no call owns").only(front.streams.inside());
        out.gauge(
            "bigiron_sessions",
            "Sessions of the older revisions that this instance knows: of several \
                 instances each counts one that its client has used there",
        )
        .only(front.router.sessions.len());
        let draining = u8::from(front.router.drain.is_started());
        out.gauge("bigiron_draining", "1 once the server is stopping, 0 before").only(draining);
        out.counter("bigiron_refusals_total", refusals::HELP);
        for (reason, count) in front.refusals.counts() {
            out.value(&Labels::new(&[("reason", reason)]), count);
        }
    }

    fn secure(&self, out: &mut Exposition) {
        let http2 = &self.front.http2;
        let help = "Connections of HTTP/2 that were closed for a flood of frames that do nothing";
        out.counter("bigiron_http2_floods_total", help).only(http2.floods());
        let help = "Streams of HTTP/2 that were reset because their client did not take the answer";
        out.counter("bigiron_http2_untaken_total", help).only(http2.untaken());
        let Some(secure) = &self.secure else { return };
        out.counter("bigiron_tls_handshakes_total", "TLS handshakes that were done").only(secure.handshakes());
        out.counter("bigiron_tls_handshake_failures_total", "TLS handshakes that failed, by what was wrong");
        for (reason, count) in secure.failures() {
            out.value(&Labels::new(&[("reason", reason)]), count);
        }
        let help = "When the certificate ends, in seconds since 1970";
        out.gauge("bigiron_tls_certificate_expiry_timestamp_seconds", help).only(secure.not_after_s());
    }

    fn identity(&self, out: &mut Exposition) {
        let Some(doorkeeper) = &self.front.doorkeeper else { return };
        out.counter("bigiron_auth_refusals_total", "Requests whose credentials were refused, by what was wrong");
        for (kind, count) in doorkeeper.refusals() {
            out.value(&Labels::new(&[("kind", kind)]), count);
        }
        let help = "1 while a file of [auth] cannot be read again, and what was known of it stays in force";
        out.gauge("bigiron_auth_file_failing", help).only(u8::from(doorkeeper.is_failing()));
        out.gauge("bigiron_auth_tokens_remembered", "Verified tokens that are remembered")
            .only(doorkeeper.remembered());
        let Some(keys) = doorkeeper.issuer_keys() else { return };
        out.gauge("bigiron_auth_issuer_keys", "Keys of the issuer that are known; with 0 no token is taken")
            .only(keys.current(SystemTime::now()).len());
        if !keys.are_fetched() {
            return;
        }
        let help = "When the issuer's keys were last fetched, in seconds since 1970; 0 when never";
        let fetched_at = keys.last_success().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        out.gauge("bigiron_auth_issuer_keys_fetched_timestamp_seconds", help)
            .only(fetched_at.map_or(0, |at| at.as_secs()));
        out.counter("bigiron_auth_issuer_fetches_total", "Attempts to fetch the issuer's keys, by what came of them");
        let (fetched, failed) = keys.fetches();
        for (outcome, count) in [("fetched", fetched), ("failed", failed)] {
            out.value(&Labels::new(&[("outcome", outcome)]), count);
        }
    }

    fn rates(&self, out: &mut Exposition) {
        let Some(limiter) = &self.front.limiter else { return };
        out.gauge("bigiron_rate_limit_keys", "Callers, addresses and tools whose rates are remembered")
            .only(limiter.keys());
        let help = "Requests that passed unseen, for want of room: rate_limit.keys_max is too small";
        out.counter("bigiron_rate_limit_unremembered_total", help).only(limiter.unremembered());
    }

    fn audit(&self, out: &mut Exposition) {
        let Some(audit) = &self.front.router.audit else { return };
        let counts = audit.counts();
        out.counter("bigiron_audit_lines_total", "Lines of the audit trail, by what became of them");
        for (what, count) in [("written", counts.written), ("dropped", counts.dropped)] {
            out.value(&Labels::new(&[("what", what)]), count);
        }
        out.gauge("bigiron_audit_waiting_lines", "Lines that wait to be written").only(counts.waiting);
        let help = "Calls that were refused because no line could be written";
        out.counter("bigiron_audit_refused_total", help).only(counts.refused);
        let failing = u8::from(counts.failing);
        out.gauge("bigiron_audit_failing", "1 while the audit trail cannot be written").only(failing);
    }

    fn pool(&self, out: &mut Exposition) {
        let dispatch = &self.front.router.dispatch;
        let load = dispatch.pool_load(Instant::now());
        out.gauge("bigiron_pool_queue_jobs", "Calls that wait for a thread of the pool").only(load.queued);
        out.gauge("bigiron_pool_queue_oldest_seconds", "How long the oldest call in the pool's queue has waited")
            .only(load.oldest.as_secs_f64());
        let help = "Threads of the pool, by state. idle: wait for a call. running: run one. lost: hang in a tool past the \
                    call's deadline";
        out.gauge("bigiron_pool_threads", help);
        let threads = load.threads;
        for (state, count) in [("idle", threads.idle), ("running", threads.running), ("lost", threads.lost)] {
            out.value(&Labels::new(&[("state", state)]), count);
        }
        out.counter("bigiron_pool_threads_replaced_total", "Threads of the pool that hung in a tool and were replaced")
            .only(load.replaced);
        out.gauge("bigiron_pool_io_threads_borrowed", "I/O threads that run a call of the pool").only(load.io_busy);
        let retry_after_s = dispatch.retry_after_s();
        out.gauge("bigiron_retry_after_seconds", "What a refused caller is told to wait").only(retry_after_s);
    }

    fn cache(&self, out: &mut Exposition, tools: &[Arc<ServedTool>]) {
        let (entries, bytes) = self.front.router.dispatch.cache_size();
        out.gauge("bigiron_cache_entries", "Results in the cache").only(entries);
        out.gauge("bigiron_cache_bytes", "Memory that the results in the cache take").only(bytes);
        let metered: Vec<(&str, &CallMeter)> = tools
            .iter()
            .filter(|tool| tool.cache.is_some())
            .filter_map(|tool| Some((tool.tool.name(), tool.tool.work.meter.as_deref()?)))
            .collect();
        let help = "Calls of tools whose results are kept that were answered, each once, by what served it. hit: a kept \
                    result. stale: an old one, while a new one was made or since none could be. coalesced: the run of an \
                    equal call, for which it waited. miss: none of these; the tool ran for it, or it was refused, or its \
                    time was up. Wrong arguments do not count";
        out.counter("bigiron_cache_requests_total", help);
        for (name, meter) in &metered {
            for (what, word) in Cached::REQUESTS {
                out.value(&Labels::new(&[("tool", name), ("result", word)]), meter.cached_count(what));
            }
        }
        let help = "Results made anew while the old one is served. kept: the new one is served from then on. failed: it is \
                    not, since the tool failed or its results were forgotten meanwhile";
        out.counter("bigiron_cache_refreshes_total", help);
        for (name, meter) in &metered {
            for (what, word) in Cached::REFRESHES {
                out.value(&Labels::new(&[("tool", name), ("result", word)]), meter.cached_count(what));
            }
        }
        out.counter("bigiron_cache_evictions_total", "Results dropped from the cache for want of room");
        for (name, meter) in &metered {
            out.value(&Labels::new(&[("tool", name)]), meter.cached_count(Cached::Evicted));
        }
        let help = "Times that an operator had the cache forget results";
        out.counter("bigiron_cache_invalidations_total", help).only(self.invalidations);
    }

    fn bulkheads(&self, out: &mut Exposition, tools: &[Arc<ServedTool>]) {
        let loads: Vec<_> = tools
            .iter()
            .filter_map(|tool| {
                let name = tool.tool.name();
                Some((Labels::new(&[("tool", name)]), self.front.router.dispatch.bulkhead_load(name)?))
            })
            .collect();
        out.gauge(
            "bigiron_tool_concurrency_limit",
            "Calls of a tool that may run at once, for tools with concurrency_max or concurrency_adaptive",
        );
        for (labels, (limit, _, _)) in &loads {
            out.value(labels, limit);
        }
        out.gauge("bigiron_tool_running", "Calls that run, of a tool with a concurrency limit");
        for (labels, (_, inside, _)) in &loads {
            out.value(labels, inside);
        }
        out.gauge("bigiron_tool_waiting", "Calls that wait for others to end, of a tool with a concurrency limit");
        for (labels, (_, _, waiting)) in &loads {
            out.value(labels, waiting);
        }
    }
}

fn calls(out: &mut Exposition, tools: &[Arc<ServedTool>]) {
    let metered: Vec<(&str, &CallMeter)> =
        tools.iter().filter_map(|tool| Some((tool.tool.name(), tool.tool.work.meter.as_deref()?))).collect();
    out.counter("bigiron_calls_total", Ended::HELP);
    for (name, meter) in &metered {
        for (ended, word) in Ended::ALL {
            out.value(&Labels::new(&[("tool", name), ("ended", word)]), meter.count(ended));
        }
    }
    let help =
        "Time that calls take, by phase. queue: waiting for a thread. run: in the tool. encode: writing the answer";
    out.histogram("bigiron_call_duration_seconds", help);
    for (name, meter) in &metered {
        for (phase, word) in Phase::ALL {
            let distribution = meter.distribution(phase);
            if distribution.count() > 0 {
                out.distribution(&Labels::new(&[("tool", name), ("phase", word)]), &distribution);
            }
        }
    }
    out.counter("bigiron_slow_polls_total", "Polls of async tools that held an I/O thread for over 100 ms");
    for (name, meter) in &metered {
        out.value(&Labels::new(&[("tool", name)]), meter.slow_polls());
    }
}
