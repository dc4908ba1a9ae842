//! From the trigger to the answer that is `ready`, with the packs written ahead, as the batch grows.

use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use millpond::ledger::Ledger;
use millpond::ledger::tokens::find_token;
use millpond::rounds::Policy;
use millpond::rounds::policy::Grouping;
use millpond_protocol::{Sha256, limits};
use serde_json::Value;
use tokio::io::AsyncWriteExt;

use super::ingest::row;
use super::server::{Server, prepare};
use super::{aims, wire};

const SIZE: usize = 1_024;
const MEMBERS: usize = 50;

pub async fn run() -> Result<()> {
    println!("trigger → ready, uploads of {SIZE} B, packs written ahead");
    let mut costs = Vec::new();
    for count in [10_000, 100_000, 1_000_000] {
        let Figures { seconds, idle, peak } = measure(count).await?;
        costs.push(seconds / count as f64);
        if count == 100_000 {
            aims::at_most("trigger to ready, 100,000 uploads", seconds * 1e3, 300.0, "ms");
            aims::at_most("the same, memory", peak - idle, 64.0, "MiB");
        }
        let (each, reference) = (seconds / count as f64 * 1e6, lines(count)? / count as f64 * 1e6);
        println!(
            "  {count:>9} uploads  {:>8.0} ms   {each:>6.2} µs each, {:.1} of bare lines   memory {idle:.0} → {peak:.0} MiB",
            seconds * 1e3,
            each / reference
        );
    }
    if let [small, middle, large] = costs[..] {
        aims::at_most("an upload's part of it, of 10,000 beside 100,000", small / middle, 1.3, "×");
        aims::at_most("the same, of 1,000,000 beside 100,000", large / middle, 1.3, "×");
    }
    println!(
        "  aims: under 300 ms and +64 MiB at 100,000; from 10,000 to 1,000,000 the cost of each within 1.3"
    );
    Ok(())
}

/// The reference: as many manifest-like lines made, hashed, and written to a file that is synced.
fn lines(count: usize) -> Result<f64> {
    let mut file = tempfile::tempfile()?;
    let start = Instant::now();
    let mut text = String::new();
    for n in 0..count {
        let line = serde_json::json!({"member": format!("pub{}", n % MEMBERS), "upload": format!("u{n}"),
            "name": format!("u{n}"), "size": SIZE, "sha256": "0".repeat(64), "event_time": "2026-01-01T00:00:00.000Z"});
        text.push_str(&line.to_string());
        text.push('\n');
    }
    let hash = Sha256::of(text.as_bytes());
    file.write_all(text.as_bytes())?;
    file.write_all(hash.to_string().as_bytes())?;
    file.sync_all()?;
    Ok(start.elapsed().as_secs_f64())
}

/// From trigger to ready, and the server's memory in MiB before and at its peak.
pub struct Figures {
    pub seconds: f64,
    pub idle: f64,
    pub peak: f64,
}

pub async fn measure(count: usize) -> Result<Figures> {
    let dir = tempfile::tempdir()?;
    fill(dir.path(), count).await?;
    let server = Server::start(dir.path()).await?;
    packed_ahead(dir.path()).await?;
    let (idle, _) = server.memory()?;
    server.reset_peak()?;
    let mut processor = wire::Connection::open(server.addresses.mqtt, "proc").await?;
    processor.subscribe("mp/p/d/proc/#").await?;
    let ask = br#"{"id": "t", "which": "oldest", "take": true, "wait_s": 60}"#;
    let start = Instant::now();
    processor.write.write_all(&wire::publish(1, "mp/p/c/proc/ask/trigger", ask)).await?;
    loop {
        let (kind, body) = processor.receive().await?;
        if kind & 0xf0 != 0x30 {
            continue;
        }
        let (topic, _, payload) = wire::parse_publish(kind, &body).context("a PUBLISH that does not read")?;
        if topic.ends_with("/answer/trigger") {
            let answer: Value = serde_json::from_slice(payload)?;
            if answer["lease"]["ready"] != Value::Bool(true) {
                bail!("the answer is not ready: {answer}");
            }
            let seconds = start.elapsed().as_secs_f64();
            return Ok(Figures { seconds, idle, peak: server.memory()?.1 });
        }
    }
}

/// Fills the ledger of `dir` with one open batch.
pub async fn fill(dir: &Path, count: usize) -> Result<()> {
    let policy = Policy { grouping: Grouping::Count, count: 10_000_000, ..Policy::default() };
    fill_with(dir, count, SIZE, policy).await
}

/// The same with files of `size` bytes under a policy.
pub async fn fill_with(dir: &Path, count: usize, size: usize, policy: Policy) -> Result<()> {
    let (ledger, ended) = Ledger::open(dir)?;
    prepare(&ledger, policy, MEMBERS, 0).await?;
    let mut payload = vec![b'x'; size];
    for from in (0..count).step_by(2_000) {
        let mut rows = Vec::new();
        for n in from..(from + 2_000).min(count) {
            payload[..8].copy_from_slice(&n.to_be_bytes());
            rows.push((n % MEMBERS, row(n, &payload)?));
        }
        ledger
            .write(move |tx| {
                let pool = tx.pool(&"p".parse()?)?;
                let mut members = Vec::new();
                for member in 0..MEMBERS {
                    let token = Sha256::of(format!("pub{member}").as_bytes());
                    members.extend(find_token(tx.sql(), &token, tx.now())?);
                }
                for (member, row) in rows {
                    tx.store_upload(pool, &members[member], row)?;
                }
                Ok(())
            })
            .await?;
    }
    drop(ledger);
    let _ = ended.await;
    Ok(())
}

/// Waits until less than a pack of each open batch is unpacked, and sealed ones are ready.
pub async fn packed_ahead(dir: &Path) -> Result<()> {
    let sql = rusqlite::Connection::open_with_flags(
        dir.join("ledger.db"),
        rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY,
    )?;
    for _ in 0..12_000 {
        let mut batches =
            sql.prepare("SELECT small_bytes - packed_bytes, packed_bytes FROM batches WHERE state = 'open'")?;
        let full = batches
            .query_map([], |row| Ok(row.get::<_, i64>(0)? >= limits::pack_room(row.get(1)?) as i64))?
            .collect::<rusqlite::Result<Vec<_>>>()?;
        let unpurged: u64 =
            sql.query_row("SELECT count(*) FROM packs WHERE purged = 0", [], |row| row.get(0))?;
        let sealed: u64 =
            sql.query_row("SELECT count(*) FROM rounds WHERE state = 'sealed'", [], |row| row.get(0))?;
        if !full.contains(&true) && unpurged == 0 && sealed == 0 {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    bail!("packs are not written ahead within twenty minutes")
}
