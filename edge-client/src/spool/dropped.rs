//! `dropped.log`: what went unsent. It says so of what is gone and of nothing else: what is about to go is noted, and where a
//! process died before it logged, whoever comes next looks which of it is gone.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use millpond_protocol::UploadId;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::leave::Place;
use super::store::Spool;
use super::{Entry, SpoolError, disk, seal};
use crate::clock::wall_ms;

/// Bytes of a log, after which it is begun anew.
const LOG_MAX: u64 = 1 << 20;

/// A line of the log.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
struct Dropped {
    at_ms: i64,
    from: Place,
    upload: UploadId,
    time_ms: u64,
    size: u64,
}

impl Dropped {
    fn entry(&self) -> Entry {
        Entry { key: self.time_ms, size: self.size, upload: self.upload.clone() }
    }

    fn is_gone(&self, root: &Path) -> bool {
        let path = root.join(self.from.name()).join(self.entry().to_string());
        std::fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    }
}

impl Spool {
    /// Under the lock: entries leave unsent, as `go` does it, and those that are gone then are logged.
    ///
    /// # Errors
    /// Those of `go`. That something cannot be logged must not keep room from being made.
    pub(super) fn dropping<T>(
        &self,
        from: Place,
        entries: &[Entry],
        go: impl FnOnce() -> Result<T, SpoolError>,
    ) -> Result<T, SpoolError> {
        if entries.is_empty() {
            return go();
        }
        settle(&self.root);
        let at_ms = wall_ms();
        let dropped = |entry: &Entry| Dropped {
            at_ms,
            from,
            upload: entry.upload.clone(),
            time_ms: entry.key,
            size: entry.size,
        };
        let going: Vec<Dropped> = entries.iter().map(dropped).collect();
        let note = self.root.join("dropping");
        let lines: String = going.iter().map(|dropped| seal::line(&json!(dropped).to_string())).collect();
        let _ = disk::replace(&note, &self.scratch(), lines.as_bytes());
        let gone = go();
        if log(&self.root, going.iter().filter(|dropped| dropped.is_gone(&self.root))).is_ok() {
            let _ = disk::remove(&note);
        }
        gone
    }
}

/// Under the lock, before anything leaves or comes: logs what a process that died was about to let go, as far as it is gone and not
/// logged. Later nobody could tell it from what was sent.
pub(super) fn settle(root: &Path) {
    let note = root.join("dropping");
    let Ok(going) = std::fs::read(&note) else { return };
    let going = seal::read(&going, |text| serde_json::from_str::<Dropped>(text).ok()).whole;
    let logged = std::fs::read(root.join("dropped.log")).unwrap_or_default();
    let logged: HashSet<Dropped> =
        seal::lines(&logged).filter_map(|line| serde_json::from_slice(line).ok()).collect();
    let is_silent = |dropped: &&Dropped| dropped.is_gone(root) && !logged.contains(dropped);
    if log(root, going.iter().filter(is_silent)).is_ok() {
        let _ = disk::remove(&note);
    }
}

fn log<'a>(root: &Path, dropped: impl Iterator<Item = &'a Dropped>) -> io::Result<()> {
    let lines: String = dropped.map(|dropped| format!("{}\n", json!(dropped))).collect();
    if lines.is_empty() { Ok(()) } else { append(&root.join("dropped.log"), lines.as_bytes()).map(drop) }
}

/// Adds lines to a file that is begun anew when it is long: all of them, or none where the disk has no room. Not synced.
pub(super) fn append(path: &Path, lines: &[u8]) -> io::Result<File> {
    let mut file = disk::open(path)?;
    if file.metadata()?.len() > LOG_MAX {
        file.set_len(0)?;
    }
    let end = file.seek(SeekFrom::End(0))?;
    let mut last = *b"\n";
    if let Some(at) = end.checked_sub(1) {
        file.read_exact_at(&mut last, at)?;
    }
    // Behind the half of a line that a power cut has left, they are lines of their own.
    let ended: &[u8] = if last == *b"\n" { b"" } else { b"\n" };
    file.write_all(&[ended, lines].concat()).inspect_err(|_| drop(file.set_len(end)))?;
    Ok(file)
}
