//! `millpond round …`

use millpond_protocol::PoolName;
use reqwest::Method;

use super::client::{Client, Page};
use super::failure::Failure;
use super::output::{Out, bytes, dash, printable};
use crate::http::api::{RoundInfo, RoundStory, Rounds};
use crate::rounds::FailCause;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// List rounds, newest first.
    List {
        pool: PoolName,
        #[command(flatten)]
        page: Page,
    },
    /// Show a round with its attempts and its log.
    Show { pool: PoolName, round: u64 },
    /// Offer a failed round again, for three more attempts.
    Retry { pool: PoolName, round: u64 },
}

pub(super) async fn run(command: Command, client: &Client, out: &Out) -> Result<(), Failure> {
    match command {
        Command::List { pool, page } => {
            let rounds: Rounds = client.get(&format!("pools/{pool}/rounds"), &page.query()).await?;
            out.show(&rounds, show_rounds);
        }
        Command::Show { pool, round } => {
            let story: RoundStory = client.get(&format!("pools/{pool}/rounds/{round}"), &[]).await?;
            out.show(&story, show_story);
        }
        Command::Retry { pool, round } => {
            let path = format!("pools/{pool}/rounds/{round}/retry");
            let info: RoundInfo = client.change(Method::POST, &path, &[], None::<&()>).await?;
            out.show(&info, |out, info| {
                out.line(format!(
                    "round {round} is {} again, attempt {} comes next",
                    info.state,
                    info.attempt + 1
                ));
            });
        }
    }
    Ok(())
}

fn show_rounds(out: &Out, rounds: &Rounds) {
    let rows = rounds
        .rounds
        .iter()
        .map(|round| {
            [
                round.round.to_string(),
                round.batch.to_string(),
                state(round),
                round.attempt.to_string(),
                dash(round.holder.as_ref()),
                round.sealed.to_string(),
            ]
        })
        .collect();
    out.table(["ROUND", "BATCH", "STATE", "ATTEMPT", "HOLDER", "SEALED"], rows, "no rounds");
    out.more(rounds.cursor.as_deref());
}

fn state(round: &RoundInfo) -> String {
    match (round.state.as_str(), round.until, round.version, round.failed) {
        ("leased" | "pausing", Some(until), ..) => format!("{} until {until}", round.state),
        ("committed", _, Some(version), _) => format!("committed as v{version}"),
        ("failed", _, _, Some(cause)) => format!("failed: {}", fail_cause(cause)),
        ("sealed", ..) => "being packed".to_owned(),
        (state, ..) => state.to_owned(),
    }
}

fn fail_cause(cause: FailCause) -> &'static str {
    match cause {
        FailCause::Refused => "the processor said that no retry can help",
        FailCause::Attempts => "every attempt was spent",
        FailCause::Unclaimed => "no processor took it in time",
    }
}

fn show_story(out: &Out, story: &RoundStory) {
    let info = &story.info;
    out.line(format!("round {} (batch {}), sealed {}: {}", info.round, info.batch, info.sealed, state(info)));
    if let Some(params) = &story.params {
        out.line(format!("  params {}", printable(&params.to_string())));
    }
    if let Some(reference) = &story.reference {
        out.line(format!("  ref {}", printable(&reference.to_string())));
    }
    for attempt in &story.attempts {
        let end = match (&attempt.outcome, attempt.ended) {
            (Some(outcome), Some(at)) => format!("{outcome} {at}"),
            _ => format!("runs, last sign of life {}", dash(attempt.beat)),
        };
        out.line(format!(
            "  attempt {} by {}: leased {}, {end}",
            attempt.attempt, attempt.member, attempt.leased
        ));
        if let Some(progress) = &attempt.progress {
            out.line(format!("    progress {}", printable(&progress.to_string())));
        }
        if let Some(error) = &attempt.error {
            out.line(format!("    error: {}", printable(error)));
        }
        for warning in &attempt.warnings {
            out.line(format!("    warning: {}", printable(warning)));
        }
    }
    if !story.log.is_empty() {
        out.line(format!("  log ({}):", bytes(story.log_bytes)));
    }
    for entry in &story.log {
        for line in entry.text.lines() {
            out.line(format!("    {} #{} {}", entry.at, entry.attempt, printable(line)));
        }
    }
}
