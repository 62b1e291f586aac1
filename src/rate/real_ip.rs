//! Where a request comes from when proxies stand in between. A header can say anything, so it is read only when the
//! peer is a trusted proxy, and only as far back as trusted proxies wrote it. Pure: addresses and bytes in, an address
//! out.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use ipnet::{IpNet, Ipv4Net};

/// Proxies in a row; more are a forged header or a loop.
const HOPS_MAX: usize = 32;
/// An IPv4 address within IPv6 has these bits in front.
const MAPPED_BITS: u8 = 96;

/// The networks whose word on a client's address is believed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Trusted(Box<[IpNet]>);

impl Trusted {
    /// Reads networks such as `10.0.0.0/8`, `2001:db8::/32`, or a single address.
    ///
    /// # Errors
    /// Which one is none, and what would be right.
    pub fn new(networks: &[String]) -> Result<Self, String> {
        networks.iter().map(|text| network(text)).collect::<Result<_, _>>().map(Self)
    }

    /// Whether nobody is trusted, so that no header need be looked at.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether an address is in one of the networks.
    pub fn contains(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }
}

fn network(text: &str) -> Result<IpNet, String> {
    let trimmed = text.trim();
    let network = match trimmed.parse::<IpAddr>() {
        Ok(address) => IpNet::from(address),
        Err(_) => trimmed.parse::<IpNet>().map_err(|_| {
            format!("{text:?} is no network: write an address and a number of bits, for example \"10.0.0.0/8\" or \"2001:db8::/32\", or one address")
        })?,
    };
    if network.addr() != network.network() {
        return Err(format!(
            "{text:?} has bits after the first {}: write {:?}, or the one address",
            network.prefix_len(),
            network.trunc().to_string()
        ));
    }
    Ok(canonical(network))
}

/// The same network as the addresses in it are compared: IPv4 within IPv6 is IPv4.
fn canonical(network: IpNet) -> IpNet {
    let IpNet::V6(v6) = network else { return network };
    let Some(v4) = v6.addr().to_ipv4_mapped() else { return network };
    match v6.prefix_len().checked_sub(MAPPED_BITS).map(|bits| Ipv4Net::new(v4, bits)) {
        Some(Ok(v4)) => v4.into(),
        _ => network,
    }
}

/// The address of who sent the request: of `peer`, unless that is a trusted proxy; then the last hop in the header's
/// lines, read from the end, that is no trusted proxy. Where a hop is no address, nothing before it is read, and the
/// proxy that passed it on stands for what is behind it. When all hops are trusted, it is the first.
pub fn client_ip<'a>(
    peer: IpAddr,
    x_forwarded_for: impl DoubleEndedIterator<Item = &'a [u8]>,
    trusted: &Trusted,
) -> IpAddr {
    let peer = peer.to_canonical();
    if !trusted.contains(peer) {
        return peer;
    }
    let mut client = peer;
    // Each proxy appends, so the newest hop is the last of the last line.
    for hop in x_forwarded_for.rev().flat_map(|line| line.rsplit(|&byte| byte == b',')).take(HOPS_MAX) {
        let hop = hop.trim_ascii();
        if hop.is_empty() {
            continue; // lists may have empty members, which say nothing
        }
        let Some(address) = address(hop) else { break };
        client = address;
        if !trusted.contains(address) {
            break;
        }
    }
    client
}

/// An address as proxies write it: alone, in brackets, or with a port.
fn address(hop: &[u8]) -> Option<IpAddr> {
    let hop = str::from_utf8(hop).ok()?;
    let bracketed = || hop.strip_prefix('[')?.strip_suffix(']')?.parse::<Ipv6Addr>().ok().map(IpAddr::V6);
    let with_port = || hop.parse::<SocketAddr>().ok().map(|address| address.ip());
    hop.parse().ok().or_else(with_port).or_else(bracketed).map(|address: IpAddr| address.to_canonical())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn trusted(networks: &[&str]) -> Trusted {
        Trusted::new(&networks.iter().map(ToString::to_string).collect::<Vec<_>>()).expect("networks")
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().expect(text)
    }

    fn client(peer: &str, lines: &[&str], trusted: &Trusted) -> String {
        client_ip(ip(peer), lines.iter().map(|line| line.as_bytes()), trusted).to_string()
    }

    #[test]
    fn through_trusted_proxies_it_is_the_last_untrusted_hop() {
        let proxies = trusted(&["10.0.0.0/8", "2001:db8:ffff::/48", "::1"]);
        for (peer, lines, expected) in [
            // No header.
            ("10.0.0.1", &[] as &[&str], "10.0.0.1"),
            ("10.0.0.1", &[""], "10.0.0.1"),
            // One hop, and what a client put in front of it.
            ("10.0.0.1", &["192.0.2.7"], "192.0.2.7"),
            ("10.0.0.1", &["198.51.100.1, 10.0.0.5, 192.0.2.7"], "192.0.2.7"),
            ("10.0.0.1", &["127.0.0.1,192.0.2.7 , 10.0.0.5"], "192.0.2.7"),
            // Several lines are one list.
            ("10.0.0.1", &["198.51.100.1", "192.0.2.7", "10.0.0.5"], "192.0.2.7"),
            ("10.0.0.1", &["198.51.100.1, 192.0.2.7", "10.0.0.5, 10.0.0.6"], "192.0.2.7"),
            ("10.0.0.1", &["192.0.2.7", "", " ,\t"], "192.0.2.7"),
            // Forms of addresses.
            ("10.0.0.1", &["192.0.2.7:4711"], "192.0.2.7"),
            ("::1", &["[2001:db8::7]:80"], "2001:db8::7"),
            ("::1", &["[2001:db8::7]"], "2001:db8::7"),
            ("::1", &["2001:db8::7, 2001:db8:ffff::2"], "2001:db8::7"),
            ("::ffff:10.0.0.1", &["::ffff:192.0.2.7"], "192.0.2.7"),
            ("10.0.0.1", &["192.0.2.7, [::ffff:10.0.0.5]:443"], "192.0.2.7"),
            // Garbage: the proxy that passed it on.
            ("10.0.0.1", &["garbage"], "10.0.0.1"),
            ("10.0.0.1", &["192.0.2.7, unknown"], "10.0.0.1"),
            ("10.0.0.1", &["192.0.2.7, unknown, 10.0.0.5"], "10.0.0.5"),
            ("10.0.0.1", &["192.0.2.7; 1"], "10.0.0.1"),
            ("10.0.0.1", &["192.0.2.7:99999"], "10.0.0.1"),
            ("10.0.0.1", &["[192.0.2.7]"], "10.0.0.1"),
            ("10.0.0.1", &["\"192.0.2.7\""], "10.0.0.1"),
            ("10.0.0.1", &["192.0.2.0/24"], "10.0.0.1"),
            ("10.0.0.1", &["fe80::1%eth0"], "10.0.0.1"),
            // All trusted: the first.
            ("10.0.0.1", &["10.0.0.9, 10.0.0.5"], "10.0.0.9"),
        ] {
            assert_eq!(client(peer, lines, &proxies), expected, "{peer} {lines:?}");
        }
        let bytes: [&[u8]; 1] = [b"192.0.2.7, \xff\xfe"];
        assert_eq!(client_ip(ip("10.0.0.1"), bytes.into_iter(), &proxies), ip("10.0.0.1"));
    }

    #[test]
    fn an_untrusted_peer_is_itself_whatever_it_says() {
        for proxies in [Trusted::default(), trusted(&["10.0.0.0/8"])] {
            assert_eq!(client("192.0.2.1", &["198.51.100.1"], &proxies), "192.0.2.1");
            assert_eq!(client("192.0.2.1", &["10.0.0.1", "10.0.0.1"], &proxies), "192.0.2.1");
            assert_eq!(client("::ffff:192.0.2.1", &["garbage"], &proxies), "192.0.2.1");
        }
        assert!(Trusted::default().is_empty());
    }

    #[test]
    fn only_so_many_hops_are_looked_at() {
        let proxies = trusted(&["10.0.0.0/8"]);
        let header = |hops: usize| format!("192.0.2.7{}", ", 10.0.0.5".repeat(hops));
        assert_eq!(client("10.0.0.1", &[&header(HOPS_MAX - 1)], &proxies), "192.0.2.7");
        assert_eq!(client("10.0.0.1", &[&header(HOPS_MAX)], &proxies), "10.0.0.5");
        assert_eq!(client("10.0.0.1", &[&",".repeat(100_000)], &proxies), "10.0.0.1");
    }

    #[test]
    fn networks_are_read_and_wrong_ones_told() {
        let networks = trusted(&[" 192.0.2.1 ", "10.0.0.0/8", "::ffff:172.16.0.0/108", "2001:db8::/32"]);
        for address in ["192.0.2.1", "10.255.0.1", "172.31.0.1", "::ffff:10.1.1.1", "2001:db8::1"] {
            assert!(networks.contains(ip(address)), "{address}");
        }
        for address in ["192.0.2.2", "11.0.0.1", "172.32.0.1", "2001:db9::1", "::10.0.0.1"] {
            assert!(!networks.contains(ip(address)), "{address}");
        }
        for (text, part) in [
            ("proxy.example", "\"proxy.example\" is no network: write an address and a number of bits"),
            ("10.0.0.0/33", "is no network"),
            ("", "is no network"),
            ("10.0.0.1/8", "has bits after the first 8: write \"10.0.0.0/8\""),
            ("2001:db8::1/32", "write \"2001:db8::/32\""),
        ] {
            let problem = Trusted::new(&["::1".to_owned(), text.to_owned()]).expect_err(text);
            assert!(problem.contains(part), "{problem}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(2000) })]

        /// Whatever a client writes in front of what the proxy appends changes nothing.
        #[test]
        fn what_a_client_writes_is_never_believed(
            forged in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..60), 0..4),
            address in any::<u32>(), same_line in any::<bool>(),
        ) {
            let proxies = trusted(&["10.0.0.0/8"]);
            let real = IpAddr::from(address.to_be_bytes());
            prop_assume!(!proxies.contains(real));
            let mut lines = forged;
            match lines.last_mut() {
                Some(last) if same_line => last.extend_from_slice(format!(", {real}").as_bytes()),
                _ => lines.push(real.to_string().into_bytes()),
            }
            let lines = || lines.iter().map(Vec::as_slice);
            prop_assert_eq!(client_ip(ip("10.0.0.1"), lines(), &proxies), real);
            prop_assert_eq!(client_ip(ip("203.0.113.1"), lines(), &proxies), ip("203.0.113.1"));
        }
    }
}
