//! `[cluster]`: which Redis, as whom, and what is done while it is away. Nothing of it counts while `redis` is empty.

use std::{fs, io::Read, path::Path, time::Duration};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::endpoint::Endpoint;
use crate::units::{Secret, is_placeholder};

/// The longest password or key that is read from a file.
const SECRET_BYTES_MAX: u64 = 64 * 1024;
/// The longest time between two heartbeats that can be set, in seconds.
pub(crate) const HEARTBEAT_S_MAX: u64 = 300;
/// The shortest key by which instances know each other.
const NODE_KEY_BYTES_MIN: usize = 32;

/// `[cluster]`: what instances share, and through which Redis.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// The Redis that instances share; empty when this one is alone.
    pub redis: String,
    /// User of Redis; empty is its default user.
    pub user: String,
    /// Password of the user. From the environment or a file, never from the command line.
    pub password: Secret,
    /// File with the password, when it is not above.
    pub password_file: String,
    /// File with the certificates (PEM) that Redis' own is verified with; empty takes those that the host trusts.
    pub ca_file: String,
    /// Whether a Redis on another host may be used without TLS or without a password.
    pub allow_unprotected: bool,
    /// Name of the deployment: instances of another name are not let in under the same prefix.
    pub id: String,
    /// What every key begins with.
    pub key_prefix: String,
    /// Name of this instance; empty makes one up.
    pub node_id: String,
    /// Where the other instances reach this one, as a URL; empty is the address that it listens on.
    pub advertise: String,
    /// What this instance is for, in words that tools are placed by.
    pub roles: Vec<String>,
    /// Address and port where other instances hand over calls of tools that are placed here; a port of 0 takes a free
    /// one.
    pub forward_listen: String,
    /// Where the other instances reach that, as `HOST:PORT`; empty is the address itself.
    pub forward_advertise: String,
    /// Calls of other instances that run here at once.
    pub forwards_max: usize,
    /// File with the key by which instances know each other; empty takes one that they share through Redis.
    pub node_key_file: String,
    /// For a command to Redis, in milliseconds.
    pub command_timeout_ms: u64,
    /// For a connection to Redis, in milliseconds.
    pub connect_timeout_ms: u64,
    /// Commands under way at once.
    pub in_flight_max: usize,
    /// Commands in a row without an answer in time after which Redis counts as away.
    pub failures_max: u32,
    /// Between two looks for a Redis that is away, in milliseconds.
    pub probe_ms: u64,
    /// Between two heartbeats of this instance, in seconds.
    pub heartbeat_s: u64,
    /// What rates do while Redis is away.
    pub rate_limit: WhileAway,
    /// What a start does while Redis is away.
    pub start: Start,
    /// What the stop of the last instance does with what clients have in Redis.
    pub last_stop: LastStop,
}

/// What a shared decision does while Redis is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum WhileAway {
    /// Each instance decides by what it has seen itself.
    Local,
    /// Nothing passes.
    Closed,
}

/// What a start does while Redis is away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Start {
    /// Serves what one instance can, and joins the others when Redis is there.
    Degraded,
    /// Does not start.
    Refuse,
}

/// What the stop of the last instance does with what clients have in Redis.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum LastStop {
    /// It stays for whichever instance starts next, and expires by itself.
    Keep,
    /// It is removed, and nothing of the deployment is left.
    Remove,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            redis: String::new(),
            user: String::new(),
            password: Secret::new(""),
            password_file: String::new(),
            ca_file: String::new(),
            allow_unprotected: false,
            id: "bigiron".into(),
            key_prefix: "mcp:".into(),
            node_id: String::new(),
            advertise: String::new(),
            roles: Vec::new(),
            forward_listen: "127.0.0.1:0".into(),
            forward_advertise: String::new(),
            forwards_max: 1000,
            node_key_file: String::new(),
            command_timeout_ms: 250,
            connect_timeout_ms: 1000,
            in_flight_max: 10_000,
            failures_max: 3,
            probe_ms: 1000,
            heartbeat_s: 5,
            rate_limit: WhileAway::Local,
            start: Start::Degraded,
            last_stop: LastStop::Keep,
        }
    }
}

impl Config {
    /// Whether there are other instances to share with.
    pub fn is_on(&self) -> bool {
        !self.redis.is_empty()
    }

    pub(crate) fn command_timeout(&self) -> Duration {
        Duration::from_millis(self.command_timeout_ms)
    }

    pub(crate) fn connect_timeout(&self) -> Duration {
        Duration::from_millis(self.connect_timeout_ms)
    }

    /// What is wrong, each with the setting that it is wrong with. Nothing that is told names what may be a secret.
    pub(crate) fn faults(&self) -> Vec<(&'static str, String)> {
        let mut faults = Vec::new();
        if !self.is_on() {
            return faults;
        }
        let has_password = !self.password.expose().is_empty() || !self.password_file.is_empty();
        match Endpoint::parse(&self.redis) {
            Err(wrong) => faults.push(("redis", wrong)),
            Ok(endpoint) if endpoint.is_local() || self.allow_unprotected => {}
            Ok(endpoint) if !endpoint.tls => faults.push((
                "redis",
                "this Redis is on another host, and the connection to it would be readable on the way; use \
                 rediss://, or set cluster.allow_unprotected = true when the network is meant to be trusted"
                    .into(),
            )),
            Ok(_) if !has_password => faults.push((
                "password_file",
                "this Redis is on another host, and asks nobody who they are; set cluster.password_file, or \
                 cluster.allow_unprotected = true when this is meant"
                    .into(),
            )),
            Ok(_) => {}
        }
        if !self.password.expose().is_empty() && !self.password_file.is_empty() {
            faults.push(("password_file", "the password is given as well; give one of both".into()));
        }
        if !self.user.is_empty() && !has_password {
            faults.push(("user", "a user has a password: set cluster.password_file as well".into()));
        }
        for (key, text, most) in [("id", &self.id, 64), ("key_prefix", &self.key_prefix, 64)] {
            if text.is_empty() || text.len() > most || !text.bytes().all(is_key_byte) {
                faults.push((key, format!("this is 1 to {most} letters, digits and '_', '-', '.', ':'")));
            }
        }
        let is_plain = |b: u8| is_key_byte(b) && b != b':';
        if self.node_id.len() > 64 || !self.node_id.bytes().all(is_plain) {
            faults.push(("node_id", "this is at most 64 letters, digits and '_', '-', '.'".into()));
        }
        if self.roles.iter().any(|role| role.is_empty() || role.len() > 64 || !role.bytes().all(is_plain)) {
            faults.push(("roles", "a role is 1 to 64 letters, digits and '_', '-', '.'".into()));
        }
        if !self.forward_advertise.is_empty() && !is_host_and_port(&self.forward_advertise) {
            faults.push(("forward_advertise", "this is no address; write it as HOST:PORT".into()));
        }
        if !self.advertise.is_empty() && !is_address(&self.advertise) {
            let wrong = "this is no address; write it as http://HOST:PORT or https://HOST:PORT, without a path";
            faults.push(("advertise", wrong.into()));
        }
        faults
    }

    /// The password, if there is one.
    ///
    /// # Errors
    /// The file cannot be read, or others than its owner can read it.
    pub(crate) fn read_password(&self) -> Result<Option<Secret>, String> {
        if !self.password.expose().is_empty() {
            return Ok(Some(self.password.clone()));
        }
        read_secret("cluster.password_file", &self.password_file)
    }

    /// The key by which instances know each other, if the settings name one.
    ///
    /// # Errors
    /// As of the password; or it is no key.
    pub(crate) fn read_node_key(&self) -> Result<Option<Secret>, String> {
        let key = read_secret("cluster.node_key_file", &self.node_key_file)?;
        let wrong = |what: &str| {
            format!(
                "cluster.node_key_file: {}: {what}; make one, for example with `openssl rand -hex 32`",
                self.node_key_file
            )
        };
        match &key {
            Some(key) if key.expose().len() < NODE_KEY_BYTES_MIN => {
                Err(wrong(&format!("a key has at least {NODE_KEY_BYTES_MIN} bytes")))
            }
            Some(key) if is_placeholder(key.expose().as_bytes()) => Err(wrong("this is a placeholder and no secret")),
            _ => Ok(key),
        }
    }
}

/// The content of a file of this setting; none where it names none.
fn read_secret(setting: &str, path: &str) -> Result<Option<Secret>, String> {
    if path.is_empty() {
        return Ok(None);
    }
    let path = Path::new(path);
    let said = |wrong: String| format!("{setting}: {}: {wrong}", path.display());
    let file = fs::File::open(path).map_err(|e| said(e.to_string()))?;
    let is_open_to_others = {
        use std::os::unix::fs::PermissionsExt;
        file.metadata().map_err(|e| said(e.to_string()))?.permissions().mode() & 0o077 != 0
    };
    if is_open_to_others {
        return Err(said("others than its owner can read it; make it theirs alone (chmod 600)".into()));
    }
    let mut text = String::new();
    file.take(SECRET_BYTES_MAX).read_to_string(&mut text).map_err(|e| said(e.to_string()))?;
    match text.trim_end_matches(['\n', '\r']) {
        "" => Err(said("it is empty".into())),
        text if text.contains(['\n', '\r']) => {
            Err(said("it has more than one line; it is to have one, the secret".into()))
        }
        secret => Ok(Some(Secret::new(secret))),
    }
}

fn is_key_byte(b: u8) -> bool {
    b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.' | b':')
}

fn is_host_and_port(text: &str) -> bool {
    text.parse::<http::uri::Authority>()
        .is_ok_and(|authority| !authority.as_str().contains('@') && authority.port_u16().is_some_and(|port| port != 0))
}

fn is_address(text: &str) -> bool {
    text.parse::<http::Uri>().is_ok_and(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https"))
            && uri.authority().is_some_and(|authority| !authority.as_str().contains('@'))
            && uri.path() == "/"
            && uri.query().is_none()
            && !text.ends_with('/')
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn faults(change: impl FnOnce(&mut Config)) -> Vec<&'static str> {
        let mut config = Config { redis: "redis://127.0.0.1".into(), ..Config::default() };
        change(&mut config);
        config.faults().into_iter().map(|(key, _)| key).collect()
    }

    #[test]
    fn what_could_be_overheard_or_entered_by_anybody_is_refused() {
        let at = |redis: &'static str, password: &'static str| {
            faults(|config| {
                config.redis = redis.into();
                config.password = Secret::new(password);
            })
        };
        assert_eq!(at("redis://127.0.0.1", ""), [""; 0]);
        assert_eq!(at("redis://localhost:7000", ""), [""; 0]);
        assert_eq!(at("redis://10.0.0.7", "x"), ["redis"]);
        assert_eq!(at("rediss://10.0.0.7", ""), ["password_file"]);
        assert_eq!(at("rediss://10.0.0.7", "x"), [""; 0]);
        assert_eq!(at("redis+sentinel://127.0.0.1:1,10.0.0.7:1/m", "x"), ["redis"]);
        let meant = faults(|config| {
            config.redis = "redis://10.0.0.7".into();
            config.allow_unprotected = true;
        });
        assert_eq!(meant, [""; 0]);
    }

    #[test]
    fn names_are_plain() {
        for (key, change) in [
            ("id", (|c: &mut Config| c.id = String::new()) as fn(&mut Config)),
            ("key_prefix", |c| c.key_prefix = "a{b}".into()),
            ("node_id", |c| c.node_id = "a:b".into()),
            ("roles", |c| c.roles = vec!["a b".into()]),
            ("advertise", |c| c.advertise = "10.0.0.1:5000".into()),
            ("advertise", |c| c.advertise = "http://10.0.0.1:5000/mcp".into()),
            ("forward_advertise", |c| c.forward_advertise = "10.0.0.1".into()),
            ("forward_advertise", |c| c.forward_advertise = "http://10.0.0.1:5002".into()),
            ("user", |c| c.user = "u".into()),
        ] {
            assert_eq!(faults(change), [key]);
        }
        assert_eq!(faults(|c| c.advertise = "https://a.example:5000".into()), [""; 0]);
        let off = Config { key_prefix: String::new(), ..Config::default() };
        assert!(off.faults().is_empty(), "what is off is not looked at");
    }

    #[test]
    fn a_password_comes_from_a_file_of_its_owner() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        fs::write(file.path(), "s3cret\n").expect("written");
        let config = Config { password_file: file.path().display().to_string(), ..Config::default() };
        let mode = |mode| fs::set_permissions(file.path(), fs::Permissions::from_mode(mode)).expect("set");
        mode(0o600);
        assert_eq!(config.read_password().expect("read").expect("one").expose(), "s3cret");
        mode(0o644);
        assert!(config.read_password().expect_err("others read it").contains("chmod 600"));
        mode(0o600);
        fs::write(file.path(), "\n").expect("written");
        assert!(config.read_password().expect_err("empty").contains("empty"));
        let none = Config { password_file: "/nowhere/at/all".into(), ..Config::default() };
        assert!(none.read_password().expect_err("no file").contains("/nowhere/at/all"));
    }
}
