//! Clients that show a certificate, and those that should.

use std::time::Duration;

use ::aws_lc_rs::digest;
use rcgen::{ExtendedKeyUsagePurpose, date_time_ymd};

use super::*;

/// Who somebody with this certificate is, over both versions.
async fn who(acceptor: &Acceptor, world: &World, signed: Option<&Signed>) -> Result<Option<Peer>, Why> {
    let mut answers = Vec::new();
    for version in [&TLS12, &TLS13] {
        let client = Arc::new(client(&world.ca, signed, &[version]));
        answers.push(shake(acceptor, &client).await.0.map(|accepted| accepted.peer));
    }
    assert_eq!(answers[0], answers[1], "the versions do not agree");
    answers.remove(0)
}

#[tokio::test]
async fn who_must_show_a_certificate_is_who_it_says() {
    let world = World::asking(ClientCertificates::Required);
    let acceptor = world.acceptor();
    let signed = world.clients.client("ann");
    let peer = who(&acceptor, &world, Some(&signed)).await.expect("let in").expect("a peer");
    assert_eq!(peer.subject, "ann");
    assert_eq!(peer.issuer, "CN=Clients,O=Example\\, Inc.");
    let digest = digest::digest(&digest::SHA256, &signed.der());
    let digits: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(peer.fingerprint_sha256, digits);
    let identity = peer.identity();
    assert_eq!((identity.subject(), identity.issuer(), identity.client()), ("ann", peer.issuer.as_str(), None));
    assert_eq!(identity.expires_at(), Some(peer.not_after));
    assert!(!peer.has_ended(peer.not_after - Duration::from_nanos(1)) && peer.has_ended(peer.not_after));
    let renewed = who(&acceptor, &world, Some(&world.clients.client("ann"))).await.expect("let in").expect("a peer");
    assert_ne!(renewed.fingerprint_sha256, peer.fingerprint_sha256);
    assert_eq!(renewed.identity().principal(), identity.principal());
}

#[tokio::test]
async fn who_must_and_does_not_is_refused() {
    let world = World::asking(ClientCertificates::Required);
    assert_eq!(who(&world.acceptor(), &world, None).await, Err(Why::CertificateMissing));
}

#[tokio::test]
async fn who_may_need_not() {
    let world = World::asking(ClientCertificates::Optional);
    let acceptor = world.acceptor();
    assert_eq!(who(&acceptor, &world, None).await, Ok(None));
    let peer = who(&acceptor, &world, Some(&world.clients.client("ann"))).await.expect("let in").expect("a peer");
    assert_eq!(peer.subject, "ann");
}

#[tokio::test]
async fn nobody_is_asked_when_it_is_off() {
    let world = World::new();
    assert_eq!(who(&world.acceptor(), &world, Some(&world.clients.client("ann"))).await, Ok(None));
}

#[tokio::test]
async fn a_wrong_certificate_is_refused_where_none_would_do() {
    for how in [ClientCertificates::Optional, ClientCertificates::Required] {
        let world = World::asking(how);
        let acceptor = world.acceptor();
        // Of the same name, so that only the signature tells them apart.
        for stranger in [Ca::new("Clients"), Ca::new("Others")] {
            let refused = who(&acceptor, &world, Some(&stranger.client("ann"))).await.expect_err("another CA");
            let known = ["certificate_unknown", "certificate_refused"].contains(&refused.kind());
            assert!(known, "{refused}");
        }
        let servers = who(&acceptor, &world, Some(&world.ca.client("ann"))).await;
        assert_eq!(servers, Err(Why::CertificateUnknown), "the CA of our own certificate signs no clients");
        let old = world.clients.sign(|params| params.not_after = date_time_ymd(2001, 1, 1));
        assert_eq!(who(&acceptor, &world, Some(&old)).await, Err(Why::CertificateDates));
        let new = world.clients.sign(|params| params.not_before = date_time_ymd(3000, 1, 1));
        assert_eq!(who(&acceptor, &world, Some(&new)).await, Err(Why::CertificateDates));
        let server = world.clients.sign(|params| {
            params.distinguished_name.push(DnType::CommonName, "ann");
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        });
        let refused = who(&acceptor, &world, Some(&server)).await.expect_err("of a server");
        assert_eq!(refused.kind(), "certificate_refused", "{refused}");
        assert!(refused.to_string().contains("it is not for clients"), "{refused}");
        let authority = world.clients.sign(|params| {
            params.distinguished_name.push(DnType::CommonName, "ann");
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        });
        let refused = who(&acceptor, &world, Some(&authority)).await.expect_err("of a CA");
        assert!(refused.to_string().contains("it is that of a CA, or signed by itself"), "{refused}");
        let nameless = world.clients.sign(|_| {});
        let refused = who(&acceptor, &world, Some(&nameless)).await.expect_err("without a name");
        assert!(refused.to_string().contains("common name"), "{refused}");
    }
}

#[tokio::test]
async fn a_resumed_session_has_its_certificate() {
    let world = World::asking(ClientCertificates::Required);
    let acceptor = world.acceptor();
    let client = Arc::new(world.client_with(&world.clients.client("ann")));
    let first = connect(&acceptor, &client).await.0;
    let next = connect(&acceptor, &client).await.0;
    assert_eq!(next.stream.get_ref().1.handshake_kind(), Some(rustls::HandshakeKind::Resumed));
    assert!(next.peer.is_some());
    assert_eq!(next.peer, first.peer);
}

#[tokio::test]
async fn a_ca_that_is_no_longer_trusted_lets_no_session_in() {
    let world = World::asking(ClientCertificates::Required);
    let acceptor = world.acceptor();
    let client = Arc::new(world.client_with(&world.clients.client("ann")));
    let (open, _) = connect(&acceptor, &client).await;
    assert!(acceptor.takes(open.chain()) && !acceptor.is_outdated(&open) && open.chain().len() == 1);
    let others = Ca::new("Others");
    world.write("clients.pem", &others.pem());
    assert_eq!(acceptor.reload_if_changed(), Ok(vec![world.config.client_ca.as_str()]));
    assert_eq!(shake(&acceptor, &client).await.0.expect_err("another CA"), Why::CertificateUnknown);
    assert!(acceptor.is_outdated(&open) && !acceptor.takes(open.chain()));
    assert!(acceptor.takes(&[others.client("ann").der()]));
}

/// Who shows a certificate of `ann` that an intermediate CA of this name signed, under `root`.
async fn by_way_of(acceptor: &Acceptor, world: &World, root: &Ca, name: &str) -> Result<Option<Peer>, Why> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, "Example, Inc.");
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let signed = CertifiedIssuer::signed_by(params, KeyPair::generate().expect("a key"), &root.0).expect("a CA");
    let between = Ca(signed);
    let ann = between.client("ann");
    let both = Signed { certificate: ann.certificate + &between.pem(), key: ann.key };
    who(acceptor, world, Some(&both)).await
}

#[tokio::test]
async fn a_ca_makes_nobody_a_caller_of_another_ca() {
    let world = World::asking(ClientCertificates::Required);
    let peer = by_way_of(&world.acceptor(), &world, &world.clients, "Teams").await.expect("let in").expect("a peer");
    assert_eq!(peer.issuer, "CN=Teams,O=Example\\, Inc.", "there is one CA, and who is under it is its affair");
    let renewed = Ca::new("Clients");
    world.write("clients.pem", &(world.clients.pem() + &renewed.pem()));
    let same = by_way_of(&world.acceptor(), &world, &renewed, "Teams").await.expect("let in").expect("a peer");
    assert_eq!(same.issuer, peer.issuer, "nor is there another while it is renewed");
    let partners = Ca::new("Partners");
    world.write("clients.pem", &(world.clients.pem() + &partners.pem()));
    let acceptor = world.acceptor();
    let plain = who(&acceptor, &world, Some(&partners.client("ann"))).await.expect("let in").expect("a peer");
    assert_eq!(plain.issuer, "CN=Partners,O=Example\\, Inc.");
    // One that calls itself as the other does, or as what the other has under it.
    let ours = by_way_of(&acceptor, &world, &world.clients, "Teams").await.expect("let in").expect("a peer");
    assert_eq!(ours.issuer, "CN=Teams,O=Example\\, Inc. under CN=Clients,O=Example\\, Inc.");
    for name in ["Clients", "Partners", "Teams"] {
        let theirs = by_way_of(&acceptor, &world, &partners, name).await.expect("let in").expect("a peer");
        assert_eq!(theirs.issuer, format!("CN={name},O=Example\\, Inc. under CN=Partners,O=Example\\, Inc."));
        assert_ne!(theirs.identity().principal(), ours.identity().principal());
        assert_ne!(theirs.identity().principal(), plain.identity().principal());
    }
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().expect("ASCII"))
}

fn mail(text: &str) -> SanType {
    SanType::Rfc822Name(text.try_into().expect("ASCII"))
}

fn dns(text: &str) -> SanType {
    SanType::DnsName(text.try_into().expect("ASCII"))
}

#[test]
fn a_name_is_the_best_that_the_certificate_has() {
    let ca = Ca::new("Clients");
    let named = |name: &str, others: Vec<SanType>| {
        let signed = ca.sign(|params| {
            params.distinguished_name.push(DnType::CommonName, name);
            params.subject_alt_names = others;
        });
        Peer::read(&signed.der(), None).map(|peer| peer.subject)
    };
    let (spiffe, ann) = ("spiffe://example.com/agent", "ann@example.com");
    assert_eq!(named("cn", vec![dns("host"), mail(ann), uri(spiffe), uri("https://b")]), Ok(spiffe.into()));
    assert_eq!(named("cn", vec![dns("host"), mail(ann)]), Ok(ann.into()));
    assert_eq!(named("cn", vec![dns("host")]), Ok("cn".into()));
    assert_eq!(named("Ann Müller", vec![]), Ok("Ann Müller".into()));
    for (wrong, expected) in [
        (spiffe, "looks like"),
        (ann, "looks like"),
        ("urn:dev:ann", "looks like"),
        ("did:example:ann", "looks like"),
        ("tag:ann", "looks like"),
        ("", "its subject"),
        ("ann\nroot", "its subject"),
        ("ann\0", "its subject"),
        (&"a".repeat(1025), "its subject"),
    ] {
        let error = named(wrong, vec![]).expect_err(wrong);
        assert!(error.contains(expected), "{wrong:?}: {error}");
    }
    assert!(named("cn", vec![uri("a:\nb")]).is_err());
    for garbage in [&b""[..], b"\x30\x00", b"garbage"] {
        assert!(Peer::read(garbage, None).is_err());
    }
}
