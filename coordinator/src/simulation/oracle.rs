//! What has to hold after any schedule: nothing that was acknowledged is lost, nothing counts twice, what was decided stays,
//! everything comes to its end, everybody converges, and nothing is left over.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use millpond_protocol::{Sha256, limits};
use rusqlite::{Connection, Params, Row, params};

use super::book::Key;
use super::world::World;
use crate::check::rules::RULES;

type Outcome = Result<(), String>;

/// The ledger tries a tick that failed again after 5 s.
const OVERDUE: Duration = Duration::from_secs(10);

fn rows<T>(sql: &Connection, query: &str, read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>) -> Vec<T> {
    rows_of(sql, query, [], read)
}

fn rows_of<T>(
    sql: &Connection,
    query: &str,
    params: impl Params,
    read: impl FnMut(&Row<'_>) -> rusqlite::Result<T>,
) -> Vec<T> {
    sql.prepare_cached(query).unwrap().query_map(params, read).unwrap().map(Result::unwrap).collect()
}

fn number(sql: &Connection, query: &str) -> u64 {
    sql.prepare_cached(query).unwrap().query_row([], |row| row.get(0)).unwrap()
}

fn holds(holds: bool, what: impl FnOnce() -> String) -> Outcome {
    if holds { Ok(()) } else { Err(what()) }
}

/// What has not come to its end, in words; nothing if all has.
pub(super) fn unfinished(world: &World<'_>) -> String {
    let (sql, book) = (world.bench.ledger.sql(), world.stage.read_book());
    if book.publishing > 0 {
        return format!("{} publishers have not sent everything", book.publishing);
    }
    let queries = [
        ("open batches", "SELECT count(*) FROM batches WHERE state = 'open'"),
        ("live rounds", "SELECT count(*) FROM rounds WHERE state NOT IN ('committed', 'failed')"),
        (
            "batches without manifest",
            "SELECT count(*) FROM batches b WHERE b.round IS NOT NULL AND NOT EXISTS \
             (SELECT 1 FROM manifests m WHERE m.pool_id = b.pool_id AND m.seq = b.round)",
        ),
        ("rounds without story", "SELECT count(*) FROM rounds WHERE story_object IS NULL"),
        ("packs whose payloads are kept", "SELECT count(*) FROM packs WHERE purged = 0"),
    ];
    for (what, query) in queries {
        let count = number(sql, query);
        if count > 0 {
            return format!("{count} {what}");
        }
    }
    let pointer = number(sql, "SELECT coalesce(pointer, 0) FROM pools");
    let version = book.versions.get(&0).copied().unwrap_or_default();
    if version != pointer {
        return format!("a listener has version {version} and the pointer names {pointer}");
    }
    for (member, name, upload, seq) in receipts(sql) {
        let subscribed = book.subscribed.get(&member).is_some_and(|from| seq > *from);
        if subscribed && !book.receipts.contains_key(&(name.clone(), upload.clone())) {
            return format!("the receipt of {name}/{upload} never came");
        }
    }
    String::new()
}

fn receipts(sql: &Connection) -> Vec<(i64, String, String, i64)> {
    let query =
        "SELECT u.member_id, m.name, u.upload, u.seq FROM uploads u JOIN members m ON m.id = u.member_id";
    rows(sql, query, |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?, row.get(3)?)))
}

/// The newest row of batches.
pub(super) fn newest_batch(world: &World<'_>) -> i64 {
    rows(world.bench.ledger.sql(), "SELECT coalesce(max(id), 0) FROM batches", |row| row.get(0))[0]
}

/// Rounds that have failed.
pub(super) fn failed(world: &World<'_>) -> Vec<u64> {
    rows(world.bench.ledger.sql(), "SELECT round FROM rounds WHERE state = 'failed'", |row| row.get(0))
}

/// The rows that a new process finds: all that was acknowledged, and cores that say the same.
pub(super) fn nothing_is_lost(world: &mut World<'_>) -> Outcome {
    world.bench.ledger.compare_cores()?;
    let (sql, book) = (world.bench.ledger.sql(), world.stage.read_book());
    let query = "SELECT m.name, u.upload, u.sha256 FROM uploads u JOIN members m ON m.id = u.member_id";
    let key = |row: &Row<'_>| Ok(((row.get(0)?, row.get(1)?), Sha256(row.get(2)?)));
    let kept: BTreeMap<Key, Sha256> = rows(sql, query, key).into_iter().collect();
    for key in &book.acknowledged {
        holds(kept.get(key) == book.sent.get(key), || {
            format!("{key:?} was acknowledged and is {:?}", kept.get(key))
        })?;
    }
    let query = "SELECT round, sha256 FROM results WHERE of IS NULL";
    let committed: BTreeMap<u64, Sha256> =
        rows(sql, query, |row| Ok((row.get(0)?, Sha256(row.get(1)?)))).into_iter().collect();
    for (round, result) in &book.results {
        holds(committed.get(round) == Some(result), || {
            format!("the result of round {round} was acknowledged")
        })?;
    }
    Ok(())
}

/// The ledger's rows fit each other, and the manifests list each file once.
pub(super) fn everything_counts_once(world: &World<'_>, with_rules: bool) -> Outcome {
    let sql = world.bench.ledger.sql();
    for (rule, query) in RULES.iter().filter(|_| with_rules) {
        let broken = rows(sql, query, |row| Ok((row.get::<_, String>(0)?, row.get::<_, String>(1)?)));
        holds(broken.is_empty(), || format!("{rule}: {broken:?}"))?;
    }
    manifests(world)?;
    causes(world)?;
    pointer(sql)?;
    // Whoever could not pack before can now: two terms for that are over at most by chance, and what is sealed now has a whole one.
    let (calm, late) = (world.calm_since, world.calm_since.after(limits::PACKING_MAX * 2));
    let failed = "SELECT r.round, r.ended, b.sealed FROM rounds r JOIN batches b ON b.id = r.batch_id \
                  WHERE r.state = 'failed' AND NOT json_extract(r.record, '$.ready')";
    let read = |row: &Row<'_>| Ok((row.get::<_, u64>(0)?, row.get::<_, i64>(1)?, row.get::<_, i64>(2)?));
    for (round, ended, sealed) in rows(sql, failed, read) {
        let had_time = ended > late.as_millis() || sealed >= calm.as_millis();
        holds(!had_time || world.failed_before.contains(&round), || {
            format!("round {round} was never packed")
        })?;
    }
    let versions = rows(sql, "SELECT version FROM results ORDER BY version", |row| row.get::<_, u64>(0));
    holds(versions.iter().copied().eq(1..=versions.len() as u64), || {
        format!("versions have a gap: {versions:?}")
    })?;
    let results = rows(
        sql,
        "SELECT s.round, s.attempt, json_extract(r.record, '$.attempt'), r.state FROM results s \
         LEFT JOIN rounds r ON r.pool_id = s.pool_id AND r.round = s.round WHERE s.of IS NULL ORDER BY s.round",
        |row| {
            Ok((
                row.get::<_, u64>(0)?,
                row.get::<_, u32>(1)?,
                row.get::<_, u32>(2)?,
                row.get::<_, String>(3)?,
            ))
        },
    );
    let mut rounds = BTreeSet::new();
    for (round, attempt, newest, state) in results {
        holds(rounds.insert(round), || format!("round {round} has two results"))?;
        holds(attempt == newest && state == "committed", || {
            format!("round {round} is {state} by attempt {attempt}, and its newest is {newest}")
        })?;
    }
    Ok(())
}

/// Each batch was sealed for a cause that there was.
fn causes(world: &World<'_>) -> Outcome {
    let query = "SELECT b.batch, b.cause, sum(i.count), b.sealed, b.deadline, b.window_to, \
                 (SELECT count(DISTINCT member_id) FROM uploads WHERE batch_id = b.id OR batch_id IN \
                 (SELECT id FROM batches WHERE carried_into = b.id)), \
                 (SELECT min(coalesce(complete_through, -1)) FROM members WHERE role = 'publisher') \
                 FROM batches b JOIN batches i ON i.id = b.id OR i.carried_into = b.id \
                 WHERE b.state = 'sealed' AND b.id > ?1 GROUP BY b.id";
    let read = |row: &Row<'_>| {
        let times: [Option<i64>; 4] = [row.get(3)?, row.get(4)?, row.get(5)?, row.get(7)?];
        Ok((
            row.get::<_, u64>(0)?,
            row.get::<_, String>(1)?,
            row.get::<_, u64>(2)?,
            times,
            row.get::<_, u64>(6)?,
        ))
    };
    let policy = &world.policy;
    for (batch, cause, count, [sealed, deadline, end, through], members) in
        rows_of(world.bench.ledger.sql(), query, [world.sealed_before], read)
    {
        let is_so = match &*cause {
            "full" => count >= policy.count,
            "quorum" => policy.quorum > 0 && members >= policy.quorum && sealed >= end,
            "complete" => end.is_none() || through >= end,
            "deadline" => sealed >= deadline,
            _ => cause == "trigger",
        };
        holds(is_so, || {
            format!(
                "batch {batch} has {count} uploads of {members} members, and was sealed by {cause} at {sealed:?}"
            )
        })?;
    }
    Ok(())
}

/// Nobody has anything to do: what has its time was seen to when that came.
pub(super) fn nothing_is_overdue(world: &mut World<'_>) -> Outcome {
    let term = Duration::from_secs(world.policy.lease_term_s) + OVERDUE;
    let rounds = world.lost.is_none_or(|lost| world.stage.running() > lost + term);
    let before = world.bench.ledger.now().before(OVERDUE);
    let query = "SELECT 'batch ' || batch FROM batches WHERE state = 'open' AND deadline < ?1 \
                 UNION ALL SELECT 'round ' || round || ' ' || record FROM rounds WHERE ?3 AND state IN ('leased', 'pausing') AND json_extract(record, '$.state.until') < ?2";
    let mut statement = world.bench.ledger.sql().prepare_cached(query).unwrap();
    let mut late = statement.query(params![before.as_millis(), before.to_string(), rounds]).unwrap();
    match late.next().unwrap() {
        Some(row) => Err(format!("overdue: {}", row.get::<_, String>(0).unwrap())),
        None => Ok(()),
    }
}

/// The pointer names the result of the newest batch, or an old one that an operator has published again since.
fn pointer(sql: &Connection) -> Outcome {
    let query = "SELECT coalesce(p.pointer, 0), coalesce((SELECT max(version) FROM results r WHERE r.pool_id = p.id AND (r.of IS NOT NULL \
                 OR NOT EXISTS (SELECT 1 FROM results e WHERE e.pool_id = r.pool_id AND e.of IS NULL AND e.version < r.version \
                 AND e.round > r.round))), 0) FROM pools p";
    for (pointer, newest) in rows(sql, query, |row| Ok((row.get::<_, u64>(0)?, row.get::<_, u64>(1)?))) {
        holds(pointer == newest, || {
            format!(
                "the pointer names {pointer}, and the newest batch's, or what was published again since, is {newest}"
            )
        })?;
    }
    Ok(())
}

/// The chain of manifests as it is in storage.
fn manifests(world: &World<'_>) -> Outcome {
    let sql = world.bench.ledger.sql();
    let query =
        "SELECT m.seq, m.sha256, o.key FROM manifests m JOIN objects o ON o.id = m.object_id ORDER BY m.seq";
    let chain =
        rows(sql, query, |row| Ok((row.get::<_, u64>(0)?, Sha256(row.get(1)?), row.get::<_, String>(2)?)));
    let (mut prev, mut listed) = (serde_json::Value::Null, BTreeSet::<Key>::new());
    for (seq, sha256, key) in chain {
        let bytes = world.stage.store().object(&key).unwrap_or_default();
        world.stage.book().read(seq, &bytes);
        let book = world.stage.read_book();
        if let Some(fault) = &book.fault {
            return Err(fault.clone());
        }
        let (read, before, keys) = &book.manifests[&seq];
        holds(*read == sha256, || format!("manifest {seq} is {read} in storage"))?;
        holds(*before == prev, || format!("manifest {seq} names {before} before it, which is {prev}"))?;
        prev = sha256.to_string().into();
        for key in keys {
            holds(listed.insert(key.clone()), || format!("{key:?} counts twice, at last in manifest {seq}"))?;
        }
    }
    let query = "SELECT m.name, u.upload FROM uploads u JOIN members m ON m.id = u.member_id WHERE u.batch_id IS NOT NULL";
    let stored: BTreeSet<Key> = rows(sql, query, |row| Ok((row.get(0)?, row.get(1)?))).into_iter().collect();
    holds(stored == listed, || {
        format!(
            "stored and in no manifest, or the other way round: {:?}",
            stored.symmetric_difference(&listed)
        )
    })
}

/// Storage holds what counts, whole, and nothing else.
pub(super) fn nothing_is_left_over(world: &World<'_>) -> Outcome {
    let query = "SELECT key, sha256 FROM objects WHERE state = 'live'";
    let live =
        rows(world.bench.ledger.sql(), query, |row| Ok((row.get::<_, String>(0)?, Sha256(row.get(1)?))));
    for (key, sha256) in &live {
        let found = world.stage.store().object(key).map(|bytes| Sha256::of(&bytes));
        holds(found == Some(*sha256), || format!("{key} counts, and in storage is {found:?}"))?;
    }
    let live: BTreeSet<String> = live.into_iter().map(|(key, _)| key).collect();
    let mut left = world.stage.store().keys();
    // What came after its caller had given up, and after the sweep, is deleted again some days later.
    left.retain(|key| !live.contains(key) && !world.stage.store().was_late(key));
    holds(left.is_empty(), || format!("nobody's objects are in storage: {left:?}"))
}
