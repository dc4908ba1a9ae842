//! The contract, against SeaweedFS.

#![allow(clippy::unwrap_used, unreachable_pub, dead_code, reason = "a test that cannot go on fails")]

mod common;
mod contract;
#[path = "../../tests/src/seaweedfs.rs"]
mod seaweedfs;
#[path = "../../tests/src/tools.rs"]
mod tools;

use std::time::{Duration, Instant};

use contract::Place;
use millpond_storage::{Secret, StorageConfig};
use seaweedfs::SeaweedFs;

/// Waits until it can do what it is for.
async fn place(server: &SeaweedFs) -> Place {
    let secret = Secret::new(SeaweedFs::SECRET_KEY);
    let endpoint = server.endpoint.parse().unwrap();
    let mut config = StorageConfig::new(endpoint, SeaweedFs::BUCKET, SeaweedFs::ACCESS_KEY, secret);
    config.attempts = 1;
    let place = Place::new(config);
    let until = Instant::now() + Duration::from_secs(60);
    while let Err(error) = place.storage.probe().await {
        assert!(Instant::now() < until, "{error}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    place
}

#[tokio::test(flavor = "multi_thread")]
async fn seaweedfs_keeps_the_contract() {
    let Some(server) = SeaweedFs::start() else { return };
    let config = place(&server).await.config;
    let mut broken = Vec::new();
    macro_rules! run {
        ($($case:ident,)*) => {$(
            let place = Place::new(config.clone());
            if tokio::spawn(async move { contract::$case(&place).await }).await.is_err() {
                broken.push(stringify!($case));
            }
        )*};
    }
    object_cases!(run);
    part_cases!(run);
    assert_eq!(broken, Vec::<&str>::new());
}
