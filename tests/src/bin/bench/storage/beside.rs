//! The embedded storage beside SeaweedFS, under the same load in the same run, by turns.
//!
//! SeaweedFS answers a PUT before the bytes are synced; the embedded storage does not.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use bytes::Bytes;
use millpond_protocol::Sha256;
use millpond_storage::{Secret, Storage, StorageConfig};
use millpond_tests::SeaweedFs;

use super::{Bench, GIB, Objects, median};

const RUNS: usize = 5;
/// Connections, objects of each, and bytes of an object.
const LOADS: [(usize, usize, u64); 3] = [(1, 1, GIB), (50, 1, 10_000_000), (32, 50, 16 << 10)];

pub async fn run() -> Result<()> {
    let Some(seaweed) = SeaweedFs::start() else {
        println!("objects beside SeaweedFS: it is not installed");
        return Ok(());
    };
    let secret = Secret::new(SeaweedFs::SECRET_KEY);
    let config =
        StorageConfig::new(seaweed.endpoint.parse()?, SeaweedFs::BUCKET, SeaweedFs::ACCESS_KEY, secret);
    let other = Storage::new(&config)?;
    ready(&other).await?;
    let dir = tempfile::tempdir()?;
    let bench = Bench::over(dir.path()).await?;
    println!("objects beside SeaweedFS, which does not sync them; median of {RUNS} runs in turn");
    for (connections, each, size) in LOADS {
        let (mut ours, mut theirs) = (Times::default(), Times::default());
        for run in 0..RUNS {
            for (storage, times) in [(&bench.storage, &mut ours), (&other, &mut theirs)] {
                let name = format!("bench/beside/{size}/{run}");
                let objects = Objects { storage, name: &name, connections, each, size };
                tokio::task::block_in_place(|| {
                    times.put.push(objects.put()?);
                    times.get.push(objects.get()?);
                    Ok::<_, anyhow::Error>(())
                })?;
                for n in 0..connections {
                    for m in 0..each {
                        storage.delete(&objects.key(n, m)?).await?;
                    }
                }
            }
        }
        let bytes = (connections * each) as f64 * size as f64 / 1e6;
        for (what, ours, theirs) in [("PUT", ours.put, theirs.put), ("GET", ours.get, theirs.get)] {
            let (ours, theirs) = (bytes / median(ours), bytes / median(theirs));
            println!(
                "  {what} {connections} × {each} × {size} B   {ours:.0} MB/s   SeaweedFS {theirs:.0} MB/s: {:.1} ×",
                ours / theirs
            );
        }
    }
    Ok(())
}

#[derive(Default)]
struct Times {
    put: Vec<f64>,
    get: Vec<f64>,
}

/// Waits until it takes an object.
async fn ready(storage: &Storage) -> Result<()> {
    let (key, bytes) = ("bench/ready".parse()?, Bytes::from_static(b"ready"));
    let sha256 = Sha256::of(&bytes);
    let until = Instant::now() + Duration::from_secs(60);
    while storage.put(&key, bytes.clone(), sha256).await.is_err() {
        ensure!(Instant::now() < until, "SeaweedFS takes no object within a minute");
    }
    Ok(())
}
