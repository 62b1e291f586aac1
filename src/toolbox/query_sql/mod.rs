//! `query_sql`: read-only SQL over SQLite files and CSV files below the root. This file is the tool: what it takes,
//! how rows become an answer, and what is told when a statement fails. `connect` makes connections that can only
//! read, `tables` turns CSV files into tables, `idle` keeps connections for the next call.

mod connect;
mod idle;
mod tables;

#[cfg(test)]
mod tests;

use std::sync::Arc;

use parking_lot::Mutex;
use rusqlite::{
    ErrorCode,
    types::{Value as SqlValue, ValueRef},
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use self::{
    connect::{Connected, Source},
    idle::Idle,
};
use crate::{
    call::{Ctx, Lane},
    error::CallError,
    tool::{Json, Tool},
    toolbox::{
        Config,
        output::{Room, clipped, json_bytes, stopped},
        root::Root,
    },
    units::ByteSize,
};

const ROWS_MAX: u64 = 10_000;
const PARAMS_MAX: usize = 100;
/// Steps of SQLite's machine between two looks at whether anybody still waits: well below a millisecond.
const STEPS_PER_LOOK: i32 = 2_000;
/// How much of a blob is shown.
const BLOB_SHOWN_BYTES_MAX: usize = 64;
/// Sizes that the texts of a row are cut to, until it fits into an answer of its own.
const CELL_BYTES: [usize; 4] = [8_192, 1_024, 128, 16];
/// How much of SQLite's own message is told; it may quote the statement.
const FAULT_BYTES_MAX: usize = 600;
/// How much is told of the tables that there are.
const TABLES_TOLD_BYTES_MAX: usize = 2_000;

const DESCRIPTION: &str = "Runs one read-only SQL statement (SQLite's dialect) over an SQLite file, given as \
    `database`, or over CSV files, given as `csv`: each becomes a table named after the file (data/my-sales.csv is \
    my_sales) with the columns of its header row. Use it to filter, join, count or group instead of reading whole \
    files. To find the tables and columns: SELECT name, sql FROM sqlite_master. When `more` is true, call again with \
    `skip` set to `next_skip`, with an ORDER BY in the statement so that pages fit together.";

/// Runs SQL over files.
#[derive(Debug)]
pub(super) struct QuerySql {
    root: Arc<Root>,
    output_bytes_max: usize,
    file_bytes_max: ByteSize,
    memory_bytes_max: ByteSize,
    idle: Mutex<Idle>,
}

#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct Args {
    /// One SELECT (or WITH ... SELECT, VALUES, EXPLAIN, PRAGMA table_info(...)).
    sql: String,
    /// Path of an SQLite file, relative to the served folder.
    #[serde(default)]
    database: String,
    /// Paths of CSV files with a header row; separated by comma, semicolon, tab or bar.
    #[serde(default)]
    #[schemars(length(max = 16))]
    csv: Vec<String>,
    /// Values for the ? marks in the statement, in order: text, numbers, true, false or null.
    #[serde(default)]
    #[schemars(length(max = 100))]
    params: Vec<Value>,
    /// Rows to return at most.
    #[serde(default = "rows_max_default")]
    #[schemars(range(min = 1, max = 10_000))]
    rows_max: u64,
    /// Rows to leave out at the beginning, to get the next page.
    #[serde(default)]
    skip: u64,
}

fn rows_max_default() -> u64 {
    200
}

#[derive(Debug, Serialize, JsonSchema)]
struct Rows {
    /// Names of the columns.
    columns: Vec<String>,
    /// The rows; a blob is shown as its size and first bytes.
    rows: Vec<Vec<Value>>,
    /// Whether there are further rows.
    more: bool,
    /// The `skip` that gets them.
    #[serde(skip_serializing_if = "Option::is_none")]
    next_skip: Option<u64>,
    /// What is cut off.
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<String>,
}

impl QuerySql {
    pub(super) fn new(root: Arc<Root>, config: &Config) -> Self {
        let idle = Idle::new(config.sql_connections_max, config.file_bytes_max.0.saturating_mul(4));
        Self {
            root,
            output_bytes_max: config.output_bytes_max.as_usize(),
            file_bytes_max: config.file_bytes_max,
            memory_bytes_max: config.sql_memory_bytes_max,
            idle: Mutex::new(idle),
        }
    }

    pub(super) fn tool(self) -> Tool {
        Tool::new("query_sql", DESCRIPTION, Lane::Pool, move |args: Args, ctx: Ctx| self.query(&args, &ctx).map(Json))
            .title("Query SQLite and CSV files")
            .read_only()
            .idempotent()
            .closed_world()
    }

    fn query(&self, args: &Args, ctx: &Ctx) -> Result<Rows, CallError> {
        let source = match (args.database.as_str(), args.csv.as_slice()) {
            ("", []) => {
                return Err(CallError::tool("nothing to query: give `database` (a path) or `csv` (a list of paths)"));
            }
            (path, []) => Source::sqlite(&self.root, path)?,
            ("", paths) => Source::csv(&self.root, paths, self.file_bytes_max)?,
            _ => return Err(CallError::tool("`database` and `csv` cannot be queried together; give one of them")),
        };
        let kept = self.idle.lock().take(&source);
        let mut connected = match kept {
            Some(connected) => connected,
            None => Connected::open(&self.root, &source, self.memory_bytes_max, ctx)?,
        };
        let result = connected.watched(ctx, STEPS_PER_LOOK, |connection| self.run(args, connection));
        let result = result.map_err(|fault| match fault {
            Fault::Told(error) => error,
            Fault::Sql(error) => explain(&error, &connected, ctx),
        });
        self.idle.lock().put(source, connected);
        result
    }

    fn run(&self, args: &Args, connection: &rusqlite::Connection) -> Result<Rows, Fault> {
        let params = args.params.iter().map(param).collect::<Result<Vec<_>, _>>()?;
        let mut statement = connection.prepare(&args.sql)?;
        if statement.column_count() == 0 || !statement.readonly() {
            return Err(CallError::tool("the statement returns no rows; write a SELECT").into());
        }
        if statement.parameter_count() != params.len() {
            return Err(CallError::tool(format!(
                "the statement has {} ? marks, but params has {} values; give one for each",
                statement.parameter_count(),
                params.len()
            ))
            .into());
        }
        let columns: Vec<String> = statement.column_names().map(str::to_owned).collect();
        let mut page = Page::new(columns, self.output_bytes_max)?;
        let mut skip_left = args.skip;
        let rows_max = usize::try_from(args.rows_max.clamp(1, ROWS_MAX)).unwrap_or(usize::MAX);
        let mut rows = statement.query(rusqlite::params_from_iter(params))?;
        while let Some(row) = rows.next()? {
            if skip_left > 0 {
                skip_left -= 1;
            } else if page.rows.len() == rows_max || !page.add(row)? {
                page.more = true;
                break;
            }
        }
        Ok(page.end(args.skip))
    }
}

/// Rows of one answer as they come.
struct Page {
    columns: Vec<String>,
    rows: Vec<Vec<Value>>,
    room: Room,
    more: bool,
    is_cut: bool,
}

impl Page {
    fn new(columns: Vec<String>, bytes_max: usize) -> Result<Self, CallError> {
        let mut room = Room::new(bytes_max);
        if !room.take(json_bytes(&columns)) {
            let fault = "the names of the columns alone are longer than an answer; select fewer, or name them with AS";
            return Err(CallError::tool(fault));
        }
        Ok(Self { columns, rows: Vec::new(), room, more: false, is_cut: false })
    }

    /// Whether the row still fits. The first one always does, with its texts cut when it must be.
    fn add(&mut self, row: &rusqlite::Row<'_>) -> Result<bool, Fault> {
        let whole = self.cells(row, usize::MAX)?;
        if self.room.take(json_bytes(&whole) + 1) {
            self.rows.push(whole);
            return Ok(true);
        }
        if !self.rows.is_empty() {
            return Ok(false);
        }
        for bytes in CELL_BYTES {
            let cut = self.cells(row, bytes)?;
            if self.room.take(json_bytes(&cut) + 1) {
                self.is_cut = true;
                self.rows.push(cut);
                return Ok(true);
            }
        }
        Err(CallError::tool("one row has more columns than an answer holds; select fewer columns").into())
    }

    fn cells(&self, row: &rusqlite::Row<'_>, text_bytes: usize) -> Result<Vec<Value>, rusqlite::Error> {
        (0..self.columns.len()).map(|column| row.get_ref(column).map(|cell| shown(cell, text_bytes))).collect()
    }

    fn end(self, skip: u64) -> Rows {
        let shown = self.rows.len() as u64;
        Rows {
            columns: self.columns,
            rows: self.rows,
            more: self.more,
            next_skip: self.more.then(|| skip.saturating_add(shown)),
            note: self.is_cut.then(|| {
                "a row was too long for an answer and its texts were cut; select fewer columns or use substr()".into()
            }),
        }
    }
}

fn shown(cell: ValueRef<'_>, text_bytes: usize) -> Value {
    match cell {
        ValueRef::Null => Value::Null,
        ValueRef::Integer(number) => number.into(),
        ValueRef::Real(number) => number.into(), // what JSON cannot say (infinity) becomes null
        ValueRef::Text(text) => clipped(&String::from_utf8_lossy(text), text_bytes).into(),
        ValueRef::Blob(bytes) => {
            let hex: String = bytes.iter().take(BLOB_SHOWN_BYTES_MAX).map(|byte| format!("{byte:02x}")).collect();
            json!({ "blob_bytes": bytes.len(), "hex_begins": hex })
        }
    }
}

fn param(value: &Value) -> Result<SqlValue, CallError> {
    Ok(match value {
        Value::Null => SqlValue::Null,
        Value::Bool(flag) => SqlValue::Integer((*flag).into()),
        Value::Number(number) => match number.as_i64() {
            Some(number) => SqlValue::Integer(number),
            None => SqlValue::Real(number.as_f64().unwrap_or(f64::NAN)),
        },
        Value::String(text) => SqlValue::Text(text.clone()),
        Value::Array(_) | Value::Object(_) => {
            let fault = "params holds a list or an object; give text, numbers, true, false or null, one for each ?";
            return Err(CallError::tool(fault));
        }
    })
}

/// Why a query gave no rows: already in words for the agent, or as SQLite says it.
enum Fault {
    Told(CallError),
    Sql(rusqlite::Error),
}

impl From<CallError> for Fault {
    fn from(error: CallError) -> Self {
        Self::Told(error)
    }
}

impl From<rusqlite::Error> for Fault {
    fn from(error: rusqlite::Error) -> Self {
        Self::Sql(error)
    }
}

/// What the agent is told when SQLite refuses.
fn explain(error: &rusqlite::Error, connected: &Connected, ctx: &Ctx) -> CallError {
    use rusqlite::Error::{MultipleStatement, SqlInputError};
    let advice = match error.sqlite_error_code() {
        Some(ErrorCode::OperationInterrupted) if ctx.is_cancelled() => return stopped(ctx),
        Some(ErrorCode::AuthorizationForStatementDenied) => {
            "this tool only reads one database: use SELECT, VALUES, EXPLAIN or PRAGMA table_info(...), and nothing \
             that changes data, attaches files or loads extensions"
                .into()
        }
        Some(ErrorCode::ReadOnly) => {
            "the database was left in the middle of a change, which only its own program can finish; let that \
             program open it once, or query a copy"
                .into()
        }
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            "another program is writing to the database; try again in a moment".into()
        }
        Some(ErrorCode::OutOfMemory) => {
            "the statement needs more memory than is allowed; filter rows earlier, sort or group fewer of them".into()
        }
        Some(ErrorCode::TooBig) => "a value or the statement is too long; use substr() or a shorter statement".into(),
        Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
            "the file is damaged, encrypted or no SQLite database; choose another one".into()
        }
        _ if matches!(error, MultipleStatement) => "send one statement per call".into(),
        _ => connected.tables_told(TABLES_TOLD_BYTES_MAX),
    };
    let said = match error {
        SqlInputError { msg, sql, offset, .. } => {
            let at = usize::try_from(*offset).ok().and_then(|at| sql.get(at..)).filter(|rest| !rest.is_empty());
            match at {
                Some(rest) => format!("{msg} (at {:?})", clipped(rest, 60)),
                None => msg.clone(),
            }
        }
        other => other.to_string(),
    };
    CallError::tool(format!("the statement failed: {}; {advice}", clipped(&said, FAULT_BYTES_MAX)))
}
