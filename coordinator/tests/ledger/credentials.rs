//! Members whose right to what they sent has ended, and tokens that end.

use millpond::ledger::Tx;
use millpond::ledger::tokens::{find_token, is_any_expired};
use millpond::rounds::{Event, Reply, Target};
use millpond_protocol::{Code, Principal, Refusal, Role, Sha256, Timestamp};

use crate::{Fixture, by_count};

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
