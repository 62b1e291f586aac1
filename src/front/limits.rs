//! `[limits]`: what the front door lets in, and for how long. The numbers only; each check reads them where it stands.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units::ByteSize;

/// `[limits]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Connections open at once; 0 derives it from the limit on file descriptors.
    pub connections_max: usize,
    /// Streams open at once that no call owns; 0 is three quarters of the connections.
    pub streams_max: usize,
    /// Requests being served at once, over all connections; 0 is 100 for each core.
    pub concurrent_requests_max: usize,
    /// Size of a request's body.
    pub request_bytes_max: ByteSize,
    /// Size of a request's head: request line and headers together.
    pub header_bytes_max: ByteSize,
    /// Number of headers in a request.
    pub headers_max: usize,
    /// Time for a whole head to arrive, in milliseconds.
    pub header_timeout_ms: u64,
    /// Time that a connection may be open with no request on it, in milliseconds.
    pub idle_timeout_ms: u64,
    /// Time for a whole body to arrive, in milliseconds.
    pub body_timeout_ms: u64,
    /// Least rate of a body that takes longer than five seconds, in bytes per second; 0 sets none.
    pub body_bytes_per_s_min: u64,
    /// Time that a write to a client may make no progress, in milliseconds.
    pub write_timeout_ms: u64,
    /// Time for a tool to answer, unless the tool has its own, in milliseconds.
    pub request_timeout_ms: u64,
    /// Size of a tool's result.
    pub result_bytes_max: ByteSize,
    /// Messages held for one client that reads slower than a tool emits.
    pub stream_buffer_bytes_max: ByteSize,
    /// Time without an event after which a stream sends a comment, in seconds.
    pub stream_keep_alive_s: u64,
    /// Nesting of a call's arguments.
    pub json_depth_max: usize,
    /// Members of one JSON object.
    pub json_keys_max: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            connections_max: 0,
            streams_max: 0,
            concurrent_requests_max: 0,
            request_bytes_max: ByteSize::mib(1),
            header_bytes_max: ByteSize::kib(16),
            headers_max: 100,
            header_timeout_ms: 10_000,
            idle_timeout_ms: 75_000,
            body_timeout_ms: 30_000,
            body_bytes_per_s_min: 1024,
            write_timeout_ms: 30_000,
            request_timeout_ms: 5_000,
            result_bytes_max: ByteSize::mib(8),
            stream_buffer_bytes_max: ByteSize::kib(256),
            stream_keep_alive_s: 15,
            json_depth_max: 128,
            json_keys_max: 10_000,
        }
    }
}

impl Config {
    pub(crate) fn header_timeout(&self) -> Duration {
        Duration::from_millis(self.header_timeout_ms)
    }

    pub(crate) fn idle_timeout(&self) -> Duration {
        Duration::from_millis(self.idle_timeout_ms)
    }

    pub(crate) fn write_timeout(&self) -> Duration {
        Duration::from_millis(self.write_timeout_ms)
    }

    pub(crate) fn stream_keep_alive(&self) -> Duration {
        Duration::from_secs(self.stream_keep_alive_s)
    }
}
