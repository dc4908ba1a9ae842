//! Numbered migrations, recorded in `user_version`. A copy is taken before an older file is changed.

use std::path::Path;

use rusqlite::Connection;

use super::OpenError;

/// Migration N brings the schema from N − 1 to N. Never edit one that has shipped.
const MIGRATIONS: [&str; 1] = [include_str!("schema/0001.sql")];

/// Brings the file up to date.
pub(super) fn run(sql: &mut Connection, path: &Path) -> Result<(), OpenError> {
    let known = u32::try_from(MIGRATIONS.len()).unwrap_or(u32::MAX);
    let found: u32 = sql.pragma_query_value(None, "user_version", |row| row.get(0))?;
    if found > known {
        return Err(OpenError::Newer { found, known });
    }
    if found > 0 && found < known {
        let copy = path.with_extension(format!("db.schema-{found}"));
        sql.execute("VACUUM INTO ?1", [copy.display().to_string()])?;
    }
    for (version, migration) in (1..).zip(MIGRATIONS).filter(|(version, _)| *version > found) {
        let tx = sql.transaction()?;
        tx.execute_batch(migration)?;
        tx.pragma_update(None, "user_version", version)?;
        tx.commit()?;
    }
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
