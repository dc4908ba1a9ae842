//! The sweep: `doomed → gone`. It deletes what is doomed from storage, whoever doomed it, and only then forgets it.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, stream};
use millpond_failpoint::{Point, reach};
use millpond_protocol::{Refusal, Timestamp, limits};
use millpond_storage::{Error, MultipartId, ObjectKey, Storage};
use rusqlite::{Row, params};

use crate::ledger::{self, Ledger};

/// How often the sweep looks.
const EVERY: Duration = Duration::from_secs(30);
/// Objects that are deleted before their rows are written.
const PAGE: usize = 256;
/// Objects that are deleted at once: storage answers a call in some 50 ms.
const AT_ONCE: usize = 16;
/// Temporary failures after which the rest is left to the next sweep: storage is away.
const FAILURES: usize = AT_ONCE;
/// Doomed objects that never counted and are younger than this are left for later: a PUT that we gave up may still be on
/// its way.
const SETTLED: Duration = limits::STORAGE_TIMEOUT.saturating_mul(2);

/// The same for what others could write by a URL: a PUT that began in its last moment may take that long.
const URL_SETTLED: Duration = limits::URL_VALIDITY;

/// What a sweep did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Swept {
    pub deleted: usize,
    /// Its time ended before it had seen all.
    pub more: bool,
}

/// Sweeps for ever.
pub(super) async fn run(ledger: Ledger, storage: Storage) {
    let mut refused = Refused::default();
    loop {
        let swept = pass(&ledger, &storage, ledger::now(), None, &mut refused).await;
        match swept {
            Ok(_) => metrics::gauge!("millpond_objects_refused").set(refused.all_seen() as f64),
            Err(error) => tracing::warn!(%error, "sweep: doomed objects are not deleted yet"),
        }
        tokio::time::sleep(EVERY).await;
    }
}

/// Deletes every doomed object that counted once or was made a minute or more before `now`, and that nobody can be writing
/// any more by a URL. It ends after the first page that `until` has passed at, and deletes nothing while a
/// snapshot of the ledger needs its objects.
///
/// # Errors
/// The ledger cannot be used, or storage did not delete all: what it deleted is `gone`, the rest stays `doomed`.
pub async fn sweep(
    ledger: &Ledger,
    storage: &Storage,
    now: Timestamp,
    until: Option<Instant>,
) -> Result<Swept, Refusal> {
    pass(ledger, storage, now, until, &mut Refused::default()).await
}

async fn pass(
    ledger: &Ledger,
    storage: &Storage,
    now: Timestamp,
    until: Option<Instant>,
    refused: &mut Refused,
) -> Result<Swept, Refusal> {
    let before = now.before(SETTLED).as_millis();
    let urls_before = now.before(URL_SETTLED).as_millis();
    let (mut swept, mut after) = (Swept::default(), 0);
    let mut failures = Vec::new();
    while failures.len() < FAILURES {
        let page = ledger
            .read(move |sql| {
                let mut statement = sql.prepare_cached(
                    "SELECT id, key, multipart, 0 FROM objects WHERE state = 'doomed' AND state IN ('granted', 'doomed') \
                     AND (lived OR created <= ?1) AND coalesce(url_until, 0) <= ?4 AND id > ?2 \
                     ORDER BY id LIMIT ?3",
                )?;
                let rows = statement.query_map(params![before, after, PAGE, urls_before], doomed)?;
                Ok(rows.collect::<rusqlite::Result<Vec<_>>>()?)
            })
            .await?;
        let Some(last) = page.last() else { break };
        let full = page.len() == PAGE;
        after = last.id;
        // Asked after the page was read: what it lists was doomed before a snapshot that is taken from now on.
        if ledger.keeps_objects() {
            break;
        }
        reach(Point::SweepBegun);
        let gone = delete(storage, page, &mut failures, refused).await;
        reach(Point::SweepDeleted);
        swept.deleted += gone.len();
        metrics::counter!("millpond_objects_swept_total").increment(gone.len() as u64);
        ledger
            .write(move |tx| {
                let mut statement =
                    tx.sql().prepare_cached("UPDATE objects SET state = 'gone', gone = ?2 WHERE id = ?1")?;
                let at = tx.now().as_millis();
                gone.iter().try_for_each(|id| statement.execute(params![id, at]).map(drop))?;
                Ok(())
            })
            .await?;
        if until.is_some_and(|until| Instant::now() >= until) {
            swept.more = full;
            break;
        }
    }
    said(&failures).map(|()| swept)
}

/// Forgets the rows of objects that have been gone for [`limits::GONE_KEPT_FOR`], until `until`, and deletes each once more
/// before: what came back, by a PUT that was under way for long or by the hands of somebody who restored a bucket, would be
/// nobody's from then on.
///
/// # Errors
/// The ledger or storage cannot be used now.
pub async fn forget(
    ledger: &Ledger,
    storage: &Storage,
    now: Timestamp,
    until: Instant,
) -> Result<(), Refusal> {
    let before = now.before(limits::GONE_KEPT_FOR).as_millis();
    let (mut after, mut failures, mut refused) = ((0, 0), Vec::new(), Refused::default());
    while failures.is_empty() {
        let page = ledger
            .read(move |sql| {
                let mut statement = sql.prepare_cached(
                    "SELECT id, key, multipart, gone FROM objects WHERE gone IS NOT NULL AND gone <= ?1 \
                     AND (gone, id) > (?2, ?3) ORDER BY gone, id LIMIT ?4",
                )?;
                let rows = statement.query_map(params![before, after.0, after.1, PAGE], doomed)?;
                Ok(rows.collect::<rusqlite::Result<Vec<_>>>()?)
            })
            .await?;
        let Some(last) = page.last() else { break };
        after = (last.gone, last.id);
        let gone = delete(storage, page, &mut failures, &mut refused).await;
        ledger
            .write(move |tx| {
                let mut statement = tx.sql().prepare_cached("DELETE FROM objects WHERE id = ?1")?;
                gone.iter().try_for_each(|id| statement.execute([id]).map(drop))?;
                Ok(())
            })
            .await?;
        if Instant::now() >= until {
            break;
        }
    }
    said(&failures)
}

fn doomed(row: &Row<'_>) -> rusqlite::Result<Doomed> {
    Ok(Doomed { id: row.get(0)?, key: row.get(1)?, multipart: row.get(2)?, gone: row.get(3)? })
}

fn said(failures: &[Error]) -> Result<(), Refusal> {
    match failures.first() {
        None => Ok(()),
        Some(error) => Err(Refusal::unavailable(format!("{} objects fail: {error}", failures.len()))),
    }
}

/// An object that is to go.
struct Doomed {
    id: i64,
    key: String,
    multipart: Option<String>,
    /// Since when it is gone; 0 if it is not.
    gone: i64,
}

/// Objects that storage refuses to delete, whenever it is asked: each is said once.
#[derive(Debug, Default)]
struct Refused {
    said: HashSet<i64>,
    /// Of the pass that goes on.
    now: HashSet<i64>,
}

impl Refused {
    /// Whether it is news.
    fn is_news(&mut self, object: i64) -> bool {
        self.now.insert(object);
        self.said.insert(object)
    }

    /// A pass has seen all that is doomed: what was not refused in it may be said again; how many were.
    fn all_seen(&mut self) -> usize {
        self.said = std::mem::take(&mut self.now);
        self.said.len()
    }
}

/// Deletes until too much has failed; which are gone.
async fn delete(
    storage: &Storage,
    page: Vec<Doomed>,
    failures: &mut Vec<Error>,
    refused: &mut Refused,
) -> Vec<i64> {
    let mut gone = Vec::with_capacity(page.len());
    let removals = page.into_iter().map(|doomed| remove(storage.clone(), doomed));
    let mut removals = stream::iter(removals).buffer_unordered(AT_ONCE);
    while failures.len() < FAILURES
        && let Some((doomed, removed)) = removals.next().await
    {
        match removed {
            Ok(()) => gone.push(doomed.id),
            Err(error) if error.is_temporary() => failures.push(error),
            // One key that storage refuses does not keep the others.
            Err(error) if refused.is_news(doomed.id) => {
                tracing::error!(key = %doomed.key, %error, "sweep: storage refuses to delete an object; it is tried again");
            }
            Err(_) => {}
        }
    }
    gone
}

/// Removes an object, and the parts that it was to be made of.
async fn remove(storage: Storage, doomed: Doomed) -> (Doomed, Result<(), Error>) {
    let removed = async {
        let key: ObjectKey =
            doomed.key.parse().map_err(|_| Error::Mismatch("the row's key is none".into()))?;
        if let Some(id) = doomed.multipart.as_deref().and_then(|id| id.parse::<MultipartId>().ok()) {
            storage.abort_multipart(&key, &id).await?;
        }
        storage.delete(&key).await
    };
    let removed = removed.await;
    (doomed, removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_storage_refuses_is_said_once_until_it_was_not_refused() {
        let mut refused = Refused::default();
        assert!(refused.is_news(1) && refused.is_news(2));
        assert_eq!(refused.all_seen(), 2);
        assert!(!refused.is_news(1));
        assert_eq!(refused.all_seen(), 1);
        assert!(!refused.is_news(1) && refused.is_news(2));
    }
}
