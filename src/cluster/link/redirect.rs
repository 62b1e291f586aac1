//! A cluster of Redis whose slots move. That a key is elsewhere is followed here and not by the client: it would send
//! `ASKING` and the command apart from each other, and with others on the same connection in between the word is lost on
//! them. And a pipeline would be sent on as a whole, where each command needs its own.

use std::time::Duration;

use futures_util::future::try_join_all;
use redis::{
    Cmd, ErrorKind, Pipeline, RedisError, RedisResult, ServerErrorKind, Value,
    aio::ConnectionLike,
    cluster_async::ClusterConnection,
    cluster_routing::{RoutingInfo, SingleNodeRoutingInfo},
};
use tokio::time::sleep;

/// How often "not here, but there" is followed.
const REDIRECTS_MAX: u32 = 5;
/// How often "not now" is waited for; after it the command's time is almost over.
const WAITS_MAX: u32 = 10;
/// And for how long each time.
const WAIT: Duration = Duration::from_millis(20);

/// Where a key is said to be.
struct There {
    host: String,
    port: u16,
    /// Only on its way there: who asks for it has to say so.
    is_asking: bool,
}

/// One command, sent to whoever has its key.
pub(super) async fn command(connection: &mut ClusterConnection, command: &Cmd) -> RedisResult<Value> {
    let (mut there, mut redirects, mut waits) = (None, 0, 0);
    loop {
        let error = match send(connection, command, there.take()).await {
            Ok(value) => match value.extract_error() {
                Ok(value) => return Ok(value),
                Err(error) => error,
            },
            Err(error) => error,
        };
        let is_redirect = matches!(error.kind(), ErrorKind::Server(ServerErrorKind::Moved | ServerErrorKind::Ask));
        let is_wait = matches!(
            error.kind(),
            ErrorKind::ClusterConnectionNotFound // it was not sent
                | ErrorKind::Server(ServerErrorKind::TryAgain | ServerErrorKind::ClusterDown | ServerErrorKind::MasterDown)
        );
        if is_redirect && redirects < REDIRECTS_MAX {
            redirects += 1;
            there = named(&error);
        } else if is_wait && waits < WAITS_MAX {
            waits += 1;
            sleep(WAIT).await;
        } else {
            return Err(error);
        }
    }
}

/// Several commands, each sent to whoever has its key. What the later ones come to does not depend on the earlier ones.
pub(super) async fn commands(connection: &ClusterConnection, pipeline: &Pipeline) -> RedisResult<Vec<Value>> {
    try_join_all(pipeline.cmd_iter().map(|one| {
        let mut connection = connection.clone();
        async move { command(&mut connection, one).await }
    }))
    .await
}

async fn send(connection: &mut ClusterConnection, command: &Cmd, there: Option<There>) -> RedisResult<Value> {
    let Some(There { host, port, is_asking }) = there else { return connection.req_packed_command(command).await };
    let node = SingleNodeRoutingInfo::ByAddress { host, port };
    if !is_asking {
        return connection.route_command(command.clone(), RoutingInfo::SingleNode(node)).await;
    }
    let mut both = Pipeline::new();
    both.add_command(redis::cmd("ASKING")).add_command(command.clone());
    let mut answers = connection.route_pipeline(both, 0, 2, node).await?;
    answers
        .pop()
        .ok_or_else(|| RedisError::from((ErrorKind::UnexpectedReturnType, "no answer to a command that was asked")))
}

fn named(error: &RedisError) -> Option<There> {
    let (address, _) = error.redirect_node()?;
    let (host, port) = address.rsplit_once(':')?;
    let is_asking = matches!(error.kind(), ErrorKind::Server(ServerErrorKind::Ask));
    Some(There { host: host.trim_matches(['[', ']']).to_owned(), port: port.parse().ok()?, is_asking })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_a_key_is_is_read_from_what_redis_says() {
        let of = |text: &str| {
            let value = redis::parse_redis_value(format!("-{text}\r\n").as_bytes()).expect("RESP");
            named(&value.extract_error().expect_err("an error")).map(|there| (there.host, there.port, there.is_asking))
        };
        assert_eq!(of("MOVED 3999 127.0.0.1:6381"), Some(("127.0.0.1".into(), 6381, false)));
        assert_eq!(of("ASK 3999 redis.example:6381"), Some(("redis.example".into(), 6381, true)));
        assert_eq!(of("ASK 3999 ::1:6381"), Some(("::1".into(), 6381, true)));
        assert_eq!(of("TRYAGAIN Multiple keys request during rehashing of slot"), None);
    }
}
