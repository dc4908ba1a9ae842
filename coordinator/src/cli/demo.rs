//! `millpond demo`

use super::failure::{FAILED, Failure};
use super::output::Out;
use crate::{demo, server};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    options: demo::Options,
}

/// Exits with 0 only if every hash matched and every upload is in exactly one batch.
pub(super) fn run(args: &Args, out: &Out) -> Result<(), Failure> {
    let runtime = server::runtime()?;
    let report = runtime.block_on(demo::run(args.options));
    // Whatever still runs belongs to a server that has been stopped.
    runtime.shutdown_background();
    let report = report.map_err(|error| Failure::new(FAILED, format!("the demo failed: {error:#}")))?;
    out.show(&report, |out, report| out.line(report.table()));
    Ok(())
}

/// A client of the demo: writes what it has sent.
pub(super) fn client(args: demo::Client) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let summary = runtime.block_on(demo::client(args));
    runtime.shutdown_background();
    let summary = summary.map_err(|error| Failure::new(FAILED, format!("{error:#}")))?;
    println!("{}", serde_json::json!({ "stored": summary.stored, "bytes": summary.bytes }));
    Ok(())
}
