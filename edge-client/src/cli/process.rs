//! `process`.

use std::path::PathBuf;
use std::sync::Arc;

use millpond_protocol::Span;
use serde_json::json;

use super::connect::usage;
use super::failure::{FAILED, Failure, RETRY};
use super::progress::Progress;
use super::{Cli, offline, say};
use crate::process::{self, Options, ProcessError, Report, Trigger};
use crate::session::{self, Cause};
use crate::transfer::is_full;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A line for the shell that makes one file, MILLPOND_OUTPUT, of those in MILLPOND_INPUT. Exit 0: done; 75: another attempt;
    /// else failed.
    #[arg(long, value_name = "CMD")]
    exec: String,
    /// Where inputs and outputs are while a command runs; nothing else may be there.
    #[arg(long, default_value = "work")]
    dir: PathBuf,
    /// Bytes of a round's files and of its manifest that may be there.
    #[arg(long, default_value_t = 10 << 30)]
    disk_max: u64,
    /// What sets it to work. `every 15m`: the clock, the oldest open batch is sealed every so often, and what is on offer is taken
    /// too. `on-offer`: rounds that others, or the pool's policy, have sealed. `never`: nothing, what is on offer now is taken, and
    /// then it ends.
    #[arg(long, num_args = 1..=2, value_name = "every TIME|on-offer|never", default_value = "on-offer")]
    trigger: Vec<String>,
    /// End after one round.
    #[arg(long)]
    once: bool,
    /// Media type of results.
    #[arg(long)]
    content_type: Option<String>,
    /// At SIGTERM, when a command has just done its work: how long the result may take to get to the server.
    #[arg(long, value_name = "TIME", default_value = "60s")]
    grace: Span,
}

pub(super) async fn run(cli: &Cli, args: &Args) -> Result<(), Failure> {
    let options = Options {
        exec: args.exec.clone(),
        directory: args.dir.clone(),
        disk_max: args.disk_max,
        trigger: args.trigger.join(" ").parse().map_err(usage)?,
        patience: cli.spool.patience(),
        once: args.once,
        content_type: args.content_type.clone(),
        grace: args.grace.0,
    };
    let transfer = Arc::clone(&cli.options(&Progress::Silent)?.transfer);
    let (session, mut inbox) = session::open(cli.connect.config()?.topics(process::TOPICS));
    if options.trigger == Trigger::Never {
        // It does not wait for work, and so not for a network.
        session.connected(cli.spool.patience()).await?;
    }
    let mut report = |report: Report<'_>| told(cli, &report);
    let stop = Box::pin(super::asked_to_end());
    let ended = process::process(&session, &mut inbox, &transfer, &options, &mut report, stop).await;
    session.close().await;
    ended.map_err(|error| match error {
        ProcessError::Session(error) => error.into(),
        ProcessError::Offline(Cause::Refused(_)) | ProcessError::Ended { .. } => {
            Failure::new(FAILED, error.to_string())
        }
        ProcessError::Offline(_) => Failure::new(RETRY, error.to_string()),
        ProcessError::Directory { ref source, .. } => {
            let is_temporary = source.kind() == std::io::ErrorKind::WouldBlock || is_full(source);
            Failure::new(if is_temporary { RETRY } else { FAILED }, error.to_string())
        }
    })
}

fn told(cli: &Cli, report: &Report<'_>) {
    let (round, what, why) = match report {
        Report::Leased(lease) => (lease.round, "leased", None),
        Report::Done { round } => (*round, "done", None),
        Report::Ended { round, why } => (*round, "ended", Some(why.to_string())),
        Report::Offline(cause) => {
            eprintln!("{}", offline(cause));
            return;
        }
        Report::Trouble { path, why } => {
            eprintln!("millpond-edge: {}: {why}", path.display());
            return;
        }
    };
    let line = if cli.json {
        json!({ "round": round, "state": what, "reason": why }).to_string()
    } else {
        format!("round {round} {what}{}", why.map_or_else(String::new, |why| format!(": {why}")))
    };
    // Who does not read it any more does not stop the processor.
    let _ = say(format_args!("{line}"));
}
