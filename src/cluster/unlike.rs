//! What is to be equal on all instances and is not: found by who comes, in what the others say of themselves. Nothing
//! is refused for it, since settings change one instance after the other.

use std::collections::BTreeMap;

use super::node::Node;

/// Differences that are told; of more than this there is one cause.
const TOLD_MAX: usize = 10;
const UNSET: &str = "not set";
const KEY_IN_REDIS: &str = "the one in Redis";
const KEYS_ADVICE: &str = "give all the same file, or none, since those of different keys hand no calls to each other; a \
                           fingerprint is the beginning of what `tr -d '\\r\\n' < FILE | sha256sum` says";

/// Where a tool is to be, as one instance is set: its roles and how many, each as in the settings.
type Places<'n> = BTreeMap<&'n str, [String; 2]>;
const SETTINGS: [&str; 2] = ["roles", "spread"];

/// How an instance says where a tool is to be. Names of tools and roles have no such signs in them.
pub(crate) fn place(tool: &str, roles: &[String], spread: Option<usize>) -> String {
    let mut roles = roles.to_vec();
    roles.sort_unstable();
    roles.dedup();
    let spread = spread.map(|count| count.to_string()).unwrap_or_default();
    format!("{tool}?{}?{spread}", roles.join(","))
}

/// How many instances of those that can are to have a tool, as this one is set. None where it does not say, as one of
/// an earlier version.
pub(super) fn spread_of(node: &Node, tool: &str) -> Option<Option<usize>> {
    let mut places = node.placed.as_ref()?.iter().filter_map(|text| text.split_once('?'));
    let place = places.find(|(name, _)| *name == tool).map(|(_, rest)| rest);
    Some(place.and_then(|rest| rest.split_once('?')?.1.parse().ok()))
}

fn places(node: &Node) -> Option<Places<'_>> {
    let of = |text: &'_ str| {
        let (roles, spread) = text.split_once('?').unwrap_or_default();
        let roles: Vec<_> = roles.split(',').filter(|role| !role.is_empty()).collect();
        let or_unset = |is_set: bool, text: String| if is_set { text } else { UNSET.to_owned() };
        [or_unset(!roles.is_empty(), format!("{roles:?}")), or_unset(!spread.is_empty(), spread.to_owned())]
    };
    let places = node.placed.as_ref()?.iter().filter_map(|text| text.split_once('?'));
    Some(places.map(|(tool, rest)| (tool, of(rest))).collect())
}

/// What differs, in words: the setting, both values, and whose the other is.
pub(super) fn unlike(own: &Node, all: &[Node]) -> Vec<String> {
    let others = || all.iter().filter(|node| node.id != own.id);
    let mut found = Vec::new();
    // An instance of an earlier version says neither.
    let beats = others().filter(|node| node.heartbeat_s != 0).map(|node| (node, node.heartbeat_s.to_string()));
    if let Some(theirs) = told(&own.heartbeat_s.to_string(), beats) {
        found.push(format!(
            "cluster.heartbeat_s is {} here, and {theirs}: set it to the same on all, since their list expires by that of \
             who wrote it last, and who beats more seldom is in none until it beats again",
            own.heartbeat_s
        ));
    }
    if let Some(own_key) = key_of(own)
        && let Some(theirs) = told(own_key, others().filter_map(|node| Some((node, key_of(node)?.to_owned()))))
    {
        found.push(format!("cluster.node_key_file: the key is {own_key} here, and {theirs}: {KEYS_ADVICE}"));
    }
    let own_places = places(own).unwrap_or_default();
    let theirs: Vec<_> = others().filter_map(|node| Some((node, places(node)?))).collect();
    let mut tools: Vec<&str> =
        theirs.iter().flat_map(|(_, places)| places.keys()).chain(own_places.keys()).copied().collect();
    tools.sort_unstable();
    tools.dedup();
    let unset = || [UNSET.to_owned(), UNSET.to_owned()];
    for tool in tools {
        let own = own_places.get(tool).cloned().unwrap_or_else(unset);
        for (at, setting) in SETTINGS.into_iter().enumerate() {
            let value =
                |places: &Places<'_>| places.get(tool).map_or_else(|| UNSET.to_owned(), |place| place[at].clone());
            let theirs = theirs.iter().map(|(node, places)| (*node, value(places)));
            if let Some(theirs) = told(&own[at], theirs) {
                found.push(format!(
                    "tools.{tool}.{setting} is {} here, and {theirs}: set it to the same on all, since each instance \
                     works out by itself where a tool is",
                    own[at]
                ));
            }
        }
    }
    found.truncate(TOLD_MAX);
    found
}

/// The key of an instance, as its settings decide it. One that is in Redis is that of all who have no file, or will be
/// in a moment.
fn key_of(node: &Node) -> Option<&str> {
    match node.node_key.split_once(':')? {
        ("redis", _) => Some(KEY_IN_REDIS),
        _ => Some(&node.node_key),
    }
}

/// Where instances differ in their keys and in where a tool is to be, in words, for who is none of them.
pub(super) fn among(all: &[Node]) -> Vec<String> {
    let said: Vec<_> = all.iter().filter_map(|node| Some((node, places(node)?))).collect();
    let mut tools: Vec<&str> = said.iter().flat_map(|(_, places)| places.keys()).copied().collect();
    tools.sort_unstable();
    tools.dedup();
    let mut found = Vec::new();
    let keys: Vec<_> = all.iter().filter_map(|node| Some((node, key_of(node)?.to_owned()))).collect();
    if keys.iter().any(|(_, key)| keys.first().is_some_and(|(_, first)| first != key))
        && let Some(keys) = told("", keys.into_iter())
    {
        found.push(format!("cluster.node_key_file: the key is {keys}: {KEYS_ADVICE}"));
    }
    for tool in tools {
        for (at, setting) in SETTINGS.into_iter().enumerate() {
            let value =
                |places: &Places<'_>| places.get(tool).map_or_else(|| UNSET.to_owned(), |place| place[at].clone());
            let values: Vec<_> = said.iter().map(|(node, places)| (*node, value(places))).collect();
            if values.iter().any(|(_, value)| values.first().is_some_and(|(_, first)| first != value))
                && let Some(values) = told("", values.into_iter())
            {
                found.push(format!(
                    "tools.{tool}.{setting} is {values}: set it to the same on all, since each instance works out by \
                     itself where a tool is"
                ));
            }
        }
    }
    found.truncate(TOLD_MAX);
    found
}

/// The values that are others than this one, each with whose it is.
fn told<'n>(own: &str, theirs: impl Iterator<Item = (&'n Node, String)>) -> Option<String> {
    let mut others: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for (node, value) in theirs.filter(|(_, value)| value != own) {
        others.entry(value).or_default().push(format!("{:?}", node.id));
    }
    let others: Vec<_> = others.into_iter().map(|(value, ids)| format!("{value} at {}", ids.join(", "))).collect();
    (!others.is_empty()).then(|| others.join(", and "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: &str, heartbeat_s: u64, placed: Option<&[String]>) -> Node {
        Node { heartbeat_s, placed: placed.map(<[String]>::to_vec), ..Node::running(id) }
    }

    #[test]
    fn what_differs_is_told_with_both_values_and_whose_they_are() {
        let roles = |roles: &[&str]| roles.iter().map(|role| (*role).to_owned()).collect::<Vec<_>>();
        let a = [place("echo", &[], Some(2)), place("read_file", &roles(&["files", "disk"]), None)];
        let c = [place("echo", &[], Some(2)), place("read_file", &roles(&["web"]), None), place("burn", &[], Some(1))];
        let (own, old) = (node("c", 30, Some(&c)), node("old", 0, None));
        let all = [node("a", 5, Some(&a)), node("b", 5, Some(&a)), own.clone(), old];
        let found = unlike(&own, &all);
        let parts = [
            "cluster.heartbeat_s is 30 here, and 5 at \"a\", \"b\"",
            "tools.burn.spread is 1 here, and not set at \"a\", \"b\"",
            "tools.read_file.roles is [\"web\"] here, and [\"disk\", \"files\"] at \"a\", \"b\"",
        ];
        assert_eq!(found.len(), parts.len(), "{found:?}");
        assert!(found.iter().zip(parts).all(|(told, part)| told.starts_with(part)), "{found:?}");
        let same = [place("read_file", &roles(&["disk", "files", "disk"]), None), place("echo", &[], Some(2))];
        assert_eq!(unlike(&node("d", 5, Some(&same)), &all[..2]), [""; 0], "the order says nothing");
        let among = among(&all);
        let parts = [
            "tools.burn.spread is 1 at \"c\", and not set at \"a\", \"b\":",
            "tools.read_file.roles is [\"disk\", \"files\"] at \"a\", \"b\", and [\"web\"] at \"c\":",
        ];
        assert_eq!(among.len(), parts.len(), "{among:?}");
        assert!(among.iter().zip(parts).all(|(told, part)| told.starts_with(part)), "{among:?}");
        assert_eq!(super::among(&all[..2]), [""; 0]);
        let spreads = all.each_ref().map(|node| spread_of(node, "burn"));
        assert_eq!(spreads, [Some(None), Some(None), Some(Some(1)), None]);
        let unset = unlike(&node("e", 5, Some(&[])), &all[..1]);
        let keyed = |id: &str, key: &str| Node { node_key: key.into(), ..node(id, 5, None) };
        let all =
            [keyed("a", "file:0a1b2c3d"), keyed("b", "redis:11111111"), keyed("c", "redis:22222222"), keyed("d", "")];
        let found = unlike(&keyed("e", "file:99999999"), &all);
        let told =
            "the key is file:99999999 here, and file:0a1b2c3d at \"a\", and the one in Redis at \"b\", \"c\": give";
        assert!(found.len() == 1 && found[0].contains(told), "{found:?}");
        let found = super::among(&all);
        let told = "the key is file:0a1b2c3d at \"a\", and the one in Redis at \"b\", \"c\": give";
        assert!(found.len() == 1 && found[0].contains(told), "{found:?}");
        assert_eq!(super::among(&all[1..]), [""; 0], "what is in Redis all will have");
        assert_eq!(unlike(&keyed("e", "redis:33333333"), &all[1..]), [""; 0]);
        assert_eq!(unset.len(), 2, "{unset:?}");
        assert!(unset[0].starts_with("tools.echo.spread is not set here, and 2 at \"a\""), "{unset:?}");
    }
}
