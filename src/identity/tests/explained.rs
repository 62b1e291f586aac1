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
    let steps = explain(&world.config, None, &token, now());
    let all =
        ["settings", "issuer's keys", "form", "header", "signature", "payload", "exp", "nbf", "iat", "iss", "aud"];
    let expected: Vec<_> = all.into_iter().chain(["who", "scopes"]).map(|what| (what, true)).collect();
    assert_eq!(outcomes(&steps), expected);
    assert_eq!(outcome(&steps, "exp"), "expires in 300 s");
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
    let steps = explain(&world.config, None, &other.token(&claims), now());
    let refused: Vec<_> = outcomes(&steps).into_iter().filter(|(_, fine)| !fine).map(|(what, _)| what).collect();
    assert_eq!(refused, ["signature", "exp", "aud", "scopes"]);
    assert_eq!(outcome(&steps, "exp"), "expired 12 s ago");
    assert!(outcome(&steps, "aud").contains("https://other.example/"));
    assert!(!outcome(&steps, "aud").contains('\u{1b}'), "a terminal reads this");
    assert_eq!(outcome(&steps, "scopes"), "the scopes admin are missing; it has read write");
}

#[test]
fn keys_that_were_fetched_count() {
    let world = World::without_keys();
    let token = RSA.token(&claims());
    let steps = explain(&world.config, None, &token, now());
    assert!(outcome(&steps, "signature").contains("no keys of the issuer are known"));
    let steps = explain(&world.config, Some(&set(&[&RSA])), &token, now());
    assert!(steps.iter().all(|step| step.outcome.is_ok()), "{steps:?}");
    let steps = explain(&world.config, Some(b"<html>"), &token, now());
    assert!(outcome(&steps, "issuer's keys").contains("cannot be read"));
}

#[test]
fn settings_and_files_that_are_wrong_are_told() {
    let steps = explain(&Config::default(), None, "a.b.c", now());
    assert!(outcome(&steps, "issuer").contains("auth.issuer is not set"));
    let steps = explain(&Config::default(), None, "bi_x", now());
    assert!(outcome(&steps, "keys file").contains("auth.keys_file is not set"));
    let mut world = World::with_keys_of(&[&RSA]);
    world.config.jwks_file.push('x');
    world.config.algorithms = vec!["none".into()];
    let steps = explain(&world.config, None, &RSA.token(&claims()), now());
    assert!(outcome(&steps, "settings").contains("anybody can write tokens"));
    assert!(outcome(&steps, "issuer's keys").contains("jwks.jsonx"));
    assert!(outcome(&steps, "header").contains("auth.algorithms"));
}
