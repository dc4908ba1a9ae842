//! A ledger of an older program: the one under test is given one migration more than there are, and so brings its ledger up to
//! date whenever a test has made it old again.

use millpond::ledger::SCHEMA;
use millpond_failpoint::{NEXT_SCHEMA, Point, Program};
use millpond_tests::Server;
use rusqlite::Connection;

/// It tells how much it found.
const NEXT: &str = "CREATE TABLE rehearsal (uploads INTEGER NOT NULL) STRICT; \
     INSERT INTO rehearsal SELECT count(*) FROM uploads;";

/// What the environment of such a program needs.
pub fn one_more() -> (&'static str, String) {
    (NEXT_SCHEMA, NEXT.to_owned())
}

/// Where it can die over a migration.
pub fn points() -> Vec<Point> {
    let mut points = super::points(&[Program::Migration]);
    points.extend([Point::LedgerMigrating, Point::LedgerMigrated]);
    points
}

fn version(sql: &Connection) -> u32 {
    sql.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap()
}

fn count(sql: &Connection, query: &str) -> u64 {
    sql.query_row(query, [], |row| row.get(0)).unwrap()
}

/// Makes the ledger of a server that is gone one of the program before.
pub fn age(server: &Server) {
    let sql = Connection::open(server.data().join("ledger.db")).unwrap();
    // It may be old already, if the last start has died early.
    sql.execute_batch("DROP TABLE IF EXISTS rehearsal").unwrap();
    sql.pragma_update(None, "user_version", SCHEMA).unwrap();
}

/// It was brought up to date, and the copy that was taken before is a whole ledger with all that there was.
pub fn is_done(server: &Server) {
    let ledger = super::oracle::open(&server.data().join("ledger.db"));
    assert_eq!(version(&ledger), SCHEMA + 1);
    let found = count(&ledger, "SELECT uploads FROM rehearsal");
    let copy = server.data().join(format!("ledger.db.schema-{SCHEMA}"));
    assert!(copy.exists(), "there is no copy of the ledger as it was");
    let copy = Connection::open(copy).unwrap();
    assert_eq!(version(&copy), SCHEMA, "the copy's schema");
    assert_eq!(count(&copy, "SELECT count(*) FROM uploads"), found, "the copy and what was migrated");
    assert_eq!(count(&copy, "SELECT count(*) FROM sqlite_schema WHERE name = 'rehearsal'"), 0);
    let whole: String = copy.pragma_query_value(None, "integrity_check", |row| row.get(0)).unwrap();
    assert_eq!(whole, "ok");
}
