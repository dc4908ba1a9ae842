//! How entries leave the spool.

use millpond_protocol::Refusal;

use super::disk::{self, at};
use super::store::Spool;
use super::{Entry, SpoolError};
use crate::transfer::sync_directory;

/// Refused entries that are kept for people to look at.
const REFUSED_MAX: usize = 1_000;

impl Spool {
    /// Entries leave: the server has receipted them.
    ///
    /// # Errors
    /// What the system says. Some may have left then.
    pub fn remove(&mut self, entries: &[Entry]) -> Result<(), SpoolError> {
        self.remove_unsynced(entries)?;
        self.sync_removed()
    }

    /// The same without a sync: until [`Spool::sync_removed`], a power cut brings them back, and they are sent once more.
    pub(crate) fn remove_unsynced(&mut self, entries: &[Entry]) -> Result<(), SpoolError> {
        self.changed(|spool| {
            entries.iter().try_for_each(|entry| spool.take_out(entry))?;
            spool.is_known()
        })
    }

    /// From now on, what was removed is gone for good.
    pub(crate) fn sync_removed(&self) -> Result<(), SpoolError> {
        let ready = self.root.join("ready");
        at(&ready, sync_directory(&ready))
    }

    /// An entry leaves because the server refuses it for good; it is kept beside, with the reason if the disk has room for that.
    ///
    /// # Errors
    /// What the system says.
    pub fn refuse(&mut self, entry: &Entry, refusal: &Refusal) -> Result<(), SpoolError> {
        self.changed(|spool| {
            let (refused, refusals) = (spool.root.join("refused"), spool.root.join("refusals"));
            let name = entry.to_string();
            let mut others = at(&refused, disk::list(&refused))?;
            if others.len() >= REFUSED_MAX {
                others.sort_unstable();
                for old in &others[..=others.len() - REFUSED_MAX] {
                    at(&refused, disk::remove(&refused.join(old.to_string())))?;
                    at(&refusals, disk::remove(&refusals.join(old.to_string())))?;
                }
                spool.log_dropped(&others[..=others.len() - REFUSED_MAX]);
            }
            let why = serde_json::to_vec(refusal).unwrap_or_default();
            let _ = disk::replace(&refusals.join(&name), &spool.scratch(), &why);
            match std::fs::rename(spool.path(entry), refused.join(&name)) {
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                renamed => at(&refused, renamed)?,
            }
            spool.forget(entry);
            at(&refused, sync_directory(&refused))?;
            spool.sync_ready()
        })
    }

    /// What the server refused, with the reasons.
    ///
    /// # Errors
    /// What the system says.
    pub fn refused(&self) -> Result<Vec<(Entry, Option<Refusal>)>, SpoolError> {
        let (refused, refusals) = (self.root.join("refused"), self.root.join("refusals"));
        let mut entries = at(&refused, disk::list(&refused))?;
        entries.sort_unstable();
        let why = |entry: &Entry| {
            std::fs::read(refusals.join(entry.to_string()))
                .ok()
                .and_then(|json| serde_json::from_slice(&json).ok())
        };
        Ok(entries.into_iter().map(|entry| (entry.clone(), why(&entry))).collect())
    }
}
