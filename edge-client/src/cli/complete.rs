//! `complete`: nothing more comes.

use millpond_protocol::{Label, Timestamp};
use serde_json::json;

use super::failure::{FAILED, Failure, explained};
use super::progress::Progress;
use super::spool::{SendOrUsage, resting, send};
use super::{Cli, say};
use crate::clock::Stamp;
use crate::sender::{Report, SendError};
use crate::session::Cause;
use crate::spool::{Complete, Spool};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// The time up to which there is nothing more: RFC 3339, milliseconds since 1970, or `now`.
    #[arg(long, value_name = "TIME", default_value = "now", conflicts_with = "label")]
    through: Moment,
    /// The label of which there is nothing more, in a pool that groups by label.
    #[arg(long)]
    label: Option<Label>,
    /// Return as soon as the statement is in the spool.
    #[arg(long)]
    offline: bool,
}

/// A time, or that of the command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Moment {
    Now,
    At(Timestamp),
}

impl std::str::FromStr for Moment {
    type Err = <Timestamp as std::str::FromStr>::Err;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text == "now" { Ok(Self::Now) } else { text.parse().map(Self::At) }
    }
}

impl Moment {
    pub(super) fn complete(self) -> Complete {
        match self {
            Self::Now => Complete::Now(Stamp::now()),
            Self::At(time) => Complete::Through(time),
        }
    }
}

/// What became of a statement.
pub(super) enum Fate {
    Told,
    Waits,
    Refused(String),
}

pub(super) async fn run(cli: &Cli, args: &Args) -> Result<(), Failure> {
    let mut spool = cli.spool.open()?;
    let complete = args.label.clone().map_or_else(|| args.through.complete(), Complete::Label);
    spool.complete(complete.clone())?;
    let mut fate = None;
    let sending = if args.offline { None } else { spool.sending()? };
    if let Some(_sending) = sending {
        let progress = Progress::of(cli);
        let sent = send(cli, &mut spool, &cli.options(&progress)?, &mut |report| match report {
            Report::NotTold(statement, why) if statement.complete == complete => {
                fate = Some(Fate::Refused(explained(why)));
            }
            Report::Left(entry, why) => progress.say(&format!("millpond-edge: {}: {why}", entry.upload)),
            Report::Resting(why, pause) => progress.say(&resting(why, pause)),
            _ => {}
        })
        .await;
        match sent {
            Ok(_) => {}
            Err(SendOrUsage::Send(SendError::Offline(cause @ Cause::Lost(_)))) => {
                eprintln!("millpond-edge: {cause}: the statement waits in the spool");
            }
            Err(SendOrUsage::Send(error @ SendError::Resting { .. })) => {
                eprintln!("millpond-edge: {error}: the statement waits in the spool");
            }
            Err(error) => return Err(error.into()),
        }
    }
    told(cli, &spool, &complete, fate)
}

/// One line, and the exit code.
pub(super) fn told(cli: &Cli, spool: &Spool, complete: &Complete, fate: Option<Fate>) -> Result<(), Failure> {
    let waits = spool.statements()?.iter().any(|statement| statement.complete == *complete);
    let fate = fate.unwrap_or(if waits { Fate::Waits } else { Fate::Told });
    let (state, why) = match &fate {
        Fate::Told => ("told", None),
        Fate::Waits => ("spooled", None),
        Fate::Refused(why) => ("refused", Some(why)),
    };
    if cli.json {
        say(format_args!("{}", json!({ "complete": complete, "state": state, "error": why })))?;
    } else {
        say(format_args!(
            "{state}  {}{}",
            shown(complete),
            why.map_or_else(String::new, |why| format!("  {why}"))
        ))?;
    }
    match fate {
        Fate::Refused(why) => {
            Err(Failure::new(FAILED, format!("the server does not take the statement: {why}")))
        }
        Fate::Told | Fate::Waits => Ok(()),
    }
}

/// A statement for people.
pub(super) fn shown(complete: &Complete) -> String {
    match complete {
        Complete::Through(time) => format!("complete through {time}"),
        Complete::Now(stamp) => {
            format!("complete through {}, by the clock here", Timestamp::clamped(stamp.wall_ms))
        }
        Complete::Label(label) => format!("complete for {label}"),
    }
}
