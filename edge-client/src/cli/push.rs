//! `push FILE…`.

use std::collections::{BTreeMap, HashSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::Duration;

use millpond_protocol::{FileName, Label, Sha256, Timestamp, UploadId};
use serde_json::json;

use super::failure::{FAILED, Failure, USAGE};
use super::spool::{SendOrUsage, send};
use super::{Cli, say};
use crate::backoff::random;
use crate::clock::Stamp;
use crate::sender::{Report, SendError};
use crate::session::Cause;
use crate::spool::{About, Sending, Spool, Staged};

/// How often to look whether another process has sent our files.
const LOOK: Duration = Duration::from_millis(100);

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Files to send. They are copied into the spool first, and may change afterwards.
    #[arg(required = true)]
    files: Vec<PathBuf>,
    /// When the files belong: RFC 3339 or milliseconds since 1970, in the server's time. Without it, the moment of this command.
    #[arg(long)]
    event_time: Option<Timestamp>,
    /// The batch, in a pool that groups by label.
    #[arg(long)]
    label: Option<Label>,
    /// Upload id, of a single file. Without it, it is made of the file's name and bytes, `--event-time` and `--label`: the same file is sent once.
    #[arg(long, conflicts_with = "again")]
    id: Option<UploadId>,
    /// Send the file even if it was sent before: a new id each time.
    #[arg(long)]
    again: bool,
    /// Media type.
    #[arg(long)]
    content_type: Option<String>,
    /// JSON that is handed on in the manifest.
    #[arg(long)]
    meta: Option<String>,
    /// Return as soon as the files are in the spool; `spool flush`, or the next push, sends them.
    #[arg(long)]
    offline: bool,
    /// Return as soon as these files are sent, and leave the backlog.
    #[arg(long)]
    only: bool,
}

/// What became of one of our files.
enum Fate {
    Stored { batch: Option<u64>, late: bool },
    Refused(String),
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
    let mut spool = cli.spool.open()?;
    let staged = args.files.iter().map(|path| stage(&spool, args, path)).collect::<Result<Vec<_>, _>>()?;
    let ids: Vec<UploadId> = staged.iter().map(|file| file.document().about.upload.clone()).collect();
    let added = spool.add(staged)?;
    for entry in &added.dropped {
        let time = Timestamp::clamped(i64::try_from(entry.key).unwrap_or(i64::MAX));
        eprintln!("millpond-edge: the spool was full: dropped {} of {time}", entry.upload);
    }
    if args.offline {
        return told(cli, args, &ids, &BTreeMap::new());
    }
    let mut options = cli.spool.options();
    options.first = ids.iter().cloned().collect();
    options.only_first = args.only;
    let mut fates = BTreeMap::new();
    if let Some(_sending) = ours(&mut spool, &options.first).await? {
        match send(cli, &mut spool, &options, &mut |report| note(&mut fates, report)).await {
            Ok(_) => {}
            // Kept safely: that is what the spool is for.
            Err(SendOrUsage::Send(SendError::Offline(cause @ Cause::Lost(_)))) => {
                eprintln!("millpond-edge: {cause}: what is not sent waits in the spool");
            }
            Err(error) => return Err(error.into()),
        }
    }
    sent_by_others(&mut spool, &ids, &mut fates)?;
    told(cli, args, &ids, &fates)
}

fn stage(spool: &Spool, args: &Args, path: &Path) -> Result<Staged, Failure> {
    let failed = |what: String| Failure::new(FAILED, format!("{}: {what}", path.display()));
    // Before it is opened: opening a pipe would wait for its writer.
    if !std::fs::metadata(path).map_err(|error| failed(error.to_string()))?.is_file() {
        return Err(failed("is not a file".into()));
    }
    let file = File::open(path).map_err(|error| failed(error.to_string()))?;
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let name: FileName = name.parse().map_err(|error| failed(format!("{error}")))?;
    let captured = Stamp::now();
    Ok(spool.stage(file, |sha256| About {
        upload: args.id.clone().unwrap_or_else(|| id(args, &name, sha256)),
        name,
        event_time: args.event_time,
        label: args.label.clone(),
        content_type: args.content_type.clone(),
        meta: args.meta.clone(),
        captured,
    })?)
}

/// The id of a file that was given none: the same for the same file, so that it is sent once.
fn id(args: &Args, name: &FileName, sha256: Sha256) -> UploadId {
    let key = json!([sha256, name, args.event_time, args.label]);
    let mut digits = Sha256::of(key.to_string().as_bytes()).to_string();
    if args.again {
        digits = format!("{:016x}", random());
    }
    let readable: String =
        name.as_str().chars().filter(|c| c.is_ascii_alphanumeric() || ".-_".contains(*c)).collect();
    let readable: String = readable.trim_start_matches(['.', '-', '_']).chars().take(40).collect();
    let digits = &digits[..16];
    let id = if readable.is_empty() { digits.to_owned() } else { format!("{readable}-{digits}") };
    // Only such characters, a letter or digit first, and at most 57 of them.
    id.parse().expect("an id of ASCII letters, digits, dots, dashes and underscores")
}

/// Waits for the right to send; none if another process has sent these files meanwhile.
async fn ours(spool: &mut Spool, ids: &HashSet<UploadId>) -> Result<Option<Sending>, Failure> {
    loop {
        if let Some(sending) = spool.sending()? {
            return Ok(Some(sending));
        }
        if !spool.entries()?.any(|entry| ids.contains(&entry.upload)) {
            return Ok(None);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Files that another process sent have left the spool; it alone has seen their receipts.
fn sent_by_others(
    spool: &mut Spool,
    ids: &[UploadId],
    fates: &mut BTreeMap<UploadId, Fate>,
) -> Result<(), Failure> {
    let waiting: HashSet<UploadId> = spool.entries()?.map(|entry| entry.upload.clone()).collect();
    let mut refused: BTreeMap<UploadId, String> = BTreeMap::new();
    for (entry, why) in spool.refused()? {
        refused.insert(entry.upload, why.map_or_else(String::new, |why| why.to_string()));
    }
    for id in ids.iter().filter(|id| !waiting.contains(*id)) {
        fates.entry(id.clone()).or_insert_with(|| match refused.remove(id) {
            Some(why) => Fate::Refused(why),
            None => Fate::Stored { batch: None, late: false },
        });
    }
    Ok(())
}

fn note(fates: &mut BTreeMap<UploadId, Fate>, report: Report<'_>) {
    let (upload, fate) = match report {
        Report::Stored(entry, receipt) => {
            (&entry.upload, Fate::Stored { batch: receipt.batch, late: receipt.late })
        }
        Report::Refused(entry, refusal) => (&entry.upload, Fate::Refused(refusal.to_string())),
        Report::Left(entry, why) => {
            eprintln!("millpond-edge: {}: {why}: it waits in the spool", entry.upload);
            return;
        }
        Report::Damaged(entry, why) => (&entry.upload, Fate::Refused(format!("damaged in the spool: {why}"))),
    };
    fates.insert(upload.clone(), fate);
}

/// One line for each file, in the order in which they were named.
fn told(cli: &Cli, args: &Args, ids: &[UploadId], fates: &BTreeMap<UploadId, Fate>) -> Result<(), Failure> {
    let mut refused = 0;
    for (path, id) in args.files.iter().zip(ids) {
        let (state, batch, late, why) = match fates.get(id) {
            None => ("spooled", None, false, None),
            Some(Fate::Stored { batch, late }) => ("stored", *batch, *late, None),
            Some(Fate::Refused(why)) => {
                refused += 1;
                ("refused", None, false, Some(why))
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
    Ok(())
}
