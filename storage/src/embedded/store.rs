//! Objects: files and rows together, in the order that survives a crash.

mod sweep;

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use millpond_failpoint::{Point, reach};

use super::blobs::{BlobId, Blobs, Incoming};
use super::catalog::{Catalog, CatalogError, Check, Ended, Finished, Freed, Object, Part, Replaced, Upload};
use super::checksum::{Algorithm, Hashing, Plan, Sums};
use super::config::EmbeddedConfig;
use super::room::{Claim, Freeing, OverQuota, Pin, Room};
use super::send::Body;
use crate::config::BadConfig;
use crate::directory;

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
    room: Arc<Room>,
    /// When an earlier run kept something for the last time.
    worked_ms: i64,
    /// Held as long as anybody may still write.
    _lock: File,
}

impl Store {
    pub(super) fn open(dir: &Path, config: &EmbeddedConfig) -> Result<Self, OpenError> {
        let disk = |error| OpenError::Disk { path: dir.to_owned(), error };
        directory::make_private(dir).map_err(disk)?;
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
        let blobs = Blobs::open(dir, config.min_free).map_err(disk)?;
        let catalog = Catalog::open(&path, blobs.any().map_err(disk)?).map_err(rows)?;
        let room = Room::new(config.quota, catalog.bytes().map_err(rows)?);
        // A row of the future says nothing of the past.
        let worked_ms = Some(catalog.newest_ms().map_err(rows)?).filter(|at| *at <= now_ms()).unwrap_or(0);
        let this = Self { blobs, catalog, room, worked_ms, _lock: lock };
        this.sweep().map_err(rows)?;
        Ok(this)
    }

    /// When an earlier run kept something for the last time; 0 if none did.
    pub(super) fn worked_ms(&self) -> i64 {
        self.worked_ms
    }

    /// Takes room for a body of so many bytes.
    pub(super) fn claim(&self, size: u64) -> Result<Result<Claim, OverQuota>, StoreError> {
        Ok(self.room.claim(BlobId::random()?, size))
    }

    /// A new body of which nothing is there yet. Blocks.
    pub(super) fn create(&self, claim: Claim, algorithms: &[Algorithm]) -> io::Result<Incoming> {
        self.blobs.create(claim, Hashing::new(algorithms))
    }

    /// Puts a complete body on disk for good. Blocks. Until it is published it is nobody's.
    pub(super) fn settle(self: Arc<Self>, body: Incoming, sums: Sums) -> io::Result<Settled> {
        let claim = self.blobs.settle(body)?;
        Ok(Settled { store: self, claim: Some(claim), sums })
    }

    /// Makes a settled body the object of `key` if `check` holds. Returns the object if it did, else whether there is one.
    ///
    /// Runs to its end even if whoever asked goes away, so that what is no longer needed is removed.
    pub(super) async fn publish(
        self: Arc<Self>,
        key: String,
        meta: Option<String>,
        mut body: Settled,
        check: Option<Check>,
    ) -> Result<Result<Object, bool>, StoreError> {
        let claim = body.take()?;
        let object = Object {
            key,
            id: claim.blob(),
            parts: 0,
            size: claim.size(),
            sha256: body.sums.sha256,
            checksum: None,
            meta,
            modified_ms: now_ms(),
        };
        run(self.room.freeing(), async move {
            match self.catalog.put(object.clone(), check).await {
                Ok(Replaced::Done(old)) => {
                    claim.keep();
                    self.discard(vec![old]);
                    Ok(Ok(object))
                }
                Ok(Replaced::Unmet(there)) => {
                    self.give_up(claim);
                    Ok(Err(there))
                }
                Err(error) => Err(self.unsettle(claim, error)),
            }
        })
        .await
    }

    /// Removes the objects of some keys, where there are any; if that fails, of some of them. Runs to its end like
    /// [`Store::publish`].
    pub(super) async fn delete(self: Arc<Self>, mut keys: Vec<String>) -> Result<(), StoreError> {
        run(self.room.freeing(), async move {
            while !keys.is_empty() {
                let (freed, rest) = self.catalog.delete(keys).await?;
                reach(Point::ObjectDeleted);
                self.discard(freed);
                keys = rest;
            }
            Ok(())
        })
        .await
    }

    /// Begins an upload in parts. `None`: there are `most` of its like, see [`Catalog::begin`].
    pub(super) async fn begin(
        &self,
        key: String,
        plan: Option<Plan>,
        meta: Option<String>,
        most: usize,
    ) -> Result<Option<BlobId>, StoreError> {
        let id = BlobId::random()?;
        let upload = Upload { id, key, plan, meta, started_ms: now_ms() };
        Ok(self.catalog.begin(upload, most).await?.then_some(id))
    }

    /// Makes a settled body a part of an upload. `None`: there is no such upload. Runs to its end like [`Store::publish`].
    pub(super) async fn add_part(
        self: Arc<Self>,
        upload: BlobId,
        key: String,
        n: u32,
        plan: Option<Plan>,
        mut body: Settled,
    ) -> Result<Option<Part>, StoreError> {
        let claim = body.take()?;
        let part = Part {
            n,
            file: claim.blob(),
            size: claim.size(),
            sha256: body.sums.sha256,
            checksum: plan.and_then(|plan| body.sums.get(plan.algorithm)).map(<[u8]>::to_vec),
            modified_ms: now_ms(),
        };
        run(self.room.freeing(), async move {
            match self.catalog.add_part(upload, key, part.clone()).await {
                Ok(Some(old)) => {
                    claim.keep();
                    self.discard(vec![old]);
                    Ok(Some(part))
                }
                Ok(None) => {
                    self.give_up(claim);
                    Ok(None)
                }
                Err(error) => Err(self.unsettle(claim, error)),
            }
        })
        .await
    }

    /// Makes an upload the object of its key, see [`Catalog::complete`]. Runs to its end like [`Store::publish`].
    pub(super) async fn complete(
        self: Arc<Self>,
        upload: BlobId,
        key: String,
        wish: super::parts::Wish,
        check: Option<Check>,
    ) -> Result<Ended, StoreError> {
        run(self.room.freeing(), async move {
            let finished = Finished { id: upload, key, wish, check, now_ms: now_ms() };
            let mut ended = self.catalog.complete(finished).await?;
            reach(Point::UploadCompleted);
            if let Ended::Done(_, freed) = &mut ended {
                self.discard(std::mem::take(freed));
            }
            Ok(ended)
        })
        .await
    }

    /// Ends an upload without an object; says whether there was one. Runs to its end like [`Store::publish`].
    pub(super) async fn abort(self: Arc<Self>, upload: BlobId, key: String) -> Result<bool, StoreError> {
        run(self.room.freeing(), async move {
            let freed = self.catalog.abort(upload, key).await?;
            let there = freed.is_some();
            self.discard(freed.into_iter().collect());
            Ok(there)
        })
        .await
    }

    /// The rows, for what only reads them.
    pub(super) fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// The object of a key, with its body open for reading. Blocks.
    pub(super) fn open_object(self: &Arc<Self>, key: &str) -> Result<Option<(Object, Body)>, StoreError> {
        let mut gone = None;
        loop {
            let Some(object) = self.catalog.find(key)? else { return Ok(None) };
            let opened = if object.parts == 0 {
                self.blobs.open_blob(object.id).map(|file| Body::one(file, object.size))
            } else {
                // Files of parts are opened when their turn comes: what is pinned from before the row was there stays.
                let body = Body::parts(self, &object)?;
                match self.catalog.find(key)? {
                    Some(same) if same.id == object.id => Ok(body),
                    _ => Err(io::ErrorKind::NotFound.into()),
                }
            };
            match opened {
                Ok(body) => return Ok(Some((object, body))),
                // Replaced or removed since it was found: look again. The same body missing twice is damage.
                Err(error) if error.kind() == io::ErrorKind::NotFound && gone != Some(object.id) => {
                    gone = Some(object.id);
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// Opens a file that a row names. Blocks.
    pub(super) fn open_file(&self, file: BlobId) -> io::Result<File> {
        self.blobs.open_blob(file)
    }

    /// Keeps the files of an object in parts, even if it is replaced or removed, until they are let go.
    pub(super) fn pin(&self, object: BlobId) -> Pin {
        self.room.read(object)
    }

    pub(super) fn let_go(self: &Arc<Self>, pin: &Pin) {
        self.remove(self.room.release(pin), None);
    }

    /// Removes what rows no longer name.
    fn discard(self: &Arc<Self>, freed: Vec<Freed>) {
        let mut stray = Vec::new();
        for Freed { owner, files, bytes } in freed {
            self.room.free(bytes);
            stray.extend(match owner {
                Some(owner) => self.room.doom(owner, files),
                None => files,
            });
        }
        self.remove(stray, None);
    }

    /// Removes the file of a body that no row came to name.
    fn give_up(self: &Arc<Self>, claim: Claim) {
        self.remove(vec![claim.blob()], Some(claim));
    }

    /// A row could not be written.
    fn unsettle(self: &Arc<Self>, claim: Claim, error: CatalogError) -> StoreError {
        match error {
            CatalogError::Full | CatalogError::Undone(_) => self.give_up(claim),
            CatalogError::Newer(_) | CatalogError::Lost | CatalogError::Failed(_) => claim.abandon(),
        }
        error.into()
    }

    fn remove(self: &Arc<Self>, stray: Vec<BlobId>, claim: Option<Claim>) {
        if stray.is_empty() {
            return;
        }
        let this = Arc::clone(self);
        let remove = move || {
            for stray in stray {
                if let Err(error) = this.blobs.remove(stray) {
                    tracing::warn!(%error, "a body that no object has stays until the next sweep");
                }
            }
            drop(claim);
        };
        // Removing a large file takes time that a thread of the runtime does not have.
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(remove)),
            Err(_) => remove(),
        }
    }
}

/// A complete body on disk that no row names yet. Dropping it removes the file.
pub(super) struct Settled {
    store: Arc<Store>,
    claim: Option<Claim>,
    /// Its checksums.
    pub(super) sums: Sums,
}

impl Settled {
    fn take(&mut self) -> io::Result<Claim> {
        self.claim.take().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Drop for Settled {
    fn drop(&mut self) {
        if let Some(claim) = self.claim.take() {
            self.store.give_up(claim);
        }
    }
}

/// Runs `work` in a task of its own, which goes on when the caller is dropped.
async fn run<T: Send + 'static>(
    freeing: Freeing,
    work: impl Future<Output = Result<T, StoreError>> + Send + 'static,
) -> Result<T, StoreError> {
    let work = async move {
        let _until_then = freeing;
        work.await
    };
    match tokio::spawn(work).await {
        Ok(result) => result,
        Err(error) => Err(io::Error::other(error).into()),
    }
}

/// The wall clock, in milliseconds of Unix time.
pub(super) fn now_ms() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_millis()).unwrap_or(i64::MAX)
}
