//! The spool: what is in it stays in it, and what is not never was.

#![allow(clippy::unwrap_used, reason = "tests")]

mod aside;
mod notes;
mod reserve;
mod room;

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use millpond_edge::clock::{Anchor, Boot, Stamp};
use millpond_edge::spool::{About, Added, Complete, Entry, Limits, Spool, SpoolError, WhenFull};
use millpond_protocol::Timestamp;

fn about(upload: &str, at: i64) -> About {
    About {
        upload: upload.parse().unwrap(),
        name: "file.bin".parse().unwrap(),
        event_time: Some(Timestamp::clamped(at)),
        label: None,
        content_type: Some("text/plain".into()),
        meta: None,
        captured: Stamp::now(),
    }
}

fn open(root: &Path) -> Spool {
    Spool::open(root, Limits::default()).unwrap()
}

fn add(spool: &mut Spool, upload: &str, at: i64, bytes: &[u8]) -> Result<Added, SpoolError> {
    let staged = spool.stage(bytes, |_| about(upload, at))?;
    spool.add(vec![staged])
}

fn ids(spool: &mut Spool) -> Vec<String> {
    spool.entries().unwrap().map(|entry| entry.upload.to_string()).collect()
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|item| item.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn what_was_added_is_there_after_a_restart_oldest_first_and_owner_only() {
    let root = tempfile::tempdir().unwrap();
    let root = root.path().join("spool");
    let mut spool = open(&root);
    add(&mut spool, "newer", 2_000, b"two").unwrap();
    add(&mut spool, "older", 1_000, b"one").unwrap();
    drop(spool);
    let mut spool = open(&root);
    assert_eq!(ids(&mut spool), ["older", "newer"]);
    let entry = spool.entries().unwrap().next().unwrap().clone();
    let (document, bytes) = spool.load(&entry).unwrap();
    assert_eq!((bytes.as_slice(), document.about.content_type.as_deref()), (&b"one"[..], Some("text/plain")));
    assert_eq!(fs::read(spool.path(&entry)).unwrap()[..3], *b"one", "the bytes come first");
    for (path, mode) in [(root.clone(), 0o700), (root.join("ready"), 0o700), (spool.path(&entry), 0o600)] {
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode, "{}", path.display());
    }
}

#[test]
fn several_processes_see_each_others_changes() {
    let root = tempfile::tempdir().unwrap();
    // Each handle has its own locks and its own memory, as two processes have.
    let (mut one, mut two) = (open(root.path()), open(root.path()));
    add(&mut one, "a", 1, b"a").unwrap();
    assert_eq!(ids(&mut two), ["a"]);
    add(&mut two, "b", 2, b"b").unwrap();
    assert_eq!(ids(&mut one), ["a", "b"]);
    let a = one.entries().unwrap().next().unwrap().clone();
    two.remove(std::slice::from_ref(&a)).unwrap();
    assert_eq!(ids(&mut one), ["b"]);
    assert!(matches!(one.load(&a), Err(SpoolError::Gone(gone)) if gone == a));
    let sending = one.sending().unwrap();
    assert!(sending.is_some() && two.sending().unwrap().is_none());
    drop(sending);
    assert!(two.sending().unwrap().is_some());
}

#[test]
fn threads_that_push_at_once_lose_nothing() {
    let root = tempfile::tempdir().unwrap();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let root = root.path();
            scope.spawn(move || {
                let mut spool = open(root);
                for n in 0..25 {
                    add(&mut spool, &format!("t{thread}-{n}"), n, b"x").unwrap();
                }
            });
        }
    });
    let mut spool = open(root.path());
    assert_eq!(ids(&mut spool).len(), 200);
    assert_eq!(spool.held_now(), (200, 200));
    assert_eq!(names(&root.path().join("staging")), Vec::<String>::new());
}

#[test]
fn the_same_file_twice_is_once_and_other_bytes_are_a_conflict() {
    let root = tempfile::tempdir().unwrap();
    let mut spool = open(root.path());
    let first = add(&mut spool, "a", 1, b"a").unwrap();
    let again = add(&mut spool, "a", 1, b"a").unwrap();
    assert_eq!((again.known, again.new.len()), (first.new, 0));
    assert!(matches!(add(&mut spool, "a", 2, b"other"), Err(SpoolError::Conflict(id)) if id.as_str() == "a"));
    let staged = ["x", "x"].map(|id| spool.stage(&b"both"[..], |_| about(id, 5)).unwrap());
    let both = spool.add(staged.into()).unwrap();
    assert_eq!((both.new.len(), both.known.len()), (1, 1));
    assert_eq!(ids(&mut spool), ["a", "x"]);
}

#[test]
fn a_full_spool_refuses_all_of_what_comes_or_drops_the_oldest_and_logs_it() {
    let root = tempfile::tempdir().unwrap();
    let limits = Limits { files: 2, bytes: 100, when_full: WhenFull::RefuseNew };
    let mut spool = Spool::open(root.path(), limits).unwrap();
    add(&mut spool, "a", 1, b"a").unwrap();
    let staged = ["b", "c"].into_iter().map(|id| spool.stage(&b"x"[..], |_| about(id, 5)));
    let both: Result<Vec<_>, _> = staged.collect();
    assert!(matches!(both, Err(SpoolError::Full { files: 2, max_files: 2, .. })), "{both:?}");
    drop(both);
    assert_eq!(ids(&mut spool), ["a"], "none of the two, rather than half");

    let drop = Limits { when_full: WhenFull::DropOldest, ..limits };
    let mut spool = Spool::open(root.path(), drop).unwrap();
    add(&mut spool, "b", 2, b"b").unwrap();
    let added = add(&mut spool, "c", 3, b"c").unwrap();
    assert_eq!(added.dropped.iter().map(|entry| entry.upload.as_str()).collect::<Vec<_>>(), ["a"]);
    assert_eq!(ids(&mut spool), ["b", "c"]);
    let log = fs::read_to_string(root.path().join("dropped.log")).unwrap();
    assert!(log.contains(r#""upload":"a""#) && log.lines().count() == 1, "{log}");
}

#[test]
fn what_a_process_that_died_was_writing_is_swept_and_what_a_living_one_writes_is_not() {
    let root = tempfile::tempdir().unwrap();
    let mut spool = open(root.path());
    let staging = root.path().join("staging");
    let living = spool.stage(&b"living"[..], |_| about("living", 1)).unwrap();
    fs::write(staging.join("0123456789abcdef"), b"half of a fi").unwrap();
    drop(open(root.path()));
    assert_eq!(names(&staging).len(), 1);
    spool.add(vec![living]).unwrap();
    assert_eq!(ids(&mut spool), ["living"]);
    let gone = spool.stage(&b"gone"[..], |_| about("gone", 1)).unwrap();
    drop(gone);
    assert_eq!(names(&staging), Vec::<String>::new());
}

#[test]
fn a_damaged_entry_is_found_and_put_aside() {
    let root = tempfile::tempdir().unwrap();
    let mut spool = open(root.path());
    for (id, at) in [("data", 1), ("footer", 2), ("cut", 3), ("whole", 4)] {
        add(&mut spool, id, at, b"precious").unwrap();
    }
    let entries: Vec<Entry> = spool.entries().unwrap().cloned().collect();
    for (entry, damage) in entries.iter().zip(["data", "footer", "cut"]) {
        let mut bytes = fs::read(spool.path(entry)).unwrap();
        match damage {
            "data" => bytes[0] ^= 1,
            "footer" => *bytes.last_mut().unwrap() ^= 1,
            _ => bytes.truncate(bytes.len() - 1),
        }
        fs::write(spool.path(entry), bytes).unwrap();
        assert!(matches!(spool.load(entry), Err(SpoolError::Damaged { .. })), "{damage}");
    }
    assert_eq!(ids(&mut spool), ["whole"]);
    assert_eq!(names(&root.path().join("damaged")).len(), 3);
    add(&mut spool, "data", 1, b"precious").unwrap();
    assert_eq!(ids(&mut spool), ["data", "whole"]);
}

#[test]
fn another_directory_or_a_later_version_is_not_touched() {
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("version"), "millpond-spool 3\n").unwrap();
    assert!(matches!(Spool::open(root.path(), Limits::default()), Err(SpoolError::Foreign(_))));
    assert!(!root.path().join("ready").exists());
    let file = root.path().join("file");
    fs::write(&file, "mine").unwrap();
    assert!(matches!(Spool::open(&file, Limits::default()), Err(SpoolError::Io { .. })));
    assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
}

#[test]
fn a_spool_whose_version_is_damaged_says_what_to_write_there_and_is_whole_then() {
    let root = tempfile::tempdir().unwrap();
    add(&mut open(root.path()), "a", 1, b"a").unwrap();
    let version = root.path().join("version");
    for damaged in [&b""[..], &[0; 17], b"millpond-spool 6\n"] {
        fs::write(&version, damaged).unwrap();
        let refused = Spool::open(root.path(), Limits::default()).unwrap_err();
        assert!(matches!(refused, SpoolError::Foreign(_)));
        // As a shell's `echo` writes it, and `printf`.
        let said = refused.to_string();
        let line = said.split('"').nth(1).unwrap().to_owned();
        for end in ["\n", ""] {
            fs::write(&version, line.clone() + end).unwrap();
            assert_eq!(ids(&mut open(root.path())), ["a"], "{said}");
        }
    }
}

#[test]
fn an_opening_that_died_half_way_is_finished_by_the_next() {
    let root = tempfile::tempdir().unwrap();
    fs::create_dir(root.path().join("ready")).unwrap();
    // A power cut may leave its length of a file without its bytes.
    fs::write(root.path().join("version.new"), [0; 17]).unwrap();
    let mut spool = open(root.path());
    add(&mut spool, "a", 1, b"a").unwrap();
    assert_eq!(ids(&mut open(root.path())), ["a"]);
}

#[test]
fn notes_are_kept_one_anchor_a_boot() {
    let root = tempfile::tempdir().unwrap();
    let mut spool = open(root.path());
    let anchor = |boot: &str, ms| Anchor { boot: Boot { id: boot.into(), ms }, server_ms: ms, within_ms: 5 };
    for n in 0..20 {
        spool.set_anchor(&anchor(&format!("boot-{n}"), n)).unwrap();
    }
    // One that is twenty times worse takes no better one's place before that has aged.
    spool.set_anchor(&Anchor { within_ms: 100, ..anchor("boot-19", 60_000) }).unwrap();
    let anchors = open(root.path()).anchors();
    assert_eq!((anchors.len(), anchors.last()), (16, Some(&anchor("boot-19", 19))));
    spool.set_anchor(&Anchor { within_ms: 4, ..anchor("boot-19", 77) }).unwrap();
    assert_eq!(open(root.path()).anchors().last().map(|anchor| anchor.server_ms), Some(77));
    let entry = add(&mut spool, "a", 1, b"a").unwrap().new.remove(0);
    spool.set_in_flight([&entry].into_iter()).unwrap();
    assert_eq!(open(root.path()).in_flight(), [entry]);
}

#[test]
fn statements_of_completion_stay_until_they_are_told_and_never_go_back() {
    let root = tempfile::tempdir().unwrap();
    let mut spool = open(root.path());
    let through = |ms| Complete::Through(Timestamp::clamped(ms));
    let now = |boot: &str, ms| Complete::Now(Stamp { wall_ms: 7, boot: Some(Boot { id: boot.into(), ms }) });
    let label = |label: &str| Complete::Label(label.parse().unwrap());
    let said = [
        through(10),
        through(30),
        through(20),
        now("a", 5),
        now("b", 3),
        now("b", 4),
        label("x"),
        label("x"),
    ];
    for complete in said {
        spool.complete(complete).unwrap();
    }
    let statements = open(root.path()).statements().unwrap();
    let waiting: Vec<_> = statements.iter().map(|statement| statement.complete.clone()).collect();
    assert_eq!(waiting, [through(30), now("a", 5), now("b", 4), label("x")]);
    // One that was raised meanwhile is not the one that was told.
    spool.complete(through(40)).unwrap();
    spool.told(&statements).unwrap();
    let left = open(root.path()).statements().unwrap();
    assert_eq!(left.iter().map(|statement| statement.complete.clone()).collect::<Vec<_>>(), [through(40)]);
    for n in 0..999 {
        spool.complete(label(&format!("label-{n}"))).unwrap();
    }
    assert!(matches!(spool.complete(label("one-more")), Err(SpoolError::TooMany(1_000))));
}

#[test]
fn a_disk_that_refuses_leaves_the_spool_as_it_was() {
    let root = tempfile::tempdir().unwrap();
    let mut spool = open(root.path());
    add(&mut spool, "a", 1, b"a").unwrap();
    struct Broken;
    impl std::io::Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::ErrorKind::StorageFull.into())
        }
    }
    assert!(matches!(spool.stage(Broken, |_| about("b", 2)), Err(SpoolError::Io { .. })));
    assert_eq!(names(&root.path().join("staging")), Vec::<String>::new());
    assert_eq!(ids(&mut spool), ["a"]);
}

#[test]
fn opening_takes_ten_microseconds_an_entry_at_the_most() {
    // So that 100,000 open within a second; making that many is for the long tier.
    let count = if std::env::var_os("MILLPOND_SLOW").is_some() { 100_000 } else { 10_000_u64 };
    let root = tempfile::tempdir().unwrap();
    drop(open(root.path()));
    let ready = root.path().join("ready");
    for n in 0..count {
        let entry = Entry { key: 1_795_302_000_000 + n, size: 10, upload: format!("u-{n}").parse().unwrap() };
        fs::File::create(ready.join(entry.to_string())).unwrap();
    }
    // Of this thread's processor time: a machine that is busy with other tests says nothing by the clock on the wall.
    let used = || {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
        Duration::new(u64::try_from(time.tv_sec).unwrap(), u32::try_from(time.tv_nsec).unwrap())
    };
    let took = (0..5).map(|_| {
        let begin = used();
        let spool = open(root.path());
        assert_eq!(spool.held_now(), (count, count * 10));
        used() - begin
    });
    let took = took.min().unwrap();
    eprintln!("{count} entries opened in {took:?}");
    assert!(took < Duration::from_micros(10 * count), "{took:?}");
}

/// A file that a device captured whose clock shows 1970.
fn add_in_1970(spool: &mut Spool, upload: &str, boot: &Boot) -> Added {
    let captured = Stamp { wall_ms: 60_000, boot: Some(boot.clone()) };
    let about = |_| About { event_time: None, captured, ..about(upload, 0) };
    let staged = spool.stage(upload.as_bytes(), about).unwrap();
    spool.add(vec![staged]).unwrap()
}

#[test]
fn a_device_that_booted_in_1970_does_not_lose_this_minutes_files_first() {
    let root = tempfile::tempdir().unwrap();
    let limits = Limits { files: 2, when_full: WhenFull::DropOldest, ..Limits::default() };
    let mut spool = Spool::open(root.path(), limits).unwrap();
    for (upload, at) in [("backlog-1", 1_795_000_000_000), ("backlog-2", 1_795_100_000_000)] {
        add(&mut spool, upload, at, b"old").unwrap();
    }
    let boot = Boot { id: "b".into(), ms: 60_000 };
    let dropped = add_in_1970(&mut spool, "now", &boot).dropped;
    assert_eq!(dropped[0].upload.as_str(), "backlog-1");
    assert_eq!(ids(&mut spool), ["backlog-2", "now"]);
    let now = spool.entries().unwrap().next_back().unwrap().clone();
    assert_eq!(
        spool.describe(&now).unwrap().about.captured.wall_ms,
        60_000,
        "what the clock said stays known"
    );
    // Once the server's time is known in this boot, its files lie where they belong.
    let anchor =
        Anchor { boot: Boot { id: "b".into(), ms: 50_000 }, server_ms: 1_795_200_000_000, within_ms: 5 };
    spool.set_anchor(&anchor).unwrap();
    add_in_1970(&mut spool, "later", &boot);
    assert_eq!(spool.entries().unwrap().next_back().unwrap().key, 1_795_200_010_000);
}
