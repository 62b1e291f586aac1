//! The range of each number, with the reason for its ends. A 0 that means something is in the range; one that would
//! only break things is not.

use super::{
    fault::{Fault, Faults},
    relations::{View, named},
};
use crate::units::ByteSize;

/// The range of a number (for a size, in bytes). `tools.*.KEY` stands for every tool's.
pub(super) struct Range {
    pub(super) path: &'static str,
    pub(super) least: u64,
    pub(super) most: u64,
    /// What is lost below and above, in words that can stand after "because".
    why: &'static str,
}

const DAY_MS: u64 = 24 * 60 * 60 * 1000;
const DAY_S: u64 = 24 * 60 * 60;
const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

const fn range(path: &'static str, least: u64, most: u64, why: &'static str) -> Range {
    Range { path, least, most, why }
}

const TIME: &str = "0 would cut everything off at once, and nobody waits longer than a day";
const HARD_LIMIT: &str = "1 GiB is as much as one message may ever be; less than 1 KiB holds no ordinary one";

/// Numbers that are not here may be anything that their type can hold.
pub(super) const RANGES: &[Range] = &[
    range("server.drain_grace_ms", 1, DAY_MS, TIME),
    range(
        "runtime.io_threads",
        0,
        1024,
        "0 is one for each core, and more threads than cores only get in each other's way",
    ),
    range(
        "auth.jwks_refresh_s",
        1,
        DAY_S,
        "0 would fetch without a pause, and keys that the issuer took back must not stay good for longer than a day",
    ),
    range("auth.jwks_retry_s", 1, DAY_S, "0 would let anybody's tokens make us ask the issuer without a pause"),
    range(
        "auth.jwks_keep_s",
        1,
        30 * DAY_S,
        "0 would refuse everybody in every outage, and old keys must not stay good for ever",
    ),
    range("auth.leeway_s", 0, 30, "0 trusts no clock, and expired tokens would be accepted for longer than 30 s"),
    range("auth.tokens_remembered_max", 0, 1_000_000, "0 remembers none, and each takes about 1 KiB of memory"),
    range("limits.connections_max", 0, 1_000_000, "0 derives it, and one address serves no more"),
    range("limits.streams_max", 0, 1_000_000, "0 derives it, and a stream needs a connection"),
    range("limits.concurrent_requests_max", 0, 1_000_000, "0 derives it, and a request needs a connection"),
    range("limits.request_bytes_max", KIB, GIB, HARD_LIMIT),
    range(
        "limits.header_bytes_max",
        8 * KIB,
        64 * KIB,
        "8 KiB is the smallest buffer that heads are read into, and one is held for each connection",
    ),
    range("limits.headers_max", 16, 1000, "clients and proxies send a dozen, and each costs time before any check"),
    range("limits.header_timeout_ms", 1, DAY_MS, TIME),
    range("limits.idle_timeout_ms", 1, DAY_MS, TIME),
    range("limits.body_timeout_ms", 1, DAY_MS, TIME),
    range(
        "limits.body_bytes_per_s_min",
        0,
        MIB,
        "0 asks for no rate, and honest clients on slow lines send less than 1 MiB in a second",
    ),
    range("limits.write_timeout_ms", 1, DAY_MS, TIME),
    range("limits.request_timeout_ms", 1, DAY_MS, TIME),
    range("limits.result_bytes_max", KIB, GIB, HARD_LIMIT),
    range("limits.stream_buffer_bytes_max", KIB, GIB, HARD_LIMIT),
    range(
        "limits.stream_keep_alive_s",
        1,
        DAY_S,
        "0 would send comments without a pause, and nothing between here and a client keeps a silent connection for a day",
    ),
    range(
        "limits.json_depth_max",
        4,
        128,
        "real arguments nest a few levels, and deeper ones than 128 are made to overflow stacks",
    ),
    range("limits.json_keys_max", 16, 1_000_000, "real objects have a few members, and millions are made to burn CPU"),
    range("rate_limit.keys_max", 1024, 10_000_000, "fewer keys would be forgotten at once, and more take over 600 MiB"),
    range(
        "audit.queue_max",
        16,
        1_000_000,
        "fewer places would drop lines while nothing is wrong, and more can be gigabytes",
    ),
    range("sessions.resume_s", 0, DAY_MS / 1000, "0 keeps nothing, and nobody comes back after a day"),
    range("sessions.resume_bytes_max", 0, 64 * GIB, "it is memory"),
    range("input.state_ttl_s", 1, DAY_MS / 1000, "0 would make every answer come too late"),
    range("input.answer_timeout_s", 1, DAY_MS / 1000, "0 would make every answer come too late"),
    range("tasks.tasks_max", 1, 10_000_000, "0 would refuse every task, and each takes memory"),
    range("tasks.per_caller_max", 1, 10_000_000, "0 would refuse every task"),
    range("tasks.bytes_max", KIB, 64 * GIB, "0 would fail every task, and it is memory"),
    range("tasks.ttl_ms", 1, 30 * DAY_MS, TIME),
    range("tasks.poll_interval_ms", 1, DAY_MS, TIME),
    range("tasks.timeout_ms", 1, 30 * DAY_MS, TIME),
    range(
        "sessions.sessions_max",
        1,
        10_000_000,
        "0 would shut clients of the older revisions out, and each session costs memory",
    ),
    range("sessions.per_caller_max", 1, 10_000_000, "0 would shut clients of the older revisions out"),
    range(
        "sessions.idle_timeout_s",
        1,
        30 * DAY_S,
        "0 would end sessions before their second request, and abandoned ones hold memory",
    ),
    range(
        "lists.page_entries_max",
        1,
        10_000,
        "an empty page would make clients ask for ever, and a longer one is no page",
    ),
    range("lists.ttl_ms", 0, 365 * DAY_MS, "0 asks clients not to keep lists, and nobody keeps one longer than a year"),
    range("pool.threads", 0, 1024, "0 is one for each core, and more threads than cores only get in each other's way"),
    range("pool.threads_max", 0, 4096, "0 is twice pool.threads, and each thread costs a stack"),
    range("pool.keep_alive_s", 1, DAY_S, "0 would start and end a thread for every job over the core threads"),
    range(
        "pool.queue_max",
        1,
        1_000_000,
        "without a place in the queue a call could not be handed over, and each place costs memory",
    ),
    range("pool.queue_wait_ms_max", 0, DAY_MS, "0 sets no limit, and nobody waits longer than a day"),
    range("pool.nice", 0, 19, "the kernel knows no more; 0 stands back behind nobody"),
    range("pool.lost_max", 0, 4096, "each lost thread keeps its stack and perhaps a core until its tool returns"),
    range("cache.entry_bytes_max", 0, GIB, HARD_LIMIT),
    range(
        "toolbox.output_bytes_max",
        KIB,
        64 * MIB,
        "less than 1 KiB says nothing, and no agent reads more than 64 MiB",
    ),
    range("toolbox.file_bytes_max", 1, 4 * GIB, "0 would open no file, and each call holds a whole one in memory"),
    range(
        "toolbox.sql_connections_max",
        1,
        1024,
        "0 would answer no query, and each connection holds files and memory",
    ),
    range("tools.*.timeout_ms", 1, DAY_MS, TIME),
    range("cache.ttl_jitter_percent", 0, 90, "0 spreads nothing, and over 90 little of the time is left"),
    range("tools.*.stale_while_revalidate_s", 1, 365 * DAY_S, "to serve none, leave it out"),
    range("tools.*.stale_if_error_s", 1, 365 * DAY_S, "to serve none, leave it out"),
    range(
        "tools.*.cache_error_ttl_s",
        1,
        DAY_S,
        "to keep none, leave it out; a failure that is kept for a day is one for long",
    ),
    range("tools.*.concurrency_max", 1, 1_000_000, "0 would run no call; to set no limit, leave it out"),
    range("tools.*.waiting_max", 0, 1_000_000, "each call that waits holds a connection"),
    range(
        "tools.*.cache_ttl_s",
        1,
        365 * DAY_S,
        "to keep no results, leave it out; nobody keeps one longer than a year",
    ),
];

/// Refuses every number that is out of its range.
pub(super) fn check(view: &View<'_>, faults: &mut Faults) {
    for setting in view.settings.values() {
        let general = match setting.section.split_once('.') {
            Some((section, _)) => format!("{section}.*.{}", setting.key),
            None => setting.path.clone(),
        };
        let Some(range) = RANGES.iter().find(|r| r.path == general) else { continue };
        let is_size = setting.value.is_string();
        let value = match setting.value.as_str() {
            Some(text) => ByteSize::parse(text).map(|s| s.0).ok(),
            None => setting.value.as_u64(),
        };
        let Some(value) = value else { continue };
        let write = |n: u64| if is_size { format!("\"{}\"", ByteSize(n)) } else { n.to_string() };
        let end = if value < range.least {
            format!("the least is {}", write(range.least))
        } else if value > range.most {
            format!("the most is {}", write(range.most))
        } else {
            continue;
        };
        faults.push(Fault::new("", format!("{}: {end}, because {}", named(setting), range.why)));
    }
}
