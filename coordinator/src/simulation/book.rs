//! What clients know: what they sent, and what the server has said to them. No crash may take any of the latter.

use std::collections::{BTreeMap, BTreeSet};

use millpond_protocol::Sha256;
use millpond_protocol::message::{Outcome, Receipt};
use serde_json::Value;

/// A member's upload.
pub(super) type Key = (String, String);

/// What all clients know together.
#[derive(Default)]
pub(super) struct Book {
    /// Every upload that anybody began to send.
    pub(super) sent: BTreeMap<Key, Sha256>,
    /// Those of which the server said that it has them, whatever it decided.
    pub(super) acknowledged: BTreeSet<Key>,
    /// The first receipt that anybody saw of an upload.
    pub(super) receipts: BTreeMap<Key, Receipt>,
    /// After which row each member's receipts began.
    pub(super) subscribed: BTreeMap<i64, i64>,
    /// Manifests that a processor has read: hash, the one before, uploads.
    pub(super) manifests: BTreeMap<u64, (Sha256, Value, BTreeSet<Key>)>,
    /// Results of which the server said that they are committed.
    pub(super) results: BTreeMap<u64, Sha256>,
    /// The newest version that a listener has, by its number.
    pub(super) versions: BTreeMap<usize, u64>,
    /// Publishers that are not done.
    pub(super) publishing: usize,
    /// What should not have happened, first.
    pub(super) fault: Option<String>,
}

impl Book {
    /// Something happened that no fault of the network, of storage or of the machine explains.
    pub(super) fn fail(&mut self, what: impl Into<String>) {
        self.fault.get_or_insert(what.into());
    }

    pub(super) fn check(&mut self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            self.fail(what());
        }
    }

    /// The server has shown what became of an upload: always the same.
    pub(super) fn receipted(&mut self, member: &str, receipt: Receipt) {
        let key = (member.to_owned(), receipt.upload.clone());
        let sent = self.sent.get(&key).copied();
        self.check(sent.is_some() && sent == receipt.sha256, || {
            format!("{key:?} is not what was sent: {receipt:?}")
        });
        // A status has no batch here: it is not a receipt, and contradicts none.
        let Some(first) = self.receipts.get(&key).cloned() else {
            if receipt.batch.is_some() || receipt.outcome == Outcome::Rejected {
                self.receipts.insert(key, receipt);
            }
            return;
        };
        let decided =
            |it: &Receipt| (it.outcome, it.batch.or(first.batch), it.event_time, it.late, it.clamped);
        self.check(decided(&first) == decided(&receipt), || {
            format!("of {key:?} it was said first {first:?} and then {receipt:?}")
        });
    }

    /// A processor has read a manifest: the same as whenever it was read before.
    pub(super) fn read(&mut self, round: u64, bytes: &[u8]) {
        let sha256 = Sha256::of(bytes);
        if let Some((before, ..)) = self.manifests.get(&round) {
            let same = *before == sha256;
            return self.check(same, || format!("the manifest of round {round} has changed"));
        }
        let mut lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let parse = |line: &[u8]| serde_json::from_slice::<Value>(line).unwrap_or_default();
        let header = lines.next().map(parse).unwrap_or_default();
        let mut keys = BTreeSet::new();
        for line in lines.map(parse) {
            let text = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
            let key = (text("member"), text("upload"));
            let sent = self.sent.get(&key).map(ToString::to_string);
            self.check(sent == Some(text("sha256")), || format!("the manifest of round {round} has {line}"));
            self.check(keys.insert(key), || format!("the manifest of round {round} names twice {line}"));
        }
        self.check(header["count"] == keys.len(), || {
            format!("the manifest of round {round} counts {header}")
        });
        self.manifests.insert(round, (sha256, header["prev"].clone(), keys));
    }

    /// The server has said that a round's result is committed.
    pub(super) fn returned(&mut self, round: u64, sha256: Sha256) {
        let first = *self.results.entry(round).or_insert(sha256);
        self.check(first == sha256, || format!("round {round} has two results"));
    }
}
