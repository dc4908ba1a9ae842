//! Directories: their names survive a power cut, their disks have room or not, and databases are in them or not.

use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;

/// Makes a directory, and those above it that are missing, so that only their owner can enter them. One that is there stays
/// as it is.
///
/// # Errors
/// It cannot be made, or synced.
pub fn make_private(dir: &Path) -> io::Result<()> {
    let is_new = |dir: &&Path| !dir.as_os_str().is_empty() && !dir.is_dir();
    let new: Vec<_> = dir.ancestors().take_while(is_new).collect();
    if let Some(there) = dir.ancestors().nth(new.len()).filter(|there| there.file_name().is_some()) {
        // Whoever made it may have died before its name was synced. Where that cannot be done, an operator made it, or it is
        // where a disk is mounted.
        let _ = sync_name_of(there);
    }
    // From above: each lies in one whose name is synced.
    for dir in new.into_iter().rev() {
        match DirBuilder::new().mode(0o700).create(dir) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && dir.is_dir() => {}
            made => made?,
        }
        sync_name_of(dir)?;
    }
    Ok(())
}

/// Makes the name of a file or a directory survive a power cut.
///
/// # Errors
/// The directory that it is in cannot be synced.
pub fn sync_name_of(path: &Path) -> io::Result<()> {
    let above = path.parent().filter(|above| !above.as_os_str().is_empty());
    File::open(above.unwrap_or_else(|| Path::new(".")))?.sync_all()
}

/// Bytes that the disk of a directory has left for its user.
///
/// # Errors
/// There is no such directory.
pub fn free(dir: &Path) -> io::Result<u64> {
    let disk = rustix::fs::statvfs(dir)?;
    Ok(disk.f_bavail.saturating_mul(disk.f_frsize))
}

/// Whether a disk has no room, at all or for this user: nothing is wrong with it otherwise, and room can be made.
pub fn is_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}

/// Whether there is no SQLite database at all: neither the file nor the log beside it has a byte.
pub fn is_blank(database: &Path) -> bool {
    let holds = |path: &Path| path.metadata().is_ok_and(|file| file.len() > 0);
    let mut log = database.as_os_str().to_owned();
    log.push("-wal");
    !holds(database) && !holds(Path::new(&log))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn every_level_that_is_made_is_its_owners_alone_and_what_is_there_stays() {
        let root = tempfile::tempdir().unwrap();
        std::fs::set_permissions(root.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let deep = root.path().join("a/b/c");
        make_private(&deep).unwrap();
        make_private(&deep).unwrap();
        let mode = |dir: &Path| dir.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(&deep), mode(&root.path().join("a")), mode(root.path())), (0o700, 0o700, 0o755));
    }
}
