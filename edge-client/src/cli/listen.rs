//! `listen`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::failure::{FAILED, Failure, RETRY};
use super::progress::Progress;
use super::{Cli, offline, say};
use crate::listen::{self, ListenError, Options, Report, Shelf};
use crate::session::{self, Cause, Topic};
use crate::transfer::is_full;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Where results are kept: `current` is the newest.
    #[arg(long, default_value = "results")]
    dir: PathBuf,
    /// A line for the shell that runs for each result; MILLPOND_FILE names it, exit 0 says that it is applied.
    #[arg(long, value_name = "CMD")]
    exec: Option<String>,
    /// Seconds that the command may take.
    #[arg(long, default_value_t = 3_600, value_parser = super::seconds())]
    exec_timeout: u64,
    /// Versions that stay.
    #[arg(long, default_value_t = 3)]
    keep: usize,
    /// End when the newest result is there and applied.
    #[arg(long)]
    once: bool,
}

pub(super) async fn run(cli: &Cli, args: &Args) -> Result<(), Failure> {
    let directory = |error: std::io::Error| {
        let is_temporary = error.kind() == std::io::ErrorKind::WouldBlock || is_full(&error);
        Failure::new(if is_temporary { RETRY } else { FAILED }, format!("{}: {error}", args.dir.display()))
    };
    let mut shelf = Shelf::open(&args.dir).map_err(directory)?;
    let progress = Progress::of(cli);
    let options = Options {
        keep: args.keep,
        exec: args.exec.clone(),
        exec_timeout: Duration::from_secs(args.exec_timeout),
        once: args.once,
        patience: cli.spool.patience(),
        meters: progress.meters(),
    };
    let transfer = Arc::clone(&cli.options(&progress)?.transfer);
    // What comes as a message comes as fast as the line is.
    let topics = if cli.spool.has_rate() { vec![Topic::Result] } else { listen::TOPICS.to_vec() };
    let (session, mut inbox) = session::open(cli.connect.config()?.topics(topics));
    let mut report = |report: Report<'_>| told(cli, &progress, &report);
    let listening = listen::listen(&mut shelf, &session, &mut inbox, &transfer, &options, &mut report);
    let ended = tokio::select! {
        ended = listening => ended,
        () = super::asked_to_end() => Ok(()),
    };
    session.close().await;
    ended.map_err(|error| match &error {
        ListenError::Offline(Cause::Refused(_)) | ListenError::Failed { .. } => {
            Failure::new(FAILED, error.to_string())
        }
        ListenError::Offline(_) | ListenError::InVain { .. } => Failure::new(RETRY, error.to_string()),
        ListenError::Directory { source, .. } if is_full(source) => Failure::new(RETRY, error.to_string()),
        ListenError::Directory { .. } => Failure::new(FAILED, error.to_string()),
    })
}

fn told(cli: &Cli, progress: &Progress, report: &Report<'_>) {
    let (version, what, why) = match report {
        Report::Shown(state) => (state.version, "shown", None),
        Report::Applied(state) => (state.version, "applied", None),
        Report::Failed(state, why) => (state.version, "failed", Some(why)),
        Report::NotFetched(pointer, why) => (pointer.version, "not fetched", Some(why)),
        Report::Offline(cause) => return progress.say(&offline(cause)),
        Report::Trouble { path, why } => {
            return progress.say(&format!("millpond-edge: {}: {why}", path.display()));
        }
    };
    let line = if cli.json {
        json!({ "version": version, "state": what, "reason": why }).to_string()
    } else {
        format!("version {version} {what}{}", why.map_or_else(String::new, |why| format!(": {why}")))
    };
    // Who does not read it any more does not stop the listener.
    let _ = say(format_args!("{line}"));
}
