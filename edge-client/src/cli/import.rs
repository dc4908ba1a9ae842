//! `spool import`: what `spool export` wrote comes into a spool, with all that is known of it.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use millpond_protocol::{Timestamp, UploadId};

use super::failure::{FAILED, Failure};
use super::{push, say};
use crate::clock::Stamp;
use crate::spool::{About, Document, Spool, SpoolError, Staged};

/// Files that are synced, and shown, together.
const TOGETHER: usize = 256;

pub(super) fn import(spool: &mut Spool, directory: &Path) -> Result<(), Failure> {
    let (mut new, mut known, mut wrong) = (0, 0, 0);
    for some in described(&directory.join("about"))?.chunks(TOGETHER) {
        let mut staged = Vec::new();
        for about in some {
            match one(spool, about, &directory.join("files"))? {
                Ok(file) => staged.push(file),
                Err(why) => {
                    eprintln!("millpond-edge: {why}: it is not imported");
                    wrong += 1;
                }
            }
        }
        let added = spool.add(staged)?;
        push::say_dropped(&added.dropped);
        (new, known) = (new + added.new.len(), known + added.known.len());
    }
    let known = if known > 0 { format!(", {known} were in the spool") } else { String::new() };
    say(format_args!("{new} files imported from {}{known}", directory.display()))?;
    if wrong > 0 {
        return Err(Failure::new(
            FAILED,
            format!("{wrong} files are not what was exported, and were left out"),
        ));
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

/// Copies one; the inner error says what is wrong with it.
fn one(spool: &mut Spool, about: &Path, files: &Path) -> Result<Result<Staged, String>, Failure> {
    let bad = |path: &Path, what: &dyn std::fmt::Display| Ok(Err(format!("{}: {what}", path.display())));
    let document = std::fs::read(about).and_then(|json| Ok(serde_json::from_slice::<Document>(&json)?));
    let document = match document {
        Ok(document) if upload(about).as_ref() == Some(&document.about.upload) => document,
        Ok(_) => return bad(about, &"it speaks of another file"),
        Err(error) => return bad(about, &error),
    };
    let path = files.join(document.about.upload.as_str());
    // Before it is opened: opening a pipe would wait for its writer.
    let file = match std::fs::metadata(&path) {
        Ok(found) if !found.is_file() => return bad(&path, &"is not a file"),
        Ok(_) => File::open(&path),
        Err(error) => Err(error),
    };
    let file = match file {
        Ok(file) => file,
        Err(error) => return bad(&path, &error),
    };
    let known = dated(spool, document.about);
    let staged = match spool.stage_sized(file, document.size, |_| known) {
        Err(error @ SpoolError::TooLong(_)) => return bad(about, &error),
        staged => staged?,
    };
    if (staged.document().size, staged.document().sha256) != (document.size, document.sha256) {
        return bad(&path, &"its bytes are not those that were exported");
    }
    Ok(Ok(staged))
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
