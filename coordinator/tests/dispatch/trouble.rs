//! Storage that goes away, and what earlier runs left behind.

use std::time::Duration;

use millpond::dispatch::sweep;
use millpond_protocol::access::Op;
use millpond_protocol::{Role, Sha256};
use serde_json::json;

use crate::world::{World, file};

#[tokio::test]
async fn packing_goes_on_when_storage_is_back() {
    let mut world = World::new(json!({})).await;
    let edge = world.member("edge", Role::Publisher).await;
    world.upload(&edge, vec![file("u1", "hello\n")]).await;
    world.stop_storage().await;
    let mut troubles = world.dispatch();
    let server = world.member("server", Role::Processor).await;
    let triggered = world.ask(&server, Op::Trigger, json!({"id": "t", "take": true})).await.unwrap();
    assert_eq!(triggered["lease"]["ready"], false);
    let pool = world.pool;
    troubles.wait_for(|troubles| troubles.contains_key(&pool)).await.unwrap();
    world.start_storage().await;
    let lease =
        world.ask(&server, Op::Beat, json!({"id": "b", "round": 1, "attempt": 1, "wait_s": 60})).await;
    assert_eq!(lease.unwrap()["ready"], true);
    troubles.wait_for(|troubles| troubles.is_empty()).await.unwrap();
    assert_eq!(world.number("SELECT count(*) FROM objects WHERE state = 'granted'").await, 0);
    assert!(world.number("SELECT count(*) FROM objects WHERE state = 'doomed'").await > 0);
}

#[tokio::test]
async fn the_sweep_deletes_what_is_doomed_and_nothing_else() {
    let mut world = World::new(json!({})).await;
    let edge = world.member("edge", Role::Publisher).await;
    world.upload_large(&edge, "kept", vec![1; 10]).await;
    // An earlier run was about to write a pack, and a client is about to write a file.
    let pool = world.pool;
    let grant =
        |kind: &'static str| world.ledger.write(move |tx| tx.grant_object(pool, kind, 3, Sha256::of(b"abc")));
    let (pack, upload) = (grant("pack").await.unwrap(), grant("upload").await.unwrap());
    world.storage.put(&pack.key, "abc".into(), Sha256::of(b"abc")).await.unwrap();
    world.dispatch();
    world.until("SELECT count(*) FROM objects WHERE state = 'doomed'", 1).await;

    let now = millpond::ledger::now();
    assert_eq!(
        sweep::sweep(&world.ledger, &world.storage, now, None).await.map(|swept| swept.deleted),
        Ok(0),
        "its PUT may be under way"
    );
    let later = now.after(Duration::from_secs(120));
    assert_eq!(sweep::sweep(&world.ledger, &world.storage, later, None).await.unwrap().deleted, 1);
    assert_eq!(world.storage.stat(&pack.key).await, Ok(None));
    assert_eq!(world.number("SELECT count(*) FROM objects WHERE state = 'gone'").await, 1);
    let id = upload.id;
    let state: String = world
        .sql(move |sql| sql.query_row("SELECT state FROM objects WHERE id = ?1", [id], |row| row.get(0)))
        .await;
    assert_eq!(state, "granted");
    assert_eq!(world.number("SELECT count(*) FROM objects WHERE state = 'live'").await, 1);
}
