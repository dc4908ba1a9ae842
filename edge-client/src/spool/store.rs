//! The spool as a value: what is in the directory, and its changes.

use std::collections::{BTreeSet, HashSet};
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Weak;

use millpond_protocol::UploadId;

use super::disk::{self, at};
use super::leave::Place;
use super::mend::DamagedNote;
use super::reserve::Reserved;
use super::room::Limits;
use super::{Document, Entry, SpoolError, dropped};
use crate::transfer::sync_directory;

/// A spool. Its operations block for as long as the disk takes.
#[derive(Debug)]
pub struct Spool {
    pub(super) root: PathBuf,
    pub(super) limits: Limits,
    pub(super) lock: File,
    /// What was in `ready/` when the change counter had that value.
    pub(super) known: Option<u64>,
    pub(super) ready: BTreeSet<Entry>,
    pub(super) ids: HashSet<UploadId>,
    pub(super) bytes: u64,
    /// How often this value has read the directory.
    pub(super) readings: u64,
    /// The room that what it has staged takes, while there is such.
    pub(super) reserved: Weak<Reserved>,
    /// What was found in its notes last that is not what was written.
    pub(super) damaged_notes: Vec<DamagedNote>,
    /// What of it the disk did not let be taken out, and is found again.
    pub(super) left_in_notes: Vec<DamagedNote>,
}

/// Says that this process sends. One at a time.
#[derive(Debug)]
pub struct Sending(#[expect(dead_code, reason = "held for its lock")] File);

/// Holds the spool's lock.
pub(super) struct Change<'a>(&'a File);

impl Drop for Change<'_> {
    fn drop(&mut self) {
        // Closing the file would do it too.
        let _ = self.0.unlock();
    }
}

impl Spool {
    /// What waits now, oldest first, whoever put it there.
    ///
    /// # Errors
    /// What the system says.
    pub fn entries(&mut self) -> Result<impl DoubleEndedIterator<Item = &Entry>, SpoolError> {
        if self.known != Some(at(&self.root, disk::changes(&self.lock))?) {
            at(&self.root, self.lock.lock())?;
            let refreshed = self.refresh();
            at(&self.root, self.lock.unlock())?;
            refreshed?;
        }
        Ok(self.ready.iter())
    }

    /// How often [`Spool::entries`] and the changes have found that others changed the directory: as long as that stays the
    /// same, nothing came that this value did not put there.
    pub(crate) fn readings(&self) -> u64 {
        self.readings
    }

    /// Whether an entry waits still. Takes no lock: others are not kept from their work by it, however often they are asked.
    pub(crate) fn holds(&self, entry: &Entry) -> bool {
        self.path(entry).exists()
    }

    /// Whether something of that id waits, as of the last look.
    pub(crate) fn waits(&self, upload: &UploadId) -> bool {
        self.ids.contains(upload)
    }

    /// Files and bytes that wait, as of the last look.
    pub fn held_now(&self) -> (u64, u64) {
        (self.ready.len() as u64, self.bytes)
    }

    /// The directory.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Where those are that wait.
    pub(crate) fn path_of_waiting(&self) -> PathBuf {
        self.root.join(Place::Waiting.name())
    }

    /// Where an entry's bytes are: they are the first [`Entry::size`] of this file.
    pub fn path(&self, entry: &Entry) -> PathBuf {
        self.path_of_waiting().join(entry.to_string())
    }

    /// What is known of an entry.
    ///
    /// # Errors
    /// `Gone`, or `Damaged` (then it is out of the way), or what the system says.
    pub fn describe(&self, entry: &Entry) -> Result<Document, SpoolError> {
        self.reader().describe(entry).map_err(|unread| self.unread(entry, unread))
    }

    /// An entry with its bytes, whole in memory: for small ones.
    ///
    /// # Errors
    /// As [`Spool::describe`].
    pub fn load(&self, entry: &Entry) -> Result<(Document, Vec<u8>), SpoolError> {
        self.reader().load(entry).map_err(|unread| self.unread(entry, unread))
    }

    pub(super) fn open_entry(&self, entry: &Entry) -> Result<File, SpoolError> {
        self.reader().open(entry).map_err(|unread| self.unread(entry, unread))
    }

    /// The right to send, while the value lives; none if another process has it.
    ///
    /// # Errors
    /// What the system says.
    pub fn sending(&self) -> Result<Option<Sending>, SpoolError> {
        let path = self.root.join("sending");
        let file = at(&path, disk::open(&path))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Sending(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(SpoolError::io(&path)(error)),
        }
    }

    /// Changes the directory under its lock.
    pub(super) fn changed(
        &mut self,
        change: impl FnOnce(&mut Self) -> Result<(), SpoolError>,
    ) -> Result<(), SpoolError> {
        at(&self.root, self.lock.lock())?;
        dropped::settle(&self.root);
        let result = self.refresh().and_then(|()| self.changing()).and_then(|()| change(self));
        if result.is_err() {
            self.known = None;
        }
        at(&self.root, self.lock.unlock())?;
        result
    }

    pub(super) fn change(&self) -> Result<Change<'_>, SpoolError> {
        at(&self.root, self.lock.lock())?;
        Ok(Change(&self.lock))
    }

    /// Before a change, under the lock: whoever looks at the spool from now on reads it anew. This value knows its own change.
    pub(super) fn changing(&self) -> Result<(), SpoolError> {
        let next = at(&self.root, disk::changes(&self.lock))?.wrapping_add(1);
        at(&self.root, disk::set_changes(&self.lock, next))
    }

    /// Under the lock: reads the directory if somebody else changed it.
    pub(super) fn refresh(&mut self) -> Result<(), SpoolError> {
        let now = at(&self.root, disk::changes(&self.lock))?;
        if self.known == Some(now) {
            return Ok(());
        }
        let path = self.root.join("ready");
        let entries = at(&path, disk::list(&path))?;
        (self.ids, self.bytes) = (HashSet::with_capacity(entries.len()), 0);
        self.ready.clear();
        for entry in entries {
            self.insert(entry);
        }
        self.readings += 1;
        self.known = Some(now);
        Ok(())
    }

    pub(super) fn insert(&mut self, entry: Entry) {
        self.ids.insert(entry.upload.clone());
        let size = entry.size;
        if self.ready.insert(entry) {
            // A name is no proof of a size: the sum of what is claimed may be more than there is.
            self.bytes = self.bytes.saturating_add(size);
        }
    }

    pub(super) fn forget(&mut self, entry: &Entry) {
        if self.ready.remove(entry) {
            self.ids.remove(&entry.upload);
            self.bytes = self.bytes.saturating_sub(entry.size);
        }
    }

    pub(super) fn sync_ready(&mut self) -> Result<(), SpoolError> {
        let path = self.root.join("ready");
        at(&path, sync_directory(&path))?;
        self.is_known()
    }

    /// Under the lock, after `changing`: what this value knows is what is there.
    pub(super) fn is_known(&mut self) -> Result<(), SpoolError> {
        self.known = Some(at(&self.root, disk::changes(&self.lock))?);
        Ok(())
    }
}
