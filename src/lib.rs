//! bigiron: an MCP server for one large host.

pub mod call;
pub mod cli;
pub mod config;
pub mod dispatch;
pub mod error;
pub mod front;
mod listener;
pub mod mcp;
pub mod outbox;
pub mod runtime;
pub mod server;
mod shutdown;
mod stdio;
pub mod telemetry;
pub mod tool;
pub mod toolbox;
pub mod units;

pub use call::{Ctx, Lane};
pub use outbox::LogLevel;
pub use rmcp;
pub use server::Server;
pub use tool::{Json, Tool};
