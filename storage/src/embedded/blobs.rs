//! Files: where bodies lie, how they get there for good, and how strays are found.

use std::collections::HashSet;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use data_encoding::HEXLOWER;
use millpond_protocol::Sha256;
use sha2::Digest as _;

/// The name of a file: random, never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct BlobId(pub(super) [u8; 16]);

impl BlobId {
    fn random() -> io::Result<Self> {
        let mut id = [0; 16];
        getrandom::fill(&mut id).map_err(io::Error::other)?;
        Ok(Self(id))
    }

    fn name(self) -> String {
        HEXLOWER.encode(&self.0)
    }

    fn parse(name: &str) -> Option<Self> {
        HEXLOWER.decode(name.as_bytes()).ok()?.try_into().ok().map(Self)
    }
}

/// What opening found in the directories.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Swept {
    /// Bodies whose upload never ended.
    pub(super) unfinished: usize,
    /// Complete bodies that no object has.
    pub(super) orphans: usize,
    /// Objects whose body is gone.
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
        Ok(this)
    }

    /// A new body of so many bytes, of which none is there yet. Bodies on their way do not know of each other, so that
    /// many at once may still fill the disk; then writing fails.
    pub(super) fn create(&self, size: u64) -> io::Result<Incoming> {
        let disk = rustix::fs::statvfs(&self.incoming)?;
        let free = disk.f_bavail.saturating_mul(disk.f_frsize);
        if free < self.min_free.saturating_add(size) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let id = BlobId::random()?;
        let path = self.incoming.join(id.name());
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path)?;
        Ok(Incoming { id, path, file: Some(file), hasher: sha2::Sha256::new(), size: 0 })
    }

    /// Puts a complete body where it belongs, so that it outlives a power loss. It is still nobody's.
    pub(super) fn settle(&self, mut body: Incoming) -> io::Result<BlobId> {
        let id = body.id;
        let target = self.path(id);
        if let Some(file) = body.file.take() {
            file.sync_data()?;
        }
        fs::rename(&body.path, &target)?;
        body.path = target;
        sync_dir(&self.shard(id.0[0]))?;
        // From here on the row decides what becomes of the file.
        body.path = PathBuf::new();
        Ok(id)
    }

    pub(super) fn open_blob(&self, id: BlobId) -> io::Result<File> {
        File::open(self.path(id))
    }

    /// Removes a body; that there is none is fine.
    pub(super) fn remove(&self, id: BlobId) -> io::Result<()> {
        match fs::remove_file(self.path(id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Removes what belongs to no object. `named` tells the bodies that objects have, by the first byte of their name.
    pub(super) fn sweep<E: From<io::Error>>(
        &self,
        mut named: impl FnMut(u8) -> Result<HashSet<BlobId>, E>,
    ) -> Result<Swept, E> {
        let mut swept = Swept::default();
        for entry in fs::read_dir(&self.incoming)? {
            let entry = entry?;
            if entry.file_name().to_str().and_then(BlobId::parse).is_some() {
                fs::remove_file(entry.path())?;
                swept.unfinished += 1;
            }
        }
        for shard in 0..=u8::MAX {
            let mut expected = named(shard)?;
            for entry in fs::read_dir(self.shard(shard))? {
                let entry = entry?;
                let Some(id) = entry.file_name().to_str().and_then(BlobId::parse) else { continue };
                if !expected.remove(&id) {
                    fs::remove_file(entry.path())?;
                    swept.orphans += 1;
                }
            }
            swept.missing += expected.len();
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
#[derive(Debug)]
pub(super) struct Incoming {
    id: BlobId,
    path: PathBuf,
    file: Option<File>,
    hasher: sha2::Sha256,
    size: u64,
}

impl Incoming {
    /// Appends bytes.
    pub(super) fn write(&mut self, chunks: &[Bytes]) -> io::Result<()> {
        let file = self.file.as_mut().ok_or(io::ErrorKind::BrokenPipe)?;
        for chunk in chunks {
            self.hasher.update(chunk);
            file.write_all(chunk)?;
            self.size += chunk.len() as u64;
        }
        Ok(())
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    pub(super) fn sha256(&self) -> Sha256 {
        Sha256(self.hasher.clone().finalize().into())
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        if self.path.as_os_str().is_empty() {
            return;
        }
        let (path, file) = (std::mem::take(&mut self.path), self.file.take());
        let remove = move || {
            drop(file);
            if let Err(error) = fs::remove_file(&path) {
                tracing::warn!(%error, path = %path.display(), "an unfinished body stays until the next start");
            }
        };
        // Removing a large file takes time that a thread of the runtime does not have.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(remove)),
            Err(_) => remove(),
        }
    }
}

fn make_dir(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// Makes the names in a directory outlive a power loss.
pub(super) fn sync_dir(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}
