//! A fleet that loses its connections and comes back all at once, and those beside it, who were there before. It fails where these
//! wait for longer than [`allowed`].

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use millpond_tests::overload::{Field, Watch, from, others, others_watched};
use millpond_tests::wire::{Connection, Who};
use tokio::task::JoinSet;

use super::median;
use super::overload::{Apart, KINDS, allowed, field, p99};

const MEMBERS: usize = 5_000;
/// How long a client waits that was sent away: brokers' clients have a second, and some jitter.
const AGAIN: Duration = Duration::from_secs(1);

/// Times that they do so, with others measured before each while all are connected.
const RUNS: usize = 5;
const FOR: Duration = Duration::from_secs(3);

pub async fn run() -> Result<()> {
    println!(
        "{MEMBERS} members reconnect at once, {RUNS} times, and others are measured before each and meanwhile; medians"
    );
    let mut harmed = Vec::new();
    // Addresses that they come from: all from behind one NAT, or a few from each of many.
    for addresses in [1, 250] {
        let (_dir, server, field) = field(4, MEMBERS).await?;
        let apart = Apart::start()?;
        let come_again = |lost, time| {
            let field = field.clone();
            apart.within(|| {
                tokio::spawn(async move {
                    drop(lost);
                    come(&field, time, addresses).await
                })
            })
        };
        let (mut connections, _, _) = come_again(Vec::new(), 0).await??;
        let (mut without, mut with, mut took, mut sent_away) =
            (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for run in 0..RUNS {
            without.push(others(&field, &format!("a{run}"), FOR, 20).await?);
            // They are there when it breaks.
            let watch = Watch::new(1);
            let (measured, watched, name) = (field.clone(), watch.clone(), format!("b{run}"));
            let beside = tokio::spawn(async move { others_watched(&measured, &name, &watched).await });
            if let Err(nobody) = watch.all_at_work().await {
                beside.await??;
                return Err(nobody);
            }
            watch.count();
            let begun = Instant::now();
            let (all, last, away) = come_again(connections, run + 1).await??;
            watch.end_at(last);
            with.push(beside.await??);
            connections = all;
            took.push(last.duration_since(begun).as_secs_f64());
            sent_away.push(away as f64);
        }
        println!(
            "  from {addresses:>3} addresses: the last has CONNACK after {:.2} s, {:.0} attempts were sent away; memory at its peak \
             {:.0} MiB",
            median(took),
            median(sent_away),
            server.memory()?.1
        );
        for (kind, of) in KINDS {
            let (without, with) = (p99(&without, of), p99(&with, of));
            let is_harmed = with > allowed(without);
            let mark = if is_harmed { "   over max(2 ×, 50 ms)" } else { "" };
            println!("    others' {kind:<9} p99 {without:>9.2} ms without, {with:>9.2} ms meanwhile{mark}");
            harmed.extend(is_harmed.then(|| format!("{kind}, from {addresses} addresses")));
        }
    }
    ensure!(harmed.is_empty(), "others were harmed: {}", harmed.join("; "));
    Ok(())
}

/// Connects all; when the last was in, and how often one was closed and came again. Each time they have other addresses: the
/// ports of the last one are in TIME-WAIT, and the kernel's search for others would be what is measured.
async fn come(
    field: &Arc<Field>,
    time: usize,
    addresses: usize,
) -> Result<(Vec<Connection>, Instant, usize)> {
    let sent_away = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    for n in 0..MEMBERS {
        let (to, sent_away) = (field.mqtt, sent_away.clone());
        tasks.spawn(async move {
            let name = format!("lis{n}");
            let who = Who { pool: "p".into(), member: name.clone(), token: name };
            let source = format!("127.0.{}.{}", 10 + time, n % addresses + 1);
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
