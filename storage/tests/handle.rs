//! What becomes of calls when storage is away or refuses. What it does when all is well is in `contract`.
//!
//! Embedded only: a server in this process can be stopped and started at one address. What SeaweedFS says is in `seaweedfs.rs`.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod common;

use std::time::Duration;

use bytes::Bytes;
use common::{Server, object};
use millpond_protocol::Sha256;
use millpond_storage::{Error, Fault, Secret, Storage};

#[tokio::test]
async fn the_probe_says_what_is_wrong() {
    let server = Server::start().await;
    assert_eq!(server.storage.probe().await, Ok(()));
    server.settles_at(0).await;

    let refused = |storage: Storage| async move {
        match storage.probe().await {
            Err(Error::Refused { fault, .. }) => fault,
            other => panic!("{other:?}"),
        }
    };
    let mut config = server.config.clone();
    config.secret_key = Secret::new("another-secret-of-the-tests");
    assert_eq!(refused(Storage::new(&config).unwrap()).await, Fault::Credentials);
    let mut config = server.config.clone();
    config.access_key = "nobody".into();
    assert_eq!(refused(Storage::new(&config).unwrap()).await, Fault::Credentials);
    let mut config = server.config.clone();
    config.region = "elsewhere".into();
    assert_eq!(refused(Storage::new(&config).unwrap()).await, Fault::Credentials);
    let mut config = server.config.clone();
    config.bucket = "another-bucket".into();
    assert_eq!(refused(Storage::new(&config).unwrap()).await, Fault::Bucket);
}

#[tokio::test]
async fn storage_that_is_away_is_unavailable_within_the_time_of_a_call() {
    // A port that listens and never answers.
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = url::Url::parse(&format!("http://{}", silent.local_addr().unwrap())).unwrap();
    let mut config =
        millpond_storage::StorageConfig::new(endpoint, common::BUCKET, "access", common::secret());
    config.call_timeout = Duration::from_millis(300);
    let storage = Storage::new(&config).unwrap();
    let started = std::time::Instant::now();
    assert!(storage.stat(&object("k")).await.unwrap_err().is_temporary());
    assert!(started.elapsed() < Duration::from_secs(5));

    // A port that refuses.
    drop(silent);
    assert!(storage.probe().await.unwrap_err().is_temporary());
}

#[tokio::test]
async fn a_call_outlives_a_restart_of_storage() {
    let server = Server::start().await;
    let address = server.config.endpoint.socket_addrs(|| None).unwrap()[0];
    let mut config = server.config.clone();
    config.attempts = 5;
    let storage = Storage::new(&config).unwrap();
    let body = Bytes::from_static(b"abc");
    let dir = server.stop().await;

    let call = tokio::spawn(async move { storage.put(&object("k"), body.clone(), Sha256::of(&body)).await });
    // The first attempt has been refused, or is about to be; a later one finds the server.
    let listener = tokio::net::TcpListener::bind(address).await.unwrap();
    let embedded = common::reopen(dir.path()).await;
    let serve = tokio::spawn(async move { embedded.serve(listener, Default::default()).await });
    assert_eq!(call.await.unwrap(), Ok(()));
    serve.abort();
}
