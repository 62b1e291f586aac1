//! How Redis is reached: one server, the master that sentinels name, or a cluster. One attempt each time it is asked;
//! when to try again is not decided here. What is asked of sentinels for it is `sentinels`' business.

use std::fmt;

use redis::{
    AsyncConnectionConfig, Client, ConnectionAddr, ConnectionInfo, ErrorKind, IntoConnectionInfo, RedisConnectionInfo,
    RedisError, RedisResult, ServerErrorKind, TlsCertificates,
    aio::{MultiplexedConnection, PubSub},
    cluster::ClusterClient,
};
use tokio::time::timeout;

use super::{
    connection::Connection,
    error::plain,
    parts,
    rights::{self, Tried},
    sentinels::Master,
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
    pub(super) endpoint: Endpoint,
    pub(super) user: Option<String>,
    pub(super) password: Option<Secret>,
    pub(super) certificates: Option<TlsCertificates>,
    pub(super) connect: std::time::Duration,
    pub(super) command: std::time::Duration,
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

/// What an attempt came to.
pub(super) struct Reached {
    pub(super) connection: Connection,
    /// Where it goes, if that is up to sentinels.
    pub(super) master: Option<Master>,
    /// Which part of a cluster does not answer, where that was looked at.
    pub(super) missing: Option<RedisError>,
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

    pub(super) async fn multiplexed(&self, client: &Client) -> RedisResult<MultiplexedConnection> {
        // The time of a command is kept by the link, which also counts the wait for its turn.
        let config = AsyncConnectionConfig::new()
            .set_connection_timeout(Some(self.connect))
            .set_response_timeout(None)
            .set_pipeline_buffer_size(WRITE_QUEUE);
        client.get_multiplexed_async_connection_with_config(&config).await
    }

    pub(super) fn address(&self, host: &str, port: u16) -> ConnectionAddr {
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

    pub(super) fn client(&self, info: ConnectionInfo) -> RedisResult<Client> {
        match &self.certificates {
            Some(certificates) if self.endpoint.tls => Client::build_with_tls(info, certificates.clone()),
            _ => Client::open(info),
        }
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
