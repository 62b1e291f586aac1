//! Whether a cluster of Redis is there with all its parts. Its nodes go on alone for a while when one is down, and what is
//! asked of them says nothing of that one.

use std::collections::HashMap;

use redis::{ErrorKind, RedisResult, ServerErrorKind};

use super::{
    error::{LinkError, Refused},
    scan::{ask_each_master, size},
    way::Connection,
};

/// Nodes that are named; of more than this all may be meant.
const NAMED_MAX: usize = 3;

/// That each master with keys answers, and that none misses another one. Who may not ask goes on.
pub(super) async fn is_whole(connection: &mut Connection) -> RedisResult<()> {
    let mut ask = redis::cmd("CLUSTER");
    let told: HashMap<String, String> = match ask_each_master(connection, ask.arg("INFO")).await {
        Err(error) if LinkError::of(&error) == LinkError::Refused(Refused::Denied) => return Ok(()),
        told => told?,
    };
    // The client leaves those out that it has no connection to.
    let is_well = |info: &String| info.contains("cluster_state:ok") && size(info) == Some(told.len());
    if !told.is_empty() && told.values().all(is_well) {
        return Ok(());
    }
    let mut ask = redis::cmd("CLUSTER");
    // It is not known, or there is nobody to ask: then it is said without names.
    let nodes = ask.arg("NODES").query_async::<String>(connection).await.unwrap_or_default();
    let down = missing(&nodes, &told).join(", ");
    let down = if down.is_empty() { "it is not known which one yet".to_owned() } else { down };
    Err((ErrorKind::Server(ServerErrorKind::ClusterDown), "a node of the cluster is down", down).into())
}

/// The masters with keys that did not answer, as one of the others names them in `CLUSTER NODES`.
fn missing(nodes: &str, told: &HashMap<String, String>) -> Vec<String> {
    let address = |line: &str| {
        let fields: Vec<_> = line.split(' ').collect();
        let (at, flags) = (*fields.get(1)?, *fields.get(2)?);
        let is_master = flags.split(',').any(|flag| flag == "master") && fields.len() > 8;
        // HOST:PORT@PORT,NAME
        let (address, rest) = at.split_once('@').unwrap_or((at, ""));
        let (_, port) = address.rsplit_once(':')?;
        let name = rest.split(',').nth(1).map(|name| format!("{name}:{port}")).unwrap_or_default();
        (is_master && !told.contains_key(address) && !told.contains_key(&name)).then(|| address.to_owned())
    };
    nodes.lines().filter_map(address).take(NAMED_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_missing_is_named() {
        let nodes = "a 127.0.0.1:7000@17000 myself,master - 0 1 1 connected 0-5460\n\
                     b 127.0.0.1:7001@17001,redis-b master,fail? - 1 2 2 disconnected 5461-10922\n\
                     c 127.0.0.1:7002@17002,redis-c master - 0 3 3 connected 10923-16383\n\
                     d 127.0.0.1:7003@17003 slave,fail b 0 3 3 connected\n\
                     e 127.0.0.1:7004@17004 master,fail - 0 3 3 connected\n\
                     odd\n";
        let told = |of: &[&str]| of.iter().map(|of| ((*of).to_owned(), String::new())).collect();
        assert_eq!(missing(nodes, &told(&["127.0.0.1:7000", "redis-c:7002"])), ["127.0.0.1:7001"]);
        assert_eq!(missing("", &told(&[])), [""; 0]);
    }
}
