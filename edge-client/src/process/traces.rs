//! What an attempt leaves when it ends, or when its process dies: a directory, the note of a lease, and the server's belief.

use std::io;
use std::path::Path;
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

/// Removes what attempts left. Where the command of a processor that was killed still writes, the rest is for the next time.
pub(super) fn clear(directory: &Path) -> io::Result<()> {
    for item in std::fs::read_dir(directory)? {
        let item = item?;
        if item.file_name().to_string_lossy().starts_with(job::DIRECTORY) {
            gone(std::fs::remove_dir_all(item.path()))?;
        }
    }
    Ok(())
}

fn gone(removed: io::Result<()>) -> io::Result<()> {
    match removed {
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty) => {
            Ok(())
        }
        other => other,
    }
}
