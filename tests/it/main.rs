//! Whole-server tests: one binary, so that it links once, and a file for each promise.

#![allow(clippy::unwrap_used)] // a test that meets the unexpected should stop
#![allow(clippy::disallowed_types)] // a Condvar wants the standard mutex

mod alone; // calls without a connection, and other work that nobody watches
mod audit; // who called what, and what came of it
mod balancer; // real nginx processes
mod bench; // the load generator: counts, comparisons, faults
mod bound; // tasks, rounds and tokens, which are their caller's alone
mod cache; // what is kept, for whom, and that equal calls run once
mod calls; // progress, logs, panics, cancelling, sessions
mod chaos; // instances that are killed all the time
mod cli; // the command line: exit codes, messages
mod clients; // the official clients
mod cluster; // several processes at one Redis
mod cluster_faults; // Redis hangs, is slow, full, killed, flushed, spoiled
mod cluster_left; // what stands in Redis, and what is left there
mod cluster_sessions; // sessions that any of several processes resumes
mod cluster_shared; // what holds across instances: kept results, changes, tasks, seals
mod connection; // the ends of a connection over HTTP/1.1: who leaves, time limits, a drain at each moment
mod edges; // odd panics, odd results, leaving at the worst moment
mod engine; // hung threads, limits per tool, fairness, metrics
mod failover; // a primary that dies, slots that move
mod faults; // bad input: the exact outcome of each, and that it hurts nobody else
mod flavor; // I/O threads with a runtime each
mod guards; // what nobody gets past: names, pages, ids, paths, a false issuer, logs
mod hosted; // rmcp handlers as they are
mod http2; // HTTP/2: the same promises, and floods of frames
mod identity; // who calls, and what they may
mod isolation; // a hundred callers at once, each with a name that no other sees
mod issuer; // a real issuer, and the official clients that log in there
mod placement; // tools that are not on every instance
mod plain; // requests over HTTP/1.1, in the two ways in which they are read
mod pool; // full, hung, abandoned
mod rates; // how often callers may call, and which address counts
mod readers; // slow, silent and many readers of streams
mod readme; // what the README tells people to type
#[path = "../../src/cluster/tests/servers.rs"]
mod redis; // real Redis processes
mod rolling; // behind HAProxy: restarts, deaths, streams
mod shutdown; // drain, grace, second signal
mod stdio; // standard input and output
mod streams; // changes, questions, lost connections, slow readers
mod supplies; // what it is built from: crates, versions, where they come from
mod support; // what the others share
mod tasks; // calls whose answer is fetched later
mod tls; // secure connections, certificates of clients, renewal
