//! Numbered migrations, recorded in `user_version`. A copy is taken before an older file is changed.

use std::fs::File;
use std::path::Path;

use millpond_failpoint::{Point, next_schema, reach};
use millpond_storage::directory;
use rusqlite::Connection;

use super::{OpenError, snapshot};

/// Migration N brings the schema from N − 1 to N. Never edit one that has shipped.
const MIGRATIONS: [&str; 1] = [include_str!("schema/0001.sql")];

/// The schema of this program.
#[allow(clippy::cast_possible_truncation, reason = "there are not that many")]
pub(super) const KNOWN: u32 = MIGRATIONS.len() as u32;

/// Brings the file up to date.
pub(super) fn run(sql: &mut Connection, path: &Path) -> Result<(), OpenError> {
    let rehearsed = next_schema();
    let all: Vec<&str> = MIGRATIONS.into_iter().chain(rehearsed.as_deref()).collect();
    migrate(sql, path, &all)
}

fn migrate(sql: &mut Connection, path: &Path, migrations: &[&str]) -> Result<(), OpenError> {
    let known = u32::try_from(migrations.len()).unwrap_or(u32::MAX);
    let found: u32 = sql.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if found > known {
        return Err(OpenError::Newer { found, known });
    }
    if found > 0 && found < known {
        keep(sql, &path.with_extension(format!("db.schema-{found}")))?;
    }
    for (version, migration) in (1..).zip(migrations).filter(|(version, _)| *version > found) {
        let tx = sql.transaction()?;
        tx.execute_batch(migration)?;
        tx.pragma_update(None, "user_version", version)?;
        reach(Point::LedgerMigrating);
        tx.commit()?;
        reach(Point::LedgerMigrated);
    }
    Ok(())
}

/// Keeps the file as it is now; a copy that an earlier start left behind, whole or not, is replaced.
fn keep(sql: &Connection, to: &Path) -> Result<(), OpenError> {
    let io = |source| OpenError::Io { path: to.display().to_string(), source };
    let new = to.with_extension("new");
    snapshot::copy(sql, &new).map_err(|error| io(std::io::Error::other(error)))?;
    // Whole on disk before the file is changed that it is a copy of.
    File::open(&new).and_then(|copy| copy.sync_all()).map_err(io)?;
    reach(Point::LedgerCopied);
    std::fs::rename(&new, to).map_err(io)?;
    directory::sync_name_of(to).map_err(io)?;
    reach(Point::LedgerKept);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_of_a_newer_program_is_refused_and_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger.db");
        let mut sql = Connection::open(&path).unwrap();
        sql.pragma_update(None, "user_version", 99).unwrap();
        let refused = run(&mut sql, &path);
        assert!(matches!(refused, Err(OpenError::Newer { found: 99, known: 1 })), "{refused:?}");
        let tables: u32 = sql.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).unwrap();
        assert_eq!(tables, 0);
    }

    #[test]
    fn an_older_file_is_copied_before_it_is_changed_and_keeps_its_rows() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger.db");
        let copy = dir.path().join("ledger.db.schema-1");
        // What a start that died in the middle left behind.
        std::fs::write(&copy, "half").unwrap();
        std::fs::write(copy.with_extension("new"), "half").unwrap();
        let (one, two) =
            ("CREATE TABLE a (x); INSERT INTO a VALUES (7)", "ALTER TABLE a ADD COLUMN y DEFAULT 8");
        let mut sql = Connection::open(&path).unwrap();
        migrate(&mut sql, &path, &[one]).unwrap();
        migrate(&mut sql, &path, &[one, two]).unwrap();
        let row = |sql: &Connection, columns: &str| {
            let query = format!("SELECT {columns} FROM a");
            sql.query_row(&query, [], |row| row.get::<_, i64>(0))
        };
        assert_eq!(row(&sql, "x + y"), Ok(15));
        let copy = Connection::open(&copy).unwrap();
        assert_eq!(row(&copy, "x"), Ok(7));
        assert!(row(&copy, "y").is_err(), "the copy is from before");
    }

    #[test]
    fn running_twice_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger.db");
        let mut sql = Connection::open(&path).unwrap();
        run(&mut sql, &path).unwrap();
        run(&mut sql, &path).unwrap();
        let version: u32 = sql.pragma_query_value(None, "user_version", |row| row.get(0)).unwrap();
        assert_eq!(version, 1);
    }
}
