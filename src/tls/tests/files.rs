//! The files that `[tls]` names: wrong ones, and ones that change.

use std::time::{Duration, SystemTime};

use rcgen::date_time_ymd;

use super::*;

#[test]
fn what_is_wrong_with_a_file_is_said_with_its_name() {
    type Change = fn(&World);
    let other = "-----BEGIN ENCRYPTED PRIVATE KEY-----\nAAAA\n-----END ENCRYPTED PRIVATE KEY-----\n";
    let wrong: [(Change, &[&str]); 10] = [
        (|w| fs::remove_file(&w.config.certificate).expect("removed"), &["us.pem", "No such file"]),
        (|w| fs::remove_file(&w.config.key).expect("removed"), &["us.key", "No such file"]),
        (|w| drop(w.write("us.pem", "nothing")), &["us.pem has no certificate"]),
        (|w| drop(w.write("us.pem", &w.ca.server().key)), &["us.pem has no certificate"]),
        (|w| drop(w.write("us.key", &w.ca.server().certificate)), &["us.key has no private key"]),
        (|w| drop(w.write("us.key", &w.ca.server().key)), &["us.key is not the key", "us.pem"]),
        (|w| drop(w.write("us.pem", &(w.ca.pem() + &w.ca.server().certificate))), &["us.key is not the key", "first"]),
        (|w| set_mode(w.config.key.as_ref(), 0o644), &["us.key has the mode 0644", "chmod 600"]),
        (|w| set_mode(w.config.key.as_ref(), 0o660), &["us.key has the mode 0660", "chmod 600"]),
        (|w| drop(w.write("us.pem", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")), &["us.pem"]),
    ];
    for (change, expected) in wrong {
        let world = World::new();
        change(&world);
        let error = world.refused();
        assert!(expected.iter().all(|part| error.contains(part)), "{error:?} lacks one of {expected:?}");
    }
    let world = World::new();
    world.write("us.key", other);
    assert!(world.refused().contains("encrypted"), "{}", world.refused());
    let world = World::new();
    world.write("us.pem", &world.ca.pem().repeat(11));
    assert!(world.refused().contains("11 certificates"), "{}", world.refused());
    let world = World::new();
    world.write(
        "us.key",
        "-----BEGIN PRIVATE KEY-----
MAA=
-----END PRIVATE KEY-----
",
    );
    assert!(
        world.refused().contains("us.key holds no key that is taken: it must be RSA of 2048"),
        "{}",
        world.refused()
    );
    let world = World::asking(ClientCertificates::Required);
    world.write("clients.pem", "nothing");
    assert!(world.refused().contains("clients.pem has no certificate"), "{}", world.refused());
    assert!(Acceptor::new(&Config::default(), ALPN).expect_err("off").contains("tls.certificate"));
}

#[test]
fn the_group_may_read_a_key() {
    let world = World::new();
    set_mode(world.config.key.as_ref(), 0o640);
    world.acceptor();
}

#[test]
fn dates_are_warned_of() {
    let world = World::new();
    world.put(&world.ca.sign(|params| {
        params.not_before = date_time_ymd(2030, 1, 1);
        params.not_after = date_time_ymd(2031, 1, 1);
    }));
    let acceptor = world.acceptor();
    let end = acceptor.not_after();
    assert_eq!(end, SystemTime::UNIX_EPOCH + Duration::from_secs(1_924_992_000));
    let day = Duration::from_secs(24 * 60 * 60);
    for (at, expected) in [
        (end - 366 * day, Some("is not valid yet, for 24 h")),
        (end - 300 * day, None),
        (end - 8 * day, None),
        (end - 2 * day, Some("expires in 48 hours")),
        (end, Some("expired 0 s ago")),
        (end + day, Some("expired 24 h ago")),
    ] {
        let warnings = acceptor.warnings(at);
        match expected {
            None => assert_eq!(warnings, Vec::<String>::new()),
            Some(expected) => assert!(warnings.len() == 1 && warnings[0].contains(expected), "{warnings:?}"),
        }
    }
}

#[tokio::test]
async fn a_new_certificate_is_taken_while_connections_are_open() {
    let world = World::new();
    let acceptor = world.acceptor();
    let client = Arc::new(world.client());
    let (mut old, mut old_client) = connect(&acceptor, &client).await;
    assert_eq!(acceptor.reload_if_changed(), Ok(Vec::new()));
    let renewed = world.ca.server();
    world.put(&renewed);
    assert!(acceptor.reload_if_changed().is_ok_and(|changed| !changed.is_empty()));
    assert_eq!(acceptor.reload_if_changed(), Ok(Vec::new()));
    let (_new, new_client) = connect(&acceptor, &Arc::new(world.client())).await;
    assert_eq!(shown(&new_client), renewed.der());
    assert_ne!(shown(&old_client), renewed.der());
    talk(&mut old.stream, &mut old_client).await;
}

#[tokio::test]
async fn a_bad_certificate_leaves_the_old_one() {
    let world = World::new();
    let acceptor = world.acceptor();
    let before = shown(&connect(&acceptor, &Arc::new(world.client())).await.1);
    let renewed = world.ca.server();
    type Change = fn(&World, &Signed);
    let bad: [(Change, &str); 4] = [
        (|w, new| drop(w.write("us.pem", &new.certificate)), "is not the key"), // and its key comes in a moment
        (|w, _| drop(w.write("us.pem", "half a cert")), "has no certificate"),
        (|w, _| fs::remove_file(&w.config.certificate).expect("removed"), "No such file"),
        (|w, new| (w.put(new), set_mode(w.config.key.as_ref(), 0o644)).1, "chmod 600"),
    ];
    for (change, expected) in bad {
        change(&world, &renewed);
        for _ in 0..2 {
            let error = acceptor.reload_if_changed().expect_err(expected);
            assert!(error.contains(expected), "{error}");
        }
        assert_eq!(shown(&connect(&acceptor, &Arc::new(world.client())).await.1), before, "{expected}");
    }
    world.put(&renewed);
    assert!(acceptor.reload_if_changed().is_ok_and(|changed| !changed.is_empty()));
    assert_eq!(shown(&connect(&acceptor, &Arc::new(world.client())).await.1), renewed.der());
}
