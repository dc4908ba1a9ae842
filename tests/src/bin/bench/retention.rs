//! Retention and the check over a large batch, and what they cost those who publish meanwhile.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use millpond_tests::Api;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;

use super::server::Server;
use super::{percentile, seal, wire};

const COUNT: usize = 100_000;
/// Between two uploads of the one who publishes meanwhile.
const EVERY: Duration = Duration::from_millis(2);
/// How long nothing else is done, for comparison.
const ALONE: Duration = Duration::from_secs(5);
/// Longer than keys and hashes are kept.
const YEAR_MS: u64 = 365 * 86_400_000;

pub async fn run() -> Result<()> {
    println!(
        "retention and check of {COUNT} uploads, beside one upload of 1 KiB every {} ms",
        EVERY.as_millis()
    );
    let dir = tempfile::tempdir()?;
    seal::fill(dir.path(), COUNT).await?;
    let server = Server::start(dir.path()).await?;
    seal::packed_ahead(dir.path()).await?;
    grind(&server).await?;
    let api = api(&server, dir.path())?;

    let load = Load::start(&server).await?;
    tokio::time::sleep(ALONE).await;
    let alone = load.stop().await?;
    println!("  nothing else      {}", figures(&alone));
    for (what, path) in [("check", "/v1/check"), ("check --deep", "/v1/check?deep=true")] {
        let load = Load::start(&server).await?;
        let started = Instant::now();
        let (status, lines) = api.call(Method::GET, path, None).await;
        let seconds = started.elapsed().as_secs_f64();
        let lines = lines.as_str().context("the check has one line")?.to_owned();
        ensure!(status == 200 && lines.contains("\"end\"") && !lines.contains("\"difference\""), "{lines}");
        println!("  {what:<16}  {seconds:>6.2} s   {}", figures(&load.stop().await?));
    }

    // Bytes first; then, as if half a year had passed, keys and hashes.
    let (status, said) = api.call(Method::PATCH, "/v1/pools/p", Some(&json!({ "keep_uploads_s": 0 }))).await;
    ensure!(status == 200, "{said}");
    collect(&server, &api, "bytes expire", "objects").await?;
    drop(server);
    let ledger = rusqlite::Connection::open(dir.path().join("ledger.db"))?;
    ledger.execute("UPDATE batches SET expired = expired - ?1 WHERE expired IS NOT NULL", [YEAR_MS])?;
    drop(ledger);
    let server = Server::start(dir.path()).await?;
    collect(&server, &self::api(&server, dir.path())?, "keys forgotten", "uploads").await
}

fn api(server: &Server, dir: &Path) -> Result<Api> {
    let token = std::fs::read_to_string(dir.join("admin.token"))?;
    Ok(Api::new(format!("http://{}", server.addresses.http), token.trim()))
}

/// Has the batch sealed, and its round committed and told.
async fn grind(server: &Server) -> Result<()> {
    let mut mill = wire::Connection::open(server.addresses.mqtt, "proc").await?;
    mill.subscribe("mp/p/d/proc/#").await?;
    let ask = br#"{"id": "t", "which": "oldest", "take": true, "wait_s": 60}"#;
    mill.write.write_all(&wire::publish(1, "mp/p/c/proc/ask/trigger", ask)).await?;
    loop {
        let (kind, body) = mill.receive().await?;
        let message = wire::parse_publish(kind, &body).filter(|_| kind & 0xf0 == 0x30);
        if message.is_some_and(|(topic, _, _)| topic.ends_with("/answer/trigger")) {
            break;
        }
    }
    mill.write.write_all(&wire::publish(2, "mp/p/c/proc/result/1/1", b"flour")).await?;
    while mill.receive().await? != (0x40, vec![0, 2]) {}
    Ok(())
}

/// Runs retention until nothing is left over.
async fn collect(server: &Server, api: &Api, what: &str, counts: &str) -> Result<()> {
    let load = Load::start(server).await?;
    let started = Instant::now();
    let mut sum = 0;
    loop {
        let (status, done) = api.call(Method::POST, "/v1/gc", None).await;
        ensure!(status == 200, "{done}");
        sum += done[counts].as_u64().context("no such count")?;
        if done["more"] == Value::Bool(false) {
            break;
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    let rate = COUNT as f64 / seconds;
    println!(
        "  {what:<16}  {seconds:>6.2} s   {rate:.0} uploads/s ({sum} {counts})   {}",
        figures(&load.stop().await?)
    );
    Ok(())
}

fn figures(latencies: &[f64]) -> String {
    let at = |share| percentile(latencies, share) * 1e3;
    format!("ack p50 {:.1} ms, p99 {:.1} ms, worst {:.1} ms", at(0.5), at(0.99), at(1.0))
}

/// Somebody who publishes at a steady pace, one upload at a time under way.
struct Load {
    stop: Arc<AtomicBool>,
    task: JoinHandle<Result<Vec<f64>>>,
}

impl Load {
    async fn start(server: &Server) -> Result<Self> {
        let connection = wire::Connection::open(server.addresses.mqtt, "pub0").await?;
        let stop = Arc::new(AtomicBool::new(false));
        Ok(Self { task: tokio::spawn(publish(connection, stop.clone())), stop })
    }

    /// Ends it; the seconds that acknowledgements took, sorted.
    async fn stop(self) -> Result<Vec<f64>> {
        self.stop.store(true, Ordering::Relaxed);
        let mut latencies = self.task.await??;
        latencies.sort_by(f64::total_cmp);
        Ok(latencies)
    }
}

async fn publish(mut connection: wire::Connection, stop: Arc<AtomicBool>) -> Result<Vec<f64>> {
    let (mut payload, mut latencies) = (vec![b'x'; 1_024], Vec::new());
    let mut every = tokio::time::interval(EVERY);
    every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let run = millpond::ledger::now().as_millis();
    while !stop.load(Ordering::Relaxed) {
        every.tick().await;
        let n = latencies.len();
        payload[..8].copy_from_slice(&n.to_be_bytes());
        let topic = format!("mp/p/c/pub0/up/load-{run}-{n}");
        let sent = Instant::now();
        connection.write.write_all(&wire::publish((n % 60_000 + 1) as u16, &topic, &payload)).await?;
        let mut ack = [0; 4];
        connection.read.read_exact(&mut ack).await?;
        ensure!(ack[..2] == [0x40, 2], "not a PUBACK: {ack:?}");
        latencies.push(sent.elapsed().as_secs_f64());
    }
    Ok(latencies)
}
