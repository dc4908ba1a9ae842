//! The ledger's promises: one transaction, failures alone, a core that is never ahead of the rows.
#![allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]

mod credentials;
mod failures;

use millpond::ledger::manage::find_member;
use millpond::ledger::tokens::find_token;
use millpond::ledger::uploads::{NewUpload, Stored, receipts_after, replay_from};
use millpond::ledger::{Ledger, OpenError, Tx};
use millpond::rounds::policy::{BelowMinimum, Grouping};
use millpond::rounds::{Event, Policy, Target};
use millpond_protocol::message::Outcome;
use millpond_protocol::{Code, Principal, Refusal, Role, Sha256, Timestamp, limits};

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
async fn receipts_that_are_too_many_or_too_old_are_not_sent_again() {
    let f = Fixture::new(by_count(1_000_000)).await;
    let (who, kept) = (f.who.clone(), limits::RECEIPTS_KEPT);
    f.ledger
        .write(move |tx| {
            (0..kept + 5).try_for_each(|n| store(tx, &who, upload(&format!("u{n}"), b"x")).map(drop))
        })
        .await
        .unwrap();
    let member = f.who.id;
    let replayed = async |cursor: i64, now: Timestamp| {
        let replay = move |sql: &rusqlite::Connection| {
            let from = replay_from(sql, member, cursor, now)?;
            let all = receipts_after(sql, member, from, usize::MAX)?;
            Ok(all.into_iter().map(|(seq, receipt)| (seq, receipt.upload)).collect::<Vec<_>>())
        };
        f.ledger.read(replay).await.unwrap()
    };
    let now = millpond::ledger::now();
    let newest = replayed(0, now).await;
    assert_eq!((newest.len(), newest[0].1.as_str()), (kept, "u5"));
    let (seq, _) = newest[kept - 3];
    assert_eq!(replayed(seq, now).await.len(), 2, "after a cursor that is newer");
    assert!(replayed(0, now.after(limits::RECEIPTS_KEPT_FOR * 2)).await.is_empty());
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
async fn parts_of_a_label_are_numbered_on_after_a_restart_and_under_another_grouping_meanwhile() {
    let by_label = Policy { grouping: Grouping::Label, ..Policy::default() };
    let mut f = Fixture::new(by_label.clone()).await;
    for part in 1..4 {
        for (id, late) in [("a", part > 1), ("b", part > 1)] {
            let (who, new) = (f.who.clone(), upload(&format!("{id}{part}"), b"x"));
            let new = NewUpload { label: Some("x".parse().unwrap()), ..new };
            let stored = f.ledger.write(move |tx| store(tx, &who, new)).await.unwrap();
            assert_eq!((stored.receipt.batch, stored.receipt.late), (Some(part), late));
        }
        let (who, policies) = (f.who.clone(), [by_count(10), by_label.clone()]);
        let sealed = f.ledger.write(move |tx| {
            let pool = tx.pool_of(&who)?;
            tx.apply(pool, Event::Trigger { target: Target::Oldest, take: None })?;
            policies.iter().try_for_each(|policy| tx.apply_pool(&who.pool, policy).map(drop))
        });
        sealed.await.unwrap();
        f = f.restart().await;
    }
    assert_eq!(
        f.count("SELECT json_extract(record, '$.group.label.part') FROM batches WHERE id % 4 = 3").await,
        3
    );
}

#[tokio::test]
async fn what_a_publisher_said_to_be_complete_is_void_for_good_once_it_had_another_role() {
    let f = Fixture::new(Policy { grouping: Grouping::Label, ..Policy::default() }).await;
    let label: millpond_protocol::Label = "x".parse().unwrap();
    let (who, of) = (f.who.clone(), label.clone());
    let said = f.ledger.write(move |tx| {
        let pool = tx.pool_of(&who)?;
        tx.add_member(pool, &"other".parse().unwrap(), Role::Publisher, &Sha256::of(b"other"))?;
        tx.store_upload(pool, &who, NewUpload { label: Some(of.clone()), ..upload("u", b"x") })?;
        tx.apply(pool, Event::CompleteLabel { member: who.id, label: of })?;
        for role in [Role::Listener, Role::Publisher] {
            tx.set_role(pool, &who.name, role)?;
        }
        Ok(())
    });
    said.await.unwrap();
    let f = f.restart().await;
    let complete = f.ledger.write(move |tx| {
        let pool = tx.pool(&"p".parse().unwrap())?;
        let (other, _) = find_member(tx.sql(), pool, &"other".parse().unwrap())?.unwrap();
        tx.apply(pool, Event::CompleteLabel { member: other, label })
    });
    complete.await.unwrap();
    assert_eq!(f.count("SELECT count(*) FROM batches WHERE state = 'open'").await, 1, "sealed without it");
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
        let counted: u64 =
            tx.sql().query_row("SELECT asks FROM members WHERE id = ?1", [who.id], |row| row.get(0))?;
        assert_eq!(counted, 1, "what is forgotten makes room");
        Ok((tx.remembered(&who, "trigger", "old")?, tx.remembered(&who, "trigger", "new")?))
    });
    let (old, new) = left.await.unwrap();
    assert!(old.is_none() && new.is_some());
}

#[tokio::test]
async fn who_is_in_a_batch_stays_in_it_where_the_upload_itself_had_it_carried_on() {
    let below_minimum = BelowMinimum::Carry;
    let carries = Policy { quorum: 1, min_uploads: 3, below_minimum, ..Policy::default() };
    let f = Fixture::new(carries).await;
    let now = millpond::ledger::now();
    let other = f.ledger.write(|tx| {
        let pool = tx.pool(&"p".parse()?)?;
        let token = Sha256::of(b"other");
        tx.add_member(pool, &"n".parse()?, Role::Publisher, &token)?;
        Ok(find_token(tx.sql(), &token, tx.now())?.unwrap())
    });
    let (other, who) = (other.await.unwrap(), f.who.clone());
    // The quorum of the hour before is there with the first upload, which is too little to run alone.
    let hour_ago = now.before(std::time::Duration::from_secs(3_600));
    for (who, event_time) in [(who, now), (other, hour_ago)] {
        let new = NewUpload { event_time: Some(event_time), ..upload("u", b"x") };
        f.ledger.write(move |tx| store(tx, &who, new)).await.unwrap();
    }
    assert_eq!(f.count("SELECT count(*) FROM batches WHERE state = 'open'").await, 1);
    let members = "SELECT count(*) FROM batch_members m JOIN batches b ON b.id = m.batch_id \
                   WHERE b.state = 'open' AND m.uploaded = 1";
    assert_eq!(f.count(members).await, 2);
}
