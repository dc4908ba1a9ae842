//! What the spool notes beside its entries, where the disk gives back something else, and in a spool of version 1.

use std::fs;
use std::path::Path;

use millpond_edge::clock::{Anchor, Boot, Stamp};
use millpond_edge::spool::{Complete, DamagedNote, Entry, Limits, Place, Rest, Spool, WhenFull};
use millpond_protocol::{Code, Refusal, Sha256, Timestamp};

use crate::{add, ids, names, open};

fn anchor(boot: &str) -> Anchor {
    Anchor { boot: Boot { id: boot.into(), ms: 1 }, server_ms: 1_795_000_000_000, within_ms: 5 }
}

fn through(ms: i64) -> Complete {
    Complete::Through(Timestamp::clamped(ms))
}

fn label(label: &str) -> Complete {
    Complete::Label(label.parse().unwrap())
}

fn said(spool: &Spool) -> Vec<Complete> {
    spool.statements().unwrap().into_iter().map(|statement| statement.complete).collect()
}

/// Flips a bit in the first line of that note which holds `text`, in that text.
fn flip(note: &Path, text: &str) {
    let mut bytes = fs::read(note).unwrap();
    let at = bytes.windows(text.len()).position(|window| window == text.as_bytes()).unwrap();
    bytes[at] ^= 1;
    fs::write(note, bytes).unwrap();
}

/// A spool with one of each note.
fn noted(root: &Path) -> Spool {
    let mut spool = open(root);
    let entries = ["one", "two"].map(|id| add(&mut spool, id, 1, b"x").unwrap().new.remove(0));
    spool.set_in_flight(entries.iter()).unwrap();
    spool.set_anchor(&anchor("a")).unwrap();
    spool.set_anchor(&anchor("b")).unwrap();
    for complete in [through(5_000), label("epoch-1"), label("epoch-2")] {
        spool.complete(complete).unwrap();
    }
    let boot = Stamp::now().boot.map(|boot| boot.id);
    let why = Refusal::new(Code::Quota, "full");
    let rest = Rest { who: "p/m".into(), from_ms: 0, until_ms: 9_000_000_000_000, boot, times: 1, why };
    spool.set_rest(Some(&rest)).unwrap();
    spool
}

#[test]
fn a_flipped_bit_in_a_note_is_told_and_never_believed_and_the_rest_of_the_note_is() {
    let root = tempfile::tempdir().unwrap();
    drop(noted(root.path()));
    // Each makes something else of it that could be meant.
    for (note, text) in
        [("complete", "1970"), ("complete", "epoch-2"), ("anchors", "179"), ("in-flight", "one")]
    {
        flip(&root.path().join(note), text);
    }
    flip(&root.path().join("rest"), "9000");
    let mut spool = open(root.path());
    let found = |note, lines| DamagedNote { note, lines };
    let all = [found("complete", 2), found("in-flight", 1), found("anchors", 1), found("rest", 1)];
    assert_eq!(spool.damaged_notes(), all);
    assert_eq!(said(&spool), [label("epoch-1")]);
    assert_eq!(spool.anchors(), [anchor("b")]);
    let in_flight: Vec<_> = spool.in_flight().into_iter().map(|entry| entry.upload.to_string()).collect();
    assert_eq!((in_flight, spool.rest()), (vec!["two".to_owned()], None));
    // What nobody can learn again is kept to look at, and everything else goes on.
    let damaged = spool.damaged_statements();
    assert!(
        damaged.len() == 2 && damaged[0].contains("0970-01-01") && damaged[1].contains("dpoch-2"),
        "{damaged:?}"
    );
    assert_eq!((ids(&mut spool).len(), spool.damaged().unwrap().len()), (2, 0));
    spool.complete(label("epoch-3")).unwrap();
    let mut spool = open(root.path());
    assert_eq!(spool.damaged_notes(), []);
    assert_eq!(
        (said(&spool), spool.damaged_statements()),
        (vec![label("epoch-1"), label("epoch-3")], damaged)
    );
    spool.discard_damaged_statements().unwrap();
    assert_eq!(spool.damaged_statements(), Vec::<String>::new());
}

#[test]
fn statements_that_are_damaged_while_a_spool_is_open_do_not_go_with_the_next_one() {
    let root = tempfile::tempdir().unwrap();
    let mut spool = noted(root.path());
    flip(&root.path().join("complete"), "epoch-1");
    assert_eq!(said(&spool), [through(5_000), label("epoch-2")]);
    spool.complete(label("epoch-3")).unwrap();
    let told = spool.statements().unwrap().remove(0);
    spool.told(&[told]).unwrap();
    assert_eq!(said(&spool), [label("epoch-2"), label("epoch-3")]);
    // Whoever has it open for long looks for it, and learns of it once.
    let found = [DamagedNote { note: "complete", lines: 1 }];
    assert_eq!(spool.mend_notes().unwrap(), found);
    assert_eq!((spool.damaged_statements().len(), spool.mend_notes().unwrap()), (1, vec![]));
    flip(&root.path().join("complete"), "epoch-3");
    assert_eq!(spool.mend_notes().unwrap(), found);
    assert_eq!((said(&spool), spool.damaged_statements().len()), (vec![label("epoch-2")], 2));
    // Also if the look before found as much.
    flip(&root.path().join("complete"), "epoch-2");
    assert_eq!(spool.mend_notes().unwrap(), found);
    assert_eq!((said(&spool), spool.damaged_statements().len()), (vec![], 3));
}

#[test]
fn what_cannot_be_taken_out_of_a_note_is_told_once() {
    let root = tempfile::tempdir().unwrap();
    let mut spool = noted(root.path());
    flip(&root.path().join("complete"), "epoch-1");
    // Nothing can be written there.
    fs::create_dir(root.path().join("damaged/complete")).unwrap();
    assert_eq!(spool.mend_notes().unwrap().len(), 1);
    assert_eq!(spool.mend_notes().unwrap(), []);
    fs::remove_dir(root.path().join("damaged/complete")).unwrap();
    assert_eq!((spool.mend_notes().unwrap(), spool.damaged_statements().len()), (vec![], 1));
}

#[test]
fn a_reason_that_is_damaged_is_none() {
    let root = tempfile::tempdir().unwrap();
    let mut spool = open(root.path());
    let entry = add(&mut spool, "a", 1, b"a").unwrap().new.remove(0);
    spool.refuse(&entry, &Refusal::new(Code::Conflict, "other bytes")).unwrap();
    flip(&root.path().join("refusals").join(entry.to_string()), "other");
    assert_eq!(spool.refused().unwrap(), [(entry, None)]);
}

/// Takes the checksums out of a note.
fn unseal(note: &Path) {
    let text = fs::read_to_string(note).unwrap();
    let lines = text.lines().map(|line| format!("{}\n", line.split_once(' ').unwrap().1));
    fs::write(note, lines.collect::<String>()).unwrap();
}

#[test]
fn a_spool_of_version_1_is_opened_with_all_that_it_notes_also_where_an_opening_died_half_way() {
    for half_way in [false, true] {
        let root = tempfile::tempdir().unwrap();
        let mut spool = noted(root.path());
        let entry = add(&mut spool, "refused", 1, b"a").unwrap().new.remove(0);
        spool.refuse(&entry, &Refusal::new(Code::Conflict, "other bytes")).unwrap();
        let all = |spool: &Spool| {
            (said(spool), spool.anchors(), spool.in_flight(), spool.rest(), spool.refused().unwrap())
        };
        let before = all(&spool);
        assert!(before.3.is_some() && before.4[0].1.is_some());
        for note in ["complete", "anchors", "in-flight", "rest"] {
            if !(half_way && note == "complete") {
                unseal(&root.path().join(note));
            }
        }
        unseal(&root.path().join("refusals").join(entry.to_string()));
        fs::write(root.path().join("version"), "millpond-spool 1\n").unwrap();
        let spool = open(root.path());
        assert_eq!((all(&spool), spool.damaged_notes()), (before, &[][..]));
        assert_eq!(fs::read_to_string(root.path().join("version")).unwrap(), "millpond-spool 2\n");
        // From now on a line without a checksum is damaged.
        unseal(&root.path().join("complete"));
        assert_eq!(said(&open(root.path())), []);
    }
}

#[test]
fn a_spool_of_version_1_is_opened_also_where_a_hint_and_a_reason_cannot_be_given_checksums() {
    let root = tempfile::tempdir().unwrap();
    let mut spool = noted(root.path());
    let entry = add(&mut spool, "refused", 1, b"a").unwrap().new.remove(0);
    spool.refuse(&entry, &Refusal::new(Code::Conflict, "other bytes")).unwrap();
    let before = said(&spool);
    let whole = spool.anchors();
    unseal(&root.path().join("complete"));
    unseal(&root.path().join("anchors"));
    // The disk does not give them.
    for path in [root.path().join("in-flight"), root.path().join("refusals").join(entry.to_string())] {
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
    }
    fs::write(root.path().join("version"), "millpond-spool 1\n").unwrap();
    let spool = open(root.path());
    assert_eq!((said(&spool), spool.anchors(), spool.in_flight()), (before, whole, vec![]));
    assert_eq!(spool.refused().unwrap(), [(entry, None)]);
    assert_eq!(fs::read_to_string(root.path().join("version")).unwrap(), "millpond-spool 2\n");
}

#[test]
fn what_a_process_was_about_to_drop_when_it_died_is_logged_as_far_as_it_is_gone() {
    let root = tempfile::tempdir().unwrap();
    let limits = Limits { files: 2, when_full: WhenFull::DropOldest, ..Limits::default() };
    let mut spool = Spool::open(root.path(), limits).unwrap();
    let [a, b] = ["a", "b"].map(|id| add(&mut spool, id, 1, b"x").unwrap().new.remove(0));
    let line = |upload: &str| {
        let line = format!(r#"{{"at_ms":7,"from":"ready","upload":"{upload}","time_ms":1,"size":1}}"#);
        format!("{} {line}\n", Sha256::of(line.as_bytes()))
    };
    // It died between the two.
    fs::write(root.path().join("dropping"), line("a") + &line("b")).unwrap();
    fs::remove_file(spool.path(&a)).unwrap();
    let log = || {
        let log = fs::read_to_string(root.path().join("dropped.log")).unwrap_or_default();
        let lines = log.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        lines.map(|line| line["upload"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    drop(open(root.path()));
    assert_eq!(log(), ["a"]);
    assert!(!root.path().join("dropping").exists());
    // It died when it had logged them.
    fs::write(root.path().join("dropping"), line("a")).unwrap();
    drop(open(root.path()));
    assert_eq!(log(), ["a"]);
    // Whoever has it open already, and puts the same file there once more, sees to it first.
    fs::remove_file(spool.path(&b)).unwrap();
    fs::write(root.path().join("dropping"), line("b")).unwrap();
    assert_eq!(add(&mut spool, "b", 1, b"x").unwrap().new, [b]);
    assert_eq!(log(), ["a", "b"]);
    fs::create_dir(root.path().join("ready/000000000000000.1.stuck")).unwrap();
    let mut spool = Spool::open(root.path(), limits).unwrap();
    let all: Vec<_> = spool.entries().unwrap().cloned().collect();
    assert!(spool.discard(Place::Waiting, &all).is_err());
    assert_eq!(log(), ["a", "b", "b"], "what stays is not logged");
    assert_eq!(names(&root.path().join("ready")).len(), 1);
}

#[test]
fn what_a_process_that_died_had_not_dropped_yet_and_left_in_another_way_is_not_logged() {
    type Leave = fn(&mut Spool, &Entry);
    let ways: [(&str, Leave); 3] = [
        ("sent", |spool, entry| spool.remove(std::slice::from_ref(entry)).unwrap()),
        ("refused", |spool, entry| spool.refuse(entry, &Refusal::new(Code::Rejected, "no")).unwrap()),
        ("damaged", |spool, entry| {
            fs::write(spool.path(entry), "damaged").unwrap();
            assert!(spool.load(entry).is_err());
        }),
    ];
    for (way, leave) in ways {
        let root = tempfile::tempdir().unwrap();
        let mut spool = open(root.path());
        let entry = add(&mut spool, "a", 1, b"x").unwrap().new.remove(0);
        let line = r#"{"at_ms":7,"from":"ready","upload":"a","time_ms":1,"size":1}"#;
        fs::write(root.path().join("dropping"), format!("{} {line}\n", Sha256::of(line.as_bytes()))).unwrap();
        leave(&mut spool, &entry);
        assert_eq!(ids(&mut open(root.path())), Vec::<String>::new(), "{way}");
        assert!(!root.path().join("dropped.log").exists(), "{way}");
    }
}
