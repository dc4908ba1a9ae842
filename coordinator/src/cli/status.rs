//! `millpond status`

use millpond_protocol::PoolName;

use super::client::Client;
use super::failure::{Failure, RETRY};
use super::output::Out;
use super::pool::show_pools;
use crate::http::api::Status;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// This pool only.
    pool: Option<PoolName>,
}

/// Exits with 75 while the server is not ready.
pub(super) async fn run(args: &Args, client: &Client, out: &Out) -> Result<(), Failure> {
    let query: Vec<(&str, String)> = args.pool.iter().map(|pool| ("pool", pool.to_string())).collect();
    let status: Status = client.get("status", &query).await?;
    out.show(&status, |out, status| {
        let ready = if status.ready { "ready" } else { "NOT READY" };
        out.line(format!("millpond {}, up since {}: {ready}", status.version, status.started));
        for problem in &status.problems {
            out.line(format!("  ! {problem}"));
        }
        for warning in &status.warnings {
            out.line(format!("  ~ {warning}"));
        }
        out.line(format!("  MQTT {}, storage {}\n", status.mqtt, status.storage));
        show_pools(out, &status.pools);
    });
    if status.ready { Ok(()) } else { Err(Failure::new(RETRY, "the server is not ready")) }
}
