//! What is taken although no row says so: bytes of the quota, names of files, and objects that somebody reads.
//!
//! Nothing of it outlives the process. A start counts the rows, and files without a row are strays then.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::blobs::BlobId;

/// The bytes that the bucket has, and what must not be swept.
pub(super) struct Room {
    /// Bytes that objects, parts and bodies on their way may take together.
    quota: u64,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    used: u64,
    /// Files that are no row's yet, or whose row's fate is not known.
    claimed: HashSet<BlobId>,
    reading: HashMap<BlobId, Reading>,
    /// Changes under way after which rows may name fewer files. Until each has said which, nobody knows who reads those.
    freeing: usize,
}

/// An object in parts that somebody reads.
#[derive(Default)]
struct Reading {
    readers: usize,
    /// Its files, once it is gone.
    doomed: Vec<BlobId>,
}

/// The bucket has no room for a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct OverQuota {
    pub(super) quota: u64,
}

impl Room {
    pub(super) fn new(quota: u64, used: u64) -> Arc<Self> {
        Arc::new(Self { quota, state: Mutex::new(State { used, ..State::default() }) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes room for a body of `size` bytes that becomes the file `blob`.
    pub(super) fn claim(self: &Arc<Self>, blob: BlobId, size: u64) -> Result<Claim, OverQuota> {
        let mut state = self.state();
        let used = state.used.saturating_add(size);
        if used > self.quota {
            return Err(OverQuota { quota: self.quota });
        }
        state.used = used;
        state.claimed.insert(blob);
        Ok(Claim { room: Arc::clone(self), blob, size })
    }

    /// Gives back the bytes of what rows no longer name.
    pub(super) fn free(&self, bytes: u64) {
        let mut state = self.state();
        state.used = state.used.saturating_sub(bytes);
    }

    /// Bytes taken now.
    #[cfg(test)]
    pub(super) fn used(&self) -> u64 {
        self.state().used
    }

    /// Whether a file must stay although no row names it.
    pub(super) fn holds(&self, blob: BlobId) -> bool {
        let state = self.state();
        state.freeing > 0
            || state.claimed.contains(&blob)
            || state.reading.values().any(|reading| reading.doomed.contains(&blob))
    }

    /// Begins a change after which rows may name fewer files. To be dropped once [`Room::doom`] knows those.
    pub(super) fn freeing(self: &Arc<Self>) -> Freeing {
        self.state().freeing += 1;
        Freeing { room: Arc::clone(self) }
    }

    /// Keeps the files of an object in parts while somebody reads it.
    pub(super) fn read(&self, object: BlobId) -> Pin {
        self.state().reading.entry(object).or_default().readers += 1;
        Pin { object }
    }

    /// Ends a reading and returns the files to remove: those of an object that has gone meanwhile, with its last reader.
    pub(super) fn release(&self, pin: &Pin) -> Vec<BlobId> {
        let mut state = self.state();
        let Some(reading) = state.reading.get_mut(&pin.object) else { return Vec::new() };
        reading.readers -= 1;
        if reading.readers > 0 {
            return Vec::new();
        }
        state.reading.remove(&pin.object).map(|reading| reading.doomed).unwrap_or_default()
    }

    /// The files of an object that is gone, as far as they may be removed now: those of one that is being read come out
    /// of the last [`Room::release`].
    pub(super) fn doom(&self, object: BlobId, files: Vec<BlobId>) -> Vec<BlobId> {
        match self.state().reading.get_mut(&object) {
            Some(reading) => {
                reading.doomed.extend(files);
                Vec::new()
            }
            None => files,
        }
    }
}

/// Room for one body. Dropping it gives the room back.
pub(super) struct Claim {
    room: Arc<Room>,
    blob: BlobId,
    size: u64,
}

impl Claim {
    pub(super) fn blob(&self) -> BlobId {
        self.blob
    }

    pub(super) fn size(&self) -> u64 {
        self.size
    }

    /// A row names the file now: its bytes stay taken.
    pub(super) fn keep(mut self) {
        self.size = 0;
    }

    /// Whether a row names the file will be known after the next start: until then it stays.
    pub(super) fn abandon(self) {
        std::mem::forget(self);
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        let mut state = self.room.state();
        state.claimed.remove(&self.blob);
        state.used = state.used.saturating_sub(self.size);
    }
}

/// A change under way after which rows may name fewer files.
pub(super) struct Freeing {
    room: Arc<Room>,
}

impl Drop for Freeing {
    fn drop(&mut self) {
        self.room.state().freeing -= 1;
    }
}

/// An object in parts that somebody reads. To be released in the end.
#[must_use]
pub(super) struct Pin {
    object: BlobId,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(n: u8) -> BlobId {
        BlobId([n; 16])
    }

    #[test]
    fn bodies_on_their_way_count_until_they_are_given_up() {
        let room = Room::new(100, 10);
        let first = room.claim(id(1), 60).ok().unwrap();
        assert_eq!(room.claim(id(2), 31).err(), Some(OverQuota { quota: 100 }));
        assert!(room.holds(id(1)) && !room.holds(id(2)));
        let second = room.claim(id(3), 30).ok().unwrap();
        drop(first);
        assert!(!room.holds(id(1)));
        second.keep();
        assert_eq!(room.used(), 40);
        room.free(30);
        assert_eq!(room.used(), 10);
    }

    #[test]
    fn nothing_is_swept_while_a_row_goes_whose_reader_is_not_known_yet() {
        let room = Room::new(100, 0);
        let pin = room.read(id(1));
        let freeing = room.freeing();
        // Here its row goes.
        assert!(room.holds(id(2)));
        assert_eq!(room.doom(id(1), vec![id(2)]), []);
        drop(freeing);
        assert!(room.holds(id(2)) && !room.holds(id(3)));
        assert_eq!(room.release(&pin), [id(2)]);
    }

    #[test]
    fn what_is_being_read_goes_with_its_last_reader() {
        let room = Room::new(100, 0);
        let (one, two) = (room.read(id(1)), room.read(id(1)));
        assert_eq!(room.doom(id(1), vec![id(2), id(3)]), []);
        assert_eq!(room.doom(id(9), vec![id(4)]), [id(4)]);
        assert!(room.holds(id(2)));
        assert_eq!(room.release(&one), []);
        assert_eq!(room.release(&two), [id(2), id(3)]);
        assert!(!room.holds(id(2)));
    }
}
