//! `spool import`: what `spool export` wrote comes into a spool, with all that is known of it.

use std::fmt::Display;
use std::fs::File;
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};

use millpond_protocol::{Timestamp, UploadId};
use serde_json::json;

use super::failure::{FAILED, Failure};
use super::{Cli, push, say};
use crate::clock::Stamp;
use crate::spool::{About, Document, Spool, SpoolError, Staged};

/// Files that are synced, and shown, together: what the spool holds open.
const TOGETHER: usize = 32;
/// Bytes that a description may have: what a spool takes has a quarter of it, without its line breaks.
const ABOUT_MAX: u64 = 256 << 10;

/// What became of one file.
enum Import {
    Staged(Box<Staged>),
    /// It is in the spool already.
    Waits,
    /// It is not what was exported, or cannot be had.
    Wrong(String),
}

/// A file that is read, and whether it let itself be read.
struct Source {
    file: File,
    is_unread: bool,
}

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.file.read(buffer).inspect_err(|error| self.is_unread |= error.kind() != ErrorKind::Interrupted)
    }
}

pub(super) fn import(cli: &Cli, spool: &mut Spool, directory: &Path) -> Result<(), Failure> {
    let (mut new, mut known, mut wrong, mut stopped) = (0, 0, 0, None);
    for some in described(&directory.join("about"))?.chunks(TOGETHER) {
        let mut staged = Vec::new();
        for about in some {
            match one(spool, about, &directory.join("files")) {
                Ok(Import::Staged(file)) => staged.push(*file),
                Ok(Import::Waits) => known += 1,
                Ok(Import::Wrong(why)) => {
                    eprintln!("millpond-edge: {why}: it is not imported");
                    wrong += 1;
                }
                Err(error) => {
                    stopped = Some(error);
                    break;
                }
            }
        }
        match spool.add(staged) {
            Ok(added) => {
                push::say_dropped(&added.dropped);
                (new, known) = (new + added.new.len(), known + added.known.len());
            }
            Err(error) => stopped = stopped.or(Some(error)),
        }
        if stopped.is_some() {
            break;
        }
    }
    if cli.json {
        say(format_args!("{}", json!({ "imported": new, "known": known, "left_out": wrong })))?;
    } else {
        let known = if known > 0 { format!(", {known} were in the spool") } else { String::new() };
        say(format_args!("{new} files imported from {}{known}", directory.display()))?;
    }
    if let Some(error) = stopped {
        let is_full = matches!(error, SpoolError::Full { .. });
        let mut failure = Failure::from(error);
        if is_full {
            failure.message += ": raise --spool-files / --spool-bytes, or flush and import the rest";
        }
        return Err(failure);
    }
    if wrong > 0 {
        return Err(Failure::new(FAILED, format!("{wrong} files were left out")));
    }
    Ok(())
}

/// What an export says of its files, in order.
fn described(about: &Path) -> Result<Vec<PathBuf>, Failure> {
    let listed = std::fs::read_dir(about).and_then(|items| {
        items.map(|item| item.map(|item| item.path())).collect::<io::Result<Vec<PathBuf>>>()
    });
    let mut listed = listed.map_err(|error| {
        let what = "is this a directory that `spool export` wrote?";
        Failure::new(FAILED, format!("{}: {error}: {what}", about.display()))
    })?;
    // What an export that was cut off has left has no whole name.
    listed.retain(|path| upload(path).is_some());
    listed.sort_unstable();
    Ok(listed)
}

fn upload(path: &Path) -> Option<UploadId> {
    path.file_name()?.to_str()?.parse().ok()
}

/// Copies one, unless it waits. An error is the spool's.
fn one(spool: &mut Spool, about: &Path, files: &Path) -> Result<Import, SpoolError> {
    let wrong = |path: &Path, what: &dyn Display| Ok(Import::Wrong(format!("{}: {what}", path.display())));
    let document = match document(about) {
        Ok(document) if upload(about).as_ref() == Some(&document.about.upload) => document,
        Ok(_) => return wrong(about, &"it speaks of another file"),
        Err(error) => return wrong(about, &error),
    };
    let path = files.join(document.about.upload.as_str());
    match spool.waiting(&document.about.upload, &document.sha256) {
        Err(error @ SpoolError::Conflict(_)) => return wrong(&path, &error),
        waiting => {
            if waiting?.is_some() {
                return Ok(Import::Waits);
            }
        }
    }
    let (file, length) = match regular(&path) {
        Ok(found) => found,
        Err(error) => return wrong(&path, &error),
    };
    // Before room is taken for what it says.
    if length != document.size {
        return wrong(&path, &"it has another size than what was exported");
    }
    let mut source = Source { file, is_unread: false };
    let known = dated(spool, document.about);
    let staged = match spool.stage_sized(&mut source, length, |_| known) {
        Err(error @ SpoolError::TooLong(_)) => return wrong(about, &error),
        Err(SpoolError::Io { source: error, .. }) if source.is_unread => return wrong(&path, &error),
        staged => staged?,
    };
    if (staged.document().size, staged.document().sha256) != (document.size, document.sha256) {
        return wrong(&path, &"its bytes are not those that were exported");
    }
    Ok(Import::Staged(Box::new(staged)))
}

fn document(about: &Path) -> io::Result<Document> {
    let (file, length) = regular(about)?;
    if length > ABOUT_MAX {
        return Err(io::Error::other(format!("is longer than {ABOUT_MAX} bytes")));
    }
    let mut json = Vec::new();
    file.take(ABOUT_MAX).read_to_end(&mut json)?;
    Ok(serde_json::from_slice(&json)?)
}

/// Opens a file that is one, with its length.
fn regular(path: &Path) -> io::Result<(File, u64)> {
    // Before it is opened: opening a pipe would wait for its writer.
    let found = std::fs::metadata(path)?;
    if !found.is_file() {
        return Err(io::Error::other("is not a file"));
    }
    Ok((File::open(path)?, found.len()))
}

/// When a file was captured that names no time is for the clock of the machine where that was, as far as it is known there: what
/// this one learns of its own says nothing of it.
fn dated(spool: &Spool, mut about: About) -> About {
    let captured = &about.captured;
    let is_here = captured.boot.is_some()
        && captured.boot.as_ref().map(|boot| &boot.id) == Stamp::now().boot.as_ref().map(|boot| &boot.id);
    if !is_here && captured.anchored(&spool.anchors()).is_none() {
        about.event_time.get_or_insert(Timestamp::clamped(captured.wall_ms));
    }
    about
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Anchor, Boot};
    use crate::spool::Limits;

    #[test]
    fn a_file_that_names_no_time_has_that_of_the_machine_where_it_was_captured() {
        let directory = tempfile::tempdir().unwrap();
        let spool = Spool::open(directory.path(), Limits::default()).unwrap();
        let about = |captured: Stamp| About {
            upload: "u".parse().unwrap(),
            name: "u".parse().unwrap(),
            event_time: None,
            label: None,
            content_type: None,
            meta: None,
            captured,
        };
        let of = |boot: &str| Stamp { wall_ms: 7_000, boot: Some(Boot { id: boot.into(), ms: 5 }) };
        let time = |captured: Stamp| dated(&spool, about(captured)).event_time.map(Timestamp::as_millis);
        assert_eq!(time(of("another machine's")), Some(7_000));
        assert_eq!(time(Stamp { wall_ms: 7_000, boot: None }), Some(7_000));
        // What this machine captured it dates when it is sent, as well as it can then.
        assert_eq!(time(Stamp::now()), None);
        let boot = Boot { id: "before".into(), ms: 1 };
        spool.set_anchor(&Anchor { boot, server_ms: 1_795_000_000_000, within_ms: 5 }).unwrap();
        assert_eq!(time(of("before")), None);
        let stated = About { event_time: Some(Timestamp::clamped(9)), ..about(of("another machine's")) };
        assert_eq!(dated(&spool, stated).event_time, Some(Timestamp::clamped(9)));
    }
}
