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

/// Tables with their columns, indices with theirs, and triggers: what has to be the same however the file came to it.
pub fn schema(file: &Path) -> BTreeSet<String> {
    let sql = Connection::open(file).unwrap();
    let columns = "SELECT 'column ' || m.name || '.' || c.name || ' ' || c.type || ' ' || c.\"notnull\" || c.pk || ' ' ||
        coalesce(c.dflt_value, '') FROM sqlite_schema m, pragma_table_xinfo(m.name) c WHERE m.type = 'table'";
    let indices = "SELECT 'index ' || m.name || ' ' || i.\"unique\" || i.partial || ' ' ||
        (SELECT group_concat(coalesce(x.name, '')) FROM pragma_index_info(i.name) x) || ' ' || i.name
        FROM sqlite_schema m, pragma_index_list(m.name) i WHERE m.type = 'table' AND i.origin = 'c'";
    let triggers = "SELECT 'trigger ' || name FROM sqlite_schema WHERE type = 'trigger'";
    let mut schema: BTreeSet<_> = BTreeSet::from([format!("version {}", version(&sql))]);
    schema.extend([columns, indices, triggers].iter().flat_map(|query| texts(&sql, query, text)));
    schema
}
