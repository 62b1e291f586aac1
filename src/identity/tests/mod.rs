//! The door as a whole, with files and keys as they are in use. What belongs to one part alone is tested there.

mod api_keys;
mod explained;
mod fetching;
mod issuer_keys;
mod tokens;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use serde_json::{Value, json};
use tempfile::TempDir;

use super::{
    Config, Door, Explained, Identity, Refused, Step, explain,
    signer::{Signer, set},
};

const ISSUER: &str = "https://issuer.example";
const OURS: &str = "https://us.example/mcp";
/// The time at which all of this happens, in seconds.
const NOW_S: u64 = 2_000_000_000;

fn at(s: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(s)
}

fn now() -> SystemTime {
    at(NOW_S)
}

/// Claims with which a token is good.
fn claims() -> Value {
    json!({
        "iss": ISSUER, "aud": OURS, "sub": "ann", "client_id": "app", "exp": NOW_S + 300, "iat": NOW_S,
        "scope": "read write", "groups": ["staff"],
    })
}

/// A folder with the files that the settings name.
struct World {
    folder: TempDir,
    config: Config,
}

impl World {
    /// One whose issuer has these keys, in a file.
    fn with_keys_of(signers: &[&Signer]) -> Self {
        let mut world = Self::without_keys();
        let path = world.write("jwks.json", &set(signers));
        world.config.jwks_file = path.to_string_lossy().into_owned();
        world
    }

    /// One whose issuer's keys must be fetched.
    fn without_keys() -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let config = Config {
            issuer: ISSUER.into(),
            audience: vec![OURS.into()],
            jwks_url: format!("{ISSUER}/keys"),
            ..Config::default()
        };
        Self { folder, config }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file that is its owner's alone.
    fn write(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, bytes).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).expect("permissions");
        path
    }

    fn door(&self) -> Door {
        Door::new(&self.config).expect("a door")
    }

    /// What the door says of a token, having made sure that the explanation says the same and does not tell the token.
    fn who(&self, token: &str, now: SystemTime) -> Result<Arc<Identity>, Refused> {
        let answer = who(&self.door(), token, now);
        let Explained { steps, who: explained } = explain(&self.config, None, token, now);
        let refusals: Vec<&Step> = steps.iter().filter(|step| step.outcome.is_err()).collect();
        assert_eq!(explained.as_deref(), answer.as_deref().ok(), "it is the same caller");
        match &answer {
            Ok(_) => assert!(refusals.is_empty(), "{refusals:?}"),
            Err(refused) => {
                let reason = refused.reason();
                let said = refusals.iter().any(|step| step.outcome.as_ref().is_err_and(|why| why.contains(&reason)));
                assert!(said, "{reason:?} is not said in {steps:?}");
            }
        }
        let told = format!("{steps:?}");
        for secret in token.split(['.', '_']).filter(|part| part.len() > 20) {
            assert!(!told.contains(secret), "the explanation tells the token: {told}");
        }
        answer
    }
}

fn who(door: &Door, token: &str, now: SystemTime) -> Result<Arc<Identity>, Refused> {
    door.who(Some(format!("Bearer {token}").as_bytes()), now)
}

#[test]
fn nothing_is_not_somebody() {
    let world = World::without_keys();
    assert_eq!(world.door().who(None, now()), Err(Refused::Missing));
    assert_eq!(world.door().who(Some(b"Basic YTpi"), now()), Err(Refused::Scheme));
}

#[test]
fn what_is_not_taken_is_said_to_be_so() {
    let world = World::without_keys();
    let key = format!("bi_0123abcd_{}", "A".repeat(43));
    assert!(matches!(who(&world.door(), &key, now()), Err(Refused::NotTaken(_))));
    let (_, _) = super::keys::create(&world.path("keys.toml"), wanted("ci"), now()).expect("a key");
    let config = Config { keys_file: world.path("keys.toml").to_string_lossy().into_owned(), ..Config::default() };
    let door = Door::new(&config).expect("a door");
    assert!(matches!(who(&door, "e30.e30.e30", now()), Err(Refused::NotTaken(_))));
}

#[test]
fn principals_are_the_same_for_the_next_token_and_for_nobody_else() {
    let who = |issuer: &str, subject: &str, client: Option<&str>, scopes: &[&str]| {
        Identity::new(issuer.into(), subject, client, scopes.iter().copied(), [], Some(now()))
    };
    let ann = who("i", "ann", Some("app"), &["read"]);
    assert_eq!(ann.principal(), who("i", "ann", Some("app"), &[]).principal(), "scopes are judged on each request");
    for other in [
        who("i", "ann", None, &[]),
        who("i", "ann", Some(""), &[]),
        who("i", "annapp", None, &[]),
        who("i", "an", Some("napp"), &[]),
        who("ia", "nn", Some("app"), &[]),
        who("i", "ann;3:app", None, &[]),
        who("i", "3:ann;3:app;", None, &[]),
        who("anonymous", "", None, &[]),
    ] {
        assert_ne!(ann.principal(), other.principal());
        assert_ne!(other.caller(), &crate::call::Caller::ANONYMOUS);
    }
}

proptest::proptest! {
    #[test]
    fn no_two_principals_are_written_the_same(
        one in ("[a1:;]{0,6}", "[a1:;]{0,6}", proptest::option::of("[a1:;]{0,6}")),
        other in ("[a1:;]{0,6}", "[a1:;]{0,6}", proptest::option::of("[a1:;]{0,6}")),
    ) {
        let principal = |(issuer, subject, client): &(String, String, Option<String>)| {
            super::principal(issuer, subject, client.as_deref())
        };
        proptest::prop_assert_eq!(one == other, principal(&one) == principal(&other));
    }
}

fn wanted(subject: &str) -> super::keys::Wanted {
    super::keys::Wanted { subject: subject.into(), scopes: vec!["read".into()], ..Default::default() }
}
