//! A full spool that drops the oldest, of which some cannot be removed; and twins that cannot be read.

use std::fs;
use std::path::Path;

use millpond_edge::spool::{Limits, Place, Spool, SpoolError, WhenFull};

use crate::{about, add, ids, names};

/// A spool of those files, which may hold so many and drops the oldest.
fn spool(root: &Path, held: &[&str], files: u64) -> Spool {
    let limits = Limits { files, when_full: WhenFull::DropOldest, ..Limits::default() };
    let mut spool = Spool::open(root, limits).unwrap();
    for (n, id) in held.iter().enumerate() {
        add(&mut spool, id, n as i64, b"x").unwrap();
    }
    spool
}

/// In the place of an entry lies what cannot be read, nor removed like a file.
fn spoil(spool: &mut Spool, upload: &str) {
    let entry = spool.entries().unwrap().find(|entry| entry.upload.as_str() == upload).unwrap().clone();
    fs::remove_file(spool.path(&entry)).unwrap();
    fs::create_dir(spool.path(&entry)).unwrap();
}

#[test]
fn one_that_cannot_be_removed_is_no_room_and_the_next_oldest_goes_in_its_place() {
    let root = tempfile::tempdir().unwrap();
    let mut spool = spool(root.path(), &["a", "b", "c"], 3);
    spoil(&mut spool, "a");
    let added = add(&mut spool, "d", 9, b"x").unwrap();
    assert_eq!(added.dropped.iter().map(|entry| entry.upload.as_str()).collect::<Vec<_>>(), ["b"]);
    assert_eq!(ids(&mut spool), ["a", "c", "d"]);
    let log = fs::read_to_string(root.path().join("dropped.log")).unwrap();
    assert!(log.contains(r#""upload":"b""#) && log.lines().count() == 1, "{log}");
}

#[test]
fn where_no_room_can_be_made_nothing_is_dropped() {
    let root = tempfile::tempdir().unwrap();
    let mut spool = spool(root.path(), &["a", "b", "c"], 3);
    spoil(&mut spool, "b");
    let staged = ["d", "e", "f"].map(|id| spool.stage(&b"x"[..], |_| about(id, 9)).unwrap());
    let refused = spool.add(staged.into());
    assert!(matches!(&refused, Err(SpoolError::Io { path, .. }) if path.ends_with("000000000000001.1.b")));
    assert_eq!(ids(&mut spool), ["a", "b", "c"]);
    assert_eq!((names(&root.path().join("ready")).len(), names(&root.path().join("staging"))), (3, vec![]));
    assert!(!root.path().join("dropped.log").exists());
}

#[test]
fn a_twin_that_cannot_be_read_is_put_aside_and_its_room_is_the_new_ones() {
    let root = tempfile::tempdir().unwrap();
    let mut spool = spool(root.path(), &["a", "b", "c"], 3);
    spoil(&mut spool, "b");
    let added = add(&mut spool, "b", 1, b"whole").unwrap();
    assert_eq!((added.new.len(), added.known, added.dropped), (1, vec![], vec![]));
    assert_eq!((ids(&mut spool), spool.held_now()), (["a", "b", "c"].map(str::to_owned).into(), (3, 7)));
    let entry = spool.entries().unwrap().nth(1).unwrap().clone();
    assert_eq!(spool.load(&entry).unwrap().1, b"whole");
    assert_eq!(spool.damaged().unwrap().len(), 1);
}

#[test]
fn one_beside_that_cannot_be_removed_keeps_no_other_from_being_put_aside() {
    let root = tempfile::tempdir().unwrap();
    let limits = Limits { bytes: 100, ..Limits::default() };
    let mut spool = Spool::open(root.path(), limits).unwrap();
    let refusal = millpond_protocol::Refusal::new(millpond_protocol::Code::Rejected, "no");
    fs::create_dir(root.path().join("refused/000000000000000.9.stuck")).unwrap();
    for id in ["a", "b"] {
        let entry = add(&mut spool, id, 1, b"12345").unwrap().new.remove(0);
        spool.refuse(&entry, &refusal).unwrap();
    }
    assert_eq!(names(&root.path().join("refused")).len(), 2, "a made room, and what stays is no room");
    assert_eq!(ids(&mut spool), Vec::<String>::new());
    let last = spool.refused().unwrap().pop().unwrap().0;
    spool.discard(Place::Refused, &[last]).unwrap();
}
