//! Why a call gave no result. One enum for the whole way of a call; `mcp::code` is the one place that turns it into
//! an HTTP status and a JSON-RPC code. A tool that ran and failed is not here: that is a [`crate::call::Reply`] with
//! `isError`, which the agent reads.

use std::fmt;

use serde_json::Value;

use crate::{call::ClientCapabilities, input::Required};

/// Why a call gave no result.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum CallError {
    /// The tool says that it failed, in words for the agent. Becomes a result with `isError: true`.
    Tool(String),
    /// The request's parameters are not what the method takes. The caller's fault; do not retry unchanged.
    InvalidParams(String),
    /// No tool has this name, or the caller may not see it. The caller's fault.
    UnknownTool(String),
    /// The tool needs something from the client that the client did not declare. The caller's fault.
    MissingCapability(ClientCapabilities),
    /// The call needs answers of the client first, and is to be made again with them.
    InputRequired(Box<Required>),
    /// There is no resource at this URI. The caller's fault.
    NoResource(String),
    /// A JSON-RPC error that the tool's author chose, passed on as it is.
    Rpc {
        /// Its code.
        code: i32,
        /// Its message.
        message: String,
        /// Its data.
        data: Option<Value>,
    },
    /// A fault of ours or of the tool's code, such as a panic. Details are in the log, not in the answer.
    Internal,
    /// No room: a limit or the pool's queue is full. Nobody's fault; retry after the given time.
    Overloaded {
        /// Seconds until it is worth trying again.
        retry_after_s: u32,
    },
    /// What is kept of tasks cannot be read or written at the moment, as while the Redis that it is in is away. Nobody's
    /// fault; retry after the given time.
    StoreAway {
        /// Seconds until it is worth trying again.
        retry_after_s: u32,
    },
    /// This caller has as much of something as one may have. Others are served.
    CallerLimit {
        /// What there is so much of, and until when.
        why: String,
        /// Seconds until it is worth trying again.
        retry_after_s: u32,
    },
    /// The deadline passed before the call started, so it never ran. Safe to retry.
    DeadlineBeforeStart,
    /// The deadline passed while the tool ran; its work was cancelled. Becomes a result with `isError: true`.
    TimedOut {
        /// The limit that was met.
        limit_ms: u64,
    },
    /// The server is stopping and the call was not finished within the grace. It may have run.
    Draining,
    /// No instance that runs the tool can be reached, or each has no room. The call did not run. Safe to retry.
    Nowhere {
        /// The tool.
        tool: String,
        /// The roles that run it; none where it runs on any. Nothing of a client's: they are not told to one.
        roles: Vec<String>,
        /// Seconds until it is worth trying again.
        retry_after_s: u32,
    },
    /// The instance that ran the call is gone, and nobody knows how far it came. It may have run.
    Lost,
    /// The caller took the call back; nobody waits for an answer.
    Cancelled,
}

impl CallError {
    /// A failure for the agent to read: say what was wrong and what to do differently.
    pub fn tool(text: impl Into<String>) -> Self {
        Self::Tool(text.into())
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tool(text) | Self::InvalidParams(text) => f.write_str(text),
            Self::UnknownTool(name) => write!(f, "unknown tool: {name:?}; tools/list names those that there are"),
            Self::MissingCapability(_) => {
                f.write_str("this call needs client capabilities that the request does not declare")
            }
            Self::InputRequired(_) => f.write_str("the call needs answers of the client first"),
            Self::NoResource(uri) => {
                write!(f, "there is no resource at {uri:?}; resources/list names those that there are")
            }
            Self::Rpc { message, .. } => f.write_str(message),
            Self::Internal => f.write_str("the server failed inside this call; it was logged, other calls go on"),
            Self::Overloaded { retry_after_s } => {
                write!(f, "the server is at its limit; try again in {retry_after_s} s")
            }
            Self::StoreAway { retry_after_s } => {
                write!(f, "the store of tasks is away; try again in {retry_after_s} s")
            }
            Self::CallerLimit { why, .. } => f.write_str(why),
            Self::DeadlineBeforeStart => f.write_str("the deadline passed before the call could start; it did not run"),
            Self::TimedOut { limit_ms } => {
                write!(
                    f,
                    "timed out: the tool did not finish within {limit_ms} ms and was stopped; ask for less at once"
                )
            }
            Self::Draining => f.write_str("the server is stopping; the call was not finished and may have run in part"),
            Self::Nowhere { tool, retry_after_s, .. } => write!(
                f,
                "no instance that runs {tool:?} can take the call at the moment; it did not run; try again in \
                 {retry_after_s} s"
            ),
            Self::Lost => f.write_str("the instance that ran this call has ended; the call may have run"),
            Self::Cancelled => f.write_str("cancelled by the caller"),
        }
    }
}

impl std::error::Error for CallError {}

impl From<String> for CallError {
    fn from(text: String) -> Self {
        Self::Tool(text)
    }
}

impl From<&str> for CallError {
    fn from(text: &str) -> Self {
        Self::Tool(text.to_owned())
    }
}
