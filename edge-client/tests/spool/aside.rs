//! Entries that do not wait any more: refused, damaged, discarded.

use std::fs;
use std::path::Path;

use millpond_edge::spool::{Entry, Limits, Place, Spool, SpoolError};
use millpond_protocol::{Code, Refusal};

use crate::{add, ids, names, open};

#[test]
fn what_the_server_refused_is_kept_beside_with_the_reason() {
    let root = tempfile::tempdir().unwrap();
    let mut spool = open(root.path());
    let entry = add(&mut spool, "a", 1, b"a").unwrap().new.remove(0);
    let refusal = Refusal::new(Code::Conflict, "upload a exists with other bytes");
    spool.refuse(&entry, &refusal).unwrap();
    assert_eq!(ids(&mut spool), Vec::<String>::new());
    assert_eq!(open(root.path()).refused().unwrap(), [(entry, Some(refusal))]);
}

#[test]
fn an_entry_leaves_also_where_its_reason_cannot_be_kept() {
    let root = tempfile::tempdir().unwrap();
    let mut spool = open(root.path());
    let entry = add(&mut spool, "a", 1, b"a").unwrap().new.remove(0);
    // As on a full disk, the small file cannot be written.
    fs::create_dir(root.path().join("staging/scratch")).unwrap();
    spool.refuse(&entry, &Refusal::new(Code::Conflict, "other bytes")).unwrap();
    assert_eq!(ids(&mut spool), Vec::<String>::new());
    assert_eq!(spool.refused().unwrap(), [(entry, None)]);
}

/// Ids in the log of what went unsent, with where they lay.
fn dropped(root: &Path) -> Vec<(String, String)> {
    let log = fs::read_to_string(root.join("dropped.log")).unwrap_or_default();
    let lines = log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let text = |line: &serde_json::Value, key: &str| line[key].as_str().unwrap().to_owned();
    lines.map(|line| (text(&line, "from"), text(&line, "upload"))).collect()
}

#[test]
fn what_is_put_aside_has_a_limit_in_bytes_and_the_oldest_goes() {
    let root = tempfile::tempdir().unwrap();
    let mut spool = Spool::open(root.path(), Limits { bytes: 1_000, ..Limits::default() }).unwrap();
    let refusal = Refusal::new(Code::Rejected, "no");
    // A tenth of the spool's bytes, and one that is larger than that by itself.
    for (n, size) in [(1, 40), (2, 40), (3, 40), (4, 300), (5, 10)] {
        let entry = add(&mut spool, &format!("u-{n}"), n, &vec![7; size]).unwrap().new.remove(0);
        spool.refuse(&entry, &refusal).unwrap();
        let refused: Vec<_> =
            spool.refused().unwrap().into_iter().map(|(e, _)| e.upload.to_string()).collect();
        let expected: &[&str] = match n {
            1 => &["u-1"],
            2 => &["u-1", "u-2"],
            3 => &["u-2", "u-3"],
            4 => &["u-4"],
            _ => &["u-5"],
        };
        assert_eq!(refused, expected);
    }
    assert_eq!(names(&root.path().join("refusals")).len(), 1);
    let gone = ["u-1", "u-2", "u-3", "u-4"].map(|id| ("refused".to_owned(), id.to_owned()));
    assert_eq!(dropped(root.path()), gone);
    for (n, size) in [(6, 60), (7, 60)] {
        let entry = add(&mut spool, &format!("u-{n}"), n, &vec![7; size]).unwrap().new.remove(0);
        fs::write(spool.path(&entry), "damaged").unwrap();
        assert!(matches!(spool.load(&entry), Err(SpoolError::Damaged { .. })));
    }
    let damaged: Vec<_> =
        spool.damaged().unwrap().into_iter().map(|entry| entry.upload.to_string()).collect();
    assert_eq!(damaged, ["u-7"]);
    assert_eq!(dropped(root.path()).last().unwrap().1, "u-6");
}

#[test]
fn what_is_put_aside_has_a_limit_in_files_too() {
    let root = tempfile::tempdir().unwrap();
    let mut spool = open(root.path());
    for n in 0..1_000 {
        let entry = Entry { key: n, size: 1, upload: format!("u-{n}").parse().unwrap() };
        fs::write(root.path().join("refused").join(entry.to_string()), "").unwrap();
    }
    let entry = add(&mut spool, "new", 2_000, b"a").unwrap().new.remove(0);
    spool.refuse(&entry, &Refusal::new(Code::Rejected, "no")).unwrap();
    let refused = spool.refused().unwrap();
    assert_eq!((refused.len(), refused[0].0.upload.as_str()), (1_000, "u-1"));
}

#[test]
fn what_is_discarded_is_gone_from_where_it_was_and_from_nowhere_else() {
    let root = tempfile::tempdir().unwrap();
    let mut spool = open(root.path());
    let entry = add(&mut spool, "a", 1, b"a").unwrap().new.remove(0);
    spool.refuse(&entry, &Refusal::new(Code::Conflict, "other bytes")).unwrap();
    add(&mut spool, "a", 1, b"a").unwrap();
    spool.discard(Place::Refused, std::slice::from_ref(&entry)).unwrap();
    assert_eq!((spool.refused().unwrap(), ids(&mut spool)), (vec![], vec!["a".to_owned()]));
    spool.discard(Place::Waiting, &[entry]).unwrap();
    assert_eq!(ids(&mut spool), Vec::<String>::new());
    assert_eq!(spool.held_now(), (0, 0));
    let gone = [("refused", "a"), ("ready", "a")].map(|(from, id)| (from.to_owned(), id.to_owned()));
    assert_eq!(dropped(root.path()), gone);
}
