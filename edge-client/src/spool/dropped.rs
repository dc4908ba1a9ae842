//! `dropped.log`: what went unsent. It says so of what is gone and of nothing else: what is about to go is noted, and where a
//! process died before it logged, whoever comes next looks which of it is gone.

use std::io::{self, Seek as _, SeekFrom, Write as _};
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
        self.settle_dropped();
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
        if self.log(going.into_iter().filter(|dropped| self.is_gone(dropped))).is_ok() {
            let _ = disk::remove(&note);
        }
        gone
    }

    /// Under the lock: logs what a process that died was about to let go, as far as it is gone and not logged.
    pub(super) fn settle_dropped(&self) {
        let note = self.root.join("dropping");
        let Ok(going) = std::fs::read(&note) else { return };
        let going = seal::read(&going, |text| serde_json::from_str::<Dropped>(text).ok()).whole;
        let log = std::fs::read(self.root.join("dropped.log")).unwrap_or_default();
        let logged: Vec<Dropped> =
            seal::lines(&log).filter_map(|line| serde_json::from_slice(line).ok()).collect();
        let is_silent = |dropped: &Dropped| self.is_gone(dropped) && !logged.contains(dropped);
        if self.log(going.into_iter().filter(is_silent)).is_ok() {
            let _ = disk::remove(&note);
        }
    }

    fn is_gone(&self, dropped: &Dropped) -> bool {
        let path = self.root.join(dropped.from.name()).join(dropped.entry().to_string());
        std::fs::symlink_metadata(path).is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
    }

    fn log(&self, dropped: impl Iterator<Item = Dropped>) -> io::Result<()> {
        let lines: String = dropped.map(|dropped| format!("{}\n", json!(dropped))).collect();
        append(&self.root.join("dropped.log"), lines.as_bytes())
    }
}

/// Adds lines to a file that is begun anew when it is long: all of them, or none where the disk has no room.
pub(super) fn append(path: &Path, lines: &[u8]) -> io::Result<()> {
    if lines.is_empty() {
        return Ok(());
    }
    let mut file = disk::open(path)?;
    if file.metadata()?.len() > LOG_MAX {
        file.set_len(0)?;
    }
    let end = file.seek(SeekFrom::End(0))?;
    file.write_all(lines).inspect_err(|_| drop(file.set_len(end)))
}
