//! What the spool notes beside its entries: hints, which may be lost, and the log of what was dropped.

use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use millpond_protocol::Refusal;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::disk;
use super::leave::Place;
use super::store::Spool;
use super::{Entry, SpoolError};
use crate::clock::{Anchor, Stamp, wall_ms};

/// Clock anchors kept: one for each of the last boots.
const ANCHORS_MAX: usize = 16;
/// Bytes of the log of dropped entries, after which it is begun anew.
const LOG_MAX: u64 = 1 << 20;

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
        let rest: Rest = serde_json::from_slice(&std::fs::read(self.root.join("rest")).ok()?).ok()?;
        (rest.boot == Stamp::now().boot.map(|boot| boot.id)).then_some(rest)
    }

    /// Notes that nothing is to be sent for a while, or that something was taken.
    ///
    /// # Errors
    /// What the system says; at the worst the next process sends something in vain then.
    pub fn set_rest(&self, rest: Option<&Rest>) -> Result<(), SpoolError> {
        if let Some(rest) = rest {
            return self.note("rest", json!(rest).to_string().as_bytes());
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
        let text = std::fs::read(self.root.join("anchors")).unwrap_or_default();
        text.split(|byte| *byte == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect()
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
        let lines: String = anchors[kept..].iter().map(|anchor| format!("{}\n", json!(anchor))).collect();
        self.note("anchors", lines.as_bytes())
    }

    /// Entries that an earlier process may have sent without learning what became of them.
    pub fn in_flight(&self) -> Vec<Entry> {
        let text = std::fs::read(self.root.join("in-flight")).unwrap_or_default();
        let lines = text.split(|byte| *byte == b'\n');
        lines.filter_map(|line| std::str::from_utf8(line).ok()?.parse().ok()).collect()
    }

    /// Notes what is about to be sent, in place of what was noted before.
    ///
    /// # Errors
    /// What the system says; at the worst the same bytes are sent twice then.
    pub fn set_in_flight<'a>(&self, entries: impl Iterator<Item = &'a Entry>) -> Result<(), SpoolError> {
        let lines: String = entries.map(|entry| format!("{entry}\n")).collect();
        self.note("in-flight", lines.as_bytes())
    }

    fn note(&self, name: &str, content: &[u8]) -> Result<(), SpoolError> {
        let path = self.root.join(name);
        let _change = self.change()?;
        disk::at(&path, disk::replace(&path, &self.scratch(), content))
    }

    /// Logs what goes unsent. That it cannot be logged must not keep room from being made.
    pub(super) fn log_dropped(&self, from: Place, entries: &[Entry]) {
        if entries.is_empty() {
            return;
        }
        let at = wall_ms();
        let line = |entry: &Entry| {
            let (from, time) = (from.name(), entry.key);
            let line = json!({ "at_ms": at, "from": from, "upload": entry.upload, "time_ms": time, "size": entry.size });
            format!("{line}\n")
        };
        let lines: String = entries.iter().map(line).collect();
        let append = || {
            let mut file = disk::open(&self.root.join("dropped.log"))?;
            if file.metadata()?.len() > LOG_MAX {
                file.set_len(0)?;
            }
            file.seek(SeekFrom::End(0))?;
            file.write_all(lines.as_bytes())
        };
        let _ = append();
    }
}
