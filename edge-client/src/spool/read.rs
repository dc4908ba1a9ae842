//! Entries read into memory, on any thread while the spool itself is busy.

use std::fs::File;
use std::io;
use std::path::PathBuf;

use millpond_protocol::Sha256;

use super::disk::{self, at};
use super::store::Spool;
use super::{Document, Entry, SpoolError};

/// Reads entries that wait. It changes nothing, and needs no lock.
#[derive(Debug, Clone)]
pub(crate) struct Reader(PathBuf);

/// Why an entry was not read.
#[derive(Debug)]
pub(crate) enum Unread {
    Gone,
    /// What was written is not what is read.
    Damaged(String),
    System(SpoolError),
}

impl Reader {
    /// An entry with its bytes, whole in memory, proven.
    pub(crate) fn load(&self, entry: &Entry) -> Result<(Document, Vec<u8>), Unread> {
        let file = self.open(entry)?;
        let loaded = at(&self.0, disk::load(file, entry)).map_err(Unread::System)?;
        let (document, bytes) = loaded.map_err(Unread::Damaged)?;
        if Sha256::of(&bytes) != document.sha256 {
            return Err(Unread::Damaged("its bytes are not what was written".to_owned()));
        }
        Ok((document, bytes))
    }

    /// What is known of an entry.
    pub(crate) fn describe(&self, entry: &Entry) -> Result<Document, Unread> {
        let mut file = self.open(entry)?;
        let described = at(&self.0.join(entry.to_string()), disk::describe(&mut file, entry));
        described.map_err(Unread::System)?.map_err(Unread::Damaged)
    }

    pub(super) fn open(&self, entry: &Entry) -> Result<File, Unread> {
        let path = self.0.join(entry.to_string());
        match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Unread::Gone),
            file => at(&path, file).map_err(Unread::System),
        }
    }
}

impl Spool {
    /// Reads its entries, wherever it is sent to.
    pub(crate) fn reader(&self) -> Reader {
        Reader(self.path_of_waiting())
    }

    /// What a reader found is the spool's error; a damaged entry goes out of the way.
    pub(crate) fn unread(&self, entry: &Entry, unread: Unread) -> SpoolError {
        match unread {
            Unread::Gone => SpoolError::Gone(entry.clone()),
            Unread::Damaged(why) => self.put_aside(entry, why),
            Unread::System(error) => error,
        }
    }
}
