//! The sweep: `doomed → gone`. It deletes what is doomed from storage, whoever doomed it, and only then forgets it.

use std::time::Duration;

use millpond_protocol::{Refusal, Timestamp, limits};
use millpond_storage::{ObjectKey, Storage};

use crate::ledger::{self, Ledger};

/// How often the sweep looks.
const EVERY: Duration = Duration::from_secs(30);
/// Objects that are deleted before their rows are written.
const PAGE: usize = 256;
/// Doomed objects younger than this are left for later: a PUT that we gave up may still be on its way.
const SETTLED: Duration = limits::STORAGE_TIMEOUT.saturating_mul(2);

/// Sweeps for ever.
pub(super) async fn run(ledger: Ledger, storage: Storage) {
    loop {
        if let Err(error) = sweep(&ledger, &storage, ledger::now()).await {
            tracing::warn!(%error, "sweep: doomed objects are not deleted yet");
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// Deletes every doomed object that was made a minute or more before `now`; says how many.
///
/// # Errors
/// The ledger cannot be used, or storage is away: what has been deleted by then is `gone`, the rest stays `doomed`.
pub async fn sweep(ledger: &Ledger, storage: &Storage, now: Timestamp) -> Result<usize, Refusal> {
    let before = now.before(SETTLED).as_millis();
    let (mut swept, mut after) = (0, 0);
    loop {
        let page = ledger
            .read(move |sql| {
                let mut statement = sql.prepare_cached(
                    "SELECT id, key FROM objects WHERE state = 'doomed' AND state IN ('granted', 'doomed') \
                     AND created <= ?1 AND id > ?2 \
                     ORDER BY id LIMIT ?3",
                )?;
                let rows = statement.query_map(rusqlite::params![before, after, PAGE], |row| {
                    Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?))
                })?;
                Ok(rows.collect::<rusqlite::Result<Vec<_>>>()?)
            })
            .await?;
        let Some((last, _)) = page.last() else { return Ok(swept) };
        after = *last;
        let (gone, failed) = delete(storage, page).await;
        swept += gone.len();
        metrics::counter!("millpond_objects_swept_total").increment(gone.len() as u64);
        ledger
            .write(move |tx| {
                let mut statement =
                    tx.sql().prepare_cached("UPDATE objects SET state = 'gone' WHERE id = ?1")?;
                gone.iter().try_for_each(|id| statement.execute([id]).map(drop))?;
                Ok(())
            })
            .await?;
        if let Some(error) = failed {
            return Err(Refusal::unavailable(error.to_string()));
        }
    }
}

/// Deletes until something fails: which are gone, and why the next is not.
async fn delete(storage: &Storage, page: Vec<(i64, String)>) -> (Vec<i64>, Option<millpond_storage::Error>) {
    let mut gone = Vec::with_capacity(page.len());
    for (id, key) in page {
        match key.parse::<ObjectKey>() {
            Ok(key) => match storage.delete(&key).await {
                Ok(()) => gone.push(id),
                Err(error) if error.is_temporary() => return (gone, Some(error)),
                // One key that storage refuses does not keep the others.
                Err(error) => tracing::error!(%key, %error, "sweep: an object is not deleted"),
            },
            Err(error) => tracing::error!(key, %error, "sweep: a row's key is none"),
        }
    }
    (gone, None)
}
