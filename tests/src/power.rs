//! A disk whose power fails: of what a program wrote, what it had synced is left.
//!
//! While the program runs, a preloaded library keeps a mirror (power.c has its format): files and directories as of their last
//! syncs. The program dies by SIGKILL, and [`Disk::fail`] takes from its directories what is not in the mirror, as a disk may that
//! keeps what POSIX promises: a sync of a file is about its bytes, a sync of a directory about the names in it, and nothing comes
//! with anything else. File systems keep more than that, each something else.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::{self, DirBuilder, Metadata};
use std::io::ErrorKind;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use crate::{Dice, Shim};

/// Bytes that a disk takes or leaves together.
const SECTOR: usize = 512;

/// What is left of that which was not synced.
#[derive(Debug)]
pub enum Loss<'a> {
    /// Nothing: neither bytes nor names.
    Everything,
    /// Names and their removal, but no bytes: a new file is empty.
    Bytes,
    /// Bytes, but no names: what was renamed has its old name, what was made has none, what was removed is back.
    Names,
    /// Each name or not; of each file all, nothing, or some sectors.
    Chance(&'a mut Dice),
}

/// What a failure took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Files whose bytes are not those that they had.
    pub files: u64,
    /// Names that are gone, or back, or another file's.
    pub names: u64,
}

impl std::ops::AddAssign for Taken {
    fn add_assign(&mut self, other: Self) {
        self.files += other.files;
        self.names += other.names;
    }
}

/// What a name is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    File,
    Directory,
    Link,
}

impl Kind {
    fn letter(self) -> char {
        match self {
            Self::File => 'f',
            Self::Directory => 'd',
            Self::Link => 'l',
        }
    }

    fn of(found: &Metadata) -> Self {
        match (found.is_dir(), found.is_symlink()) {
            (true, _) => Self::Directory,
            (_, true) => Self::Link,
            _ => Self::File,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Node {
    kind: Kind,
    inode: u64,
}

type Names = BTreeMap<OsString, Node>;

fn found(path: &Path) -> Option<Metadata> {
    fs::symlink_metadata(path).ok()
}

/// The names in a directory; none if it is not there.
fn listed(directory: &Path) -> Names {
    let Ok(entries) = fs::read_dir(directory) else { return Names::new() };
    let node = |found: &Metadata| Node { kind: Kind::of(found), inode: found.ino() };
    entries.map(Result::unwrap).map(|entry| (entry.file_name(), node(&entry.metadata().unwrap()))).collect()
}

/// The mirror.
struct Mirror(PathBuf);

impl Mirror {
    fn make(at: PathBuf) -> Self {
        for name in ["synced", "names", "pin"] {
            fs::create_dir_all(at.join(name)).unwrap();
        }
        fs::write(at.join("left"), [0; 8]).unwrap();
        Self(at)
    }

    fn of(&self, kind: &str, inode: u64) -> PathBuf {
        self.0.join(kind).join(inode.to_string())
    }

    /// A directory's names as of its last sync.
    fn names(&self, inode: u64) -> Names {
        let lines = read(&self.of("names", inode)).unwrap_or_default();
        let lines = lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let node = |line: &[u8]| {
            let mut fields = line.splitn(3, |byte| *byte == b' ');
            let kind = match fields.next().unwrap() {
                b"f" => Kind::File,
                b"d" => Kind::Directory,
                _ => Kind::Link,
            };
            let inode = std::str::from_utf8(fields.next().unwrap()).unwrap().parse().unwrap();
            (OsString::from_vec(fields.next().unwrap().to_vec()), Node { kind, inode })
        };
        lines.map(node).collect()
    }

    fn set_names(&self, inode: u64, names: &Names) {
        let mut lines = Vec::new();
        for (name, node) in names {
            lines.extend(format!("{} {} ", node.kind.letter(), node.inode).into_bytes());
            lines.extend(name.as_encoded_bytes());
            lines.push(b'\n');
        }
        fs::write(self.of("names", inode), lines).unwrap();
    }

    /// Forgets what is not among these.
    fn keep(&self, nodes: &BTreeSet<u64>) {
        for kind in ["synced", "names", "pin"] {
            for entry in fs::read_dir(self.0.join(kind)).unwrap() {
                let entry = entry.unwrap();
                let inode = entry.file_name().to_str().and_then(|name| name.parse().ok());
                if inode.is_none_or(|inode| !nodes.contains(&inode)) {
                    fs::remove_file(entry.path()).unwrap();
                }
            }
        }
    }
}

/// None if there is no such file.
fn read(path: &Path) -> Option<Vec<u8>> {
    match fs::read(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        bytes => Some(bytes.unwrap()),
    }
}

/// A disk whose power fails, for directories that lie beside each other.
pub struct Disk {
    environment: [(&'static str, String); 2],
    /// What they lie in.
    beside: PathBuf,
    /// Their names.
    own: Vec<OsString>,
    mirror: Mirror,
}

impl Disk {
    /// The disk of these directories in `beside`, which are not there yet.
    pub fn new(shim: &Shim, beside: &Path, own: &[&str]) -> Self {
        let own = own.iter().map(OsString::from).collect();
        let mirror = Mirror::make(beside.join("mirror"));
        Self { environment: shim.mirrored(&mirror.0), beside: beside.to_owned(), own, mirror }
    }

    /// What the environment of programs on this disk needs.
    pub fn environment(&self) -> [(&'static str, String); 2] {
        self.environment.clone()
    }

    /// The program that is about to sync something for the `nth` time from now on dies; 0: none does. The rest of the failure is
    /// [`Disk::fail`].
    pub fn fail_at(&self, nth: u64) {
        // Those who read it have it mapped: it stays the same file.
        let left = fs::File::options().write(true).open(self.mirror.0.join("left")).unwrap();
        left.write_all_at(&nth.to_ne_bytes(), 0).unwrap();
    }

    /// How often programs have synced something since [`Disk::fail_at`] was told 0.
    pub fn syncs(&self) -> u64 {
        let left = fs::read(self.mirror.0.join("left")).unwrap();
        i64::from_ne_bytes(left.try_into().unwrap()).unsigned_abs()
    }

    /// The power fails, and comes again: the directories are now what is left of them. Nobody may have them open. It is told on
    /// standard error.
    pub fn fail(&mut self, loss: &mut Loss<'_>) -> Taken {
        let what = format!("{loss:?}");
        self.fail_at(0);
        let inode = found(&self.beside).unwrap().ino();
        let (mut synced, mut now) = (self.mirror.names(inode), listed(&self.beside));
        synced.retain(|name, _| self.own.contains(name));
        now.retain(|name, _| self.own.contains(name));
        let mut nodes = BTreeSet::from([inode]);
        let mut failure = Failure { mirror: &self.mirror, loss, nodes: &mut nodes, taken: Taken::default() };
        failure.directory(&self.beside, inode, &synced, &now);
        let taken = failure.taken;
        self.mirror.keep(&nodes);
        eprintln!("{what}: {taken:?}");
        taken
    }
}

struct Failure<'a, 'b> {
    mirror: &'a Mirror,
    loss: &'a mut Loss<'b>,
    /// What is left.
    nodes: &'a mut BTreeSet<u64>,
    taken: Taken,
}

impl Failure<'_, '_> {
    /// The names that are left.
    fn names(&mut self, synced: &Names, now: &Names) -> Names {
        let mut left = Names::new();
        let all: BTreeSet<_> = synced.keys().chain(now.keys()).collect();
        for name in all {
            let (before, after) = (synced.get(name), now.get(name));
            let node = match self.loss {
                Loss::Everything | Loss::Names => before,
                Loss::Bytes => after,
                Loss::Chance(dice) => [before, after][usize::from(dice.below(2) == 0)],
            };
            self.taken.names += u64::from(node != after);
            left.extend(node.map(|node| (name.clone(), *node)));
        }
        left
    }

    /// Makes of a directory, which has these names, what is left.
    fn directory(&mut self, path: &Path, inode: u64, synced: &Names, now: &Names) {
        let mut left = self.names(synced, now);
        for (name, node) in now.iter().filter(|(name, node)| left.get(*name) != Some(node)) {
            let path = path.join(name);
            match node.kind {
                Kind::Directory => fs::remove_dir_all(path).unwrap(),
                Kind::File | Kind::Link => fs::remove_file(path).unwrap(),
            }
        }
        for (name, node) in &mut left {
            let path = path.join(name);
            let is_there = now.get(name) == Some(node);
            match node.kind {
                Kind::Directory => {
                    let synced = self.mirror.names(node.inode);
                    if is_there {
                        let now = listed(&path);
                        self.nodes.insert(node.inode);
                        self.directory(&path, node.inode, &synced, &now);
                    } else {
                        // One that was removed is made again, and is another one.
                        DirBuilder::new().mode(0o700).create(&path).unwrap();
                        node.inode = found(&path).unwrap().ino();
                        self.nodes.insert(node.inode);
                        self.directory(&path, node.inode, &synced, &Names::new());
                    }
                }
                Kind::File | Kind::Link => {
                    let pinned = self.mirror.of("pin", node.inode);
                    if !is_there {
                        fs::hard_link(&pinned, &path).unwrap();
                    } else if found(&pinned).is_none() {
                        fs::hard_link(&path, &pinned).unwrap();
                    }
                    // One that has two names comes here twice.
                    if self.nodes.insert(node.inode) && node.kind == Kind::File {
                        self.file(&path, node.inode);
                    }
                }
            }
        }
        if left != self.mirror.names(inode) {
            self.mirror.set_names(inode, &left);
        }
    }

    /// Makes of a file what is left.
    fn file(&mut self, path: &Path, inode: u64) {
        let mirrored = self.mirror.of("synced", inode);
        let (synced, now) = (read(&mirrored), fs::read(path).unwrap());
        let bytes = synced.as_deref().unwrap_or_default();
        let left = match self.loss {
            Loss::Everything | Loss::Bytes => bytes.to_vec(),
            Loss::Names => now.clone(),
            Loss::Chance(dice) => match dice.below(4) {
                0 => bytes.to_vec(),
                1 => now.clone(),
                _ => torn(bytes, &now, dice),
            },
        };
        if left != now {
            self.taken.files += 1;
            fs::write(path, &left).unwrap();
        }
        if synced.as_ref() != Some(&left) {
            fs::write(mirrored, left).unwrap();
        }
    }
}

/// Some sectors as they were synced, the others as they were last.
fn torn(synced: &[u8], now: &[u8], dice: &mut Dice) -> Vec<u8> {
    let (short, long) = (synced.len().min(now.len()), synced.len().max(now.len()));
    let length = match dice.below(3) {
        0 => synced.len(),
        1 => now.len(),
        _ => short + usize::try_from(dice.below((long - short) as u64 + 1)).unwrap(),
    };
    // What was never written is zeros.
    let mut left = vec![0; length];
    let mut from = 0;
    let mut is_new = dice.below(2) == 0;
    while from < length {
        // Runs, for else hardly a page of a database would be whole.
        let run = SECTOR << dice.below(8);
        let to = length.min(from + run);
        let source = if is_new { now } else { synced };
        let bytes = source.get(from..to.min(source.len())).unwrap_or_default();
        left[from..from + bytes.len()].copy_from_slice(bytes);
        (from, is_new) = (to, !is_new);
    }
    left
}
