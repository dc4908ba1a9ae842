//! Retention over a real ledger and real storage.

use std::time::Duration;

use millpond::retention::{Collected, Collector, explain};
use millpond_protocol::access::Op;
use millpond_protocol::{Code, Sha256, Timestamp, limits};
use serde_json::json;

use crate::stage::{LONG, Stage, later};
use crate::world::{file, files};

const HOUR: Duration = Duration::from_secs(3_600);
const DAY: Duration = Duration::from_secs(86_400);
#[tokio::test]
async fn bytes_stay_for_the_time_of_the_policy_and_then_go_while_keys_and_hashes_stay() {
    let mut stage = Stage::new(json!({})).await;
    stage.round().await;
    assert_eq!(stage.collect(later(HOUR - Duration::from_secs(60))).await, Collected::default());
    assert_eq!(stage.stored().await, 5, "pack, large file, manifest, result, round.json");

    let done = stage.collect(later(HOUR)).await;
    assert_eq!((done.batches, done.objects, done.deleted), (1, 3, 3), "{done:?}");
    assert_eq!(stage.stored().await, 2, "the result is the current one, the story is kept for a day");
    for upload in ["u000001", "large"] {
        assert_eq!(stage.ask(Op::Get, json!({ "upload": upload })).await, Err(Code::NotFound));
        let status = stage.ask(Op::Status, json!({ "upload": upload })).await.unwrap();
        assert_eq!((status["version"].as_u64(), status["expired"].is_string()), (Some(1), true), "{status}");
    }
    assert_eq!(stage.ask(Op::Files, json!({ "round": 1, "attempt": 1 })).await, Err(Code::NotFound));
    assert!(stage.ask(Op::Get, json!({ "version": 1 })).await.is_ok());
    // The header of the manifest stays for ever.
    assert_eq!(stage.world.number("SELECT count(*) FROM manifests WHERE header LIKE '{%'").await, 1);

    // Twice is once, though the bytes are gone.
    let (pool, who) = (stage.world.pool, stage.edge.clone());
    let again = |bytes: &'static [u8]| {
        let who = who.clone();
        stage.world.ledger.write(move |tx| tx.store_upload(pool, &who, file("large", bytes)))
    };
    assert_eq!(again(b"other").await.unwrap_err().code, Code::Conflict);
    let (who, same) = (stage.edge.clone(), files(1..2, 1_000).remove(0));
    let same = stage.world.ledger.write(move |tx| tx.store_upload(pool, &who, same)).await.unwrap();
    assert!(same.repeated);

    let nearly = later(HOUR + limits::KEYS_KEPT_FOR - DAY);
    assert_eq!(stage.collect(nearly).await.uploads, 0);
    // `expired` is the time of the run that took the bytes.
    assert_eq!(stage.collect(later(2 * HOUR + limits::KEYS_KEPT_FOR)).await.uploads, 4);
    assert_eq!(stage.ask(Op::Status, json!({ "upload": "large" })).await, Err(Code::NotFound));
    assert_eq!(stage.world.number("SELECT count(*) FROM packs").await, 0);
}

#[tokio::test]
async fn a_live_round_keeps_everything_whatever_the_time() {
    let mut stage = Stage::new(json!({ "keep_uploads_s": 0, "keep_rounds_s": 0 })).await;
    stage.world.upload(&stage.edge, files(0..3, 1_000)).await;
    let years = later(4_000 * DAY);
    let events = |done: Collected| Collected { events: 0, ..done };
    assert_eq!(events(stage.collect(years).await), Collected::default(), "the batch is open");
    let (round, attempt) = stage.take().await;
    assert_eq!(events(stage.collect(years).await), Collected::default(), "the round is leased");
    assert!(stage.ask(Op::Files, json!({ "round": round, "attempt": attempt })).await.is_ok());
    stage.world.commit(&stage.mill, round, attempt, b"flour").await;
    stage.settled().await;
    let done = stage.collect(later(HOUR)).await;
    assert_eq!(
        (done.batches, done.results, done.rounds),
        (1, 0, 0),
        "the result is the current one: {done:?}"
    );
}

#[tokio::test]
async fn the_payloads_of_superseded_uploads_and_of_skipped_batches_go_too() {
    let mut stage = Stage::new(json!({ "select": "latest" })).await;
    stage.world.upload(&stage.edge, files(0..5, 1_000)).await;
    let (round, attempt) = stage.take().await;
    stage.world.commit(&stage.mill, round, attempt, b"flour").await;
    stage.settled().await;
    assert_eq!(stage.world.number("SELECT count(*) FROM payloads").await, 4, "one of five is in the pack");
    let done = stage.collect(later(HOUR)).await;
    assert_eq!((done.payloads, done.bytes > 4_000), (4, true), "{done:?}");
    assert_eq!(stage.world.number("SELECT count(*) FROM payloads").await, 0);

    let skipping = json!({ "grouping": "count", "count": 9, "deadline_s": 1, "min_uploads": 9, "below_minimum": "skip" });
    let stage = Stage::new(skipping).await;
    stage.world.upload(&stage.edge, files(0..3, 1_000)).await;
    stage.world.until("SELECT count(*) FROM manifests", 1).await;
    assert_eq!(stage.collect(later(HOUR - LONG)).await.payloads, 0);
    let done = stage.collect(later(HOUR)).await;
    assert_eq!((done.batches, done.payloads, done.objects), (1, 3, 1), "{done:?}");
    assert_eq!(stage.stored().await, 0);
}

#[tokio::test]
async fn what_was_doomed_before_a_crash_is_deleted_after_it() {
    let mut stage = Stage::new(json!({})).await;
    stage.round().await;
    stage.world.stop_storage().await;
    let collector = Collector::new(stage.world.ledger.clone(), stage.world.storage.clone());
    let away = collector.collect(later(HOUR), None, LONG).await.unwrap_err();
    assert_eq!(away.code, Code::Unavailable);
    assert_eq!(stage.world.number("SELECT count(*) FROM objects WHERE state = 'doomed'").await, 3);
    drop(collector);
    let mut world = stage.world.restart().await;
    world.start_storage().await;
    world.dispatch();
    world.until("SELECT count(*) FROM objects WHERE state = 'gone'", 3).await;
}

#[tokio::test]
async fn a_run_that_ended_in_the_middle_of_a_batch_is_taken_up_by_the_next_one() {
    let mut stage = Stage::new(json!({ "select": "latest" })).await;
    stage.round().await;
    let collector = Collector::new(stage.world.ledger.clone(), stage.world.storage.clone());
    let (mut runs, mut seen) = (0, Vec::new());
    loop {
        runs += 1;
        // No time at all: a run does one thing.
        let done = collector.collect(later(HOUR), None, Duration::ZERO).await.unwrap();
        seen.push(stage.world.number("SELECT count(*) FROM batches WHERE retention = 'expiring'").await);
        if !done.more {
            break;
        }
    }
    assert!(runs > 1 && seen.contains(&1), "{runs} runs: {seen:?}");
    assert_eq!(stage.world.number("SELECT count(*) FROM batches WHERE retention = 'expired'").await, 1);
    assert_eq!(stage.world.number("SELECT count(*) FROM payloads").await, 0);
    assert_eq!(stage.stored().await, 2);
}

#[tokio::test]
async fn a_failed_round_can_be_retried_while_its_files_are_kept() {
    let mut stage = Stage::new(json!({})).await;
    stage.world.upload(&stage.edge, files(0..3, 1_000)).await;
    let (round, attempt) = stage.take().await;
    let fail = json!({ "round": round, "attempt": attempt, "error": "no", "retryable": false });
    stage.ask(Op::Fail, fail.clone()).await.unwrap();
    stage.settled().await;
    let retry = || {
        let pool = stage.world.pool;
        stage.world.ledger.write(move |tx| tx.retry_round(pool, round))
    };
    assert!(retry().await.unwrap());
    assert!(!retry().await.unwrap(), "a repeat changes nothing");
    assert_eq!(stage.collect(later(10 * DAY)).await.batches, 0, "it is offered again");
    stage.world.until("SELECT count(*) FROM rounds WHERE state = 'offered'", 1).await;
    let claimed = stage.ask(Op::Claim, json!({})).await.unwrap();
    let attempt = claimed["attempt"].as_u64().unwrap();
    let fail = json!({ "round": round, "attempt": attempt, "error": "no", "retryable": false });
    stage.ask(Op::Fail, fail).await.unwrap();
    stage.settled().await;
    assert_eq!(stage.collect(later(HOUR)).await.batches, 1);
    let pool = stage.world.pool;
    let refused = stage.world.ledger.write(move |tx| tx.retry_round(pool, round)).await.unwrap_err();
    assert_eq!(refused.code, Code::NotFound);
    assert!(refused.message.contains("not kept any more"), "{refused}");
}

#[tokio::test]
async fn results_go_a_day_after_the_pointer_left_them_and_a_rolled_back_one_stays() {
    let mut stage = Stage::new(json!({})).await;
    for result in ["one", "two", "three"] {
        stage.world.upload(&stage.edge, vec![file(result, result)]).await;
        // Each batch is a window of its own: the first trigger closed this one.
        let taken = stage.ask(Op::Trigger, json!({ "take": true, "wait_s": 60 })).await.unwrap();
        let round = taken["round"].as_u64().unwrap();
        stage.world.commit(&stage.mill, round, 1, result.as_bytes()).await;
    }
    let pool = stage.world.pool;
    // Twice in one job: the second finds what the first one did.
    let twice = stage.world.ledger.write(move |tx| Ok([tx.roll_back(pool, 1)?.0, tx.roll_back(pool, 1)?.0]));
    assert_eq!(twice.await.unwrap(), [4, 4]);
    stage.settled().await;
    assert_eq!(stage.collect(later(DAY - LONG)).await.results, 0);
    let done = stage.collect(later(DAY)).await;
    assert_eq!(done.results, 2, "versions 2 and 3: {done:?}");
    for (version, kept) in [(1, true), (2, false), (3, false), (4, true)] {
        assert_eq!(
            stage.ask(Op::Get, json!({ "version": version })).await.is_ok(),
            kept,
            "version {version}"
        );
    }
    let refused = stage.world.ledger.write(move |tx| tx.roll_back(pool, 2)).await.unwrap_err();
    assert!(refused.message.contains("not kept any more"), "{refused}");
    let history = stage.ask(Op::History, json!({ "of": "results" })).await.unwrap();
    let expired = |at: usize| history["results"][at]["expired"].is_string();
    assert_eq!([expired(0), expired(1), expired(2), expired(3)], [false, true, true, false]);
}

#[tokio::test]
async fn the_story_of_a_round_goes_after_its_result_and_is_not_written_again() {
    let mut stage = Stage::new(json!({})).await;
    stage.round().await;
    stage.ask(Op::Done, json!({ "round": 1, "attempt": 1, "log": "ground" })).await.unwrap();
    stage.settled().await;
    let pool = stage.world.pool;
    assert_eq!(stage.collect(later(30 * DAY)).await.rounds, 0, "its result is the current one");
    stage.world.ledger.write(move |tx| tx.remove_pool(pool, true)).await.unwrap();
    let done = stage.collect(later(30 * DAY)).await;
    assert_eq!((done.results, done.rounds), (1, 1), "{done:?}");
    for table in ["round_logs", "attempts", "deliveries"] {
        assert_eq!(stage.world.number(&format!("SELECT count(*) FROM {table}")).await, 0, "{table}");
    }
    assert_eq!(stage.world.number("SELECT count(*) FROM rounds WHERE story_object IS NULL").await, 0);
    assert_eq!(stage.stored().await, 0);
}

#[tokio::test]
async fn open_batches_of_a_pool_that_was_removed_by_force_go_in_the_end() {
    let stage = Stage::new(json!({})).await;
    stage.world.upload(&stage.edge, files(0..3, 1_000)).await;
    let pool = stage.world.pool;
    stage.world.ledger.write(move |tx| tx.remove_pool(pool, true)).await.unwrap();
    assert_eq!(stage.collect(later(HOUR - LONG)).await.payloads, 0);
    let done = stage.collect(later(HOUR)).await;
    assert_eq!((done.batches, done.payloads), (1, 3), "{done:?}");
}

#[tokio::test]
async fn rejected_uploads_and_events_and_rows_of_deleted_objects_are_forgotten_in_time() {
    let mut stage = Stage::new(json!({ "max_size": 10, "keep_events_s": 60 })).await;
    let (pool, who) = (stage.world.pool, stage.edge.clone());
    let store =
        move |tx: &mut millpond::ledger::Tx<'_>| tx.store_upload(pool, &who, file("big", vec![1; 11]));
    let receipt = stage.world.ledger.write(store).await.unwrap().receipt;
    assert!(receipt.error.is_some());
    assert!(stage.world.number("SELECT count(*) FROM events").await > 0);
    let done = stage.collect(later(LONG)).await;
    assert_eq!((done.uploads, done.events > 0), (0, true));
    assert_eq!(stage.world.number("SELECT count(*) FROM events").await, 0);
    assert_eq!(stage.collect(later(limits::KEYS_KEPT_FOR)).await.uploads, 0);
    assert_eq!(stage.collect(later(limits::KEYS_KEPT_FOR + HOUR)).await.uploads, 1);
    assert_eq!(stage.ask(Op::Status, json!({ "upload": "big" })).await, Err(Code::NotFound));

    stage.world.upload(&stage.edge, vec![file("small", "x")]).await;
    let (round, attempt) = stage.take().await;
    stage.world.commit(&stage.mill, round, attempt, b"flour").await;
    stage.settled().await;
    stage.collect(later(HOUR)).await;
    let gone = "SELECT count(*) FROM objects WHERE state = 'gone'";
    assert_eq!(stage.world.number(gone).await, 2);
    // A PUT that was under way for very long, or somebody who restored a bucket, brings one back.
    let key: String = stage
        .world
        .sql(|sql| {
            sql.query_row("SELECT key FROM objects WHERE state = 'gone' LIMIT 1", [], |row| row.get(0))
        })
        .await;
    let (key, back) = (key.parse().unwrap(), bytes::Bytes::from_static(b"back"));
    stage.world.storage.put(&key, back.clone(), millpond_protocol::Sha256::of(&back)).await.unwrap();
    stage.collect(later(limits::GONE_KEPT_FOR - HOUR)).await;
    assert_eq!(stage.world.number(gone).await, 2);
    assert!(stage.world.storage.stat(&key).await.unwrap().is_some());
    stage.collect(later(limits::GONE_KEPT_FOR + HOUR)).await;
    assert_eq!(stage.world.number(gone).await, 0);
    assert!(stage.world.storage.stat(&key).await.unwrap().is_none(), "before its row is forgotten");
    assert_eq!(stage.ask(Op::Get, json!({ "upload": "small" })).await, Err(Code::NotFound));
}

#[tokio::test]
async fn every_object_is_explained_and_the_dry_run_says_what_the_run_does() {
    let mut stage = Stage::new(json!({})).await;
    stage.round().await;
    let explained = |now: Timestamp| {
        let read = move |sql: &rusqlite::Connection| {
            let pool = "p".parse().unwrap();
            let (mut all, mut after) = (Vec::new(), String::new());
            // A page of two, so that there are several.
            while let page = explain::page(sql, Some(&pool), &after, 2, now)?
                && let Some(last) = page.last()
            {
                after.clone_from(&last.key);
                all.extend(page);
            }
            Ok((all, explain::due(sql, Some(&pool), now)?))
        };
        stage.world.ledger.read(read)
    };
    let verdicts = |all: &[explain::Explained]| {
        let mut verdicts: Vec<String> = all.iter().map(|object| object.verdict.clone()).collect();
        verdicts.sort();
        verdicts
    };
    let (all, due) = explained(later(Duration::ZERO)).await.unwrap();
    assert_eq!(verdicts(&all), ["kept", "kept", "kept", "live", "live"], "{all:#?}");
    assert_eq!(due, []);
    let words = |all: &[explain::Explained], what: &str| {
        all.iter().find(|object| object.why.contains(what)).map(|object| object.why.clone()).unwrap()
    };
    assert!(words(&all, "version 1").contains("version 1 is the current one"), "{all:#?}");
    assert!(words(&all, "upload edge/large of batch 1").contains("kept for 1 h"), "{all:#?}");
    assert!(words(&all, "round.json").contains("its result, version 1, is kept"), "{all:#?}");

    let (all, due) = explained(later(HOUR)).await.unwrap();
    assert_eq!(verdicts(&all), ["due", "due", "due", "live", "live"]);
    assert_eq!(due.len(), 1);
    assert_eq!(due[0].what, "the bytes of batch 1");
    let done = stage.collect(later(HOUR)).await;
    assert_eq!(done.objects, 3);

    // What no batch, round or result has: granted, being written, given back, and a row that nothing explains.
    let (world, edge, pool) = (&stage.world, &stage.edge, stage.world.pool);
    for upload in ["film", "map"] {
        let put = json!({ "id": upload, "upload": upload, "size": 5, "sha256": Sha256::of(b"hello") });
        world.ask(edge, Op::Put, put).await.unwrap();
    }
    world.ask(edge, Op::Abort, json!({ "id": "abort", "upload": "map" })).await.unwrap();
    let begun = world.ledger.write(move |tx| {
        let stray = tx.grant_object(pool, "upload", 1, Sha256::of(b""))?;
        tx.sql().execute("UPDATE objects SET state = 'live' WHERE id = ?1", [stray.id])?;
        tx.grant_object(pool, "upload", 1, Sha256::of(b""))
    });
    begun.await.unwrap();
    let (all, due) = explained(later(HOUR)).await.unwrap();
    assert_eq!(verdicts(&all), ["doomed", "granted", "granted", "live", "live", "unowned"], "{all:#?}");
    assert_eq!(due, []);
    for (why, verdict) in [
        ("granted to edge/film", "granted"),
        ("the server is writing it since", "granted"),
        ("it never came to count", "doomed"),
        ("no row says for what", "unowned"),
    ] {
        let found: Vec<_> = all.iter().filter(|object| object.why.contains(why)).collect();
        assert!(found.len() == 1 && found[0].verdict == verdict, "{why}: {all:#?}");
        assert_eq!(found[0].until.is_some(), why.starts_with("granted to"), "{why}");
    }
}

#[tokio::test]
async fn events_from_a_time_when_the_clock_was_ahead_do_not_keep_those_after_them() {
    let stage = Stage::new(json!({ "keep_events_s": 86_400 })).await;
    let pool = stage.world.pool;
    let ahead = move |tx: &mut millpond::ledger::Tx<'_>| {
        tx.sql().execute("DELETE FROM events", [])?;
        for n in 0..2_000 {
            tx.event(pool, "policy", &json!(n))?;
        }
        tx.sql().execute("UPDATE events SET at = at + 1000000000000", [])?;
        tx.event(pool, "policy", &json!("after"))
    };
    stage.world.ledger.write(ahead).await.unwrap();
    // Nothing is due to a clock that stands before all of them.
    assert_eq!(stage.collect(Timestamp::EPOCH).await.events, 0);
    assert_eq!(stage.collect(later(2 * DAY)).await.events, 2_001);
    assert_eq!(stage.world.number("SELECT count(*) FROM events").await, 0);
}

#[tokio::test]
async fn a_token_that_has_ended_is_deleted_by_the_run() {
    let stage = Stage::new(json!({})).await;
    let end = |tx: &mut millpond::ledger::Tx<'_>| {
        tx.sql().execute("UPDATE tokens SET expires = 10", [])?;
        tx.expire_tokens()
    };
    stage.world.ledger.write(end).await.unwrap();
    assert!(stage.world.number("SELECT count(*) FROM tokens").await > 0);
    stage.collect(later(LONG)).await;
    assert_eq!(stage.world.number("SELECT count(*) FROM tokens").await, 0);
}
