//! A spool sent by the edge client, beside the same files as raw publishes of one client.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use millpond::ledger::Ledger;
use millpond::rounds::Policy;
use millpond_edge::clock::Stamp;
use millpond_edge::sender::{self, Options};
use millpond_edge::session::{self, Config, Token};
use millpond_edge::spool::{About, Limits, Spool};
use rumqttc::{AsyncClient, Event, MqttOptions, Packet, QoS};

use super::server::{Server, prepare};
use super::{aims, median};

const FILES: usize = 10_000;
const SIZE: usize = 1_024;
const WINDOW: u16 = 20;
const RUNS: usize = 5;

pub async fn run() -> Result<()> {
    println!(
        "{FILES} files of {SIZE} B from one client, each until it is durable on the server; medians of {RUNS} in turns"
    );
    let dir = tempfile::tempdir()?;
    let (ledger, ended) = Ledger::open(dir.path())?;
    prepare(&ledger, Policy::default(), 2, 0).await?;
    drop(ledger);
    let _ = ended.await;
    let server = Server::start(dir.path()).await?;
    let (mut raw, mut spooled, mut flushed, mut ratios) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let mut bundles = 0;
    for run in 0..RUNS {
        let directory = tempfile::tempdir()?;
        let mut spool = Spool::open(directory.path(), Limits::default())?;
        let rate = |took: Duration| FILES as f64 / took.as_secs_f64();
        raw.push(rate(publish(server.addresses.mqtt, run).await?));
        spooled.push(rate(fill(&mut spool, run)?));
        let took;
        (took, bundles) = flush(&mut spool, server.addresses.mqtt).await?;
        flushed.push(rate(took));
        ratios.push(flushed[run] / raw[run]);
    }
    let ratio = median(ratios);
    println!("  raw publishes     {:>9.0} files/s   rumqttc, window {WINDOW}, acknowledged", median(raw));
    println!("  put into a spool  {:>9.0} files/s   synced", median(spooled));
    println!(
        "  spool flushed     {:>9.0} files/s   {bundles} bundles, receipted and out of the spool   {ratio:.2} of raw publishes (aim 1)",
        median(flushed)
    );
    aims::at_least("a spool flushed, beside raw publishes", ratio, 1.0, "×");
    Ok(())
}

fn content(n: usize) -> Vec<u8> {
    let mut content = vec![b'x'; SIZE];
    content[..8].copy_from_slice(&n.to_be_bytes());
    content
}

async fn publish(to: SocketAddr, run: usize) -> Result<Duration> {
    let mut options = MqttOptions::new("pub0", to.ip().to_string(), to.port());
    options.set_credentials("p/pub0", "pub0").set_inflight(WINDOW);
    let (client, mut events) = AsyncClient::new(options, 64);
    while !matches!(events.poll().await?, Event::Incoming(Packet::ConnAck(_))) {}
    let begin = Instant::now();
    let publishing = tokio::spawn(async move {
        for n in 0..FILES {
            client.publish(format!("mp/p/c/pub0/up/u{run}-{n}"), QoS::AtLeastOnce, false, content(n)).await?;
        }
        anyhow::Ok(client)
    });
    let mut acknowledged = 0;
    while acknowledged < FILES {
        acknowledged += usize::from(matches!(events.poll().await?, Event::Incoming(Packet::PubAck(_))));
    }
    let took = begin.elapsed();
    publishing.await?.context("publishing")?;
    Ok(took)
}

fn fill(spool: &mut Spool, run: usize) -> Result<Duration> {
    let begin = Instant::now();
    let mut staged = Vec::new();
    for n in 0..FILES {
        let (upload, name) = (format!("u{run}-{n}").parse()?, format!("u{n}").parse()?);
        let captured = Stamp::now();
        let about =
            About { upload, name, event_time: None, label: None, content_type: None, meta: None, captured };
        staged.push(spool.stage(content(n).as_slice(), |_| about)?);
        // As many as a process may have open without asking for more.
        if staged.len() == 500 {
            spool.add(std::mem::take(&mut staged))?;
        }
    }
    spool.add(staged)?;
    Ok(begin.elapsed())
}

async fn flush(spool: &mut Spool, to: SocketAddr) -> Result<(Duration, u64)> {
    let config =
        Config::new(to.ip().to_string(), to.port(), "p".parse()?, "pub1".parse()?, Token::new("pub1"));
    let (session, mut inbox) = session::open(config.topics(sender::TOPICS));
    session.connected(Duration::from_secs(30)).await?;
    let begin = Instant::now();
    let summary = sender::flush(spool, &session, &mut inbox, &Options::default(), &mut |_| {}).await?;
    let took = begin.elapsed();
    session.close().await;
    ensure!(summary.stored == FILES as u64, "{summary:?}");
    Ok((took, summary.bundles))
}
