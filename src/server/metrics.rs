//! Every metric, its name and its meaning, gathered when somebody asks. Names begin with `bigiron_`; values of labels
//! come from the configuration and the code, never from a request.

use std::{sync::Arc, time::Instant};

use crate::{
    dispatch::ServedTool,
    front::Front,
    listener::Connections,
    telemetry::{
        calls::{Cached, CallMeter, Ended, Phase},
        exposition::{Exposition, Labels},
    },
};

/// Reads all metrics as Prometheus text, as long as there is what they are of.
pub(super) fn reader(
    front: &Arc<Front>,
    connections: &Arc<Connections>,
) -> Box<dyn Fn() -> Option<String> + Send + Sync> {
    let (front, connections, started_at) = (Arc::downgrade(front), Arc::downgrade(connections), Instant::now());
    Box::new(move || {
        let sources = Sources { front: front.upgrade()?, connections: connections.upgrade()?, started_at };
        Some(sources.text())
    })
}

/// What metrics are read from.
struct Sources {
    front: Arc<Front>,
    connections: Arc<Connections>,
    started_at: Instant,
}

impl Sources {
    fn text(&self) -> String {
        let mut out = Exposition::new();
        self.process(&mut out);
        self.doors(&mut out);
        self.identity(&mut out);
        self.rates(&mut out);
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
        out.gauge("bigiron_info", "Always 1; the label says which version runs").value(&version, 1);
        let uptime = self.started_at.elapsed().as_secs();
        out.gauge("bigiron_uptime_seconds", "Seconds since the start").only(uptime);
        out.gauge("bigiron_memory_resident_bytes", "Memory of the process").only(pressure.resident());
        out.gauge("bigiron_memory_max_bytes", "Memory that it may have").only(pressure.memory_max());
        let level = pressure.level() as u8;
        let help = "How short memory is: 1 no new streams and kept results go, 2 also no idle connections, 3 also no new calls";
        out.gauge("bigiron_memory_pressure", help).only(level);
    }

    fn doors(&self, out: &mut Exposition) {
        let front = &self.front;
        out.gauge("bigiron_connections", "Connections open").only(self.connections.len());
        out.gauge("bigiron_requests_in_flight", "Requests being served").only(front.gate.inside());
        out.gauge("bigiron_callers", "Callers with open connections, or with requests behind a proxy")
            .only(front.gate.callers());
        out.gauge("bigiron_streams", "Streams open that no call owns").only(front.streams.inside());
        out.gauge("bigiron_sessions", "Sessions of the older revisions").only(front.router.sessions.len());
        let draining = u8::from(front.router.drain.is_started());
        out.gauge("bigiron_draining", "1 from the wish to stop on").only(draining);
        out.counter("bigiron_refusals_total", "Requests that were refused, by reason");
        for (reason, count) in front.refusals.counts() {
            out.value(&Labels::new(&[("reason", reason)]), count);
        }
    }

    fn identity(&self, out: &mut Exposition) {
        let Some(doorkeeper) = &self.front.doorkeeper else { return };
        out.counter("bigiron_auth_refusals_total", "Requests whose credentials were refused, by what was wrong");
        for (kind, count) in doorkeeper.refusals() {
            out.value(&Labels::new(&[("kind", kind)]), count);
        }
        out.gauge("bigiron_auth_tokens_remembered", "Verified tokens that are remembered")
            .only(doorkeeper.remembered());
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
        out.gauge("bigiron_pool_queue_jobs", "Calls that wait for a thread").only(load.queued);
        out.gauge("bigiron_pool_queue_oldest_seconds", "How long the oldest of them has waited")
            .only(load.oldest.as_secs_f64());
        out.gauge("bigiron_pool_threads", "Threads of the pool, by what they are at; lost ones hang in a tool");
        let threads = load.threads;
        for (state, count) in [("idle", threads.idle), ("running", threads.running), ("lost", threads.lost)] {
            out.value(&Labels::new(&[("state", state)]), count);
        }
        out.counter("bigiron_pool_threads_replaced_total", "Threads that were given up and replaced")
            .only(load.replaced);
        out.gauge("bigiron_pool_io_threads_borrowed", "I/O threads that run a call of the pool").only(load.io_busy);
        let retry_after_s = dispatch.retry_after_s();
        out.gauge("bigiron_retry_after_seconds", "What a refused caller is told to wait").only(retry_after_s);
    }

    fn cache(&self, out: &mut Exposition, tools: &[Arc<ServedTool>]) {
        let (entries, bytes) = self.front.router.dispatch.cache_size();
        out.gauge("bigiron_cache_entries", "Results that are kept").only(entries);
        out.gauge("bigiron_cache_bytes", "Memory that they take").only(bytes);
        out.counter("bigiron_cache_total", "What the cache did for calls of tools whose results are kept");
        for tool in tools.iter().filter(|tool| tool.cache.is_some()) {
            let Some(meter) = &tool.tool.work.meter else { continue };
            for (what, word) in Cached::ALL {
                let labels = Labels::new(&[("tool", tool.tool.name()), ("what", word)]);
                out.value(&labels, meter.cached_count(what));
            }
        }
    }

    fn bulkheads(&self, out: &mut Exposition, tools: &[Arc<ServedTool>]) {
        let loads: Vec<_> = tools
            .iter()
            .filter_map(|tool| {
                let name = tool.tool.name();
                Some((Labels::new(&[("tool", name)]), self.front.router.dispatch.bulkhead_load(name)?))
            })
            .collect();
        out.gauge("bigiron_tool_concurrency_limit", "Calls of a tool that may run at once, where that is limited");
        for (labels, (limit, _, _)) in &loads {
            out.value(labels, limit);
        }
        out.gauge("bigiron_tool_running", "Calls of such a tool that run");
        for (labels, (_, inside, _)) in &loads {
            out.value(labels, inside);
        }
        out.gauge("bigiron_tool_waiting", "Calls of such a tool that wait for others to end");
        for (labels, (_, _, waiting)) in &loads {
            out.value(labels, waiting);
        }
    }
}

fn calls(out: &mut Exposition, tools: &[Arc<ServedTool>]) {
    let metered: Vec<(&str, &CallMeter)> =
        tools.iter().filter_map(|tool| Some((tool.tool.name(), tool.tool.work.meter.as_deref()?))).collect();
    out.counter("bigiron_calls_total", "Calls of tools, by how they ended");
    for (name, meter) in &metered {
        for (ended, word) in Ended::ALL {
            out.value(&Labels::new(&[("tool", name), ("ended", word)]), meter.count(ended));
        }
    }
    out.histogram("bigiron_call_seconds", "Where the time of calls goes: waiting for a thread, in the tool, writing");
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
