//! What an attempt leaves when it ends, or when its process dies: a directory, the note of a lease, and the server's belief.

use std::fs::DirEntry;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use millpond_protocol::access::Op;
use millpond_protocol::message::{Lease, ask};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::log::Log;
use super::{AttemptError, Options, job};
use crate::session::Session;

/// Where a process notes its lease.
pub(super) const NOTE: &str = "lease";

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
        gone(remove_tree(&item.path())).map_err(|error| (item.path(), error))
    };
    match std::fs::read_dir(directory) {
        Ok(items) => items.filter_map(|item| remove(item).err()).collect(),
        Err(error) => vec![(directory.to_owned(), error)],
    }
}

/// Removes a directory, and what a command has made read-only in it.
fn remove_tree(path: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            open_to_owner(path);
            std::fs::remove_dir_all(path)
        }
        removed => removed,
    }
}

/// Makes the directories of a tree their owner's to change, as far as they are ours. Links are not followed.
fn open_to_owner(tree: &Path) {
    let mut directories = vec![tree.to_owned()];
    while let Some(path) = directories.pop() {
        // What cannot be opened stays, and whoever removes the tree learns it.
        let Ok(found) = std::fs::symlink_metadata(&path) else { continue };
        let mut mode = found.permissions();
        mode.set_mode(mode.mode() | 0o700);
        let _ = std::fs::set_permissions(&path, mode);
        let items = std::fs::read_dir(&path).into_iter().flatten().flatten();
        let is_directory = |item: &DirEntry| item.file_type().is_ok_and(|kind| kind.is_dir());
        directories.extend(items.filter(is_directory).map(|item| item.path()));
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
