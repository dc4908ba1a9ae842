//! Jobs that fail and disks that are full: nothing of them is kept, and nobody else notices.

use millpond::rounds::Event;
use millpond_protocol::{Code, Refusal, Role, Timestamp};

use crate::{Fixture, by_count, store, upload};

#[tokio::test]
async fn a_job_that_fails_after_it_moved_the_core_leaves_neither_rows_nor_marks_on_the_core() {
    let f = Fixture::new(by_count(2)).await;
    let (who, new) = (f.who.clone(), upload("lost", b"x"));
    // Three jobs of which the middle one fails, in line before the writer can commit the first.
    let before = f.upload("a", b"a");
    let failing = f.ledger.write(move |tx| {
        store(tx, &who, new)?;
        Err::<(), _>(Refusal::new(Code::Stale, "after all not").into())
    });
    let (before, failing) = tokio::join!(before, failing);
    assert_eq!(before.unwrap().receipt.batch, Some(1));
    assert_eq!(failing.unwrap_err().code, Code::Stale);
    // Had the core counted the lost upload, this one would open batch 2.
    assert_eq!(f.upload("b", b"b").await.unwrap().receipt.batch, Some(1));
    assert_eq!(f.upload("c", b"c").await.unwrap().receipt.batch, Some(2));
    assert_eq!(f.count("SELECT count(*) FROM uploads").await, 3);
}

#[tokio::test]
async fn a_statement_whose_job_fails_was_never_made() {
    let f = Fixture::new(by_count(10)).await;
    let who = f.who.clone();
    let failing = f.ledger.write(move |tx| {
        let pool = tx.pool_of(&who)?;
        tx.apply(pool, Event::CompleteThrough { member: who.id, through: Timestamp::MAX })?;
        Err::<(), _>(Refusal::new(Code::Stale, "after all not").into())
    });
    assert_eq!(failing.await.unwrap_err().code, Code::Stale);
    f.upload("a", b"a").await.unwrap();
    assert_eq!(f.count("SELECT count(*) FROM batches WHERE state = 'open'").await, 1);
}

#[tokio::test]
async fn a_full_disk_is_unavailable_and_the_ledger_goes_on_when_there_is_room() {
    let f = Fixture::new(by_count(1_000)).await;
    f.upload("before", b"x").await.unwrap();
    limit_pages(&f, "1").await;
    let full = f.upload("full", &[7; 100_000]).await.unwrap_err();
    assert_eq!(full.code, Code::Unavailable);
    limit_pages(&f, "1073741823").await;
    assert_eq!(f.upload("full", &[7; 100_000]).await.unwrap().receipt.batch, Some(1));
    assert_eq!(f.count("SELECT count FROM batches").await, 2);
}

/// Makes the file as large as it may get, so that the next row finds the disk full.
async fn limit_pages(f: &Fixture, pages: &'static str) {
    let limit = f.ledger.write(move |tx| {
        tx.sql().query_row(&format!("PRAGMA max_page_count = {pages}"), [], |row| row.get::<_, i64>(0))?;
        Ok(())
    });
    limit.await.unwrap();
}

#[tokio::test]
async fn of_a_group_that_meets_a_full_disk_nothing_is_kept() {
    let f = Fixture::new(by_count(1_000)).await;
    f.upload("before", b"x").await.unwrap();
    limit_pages(&f, "1").await;
    // Jobs that wait together: an upload that does not fit, then small ones that would.
    let (go, wait) = std::sync::mpsc::channel::<()>();
    let started = f.ledger.write(move |_| {
        // Until all of them are in line.
        let _ = wait.recv();
        Ok(())
    });
    let mut refused = Vec::new();
    for n in 0..20 {
        let (who, new) =
            (f.who.clone(), upload(&format!("u{n}"), &vec![7; if n == 0 { 100_000 } else { 1 }]));
        refused.push(f.ledger.write(move |tx| store(tx, &who, new)));
        let who = f.who.clone();
        drop(f.ledger.write(move |tx| {
            let pool = tx.pool_of(&who)?;
            tx.event(pool, "refused", &serde_json::json!({"n": n, "pad": "x".repeat(4_000)}))
        }));
    }
    drop(go);
    started.await.unwrap_or_default();
    let mut stored = 1;
    for outcome in refused {
        stored += i64::from(outcome.await.is_ok());
    }
    limit_pages(&f, "1073741823").await;
    assert_eq!(f.count("SELECT count(*) FROM uploads").await, stored, "what was refused is not there");
    f.upload("after", b"y").await.unwrap();
    assert_eq!(f.count("SELECT count FROM batches").await, stored + 1);
    let f = f.restart().await;
    assert_eq!(f.upload("later", b"z").await.unwrap().receipt.batch, Some(1));
}

#[tokio::test]
async fn of_a_group_whose_transaction_sqlite_ended_neither_rows_nor_marks_on_cores_stay() {
    let f = Fixture::new(by_count(2)).await;
    let (go, wait) = std::sync::mpsc::channel::<()>();
    // Until all of them are in line.
    let first = f.ledger.write(move |_| {
        wait.recv().unwrap_or_default();
        Ok(())
    });
    let (who, new) = (f.who.clone(), upload("before", b"x"));
    let before = f.ledger.write(move |tx| store(tx, &who, new));
    let revoked = f.ledger.write(|tx| {
        let pool = tx.pool(&"p".parse()?)?;
        for role in [Role::Listener, Role::Processor] {
            tx.set_role(pool, &"m".parse()?, role)?;
        }
        tx.revoke_member(pool, &"m".parse()?)
    });
    // On a full disk SQLite ends the transaction by itself; this job does not even notice.
    let ended = f.ledger.write(|tx| {
        let limit = |pages: &str| {
            tx.sql().query_row(&format!("PRAGMA max_page_count = {pages}"), [], |row| row.get::<_, i64>(0))
        };
        limit("1")?;
        let full = tx.sql().execute("INSERT INTO payloads (seq, data) VALUES (1, zeroblob(1000000))", []);
        assert!(full.is_err() && tx.sql().is_autocommit(), "{full:?}");
        limit("1073741823")?;
        Ok(())
    });
    let written = f.ledger.write(|tx| Ok(tx.sql().execute("INSERT INTO superseded (seq) VALUES (7)", [])?));
    drop(go);
    let (_, before, revoked, ended, written) = tokio::join!(first, before, revoked, ended, written);
    for (n, refused) in [before.err(), revoked.err(), ended.err()].into_iter().enumerate() {
        assert_eq!(refused.map(|refusal| refusal.code), Some(Code::Unavailable), "{n}");
    }
    // Refused and not there, or of the next group and kept.
    assert_eq!(f.count("SELECT count(*) FROM superseded").await, i64::from(written.is_ok()));
    assert_eq!(f.count("SELECT count(*) FROM uploads").await, 0);
    // The member is one still, and the core did not count the upload that is not there.
    for (upload, batch) in [("a", 1), ("b", 1), ("c", 2)] {
        assert_eq!(f.upload(upload, b"x").await.unwrap().receipt.batch, Some(batch), "{upload}");
    }
}

#[tokio::test]
async fn a_pool_whose_job_failed_was_never_made() {
    let f = Fixture::new(by_count(3)).await;
    let failing = f.ledger.write(|tx| {
        tx.apply_pool(&"q".parse()?, &by_count(3))?;
        Err::<(), _>(Refusal::new(Code::Stale, "after all not").into())
    });
    assert_eq!(failing.await.unwrap_err().code, Code::Stale);
    let found = f.ledger.write(|tx| tx.pool(&"q".parse()?)).await;
    assert_eq!(found.unwrap_err().code, Code::NotFound);
}

#[tokio::test]
async fn a_revocation_that_failed_revokes_nobody() {
    let f = Fixture::new(by_count(3)).await;
    let failing = f.ledger.write(|tx| {
        let pool = tx.pool(&"p".parse()?)?;
        tx.revoke_member(pool, &"m".parse()?)?;
        Err::<(), _>(Refusal::new(Code::Stale, "after all not").into())
    });
    assert_eq!(failing.await.unwrap_err().code, Code::Stale);
    assert_eq!(f.upload("a", b"a").await.unwrap().receipt.batch, Some(1));
}
