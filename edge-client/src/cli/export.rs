//! `spool export`.

use std::collections::HashSet;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use super::failure::{FAILED, Failure, RETRY};
use super::say;
use crate::spool::{Entry, Spool, SpoolError, directories, make_directory, open_private};
use crate::transfer::place;

pub(super) fn export(spool: &mut Spool, directory: &Path, remove: bool) -> Result<(), Failure> {
    let _sending =
        spool.sending()?.ok_or_else(|| Failure::new(RETRY, "another process is sending from this spool"))?;
    let failed =
        |path: &Path, error: std::io::Error| Failure::new(FAILED, format!("{}: {error}", path.display()));
    let (files, about) = (directory.join("files"), directory.join("about"));
    directories(directory).map_err(|error| failed(directory, error))?;
    for path in [&files, &about] {
        make_directory(path).map_err(|error| failed(path, error))?;
    }
    let entries: Vec<Entry> = spool.entries()?.cloned().collect();
    let mut done = HashSet::new();
    let (mut gone, mut damaged) = (0, 0);
    for entry in &entries {
        // A push that is full may drop it at any time.
        let document = match spool.describe(entry) {
            Err(SpoolError::Gone(_)) => {
                gone += 1;
                continue;
            }
            Err(SpoolError::Damaged { .. }) => {
                damaged += 1;
                continue;
            }
            document => document?,
        };
        let json = serde_json::to_vec_pretty(&document).unwrap_or_default();
        let from = match std::fs::File::open(spool.path(entry)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                gone += 1;
                continue;
            }
            from => from?,
        };
        let (file, said) = (files.join(entry.upload.as_str()), about.join(entry.upload.as_str()));
        let partial = copy(&mut from.take(entry.size), &file)?;
        if crate::transfer::digest(&partial, entry.size, None)?.sha256 != document.sha256 {
            let _ = std::fs::remove_file(&partial);
            spool.put_aside(entry, "its bytes are not those that were pushed".into());
            damaged += 1;
            continue;
        }
        place(&partial, &file)?;
        place(&copy(&mut json.as_slice(), &said)?, &said)?;
        done.insert(entry);
        if remove {
            spool.remove(std::slice::from_ref(entry))?;
        }
    }
    let gone = if gone > 0 { format!(", {gone} had left the spool") } else { String::new() };
    say(format_args!("{} files exported to {}{gone}", done.len(), directory.display()))?;
    match damaged {
        0 => Ok(()),
        n => Err(Failure::new(FAILED, format!("{n} files are damaged: `spool list` names them"))),
    }
}

/// Writes a synced file beside that name, to be put in its place. It is its owner's alone, as it was in the spool.
fn copy(from: &mut impl std::io::Read, to: &Path) -> Result<PathBuf, Failure> {
    let name = to.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let partial = to.with_file_name(format!(".{name}.part"));
    let mut write = || {
        // What is there may be an earlier export's, cut off, or anybody's: neither its bytes nor its mode are ours.
        match std::fs::remove_file(&partial) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file = open_private(&partial)?;
        std::io::copy(from, &mut file)?;
        file.sync_all()
    };
    if let Err(error) = write() {
        // It takes room that somebody may need.
        let _ = std::fs::remove_file(&partial);
        return Err(Failure::new(FAILED, format!("{}: {error}", partial.display())));
    }
    Ok(partial)
}
