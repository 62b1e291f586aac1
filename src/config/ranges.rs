//! The range of each number, with the reason for its ends. A 0 that means something is in the range; one that would
//! only break things is not.

use super::{
    fault::{Fault, Faults},
    known::TOOLS,
    relations::{View, named},
};
use crate::{cluster::HEARTBEAT_S_MAX, units::ByteSize};

/// The range of a number (for a size, in bytes). `tools.*.KEY` stands for every tool's.
pub(super) struct Range {
    pub(super) path: &'static str,
    pub(super) least: u64,
    pub(super) most: u64,
    why: Why,
}

/// What is wrong below and above, each in words that can stand after "because". Nothing is below 0.
type Why = (&'static str, &'static str);

const DAY_MS: u64 = 24 * 60 * 60 * 1000;
const DAY_S: u64 = 24 * 60 * 60;
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

const fn range(path: &'static str, least: u64, most: u64, why: Why) -> Range {
    Range { path, least, most, why }
}

const TIME: Why = ("0 would cut everything off at once", "nobody waits longer than that");
const WINDOW: Why = ("less makes bodies slow", "it is what a client can make bigiron hold");
const RESETS: &str = "a flood of them is what this is against";
const HARD_LIMIT: Why = ("less holds no ordinary message", "this is as much as one message may ever be");

/// Numbers that are not here may be anything that their type can hold.
pub(super) const RANGES: &[Range] = &[
    range("server.drain_delay_ms", 0, 60_000, ("", "no balancer needs longer, and a stop takes this long at least")),
    range("server.drain_grace_ms", 1, DAY_MS, TIME),
    range("runtime.io_threads", 0, 1024, ("", "more threads than cores only get in each other's way")),
    range("tls.reload_s", 0, DAY_S, ("", "a renewed certificate must be served before the old one ends")),
    range("tls.handshake_timeout_ms", 1, 60_000, TIME),
    range(
        "auth.jwks_refresh_s",
        1,
        DAY_S,
        ("0 would fetch without a pause", "keys that the issuer took back must not stay good for longer than a day"),
    ),
    range(
        "auth.jwks_retry_s",
        1,
        DAY_S,
        ("0 would let anybody's tokens make us ask the issuer without a pause", "new keys would not come for a day"),
    ),
    range(
        "auth.jwks_keep_s",
        1,
        30 * DAY_S,
        ("0 would refuse everybody in every outage", "old keys must not stay good for ever"),
    ),
    range("auth.leeway_s", 0, 30, ("", "expired tokens would be accepted for longer than 30 s")),
    range("auth.tokens_remembered_max", 0, 1_000_000, ("", "each takes about 1 KiB of memory")),
    range("limits.connections_max", 0, 1_000_000, ("", "one address serves no more")),
    range("limits.streams_max", 0, 1_000_000, ("", "a stream needs a connection")),
    range("limits.concurrent_requests_max", 0, 1_000_000, ("", "a request needs a connection")),
    range("limits.request_bytes_max", KIB, GIB, HARD_LIMIT),
    range(
        "limits.header_bytes_max",
        8 * KIB,
        64 * KIB,
        ("8 KiB is the smallest buffer that heads are read into", "one is held for each connection"),
    ),
    range("limits.headers_max", 16, 1000, ("clients and proxies send a dozen", "each costs time before any check")),
    range("limits.header_timeout_ms", 1, DAY_MS, TIME),
    range("limits.idle_timeout_ms", 1, DAY_MS, TIME),
    range("limits.body_timeout_ms", 1, DAY_MS, TIME),
    range("limits.body_bytes_per_s_min", 0, MIB, ("", "honest clients on slow lines send less than 1 MiB in a second")),
    range("limits.write_timeout_ms", 1, DAY_MS, TIME),
    range("limits.request_timeout_ms", 1, DAY_MS, TIME),
    range("limits.result_bytes_max", KIB, GIB, HARD_LIMIT),
    range("limits.stream_buffer_bytes_max", KIB, GIB, HARD_LIMIT),
    range(
        "limits.stream_keep_alive_s",
        1,
        DAY_S,
        (
            "0 would send comments without a pause",
            "nothing between here and a client keeps a silent connection for a day",
        ),
    ),
    range(
        "limits.json_depth_max",
        4,
        128,
        ("real arguments nest a few levels", "deeper ones than 128 are made to overflow stacks"),
    ),
    range("limits.json_keys_max", 16, 1_000_000, ("real objects have a few members", "millions are made to burn CPU")),
    range("http2.streams_max", 1, 10_000, ("0 would refuse every request", "each is a task with its memory")),
    range("http2.header_list_bytes_max", 0, MIB, ("", "one is held for each connection")),
    range(
        "http2.frame_bytes_max",
        16 * KIB,
        (16 << 20) - 1,
        ("the protocol has no smaller limit", "the protocol has no larger limit"),
    ),
    range("http2.stream_window_bytes", KIB, GIB, WINDOW),
    range("http2.connection_window_bytes", 64 * KIB, GIB, WINDOW),
    range("http2.send_buffer_bytes_max", KIB, 16 * MIB, ("less is slow", "it is held for each answer")),
    range("http2.pending_resets_max", 1, 10_000, ("0 would end connections for one cancelled call", RESETS)),
    range("http2.error_resets_max", 1, 10_000, ("0 would end connections for one mistake", RESETS)),
    range(
        "http2.control_frames_per_s_max",
        100,
        1_000_000,
        ("honest clients send some for each answer that they take", "it would be no limit"),
    ),
    range(
        "http2.ping_interval_s",
        0,
        DAY_S,
        ("", "nothing between here and a client keeps a silent connection for a day"),
    ),
    range(
        "http2.ping_timeout_s",
        1,
        DAY_S,
        ("0 would end every connection at its first ping", "nobody waits longer than that"),
    ),
    range(
        "rate_limit.keys_max",
        1024,
        10_000_000,
        ("fewer keys would be forgotten at once", "more keys take over 600 MiB"),
    ),
    range(
        "audit.queue_max",
        16,
        1_000_000,
        ("fewer places would drop lines while nothing is wrong", "more places can be gigabytes"),
    ),
    range("sessions.resume_s", 0, DAY_MS / 1000, ("", "nobody comes back after a day")),
    range("sessions.resume_bytes_max", 0, 64 * GIB, ("", "it is memory")),
    range(
        "input.state_ttl_s",
        1,
        DAY_MS / 1000,
        ("0 would make every answer come too late", "nobody answers after a day"),
    ),
    range(
        "input.answer_timeout_s",
        1,
        DAY_MS / 1000,
        ("0 would make every answer come too late", "nobody answers after a day"),
    ),
    range("tasks.tasks_max", 1, 10_000_000, ("0 would refuse every task", "each takes memory")),
    range("tasks.per_caller_max", 1, 10_000_000, ("0 would refuse every task", "each task takes memory")),
    range("tasks.bytes_max", KIB, 64 * GIB, ("0 would fail every task", "it is memory")),
    range("tasks.ttl_ms", 1, 30 * DAY_MS, TIME),
    range("tasks.poll_interval_ms", 1, DAY_MS, TIME),
    range("tasks.timeout_ms", 1, 30 * DAY_MS, TIME),
    range(
        "cluster.command_timeout_ms",
        10,
        10_000,
        ("an answer over a network takes some milliseconds", "calls wait as long for a Redis that hangs"),
    ),
    range(
        "cluster.connect_timeout_ms",
        10,
        60_000,
        ("a connection with TLS takes some milliseconds", "a Redis that is back would be found a minute later"),
    ),
    range(
        "cluster.in_flight_max",
        16,
        1_000_000,
        ("fewer commands would be refused while nothing is wrong", "each takes memory while Redis hangs"),
    ),
    range(
        "cluster.forwards_max",
        1,
        100_000,
        ("0 would run no tool that is placed here for others", "each call takes memory"),
    ),
    range("cluster.failures_max", 1, 1000, ("0 would take Redis for away always", "it would never count as away")),
    range(
        "cluster.probe_ms",
        1000,
        60_000,
        ("more than one attempt in a second is a storm when many instances make them", "nobody waits longer than that"),
    ),
    range(
        "cluster.heartbeat_s",
        1,
        HEARTBEAT_S_MAX,
        (
            "0 would write heartbeats without a pause",
            "an instance that died would be believed in for a quarter of an hour",
        ),
    ),
    range(
        "sessions.sessions_max",
        1,
        10_000_000,
        ("0 would shut clients of the older revisions out", "each session costs memory"),
    ),
    range(
        "sessions.per_caller_max",
        1,
        10_000_000,
        ("0 would shut clients of the older revisions out", "each session costs memory"),
    ),
    range(
        "sessions.idle_timeout_s",
        1,
        30 * DAY_S,
        ("0 would end sessions before their second request", "abandoned ones hold memory"),
    ),
    range(
        "lists.page_entries_max",
        1,
        10_000,
        ("an empty page would make clients ask for ever", "a longer one is no page"),
    ),
    range("lists.ttl_ms", 0, 365 * DAY_MS, ("", "nobody keeps one longer than a year")),
    range("pool.threads", 0, 1024, ("", "more threads than cores only get in each other's way")),
    range("pool.threads_max", 0, 4096, ("", "each thread costs a stack")),
    range(
        "pool.keep_alive_s",
        1,
        DAY_S,
        ("0 would start and end a thread for every job over the core threads", "an idle thread keeps its stack"),
    ),
    range(
        "pool.queue_max",
        1,
        1_000_000,
        ("without a place in the queue a call could not be handed over", "each place costs memory"),
    ),
    range("pool.queue_wait_ms_max", 0, DAY_MS, ("", "nobody waits longer than a day")),
    range("pool.refusal_gather_us", 0, 2000, ("", "what is not refused waits as long as what is")),
    range("pool.nice", 0, 19, ("", "the kernel knows no more")),
    range("pool.lost_max", 0, 4096, ("", "each lost thread keeps its stack and perhaps a core until its tool returns")),
    range("cache.entry_bytes_max", 0, GIB, HARD_LIMIT),
    range(
        "toolbox.output_bytes_max",
        KIB,
        64 * MIB,
        ("less than 1 KiB says nothing", "no agent reads more than 64 MiB"),
    ),
    range("toolbox.file_bytes_max", 1, 4 * GIB, ("0 would open no file", "each call holds a whole one in memory")),
    range(
        "toolbox.sql_connections_max",
        1,
        1024,
        ("0 would answer no query", "each connection holds files and memory"),
    ),
    range("tools.*.timeout_ms", 1, DAY_MS, TIME),
    range("cache.ttl_jitter_percent", 0, 90, ("", "over 90 little of the time is left")),
    range(
        "tools.*.stale_while_revalidate_s",
        1,
        365 * DAY_S,
        ("to serve none, leave it out", "nobody wants a result that is older than a year"),
    ),
    range(
        "tools.*.stale_if_error_s",
        1,
        365 * DAY_S,
        ("to serve none, leave it out", "nobody wants a result that is older than a year"),
    ),
    range(
        "tools.*.cache_error_ttl_s",
        1,
        DAY_S,
        ("to keep none, leave it out", "a failure that is kept for a day is one for long"),
    ),
    range(
        "tools.*.concurrency_max",
        1,
        1_000_000,
        (
            "0 would run no call; to set no limit, leave it out",
            "a call needs a connection, and one address serves no more",
        ),
    ),
    range("tools.*.spread", 1, 1000, ("0 would place it nowhere", "there are never more instances")),
    range("tools.*.waiting_max", 0, 1_000_000, ("", "each call that waits holds a connection")),
    range(
        "tools.*.cache_ttl_s",
        1,
        365 * DAY_S,
        ("to keep no results, leave it out", "nobody keeps one longer than a year"),
    ),
];

/// The range of the setting at `section` (with the name of its tool) and `key`.
fn range_of(section: &str, key: &str) -> Option<&'static Range> {
    let section = match section.split_once('.').map_or(section, |(section, _)| section) {
        TOOLS => "tools.*",
        section => section,
    };
    RANGES.iter().find(|range| range.path.strip_prefix(section).is_some_and(|rest| rest.strip_prefix('.') == Some(key)))
}

/// What a number may be, when nothing that is written as one can be this large.
pub(super) fn too_large(section: &str, key: &str) -> String {
    match range_of(section, key) {
        Some(range) => format!("too large: {} to {} is the range", range.least, range.most),
        None => "too large: it does not fit into 64 bits".into(),
    }
}

/// Whether a number is so far over its range that its type may not hold it.
pub(super) fn is_beyond(section: &str, key: &str, value: u64) -> bool {
    value > u64::from(u32::MAX) && range_of(section, key).is_some_and(|range| value > range.most)
}

/// Refuses every number that is out of its range. Returns the names of those, as faults write them.
pub(super) fn check(view: &View<'_>, faults: &mut Faults) -> Vec<String> {
    let mut wrong = Vec::new();
    for setting in view.settings.values() {
        let Some(range) = range_of(&setting.section, &setting.key) else { continue };
        let is_size = setting.value.is_string();
        let value = match setting.value.as_str() {
            Some(text) => ByteSize::parse(text).map(|s| s.0).ok(),
            None => setting.value.as_u64(),
        };
        let Some(value) = value else { continue };
        let write = |n: u64| if is_size { format!("\"{}\"", ByteSize(n)) } else { n.to_string() };
        let (end, why) = if value < range.least {
            (format!("the least is {}", write(range.least)), range.why.0)
        } else if value > range.most {
            (format!("the most is {}", write(range.most)), range.why.1)
        } else {
            continue;
        };
        let name = named(setting);
        faults.push(Fault::new("", format!("{name}: {end}, because {why}")));
        wrong.push(name);
    }
    wrong
}
