//! How figures grow with uploads in a batch, with pools, and with rows in the ledger. Prints CSV, from which
//! `docs/growth.py` draws `docs/growth.svg`:
//!
//!     cargo run --release -p millpond-tests --bin bench -- growth > docs/growth.csv && python3 docs/growth.py
//!
//! The rows go up to a million; `growth 10000000` goes on to ten, for some minutes and 20 GB of disk.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use millpond::ledger::Ledger;
use millpond::rounds::Policy;
use millpond::rounds::policy::Grouping;
use millpond_protocol::{Role, Sha256};
use millpond_tests::Api;

use super::ingest::{Load, load, row};
use super::seal;
use super::server::Server;
use super::wire::Connection;

/// Where the rows end by themselves.
const ROWS: usize = 1_000_000;
/// Uploads of one batch of the many rows.
const BATCH: usize = 100_000;
const PUBLISHERS: usize = 50;
const SIZE: usize = 1_024;
const FOR: Duration = Duration::from_secs(3);

pub async fn run(rows: Option<&str>) -> Result<()> {
    let most = rows.map(str::parse).transpose()?.unwrap_or(ROWS);
    println!("what,count,figure,value");
    for count in [100, 1_000, 10_000, 100_000, 1_000_000] {
        eprintln!("a batch of {count}");
        let figures = seal::measure(count).await?;
        say("uploads in a batch", count, "seal to ready, ms", figures.seconds * 1e3);
        say("uploads in a batch", count, "peak of memory, MiB", figures.peak);
    }
    for count in [10, 100, 1_000, 10_000] {
        eprintln!("{count} pools");
        pools(count).await?;
    }
    for count in [10_000, 100_000, 1_000_000, 10_000_000].into_iter().filter(|count| *count <= most) {
        eprintln!("{count} rows");
        many_rows(count).await?;
    }
    Ok(())
}

fn say(what: &str, count: usize, figure: &str, value: f64) {
    println!("{what},{count},\"{figure}\",{value:.3}");
}

/// Pools with an open batch each, a few of which are published to.
async fn pools(count: usize) -> Result<()> {
    const WHAT: &str = "pools";
    let dir = tempfile::tempdir()?;
    let (ledger, ended) = Ledger::open(dir.path())?;
    for n in 0..count {
        let made = ledger.write(move |tx| {
            let (pool, _) = tx.apply_pool(&format!("p{n}").parse()?, &Policy::default())?;
            let token = Sha256::of(format!("p{n}").as_bytes());
            tx.add_member(pool, &"pub".parse()?, Role::Publisher, &token)?;
            let who = millpond::ledger::tokens::find_token(tx.sql(), &token, tx.now())?;
            Ok(who.map(|who| (pool, who)))
        });
        let Some((pool, who)) = made.await? else { anyhow::bail!("the member is not there") };
        let first = row(0, &[b'x'; SIZE])?;
        ledger.write(move |tx| tx.store_upload(pool, &who, first)).await?;
    }
    drop(ledger);
    let _ = ended.await;
    let server = started(dir.path(), WHAT, count).await?;
    let mut connections = Vec::new();
    let publishers = count.min(PUBLISHERS);
    for n in 0..publishers {
        let pool = format!("p{}", n * count / publishers);
        let who = [&format!("{pool}/pub"), pool.as_str()];
        connections.push(Connection::sign_in(server.addresses.mqtt, &pool, who).await?);
    }
    let topic = move |n: usize| format!("mp/p{}/c/pub/up/u-", n * count / publishers);
    let Load { rate, .. } = load(connections, topic, SIZE, FOR).await?;
    say(WHAT, count, "uploads acknowledged a second", rate);
    Ok(())
}

/// A ledger of many uploads in sealed batches.
async fn many_rows(count: usize) -> Result<()> {
    const WHAT: &str = "uploads in the ledger";
    let dir = tempfile::tempdir()?;
    let policy = Policy {
        grouping: Grouping::Count,
        count: BATCH as u64,
        parallel_rounds: 1_000,
        ..Policy::default()
    };
    seal::fill_with(dir.path(), count, 32, policy).await?;
    // The first start packs what the batches hold.
    let server = Server::start(dir.path()).await?;
    seal::packed_ahead(dir.path()).await?;
    drop(server);
    let server = started(dir.path(), WHAT, count).await?;
    let token = std::fs::read_to_string(dir.path().join("admin.token"))?;
    let api = Api::new(format!("http://{}", server.addresses.http), token.trim());
    let start = Instant::now();
    let page = api.get("/v1/pools/p/uploads?limit=1000").await;
    ensure!(page["uploads"].as_array().is_some_and(|page| page.len() == 1_000), "no page of a thousand");
    say(WHAT, count, "a page of history of 1000, ms", start.elapsed().as_secs_f64() * 1e3);
    let mut connections = Vec::new();
    for n in 0..PUBLISHERS {
        connections.push(Connection::open(server.addresses.mqtt, &format!("pub{n}")).await?);
    }
    let Load { rate, .. } = load(connections, |n| format!("mp/p/c/pub{n}/up/more-"), SIZE, FOR).await?;
    say(WHAT, count, "uploads acknowledged a second", rate);
    Ok(())
}

/// Starts a server, and says how long that took and what it holds then.
async fn started(dir: &Path, what: &str, count: usize) -> Result<Server> {
    let start = Instant::now();
    let server = Server::start(dir).await?;
    say(what, count, "start, ms", start.elapsed().as_secs_f64() * 1e3);
    say(what, count, "memory, MiB", server.memory()?.0);
    Ok(server)
}
