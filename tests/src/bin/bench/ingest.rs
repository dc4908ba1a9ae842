//! Durable small uploads: acknowledgements per second, beside the ledger's own group commit of the same rows.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use anyhow::Result;
use millpond::ledger::Ledger;
use millpond::ledger::tokens::find_token;
use millpond::ledger::uploads::NewUpload;
use millpond::rounds::Policy;
use millpond_protocol::{Principal, Sha256};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

use super::server::{Server, prepare};
use super::{aims, percentile, wire};

const CONNECTIONS: usize = 50;
const WINDOW: usize = 20;
const SIZE: usize = 1_024;
const FOR: Duration = Duration::from_secs(8);

pub async fn run() -> Result<()> {
    println!("durable uploads of {SIZE} B, {CONNECTIONS} connections, window {WINDOW}, {} s", FOR.as_secs());
    let reference = ledger_alone().await?;
    let Load { rate, p50, p99 } = over_mqtt().await?;
    println!("  ledger alone      {reference:>9.0} rows/s");
    println!(
        "  over MQTT         {rate:>9.0} acks/s   p50 {:.1} ms, p99 {:.1} ms   {:.2} of the ledger alone (aim 0.5)",
        p50 * 1e3,
        p99 * 1e3,
        rate / reference
    );
    aims::at_least("uploads of 1 KiB, beside the ledger alone", rate / reference, 0.5, "×");
    Ok(())
}

async fn over_mqtt() -> Result<Load> {
    let dir = tempfile::tempdir()?;
    let (ledger, ended) = Ledger::open(dir.path())?;
    prepare(&ledger, Policy::default(), CONNECTIONS, 0).await?;
    drop(ledger);
    let _ = ended.await;
    let server = Server::start(dir.path()).await?;
    let mut connections = Vec::new();
    for n in 0..CONNECTIONS {
        connections.push(wire::Connection::open(server.addresses.mqtt, &format!("pub{n}")).await?);
    }
    load(connections, |n| format!("mp/p/c/pub{n}/up/u"), SIZE, FOR).await
}

/// What a load of acknowledged publishes came to: a second, and the seconds that one took.
pub struct Load {
    pub rate: f64,
    pub p50: f64,
    pub p99: f64,
}

/// Publishes over all connections at once, `WINDOW` under way on each, to topics that begin as `topic` says of each.
pub async fn load(
    connections: Vec<wire::Connection>,
    topic: impl Fn(usize) -> String,
    size: usize,
    time: Duration,
) -> Result<Load> {
    let begin = Instant::now();
    let mut publishers = JoinSet::new();
    for (n, connection) in connections.into_iter().enumerate() {
        publishers.spawn(publish(connection, topic(n), size, time));
    }
    let mut latencies = Vec::new();
    while let Some(done) = publishers.join_next().await {
        latencies.extend(done??);
    }
    latencies.sort_by(f64::total_cmp);
    // What was under way when the time was over has taken time too.
    let rate = latencies.len() as f64 / begin.elapsed().as_secs_f64();
    Ok(Load { rate, p50: percentile(&latencies, 0.5), p99: percentile(&latencies, 0.99) })
}

/// Keeps `WINDOW` publishes under way; the seconds that each acknowledgement took.
async fn publish(
    mut connection: wire::Connection,
    topic: String,
    size: usize,
    time: Duration,
) -> Result<Vec<f64>> {
    let mut payload = vec![b'x'; size];
    let start = Instant::now();
    let (mut sent, mut latencies) = (0_usize, Vec::new());
    let mut under_way = VecDeque::new();
    let mut acks = [0; 4 * WINDOW];
    loop {
        let mut burst = Vec::new();
        while under_way.len() < WINDOW && start.elapsed() < time {
            payload[..8].copy_from_slice(&sent.to_be_bytes());
            let id = (sent % 60_000 + 1) as u16;
            burst.extend(wire::publish(id, &format!("{topic}{sent}"), &payload));
            under_way.push_back(Instant::now());
            sent += 1;
        }
        connection.write.write_all(&burst).await?;
        if under_way.is_empty() {
            return Ok(latencies);
        }
        // Whole acknowledgements only: four bytes each.
        let mut read = connection.read.read(&mut acks).await?;
        while read == 0 || !read.is_multiple_of(4) {
            let more = connection.read.read(&mut acks[read..]).await?;
            anyhow::ensure!(more > 0, "the server closed the connection");
            read += more;
        }
        for ack in acks[..read].chunks(4) {
            anyhow::ensure!(ack[..2] == [0x40, 2], "not a PUBACK: {ack:?}");
            latencies.extend(under_way.pop_front().map(|at: Instant| at.elapsed().as_secs_f64()));
        }
    }
}

/// The same rows through the same writer, without gate and network.
async fn ledger_alone() -> Result<f64> {
    let dir = tempfile::tempdir()?;
    let (ledger, _) = Ledger::open(dir.path())?;
    prepare(&ledger, Policy::default(), CONNECTIONS, 0).await?;
    let mut load = JoinSet::new();
    for n in 0..CONNECTIONS {
        let token = Sha256::of(format!("pub{n}").as_bytes());
        let who = ledger.write(move |tx| find_token(tx.sql(), &token, tx.now())).await?;
        let who = who.ok_or_else(|| anyhow::anyhow!("no such member"))?;
        load.spawn(store(ledger.clone(), who));
    }
    let mut rows = 0;
    while let Some(done) = load.join_next().await {
        rows += done??;
    }
    Ok(rows as f64 / FOR.as_secs_f64())
}

async fn store(ledger: Ledger, who: Principal) -> Result<usize> {
    let mut payload = vec![b'x'; SIZE];
    let start = Instant::now();
    let (mut sent, mut stored) = (0_usize, 0);
    let mut under_way = VecDeque::new();
    loop {
        while under_way.len() < WINDOW && start.elapsed() < FOR {
            payload[..8].copy_from_slice(&sent.to_be_bytes());
            let (who, new) = (who.clone(), row(sent, &payload)?);
            under_way.push_back(Box::pin(ledger.write(move |tx| {
                let pool = tx.pool_of(&who)?;
                tx.store_upload(pool, &who, new)
            })));
            sent += 1;
        }
        let Some(first) = under_way.pop_front() else { return Ok(stored) };
        first.await?;
        stored += 1;
    }
}

/// The `n`-th upload.
pub fn row(n: usize, bytes: &[u8]) -> Result<NewUpload> {
    Ok(NewUpload::inline(format!("u{n}").parse()?, bytes::Bytes::copy_from_slice(bytes)))
}
