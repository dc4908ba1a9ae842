//! The benchmarks: each prints its figure beside a reference measured in the same run.
//!
//!     cargo run --release -p millpond-tests --bin bench            all that take some four minutes together
//!     cargo run --release -p millpond-tests --bin bench -- ingest  one: ingest, flush, edge, seal, fanout, app, round, idle, tls,
//!                                                                 storage, retention, overload, reconnect, judged, router
//!     cargo run --release -p millpond-tests --bin bench -- peers   RabbitMQ, nats-server, mosquitto, SeaweedFS, nginx and Flower,
//!                                                                 as far as they are installed; syncs, fanout, app, objects,
//!                                                                 download and flower are parts of it
//!     cargo run --release -p millpond-tests --bin bench -- growth  how figures grow, as CSV
//!
//! The server is a child process, so that its memory can be told from the load's.

mod aims;
mod app;
mod brokers;
mod download;
mod edge;
mod fanout;
mod flower;
mod flush;
mod growth;
mod idle;
mod ingest;
mod judged;
mod overload;
mod peers;
mod reconnect;
mod retention;
mod round;
mod router;
mod seal;
mod server;
mod storage;
mod tls;

use std::path::Path;

use anyhow::{Result, bail};
use millpond_tests::wire;

fn main() -> Result<()> {
    // Thousands of connections: servers inherit it.
    millpond::descriptors::raise();
    let mut args = std::env::args().skip(1);
    let (what, more) = (args.next(), args.next());
    let ran = millpond::server::runtime()?.block_on(run(what.as_deref(), more));
    let closed = aims::close();
    ran.and(closed)
}

async fn run(what: Option<&str>, more: Option<String>) -> Result<()> {
    match (what, more) {
        (Some("serve"), Some(dir)) => server::serve(Path::new(&dir)).await,
        (None, _) => {
            ingest::run().await?;
            flush::run().await?;
            edge::run().await?;
            seal::run().await?;
            fanout::run().await?;
            app::run().await?;
            round::run().await?;
            idle::run().await?;
            tls::run().await?;
            storage::run().await?;
            retention::run().await
        }
        (Some("ingest"), None) => ingest::run().await,
        (Some("flush"), None) => flush::run().await,
        (Some("edge"), None) => edge::run().await,
        (Some("seal"), None) => seal::run().await,
        (Some("fanout"), None) => fanout::run().await,
        (Some("app"), None) => app::run().await,
        (Some("round"), None) => round::run().await,
        (Some("idle"), None) => idle::run().await,
        (Some("tls"), None) => tls::run().await,
        (Some("storage"), None) => storage::run().await,
        (Some("retention"), None) => retention::run().await,
        (Some("overload"), attack) => overload::run(attack.as_deref()).await,
        (Some("reconnect"), None) => reconnect::run().await,
        (Some("judged"), None) => judged::run().await,
        (Some("router"), None) => router::run().await,
        (Some("router"), Some(side)) => router::side(&side).await,
        (Some("peers"), None) => {
            peers::run().await?;
            fanout::run().await?;
            app::run().await?;
            storage::large().await?;
            storage::beside::run().await?;
            download::run().await?;
            round::beside_flower().await
        }
        (Some("syncs"), None) => peers::slow().await,
        (Some("objects"), None) => storage::beside::run().await,
        (Some("download"), None) => download::run().await,
        (Some("flower"), None) => round::beside_flower().await,
        (Some("growth"), rows) => growth::run(rows.as_deref()).await,
        (Some(other), _) => {
            bail!(
                "there is no benchmark {other}: ingest, flush, edge, seal, fanout, app, round, idle, tls, storage, retention, overload, reconnect, judged, router, syncs, objects, download, flower, peers, growth, or none for all but the last ten"
            )
        }
    }
}

/// The middle one.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    percentile(&values, 0.5)
}

/// The value below which `share` of the sorted values lie.
fn percentile(sorted: &[f64], share: f64) -> f64 {
    let at = ((sorted.len() as f64 - 1.0) * share).round() as usize;
    sorted.get(at).copied().unwrap_or(f64::NAN)
}
