//! Connections that can only read. A file is found through the root; SQLite then opens it by name, because it knows
//! no other way, refusing links, and what it opened is compared with what was found. What a statement may do is
//! decided by SQLite's authorizer, not by reading the statement.

use std::{
    fs::File,
    io::Read,
    os::unix::ffi::OsStrExt,
    path::{Component, Path},
    time::Duration,
};

use rusqlite::{
    Connection, OpenFlags,
    config::DbConfig,
    hooks::{AuthAction, AuthContext, Authorization},
    limits::Limit,
};

use super::tables;
use crate::{
    call::Ctx,
    error::CallError,
    toolbox::{
        output::head,
        root::{Identity, Root},
    },
    units::ByteSize,
};

/// How long a read waits for another program's write to end.
const BUSY_TIMEOUT: Duration = Duration::from_millis(250);
/// Looks at the schema that an agent may take through PRAGMA. None of them names a path of the host.
const PRAGMAS: [&str; 9] = [
    "table_info",
    "table_xinfo",
    "table_list",
    "index_list",
    "index_info",
    "index_xinfo",
    "foreign_key_list",
    "user_version",
    "encoding",
];
/// Bounds of what one statement can make SQLite build.
const LIMITS: [(Limit, i32); 9] = [
    (Limit::SQLITE_LIMIT_LENGTH, 16 << 20),
    (Limit::SQLITE_LIMIT_SQL_LENGTH, 100_000),
    (Limit::SQLITE_LIMIT_EXPR_DEPTH, 200),
    (Limit::SQLITE_LIMIT_COMPOUND_SELECT, 100),
    (Limit::SQLITE_LIMIT_VDBE_OP, 1_000_000),
    (Limit::SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 1_000),
    (Limit::SQLITE_LIMIT_VARIABLE_NUMBER, super::PARAMS_MAX as i32),
    (Limit::SQLITE_LIMIT_ATTACHED, 0),
    (Limit::SQLITE_LIMIT_WORKER_THREADS, 0),
];

/// What is queried, in the state it is in now: a connection is used again only for an equal one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Source {
    Sqlite {
        path: String,
        file: Identity,
        /// The write-ahead log beside it, where there is one with content.
        wal: Option<Identity>,
    },
    Csv(Vec<(String, Identity)>),
}

impl Source {
    pub(super) fn sqlite(root: &Root, path: &str) -> Result<Self, CallError> {
        let file = root.identify(path)?;
        let wal = root.identify(&format!("{path}-wal")).ok().filter(|wal| wal.size > 0);
        Ok(Self::Sqlite { path: path.to_owned(), file, wal })
    }

    pub(super) fn csv(root: &Root, paths: &[String], bytes_max: ByteSize) -> Result<Self, CallError> {
        if paths.len() > tables::FILES_MAX {
            let fault =
                format!("{} CSV files are too many for one query; give at most {}", paths.len(), tables::FILES_MAX);
            return Err(CallError::tool(fault));
        }
        let files =
            paths.iter().map(|path| Ok((path.clone(), root.identify(path)?))).collect::<Result<Vec<_>, CallError>>()?;
        let bytes: u64 = files.iter().map(|(_, file)| file.size).sum();
        if bytes > bytes_max.0 {
            return Err(CallError::tool(format!(
                "the CSV files have {bytes} bytes together, more than the {} that are read whole; query fewer or smaller \
                 ones, or use search_text",
                bytes_max.0
            )));
        }
        Ok(Self::Csv(files))
    }

    /// Whether another program has changes in a write-ahead log.
    pub(super) fn has_log(&self) -> bool {
        matches!(self, Self::Sqlite { wal: Some(_), .. })
    }

    /// Bytes of files that a connection to it holds in memory.
    pub(super) fn bytes_held(&self) -> u64 {
        match self {
            Self::Sqlite { .. } => 0,
            Self::Csv(files) => files.iter().map(|(_, file)| file.size).sum(),
        }
    }
}

/// An open connection. The order of the fields matters: closing the file gives up SQLite's locks on it, so it must be
/// closed after the connection.
#[derive(Debug)]
pub(super) struct Connected {
    connection: Connection,
    _file: Option<File>,
}

impl Connected {
    pub(super) fn open(root: &Root, source: &Source, memory_max: ByteSize, ctx: &Ctx) -> Result<Self, CallError> {
        match source {
            Source::Sqlite { path, file, wal } => open_file(root, path, file, wal.is_some(), memory_max),
            Source::Csv(files) => {
                let mut connection = Connection::open_in_memory().map_err(|error| cannot_open(&error))?;
                prepare(&connection, memory_max).map_err(|error| cannot_open(&error))?;
                for (path, identity) in files {
                    tables::load(&mut connection, root, path, identity, ctx)?;
                }
                confine(&mut connection).map_err(|error| cannot_open(&error))?;
                Ok(Self { connection, _file: None })
            }
        }
    }

    /// Runs `work`, which SQLite breaks off soon after the call is cancelled or its time is over.
    pub(super) fn watched<T>(&mut self, ctx: &Ctx, steps: i32, work: impl FnOnce(&Connection) -> T) -> T {
        let watcher = ctx.clone();
        // Setting a handler fails only on a connection owned by somebody else, which none of ours is.
        let _ = self.connection.progress_handler(steps, Some(move || watcher.is_cancelled()));
        let result = work(&self.connection);
        let _ = self.connection.progress_handler(0, None::<fn() -> bool>);
        result
    }

    /// A sentence about the tables that there are, for an agent that asked for another.
    pub(super) fn tables_told(&self, bytes_max: usize) -> String {
        let sql = "SELECT s.name || '(' || group_concat(c.name, ', ') || ')' FROM sqlite_master s, \
                   pragma_table_info(s.name) c WHERE s.type IN ('table', 'view') AND s.name NOT LIKE 'sqlite\\_%' \
                   ESCAPE '\\' GROUP BY s.name ORDER BY s.name LIMIT 100";
        let tables = self.connection.prepare(sql).and_then(|mut statement| {
            statement.query_map([], |row| row.get::<_, String>(0))?.collect::<Result<Vec<_>, _>>()
        });
        match tables {
            Ok(tables) if tables.is_empty() => "the database has no tables".into(),
            Ok(tables) => {
                let all = tables.join("; ");
                let told = head(&all, bytes_max);
                let rest =
                    if told.len() < all.len() { " ... (SELECT name, sql FROM sqlite_master tells all)" } else { "" };
                format!("the tables are: {told}{rest}")
            }
            Err(_) => "SELECT name, sql FROM sqlite_master tells the tables".into(),
        }
    }
}

fn open_file(
    root: &Root,
    path: &str,
    found: &Identity,
    has_wal: bool,
    memory_max: ByteSize,
) -> Result<Connected, CallError> {
    let (mut file, identity) = root.open_file(path)?;
    let mut header = [0; 20];
    let read = file.read(&mut header).unwrap_or(0);
    if read < header.len() || !header.starts_with(b"SQLite format 3\0") {
        let hint = if path.ends_with(".csv") || path.ends_with(".tsv") { "give it as `csv`" } else { "check the path" };
        return Err(CallError::tool(format!("{path:?} is not an SQLite database; {hint}")));
    }
    // A database in WAL mode without a log has no writer, and SQLite would make the log and its index beside it: as
    // an unchanging file it is read without. With a log, its index is only read.
    if has_wal && root.identify(&format!("{path}-shm")).is_err() {
        return Err(CallError::tool(format!(
            "{path:?} has changes in {path:?}-wal that cannot be read without the index {path:?}-shm; let its own program \
             open it once, so that they become part of the file"
        )));
    }
    let mode = match (header[18], has_wal) {
        (2, false) => "immutable=1",
        (2, true) => "readonly_shm=1",
        _ => "mode=ro",
    };
    let uri = format!("file:{}?{mode}", uri_path(&root.location()?.join(plain(path))));
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_URI
        | OpenFlags::SQLITE_OPEN_NOFOLLOW;
    let mut connection = Connection::open_with_flags(uri, flags).map_err(|error| cannot_open(&error))?;
    let now = root.identify(path)?;
    let is_same = |other: &Identity| (other.device, other.inode) == (found.device, found.inode);
    if !is_same(&identity) || !is_same(&now) {
        return Err(CallError::tool(format!("{path:?} was replaced while it was opened; try again")));
    }
    prepare(&connection, memory_max).and_then(|()| confine(&mut connection)).map_err(|error| cannot_open(&error))?;
    Ok(Connected { connection, _file: Some(file) })
}

fn cannot_open(error: &rusqlite::Error) -> CallError {
    CallError::tool(format!("the database cannot be opened: {error}; try again, or choose another file"))
}

/// What holds while tables are loaded, too.
fn prepare(connection: &Connection, memory_max: ByteSize) -> rusqlite::Result<()> {
    connection.busy_timeout(BUSY_TIMEOUT)?;
    // Sorting goes to memory, where it is counted, instead of to files that nobody counts.
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    // One limit for all of SQLite in this process; a statement that meets it fails alone.
    let memory_max = i64::try_from(memory_max.0).unwrap_or(i64::MAX);
    connection.query_row(&format!("PRAGMA hard_heap_limit = {memory_max}"), [], |_| Ok(()))?;
    Ok(())
}

/// From here on the connection reads what it holds, and nothing else.
fn confine(connection: &mut Connection) -> rusqlite::Result<()> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    // A misspelt column in double quotes is an error instead of a text that matches nothing.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DQS_DML, false)?;
    connection.pragma_update(None, "cell_size_check", true)?;
    connection.pragma_update(None, "query_only", true)?;
    for (limit, value) in LIMITS {
        connection.set_limit(limit, value)?;
    }
    connection.authorizer(Some(|context: AuthContext<'_>| authorize(context.action)))
}

fn authorize(action: AuthAction<'_>) -> Authorization {
    let is_read = match action {
        AuthAction::Select | AuthAction::Read { .. } | AuthAction::Recursive => true,
        AuthAction::Function { function_name } => !function_name.eq_ignore_ascii_case("load_extension"),
        AuthAction::Pragma { pragma_name, pragma_value } => {
            PRAGMAS.iter().position(|name| name.eq_ignore_ascii_case(pragma_name)).is_some_and(|at| {
                // The last two take a value only to change it.
                at < PRAGMAS.len() - 2 || pragma_value.is_none()
            })
        }
        _ => false,
    };
    if is_read { Authorization::Allow } else { Authorization::Deny }
}

/// The path without what SQLite would look at in vain.
fn plain(path: &str) -> &Path {
    // A path that was checked has no part that leads upwards; "./" and "//" are left to the join.
    debug_assert!(Path::new(path).components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir)));
    Path::new(path)
}

/// A path as the path of a URI.
fn uri_path(path: &Path) -> String {
    let mut uri = String::new();
    for byte in path.as_os_str().as_bytes() {
        if byte.is_ascii_alphanumeric() || b"/-._~".contains(byte) {
            uri.push(char::from(*byte));
        } else {
            uri.push_str(&format!("%{byte:02X}"));
        }
    }
    uri
}
