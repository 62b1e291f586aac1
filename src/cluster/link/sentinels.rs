//! Sentinels: who the master is, as most of them say and it says of itself; asked when a connection is made, and again and
//! again while there is one.

use std::{fmt, sync::Arc};

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use redis::{
    Client, ErrorKind, IntoConnectionInfo, RedisError, RedisResult, TlsMode,
    aio::MultiplexedConnection,
    sentinel::{SentinelClientBuilder, SentinelServerType},
};

use super::way::{Way, within};
use crate::cluster::endpoint::Kind;

/// A master, as its sentinels name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Master(Arc<str>);

impl Master {
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    pub(super) fn of(client: &Client) -> Self {
        Self(client.get_connection_info().addr().to_string().into())
    }
}

impl fmt::Display for Master {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The sentinels, over connections that are kept.
pub(super) struct Watchers<'a> {
    way: &'a Way,
    master: &'a str,
    kept: Vec<Option<MultiplexedConnection>>,
}

impl Watchers<'_> {
    /// The master that they name by now, where that is another one: more of them do than name this one, and it says of
    /// itself that it is one.
    pub(super) async fn other_than(&mut self, current: &Master) -> Result<Option<Master>, RedisError> {
        let Self { way, master, kept } = self;
        let asked = way.endpoint.hosts.iter().zip(kept).map(|(host, kept)| way.named_by(host, master, kept));
        let mut asked: FuturesUnordered<_> = asked.collect();
        let (mut named, mut failed) = (Vec::new(), None);
        while let Some(answer) = asked.next().await {
            match answer {
                Ok(one) => named.push(one),
                Err(error) => {
                    tracing::debug!(%error, "a sentinel did not say who the master of Redis is");
                    failed = worse(failed, error);
                }
            }
        }
        match failed {
            Some(error) if named.is_empty() => Err(error),
            _ if !is_outvoted(current, &named) => Ok(None),
            _ => Ok(way.master_client(master).await.map(|client| Master::of(&client)).ok().filter(|it| it != current)),
        }
    }
}

/// Whether more name another one. Where as many do, it stays: of sentinels that do not agree none is followed to and fro.
fn is_outvoted(current: &Master, named: &[Master]) -> bool {
    let votes = |of: &Master| named.iter().filter(|one| *one == of).count();
    named.iter().any(|one| votes(one) > votes(current))
}

/// The one of two errors that says more of what is wrong: one sentinel that is not there is no wrong setting.
fn worse(one: Option<RedisError>, other: RedisError) -> Option<RedisError> {
    let weight = |error: &RedisError| match error.kind() {
        ErrorKind::Io => 0,
        ErrorKind::InvalidClientConfig => 1,
        ErrorKind::MasterNameNotFoundBySentinel => 2,
        _ => 3,
    };
    Some(match one {
        Some(one) if weight(&one) >= weight(&other) => one,
        _ => other,
    })
}

impl Way {
    /// Whether a sentinel watches a master of this name, up or not. True also where none says.
    pub(super) async fn is_watched(&self, master: &str) -> bool {
        let mut ask = redis::cmd("SENTINEL");
        ask.arg("GET-MASTER-ADDR-BY-NAME").arg(master);
        for (host, port) in &self.endpoint.hosts {
            let answer = within(self.command / 4, async {
                let info = self.address(host, *port).into_connection_info()?;
                let mut connection = self.multiplexed(&self.client(info)?).await?;
                ask.query_async::<Option<Vec<String>>>(&mut connection).await
            });
            if let Ok(address) = answer.await {
                return address.is_some();
            }
        }
        true
    }

    /// Whom to ask who the master is, again and again; nobody where that is not up to sentinels.
    pub(super) fn watchers(&self) -> Option<Watchers<'_>> {
        let Kind::Sentinel(master) = &self.endpoint.kind else { return None };
        let kept = self.endpoint.hosts.iter().map(|_| None).collect();
        Some(Watchers { way: self, master, kept })
    }

    /// The master that one sentinel names, over the connection that is kept where there is one.
    async fn named_by(
        &self,
        (host, port): &(String, u16),
        master: &str,
        kept: &mut Option<MultiplexedConnection>,
    ) -> RedisResult<Master> {
        let mut ask = redis::cmd("SENTINEL");
        ask.arg("GET-MASTER-ADDR-BY-NAME").arg(master);
        let answer = within(self.connect / 2, async {
            let mut connection = match kept.take() {
                Some(connection) => connection,
                None => self.multiplexed(&self.client(self.address(host, *port).into_connection_info()?)?).await?,
            };
            let answer = ask.query_async::<Option<(String, u16)>>(&mut connection).await?;
            *kept = Some(connection);
            Ok(answer)
        });
        match answer.await? {
            Some((host, port)) => Ok(Master(self.address(&host, port).to_string().into())),
            None => Err((ErrorKind::MasterNameNotFoundBySentinel, "a sentinel knows no such master").into()),
        }
    }

    /// The master that most of the sentinels name, which says of itself that it is one. Each is asked apart, in half of the
    /// time of an attempt: who does not answer keeps no other from being heard.
    pub(super) async fn master_client(&self, master: &str) -> RedisResult<Client> {
        let hosts = &self.endpoint.hosts;
        let mut asked: FuturesUnordered<_> = hosts.iter().map(|host| self.client_by(host, master)).collect();
        let (mut named, mut failed) = (Vec::<(Client, usize)>::new(), None);
        while let Some(answer) = asked.next().await {
            let client = match answer {
                Ok(client) => client,
                Err(error) => {
                    tracing::debug!(%error, "a sentinel led to no master of Redis");
                    failed = worse(failed, error);
                    continue;
                }
            };
            let votes = match named.iter_mut().find(|(one, _)| Master::of(one) == Master::of(&client)) {
                Some((_, votes)) => {
                    *votes += 1;
                    *votes
                }
                None => {
                    named.push((client.clone(), 1));
                    1
                }
            };
            if votes > hosts.len() / 2 {
                return Ok(client);
            }
        }
        let most = named.into_iter().rev().max_by_key(|(_, votes)| *votes); // of equal ones the first to be named
        let none = || (ErrorKind::EmptySentinelList, "no sentinels are named").into();
        most.map(|(client, _)| client).ok_or_else(|| failed.unwrap_or_else(none))
    }

    async fn client_by(&self, host: &(String, u16), master: &str) -> RedisResult<Client> {
        let mut sentinel = self.sentinels(std::slice::from_ref(host), master)?.build()?;
        within(self.connect / 2, sentinel.async_get_client()).await
    }

    pub(super) fn sentinels(&self, hosts: &[(String, u16)], master: &str) -> RedisResult<SentinelClientBuilder> {
        let sentinels = hosts.iter().map(|(host, port)| self.address(host, *port));
        let mut builder = SentinelClientBuilder::new(sentinels, master, SentinelServerType::Master)?
            .set_client_to_redis_db(self.endpoint.db);
        if let Some(user) = &self.user {
            builder = builder.set_client_to_redis_username(user);
        }
        if let Some(password) = &self.password {
            builder = builder.set_client_to_redis_password(password.expose());
        }
        if self.endpoint.tls {
            builder =
                builder.set_client_to_redis_tls_mode(TlsMode::Secure).set_client_to_sentinel_tls_mode(TlsMode::Secure);
            if let Some(certificates) = &self.certificates {
                builder = builder
                    .set_client_to_redis_certificates(certificates.clone())
                    .set_client_to_sentinel_certificates(certificates.clone());
            }
        }
        Ok(builder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_master_is_left_when_more_sentinels_name_another_one() {
        let master = |name: &str| Master(name.into());
        let named = |names: &[&str]| names.iter().map(|name| master(name)).collect::<Vec<_>>();
        for (names, is) in [
            (&[][..], false),
            (&["a"], false),
            (&["b"], true),
            (&["a", "b"], false), // nobody knows
            (&["b", "a", "b"], true),
            (&["a", "b", "a"], false),
            (&["b", "c"], true),
        ] {
            assert_eq!(is_outvoted(&master("a"), &named(names)), is, "{names:?}");
        }
    }
}
