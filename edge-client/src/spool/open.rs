//! How a spool is opened, and begun.

use std::collections::{BTreeSet, HashSet};
use std::path::Path;
use std::sync::Weak;

use millpond_failpoint::{Point, reach};

use super::disk::{self, at};
use super::room::Limits;
use super::store::Spool;
use super::{SpoolError, dropped, mend};
use crate::transfer::{parent, sync_directory};

pub(super) const VERSION: &str = "millpond-spool 2";
/// The one before, whose notes had no checksums.
const UNSEALED: &str = "millpond-spool 1";

impl Spool {
    /// Opens a spool, made if there is none, and sweeps what processes that died left behind.
    ///
    /// # Errors
    /// `Foreign`, or what the system says.
    pub fn open(root: &Path, limits: Limits) -> Result<Self, SpoolError> {
        at(root, disk::unsynced_directory(root))?;
        let lock = at(root, disk::open(&root.join("lock")))?;
        let mut spool = Self {
            root: root.to_owned(),
            limits,
            lock,
            known: None,
            ready: BTreeSet::new(),
            ids: HashSet::new(),
            bytes: 0,
            readings: 0,
            reserved: Weak::new(),
            damaged_notes: Vec::new(),
            left_in_notes: Vec::new(),
        };
        at(root, spool.lock.lock())?;
        let opened = spool.prepare().and_then(|()| spool.refresh()).map(|()| spool.mend());
        at(root, spool.lock.unlock())?;
        (spool.damaged_notes, spool.left_in_notes) = opened?;
        Ok(spool)
    }

    fn prepare(&self) -> Result<(), SpoolError> {
        let version = self.root.join("version");
        // Without the line's end too: somebody may have written it by hand.
        match std::fs::read(&version).map(|text| text.trim_ascii_end().to_owned()) {
            Ok(text) if text == VERSION.as_bytes() => {}
            Ok(text) if text == UNSEALED.as_bytes() => {
                at(&self.root, mend::seal_notes(&self.root, &self.scratch()))?;
                at(&version, self.write_version(&version))?;
            }
            Ok(_) => return Err(SpoolError::Foreign(self.root.clone())),
            // The first opening, or one that died.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => at(&version, self.found(&version))?,
            Err(error) => return Err(SpoolError::io(&version)(error)),
        }
        self.sweep()?;
        dropped::settle(&self.root);
        Ok(())
    }

    fn found(&self, version: &Path) -> std::io::Result<()> {
        disk::unsynced_directories(&self.root, &["ready", "refused", "refusals", "damaged", "staging"])?;
        reach(Point::SpoolFounding);
        // Once for all of them, and for the spool's own name, whoever made it: the version comes last, and where it is nobody
        // syncs them again.
        sync_directory(&self.root)?;
        sync_directory(parent(&self.root))?;
        self.write_version(version)
    }

    fn write_version(&self, version: &Path) -> std::io::Result<()> {
        // Whole before it has its name: a power cut may leave of a new file its length without its bytes.
        let line = format!("{VERSION}\n");
        disk::write_synced(version, &self.root.join("version.new"), line.as_bytes(), || {})
    }
}
