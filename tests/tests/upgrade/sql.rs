//! A database as the SQL that makes it, and what of its schema a later version has to arrive at.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::Path;

use rusqlite::{Connection, Row};

fn texts(sql: &Connection, query: &str, of: impl Fn(&Row<'_>) -> rusqlite::Result<String>) -> Vec<String> {
    let mut statement = sql.prepare(query).unwrap();
    let rows = statement.query_map([], |row| of(row)).unwrap();
    rows.map(Result::unwrap).collect()
}

fn text(row: &Row<'_>) -> rusqlite::Result<String> {
    row.get(0)
}

pub fn version(sql: &Connection) -> u32 {
    sql.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap()
}

/// The SQL that makes this database.
pub fn dump(file: &Path) -> String {
    let sql = Connection::open(file).unwrap();
    let mut dump = format!("PRAGMA user_version = {};\n", version(&sql));
    let own = "name NOT LIKE 'sqlite_%' AND sql IS NOT NULL";
    for what in ["table", "index", "trigger", "view"] {
        if what == "index" {
            rows(&sql, &mut dump);
        }
        let query = format!("SELECT sql FROM sqlite_schema WHERE type = '{what}' AND {own} ORDER BY rowid");
        for made in texts(&sql, &query, text) {
            writeln!(dump, "{made};").unwrap();
        }
    }
    dump
}

fn rows(sql: &Connection, dump: &mut String) {
    let tables =
        "SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT LIKE 'sqlite_%' ORDER BY rowid";
    for table in texts(sql, tables, text) {
        rows_of(sql, &table, dump);
    }
    if texts(sql, "SELECT name FROM sqlite_schema WHERE name = 'sqlite_sequence'", text).is_empty() {
        return;
    }
    // It has rows by now.
    dump.push_str("DELETE FROM sqlite_sequence;\n");
    rows_of(sql, "sqlite_sequence", dump);
}

fn rows_of(sql: &Connection, table: &str, dump: &mut String) {
    let columns = texts(sql, &format!("SELECT name FROM pragma_table_info('{table}') ORDER BY cid"), text);
    let values: Vec<_> = columns.iter().map(|column| format!("quote(\"{column}\")")).collect();
    let query = format!("SELECT {} FROM \"{table}\"", values.join(" || ', ' || "));
    for row in texts(sql, &query, text) {
        writeln!(dump, "INSERT INTO {table} VALUES ({row});").unwrap();
    }
}

/// Makes the database.
pub fn make(dump: &str, file: &Path) {
    let sql = Connection::open(file).unwrap();
    sql.pragma_update(None, "foreign_keys", false).unwrap();
    sql.execute_batch(&format!("BEGIN; {dump} COMMIT;")).unwrap();
}

/// What has to be the same however the file came to it: tables with their columns, keys and conditions, indices with theirs, and
/// triggers.
pub fn schema(file: &Path) -> BTreeSet<String> {
    let sql = Connection::open(file).unwrap();
    let columns = "SELECT 'column ' || m.name || '.' || c.name || ' ' || c.type || ' ' || c.\"notnull\" || c.pk || ' ' ||
        coalesce(c.dflt_value, '') FROM sqlite_schema m, pragma_table_xinfo(m.name) c WHERE m.type = 'table'";
    let kinds = "SELECT 'table ' || name || ' ' || wr || strict FROM pragma_table_list WHERE schema = 'main'";
    let foreign = "SELECT 'reference ' || m.name || '.' || f.\"from\" || ' ' || f.\"table\" || '.' || coalesce(f.\"to\", '') || ' ' ||
        f.on_delete FROM sqlite_schema m, pragma_foreign_key_list(m.name) f WHERE m.type = 'table'";
    let keys = "SELECT 'key ' || m.name || ' ' || i.origin || ' ' ||
        (SELECT group_concat(coalesce(x.name, '')) FROM pragma_index_info(i.name) x)
        FROM sqlite_schema m, pragma_index_list(m.name) i WHERE m.type = 'table' AND i.origin <> 'c'";
    let indices = "SELECT 'index ' || m.name || ' ' || i.\"unique\" || i.partial || ' ' ||
        (SELECT group_concat(coalesce(x.name, '')) FROM pragma_index_info(i.name) x) || ' ' || i.name
        FROM sqlite_schema m, pragma_index_list(m.name) i WHERE m.type = 'table' AND i.origin = 'c'";
    let mut schema: BTreeSet<_> = BTreeSet::from([format!("version {}", version(&sql))]);
    let lists = [columns, kinds, foreign, keys, indices];
    schema.extend(lists.iter().flat_map(|query| texts(&sql, query, text)));
    for (word, kind) in [("CHECK", "table"), ("WHERE", "index"), ("TRIGGER", "trigger")] {
        let query =
            format!("SELECT name || ' ' || sql FROM sqlite_schema WHERE type = '{kind}' AND sql IS NOT NULL");
        for made in texts(&sql, &query, text) {
            let name = made.split(' ').next().unwrap();
            schema.extend(
                behind(word, &plain(&made)).into_iter().map(|what| format!("{kind} {name} {word} {what}")),
            );
        }
    }
    schema
}

/// A statement without comments, and with one space where there are more.
fn plain(statement: &str) -> String {
    let lines = statement.lines().map(|line| line.split("--").next().unwrap_or_default());
    lines.flat_map(str::split_whitespace).collect::<Vec<_>>().join(" ")
}

/// What stands behind each of these words: to the end of its parenthesis, if it has one, else of the statement.
fn behind(word: &str, statement: &str) -> Vec<String> {
    let from = statement.match_indices(word).map(|(at, _)| statement[at + word.len()..].trim_start());
    from.map(|rest| {
        let mut open = 0;
        let closes = |c: char| {
            open += i32::from(c == '(') - i32::from(c == ')');
            open == 0
        };
        let end = if rest.starts_with('(') { rest.find(closes).map(|at| at + 1) } else { None };
        rest[..end.unwrap_or(rest.len())].to_owned()
    })
    .collect()
}
