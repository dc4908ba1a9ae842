//! Memory: the idle server, and what a connection adds.

use std::net::Ipv4Addr;

use anyhow::{Context, Result};
use millpond::ledger::Ledger;
use millpond::rounds::Policy;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::server::{Server, prepare};
use super::{aims, wire};

const CONNECTIONS: usize = 1_000;

pub async fn run() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let (ledger, ended) = Ledger::open(dir.path())?;
    prepare(&ledger, Policy::default(), 0, CONNECTIONS).await?;
    drop(ledger);
    let _ = ended.await;
    let server = Server::start(dir.path()).await?;
    let (idle, _) = server.memory()?;
    println!(
        "memory (the reference of a connection: {} bare tokio tasks with a socket and 1 KiB each)",
        CONNECTIONS
    );
    println!("  idle server       {idle:>9.1} MiB (aim 40)");
    aims::at_most("an idle server", idle, 40.0, "MiB");
    let mut open = Vec::new();
    for n in 0..CONNECTIONS {
        open.push(wire::Connection::open(server.addresses.mqtt, &format!("lis{n}")).await?);
    }
    let (signed_in, _) = server.memory()?;
    let each = |after: f64, before: f64| (after - before) * 1024.0 / CONNECTIONS as f64;
    let bare = bare_sockets().await?;
    println!("  a bare socket     {bare:>9.1} KiB");
    let connection = each(signed_in, idle);
    println!(
        "  a connection      {connection:>9.1} KiB (aim 48)   {:.1} of a bare socket",
        connection / bare
    );
    aims::at_most("an idle connection", connection, 48.0, "KiB");
    for connection in &mut open {
        connection.subscribe("mp/p/result").await?;
    }
    let (subscribed, _) = server.memory()?;
    println!(
        "  and its subscription, once it subscribes to a pool-wide topic {:>7.1} KiB",
        each(subscribed, signed_in)
    );
    Ok(())
}

/// The reference: what as many bare tasks take, each with a socket and a buffer of 1 KiB that was used.
async fn bare_sockets() -> Result<f64> {
    let resident = || -> Result<f64> {
        let status = std::fs::read_to_string("/proc/self/status")?;
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).context("no VmRSS")?;
        Ok(line.split_whitespace().nth(1).context("no number")?.parse()?)
    };
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let before = resident()?;
    let mut clients = Vec::new();
    for _ in 0..CONNECTIONS {
        let mut client = TcpStream::connect(listener.local_addr()?).await?;
        let (mut socket, _) = listener.accept().await?;
        tokio::spawn(async move {
            let mut buffer = vec![0; 1_024];
            while socket.read(&mut buffer).await.is_ok_and(|read| read > 0) {}
        });
        client.write_all(&[1; 64]).await?;
        clients.push(client);
    }
    let each = (resident()? - before) / CONNECTIONS as f64;
    drop(clients);
    Ok(each)
}
