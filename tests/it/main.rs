//! Whole-server tests: one binary, so that it links once, and a file for each promise.

#![allow(clippy::unwrap_used)] // a test that meets the unexpected should stop
#![allow(clippy::disallowed_types)] // a Condvar wants the standard mutex

mod alone; // calls without a connection, and other work that nobody watches
mod audit; // who called what, and what came of it
mod bench; // the load generator: counts, comparisons, faults
mod bound; // tasks, rounds and tokens, which are their caller's alone
mod cache; // what is kept, for whom, and that equal calls run once
mod calls; // progress, logs, panics, cancelling, sessions
mod cli; // the command line: exit codes, messages
mod clients; // the official clients
mod edges; // odd panics, odd results, leaving at the worst moment
mod engine; // hung threads, limits per tool, fairness, metrics
mod faults; // bad input: the exact outcome of each, and that it hurts nobody else
mod flavor; // I/O threads with a runtime each
mod hosted; // rmcp handlers as they are
mod identity; // who calls, and what they may
mod pool; // full, hung, abandoned
mod rates; // how often callers may call, and which address counts
mod readers; // slow, silent and many readers of streams
mod readme; // what the README tells people to type
mod shutdown; // drain, grace, second signal
mod stdio; // standard input and output
mod streams; // changes, questions, lost connections, slow readers
mod support; // what the others share
mod tasks; // calls whose answer is fetched later
