//! The directory in which a listener keeps results.
//!
//! ```text
//! DIR/
//!   current               a link to the newest: 17/model.bin
//!   17/model.bin          one directory a version
//!   .millpond/            mode 0700
//!     lock                flock, held by the listener of this directory
//!     state               JSON: the version that `current` names, and how far it is
//!     versions            the directories that this listener made, one number a line, the one shown last at the end; no others are removed
//!     partial-SHA256      a download on its way
//! ```
//!
//! `current` is replaced by rename, and only when the file that it will name is verified and synced: whoever opens it reads a
//! whole result, the newest or the one before, at any instant and after any crash.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use millpond_failpoint::{Point, reach};
use millpond_protocol::message::Pointer;
use millpond_protocol::{FileName, Sha256};
use serde::{Deserialize, Serialize};

use crate::spool::{directories, make_directory, open_private, write_synced};
use crate::transfer::{TransferError, parent, place, sync_directory};
use crate::tree;

/// How far a shown version is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// `current` names it; the command has not ended yet.
    Shown,
    /// The command succeeded, or there is none.
    Applied,
    /// The command failed.
    Failed(String),
}

/// What `current` names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    pub version: u64,
    pub name: FileName,
    pub size: u64,
    pub sha256: Sha256,
    #[serde(default)]
    pub content_type: Option<String>,
    pub stage: Stage,
    /// Whether the server knows the stage.
    pub told: bool,
}

/// What `current` says for that version.
fn target(state: &State) -> PathBuf {
    Path::new(&state.version.to_string()).join(state.name.as_str())
}

/// A listener's directory.
#[derive(Debug)]
pub struct Shelf {
    root: PathBuf,
    _lock: File,
    state: Option<State>,
    /// The directories that listeners made here, in the order in which they were shown.
    own: Vec<u64>,
}

impl Shelf {
    /// Opens a directory, made if there is none.
    ///
    /// # Errors
    /// What the system says; `WouldBlock` if another listener has it.
    pub fn open(root: &Path) -> io::Result<Self> {
        directories(root)?;
        let own = root.join(".millpond");
        make_directory(&own)?;
        let lock = open_private(&own.join("lock"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(fs::TryLockError::WouldBlock) => {
                let why = "another listener keeps this directory";
                return Err(io::Error::new(io::ErrorKind::WouldBlock, why));
            }
            Err(fs::TryLockError::Error(error)) => return Err(error),
        }
        // A state that cannot be read is as good as none: the result is fetched once more.
        let state = fs::read(own.join("state")).ok().and_then(|json| serde_json::from_slice(&json).ok());
        let own = fs::read_to_string(own.join("versions")).unwrap_or_default();
        let own = own.lines().filter_map(|line| line.parse().ok()).collect();
        let mut shelf = Self { root: root.to_owned(), _lock: lock, state, own };
        if shelf.state.as_ref().is_some_and(|state| !shelf.file(state).is_file()) {
            shelf.state = None;
        }
        let named = fs::read_link(root.join("current")).ok();
        if named != shelf.state.as_ref().map(target) {
            // Whoever noted it may have died before that was synced.
            sync_directory(&root.join(".millpond"))?;
            shelf.link()?;
        } else if named.is_some() {
            // And whoever made the link, before that: it must last before anybody is told, and before what it named is removed.
            sync_directory(root)?;
        }
        Ok(shelf)
    }

    /// What `current` names, unless nothing.
    pub fn state(&self) -> Option<&State> {
        self.state.as_ref()
    }

    /// Where the file of a version is.
    pub fn file(&self, state: &State) -> PathBuf {
        self.root.join(target(state))
    }

    /// What is its own beside the results.
    pub(super) fn own(&self) -> PathBuf {
        self.root.join(".millpond")
    }

    /// Where a version is.
    pub(super) fn directory(&self, version: u64) -> PathBuf {
        self.root.join(version.to_string())
    }

    /// Where a download of those bytes goes on. Others that were begun are forgotten.
    ///
    /// # Errors
    /// What the system says.
    pub fn partial(&self, sha256: Sha256) -> io::Result<PathBuf> {
        let own = self.own();
        let wanted = own.join(format!("partial-{sha256}"));
        for item in fs::read_dir(&own)? {
            let path = item?.path();
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            if name.starts_with("partial-") && path != wanted {
                fs::remove_file(path)?;
            }
        }
        Ok(wanted)
    }

    /// Where the file of a pointer is, if an attempt to show it came so far; what is in it is for the caller to prove.
    pub fn placed(&self, pointer: &Pointer) -> Option<PathBuf> {
        Some(self.directory(pointer.version).join(pointer.name.as_str())).filter(|path| path.is_file())
    }

    /// Shows a verified and synced file as the newest result; one that is placed already need not be at `partial`.
    ///
    /// # Errors
    /// What the system says; `current` is then still the one before.
    pub fn show(&mut self, pointer: &Pointer, partial: &Path) -> io::Result<()> {
        let state = State {
            version: pointer.version,
            name: pointer.name.clone(),
            size: pointer.size,
            sha256: pointer.sha256,
            content_type: pointer.content_type.clone(),
            stage: Stage::Shown,
            told: false,
        };
        let file = self.file(&state);
        self.make(state.version)?;
        // The state must not outlive the directory that it names.
        sync_directory(&self.root)?;
        if partial.exists() || !file.is_file() {
            place(partial, &file).map_err(|error| match error {
                TransferError::Local { source, .. } => source,
                error => io::Error::other(error),
            })?;
        } else {
            // Whoever placed it may have died before its name was synced.
            sync_directory(parent(&file))?;
        }
        reach(Point::ResultPlaced);
        // Before the link: after a crash in between, the next start makes the link.
        self.write(state)?;
        reach(Point::ResultNoted);
        self.link()
    }

    fn link(&self) -> io::Result<()> {
        let Some(state) = &self.state else { return Ok(()) };
        let link = self.own().join("link");
        match fs::remove_file(&link) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        symlink(target(state), &link)?;
        fs::rename(&link, self.root.join("current"))?;
        sync_directory(&self.root)
    }

    /// Makes the directory of a version. One that somebody else made is used, and stays theirs.
    fn make(&mut self, version: u64) -> io::Result<()> {
        let directory = self.directory(version);
        if self.own.contains(&version) || !directory.exists() {
            let mut own = self.own.clone();
            own.retain(|other| *other != version);
            own.push(version);
            self.write_own(own)?;
        }
        fs::create_dir_all(directory)
    }

    /// Notes how far the shown version is. What this value says is so even if it cannot be written; then the next call writes it.
    ///
    /// # Errors
    /// What the system says.
    pub fn note(&mut self, stage: Stage, told: bool) -> io::Result<()> {
        let Some(state) = self.state.clone() else { return Ok(()) };
        let state = self.state.insert(State { stage, told, ..state }).clone();
        self.write(state)
    }

    fn write(&mut self, state: State) -> io::Result<()> {
        self.replace("state", &serde_json::to_vec(&state)?)?;
        self.state = Some(state);
        Ok(())
    }

    fn write_own(&mut self, own: Vec<u64>) -> io::Result<()> {
        let lines: String = own.iter().map(|version| format!("{version}\n")).collect();
        self.replace("versions", lines.as_bytes())?;
        self.own = own;
        Ok(())
    }

    /// Writes a small file of its own, synced, in place of the one before.
    fn replace(&self, name: &str, content: &[u8]) -> io::Result<()> {
        write_synced(&self.own().join(name), &self.own().join(format!("{name}.new")), content, || {})
    }

    /// Removes versions that were shown here, but for the last `keep` and the current one. Nothing else is touched, whatever its
    /// name. What could not be removed, or written, is answered; the next call tries it again.
    pub fn prune(&mut self, keep: usize) -> Vec<(PathBuf, io::Error)> {
        let current = self.state.as_ref().map(|state| state.version);
        let old = self.own.len().saturating_sub(keep.max(1));
        let (mut own, mut failed) = (Vec::new(), Vec::new());
        for (n, version) in self.own.iter().enumerate() {
            if n < old && Some(*version) != current {
                let directory = self.directory(*version);
                match tree::remove(&directory) {
                    Ok(()) => continue,
                    Err(error) => failed.push((directory, error)),
                }
            }
            own.push(*version);
        }
        if own != self.own {
            // Forgotten before they are gone for good, they would stay.
            let written = sync_directory(&self.root).and_then(|()| self.write_own(own));
            failed.extend(written.err().map(|error| (self.own(), error)));
        }
        failed
    }
}

#[cfg(test)]
mod tests {
    use millpond_protocol::Timestamp;

    use super::*;

    fn pointer(version: u64, bytes: &[u8]) -> Pointer {
        Pointer {
            version,
            batch: 1,
            round: 1,
            of: None,
            name: "model.bin".parse().unwrap(),
            size: bytes.len() as u64,
            sha256: Sha256::of(bytes),
            content_type: None,
            url: String::new(),
            url_expires: Timestamp::EPOCH,
            spread_s: 0,
        }
    }

    fn show(shelf: &mut Shelf, version: u64, bytes: &[u8]) {
        let partial = shelf.partial(Sha256::of(bytes)).unwrap();
        fs::write(&partial, bytes).unwrap();
        shelf.show(&pointer(version, bytes), &partial).unwrap();
    }

    #[test]
    fn current_is_the_newest_and_the_last_few_stay() {
        let root = tempfile::tempdir().unwrap();
        let mut shelf = Shelf::open(root.path()).unwrap();
        for version in 8..=11 {
            show(&mut shelf, version, format!("version {version}").as_bytes());
            assert!(shelf.prune(2).is_empty());
        }
        assert_eq!(fs::read_to_string(root.path().join("current")).unwrap(), "version 11");
        assert!(root.path().join("10").exists() && !root.path().join("9").exists());
        shelf.note(Stage::Applied, true).unwrap();
        drop(shelf);
        let shelf = Shelf::open(root.path()).unwrap();
        let state = shelf.state().unwrap();
        assert_eq!((state.version, &state.stage, state.told), (11, &Stage::Applied, true));
    }

    #[test]
    fn only_directories_that_the_listener_made_are_removed_whatever_others_are_called() {
        let root = tempfile::tempdir().unwrap();
        for (directory, file) in [("1", "theirs"), ("3", "theirs"), ("2024", "photo")] {
            fs::create_dir(root.path().join(directory)).unwrap();
            fs::write(root.path().join(directory).join(file), "precious").unwrap();
        }
        fs::write(root.path().join("2"), "a file").unwrap();
        let mut shelf = Shelf::open(root.path()).unwrap();
        for version in 3..=8 {
            show(&mut shelf, version, format!("version {version}").as_bytes());
            assert!(shelf.prune(1).is_empty());
            drop(shelf);
            shelf = Shelf::open(root.path()).unwrap();
        }
        let mut left: Vec<_> =
            fs::read_dir(root.path()).unwrap().map(|item| item.unwrap().file_name()).collect();
        left.sort_unstable();
        assert_eq!(left, [".millpond", "1", "2", "2024", "3", "8", "current"]);
        assert!(root.path().join("3/theirs").exists());
    }

    #[test]
    fn a_version_that_is_given_out_again_takes_the_place_of_the_one_before() {
        let root = tempfile::tempdir().unwrap();
        let mut shelf = Shelf::open(root.path()).unwrap();
        for (version, bytes) in [(8, "old 8"), (9, "old 9"), (7, "new 7"), (8, "new 8")] {
            show(&mut shelf, version, bytes.as_bytes());
            assert!(shelf.prune(2).is_empty());
        }
        assert_eq!(fs::read_to_string(root.path().join("current")).unwrap(), "new 8");
        assert!(root.path().join("7").exists() && !root.path().join("9").exists());
    }

    #[test]
    fn what_was_placed_and_not_shown_is_not_fetched_again() {
        let root = tempfile::tempdir().unwrap();
        let mut shelf = Shelf::open(root.path()).unwrap();
        show(&mut shelf, 1, b"one");
        let two = pointer(2, b"two");
        assert_eq!(shelf.placed(&two), None);
        fs::create_dir(root.path().join("2")).unwrap();
        fs::write(root.path().join("2/model.bin"), "two").unwrap();
        assert_eq!(shelf.placed(&two), Some(root.path().join("2/model.bin")));
        let partial = shelf.partial(two.sha256).unwrap();
        shelf.show(&two, &partial).unwrap();
        assert_eq!(fs::read_to_string(root.path().join("current")).unwrap(), "two");
    }

    #[test]
    fn a_link_that_a_crash_kept_from_being_made_is_made_at_the_next_start() {
        let root = tempfile::tempdir().unwrap();
        let mut shelf = Shelf::open(root.path()).unwrap();
        show(&mut shelf, 1, b"one");
        show(&mut shelf, 2, b"two");
        drop(shelf);
        fs::remove_file(root.path().join("current")).unwrap();
        symlink("1/model.bin", root.path().join("current")).unwrap();
        drop(Shelf::open(root.path()).unwrap());
        assert_eq!(fs::read_to_string(root.path().join("current")).unwrap(), "two");
    }

    #[test]
    fn a_directory_has_one_listener() {
        let root = tempfile::tempdir().unwrap();
        let first = Shelf::open(root.path()).unwrap();
        assert_eq!(Shelf::open(root.path()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(first);
        Shelf::open(root.path()).unwrap();
    }

    #[test]
    fn what_somebody_removed_is_fetched_again() {
        let root = tempfile::tempdir().unwrap();
        let mut shelf = Shelf::open(root.path()).unwrap();
        show(&mut shelf, 1, b"one");
        drop(shelf);
        fs::remove_dir_all(root.path().join("1")).unwrap();
        assert_eq!(Shelf::open(root.path()).unwrap().state(), None);
    }

    #[test]
    fn only_the_wanted_download_is_kept() {
        let root = tempfile::tempdir().unwrap();
        let shelf = Shelf::open(root.path()).unwrap();
        let one = shelf.partial(Sha256::of(b"1")).unwrap();
        fs::write(&one, "half").unwrap();
        assert_eq!(shelf.partial(Sha256::of(b"1")).unwrap(), one);
        assert!(one.exists());
        shelf.partial(Sha256::of(b"2")).unwrap();
        assert!(!one.exists());
    }
}
