//! How entries leave the spool.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use millpond_failpoint::{Point, reach};
use serde::{Deserialize, Serialize};

use super::disk::{self, at};
use super::store::Spool;
use super::{Entry, SpoolError, dropped, together};
use crate::transfer::sync_directory;

/// Removes entries on any thread, beside whatever else is done with the spool. [`Spool::removed`] has to hear of it.
#[derive(Debug, Clone)]
pub(crate) struct Remover(PathBuf);

/// What a remover did.
#[derive(Debug)]
pub(crate) struct Removal {
    /// The change counter before and after.
    changes: (u64, u64),
    /// What the disk does not let go, and why.
    pub(crate) stays: Vec<Staying>,
}

/// An entry that could not be removed, and why.
pub(crate) type Staying = (Entry, SpoolError);

/// Removes each of them from a directory, as far as that goes.
///
/// # Errors
/// What the system says of all of them.
pub(super) fn unlink_each(directory: &Path, entries: &[Entry]) -> Result<Vec<Staying>, SpoolError> {
    let stays = Mutex::new(Vec::new());
    together::each(entries, |entry| {
        let path = directory.join(entry.to_string());
        reach(Point::SpoolRemoving);
        match disk::remove(&path) {
            Err(error) if error.kind() != io::ErrorKind::ReadOnlyFilesystem => {
                let staying = (entry.clone(), SpoolError::io(&path)(error));
                stays.lock().unwrap_or_else(PoisonError::into_inner).push(staying);
                Ok(())
            }
            removed => at(&path, removed),
        }
    })?;
    Ok(stays.into_inner().unwrap_or_else(PoisonError::into_inner))
}

impl Remover {
    /// Entries leave, as far as the disk lets them go. `sync`: with all that left before, they are gone for good.
    pub(crate) fn remove(&self, entries: &[Entry], sync: bool) -> Result<Removal, SpoolError> {
        let (root, ready) = (&self.0, self.0.join(Place::Waiting.name()));
        // A lock of its own: the spool's value waits for it like everybody else.
        let lock = at(root, disk::open(&root.join("lock")))?;
        at(root, lock.lock())?;
        dropped::settle(root);
        let before = at(root, disk::changes(&lock))?;
        let after = before.wrapping_add(1);
        at(root, disk::set_changes(&lock, after))?;
        let stays = unlink_each(&ready, entries)?;
        drop(lock);
        if sync {
            at(&ready, sync_directory(&ready))?;
        }
        Ok(Removal { changes: (before, after), stays })
    }
}

/// Where in the spool an entry lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// It waits to be sent.
    #[serde(rename = "ready")]
    Waiting,
    /// The server refused it for good.
    Refused,
    /// Its checksum did not match.
    Damaged,
}

impl Place {
    /// The directory.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Waiting => "ready",
            Self::Refused => "refused",
            Self::Damaged => "damaged",
        }
    }
}

impl Spool {
    /// Entries leave: the server has receipted them.
    ///
    /// # Errors
    /// What the system says. Some may have left then.
    pub fn remove(&mut self, entries: &[Entry]) -> Result<(), SpoolError> {
        self.changed(|spool| {
            let stays = unlink_each(&spool.path_of_waiting(), entries)?;
            spool.left(entries, stays)?;
            spool.sync_ready()
        })
    }

    /// Under the lock: these have left, unless one of them stays.
    fn left(&mut self, entries: &[Entry], mut stays: Vec<Staying>) -> Result<(), SpoolError> {
        if let Some((_, why)) = stays.pop() {
            return Err(why);
        }
        entries.iter().for_each(|entry| self.forget(entry));
        Ok(())
    }

    /// Removes its entries, wherever it is sent to.
    pub(crate) fn remover(&self) -> Remover {
        Remover(self.root.clone())
    }

    /// What a remover did; unless others changed the directory too, it need not be read anew.
    pub(crate) fn removed<'a>(&mut self, entries: impl Iterator<Item = &'a Entry>, removal: &Removal) {
        let stays = |entry: &Entry| removal.stays.iter().any(|(other, _)| other == entry);
        entries.filter(|entry| !stays(entry)).for_each(|entry| self.forget(entry));
        let (before, after) = removal.changes;
        if self.known == Some(before) {
            self.known = Some(after);
        }
    }

    /// From now on, what was removed is gone for good.
    pub(crate) fn sync_removed(&self) -> Result<(), SpoolError> {
        let ready = self.root.join("ready");
        at(&ready, sync_directory(&ready))
    }

    /// Entries leave because nobody wants them any more; `dropped.log` says so. For those that wait, hold [`Spool::sending`]: what is
    /// on its way would arrive all the same.
    ///
    /// # Errors
    /// What the system says. Some may have left then.
    pub fn discard(&mut self, from: Place, entries: &[Entry]) -> Result<(), SpoolError> {
        self.changed(|spool| {
            let stays = spool.dropping(from, entries, || match from {
                Place::Waiting => unlink_each(&spool.path_of_waiting(), entries),
                Place::Refused | Place::Damaged => {
                    spool.take_from(from, entries)?;
                    let path = spool.root.join(from.name());
                    at(&path, sync_directory(&path)).map(|()| Vec::new())
                }
            })?;
            if from == Place::Waiting {
                spool.left(entries, stays)?;
            }
            spool.sync_ready()
        })
    }

    /// Removes what was put aside, with the reasons. Not synced.
    fn take_from(&self, place: Place, entries: &[Entry]) -> Result<(), SpoolError> {
        for entry in entries {
            let path = self.root.join(place.name()).join(entry.to_string());
            at(&path, disk::remove(&path))?;
            if place == Place::Refused {
                let why = self.root.join("refusals").join(entry.to_string());
                at(&why, disk::remove(&why))?;
            }
        }
        Ok(())
    }

    /// The same of one that makes room, logged.
    pub(super) fn drop_from(&self, place: Place, entry: &Entry) -> Result<(), SpoolError> {
        let entry = std::slice::from_ref(entry);
        self.dropping(place, entry, || self.take_from(place, entry))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spool::{Limits, seal};

    #[test]
    fn what_was_sent_is_not_logged_as_what_a_process_that_died_was_about_to_drop() {
        let root = tempfile::tempdir().unwrap();
        let open = || Spool::open(root.path(), Limits::default()).unwrap();
        let (spool, entry) = (open(), Entry { key: 1, size: 1, upload: "a".parse().unwrap() });
        std::fs::write(spool.path(&entry), "x").unwrap();
        let about_to_go = r#"{"at_ms":7,"from":"ready","upload":"a","time_ms":1,"size":1}"#;
        std::fs::write(root.path().join("dropping"), seal::line(about_to_go)).unwrap();
        assert!(spool.remover().remove(std::slice::from_ref(&entry), true).unwrap().stays.is_empty());
        drop(open());
        assert!(!spool.path(&entry).exists() && !root.path().join("dropped.log").exists());
    }
}
