//! The few operations on files that the format is made of.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Read, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use super::entry::{ABOUT_MAX, TRAILER, description_length};
use super::{Document, Entry, SpoolError};
use crate::transfer::{parent, sync_directory};

/// Makes a directory for its owner alone, if it is not there. A new one is there after a power cut.
pub(crate) fn directory(path: &Path) -> io::Result<()> {
    made(path, DirBuilder::new().mode(0o700))
}

/// The same, and the caller syncs what it lies in.
pub(super) fn unsynced_directory(path: &Path) -> io::Result<()> {
    made_unsynced(path, DirBuilder::new().mode(0o700)).map(drop)
}

/// Makes directories of its owner alone in one that it has just made. The caller syncs that, and what it lies in.
pub(super) fn unsynced_directories(root: &Path, names: &[&str]) -> io::Result<()> {
    let mut how = DirBuilder::new();
    how.mode(0o700);
    names.iter().try_for_each(|name| created(&root.join(name), &how).map(drop))
}

/// Makes a directory and those that it lies in, as far as they are not there. New ones are there after a power cut.
pub(crate) fn directories(path: &Path) -> io::Result<()> {
    if path.as_os_str().is_empty() || path.is_dir() {
        return Ok(());
    }
    path.parent().map_or(Ok(()), directories)?;
    made(path, &DirBuilder::new())
}

/// The same, the last one for its owner alone if it is made here.
pub(crate) fn private_directories(path: &Path) -> io::Result<()> {
    directories(parent(path))?;
    directory(path)
}

fn made(path: &Path, how: &DirBuilder) -> io::Result<()> {
    if made_unsynced(path, how)? { sync_directory(parent(path)) } else { Ok(()) }
}

/// Whether it was made here.
fn made_unsynced(path: &Path, how: &DirBuilder) -> io::Result<bool> {
    if !path.exists() {
        // Whoever made the one that it lies in may have died before that was synced; somebody else's may be closed to us.
        let _ = sync_directory(parent(parent(path)));
    }
    created(path, how)
}

fn created(path: &Path, how: &DirBuilder) -> io::Result<bool> {
    match how.create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        made => made.map(|()| true),
    }
}

/// Opens a file for its owner alone, made if it is not there.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)
}

/// Replaces a small file as a whole. Not synced.
pub(crate) fn replace(path: &Path, scratch: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = open(scratch)?;
    file.set_len(0)?;
    file.write_all(content)?;
    std::fs::rename(scratch, path)
}

/// The change counter in the lock's file.
pub(super) fn changes(lock: &File) -> io::Result<u64> {
    let mut bytes = [0; 8];
    match lock.read_exact_at(&mut bytes, 0) {
        Ok(()) => Ok(u64::from_le_bytes(bytes)),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(0),
        Err(error) => Err(error),
    }
}

pub(super) fn set_changes(lock: &File, count: u64) -> io::Result<()> {
    lock.write_all_at(&count.to_le_bytes(), 0)
}

/// Every entry of a directory; other names are passed over.
pub(super) fn list(directory: &Path) -> io::Result<Vec<Entry>> {
    let mut entries = Vec::new();
    for item in std::fs::read_dir(directory)? {
        if let Some(entry) = item?.file_name().to_str().and_then(|name| name.parse().ok()) {
            entries.push(entry);
        }
    }
    Ok(entries)
}

/// Removes a file; that there is none is as good.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Reads an entry's description, and proves that it is that entry's. The inner error says what is wrong with it.
pub(super) fn describe(file: &mut File, entry: &Entry) -> io::Result<Result<Document, String>> {
    let length = file.metadata()?.len();
    let mut end = vec![0; usize::try_from(length).unwrap_or(usize::MAX).min(TRAILER)];
    file.seek(SeekFrom::Start(length - end.len() as u64))?;
    file.read_exact(&mut end)?;
    let about = match description_length(&end) {
        Ok(about) => about.min(ABOUT_MAX),
        Err(why) => return Ok(Err(why.to_owned())),
    };
    let whole = usize::try_from(length).unwrap_or(usize::MAX).min(about + TRAILER);
    let mut end = vec![0; whole];
    file.seek(SeekFrom::Start(length - whole as u64))?;
    file.read_exact(&mut end)?;
    file.seek(SeekFrom::Start(0))?;
    Ok(proven(&end, length, entry))
}

/// Reads an entry's description and its bytes, in as few calls as that takes: thousands of small ones are read in a row. The inner
/// error says what is wrong with it.
pub(super) fn load(file: File, entry: &Entry) -> io::Result<Result<(Document, Vec<u8>), String>> {
    // Longer than it can be, it is damaged: one byte more says so.
    let most = entry.size.saturating_add((ABOUT_MAX + TRAILER) as u64 + 1);
    let length = file.metadata()?.len().saturating_add(1);
    let mut bytes = Vec::with_capacity(usize::try_from(length.min(most)).unwrap_or(0));
    file.take(most).read_to_end(&mut bytes)?;
    let begin = usize::try_from(entry.size).unwrap_or(usize::MAX).min(bytes.len());
    Ok(match proven(&bytes[begin..], bytes.len() as u64, entry) {
        Ok(document) => {
            bytes.truncate(begin);
            Ok((document, bytes))
        }
        Err(why) => Err(why),
    })
}

/// The description at the end of a file of that length, if it is that entry's.
fn proven(end: &[u8], length: u64, entry: &Entry) -> Result<Document, String> {
    match Document::read(end, length) {
        Ok(document) if document.entry() == *entry => Ok(document),
        Ok(_) => Err("its name is another file's".to_owned()),
        Err(why) => Err(why.to_owned()),
    }
}

/// Replaces a small file as a whole: it is there after a power cut. `written` is told when the new one is synced and not in its place.
pub(crate) fn write_synced(
    path: &Path,
    scratch: &Path,
    content: &[u8],
    written: impl FnOnce(),
) -> io::Result<()> {
    let mut file = open(scratch)?;
    file.set_len(0)?;
    file.write_all(content)?;
    file.sync_all()?;
    written();
    std::fs::rename(scratch, path)?;
    sync_directory(parent(path))
}

/// With the path.
pub(super) fn at<T>(path: &Path, result: io::Result<T>) -> Result<T, SpoolError> {
    result.map_err(SpoolError::io(path))
}
