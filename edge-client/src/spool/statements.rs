//! Statements that nothing more will come, kept until the server has them.

use millpond_failpoint::{Point, reach};
use millpond_protocol::{AskId, Label, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::disk::{self, at};
use super::mend::STATEMENTS;
use super::seal::Noted;
use super::store::Spool;
use super::{SpoolError, seal};
use crate::backoff::random;
use crate::clock::Stamp;
use crate::transfer::sync_directory;

/// Statements that may wait: of labels, that is; later times take the place of earlier ones.
const STATEMENTS_MAX: usize = 1_000;

/// Of what there is nothing more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Complete {
    /// Of the time up to then, in server time.
    Through(Timestamp),
    /// Of the time up to this moment, as this machine's clocks show it.
    Now(Stamp),
    /// Of that label.
    Label(Label),
}

/// A statement that waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Statement {
    /// Under which the server is told, however often: so a label's next part is not meant by it.
    pub id: AskId,
    pub complete: Complete,
}

impl Statement {
    /// Whether whoever makes the other one has no more need of this.
    fn is_within(&self, other: &Complete) -> bool {
        match (&self.complete, other) {
            (Complete::Through(before), Complete::Through(then)) => before <= then,
            (Complete::Now(before), Complete::Now(now)) => match (&before.boot, &now.boot) {
                (Some(before), Some(now)) => before.id == now.id && before.ms <= now.ms,
                _ => false,
            },
            (Complete::Label(before), Complete::Label(label)) => before == label,
            (Complete::Through(_) | Complete::Now(_) | Complete::Label(_), _) => false,
        }
    }

    /// Whether that has been said, or more.
    fn covers(&self, other: &Complete) -> bool {
        match (&self.complete, other) {
            (Complete::Through(said), Complete::Through(then)) => said >= then,
            _ => false,
        }
    }
}

impl Spool {
    /// States that there is nothing more. When it returns, the statement is there after a power cut. [`crate::sender::flush`] tells
    /// the server when everything that it speaks of and that is in the spool now has been receipted.
    ///
    /// # Errors
    /// `TooMany`, or what the system says.
    pub fn complete(&mut self, complete: Complete) -> Result<(), SpoolError> {
        let _change = self.change()?;
        let mut noted = self.noted_statements()?;
        let statements = &mut noted.whole;
        if statements.iter().any(|statement| statement.covers(&complete)) {
            // Whoever stated it may have died before its name was synced.
            return at(&self.root, sync_directory(&self.root));
        }
        statements.retain(|statement| !statement.is_within(&complete));
        if statements.len() >= STATEMENTS_MAX {
            return Err(SpoolError::TooMany(STATEMENTS_MAX));
        }
        let id = format!("complete-{:016x}", random());
        let id = id.parse().expect("an id of ASCII letters, digits and a dash");
        statements.push(Statement { id, complete });
        self.state(&noted)
    }

    /// What was stated and is not told yet.
    ///
    /// # Errors
    /// What the system says.
    pub fn statements(&self) -> Result<Vec<Statement>, SpoolError> {
        self.noted_statements().map(|noted| noted.whole)
    }

    pub(super) fn noted_statements(&self) -> Result<Noted<Statement>, SpoolError> {
        let path = self.root.join(STATEMENTS);
        let note = match std::fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            note => at(&path, note)?,
        };
        Ok(seal::read(&note, |text| serde_json::from_str(text).ok()))
    }

    /// Forgets statements: the server has them, or does not want them.
    ///
    /// # Errors
    /// What the system says.
    pub fn told(&mut self, told: &[Statement]) -> Result<(), SpoolError> {
        let _change = self.change()?;
        let mut noted = self.noted_statements()?;
        noted.whole.retain(|statement| !told.contains(statement));
        self.state(&noted)
    }

    /// Under the lock: writes them anew. What is damaged of them stays, until somebody is told of it.
    pub(super) fn state(&self, noted: &Noted<Statement>) -> Result<(), SpoolError> {
        let (path, scratch) = (self.root.join(STATEMENTS), self.scratch());
        let whole =
            noted.whole.iter().map(|statement| seal::line(&json!(statement).to_string()).into_bytes());
        let damaged = noted.damaged.iter().map(|line| [line, &b"\n"[..]].concat());
        let lines: Vec<u8> = whole.chain(damaged).flatten().collect();
        let written = || reach(Point::StatementWritten);
        at(&path, disk::write_synced(&path, &scratch, &lines, written))
    }

    /// Which writing of the statements lies there: another one is another number.
    pub(crate) fn statements_mark(&self) -> Option<(u64, i64, i64)> {
        use std::os::unix::fs::MetadataExt as _;
        let found = std::fs::metadata(self.root.join(STATEMENTS)).ok()?;
        Some((found.ino(), found.mtime(), found.mtime_nsec()))
    }
}
