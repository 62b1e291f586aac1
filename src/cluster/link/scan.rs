//! All keys that match, page by page. In a cluster each master is asked for its own, by its address: no key says there
//! who has the others.

use std::collections::HashMap;

use redis::{
    Cmd, FromRedisValue, RedisResult,
    cluster_routing::{MultipleNodeRoutingInfo, RoutingInfo, SingleNodeRoutingInfo},
    cmd, from_redis_value,
};

use super::{Ask, Link, LinkError, connection::Connection};

/// Keys that one page looks at: Redis serves nobody else while it does.
const PAGE: usize = 500;

/// Whose keys are looked through.
#[derive(Clone, Debug)]
pub(super) enum Part {
    /// There is one server, which has them all.
    Whole,
    /// One master of a cluster.
    Master { host: String, port: u16 },
}

/// A look through all keys. What is there from its beginning to its end is found; what comes or moves meanwhile may not be.
#[derive(Debug)]
pub(crate) struct Scan {
    pattern: String,
    /// Those that are still to be asked; the last one is.
    parts: Vec<Part>,
    /// Where that one is to go on.
    cursor: u64,
}

impl Link {
    /// Begins to look through the keys that match a pattern, in which some signs have a meaning ([`literal`]).
    ///
    /// # Errors
    /// See [`LinkError`]. That a master of a cluster cannot be asked is one.
    pub(crate) async fn scan(&self, pattern: String) -> Result<Scan, LinkError> {
        let parts = if self.shared.way.is_cluster() { self.masters().await? } else { vec![Part::Whole] };
        Ok(Scan { pattern, parts, cursor: 0 })
    }

    /// The next keys, which may be none. `None` when all were looked through.
    ///
    /// # Errors
    /// See [`LinkError`].
    pub(crate) async fn next_page(&self, scan: &mut Scan) -> Result<Option<Vec<Vec<u8>>>, LinkError> {
        let Some(part) = scan.parts.last() else { return Ok(None) };
        let mut ask = cmd("SCAN");
        ask.arg(scan.cursor).arg("MATCH").arg(&scan.pattern).arg("COUNT").arg(PAGE);
        let (cursor, keys): (u64, Vec<Vec<u8>>) = self.ask(Ask::At(part, &ask)).await?;
        scan.cursor = cursor;
        if cursor == 0 {
            scan.parts.pop();
        }
        Ok(Some(keys))
    }

    /// All masters of a cluster that have keys.
    async fn masters(&self) -> Result<Vec<Part>, LinkError> {
        let told: HashMap<String, String> = self.ask(Ask::EachMaster(cmd("CLUSTER").arg("INFO"))).await?;
        // The client leaves those out that it has no connection to.
        let is_all = |told: &HashMap<String, String>| told.values().all(|info| size(info) == Some(told.len()));
        let of = |address: &String| {
            let (host, port) = address.rsplit_once(':')?;
            Some(Part::Master { host: host.to_owned(), port: port.parse().ok()? })
        };
        match told.keys().map(of).collect::<Option<Vec<_>>>() {
            Some(parts) if is_all(&told) => Ok(parts),
            Some(_) => Err(LinkError::Unknown("a part of the cluster does not answer")),
            None => Err(LinkError::Odd("a node of the cluster has no port".into())),
        }
    }
}

/// How many masters there are, as one of them says.
pub(super) fn size(info: &str) -> Option<usize> {
    info.lines().find_map(|line| line.strip_prefix("cluster_size:")?.trim_end().parse().ok())
}

/// Asks one part.
pub(super) async fn ask_at<T: FromRedisValue>(
    connection: &mut Connection,
    part: &Part,
    command: &Cmd,
) -> RedisResult<T> {
    let (Connection::Cluster(cluster), Part::Master { host, port }) = (&mut *connection, part) else {
        return command.query_async(connection).await;
    };
    let node = SingleNodeRoutingInfo::ByAddress { host: host.clone(), port: *port };
    let value = cluster.route_command(command.clone(), RoutingInfo::SingleNode(node)).await?;
    Ok(from_redis_value(value.extract_error()?)?)
}

/// Asks each master, and returns what each says under its address.
pub(super) async fn ask_each_master<T: FromRedisValue>(connection: &mut Connection, command: &Cmd) -> RedisResult<T> {
    let Connection::Cluster(cluster) = connection else { return command.query_async(connection).await };
    let masters = RoutingInfo::MultiNode((MultipleNodeRoutingInfo::AllMasters, None));
    let value = cluster.route_command(command.clone(), masters).await?;
    Ok(from_redis_value(value.extract_error()?)?)
}

/// A text as a pattern that matches nothing else.
pub(crate) fn literal(text: &str) -> String {
    let mut pattern = String::with_capacity(text.len());
    for sign in text.chars() {
        if matches!(sign, '*' | '?' | '[' | ']' | '\\') {
            pattern.push('\\');
        }
        pattern.push(sign);
    }
    pattern
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_matches_itself() {
        assert_eq!(literal("mcp:"), "mcp:");
        assert_eq!(literal(r"a*b?c[d]e\f"), r"a\*b\?c\[d\]e\\f");
    }

    #[test]
    fn how_many_masters_there_are_is_read() {
        assert_eq!(size("cluster_state:ok\r\ncluster_size:3\r\ncluster_known_nodes:6\r\n"), Some(3));
        assert_eq!(size("cluster_state:ok\r\n"), None);
    }
}
