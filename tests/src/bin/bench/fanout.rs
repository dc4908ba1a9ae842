//! One pointer to many listening members: from the result's acknowledgement to the last of them.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use millpond::ledger::Ledger;
use millpond::rounds::Policy;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use super::brokers::{self, Broker};
use super::server::{Server, prepare};
use super::{median, wire};

const ROUNDS: usize = 5;
const PUBACK: u8 = 0x40;
/// Bytes of a pointer with its URL.
const POINTER: usize = 700;

pub async fn run() -> Result<()> {
    for listeners in [1_000, 5_000] {
        println!(
            "one pointer to {listeners} listening members, from the result's PUBACK, median of {ROUNDS} in turn"
        );
        let bare = bare_sockets(listeners).await?;
        let mut pool = Pool::start(listeners).await?;
        let mut other = match brokers::mosquitto()? {
            Some(mosquitto) => Some(Retained::start(mosquitto, listeners).await?),
            None => None,
        };
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for round in 1..=ROUNDS {
            ours.push(pool.round(round, listeners).await?);
            if let Some(other) = &mut other {
                theirs.push(other.round(listeners).await?);
            }
        }
        let ours = median(ours);
        println!("  bare sockets      {:>9.1} ms (one task writes the same bytes to as many)", bare * 1e3);
        println!("  the last has it   {:>9.1} ms   {:.1} of bare sockets", ours * 1e3, ours / bare);
        if theirs.is_empty() {
            println!("  (no mosquitto here to compare with)");
        } else {
            let theirs = median(theirs);
            println!(
                "  mosquitto         {:>9.1} ms, from its PUBLISH   {:.1} of it",
                theirs * 1e3,
                ours / theirs
            );
        }
    }
    Ok(())
}

/// Opens as many connections that subscribe, and say when a message came.
async fn listen(address: SocketAddr, filter: &str, listeners: usize) -> Result<mpsc::Receiver<Instant>> {
    let (heard, hearing) = mpsc::channel(listeners);
    for n in 0..listeners {
        let mut listener = wire::Connection::open(address, &format!("lis{n}")).await?;
        listener.subscribe(filter).await?;
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
    Ok(hearing)
}

/// Seconds until every one of them has heard.
async fn all(hearing: &mut mpsc::Receiver<Instant>, listeners: usize, since: Instant) -> Result<f64> {
    let mut latest = since;
    for _ in 0..listeners {
        let at = tokio::time::timeout(Duration::from_secs(30), hearing.recv()).await?;
        latest = latest.max(at.context("the listeners ended")?);
    }
    Ok(latest.duration_since(since).as_secs_f64())
}

/// Millpond with a pool whose members listen.
struct Pool {
    hearing: mpsc::Receiver<Instant>,
    publisher: wire::Connection,
    processor: wire::Connection,
    _server: Server,
    _dir: TempDir,
}

impl Pool {
    async fn start(listeners: usize) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let (ledger, ended) = Ledger::open(dir.path())?;
        prepare(&ledger, Policy::default(), 1, listeners).await?;
        drop(ledger);
        let _ = ended.await;
        let server = Server::start(dir.path()).await?;
        let hearing = listen(server.addresses.mqtt, "mp/p/result", listeners).await?;
        let publisher = wire::Connection::open(server.addresses.mqtt, "pub0").await?;
        let mut processor = wire::Connection::open(server.addresses.mqtt, "proc").await?;
        processor.subscribe("mp/p/d/proc/#").await?;
        Ok(Self { hearing, publisher, processor, _server: server, _dir: dir })
    }

    async fn round(&mut self, round: usize, listeners: usize) -> Result<f64> {
        let Self { hearing, publisher, processor, .. } = self;
        publisher.write.write_all(&wire::publish(1, &format!("mp/p/c/pub0/up/u{round}"), b"x")).await?;
        publisher.receive().await?;
        let ask = format!(r#"{{"id": "t{round}", "take": true, "wait_s": 30}}"#);
        processor.write.write_all(&wire::publish(1, "mp/p/c/proc/ask/trigger", ask.as_bytes())).await?;
        until(processor, |_, topic| topic.ends_with("/answer/trigger")).await?;
        let topic = format!("mp/p/c/proc/result/{round}/1");
        processor.write.write_all(&wire::publish(2, &topic, b"result")).await?;
        until(processor, |kind, _| kind == PUBACK).await?;
        all(hearing, listeners, Instant::now()).await
    }
}

/// A message of a pointer's size through a broker that has nothing to keep.
struct Retained {
    hearing: mpsc::Receiver<Instant>,
    publisher: wire::Connection,
    _broker: Broker,
}

impl Retained {
    async fn start(broker: Broker, listeners: usize) -> Result<Self> {
        let hearing = listen(broker.address, "pointer", listeners).await?;
        let publisher = wire::Connection::open(broker.address, "pub0").await?;
        Ok(Self { hearing, publisher, _broker: broker })
    }

    async fn round(&mut self, listeners: usize) -> Result<f64> {
        let since = Instant::now();
        self.publisher.write.write_all(&wire::publish(1, "pointer", &[b'x'; POINTER])).await?;
        let last = all(&mut self.hearing, listeners, since).await?;
        self.publisher.receive().await?;
        Ok(last)
    }
}

/// The reference: one task that writes a pointer's worth to as many sockets, one after the other.
async fn bare_sockets(listeners: usize) -> Result<f64> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let (heard, mut hearing) = mpsc::channel(listeners);
    let mut sockets = Vec::new();
    for _ in 0..listeners {
        let mut stream = TcpStream::connect(listener.local_addr()?).await?;
        sockets.push(listener.accept().await?.0);
        let heard = heard.clone();
        tokio::spawn(async move {
            let mut message = [0; POINTER];
            while stream.read_exact(&mut message).await.is_ok() {
                // Whoever measures has gone at the end.
                let _ = heard.send(Instant::now()).await;
            }
        });
    }
    let mut last = Vec::new();
    for _ in 0..ROUNDS {
        let start = Instant::now();
        for socket in &mut sockets {
            socket.write_all(&[0; POINTER]).await?;
        }
        last.push(all(&mut hearing, listeners, start).await?);
    }
    Ok(median(last))
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
