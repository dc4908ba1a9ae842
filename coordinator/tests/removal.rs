//! Removing a pool: one small job that ends everything for its members, and many small ones that tidy up.
#![allow(clippy::unwrap_used, reason = "a test may end at the first surprise")]

use std::time::Duration;

use millpond::ledger::grants::{self, NewGrant, Target};
use millpond::ledger::tokens::find_token;
use millpond::ledger::uploads::NewUpload;
use millpond::ledger::{Ledger, OpenError};
use millpond::rounds::Policy;
use millpond_protocol::{Code, Principal, Role, Sha256};

const MEMBERS: usize = 120;
const GRANTS: usize = 6;

fn token(n: usize) -> Sha256 {
    Sha256::of(n.to_string().as_bytes())
}

async fn number(ledger: &Ledger, query: &'static str) -> i64 {
    ledger.read(move |sql| Ok(sql.query_row(query, [], |row| row.get(0))?)).await.unwrap()
}

/// A pool of publishers of whom each has a file in the open batch and some grants; the batch wants a word of the last one
/// to be complete.
async fn crowded(ledger: &Ledger) -> Vec<Principal> {
    let mut members = Vec::new();
    for n in 0..MEMBERS {
        let job = move |tx: &mut millpond::ledger::Tx<'_>| {
            let (pool, _) = tx.apply_pool(&"p".parse()?, &Policy::default())?;
            tx.add_member(pool, &format!("m{n}").parse()?, Role::Publisher, &token(n))?;
            let who = find_token(tx.sql(), &token(n), tx.now())?.unwrap();
            tx.store_upload(
                pool,
                &who,
                NewUpload::inline("first".parse()?, bytes::Bytes::from_static(b"x")),
            )?;
            if n > 0 {
                let through = tx.now().after(Duration::from_secs(86_400));
                tx.apply(pool, millpond::rounds::Event::CompleteThrough { member: who.id, through })?;
            }
            for grant in 0..GRANTS {
                let new = NewGrant {
                    target: Target::Upload(format!("g{grant}").parse()?),
                    name: None,
                    content_type: None,
                    meta: None,
                    label: None,
                    event_time: None,
                    size: 10,
                    sha256: token(n),
                    part_size: None,
                };
                tx.grant(&who, new, Duration::from_secs(60))?;
            }
            Ok(who)
        };
        members.push(ledger.write(job).await.unwrap());
    }
    members
}

#[tokio::test]
async fn a_pool_with_many_members_goes_in_small_steps_that_a_crash_does_not_end() {
    let dir = tempfile::tempdir().unwrap();
    let (ledger, _) = Ledger::open(dir.path()).unwrap();
    let mut commits = ledger.commits();
    let members = crowded(&ledger).await;
    ledger
        .write(|tx| {
            let pool = tx.pool(&"p".parse()?)?;
            tx.remove_pool(pool, true)
        })
        .await
        .unwrap();
    // Whoever keeps something by the name of a pool hears when it is another's.
    let (mut renewed, mut ended) = (Vec::new(), 0);
    while ended == 0 {
        let commit = commits.recv().await.unwrap();
        renewed.extend(commit.renewed.iter().map(|name| name.to_string()));
        ended += commit.ended.len();
    }
    assert_eq!((renewed, ended), (vec!["p".to_owned(); 2], MEMBERS), "made, and removed");
    // That was all in one job: nobody signs in, the name is free, and no batch is sealed by members who go.
    let gone = ledger.read(|sql| find_token(sql, &token(3), millpond::ledger::now())).await.unwrap();
    assert!(gone.is_none());
    assert_eq!(number(&ledger, "SELECT count(*) FROM batches WHERE state <> 'open'").await, 0);
    assert_eq!(number(&ledger, "SELECT count(*) FROM members WHERE revoked IS NOT NULL").await, 0);
    let more = ledger.write(|tx| tx.end_members()).await.unwrap();
    assert!(more, "one step is not all");
    let grants = number(&ledger, "SELECT count(*) FROM grants").await;
    assert!(grants > 0 && grants < (MEMBERS * GRANTS) as i64, "{grants}");

    // The process dies between two steps, and another pool takes the name.
    drop(ledger);
    let ledger = loop {
        match Ledger::open(dir.path()) {
            Ok((ledger, _)) => break ledger,
            Err(OpenError::InUse(_)) => tokio::task::yield_now().await,
            Err(error) => panic!("{error}"),
        }
    };
    // One whose turn has not come; they go by name.
    let last = members[99].clone();
    let stray = ledger.write(move |tx| {
        tx.apply_pool(&"p".parse()?, &Policy::default())?;
        let pool = tx.pool_of(&last)?;
        tx.store_upload(pool, &last, NewUpload::inline("late".parse()?, bytes::Bytes::from_static(b"x")))
    });
    assert_eq!(stray.await.unwrap_err().code, Code::Unauthorized, "it is no member of the new pool");
    while ledger.write(|tx| tx.end_members()).await.unwrap() {}
    for query in [
        "SELECT count(*) FROM members WHERE revoked IS NULL",
        "SELECT count(*) FROM tokens",
        "SELECT count(*) FROM grants",
        "SELECT sum(granted_bytes) FROM pools",
        "SELECT count(*) FROM objects WHERE state <> 'doomed'",
    ] {
        assert_eq!(number(&ledger, query).await, 0, "{query}");
    }
}

#[tokio::test]
async fn grants_of_a_removed_pool_are_in_nobodys_way_until_they_are_deleted() {
    let dir = tempfile::tempdir().unwrap();
    let (ledger, _) = Ledger::open(dir.path()).unwrap();
    crowded(&ledger).await;
    let far = millpond::ledger::now().after(Duration::from_secs(3_600));
    let left = ledger
        .write(move |tx| {
            let mut found = grants::ended(tx.sql(), far, 2)?;
            assert_eq!(found.len(), 2);
            tx.verify_grants(&found[..1])?;
            assert_eq!(grants::sets(tx.sql())?.len(), 1);
            found.clear();
            let pool = tx.pool(&"p".parse()?)?;
            tx.remove_pool(pool, true)?;
            let left = grants::ended(tx.sql(), far, 2)?.len() + grants::sets(tx.sql())?.len();
            Ok((left, grants::next_end(tx.sql())?))
        })
        .await
        .unwrap();
    assert_eq!(left, (0, None));
    assert!(number(&ledger, "SELECT count(*) FROM grants").await > 0);
}
