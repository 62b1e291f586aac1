//! What this is built from: crates of one registry, in versions without flaws that are known. `deny.toml` says which; here
//! it is held against `Cargo.lock` with nothing to install.

use std::{collections::BTreeSet, fs, path::Path};

use toml::{Table, Value};

fn read(name: &str) -> Table {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    text.parse().unwrap_or_else(|e| panic!("{name}: {e}"))
}

fn text<'a>(table: &'a Table, key: &str) -> &'a str {
    table.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn list<'a>(table: &'a Table, key: &str) -> &'a [Value] {
    table.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

/// The numbers of a version; what follows them makes it no older.
fn numbers(version: &str) -> [u64; 3] {
    let mut numbers = version.split(['-', '+']).next().unwrap_or_default().split('.').map(|part| part.parse::<u64>());
    [(); 3].map(|()| numbers.next().unwrap_or(Ok(0)).unwrap_or_else(|e| panic!("{version}: {e}")))
}

/// Whether `rule`, such as `h2@<0.4.16`, is about this version of a crate.
fn bans(rule: &str, name: &str, version: &str) -> bool {
    let (banned, which) = rule.split_once('@').unwrap_or((rule, ""));
    let (than, equal) = (which.strip_prefix('<'), which.strip_prefix('='));
    assert!(which.is_empty() || than.is_some() || equal.is_some(), "{rule} is read by this test as NAME, @< or @=");
    banned == name
        && (which.is_empty()
            || than.is_some_and(|than| numbers(version) < numbers(than))
            || equal.is_some_and(|equal| numbers(version) == numbers(equal)))
}

#[test]
fn versions_are_compared_by_their_numbers() {
    for (rule, version, banned) in [
        ("h2@<0.4.16", "0.4.15", true),
        ("h2@<0.4.16", "0.4.16", false),
        ("h2@<0.4.16", "0.4.9", true),
        ("h2@<0.4.16", "0.10.0", false),
        ("h2@<0.4.16", "1.0.0-rc.1", false),
        ("h2@=0.4.16", "0.4.16", true),
        ("h2@=0.4.16", "0.4.17", false),
        ("h2", "9.9.9", true),
        ("h3@<1.0.0", "0.1.0", false),
    ] {
        assert_eq!(bans(rule, "h2", version), banned, "{rule} {version}");
    }
}

#[test]
fn the_lock_has_no_crate_that_is_banned_and_none_from_elsewhere() {
    let (deny, lock) = (read("deny.toml"), read("Cargo.lock"));
    let section = |name: &str| deny.get(name).and_then(Value::as_table).cloned().unwrap_or_default();
    let (bans_of, sources) = (section("bans"), section("sources"));
    assert_eq!((text(&sources, "unknown-registry"), text(&sources, "unknown-git")), ("deny", "deny"));
    assert_eq!(list(&sources, "allow-git"), &[] as &[Value]);
    let registries: BTreeSet<String> = list(&sources, "allow-registry")
        .iter()
        .filter_map(Value::as_str)
        .map(|url| format!("registry+{url}"))
        .collect();
    let rules: Vec<&str> =
        list(&bans_of, "deny").iter().filter_map(Value::as_table).map(|rule| text(rule, "crate")).collect();
    for least in ["bytes", "crossbeam-channel", "crossbeam-epoch", "h2", "idna", "rmcp"] {
        assert!(rules.iter().any(|rule| rule.starts_with(&format!("{least}@<"))), "deny.toml has no least {least}");
    }
    let packages: Vec<&Table> = list(&lock, "package").iter().filter_map(Value::as_table).collect();
    assert!(packages.len() > 50, "{} packages", packages.len());
    let mut wrong = Vec::new();
    for package in packages {
        let (name, version, source) = (text(package, "name"), text(package, "version"), text(package, "source"));
        if name != env!("CARGO_PKG_NAME") {
            if !registries.contains(source) {
                wrong.push(format!("{name} {version} is from {source:?}"));
            }
            if text(package, "checksum").len() != 64 {
                wrong.push(format!("{name} {version} has no checksum"));
            }
        }
        wrong.extend(
            rules.iter().filter(|rule| bans(rule, name, version)).map(|rule| format!("{name} {version}: {rule}")),
        );
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// The checks of Host, Origin and content are this server's own. What a library has as its default does not matter as long
/// as its listener is not built in.
#[test]
fn no_library_brings_a_listener_of_its_own() {
    let manifest = read("Cargo.toml");
    let rmcp = &manifest["dependencies"]["rmcp"];
    assert_eq!(rmcp["default-features"].as_bool(), Some(false));
    let features: BTreeSet<&str> =
        rmcp["features"].as_array().expect("a list").iter().filter_map(Value::as_str).collect();
    assert_eq!(
        features,
        BTreeSet::from(["request-state", "server"]),
        "a transport of rmcp would need checks of its own"
    );
    let served_by_others = ["axum", "actix-web", "warp", "rocket", "tide", "poem", "tonic"];
    let lock = read("Cargo.lock");
    let found: Vec<&str> = list(&lock, "package")
        .iter()
        .filter_map(|package| Some(text(package.as_table()?, "name")))
        .filter(|name| served_by_others.contains(name))
        .collect();
    assert!(found.is_empty(), "{found:?}");
}
