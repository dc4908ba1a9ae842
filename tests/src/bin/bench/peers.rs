//! Acknowledged publishes beside the brokers that people use, under the same load in the same run.
//!
//! Only RabbitMQ promises what Millpond does: an acknowledged message is on disk. nats-server has it in a file that is
//! synced later, mosquitto in memory.

use std::time::Duration;

use anyhow::{Result, ensure};
use millpond::ledger::Ledger;
use millpond::rounds::Policy;
use millpond_tests::Shim;
use tempfile::TempDir;
use tokio::io::AsyncWriteExt as _;

use super::brokers::{self, Broker, SLOW_SYNC};
use super::ingest::{Load, load};
use super::server::{Server, prepare};
use super::wire::Connection;
use super::{aims, median};

const RUNS: usize = 5;
const FOR: Duration = Duration::from_secs(2);
const KIB: usize = 1 << 10;
/// Bytes of a message, and connections.
const LOADS: [(usize, usize); 6] =
    [(KIB, 1), (KIB, 50), (KIB, 500), (64 * KIB, 1), (64 * KIB, 50), (64 * KIB, 500)];

pub async fn run() -> Result<()> {
    println!("acknowledged publishes, window 20, {} s, median of {RUNS} runs in turn", FOR.as_secs());
    for (size, connections) in LOADS {
        compare(size, connections, None).await?;
    }
    slow().await
}

/// The same while every sync takes longer.
pub async fn slow() -> Result<()> {
    match Shim::new() {
        None => println!("  (no library can be preloaded here: slower syncs are left out)"),
        Some(shim) => {
            println!("the same with syncs that take 2 ms more");
            for (size, connections) in LOADS {
                compare(size, connections, Some(&shim)).await?;
            }
        }
    }
    Ok(())
}

/// Whoever is there.
enum Peer {
    Millpond { server: Box<Server>, _directory: TempDir },
    Other(&'static str, Broker),
}

impl Peer {
    fn name(&self) -> &'static str {
        match self {
            Self::Millpond { .. } => "Millpond",
            Self::Other(name, _) => name,
        }
    }

    async fn connections(&self, connections: usize) -> Result<Vec<Connection>> {
        let mut open = Vec::new();
        for n in 0..connections {
            let name = format!("pub{n}");
            open.push(match self {
                Self::Millpond { server, .. } => Connection::open(server.addresses.mqtt, &name).await?,
                Self::Other(_, broker) => Connection::sign_in(broker.address, &name, ["guest"; 2]).await?,
            });
        }
        Ok(open)
    }

    async fn run(&self, run: usize, size: usize, connections: usize) -> Result<Load> {
        let open = self.connections(connections).await?;
        load(open, |n| format!("mp/p/c/pub{n}/up/r{run}-"), size, FOR).await
    }
}

async fn compare(size: usize, connections: usize, shim: Option<&Shim>) -> Result<()> {
    let mut peers = vec![millpond(connections, shim).await?];
    if let Some(rabbitmq) = brokers::rabbitmq(shim)? {
        keep(&rabbitmq).await?;
        peers.push(Peer::Other("RabbitMQ", rabbitmq));
    }
    if shim.is_none() {
        // Neither syncs before it acknowledges.
        if let Some(nats) = brokers::nats()? {
            keep(&nats).await?;
            peers.push(Peer::Other("nats", nats));
        }
        peers.extend(brokers::mosquitto()?.map(|mosquitto| Peer::Other("mosquitto", mosquitto)));
    }
    let mut loads: Vec<Vec<Load>> = peers.iter().map(|_| Vec::new()).collect();
    for run in 0..RUNS {
        for (peer, loads) in peers.iter().zip(&mut loads) {
            loads.push(peer.run(run, size, connections).await?);
        }
    }
    println!("  {} KiB, {connections} connections", size / KIB);
    let median = |loads: &[Load], value: fn(&Load) -> f64| median(loads.iter().map(value).collect());
    let ours = |value| loads.first().map(|loads| median(loads, value)).unwrap_or_default();
    let ours = (ours(|load| load.rate), ours(|load| load.p99));
    for (peer, loads) in peers.iter().zip(&loads) {
        let rate = median(loads, |load| load.rate);
        let (p50, p99) = (median(loads, |load| load.p50) * 1e3, median(loads, |load| load.p99) * 1e3);
        let beside = match peer {
            Peer::Millpond { .. } => String::new(),
            Peer::Other(name, _) => {
                if *name == "RabbitMQ" && size == KIB {
                    let slow = if shim.is_some() { ", slow syncs" } else { "" };
                    let what = format!("1 KiB, {connections} connections{slow}, beside RabbitMQ");
                    aims::at_least(&what, ours.0 / rate, 2.0, "×");
                    aims::at_most(what + ": p99", ours.1 * 1e3 / p99, 1.0, "×");
                }
                let best = loads.iter().map(|load| load.rate).fold(0.0, f64::max);
                format!(" (best {best:.0})   Millpond does {:.2} of it", ours.0 / rate)
            }
        };
        println!("    {:<10} {rate:>9.0} acks/s   p50 {p50:>7.2} ms, p99 {p99:>7.2} ms{beside}", peer.name());
    }
    Ok(())
}

async fn millpond(publishers: usize, shim: Option<&Shim>) -> Result<Peer> {
    let directory = tempfile::tempdir()?;
    let (ledger, ended) = Ledger::open(directory.path())?;
    prepare(&ledger, Policy::default(), publishers, 0).await?;
    drop(ledger);
    let _ = ended.await;
    let server = Server::start_with(directory.path(), |command| {
        if let Some(shim) = shim {
            command.envs(shim.slow(SLOW_SYNC));
        }
    });
    Ok(Peer::Millpond { server: Box::new(server.await?), _directory: directory })
}

/// Has the broker keep what comes: a session of somebody who is away.
async fn keep(broker: &Broker) -> Result<()> {
    let mut sink = Connection::sign_in_for_long(broker.address, "sink", ["guest"; 2]).await?;
    sink.subscribe("mp/#").await?;
    // DISCONNECT.
    sink.write.write_all(&[0xe0, 0]).await?;
    ensure!(sink.receive().await.is_err(), "the broker did not end the connection");
    Ok(())
}
