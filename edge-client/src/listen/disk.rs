//! What a disk does to a listener that is full, or from which something cannot be removed: nothing that lasts.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use millpond_protocol::message::Pointer;
use tokio::time::Instant;

use super::{ListenError, Listener, Report};
use crate::transfer::is_full;

/// When to write again what the disk had no room for.
const SAVE: Duration = Duration::from_secs(10);

impl Listener<'_> {
    /// Whether an attempt to show it came so far that only the state is missing. `&mut`: what hears of progress is not shared
    /// between threads.
    pub(super) async fn is_placed(&mut self, pointer: &Pointer, partial: &Path) -> bool {
        let Some(path) = self.shelf.placed(pointer).filter(|_| !partial.exists()) else { return false };
        let size = pointer.size;
        if std::fs::metadata(&path).map_or(true, |file| file.len() != size) {
            return false;
        }
        let digested = tokio::task::spawn_blocking(move || crate::transfer::digest(&path, size, None)).await;
        digested.is_ok_and(|digests| digests.is_ok_and(|d| d.sha256 == pointer.sha256))
    }

    /// That the disk is full neither ends the listener nor makes the command run again: it is written later.
    pub(super) fn unless_full(&mut self, written: io::Result<()>) -> Result<(), ListenError> {
        match written {
            Err(error) if is_full(&error) => {
                self.save_later();
                Ok(())
            }
            written => at(written, self.shelf.own()),
        }
    }

    fn save_later(&mut self) {
        self.save.get_or_insert(Instant::now() + SAVE);
    }

    /// Removes old versions. One that stays is said, and in nobody's way.
    pub(super) fn prune(&mut self) {
        for (path, why) in self.shelf.prune(self.options.keep) {
            if is_full(&why) {
                self.save_later();
            } else {
                (self.report)(Report::Trouble { path: &path, why: &why });
            }
        }
    }

    pub(super) fn save_again(&mut self) -> Result<(), ListenError> {
        self.save = None;
        let Some(state) = self.shelf.state().cloned() else { return Ok(()) };
        self.prune();
        let noted = self.shelf.note(state.stage, state.told);
        self.unless_full(noted)
    }
}

pub(super) fn at<T>(result: io::Result<T>, path: impl Into<PathBuf>) -> Result<T, ListenError> {
    result.map_err(|source| ListenError::Directory { path: path.into(), source })
}
