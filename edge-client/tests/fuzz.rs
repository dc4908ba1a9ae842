//! The fuzz target of the spool: a directory in which anything was overwritten, cut, removed or added. What was left alone is read
//! back whole, what was not is never taken for what it was, and the spool goes on.

#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use millpond_edge::clock::Stamp;
use millpond_edge::spool::{About, Complete, Entry, Limits, Spool, SpoolError, Statement};
use millpond_fuzz::{Seen, Target, run};
use millpond_protocol::{Code, Refusal, Timestamp};

const WORDS: &[&[u8]] = &[
    b"MPSPOOL1",
    b"millpond-spool 1\n",
    b"millpond-spool 2\n",
    b"n\x00",
    b"n\x01",
    b"w\x00\x00",
    b"t\x00",
    b"a\x00",
    b"d",
    b"r\x00",
    b"000000000000001.18446744073709551615.a",
    b"999999999999999.0.b",
    b"000000000000000.1.c",
    b"{\"id\":\"complete-1\"",
    b"\n",
    b"{}",
];

/// Where files are made by name.
const PLACES: [&str; 6] = ["ready", "refused", "refusals", "damaged", "staging", "."];

fn about(upload: &str, time: i64) -> About {
    About {
        upload: upload.parse().unwrap(),
        name: format!("{upload}.bin").parse().unwrap(),
        event_time: Some(Timestamp::clamped(time)),
        label: None,
        content_type: None,
        meta: None,
        captured: Stamp { wall_ms: time, boot: None },
    }
}

fn add(spool: &mut Spool, upload: &str, time: i64, bytes: &[u8]) -> Entry {
    let staged = spool.stage(bytes, |_| about(upload, time)).unwrap();
    spool.add(vec![staged]).unwrap().new.remove(0)
}

/// A spool with one of everything, as bytes by name.
struct Template {
    files: BTreeMap<PathBuf, Vec<u8>>,
    waiting: BTreeMap<Entry, Vec<u8>>,
    refused: Entry,
    statements: Vec<Statement>,
}

impl Template {
    fn new() -> Self {
        let home = tempfile::tempdir().unwrap();
        let mut spool = Spool::open(home.path(), Limits::default()).unwrap();
        let mut waiting = BTreeMap::new();
        for (n, size) in [(1_u8, 0_usize), (2, 10), (3, 900)] {
            let bytes = vec![n; size];
            waiting.insert(add(&mut spool, &format!("u{n}"), i64::from(n) * 1_000, &bytes), bytes);
        }
        let refused = add(&mut spool, "refused", 9_000, b"not wanted");
        spool.refuse(&refused, &Refusal::new(Code::Conflict, "other bytes")).unwrap();
        spool.set_in_flight(waiting.keys()).unwrap();
        spool.complete(Complete::Through(Timestamp::clamped(5_000))).unwrap();
        spool.complete(Complete::Label("l".parse().unwrap())).unwrap();
        let statements = spool.statements().unwrap();
        let mut files = BTreeMap::new();
        for place in PLACES {
            for item in fs::read_dir(home.path().join(place)).unwrap() {
                let path = item.unwrap().path();
                if path.is_file() {
                    let name =
                        path.strip_prefix(home.path().join(".")).or_else(|_| path.strip_prefix(home.path()));
                    files.insert(name.unwrap().to_owned(), fs::read(&path).unwrap());
                }
            }
        }
        Self { files, waiting, refused, statements }
    }

    fn write(&self, root: &Path) {
        for place in PLACES {
            fs::create_dir_all(root.join(place)).unwrap();
        }
        for (name, bytes) in &self.files {
            fs::write(root.join(name), bytes).unwrap();
        }
    }

    /// Does what the bytes say, and answers which files are not what they were.
    fn damage(&self, root: &Path, mut script: &[u8]) -> BTreeSet<PathBuf> {
        let names: Vec<&PathBuf> = self.files.keys().collect();
        let mut touched = BTreeSet::new();
        let mut take = |n: usize| {
            let (head, tail) = script.split_at(n.min(script.len()));
            script = tail;
            head
        };
        let number = |bytes: &[u8]| bytes.iter().fold(0_u64, |number, byte| number << 8 | u64::from(*byte));
        while let [op] = take(1) {
            if *op == b'n' {
                let place = PLACES[number(take(1)) as usize % PLACES.len()];
                let length = number(take(1)) as usize;
                let name = String::from_utf8_lossy(take(length)).into_owned();
                let length = number(take(1)) as usize;
                let content = take(length);
                let path = if place == "." { PathBuf::from(&name) } else { Path::new(place).join(&name) };
                let is_name = !name.is_empty() && !name.contains(['/', '\0']) && name != "." && name != "..";
                if is_name && !root.join(&path).is_dir() && fs::write(root.join(&path), content).is_ok() {
                    touched.insert(path);
                }
                continue;
            }
            let name = names[number(take(1)) as usize % names.len()].clone();
            let path = root.join(&name);
            let open = || fs::OpenOptions::new().write(true).open(&path);
            match op {
                b'w' => {
                    let (offset, length) = (number(take(2)), number(take(1)) as usize);
                    if let Ok(mut file) = open() {
                        file.seek(SeekFrom::Start(offset)).unwrap();
                        file.write_all(take(length)).unwrap();
                    }
                }
                b't' => {
                    let length = number(take(2));
                    if let Ok(file) = open() {
                        file.set_len(length).unwrap();
                    }
                }
                b'a' => {
                    let length = number(take(1)) as usize;
                    if let Ok(mut file) = open() {
                        file.seek(SeekFrom::End(0)).unwrap();
                        file.write_all(take(length)).unwrap();
                    }
                }
                b'd' => drop(fs::remove_file(&path)),
                b'r' => {
                    let to = names[number(take(1)) as usize % names.len()];
                    if fs::rename(&path, root.join(to)).is_ok() {
                        touched.insert(to.clone());
                    }
                }
                _ => continue,
            }
            touched.insert(name);
        }
        touched
            .into_iter()
            .filter(|name| fs::read(root.join(name)).ok().as_ref() != self.files.get(name))
            .collect()
    }
}

/// Reads everything, and holds it to what always holds.
fn look(template: &Template, root: &Path, touched: &BTreeSet<PathBuf>, seen: &mut Seen) {
    let is_whole = |name: &str| !touched.contains(Path::new(name));
    let mut spool = match Spool::open(root, Limits::default()) {
        Ok(spool) => spool,
        Err(SpoolError::Foreign(_)) if !is_whole("version") => return seen.note("foreign"),
        Err(error) => panic!("{error}"),
    };
    let listed: Vec<Entry> = spool.entries().unwrap().cloned().collect();
    assert!(listed.is_sorted());
    for (entry, bytes) in &template.waiting {
        if is_whole(&format!("ready/{entry}")) {
            assert!(listed.contains(entry), "{entry} is not listed");
            let (document, loaded) = spool.load(entry).unwrap();
            assert_eq!((document.entry(), &loaded), (entry.clone(), bytes));
        }
    }
    let mut damaged = BTreeSet::new();
    for entry in &listed {
        match spool.load(entry) {
            Ok((document, bytes)) => {
                assert_eq!((document.entry(), bytes.len() as u64), (entry.clone(), entry.size));
                assert!(
                    template.waiting.get(entry).is_none_or(|was| *was == bytes),
                    "{entry} has other bytes"
                );
            }
            Err(SpoolError::Damaged { why, .. }) => {
                assert!(!spool.path(entry).exists(), "{entry} is out of the way");
                seen.note(why);
                damaged.insert(entry.clone());
            }
            Err(error) => panic!("{entry}: {error}"),
        }
    }
    let refused = spool.refused().unwrap();
    if is_whole(&format!("refused/{}", template.refused)) {
        assert!(refused.iter().any(|(entry, _)| *entry == template.refused));
    }
    let statements = spool.statements().unwrap();
    assert!(!is_whole("complete") || statements == template.statements, "{statements:?}");
    // A spool of version 1 has no checksums beside its entries'.
    let is_sealed = is_whole("version");
    let known = |statement| template.statements.contains(statement);
    assert!(!is_sealed || statements.iter().all(known), "{statements:?}");
    seen.note(statements.len());
    let in_flight = spool.in_flight();
    assert!(!is_whole("in-flight") || in_flight.len() == template.waiting.len());
    assert!(
        !is_sealed || in_flight.iter().all(|entry| template.waiting.contains_key(entry)),
        "{in_flight:?}"
    );
    spool.anchors();

    // It goes on: another file goes in, and whoever opens it then finds the same.
    let left: Vec<Entry> = listed.into_iter().filter(|entry| !damaged.contains(entry)).collect();
    let staged = spool.stage(&b"new"[..], |_| about("new", 7_000)).unwrap();
    let new = spool.add(vec![staged]).unwrap();
    seen.note((left.len().min(6), damaged.len().min(3), refused.len().min(3), new.new.len()));
    drop(spool);
    let mut spool = Spool::open(root, Limits::default()).unwrap();
    let again: BTreeSet<Entry> = spool.entries().unwrap().cloned().collect();
    assert_eq!(again, left.into_iter().chain(new.new).collect());
}

#[test]
fn fuzz_spool() {
    let template = Template::new();
    run(&Target { name: "spool", words: WORDS, max: 2_048 }, |script, seen| {
        let home = tempfile::tempdir().unwrap();
        template.write(home.path());
        let touched = template.damage(home.path(), script);
        look(&template, home.path(), &touched, seen);
    });
}
