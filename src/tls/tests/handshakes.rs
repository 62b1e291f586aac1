//! What comes of a handshake, and of what is none.

use rustls::{HandshakeKind, ProtocolVersion};

use super::*;

#[tokio::test]
async fn both_versions_are_spoken() {
    let world = World::new();
    let acceptor = world.acceptor();
    for (offered, expected) in [(&TLS12, ProtocolVersion::TLSv1_2), (&TLS13, ProtocolVersion::TLSv1_3)] {
        let (accepted, _client) = connect(&acceptor, &Arc::new(client(&world.ca, None, &[offered]))).await;
        assert_eq!(accepted.stream.get_ref().1.protocol_version(), Some(expected));
        assert_eq!(accepted.peer, None);
    }
}

#[tokio::test]
async fn the_oldest_version_can_be_raised() {
    let mut world = World::new();
    world.config.versions_min = Version::Tls13;
    let acceptor = world.acceptor();
    let refused = why(&acceptor, client(&world.ca, None, &[&TLS12])).await;
    assert_eq!(refused, Why::Version);
    connect(&acceptor, &Arc::new(client(&world.ca, None, &[&TLS13]))).await;
}

#[tokio::test]
async fn what_is_spoken_is_agreed_on() {
    let world = World::new();
    let acceptor = world.acceptor();
    type Offer = (&'static [&'static [u8]], Option<&'static [u8]>);
    let offers: [Offer; 4] = [
        (&[b"h2", b"http/1.1"], Some(b"h2")),
        (&[b"http/1.1", b"h2"], Some(b"h2")), // ours is the better order
        (&[b"http/1.1"], Some(b"http/1.1")),
        (&[], None),
    ];
    for (offered, expected) in offers {
        let mut client = world.client();
        client.alpn_protocols = offered.iter().map(|protocol| protocol.to_vec()).collect();
        let (accepted, connected) = connect(&acceptor, &Arc::new(client)).await;
        assert_eq!(accepted.alpn(), expected);
        assert_eq!(connected.get_ref().1.alpn_protocol(), expected);
    }
    let mut client = world.client();
    client.alpn_protocols = vec![b"ftp".to_vec()];
    assert_eq!(why(&acceptor, client).await, Why::Protocol);
}

#[tokio::test]
async fn a_client_that_does_not_trust_us_is_told_apart() {
    let world = World::new();
    let stranger = client(&Ca::new("Others"), None, &[&TLS13, &TLS12]);
    assert_eq!(why(&world.acceptor(), stranger).await, Why::ClientRefused("UnknownCA".into()));
}

#[tokio::test]
async fn sessions_are_resumed_and_nothing_is_taken_early() {
    for version in [&TLS12, &TLS13] {
        let world = World::new();
        let acceptor = world.acceptor();
        let mut client = client(&world.ca, None, &[version]);
        client.enable_early_data = true;
        let client = Arc::new(client);
        let kind = |accepted: &Accepted| accepted.stream.get_ref().1.handshake_kind();
        assert_eq!(kind(&connect(&acceptor, &client).await.0), Some(HandshakeKind::Full), "{version:?}");
        let name = ServerName::try_from("localhost").expect("a name");
        let mut next = rustls::ClientConnection::new(Arc::clone(&client), name).expect("a client");
        assert!(next.early_data().is_none(), "{version:?}");
        drop(next); // it took one of the client's tickets, of which TLS 1.3 has two
        assert_eq!(kind(&connect(&acceptor, &client).await.0), Some(HandshakeKind::Resumed), "{version:?}");
        world.put(&world.ca.server());
        assert!(acceptor.reload_if_changed().is_ok_and(|changed| !changed.is_empty()));
        assert_eq!(kind(&connect(&acceptor, &client).await.0), Some(HandshakeKind::Full), "{version:?}: a new cache");
    }
}

#[tokio::test]
async fn a_handshake_has_its_time() {
    let mut world = World::new();
    world.config.handshake_timeout_ms = 20;
    let acceptor = world.acceptor();
    for start in [&b""[..], b"\x16", b"\x16\x03\x01\x02\x00\x01\x00"] {
        let (mut client, theirs) = pair().await;
        client.write_all(start).await.expect("written");
        assert_eq!(acceptor.accept(theirs).await.expect_err("too slow"), Why::Timeout, "{start:?}");
    }
}

#[tokio::test]
async fn http_without_tls_is_told_so() {
    let acceptor = World::new().acceptor();
    for request in ["GET / HTTP/1.1\r\nhost: localhost\r\n\r\n", "POST /mcp HTTP/1.1\r\n", "PRI * HTTP/2.0\r\n\r\n"] {
        let (mut client, theirs) = pair().await;
        client.write_all(request.as_bytes()).await.expect("written");
        assert_eq!(acceptor.accept(theirs).await.expect_err("no TLS"), Why::PlainHttp, "{request}");
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.expect("an answer");
        let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
        assert!(head.starts_with("HTTP/1.1 400 "), "{answer}");
        assert!(head.contains(&format!("content-length: {}", body.len())), "{answer}");
        assert!(body.contains("https://"), "{answer}");
    }
}

#[tokio::test]
async fn what_is_no_handshake_has_its_class() {
    let acceptor = World::new().acceptor();
    for (sent, expected) in [
        (&b""[..], "closed"),
        (b"\x16\x03\x01", "closed"), // left in the middle
        (b"\x00\x01\x02", "not_tls"),
        (b"\x80\x2e\x01\x00\x02", "not_tls"), // SSL 2
        (b"ssh-2.0\r\n", "not_tls"),
        (b"\x16\x03\x01\x00\x05\xff\x00\x00\x01\x00", "broken"),
        (b"\x16\x03\x01\xff\xff\x00", "broken"),
    ] {
        let (mut client, theirs) = pair().await;
        client.write_all(sent).await.expect("written");
        client.shutdown().await.expect("shut down");
        let refused = acceptor.accept(theirs).await.expect_err("no TLS");
        assert_eq!(refused.kind(), expected, "{sent:?}: {refused}");
    }
}
