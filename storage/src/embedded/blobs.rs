//! Files: where bodies lie, how they get there for good, and how strays are found.

use std::collections::HashSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use data_encoding::HEXLOWER;
use millpond_failpoint::{Point, reach};

use super::checksum::{Hashing, Sums};
use super::room::Claim;
use crate::directory;

/// The name of a file or of an upload in parts: random, never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct BlobId(pub(super) [u8; 16]);

impl BlobId {
    pub(super) fn random() -> io::Result<Self> {
        let mut id = [0; 16];
        getrandom::fill(&mut id).map_err(io::Error::other)?;
        Ok(Self(id))
    }

    pub(super) fn name(self) -> String {
        HEXLOWER.encode(&self.0)
    }

    pub(super) fn parse(name: &str) -> Option<Self> {
        HEXLOWER.decode(name.as_bytes()).ok()?.try_into().ok().map(Self)
    }
}

/// What a sweep found in the directories.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Swept {
    /// Bodies whose upload never ended.
    pub(super) unfinished: usize,
    /// Complete bodies that no object and no upload has.
    pub(super) orphans: usize,
    /// Bodies that rows name and that are gone.
    pub(super) missing: usize,
}

/// The directories of one store.
#[derive(Debug)]
pub(super) struct Blobs {
    incoming: PathBuf,
    blobs: PathBuf,
    /// Free bytes of the disk that bodies leave alone.
    min_free: u64,
}

impl Blobs {
    /// Makes the directories where they are missing.
    pub(super) fn open(root: &Path, min_free: u64) -> io::Result<Self> {
        let this = Self { incoming: root.join("incoming"), blobs: root.join("blobs"), min_free };
        make_dir(&this.incoming)?;
        make_dir(&this.blobs)?;
        for shard in 0..=u8::MAX {
            make_dir(&this.shard(shard))?;
        }
        sync_dir(&this.blobs)?;
        sync_dir(root)?;
        reach(Point::StorageFounded);
        Ok(this)
    }

    /// Whether there is any complete body.
    pub(super) fn any(&self) -> io::Result<bool> {
        for shard in 0..=u8::MAX {
            if fs::read_dir(self.shard(shard))?.next().is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// A new body of as many bytes as the claim has, of which none is there yet, hashed by SHA-256 and `others`. Bodies
    /// on their way do not know of each other, so that many at once may still fill the disk; then writing fails.
    pub(super) fn create(&self, claim: Claim, hashing: Hashing) -> io::Result<Incoming> {
        if directory::free(&self.incoming)? < self.min_free.saturating_add(claim.size()) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let path = self.incoming.join(claim.blob().name());
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        reach(Point::BlobCreated);
        Ok(Incoming { path, open: Some((file, claim)), hashing })
    }

    /// Puts a complete body where it belongs, so that it outlives a power loss. It is still nobody's.
    pub(super) fn settle(&self, mut body: Incoming) -> io::Result<Claim> {
        let (file, claim) = body.open.take().ok_or(io::ErrorKind::BrokenPipe)?;
        reach(Point::BlobWritten);
        file.sync_data()?;
        reach(Point::BlobSynced);
        let target = self.path(claim.blob());
        fs::rename(&body.path, &target)?;
        body.path = target;
        reach(Point::BlobRenamed);
        sync_dir(&self.shard(claim.blob().0[0]))?;
        reach(Point::BlobSettled);
        // From here on the row decides what becomes of the file.
        body.path = PathBuf::new();
        Ok(claim)
    }

    pub(super) fn open_blob(&self, id: BlobId) -> io::Result<File> {
        File::open(self.path(id))
    }

    /// Removes a body; that there is none is fine.
    pub(super) fn remove(&self, id: BlobId) -> io::Result<()> {
        remove(&self.path(id)).map(drop)
    }

    /// Removes what no row names. `held` says what must stay all the same; it is asked before `named` tells the bodies
    /// that rows name, by the first byte of their name, for a body may get its row in between, and again before one is
    /// removed, for a row may go in between while somebody reads its body.
    pub(super) fn sweep<E: From<io::Error>>(
        &self,
        held: impl Fn(BlobId) -> bool,
        mut named: impl FnMut(u8) -> Result<HashSet<BlobId>, E>,
    ) -> Result<Swept, E> {
        let mut swept = Swept::default();
        for id in list(&self.incoming)? {
            if !held(id) && remove(&self.incoming.join(id.name()))? {
                swept.unfinished += 1;
            }
        }
        for shard in 0..=u8::MAX {
            let there = list(&self.shard(shard))?;
            let free: Vec<_> = there.iter().copied().filter(|id| !held(*id)).collect();
            let mut rows = named(shard)?;
            for id in free {
                if !rows.contains(&id) && !held(id) && remove(&self.path(id))? {
                    swept.orphans += 1;
                }
            }
            for id in there {
                rows.remove(&id);
            }
            rows.retain(|id| !self.path(*id).exists());
            if !rows.is_empty() {
                // Some may have been removed in the meantime, row and all.
                swept.missing += named(shard)?.intersection(&rows).count();
            }
        }
        Ok(swept)
    }

    fn shard(&self, first: u8) -> PathBuf {
        self.blobs.join(HEXLOWER.encode(&[first]))
    }

    fn path(&self, id: BlobId) -> PathBuf {
        self.shard(id.0[0]).join(id.name())
    }
}

/// A body that is being received. Dropping it removes the file.
pub(super) struct Incoming {
    path: PathBuf,
    open: Option<(File, Claim)>,
    hashing: Hashing,
}

impl Incoming {
    /// Appends bytes.
    pub(super) fn write(&mut self, chunks: &[Bytes]) -> io::Result<()> {
        let (file, _) = self.open.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        for chunk in chunks {
            self.hashing.update(chunk);
            file.write_all(chunk)?;
        }
        Ok(())
    }

    /// The checksums of all bytes. To be asked once, at the end.
    pub(super) fn sums(&mut self) -> Sums {
        std::mem::replace(&mut self.hashing, Hashing::new(&[])).finish()
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if self.path.as_os_str().is_empty() {
            return;
        }
        let (path, open) = (std::mem::take(&mut self.path), self.open.take());
        let remove = move || {
            if let Err(error) = fs::remove_file(&path) {
                tracing::warn!(%error, path = %path.display(), "an unfinished body stays until the next sweep");
            }
            drop(open);
        };
        // Removing a large file takes time that a thread of the runtime does not have.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(remove)),
            Err(_) => remove(),
        }
    }
}

/// The files of a directory that are named like ours.
fn list(dir: &Path) -> io::Result<Vec<BlobId>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir)? {
        found.extend(entry?.file_name().to_str().and_then(BlobId::parse));
    }
    Ok(found)
}

/// Removes a file, and says whether it was there.
fn remove(path: &Path) -> io::Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn make_dir(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// Makes the names in a directory outlive a power loss.
fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn a_body_stays_whose_row_goes_during_the_sweep_while_somebody_reads_it() {
        let root = tempfile::tempdir().unwrap();
        let blobs = Blobs::open(root.path(), 0).unwrap();
        let id = BlobId([0; 16]);
        fs::write(blobs.path(id), "read").unwrap();
        let is_read = Cell::new(false);
        let rows = |_| {
            is_read.set(true);
            Ok::<_, io::Error>(HashSet::new())
        };
        assert_eq!(blobs.sweep(|_| is_read.get(), rows).unwrap(), Swept::default());
        assert!(blobs.path(id).exists());
    }
}
