//! The tools that ship with the binary: read-only, confined to one folder. `root` is the confinement and the only
//! way to a file; each other file is one tool. None of them writes, runs a program or opens a connection.

mod measure;
mod output;
mod query_json;
mod query_sql;
mod read_file;
mod root;
mod search_text;
mod walk;

use std::sync::Arc;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    tool::Tool,
    toolbox::{query_json::QueryJson, query_sql::QuerySql, read_file::ReadFile, root::Root, search_text::SearchText},
    units::ByteSize,
};

/// One hit, one row or one result must fit, with its names around it.
const OUTPUT_BYTES_MIN: ByteSize = ByteSize::kib(4);

/// `[toolbox]`: the tools that ship with bigiron.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Whether the toolbox is served.
    pub enabled: bool,
    /// The folder that its tools can read; nothing outside it is opened.
    pub root: String,
    /// Size of what one call returns; the rest is had by asking on.
    pub output_bytes_max: ByteSize,
    /// Size of a file that query_json and query_sql (CSV) read whole.
    pub file_bytes_max: ByteSize,
    /// Memory that one query_json call may take.
    pub json_memory_bytes_max: ByteSize,
    /// SQLite connections kept open.
    pub sql_connections_max: usize,
    /// Memory that all of query_sql together may take; a statement that needs more fails.
    pub sql_memory_bytes_max: ByteSize,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            enabled: true,
            root: ".".into(),
            output_bytes_max: ByteSize::kib(64),
            file_bytes_max: ByteSize::mib(64),
            json_memory_bytes_max: ByteSize::mib(256),
            sql_connections_max: 16,
            sql_memory_bytes_max: ByteSize::mib(1024),
        }
    }
}

/// The tools, confined to `toolbox.root`; none when the toolbox is switched off.
///
/// # Errors
/// Says which setting cannot be and what would be right.
pub fn tools(config: &Config) -> Result<Vec<Tool>, String> {
    if !config.enabled {
        return Ok(Vec::new());
    }
    if config.output_bytes_max < OUTPUT_BYTES_MIN {
        return Err(format!(
            "toolbox.output_bytes_max is {}, which does not hold one result: set it to {OUTPUT_BYTES_MIN} or more",
            config.output_bytes_max
        ));
    }
    let root = Arc::new(Root::open(&config.root)?);
    let output_bytes_max = config.output_bytes_max.as_usize();
    Ok(vec![
        SearchText { root: Arc::clone(&root), output_bytes_max }.tool(),
        ReadFile { root: Arc::clone(&root), output_bytes_max }.tool(),
        QueryJson {
            root: Arc::clone(&root),
            output_bytes_max,
            file_bytes_max: config.file_bytes_max,
            memory_bytes_max: config.json_memory_bytes_max,
        }
        .tool(),
        QuerySql::new(root, config).tool(),
        measure::echo(),
        measure::burn(),
    ])
}

#[cfg(test)]
mod tests;
