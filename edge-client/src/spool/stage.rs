//! Files on their way into the spool: written and hashed one by one, synced together.

use std::collections::HashSet;
use std::fs::File;
use std::io::{Read, Write as _};
use std::path::{Path, PathBuf};

use millpond_failpoint::{Point, reach};
use millpond_protocol::Sha256;

use super::disk::{self, at};
use super::reserve::Claim;
use super::store::Spool;
use super::{About, Document, SpoolError, together};
use crate::backoff::random;
use crate::transfer::Hasher;

/// Files of one process that stay open until they are synced, together. More would be faster, but a process may have as few as 64
/// descriptors and needs some for its connections.
const HELD: u64 = 32;

/// A file that is written, and not in the spool yet. Dropped, it is gone.
#[derive(Debug)]
pub struct Staged {
    writing: Writing,
    document: Document,
    #[expect(dead_code, reason = "held for its room")]
    claim: Claim,
}

impl Staged {
    /// What it is.
    pub fn document(&self) -> &Document {
        &self.document
    }

    pub(super) fn path(&self) -> &Path {
        &self.writing.path
    }
}

/// A file under `staging/`, named after the reservation that says that somebody still wants it; dropped, it is removed.
#[derive(Debug)]
struct Writing {
    path: PathBuf,
    /// Through what it was written, until it is synced: once that is closed, an error of the disk may have been told to nobody, and
    /// another descriptor hears nothing of it. None of one that was synced already.
    file: Option<File>,
}

impl Writing {
    fn failed(&self, source: std::io::Error) -> SpoolError {
        SpoolError::io(&self.path)(source)
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        // It may have been renamed; and what stays behind is swept at the next opening.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Spool {
    /// Copies and hashes what `from` gives, to its end; `about` says what it is once its SHA-256 is known. The memory it takes
    /// does not depend on the size. [`Spool::add`] syncs it, with whatever else is added; of many, those beyond the first 32 are synced
    /// here, one by one: thousands cannot be held open.
    ///
    /// No more is copied than the spool's limits leave beside what waits (unless that makes room) and what all processes have staged.
    ///
    /// # Errors
    /// `Full`, or what the system says; a full disk is one of it.
    pub fn stage(
        &mut self,
        from: impl Read,
        about: impl FnOnce(Sha256) -> About,
    ) -> Result<Staged, SpoolError> {
        self.stage_sized(from, 0, about)
    }

    /// The same of what is known to be so long: if there is no room for it, nothing is copied. More than that is copied as far as there
    /// is room for more.
    ///
    /// # Errors
    /// As [`Spool::stage`].
    pub fn stage_sized(
        &mut self,
        mut from: impl Read,
        length: u64,
        about: impl FnOnce(Sha256) -> About,
    ) -> Result<Staged, SpoolError> {
        let mut claim = self.claim(length)?;
        let path = self.staging().join(format!("{}.{:016x}", claim.of(), random()));
        let mut writing = Writing { path, file: None };
        let mut file = at(&writing.path, disk::open(&writing.path))?;
        let (mut digest, mut size) = (Hasher::default(), 0);
        let mut buffer = vec![0; 128 << 10];
        loop {
            let n = match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(n) => n,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(writing.failed(error)),
            };
            size += n as u64;
            self.extend(&mut claim, size)?;
            file.write_all(&buffer[..n]).map_err(|error| writing.failed(error))?;
            digest.add(&buffer[..n]);
        }
        claim.shrink(size);
        let sha256 = digest.finish();
        let mut document = Document { about: about(sha256), size, sha256, key: None };
        document.key = self.place(&document);
        let footer = document.footer().ok_or_else(|| SpoolError::TooLong(document.about.upload.clone()))?;
        file.write_all(&footer).map_err(|error| writing.failed(error))?;
        if claim.files() <= HELD {
            writing.file = Some(file);
        } else {
            file.sync_all().map_err(|error| writing.failed(error))?;
        }
        Ok(Staged { writing, document, claim })
    }

    fn staging(&self) -> PathBuf {
        self.root.join("staging")
    }

    /// Under the lock: removes what processes that died were writing.
    pub(super) fn sweep(&self) -> Result<(), SpoolError> {
        let (staging, mut held) = (self.staging(), HashSet::new());
        for item in at(&staging, std::fs::read_dir(&staging))? {
            let item = at(&staging, item)?;
            let (name, path) = (item.file_name(), item.path());
            let of = name.to_str().and_then(|name| name.split_once('.')).map_or("", |(of, _)| of);
            if held.contains(of) || (!of.is_empty() && self.is_reserved(of)?) {
                held.insert(of.to_owned());
            } else {
                at(&path, disk::remove(&path))?;
            }
        }
        Ok(())
    }
}

impl Spool {
    /// Where a file belongs in the order whose capture is dated by a clock that is behind: a device that has just booted in 1970
    /// must not lose this minute's files first, nor send them last.
    fn place(&self, document: &Document) -> Option<u64> {
        if document.about.event_time.is_some() {
            return None;
        }
        let captured = &document.about.captured;
        let known =
            captured.anchored(&self.anchors()).map(|time| time.as_millis()).and_then(|ms| ms.try_into().ok());
        let after = || self.ready.last().map(|newest| newest.key.saturating_add(1));
        known.or_else(after).filter(|key| *key > document.entry().key)
    }
}

/// Syncs the files, so that renaming them shows each whole or not at all.
pub(super) fn sync(staged: &[Staged]) -> Result<(), SpoolError> {
    together::each(staged, |Staged { writing, .. }| {
        reach(Point::SpoolSyncing);
        writing.file.as_ref().map_or(Ok(()), File::sync_all).map_err(|error| writing.failed(error))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Stamp;
    use crate::spool::Limits;

    #[test]
    fn what_is_staged_is_synced_by_what_it_was_written_through_and_many_do_not_stay_open() {
        let root = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(root.path(), Limits::default()).unwrap();
        let mut stage = |n: u64| {
            let about = |_| About {
                upload: format!("u-{n}").parse().unwrap(),
                name: "file".parse().unwrap(),
                event_time: None,
                label: None,
                content_type: None,
                meta: None,
                captured: Stamp::now(),
            };
            spool.stage(&b"x"[..], about).unwrap()
        };
        let is_held = |file: &Staged| file.writing.file.is_some();
        let mut staged: Vec<Staged> = (0..HELD + 3).map(&mut stage).collect();
        let held: Vec<bool> = staged.iter().map(is_held).collect();
        assert_eq!(held, (0..HELD + 3).map(|n| n < HELD).collect::<Vec<bool>>());
        // Whose room is free again, its descriptor is too.
        staged.truncate(3);
        staged.push(stage(HELD));
        assert!(is_held(&staged[3]));
        assert_eq!(spool.add(staged).unwrap().new.len(), 4);
    }
}
