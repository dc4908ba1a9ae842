//! App topics: one publisher to many subscribers, beside mosquitto under the same load.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use millpond::ledger::Ledger;
use millpond::rounds::Policy;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

use super::server::{Server, prepare};
use super::{aims, brokers, median, wire};

const SUBSCRIBERS: usize = 500;
const WINDOW: usize = 20;
const TOPIC: &str = "app/p/x";
/// Bytes of a payload, and messages.
const RUNS: [(usize, usize); 2] = [(1 << 10, 2_000), (200 << 10, 60)];
const TURNS: usize = 5;
/// How long a run may take.
const LIMIT: Duration = Duration::from_secs(180);

pub async fn run() -> Result<()> {
    println!("app topics, 1 to {SUBSCRIBERS}, QoS 1, window {WINDOW}, median of {TURNS} runs in turn");
    for (bytes, messages) in RUNS {
        let dir = tempfile::tempdir()?;
        let (ledger, ended) = Ledger::open(dir.path())?;
        prepare(&ledger, Policy::default(), 1, SUBSCRIBERS).await?;
        drop(ledger);
        let _ = ended.await;
        let server = Server::start(dir.path()).await?;
        let mosquitto = brokers::mosquitto()?;
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for _ in 0..TURNS {
            ours.push(fan_out(server.addresses.mqtt, bytes, messages).await?);
            if let Some(mosquitto) = &mosquitto {
                theirs.push(fan_out(mosquitto.address, bytes, messages).await?);
            }
        }
        let (ours, peak) = (median(ours), server.memory()?.1);
        println!("  {:>4} KiB  {ours:>9.0} deliveries/s, memory at its peak {peak:.0} MiB", bytes >> 10);
        if theirs.is_empty() {
            println!("            (no mosquitto here to compare with)");
        } else {
            let theirs = median(theirs);
            println!("  mosquitto {theirs:>9.0} deliveries/s   {:.1} of it", ours / theirs);
            let (what, least) = if bytes == 1 << 10 { ("1 KiB", 3.0) } else { ("200 KiB", 1.0) };
            aims::at_least(format!("app topics, {what}, beside mosquitto"), ours / theirs, least, "×");
        }
    }
    Ok(())
}

/// Deliveries a second, from the first PUBLISH to the last delivery.
async fn fan_out(address: SocketAddr, bytes: usize, messages: usize) -> Result<f64> {
    let count = Arc::new(AtomicU64::new(0));
    // They end with this run.
    let mut subscribers = JoinSet::new();
    for n in 0..SUBSCRIBERS {
        let mut subscriber = wire::Connection::open(address, &format!("lis{n}")).await?;
        subscriber.subscribe(TOPIC).await?;
        subscribers.spawn(take_all(subscriber, count.clone()));
    }
    let mut publisher = wire::Connection::open(address, "pub0").await?;
    let payload = vec![b'x'; bytes];
    let begun = Instant::now();
    let (mut sent, mut acknowledged) = (0, 0);
    while acknowledged < messages {
        while sent < messages && sent - acknowledged < WINDOW {
            sent += 1;
            publisher.write.write_all(&wire::publish(sent as u16, TOPIC, &payload)).await?;
        }
        publisher.receive().await?;
        acknowledged += 1;
    }
    let all = (messages * SUBSCRIBERS) as u64;
    while count.load(Ordering::Relaxed) < all {
        ensure!(begun.elapsed() < LIMIT, "{} of {all} were delivered", count.load(Ordering::Relaxed));
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(all as f64 / begun.elapsed().as_secs_f64())
}

/// Counts and acknowledges whatever comes, and looks at no payload, so that the load costs little.
async fn take_all(connection: wire::Connection, count: Arc<AtomicU64>) {
    let wire::Connection { read, mut write } = connection;
    let mut read = read.into_inner();
    let mut buffer = vec![0; 64 << 10];
    let (mut held, mut skip, mut acks) = (0, 0_usize, Vec::new());
    while let Ok(n @ 1..) = read.read(&mut buffer[held..]).await {
        let mut at = skip.min(n);
        skip -= at;
        let end = held + n;
        let mut here = 0;
        while let Some((head, length)) = head(&buffer[at..end]) {
            acks.extend(wire::puback(head));
            here += 1;
            let whole = at + length;
            skip = whole.saturating_sub(end);
            at = whole.min(end);
        }
        buffer.copy_within(at..end, 0);
        held = end - at;
        count.fetch_add(here, Ordering::Relaxed);
        if !acks.is_empty() && write.write_all(&acks).await.is_err() {
            return;
        }
        acks.clear();
    }
}

/// The packet id of a PUBLISH at QoS 1 and its length, once its head is there.
fn head(bytes: &[u8]) -> Option<(u16, usize)> {
    let (mut length, mut shift, mut at) = (0, 0, 1);
    loop {
        let byte = *bytes.get(at)?;
        length |= usize::from(byte & 0x7F) << shift;
        (shift, at) = (shift + 7, at + 1);
        if byte & 0x80 == 0 {
            break;
        }
    }
    let id = at + 2 + TOPIC.len();
    Some((u16::from_be_bytes([*bytes.get(id)?, *bytes.get(id + 1)?]), at + length))
}
