//! `[http2]`: what one connection of HTTP/2 may do.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::units::ByteSize;

/// `[http2]`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Whether HTTP/2 is spoken beside HTTP/1.1.
    pub enabled: bool,
    /// Whether it is also spoken without TLS, with clients that know it beforehand.
    pub prior_knowledge: bool,
    /// Requests that one connection may have at once.
    pub streams_max: u32,
    /// Size of a request's headers, each with 32 bytes more than its text; 0 is twice `limits.header_bytes_max`.
    pub header_list_bytes_max: ByteSize,
    /// Size of a frame that clients may send.
    pub frame_bytes_max: ByteSize,
    /// What a client may send of one body before it is read.
    pub stream_window_bytes: ByteSize,
    /// What a client may send of all bodies of a connection before they are read.
    pub connection_window_bytes: ByteSize,
    /// What of one answer is held ready to be sent.
    pub send_buffer_bytes_max: ByteSize,
    /// Requests that a client took back before anybody looked at them, after which the connection is ended.
    pub pending_resets_max: usize,
    /// Streams that were reset for the client's mistakes, after which the connection is ended.
    pub error_resets_max: usize,
    /// Frames each second that neither ask for anything nor carry anything, after which the connection is ended.
    pub control_frames_per_s_max: u32,
    /// Time between two pings, in seconds; 0 sends none.
    pub ping_interval_s: u64,
    /// Time for a ping to be answered, in seconds.
    pub ping_timeout_s: u64,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            enabled: true,
            prior_knowledge: true,
            streams_max: 100,
            header_list_bytes_max: ByteSize(0),
            frame_bytes_max: ByteSize::kib(16),
            stream_window_bytes: ByteSize::kib(256),
            connection_window_bytes: ByteSize::mib(1),
            send_buffer_bytes_max: ByteSize::kib(64),
            pending_resets_max: 20,
            error_resets_max: 100,
            control_frames_per_s_max: 1000,
            ping_interval_s: 30,
            ping_timeout_s: 20,
        }
    }
}

impl Config {
    pub(super) fn ping_interval(&self) -> Option<Duration> {
        (self.ping_interval_s > 0).then(|| Duration::from_secs(self.ping_interval_s))
    }

    pub(super) fn ping_timeout(&self) -> Duration {
        Duration::from_secs(self.ping_timeout_s)
    }
}
