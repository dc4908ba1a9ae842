//! Memory: the idle server, and what a connection adds.

use anyhow::Result;
use millpond::ledger::Ledger;
use millpond::rounds::Policy;

use super::server::{Server, prepare};
use super::wire;

const CONNECTIONS: usize = 1_000;

pub async fn run() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (ledger, ended) = Ledger::open(dir.path())?;
    prepare(&ledger, Policy::default(), 0, CONNECTIONS).await?;
    drop(ledger);
    let _ = ended.await;
    let server = Server::start(dir.path()).await?;
    let (idle, _) = server.memory()?;
    println!("memory");
    println!("  idle server       {idle:>9.1} MiB (aim 40)");
    let mut open = Vec::new();
    for n in 0..CONNECTIONS {
        open.push(wire::Connection::open(server.addresses.mqtt, &format!("lis{n}")).await?);
    }
    let (signed_in, _) = server.memory()?;
    let each = |after: f64, before: f64| (after - before) * 1024.0 / CONNECTIONS as f64;
    println!("  a connection      {:>9.1} KiB (aim 48)", each(signed_in, idle));
    for connection in &mut open {
        connection.subscribe("mp/p/result").await?;
    }
    let (subscribed, _) = server.memory()?;
    println!(
        "  and its link to the router, once it subscribes to a pool-wide topic {:>7.1} KiB",
        each(subscribed, signed_in)
    );
    Ok(())
}
