//! Which of several uploads of one member count, in pools with `select = latest` or `first`.

use rusqlite::{Connection, params_from_iter};

use super::{Context, Trouble};
use crate::ledger::Result;
use crate::rounds::policy::Select;

/// Rows of one ledger job.
const ROWS: usize = 2_000;

/// Marks the superseded uploads of a sealed batch. May be repeated: the marks are a function of the batch's rows.
pub(super) async fn mark(
    context: &Context,
    batches: Vec<i64>,
    select: Select,
) -> std::result::Result<(), Trouble> {
    let order = match select {
        Select::All => return Ok(()),
        Select::Latest => "DESC",
        Select::First => "ASC",
    };
    let superseded = context.read(move |sql| superseded(sql, &batches, order)).await?;
    for rows in superseded.chunks(ROWS) {
        let rows = rows.to_vec();
        let job = context.ledger.write(move |tx| {
            let mut statement =
                tx.sql().prepare_cached("INSERT OR IGNORE INTO superseded (seq) VALUES (?1)")?;
            rows.iter().try_for_each(|seq| statement.execute([seq]).map(drop))?;
            Ok(())
        });
        job.await?;
    }
    Ok(())
}

fn superseded(sql: &Connection, batches: &[i64], order: &str) -> Result<Vec<i64>> {
    let places = vec!["?"; batches.len()].join(", ");
    let mut statement = sql.prepare_cached(&format!(
        "SELECT seq FROM (SELECT seq, row_number() OVER \
         (PARTITION BY member_id ORDER BY event_time {order}, upload {order}) AS place \
         FROM uploads WHERE batch_id IN ({places})) WHERE place > 1 ORDER BY seq"
    ))?;
    let rows = statement.query_map(params_from_iter(batches), |row| row.get(0))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}
