//! Tells the server that there is nothing more, once what the statement speaks of has been receipted.

use std::collections::HashSet;
use std::time::Duration;

use millpond_protocol::access::Op;
use millpond_protocol::message::ask;
use millpond_protocol::{Code, Label, Timestamp, UploadId};

use super::run::{Done, Run};
use super::ship::{Clock, Loaded};
use super::{Report, SendError};
use crate::session::SessionError;
use crate::spool::{Complete, Document, Entry, Spool, SpoolError, Statement};

/// How long one answer may take.
const ASK: Duration = Duration::from_secs(30);

/// What is told in one ask. Whoever is complete up to a time is complete up to all earlier ones.
#[derive(Debug, Clone, PartialEq, Eq)]
enum What {
    Through(Timestamp),
    Label(Label),
}

/// Statements that one ask tells, and what it waits for.
#[derive(Debug)]
struct Pending {
    what: What,
    statements: Vec<Statement>,
    /// Files in the spool that it speaks of.
    behind: HashSet<UploadId>,
    /// It is on its way.
    telling: bool,
}

impl Pending {
    fn speaks_of(&self, document: &Document, clock: &Clock) -> bool {
        match &self.what {
            What::Through(time) => clock.event_time(document) <= *time,
            What::Label(label) => document.about.label.as_ref() == Some(label),
        }
    }

    fn is_through(&self, time: Timestamp) -> bool {
        matches!(self.what, What::Through(through) if through == time)
    }
}

/// Everything that was stated. A file that is spooled after its statement was read is not waited for.
#[derive(Debug, Default)]
pub(super) struct Statements(Vec<Pending>);

impl Statements {
    /// Reads the statements, and the entries that each speaks of.
    pub(super) fn read(spool: &mut Spool, clock: &Clock) -> Result<Self, SpoolError> {
        let statements = spool.statements()?;
        Self::of(statements, spool, clock)
    }

    /// Reads those that were made since.
    pub(super) fn read_on(&mut self, spool: &mut Spool, clock: &Clock) -> Result<(), SpoolError> {
        let mut statements = spool.statements()?;
        statements.retain(|new| !self.0.iter().any(|pending| pending.statements.contains(new)));
        self.0.append(&mut Self::of(statements, spool, clock)?.0);
        Ok(())
    }

    fn of(statements: Vec<Statement>, spool: &mut Spool, clock: &Clock) -> Result<Self, SpoolError> {
        let mut all: Vec<Pending> = Vec::new();
        for statement in statements {
            let what = match &statement.complete {
                Complete::Through(time) => What::Through(*time),
                Complete::Now(stamp) => {
                    What::Through(stamp.in_server_time(&clock.anchors, clock.offset_ms, clock.now))
                }
                Complete::Label(label) => What::Label(label.clone()),
            };
            let same = all.iter_mut().find(|other| match (&other.what, &what) {
                (What::Through(_), What::Through(_)) => true,
                (other, what) => other == what,
            });
            match same {
                Some(pending) => {
                    if let (What::Through(latest), What::Through(time)) = (&mut pending.what, what) {
                        *latest = (*latest).max(time);
                    }
                    pending.statements.push(statement);
                }
                None => {
                    let (statements, behind) = (vec![statement], HashSet::new());
                    all.push(Pending { what, statements, behind, telling: false });
                }
            }
        }
        if all.is_empty() {
            return Ok(Self(all));
        }
        let entries: Vec<Entry> = spool.entries()?.cloned().collect();
        for entry in entries {
            match spool.describe(&entry) {
                Ok(document) => {
                    for pending in all.iter_mut().filter(|pending| pending.speaks_of(&document, clock)) {
                        pending.behind.insert(entry.upload.clone());
                    }
                }
                // It has left the spool.
                Err(SpoolError::Gone(_) | SpoolError::Damaged { .. }) => {}
                // Nobody knows what it belongs to: perhaps all of them speak of it.
                Err(SpoolError::Io { .. }) => {
                    for pending in &mut all {
                        pending.behind.insert(entry.upload.clone());
                    }
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Self(all))
    }

    /// A file has left the spool.
    pub(super) fn settled(&mut self, upload: &UploadId) {
        for pending in &mut self.0 {
            pending.behind.remove(upload);
        }
    }

    /// Whether one can be told, or is being told.
    pub(super) fn is_due(&self) -> bool {
        self.0.iter().any(|pending| pending.telling || pending.behind.is_empty())
    }

    /// What a bundle of these files may say at its end: that they were the last ones. It is on its way then.
    pub(super) fn with_bundle(&mut self, files: &[Loaded]) -> Option<Timestamp> {
        let through = |pending: &Pending| match pending.what {
            What::Through(time) => Some(time),
            What::Label(_) => None,
        };
        let pending = self.0.iter_mut().find(|pending| through(pending).is_some() && !pending.telling)?;
        let ids: HashSet<&UploadId> = files.iter().map(|file| &file.entry.upload).collect();
        pending.telling =
            !pending.behind.is_empty() && pending.behind.iter().all(|upload| ids.contains(upload));
        pending.telling.then(|| through(pending)).flatten()
    }

    /// The bundle that said it was not taken.
    pub(super) fn not_with_bundle(&mut self, through: Timestamp) {
        for pending in self.0.iter_mut().filter(|pending| pending.is_through(through)) {
            pending.telling = false;
        }
    }

    fn take(&mut self, of: impl Fn(&Pending) -> bool) -> Vec<Statement> {
        let (taken, rest) = std::mem::take(&mut self.0).into_iter().partition(of);
        self.0 = rest;
        let taken: Vec<Pending> = taken;
        taken.into_iter().flat_map(|pending| pending.statements).collect()
    }
}

impl Run<'_> {
    /// Begins to tell what can be told.
    pub(super) fn tell(&mut self) {
        for pending in self.statements.0.iter_mut().filter(|p| !p.telling && p.behind.is_empty()) {
            let Some(statement) = pending.statements.first().cloned() else { continue };
            pending.telling = true;
            let (id, ask) = match &pending.what {
                // The same time is the same statement; a label's may be of one part of it only, that of its time.
                What::Through(time) => (
                    format!("through-{}", time.as_millis()),
                    ask::Complete { through: Some(*time), label: None },
                ),
                What::Label(label) => {
                    (statement.id.to_string(), ask::Complete { through: None, label: Some(label.clone()) })
                }
            };
            let session = self.session.clone();
            self.work.push(Box::pin(async move {
                let told = session.ask_as::<serde_json::Value>(&id, Op::Complete, &ask, ASK).await;
                Done::Complete(statement, told.map(drop))
            }));
        }
    }

    /// The server has answered a statement, or has not.
    pub(super) fn told_complete(
        &mut self,
        statement: &Statement,
        told: Result<(), SessionError>,
    ) -> Result<(), SendError> {
        let refusal = match told {
            Ok(()) => None,
            Err(SessionError::Answer(refusal)) if refusal.code == Code::Unauthorized => {
                return Err(SendError::NotAllowed(refusal));
            }
            Err(SessionError::Answer(refusal)) if !refusal.code.is_temporary() => Some(refusal),
            Err(_) => {
                for pending in self.statements.0.iter_mut().filter(|p| p.statements.contains(statement)) {
                    pending.telling = false;
                }
                return Ok(());
            }
        };
        let told = self.statements.take(|pending| pending.statements.contains(statement));
        self.forget_statements(&told)?;
        match &refusal {
            None => (self.report)(Report::Told(statement)),
            Some(refusal) => (self.report)(Report::NotTold(statement, refusal)),
        }
        Ok(())
    }

    /// The bundle that said it was committed.
    pub(super) fn told_with_bundle(&mut self, through: Timestamp) -> Result<(), SendError> {
        let told = self.statements.take(|pending| pending.telling && pending.is_through(through));
        self.forget_statements(&told)?;
        if let Some(statement) = told.first() {
            (self.report)(Report::Told(statement));
        }
        Ok(())
    }

    fn forget_statements(&mut self, told: &[Statement]) -> Result<(), SendError> {
        self.watch.progress();
        Ok(self.spool.told(told)?)
    }
}
