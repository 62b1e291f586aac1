//! What is allowed and yet weak: settings with which a server starts, and of which an operator should have thought.

use std::{fs::Metadata, net::IpAddr, os::unix::fs::MetadataExt, time::SystemTime};

use http::{Uri, uri::Authority};
use ipnet::IpNet;

use super::{Loaded, Tuning, listener_address, readable::readable};
use crate::{
    audit::{Arguments, Policy},
    identity::{
        Subject,
        keys::{self, Record},
    },
    tls::ClientCertificates,
};

/// Keys that are named; of more it is said how many.
const KEYS_NAMED_MAX: usize = 5;
/// Networks with fewer bits than these are no operator's own.
const PROXY_BITS_MIN: (u8, u8) = (8, 32);

/// A sentence for each.
/// `root` is the folder that the toolbox reads, where there is one.
pub(crate) fn weak(loaded: &Loaded, root: Option<&str>) -> Vec<String> {
    let tuning = &loaded.tuning;
    let mut weak = tuning.auth.weak();
    weak.extend(tuning.tls.weak());
    weak.extend(root.map(|root| readable(tuning, root.as_ref())).unwrap_or_default());
    weak.extend(of_any_issuer(tuning));
    weak.extend(for_nobody(tuning));
    weak.extend(behind_a_proxy(tuning));
    weak.extend(listener(loaded));
    weak.extend(admin_listener(loaded));
    weak.extend(forwards(tuning));
    weak.extend(instances(tuning));
    weak.extend(unknown_host(loaded));
    weak.extend(keys_for_ever(tuning));
    weak.extend(audit(loaded));
    weak.extend(trail(tuning));
    weak.extend(rates(loaded));
    weak.extend(tuning.server.trusted_proxies.iter().filter_map(|network| proxies(network)));
    weak.extend(tuning.server.allowed_origins.iter().filter_map(|origin| plain(origin)));
    weak
}

/// Names that two issuers may give to two people.
fn of_any_issuer(tuning: &Tuning) -> Vec<String> {
    let sources = [
        (tuning.auth.takes_keys(), format!("{:?} (API keys)", keys::ISSUER)),
        (tuning.auth.takes_tokens(), format!("{:?} (tokens)", tuning.auth.issuer)),
        (tuning.tls.client_certificates != ClientCertificates::Off, "the name of a CA (certificates)".into()),
    ];
    let sources: Vec<String> = sources.into_iter().filter_map(|(is_on, name)| is_on.then_some(name)).collect();
    if sources.len() < 2 {
        return Vec::new();
    }
    let sources = sources.join(" or ");
    let plain = tuning.tools.iter().filter_map(|(tool, config)| {
        let plain = config.subjects.iter().flatten().find_map(|subject| match subject {
            Subject::OfAny(subject) => Some(subject),
            Subject::Of(_) => None,
        });
        Some((tool, plain?))
    });
    plain
        .map(|(tool, subject)| {
            format!(
                "tools.{tool}.subjects has {subject:?}, which is whoever any issuer calls so; write \
                 {{ subject = {subject:?}, issuer = ISSUER }}, where ISSUER is {sources}"
            )
        })
        .collect()
}

/// Tools that ask for what certificates do not have, where nobody comes with anything else.
fn for_nobody(tuning: &Tuning) -> Vec<String> {
    if tuning.auth.is_on() {
        return Vec::new();
    }
    let asks = tuning.tools.iter().filter(|(_, config)| config.scopes_any.is_some() || config.groups.is_some());
    asks.map(|(tool, _)| {
        format!(
            "tools.{tool} asks for scopes or groups, which certificates do not have, and nothing else is taken: nobody has \
             this tool; name its subjects instead, or set auth.keys_file or auth.issuer"
        )
    })
    .collect()
}

/// Many callers who are one, since only the proxy in between shows a certificate.
fn behind_a_proxy(tuning: &Tuning) -> Option<String> {
    let proxies = &tuning.server.trusted_proxies;
    let is_shown = tuning.tls.is_on() && tuning.tls.client_certificates != ClientCertificates::Off;
    (is_shown && !proxies.is_empty() && !tuning.auth.is_on()).then(|| {
        format!(
            "server.trusted_proxies is {proxies:?}, and callers are known by certificates alone: all who come by such a \
             proxy are the one that its certificate names; set auth.keys_file or auth.issuer"
        )
    })
}

/// What others can reach and nothing limits.
fn listener(loaded: &Loaded) -> Vec<String> {
    let tuning = &loaded.tuning;
    let listen = &tuning.server.listen;
    if is_of_this_host(listen) {
        return Vec::new();
    }
    let mut weak = Vec::new();
    if !loaded.asks_who_calls() {
        weak.push(format!(
            "server.listen is {listen:?} and nobody is asked who they are: whoever reaches it may call every tool; set \
             auth.keys_file, auth.issuer, or tls.client_certificates to \"required\""
        ));
    }
    if !tuning.tls.is_on() {
        weak.push(format!(
            "server.listen is {listen:?} and [tls] is off: keys, tokens and answers can be read on the way; set \
             tls.certificate and tls.key, or have a proxy on this host do it"
        ));
    }
    if !tuning.rate_limit.enabled {
        weak.push(format!(
            "rate_limit.enabled is false and server.listen is {listen:?}: nothing slows down who guesses or floods; set it \
             to true"
        ));
    }
    weak
}

/// What others can reach and asks nobody but who changes something. It is started so with a word on the command line, which
/// may have been said for the endpoint alone.
fn admin_listener(loaded: &Loaded) -> Option<String> {
    let tuning = &loaded.tuning;
    let listen = &tuning.server.admin_listen;
    let deeds = if tuning.auth.is_on() {
        "keys and tokens that are sent to it can be read on the way"
    } else {
        "have kept results forgotten"
    };
    loaded.opens_admin_listener().then(|| {
        format!(
            "server.admin_listen is {listen:?}: whoever reaches it can read metrics and nodes, and {deeds}; let it be a \
             loopback address, or one of a network of the operators' own"
        )
    })
}

/// Calls that instances hand to each other, on a way that is not this host's own.
fn forwards(tuning: &Tuning) -> Vec<String> {
    let cluster = &tuning.cluster;
    let (listen, advertise) = (&cluster.forward_listen, &cluster.forward_advertise);
    if !cluster.is_on() || !tuning.tools.values().any(crate::tool::Config::is_placed) {
        return Vec::new();
    }
    let is_near = is_of_this_host(listen) && (advertise.is_empty() || is_of_this_host(advertise));
    let mut weak = Vec::new();
    if !is_near {
        weak.push(format!(
            "cluster.forward_listen is {listen:?}: what instances hand to each other can be read on the way, with arguments \
             and results; let it be a network of their own, or a tunnel"
        ));
    } else if !cluster.advertise.is_empty()
        && cluster.advertise.parse().is_ok_and(|url: Uri| !url.host().is_some_and(is_loopback))
    {
        weak.push(format!(
            "cluster.advertise is {:?} and cluster.forward_listen is {listen:?}: instances on other hosts cannot hand calls \
             over to this one; set cluster.forward_listen to an address that they reach",
            cluster.advertise
        ));
    }
    if !is_near && cluster.node_key_file.is_empty() {
        weak.push(
            "cluster.node_key_file is empty: who can read Redis can call every tool that is placed, as anybody; name a file"
                .into(),
        );
    }
    weak
}

/// What instances that share a Redis say to it and to each other of themselves.
fn instances(tuning: &Tuning) -> Vec<String> {
    let (cluster, listen) = (&tuning.cluster, &tuning.server.listen);
    if !cluster.is_on() {
        return Vec::new();
    }
    let mut weak = Vec::new();
    if cluster.key_prefix.ends_with(|last: char| last.is_ascii_alphanumeric()) {
        let prefix = &cluster.key_prefix;
        weak.push(format!(
            "cluster.key_prefix is {prefix:?}, and a key is then such as \"{prefix}cluster\": the separator is part of it; \
             write \"{prefix}:\""
        ));
    }
    if cluster.advertise.is_empty() && listener_address(listen).is_ok_and(|address| address.ip().is_unspecified()) {
        weak.push(format!(
            "cluster.advertise is empty and server.listen is {listen:?}, which is every address and none that others could \
             use: `bigiron nodes` shows it as where this instance is; set cluster.advertise to a URL as others reach it"
        ));
    }
    weak
}

/// Clients are sent to a name by which this server does not let itself be called, or to none that there is.
fn unknown_host(loaded: &Loaded) -> Option<String> {
    let tuning = &loaded.tuning;
    if !tuning.auth.takes_tokens() {
        return None; // whoever has an API key was told where to use it
    }
    let listen = &tuning.server.listen;
    let Some((url, host)) = tuning.auth.audience.iter().find_map(|url| Some((url, host_of(url)?))) else {
        return is_every_address(listen).then(|| {
            format!(
                "auth.audience has no URL and server.listen is {listen:?}: clients are told that as this server's address, \
                 and none can use it; put the URL that clients use first in auth.audience"
            )
        });
    };
    let own = (!is_every_address(listen)).then(|| listen.rsplit_once(':').map_or("", |(host, _)| host));
    let known = tuning.server.allowed_hosts.iter().map(String::as_str).chain(own);
    let knows =
        |name: &str| name.eq_ignore_ascii_case(host.as_str()) || bare(name).eq_ignore_ascii_case(bare(host.host()));
    (!is_loopback(host.host()) && !known.into_iter().any(knows)).then(|| {
        format!(
            "auth.audience has {url:?}, and server.allowed_hosts does not have {:?}: unless a proxy writes another Host, \
             who calls that URL is told 403; add it there",
            host.host()
        )
    })
}

/// The host and port of a URL.
fn host_of(url: &str) -> Option<Authority> {
    let uri: Uri = url.parse().ok()?;
    matches!(uri.scheme_str(), Some("http" | "https")).then(|| uri.authority().cloned()).flatten()
}

fn bare(host: &str) -> &str {
    host.trim_matches(['[', ']'])
}

fn is_every_address(listen: &str) -> bool {
    let host = listen.rsplit_once(':').map_or("", |(host, _)| host);
    bare(host).parse().is_ok_and(|address: IpAddr| address.to_canonical().is_unspecified())
}

/// Keys that are good until somebody thinks of revoking them.
fn keys_for_ever(tuning: &Tuning) -> Option<String> {
    if !tuning.auth.takes_keys() {
        return None;
    }
    // What is wrong with the file is said elsewhere.
    let endless: Vec<Record> =
        keys::list(tuning.auth.keys_file.as_ref()).ok()?.into_iter().filter(|key| key.expires.is_none()).collect();
    let named: Vec<&str> = endless.iter().take(KEYS_NAMED_MAX).map(|key| key.id.as_str()).collect();
    let more = endless.len() - named.len();
    let and_more = if more > 0 { format!(" and {more} more") } else { String::new() };
    (!endless.is_empty()).then(|| {
        format!(
            "{} has keys without an end: {}{and_more}; make keys with `bigiron key create --expires 90d`",
            tuning.auth.keys_file,
            named.join(", ")
        )
    })
}

/// Callers are known, and what they do is not kept, or only perhaps.
fn audit(loaded: &Loaded) -> Option<String> {
    let tuning = &loaded.tuning;
    if !loaded.asks_who_calls() {
        return None;
    }
    if tuning.audit.file.is_empty() {
        return Some("audit.file is empty: it is known who calls, and written down nowhere; name a file".into());
    }
    (tuning.audit.policy == Policy::BestEffort).then(|| {
        "audit.policy is \"best-effort\": calls are served while their lines cannot be written; \"required\" refuses them"
            .into()
    })
}

/// What is in the trail is for few.
fn trail(tuning: &Tuning) -> Vec<String> {
    let audit = &tuning.audit;
    if audit.file.is_empty() {
        return Vec::new();
    }
    let mut weak = Vec::new();
    if audit.arguments == Arguments::Full {
        weak.push(format!(
            "audit.arguments is \"full\": whatever callers send stands in {:?}, secrets too; \"hash\" says whether two \
             calls were alike",
            audit.file
        ));
    }
    let mode = std::fs::metadata(&audit.file).ok().filter(Metadata::is_file).map_or(0, |found| found.mode() & 0o777);
    if mode & 0o026 != 0 {
        let file = &audit.file;
        weak.push(format!(
            "audit.file {file:?} has the mode {mode:04o}: all can read who called what, or others can write it; chmod 600, \
             or 640 when its group is meant"
        ));
    }
    weak
}

/// Rates that are on and let everything pass.
fn rates(loaded: &Loaded) -> Vec<String> {
    let rates = &loaded.tuning.rate_limit;
    let mut weak = Vec::new();
    if rates.enabled && rates.per_ip.is_off() {
        weak.push(
            "rate_limit.per_ip is \"off\": nothing slows down who is not known, also not who guesses keys; write a rate \
             such as \"100 per 60s\""
                .into(),
        );
    }
    if rates.enabled && rates.per_caller.is_off() && loaded.asks_who_calls() {
        weak.push(
            "rate_limit.per_caller is \"off\": one caller can use up what belongs to all, but for tools with a rate of \
             their own; write a rate such as \"60 per 60s\""
                .into(),
        );
    }
    weak
}

/// A network that is believed about addresses, and that strangers are in.
fn proxies(text: &str) -> Option<String> {
    let network: IpNet = text.trim().parse().ok()?;
    let (bits, least) = match network {
        IpNet::V4(network) => (network.prefix_len(), PROXY_BITS_MIN.0),
        IpNet::V6(network) => (network.prefix_len(), PROXY_BITS_MIN.1),
    };
    (bits < least).then(|| {
        format!(
            "server.trusted_proxies has {text:?}: whoever is in it can take any address in X-Forwarded-For, and so escape \
             limits; name the proxies' own networks, each of {least} bits or more"
        )
    })
}

/// A page that anybody on the way can change.
fn plain(origin: &str) -> Option<String> {
    let host = origin.strip_prefix("http://")?;
    let host = match host.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => host,
        _ => host,
    };
    (!is_loopback(host)).then(|| {
        format!("server.allowed_origins has {origin:?}: who is on the way can change that page; let it be https://")
    })
}

fn is_of_this_host(listen: &str) -> bool {
    listen.rsplit_once(':').is_some_and(|(host, _)| is_loopback(host))
}

fn is_loopback(host: &str) -> bool {
    let host = bare(host);
    host.eq_ignore_ascii_case("localhost")
        || host.parse().is_ok_and(|address: IpAddr| address.to_canonical().is_loopback())
}

/// Keys that are in the file and open nothing any more are not weak, and are told, since somebody waits for them to work.
pub(crate) fn expired(tuning: &Tuning, now: SystemTime) -> Option<String> {
    let keys = keys::list(tuning.auth.keys_file.as_ref()).ok().filter(|_| tuning.auth.takes_keys())?;
    let over = |key: &&Record| key.expires.is_some_and(|expires| expires.time() <= now);
    let count = keys.iter().filter(over).count();
    (count > 0)
        .then(|| format!("{} has {count} keys that have expired; `bigiron key list` shows them", tuning.auth.keys_file))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{identity::Issued, rate::Rule};

    #[test]
    fn networks_that_strangers_are_in_are_too_wide() {
        for wide in ["0.0.0.0/0", "::/0", "0.0.0.0/1", "2000::/3", " 0.0.0.0/0 "] {
            assert!(proxies(wide).is_some(), "{wide}");
        }
        for narrow in ["10.0.0.0/8", "192.0.2.1", "192.0.2.1/32", "2001:db8::/32", "::1", "fd00:1:2::/48"] {
            assert_eq!(proxies(narrow), None, "{narrow}");
        }
    }

    #[test]
    fn a_name_that_two_issuers_may_give_is_told() {
        let ann = Subject::Of(Issued { subject: "ann".into(), issuer: keys::ISSUER.into() });
        let told = |subjects: Vec<Subject>, issuer: &str| {
            let mut tuning = Tuning::default();
            tuning.auth.keys_file = "keys.toml".into();
            tuning.auth.issuer = issuer.into();
            let tool = crate::tool::Config { subjects: Some(subjects), ..Default::default() };
            tuning.tools.insert("burn".into(), tool);
            of_any_issuer(&tuning).join("\n")
        };
        let weak = told(vec![ann.clone(), "bob".into()], "https://login.example");
        for part in ["tools.burn.subjects has \"bob\"", "\"bigiron:keys\" (API keys) or \"https://login.example\""] {
            assert!(weak.contains(part), "{weak}");
        }
        assert_eq!(told(vec![ann], "https://login.example"), "");
        assert_eq!(told(vec!["bob".into()], ""), "", "there is one issuer only");
    }

    #[test]
    fn rates_that_let_all_pass_and_trails_that_all_can_read_are_told() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("audit.log");
        std::fs::write(&file, "").expect("written");
        let told = |change: &dyn Fn(&mut Tuning)| {
            let mut tuning = Tuning::default();
            tuning.auth.keys_file = "keys.toml".into();
            tuning.audit.file = file.display().to_string();
            tuning.rate_limit.enabled = true;
            change(&mut tuning);
            let loaded = Loaded::from_program(tuning, crate::runtime::Host::read(), false).expect("settings");
            [trail(&loaded.tuning), rates(&loaded)].concat()
        };
        let chmod = |mode| std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).expect("set");
        chmod(0o640);
        assert_eq!(told(&|_| {}), Vec::<String>::new());
        for (change, expected) in [
            (&(|t: &mut Tuning| t.rate_limit.per_ip = Rule::OFF) as &dyn Fn(&mut Tuning), "rate_limit.per_ip"),
            (&|t| t.rate_limit.per_caller = Rule::OFF, "rate_limit.per_caller"),
            (&|t| t.audit.arguments = Arguments::Full, "audit.arguments"),
        ] {
            let weak = told(change);
            assert!(weak.len() == 1 && weak[0].starts_with(expected), "{weak:?}");
        }
        assert_eq!(told(&|t| (t.rate_limit.enabled, t.rate_limit.per_ip) = (false, Rule::OFF)), Vec::<String>::new());
        for mode in [0o644, 0o620, 0o602] {
            chmod(mode);
            assert!(told(&|_| {}).concat().contains("audit.file"), "{mode:o}");
        }
    }

    #[test]
    fn a_tool_that_no_certificate_opens_is_told() {
        let mut tuning = Tuning::default();
        tuning.tls.client_certificates = ClientCertificates::Required;
        let tool = crate::tool::Config { scopes_any: Some(vec!["a".into()]), ..Default::default() };
        tuning.tools.insert("burn".into(), tool);
        assert!(for_nobody(&tuning).concat().contains("tools.burn asks for scopes"));
        tuning.auth.keys_file = "keys.toml".into();
        assert_eq!(for_nobody(&tuning), Vec::<String>::new());
    }

    #[test]
    fn that_all_behind_a_proxy_are_its_certificate_is_told() {
        let told = |change: &dyn Fn(&mut Tuning)| {
            let mut tuning = Tuning::default();
            tuning.tls.certificate = "us.pem".into();
            tuning.tls.client_certificates = ClientCertificates::Required;
            tuning.server.trusted_proxies = vec!["10.0.0.0/8".into()];
            change(&mut tuning);
            behind_a_proxy(&tuning)
        };
        assert!(told(&|_| {}).is_some_and(|weak| weak.contains("10.0.0.0/8")));
        assert_eq!(told(&|tuning| tuning.auth.keys_file = "keys.toml".into()), None);
        assert_eq!(told(&|tuning| tuning.server.trusted_proxies.clear()), None);
        assert_eq!(told(&|tuning| tuning.tls.client_certificates = ClientCertificates::Off), None);
    }

    #[test]
    fn a_host_that_clients_are_sent_to_and_that_is_not_allowed_is_told() {
        let told = |listen: &str, audience: &str, allowed: &[&str]| {
            let mut tuning = Tuning::default();
            tuning.auth.keys_file = "keys.toml".into();
            tuning.auth.issuer = "https://login.example".into();
            tuning.auth.jwks_url = "https://login.example/keys".into();
            tuning.auth.audience = vec![audience.into()];
            tuning.server.listen = listen.into();
            tuning.server.allowed_hosts = allowed.iter().map(|&name| name.to_owned()).collect();
            let loaded = Loaded::from_program(tuning, crate::runtime::Host::read(), false).expect("settings");
            unknown_host(&loaded)
        };
        let url = "https://mcp.example.com/mcp";
        assert!(told("127.0.0.1:0", url, &[]).is_some_and(|weak| weak.contains("\"mcp.example.com\"")));
        assert!(told("0.0.0.0:0", url, &["other.example.com"]).is_some());
        assert!(told("0.0.0.0:0", "https://0.0.0.0/mcp", &[]).is_some());
        assert!(told("0.0.0.0:0", "ours", &[]).is_some_and(|weak| weak.contains("no URL")));
        assert_eq!(told("127.0.0.1:0", "ours", &[]), None);
        for name in ["MCP.example.com", "mcp.example.com:8443"] {
            assert_eq!(told("0.0.0.0:0", "https://mcp.example.com:8443/mcp", &[name]), None, "{name}");
        }
        assert_eq!(told("192.0.2.1:0", "https://192.0.2.1/mcp", &[]), None);
        assert_eq!(told("[2001:db8::1]:0", "https://[2001:db8::1]/mcp", &[]), None);
        assert_eq!(told("127.0.0.1:0", "http://localhost:5000/mcp", &[]), None);
    }

    #[test]
    fn an_address_that_is_none_and_a_prefix_without_its_end_are_told() {
        let told = |listen: &str, advertise: &str, prefix: &str, redis: &str| {
            let mut tuning = Tuning::default();
            tuning.server.listen = listen.into();
            tuning.cluster.redis = redis.into();
            tuning.cluster.advertise = advertise.into();
            tuning.cluster.key_prefix = prefix.into();
            instances(&tuning)
        };
        let redis = "redis://127.0.0.1";
        assert_eq!(told("127.0.0.1:5000", "", "mcp:", redis), [""; 0]);
        assert_eq!(told("0.0.0.0:5000", "", "mcp", ""), [""; 0], "it is alone");
        for listen in ["0.0.0.0:5000", "[::]:5000"] {
            assert_eq!(told(listen, "http://10.0.0.7:5000", "a-", redis), [""; 0]);
            let weak = told(listen, "", "a.", redis);
            assert!(weak.len() == 1 && weak[0].contains("set cluster.advertise"), "{weak:?}");
        }
        let weak = told("127.0.0.1:5000", "", "foo", redis);
        assert!(weak.len() == 1 && weak[0].contains("foocluster") && weak[0].contains("\"foo:\""), "{weak:?}");
    }

    #[test]
    fn what_instances_hand_to_each_other_is_told_when_it_leaves_the_host() {
        let told = |listen: &str, advertise: &str, url: &str, spread| {
            let mut tuning = Tuning::default();
            tuning.cluster.redis = "redis://127.0.0.1".into();
            tuning.cluster.forward_listen = listen.into();
            tuning.cluster.forward_advertise = advertise.into();
            tuning.cluster.advertise = url.into();
            tuning.tools.entry("echo".into()).or_default().spread = spread;
            forwards(&tuning).len()
        };
        assert_eq!(told("10.0.0.1:5002", "", "", None), 0, "nothing is placed");
        assert_eq!(told("127.0.0.1:0", "", "", Some(1)), 0);
        assert_eq!(told("127.0.0.1:0", "", "http://127.0.0.1:5000", Some(1)), 0);
        assert_eq!(told("127.0.0.1:0", "", "http://10.0.0.1:5000", Some(1)), 1, "others cannot reach it");
        assert_eq!(told("10.0.0.1:5002", "", "", Some(1)), 2, "it can be read, and so can the key");
        assert_eq!(told("127.0.0.1:5002", "10.0.0.1:5002", "", Some(1)), 2);
    }

    #[test]
    fn an_admin_listener_that_others_reach_is_told_with_authentication_too() {
        let told = |listen: &str, keys: &str| {
            let mut tuning = Tuning::default();
            tuning.server.admin_listen = listen.into();
            tuning.auth.keys_file = keys.into();
            let loaded = Loaded::from_program(tuning, crate::runtime::Host::read(), true).expect("settings");
            admin_listener(&loaded)
        };
        for listen in ["0.0.0.0:5001", "[::]:5001", "192.0.2.1:5001"] {
            assert!(told(listen, "keys.toml").is_some_and(|weak| weak.contains("keys and tokens")), "{listen}");
            assert!(told(listen, "").is_some_and(|weak| weak.contains("forgotten")), "{listen}");
        }
        for listen in ["", "127.0.0.1:5001", "[::1]:5001", "localhost:5001"] {
            assert_eq!(told(listen, "keys.toml"), None, "{listen}");
        }
    }

    #[test]
    fn pages_without_tls_are_told_unless_they_are_of_this_host() {
        for weak in ["http://app.example", "http://app.example:8080", "http://10.0.0.1"] {
            assert!(plain(weak).is_some(), "{weak}");
        }
        for fine in ["https://app.example", "http://localhost:3000", "http://127.0.0.1", "http://[::1]:3000"] {
            assert_eq!(plain(fine), None, "{fine}");
        }
    }

    #[test]
    fn listeners_of_this_host_are_told_from_others() {
        for (listen, own) in [
            ("127.0.0.1:5000", true),
            ("[::1]:5000", true),
            ("localhost:5000", true),
            ("[::ffff:127.0.0.1]:1", true),
            ("0.0.0.0:5000", false),
            ("[::]:5000", false),
            ("192.0.2.1:5000", false),
        ] {
            assert_eq!(is_of_this_host(listen), own, "{listen}");
        }
    }
}
