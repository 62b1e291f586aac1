//! Which addresses are connected to, when somebody else says where a name leads.

use std::net::{IpAddr, Ipv4Addr};

/// Whether to connect to an address; `local` says that the URL names this host itself. Networks of the operator's own (10.0.0.0/8 and such) are where many issuers are.
pub(super) fn check(address: IpAddr, local: bool) -> Result<(), String> {
    let inner = match address.to_canonical() {
        IpAddr::V4(it) => it.into(),
        // NAT64 (RFC 6052): the last four bytes are an IPv4 address.
        IpAddr::V6(it) => match it.segments() {
            [0x64, 0xff9b, 0, 0, 0, 0, high, low] => Ipv4Addr::from(u32::from(high) << 16 | u32::from(low)).into(),
            _ => IpAddr::V6(it),
        },
    };
    let link_local = match inner {
        IpAddr::V4(it) => it.is_link_local(),
        IpAddr::V6(it) => it.is_unicast_link_local(),
    };
    let refused = match inner {
        _ if link_local => "link-local, where clouds keep secrets",
        IpAddr::V4(it) if it.is_broadcast() => "a broadcast address",
        _ if inner.is_multicast() => "a multicast address",
        _ if inner.is_unspecified() => "no address",
        _ if inner.is_loopback() && !local => "this host itself, which the URL does not say",
        _ if local && !inner.is_loopback() => "another host, though the URL says this one",
        _ => return Ok(()),
    };
    Err(format!("the address {address} is {refused}, and is not connected to"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_clouds_and_of_ourselves_are_refused() {
        for text in ["192.0.2.1", "10.0.0.1", "100.64.0.1", "2001:db8::1", "fd00::1"] {
            let address: IpAddr = text.parse().expect("an address");
            assert_eq!(check(address, false), Ok(()), "{text}");
            assert!(check(address, true).is_err(), "{text} is not this host");
        }
        for (text, expected) in [
            ("169.254.169.254", "link-local"),
            ("169.254.0.1", "link-local"),
            ("::ffff:169.254.169.254", "link-local"),
            ("64:ff9b::169.254.169.254", "link-local"),
            ("fe80::1", "link-local"),
            ("febf::1", "link-local"),
            ("224.0.0.1", "multicast"),
            ("239.255.255.250", "multicast"),
            ("ff02::1", "multicast"),
            ("255.255.255.255", "broadcast"),
            ("0.0.0.0", "no address"),
            ("::", "no address"),
        ] {
            for local in [false, true] {
                let error = check(text.parse().expect("an address"), local).expect_err(text);
                assert!(error.contains(expected), "{text}: {error}");
            }
        }
        for text in ["127.0.0.1", "127.255.0.1", "::1", "::ffff:127.0.0.1"] {
            let address: IpAddr = text.parse().expect("an address");
            assert_eq!(check(address, true), Ok(()), "{text}");
            assert!(check(address, false).expect_err(text).contains("this host itself"));
        }
    }
}
