//! What a server holds in memory while 4 GiB come and go, above what it held before anybody came.

use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use millpond::ledger::Ledger;
use millpond::rounds::Policy;
use millpond::rounds::policy::Grouping;
use millpond_protocol::access::Op;
use millpond_protocol::message::{Outcome, answer};
use millpond_storage::{ObjectKey, PresignedPut};
use serde_json::json;

use super::load::Connection;
use super::{Bench, GIB, HOUR, hash, together};
use crate::aims;
use crate::round::connect;
use crate::server::prepare;

const PARTS: u16 = 4;
const SIZE: u64 = PARTS as u64 * GIB;

/// On a server of its own: one that has worked keeps memory that would hide what the next work takes.
pub(super) async fn run() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (ledger, ended) = Ledger::open(dir.path())?;
    prepare(&ledger, Policy { grouping: Grouping::Count, count: 1_000, ..Policy::default() }, 1, 0).await?;
    drop(ledger);
    let _ = ended.await;
    let bench = Bench::over(dir.path()).await?;
    let (idle, _) = bench.server.memory()?;
    println!("  4 GiB       memory of a fresh server {idle:.0} MiB, and above that:");
    bench.as_storage(idle).await?;
    bench.through_the_coordinator(idle).await
}

impl Bench {
    /// The most that is held above `idle` during some work, in MiB.
    fn above(&self, idle: f64, work: impl FnOnce() -> Result<()>) -> Result<f64> {
        self.server.reset_peak()?;
        tokio::task::block_in_place(work)?;
        Ok(self.server.memory()?.1 - idle)
    }

    /// In one PUT, in four parts at once, and back.
    async fn as_storage(&self, idle: f64) -> Result<()> {
        let (whole, part) = (hash(SIZE), hash(GIB));
        let (single, parts): (ObjectKey, ObjectKey) = ("bench/4gib".parse()?, "bench/parts".parse()?);
        let put = self.above(idle, || Connection::once_put(&self.put_url(&single, SIZE, whole), SIZE))?;
        let get = self.above(idle, || Connection::once_get(&self.get_url(&single), SIZE))?;
        self.storage.delete(&single).await?;
        let upload = self.storage.create_multipart(&parts).await?;
        let in_parts = self.above(idle, || {
            at_once(|n| {
                let now = millpond::ledger::now();
                Ok(self.storage.presign_part(&parts, &upload, n, GIB, part, HOUR, now))
            })
        })?;
        let stored = self.storage.list_parts(&parts, &upload).await?;
        let started = Instant::now();
        self.storage.complete_multipart(&parts, &upload, &stored).await?;
        let complete = started.elapsed();
        let get_parts = self.above(idle, || Connection::once_get(&self.get_url(&parts), SIZE))?;
        println!(
            "    PUT +{put:.0} MiB, GET +{get:.0} MiB, four parts at once +{in_parts:.0} MiB, GET of them +{get_parts:.0} MiB   \
             (aim 64); completing took {:.1} ms",
            complete.as_secs_f64() * 1e3
        );
        let most = [put, get, in_parts, get_parts].into_iter().fold(0.0, f64::max);
        aims::at_most("memory for a PUT and a GET of 4 GiB, whole and in parts", most, 64.0, "MiB");
        Ok(self.storage.delete(&parts).await?)
    }

    /// As a publisher's upload: granted, sent in four parts at once, committed, and read once before it counts.
    async fn through_the_coordinator(&self, idle: f64) -> Result<()> {
        let link = connect(&self.server, "pub0").await?;
        let part = hash(GIB);
        let parts: Vec<_> = (1..=PARTS).map(|n| json!({ "n": n, "sha256": part })).collect();
        let put = json!({ "id": "put", "upload": "film", "size": SIZE, "sha256": hash(SIZE), "part_size": GIB, "parts": parts });
        let put: answer::Put = link.ask(Op::Put, &put).await?;
        ensure!(put.parts.len() == usize::from(PARTS), "{} URLs", put.parts.len());
        let started = Instant::now();
        let sending = self.above(idle, || {
            at_once(|n| {
                let to = put.parts[usize::from(n) - 1].to.clone().context("no URL")?;
                let header = |name| to.headers.get(name).cloned().map(|value| (name, value)).context(name);
                let headers = vec![header("content-length")?, header("x-amz-checksum-sha256")?];
                Ok(PresignedPut { url: to.url, headers, expires_at: to.url_expires })
            })
        })?;
        let sent = started.elapsed().as_secs_f64();
        self.server.reset_peak()?;
        let started = Instant::now();
        for n in 0.. {
            let commit = json!({ "id": format!("commit-{n}"), "upload": "film", "wait_s": 30 });
            let commit: answer::Commit = link.ask(Op::Commit, &commit).await?;
            match commit.uploads[0].outcome {
                Outcome::Stored => break,
                Outcome::Pending => {}
                other => bail!("the upload is {other:?}"),
            }
        }
        let (verified, verifying) = (started.elapsed().as_secs_f64(), self.server.memory()?.1 - idle);
        println!(
            "    by put and commit: four parts sent in {sent:.1} s, +{sending:.0} MiB; stored {verified:.1} s after the commit \
             ({:.0} MB/s), +{verifying:.0} MiB   (aim 64)",
            SIZE as f64 / 1e6 / verified
        );
        aims::at_most("memory for them by put and commit", sending.max(verifying), 64.0, "MiB");
        Ok(())
    }
}

/// Sends all parts at once, to the URL of each.
fn at_once(url: impl Fn(u16) -> Result<PresignedPut> + Sync) -> Result<()> {
    together(PARTS.into(), |n| Connection::once_put(&url(n as u16 + 1)?, GIB)).map(drop)
}
