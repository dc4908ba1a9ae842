//! Grants as rows: what they come to, what they may not exceed, and what the sweep leaves alone.

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use millpond::dispatch::sweep::sweep;
use millpond::ledger::grants::{Grant, NewGrant, Target};
use millpond::ledger::now;
use millpond::ledger::transfer::{Cause, Granted};
use millpond::ledger::uploads::{Body, NewUpload};
use millpond_protocol::access::Op;
use millpond_protocol::message::Outcome;
use millpond_protocol::{Code, Principal, Role, Sha256, Timestamp, limits};
use millpond_storage::{MultipartId, ObjectKey};
use serde_json::{Value, json};

use crate::world::{World, file, window};

const HOUR: Duration = Duration::from_secs(3_600);

fn new(upload: &str, size: u64, event_time: Option<Timestamp>) -> NewGrant {
    NewGrant {
        target: Target::Upload(upload.parse().unwrap()),
        name: None,
        content_type: None,
        meta: None,
        label: None,
        event_time,
        size,
        sha256: Sha256::of(upload.as_bytes()),
        part_size: None,
    }
}

async fn grant(world: &World, who: &Principal, new: NewGrant) -> Result<Grant, Code> {
    let who = who.clone();
    match world.ledger.write(move |tx| tx.grant(&who, new, HOUR)).await {
        Ok(Granted::Open { grant, .. }) => Ok(*grant),
        Ok(other) => panic!("{other:?}"),
        Err(refusal) => Err(refusal.code),
    }
}

/// Counts a grant as if its object had been verified.
async fn count(world: &World, grant: Grant) -> Value {
    let who = grant.who.clone();
    let stored = world.ledger.write(move |tx| tx.count_uploads(&who, &[grant])).await.unwrap();
    json!(stored[0].receipt)
}

#[tokio::test]
async fn lateness_is_decided_at_the_commit_and_the_event_time_held_to_the_grant() {
    let world = World::new(json!({})).await;
    let edge = world.member("edge", Role::Publisher).await;
    let on_time = grant(&world, &edge, new("on-time", 1, Some(window()))).await.unwrap();
    let late = grant(&world, &edge, new("late", 1, Some(window()))).await.unwrap();
    let ahead = grant(&world, &edge, new("ahead", 1, Some(now().after(HOUR)))).await.unwrap();
    let received = ahead.received;
    assert_eq!(count(&world, on_time).await["late"], false);
    let mill = world.member("mill", Role::Processor).await;
    world.ask(&mill, Op::Trigger, json!({"id": "t", "window": window()})).await.unwrap();
    assert_eq!(count(&world, late).await["late"], true);
    let ahead = count(&world, ahead).await;
    assert_eq!((&ahead["clamped"], &ahead["event_time"]), (&json!(true), &json!(received)));
}

#[tokio::test]
async fn a_file_that_its_pool_does_not_take_any_more_is_rejected_at_its_commit() {
    let world = World::new(json!({})).await;
    let edge = world.member("edge", Role::Publisher).await;
    let granted = grant(&world, &edge, new("large", 1_000, None)).await.unwrap();
    let policy = serde_json::from_value(json!({"max_size": 10})).unwrap();
    world.ledger.write(move |tx| tx.apply_pool(&"p".parse().unwrap(), &policy)).await.unwrap();
    let receipt = count(&world, granted).await;
    assert_eq!(receipt["outcome"], "rejected");
    assert_eq!(world.number("SELECT count(*) FROM objects WHERE state = 'doomed'").await, 1);
    assert_eq!(world.number("SELECT count(*) FROM grants").await, 0);
}

#[tokio::test]
async fn a_member_and_a_pool_have_so_much_granted_and_no_more() {
    let world = World::new(json!({})).await;
    let edge = world.member("edge", Role::Publisher).await;
    let who = edge.clone();
    let all = world.ledger.write(move |tx| {
        for n in 0..limits::GRANTS_PER_MEMBER {
            tx.grant(&who, new(&format!("u{n}"), 1, None), HOUR)?;
        }
        Ok(())
    });
    all.await.unwrap();
    assert_eq!(grant(&world, &edge, new("more", 1, None)).await.unwrap_err(), Code::Quota);
    // Who asks again for what it has needs no more.
    let first = grant(&world, &edge, new("u0", 1, None)).await.unwrap();
    world.ledger.write(move |tx| tx.end_grant(&first, Cause::Aborted)).await.unwrap();
    grant(&world, &edge, new("more", 1, None)).await.unwrap();

    let other = world.member("other", Role::Publisher).await;
    let most = (limits::GRANTED_BYTES_PER_POOL - limits::GRANTS_PER_MEMBER) / 2;
    let huge = grant(&world, &other, new("huge", most, None)).await.unwrap();
    assert_eq!(grant(&world, &other, new("more", 1, None)).await.unwrap_err(), Code::Quota);
    world.ledger.write(move |tx| tx.end_grant(&huge, Cause::Aborted)).await.unwrap();
    grant(&world, &other, new("more", 1, None)).await.unwrap();
    let bytes = limits::GRANTS_PER_MEMBER + 1;
    assert_eq!(world.number("SELECT granted_bytes FROM pools").await, bytes);
}

#[tokio::test]
async fn a_job_that_fails_gives_no_grant_and_counts_none() {
    let world = World::new(json!({})).await;
    let edge = world.member("edge", Role::Publisher).await;
    let one = grant(&world, &edge, new("one", 5, None)).await.unwrap();
    let who = edge.clone();
    let failed = world.ledger.write(move |tx| {
        tx.grant(&who, new("two", 7, None), HOUR)?;
        tx.count_uploads(&who, &[one])?;
        Err::<(), _>(millpond_protocol::Refusal::new(Code::Stale, "as if").into())
    });
    assert_eq!(failed.await.unwrap_err().code, Code::Stale);
    assert_eq!(world.number("SELECT count(*) FROM grants").await, 1);
    assert_eq!(world.number("SELECT granted_bytes FROM pools").await, 5);
    assert_eq!(world.number("SELECT count(*) FROM uploads").await, 0);
}

#[tokio::test]
async fn the_sweep_leaves_an_object_alone_while_a_url_lets_somebody_write_it() {
    let world = World::new(json!({})).await;
    let edge = world.member("edge", Role::Publisher).await;
    let ask = json!({"id": "p", "upload": "u1", "size": 5, "sha256": Sha256::of(b"hello")});
    world.ask(&edge, Op::Put, ask).await.unwrap();
    let ask = json!({"id": "p2", "upload": "u2", "size": (5 << 20) + 1, "sha256": Sha256::of(b"x"), "part_size": 5 << 20,
        "parts": [{"n": 2, "sha256": Sha256::of(b"y")}]});
    let granted = world.ask(&edge, Op::Put, ask).await.unwrap();
    let part = &granted["parts"][0]["to"];
    let checksum = part["headers"]["x-amz-checksum-sha256"].as_str().unwrap();
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let put = http.put(part["url"].as_str().unwrap()).header("x-amz-checksum-sha256", checksum).body("y");
    assert_eq!(put.send().await.unwrap().status(), 200);
    let text = "SELECT key, multipart FROM objects WHERE multipart IS NOT NULL";
    let (parts, upload): (String, String) =
        world.sql(move |sql| sql.query_row(text, [], |row| Ok((row.get(0)?, row.get(1)?)))).await;
    let (parts, upload): (ObjectKey, MultipartId) = (parts.parse().unwrap(), upload.parse().unwrap());
    let text = "SELECT key FROM objects WHERE multipart IS NULL";
    let key: String = world.sql(move |sql| sql.query_row(text, [], |row| row.get(0))).await;
    let key: ObjectKey = key.parse().unwrap();
    world.storage.put(&key, Bytes::from_static(b"hello"), Sha256::of(b"hello")).await.unwrap();
    for upload in ["u1", "u2"] {
        world.ask(&edge, Op::Abort, json!({"id": upload, "upload": upload})).await.unwrap();
    }
    let soon = now().after(limits::URL_VALIDITY);
    assert_eq!(sweep(&world.ledger, &world.storage, soon, None).await.unwrap().deleted, 0);
    assert!(world.storage.stat(&key).await.unwrap().is_some());
    assert_eq!(world.storage.list_parts(&parts, &upload).await.unwrap().len(), 1);
    assert_eq!(sweep(&world.ledger, &world.storage, now().after(HOUR), None).await.unwrap().deleted, 2);
    assert!(world.storage.stat(&key).await.unwrap().is_none());
    // No object, and no part that only storage would know of.
    assert_eq!(world.storage.list_parts(&parts, &upload).await, Err(millpond_storage::Error::NoUpload));
}

#[tokio::test]
async fn what_an_earlier_run_began_is_doomed_at_the_start_but_not_what_is_granted() {
    let world = World::new(json!({})).await;
    let edge = world.member("edge", Role::Publisher).await;
    grant(&world, &edge, new("granted", 1, None)).await.unwrap();
    let pool = world.pool;
    let staged = world.ledger.write(move |tx| tx.grant_object(pool, "upload", 1, Sha256::of(b"")));
    staged.await.unwrap();
    assert_eq!(world.ledger.write(|tx| tx.doom_left_over("upload")).await.unwrap(), 1);
    assert_eq!(world.number("SELECT count(*) FROM objects WHERE state = 'granted'").await, 1);
}

#[tokio::test]
async fn thousands_of_large_files_come_page_by_page_each_once_with_a_url() {
    const FILES: u64 = 3_000;
    let mut world = World::new(json!({})).await;
    let edge = world.member("edge", Role::Publisher).await;
    // Rows without bytes: a lease hands out URLs, and asks nobody whether there is something behind them.
    let (pool, who) = (world.pool, edge.clone());
    let upload = world.ledger.write(move |tx| {
        for n in 0..FILES {
            let bytes = n.to_le_bytes().to_vec();
            let object = tx.grant_object(pool, "upload", 8, Sha256::of(&bytes))?;
            let new = file(&format!("film-{n:05}"), bytes);
            tx.store_upload(pool, &who, NewUpload { body: Body::Object(object.id), ..new })?;
        }
        Ok(())
    });
    upload.await.unwrap();
    world.dispatch();
    let mill = world.member("mill", Role::Processor).await;
    let mut page =
        world.ask(&mill, Op::Trigger, json!({"id": "t", "take": true, "wait_s": 60})).await.unwrap()["lease"]
            .take();
    let (mut seen, mut urls, mut pages) = (BTreeSet::new(), BTreeSet::new(), 1);
    loop {
        for file in page["files"].as_array().unwrap() {
            assert_eq!(file["kind"], "large");
            assert!(seen.insert(file["upload"].as_str().unwrap().to_owned()), "{file} came twice");
            urls.insert(file["url"].as_str().unwrap().to_owned());
        }
        let Some(cursor) = page["cursor"].as_str() else { break };
        let ask = json!({"round": 1, "attempt": 1, "cursor": cursor, "max_answer": 262_144});
        page = world.ask(&mill, Op::Files, ask).await.unwrap();
        assert!(page.to_string().len() <= 262_144);
        pages += 1;
    }
    assert_eq!((seen.len() as u64, urls.len() as u64), (FILES, FILES));
    assert!(pages < 12, "{pages} pages");
}

#[tokio::test]
async fn a_publish_that_the_rules_reject_is_no_row_and_leaves_the_open_grant_of_its_id() {
    let world = World::new(json!({})).await;
    let edge = world.member("edge", Role::Publisher).await;
    grant(&world, &edge, new("a", 1, Some(window()))).await.unwrap();
    let publish = async |declared| {
        let (pool, who) = (world.pool, edge.clone());
        let file = NewUpload { sha256_declared: declared, ..file("a", "a") };
        world.ledger.write(move |tx| tx.store_upload(pool, &who, file)).await
    };
    let untouched = async || {
        assert_eq!(world.number("SELECT count(*) FROM uploads").await, 0);
        assert_eq!(world.number("SELECT count(*) FROM objects WHERE state = 'granted'").await, 1);
        assert_eq!(world.number("SELECT count(*) FROM grants").await, 1);
    };
    world.policy(json!({"require_sha256": true})).await;
    assert_eq!(publish(false).await.unwrap_err().code, Code::Rejected);
    untouched().await;

    // What only the batches tell.
    world.policy(json!({"late": "reject"})).await;
    world.upload(&edge, vec![file("other", "other")]).await;
    let mill = world.member("mill", Role::Processor).await;
    world.ask(&mill, Op::Trigger, json!({"id": "t", "window": window()})).await.unwrap();
    assert_eq!(publish(true).await.unwrap_err().code, Code::Rejected);
    assert_eq!(world.number("SELECT count(*) FROM grants").await, 1);

    world.policy(json!({})).await;
    assert_eq!(publish(true).await.unwrap().receipt.outcome, Outcome::Stored);
    assert_eq!(world.number("SELECT count(*) FROM objects WHERE state = 'doomed'").await, 1);
    assert_eq!(world.number("SELECT count(*) FROM grants").await, 0);
}

#[tokio::test]
async fn a_grant_that_was_renewed_does_not_end_and_opens_its_whole_set() {
    let world = World::new(json!({})).await;
    let edge = world.member("edge", Role::Publisher).await;
    let one = grant(&world, &edge, new("one", 5, None)).await.unwrap();
    let two = grant(&world, &edge, new("two", 7, None)).await.unwrap();
    let both = [one.clone(), two.clone()];
    assert_eq!(world.ledger.write(move |tx| tx.verify_grants(&both)).await, Ok(2));
    let grants = &world.asks.grants;
    assert!(grants.end(vec![two.clone()], Cause::Expired).await.unwrap().is_empty());
    assert_eq!(world.number("SELECT count(*) FROM grants WHERE verifying IS NULL").await, 2);

    let gone = grants.end(vec![two.clone()], Cause::Mismatch).await.unwrap();
    assert_eq!(gone.iter().map(|grant| grant.id).collect::<Vec<_>>(), [two.id]);
    // Once: who comes later has nothing to tell its owner.
    assert!(grants.end(vec![two], Cause::Mismatch).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_grant_that_is_renewed_again_and_again_holds_for_its_life_and_no_longer() {
    let world = World::new(json!({})).await;
    let edge = world.member("edge", Role::Publisher).await;
    let first = grant(&world, &edge, new("slow", 1, None)).await.unwrap();
    let made = now().before(limits::GRANT_LIFE - HOUR / 2);
    let age = move |tx: &mut millpond::ledger::Tx<'_>| {
        Ok(tx.sql().execute("UPDATE grants SET received = ?1", [made.as_millis()])?)
    };
    assert_eq!(world.ledger.write(age).await, Ok(1));
    let renew = async |valid| {
        let who = edge.clone();
        match world.ledger.write(move |tx| tx.grant(&who, new("slow", 1, None), valid)).await.unwrap() {
            Granted::Open { grant, new: false } => *grant,
            other => panic!("{other:?}"),
        }
    };
    // It never holds for less than it was said to.
    assert_eq!(renew(HOUR).await.expires, first.expires);
    let age = move |tx: &mut millpond::ledger::Tx<'_>| {
        Ok(tx.sql().execute("UPDATE grants SET expires = ?1", [now().as_millis()])?)
    };
    assert_eq!(world.ledger.write(age).await, Ok(1));
    assert_eq!(renew(HOUR).await.expires, made.after(limits::GRANT_LIFE));
}

#[tokio::test]
async fn a_pool_keeps_as_much_as_its_quota_says_and_what_is_granted_counts() {
    // In thousands of bytes; of an upload's, its row takes some.
    const ROW: u64 = 512;
    let world = World::new(json!({"quota_bytes": 100_000})).await;
    let (edge, other) =
        (world.member("edge", Role::Publisher).await, world.member("other", Role::Publisher).await);
    let upload = async |who: &Principal, id: &str, thousands: u64| {
        let bytes = vec![0; (thousands * 1_000 - ROW) as usize];
        let (who, new) = (who.clone(), NewUpload::inline(id.parse().unwrap(), bytes.into()));
        let stored = world.ledger.write(move |tx| {
            let pool = tx.pool_of(&who)?;
            tx.store_upload(pool, &who, new)
        });
        stored.await.map(drop).map_err(|refusal| refusal.code)
    };
    let grant = async |who, id, thousands: u64| grant(&world, who, new(id, thousands * 1_000, None)).await;
    upload(&edge, "u1", 40).await.unwrap();
    // Nobody locks the others out by asking for what is left.
    assert_eq!(grant(&edge, "g1", 31).await.unwrap_err(), Code::Quota);
    let granted = grant(&edge, "g1", 30).await.unwrap();
    assert_eq!(grant(&edge, "g2", 1).await.unwrap_err(), Code::Quota);
    assert_eq!(upload(&other, "u2", 31).await, Err(Code::Quota));
    assert_eq!(grant(&other, "g2", 16).await.unwrap_err(), Code::Quota);
    upload(&other, "u3", 30).await.unwrap();
    // What is there already is no more, and a file that was granted is taken.
    upload(&edge, "u1", 40).await.unwrap();
    assert_eq!(count(&world, granted).await["outcome"], "stored");
    assert_eq!(upload(&other, "u2", 1).await, Err(Code::Quota));
    world.policy(json!({"quota_bytes": 101_000 + ROW})).await;
    upload(&other, "u2", 1).await.unwrap();
}

#[tokio::test]
async fn what_the_rules_reject_takes_room_too_and_is_told_to_wait_where_there_is_none() {
    let meta = format!("{{\"k\": \"{}\"}}", "x".repeat(4_000));
    let world = World::new(json!({"quota_bytes": 10_000, "max_size": 10})).await;
    let edge = world.member("edge", Role::Publisher).await;
    let rejected = async |id: &str| {
        let (who, whole) = (edge.clone(), NewUpload::inline(id.parse().unwrap(), vec![0; 11].into()));
        let new = NewUpload { meta: Some(meta.clone()), ..whole };
        let stored = world.ledger.write(move |tx| {
            let pool = tx.pool_of(&who)?;
            tx.store_upload(pool, &who, new)
        });
        stored.await.map(|stored| stored.receipt.outcome).map_err(|refusal| refusal.code)
    };
    assert_eq!(rejected("u1").await, Ok(Outcome::Rejected));
    assert_eq!(rejected("u2").await, Ok(Outcome::Rejected));
    assert_eq!(rejected("u3").await, Err(Code::Quota));
    assert_eq!(rejected("u1").await, Ok(Outcome::Rejected), "a repeat is no row");
    assert_eq!(world.number("SELECT count(*) FROM uploads").await, 2);
}
