//! Room: what is staged never takes more than the spool may hold, and what is not added drives nothing out.

use std::cell::Cell;
use std::fs;
use std::io::{self, Read};
use std::path::Path;

use millpond_edge::spool::{Limits, Spool, SpoolError, Staged, WhenFull};

use super::{about, add, ids, names};

fn open(root: &Path, bytes: u64, when_full: WhenFull) -> Spool {
    Spool::open(root, Limits { files: 10, bytes, when_full }).unwrap()
}

fn stage(spool: &mut Spool, upload: &str, size: usize) -> Result<Staged, SpoolError> {
    spool.stage_sized(&vec![7; size][..], size as u64, |_| about(upload, 1))
}

/// Gives bytes without end, and counts them.
struct Endless<'a>(&'a Cell<u64>);

impl Read for Endless<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.set(self.0.get() + buffer.len() as u64);
        Ok(buffer.len())
    }
}

#[test]
fn nothing_is_copied_for_which_there_is_no_room_beside_what_waits_and_what_others_have_staged() {
    let root = tempfile::tempdir().unwrap();
    let (mut one, mut two) =
        (open(root.path(), 1_000, WhenFull::RefuseNew), open(root.path(), 1_000, WhenFull::RefuseNew));
    add(&mut one, "waits", 1, &[1; 300]).unwrap();
    let staged = stage(&mut one, "staged", 400).unwrap();
    let read = Cell::new(0);
    let full = two.stage_sized(Endless(&read), 301, |_| about("more", 1));
    assert!(matches!(full, Err(SpoolError::Full { files: 2, bytes: 700, .. })), "{full:?}");
    assert_eq!((read.get(), names(&root.path().join("staging")).len()), (0, 1));
    let small = stage(&mut two, "small", 300).unwrap();
    assert!(matches!(stage(&mut one, "none", 1), Err(SpoolError::Full { .. })));
    one.add(vec![staged]).unwrap();
    assert!(matches!(stage(&mut one, "none", 1), Err(SpoolError::Full { .. })), "it waits now");
    drop(small);
    let last = stage(&mut one, "last", 300).unwrap();
    let waits: Vec<_> = two.entries().unwrap().cloned().collect();
    two.remove(&waits).unwrap();
    one.add(vec![last]).unwrap();
    assert_eq!(ids(&mut two), ["last"]);
    assert_eq!(names(&root.path().join("reserved")), [""; 0]);
}

#[test]
fn files_count_as_bytes_do() {
    let root = tempfile::tempdir().unwrap();
    let mut spool = open(root.path(), 1_000, WhenFull::RefuseNew);
    let staged: Vec<_> = (0..10).map(|n| stage(&mut spool, &format!("u{n}"), 1).unwrap()).collect();
    assert!(matches!(stage(&mut spool, "more", 1), Err(SpoolError::Full { files: 10, .. })));
    assert_eq!(spool.add(staged).unwrap().new.len(), 10);
}

#[test]
fn a_copy_that_outgrows_what_was_said_of_it_stops_where_the_room_ends() {
    let root = tempfile::tempdir().unwrap();
    let mut spool = open(root.path(), 1 << 20, WhenFull::DropOldest);
    for length in [0, 1_000] {
        let read = Cell::new(0);
        let full = spool.stage_sized(Endless(&read), length, |_| about("endless", 1));
        assert!(matches!(full, Err(SpoolError::Full { .. })), "{full:?}");
        assert!(read.get() <= (1 << 20) + (128 << 10), "{} bytes were read", read.get());
        assert_eq!(names(&root.path().join("staging")), [""; 0]);
    }
    let grown = spool.stage_sized(&[1; 5_000][..], 1_000, |_| about("grown", 1)).unwrap();
    let shrunk = spool.stage_sized(&[2; 10][..], 1_000_000, |_| about("shrunk", 2)).unwrap();
    assert_eq!((grown.document().size, shrunk.document().size), (5_000, 10));
    let rest = stage(&mut spool, "rest", (1 << 20) - 5_010).unwrap();
    assert!(matches!(stage(&mut spool, "more", 1), Err(SpoolError::Full { .. })));
    assert_eq!(spool.add(vec![grown, shrunk, rest]).unwrap().new.len(), 3);
}

#[test]
fn what_waits_makes_room_for_what_is_staged_where_the_oldest_are_dropped() {
    let root = tempfile::tempdir().unwrap();
    let mut spool = open(root.path(), 1_000, WhenFull::DropOldest);
    add(&mut spool, "old", 1, &[1; 900]).unwrap();
    let first = stage(&mut spool, "first", 600).unwrap();
    assert!(matches!(stage(&mut spool, "second", 600), Err(SpoolError::Full { .. })), "the two do not fit");
    let added = spool.add(vec![first]).unwrap();
    assert_eq!((added.dropped.len(), ids(&mut spool)), (1, vec!["first".to_owned()]));
}

#[test]
fn what_a_process_that_died_had_staged_takes_no_room() {
    let root = tempfile::tempdir().unwrap();
    let mut spool = open(root.path(), 1_000, WhenFull::RefuseNew);
    let left = root.path().join("reserved/left");
    fs::create_dir(left.parent().unwrap()).unwrap();
    fs::write(&left, [10_u64.to_le_bytes(), 1_000_u64.to_le_bytes()].concat()).unwrap();
    drop(stage(&mut spool, "new", 1_000).unwrap());
    assert!(!left.exists());
}

#[test]
fn of_files_one_of_which_cannot_be_shown_none_is_there_and_nothing_was_dropped_for_them() {
    let root = tempfile::tempdir().unwrap();
    let mut spool = open(root.path(), 1_000, WhenFull::DropOldest);
    add(&mut spool, "old", 1, &[1; 900]).unwrap();
    let files = ["a", "b", "c"].map(|id| stage(&mut spool, id, 100).unwrap());
    // No file takes the place of a directory.
    let in_the_way = root.path().join("ready").join(files[1].document().entry().to_string());
    fs::create_dir_all(in_the_way.join("x")).unwrap();
    assert!(matches!(spool.add(files.into()), Err(SpoolError::Io { .. })));
    fs::remove_dir_all(in_the_way).unwrap();
    assert_eq!(ids(&mut Spool::open(root.path(), Limits::default()).unwrap()), ["old"]);
    assert_eq!(ids(&mut spool), ["old"]);
    let files = ["a", "b", "c"].map(|id| stage(&mut spool, id, 100).unwrap());
    assert_eq!(spool.add(files.into()).unwrap().new.len(), 3);
    assert_eq!(ids(&mut spool), ["a", "b", "c"]);
}
