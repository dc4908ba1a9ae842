//! Directories that a command has worked in: they go with all that is in them.

use std::fs::DirEntry;
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

/// Removes a directory, and what a command has made read-only in it; that there is none is as good.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            open_to_owner(path);
            std::fs::remove_dir_all(path)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

/// Makes the directories of a tree their owner's to change, as far as they are ours. Links are not followed.
fn open_to_owner(tree: &Path) {
    let mut directories = vec![tree.to_owned()];
    while let Some(path) = directories.pop() {
        // What cannot be opened stays, and whoever removes the tree learns it.
        let Ok(found) = std::fs::symlink_metadata(&path) else { continue };
        let mut mode = found.permissions();
        mode.set_mode(mode.mode() | 0o700);
        let _ = std::fs::set_permissions(&path, mode);
        let items = std::fs::read_dir(&path).into_iter().flatten().flatten();
        let is_directory = |item: &DirEntry| item.file_type().is_ok_and(|kind| kind.is_dir());
        directories.extend(items.filter(is_directory).map(|item| item.path()));
    }
}
