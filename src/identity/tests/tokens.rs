//! Tokens, right and wrong.

use proptest::prelude::*;

use super::{
    super::{
        TOKEN_BYTES_MAX,
        signer::{RSA, base64},
    },
    *,
};

fn good() -> (World, String) {
    let world = World::with_keys_of(&[&RSA]);
    let token = RSA.token(&claims());
    (world, token)
}

/// The good claims with one of them changed; `null` takes it out.
fn with(name: &str, value: Value) -> Value {
    let mut claims = claims();
    match value {
        Value::Null => drop(claims.as_object_mut().expect("an object").remove(name)),
        value => claims[name] = value,
    }
    claims
}

fn refused(world: &World, token: &str) -> Refused {
    world.who(token, now()).expect_err("refused")
}

#[test]
fn a_good_token_says_who_it_is() {
    for signer in [&*RSA, &Signer::ec("ec"), &Signer::ec_384("ec"), &Signer::ed("ed")] {
        let mut world = World::with_keys_of(&[signer]);
        world.config.algorithms.push("ES384".into());
        let who = world.who(&signer.token(&claims()), now()).expect("good");
        assert_eq!((who.issuer(), who.subject(), who.client()), (ISSUER, "ann", Some("app")));
        assert_eq!(who.scopes().collect::<Vec<_>>(), ["read", "write"]);
        assert_eq!(who.groups().collect::<Vec<_>>(), ["staff"]);
        assert_eq!(who.expires_at(), Some(at(NOW_S + 300)));
        assert_eq!(who.principal(), "22:https://issuer.example;3:ann;3:app;");
    }
}

#[test]
fn expiry_is_a_number_that_has_not_passed() {
    let world = World::with_keys_of(&[&RSA]);
    for (exp, kind) in [
        (json!(NOW_S - 10), "expired"),
        (json!(0), "expired"),
        (json!(null), "claim"),
        (json!((NOW_S + 300).to_string()), "claim"),
        (json!([NOW_S + 300]), "claim"),
        (json!(true), "claim"),
        (json!(-1), "claim"),
        (json!(1e300), "claim"),
    ] {
        assert_eq!(refused(&world, &RSA.token(&with("exp", exp.clone()))).kind(), kind, "{exp}");
    }
    let null = claims().to_string().replace(&format!("\"exp\":{}", NOW_S + 300), "\"exp\":null");
    assert_eq!(refused(&world, &RSA.sign(RSA.header().to_string(), null)).kind(), "claim");
    assert_eq!(refused(&world, &RSA.token(&with("exp", json!(NOW_S - 12)))).reason(), "expired 12 s ago");
    for exp in [json!(NOW_S - 9), json!(NOW_S as f64 + 0.5)] {
        assert!(world.who(&RSA.token(&with("exp", exp.clone())), now()).is_ok(), "{exp}");
    }
}

#[test]
fn what_begins_later_is_not_good_yet() {
    let world = World::with_keys_of(&[&RSA]);
    for claim in ["nbf", "iat"] {
        let ahead = refused(&world, &RSA.token(&with(claim, json!(NOW_S + 600))));
        assert_eq!(ahead.reason(), format!("{claim} is 10 min in the future"));
        assert_eq!(refused(&world, &RSA.token(&with(claim, json!(NOW_S + 11)))).kind(), "not_yet");
        assert_eq!(refused(&world, &RSA.token(&with(claim, json!("0")))).kind(), "claim");
        for fine in [json!(NOW_S + 10), json!(0), json!(null)] {
            assert!(world.who(&RSA.token(&with(claim, fine.clone())), now()).is_ok(), "{claim} {fine}");
        }
    }
}

#[test]
fn the_audience_must_be_us() {
    let world = World::with_keys_of(&[&RSA]);
    for (aud, kind) in [
        (json!("https://other.example/mcp"), "audience"),
        (json!(format!("{OURS}/")), "audience"),
        (json!(OURS.to_uppercase()), "audience"),
        (json!(""), "audience"),
        (json!(null), "claim"),
        (json!(7), "claim"),
        (json!({ "x": OURS }), "claim"),
        (json!([]), "audience"),
        (json!(["https://other.example/mcp"]), "audience"),
        (json!([[OURS]]), "claim"),
        (json!([OURS, 7]), "claim"),
    ] {
        assert_eq!(refused(&world, &RSA.token(&with("aud", aud.clone()))).kind(), kind, "{aud}");
    }
    assert!(world.who(&RSA.token(&with("aud", json!(["https://other.example", OURS]))), now()).is_ok());
}

#[test]
fn the_issuer_must_be_ours_to_the_byte() {
    let world = World::with_keys_of(&[&RSA]);
    for (iss, kind) in [
        (json!(format!("{ISSUER}/")), "issuer"),
        (json!(ISSUER.to_uppercase()), "issuer"),
        (json!(null), "claim"),
        (json!([ISSUER]), "claim"),
    ] {
        assert_eq!(refused(&world, &RSA.token(&with("iss", iss.clone()))).kind(), kind, "{iss}");
    }
}

#[test]
fn a_subject_is_a_name() {
    let world = World::with_keys_of(&[&RSA]);
    for sub in [json!(null), json!(""), json!(7), json!("a\nb"), json!("x".repeat(1025))] {
        assert_eq!(refused(&world, &RSA.token(&with("sub", sub.clone()))).kind(), "claim", "{sub}");
    }
    for client in [json!(""), json!(["app"])] {
        assert_eq!(refused(&world, &RSA.token(&with("client_id", client.clone()))).kind(), "claim", "{client}");
    }
    let mut claims = with("client_id", json!(null));
    claims["azp"] = json!("other");
    assert_eq!(world.who(&RSA.token(&claims), now()).expect("good").client(), Some("other"));
}

#[test]
fn scopes_are_words_between_spaces() {
    let world = World::with_keys_of(&[&RSA]);
    for (scope, expected) in [
        (json!("b a  a b"), vec!["a", "b"]),
        (json!(["b", "a", "a"]), vec!["a", "b"]),
        (json!(null), vec![]),
        (json!(""), vec![]),
        (json!("read\tadmin"), vec![]),
        (json!("read\nadmin write"), vec!["write"]),
        (json!(["read admin"]), vec![]),
        (json!("a\"b é"), vec![]),
    ] {
        let who = world.who(&RSA.token(&with("scope", scope.clone())), now()).expect("good");
        assert_eq!(who.scopes().collect::<Vec<_>>(), expected, "{scope}");
    }
    for (claim, value) in [("scope", json!(7)), ("scope", json!([7])), ("groups", json!({}))] {
        assert_eq!(refused(&world, &RSA.token(&with(claim, value.clone()))).kind(), "claim", "{claim} {value}");
    }
    let who = world.who(&RSA.token(&with("groups", json!("two words"))), now()).expect("good");
    assert!(who.is_in("two words") && !who.is_in("two"));
}

#[test]
fn claims_of_other_names_are_read_where_the_settings_say_so() {
    let mut world = World::with_keys_of(&[&RSA]);
    world.config.scopes_claim = "scp".into();
    world.config.groups_claim = "https://us.example/roles".into();
    let mut claims = claims();
    claims["scp"] = json!(["one"]);
    claims["https://us.example/roles"] = json!(["two"]);
    let who = world.who(&RSA.token(&claims), now()).expect("good");
    assert!(who.has_scope("one") && !who.has_scope("read") && who.is_in("two") && !who.is_in("staff"));
}

#[test]
fn who_lacks_a_required_scope_is_known_and_refused() {
    let mut world = World::with_keys_of(&[&RSA]);
    world.config.required_scopes = vec!["read".into(), "admin".into()];
    let refused = refused(&world, &RSA.token(&claims()));
    assert_eq!(refused, Refused::Scope { missing: vec!["admin".into()] });
    let door = world.door();
    for _ in 0..2 {
        assert!(who(&door, &RSA.token(&claims()), now()).is_err(), "also when the token is remembered");
    }
    assert!(world.who(&RSA.token(&with("scope", json!("admin read"))), now()).is_ok());
}

#[test]
fn no_signature_is_no_token() {
    let (world, token) = good();
    let payload = token.split('.').nth(1).expect("a payload");
    for alg in ["none", "None", "NONE", "nOnE", ""] {
        let header = base64(json!({ "alg": alg, "kid": "rsa" }).to_string().as_bytes());
        assert_eq!(refused(&world, &format!("{header}.{payload}.AAAA")).kind(), "algorithm", "{alg}");
        assert_eq!(refused(&world, &format!("{header}.{payload}.")).kind(), "malformed", "{alg}");
        assert_eq!(refused(&world, &format!("{header}.{payload}")).kind(), "malformed", "{alg}");
    }
    let unsigned = &token[..=token.rfind('.').expect("a dot")];
    assert_eq!(refused(&world, unsigned).kind(), "malformed");
    for header in [json!({ "kid": "rsa" }), json!({ "alg": null, "kid": "rsa" }), json!({ "alg": ["RS256"] })] {
        assert_eq!(refused(&world, &RSA.sign(header.to_string(), claims().to_string())).kind(), "algorithm");
    }
}

#[test]
fn a_public_key_is_no_shared_secret() {
    let mut world = World::with_keys_of(&[&RSA]);
    for form in RSA.public_forms() {
        let token = Signer::shared("rsa", &form).token(&claims());
        world.config.algorithms = vec!["RS256".into()];
        assert_eq!(refused(&world, &token).kind(), "algorithm");
        // Also where HS256 is accepted, the key is one for RSA.
        world.config.algorithms.push("HS256".into());
        assert_eq!(refused(&world, &token).kind(), "key_algorithm");
    }
}

#[test]
fn a_shared_secret_is_taken_where_the_operator_says_so() {
    let shared = Signer::shared("shared", b"0123456789abcdefghijklmnopqrstuv");
    let mut world = World::with_keys_of(&[&shared]);
    let token = shared.token(&claims());
    assert_eq!(refused(&world, &token).kind(), "algorithm", "not unless it is listed");
    world.config.algorithms = vec!["HS256".into()];
    assert!(world.who(&token, now()).is_ok());
    fs::set_permissions(world.path("jwks.json"), fs::Permissions::from_mode(0o644)).expect("permissions");
    let error = Door::new(&world.config).expect_err("others may read it");
    assert!(error.contains("chmod 600"), "{error}");
    for weak in [&b"too short"[..], b"a-string-secret-at-least-256-bits-long", &[7; 32]] {
        world.write("jwks.json", &set(&[&Signer::shared("shared", weak)]));
        assert!(Door::new(&world.config).is_err());
    }
}

#[test]
fn the_algorithm_is_the_keys_own() {
    let (ec, ed) = (Signer::ec("ec"), Signer::ed("ed"));
    let mut world = World::with_keys_of(&[&RSA, &ec, &ed]);
    world.config.algorithms.push("PS256".into());
    for kid in ["ec", "ed"] {
        let header = json!({ "alg": "RS256", "kid": kid });
        assert_eq!(refused(&world, &RSA.sign(header.to_string(), claims().to_string())).kind(), "key_algorithm");
    }
    let pss = json!({ "alg": "PS256", "kid": "rsa" });
    let token = RSA.sign(pss.to_string(), claims().to_string());
    assert_eq!(refused(&world, &token).kind(), "key_algorithm", "its alg says RS256");
    let mut any = RSA.jwk();
    any.as_object_mut().expect("an object").remove("alg");
    world.write("jwks.json", json!({ "keys": [any] }).to_string().as_bytes());
    assert!(world.who(&token, now()).is_ok(), "a key that does not say is for all of its kind");
}

#[test]
fn a_key_is_found_by_its_name() {
    let other = Signer::rsa("other", aws_lc_rs::rsa::KeySize::Rsa2048);
    let world = World::with_keys_of(&[&RSA, &other]);
    let signed = |header: Value| RSA.sign(header.to_string(), claims().to_string());
    assert!(world.who(&other.token(&claims()), now()).is_ok());
    assert_eq!(refused(&world, &signed(json!({ "alg": "RS256", "kid": "other" }))).kind(), "signature");
    assert_eq!(refused(&world, &signed(json!({ "alg": "RS256" }))).kind(), "key_algorithm", "either could be meant");
    let world = World::with_keys_of(&[&RSA]);
    assert!(world.who(&signed(json!({ "alg": "RS256" })), now()).is_ok(), "one only can be meant");
    let long = "k".repeat(257);
    for (kid, kind) in [
        (json!("unknown"), "unknown_key"),
        (json!("../../x"), "unknown_key"),
        (json!("' OR 1=1 --"), "unknown_key"),
        (json!("http://169.254.169.254/"), "unknown_key"),
        (json!("RSA"), "unknown_key"),
        (json!(""), "unknown_key"),
        (json!(long), "malformed"),
        (json!(7), "malformed"),
        (json!(null), "malformed"),
        (json!("k".repeat(64 << 10)), "too_long"),
    ] {
        let refused = refused(&world, &signed(json!({ "alg": "RS256", "kid": kid })));
        assert_eq!(refused.kind(), kind);
        assert_eq!(refused.status(), if kind == "too_long" { 431 } else { 401 });
    }
}

#[test]
fn a_header_brings_no_keys_along() {
    let world = World::with_keys_of(&[&RSA]);
    let attacker = Signer::rsa("attacker", aws_lc_rs::rsa::KeySize::Rsa2048);
    let brought = [
        ("jwk", attacker.jwk()),
        ("jku", json!("https://attacker.example/keys")),
        ("x5u", json!("https://attacker.example/cert")),
        ("x5c", json!(["MIIB"])),
    ];
    for (name, value) in brought {
        let header = |signer: &Signer, kid: &str| {
            let mut header = signer.header();
            header["kid"] = kid.into();
            header[name] = value.clone();
            signer.sign(header.to_string(), claims().to_string())
        };
        assert_eq!(refused(&world, &header(&attacker, "attacker")).kind(), "unknown_key", "{name}");
        assert_eq!(refused(&world, &header(&attacker, "rsa")).kind(), "signature", "{name}");
        assert!(world.who(&header(&RSA, "rsa"), now()).is_ok(), "{name} is not read");
    }
}

#[test]
fn forms_that_are_not_understood_are_refused() {
    let (world, token) = good();
    let signed = |header: &str, payload: &str| RSA.sign(header, payload);
    let (header, payload) = (RSA.header().to_string(), claims().to_string());
    for extra in [r#""crit":["exp"]"#, r#""crit":[]"#, r#""crit":null"#, r#""crit":["b64"],"b64":false"#] {
        let header = header.replacen('{', &format!("{{{extra},"), 1);
        assert_eq!(refused(&world, &signed(&header, &payload)).kind(), "critical", "{extra}");
    }
    for extra in [r#""b64":false"#, r#""zip":"DEF""#, r#""enc":"A128GCM""#, r#""cty":"JWT""#, r#""alg":"RS256""#] {
        let header = header.replacen('{', &format!("{{{extra},"), 1);
        assert_eq!(refused(&world, &signed(&header, &payload)).kind(), "malformed", "{extra}");
    }
    for extra in [r#""sub":"bob""#, r#""s\u0075b":"bob""#, r#""exp":9999999999"#, r#""x":{"a":1,"a":2}"#] {
        let payload = payload.replacen('{', &format!("{{{extra},"), 1);
        assert_eq!(refused(&world, &signed(&header, &payload)).kind(), "malformed", "{extra}");
    }
    for payload in ["", "null", "[]", "{", "\u{0}", &token, &format!("\"{token}\""), &format!("{payload} {payload}")] {
        assert_eq!(refused(&world, &signed(&header, payload)).kind(), "malformed", "{payload:.20}");
    }
    assert_eq!(refused(&world, &RSA.sign(&header, b"{\"a\":\"\xff\"}")).kind(), "malformed");
    for text in ["a", "a.b", "a.b.c.d", "a.b.c.d.e", "...", "..", &format!("{token}.x"), &format!(".{token}")] {
        assert_eq!(refused(&world, text).kind(), "malformed", "{text:.20}");
    }
    assert!(refused(&world, "a.b.c.d.e").reason().contains("encrypted"));
}

#[test]
fn the_longest_token_has_a_length() {
    let (world, token) = good();
    let mut padded = claims();
    // Three bytes of the payload are four of the token.
    padded["pad"] = "x".repeat((TOKEN_BYTES_MAX - token.len()) / 4 * 3 - 30).into();
    let token = RSA.token(&padded);
    assert!(token.len() <= TOKEN_BYTES_MAX && token.len() > TOKEN_BYTES_MAX - 100, "{}", token.len());
    assert!(world.who(&token, now()).is_ok());
    let long = "a".repeat(TOKEN_BYTES_MAX + 1);
    assert_eq!(refused(&world, &long), Refused::TooLong { bytes: TOKEN_BYTES_MAX + 1 });
    assert_eq!(refused(&world, &"a".repeat(TOKEN_BYTES_MAX)).kind(), "malformed");
}

#[test]
fn a_token_is_verified_once() {
    let (world, token) = good();
    let door = world.door();
    let first = who(&door, &token, now()).expect("good");
    let second = who(&door, &token, now()).expect("good");
    assert!(Arc::ptr_eq(&first, &second));
    assert_eq!(door.remembered(), 1);
    assert!(who(&door, &token, at(NOW_S + 309)).is_ok(), "within the leeway");
    assert_eq!(who(&door, &token, at(NOW_S + 310)), Err(Refused::Expired { ago_s: 10 }));
    who(&door, &token, now()).expect("good");
    door.sweep(at(NOW_S + 300));
    assert_eq!(door.remembered(), 0);
    for wrong in [RSA.token(&with("aud", json!("x"))), "x.y.z".into()] {
        assert!(who(&door, &wrong, now()).is_err());
    }
    assert_eq!(door.remembered(), 0, "what is refused takes no room");
}

#[test]
fn fewer_scopes_are_fewer_rights_of_the_same_caller() {
    let (world, token) = good();
    let door = world.door();
    let more = who(&door, &token, now()).expect("good");
    let fewer = who(&door, &RSA.token(&with("scope", json!("read"))), now()).expect("good");
    assert_eq!(more.principal(), fewer.principal());
    let rule = super::super::Rule { scopes_any: vec!["write".into()], ..Default::default() };
    let rights = super::super::Rights::new([rule]);
    assert!(rights.may(&more, 0) && !rights.may(&fewer, 0));
    assert_ne!(rights.class(&more), rights.class(&fewer));
}

proptest! {
    #[test]
    fn a_token_with_one_other_character_is_refused(place in any::<prop::sample::Index>(), to in "[A-Za-z0-9._-]") {
        let (world, token) = good();
        let place = place.index(token.len());
        prop_assume!(!token[place..].starts_with(&to));
        let changed = format!("{}{to}{}", &token[..place], &token[place + 1..]);
        prop_assert!(world.who(&changed, now()).is_err());
    }

    #[test]
    fn whatever_is_signed_is_judged(
        header in "\\{(\"(alg|kid|crit|typ)\":(\"(RS256|rsa|JWT)\"|null|[0-9]{1,20}|\\[\\]),?){0,4}\\}",
        payload in "\\{(\"(exp|nbf|iss|aud|sub|scope)\":(\"[a-z ]{0,5}\"|-?[0-9]{1,30}(\\.5|e9)?|null|\\[\\]),?){0,6}\\}",
    ) {
        let (world, _) = good();
        // None of these is whole; what matters is that each gets an answer, the same from both.
        prop_assert!(world.who(&RSA.sign(header, &payload), now()).is_err());
        prop_assert!(world.who(&RSA.sign(RSA.header().to_string(), payload), now()).is_err());
    }

    #[test]
    fn any_bytes_get_an_answer(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let (world, _) = good();
        prop_assert!(world.door().who(Some(&bytes), now()).is_err());
        let bearer = [b"Bearer ", &bytes[..]].concat();
        prop_assert!(world.door().who(Some(&bearer), now()).is_err());
    }
}
