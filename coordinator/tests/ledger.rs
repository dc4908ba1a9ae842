//! The ledger's promises: one transaction, failures alone, a core that is never ahead of the rows.
#![allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]

use millpond::ledger::tokens::{find_token, is_any_expired};
use millpond::ledger::uploads::{NewUpload, Stored};
use millpond::ledger::{Ledger, OpenError, Tx};
use millpond::rounds::policy::Grouping;
use millpond::rounds::{Event, Policy, Reply, Target};
use millpond_protocol::message::Outcome;
use millpond_protocol::{Code, Principal, Refusal, Role, Sha256, Timestamp};

struct Fixture {
    dir: tempfile::TempDir,
    ledger: Ledger,
    who: Principal,
}

impl Fixture {
    async fn new(policy: Policy) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (ledger, _) = Ledger::open(dir.path()).unwrap();
        let who = ledger
            .write(move |tx| {
                let (pool, _) = tx.apply_pool(&"p".parse().unwrap(), &policy)?;
                let token = Sha256::of(b"token");
                tx.add_member(pool, &"m".parse().unwrap(), Role::Publisher, &token)?;
                Ok(find_token(tx.sql(), &token, tx.now())?.unwrap())
            })
            .await
            .unwrap();
        Self { dir, ledger, who }
    }

    async fn upload(&self, id: &str, bytes: &[u8]) -> Result<Stored, Refusal> {
        let (who, new) = (self.who.clone(), upload(id, bytes));
        self.ledger.write(move |tx| store(tx, &who, new)).await
    }

    async fn count(&self, query: &'static str) -> i64 {
        self.ledger.read(move |sql| Ok(sql.query_row(query, [], |row| row.get(0))?)).await.unwrap()
    }

    /// The same directory, as a process sees it that starts after this one ended.
    async fn restart(self) -> Self {
        let Self { dir, ledger, who } = self;
        drop(ledger);
        // The writer lets the lock go once its queue is empty.
        let ledger = loop {
            match Ledger::open(dir.path()) {
                Ok((ledger, _)) => break ledger,
                Err(OpenError::InUse(_)) => tokio::task::yield_now().await,
                Err(e) => panic!("{e}"),
            }
        };
        Self { dir, ledger, who }
    }
}

fn store(tx: &mut Tx<'_>, who: &Principal, new: NewUpload) -> millpond::ledger::Result<Stored> {
    let pool = tx.pool_of(who)?;
    tx.store_upload(pool, who, new)
}

fn upload(id: &str, bytes: &[u8]) -> NewUpload {
    NewUpload::inline(id.parse().unwrap(), bytes::Bytes::copy_from_slice(bytes))
}

fn by_count(count: u64) -> Policy {
    Policy { grouping: Grouping::Count, count, ..Policy::default() }
}

#[tokio::test]
async fn a_repeat_gets_the_first_receipt_and_other_bytes_are_a_conflict() {
    let f = Fixture::new(by_count(10)).await;
    let first = f.upload("u", b"one").await.unwrap();
    let again = f.upload("u", b"one").await.unwrap();
    assert_eq!((first.repeated, again.repeated), (false, true));
    assert_eq!(first.receipt, again.receipt);
    assert_eq!(f.upload("u", b"two").await.unwrap_err().code, Code::Conflict);
    assert_eq!(f.count("SELECT count(*) FROM uploads").await, 1);
    assert_eq!(f.count("SELECT count FROM batches").await, 1);
}

#[tokio::test]
async fn what_the_rules_reject_is_a_row_with_the_same_answer_for_a_repeat() {
    let f = Fixture::new(Policy { max_size: 2, ..by_count(10) }).await;
    let first = f.upload("u", b"three").await.unwrap();
    assert_eq!(first.receipt.outcome, Outcome::Rejected);
    let again = f.upload("u", b"three").await.unwrap();
    assert!(again.repeated);
    assert_eq!(again.receipt, first.receipt);
    assert_eq!(f.count("SELECT count(*) FROM payloads").await, 0);
}

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
async fn a_refusal_at_the_instant_of_a_deadline_leaves_no_gap_in_the_chain() {
    let f = Fixture::new(Policy { deadline_s: 1, max_age_s: 60, ..by_count(1_000) }).await;
    f.upload("a", b"a").await.unwrap();
    let due = f.count("SELECT deadline FROM batches").await;
    // Triggers that the core refuses, before, at and after the instant at which it seals by itself.
    loop {
        let who = f.who.clone();
        let refused = f.ledger.write(move |tx| {
            let pool = tx.pool_of(&who)?;
            let target = Target::Window(Timestamp::EPOCH);
            tx.apply(pool, Event::Trigger { target, take: None }).map(drop)
        });
        assert_eq!(refused.await.unwrap_err().code, Code::NotFound);
        if millpond::ledger::now().as_millis() > due + 100 {
            break;
        }
    }
    assert_eq!(f.count("SELECT count(*) FROM batches WHERE state = 'sealed' AND round = 1").await, 1);
    assert_eq!(f.count("SELECT rounds FROM pools").await, 1);
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

#[tokio::test]
async fn a_restart_finds_counts_cores_and_numbers_as_they_were() {
    let f = Fixture::new(by_count(3)).await;
    f.upload("a", b"a").await.unwrap();
    f.upload("b", b"b").await.unwrap();
    let f = f.restart().await;
    assert!(f.upload("a", b"a").await.unwrap().repeated);
    assert_eq!(f.upload("c", b"c").await.unwrap().receipt.batch, Some(1));
    assert_eq!(f.count("SELECT count(*) FROM batches WHERE state = 'sealed' AND cause = 'full'").await, 1);
    assert_eq!(f.upload("d", b"d").await.unwrap().receipt.batch, Some(2));
    let f = f.restart().await;
    let who = f.who.clone();
    let rounds = f
        .ledger
        .write(move |tx| {
            let pool = tx.pool_of(&who)?;
            Ok(tx.core(pool)?.live_rounds().map(|round| round.round).collect::<Vec<_>>())
        })
        .await;
    assert_eq!(rounds.unwrap(), [1]);
}

#[tokio::test]
async fn a_second_process_is_refused_while_the_first_one_runs() {
    let f = Fixture::new(by_count(3)).await;
    assert!(matches!(Ledger::open(f.dir.path()), Err(OpenError::InUse(_))));
}

#[tokio::test]
async fn a_commit_is_told_after_it_is_visible_to_readers() {
    let f = Fixture::new(by_count(3)).await;
    let mut commits = f.ledger.commits();
    f.upload("b", b"b").await.unwrap();
    let key = (f.who.pool.clone(), f.who.name.clone());
    // What the fixture committed may still be told first.
    while !commits.recv().await.unwrap().receipts.contains(&key) {}
    assert_eq!(f.count("SELECT count(*) FROM uploads").await, 1);
}

#[tokio::test]
async fn a_revoked_members_queued_messages_are_refused_and_its_name_waits_for_its_uploads() {
    let f = Fixture::new(by_count(3)).await;
    f.upload("a", b"a").await.unwrap();
    f.ledger
        .write(|tx| {
            let pool = tx.pool(&"p".parse().unwrap())?;
            tx.revoke_member(pool, &"m".parse().unwrap())
        })
        .await
        .unwrap();
    assert_eq!(f.upload("b", b"b").await.unwrap_err().code, Code::Unauthorized);
    let again = |token: &'static [u8]| {
        f.ledger.write(move |tx| {
            let pool = tx.pool(&"p".parse().unwrap())?;
            tx.add_member(pool, &"m".parse().unwrap(), Role::Listener, &Sha256::of(token))
        })
    };
    assert_eq!(again(b"new").await.unwrap_err().code, Code::Conflict);
    // Once the batch went through its round, the name is free; the member is a new one.
    f.ledger
        .write(|tx| {
            let pool = tx.pool(&"p".parse().unwrap())?;
            let reply = tx.apply(pool, Event::Trigger { target: Target::Oldest, take: Some(77) })?;
            assert!(matches!(reply, Reply::Triggered { lease: Some(1), .. }));
            tx.apply(pool, Event::Fail { member: 77, round: 1, attempt: 1, retryable: false })
        })
        .await
        .unwrap();
    assert_ne!(again(b"new").await.unwrap(), f.who.id);
}

#[tokio::test]
async fn what_a_member_had_in_line_by_its_old_role_is_refused_and_a_change_that_failed_refuses_nothing() {
    let f = Fixture::new(by_count(3)).await;
    fn set(tx: &mut Tx<'_>, role: Role) -> millpond::ledger::Result<Role> {
        let pool = tx.pool(&"p".parse()?)?;
        tx.set_role(pool, &"m".parse()?, role)
    }
    let failing = f.ledger.write(|tx| {
        set(tx, Role::Processor)?;
        Err::<(), _>(Refusal::new(Code::Stale, "after all not").into())
    });
    assert_eq!(failing.await.unwrap_err().code, Code::Stale);
    f.upload("a", b"a").await.unwrap();
    // In line before the change was answered, or even committed.
    let changed = f.ledger.write(|tx| set(tx, Role::Processor));
    let late = f.upload("b", b"b");
    let (changed, late) = tokio::join!(changed, late);
    assert_eq!(changed.unwrap(), Role::Publisher);
    assert_eq!(late.unwrap_err().code, Code::Unauthorized);
    let now = Principal { role: Role::Processor, ..f.who.clone() };
    f.ledger.write(move |tx| tx.pool_of(&now)).await.unwrap();
    f.ledger.write(|tx| set(tx, Role::Publisher)).await.unwrap();
    f.upload("c", b"c").await.unwrap();
}

#[tokio::test]
async fn an_expired_token_signs_nobody_in() {
    let f = Fixture::new(by_count(3)).await;
    let found = f
        .ledger
        .write(|tx| {
            tx.sql().execute("UPDATE tokens SET expires = 10", [])?;
            let token = Sha256::of(b"token");
            let (at, after) = (Timestamp::from_millis(9).unwrap(), Timestamp::from_millis(10).unwrap());
            Ok((find_token(tx.sql(), &token, at)?.is_some(), find_token(tx.sql(), &token, after)?.is_some()))
        })
        .await;
    assert_eq!(found.unwrap(), (true, false));
}

#[tokio::test]
async fn a_token_that_a_wrong_clock_ended_holds_again_and_one_that_has_ended_is_deleted_by_retention_alone() {
    let f = Fixture::new(by_count(3)).await;
    let expire = |at: i64| {
        f.ledger.write(move |tx| {
            tx.sql().execute("UPDATE tokens SET expires = ?1", [at])?;
            let due = is_any_expired(tx.sql(), tx.now())?;
            tx.expire_tokens()?;
            assert!(!is_any_expired(tx.sql(), tx.now())?);
            Ok((due, find_token(tx.sql(), &Sha256::of(b"token"), tx.now())?.is_some()))
        })
    };
    let ended = "SELECT count(*) FROM events WHERE type = 'token-expired'";
    assert_eq!(expire(10).await.unwrap(), (true, false));
    assert_eq!(f.count(ended).await, 1);
    // As if the clock went back.
    assert_eq!(expire(i64::MAX / 2).await.unwrap(), (true, true));
    assert_eq!(expire(10).await.unwrap(), (true, false));
    assert_eq!(f.count(ended).await, 2);
    for (now, left) in [(9, 1), (10, 0)] {
        f.ledger.write(move |tx| tx.forget_tokens(Timestamp::clamped(now))).await.unwrap();
        assert_eq!(f.count("SELECT count(*) FROM tokens").await, left);
    }
}

#[tokio::test]
async fn the_log_begins_anew_although_the_writer_never_pauses() {
    let f = Fixture::new(Policy::default()).await;
    let log = f.dir.path().join("ledger.db-wal");
    let mut in_line = std::collections::VecDeque::new();
    // With a group in line all the time. Left alone the log is as long as what was written; how soon it begins anew is up
    // to the disk.
    for n in 1..8_192_u64 {
        let (who, new) = (f.who.clone(), upload(&format!("u{n}"), &vec![b'x'; 128 << 10]));
        in_line.push_back(f.ledger.write(move |tx| store(tx, &who, new)));
        if in_line.len() == 32 {
            in_line.pop_front().unwrap().await.unwrap();
        }
        let written = n * (128 << 10);
        if written >= 64 << 20 && std::fs::metadata(&log).unwrap().len() <= written / 2 {
            return;
        }
    }
    panic!("the log only grew");
}

#[tokio::test]
async fn asks_are_forgotten_after_a_day_and_not_before() {
    let f = Fixture::new(by_count(3)).await;
    let who = f.who.clone();
    let left = f.ledger.write(move |tx| {
        for ask in ["old", "new"] {
            tx.remember(&who, "trigger", ask, &serde_json::json!({}))?;
        }
        tx.sql().execute("UPDATE asks SET at = at - 86400001 WHERE ask = 'old'", [])?;
        assert_eq!(tx.forget_asks()?, 1);
        Ok((tx.remembered(&who, "trigger", "old")?, tx.remembered(&who, "trigger", "new")?))
    });
    let (old, new) = left.await.unwrap();
    assert!(old.is_none() && new.is_some());
}
