//! `push FILE…`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use millpond_protocol::access::Op;
use millpond_protocol::message::Outcome;
use millpond_protocol::message::answer::UploadInfo;
use millpond_protocol::{Label, Sha256, Timestamp, UploadId, limits};
use serde_json::json;

use super::complete::{self, Moment};
use super::copy::{self, Taken};
use super::failure::{FAILED, Failure, RETRY, USAGE, explained};
use super::progress::{Progress, Unit};
use super::spool::{SendOrUsage, resting, send};
use super::{Cli, say};
use crate::sender::{Report, SendError};
use crate::session::{self, Cause, SessionError};
use crate::spool::{Complete, Entry, Sending, Spool};

/// How often to look whether another process has sent our files.
const LOOK: Duration = Duration::from_millis(100);
/// How long the server may take to say what became of one that is gone, at the most and at the least.
const ASK: Duration = Duration::from_secs(30);
const LEAST: Duration = Duration::from_secs(1);
/// How long a push that waited for its turn goes without a network, at the least, unless it has less patience.
const TURN: Duration = Duration::from_secs(15);
/// Questions on their way at once.
const ASKS: usize = 16;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Files to send. They are copied into the spool first, and may change afterwards.
    #[arg(required = true)]
    pub(super) files: Vec<PathBuf>,
    /// When the files belong: RFC 3339 or milliseconds since 1970, in the server's time. Without it, the moment of this command.
    #[arg(long)]
    pub(super) event_time: Option<Timestamp>,
    /// The batch, in a pool that groups by label.
    #[arg(long)]
    pub(super) label: Option<Label>,
    /// Upload id, of a single file. Without it, it is made of the file's name and bytes, `--event-time` and `--label`: the same
    /// file is sent once.
    #[arg(long, conflicts_with = "again")]
    pub(super) id: Option<UploadId>,
    /// Send the file even if it was sent before: a new id each time.
    #[arg(long)]
    pub(super) again: bool,
    /// Media type.
    #[arg(long)]
    pub(super) content_type: Option<String>,
    /// JSON that is handed on in the manifest.
    #[arg(long)]
    pub(super) meta: Option<String>,
    /// Nothing more comes up to this time (or `now`): the server is told once these files, and all others up to then, are sent.
    #[arg(long, value_name = "TIME")]
    complete_through: Option<Moment>,
    /// Nothing more comes for `--label`.
    #[arg(long, requires = "label", conflicts_with = "complete_through")]
    complete_label: bool,
    /// Return as soon as the files are in the spool; `spool flush`, or the next push, sends them.
    #[arg(long)]
    offline: bool,
    /// Return as soon as these files are sent, and leave the backlog.
    #[arg(long)]
    only: bool,
}

/// What became of one of our files.
enum Fate {
    Stored {
        batch: Option<u64>,
        late: bool,
    },
    Refused(String),
    /// It could not be sent, though there was a network: it waits in the spool.
    Left(String),
    /// Waits in the spool.
    Spooled,
    /// It has left the spool, and nobody says what for: another process dropped or exported it.
    Unknown,
}

pub(super) async fn run(cli: &Cli, args: &Args) -> Result<(), Failure> {
    if args.id.is_some() && args.files.len() > 1 {
        return Err(Failure::new(USAGE, "--id names one file"));
    }
    if let Some(meta) = &args.meta
        && serde_json::from_str::<serde_json::Value>(meta).is_err()
    {
        return Err(Failure::new(USAGE, "--meta is not JSON"));
    }
    if args.meta.as_ref().is_some_and(|meta| meta.len() > limits::META_MAX) {
        return Err(Failure::new(USAGE, format!("--meta is longer than {} bytes", limits::META_MAX)));
    }
    let mut spool = cli.spool.open()?;
    let progress = Progress::of(cli);
    let spooling = progress.step("spooling", Unit::Files, args.files.len() as u64);
    let Taken { ids, digests, ours, dropped } = copy::all(&mut spool, args, &spooling)?;
    drop(spooling);
    say_dropped(&dropped);
    let complete = args.complete_through.map(Moment::complete);
    let complete =
        complete.or_else(|| args.label.clone().filter(|_| args.complete_label).map(Complete::Label));
    if let Some(complete) = &complete {
        spool.complete(complete.clone())?;
    }
    let said = |spool: &Spool, fate| match &complete {
        Some(complete) => complete::told(cli, spool, complete, fate),
        None => Ok(()),
    };
    if args.offline {
        let files = told(cli, args, &ids, &BTreeMap::new());
        return said(&spool, None).and(files);
    }
    let mut options = cli.options(&progress)?;
    options.first = ids.iter().cloned().collect();
    options.only_first = args.only;
    let (mut fates, mut fate, mut rests) = (BTreeMap::new(), None, None);
    let begin = Instant::now();
    if let Some(_sending) = turn(&spool, ours).await? {
        // Whoever sent before has waited already, if there is no network: who wait in line do not each begin anew. Some time each
        // has, for the one before it may just as well have worked.
        let patience = options.patience;
        options.patience = patience.saturating_sub(begin.elapsed()).max(patience.min(TURN));
        let total = if args.only { ids.len() as u64 } else { spool.held_now().0 };
        let sending = progress.step("sending", Unit::Files, total);
        let sent = send(cli, &mut spool, &options, &mut |report| match report {
            Report::Told(_) => {}
            Report::NotTold(statement, why) if Some(&statement.complete) == complete.as_ref() => {
                fate = Some(complete::Fate::Refused(explained(why)));
            }
            Report::NotTold(..) => {}
            Report::Left(entry, why) => {
                progress.say(&format!("millpond-edge: {}: {why}: it waits in the spool", entry.upload));
                fates.insert(entry.upload.clone(), Fate::Left(why.to_string()));
            }
            Report::Resting(why, pause) => progress.say(&resting(why, pause)),
            report => {
                sending.advance();
                note(&mut fates, report);
            }
        })
        .await;
        drop(sending);
        match sent {
            Ok(_) => {}
            // Kept safely: that is what the spool is for.
            Err(SendOrUsage::Send(
                SendError::Offline(cause @ Cause::Lost(_))
                | SendError::Session(SessionError::Offline(cause @ Cause::Lost(_))),
            )) => {
                eprintln!("millpond-edge: {cause}: what is not sent waits in the spool");
            }
            Err(SendOrUsage::Send(error @ SendError::Resting { .. })) => rests = Some(error.to_string()),
            Err(error) => return Err(error.into()),
        }
    }
    refused_by_others(&mut spool, &ids, &mut fates)?;
    if let Some(why) = rests {
        for fate in fates.values_mut().filter(|fate| matches!(fate, Fate::Spooled)) {
            *fate = Fate::Left(why.clone());
        }
    }
    let unknown = ids.iter().zip(digests).filter(|(id, _)| !fates.contains_key(*id));
    let unknown: Vec<_> = unknown.map(|(id, sha256)| (id.clone(), sha256)).collect();
    fates.extend(asked(cli, unknown, cli.spool.patience()).await?);
    let files = told(cli, args, &ids, &fates);
    said(&spool, fate).and(files)
}

/// Names what left the spool to make room.
pub(super) fn say_dropped(dropped: &[Entry]) {
    for entry in dropped {
        let time = Timestamp::clamped(i64::try_from(entry.key).unwrap_or(i64::MAX));
        eprintln!("millpond-edge: the spool was full: dropped {} of {time}", entry.upload);
    }
}

/// Waits for the right to send; none if another process has sent these files meanwhile. The spool's lock is left to that one.
async fn turn(spool: &Spool, mut ours: Vec<Entry>) -> Result<Option<Sending>, Failure> {
    loop {
        if let Some(sending) = spool.sending()? {
            return Ok(Some(sending));
        }
        while ours.last().is_some_and(|entry| !spool.holds(entry)) {
            ours.pop();
        }
        if ours.is_empty() {
            return Ok(None);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Files that wait, and those that another process put into `refused/`.
fn refused_by_others(
    spool: &mut Spool,
    ids: &[UploadId],
    fates: &mut BTreeMap<UploadId, Fate>,
) -> Result<(), Failure> {
    let mut there: BTreeMap<UploadId, Fate> = BTreeMap::new();
    for (entry, why) in spool.refused()? {
        there.insert(entry.upload, Fate::Refused(why.as_ref().map_or_else(String::new, explained)));
    }
    there.extend(spool.entries()?.map(|entry| (entry.upload.clone(), Fate::Spooled)));
    for id in ids {
        if let Some(fate) = there.remove(id) {
            fates.entry(id.clone()).or_insert(fate);
        }
    }
    Ok(())
}

/// What the server says of files that are gone: another process has seen their receipts, or they left in another way.
async fn asked(
    cli: &Cli,
    files: Vec<(UploadId, Sha256)>,
    patience: Duration,
) -> Result<Vec<(UploadId, Fate)>, Failure> {
    let within = patience.clamp(LEAST, ASK);
    if files.is_empty() {
        return Ok(Vec::new());
    }
    // Nothing is subscribed to: there is nothing to read, but who holds no inbox has no connection.
    let (session, _inbox) = session::open(cli.connect.config()?);
    // One wait for all of them, where there is no network.
    if session.connected(within).await.is_err() {
        session.close().await;
        return Ok(files.into_iter().map(|(id, _)| (id, Fate::Unknown)).collect());
    }
    let asks = files.into_iter().map(|(id, sha256)| {
        let session = &session;
        async move {
            let answer = session.ask::<UploadInfo>(Op::Status, &json!({ "upload": id }), within).await;
            let fate = match answer {
                Ok(info) if info.outcome == Outcome::Stored && info.sha256 == sha256 => {
                    Fate::Stored { batch: info.batch, late: info.late }
                }
                _ => Fate::Unknown,
            };
            (id, fate)
        }
    });
    let fates = futures_util::stream::iter(asks).buffer_unordered(ASKS).collect().await;
    session.close().await;
    Ok(fates)
}

fn note(fates: &mut BTreeMap<UploadId, Fate>, report: Report<'_>) {
    let (upload, fate) = match report {
        Report::Stored(entry, receipt) => {
            (&entry.upload, Fate::Stored { batch: receipt.batch, late: receipt.late })
        }
        Report::Refused(entry, refusal) => (&entry.upload, Fate::Refused(explained(refusal))),
        Report::Left(..) | Report::Resting(..) | Report::Told(_) | Report::NotTold(..) => return,
        Report::Damaged(entry, why) => (&entry.upload, Fate::Refused(format!("damaged in the spool: {why}"))),
    };
    fates.insert(upload.clone(), fate);
}

/// One line for each file, in the order in which they were named.
fn told(cli: &Cli, args: &Args, ids: &[UploadId], fates: &BTreeMap<UploadId, Fate>) -> Result<(), Failure> {
    let (mut refused, mut left, mut unknown) = (0, 0, 0);
    for (path, id) in args.files.iter().zip(ids) {
        let (state, batch, late, why) = match fates.get(id) {
            None | Some(Fate::Spooled) => ("spooled", None, false, None),
            Some(Fate::Stored { batch, late }) => ("stored", *batch, *late, None),
            Some(Fate::Refused(why)) => {
                refused += 1;
                ("refused", None, false, Some(why))
            }
            Some(Fate::Left(why)) => {
                left += 1;
                ("spooled", None, false, Some(why))
            }
            Some(Fate::Unknown) => {
                unknown += 1;
                ("unknown", None, false, None)
            }
        };
        if cli.json {
            let line = json!({ "file": path, "upload": id, "state": state, "batch": batch, "late": late, "error": why });
            say(format_args!("{line}"))?;
        } else {
            let batch = batch.map_or_else(String::new, |batch| format!("  batch {batch}"));
            let late = if late { "  late" } else { "" };
            let why = why.map_or_else(String::new, |why| format!("  {why}"));
            say(format_args!("{state}  {id}  {}{batch}{late}{why}", path.display()))?;
        }
    }
    if refused > 0 {
        return Err(Failure::new(
            FAILED,
            format!("{refused} files were refused; they lie in the spool's refused/"),
        ));
    }
    if left > 0 {
        return Err(Failure::new(RETRY, format!("{left} files did not get through: they wait in the spool")));
    }
    if unknown > 0 {
        return Err(Failure::new(
            RETRY,
            format!("{unknown} files left the spool without a receipt that was seen here: push them again"),
        ));
    }
    Ok(())
}
