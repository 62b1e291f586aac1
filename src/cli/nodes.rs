//! `bigiron nodes`: the instances that share a Redis, as a table or as JSON. Reads the same settings as they do, and
//! changes nothing.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::Args;
use serde_json::json;

use super::SettingsArguments;
use crate::{
    cluster::{self, Config, Endpoint, JoinError, Node},
    server::spreads,
};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    settings: SettingsArguments,

    /// Print JSON: {"nodes": [...]}, with the tools of each
    #[arg(long)]
    json: bool,
}

pub(super) fn run(arguments: Arguments) -> ExitCode {
    let loaded = match arguments.settings.load() {
        Ok(loaded) => loaded,
        Err(code) => return code,
    };
    let config = &loaded.tuning.cluster;
    let told = |message: &str, code: u8| {
        let _ = writeln!(io::stderr().lock(), "bigiron nodes: {message}");
        ExitCode::from(code)
    };
    if !config.is_on() {
        return told("an instance with these settings is alone: cluster.redis names no Redis", super::EXIT_CONFIG);
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return told(&error.to_string(), 1),
    };
    match runtime.block_on(cluster::nodes(config, &spreads(&loaded.tuning))) {
        Ok((nodes, differences)) => {
            // Where a script does not look for nodes.
            for what in differences {
                let _ = writeln!(io::stderr().lock(), "bigiron nodes: warning: instances differ: {}", plain(&what));
            }
            super::print(&match nodes.is_empty() {
                _ if arguments.json => format!("{}\n", json!({ "nodes": nodes })),
                true => nobody(config),
                false => table(&nodes),
            })
        }
        Err(JoinError::Setting(setting, why)) => told(&format!("{setting}: {why}"), super::EXIT_CONFIG),
        Err(JoinError::Away(why)) => told(&format!("{} does not say: {why}", at(config)), 1),
    }
}

/// Where they were looked for.
fn at(config: &Config) -> String {
    Endpoint::parse(&config.redis).map_or_else(|_| "Redis".to_owned(), |endpoint| endpoint.to_string())
}

fn nobody(config: &Config) -> String {
    format!(
        "no instance of {:?} (cluster.id) is there: nobody has a heartbeat under {}* (cluster.key_prefix) at {}\n",
        config.id,
        config.key_prefix,
        at(config)
    )
}

/// What others wrote into Redis, as a terminal may have it.
fn plain(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

const HEADS: [&str; 7] = ["ID", "STATUS", "HEARTBEAT", "LOAD", "ADDRESS", "VERSION", "ROLES"];

fn table(nodes: &[Node]) -> String {
    let rows = nodes.iter().map(|node| {
        [
            node.id.clone(),
            format!("{}{}", node.status, if node.is_late() { ", late" } else { "" }),
            format!("{}.{} s ago", node.heartbeat_age_ms / 1000, node.heartbeat_age_ms % 1000 / 100),
            format!("{}/{}", node.load, node.max_load),
            node.address.clone(),
            node.version.clone(),
            node.roles.join(" "),
        ]
    });
    let rows: Vec<[String; 7]> = std::iter::once(HEADS.map(str::to_owned)).chain(rows).collect();
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: [usize; 7] = std::array::from_fn(width);
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{:width$}", plain(cell)));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::Status;

    #[test]
    fn columns_stand_below_each_other() {
        let node = |id: &str, heartbeat_age_ms| Node {
            id: id.into(),
            status: Status::Running,
            heartbeat_age_ms,
            heartbeat_s: 5,
            load: 1,
            max_load: 200,
            address: "http://127.0.0.1:5000/mcp\u{1b}[2J".into(),
            forwards: String::new(),
            node_key: String::new(),
            version: "0.1.0".into(),
            roles: vec!["files".into(), "web".into()],
            tools: Vec::new(),
            placed: None,
        };
        let text = table(&[node("a", 90), node("longer-name", 12_340)]);
        assert!(
            text.lines().all(|line| line.ends_with("VERSION  ROLES") || line.ends_with("0.1.0    files web")),
            "{text}"
        );
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 3);
        assert!(lines[0].starts_with("ID           STATUS         HEARTBEAT"), "{text}");
        assert!(lines[1].contains("running        0.0 s ago   1/200"), "{text}");
        assert!(lines[2].contains("running, late  12.3 s ago  1/200"), "{text}");
        assert!(!text.contains('\u{1b}'), "nothing of another instance reaches the terminal as it is");
    }
}
