//! What an attempt leaves when it ends, or when its process dies: a directory, the note of a lease, and the server's belief.

use std::fs::DirEntry;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use millpond_protocol::access::Op;
use millpond_protocol::message::{Lease, ask};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::log::Log;
use super::{AttemptError, Options, job};
use crate::session::Session;
use crate::tree;

/// Where a process notes its lease.
const NOTE: &str = "lease";

/// A lease as a process notes it, for the one after it.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Note {
    pub(super) round: u64,
    pub(super) attempt: u32,
}

/// Notes a lease for the process after this one.
pub(super) fn note(directory: &Path, lease: &Lease) -> io::Result<()> {
    let note = Note { round: lease.round, attempt: lease.attempt };
    let (path, json) = (directory.join(NOTE), serde_json::to_vec(&note).unwrap_or_default());
    crate::spool::replace(&path, &directory.join("scratch"), &json)
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))
}

/// Gives a round back, and forgets it when the server has it. If that does not arrive, the lease runs out, or the next process does it.
pub(super) async fn give_back(
    options: &Options,
    session: &Session,
    (lease, log): (&Lease, &Log),
    why: &AttemptError,
    within: Duration,
) -> io::Result<()> {
    if !matches!(why, AttemptError::Lost(_)) {
        let (round, attempt) = (lease.round, lease.attempt);
        let (error, retryable, log) = (why.to_string(), why.is_retryable(), log.tail().await);
        let fail = ask::Fail { round, attempt, error, retryable, log };
        if session.ask::<Value>(Op::Fail, &fail, within).await.is_err() {
            return Ok(());
        }
    }
    forget(&options.directory)
}

/// The lease that a process before this one has noted and not given back.
pub(super) fn noted(directory: &Path) -> Option<Note> {
    serde_json::from_slice(&std::fs::read(directory.join(NOTE)).ok()?).ok()
}

/// Removes the note of a lease.
pub(super) fn forget(directory: &Path) -> io::Result<()> {
    gone(std::fs::remove_file(directory.join(NOTE)))
}

/// Removes what attempts left, and answers what could not be removed. Where the command of a processor that was killed still writes,
/// the rest is for the next time.
pub(super) fn clear(directory: &Path) -> Vec<(PathBuf, io::Error)> {
    let remove = |item: io::Result<DirEntry>| {
        let item = item.map_err(|error| (directory.to_owned(), error))?;
        if !item.file_name().to_string_lossy().starts_with(job::DIRECTORY) {
            return Ok(());
        }
        gone(tree::remove(&item.path())).map_err(|error| (item.path(), error))
    };
    match std::fs::read_dir(directory) {
        Ok(items) => items.filter_map(|item| remove(item).err()).collect(),
        Err(error) => vec![(directory.to_owned(), error)],
    }
}

fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) => {
            Ok(())
        }
        other => other,
    }
}
