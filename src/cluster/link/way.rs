//! How Redis is reached: one server, the master that sentinels name, or a cluster. One attempt each time it is asked;
//! when to try again is not decided here.

use std::fmt;

use redis::{
    AsyncConnectionConfig, Client, Cmd, ConnectionAddr, ConnectionInfo, IntoConnectionInfo, Pipeline,
    RedisConnectionInfo, RedisError, RedisFuture, RedisResult, TlsCertificates, TlsMode, Value,
    aio::{ConnectionLike, MultiplexedConnection, PubSub},
    cluster::ClusterClient,
    cluster_async::ClusterConnection,
    sentinel::{SentinelClientBuilder, SentinelServerType},
};
use tokio::time::timeout;

use super::{error::plain, redirect};
use crate::{
    cluster::{
        config::Config,
        endpoint::{Endpoint, Kind},
    },
    units::Secret,
};

/// Commands that wait in a connection to be written; over it they wait to get there, within their time.
const WRITE_QUEUE: usize = 1024;

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
        };
        way.clients().map_err(|error| format!("cluster: {}", plain(&error)))?; // certificates are read here
        Ok(way)
    }

    pub(super) fn is_sentinel(&self) -> bool {
        matches!(self.endpoint.kind, Kind::Sentinel(_))
    }

    /// One attempt, in its time: a connection that Redis has answered on.
    pub(super) async fn connect(&self) -> Result<Connection, RedisError> {
        within(self.connect, async {
            let mut connection = match &self.endpoint.kind {
                Kind::Single => Connection::Single(self.multiplexed(&self.client_of(0)?).await?),
                Kind::Sentinel(master) => {
                    let mut sentinels = self.sentinels(master)?.build()?;
                    Connection::Single(self.multiplexed(&sentinels.async_get_client().await?).await?)
                }
                Kind::Cluster => Connection::Cluster(self.cluster()?.get_async_connection().await?),
            };
            self.probe(&mut connection).await?;
            Ok(connection)
        })
        .await
    }

    /// Whether Redis answers on this connection, in the time of a command.
    pub(super) async fn probe(&self, connection: &mut Connection) -> Result<(), RedisError> {
        let mut ask = redis::cmd("EXISTS");
        ask.arg(&self.probed_key);
        within(self.command, ask.query_async(connection)).await
    }

    /// A connection for subscriptions. In a cluster every node has all messages: `turn` says which is asked, so that
    /// one that is gone is not asked for ever.
    pub(super) async fn subscriber(&self, turn: usize) -> Result<PubSub, RedisError> {
        within(self.connect, async {
            let client = match &self.endpoint.kind {
                Kind::Sentinel(master) => self.sentinels(master)?.build()?.async_get_client().await?,
                _ => self.client_of(turn)?,
            };
            client.get_async_pubsub().await
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
        let info = self.info(&hosts[turn % hosts.len()])?;
        match &self.certificates {
            Some(certificates) if self.endpoint.tls => Client::build_with_tls(info, certificates.clone()),
            _ => Client::open(info),
        }
    }

    fn sentinels(&self, master: &str) -> RedisResult<SentinelClientBuilder> {
        let sentinels = self.endpoint.hosts.iter().map(|(host, port)| self.address(host, *port));
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
            .connection_timeout(self.connect)
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
            Kind::Sentinel(master) => self.sentinels(master)?.build().map(drop),
            Kind::Cluster => self.cluster().map(drop),
        }
    }
}

async fn within<T>(limit: std::time::Duration, ask: impl Future<Output = RedisResult<T>>) -> Result<T, RedisError> {
    match timeout(limit, ask).await {
        Ok(answer) => answer,
        Err(_) => {
            Err(std::io::Error::new(std::io::ErrorKind::TimedOut, format!("no answer within {} ms", limit.as_millis()))
                .into())
        }
    }
}
