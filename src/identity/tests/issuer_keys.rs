//! The issuer's keys: fetched, kept, replaced, gone.

use super::{super::signer::RSA, *};

fn fetched(world: &World, signers: &[&Signer]) -> Door {
    let door = world.door();
    assert_eq!(keys(&door).accept(&set(signers), now()), Ok(true));
    door
}

fn keys(door: &Door) -> &super::super::Keys {
    door.keys().expect("tokens are taken")
}

fn later(s: u64) -> SystemTime {
    at(NOW_S + s)
}

/// A token that is good for long.
fn token(signer: &Signer) -> String {
    let mut claims = claims();
    claims["exp"] = json!(NOW_S + 1_000_000);
    signer.token(&claims)
}

#[test]
fn without_keys_nobody_is_known_yet() {
    let door = World::without_keys().door();
    let refused = who(&door, &token(&RSA), now()).expect_err("no keys");
    assert_eq!(refused, Refused::NoKeys);
    assert!(refused.may_pass_with_newer_keys());
    assert!(keys(&door).wants_refresh(now(), false));
    keys(&door).accept(&set(&[&RSA]), now()).expect("a key set");
    assert!(who(&door, &token(&RSA), now()).is_ok());
}

#[test]
fn who_comes_while_there_are_no_keys_is_told_when_there_may_be() {
    let door = World::without_keys().door();
    let keys = keys(&door);
    assert_eq!(keys.retry_after_s(now()), 2, "the first fetch is under way");
    assert!(keys.wants_refresh(now(), false));
    keys.failed(now());
    assert_eq!([0, 29, 30, 99].map(|s| keys.retry_after_s(later(s))), [31, 2, 1, 1]);
    assert_eq!((keys.fetches(), keys.last_success()), ((0, 1), None));
    keys.accept(&set(&[&RSA]), later(30)).expect("a key set");
    assert_eq!((keys.fetches(), keys.last_success()), ((1, 1), Some(later(30))));
}

#[test]
fn who_comes_while_the_issuer_has_no_keys_is_told_when_it_may_have_some() {
    let door = World::without_keys().door();
    let keys = keys(&door);
    assert!(keys.wants_refresh(now(), false));
    keys.accept(&set(&[]), now()).expect("a key set");
    assert_eq!(who(&door, &token(&RSA), now()), Err(Refused::NoKeys));
    assert_eq!([0, 29, 30].map(|s| keys.retry_after_s(later(s))), [31, 2, 1]);
    assert!(keys.wants_refresh(later(30), true), "who comes has them fetched");
}

#[test]
fn an_issuer_without_kids_has_newer_keys_asked_for() {
    let door = World::without_keys().door();
    let (new, ec) = (Signer::rsa("new", aws_lc_rs::rsa::KeySize::Rsa2048), Signer::ec("ec"));
    let nameless = |signer: &Signer| {
        let mut jwk = signer.jwk();
        jwk.as_object_mut().expect("an object").remove("kid");
        json!({ "keys": [jwk] }).to_string().into_bytes()
    };
    let token = |signer: &Signer, header: Value| signer.sign(header.to_string(), claims().to_string());
    keys(&door).accept(&nameless(&RSA), now()).expect("a key set");
    let (rotated, other) = (token(&new, json!({ "alg": "RS256" })), token(&ec, json!({ "alg": "ES256" })));
    for (token, kind) in [(&rotated, "signature"), (&other, "key_algorithm")] {
        let refused = who(&door, token, now()).expect_err("of a newer key");
        assert!(refused.kind() == kind && refused.may_pass_with_newer_keys(), "{refused}");
    }
    keys(&door).accept(&nameless(&new), later(30)).expect("a key set");
    assert!(who(&door, &rotated, later(30)).is_ok());
    // What names a key that is there, and not one for its algorithm, is wrong whatever comes.
    keys(&door).accept(&set(&[&RSA]), later(60)).expect("a key set");
    let refused = who(&door, &token(&ec, json!({ "alg": "ES256", "kid": "rsa" })), later(60)).expect_err("wrong");
    assert!(refused.kind() == "key_algorithm" && !refused.may_pass_with_newer_keys(), "{refused}");
}

#[test]
fn fetching_has_a_pace_whatever_asks_for_it() {
    let door = World::without_keys().door();
    let keys = keys(&door);
    assert!(keys.wants_refresh(now(), true));
    for s in 0..30 {
        assert!(!keys.wants_refresh(later(s), true) && !keys.wants_refresh(later(s), false), "{s}");
    }
    assert!(keys.wants_refresh(later(30), false), "nothing was fetched so far");
    keys.accept(&set(&[&RSA]), later(31)).expect("a key set");
    assert!(!keys.wants_refresh(later(59), true), "the last attempt was at 30");
    assert!(!keys.wants_refresh(later(60), false), "not due");
    assert!(keys.wants_refresh(later(60), true));
    keys.failed(later(62));
    assert!(!keys.wants_refresh(later(91), true));
    assert!(!keys.wants_refresh(later(330), false));
    assert!(keys.wants_refresh(later(331), false), "due 300 s after the last success");
    assert!(keys.wants_refresh(at(NOW_S - 5000), true), "a clock that was set back does not stop it");
    let mut world = World::with_keys_of(&[&RSA]);
    world.config.jwks_url.clear();
    assert!(!world.door().keys().expect("keys").wants_refresh(now(), true), "there is nowhere to fetch from");
}

#[test]
fn one_of_many_who_ask_at_once_fetches() {
    let door = World::without_keys().door();
    let yes = std::thread::scope(|scope| {
        let ask = || (0..100).filter(|_| keys(&door).wants_refresh(now(), true)).count();
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(ask)).collect();
        threads.into_iter().map(|thread| thread.join().expect("a count")).sum::<usize>()
    });
    assert_eq!(yes, 1);
}

#[test]
fn a_key_that_is_gone_is_gone_for_remembered_tokens_too() {
    let (stays, goes) = (Signer::ed("stays"), Signer::ed("goes"));
    let door = fetched(&World::without_keys(), &[&stays, &goes]);
    for signer in [&stays, &goes] {
        assert!(who(&door, &token(signer), now()).is_ok());
    }
    assert_eq!(door.remembered(), 2);
    assert_eq!(keys(&door).accept(&set(&[&stays]), later(300)), Ok(true));
    assert_eq!(who(&door, &token(&goes), later(300)).expect_err("gone").kind(), "unknown_key");
    assert!(who(&door, &token(&stays), later(300)).is_ok());
    assert_eq!(keys(&door).accept(br#"{"keys":[]}"#, later(600)), Ok(true), "an issuer may take all back");
    assert_eq!(who(&door, &token(&stays), later(600)), Err(Refused::NoKeys));
}

#[test]
fn the_same_keys_again_forget_nothing() {
    let door = fetched(&World::without_keys(), &[&RSA]);
    let first = who(&door, &token(&RSA), now()).expect("good");
    let generation = keys(&door).current(now()).generation();
    assert_eq!(keys(&door).accept(&set(&[&RSA]), later(300)), Ok(false));
    assert_eq!(keys(&door).current(later(300)).generation(), generation);
    assert!(Arc::ptr_eq(&first, &who(&door, &token(&RSA), later(300)).expect("good")));
}

#[test]
fn keys_outlast_an_outage_for_a_day() {
    let door = fetched(&World::without_keys(), &[&RSA]);
    for s in (30..86_400).step_by(3000) {
        keys(&door).failed(later(s));
        assert!(who(&door, &token(&RSA), later(s)).is_ok(), "{s}");
    }
    assert_eq!(who(&door, &token(&RSA), later(86_400)), Err(Refused::NoKeys), "also for a remembered token");
    assert!(keys(&door).current(later(86_400)).is_empty());
    keys(&door).accept(&set(&[&RSA]), later(90_000)).expect("a key set");
    assert!(who(&door, &token(&RSA), later(90_000)).is_ok());
}

#[test]
fn what_is_no_key_set_changes_nothing() {
    let door = fetched(&World::without_keys(), &[&RSA]);
    let many = json!({ "keys": vec![json!({}); 101] }).to_string();
    let large = format!("{{\"keys\":[],\"pad\":\"{}\"}}", "x".repeat(1 << 20));
    for (bytes, expected) in [
        ("", "cannot be read"),
        ("<html>", "cannot be read"),
        ("[]", "cannot be read"),
        ("{}", "no list"),
        ("{\"keys\":{}}", "no list"),
        ("{\"keys\":[],\"keys\":[]}", "twice"),
        (&many, "more than 100"),
        (&large, "more than 1048576"),
    ] {
        let error = keys(&door).accept(bytes.as_bytes(), later(1)).expect_err(expected);
        assert!(error.contains(expected), "{error}");
    }
    assert!(who(&door, &token(&RSA), now()).is_ok());
    assert_eq!(keys(&door).last_success(), Some(now()));
}

#[test]
fn keys_that_are_of_no_use_are_passed_over() {
    let door = World::without_keys().door();
    let changed = |name: &str, value: Value| {
        let mut jwk = RSA.jwk();
        jwk["kid"] = "other".into();
        jwk[name] = value;
        jwk
    };
    let secret = Signer::shared("shared", b"0123456789abcdefghijklmnopqrstuv").jwk();
    let useless = [
        (changed("use", json!("enc")), "use"),
        (changed("key_ops", json!(["encrypt"])), "key_ops"),
        (changed("alg", json!("ES256")), "alg"),
        (changed("alg", json!("none")), "alg"),
        (changed("alg", json!("RSA-OAEP")), "alg"),
        (changed("kty", json!("XYZ")), "kty"),
        (changed("kid", json!(7)), "kid"),
        (changed("d", json!("AQAB")), "private"),
        (changed("e", json!("AQ")), "exponent"),
        (changed("e", json!("AQAA")), "exponent"),
        (changed("n", json!(super::super::signer::base64(&[0xff; 128]))), "1024 bits"),
        (changed("n", json!("!")), "base64url"),
        (json!({ "kty": "EC", "crv": "P-521", "x": "AA", "y": "AA" }), "crv"),
        (json!({ "kty": "EC", "crv": "P-256", "x": "AA", "y": "AA" }), "1 bytes"),
        (json!({ "kty": "OKP", "crv": "X25519", "x": "AA" }), "crv"),
        (secret, "shared secret"),
        (json!("text"), "no object"),
    ];
    for (jwk, expected) in useless {
        let bytes = json!({ "keys": [jwk, RSA.jwk()] }).to_string();
        let read = super::super::jwk::KeySet::read(bytes.as_bytes(), false).expect("a key set");
        assert_eq!(read.len(), 1, "{expected}");
        assert!(read.passed_over()[0].contains(expected), "{:?} says nothing of {expected}", read.passed_over());
        keys(&door).accept(bytes.as_bytes(), now()).expect("a key set");
        assert!(who(&door, &token(&RSA), now()).is_ok(), "the others stay of use");
        assert_eq!(keys(&door).current(now()).passed_over().count(), 1, "which is known, for the log");
    }
}

#[test]
fn a_point_that_is_on_no_curve_verifies_nothing() {
    let zero = super::super::signer::base64(&[0; 32]);
    let jwk = json!({ "kty": "EC", "crv": "P-256", "kid": "ec", "x": zero, "y": zero });
    let door = World::without_keys().door();
    keys(&door).accept(json!({ "keys": [jwk] }).to_string().as_bytes(), now()).expect("a key set");
    assert_eq!(who(&door, &token(&Signer::ec("ec")), now()), Err(Refused::Signature));
}

#[test]
fn a_fetched_key_is_no_shared_secret() {
    let shared = Signer::shared("shared", b"0123456789abcdefghijklmnopqrstuv");
    let mut world = World::with_keys_of(&[&RSA]);
    world.config.algorithms.push("HS256".into());
    let door = fetched(&world, &[&shared]);
    assert_eq!(who(&door, &token(&shared), now()).expect_err("refused").kind(), "unknown_key");
}

#[test]
fn the_own_file_is_read_again_when_it_changes() {
    let (old, new) = (Signer::ed("old"), Signer::ed("new"));
    let world = World::with_keys_of(&[&old]);
    let door = world.door();
    assert!(who(&door, &token(&old), now()).is_ok());
    assert_eq!(door.reload_if_changed(), Ok(None));
    world.write("jwks.json", &set(&[&new, &RSA]));
    let news = door.reload_if_changed().expect("read").expect("it changed");
    assert!(news.ends_with("jwks.json: 2 keys of the issuer"), "{news}");
    assert_eq!(who(&door, &token(&old), now()).expect_err("gone").kind(), "unknown_key");
    assert!(who(&door, &token(&new), now()).is_ok());
    world.write("jwks.json", b"{");
    let error = door.reload_if_changed().expect_err("no key set");
    assert!(error.contains("jwks.json"), "{error}");
    assert!(who(&door, &token(&new), now()).is_ok(), "what was known stays in force");
    world.write("jwks.json", br#"{"keys":[{"kty":"RSA"}]}"#);
    assert!(door.reload_if_changed().is_err(), "what the operator wrote must all be of use");
}

#[test]
fn own_and_fetched_keys_stand_side_by_side() {
    let own = Signer::ed("own");
    let door = fetched(&World::with_keys_of(&[&own]), &[&RSA]);
    assert!(who(&door, &token(&own), now()).is_ok() && who(&door, &token(&RSA), now()).is_ok());
    assert_eq!(who(&door, &token(&RSA), later(86_400)).expect_err("too old").kind(), "unknown_key");
    assert!(who(&door, &token(&own), later(86_400)).is_ok(), "own ones do not age");
}
