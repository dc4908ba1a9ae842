//! Reading an object through SHA-256 over a network that breaks.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::sync::atomic::Ordering;

use bytes::Bytes;
use common::cutter::cutter;
use common::{Server, bytes, object};
use millpond_protocol::Sha256;
use millpond_storage::{Error, limits};

async fn stored(server: &Server, key: &str, size: usize) -> Bytes {
    let body = Bytes::from(bytes(size));
    server.storage.put(&object(key), body.clone(), Sha256::of(&body)).await.unwrap();
    body
}

#[tokio::test]
async fn attempts_that_bring_nothing_end_it() {
    let server = Server::start().await;
    stored(&server, "k", 1 << 20).await;
    let cutter = cutter(&server.config, 10, false).await;
    let hashed = cutter.storage.hash(&object("k"), |_| panic!("nothing came")).await;
    assert!(hashed.unwrap_err().is_temporary());
    assert_eq!(cutter.connections.load(Ordering::SeqCst), limits::ATTEMPTS as usize);
}

#[tokio::test]
async fn an_object_that_is_replaced_meanwhile_is_not_hashed_half_and_half() {
    let server = Server::start().await;
    stored(&server, "k", 2 << 20).await;
    let cutter = cutter(&server.config, 1 << 20, true).await;
    let storage = cutter.storage.clone();
    let (begun, mut first) = tokio::sync::mpsc::unbounded_channel();
    let hashing = tokio::spawn(async move {
        storage
            .hash(&object("k"), |read| {
                let _ = begun.send(read);
            })
            .await
    });
    first.recv().await.unwrap();
    let other = Bytes::from(vec![7; 2 << 20]);
    server.storage.put(&object("k"), other.clone(), Sha256::of(&other)).await.unwrap();
    cutter.hold.notify_one();
    let hashed = hashing.await.unwrap();
    assert!(matches!(&hashed, Err(Error::Mismatch(why)) if why.contains("replaced")), "{hashed:?}");
}
