//! How entries leave the spool.

use super::disk::{self, at};
use super::store::Spool;
use super::{Entry, SpoolError};
use crate::transfer::sync_directory;

/// Where in the spool an entry lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// It waits to be sent.
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
        self.remove_unsynced(entries)?;
        self.sync_removed()
    }

    /// The same without a sync: until [`Spool::sync_removed`], a power cut brings them back, and they are sent once more.
    pub(crate) fn remove_unsynced(&mut self, entries: &[Entry]) -> Result<(), SpoolError> {
        self.changed(|spool| {
            entries.iter().try_for_each(|entry| spool.take_out(entry))?;
            spool.is_known()
        })
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
            spool.log_dropped(from, entries);
            match from {
                Place::Waiting => entries.iter().try_for_each(|entry| spool.take_out(entry))?,
                Place::Refused | Place::Damaged => {
                    spool.take_from(from, entries)?;
                    let path = spool.root.join(from.name());
                    at(&path, sync_directory(&path))?;
                }
            }
            spool.sync_ready()
        })
    }

    /// Removes what was put aside, with the reasons. Not synced.
    pub(super) fn take_from(&self, place: Place, entries: &[Entry]) -> Result<(), SpoolError> {
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
}
