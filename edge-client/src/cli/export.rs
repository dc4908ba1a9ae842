//! `spool export`.

use std::fs::File;
use std::io::{self, Read, Write as _};
use std::path::{Path, PathBuf};

use serde_json::json;

use super::failure::{FAILED, Failure, RETRY};
use super::{Cli, say};
use crate::spool::{About, Document, Entry, Spool, SpoolError, directories, make_directory, open_private};
use crate::transfer::{digest, is_full, place};

/// What became of one entry.
enum Export {
    Done,
    /// The copy is there, and the disk does not let the entry go.
    Stays(SpoolError),
    /// It has left the spool.
    Gone,
    /// It lies beside the others now.
    Damaged,
    /// The disk does not give it: it waits as it is.
    Unread(io::Error),
}

/// Why a copy did not come about.
enum NotCopied {
    Unread(io::Error),
    Unwritten(Failure),
}

/// Where copies go.
struct To {
    files: PathBuf,
    about: PathBuf,
}

pub(super) fn export(cli: &Cli, spool: &mut Spool, directory: &Path, remove: bool) -> Result<(), Failure> {
    let _sending =
        spool.sending()?.ok_or_else(|| Failure::new(RETRY, "another process is sending from this spool"))?;
    let to = To { files: directory.join("files"), about: directory.join("about") };
    directories(directory).map_err(|error| failed(directory, &error))?;
    for path in [&to.files, &to.about] {
        make_directory(path).map_err(|error| failed(path, &error))?;
    }
    let entries: Vec<Entry> = spool.entries()?.cloned().collect();
    let (mut done, mut gone, mut damaged, mut unread, mut stay) = (0, 0, 0, 0, 0);
    for entry in &entries {
        match one(spool, entry, &to, remove)? {
            Export::Done => done += 1,
            Export::Gone => gone += 1,
            Export::Damaged => damaged += 1,
            Export::Unread(why) => {
                eprintln!("millpond-edge: {}: {why}: it is not exported", spool.path(entry).display());
                unread += 1;
            }
            Export::Stays(why) => {
                eprintln!("millpond-edge: {why}: it is exported, and waits still");
                (done, stay) = (done + 1, stay + 1);
            }
        }
    }
    if cli.json {
        let line =
            json!({ "exported": done, "gone": gone, "damaged": damaged, "unread": unread, "stay": stay });
        say(format_args!("{line}"))?;
    } else {
        let gone = if gone > 0 { format!(", {gone} had left the spool") } else { String::new() };
        say(format_args!("{done} files exported to {}{gone}", directory.display()))?;
    }
    let wrong: Vec<String> = [
        (damaged, "are damaged: `spool list` names them"),
        (unread, "could not be read and were left out"),
        (stay, "could not be removed"),
    ]
    .into_iter()
    .filter(|(count, _)| *count > 0)
    .map(|(count, what)| format!("{count} files {what}"))
    .collect();
    if wrong.is_empty() { Ok(()) } else { Err(Failure::new(FAILED, wrong.join("; "))) }
}

fn one(spool: &mut Spool, entry: &Entry, to: &To, remove: bool) -> Result<Export, Failure> {
    // A push that is full may drop it at any time.
    let document = match spool.describe(entry) {
        Err(SpoolError::Gone(_)) => return Ok(Export::Gone),
        Err(SpoolError::Damaged { .. }) => return Ok(Export::Damaged),
        Err(SpoolError::Io { source, .. }) => return Ok(Export::Unread(source)),
        document => document?,
    };
    // Elsewhere nobody knows what the clocks of this machine say.
    let about = &document.about;
    let event_time = about.event_time.or_else(|| about.captured.anchored(&spool.anchors()));
    let said = Document { about: About { event_time, ..about.clone() }, ..document.clone() };
    let json = serde_json::to_vec_pretty(&said).unwrap_or_default();
    let from = match File::open(spool.path(entry)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Export::Gone),
        Err(error) => return Ok(Export::Unread(error)),
        Ok(from) => from,
    };
    let (file, said) = (to.files.join(entry.upload.as_str()), to.about.join(entry.upload.as_str()));
    let partial = match copy(&mut from.take(entry.size), &file) {
        Err(NotCopied::Unread(error)) => return Ok(Export::Unread(error)),
        Err(NotCopied::Unwritten(failure)) => return Err(failure),
        Ok(partial) => partial,
    };
    let is_whole = match digest(&partial, entry.size, None) {
        Ok(written) => written.sha256 == document.sha256,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => false,
        Err(error) => return Err(failed(&partial, &error)),
    };
    if !is_whole {
        let _ = std::fs::remove_file(&partial);
        spool.put_aside(entry, "its bytes are not those that were pushed".into());
        return Ok(Export::Damaged);
    }
    place(&partial, &file)?;
    let about = copy(&mut json.as_slice(), &said).map_err(|error| match error {
        NotCopied::Unread(error) => failed(&said, &error),
        NotCopied::Unwritten(failure) => failure,
    })?;
    place(&about, &said)?;
    if remove {
        match spool.remove(std::slice::from_ref(entry)) {
            Err(error @ SpoolError::Io { .. }) => return Ok(Export::Stays(error)),
            removed => removed?,
        }
    }
    Ok(Export::Done)
}

fn failed(path: &Path, error: &io::Error) -> Failure {
    Failure::new(if is_full(error) { RETRY } else { FAILED }, format!("{}: {error}", path.display()))
}

/// Writes a synced file beside that name, to be put in its place. It is its owner's alone, as it was in the spool.
fn copy(from: &mut impl Read, to: &Path) -> Result<PathBuf, NotCopied> {
    let name = to.file_name().unwrap_or_default().to_string_lossy().into_owned();
    let partial = to.with_file_name(format!(".{name}.part"));
    let copied = write(from, &partial);
    if copied.is_err() {
        // It takes room that somebody may need.
        let _ = std::fs::remove_file(&partial);
    }
    copied.map(|()| partial)
}

fn write(from: &mut impl Read, partial: &Path) -> Result<(), NotCopied> {
    let unwritten = |error| NotCopied::Unwritten(failed(partial, &error));
    // What is there may be an earlier export's, cut off, or anybody's: neither its bytes nor its mode are ours.
    match std::fs::remove_file(partial) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(unwritten(error)),
        _ => {}
    }
    let mut file = open_private(partial).map_err(unwritten)?;
    let mut buffer = vec![0; 128 << 10];
    loop {
        match from.read(&mut buffer) {
            Ok(0) => return file.sync_all().map_err(unwritten),
            Ok(n) => file.write_all(&buffer[..n]).map_err(unwritten)?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(NotCopied::Unread(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A disk that gives the beginning of a file.
    struct Half(bool);

    impl Read for Half {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            if std::mem::replace(&mut self.0, true) {
                return Err(io::Error::from_raw_os_error(rustix::io::Errno::IO.raw_os_error()));
            }
            buffer[..3].copy_from_slice(b"abc");
            Ok(3)
        }
    }

    #[test]
    fn what_the_disk_does_not_give_is_told_from_what_the_other_one_does_not_take_and_leaves_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let to = directory.path().join("file");
        assert!(matches!(copy(&mut Half(false), &to), Err(NotCopied::Unread(_))));
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
        let nowhere = directory.path().join("no/file");
        assert!(matches!(copy(&mut Half(false), &nowhere), Err(NotCopied::Unwritten(_))));
    }
}
