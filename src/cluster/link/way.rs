//! How Redis is reached: one server, the master that sentinels name, or a cluster. One attempt each time it is asked;
//! when to try again is not decided here.

use std::{fmt, sync::Arc};

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo, Pipeline,
    RedisConnectionInfo, RedisError, RedisFuture, RedisResult, ServerErrorKind, TlsCertificates, TlsMode, Value,
    aio::{ConnectionLike, MultiplexedConnection, PubSub},
    cluster::ClusterClient,
    cluster_async::ClusterConnection,
    sentinel::{SentinelClientBuilder, SentinelServerType},
};
use tokio::time::timeout;

use super::{
    error::plain,
    parts, redirect,
    rights::{self, Tried},
    why::Why,
};
use crate::{
    cluster::{
        config::{Config, LastStop},
        endpoint::{Endpoint, Kind},
    },
    units::Secret,
};

/// Commands that wait in a connection to be written; over it they wait to get there, within their time.
const WRITE_QUEUE: usize = 1024;

/// An attempt at a cluster connects to the nodes that are configured and then to all that they name, and waits for the slowest
/// each time: one on a host that answers nothing is not to take the time of all.
const CONNECTS_OF_AN_ATTEMPT: u32 = 3;

/// How to get a connection.
pub(super) struct Way {
    endpoint: Endpoint,
    user: Option<String>,
    password: Option<Secret>,
    certificates: Option<TlsCertificates>,
    connect: std::time::Duration,
    command: std::time::Duration,
    /// What is looked at to see whether Redis answers: a key, so that in a cluster one node is asked and not all.
    probed_key: String,
    prefix: String,
    /// Whether the last stop removes keys.
    removes: bool,
}

impl fmt::Debug for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Way").field("endpoint", &self.endpoint).finish_non_exhaustive()
    }
}

/// A connection, cheap to clone: all clones share it.
#[derive(Clone)]
pub(super) enum Connection {
    Single(MultiplexedConnection),
    Cluster(ClusterConnection),
}

impl ConnectionLike for Connection {
    fn req_packed_command<'a>(&'a mut self, command: &'a Cmd) -> RedisFuture<'a, Value> {
        match self {
            Self::Single(connection) => connection.req_packed_command(command),
            Self::Cluster(connection) => Box::pin(redirect::command(connection, command)),
        }
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        pipeline: &'a Pipeline,
        offset: usize,
        count: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        match self {
            Self::Single(connection) => connection.req_packed_commands(pipeline, offset, count),
            Self::Cluster(connection) => {
                if pipeline.is_transaction() {
                    return connection.req_packed_commands(pipeline, offset, count);
                }
                Box::pin(async move {
                    let answers = redirect::commands(connection, pipeline).await?;
                    Ok(answers.into_iter().skip(offset).take(count).collect())
                })
            }
        }
    }

    fn get_db(&self) -> i64 {
        match self {
            Self::Single(connection) => connection.get_db(),
            Self::Cluster(connection) => connection.get_db(),
        }
    }
}

/// What an attempt came to.
pub(super) struct Reached {
    pub(super) connection: Connection,
    /// Where it goes, if that is up to sentinels.
    pub(super) master: Option<Master>,
    /// Which part of a cluster does not answer, where that was looked at.
    pub(super) missing: Option<RedisError>,
}

/// A master, as its sentinels name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Master(Arc<str>);

impl Master {
    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    fn of(client: &Client) -> Self {
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
    /// # Errors
    /// A setting is wrong, or a file cannot be read.
    pub(super) fn new(config: &Config) -> Result<Self, String> {
        let certificates = match config.ca_file.as_str() {
            "" => None,
            path => {
                let pem = std::fs::read(path).map_err(|e| format!("cluster.ca_file: {path}: {e}"))?;
                Some(TlsCertificates { client_tls: None, root_cert: Some(pem) })
            }
        };
        let way = Self {
            endpoint: Endpoint::parse(&config.redis).map_err(|wrong| format!("cluster.redis: {wrong}"))?,
            user: (!config.user.is_empty()).then(|| config.user.clone()),
            password: config.read_password()?,
            certificates,
            connect: config.connect_timeout(),
            command: config.command_timeout(),
            probed_key: format!("{}cluster", config.key_prefix),
            prefix: config.key_prefix.clone(),
            removes: config.last_stop == LastStop::Remove,
        };
        way.clients().map_err(|error| format!("cluster: {}", plain(&error)))?; // certificates are read here
        Ok(way)
    }

    /// Where it leads, as a URL; there is no secret in it.
    pub(super) fn url(&self) -> String {
        self.endpoint.to_string()
    }

    /// Why an attempt failed. Soon: until then nobody knows that Redis is away.
    /// `was_up`: by these settings it was there before.
    pub(super) async fn why(&self, error: &RedisError, was_up: bool) -> Why {
        if let (ErrorKind::MasterNameNotFoundBySentinel, Kind::Sentinel(master)) = (error.kind(), &self.endpoint.kind) {
            return Why::no_master(master, was_up || self.is_watched(master).await);
        }
        Why::of(error, &self.endpoint, self.user.as_deref(), &self.prefix, self.command / 2).await
    }

    /// Why commands fail, as far as they tell.
    pub(super) fn outage(&self, text: String) -> Why {
        if self.is_cluster() { Why::of_cluster(&text) } else { Why::passing(text) }
    }

    /// Whether a sentinel watches a master of this name, up or not. True also where none says.
    async fn is_watched(&self, master: &str) -> bool {
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

    pub(super) fn is_sentinel(&self) -> bool {
        matches!(self.endpoint.kind, Kind::Sentinel(_))
    }

    pub(super) fn is_cluster(&self) -> bool {
        self.endpoint.kind == Kind::Cluster
    }

    /// One attempt, in its time: a connection that Redis has answered on. With `is_instance` only where all is allowed that
    /// instances do; with `is_back` it is looked whether a part of a cluster is missing.
    pub(super) async fn connect(&self, is_instance: bool, is_back: bool) -> Result<Reached, RedisError> {
        within(self.connect, async {
            let (mut connection, master) = match &self.endpoint.kind {
                Kind::Cluster => (Connection::Cluster(self.cluster()?.get_async_connection().await?), None),
                _ => {
                    let (client, master) = self.server(0).await?;
                    (Connection::Single(self.multiplexed(&client).await?), master)
                }
            };
            self.probe(&mut connection).await?;
            if self.endpoint.kind == Kind::Single {
                self.is_no_node(&mut connection).await?;
            }
            let missing = if is_back { self.missing(&connection).await } else { None };
            // Those at what is missing cannot be tried, and at the others they were.
            if is_instance && missing.is_none() {
                let tried = Tried { absent: &format!("{}:absent", self.probed_key), removes: self.removes };
                rights::try_all(&connection, &tried, self.command).await?;
            }
            Ok(Reached { connection, master, missing })
        })
        .await
    }

    /// Which part of a cluster is missing, if one is.
    pub(super) async fn missing(&self, connection: &Connection) -> Option<RedisError> {
        match self.is_cluster() {
            true => within(self.command, parts::is_whole(&mut connection.clone())).await.err(),
            false => None,
        }
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
    async fn master_client(&self, master: &str) -> RedisResult<Client> {
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

    /// The server for a single connection.
    async fn server(&self, turn: usize) -> RedisResult<(Client, Option<Master>)> {
        let Kind::Sentinel(master) = &self.endpoint.kind else { return Ok((self.client_of(turn)?, None)) };
        let client = self.master_client(master).await?;
        let master = Master::of(&client);
        Ok((client, Some(master)))
    }

    /// Whether Redis answers on this connection, in the time of a command: and whether it says there whose the keys are.
    pub(super) async fn probe(&self, connection: &mut Connection) -> Result<bool, RedisError> {
        let mut ask = redis::cmd("EXISTS");
        ask.arg(&self.probed_key);
        within(self.command, ask.query_async(connection)).await
    }

    /// That a single server is none of a cluster: the one that has the slot of the key that is looked at answers as if it
    /// were alone, and refuses what has keys elsewhere. Who may not ask goes on.
    async fn is_no_node(&self, connection: &mut Connection) -> Result<(), RedisError> {
        let mut ask = redis::cmd("CLUSTER");
        ask.arg("INFO");
        match within(self.command, ask.query_async::<String>(connection)).await {
            Ok(told) if told.contains("cluster_state:") => {
                Err((ErrorKind::Server(ServerErrorKind::Moved), "some of the keys are elsewhere").into())
            }
            _ => Ok(()),
        }
    }

    /// A connection for subscriptions. In a cluster every node has all messages: `turn` says which is asked, so that
    /// one that is gone is not asked for ever.
    pub(super) async fn subscriber(&self, turn: usize) -> Result<(PubSub, Option<Master>), RedisError> {
        within(self.connect, async {
            let (client, master) = self.server(turn).await?;
            Ok((client.get_async_pubsub().await?, master))
        })
        .await
    }

    async fn multiplexed(&self, client: &Client) -> RedisResult<MultiplexedConnection> {
        // The time of a command is kept by the link, which also counts the wait for its turn.
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.connect))
            .set_response_timeout(None)
            .set_pipeline_buffer_size(WRITE_QUEUE);
        client.get_multiplexed_async_connection_with_config(&config).await
    }

    fn address(&self, host: &str, port: u16) -> ConnectionAddr {
        match self.endpoint.tls {
            false => ConnectionAddr::Tcp(host.to_owned(), port),
            true => ConnectionAddr::TcpTls { host: host.to_owned(), port, insecure: false, tls_params: None },
        }
    }

    fn info(&self, (host, port): &(String, u16)) -> RedisResult<ConnectionInfo> {
        let mut settings = RedisConnectionInfo::default().set_db(self.endpoint.db).set_skip_set_lib_name();
        if let Some(user) = &self.user {
            settings = settings.set_username(user);
        }
        if let Some(password) = &self.password {
            settings = settings.set_password(password.expose());
        }
        Ok(self.address(host, *port).into_connection_info()?.set_redis_settings(settings))
    }

    fn client_of(&self, turn: usize) -> RedisResult<Client> {
        let hosts = &self.endpoint.hosts;
        self.client(self.info(&hosts[turn % hosts.len()])?)
    }

    fn client(&self, info: ConnectionInfo) -> RedisResult<Client> {
        match &self.certificates {
            Some(certificates) if self.endpoint.tls => Client::build_with_tls(info, certificates.clone()),
            _ => Client::open(info),
        }
    }

    fn sentinels(&self, hosts: &[(String, u16)], master: &str) -> RedisResult<SentinelClientBuilder> {
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

    fn cluster(&self) -> RedisResult<ClusterClient> {
        let nodes = self.endpoint.hosts.iter().map(|host| self.info(host)).collect::<RedisResult<Vec<_>>>()?;
        let mut builder = ClusterClient::builder(nodes)
            .retries(0) // see `redirect`; and what may have been done is not done again
            .connection_timeout(self.connect / CONNECTS_OF_AN_ATTEMPT)
            .response_timeout(self.command)
            .overall_response_timeout(Some(self.command));
        if let (true, Some(certificates)) = (self.endpoint.tls, &self.certificates) {
            builder = builder.certs(certificates.clone());
        }
        builder.build()
    }

    /// Whether clients can be made of the settings.
    fn clients(&self) -> RedisResult<()> {
        match &self.endpoint.kind {
            Kind::Single => self.client_of(0).map(drop),
            Kind::Sentinel(master) => self.sentinels(&self.endpoint.hosts, master)?.build().map(drop),
            Kind::Cluster => self.cluster().map(drop),
        }
    }
}

pub(super) async fn within<T>(
    limit: std::time::Duration,
    ask: impl Future<Output = RedisResult<T>>,
) -> Result<T, RedisError> {
    match timeout(limit, ask).await {
        Ok(answer) => answer,
        Err(_) => {
            Err(std::io::Error::new(std::io::ErrorKind::TimedOut, format!("no answer within {} ms", limit.as_millis()))
                .into())
        }
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
