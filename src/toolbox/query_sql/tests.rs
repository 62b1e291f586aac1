//! What `query_sql` promises: right rows, every row once, no way to change or leave the file, an end when asked.

use std::{fs, path::Path};

use rusqlite::Connection;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::toolbox::tests::{call, cancelled_ctx, cancelled_while_running, ctx, ctx_with, folder, refused, root_of};

fn sql_tool(dir: &TempDir, config: &Config) -> Tool {
    QuerySql::new(root_of(dir), config).tool()
}

fn tool(dir: &TempDir) -> Tool {
    sql_tool(dir, &Config::default())
}

fn database(dir: &TempDir, name: &str, setup: &str) -> Connection {
    let connection = Connection::open(dir.path().join(name)).unwrap();
    connection.execute_batch(setup).unwrap();
    connection
}

const PEOPLE: &str = "CREATE TABLE people(id INTEGER PRIMARY KEY, name TEXT, weight REAL, face BLOB);
    INSERT INTO people VALUES (1, 'Ann', 61.5, x'00ff'), (2, 'Bo', NULL, NULL), (3, 'Cé', 70, NULL);
    CREATE VIEW light AS SELECT name FROM people WHERE weight < 65;";

fn files_in(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn rows_are_what_the_database_holds() {
    let dir = folder(&[]);
    database(&dir, "a b%.db", PEOPLE);
    let tool = tool(&dir);
    let ask = |sql: &str, params: Value| {
        call(&tool, json!({"database": "a b%.db", "sql": sql, "params": params}), ctx()).expect(sql)
    };
    let all = ask("SELECT * FROM people ORDER BY id", json!([]));
    assert_eq!(all["columns"], json!(["id", "name", "weight", "face"]));
    let face = json!({"blob_bytes": 2, "hex_begins": "00ff"});
    assert_eq!(all["rows"], json!([[1, "Ann", 61.5, face], [2, "Bo", null, null], [3, "Cé", 70.0, null]]));
    assert_eq!(all["more"], false);
    assert_eq!(
        ask("SELECT name FROM people WHERE id = ? OR name = ?", json!([2, "Cé"]))["rows"],
        json!([["Bo"], ["Cé"]])
    );
    assert_eq!(ask("SELECT name FROM light;  -- only one", json!([]))["rows"], json!([["Ann"]]));
    assert_eq!(ask("SELECT ?, ?, ?", json!([true, null, 1.5]))["rows"], json!([[1, null, 1.5]]));
    assert_eq!(
        ask("WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i+1 FROM n WHERE i<4) SELECT sum(i) FROM n", json!([]))
            ["rows"],
        json!([[10]])
    );
    assert_eq!(ask("SELECT name FROM sqlite_master ORDER BY 1", json!([]))["rows"], json!([["light"], ["people"]]));
    assert_eq!(ask("PRAGMA table_info(people)", json!([]))["rows"][1][1], "name");
    assert_eq!(ask("SELECT name FROM pragma_table_info('people') LIMIT 1", json!([]))["rows"], json!([["id"]]));
    assert_eq!(
        ask("SELECT 1/0, 9e999, json_extract('{\"a\":[1]}', '$.a[0]')", json!([]))["rows"],
        json!([[null, null, 1]])
    );
    assert_eq!(files_in(dir.path()), ["a b%.db"], "reading leaves nothing behind");
}

#[test]
fn nothing_is_changed_or_reached() {
    let dir = folder(&[]);
    database(&dir, "p.db", PEOPLE);
    database(&dir, "other.db", "CREATE TABLE secret(x)");
    let before = fs::read(dir.path().join("p.db")).unwrap();
    let tool = tool(&dir);
    for sql in [
        "INSERT INTO people(name) VALUES ('x')",
        "UPDATE people SET name = 'x' RETURNING name",
        "DELETE FROM people RETURNING id",
        "DROP TABLE people",
        "CREATE TABLE t(x)",
        "CREATE TEMP TABLE t AS SELECT 1",
        "CREATE VIRTUAL TABLE t USING fts5(x)",
        "ALTER TABLE people ADD COLUMN x",
        "ATTACH 'other.db' AS o",
        "ATTACH ':memory:' AS o",
        "DETACH main",
        "VACUUM INTO 'copy.db'",
        "VACUUM",
        "BEGIN",
        "SAVEPOINT x",
        "REINDEX",
        "ANALYZE",
        "PRAGMA query_only = 0",
        "PRAGMA journal_mode = DELETE",
        "PRAGMA writable_schema = 1",
        "PRAGMA user_version = 7",
        "PRAGMA database_list",
        "PRAGMA hard_heap_limit = 0",
        "SELECT * FROM pragma_database_list",
        "SELECT load_extension('x')",
        "SELECT * FROM people; DELETE FROM people",
        "",
        "-- nothing",
    ] {
        let told = refused(&tool, json!({"database": "p.db", "sql": sql}));
        assert!(!told.contains(dir.path().to_str().unwrap()), "{sql}: {told}");
    }
    assert!(refused(&tool, json!({"database": "p.db", "sql": "DELETE FROM people"})).contains("only reads"));
    assert!(refused(&tool, json!({"database": "p.db", "sql": "SELECT 1; SELECT 2"})).contains("one statement"));
    assert_eq!(
        call(&tool, json!({"database": "p.db", "sql": "PRAGMA user_version"}), ctx()).unwrap()["rows"],
        json!([[0]])
    );
    assert_eq!(fs::read(dir.path().join("p.db")).unwrap(), before);
    assert_eq!(files_in(dir.path()), ["other.db", "p.db"]);
}

#[test]
fn only_databases_inside_are_opened() {
    let outer = tempfile::tempdir().unwrap();
    let dir = tempfile::tempdir_in(outer.path()).unwrap();
    Connection::open(outer.path().join("out.db")).unwrap().execute_batch(PEOPLE).unwrap();
    std::os::unix::fs::symlink(outer.path().join("out.db"), dir.path().join("link.db")).unwrap();
    fs::write(dir.path().join("text.csv"), "a,b\n1,2\nmore than a header").unwrap();
    fs::write(dir.path().join("empty.db"), "").unwrap();
    let tool = tool(&dir);
    for (path, says) in [
        ("../out.db", "relative"),
        ("link.db", "symbolic link"),
        ("none.db", "no file"),
        ("text.csv", "give it as `csv`"),
        ("empty.db", "not an SQLite database"),
        (":memory:", "no file"),
        ("file:text.csv", "no file"),
        (".", "folder"),
    ] {
        let told = refused(&tool, json!({"database": path, "sql": "SELECT 1"}));
        assert!(told.contains(says), "{path}: {told}");
    }
    assert!(refused(&tool, json!({"sql": "SELECT 1"})).contains("nothing to query"));
    assert!(refused(&tool, json!({"sql": "SELECT 1", "database": "x", "csv": ["y"]})).contains("one of them"));
}

#[test]
fn mistakes_are_explained() {
    let dir = folder(&[]);
    database(&dir, "p.db", PEOPLE);
    let tool = tool(&dir);
    for (sql, params, says) in [
        ("SELECT * FROM persons", json!([]), "the tables are: light(name); people(id, name, weight, face)"),
        ("SELECT nam FROM people", json!([]), "people(id, name"),
        ("SELECT name FROM people WHERE name = \"Ann\"", json!([]), "single-quotes"),
        ("SELEC 1", json!([]), "syntax error (at \"SELEC 1\")"),
        ("SELECT ?", json!([]), "1 ? marks"),
        ("SELECT 1", json!([1]), "0 ? marks"),
        ("SELECT ?", json!([[1]]), "one for each ?"),
        ("SELECT zeroblob(100000000)", json!([]), "too long"),
    ] {
        let told = refused(&tool, json!({"database": "p.db", "sql": sql, "params": params}));
        assert!(told.contains(says), "{sql}: {told}");
    }
}

#[test]
fn pages_hold_every_row_once() {
    let dir = folder(&[]);
    let many = "CREATE TABLE n AS WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i+1 FROM n WHERE i<1000)
        SELECT i, 'text \"' || i || '\"' AS t FROM n";
    database(&dir, "n.db", many);
    for (bytes, rows_max) in [(4_096, 10_000), (65_536, 7), (65_536, 10_000)] {
        let tool = sql_tool(&dir, &Config { output_bytes_max: ByteSize(bytes), ..Config::default() });
        let (mut seen, mut skip) = (Vec::new(), 0);
        loop {
            let arguments =
                json!({"database": "n.db", "sql": "SELECT * FROM n ORDER BY i", "rows_max": rows_max, "skip": skip});
            let page = call(&tool, arguments, ctx()).unwrap();
            assert!(page.to_string().len() as u64 <= bytes);
            seen.extend(page["rows"].as_array().unwrap().iter().map(|row| row[0].as_u64().unwrap()));
            if page["more"] == false {
                break;
            }
            skip = page["next_skip"].as_u64().unwrap();
        }
        assert!(seen.iter().copied().eq(1..=1000), "{bytes} bytes, {rows_max} rows");
    }
}

#[test]
fn a_row_longer_than_an_answer_is_cut() {
    let dir = folder(&[]);
    database(&dir, "p.db", PEOPLE);
    let tool = tool(&dir);
    let sql = "SELECT replace(hex(zeroblob(500000)), '0', 'é') AS long, 7 AS n UNION ALL SELECT 'b', 8";
    let page = call(&tool, json!({"database": "p.db", "sql": sql}), ctx()).unwrap();
    assert!(page["rows"][0][0].as_str().unwrap().ends_with("é… [2000000 bytes in all]"));
    assert_eq!((&page["rows"][0][1], page["note"].is_string()), (&json!(7), true));
    assert!(page.to_string().len() <= 65_536);
}

#[test]
fn csv_files_become_tables() {
    let dir = folder(&[
        ("data/my-sales.csv", b"\xEF\xBB\xBFid,Amount,zip,note\n1,10,007,\"a, \"\"b\"\"\"\n2,9.5,08000,\n3,,1,x\n"),
        ("regions.tsv", b"id\tname\r\n1\tNorth\r\n2\tSouth\r\n"),
        ("ragged.csv", b"a,b\n1,2\n3\n"),
        ("empty.csv", b""),
        ("other/regions.csv", b"x\n1\n"),
        ("text.csv", b"n\n1\n2\nno\n"),
    ]);
    let tool = tool(&dir);
    let ask = |csv: Value, sql: &str| call(&tool, json!({"csv": csv, "sql": sql}), ctx()).expect(sql)["rows"].clone();
    let sales = json!(["data/my-sales.csv"]);
    assert_eq!(
        ask(sales.clone(), "SELECT * FROM my_sales ORDER BY Amount DESC, id"),
        json!([[1, 10, "007", "a, \"b\""], [2, 9.5, "08000", ""], [3, null, "1", "x"]])
    );
    assert_eq!(ask(sales.clone(), "SELECT sum(amount) FROM my_sales WHERE amount > 9"), json!([[19.5]]));
    assert_eq!(ask(json!(["text.csv"]), "SELECT max(n), typeof(n) FROM text"), json!([["no", "text"]]));
    let joined = "SELECT r.name, s.amount FROM my_sales s JOIN regions r USING (id) ORDER BY 1";
    assert_eq!(ask(json!(["data/my-sales.csv", "regions.tsv"]), joined), json!([["North", 10], ["South", 9.5]]));
    assert!(refused(&tool, json!({"csv": ["ragged.csv"], "sql": "SELECT 1"})).contains("line: 3"));
    assert!(refused(&tool, json!({"csv": ["empty.csv"], "sql": "SELECT 1"})).contains("header row"));
    assert!(
        refused(&tool, json!({"csv": ["regions.tsv", "other/regions.csv"], "sql": "SELECT 1"}))
            .contains("both be the table regions")
    );
    assert!(
        refused(&tool, json!({"csv": sales, "sql": "SELECT * FROM sales"})).contains("my_sales(id, Amount, zip, note)")
    );
    assert!(refused(&tool, json!({"csv": ["regions.tsv"], "sql": "DELETE FROM regions"})).contains("only reads"));
    let small = sql_tool(&dir, &Config { file_bytes_max: ByteSize(10), ..Config::default() });
    assert!(refused(&small, json!({"csv": ["regions.tsv"], "sql": "SELECT 1"})).contains("more than the 10"));
}

#[test]
fn changes_are_seen_and_connections_bounded() {
    let dir = folder(&[("a.csv", b"x\n1\n")]);
    let writer = database(&dir, "p.db", PEOPLE);
    let root = root_of(&dir);
    let sql = QuerySql::new(root, &Config { sql_connections_max: 3, ..Config::default() });
    let args = |value: Value| serde_json::from_value::<Args>(value).unwrap();
    let count = json!({"database": "p.db", "sql": "SELECT count(*) FROM people"});
    assert_eq!(sql.query(&args(count.clone()), &ctx()).unwrap().rows, [[json!(3)]]);
    writer.execute_batch("INSERT INTO people(name) VALUES ('Di')").unwrap();
    assert_eq!(sql.query(&args(count.clone()), &ctx()).unwrap().rows, [[json!(4)]]);
    for n in 2..12 {
        fs::write(dir.path().join("a.csv"), "x\n1\n".to_owned() + &"5\n".repeat(n)).unwrap();
        let rows = sql.query(&args(json!({"csv": ["a.csv"], "sql": "SELECT count(*) FROM a"})), &ctx()).unwrap().rows;
        assert_eq!(rows, [[json!(n + 1)]]);
        assert!(sql.idle.lock().len() <= 3);
    }
    let none = QuerySql::new(root_of(&dir), &Config { sql_connections_max: 0, ..Config::default() });
    assert!(none.query(&args(count), &ctx()).is_ok());
    assert_eq!(none.idle.lock().len(), 0);
}

#[test]
fn a_database_with_a_log_is_read_without_touching_it() {
    let dir = folder(&[]);
    let writer = database(&dir, "w.db", &format!("PRAGMA journal_mode = WAL; {PEOPLE}"));
    let tool = tool(&dir);
    let count = json!({"database": "w.db", "sql": "SELECT count(*) FROM people"});
    assert_eq!(call(&tool, count.clone(), ctx()).unwrap()["rows"], json!([[3]]));
    writer.execute_batch("INSERT INTO people(name) VALUES ('Di')").unwrap();
    assert_eq!(call(&tool, count.clone(), ctx()).unwrap()["rows"], json!([[4]]));
    drop(writer);
    assert_eq!(files_in(dir.path()), ["w.db"], "the writer has put its log away");
    assert_eq!(call(&tool, count, ctx()).unwrap()["rows"], json!([[4]]));
    assert_eq!(files_in(dir.path()), ["w.db"], "reading makes no log");
    // What is left after a crash: the log and its index, and nobody who has them open.
    let writer = database(&dir, "c.db", &format!("PRAGMA journal_mode = WAL; {PEOPLE}"));
    for (copy, names) in [("crash", &["c.db", "c.db-shm", "c.db-wal"][..]), ("half", &["c.db", "c.db-wal"])] {
        fs::create_dir(dir.path().join(copy)).unwrap();
        for name in names {
            fs::copy(dir.path().join(name), dir.path().join(copy).join(name)).unwrap();
        }
    }
    drop(writer);
    let count = json!({"database": "crash/c.db", "sql": "SELECT count(*) FROM people"});
    assert_eq!(call(&tool, count, ctx()).unwrap()["rows"], json!([[3]]));
    assert_eq!(files_in(&dir.path().join("crash")), ["c.db", "c.db-shm", "c.db-wal"]);
    let told = refused(&tool, json!({"database": "half/c.db", "sql": "SELECT 1"}));
    assert!(told.contains("-shm"), "{told}");
    assert_eq!(files_in(&dir.path().join("half")), ["c.db", "c.db-wal"]);
}

const RUNAWAY: &str = "WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i+1 FROM n) SELECT count(*) FROM n";

#[test]
fn a_runaway_statement_ends_with_its_call() {
    let dir = folder(&[]);
    database(&dir, "p.db", PEOPLE);
    let tool = tool(&dir);
    let arguments = json!({"database": "p.db", "sql": RUNAWAY});
    assert_eq!(call(&tool, arguments.clone(), cancelled_ctx()), Err(CallError::Cancelled));
    assert_eq!(cancelled_while_running(|ctx| call(&tool, arguments.clone(), ctx)), Err(CallError::Cancelled));
    assert_eq!(call(&tool, arguments, ctx_with(50)), Err(CallError::TimedOut { limit_ms: 50 }));
    // The connection is good for the next call.
    assert!(call(&tool, json!({"database": "p.db", "sql": "SELECT 1"}), ctx()).is_ok());
}
