//! How entries come into the spool, and what leaves for them.

use std::collections::{HashMap, HashSet};
use std::io;

use millpond_failpoint::{Point, reach};
use millpond_protocol::{Sha256, UploadId};
use rustix::io::Errno;

use super::disk::{self, at};
use super::leave::{Place, unlink_each};
use super::stage::{self, Staged};
use super::store::Spool;
use super::{Document, Entry, SpoolError, dropped, room};

/// What came of [`Spool::add`].
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Added {
    /// In the spool now.
    pub new: Vec<Entry>,
    /// Were there already, with the same bytes.
    pub known: Vec<Entry>,
    /// Left so that the new ones fit.
    pub dropped: Vec<Entry>,
}

/// What waits under an id.
enum Held {
    Nothing,
    Whole(Document),
    /// What was written is not what is read, or nothing is.
    Unreadable(Entry),
}

/// Entries that cannot be removed, and why the first of them cannot.
#[derive(Default)]
struct Stuck {
    entries: HashSet<Entry>,
    why: Option<SpoolError>,
}

impl Stuck {
    fn add(&mut self, entry: Entry, why: SpoolError) {
        self.entries.insert(entry);
        self.why.get_or_insert(why);
    }
}

impl Spool {
    /// Puts staged files into the spool, all or none. When it returns, they are there after a power cut.
    ///
    /// Of a process that dies meanwhile, or where the disk fails so that an error cannot be made good, some may be there and others
    /// not, each whole. Whoever has not heard that they were taken adds them again: those that are there are `known`.
    ///
    /// # Errors
    /// `Full`, `Conflict`, or what the system says.
    pub fn add(&mut self, staged: Vec<Staged>) -> Result<Added, SpoolError> {
        reach(Point::SpoolStaged);
        stage::sync(&staged)?;
        reach(Point::SpoolSynced);
        at(&self.root, self.lock.lock())?;
        let added = self.refresh().and_then(|()| self.add_locked(staged));
        if added.is_err() {
            // How far it came is for the directory to tell.
            self.known = None;
        }
        at(&self.root, self.lock.unlock())?;
        added
    }

    fn add_locked(&mut self, staged: Vec<Staged>) -> Result<Added, SpoolError> {
        // What is added must not be taken for what was about to go.
        dropped::settle(&self.root);
        let mut added = Added::default();
        let (mut new, mut twins): (Vec<&Staged>, HashMap<&UploadId, &Staged>) = Default::default();
        let mut unreadable = Vec::new();
        for file in &staged {
            let Document { about, sha256, .. } = file.document();
            let held = match twins.get(&about.upload) {
                Some(twin) => Held::Whole(twin.document().clone()),
                None => self.held(&about.upload)?,
            };
            match held {
                Held::Whole(held) if held.sha256 == *sha256 => {
                    added.known.push(held.entry());
                    continue;
                }
                Held::Whole(_) => return Err(SpoolError::Conflict(about.upload.clone())),
                // No obstacle: the new one is whole, and takes its room.
                Held::Unreadable(entry) => {
                    self.forget(&entry);
                    unreadable.push(entry);
                }
                Held::Nothing => {}
            }
            twins.insert(&about.upload, file);
            new.push(file);
        }
        let coming: HashSet<Entry> = new.iter().map(|file| file.document().entry()).collect();
        let mut stuck = Stuck::default();
        let mut dropped = self.to_drop(&coming, &mut stuck)?;
        while self.find_stuck(&dropped, &mut stuck) {
            dropped = self.to_drop(&coming, &mut stuck)?;
        }
        self.changing()?;
        for entry in &unreadable {
            self.lay_aside(entry);
        }
        let shown = self.show(&new, &mut added.new);
        if let Err(error) = shown.and_then(|()| self.drop_for(&coming, dropped, stuck, &mut added.dropped)) {
            // Nobody has seen them: whoever looks waits for the lock.
            for (entry, file) in added.new.iter().zip(&new) {
                let _ = std::fs::rename(self.path(entry), file.path());
            }
            return Err(error);
        }
        reach(Point::SpoolAdded);
        Ok(added)
    }

    /// Shows new entries. What is dropped for them goes afterwards: what is not taken drives nothing out.
    fn show(&mut self, new: &[&Staged], shown: &mut Vec<Entry>) -> Result<(), SpoolError> {
        for file in new {
            let entry = file.document().entry();
            let path = self.path(&entry);
            at(&path, std::fs::rename(file.path(), &path))?;
            reach(Point::SpoolRenamed);
            self.insert(entry.clone());
            shown.push(entry);
        }
        reach(Point::SpoolShown);
        self.sync_ready()
    }

    /// What has to go so that the coming ones, which may be shown already, have room beside the others.
    fn to_drop(&self, coming: &HashSet<Entry>, stuck: &mut Stuck) -> Result<Vec<Entry>, SpoolError> {
        let shown = sum(coming.iter().filter(|entry| self.ready.contains(*entry)));
        let held = (self.ready.len() as u64 - shown.0, self.bytes.saturating_sub(shown.1));
        let old =
            self.ready.iter().filter(|entry| !coming.contains(*entry) && !stuck.entries.contains(*entry));
        room::make(&self.limits, old, held, sum(coming.iter())).map_err(|room::Full| {
            stuck.why.take().unwrap_or(SpoolError::Full {
                files: held.0,
                bytes: held.1,
                max_files: self.limits.files,
                max_bytes: self.limits.bytes,
            })
        })
    }

    /// Finds those of which it is plain beforehand that they cannot be removed; whether there is one.
    fn find_stuck(&self, entries: &[Entry], stuck: &mut Stuck) -> bool {
        let before = stuck.entries.len();
        for entry in entries {
            let path = self.path(entry);
            if std::fs::symlink_metadata(&path).is_ok_and(|found| found.is_dir()) {
                stuck.add(entry.clone(), SpoolError::io(&path)(io::ErrorKind::IsADirectory.into()));
            }
        }
        stuck.entries.len() > before
    }

    /// Lets go what makes room. One that stays all the same is no room: the next oldest goes in its place, as long as there is one.
    fn drop_for(
        &mut self,
        coming: &HashSet<Entry>,
        mut out: Vec<Entry>,
        mut stuck: Stuck,
        dropped: &mut Vec<Entry>,
    ) -> Result<(), SpoolError> {
        while !out.is_empty() {
            let ready = self.path_of_waiting();
            for (entry, why) in self.dropping(Place::Waiting, &out, || unlink_each(&ready, &out))? {
                stuck.add(entry, why);
            }
            for entry in out.into_iter().filter(|entry| !stuck.entries.contains(entry)) {
                self.forget(&entry);
                dropped.push(entry);
            }
            out = self.to_drop(coming, &mut stuck)?;
        }
        if dropped.is_empty() { Ok(()) } else { self.sync_ready() }
    }

    /// What waits under that id.
    fn held(&self, upload: &UploadId) -> Result<Held, SpoolError> {
        if !self.ids.contains(upload) {
            return Ok(Held::Nothing);
        }
        let Some(entry) = self.ready.iter().find(|entry| entry.upload == *upload) else {
            return Ok(Held::Nothing);
        };
        let path = self.path(entry);
        let described =
            self.open_entry(entry).and_then(|mut file| at(&path, disk::describe(&mut file, entry)));
        match described {
            Ok(Ok(document)) => Ok(Held::Whole(document)),
            Ok(Err(_)) => Ok(Held::Unreadable(entry.clone())),
            // It has left meanwhile.
            Err(SpoolError::Gone(_)) => Ok(Held::Nothing),
            Err(SpoolError::Io { source, .. }) if !is_of_this_process(&source) => {
                Ok(Held::Unreadable(entry.clone()))
            }
            Err(error) => Err(error),
        }
    }

    /// The entry that waits under that id, if it has these bytes. One that cannot be read has none: who adds the file once more has
    /// it put aside.
    ///
    /// # Errors
    /// `Conflict`, or what the system says.
    pub fn waiting(&mut self, upload: &UploadId, sha256: &Sha256) -> Result<Option<Entry>, SpoolError> {
        drop(self.entries()?);
        Ok(match self.held(upload)? {
            Held::Whole(held) if held.sha256 == *sha256 => Some(held.entry()),
            Held::Whole(_) => return Err(SpoolError::Conflict(upload.clone())),
            Held::Unreadable(_) | Held::Nothing => None,
        })
    }
}

/// Files and their bytes.
fn sum<'a>(entries: impl Iterator<Item = &'a Entry>) -> (u64, u64) {
    entries.fold((0, 0), |(files, bytes), entry| (files + 1, bytes.saturating_add(entry.size)))
}

/// Whether an error says something of this process, and nothing of the file that was to be read.
fn is_of_this_process(error: &io::Error) -> bool {
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM))
}
