//! The sweep where storage does not do what it should.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use millpond::dispatch::sweep::{Swept, sweep};
use millpond::ledger::now;
use millpond_protocol::Sha256;
use millpond_storage::{Secret, Storage, StorageConfig};
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::TcpListener;

use crate::world::World;

const OBJECTS: u64 = 300;
const GONE: &str = "SELECT count(*) FROM objects WHERE state = 'gone'";

/// A sweep that saw all and deleted so many.
fn all(deleted: usize) -> Swept {
    Swept { deleted, more: false }
}

/// An endpoint that deletes every key but those that `fails`, and what it was asked for.
async fn endpoint(fails: fn(usize) -> bool) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let heard = asked.clone();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let asked = heard.clone();
            tokio::spawn(async move {
                let mut stream = BufReader::new(stream);
                let (mut head, mut line) = (String::new(), String::new());
                while stream.read_line(&mut line).await.is_ok_and(|read| read > 2) {
                    head.push_str(&std::mem::take(&mut line));
                }
                let n = {
                    let mut asked = asked.lock().unwrap();
                    // Without the query: that is the signature, with its time.
                    asked.push(head.split([' ', '?']).nth(1).unwrap().to_owned());
                    asked.len() - 1
                };
                let status = if fails(n) { "503 Service Unavailable" } else { "204 No Content" };
                let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    (address, asked)
}

/// A ledger with doomed objects, and storage at that endpoint.
async fn world(address: SocketAddr) -> (World, Storage) {
    let world = World::new(json!({})).await;
    let pool = world.pool;
    let doomed = world.ledger.write(move |tx| {
        for _ in 0..OBJECTS {
            let object = tx.grant_object(pool, "pack", 1, Sha256::of(b"x"))?;
            tx.doom_object(object.id)?;
        }
        Ok(())
    });
    doomed.await.unwrap();
    let endpoint = format!("http://{address}").parse().unwrap();
    let mut config = StorageConfig::new(endpoint, "millpond", "access", Secret::new("a-secret-of-the-tests"));
    config.attempts = 1;
    (world, Storage::new(&config).unwrap())
}

fn later() -> millpond_protocol::Timestamp {
    now().after(Duration::from_secs(3_600))
}

#[tokio::test]
async fn an_object_that_cannot_be_deleted_now_does_not_keep_the_others() {
    let (address, asked) = endpoint(|n| n == 3).await;
    let (world, storage) = world(address).await;
    assert!(sweep(&world.ledger, &storage, later(), None).await.is_err());
    assert_eq!(world.number(GONE).await, OBJECTS - 1);
    assert_eq!(sweep(&world.ledger, &storage, later(), None).await, Ok(all(1)));
    let asked = asked.lock().unwrap();
    assert_eq!(asked.len() as u64, OBJECTS + 1);
    assert_eq!(asked.iter().collect::<BTreeSet<_>>().len() as u64, OBJECTS);
}

#[tokio::test]
async fn storage_that_is_away_is_asked_a_few_times_and_no_more() {
    let (address, asked) = endpoint(|_| true).await;
    let (world, storage) = world(address).await;
    assert!(sweep(&world.ledger, &storage, later(), None).await.is_err());
    assert_eq!(world.number(GONE).await, 0);
    let asked = asked.lock().unwrap().len();
    assert!(asked < 40, "{asked} calls");
}

#[tokio::test]
async fn nothing_is_deleted_that_a_snapshot_of_the_ledger_may_need() {
    let (address, asked) = endpoint(|_| false).await;
    let (world, storage) = world(address).await;
    let snapshot = world.ledger.snapshot().await.unwrap();
    assert_eq!(sweep(&world.ledger, &storage, later(), None).await, Ok(all(0)));
    assert!(asked.lock().unwrap().is_empty());
    drop(snapshot);
    assert_eq!(sweep(&world.ledger, &storage, later(), None).await, Ok(all(OBJECTS as usize)));
}

#[tokio::test]
async fn a_sweep_whose_time_is_over_says_whether_there_is_more() {
    let (address, _) = endpoint(|_| false).await;
    let (world, storage) = world(address).await;
    let first = sweep(&world.ledger, &storage, later(), Some(Instant::now())).await.unwrap();
    assert!(first.more && first.deleted < OBJECTS as usize, "{first:?}");
    let rest = OBJECTS as usize - first.deleted;
    assert_eq!(sweep(&world.ledger, &storage, later(), Some(Instant::now())).await, Ok(all(rest)));
}
