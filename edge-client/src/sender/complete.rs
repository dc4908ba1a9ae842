//! Tells the server that there is nothing more, once what the statement speaks of has been receipted.

use std::collections::HashSet;
use std::io;
use std::time::Duration;

use millpond_protocol::access::Op;
use millpond_protocol::message::ask;
use millpond_protocol::{Code, Label, Timestamp, UploadId};

use super::run::{Done, Run};
use super::ship::{Clock, Loaded};
use super::{Report, SendError};
use crate::session::SessionError;
use crate::spool::{Complete, Document, Entry, Reader, Spool, SpoolError, Statement, Unread};

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
    /// Files in the spool that it speaks of; none while they are looked for.
    behind: Option<HashSet<UploadId>>,
    /// It is on its way.
    telling: bool,
}

impl What {
    fn speaks_of(&self, document: &Document, clock: &Clock) -> bool {
        match self {
            Self::Through(time) => clock.event_time(document) <= *time,
            Self::Label(label) => document.about.label.as_ref() == Some(label),
        }
    }
}

impl Pending {
    fn is_due(&self) -> bool {
        !self.telling && self.behind.as_ref().is_some_and(HashSet::is_empty)
    }

    fn is_through(&self, time: Timestamp) -> bool {
        matches!(self.what, What::Through(through) if through == time)
    }
}

/// Everything that was stated. A file that is spooled after its statement was read is not waited for.
#[derive(Debug, Default)]
pub(super) struct Statements {
    pending: Vec<Pending>,
    /// Files that have left the spool while it was looked for those that the statements speak of.
    left: Option<HashSet<UploadId>>,
}

/// What is looked for, beside everything else: which files of the spool each of these statements speaks of. Each file has to be
/// opened for that, and there may be a hundred thousand.
pub(super) struct Search {
    whats: Vec<What>,
    entries: Vec<Entry>,
    clock: Clock,
}

/// What was found.
pub(super) struct Found {
    /// Of each statement, in their order.
    behind: Vec<HashSet<UploadId>>,
    /// Entries that were not what was written.
    damaged: Vec<Entry>,
}

impl Search {
    /// Opens each of the files; on a thread for such work.
    pub(super) fn run(self, reader: &Reader) -> Found {
        let mut found = Found { behind: vec![HashSet::new(); self.whats.len()], damaged: Vec::new() };
        for entry in self.entries {
            let described = reader.describe(&entry);
            let speaks = |what: &What| match &described {
                Ok(document) => what.speaks_of(document, &self.clock),
                // It has left the spool, or does now.
                Err(Unread::Gone | Unread::Damaged(_)) => false,
                // Nobody knows what it belongs to: perhaps all of them speak of it.
                Err(Unread::System(_)) => true,
            };
            for (_, behind) in self.whats.iter().zip(&mut found.behind).filter(|(what, _)| speaks(what)) {
                behind.insert(entry.upload.clone());
            }
            if let Err(Unread::Damaged(_)) = described {
                found.damaged.push(entry);
            }
        }
        found
    }
}

impl Statements {
    /// Reads the statements that were made since they were read last.
    pub(super) fn read(&mut self, spool: &Spool, clock: &Clock) -> Result<(), SpoolError> {
        let mut statements = spool.statements()?;
        statements.retain(|new| !self.pending.iter().any(|pending| pending.statements.contains(new)));
        self.pending.append(&mut Self::of(statements, clock));
        Ok(())
    }

    /// What is to be looked for now: one search at a time.
    pub(super) fn search(&mut self, spool: &mut Spool, clock: &Clock) -> Result<Option<Search>, SpoolError> {
        let unknown = self.pending.iter().filter(|pending| pending.behind.is_none());
        let whats: Vec<What> = unknown.map(|pending| pending.what.clone()).collect();
        if whats.is_empty() || self.left.is_some() {
            return Ok(None);
        }
        self.left = Some(HashSet::new());
        Ok(Some(Search { whats, entries: spool.entries()?.cloned().collect(), clock: clock.clone() }))
    }

    /// That is what was found. Statements that were read meanwhile are the next search's.
    pub(super) fn found(&mut self, found: Vec<HashSet<UploadId>>) {
        let left = self.left.take().unwrap_or_default();
        let unknown = self.pending.iter_mut().filter(|pending| pending.behind.is_none());
        for (pending, mut behind) in unknown.zip(found) {
            behind.retain(|upload| !left.contains(upload));
            pending.behind = Some(behind);
        }
    }

    fn of(statements: Vec<Statement>, clock: &Clock) -> Vec<Pending> {
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
                    all.push(Pending { what, statements: vec![statement], behind: None, telling: false });
                }
            }
        }
        all
    }

    /// Files may have left the spool in other ways: only those that wait are waited for.
    pub(super) fn keep(&mut self, waits: impl Fn(&UploadId) -> bool) {
        for behind in self.pending.iter_mut().filter_map(|pending| pending.behind.as_mut()) {
            behind.retain(&waits);
        }
    }

    /// A file has left the spool.
    pub(super) fn settled(&mut self, upload: &UploadId) {
        for behind in self.pending.iter_mut().filter_map(|pending| pending.behind.as_mut()) {
            behind.remove(upload);
        }
        if let Some(left) = &mut self.left {
            left.insert(upload.clone());
        }
    }

    /// Whether one can be told, or is being told, or nobody knows yet whether it can.
    pub(super) fn is_due(&self) -> bool {
        self.pending.iter().any(|pending| pending.telling || pending.is_due() || pending.behind.is_none())
    }

    /// What a bundle of these files may say at its end: that they were the last ones. It is on its way then.
    pub(super) fn with_bundle(&mut self, files: &[Loaded]) -> Option<Timestamp> {
        let through = |pending: &Pending| match pending.what {
            What::Through(time) => Some(time),
            What::Label(_) => None,
        };
        let mut known = self.pending.iter_mut().filter(|pending| pending.behind.is_some());
        let pending = known.find(|pending| through(pending).is_some() && !pending.telling)?;
        let behind = pending.behind.as_ref()?;
        let ids: HashSet<&UploadId> = files.iter().map(|file| &file.entry.upload).collect();
        pending.telling = !behind.is_empty() && behind.iter().all(|upload| ids.contains(upload));
        pending.telling.then(|| through(pending)).flatten()
    }

    /// The bundle that said it was not taken.
    pub(super) fn not_with_bundle(&mut self, through: Timestamp) {
        for pending in self.pending.iter_mut().filter(|pending| pending.is_through(through)) {
            pending.telling = false;
        }
    }

    fn take(&mut self, of: impl Fn(&Pending) -> bool) -> Vec<Statement> {
        let (taken, rest) = std::mem::take(&mut self.pending).into_iter().partition(of);
        self.pending = rest;
        let taken: Vec<Pending> = taken;
        taken.into_iter().flat_map(|pending| pending.statements).collect()
    }
}

impl Run<'_> {
    /// Begins to look for the files that statements speak of, if there are such of which that is not known.
    pub(super) fn search(&mut self) -> Result<(), SendError> {
        let Some(search) = self.statements.search(self.spool, &self.clock)? else { return Ok(()) };
        let (reader, path) = (self.spool.reader(), self.spool.path_of_waiting());
        let searching = tokio::task::spawn_blocking(move || search.run(&reader));
        self.work.push(Box::pin(async move {
            let found =
                searching.await.map_err(|error| SpoolError::Io { path, source: io::Error::other(error) });
            Done::Searched(found)
        }));
        Ok(())
    }

    /// It is known which files they speak of.
    pub(super) fn searched(&mut self, found: Found) {
        self.statements.found(found.behind);
        // That was minutes ago: it may have left since, or another one lies there.
        for entry in found.damaged {
            if let Err(SpoolError::Damaged { why, .. }) = self.spool.describe(&entry) {
                self.damaged(&entry, &why);
            }
        }
    }

    /// Begins to tell what can be told.
    pub(super) fn tell(&mut self) {
        for pending in self.statements.pending.iter_mut().filter(|pending| pending.is_due()) {
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
                for pending in self.statements.pending.iter_mut().filter(|p| p.statements.contains(statement))
                {
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
