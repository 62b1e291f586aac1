//! Why Redis cannot be used, in words that say what to do. What can never come right by itself is told apart from an
//! outage: it is the settings that are wrong then, and the words name the one and what would be right.

use std::{sync::Arc, time::Duration};

use redis::{ErrorKind, RedisError, ServerErrorKind};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use super::{error::plain, rights};
use crate::cluster::endpoint::{Endpoint, Kind};

const PASSWORD: &str = "cluster.password_file (or BIGIRON_CLUSTER__PASSWORD)";

/// Why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Why {
    pub(super) text: String,
    /// It stays so until somebody changes something.
    pub(super) is_lasting: bool,
}

impl Why {
    /// Something that may be over in a moment.
    pub(super) fn passing(text: impl Into<String>) -> Self {
        Self { text: text.into(), is_lasting: false }
    }

    /// The same of a cluster, of which mostly a part is away and seldom all.
    pub(super) fn of_cluster(text: &str) -> Self {
        Self::passing(format!("a node of the cluster is down, or all of it ({text})"))
    }

    fn lasting(text: impl Into<String>) -> Self {
        Self { text: text.into(), is_lasting: true }
    }

    /// The sentinels have no master of this name that is up. In each failover that is so for a moment.
    pub(super) fn no_master(master: &str, is_known: bool) -> Self {
        let text = format!("the sentinels know no master {master:?} that is up");
        if is_known {
            return Self::passing(text);
        }
        Self::lasting(format!(
            "{text}, nor any of that name, which cluster.redis names after the hosts: write the name of `sentinel monitor`"
        ))
    }

    /// Why an attempt to connect failed. `user` is who we are to it; what only Redis can tell it is asked, for so long at
    /// most.
    pub(super) async fn of(
        error: &RedisError,
        endpoint: &Endpoint,
        user: Option<&str>,
        prefix: &str,
        patience: Duration,
    ) -> Self {
        let said = error.detail().unwrap_or_default();
        let is_single = endpoint.kind == Kind::Single;
        match error.kind() {
            ErrorKind::AuthenticationFailed => {
                let is_asked = !matches!(endpoint.kind, Kind::Sentinel(_)) && !endpoint.tls;
                if is_asked && user.is_none() && speaks(endpoint, PLAIN, b"+", patience).await {
                    return Self::lasting(format!(
                        "a password is set, and this Redis has none: take {PASSWORD} out, or give Redis that password"
                    ));
                }
                Self::lasting(format!(
                    "the password is wrong, or there is no such user (WRONGPASS): {PASSWORD} must be that of the user \
                     {:?} of Redis (cluster.user)",
                    user.unwrap_or("default")
                ))
            }
            ErrorKind::InvalidClientConfig if matches!(endpoint.kind, Kind::Sentinel(_)) => Self::lasting(
                "what is there is no sentinel: with redis+sentinel:// cluster.redis names sentinels, and 26379 is their \
                 usual port; a single server is redis://HOST:PORT",
            ),
            ErrorKind::Server(ServerErrorKind::Moved) if is_single => Self::lasting(
                "what is there is one of a cluster: cluster.redis is to be redis-cluster://HOST:PORT,HOST:PORT",
            ),
            ErrorKind::Server(ServerErrorKind::NoPerm) => Self::lasting(no_permission(said, endpoint, user, prefix)),
            _ if error.code() == Some("NOAUTH") => {
                Self::lasting(format!("Redis wants a password, and none is set (NOAUTH): set {PASSWORD}"))
            }
            _ if said.contains("DB index is out of range") => Self::lasting(format!(
                "this Redis has no database {}, which cluster.redis names after the host: it has those below its setting \
                 `databases`, 16 where nothing is set",
                endpoint.db
            )),
            _ if said.contains("cluster support disabled") => Self::lasting(
                "what is there is no cluster: cluster.redis is to be redis://HOST:PORT, or that Redis is to have \
                 `cluster-enabled yes`",
            ),
            _ if said.contains("unknown command") && is_single => Self::lasting(format!(
                "what is there does not have the commands of a Redis server; where sentinels listen, cluster.redis is to \
                 be redis+sentinel://HOST:PORT/MASTER ({})",
                plain(error)
            )),
            kind if is_of_the_line(kind) && endpoint.tls && speaks(endpoint, PLAIN, &PLAIN_WORDS, patience).await => {
                Self::lasting(format!(
                    "what is there speaks without TLS: cluster.redis is to name its port for TLS (`tls-port`), or to \
                     begin with redis in place of rediss ({})",
                    plain(error)
                ))
            }
            kind if is_of_the_line(kind) && !endpoint.tls && speaks(endpoint, &hello(), &TLS_WORDS, patience).await => {
                Self::lasting(format!(
                    "what is there speaks TLS: cluster.redis is to begin with rediss in place of redis, or to name its \
                     port without TLS (`port`) ({})",
                    plain(error)
                ))
            }
            // By TLS it cannot be asked by other words.
            kind if is_of_the_line(kind)
                && (endpoint.tls && kind == ErrorKind::Parse || is_other(endpoint, patience).await) =>
            {
                Self::lasting(format!(
                    "what answers there is not Redis: cluster.redis is to name the host and the port where Redis listens, \
                     mostly 6379 ({})",
                    plain(error)
                ))
            }
            kind if is_of_the_line(kind) && endpoint.tls && plain(error).contains("certificate") => {
                Self::lasting(format!(
                    "{}; its certificate is checked with those in cluster.ca_file, or those that the host trusts",
                    plain(error)
                ))
            }
            // That one names who is down.
            ErrorKind::Server(ServerErrorKind::ClusterDown) => Self::passing(plain(error)),
            _ if endpoint.kind == Kind::Cluster => Self::of_cluster(&plain(error)),
            _ => Self::passing(plain(error)),
        }
    }
}

/// What Redis said that a user may not, with the rule of its ACL that allows it.
fn no_permission(said: &str, endpoint: &Endpoint, user: Option<&str>, prefix: &str) -> String {
    let user = user.unwrap_or("default");
    let (said, rule) = match (said, rights::rule(said, prefix)) {
        ("", _) => ("it does not say what", String::new()),
        (said, None) => (said, String::new()),
        (said, Some(rule)) => {
            let at = if endpoint.kind == Kind::Cluster { "at each node of the cluster" } else { "in Redis" };
            (said, format!("; `ACL SETUSER {user} {rule}` {at} allows it"))
        }
    };
    let more = match endpoint.kind {
        Kind::Single => "",
        Kind::Sentinel(_) => ", and with sentinels to ask a server whether it is the master (`+role`)",
        Kind::Cluster => ", and in a cluster to ask who has which slots (`+cluster|slots +cluster|info`)",
    };
    format!(
        "the user {user:?} of Redis (cluster.user) may not do what is needed (NOPERM: {said}{rule}): it is to read and write \
         the keys and hear and tell on the channels that begin with cluster.key_prefix (`~{prefix}* &{prefix}*`), and to run \
         scripts (EVALSHA, SCRIPT LOAD){more}"
    )
}

/// Whether an error may come of speaking with or without TLS where the other is spoken.
fn is_of_the_line(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Io | ErrorKind::Parse | ErrorKind::ClusterConnectionNotFound)
}

/// What anybody may say to a Redis that has no TLS, and how its answer begins.
const PLAIN: &[u8] = b"PING\r\n";
const PLAIN_WORDS: [u8; 2] = [b'+', b'-'];
/// How the answer to a [`hello`] begins: of the handshake, or that there is to be none.
const TLS_WORDS: [u8; 2] = [0x16, 0x15];

/// How TLS begins. Nothing when it cannot be had, to which nobody answers.
fn hello() -> Vec<u8> {
    let mut hello = Vec::new();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let made = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    if let (Ok(made), Ok(name)) = (made, "localhost".try_into()) {
        // No certificate is looked at: it goes no further than this.
        let config = made.with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
        if let Ok(mut connection) = rustls::ClientConnection::new(Arc::new(config), name) {
            let _ = connection.write_tls(&mut hello); // to memory
        }
    }
    hello
}

/// Whether what the first host answers to this begins so.
async fn speaks(endpoint: &Endpoint, said: &[u8], words: &[u8], patience: Duration) -> bool {
    first_word(endpoint, said, patience).await.is_some_and(|first| words.contains(&first))
}

/// Whether the first host answers, and as no Redis does, with TLS or without.
async fn is_other(endpoint: &Endpoint, patience: Duration) -> bool {
    let first = first_word(endpoint, PLAIN, patience).await;
    !endpoint.tls && first.is_some_and(|first| !PLAIN_WORDS.contains(&first) && !TLS_WORDS.contains(&first))
}

/// How what the first host answers to this begins.
async fn first_word(endpoint: &Endpoint, said: &[u8], patience: Duration) -> Option<u8> {
    let (host, port) = endpoint.hosts.first()?;
    let asked = async {
        let mut stream = TcpStream::connect((host.as_str(), *port)).await?;
        stream.write_all(said).await?;
        stream.read_u8().await
    };
    timeout(patience, asked).await.ok()?.ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failover_is_no_wrong_setting() {
        let (known, unknown) = (Why::no_master("m", true), Why::no_master("m", false));
        assert!(!known.is_lasting && !known.text.contains("write"), "{known:?}");
        assert!(unknown.is_lasting && unknown.text.contains("sentinel monitor"), "{unknown:?}");
        assert!([known, unknown].iter().all(|why| why.text.contains("know no master \"m\" that is up")));
    }
}
