//! Whether the user of Redis may do what instances do, tried when a connection is made: a right that is missing would
//! else be met at the first session, task or stop that needs it, and a script might be done by half. Nothing is changed
//! by it and nobody hears of it. How what is missing is told stands in `why`.

use std::{collections::BTreeSet, time::Duration};

use futures_util::future::join_all;
use redis::{Cmd, ErrorKind, RedisError, RedisResult, Script, ServerErrorKind, Value, cmd, from_redis_value};

use super::{
    connection::Connection,
    error::{LinkError, Refused},
    scan::ask_each_master,
    way::within,
};

/// What is asked of keys, by commands or in scripts; and `TIME`, which has none. What instances can do without is not
/// here: `RESTORE`, which only saves memory.
const COMMANDS: [&str; 36] = [
    "DEL",
    "DUMP",
    "EXISTS",
    "GET",
    "GETRANGE",
    "HDEL",
    "HEXISTS",
    "HGET",
    "HGETALL",
    "HINCRBY",
    "HMGET",
    "HSET",
    "HSETNX",
    "HSTRLEN",
    "INCR",
    "LPUSH",
    "LRANGE",
    "LREM",
    "LTRIM",
    "MGET",
    "PEXPIRE",
    "PTTL",
    "SADD",
    "SCARD",
    "SET",
    "SMEMBERS",
    "SREM",
    "TIME",
    "TYPE",
    "XADD",
    "XRANGE",
    "XREVRANGE",
    "ZADD",
    "ZCARD",
    "ZREM",
    "ZREMRANGEBYSCORE",
];
/// The same where the last stop removes keys.
const REMOVAL: &str = "UNLINK";
/// How often it is tried where nobody answers in time.
const TRIES: usize = 2;
/// While slots of a cluster move.
const MOVING: &str = "ASKING";

/// Which of the commands may not be run, of those that this Redis knows. One before 7.0 does not say.
const DENIED: &str = r"local denied = {}
if redis.acl_check_cmd then
  for at = 2, #ARGV do
    local is_known, may = pcall(redis.acl_check_cmd, ARGV[at], ARGV[1])
    if is_known and not may then table.insert(denied, ARGV[at]) end
  end
end
return denied";

/// What is tried.
pub(super) struct Tried<'a> {
    /// A key and a channel of ours, of which there are none.
    pub(super) absent: &'a str,
    /// Whether the last stop removes keys.
    pub(super) removes: bool,
}

/// Tries all that instances do, within this time for each step. Where nobody answers in time it is tried once more, as on
/// a connection to a cluster that was just made what is asked of each master may stay without an answer; and then it is
/// left, since one that does not answer is no reason not to use the others.
///
/// # Errors
/// Redis says that we may not do one of it.
pub(super) async fn try_all(connection: &Connection, tried: &Tried<'_>, limit: Duration) -> RedisResult<()> {
    for _ in 0..TRIES {
        if let Some(denied) = denied(connection, tried, limit).await? {
            return denied.first().map_or(Ok(()), |first| Err(no_permission(first)));
        }
    }
    Ok(())
}

/// The commands that we may not run: all else is tried at once, and then the script. In a cluster each node has its own
/// users: what is asked there of no key is tried at each master. Who may publish on a channel may listen to it. None
/// where nobody answers in time.
async fn denied(connection: &Connection, tried: &Tried<'_>, limit: Duration) -> RedisResult<Option<BTreeSet<String>>> {
    let Tried { absent, removes } = *tried;
    let is_cluster = matches!(connection, Connection::Cluster(_));
    let mut tries = vec![
        (At::Usual, asks("PEXPIRE", &[absent, "1"])),
        (At::Usual, asks("SCRIPT", &["LOAD", DENIED])),
        (At::Usual, asks("PUBLISH", &[absent, ""])),
        (At::Usual, asks("PUBSUB", &["NUMSUB", absent])),
    ];
    if is_cluster {
        tries.push((At::EachMaster, asks("CLUSTER", &["INFO"])));
    }
    if removes {
        tries.push((At::EachMaster, asks("SCAN", &["0", "COUNT", "1"])));
    }
    let told = join_all(tries.iter().map(|(at, ask)| one(connection.clone(), *at, ask, limit))).await;
    let told = told.into_iter().collect::<RedisResult<Vec<_>>>()?; // what one may not do counts, whoever is late
    if told.iter().any(Option::is_none) {
        return Ok(None);
    }
    let mut ask = asks("EVALSHA", &[Script::new(DENIED).get_hash(), "0", absent]);
    ask.arg(&COMMANDS);
    if removes {
        ask.arg(REMOVAL);
    }
    if is_cluster {
        ask.arg(MOVING);
    }
    let told = one(connection.clone(), At::EachMaster, &ask, limit).await?;
    Ok(told.map(|told| {
        let mut denied = BTreeSet::new();
        gather(told, &mut denied);
        denied
    }))
}

/// Where something is tried.
#[derive(Clone, Copy)]
enum At {
    /// Where it is always asked.
    Usual,
    EachMaster,
}

/// What one of them comes to. None where nobody answers in time: who does not answer one would not answer the others,
/// and an attempt's time is for all of them. That Redis is full or a replica is told where it matters.
async fn one(mut connection: Connection, at: At, ask: &Cmd, limit: Duration) -> RedisResult<Option<Value>> {
    let told = match at {
        At::Usual => within(limit, ask.query_async::<Value>(&mut connection)).await,
        At::EachMaster => within(limit, ask_each_master::<Value>(&mut connection, ask)).await,
    };
    match told {
        Err(error) if LinkError::of(&error) == LinkError::Refused(Refused::Denied) => Err(error),
        Err(error) if error.is_io_error() => Ok(None),
        told => Ok(Some(told.unwrap_or(Value::Nil))),
    }
}

fn asks(name: &str, arguments: &[&str]) -> Cmd {
    let mut ask = cmd(name);
    ask.arg(arguments);
    ask
}

/// What one server says, or each master of a cluster under its address.
fn gather(told: Value, denied: &mut BTreeSet<String>) {
    match told {
        Value::Map(each) => each.into_iter().for_each(|(_, told)| gather(told, denied)),
        told => denied.extend(from_redis_value::<Vec<String>>(told).unwrap_or_default()),
    }
}

/// As Redis says it itself.
fn no_permission(command: &str) -> RedisError {
    let said = format!("this user has no permissions to run the '{}' command", command.to_lowercase());
    (ErrorKind::Server(ServerErrorKind::NoPerm), "a right is missing", said).into()
}

/// The rule of an ACL that allows what Redis says is not allowed.
pub(super) fn rule(said: &str, prefix: &str) -> Option<String> {
    let command = said.split_once("run the '").and_then(|(_, rest)| rest.split_once('\''));
    match command {
        Some((command, _)) => Some(format!("+{command}")),
        None if said.contains("channel") => Some(format!("&{prefix}*")),
        None if said.contains("key") => Some(format!("~{prefix}*")),
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    /// The commands that stand in the code of a folder, but for its tests.
    fn written(folder: &Path, found: &mut BTreeSet<String>) {
        for entry in fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            if path.is_dir() && name != "tests" {
                written(&path, found);
            } else if name.ends_with(".rs") && name != "tests.rs" {
                let text = fs::read_to_string(&path).expect("text");
                let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or_default();
                for before in ["redis.call('", "redis.pcall('", "cmd(\""] {
                    let after =
                        code.split(before).skip(1).map(|rest| rest.split(['\'', '"']).next().unwrap_or_default());
                    let is_name = |name: &&str| !name.is_empty() && name.bytes().all(|b| b.is_ascii_uppercase());
                    found.extend(after.filter(is_name).map(str::to_owned));
                }
            }
        }
    }

    #[test]
    fn each_command_in_the_code_is_tried() {
        let mut found = BTreeSet::new();
        written(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found);
        // Those that are tried by themselves, what is asked of sentinels, and what instances can do without.
        let others = ["CLUSTER", "PUBLISH", "PUBSUB", "SCAN", "SENTINEL", "RESTORE"];
        let tried: BTreeSet<_> =
            COMMANDS.into_iter().chain(others).chain([REMOVAL, MOVING]).map(str::to_owned).collect();
        assert_eq!(found, tried);
    }

    #[test]
    fn the_rule_that_is_missing_is_read_from_what_redis_says() {
        for (said, is) in [
            ("User ann has no permissions to run the 'scan' command", Some("+scan")),
            ("this user has no permissions to run the 'cluster|info' command", Some("+cluster|info")),
            ("this user has no permissions to run the 'eval' command or its subcommand", Some("+eval")),
            ("No permissions to access a key", Some("~mcp:*")),
            ("this user has no permissions to access one of the keys used as arguments", Some("~mcp:*")),
            ("No permissions to access a channel", Some("&mcp:*")),
            ("of a later version", None),
        ] {
            assert_eq!(rule(said, "mcp:").as_deref(), is, "{said}");
        }
        let made = no_permission("HGETALL");
        assert_eq!(LinkError::of(&made), LinkError::Refused(Refused::Denied));
        assert_eq!(made.detail().and_then(|said| rule(said, "mcp:")).as_deref(), Some("+hgetall"));
    }
}
