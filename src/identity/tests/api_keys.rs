//! API keys, from making to revoking.

use super::{
    super::keys::{self, Moment, Record},
    *,
};

fn world() -> World {
    let folder = tempfile::tempdir().expect("a folder");
    let config =
        Config { keys_file: folder.path().join("keys.toml").to_string_lossy().into_owned(), ..Config::default() };
    World { folder, config }
}

impl World {
    fn key(&self, wanted: keys::Wanted) -> (Record, String) {
        let (record, key) = keys::create(&self.path("keys.toml"), wanted, now()).expect("a key");
        (record, key.expose().to_owned())
    }
}

#[test]
fn a_key_says_who_it_is() {
    let world = world();
    let wanted = keys::Wanted { groups: vec!["b".into(), "a".into()], note: "for the build".into(), ..wanted("ci") };
    let (record, key) = world.key(wanted);
    assert!(key.starts_with(&format!("bi_{}_", record.id)) && key.len() == 55, "{}", key.len());
    let who = world.who(&key, now()).expect("good");
    assert_eq!((who.subject(), who.client(), who.expires_at()), ("ci", None, None));
    assert!(who.has_scope("read") && who.is_in("a") && who.is_in("b"));
    assert_eq!(who.principal(), "12:bigiron:keys;2:ci;");
    assert!(crate::identity::is_principal(who.principal()) && crate::identity::is_principal("1:i;3:ann;1:c;"));
    for no in
        ["", "ci", "anonymous", "12:bigiron:keys;", "12:bigiron:keys;2:ci", "3:i;3:ann;", "1:i;+2:ci;", "1:i;9:é;"]
    {
        assert!(!crate::identity::is_principal(no), "{no}");
    }
    let (_, next) = world.key(super::wanted("ci"));
    assert_ne!(key, next);
    let next = world.who(&next, now()).expect("good");
    assert_eq!(next.principal(), who.principal(), "the next key of a subject is the same caller");
}

#[test]
fn the_file_has_no_secret_and_is_readable() {
    let world = world();
    let (record, key) = world.key(wanted("ci"));
    let text = fs::read_to_string(world.path("keys.toml")).expect("a file");
    assert!(!text.contains(&key[12..]), "the secret is in the file");
    for part in ["[[key]]", "subject = \"ci\"", "created = \"2033-05-18T03:33:20Z\"", &record.id] {
        assert!(text.contains(part), "{part} is not in:\n{text}");
    }
    assert_eq!(keys::list(&world.path("keys.toml")), Ok(vec![record]));
    let mode = fs::metadata(world.path("keys.toml")).expect("a file").permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn what_is_nearly_a_key_is_none() {
    let world = world();
    let (record, key) = world.key(wanted("ci"));
    let (other, _) = world.key(wanted("other"));
    let last = if key.ends_with('A') { 'B' } else { 'A' };
    for wrong in [
        format!("{}{last}", &key[..key.len() - 1]),
        key.replace(&record.id, &other.id),
        key.replace(&record.id, "ffffffff"),
    ] {
        assert_eq!(world.who(&wrong, now()), Err(Refused::UnknownApiKey));
    }
    for wrong in [
        "bi_".to_owned(),
        format!("bi_{}", record.id),
        format!("{key}A"),
        key[..key.len() - 1].to_owned(),
        key.replace(&record.id, &record.id.to_uppercase().replace(char::is_numeric, "A")),
        format!("bi_{}_{}", record.id, record.sha256),
    ] {
        assert!(matches!(world.who(&wrong, now()), Err(Refused::Format(_))));
    }
    assert!(who(&world.door(), &key.replace("bi_", "BI_"), now()).is_err());
}

#[test]
fn a_key_expires_to_the_second() {
    let world = world();
    let expires = Some(Moment::parse("2033-05-18T03:34:20Z").expect("a time"));
    let (record, key) = world.key(keys::Wanted { expires, ..wanted("ci") });
    assert!(world.who(&key, at(NOW_S + 59)).is_ok());
    let door = world.door();
    assert!(who(&door, &key, at(NOW_S + 59)).is_ok());
    let expected = Refused::ApiKeyExpired { id: record.id, ago_s: 0 };
    assert_eq!(who(&door, &key, at(NOW_S + 60)), Err(expected));
    let past = keys::Wanted { expires: Some(Moment::from_time(now()).expect("a time")), ..wanted("ci") };
    let error = keys::create(&world.path("keys.toml"), past, now()).expect_err("refused");
    assert!(error.contains("future"), "{error}");
}

#[test]
fn a_revoked_key_is_refused_once_the_file_is_read_again() {
    let world = world();
    let (gone, key) = world.key(wanted("ci"));
    let (_, stays) = world.key(wanted("other"));
    let door = world.door();
    assert!(who(&door, &key, now()).is_ok());
    assert_eq!(door.reload_if_changed(), Ok(None));
    assert_eq!(keys::revoke(&world.path("keys.toml"), &gone.id), Ok(gone.clone()));
    let news = door.reload_if_changed().expect("read").expect("it changed");
    assert!(news.ends_with(&format!("keys.toml: 1 keys, gone: {}", gone.id)), "{news}");
    assert_eq!(who(&door, &key, now()), Err(Refused::UnknownApiKey));
    assert!(who(&door, &stays, now()).is_ok());
    let error = keys::revoke(&world.path("keys.toml"), &gone.id).expect_err("gone already");
    assert!(error.contains("key list"), "{error}");
    let (made, new) = world.key(wanted("new"));
    assert!(who(&door, &new, now()).is_err());
    let news = door.reload_if_changed().expect("read").expect("it changed");
    assert!(news.ends_with(&format!("keys.toml: 2 keys, new: {}", made.id)), "{news}");
    assert!(who(&door, &new, now()).is_ok());
}

#[test]
fn a_file_that_went_bad_is_said_to_be_and_what_was_known_stays() {
    let world = world();
    let (_, key) = world.key(wanted("ci"));
    let door = world.door();
    let good = fs::read(world.path("keys.toml")).expect("a file");
    world.write("keys.toml", b"[[key]]\nid = 7\n");
    let error = door.reload_if_changed().expect_err("no key file");
    assert!(error.contains("keys.toml: line 2:"), "{error}");
    fs::set_permissions(world.path("keys.toml"), fs::Permissions::from_mode(0o660)).expect("permissions");
    assert!(door.reload_if_changed().expect_err("others may write it").contains("chmod 600"));
    fs::remove_file(world.path("keys.toml")).expect("removed");
    assert!(door.reload_if_changed().expect_err("no file").contains("keys.toml"));
    assert!(who(&door, &key, now()).is_ok());
    world.write("keys.toml", &good);
    assert!(door.reload_if_changed().is_ok_and(|news| news.is_some()));
    assert_eq!(door.reload_if_changed(), Ok(None));
}

#[test]
fn a_file_that_others_can_read_opens_no_door() {
    let world = world();
    world.key(wanted("ci"));
    for mode in [0o640, 0o604, 0o620, 0o602, 0o777] {
        fs::set_permissions(world.path("keys.toml"), fs::Permissions::from_mode(mode)).expect("permissions");
        let error = Door::new(&world.config).expect_err("refused");
        assert!(error.contains("chmod 600"), "{error}");
        assert!(keys::create(&world.path("keys.toml"), wanted("x"), now()).is_err());
        assert!(keys::list(&world.path("keys.toml")).is_err());
    }
    fs::set_permissions(world.path("keys.toml"), fs::Permissions::from_mode(0o400)).expect("permissions");
    assert!(Door::new(&world.config).is_ok());
}

#[test]
fn what_is_wrong_in_a_file_is_named() {
    let world = world();
    let error = Door::new(&world.config).expect_err("no file");
    assert!(error.contains("bigiron key create"), "{error}");
    let sha256 = "0".repeat(64);
    let key = |id: &str, sha256: &str, rest: &str| {
        let created = "created = \"2033-05-18T03:33:20Z\"";
        format!("[[key]]\nid = \"{id}\"\nsha256 = \"{sha256}\"\n{created}\n{rest}\n")
    };
    let good = key("0123abcd", &sha256, "subject = \"a\"");
    for (text, expected) in [
        (format!("{good}{good}"), "twice"),
        (key("0123ABCD", &sha256, "subject = \"a\""), "8 digits"),
        (key("0123abcd", "00", "subject = \"a\""), "64 hexadecimal"),
        (key("0123abcd", &sha256, "subject = \"\""), "needs a subject"),
        (key("0123abcd", &sha256, ""), "subject"),
        (key("0123abcd", &sha256, "subject = \"a\"\nscopes = [\"a b\"]"), "no scope"),
        (key("0123abcd", &sha256, "subject = \"a\"\ngroups = [\"\"]"), "no name"),
        (key("0123abcd", &sha256, "subject = \"a\"\nexpires = \"soon\""), "2026-01-31T12:00:00Z"),
        (key("0123abcd", &sha256, "subject = \"a\"\nadmin = true"), "admin"),
        ("[[keys]]".into(), "keys"),
    ] {
        world.write("keys.toml", text.as_bytes());
        let error = Door::new(&world.config).expect_err(expected);
        assert!(error.contains(expected) && error.contains("keys.toml"), "{error}");
    }
    world.write("keys.toml", good.as_bytes());
    assert!(Door::new(&world.config).is_ok());
    for wrong in ["", "a\nb"] {
        assert!(keys::create(&world.path("keys.toml"), wanted(wrong), now()).is_err());
    }
    assert_eq!(keys::list(&world.path("keys.toml")).map(|all| all.len()), Ok(1), "a refused wish changes nothing");
}

#[test]
fn who_write_at_once_lose_nothing() {
    let world = world();
    let path = world.path("keys.toml");
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| (0..5).for_each(|_| drop(keys::create(&path, wanted("ci"), now()).expect("a key"))));
        }
    });
    assert_eq!(keys::list(&path).map(|all| all.len()), Ok(20));
}

#[test]
fn a_link_to_the_file_stays_a_link() {
    let world = world();
    let (_, _) = world.key(wanted("ci"));
    let link = world.path("link.toml");
    std::os::unix::fs::symlink(world.path("keys.toml"), &link).expect("a link");
    keys::create(&link, wanted("other"), now()).expect("a key");
    assert!(fs::symlink_metadata(&link).expect("a link").is_symlink());
    assert_eq!(keys::list(&world.path("keys.toml")).map(|all| all.len()), Ok(2));
}

#[test]
fn required_scopes_are_required_of_keys_too() {
    let mut world = world();
    let (_, key) = world.key(wanted("ci"));
    world.config.required_scopes = vec!["write".into()];
    assert_eq!(world.who(&key, now()), Err(Refused::Scope { missing: vec!["write".into()] }));
}
