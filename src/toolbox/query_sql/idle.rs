//! Connections between two calls. Bounded in number and in bytes held; the one that was used longest ago goes first.

use super::connect::{Connected, Source};

/// Connections that nobody uses, the one used last at the end.
#[derive(Debug)]
pub(super) struct Idle {
    connections: Vec<(Source, Connected)>,
    connections_max: usize,
    bytes_max: u64,
}

impl Idle {
    pub(super) fn new(connections_max: usize, bytes_max: u64) -> Self {
        Self { connections: Vec::new(), connections_max, bytes_max }
    }

    /// A connection to exactly this source.
    pub(super) fn take(&mut self, source: &Source) -> Option<Connected> {
        let at = self.connections.iter().rposition(|(idle, _)| idle == source)?;
        Some(self.connections.remove(at).1)
    }

    pub(super) fn put(&mut self, source: Source, connected: Connected) {
        if source.has_log() {
            return; // an open connection would keep the database's own program from putting its log away
        }
        self.connections.push((source, connected));
        let mut bytes: u64 = self.connections.iter().map(|(source, _)| source.bytes_held()).sum();
        while self.connections.len() > self.connections_max || (bytes > self.bytes_max && !self.connections.is_empty())
        {
            bytes -= self.connections.remove(0).0.bytes_held();
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.connections.len()
    }
}
