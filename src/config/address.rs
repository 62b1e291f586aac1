//! Addresses, paths, hosts and origins as settings write them. Names are not looked up, but for `localhost`: what a
//! name means can change between two starts, and a server that must not be reached from outside shall not depend on it.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

/// Reads the address of a listener.
pub(crate) fn listener(text: &str) -> Result<SocketAddr, String> {
    if let Some(port) = text.strip_prefix("localhost:").and_then(|port| port.parse().ok()) {
        return Ok(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
    }
    text.parse().map_err(|_| {
        "expected an IP address and a port, such as \"127.0.0.1:5000\", \"[::1]:5000\" or \"localhost:5000\"".into()
    })
}

/// Whether only programs on this host reach it.
pub(super) fn is_loopback(address: &SocketAddr) -> bool {
    match address.ip() {
        IpAddr::V4(ip) => ip.is_loopback(),
        IpAddr::V6(ip) => ip.is_loopback() || ip.to_ipv4_mapped().is_some_and(|ip| ip.is_loopback()),
    }
}

/// What is wrong with the path of the endpoint.
pub(super) fn path_fault(path: &str) -> Option<&'static str> {
    let plain = |b: u8| b.is_ascii_graphic() && !matches!(b, b'?' | b'#' | b'%' | b'"' | b'<' | b'>' | b'\\');
    match path {
        "/health" | "/ready" => Some("this path answers whether the server is well; take another, such as \"/mcp\""),
        _ if !path.starts_with('/') => Some("a path starts with a slash, such as \"/mcp\""),
        _ if !path.bytes().all(plain) => {
            Some("a path is plain: no spaces, no '?', '#', '%' or quotes; such as \"/mcp\"")
        }
        _ => None,
    }
}

/// What is wrong with a host name that clients may use.
pub(super) fn host_fault(host: &str) -> Option<&'static str> {
    let name = |text: &str| {
        !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
    };
    let fits = match host.strip_prefix('[') {
        Some(rest) => rest.split_once(']').is_some_and(|(ip, after)| {
            ip.parse::<std::net::Ipv6Addr>().is_ok()
                && (after.is_empty() || after.strip_prefix(':').is_some_and(is_port))
        }),
        None => match host.split_once(':') {
            Some((host, port)) => name(host) && is_port(port),
            None => name(host),
        },
    };
    (!fits).then_some("expected a host name, such as \"tools.example.com\" or \"10.0.0.7:5000\"; no scheme, path or *")
}

/// What is wrong with the origin of a page that may call.
pub(super) fn origin_fault(origin: &str) -> Option<&'static str> {
    match origin {
        "*" => {
            return Some("every page of every site could call; name the origins, such as \"https://app.example.com\"");
        }
        "null" => {
            return Some("pages from files and sandboxes share this origin; serve the page from a host of its own");
        }
        _ => {}
    }
    let fits = origin.split_once("://").is_some_and(|(scheme, host)| {
        let scheme_is = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'+' | b'-' | b'.');
        scheme.starts_with(|c: char| c.is_ascii_lowercase())
            && scheme.bytes().all(scheme_is)
            && host_fault(host).is_none()
            && !host.bytes().any(|b| b.is_ascii_uppercase())
    });
    (!fits).then_some(
        "expected an origin as browsers send it: scheme and host in lower case, port if it is unusual, nothing after; \
         such as \"https://app.example.com\"",
    )
}

fn is_port(text: &str) -> bool {
    text.parse::<u16>().is_ok() && text.bytes().all(|b| b.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listeners() {
        for (text, loopback) in [
            ("127.0.0.1:5000", true),
            ("127.9.9.9:0", true),
            ("[::1]:5000", true),
            ("[::ffff:127.0.0.1]:5000", true),
            ("localhost:5000", true),
            ("0.0.0.0:5000", false),
            ("[::]:5000", false),
            ("10.0.0.7:80", false),
            ("[::ffff:10.0.0.7]:80", false),
        ] {
            let address = listener(text).expect(text);
            assert_eq!(is_loopback(&address), loopback, "{text}");
        }
        for text in [
            "",
            "5000",
            ":5000",
            "127.0.0.1",
            "::1:5000x",
            "example.com:80",
            "localhost",
            "localhost:99999",
            "http://127.0.0.1:1",
        ] {
            assert!(listener(text).is_err(), "{text}");
        }
    }

    #[test]
    fn paths_hosts_and_origins() {
        for path in ["/mcp", "/", "/a/b", "/healthy"] {
            assert_eq!(path_fault(path), None, "{path}");
        }
        for path in ["", "mcp", "/health", "/ready", "/a?b", "/a#b", "/a b", "/ä", "/%41", "http://x/"] {
            assert!(path_fault(path).is_some(), "{path}");
        }
        for host in ["example.com", "Example.COM", "10.0.0.7:5000", "[::1]", "[::1]:80", "my_service"] {
            assert_eq!(host_fault(host), None, "{host}");
        }
        for host in [
            "",
            "*",
            "*.example.com",
            "http://example.com",
            "example.com/",
            "a b",
            "a:b",
            "a:+80",
            "[::1",
            "[x]",
            "::1",
        ] {
            assert!(host_fault(host).is_some(), "{host}");
        }
        for origin in ["https://app.example.com", "http://localhost:3000", "vscode-webview://abc", "http://[::1]:80"] {
            assert_eq!(origin_fault(origin), None, "{origin}");
        }
        for origin in [
            "",
            "*",
            "null",
            "example.com",
            "https://a.com/",
            "https://a.com/x",
            "https://*.a.com",
            "HTTPS://a.com",
            "https://A.com",
            "https://",
        ] {
            assert!(origin_fault(origin).is_some(), "{origin}");
        }
    }
}
