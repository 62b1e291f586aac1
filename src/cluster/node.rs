//! What is known of one instance: how it stands in Redis, and how it is shown.

use std::{collections::HashMap, fmt};

use serde::Serialize;

use super::config::HEARTBEAT_S_MAX;

/// The form of what is written. A later one may have more fields; those that are here keep their meaning.
const FORM: &str = "1";
/// More than this of a text of another instance is not kept.
const TEXT_BYTES_MAX: usize = 1024;
const TOOLS_MAX: usize = 10_000;

/// Where an instance stands in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// It is there, and does not serve yet.
    Starting,
    /// It serves.
    Running,
    /// It finishes what it has, and takes nothing new.
    Stopping,
}

impl Status {
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Stopping => "stopping",
        }
    }

    fn of(word: &str) -> Option<Self> {
        [Self::Starting, Self::Running, Self::Stopping].into_iter().find(|status| status.word() == word)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// One instance, as of the last look at Redis.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Node {
    /// Its name.
    pub id: String,
    /// Where it stands.
    pub status: Status,
    /// Since its last heartbeat, by the clock of Redis, in milliseconds.
    pub heartbeat_age_ms: u64,
    /// Between two of its heartbeats, in seconds; 0 where it does not say.
    pub heartbeat_s: u64,
    /// Requests that it is serving.
    pub load: u64,
    /// Requests that it can serve at once.
    pub max_load: u64,
    /// Where the others reach it: a URL with the path of its endpoint.
    pub address: String,
    /// Where other instances hand over calls that it is to run: host and port. Empty where it takes none.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub forwards: String,
    /// The key by which it and the others know each other (`cluster.node_key_file`): where it has it from, and the
    /// fingerprint. Empty where it takes no calls over, and as long as it does not know the key of all.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub node_key: String,
    /// What it runs.
    pub version: String,
    /// What it is for.
    pub roles: Vec<String>,
    /// The tools that it has.
    pub tools: Vec<String>,
    /// Where it is set that tools are to be: `NAME?ROLES?SPREAD`. None where it does not say.
    #[serde(skip)]
    pub(crate) placed: Option<Vec<String>>,
}

impl Node {
    /// The fields of its hash in Redis, but for the time and the process, which the script writes.
    pub(crate) fn fields(&self) -> Vec<(&'static str, String)> {
        vec![
            ("form", FORM.into()),
            ("status", self.status.word().into()),
            ("load", self.load.to_string()),
            ("maxLoad", self.max_load.to_string()),
            ("address", self.address.clone()),
            ("forwards", self.forwards.clone()),
            ("nodeKey", self.node_key.clone()),
            ("version", self.version.clone()),
            ("roles", self.roles.join(" ")),
            ("tools", self.tools.join(" ")),
            ("heartbeat", self.heartbeat_s.to_string()),
            ("placed", self.placed.as_ref().map(|placed| placed.join(" ")).unwrap_or_default()),
        ]
    }

    /// Reads a hash. None when it is none of ours, whoever wrote it: it is left as it is.
    pub(crate) fn read(id: &str, fields: &HashMap<String, String>, now_ms: u64) -> Option<Self> {
        let text = |key: &str| fields.get(key).filter(|text| text.len() <= TEXT_BYTES_MAX).cloned().unwrap_or_default();
        let number = |key: &str| fields.get(key)?.parse::<u64>().ok();
        let words = |key: &str| {
            let text = fields.get(key).map_or("", String::as_str);
            text.split(' ').filter(|word| !word.is_empty()).take(TOOLS_MAX).map(str::to_owned).collect()
        };
        Some(Self {
            id: id.to_owned(),
            status: Status::of(fields.get("status")?)?,
            heartbeat_age_ms: now_ms.saturating_sub(number("lastHeartbeat")?),
            // What is said beyond that was not said by an instance.
            heartbeat_s: number("heartbeat").filter(|seconds| *seconds <= HEARTBEAT_S_MAX).unwrap_or(0),
            load: number("load")?,
            max_load: number("maxLoad")?,
            address: text("address"),
            forwards: text("forwards"),
            node_key: text("nodeKey"),
            version: text("version"),
            roles: words("roles"),
            tools: words("tools"),
            placed: fields.contains_key("placed").then(|| words("placed")),
        })
    }

    /// Whether it should have had another heartbeat by now.
    pub(crate) fn is_late(&self) -> bool {
        self.heartbeat_s > 0 && self.heartbeat_age_ms > 2000 * self.heartbeat_s
    }
}

#[cfg(test)]
impl Node {
    /// One that runs, was heard just now, and says nothing else of itself.
    pub(crate) fn running(id: &str) -> Self {
        Self {
            id: id.into(),
            status: Status::Running,
            heartbeat_age_ms: 0,
            heartbeat_s: 5,
            load: 0,
            max_load: 100,
            address: String::new(),
            forwards: String::new(),
            node_key: String::new(),
            version: String::new(),
            roles: Vec::new(),
            tools: Vec::new(),
            placed: None,
        }
    }
}

/// Whether this can be the id of a node.
pub(crate) fn is_id(text: &str) -> bool {
    (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_reads_what_it_writes_and_leaves_what_it_does_not_know() {
        let node = Node {
            id: "a".into(),
            status: Status::Running,
            heartbeat_age_ms: 250,
            heartbeat_s: 5,
            load: 3,
            max_load: 200,
            address: "http://10.0.0.1:5000/mcp".into(),
            forwards: "10.0.0.1:5002".into(),
            node_key: "file:0a1b2c3d".into(),
            version: "0.1.0".into(),
            roles: vec!["search".into()],
            tools: vec!["echo".into(), "read_file".into()],
            placed: Some(vec!["echo??2".into()]),
        };
        let mut fields: HashMap<String, String> =
            node.fields().into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        fields.insert("lastHeartbeat".into(), "1000".into());
        fields.insert("of a later version".into(), "x".into());
        assert_eq!(Node::read("a", &fields, 1250), Some(node.clone()));
        let mut early = fields.clone();
        early.retain(|field, _| field != "heartbeat" && field != "placed");
        let early = Node::read("a", &early, 1250).expect("one of an earlier version");
        assert_eq!((early.heartbeat_s, early.placed, &early.id), (0, None, &node.id));
        for (said, read) in [(HEARTBEAT_S_MAX, HEARTBEAT_S_MAX), (HEARTBEAT_S_MAX + 1, 0), (u64::MAX, 0)] {
            let mut odd = fields.clone();
            odd.insert("heartbeat".into(), said.to_string());
            assert_eq!(
                Node::read("a", &odd, 1250).map(|odd| odd.heartbeat_s),
                Some(read),
                "no period is longer: {said}"
            );
        }
        for (key, value) in [("status", "asleep"), ("lastHeartbeat", "soon"), ("load", "-1")] {
            let broken = HashMap::from_iter(fields.clone().into_iter().chain([(key.to_owned(), value.to_owned())]));
            assert_eq!(Node::read("a", &broken, 1250), None, "{key}");
        }
        assert!(is_id("host-1.example_x") && !is_id("") && !is_id("a:b") && !is_id("a b"));
    }
}
