//! The names of all keys. What a client sends never stands in one as it is: it comes here as a hash, so that nothing in
//! it can be taken for a separator or a hash tag.

/// Makes keys, all with one beginning.
#[derive(Clone, Debug)]
pub(crate) struct Keys {
    prefix: String,
    /// In a cluster keys of one script have one slot, which is what the braces say.
    is_cluster: bool,
}

impl Keys {
    pub(crate) fn new(prefix: &str, is_cluster: bool) -> Self {
        Self { prefix: prefix.to_owned(), is_cluster }
    }

    /// What all keys begin with.
    pub(crate) fn prefix(&self) -> &str {
        &self.prefix
    }

    /// Holds the name of the deployment.
    pub(crate) fn cluster(&self) -> String {
        format!("{}cluster", self.prefix)
    }

    /// The set of ids of nodes.
    pub(crate) fn nodes(&self) -> String {
        format!("{}nodes", self.prefix)
    }

    /// What is known of a node; its id is a plain word.
    pub(crate) fn node(&self, id: &str) -> String {
        format!("{}node:{id}", self.prefix)
    }

    /// The record of a session. What belongs to one session is in one slot, in a cluster.
    pub(crate) fn session(&self, hash: &str) -> String {
        format!("{}session:{{{hash}}}", self.prefix)
    }

    /// With what sessions are hashed.
    pub(crate) fn sessions_key(&self) -> String {
        format!("{}sessions:key", self.prefix)
    }

    /// The channel of what happens to sessions.
    pub(crate) fn sessions(&self) -> String {
        format!("{}sessions", self.prefix)
    }

    /// The channel of one process.
    pub(crate) fn mail(&self, tag: u32) -> String {
        format!("{}mail:{tag:08x}", self.prefix)
    }

    pub(crate) fn is_cluster(&self) -> bool {
        self.is_cluster
    }

    /// What is left of one rate. In a cluster all are in one slot, since several are decided together.
    pub(crate) fn rate(&self, of: &[u8; 16]) -> String {
        let tag = if self.is_cluster { "{rl}:" } else { "rl:" };
        format!("{}{tag}{}", self.prefix, hex(of))
    }
}

/// Bytes as text.
pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_those_of_the_design() {
        let keys = Keys::new("mcp:", false);
        assert_eq!(keys.nodes(), "mcp:nodes");
        assert_eq!(keys.node("a-1"), "mcp:node:a-1");
        assert_eq!(keys.rate(&[0xab; 16]), format!("mcp:rl:{}", "ab".repeat(16)));
        assert_eq!(Keys::new("x:", true).rate(&[0; 16]), format!("x:{{rl}}:{}", "00".repeat(16)));
    }
}
