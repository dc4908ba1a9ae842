//! Objects: files and rows together, in the order that survives a crash.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use millpond_protocol::Sha256;

use super::blobs::{BlobId, Blobs, Incoming, sync_dir};
use super::catalog::{Catalog, CatalogError, Changed, Check, Object};
use crate::config::BadConfig;

/// The directory cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The configuration is bad.
    #[error("the configuration of the embedded storage: {0}")]
    Config(BadConfig),
    /// Another process has the directory open.
    #[error("{0} is in use by another process")]
    InUse(PathBuf),
    /// The disk failed.
    #[error("{path}: {error}")]
    Disk {
        /// Where.
        path: PathBuf,
        /// How.
        #[source]
        error: io::Error,
    },
    /// The catalogue failed.
    #[error("{path}: {error}")]
    Catalog {
        /// Where.
        path: PathBuf,
        /// How.
        #[source]
        error: CatalogError,
    },
}

/// An object could not be stored, found or removed.
#[derive(Debug, thiserror::Error)]
pub(super) enum StoreError {
    #[error(transparent)]
    Disk(#[from] io::Error),
    #[error(transparent)]
    Catalog(#[from] CatalogError),
}

/// An open directory of objects.
pub(super) struct Store {
    blobs: Blobs,
    catalog: Catalog,
    /// Held as long as anybody may still write.
    _lock: File,
}

impl Store {
    pub(super) fn open(dir: &Path, min_free: u64) -> Result<Self, OpenError> {
        let disk = |error| OpenError::Disk { path: dir.to_owned(), error };
        if !dir.is_dir() {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(disk)?;
            let parent = dir.parent().filter(|parent| !parent.as_os_str().is_empty());
            sync_dir(parent.unwrap_or(Path::new("."))).map_err(disk)?;
        }
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(dir.join("lock"))
            .map_err(disk)?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => OpenError::InUse(dir.to_owned()),
            TryLockError::Error(error) => disk(error),
        })?;
        let path = dir.join("catalog.sqlite");
        let rows = |error| OpenError::Catalog { path: path.clone(), error };
        let catalog = Catalog::open(&path).map_err(rows)?;
        let blobs = Blobs::open(dir, min_free).map_err(disk)?;
        let swept = blobs.sweep(|first| catalog.blobs(first)).map_err(rows)?;
        if swept.unfinished + swept.orphans > 0 {
            tracing::info!(swept.unfinished, swept.orphans, "removed bodies that no object has");
        }
        if swept.missing > 0 {
            tracing::error!(swept.missing, dir = %dir.display(), "objects have lost their bodies");
        }
        Ok(Self { blobs, catalog, _lock: lock })
    }

    /// A new body of so many bytes, of which none is there yet. Blocks.
    pub(super) fn create(&self, size: u64) -> io::Result<Incoming> {
        self.blobs.create(size)
    }

    /// Puts a complete body on disk for good. Blocks. Until [`Store::publish`] it is nobody's.
    pub(super) fn settle(self: Arc<Self>, body: Incoming) -> io::Result<Settled> {
        let (size, sha256) = (body.size(), body.sha256());
        let blob = self.blobs.settle(body)?;
        Ok(Settled { store: self, blob: Some(blob), size, sha256 })
    }

    /// Makes a settled body the object of `key` if `check` holds, and returns the object if it did.
    ///
    /// Runs to its end even if whoever asked goes away, so that what is no longer needed is removed.
    pub(super) async fn publish(
        self: Arc<Self>,
        key: String,
        mut body: Settled,
        check: Option<Check>,
    ) -> Result<Option<Object>, StoreError> {
        let blob = body.blob.take().ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        let object = Object { key, blob, size: body.size, sha256: body.sha256, modified_ms: now_ms() };
        run(async move {
            // If this fails it is not known whether the row will be there after a crash, so the body stays for the
            // next start to judge.
            let (published, stray) = match self.catalog.put(object.clone(), check).await? {
                Changed::Done(old) => (Some(object), old),
                Changed::Unmet => (None, Some(blob)),
            };
            self.discard(stray);
            Ok(published)
        })
        .await
    }

    /// Removes the object of `key`, if there is one. Runs to its end like [`Store::publish`].
    pub(super) async fn delete(self: Arc<Self>, key: String) -> Result<(), StoreError> {
        run(async move {
            if let Changed::Done(stray) = self.catalog.delete(key).await? {
                self.discard(stray);
            }
            Ok(())
        })
        .await
    }

    /// The object of a key. Blocks.
    pub(super) fn find(&self, key: &str) -> Result<Option<Object>, StoreError> {
        Ok(self.catalog.find(key)?)
    }

    /// The object of a key, with its body open for reading. Blocks.
    pub(super) fn open_object(&self, key: &str) -> Result<Option<(Object, File)>, StoreError> {
        let mut gone = None;
        loop {
            let Some(object) = self.catalog.find(key)? else { return Ok(None) };
            match self.blobs.open_blob(object.blob) {
                Ok(file) => return Ok(Some((object, file))),
                // Replaced or removed since it was found: look again. The same body missing twice is damage.
                Err(error) if error.kind() == io::ErrorKind::NotFound && gone != Some(object.blob) => {
                    gone = Some(object.blob);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Objects in order of their keys, see [`Catalog::page`]. Blocks.
    pub(super) fn page(&self, prefix: &str, after: &str, limit: usize) -> Result<Vec<Object>, StoreError> {
        Ok(self.catalog.page(prefix, after, limit)?)
    }

    fn discard(self: &Arc<Self>, stray: Option<BlobId>) {
        let Some(stray) = stray else { return };
        let this = Arc::clone(self);
        let remove = move || {
            if let Err(error) = this.blobs.remove(stray) {
                tracing::warn!(%error, "a body that no object has stays until the next start");
            }
        };
        // Removing a large file takes time that a thread of the runtime does not have.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(remove)),
            Err(_) => remove(),
        }
    }
}

/// A complete body on disk that is not yet an object. Dropping it removes the file.
pub(super) struct Settled {
    store: Arc<Store>,
    blob: Option<BlobId>,
    size: u64,
    sha256: Sha256,
}

impl Drop for Settled {
    fn drop(&mut self) {
        self.store.discard(self.blob.take());
    }
}

/// Runs `work` in a task of its own, which goes on when the caller is dropped.
async fn run<T: Send + 'static>(
    work: impl Future<Output = Result<T, StoreError>> + Send + 'static,
) -> Result<T, StoreError> {
    match tokio::spawn(work).await {
        Ok(result) => result,
        Err(error) => Err(io::Error::other(error).into()),
    }
}

fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
