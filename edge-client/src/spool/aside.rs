//! Entries that do not wait any more and are kept for people to look at: what the server refused, and what was damaged.

use millpond_protocol::Refusal;
use serde_json::json;

use super::disk::{self, at};
use super::leave::Place;
use super::store::Spool;
use super::{Entry, SpoolError, dropped, seal};
use crate::transfer::sync_directory;

/// Entries of each kind that are kept.
const FILES_MAX: u64 = 1_000;
/// What each kind may take is the spool's limit of bytes divided by this; the newest one is kept whatever its size.
const SHARE: u64 = 10;

impl Spool {
    /// An entry leaves because the server refuses it for good; it is kept beside, with the reason if the disk has room for that.
    ///
    /// # Errors
    /// What the system says.
    pub fn refuse(&mut self, entry: &Entry, refusal: &Refusal) -> Result<(), SpoolError> {
        self.changed(|spool| {
            let (refused, refusals) = (spool.root.join("refused"), spool.root.join("refusals"));
            let name = entry.to_string();
            spool.make_room(Place::Refused, entry)?;
            let why = seal::line(&json!(refusal).to_string());
            let _ = disk::replace(&refusals.join(&name), &spool.scratch(), why.as_bytes());
            match std::fs::rename(spool.path(entry), refused.join(&name)) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                renamed => at(&refused, renamed)?,
            }
            spool.forget(entry);
            at(&refused, sync_directory(&refused))?;
            spool.sync_ready()
        })
    }

    /// Puts a damaged entry out of the way, as well as that goes.
    pub(crate) fn put_aside(&self, entry: &Entry, why: String) -> SpoolError {
        if let Ok(_change) = self.change() {
            dropped::settle(&self.root);
            let _ = self.changing();
            self.lay_aside(entry);
        }
        SpoolError::Damaged { entry: entry.clone(), why }
    }

    /// Under the lock, after `changing`: the same.
    pub(super) fn lay_aside(&self, entry: &Entry) {
        let _ = self.make_room(Place::Damaged, entry);
        let _ = std::fs::rename(self.path(entry), self.root.join("damaged").join(entry.to_string()));
    }

    /// Makes room for one more that is put aside: the oldest go, and are logged.
    fn make_room(&self, place: Place, coming: &Entry) -> Result<(), SpoolError> {
        let mut others = self.aside(place)?;
        others.retain(|entry| entry != coming);
        let bytes = others.iter().fold(0_u64, |sum, entry| sum.saturating_add(entry.size));
        let (mut files, mut bytes) = (others.len() as u64 + 1, bytes.saturating_add(coming.size));
        // One that is larger than all of the room has it to itself.
        for entry in &others {
            if files <= FILES_MAX && bytes <= self.limits.bytes / SHARE {
                break;
            }
            // One that stays all the same is no room, and keeps no other from being put aside.
            if self.drop_from(place, entry).is_ok() {
                (files, bytes) = (files - 1, bytes.saturating_sub(entry.size));
            }
        }
        Ok(())
    }

    fn aside(&self, place: Place) -> Result<Vec<Entry>, SpoolError> {
        let path = self.root.join(place.name());
        let mut entries = at(&path, disk::list(&path))?;
        entries.sort_unstable();
        Ok(entries)
    }

    /// What the server refused, oldest first, with the reasons.
    ///
    /// # Errors
    /// What the system says.
    pub fn refused(&self) -> Result<Vec<(Entry, Option<Refusal>)>, SpoolError> {
        let refusals = self.root.join("refusals");
        let why = |entry: &Entry| {
            let note = std::fs::read(refusals.join(entry.to_string())).ok()?;
            seal::read(&note, |text| serde_json::from_str(text).ok()).whole.pop()
        };
        Ok(self.aside(Place::Refused)?.into_iter().map(|entry| (entry.clone(), why(&entry))).collect())
    }

    /// What was found damaged, oldest first.
    ///
    /// # Errors
    /// What the system says.
    pub fn damaged(&self) -> Result<Vec<Entry>, SpoolError> {
        self.aside(Place::Damaged)
    }
}
