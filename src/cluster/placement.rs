//! Which instances a tool is placed on: those that can run it, and of these, where only so many are to, the same ones
//! whoever asks. Each instance works it out from what it sees of the others; nobody is asked and nobody decides.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};

use super::{
    node::{Node, Status},
    unlike::spread_of,
};

/// The nodes that have `tool`, of those that serve, take calls over and say that they can run it; with `spread`, at most
/// so many. Which they are depends on the names alone, so that a node that comes or goes changes no more than one place
/// of each tool, and not every tool is on the same ones.
pub(crate) fn placed<'v>(tool: &str, spread: Option<usize>, nodes: &'v [Node]) -> Vec<&'v Node> {
    let can = |node: &&Node| {
        node.status == Status::Running && !node.forwards.is_empty() && node.tools.iter().any(|name| name == tool)
    };
    let mut nodes: Vec<_> = nodes.iter().filter(can).collect();
    if let Some(count) = spread {
        nodes.sort_by_cached_key(|node| (std::cmp::Reverse(rank(tool, &node.id)), node.id.clone()));
        nodes.truncate(count);
    }
    nodes
}

/// Leaves to each node of a table those tools that are placed on it, as that node works it out: by its own settings, where
/// it says them, and else by those of `spreads`.
pub(crate) fn shown(nodes: &mut [Node], spreads: &BTreeMap<String, usize>) {
    let all = nodes.to_vec();
    for (node, said) in nodes.iter_mut().zip(&all) {
        // Who does not serve yet, or any more, has what it can run.
        if node.status != Status::Running {
            continue;
        }
        let id = &said.id;
        node.tools.retain(|tool| match spread_of(said, tool).unwrap_or_else(|| spreads.get(tool).copied()) {
            None => true,
            spread => placed(tool, spread, &all).iter().any(|node| node.id == *id),
        });
    }
}

/// How much a node is wanted for a tool.
fn rank(tool: &str, id: &str) -> u64 {
    let digest = Sha256::new().chain_update(tool).chain_update([0]).chain_update(id).finalize();
    digest.iter().take(8).fold(0, |all, byte| all << 8 | u64::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: &str, status: Status, tools: &[&str]) -> Node {
        let tools = tools.iter().map(|tool| (*tool).to_owned()).collect();
        Node { status, tools, forwards: "127.0.0.1:1".into(), ..Node::running(id) }
    }

    fn ids(nodes: Vec<&Node>) -> Vec<&str> {
        nodes.into_iter().map(|node| node.id.as_str()).collect()
    }

    #[test]
    fn who_does_not_serve_or_cannot_run_it_has_it_not() {
        let nodes = [
            node("a", Status::Running, &["x", "y"]),
            node("b", Status::Stopping, &["x", "y"]),
            node("c", Status::Running, &["y"]),
            node("d", Status::Starting, &["x"]),
        ];
        assert_eq!(ids(placed("x", None, &nodes)), ["a"]);
        assert_eq!(ids(placed("y", None, &nodes)), ["a", "c"]);
        assert_eq!(ids(placed("y", Some(5), &nodes)).len(), 2);
        assert_eq!(placed("z", Some(1), &nodes), [] as [&Node; 0]);
    }

    #[test]
    fn a_node_that_goes_moves_one_place_and_tools_are_on_different_nodes() {
        let tools: Vec<String> = (0..200).map(|number| format!("tool_{number}")).collect();
        let names: Vec<&str> = tools.iter().map(String::as_str).collect();
        let nodes: Vec<Node> = (0..5).map(|number| node(&format!("n{number}"), Status::Running, &names)).collect();
        let mut counts = [0; 5];
        for tool in &names {
            let before = ids(placed(tool, Some(2), &nodes));
            assert_eq!(before.len(), 2);
            for id in &before {
                counts[nodes.iter().position(|node| node.id == **id).expect("one of them")] += 1;
            }
            let left: Vec<Node> = nodes.iter().filter(|node| node.id != before[0]).cloned().collect();
            let after = ids(placed(tool, Some(2), &left));
            assert!(after.contains(&before[1]), "{tool}: {before:?} {after:?}");
            let third: Vec<Node> =
                nodes.iter().filter(|node| !before.contains(&node.id.as_str())).take(1).cloned().collect();
            let without: Vec<Node> = nodes.iter().filter(|node| node.id != third[0].id).cloned().collect();
            assert_eq!(ids(placed(tool, Some(2), &without)), before, "who has it not changes nothing by going");
        }
        assert!(counts.iter().all(|count| (50..110).contains(count)), "{counts:?}");
    }

    #[test]
    fn a_table_shows_where_tools_are() {
        let spreads = |count| BTreeMap::from([("few".to_owned(), count)]);
        let can = ["a", "b", "c"].map(|id| node(id, Status::Running, &["all", "few"]));
        let count = |nodes: &[Node], tools: &[&str]| nodes.iter().filter(|node| node.tools == tools).count();
        let mut nodes = can.clone();
        shown(&mut nodes, &spreads(1));
        assert_eq!((count(&nodes, &["all", "few"]), count(&nodes, &["all"])), (1, 2), "none says how it is set");
        let say = |placed: &str| can.clone().map(|node| Node { placed: Some(vec![placed.into()]), ..node });
        let mut nodes = say("few??2");
        shown(&mut nodes, &spreads(1));
        assert_eq!((count(&nodes, &["all", "few"]), count(&nodes, &["all"])), (2, 1), "what they say counts");
        let mut nodes = say("few?web?");
        shown(&mut nodes, &spreads(1));
        assert_eq!(count(&nodes, &["all", "few"]), 3);
        // Without tools that are placed nobody takes calls over, and each has what it can run.
        let mut nodes = can.map(|node| Node { placed: Some(Vec::new()), forwards: String::new(), ..node });
        shown(&mut nodes, &spreads(1));
        assert_eq!(count(&nodes, &["all", "few"]), 3);
    }

    #[test]
    fn where_settings_differ_each_node_has_what_it_thinks_that_it_has() {
        let mut nodes = ["a", "b", "c"].map(|id| node(id, Status::Running, &["few"]));
        let first = placed("few", Some(1), &nodes)[0].id.clone();
        let other = nodes.iter().position(|node| node.id != first).expect("two others");
        let other_id = nodes[other].id.clone();
        for node in &mut nodes {
            node.placed = Some(if node.id == other_id { Vec::new() } else { vec!["few??1".into()] });
        }
        shown(&mut nodes, &BTreeMap::new());
        let has: Vec<_> = nodes.iter().filter(|node| !node.tools.is_empty()).map(|node| node.id.clone()).collect();
        assert_eq!(has.len(), 2, "{has:?}");
        assert!(has.contains(&first) && has.contains(&other_id), "{has:?}");
    }
}
