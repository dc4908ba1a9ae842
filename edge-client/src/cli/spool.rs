//! `spool list | flush | export | import | discard`, and where the spool is.

use std::collections::{HashMap, HashSet};
use std::num::NonZeroU64;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use millpond_protocol::{Refusal, Timestamp, UploadId};
use serde_json::json;

use super::complete::shown;
use super::export::export;
use super::failure::{FAILED, Failure, RETRY, USAGE, explained};
use super::follow::follow;
use super::import::import;
use super::progress::{Progress, Unit};
use super::{Cli, say};
use crate::clock::wall_ms;
use crate::sender::{self, Options, Report, SendError, Summary};
use crate::session;
use crate::spool::{DamagedNote, Entry, Limits, Place, Spool, SpoolError, WhenFull, directories};
use crate::transfer::{self, Throttle, Transfer};

#[derive(Debug, Args)]
#[command(next_help_heading = "Spool")]
pub(super) struct At {
    /// The spool's directory [default: $XDG_STATE_HOME or ~/.local/state, then millpond-edge/spool].
    #[arg(long = "spool", env = "MILLPOND_SPOOL", global = true)]
    path: Option<PathBuf>,
    /// Files that it may hold.
    #[arg(long, env = "MILLPOND_SPOOL_FILES", default_value_t = Limits::default().files, global = true)]
    spool_files: u64,
    /// Bytes that it may hold.
    #[arg(long, env = "MILLPOND_SPOOL_BYTES", default_value_t = Limits::default().bytes, global = true)]
    spool_bytes: u64,
    /// What happens when it is full.
    #[arg(long, env = "MILLPOND_SPOOL_FULL", value_enum, default_value = "refuse", global = true)]
    spool_full: Policy,
    /// Bytes per second of files, results and logs, sent and fetched together; what is larger than a second's worth goes and comes by URL.
    #[arg(long, env = "MILLPOND_RATE", global = true)]
    rate: Option<NonZeroU64>,
    /// Seconds to go without a connection before the rest is left for later.
    #[arg(long, default_value_t = 30, global = true, value_parser = super::seconds())]
    patience: u64,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Policy {
    /// New files are refused.
    Refuse,
    /// The oldest are dropped.
    DropOldest,
}

impl At {
    pub(super) fn open(&self) -> Result<Spool, Failure> {
        let path = match &self.path {
            Some(path) => path.clone(),
            None => default().ok_or_else(|| Failure::new(USAGE, "where is the spool? --spool DIR"))?,
        };
        let parent = transfer::parent(&path);
        directories(parent).map_err(|source| SpoolError::Io { path: parent.to_owned(), source })?;
        let when_full = match self.spool_full {
            Policy::Refuse => WhenFull::RefuseNew,
            Policy::DropOldest => WhenFull::DropOldest,
        };
        let limits = Limits { files: self.spool_files, bytes: self.spool_bytes, when_full };
        let spool = Spool::open(&path, limits)?;
        say_damaged(&spool, spool.damaged_notes());
        Ok(spool)
    }

    /// How long to go without a connection.
    pub(super) fn patience(&self) -> Duration {
        Duration::from_secs(self.patience)
    }

    /// Whether there is a limit of the rate.
    pub(super) fn has_rate(&self) -> bool {
        self.rate.is_some()
    }

    pub(super) fn options(&self, progress: &Progress, authorities: Vec<reqwest::Certificate>) -> Options {
        let throttle = self.rate.map_or_else(Throttle::unlimited, Throttle::new);
        let patience = self.patience();
        let transfer =
            transfer::Options { throttle: Arc::new(throttle), authorities, ..transfer::Options::default() };
        let (transfer, meters) = (Arc::new(Transfer::new(transfer)), progress.meters());
        Options { transfer, patience, meters, ..Options::default() }
    }
}

/// Tells of notes that are damaged.
pub(super) fn say_damaged(spool: &Spool, damaged: &[DamagedNote]) {
    for damaged in damaged {
        let path = spool.root().join(damaged.note);
        let then = if damaged.is_lost() {
            "`spool list` shows what is left of them; say `complete` again"
        } else {
            "they are dropped, and learnt again"
        };
        eprintln!("millpond-edge: {}: {} lines are damaged: {then}", path.display(), damaged.lines);
    }
}

fn default() -> Option<PathBuf> {
    Some(super::home("XDG_STATE_HOME", ".local/state")?.join("spool"))
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List what waits, oldest first, what the server refused, and what was damaged.
    List,
    /// Send everything: today's files first, then the newest of the backlog.
    Flush {
        /// Go on with what comes, and with what did not get through, until SIGTERM.
        #[arg(long)]
        follow: bool,
    },
    /// Copy what waits to a directory, for another way to the server: `files/ID` and `about/ID`.
    Export {
        /// The directory; made if it is not there.
        directory: PathBuf,
        /// Remove each file from the spool once its copy is synced.
        #[arg(long)]
        remove: bool,
    },
    /// Put into the spool what `export` wrote, with its ids and all that is known of it.
    Import {
        /// The directory.
        directory: PathBuf,
    },
    /// Remove files that nobody wants any more, unsent; the spool's `dropped.log` says so.
    Discard {
        /// Upload ids, wherever they lie in the spool unless an option says where.
        #[arg(required_unless_present_any = ["refused", "damaged"])]
        uploads: Vec<UploadId>,
        /// Of what the server refused: those named, or all.
        #[arg(long)]
        refused: bool,
        /// Of what was damaged: those named, or all.
        #[arg(long)]
        damaged: bool,
    },
}

pub(super) async fn run(cli: &Cli, command: &Command) -> Result<(), Failure> {
    let mut spool = cli.spool.open()?;
    match command {
        Command::List => list(cli, &mut spool),
        Command::Flush { follow: true } => follow(cli, &mut spool).await,
        Command::Flush { follow: false } => flush(cli, &mut spool).await,
        Command::Export { directory, remove } => export(cli, &mut spool, directory, *remove),
        Command::Import { directory } => import(cli, &mut spool, directory),
        Command::Discard { uploads, refused, damaged } => {
            discard(cli, &mut spool, uploads, (*refused, *damaged))
        }
    }
}

/// When it belongs in the spool's order.
fn time(entry: &Entry) -> Timestamp {
    Timestamp::clamped(i64::try_from(entry.key).unwrap_or(i64::MAX))
}

fn list(cli: &Cli, spool: &mut Spool) -> Result<(), Failure> {
    for entry in spool.entries()? {
        if cli.json {
            let line = json!({ "state": "waiting", "upload": entry.upload, "size": entry.size, "time": time(entry) });
            say(format_args!("{line}"))?;
        } else {
            say(format_args!("waiting  {}  {:>12}  {}", time(entry), entry.size, entry.upload))?;
        }
    }
    let (refused, damaged) = (spool.refused()?, spool.damaged()?);
    let aside = (refused.len(), damaged.len() + spool.damaged_statements().len());
    let refused = refused.into_iter().map(|(entry, why)| ("refused", entry, why));
    for (state, entry, why) in refused.chain(damaged.into_iter().map(|entry| ("damaged", entry, None))) {
        if cli.json {
            let (upload, size, at) = (&entry.upload, entry.size, time(&entry));
            let line = json!({ "state": state, "upload": upload, "size": size, "time": at, "error": why });
            say(format_args!("{line}"))?;
        } else {
            let why = why.map_or_else(String::new, |why| format!("  {}", explained(&why)));
            say(format_args!("{state}  {}  {:>12}  {}{why}", time(&entry), entry.size, entry.upload))?;
        }
    }
    for left in spool.damaged_statements() {
        if cli.json {
            say(format_args!("{}", json!({ "state": "damaged", "complete": left })))?;
        } else {
            say(format_args!("damaged  complete: {}", left.escape_debug()))?;
        }
    }
    for statement in spool.statements()? {
        if cli.json {
            say(format_args!("{}", json!({ "state": "waiting", "complete": statement.complete })))?;
        } else {
            say(format_args!("waiting  {}", shown(&statement.complete)))?;
        }
    }
    if let Some(rest) = spool.rest().filter(|rest| !rest.left(wall_ms()).is_zero()) {
        let until = Timestamp::clamped(rest.until_ms);
        if cli.json {
            let line = json!({ "state": "resting", "user": rest.who, "until": until, "error": rest.why });
            say(format_args!("{line}"))?;
        } else {
            say(format_args!("nothing is sent for {} before {until}: {}", rest.who, explained(&rest.why)))?;
        }
    }
    if !cli.json {
        let (files, bytes) = spool.held_now();
        let aside = match aside {
            (0, 0) => String::new(),
            (refused, damaged) => {
                format!(
                    "; {refused} refused and {damaged} damaged ones lie beside: `spool discard` removes them"
                )
            }
        };
        say(format_args!("{files} files with {bytes} bytes wait{aside}"))?;
    }
    Ok(())
}

fn discard(
    cli: &Cli,
    spool: &mut Spool,
    uploads: &[UploadId],
    (refused, damaged): (bool, bool),
) -> Result<(), Failure> {
    let anywhere = !refused && !damaged;
    let named = |entry: &Entry| uploads.is_empty() || uploads.contains(&entry.upload);
    // While somebody sends, what waits may be on its way.
    let sending = if anywhere { spool.sending()? } else { None };
    let mut found = Vec::new();
    if anywhere {
        found.push((
            Place::Waiting,
            "waiting",
            spool.entries()?.filter(|entry| named(entry)).cloned().collect(),
        ));
    }
    if anywhere || refused {
        let entries: Vec<Entry> =
            spool.refused()?.into_iter().map(|(entry, _)| entry).filter(named).collect();
        found.push((Place::Refused, "refused", entries));
    }
    if anywhere || damaged {
        let entries = spool.damaged()?.into_iter().filter(named).collect();
        found.push((Place::Damaged, "damaged", entries));
    }
    let is_there = |id: &&UploadId| found.iter().any(|(_, _, list)| list.iter().any(|e| e.upload == **id));
    if let Some(unknown) = uploads.iter().find(|id| !is_there(id)) {
        return Err(Failure::new(FAILED, format!("{unknown} is not there: nothing was removed")));
    }
    let of_waiting = found.iter().any(|(place, _, list)| *place == Place::Waiting && !list.is_empty());
    if of_waiting && sending.is_none() {
        return Err(Failure::new(RETRY, "another process is sending from this spool"));
    }
    let mut count = 0;
    if damaged && uploads.is_empty() {
        count += spool.damaged_statements().len();
        spool.discard_damaged_statements()?;
    }
    for (place, state, entries) in &found {
        spool.discard(*place, entries)?;
        count += entries.len();
        for entry in entries.iter().filter(|_| cli.json) {
            let line =
                json!({ "state": "discarded", "was": state, "upload": entry.upload, "size": entry.size });
            say(format_args!("{line}"))?;
        }
    }
    if cli.json { Ok(()) } else { say(format_args!("{count} files discarded")) }
}

async fn flush(cli: &Cli, spool: &mut Spool) -> Result<(), Failure> {
    let summary = once(cli, spool, &mut Left::default()).await?;
    done(cli, &summary)?;
    if summary.refused + summary.damaged > 0 {
        return Err(Failure::new(FAILED, "the server refused files, or they were damaged: see `spool list`"));
    }
    if summary.left > 0 {
        return Err(Failure::new(RETRY, "some files did not get through: they wait for the next time"));
    }
    Ok(())
}

/// Files that did not get through.
#[derive(Debug, Default)]
pub(super) struct Left {
    /// Left alone for now.
    pub(super) alone: HashSet<UploadId>,
    /// What was said of each.
    said: HashMap<UploadId, String>,
}

/// Sends what is there and is not to be left alone.
pub(super) async fn once(cli: &Cli, spool: &mut Spool, left: &mut Left) -> Result<Summary, Failure> {
    let _sending =
        spool.sending()?.ok_or_else(|| Failure::new(RETRY, "another process is sending from this spool"))?;
    let progress = Progress::of(cli);
    let mut options = cli.options(&progress)?;
    options.alone.clone_from(&left.alone);
    let sending = progress.step("sending", Unit::Files, spool.held_now().0);
    let summary = send(cli, spool, &options, &mut |report| match report {
        Report::Left(entry, why) => {
            let why = format!("millpond-edge: {}: {why}", entry.upload);
            left.alone.insert(entry.upload.clone());
            if left.said.insert(entry.upload.clone(), why.clone()).as_ref() != Some(&why) {
                progress.say(&why);
            }
        }
        Report::NotTold(statement, why) => {
            progress.say(&format!("millpond-edge: {}: {}", shown(&statement.complete), explained(why)));
        }
        Report::Resting(why, pause) => progress.say(&resting(why, pause)),
        Report::Stored(..) | Report::Refused(..) | Report::Damaged(..) => sending.advance(),
        Report::Told(_) => {}
    })
    .await?;
    drop(sending);
    Ok(summary)
}

/// Says what was done.
pub(super) fn done(cli: &Cli, summary: &Summary) -> Result<(), Failure> {
    let Summary { stored, refused, damaged, left, bundles, bytes } = summary;
    if cli.json {
        let line = json!({ "stored": stored, "refused": refused, "damaged": damaged, "left": left, "bundles": bundles, "bytes": bytes });
        return say(format_args!("{line}"));
    }
    say(format_args!("{stored} stored, {refused} refused, {left} left"))
}

/// What is said when nothing is sent for a while.
pub(super) fn resting(why: &Refusal, pause: Duration) -> String {
    format!("millpond-edge: {why}: nothing is sent for {} s, then one file", pause.as_secs())
}

/// Sends the spool over a session of its own.
pub(super) async fn send(
    cli: &Cli,
    spool: &mut Spool,
    options: &Options,
    report: &mut (dyn FnMut(Report<'_>) + Send),
) -> Result<Summary, SendOrUsage> {
    let config = cli.connect.config().map_err(SendOrUsage::Usage)?;
    let (session, mut inbox) = session::open(config.topics(sender::TOPICS));
    let sent = sender::flush(spool, &session, &mut inbox, options, report).await;
    session.close().await;
    sent.map_err(SendOrUsage::Send)
}

/// Sending failed, or could not even be tried.
#[derive(Debug)]
pub(super) enum SendOrUsage {
    Send(SendError),
    Usage(Failure),
}

impl From<SendOrUsage> for Failure {
    fn from(error: SendOrUsage) -> Self {
        match error {
            SendOrUsage::Send(error) => error.into(),
            SendOrUsage::Usage(failure) => failure,
        }
    }
}
