//! bigiron is an MCP server for one large host: a library to serve your own tools, and the program `bigiron` that
//! serves the toolbox. It is tuned for the host the way a database is, by one file of settings.
//!
//! ```no_run
//! use bigiron::{Ctx, Lane, Server};
//!
//! #[derive(serde::Deserialize, schemars::JsonSchema)]
//! struct Name {
//!     /// Who is greeted.
//!     name: String,
//! }
//!
//! fn main() -> std::process::ExitCode {
//!     let server = Server::builder()
//!         .tool("greet", "Greets by name", Lane::Inline, |who: Name, _: Ctx| format!("Hello, {}!", who.name));
//!     bigiron::cli::run(server) // the same command line as `bigiron` itself
//! }
//! ```
//!
//! # The way of a request
//!
//! ```text
//!  bytes -> listener -> front -> mcp -> dispatch -> tool -> toolbox, a function of yours, or an rmcp handler
//!                         |       |        |
//!                       checks  rules    cache, pool
//!                         |
//!          admin (its own thread and runtime)          stdio -> mcp (the same way, without HTTP)
//! ```
//!
//! Replies are return values, so the arrows run one way. What a tool says or asks before it is done leaves through an
//! `outbox` that was made for the call; a tool sees a sender, never a connection. What changes is said to `changes`, and
//! streams that no call owns take it from there.
//!
//! | module | what it is |
//! |---|---|
//! | [`cli`] | the command line, a file for each verb |
//! | `load` | load on a server, and what came of it: `bigiron bench` |
//! | [`config`] | all settings in one value: layers, faults with their places, relations |
//! | [`server`] | builds every part once, in order; runs; drains. The only file that sees the whole |
//! | [`runtime`] | from the host to numbers: cores, cgroup, descriptors |
//! | `shutdown` | the words of a stop: signals in, latches out |
//! | `listener` | sockets; a permit before each accept; the handshake, and the choice of what is spoken |
//! | [`front`] | HTTP/1.1 and HTTP/2: the ordered checks, bodies, streams, the table of refusals. Home of hyper, and of what is faster for plain requests |
//! | `stdio` | the same messages over a pair of pipes |
//! | [`tls`] | connections that nobody on the way can read: handshakes, certificates. Home of rustls |
//! | [`identity`] | who calls: keys, tokens, what they may |
//! | [`mcp`] | the protocol, pure: bytes and values in, values out |
//! | [`dispatch`] | where a call runs and whether it must: cache (home of moka), limits of tools, turns of callers, pool |
//! | [`tool`] | what a tool, a prompt and a resource are; the registry, an immutable snapshot; hosted rmcp handlers |
//! | [`audit`] | the audit trail: one line for each call and each refusal |
//! | [`rate`] | how often a caller may: the rates, what is remembered of each caller, the address behind proxies |
//! | [`cluster`] | what instances share: the link to Redis, who there is, rates over all of them; and calls that one runs for another |
//! | [`skill`] | skills: what authors write, and what is served of it |
//! | [`tasks`] | calls whose answer is fetched later, and where they are kept |
//! | [`toolbox`] | the tools that ship with the binary, confined to one folder |
//! | [`telemetry`] | the log, and what is counted and measured |
//! | [`call`], [`changes`], [`error`], [`input`], [`outbox`], [`units`] | the shared words |
//!
//! # Which module may use which
//!
//! | module | uses, besides the shared words | and not |
//! |---|---|---|
//! | call, changes, error, input, outbox, units | each other | anything else of ours |
//! | audit, identity, rate, skill | | anything else of ours |
//! | cluster | telemetry | anything else of ours |
//! | tasks | cluster | anything else of ours |
//! | telemetry | | anything else of ours |
//! | tls | identity | anything else of ours |
//! | tool, toolbox | each other, telemetry, and `rate` for a setting | dispatch, mcp, front |
//! | dispatch | cluster, tool, telemetry | mcp, front |
//! | mcp | audit, dispatch, shutdown, skill, tasks, telemetry | front, tool |
//! | front, stdio | cluster, identity, mcp, rate, shutdown, telemetry | dispatch, tool |
//! | listener | front, tls, telemetry | the rest |
//! | load | | anything else of ours |
//! | config | the `Config` of each part, runtime | what the parts do |
//! | server, cli | everything | |
//!
//! A part's settings live in that part, and no part but `server` and `cli` uses `config`.
//!
//! # Threads
//!
//! | threads | how many | what they do |
//! |---|---|---|
//! | `io` | `runtime.io_threads`; one more with `runtime.flavor` = `current_thread` | move bytes, parse, answer lists, run `Inline` and `Async` tools |
//! | `pool-core`, `pool-extra` | `pool.threads` to `pool.threads_max` | run `Pool` tools |
//! | `audit` | 1, when `audit.file` names one | writes the audit trail |
//! | `admin` | 1 | `/health`, `/ready` and `/metrics`, whatever the others do |
//! | `watch` | 1 | forty times a second: replaces pool threads that hang, reports polls that hold others up, looks at memory, and at files that may have changed |
//!
//! # What always holds
//!
//! - There is no task, no channel and no lock that all cores share in the way of a call that one message answers and
//!   that runs `Inline`; but for what an operator asks for that is one thing by its meaning: the audit trail, and a rate
//!   for a tool and all its callers. (Over HTTP/2, where requests share a connection, each has a task of its own.)
//! - Nothing is unbounded: every queue, map, buffer, body and wait has a limit with a name, and an answer for when it is
//!   met.
//! - A message is parsed once, by one parser. Nothing that it lets through is read in another way later.
//! - Dropping a call's future cancels the call, also where another instance runs it: a client's leaving, a deadline and a
//!   cancel notification all come to that. A tool on a worker thread is told through its `Ctx`. Calls that outlive their
//!   connection have a task of their own: those whose stream in a session has begun, those that became tasks, and, of
//!   several instances, those of one that has gone and that are run again.
//! - A tool that panics or hangs costs its own call an error.
//! - No lock is held across an await.

pub mod audit;
pub mod call;
pub mod changes;
pub mod cli;
pub mod cluster;
pub mod config;
pub mod dispatch;
pub mod error;
pub mod front;
pub mod identity;
pub mod input;
mod listener;
mod load;
pub mod mcp;
pub mod outbox;
pub mod rate;
pub mod runtime;
pub mod server;
mod shutdown;
pub mod skill;
mod stdio;
pub mod tasks;
pub mod telemetry;
pub mod tls;
pub mod tool;
pub mod toolbox;
pub mod units;

pub use call::{Caller, Ctx, Deadline, Lane, Reply};
pub use changes::Changes;
pub use error::CallError;
pub use input::Input;
pub use outbox::LogLevel;
pub use rmcp;
pub use server::Server;
pub use skill::Skill;
pub use tool::{Handler, IntoReply, Json, Prompt, Resource, Tool, Wanted};
