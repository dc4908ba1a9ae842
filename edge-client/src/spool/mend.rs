//! Notes that are not what was written: they are never believed, and found when the spool is opened or somebody looks for them.
//! Statements that are damaged lie beside from then on, for people to look at; what can be learnt again is gone.

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};

use super::disk::{self, at};
use super::dropped::append;
use super::store::Spool;
use super::{SpoolError, seal};
use crate::transfer::sync_directory;

/// Where statements wait, and under that name in `damaged/` those that are damaged.
pub(super) const STATEMENTS: &str = "complete";
/// What of the notes can be learnt again.
const HINTS: [&str; 3] = ["in-flight", "anchors", "rest"];

/// Lines of a note that are not what was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DamagedNote {
    /// The name of the note: `complete`, `in-flight`, `anchors` or `rest`.
    pub note: &'static str,
    /// How many lines.
    pub lines: usize,
}

impl DamagedNote {
    /// Whether nobody knows any more what they said: statements that somebody has to make again.
    pub fn is_lost(&self) -> bool {
        self.note == STATEMENTS
    }
}

impl Spool {
    /// What the opening of this spool, or the last [`Spool::mend_notes`], found in its notes that is not what was written.
    pub fn damaged_notes(&self) -> &[DamagedNote] {
        &self.damaged_notes
    }

    /// Looks for such again, for whoever has the spool open for long. Answers what is new: not what the last look found too, and
    /// could not take out.
    ///
    /// # Errors
    /// What the system says.
    pub fn mend_notes(&mut self) -> Result<Vec<DamagedNote>, SpoolError> {
        let change = self.change()?;
        let (found, left) = self.mend();
        drop(change);
        let known = std::mem::replace(&mut self.left_in_notes, left);
        self.damaged_notes = found;
        Ok(self.damaged_notes.iter().filter(|damaged| !known.contains(damaged)).cloned().collect())
    }

    /// Statements that were found damaged and not discarded, as what is left of them.
    pub fn damaged_statements(&self) -> Vec<String> {
        let lines = std::fs::read(self.damaged_path().join(STATEMENTS)).unwrap_or_default();
        seal::lines(&lines).map(|line| String::from_utf8_lossy(line).into_owned()).collect()
    }

    /// Removes them.
    ///
    /// # Errors
    /// What the system says.
    pub fn discard_damaged_statements(&mut self) -> Result<(), SpoolError> {
        let _change = self.change()?;
        let path = self.damaged_path().join(STATEMENTS);
        at(&path, disk::remove(&path))
    }

    /// Under the lock: takes what is damaged out of the notes. A disk that does not let that be is none that keeps a spool from
    /// being opened: nobody believes it where it lies either. What was found, and what of it is still there.
    pub(super) fn mend(&self) -> (Vec<DamagedNote>, Vec<DamagedNote>) {
        let (mut found, mut left) = (Vec::new(), Vec::new());
        let mut tell = |damaged: DamagedNote, is_out: bool| {
            left.extend((!is_out).then(|| damaged.clone()));
            found.push(damaged);
        };
        if let Ok(mut statements) = self.noted_statements()
            && !statements.damaged.is_empty()
        {
            let damaged = DamagedNote { note: STATEMENTS, lines: statements.damaged.len() };
            let mut is_out = self.lay_lines_aside(&statements.damaged).is_ok();
            if is_out {
                statements.damaged.clear();
                is_out = self.state(&statements).is_ok();
            }
            tell(damaged, is_out);
        }
        for note in HINTS {
            let path = self.root.join(note);
            let text = std::fs::read(&path).unwrap_or_default();
            let (whole, damaged): (Vec<_>, Vec<_>) =
                seal::lines(&text).partition(|line| seal::proven(line).is_some());
            if !damaged.is_empty() {
                let damaged = DamagedNote { note, lines: damaged.len() };
                tell(damaged, disk::replace(&path, &self.scratch(), &ended(&whole)).is_ok());
            }
        }
        (found, left)
    }

    /// Under the lock: statements that are damaged lie beside. When it returns, they are there after a power cut.
    fn lay_lines_aside(&self, damaged: &[Vec<u8>]) -> io::Result<()> {
        let path = self.damaged_path().join(STATEMENTS);
        let there = match std::fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            there => there?,
        };
        let there: HashSet<&[u8]> = seal::lines(&there).collect();
        let new: Vec<&[u8]> =
            damaged.iter().map(Vec::as_slice).filter(|line| !there.contains(line)).collect();
        append(&path, &ended(&new))?.sync_all()?;
        sync_directory(&self.damaged_path())
    }

    fn damaged_path(&self) -> PathBuf {
        self.root.join("damaged")
    }
}

fn ended(lines: &[&[u8]]) -> Vec<u8> {
    lines.iter().flat_map(|line| [*line, b"\n"].concat()).collect()
}

/// Gives the notes of a spool of version 1 the checksums that they had not. Lines that have one, because this was begun before,
/// stay as they are. Only the statements have to be written: a disk that does not let the others be loses hints, and reasons.
pub(super) fn seal_notes(root: &Path, scratch: &Path) -> io::Result<()> {
    let statements = root.join(STATEMENTS);
    if let Some(sealed) = sealed(&statements)? {
        disk::write_synced(&statements, scratch, &sealed, || {})?;
    }
    let replaced = |path: &Path| {
        sealed(path).and_then(|note| note.map_or(Ok(()), |note| disk::replace(path, scratch, &note)))
    };
    for path in HINTS.map(|note| root.join(note)) {
        if replaced(&path).is_err() {
            let _ = disk::remove(&path);
        }
    }
    for refusal in std::fs::read_dir(root.join("refusals")).into_iter().flatten().flatten() {
        let _ = replaced(&refusal.path());
    }
    Ok(())
}

/// What a note without checksums is with them; none if there is none.
fn sealed(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let note = match std::fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        note => note?,
    };
    let sealed = seal::lines(&note).flat_map(|line| match std::str::from_utf8(line) {
        Ok(text) if seal::proven(line).is_none() => seal::line(text).into_bytes(),
        _ => [line, b"\n"].concat(),
    });
    Ok(Some(sealed.collect()))
}
