//! What `cluster.redis` names: one server, a master that sentinels know, or a cluster.

use std::{fmt, net::IpAddr};

const REDIS_PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26379;
const FORMS: &str = "write redis://HOST:PORT, redis+sentinel://HOST:PORT,HOST:PORT/MASTER or \
                     redis-cluster://HOST:PORT,HOST:PORT; with rediss in place of redis for TLS";

/// Which Redis it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Endpoint {
    pub(crate) kind: Kind,
    pub(crate) tls: bool,
    /// Where to begin: hosts and ports.
    pub(crate) hosts: Vec<(String, u16)>,
    /// The number of the database; 0 in a cluster.
    pub(crate) db: i64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Single,
    /// The master that the sentinels know by this name.
    Sentinel(String),
    Cluster,
}

impl Endpoint {
    /// # Errors
    /// Says what is wrong without repeating the text, which may hold a password.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let said = |wrong: &str| format!("{wrong}; {FORMS}");
        let (scheme, rest) = text.split_once("://").ok_or_else(|| said("this is no URL"))?;
        let (scheme, tls) = match scheme.strip_prefix("rediss") {
            Some(form) => (form, true),
            None => (scheme.strip_prefix("redis").ok_or_else(|| said("this scheme is none of Redis'"))?, false),
        };
        if rest.contains('@') {
            return Err(said(
                "a user and a password do not belong here, where they are shown: they are set by \
                             cluster.user, and cluster.password_file or BIGIRON_CLUSTER__PASSWORD",
            ));
        }
        if rest.contains(['?', '#']) {
            return Err(said("neither ? nor # means anything here"));
        }
        let (hosts, path) = rest.split_once('/').unwrap_or((rest, ""));
        let port = if scheme == "+sentinel" { SENTINEL_PORT } else { REDIS_PORT };
        let hosts: Vec<_> =
            hosts.split(',').map(|host| parse_host(host, port)).collect::<Option<_>>().ok_or_else(|| {
                said("a host is a name or an address, with or without a port, an IPv6 address in brackets")
            })?;
        let db = |text: &str| match text {
            "" => Ok(0),
            number => number
                .parse::<u16>()
                .map(i64::from)
                .map_err(|_| said("what follows the host is the number of a database")),
        };
        let (kind, db) = match scheme {
            "" if hosts.len() > 1 => return Err(said("a single server has one host")),
            "" => (Kind::Single, db(path)?),
            "-cluster" if !path.is_empty() => return Err(said("a cluster has one database, which has no number")),
            "-cluster" => (Kind::Cluster, 0),
            "+sentinel" => {
                let (master, number) = path.split_once('/').unwrap_or((path, ""));
                if master.is_empty() {
                    return Err(said("the name of the master is missing"));
                }
                (Kind::Sentinel(master.to_owned()), db(number)?)
            }
            _ => return Err(said("this scheme is none of Redis'")),
        };
        Ok(Self { kind, tls, hosts, db })
    }

    /// Whether nothing leaves this host.
    pub(crate) fn is_local(&self) -> bool {
        self.hosts.iter().all(|(host, _)| {
            host.eq_ignore_ascii_case("localhost") || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
        })
    }
}

/// The URL, with what it leaves out. There is never a password in it.
impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let form = match &self.kind {
            Kind::Single => "",
            Kind::Sentinel(_) => "+sentinel",
            Kind::Cluster => "-cluster",
        };
        write!(f, "redis{}{form}://", if self.tls { "s" } else { "" })?;
        for (at, (host, port)) in self.hosts.iter().enumerate() {
            let comma = if at == 0 { "" } else { "," };
            match host.contains(':') {
                true => write!(f, "{comma}[{host}]:{port}")?,
                false => write!(f, "{comma}{host}:{port}")?,
            }
        }
        if let Kind::Sentinel(master) = &self.kind {
            write!(f, "/{master}")?;
        }
        if self.db == 0 { Ok(()) } else { write!(f, "/{}", self.db) }
    }
}

fn parse_host(text: &str, port: u16) -> Option<(String, u16)> {
    let is_name = |host: &str| {
        !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
    };
    if let Some(rest) = text.strip_prefix('[') {
        let (address, rest) = rest.split_once(']')?;
        address.parse::<std::net::Ipv6Addr>().ok()?;
        return match rest.strip_prefix(':') {
            Some(port) => Some((address.to_owned(), port.parse().ok()?)),
            None if rest.is_empty() => Some((address.to_owned(), port)),
            None => None,
        };
    }
    let (host, port) = match text.split_once(':') {
        Some((host, port)) => (host, port.parse().ok().filter(|port| *port != 0)?),
        None => (text, port),
    };
    is_name(host).then(|| (host.to_owned(), port))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_is_read() {
        let parse = |text: &str| Endpoint::parse(text).expect(text);
        let host = |host: &str, port| (host.to_owned(), port);
        let single = parse("redis://cache.example");
        assert_eq!((single.kind, single.tls, single.db), (Kind::Single, false, 0));
        assert_eq!(single.hosts, [host("cache.example", 6379)]);
        let other = parse("rediss://[::1]:7000/3");
        assert_eq!((other.tls, other.db, other.hosts), (true, 3, vec![host("::1", 7000)]));
        let sentinels = parse("redis+sentinel://a,b:7/mymaster/2");
        assert_eq!((sentinels.kind, sentinels.db), (Kind::Sentinel("mymaster".into()), 2));
        assert_eq!(sentinels.hosts, [host("a", 26379), host("b", 7)]);
        let cluster = parse("rediss-cluster://127.0.0.1:7000,127.0.0.1:7001");
        assert!(cluster.kind == Kind::Cluster && cluster.tls && cluster.is_local());
        assert!(!parse("redis://127.0.0.1.example").is_local());
        for (text, whole) in [
            ("redis://a", "redis://a:6379"),
            ("rediss://[::1]:7000/3", "rediss://[::1]:7000/3"),
            ("redis+sentinel://a,b:7/m/2", "redis+sentinel://a:26379,b:7/m/2"),
            ("rediss-cluster://a:1,b:2", "rediss-cluster://a:1,b:2"),
        ] {
            assert_eq!(parse(text).to_string(), whole);
            assert_eq!(parse(whole), parse(text));
        }
    }

    #[test]
    fn what_is_none_is_told_without_being_repeated() {
        for (text, part) in [
            ("localhost:6379", "no URL"),
            ("http://a", "scheme"),
            ("redis-other://a", "scheme"),
            ("redis://:hunter2@a", "cluster.password_file"),
            ("redis://", "a host is"),
            ("redis://a:0", "a host is"),
            ("redis://a:99999", "a host is"),
            ("redis://a,b", "one host"),
            ("redis://a/x", "database"),
            ("redis-cluster://a/1", "one database"),
            ("redis+sentinel://a", "master is missing"),
            ("redis://a?x=1", "neither"),
        ] {
            let wrong = Endpoint::parse(text).expect_err(text);
            assert!(wrong.contains(part) && !wrong.contains("hunter2"), "{text}: {wrong}");
        }
    }
}
