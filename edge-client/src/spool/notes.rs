//! What the spool notes beside its entries: hints, which may be lost, and each line of which has its checksum.

use std::path::PathBuf;
use std::time::Duration;

use millpond_protocol::Refusal;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::store::Spool;
use super::{Entry, SpoolError, disk, seal};
use crate::clock::{Anchor, Stamp};

/// Clock anchors kept: one for each of the last boots.
const ANCHORS_MAX: usize = 16;

/// How far the clock that counts since boot may have gone wrong in so many milliseconds: 100 millionths.
fn drift(ms: i64) -> i64 {
    ms.max(0) / 10_000
}

/// Why nothing is sent for a while: the server refused for now what it was sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rest {
    /// `POOL/MEMBER` to whom it was refused: others need not wait.
    pub who: String,
    /// When it was refused, and until when nothing is sent, by this machine's clock in that boot of it, where the system tells
    /// which: a device without a clock would live through the same minute at each of its boots.
    pub from_ms: i64,
    pub until_ms: i64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub boot: Option<String>,
    /// Pauses in a row, with this one.
    pub times: u32,
    pub why: Refusal,
}

impl Rest {
    /// How much of it is left. Nothing, where the clock was set back since: a pause is never longer than it was.
    pub fn left(&self, now_ms: i64) -> Duration {
        let is_in_it = (self.from_ms..self.until_ms).contains(&now_ms);
        let left = if is_in_it { self.until_ms.saturating_sub(now_ms) } else { 0 };
        Duration::from_millis(u64::try_from(left).unwrap_or(0))
    }
}

impl Spool {
    /// Why nothing is sent now, if a process has found out in this boot that it had better wait.
    pub fn rest(&self) -> Option<Rest> {
        let rest: Rest = self.noted("rest", |text| serde_json::from_str(text).ok()).pop()?;
        (rest.boot == Stamp::now().boot.map(|boot| boot.id)).then_some(rest)
    }

    /// Notes that nothing is to be sent for a while, or that something was taken.
    ///
    /// # Errors
    /// What the system says; at the worst the next process sends something in vain then.
    pub fn set_rest(&self, rest: Option<&Rest>) -> Result<(), SpoolError> {
        if let Some(rest) = rest {
            return self.note("rest", &seal::line(&json!(rest).to_string()));
        }
        let path = self.root.join("rest");
        disk::at(&path, disk::remove(&path))
    }

    /// Where a small file is written before it takes another one's place. Under the lock only.
    pub(super) fn scratch(&self) -> PathBuf {
        self.root.join("staging").join("scratch")
    }

    /// Clock anchors of this and earlier boots.
    pub fn anchors(&self) -> Vec<Anchor> {
        self.noted("anchors", |text| serde_json::from_str(text).ok())
    }

    /// Notes a measurement of the server's time, in place of an earlier one of the same boot, unless that was the better one.
    ///
    /// # Errors
    /// What the system says; nothing but precision is lost then.
    pub fn set_anchor(&self, anchor: &Anchor) -> Result<(), SpoolError> {
        let mut anchors = self.anchors();
        let aged = |other: &Anchor| drift(anchor.boot.ms.saturating_sub(other.boot.ms));
        if anchors.iter().any(|other| {
            other.boot.id == anchor.boot.id && other.within_ms.saturating_add(aged(other)) <= anchor.within_ms
        }) {
            return Ok(());
        }
        anchors.retain(|other| other.boot.id != anchor.boot.id);
        anchors.push(anchor.clone());
        let kept = anchors.len().saturating_sub(ANCHORS_MAX);
        let lines = anchors[kept..].iter().map(|anchor| seal::line(&json!(anchor).to_string()));
        self.note("anchors", &lines.collect::<String>())
    }

    /// Entries that an earlier process may have sent without learning what became of them.
    pub fn in_flight(&self) -> Vec<Entry> {
        self.noted("in-flight", |text| text.parse().ok())
    }

    /// Notes what is about to be sent, in place of what was noted before.
    ///
    /// # Errors
    /// What the system says; at the worst the same bytes are sent twice then.
    pub fn set_in_flight<'a>(&self, entries: impl Iterator<Item = &'a Entry>) -> Result<(), SpoolError> {
        let lines: String = entries.map(|entry| seal::line(&entry.to_string())).collect();
        self.note("in-flight", &lines)
    }

    /// What a hint says, as far as it is what was written.
    fn noted<T>(&self, name: &str, understand: impl Fn(&str) -> Option<T>) -> Vec<T> {
        seal::read(&std::fs::read(self.root.join(name)).unwrap_or_default(), understand).whole
    }

    fn note(&self, name: &str, lines: &str) -> Result<(), SpoolError> {
        let path = self.root.join(name);
        let _change = self.change()?;
        disk::at(&path, disk::replace(&path, &self.scratch(), lines.as_bytes()))
    }
}
