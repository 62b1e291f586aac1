//! What an operator reads of a token. That it says what the door says is tested with every token of the other files.

use super::{super::signer::RSA, *};

fn outcomes(steps: &[Step]) -> Vec<(&str, bool)> {
    steps.iter().map(|step| (step.what, step.outcome.is_ok())).collect()
}

fn outcome<'a>(steps: &'a [Step], what: &str) -> &'a str {
    let step = steps.iter().find(|step| step.what == what).expect(what);
    match &step.outcome {
        Ok(found) => found,
        Err(why) => why,
    }
}

#[test]
fn every_step_of_a_good_token_is_told() {
    let world = World::with_keys_of(&[&RSA]);
    let token = format!("{}\n", RSA.token(&claims()));
    let steps = explain(&world.config, None, &token, now()).steps;
    let all =
        ["settings", "issuer's keys", "form", "header", "signature", "payload", "exp", "nbf", "iat", "iss", "aud"];
    let expected: Vec<_> = all.into_iter().chain(["who", "scopes"]).map(|what| (what, true)).collect();
    assert_eq!(outcomes(&steps), expected);
    assert_eq!(outcome(&steps, "exp"), "expires in 5 min");
    assert_eq!(outcome(&steps, "who"), "subject \"ann\", client \"app\", groups \"staff\"");
    assert_eq!(outcome(&steps, "scopes"), "it has read write");
}

#[test]
fn all_that_is_wrong_is_told_at_once() {
    let mut world = World::with_keys_of(&[&RSA]);
    world.config.required_scopes = vec!["admin".into()];
    let other = Signer::rsa("rsa", aws_lc_rs::rsa::KeySize::Rsa2048);
    let mut claims = claims();
    claims["exp"] = json!(NOW_S - 12);
    claims["aud"] = json!("https://other.example/\u{1b}[31m");
    let steps = explain(&world.config, None, &other.token(&claims), now()).steps;
    let refused: Vec<_> = outcomes(&steps).into_iter().filter(|(_, fine)| !fine).map(|(what, _)| what).collect();
    assert_eq!(refused, ["signature", "exp", "aud", "scopes"]);
    assert_eq!(outcome(&steps, "exp"), "expired 12 s ago");
    assert!(outcome(&steps, "aud").starts_with("aud is \"https://other.example/"), "quoted once");
    assert!(!outcome(&steps, "aud").contains('\u{1b}'), "a terminal reads this");
    assert_eq!(outcome(&steps, "scopes"), "the scopes admin are missing; it has read write");
}

#[test]
fn keys_that_were_fetched_count() {
    let world = World::without_keys();
    let token = RSA.token(&claims());
    let steps = explain(&world.config, None, &token, now()).steps;
    assert!(outcome(&steps, "issuer's keys").contains("what auth.jwks_url answers by --jwks"));
    assert!(steps.iter().all(|step| step.what != "signature"), "it is not what is wrong");
    let steps = explain(&world.config, Some(&set(&[&RSA])), &token, now()).steps;
    assert!(steps.iter().all(|step| step.outcome.is_ok()), "{steps:?}");
    let steps = explain(&world.config, Some(b"<html>"), &token, now()).steps;
    assert!(outcome(&steps, "issuer's keys").contains("cannot be read"));
}

#[test]
fn what_is_around_a_token_is_left_out_and_what_is_none_is_said_to_be_none() {
    let world = World::with_keys_of(&[&RSA]);
    let token = RSA.token(&claims());
    for text in [format!("Bearer {token}"), format!("authorization: bearer {token}\r\n"), format!(" {token} ")] {
        let steps = explain(&world.config, None, &text, now()).steps;
        assert!(steps.iter().all(|step| step.outcome.is_ok()), "{text}: {steps:?}");
    }
    for (text, expected) in [
        ("\n", "there is nothing in it"),
        ("{\"access_token\": \"a.b.c\"}", "the value of its access_token alone"),
        ("a.b.c d.e.f", "write it alone"),
    ] {
        let steps = explain(&world.config, None, text, now()).steps;
        assert!(outcome(&steps, "file").contains(expected), "{steps:?}");
    }
    let steps = explain(&world.config, None, "abc", now()).steps;
    assert!(outcome(&steps, "form").contains("no dots"), "{steps:?}");
    let mut claims = claims();
    claims["aud"] = json!(["one", "two"]);
    let steps = explain(&world.config, None, &RSA.token(&claims), now()).steps;
    assert_eq!(outcome(&steps, "aud"), "aud is [\"one\", \"two\"], which has none of auth.audience");
    let steps = explain(&Config::default(), None, "bi_x", now()).steps;
    assert_eq!(outcome(&steps, "settings"), "[auth] is off: nobody is asked");
}

#[test]
fn settings_and_files_that_are_wrong_are_told() {
    let steps = explain(&Config::default(), None, "a.b.c", now()).steps;
    assert!(outcome(&steps, "issuer").contains("auth.issuer is not set"));
    let steps = explain(&Config::default(), None, "bi_x", now()).steps;
    assert!(outcome(&steps, "keys file").contains("auth.keys_file is not set"));
    let mut world = World::with_keys_of(&[&RSA]);
    world.config.jwks_file.push('x');
    world.config.algorithms = vec!["none".into()];
    let steps = explain(&world.config, None, &RSA.token(&claims()), now()).steps;
    assert!(outcome(&steps, "settings").contains("anybody can write tokens"));
    assert!(outcome(&steps, "issuer's keys").contains("jwks.jsonx"));
    assert!(outcome(&steps, "header").contains("auth.algorithms"));
}
