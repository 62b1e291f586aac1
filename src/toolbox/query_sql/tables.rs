//! Tables from CSV files: one in-memory table per file. A file is read twice, first for what its columns hold, so
//! that numbers compare as numbers while "007" stays text; nothing of it is held but the table.

use std::{
    collections::HashSet,
    fs::File,
    io::{BufRead, BufReader, Seek, SeekFrom},
    path::Path,
};

use csv::{ByteRecord, Reader, ReaderBuilder};
use rusqlite::{Connection, types::Value};

use crate::{
    call::Ctx,
    error::CallError,
    toolbox::{
        output::stopped,
        root::{Identity, Root},
    },
};

/// Files of one query.
pub(super) const FILES_MAX: usize = 16;
const COLUMNS_MAX: usize = 1_000;
/// A decimal number of more digits would not come back as it was written.
const DIGITS_MAX: usize = 15;
/// Records between two looks at whether anybody still waits.
const RECORDS_PER_LOOK: u64 = 1_000;

/// Makes the table of one file.
pub(super) fn load(
    connection: &mut Connection,
    root: &Root,
    path: &str,
    identity: &Identity,
    ctx: &Ctx,
) -> Result<(), CallError> {
    let table = Table { path, name: table_name(path), ctx };
    let (mut file, opened) = root.open_file(path)?;
    let separator = separator(&mut file).map_err(|error| table.fault(&error))?;
    let columns = table.columns(&mut file, separator)?;
    table.insert(connection, &mut file, separator, &columns)?;
    if opened != *identity || root.identify(path)? != *identity {
        return Err(CallError::tool(format!("{path:?} changed while it was read; try again")));
    }
    Ok(())
}

struct Table<'a> {
    path: &'a str,
    name: String,
    ctx: &'a Ctx,
}

struct Column {
    name: String,
    is_number: bool,
}

impl Table<'_> {
    fn fault(&self, error: &dyn std::fmt::Display) -> CallError {
        CallError::tool(format!("{:?} cannot be read as CSV: {error}; mend the file or use read_file", self.path))
    }

    fn reader<'f>(&self, file: &'f mut File, separator: u8) -> Result<Reader<BufReader<&'f mut File>>, CallError> {
        file.seek(SeekFrom::Start(0)).map_err(|error| self.fault(&error))?;
        Ok(ReaderBuilder::new().delimiter(separator).from_reader(BufReader::with_capacity(64 << 10, file)))
    }

    /// Calls `each` for every record but the header.
    fn records(
        &self,
        reader: &mut Reader<BufReader<&mut File>>,
        mut each: impl FnMut(&ByteRecord) -> Result<(), CallError>,
    ) -> Result<(), CallError> {
        let mut record = ByteRecord::new();
        let mut count = 0_u64;
        while reader.read_byte_record(&mut record).map_err(|error| self.fault(&error))? {
            if count.is_multiple_of(RECORDS_PER_LOOK) && self.ctx.is_cancelled() {
                return Err(stopped(self.ctx));
            }
            count += 1;
            each(&record)?;
        }
        Ok(())
    }

    fn columns(&self, file: &mut File, separator: u8) -> Result<Vec<Column>, CallError> {
        let mut reader = self.reader(file, separator)?;
        let header = reader.byte_headers().map_err(|error| self.fault(&error))?.clone();
        if header.is_empty() {
            return Err(self.fault(&"it is empty, but a header row is needed"));
        }
        if header.len() > COLUMNS_MAX {
            return Err(self.fault(&format!("it has {} columns, more than {COLUMNS_MAX}", header.len())));
        }
        // What a column holds: nothing yet, numbers only, or something else.
        let mut is_number = vec![None; header.len()];
        self.records(&mut reader, |record| {
            for (seen, field) in is_number.iter_mut().zip(record).filter(|(_, field)| !field.is_empty()) {
                if *seen != Some(false) {
                    *seen = Some(number(field).is_some());
                }
            }
            Ok(())
        })?;
        let mut taken = HashSet::new();
        let names = header.iter().enumerate().map(|(at, name)| column_name(name, at, &mut taken));
        Ok(names.zip(is_number).map(|(name, seen)| Column { name, is_number: seen == Some(true) }).collect())
    }

    fn insert(
        &self,
        connection: &mut Connection,
        file: &mut File,
        separator: u8,
        columns: &[Column],
    ) -> Result<(), CallError> {
        let sql_fault = |error: rusqlite::Error| match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::OutOfMemory) => CallError::tool(format!(
                "{:?} does not fit into the memory allowed for SQL; query a smaller file",
                self.path
            )),
            _ => CallError::tool(format!("{:?} cannot become the table {}: {error}", self.path, self.name)),
        };
        let declared: Vec<_> = columns
            .iter()
            .map(|column| format!("{} {}", quoted(&column.name), if column.is_number { "NUMERIC" } else { "TEXT" }))
            .collect();
        let marks = vec!["?"; columns.len()].join(", ");
        let transaction = connection.transaction().map_err(sql_fault)?;
        transaction.execute(&format!("CREATE TABLE {} ({})", quoted(&self.name), declared.join(", ")), []).map_err(
            |error| match error.to_string() {
                text if text.contains("already exists") => CallError::tool(format!(
                    "two of the CSV files would both be the table {}; query them one at a time",
                    self.name
                )),
                _ => sql_fault(error),
            },
        )?;
        {
            let insert = format!("INSERT INTO {} VALUES ({marks})", quoted(&self.name));
            let mut statement = transaction.prepare(&insert).map_err(sql_fault)?;
            let mut reader = self.reader(file, separator)?;
            self.records(&mut reader, |record| {
                let values = record.iter().zip(columns).map(|(field, column)| value(field, column));
                statement.execute(rusqlite::params_from_iter(values)).map(drop).map_err(sql_fault)
            })?;
        }
        transaction.commit().map_err(sql_fault)
    }
}

/// An empty field is NULL among numbers and empty text among texts.
fn value(field: &[u8], column: &Column) -> Value {
    match (column.is_number, number(field)) {
        (true, Some(number)) => number,
        (true, None) => Value::Null,
        (false, _) => Value::Text(String::from_utf8_lossy(field).into_owned()),
    }
}

/// A number in the one way of writing it that comes back the same.
fn number(field: &[u8]) -> Option<Value> {
    let text = std::str::from_utf8(field).ok()?;
    let digits = text.strip_prefix('-').unwrap_or(text);
    let (whole, fraction) = digits.split_once('.').map_or((digits, None), |(whole, fraction)| (whole, Some(fraction)));
    let all_digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    if !all_digits(whole) || (whole.len() > 1 && whole.starts_with('0')) || text == "-0" {
        return None;
    }
    match fraction {
        None => text.parse().ok().map(Value::Integer),
        Some(fraction) if all_digits(fraction) && whole.len() + fraction.len() <= DIGITS_MAX => {
            text.parse().ok().map(Value::Real)
        }
        Some(_) => None,
    }
}

/// The separator that the header row has most of.
fn separator(file: &mut File) -> std::io::Result<u8> {
    let mut reader = BufReader::with_capacity(64 << 10, file);
    let buffer = reader.fill_buf()?;
    let header = buffer.split(|byte| *byte == b'\n').next().unwrap_or_default();
    let count = |separator: u8| header.iter().filter(|byte| **byte == separator).count();
    // The last of equals wins, so the comma stands last.
    Ok([b'|', b'\t', b';', b','].into_iter().max_by_key(|separator| count(*separator)).unwrap_or(b','))
}

fn column_name(field: &[u8], at: usize, taken: &mut HashSet<String>) -> String {
    let field = String::from_utf8_lossy(field);
    let field = field.trim_start_matches('\u{FEFF}').trim();
    let base = if field.is_empty() { format!("column_{}", at + 1) } else { field.to_owned() };
    let mut name = base.clone();
    let mut copy = 2;
    while !taken.insert(name.to_lowercase()) {
        name = format!("{base}_{copy}");
        copy += 1;
    }
    name
}

/// A name that needs no quotes: the file's, without folder and ending.
fn table_name(path: &str) -> String {
    let stem = Path::new(path).file_stem().unwrap_or_default().to_string_lossy();
    let name: String = stem.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    let needs_prefix = name.starts_with(|c: char| c.is_ascii_digit()) || name.to_lowercase().starts_with("sqlite_");
    if needs_prefix { format!("_{name}") } else { name }
}

fn quoted(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_numbers_that_come_back_the_same_are_numbers() {
        for (text, expected) in [
            ("0", Some(Value::Integer(0))),
            ("-12", Some(Value::Integer(-12))),
            ("9223372036854775807", Some(Value::Integer(i64::MAX))),
            ("1.50", Some(Value::Real(1.5))),
            ("-0.25", Some(Value::Real(-0.25))),
            ("9223372036854775808", None),
            ("007", None),
            ("-0", None),
            ("+1", None),
            ("1e5", None),
            (".5", None),
            ("1.", None),
            ("1,5", None),
            ("0.1234567890123456", None),
            ("", None),
            ("-", None),
            ("٣", None),
        ] {
            assert_eq!(number(text.as_bytes()), expected, "{text:?}");
        }
    }

    #[test]
    fn names_need_no_quotes_and_differ() {
        for (path, name) in
            [("a/my-sales.csv", "my_sales"), ("2024.csv", "_2024"), ("sqlite_x.csv", "_sqlite_x"), ("é.csv", "_")]
        {
            assert_eq!(table_name(path), name, "{path}");
        }
        let mut taken = HashSet::new();
        let names: Vec<_> = ["\u{FEFF}a", "A", "", "a"]
            .iter()
            .enumerate()
            .map(|(at, n)| column_name(n.as_bytes(), at, &mut taken))
            .collect();
        assert_eq!(names, ["a", "A_2", "column_3", "a_3"]);
    }
}
