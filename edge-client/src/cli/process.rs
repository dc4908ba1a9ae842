//! `process`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;

use super::failure::{FAILED, Failure, RETRY};
use super::progress::Progress;
use super::{Cli, say};
use crate::process::{self, Options, ProcessError, Report};
use crate::session::{self, Cause};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// A line for the shell that makes one file, MILLPOND_OUTPUT, of those in MILLPOND_INPUT. Exit 0: done; 75: another attempt; else failed.
    #[arg(long, value_name = "CMD")]
    exec: String,
    /// Where inputs and outputs are while a command runs; nothing else may be there.
    #[arg(long, default_value = "work")]
    dir: PathBuf,
    /// Bytes of a round's files that may be there.
    #[arg(long, default_value_t = 10 << 30)]
    disk_max: u64,
    /// Besides taking what is on offer: seal the oldest open batch every so often, such as 15m or 1h.
    #[arg(long, value_name = "TIME", value_parser = duration)]
    trigger_every: Option<Duration>,
    /// End after one round.
    #[arg(long)]
    once: bool,
    /// Media type of results.
    #[arg(long)]
    content_type: Option<String>,
}

/// A length of time such as 30s or 1h 30m; a day has 24 hours.
fn duration(text: &str) -> Result<Duration, String> {
    let wrong = |_| format!("{text:?} is no time: write 30s, 15m, 1h or 1d");
    let span: jiff::Span = text.parse().map_err(wrong)?;
    let signed = span.to_duration(jiff::SpanRelativeTo::days_are_24_hours()).map_err(wrong)?;
    let all = Duration::try_from(signed).map_err(wrong)?;
    if (1..=366 * 86_400).contains(&all.as_secs()) {
        return Ok(all);
    }
    Err(format!("{text:?} is not between a second and a year"))
}

pub(super) async fn run(cli: &Cli, args: &Args) -> Result<(), Failure> {
    let options = Options {
        exec: args.exec.clone(),
        directory: args.dir.clone(),
        disk_max: args.disk_max,
        trigger_every: args.trigger_every,
        once: args.once,
        content_type: args.content_type.clone(),
    };
    let transfer = Arc::clone(&cli.options(&Progress::Silent)?.transfer);
    let (session, mut inbox) = session::open(cli.connect.config()?.topics(process::TOPICS));
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
        ProcessError::Directory { ref source, .. } => match source.kind() {
            std::io::ErrorKind::WouldBlock | std::io::ErrorKind::StorageFull => {
                Failure::new(RETRY, error.to_string())
            }
            _ => Failure::new(FAILED, error.to_string()),
        },
    })
}

fn told(cli: &Cli, report: &Report<'_>) {
    let (round, what, why) = match report {
        Report::Leased(lease) => (lease.round, "leased", None),
        Report::Done { round } => (*round, "done", None),
        Report::Ended { round, why } => (*round, "ended", Some(why.to_string())),
    };
    let line = if cli.json {
        json!({ "round": round, "state": what, "reason": why }).to_string()
    } else {
        format!("round {round} {what}{}", why.map_or_else(String::new, |why| format!(": {why}")))
    };
    // Who does not read it any more does not stop the processor.
    let _ = say(format_args!("{line}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_numbers_with_a_unit() {
        assert_eq!(duration("15m"), Ok(Duration::from_secs(900)));
        for wrong in ["", "15", "m", "0s", "-1s", "99999999999999999999d", "1ü"] {
            assert!(duration(wrong).is_err(), "{wrong}");
        }
    }
}
