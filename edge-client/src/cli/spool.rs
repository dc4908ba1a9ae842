//! `spool list | flush | export`, and where the spool is.

use std::collections::HashSet;
use std::io::Read as _;
use std::num::NonZeroU64;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};
use millpond_protocol::Timestamp;
use serde_json::json;

use super::complete::shown;
use super::failure::{FAILED, Failure, RETRY, USAGE};
use super::progress::{Progress, Unit};
use super::{Cli, say};
use crate::sender::{self, Options, Report, SendError, Summary};
use crate::session;
use crate::spool::{Entry, Limits, Spool, SpoolError, WhenFull, directories};
use crate::transfer::{self, Throttle, Transfer, place};

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
    /// Bytes per second to send.
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
        directories(parent)
            .map_err(|error| Failure::new(FAILED, format!("{}: {error}", parent.display())))?;
        let when_full = match self.spool_full {
            Policy::Refuse => WhenFull::RefuseNew,
            Policy::DropOldest => WhenFull::DropOldest,
        };
        let limits = Limits { files: self.spool_files, bytes: self.spool_bytes, when_full };
        Ok(Spool::open(&path, limits)?)
    }

    /// How long to go without a connection.
    pub(super) fn patience(&self) -> Duration {
        Duration::from_secs(self.patience)
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

fn default() -> Option<PathBuf> {
    Some(super::home("XDG_STATE_HOME", ".local/state")?.join("spool"))
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List what waits, oldest first, and what the server refused.
    List,
    /// Send everything: today's files first, then the newest of the backlog.
    Flush,
    /// Copy what waits to a directory, for another way to the server: `files/ID` and `about/ID`.
    Export {
        /// The directory; made if it is not there.
        directory: PathBuf,
        /// Remove each file from the spool once its copy is synced.
        #[arg(long)]
        remove: bool,
    },
}

pub(super) async fn run(cli: &Cli, command: &Command) -> Result<(), Failure> {
    let mut spool = cli.spool.open()?;
    match command {
        Command::List => list(cli, &mut spool),
        Command::Flush => flush(cli, &mut spool).await,
        Command::Export { directory, remove } => export(&mut spool, directory, *remove),
    }
}

fn list(cli: &Cli, spool: &mut Spool) -> Result<(), Failure> {
    let time = |entry: &Entry| Timestamp::clamped(i64::try_from(entry.key).unwrap_or(i64::MAX));
    for entry in spool.entries()? {
        if cli.json {
            let line = json!({ "state": "waiting", "upload": entry.upload, "size": entry.size, "time": time(entry) });
            say(format_args!("{line}"))?;
        } else {
            say(format_args!("waiting  {}  {:>12}  {}", time(entry), entry.size, entry.upload))?;
        }
    }
    for (entry, why) in spool.refused()? {
        if cli.json {
            let (upload, size, at) = (&entry.upload, entry.size, time(&entry));
            let line =
                json!({ "state": "refused", "upload": upload, "size": size, "time": at, "error": why });
            say(format_args!("{line}"))?;
        } else {
            let why = why.map_or_else(String::new, |why| format!("  {why}"));
            say(format_args!("refused  {}  {:>12}  {}{why}", time(&entry), entry.size, entry.upload))?;
        }
    }
    for statement in spool.statements()? {
        if cli.json {
            say(format_args!("{}", json!({ "state": "waiting", "complete": statement.complete })))?;
        } else {
            say(format_args!("waiting  {}", shown(&statement.complete)))?;
        }
    }
    if !cli.json {
        let (files, bytes) = spool.held_now();
        say(format_args!("{files} files with {bytes} bytes wait"))?;
    }
    Ok(())
}

async fn flush(cli: &Cli, spool: &mut Spool) -> Result<(), Failure> {
    let _sending =
        spool.sending()?.ok_or_else(|| Failure::new(RETRY, "another process is sending from this spool"))?;
    let progress = Progress::of(cli);
    let options = cli.options(&progress)?;
    let sending = progress.step("sending", Unit::Files, spool.held_now().0);
    let summary = send(cli, spool, &options, &mut |report| match report {
        Report::Left(entry, why) => progress.say(&format!("millpond-edge: {}: {why}", entry.upload)),
        Report::NotTold(statement, why) => {
            progress.say(&format!("millpond-edge: {}: {why}", shown(&statement.complete)));
        }
        Report::Stored(..) | Report::Refused(..) | Report::Damaged(..) => sending.advance(),
        Report::Told(_) => {}
    })
    .await?;
    drop(sending);
    if cli.json {
        let Summary { stored, refused, damaged, left, bundles, bytes } = summary;
        let line = json!({ "stored": stored, "refused": refused, "damaged": damaged, "left": left, "bundles": bundles, "bytes": bytes });
        say(format_args!("{line}"))?;
    } else {
        say(format_args!("{} stored, {} refused, {} left", summary.stored, summary.refused, summary.left))?;
    }
    if summary.refused + summary.damaged > 0 {
        return Err(Failure::new(FAILED, "the server refused files, or they were damaged: see `spool list`"));
    }
    if summary.left > 0 {
        return Err(Failure::new(RETRY, "some files did not get through: they wait for the next time"));
    }
    Ok(())
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

fn export(spool: &mut Spool, directory: &Path, remove: bool) -> Result<(), Failure> {
    let _sending =
        spool.sending()?.ok_or_else(|| Failure::new(RETRY, "another process is sending from this spool"))?;
    let failed =
        |path: &Path, error: std::io::Error| Failure::new(FAILED, format!("{}: {error}", path.display()));
    let (files, about) = (directory.join("files"), directory.join("about"));
    for path in [&files, &about] {
        directories(path).map_err(|error| failed(path, error))?;
    }
    let entries: Vec<Entry> = spool.entries()?.cloned().collect();
    let mut done = HashSet::new();
    let mut gone = 0;
    for entry in &entries {
        // A push that is full may drop it at any time.
        let document = match spool.describe(entry) {
            Err(SpoolError::Gone(_)) => {
                gone += 1;
                continue;
            }
            document => document?,
        };
        let json = serde_json::to_vec_pretty(&document).unwrap_or_default();
        let from = match std::fs::File::open(spool.path(entry)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                gone += 1;
                continue;
            }
            from => from?,
        };
        copy(&mut from.take(entry.size), &files.join(entry.upload.as_str()))?;
        copy(&mut json.as_slice(), &about.join(entry.upload.as_str()))?;
        let found = crate::transfer::digest(&files.join(entry.upload.as_str()), entry.size, None)?.sha256;
        if found != document.sha256 {
            return Err(Failure::new(FAILED, format!("{} is damaged, or its copy", entry.upload)));
        }
        done.insert(entry);
        if remove {
            spool.remove(std::slice::from_ref(entry))?;
        }
    }
    let gone = if gone > 0 { format!(", {gone} had left the spool") } else { String::new() };
    say(format_args!("{} files exported to {}{gone}", done.len(), directory.display()))
}

/// Writes a synced file under a name that has either all of it or nothing.
fn copy(from: &mut impl std::io::Read, to: &Path) -> Result<(), Failure> {
    let name = to.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let partial = to.with_file_name(format!(".{name}.part"));
    let write = || {
        let mut file = std::fs::File::create(&partial)?;
        std::io::copy(from, &mut file)?;
        file.sync_all()
    };
    let mut write = write;
    if let Err(error) = write() {
        // It takes room that somebody may need.
        let _ = std::fs::remove_file(&partial);
        return Err(Failure::new(FAILED, format!("{}: {error}", partial.display())));
    }
    Ok(place(&partial, to)?)
}
