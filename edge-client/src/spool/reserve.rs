//! Room for files on their way into the spool. What each process has taken of it lies where the others see it, so that all that is
//! staged together with all that waits is no more than the spool may hold.

use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Display, Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::SpoolError;
use super::disk::{self, at};
use super::room::WhenFull;
use super::store::Spool;
use crate::backoff::random;

/// Bytes that a copy takes at once where nobody knows its size.
const STEP: u64 = 8 << 20;

/// Files and their bytes.
type Sum = (u64, u64);

/// What the files take that a spool's value has staged. Its lock says that somebody still wants it; dropped, it is removed.
#[derive(Debug)]
pub(super) struct Reserved {
    path: PathBuf,
    file: File,
    sum: Mutex<Sum>,
}

impl Reserved {
    fn sum(&self) -> MutexGuard<'_, Sum> {
        self.sum.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, sum: &mut Sum, (files, bytes): Sum) -> io::Result<()> {
        *sum = (files, bytes);
        self.file.write_all_at(&[files.to_le_bytes(), bytes.to_le_bytes()].concat(), 0)
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        // What stays behind is swept by whoever looks next.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// The room of one file. Dropped, it is free again.
#[derive(Debug)]
pub(super) struct Claim {
    of: Arc<Reserved>,
    bytes: u64,
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut sum = self.of.sum();
        let left = (sum.0.saturating_sub(1), sum.1.saturating_sub(self.bytes));
        // Without the spool's lock: somebody sees less room for a moment than there is.
        let _ = self.of.set(&mut sum, left);
    }
}

impl Claim {
    /// The name of the reservation that it is part of.
    pub(super) fn of(&self) -> Display<'_> {
        Path::new(self.of.path.file_name().unwrap_or_default()).display()
    }

    /// Files of that reservation, with this one.
    pub(super) fn files(&self) -> u64 {
        self.of.sum().0
    }

    /// The file turned out to be so long.
    pub(super) fn shrink(&mut self, bytes: u64) {
        let mut sum = self.of.sum();
        let left = (sum.0, sum.1.saturating_sub(self.bytes.saturating_sub(bytes)));
        let _ = self.of.set(&mut sum, left);
        self.bytes = self.bytes.min(bytes);
    }
}

impl Spool {
    /// Takes room for one file of so many bytes.
    pub(super) fn claim(&mut self, bytes: u64) -> Result<Claim, SpoolError> {
        self.under_lock(|spool| {
            let of = spool.reserved()?;
            spool.take_room(&of, (1, bytes))?;
            Ok(Claim { of, bytes })
        })
    }

    /// Takes more of it for a file that is longer than that: room for a while, or as much as it needs now.
    pub(super) fn extend(&mut self, claim: &mut Claim, bytes: u64) -> Result<(), SpoolError> {
        let needed = bytes.saturating_sub(claim.bytes);
        if needed == 0 {
            return Ok(());
        }
        self.under_lock(|spool| {
            for more in [needed.max(STEP), needed] {
                match spool.take_room(&claim.of, (0, more)) {
                    Err(SpoolError::Full { .. }) if more > needed => {}
                    taken => {
                        claim.bytes += if taken.is_ok() { more } else { 0 };
                        return taken;
                    }
                }
            }
            Ok(())
        })
    }

    fn under_lock<T>(
        &mut self,
        work: impl FnOnce(&mut Self) -> Result<T, SpoolError>,
    ) -> Result<T, SpoolError> {
        at(&self.root, self.lock.lock())?;
        let done = self.refresh().and_then(|()| work(self));
        at(&self.root, self.lock.unlock())?;
        done
    }

    /// Under the lock: this value's own, made if there is none.
    fn reserved(&mut self) -> Result<Arc<Reserved>, SpoolError> {
        if let Some(reserved) = self.reserved.upgrade() {
            return Ok(reserved);
        }
        let directory = self.reservations();
        at(&directory, disk::unsynced_directory(&directory))?;
        let path = directory.join(format!("{:016x}", random()));
        let file = at(&path, disk::open(&path))?;
        at(&path, file.lock())?;
        let reserved = Arc::new(Reserved { path, file, sum: Mutex::default() });
        self.reserved = Arc::downgrade(&reserved);
        Ok(reserved)
    }

    /// Under the lock: whether the process lives that has that reservation.
    pub(super) fn is_reserved(&self, of: &str) -> Result<bool, SpoolError> {
        let path = self.reservations().join(of);
        Ok(at(&path, taken(&path))?.is_some())
    }

    fn reservations(&self) -> PathBuf {
        self.root.join("reserved")
    }

    /// Under the lock: so much more, if it fits beside what waits and what others have taken.
    fn take_room(&mut self, own: &Reserved, (files, bytes): Sum) -> Result<(), SpoolError> {
        let (others_files, others_bytes) = self.taken_by_others(own)?;
        let mut sum = own.sum();
        let staged = (others_files.saturating_add(sum.0), others_bytes.saturating_add(sum.1));
        let waiting = match self.limits.when_full {
            WhenFull::RefuseNew => (self.ready.len() as u64, self.bytes),
            // What waits makes room.
            WhenFull::DropOldest => (0, 0),
        };
        let held = (staged.0.saturating_add(waiting.0), staged.1.saturating_add(waiting.1));
        if held.0.saturating_add(files) > self.limits.files
            || held.1.saturating_add(bytes) > self.limits.bytes
        {
            return Err(SpoolError::Full {
                files: held.0,
                bytes: held.1,
                max_files: self.limits.files,
                max_bytes: self.limits.bytes,
            });
        }
        let more = (sum.0.saturating_add(files), sum.1.saturating_add(bytes));
        at(&own.path, own.set(&mut sum, more))
    }

    /// What all others have taken. Those that died have nothing any more.
    fn taken_by_others(&self, own: &Reserved) -> Result<Sum, SpoolError> {
        let directory = self.reservations();
        let mut sum = (0_u64, 0_u64);
        for item in at(&directory, std::fs::read_dir(&directory))? {
            let path = at(&directory, item)?.path();
            if path != own.path
                && let Some((files, bytes)) = at(&path, taken(&path))?
            {
                sum = (sum.0.saturating_add(files), sum.1.saturating_add(bytes));
            }
        }
        Ok(sum)
    }
}

/// What a process has taken. None: it has gone, and so is its file.
fn taken(path: &Path) -> io::Result<Option<Sum>> {
    // To write, though nothing is written: over NFS an exclusive lock wants that.
    let file = match File::options().read(true).write(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    match file.try_lock() {
        Ok(()) => return disk::remove(path).map(|()| None),
        Err(TryLockError::WouldBlock) => {}
        Err(TryLockError::Error(error)) => return Err(error),
    }
    let mut bytes = [0; 16];
    match file.read_exact_at(&mut bytes, 0) {
        Ok(()) => {}
        // Nothing is taken yet.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
        Err(error) => return Err(error),
    }
    let (files, bytes) = bytes.split_at(8);
    let number = |bytes: &[u8]| u64::from_le_bytes(bytes.try_into().unwrap_or_default());
    Ok(Some((number(files), number(bytes))))
}
