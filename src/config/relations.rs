//! Whether settings make sense together, and on this host. Checked before the first byte, because each of these would
//! otherwise show as a strange failure under load. Every fault names the settings, their values, and where those came
//! from. The range of each number by itself is in `ranges`.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{
    Tuning, address,
    fault::{Fault, Faults, shown},
    layers::Origin,
    listing::Setting,
    ranges,
    resolved::Resolved,
};
use crate::{
    audit::Policy,
    front::gate::Weights,
    identity::{Issued, Subject, is_scope, keys},
    rate::real_ip::Trusted,
    runtime::Host,
    tls::ClientCertificates,
};

/// What the checks look at.
pub(super) struct View<'a> {
    pub(super) tuning: &'a Tuning,
    pub(super) resolved: &'a Resolved,
    pub(super) host: &'a Host,
    /// By path, so that a file that is wrong in 100,000 places is refused as fast as it is read.
    pub(super) settings: BTreeMap<&'a str, &'a Setting>,
    pub(super) insecure_no_auth: bool,
}

/// A check: says what does not fit, if anything.
type Check = fn(&View<'_>, &mut Faults);

const CHECKS: &[Check] = &[
    timeouts_fit_into_the_grace,
    listeners,
    auth,
    tls,
    http2,
    endpoint_path,
    allowed_hosts_and_origins,
    connections_have_descriptors,
    memory_holds_what_may_be_in_flight,
    body_rate_fits_the_body_time,
    sessions_of_one_caller,
    caller_weights,
    trusted_proxies,
    rates,
    audit,
    tasks_have_their_time,
    cluster,
    placement,
    pool_threads,
    cache_entry_fits_the_cache,
    toolbox_output_fits_a_result,
    toolbox_root,
    log_level,
    tools,
];

/// Runs every check.
pub(super) fn check(view: &View<'_>) -> Result<(), Faults> {
    let mut faults = Faults::default();
    let wrong = ranges::check(view, &mut faults);
    let mut related = Faults::default();
    for check in CHECKS {
        check(view, &mut related);
    }
    faults.extend_without(related, &wrong);
    faults.or(())
}

impl View<'_> {
    /// `limits.request_timeout_ms = 60000 (tuning.toml:12)`, with what a 0 came to.
    fn named(&self, path: &str) -> String {
        self.settings.get(path).map_or_else(|| path.to_owned(), |setting| named(setting))
    }

    fn refuse(&self, faults: &mut Faults, path: &str, wrong: impl std::fmt::Display) {
        faults.push(Fault::new("", format!("{}: {wrong}", self.named(path))));
    }
}

pub(super) fn named(setting: &Setting) -> String {
    let derived = setting.derived.map_or_else(String::new, |d| format!(", {} on this host", d.value));
    format!("{} = {} ({}{derived})", shown(&setting.path), shown(&setting.toml()), setting.origin)
}

/// A stop that cuts off calls which were still within their time would lose work at every restart.
fn timeouts_fit_into_the_grace(view: &View<'_>, faults: &mut Faults) {
    let grace = view.tuning.server.drain_grace_ms;
    let tools = view.tuning.tools.iter().map(|(name, tool)| (format!("tools.{name}.timeout_ms"), tool.timeout_ms));
    let general = ("limits.request_timeout_ms".to_owned(), Some(view.tuning.limits.request_timeout_ms));
    for (path, timeout) in std::iter::once(general).chain(tools) {
        if timeout.is_some_and(|timeout| timeout > grace) {
            let grace = view.named("server.drain_grace_ms");
            view.refuse(faults, &path, format!(
                "more than {grace}, so a stop would cut off calls that are still in time; lower the first or raise the second"
            ));
        }
    }
}

/// Whoever reaches a listener that asks nobody who they are may do all that it offers. That only programs on this host
/// reach it is the one protection then, and giving it up takes a word on the command line. The admin listener asks
/// nobody, whatever the endpoint does.
fn listeners(view: &View<'_>, faults: &mut Faults) {
    let server = &view.tuning.server;
    let open_to_others =
        |text: &str| address::listener(text).map(|address| !address::is_loopback(&address) && !view.insecure_no_auth);
    match open_to_others(&server.listen) {
        Err(wrong) => view.refuse(faults, "server.listen", wrong),
        Ok(true) if !asks_who_calls(view.tuning) => view.refuse(
            faults,
            "server.listen",
            "other hosts can reach this address, and there is no authentication: everybody who reaches it could \
             call every tool. Set auth.keys_file or auth.issuer, or tls.client_certificates = \"required\", listen on a loopback address (127.0.0.1 or [::1]), \
             or say --insecure-no-auth when this is meant",
        ),
        Ok(_) => {}
    }
    if !server.admin_listen.is_empty() {
        match open_to_others(&server.admin_listen) {
            Err(wrong) => view.refuse(faults, "server.admin_listen", wrong),
            Ok(true) => view.refuse(
                faults,
                "server.admin_listen",
                "other hosts can reach this address, and the admin listener asks nobody who reads: everybody who reaches \
                 it could read health, metrics and nodes, and empty the cache where [auth] is off. Listen on a loopback address \
                 (127.0.0.1 or [::1]), or say --insecure-no-auth when this is meant",
            ),
            Ok(false) => {}
        }
    }
    let (listen, admin) = (address::listener(&server.listen), address::listener(&server.admin_listen));
    if let (Ok(listen), Ok(admin)) = (listen, admin)
        && listen == admin
        && listen.port() != 0
    {
        let other = view.named("server.listen");
        view.refuse(
            faults,
            "server.admin_listen",
            format!("the same as {other}; give it a port of its own, or \"\" to switch it off"),
        );
    }
}

/// Tokens that are taken are for us, and by an issuer whose keys are known; and who is named by a tool can be known.
fn auth(view: &View<'_>, faults: &mut Faults) {
    let auth = &view.tuning.auth;
    if let Err(wrong) = auth.check() {
        faults.push(Fault::new("", wrong));
    }
    for (name, tool) in &view.tuning.tools {
        let texts = |entries: &Option<Vec<String>>| entries.clone();
        let subjects = tool.subjects.as_ref().map(|all| all.iter().flat_map(texts_of).map(str::to_owned).collect());
        for (key, entries) in
            [("scopes_any", texts(&tool.scopes_any)), ("subjects", subjects), ("groups", texts(&tool.groups))]
        {
            let path = format!("tools.{name}.{key}");
            match entries {
                None => {}
                Some(entries) if entries.is_empty() || entries.iter().any(String::is_empty) => {
                    let wrong =
                        "names nobody, or an empty text; name one at least, or remove this so that all may call";
                    view.refuse(faults, &path, wrong);
                }
                Some(_) if !asks_who_calls(view.tuning) => {
                    let wrong = "nobody is asked who they are; set auth.keys_file or auth.issuer, or \
                                 tls.client_certificates = \"required\", or remove this";
                    view.refuse(faults, &path, wrong);
                }
                Some(_) => {}
            }
        }
        for scope in tool.scopes_any.iter().flatten().filter(|scope| !scope.is_empty() && !is_scope(scope)) {
            let wrong = format!("nobody can have the scope {scope:?}: write each as one word, in quotes of its own");
            view.refuse(faults, &format!("tools.{name}.scopes_any"), wrong);
        }
        for issuer in tool.subjects.iter().flatten().filter_map(issuer_of) {
            if let Some(wrong) = no_issuer(view.tuning, issuer) {
                view.refuse(faults, &format!("tools.{name}.subjects"), wrong);
            }
        }
    }
}

/// All that is written of a subject.
fn texts_of(subject: &Subject) -> impl Iterator<Item = &str> {
    let (name, issuer) = match subject {
        Subject::OfAny(name) => (name, None),
        Subject::Of(Issued { subject, issuer }) => (subject, Some(issuer)),
    };
    [Some(name), issuer].into_iter().flatten().map(String::as_str)
}

fn issuer_of(subject: &Subject) -> Option<&str> {
    match subject {
        Subject::OfAny(_) => None,
        Subject::Of(Issued { issuer, .. }) => Some(issuer),
    }
}

/// What to say of an issuer that nobody can be of. The names of CAs are in certificates that are not here.
fn no_issuer(tuning: &Tuning, issuer: &str) -> Option<String> {
    let auth = &tuning.auth;
    if tuning.tls.client_certificates != ClientCertificates::Off {
        return None;
    }
    let known: Vec<&str> = [(auth.takes_keys(), keys::ISSUER), (auth.takes_tokens(), &auth.issuer)]
        .into_iter()
        .filter_map(|(taken, issuer)| taken.then_some(issuer))
        .collect();
    let list = known.iter().map(|issuer| format!("{issuer:?}")).collect::<Vec<_>>().join(" and ");
    (!known.is_empty() && !known.contains(&issuer))
        .then(|| format!("nobody is of the issuer {issuer:?}; here there is {list}"))
}

/// Whether nobody calls without having been asked who he is.
pub(super) fn asks_who_calls(tuning: &Tuning) -> bool {
    tuning.auth.is_on() || tuning.tls.is_on() && tuning.tls.client_certificates == ClientCertificates::Required
}

/// The files that are named belong together; a handshake has no more time than a head.
fn tls(view: &View<'_>, faults: &mut Faults) {
    let tls = &view.tuning.tls;
    if let Err(wrong) = tls.check() {
        faults.push(Fault::new("", wrong));
    }
    if tls.is_on() && tls.handshake_timeout_ms > view.tuning.limits.header_timeout_ms {
        let head = view.named("limits.header_timeout_ms");
        view.refuse(
            faults,
            "tls.handshake_timeout_ms",
            format!("more than {head}, which is the time for all that comes before a request; lower the first"),
        );
    }
}

/// The outer limits are not narrower than the inner ones, which are those that say clearly what is wrong.
fn http2(view: &View<'_>, faults: &mut Faults) {
    let (http2, limits) = (&view.tuning.http2, &view.tuning.limits);
    if http2.header_list_bytes_max.0 != 0 && http2.header_list_bytes_max < limits.header_bytes_max {
        let head = view.named("limits.header_bytes_max");
        let wrong = format!("less than {head}, so that heads would be refused that are small enough; raise the first");
        view.refuse(faults, "http2.header_list_bytes_max", wrong);
    }
    if http2.connection_window_bytes < http2.stream_window_bytes {
        let one = view.named("http2.stream_window_bytes");
        let wrong =
            format!("less than {one}, and one body is never more than all; raise the first or lower the second");
        view.refuse(faults, "http2.connection_window_bytes", wrong);
    }
}

fn endpoint_path(view: &View<'_>, faults: &mut Faults) {
    if let Some(wrong) = address::path_fault(&view.tuning.server.path) {
        view.refuse(faults, "server.path", wrong);
    }
}

fn allowed_hosts_and_origins(view: &View<'_>, faults: &mut Faults) {
    let server = &view.tuning.server;
    let hosts = server.allowed_hosts.iter().map(|h| ("server.allowed_hosts", h, address::host_fault(h)));
    let origins = server.allowed_origins.iter().map(|o| ("server.allowed_origins", o, address::origin_fault(o)));
    for (path, text, wrong) in hosts.chain(origins) {
        if let Some(wrong) = wrong {
            view.refuse(faults, path, format!("\"{}\": {wrong}", shown(text)));
        }
    }
}

/// Over the limit on open files `accept` fails, and so does every tool that opens a file.
fn connections_have_descriptors(view: &View<'_>, faults: &mut Faults) {
    let room = view.host.descriptors_for_connections();
    if view.resolved.connections_max as u64 > room.max(1) {
        view.refuse(faults, "limits.connections_max", format!(
            "this process may have {} files open, which leaves {room} for connections; lower it, or raise the limit on \
             open files (ulimit -n, LimitNOFILE)",
            view.host.descriptors_max,
        ));
    }
}

/// The kernel ends a process that takes too much memory, without a word to anybody. So that this cannot come from what
/// clients send, what they may make bigiron hold has to fit.
fn memory_holds_what_may_be_in_flight(view: &View<'_>, faults: &mut Faults) {
    let (limits, resolved) = (&view.tuning.limits, view.resolved);
    let bodies = (resolved.concurrent_requests_max as u64).saturating_mul(limits.request_bytes_max.0);
    let heads = (resolved.connections_max as u64).saturating_mul(limits.header_bytes_max.0);
    let cache = view.tuning.cache.bytes_max.0;
    let sum = bodies.saturating_add(heads).saturating_add(cache);
    let memory = view.host.memory_usable_bytes();
    if sum > memory {
        let n = |path: &str| view.named(path);
        faults.push(Fault::new("", format!(
            "{} + {} x {} + {} x {}: {} + {} + {} is more than the {} of memory that this host has for bigiron; lower \
             one of them",
            n("cache.bytes_max"),
            n("limits.concurrent_requests_max"),
            n("limits.request_bytes_max"),
            n("limits.connections_max"),
            n("limits.header_bytes_max"),
            mebibytes(cache),
            mebibytes(bodies),
            mebibytes(heads),
            mebibytes(memory),
        )));
    }
}

/// A body that keeps to the least rate must be able to arrive: time and rate together must not refuse what the size
/// allows. (A rate of 0 asks for none.)
fn body_rate_fits_the_body_time(view: &View<'_>, faults: &mut Faults) {
    let limits = &view.tuning.limits;
    let within_time = limits.body_bytes_per_s_min.saturating_mul(limits.body_timeout_ms) / 1000;
    if within_time > limits.request_bytes_max.0 {
        let (time, size) = (view.named("limits.body_timeout_ms"), view.named("limits.request_bytes_max"));
        view.refuse(faults, "limits.body_bytes_per_s_min", format!(
            "a body that keeps to this rate for {time} has more than {size}, so the time could never be met; lower the rate or the time",
        ));
    }
}

/// A task whose time ends before its tool's would never have a result; and one caller has no more than there are.
fn tasks_have_their_time(view: &View<'_>, faults: &mut Faults) {
    let tasks = &view.tuning.tasks;
    if tasks.ttl_ms < tasks.timeout_ms {
        let timeout = view.named("tasks.timeout_ms");
        view.refuse(faults, "tasks.ttl_ms", format!("less than {timeout}, so a task could be forgotten while it runs"));
    }
    if tasks.per_caller_max > tasks.tasks_max {
        let all = view.named("tasks.tasks_max");
        view.refuse(faults, "tasks.per_caller_max", format!("more than {all}, so it would never be met; lower it"));
    }
}

/// Who is weighed is somebody.
fn caller_weights(view: &View<'_>, faults: &mut Faults) {
    if let Err(wrong) = Weights::new(&view.tuning.fairness) {
        return view.refuse(faults, "fairness.weights", wrong);
    }
    let mut callers = BTreeSet::new();
    for text in &view.tuning.fairness.weights {
        let address = text.rsplit_once('=').and_then(|(address, _)| address.trim().parse::<IpAddr>().ok());
        if address.is_some_and(|address| !callers.insert(address.to_canonical())) {
            let wrong = format!("\"{}\" is of a caller that has a weight already; name each once", shown(text));
            view.refuse(faults, "fairness.weights", wrong);
        }
    }
}

/// Whose word on addresses is believed is a network.
fn trusted_proxies(view: &View<'_>, faults: &mut Faults) {
    if let Err(wrong) = Trusted::new(&view.tuning.server.trusted_proxies) {
        view.refuse(faults, "server.trusted_proxies", wrong);
    }
}

/// Who writes a rate means that it is kept.
fn rates(view: &View<'_>, faults: &mut Faults) {
    let limits = &view.tuning.rate_limit;
    let of_tools: Vec<String> = view
        .tuning
        .tools
        .iter()
        .flat_map(|(name, tool)| [(name, "rate", tool.rate), (name, "rate_per_caller", tool.rate_per_caller)])
        .filter(|(_, _, rate)| rate.is_some_and(|rate| !rate.is_off()))
        .map(|(name, key, _)| format!("tools.{name}.{key}"))
        .collect();
    let enabled = view.named("rate_limit.enabled");
    if !limits.enabled {
        for path in &of_tools {
            view.refuse(faults, path, format!("this limits nobody with {enabled}; set that to true, or remove this"));
        }
    } else if of_tools.is_empty() && limits.per_caller.is_off() && limits.per_ip.is_off() {
        let wrong = "every rate is \"off\", so this limits nobody; set a rate, or this to false";
        view.refuse(faults, "rate_limit.enabled", wrong);
    }
}

/// A trail that calls wait for has a file, and a place for each call that may run.
fn audit(view: &View<'_>, faults: &mut Faults) {
    let audit = &view.tuning.audit;
    if audit.policy != Policy::Required {
        return;
    }
    if audit.file.is_empty() {
        let file = view.named("audit.file");
        view.refuse(faults, "audit.policy", format!("no line could be written with {file}; name a file, or \"-\""));
    } else if audit.queue_max < view.resolved.concurrent_requests_max {
        let (policy, calls) = (view.named("audit.policy"), view.named("limits.concurrent_requests_max"));
        view.refuse(
            faults,
            "audit.queue_max",
            format!("less than {calls}, and with {policy} each running call holds a place; raise the first"),
        );
    }
}

/// What instances share is shared with nobody else; and what is secret is told to nobody on the way.
fn cluster(view: &View<'_>, faults: &mut Faults) {
    let cluster = &view.tuning.cluster;
    for (key, wrong) in cluster.faults() {
        let path = format!("cluster.{key}");
        match key {
            // What stands there may hold a password.
            "redis" => faults.push(Fault::new("", format!("{path}: {wrong}"))),
            _ => view.refuse(faults, &path, wrong),
        }
    }
    let from = view.settings.get("cluster.password").map(|setting| &setting.origin);
    if matches!(from, Some(Origin::Set)) {
        let wrong = "every user of this host can read a command line; set cluster.password_file, or the variable \
                     BIGIRON_CLUSTER__PASSWORD";
        view.refuse(faults, "cluster.password", wrong);
    }
    let (connect, heartbeat) = (cluster.connect_timeout_ms, cluster.heartbeat_s.saturating_mul(1000));
    if cluster.is_on() && connect > heartbeat {
        let heartbeat = view.named("cluster.heartbeat_s");
        let wrong =
            format!("more than {heartbeat}, so an instance could be taken for gone while it connects; lower it");
        view.refuse(faults, "cluster.connect_timeout_ms", wrong);
    }
}

/// Tools that are not everywhere are somewhere, and can be reached there.
fn placement(view: &View<'_>, faults: &mut Faults) {
    let cluster = &view.tuning.cluster;
    let mut is_placed = false;
    for (name, tool) in &view.tuning.tools {
        for (key, is_set) in [("roles", tool.roles.is_some()), ("spread", tool.spread.is_some())] {
            if is_set && !cluster.is_on() {
                let wrong =
                    "an instance without cluster.redis is alone and runs every tool; set that too, or remove this";
                view.refuse(faults, &format!("tools.{name}.{key}"), wrong);
            }
        }
        is_placed |= tool.is_placed();
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
        let is_role = |role: &String| (1..=64).contains(&role.len()) && role.bytes().all(plain);
        if tool.roles.as_ref().is_some_and(|roles| roles.is_empty() || !roles.iter().all(is_role)) {
            let wrong = "names no role, or what cannot be one: name one at least, of 1 to 64 letters, digits and '_', \
                         '-', '.', or remove this so that every instance runs it";
            view.refuse(faults, &format!("tools.{name}.roles"), wrong);
        }
    }
    if !cluster.is_on() {
        return;
    }
    match address::listener(&cluster.forward_listen) {
        Err(wrong) => view.refuse(faults, "cluster.forward_listen", wrong),
        Ok(address) if is_placed && address.ip().is_unspecified() && cluster.forward_advertise.is_empty() => view.refuse(
            faults,
            "cluster.forward_listen",
            "this is every address and none that others could use; set cluster.forward_advertise to HOST:PORT as others \
             reach it, or name the one address here",
        ),
        Ok(_) => {}
    }
    if !is_placed && !cluster.node_key_file.is_empty() {
        let wrong =
            "this says nothing where no tool is placed; set tools.NAME.roles or tools.NAME.spread, or remove this";
        view.refuse(faults, "cluster.node_key_file", wrong);
    }
}

fn sessions_of_one_caller(view: &View<'_>, faults: &mut Faults) {
    let sessions = &view.tuning.sessions;
    if sessions.per_caller_max > sessions.sessions_max {
        let all = view.named("sessions.sessions_max");
        view.refuse(faults, "sessions.per_caller_max", format!("more than {all}, so it would limit nobody; lower it"));
    }
}

fn pool_threads(view: &View<'_>, faults: &mut Faults) {
    let pool = &view.tuning.pool;
    if pool.threads != 0 && pool.threads_max != 0 && pool.threads > pool.threads_max {
        let most = view.named("pool.threads_max");
        view.refuse(
            faults,
            "pool.threads",
            format!("more than {most}; lower the first, raise the second, or leave one at 0"),
        );
    }
}

fn cache_entry_fits_the_cache(view: &View<'_>, faults: &mut Faults) {
    let cache = &view.tuning.cache;
    // A cache of 0 bytes is one that is switched off.
    if cache.bytes_max.0 != 0 && cache.entry_bytes_max > cache.bytes_max {
        let whole = view.named("cache.bytes_max");
        view.refuse(
            faults,
            "cache.entry_bytes_max",
            format!("more than {whole}; one result cannot be larger than all of them"),
        );
    }
}

/// Otherwise a tool would stop at its own limit, say how to get the rest, and then be refused whole.
fn toolbox_output_fits_a_result(view: &View<'_>, faults: &mut Faults) {
    if view.tuning.toolbox.output_bytes_max > view.tuning.limits.result_bytes_max {
        let result = view.named("limits.result_bytes_max");
        view.refuse(
            faults,
            "toolbox.output_bytes_max",
            format!("more than {result}, so its longest answers would be refused; lower it"),
        );
    }
}

fn toolbox_root(view: &View<'_>, faults: &mut Faults) {
    let toolbox = &view.tuning.toolbox;
    if !toolbox.enabled {
        return;
    }
    let wrong = match std::fs::metadata(&toolbox.root) {
        Ok(found) if found.is_dir() => return,
        Ok(_) => "this is no folder".to_owned(),
        Err(e) => format!("this folder cannot be read: {e}"),
    };
    view.refuse(
        faults,
        "toolbox.root",
        format!("{wrong}; name the folder that the tools may read, or set toolbox.enabled = false"),
    );
}

/// A word that is no level would be taken for the name of a module, and switch everything else off.
fn log_level(view: &View<'_>, faults: &mut Faults) {
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    let level = &view.tuning.log.level;
    let is_level = |word: &str| LEVELS.iter().any(|l| l.eq_ignore_ascii_case(word));
    for directive in level.split(',').map(str::trim) {
        let word = directive.rsplit_once('=').map_or(directive, |(_, level)| level);
        if !is_level(word) {
            let hint = super::nearest(&word.to_ascii_lowercase(), LEVELS.into_iter())
                .map_or_else(String::new, |l| format!("; did you mean \"{l}\""));
            view.refuse(faults, "log.level", format!(
                "\"{}\" is no level{hint}; the levels are {}; directives are written as \"info,bigiron::front=debug\"",
                shown(word),
                LEVELS.join(", "),
            ));
            return;
        }
    }
    if let Err(e) = tracing_subscriber::EnvFilter::builder().parse(level) {
        view.refuse(faults, "log.level", e);
    }
}

/// Whether a tool of each name exists is asked when the tools are known.
fn tools(view: &View<'_>, faults: &mut Faults) {
    for (name, tool) in &view.tuning.tools {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.');
        if name.is_empty() || name.len() > 128 || !name.bytes().all(plain) {
            faults.push(Fault::new(
                "",
                format!(
                    "[tools.{}]: no tool can have this name: 1 to 128 letters, digits, '_', '-' and '.'",
                    shown(name)
                ),
            ));
        }
        for (key, set) in [
            ("cache_scope", tool.cache_scope.is_some()),
            ("cache_one_run", tool.cache_one_run.is_some()),
            ("cache_not_read_only", tool.cache_not_read_only.is_some()),
            ("stale_while_revalidate_s", tool.stale_while_revalidate_s.is_some()),
            ("stale_if_error_s", tool.stale_if_error_s.is_some()),
            ("cache_error_ttl_s", tool.cache_error_ttl_s.is_some()),
        ] {
            if set && tool.cache_ttl_s.is_none() {
                view.refuse(faults, &format!("tools.{name}.{key}"), format!(
                    "this says nothing without tools.{name}.cache_ttl_s, because no result is kept; set that too, or remove this"
                ));
            }
        }
    }
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes.div_ceil(1 << 20))
}
