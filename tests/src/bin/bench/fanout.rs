//! One pointer to many listening members: from the result's acknowledgement to the last of them.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use millpond::ledger::Ledger;
use millpond::rounds::Policy;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::server::{Server, prepare};
use super::{percentile, wire};

const LISTENERS: usize = 1_000;
const ROUNDS: usize = 5;
const PUBACK: u8 = 0x40;
/// Bytes of a pointer with its URL.
const POINTER: usize = 700;

pub async fn run() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (ledger, ended) = Ledger::open(dir.path())?;
    prepare(&ledger, Policy::default(), 1, LISTENERS).await?;
    drop(ledger);
    let _ = ended.await;
    let server = Server::start(dir.path()).await?;

    let (heard, mut hearing) = mpsc::channel(LISTENERS);
    for n in 0..LISTENERS {
        let mut listener = wire::Connection::open(server.addresses.mqtt, &format!("lis{n}")).await?;
        listener.subscribe("mp/p/result").await?;
        let heard = heard.clone();
        tokio::spawn(async move {
            while let Ok((kind, body)) = listener.receive().await {
                if let Some((_, id, _)) = wire::parse_publish(kind, &body).filter(|_| kind & 0xf0 == 0x30) {
                    // Whoever measures has gone at the end.
                    let _ = heard.send(Instant::now()).await;
                    if let Some(id) = id {
                        let _ = listener.write.write_all(&wire::puback(id)).await;
                    }
                }
            }
        });
    }
    let mut publisher = wire::Connection::open(server.addresses.mqtt, "pub0").await?;
    let mut processor = wire::Connection::open(server.addresses.mqtt, "proc").await?;
    processor.subscribe("mp/p/d/proc/#").await?;

    let mut last = Vec::new();
    for round in 1..=ROUNDS {
        publisher.write.write_all(&wire::publish(1, &format!("mp/p/c/pub0/up/u{round}"), b"x")).await?;
        publisher.receive().await?;
        let ask = format!(r#"{{"id": "t{round}", "take": true, "wait_s": 30}}"#);
        processor.write.write_all(&wire::publish(1, "mp/p/c/proc/ask/trigger", ask.as_bytes())).await?;
        until(&mut processor, |_, topic| topic.ends_with("/answer/trigger")).await?;
        let topic = format!("mp/p/c/proc/result/{round}/1");
        processor.write.write_all(&wire::publish(2, &topic, b"result")).await?;
        until(&mut processor, |kind, _| kind == PUBACK).await?;
        let committed = Instant::now();
        let mut latest = committed;
        for _ in 0..LISTENERS {
            let at = tokio::time::timeout(Duration::from_secs(30), hearing.recv()).await?;
            latest = latest.max(at.context("the listeners ended")?);
        }
        last.push(latest.duration_since(committed).as_secs_f64());
    }
    last.sort_by(f64::total_cmp);
    println!("one pointer to {LISTENERS} listening members, from the result's PUBACK, median of {ROUNDS}");
    let (reference, last) = (bare_sockets().await?, percentile(&last, 0.5));
    println!("  bare sockets      {:>9.1} ms (one task writes the same bytes to as many)", reference * 1e3);
    println!("  the last has it   {:>9.1} ms   {:.1} of bare sockets", last * 1e3, last / reference);
    Ok(())
}

/// The reference: one task that writes a pointer's worth to as many sockets, one after the other.
async fn bare_sockets() -> Result<f64> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let (heard, mut hearing) = mpsc::channel(LISTENERS);
    let mut sockets = Vec::new();
    for _ in 0..LISTENERS {
        let mut stream = TcpStream::connect(listener.local_addr()?).await?;
        sockets.push(listener.accept().await?.0);
        let heard = heard.clone();
        tokio::spawn(async move {
            let mut message = [0; POINTER];
            while stream.read_exact(&mut message).await.is_ok() {
                // Whoever measures has gone at the end.
                let _ = heard.send(()).await;
            }
        });
    }
    let mut last = Vec::new();
    for _ in 0..ROUNDS {
        let start = Instant::now();
        for socket in &mut sockets {
            socket.write_all(&[0; POINTER]).await?;
        }
        for _ in 0..LISTENERS {
            hearing.recv().await;
        }
        last.push(start.elapsed().as_secs_f64());
    }
    last.sort_by(f64::total_cmp);
    Ok(percentile(&last, 0.5))
}

/// Reads until a wanted packet comes, by its first byte and, of a PUBLISH, its topic; messages are acknowledged.
async fn until(connection: &mut wire::Connection, wanted: impl Fn(u8, &str) -> bool) -> Result<()> {
    loop {
        let (kind, body) = connection.receive().await?;
        let published = wire::parse_publish(kind, &body).filter(|_| kind & 0xf0 == 0x30);
        let (topic, id) = published.map_or(("", None), |(topic, id, _)| (topic, id));
        if let Some(id) = id {
            connection.write.write_all(&wire::puback(id)).await?;
        }
        if wanted(kind, topic) {
            return Ok(());
        }
    }
}
