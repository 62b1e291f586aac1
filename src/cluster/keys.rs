//! The names of all keys. What a client sends never stands in one as it is: it comes here as a hash, so that nothing in
//! it can be taken for a separator or a hash tag.

use super::link::literal;

/// What the names of keys go on with: whole names, and beginnings.
const NAMES: [&str; 5] = ["cluster", "nodes", "sessions:key", "state-key", "node-key"];
const BEGINNINGS: [&str; 11] =
    ["node:", "session:{", "lives:", "tool:", "lease:", "generation:", "task:", "tasks:", "{tasks}:", "rl:", "{rl}:"];

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

    /// A pattern that all keys match, and such as only begin so.
    pub(crate) fn pattern(&self) -> String {
        format!("{}*", literal(&self.prefix))
    }

    /// Whether a key is one of these. That it begins so is not enough: another deployment may have a longer prefix that
    /// begins so too.
    pub(crate) fn has(&self, key: &[u8]) -> bool {
        let rest = key.strip_prefix(self.prefix.as_bytes());
        rest.is_some_and(|rest| {
            NAMES.iter().any(|name| rest == name.as_bytes())
                || BEGINNINGS.iter().any(|beginning| rest.starts_with(beginning.as_bytes()))
        })
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

    /// There as long as a process lives that writes streams and runs tasks.
    pub(crate) fn lives(&self, tag: u32) -> String {
        format!("{}lives:{tag:08x}", self.prefix)
    }

    /// Where all instances tell each other what changed.
    pub(crate) fn news(&self) -> String {
        format!("{}news", self.prefix)
    }

    /// A kept result of a tool. Tools are those of the configuration, so their names are plain words.
    pub(crate) fn result(&self, tool: &str, of: &[u8; 32]) -> String {
        format!("{}tool:{tool}:{}", self.prefix, self.tag(&hex(of)))
    }

    /// Held by who makes a result; in a cluster it is in one slot with that.
    pub(crate) fn lease(&self, of: &[u8; 32]) -> String {
        format!("{}lease:{}", self.prefix, self.tag(&hex(of)))
    }

    /// Changes when results are invalidated: all of them, or those that `of` names.
    pub(crate) fn generation(&self, of: &str) -> String {
        format!("{}generation:{of}", self.prefix)
    }

    /// The record of a task; its id is hex.
    pub(crate) fn task(&self, id: &str) -> String {
        format!("{}task:{id}", self.prefix)
    }

    /// The ids of tasks: all, or those of one caller. In a cluster all are in one slot, since they are counted together.
    pub(crate) fn tasks(&self, of: &str) -> String {
        let tag = if self.is_cluster { "{tasks}" } else { "tasks" };
        format!("{}{tag}:{of}", self.prefix)
    }

    /// The key that seals `requestState`.
    pub(crate) fn state_key(&self) -> String {
        format!("{}state-key", self.prefix)
    }

    /// The key by which instances know each other.
    pub(crate) fn node_key(&self) -> String {
        format!("{}node-key", self.prefix)
    }

    /// Whether keys are in several places.
    pub(crate) fn is_cluster(&self) -> bool {
        self.is_cluster
    }

    fn tag(&self, text: &str) -> String {
        if self.is_cluster { format!("{{{text}}}") } else { text.to_owned() }
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
        assert_eq!(keys.result("echo", &[0xab; 32]), format!("mcp:tool:echo:{}", "ab".repeat(32)));
        let apart = Keys::new("mcp:", true);
        let slot = |key: String| key.split_once('{').map(|(_, rest)| rest.to_owned());
        assert_eq!(slot(apart.result("echo", &[1; 32])), slot(apart.lease(&[1; 32])), "in one place in a cluster");
        assert_eq!(keys.rate(&[0xab; 16]), format!("mcp:rl:{}", "ab".repeat(16)));
        assert_eq!(Keys::new("x:", true).rate(&[0; 16]), format!("x:{{rl}}:{}", "00".repeat(16)));
    }

    #[test]
    fn keys_are_told_from_those_of_a_longer_prefix() {
        for is_cluster in [false, true] {
            let made = |prefix: &str| {
                let keys = Keys::new(prefix, is_cluster);
                let own = [keys.cluster(), keys.nodes(), keys.node("a"), keys.session("ab"), keys.sessions_key()];
                let more = [keys.lives(1), keys.result("t", &[1; 32]), keys.lease(&[1; 32]), keys.generation("all")];
                let last = [keys.task("1"), keys.tasks("all"), keys.rate(&[1; 16]), keys.state_key(), keys.node_key()];
                [&own[..], &more, &last].concat()
            };
            let keys = Keys::new("mcp:", is_cluster);
            assert!(made("mcp:").iter().all(|key| keys.has(key.as_bytes())), "{:?}", made("mcp:"));
            for other in ["mcp:b:", "mcp", "mcp:nodes2:", "other:"] {
                assert!(!made(other).iter().any(|key| keys.has(key.as_bytes())), "{other}");
            }
        }
        assert_eq!(Keys::new("a[b]*:", false).pattern(), r"a\[b\]\*:*");
    }
}
