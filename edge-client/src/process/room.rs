//! What a full disk does to a processor: it waits for room before it takes a round, and fails none for want of it.

use std::io::{self, Read as _};
use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

use super::traces::clear;
use super::{AttemptError, ProcessError, Processor, Report, Trigger};
use crate::backoff::{Backoff, random};
use crate::transfer;

/// Where it is seen whether there is room.
const PROBE: &str = "room";
/// Bytes without which no round is taken: what notes and empty directories need, and a small round.
const LEAST: u64 = 64 << 10;
/// Bytes left on a disk that count as none when a command has failed: what it could not write in one piece was not written.
const NONE: u64 = 1 << 20;

/// How long to wait before the next look. It costs nobody else anything, so it is soon.
pub(super) fn backoff() -> Backoff {
    Backoff::new(Duration::from_secs(2), Duration::from_secs(60))
}

impl Processor<'_> {
    /// Whether there is room for anything at all. A round that is taken without it has lost an attempt.
    pub(super) fn has_room(&mut self) -> Result<bool, ProcessError> {
        let directory = &self.options.directory;
        // What an attempt that died has left may be all that is in the way.
        let found = probe(directory, LEAST).or_else(|_| {
            self.clear();
            probe(directory, LEAST)
        });
        let Err(error) = found else {
            self.room = backoff();
            return Ok(true);
        };
        if self.options.trigger == Trigger::Never {
            // It does not wait for work, and so not for room.
            return Err(ProcessError::Directory { path: directory.clone(), source: error });
        }
        (self.report)(Report::Trouble { path: directory, why: &error });
        self.rest = Instant::now() + self.room.next(random());
        Ok(false)
    }

    /// Removes what attempts left. What stays is said, and in nobody's way: no two attempts have the same directory.
    pub(super) fn clear(&mut self) {
        for (path, why) in clear(&self.options.directory) {
            (self.report)(Report::Trouble { path: &path, why: &why });
        }
    }

    /// A note that could not be changed is said.
    pub(super) fn unless_noted(&mut self, noted: io::Result<()>) {
        if let Err(why) = noted {
            (self.report)(Report::Trouble { path: &self.options.directory, why: &why });
        }
    }
}

fn probe(directory: &Path, bytes: u64) -> io::Result<()> {
    let path = directory.join(PROBE);
    let written = crate::spool::open_private(&path)
        .and_then(|mut file| io::copy(&mut io::repeat(0).take(bytes), &mut file));
    // What is left of it would be in the way of who needs the room.
    let removed = std::fs::remove_file(&path);
    written.map(drop).and(removed)
}

/// A command that fails on a full disk says nothing about its round: another machine, or this one later, may have the room.
pub(super) fn unless_full(directory: &Path, ended: AttemptError) -> AttemptError {
    match ended {
        AttemptError::Command(why) if is_full(directory) => {
            AttemptError::Room(format!("{why}, and the disk is full"))
        }
        ended => ended,
    }
}

fn is_full(directory: &Path) -> bool {
    // Some file systems do not tell, and none tells of this user's quota.
    rustix::fs::statvfs(directory)
        .is_ok_and(|disk| disk.f_blocks > 0 && disk.f_bavail.saturating_mul(disk.f_frsize) < NONE)
        || probe(directory, NONE).is_err_and(|error| transfer::is_full(&error))
}
