//! `check`: whether what the ledger says is so. It reads, and changes nothing.
//!
//! | step | what is compared |
//! |---|---|
//! | `ledger` | SQLite's own check of the file, then rows with each other (`rules`) |
//! | `manifests` | each pool's chain of hashes; each header with its batch; the manifest of today's rows with the one written (`chain`) |
//! | `objects` | what storage lists with what the ledger knows: missing, of another size, unknown; parts that no row names (`objects`) |
//! | `payloads`, `bytes` | thoroughly only: the SHA-256 of every file in the ledger, and of every object, read whole |
//!
//! Reads are short or single statements on reader connections, so nobody waits for a check; what changes while it runs
//! is looked at again before it is called a difference.

mod chain;
mod objects;
pub(crate) mod rules;

use millpond_protocol::{Refusal, Sha256};
use millpond_storage::Storage;
use rusqlite::{Connection, params};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::ledger::{self, Ledger};
use crate::stopped::{Done, Stopped};

/// Differences that one rule tells; the rest are as many as the last one says.
const TOLD: usize = 100;
/// Payloads read in one go: at most 8 MiB.
const PAYLOADS: usize = 64;

/// What a check says while it runs, one JSON object a line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    Progress(Progress),
    Difference(Difference),
    /// The last line of a check that came to its end.
    End(End),
    /// The last line of one that did not.
    Error(Refusal),
}

/// How far a step has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    pub step: String,
    pub done: u64,
    /// How much it is in all, where that is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub of: Option<u64>,
}

/// Something that is not as it should be.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Difference {
    /// The word of the kind.
    pub kind: String,
    /// What it is about.
    pub about: String,
    /// What is wrong.
    pub what: String,
}

/// What was looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    pub differences: u64,
    pub rules: u64,
    pub manifests: u64,
    /// Manifests that were made again from their rows and came out the same.
    pub rebuilt: u64,
    pub objects: u64,
    /// Payloads and objects that were read whole, and their bytes.
    pub read: u64,
    pub bytes: u64,
}

/// A check under way.
pub(crate) struct Check {
    ledger: Ledger,
    storage: Storage,
    tell: mpsc::Sender<Line>,
    end: End,
}

/// Checks everything, thoroughly (`deep`) with every byte, and tells it line by line until nobody listens.
pub async fn run(ledger: Ledger, storage: Storage, deep: bool, tell: mpsc::Sender<Line>) {
    let mut check = Check { ledger, storage, tell, end: End::default() };
    let last = match check.all(deep).await {
        Ok(()) => Line::End(check.end),
        Err(Stopped::Refused(refusal)) => Line::Error(refusal),
        Err(Stopped::Gone) => return,
    };
    // Whoever listened may go just now.
    let _ = check.tell.send(last).await;
}

impl Check {
    async fn all(&mut self, deep: bool) -> Done<()> {
        self.file(deep).await?;
        for (at, (kind, query)) in (0..).zip(rules::RULES) {
            self.progress("ledger", at, Some(rules::RULES.len() as u64)).await?;
            self.rule(kind, query).await?;
        }
        self.manifests().await?;
        self.objects(deep).await?;
        self.uploads_in_parts().await?;
        if deep {
            self.payloads().await?;
        }
        Ok(())
    }

    async fn say(&self, line: Line) -> Done<()> {
        self.tell.send(line).await.map_err(|_| Stopped::Gone)
    }

    async fn progress(&self, step: &str, done: u64, of: Option<u64>) -> Done<()> {
        self.say(Line::Progress(Progress { step: step.to_owned(), done, of })).await
    }

    async fn differs(&mut self, kind: &str, about: impl Into<String>, what: impl Into<String>) -> Done<()> {
        self.end.differences += 1;
        let difference = Difference { kind: kind.to_owned(), about: about.into(), what: what.into() };
        self.say(Line::Difference(difference)).await
    }

    /// SQLite's own check of the ledger's file.
    async fn file(&mut self, deep: bool) -> Done<()> {
        self.progress("ledger", 0, None).await?;
        let pragma = if deep { "PRAGMA integrity_check(100)" } else { "PRAGMA quick_check(100)" };
        let said: Vec<String> = self
            .ledger
            .read(move |sql| {
                let mut statement = sql.prepare(pragma)?;
                let rows = statement.query_map([], |row| row.get(0))?;
                Ok(rows.collect::<rusqlite::Result<_>>()?)
            })
            .await?;
        for problem in said.into_iter().filter(|said| said != "ok") {
            self.differs("ledger-file", "ledger.db", problem).await?;
        }
        Ok(())
    }

    async fn rule(&mut self, kind: &'static str, query: &'static str) -> Done<()> {
        let found = self.ledger.read(move |sql| {
            let mut statement = sql.prepare(query)?;
            let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
            Ok(rows.take(TOLD + 1).collect::<rusqlite::Result<Vec<(String, String)>>>()?)
        });
        let found = match found.await {
            Ok(found) => found,
            // A row that holds what no row can hold.
            Err(refusal) => return self.differs(kind, "the ledger", refusal.message).await,
        };
        let more = found.len() > TOLD;
        for (about, what) in found.into_iter().take(TOLD) {
            self.differs(kind, about, what).await?;
        }
        if more {
            self.differs(kind, "the ledger", format!("there are more than {TOLD} such rows")).await?;
        }
        self.end.rules += 1;
        Ok(())
    }

    /// The SHA-256 of the files in the ledger.
    async fn payloads(&mut self) -> Done<()> {
        let (mut after, mut done) = (0, 0);
        loop {
            let page = self.ledger.read(move |sql| payloads(sql, after)).await?;
            let Some(last) = page.last() else { return Ok(()) };
            after = last.seq;
            for payload in page {
                done += 1;
                self.end.read += 1;
                self.end.bytes += payload.size;
                if payload.is != payload.said {
                    let what =
                        format!("the ledger holds bytes of {}, the upload says {}", payload.is, payload.said);
                    self.differs("payload-hash", payload.about, what).await?;
                }
            }
            self.progress("payloads", done, None).await?;
        }
    }
}

struct Payload {
    seq: i64,
    about: String,
    size: u64,
    is: Sha256,
    said: Sha256,
}

fn payloads(sql: &Connection, after: i64) -> ledger::Result<Vec<Payload>> {
    let mut statement = sql.prepare_cached(
        "SELECT p.seq, m.name || '/' || u.upload, p.data, u.sha256 FROM payloads p JOIN uploads u ON u.seq = p.seq \
         JOIN members m ON m.id = u.member_id WHERE p.seq > ?1 ORDER BY p.seq LIMIT ?2",
    )?;
    let rows = statement.query_map(params![after, PAYLOADS], |row| {
        let data = row.get_ref(2)?.as_blob()?;
        Ok(Payload {
            seq: row.get(0)?,
            about: row.get(1)?,
            size: data.len() as u64,
            is: Sha256::of(data),
            said: Sha256(row.get(3)?),
        })
    })?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}
