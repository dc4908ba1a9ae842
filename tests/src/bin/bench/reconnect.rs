//! A fleet that loses its connections and comes back all at once.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use millpond_tests::overload::{Field, from, others};
use millpond_tests::wire::{Connection, Who};
use tokio::task::JoinSet;

use super::overload::field;
use super::percentile;

const MEMBERS: usize = 5_000;
/// How long a client waits that was sent away: brokers' clients have a second, and some jitter.
const AGAIN: Duration = Duration::from_secs(1);

pub async fn run() -> Result<()> {
    println!("{MEMBERS} members reconnect at once");
    // Addresses that they come from: all from behind one NAT, or a few from each of many.
    for addresses in [1, 250] {
        let (_dir, server, field) = field(4, MEMBERS).await?;
        drop(come(&field, addresses).await?);
        let begun = Instant::now();
        let coming = {
            let field = field.clone();
            tokio::spawn(async move { come(&field, addresses).await })
        };
        let mut beside = Vec::new();
        while !coming.is_finished() {
            let run = format!("r{}", beside.len());
            beside.extend(others(&field, &run, Duration::from_millis(200), 1).await?.uploads);
        }
        let (_connections, last, sent_away) = coming.await??;
        beside.sort_by(f64::total_cmp);
        println!(
            "  from {addresses:>3} addresses: the last has CONNACK after {:.2} s, {sent_away} attempts were sent away; others' \
             uploads p99 {:.1} ms; memory at its peak {:.0} MiB",
            last.duration_since(begun).as_secs_f64(),
            percentile(&beside, 0.99),
            server.memory()?.1
        );
    }
    Ok(())
}

/// Connects all; when the last was in, and how often one was closed and came again.
async fn come(field: &Arc<Field>, addresses: usize) -> Result<(Vec<Connection>, Instant, usize)> {
    let sent_away = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    for n in 0..MEMBERS {
        let (to, sent_away) = (field.mqtt, sent_away.clone());
        tasks.spawn(async move {
            let name = format!("lis{n}");
            let who = Who { pool: "p".into(), member: name.clone(), token: name };
            let source = format!("127.0.1.{}", n % addresses + 1);
            loop {
                let attempt = async { Connection::open_as(from(&source, to).await?, &who, "x").await };
                if let Ok(connection) = attempt.await {
                    return connection;
                }
                sent_away.fetch_add(1, Ordering::Relaxed);
                tokio::time::sleep(AGAIN + Duration::from_millis(n as u64 % 500)).await;
            }
        });
    }
    let mut connections = Vec::new();
    while let Some(connection) = tasks.join_next().await {
        connections.push(connection.context("a member")?);
    }
    Ok((connections, Instant::now(), sent_away.load(Ordering::Relaxed)))
}
