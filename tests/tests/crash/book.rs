//! What clients know: what they sent, and what the server has said to them. A crash may take nothing of the latter.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use millpond_protocol::Sha256;
use serde_json::Value;

/// What all clients know together.
#[derive(Default)]
pub struct Facts {
    /// Every upload that anybody began to send, by `pool/member/upload`.
    pub sent: BTreeMap<String, Sha256>,
    /// Those of which the server said that it has them.
    pub acknowledged: BTreeMap<String, Sha256>,
    /// Those of them that nobody has looked for since.
    pub new: BTreeMap<String, Sha256>,
    /// Manifests that a processor has read, by pool and round.
    pub manifests: BTreeMap<(String, u64), Manifest>,
    /// In which round of its pool each upload of these manifests is.
    pub listed: BTreeMap<String, u64>,
    /// Results of which the server said that they are committed, by pool and round.
    pub results: BTreeMap<(String, u64), Sha256>,
    /// What a member said of a result, and the server that it has it: its state by pool and result.
    pub delivered: BTreeMap<(String, Sha256), &'static str>,
    /// How often a process of `millpond-edge` was killed, by its role.
    pub killed: BTreeMap<&'static str, u32>,
    /// The newest version that `current` of the listening device has named.
    pub shown: u64,
}

/// A manifest as it was read first.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Manifest {
    pub sha256: Sha256,
    pub prev: Option<String>,
    pub uploads: usize,
}

/// Shared by everyone.
#[derive(Clone, Default)]
pub struct Book(Arc<Mutex<Facts>>);

impl Book {
    pub fn facts(&self) -> MutexGuard<'_, Facts> {
        // Somebody who panicked has failed the test; what was written is true all the same.
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Somebody begins to send this.
    pub fn sends(&self, key: &str, bytes: &[u8]) {
        let sha256 = Sha256::of(bytes);
        let before = self.facts().sent.insert(key.to_owned(), sha256);
        assert!(before.is_none_or(|before| before == sha256), "the test sends {key} twice with other bytes");
    }

    /// The server has said that it has this.
    pub fn has(&self, key: &str) {
        let mut facts = self.facts();
        let sha256 = facts.sent[key];
        if facts.acknowledged.insert(key.to_owned(), sha256).is_none() {
            facts.new.insert(key.to_owned(), sha256);
        }
    }

    /// A processor has read a manifest: the same as whenever it was read before, and of uploads that no other one lists.
    pub fn read(&self, pool: &str, round: u64, sha256: Sha256, header: &Value, lines: &[Value]) {
        let prev = header["prev"].as_str().map(str::to_owned);
        let manifest = Manifest { sha256, prev, uploads: lines.len() };
        let mut facts = self.facts();
        if let Some(before) = facts.manifests.insert((pool.to_owned(), round), manifest.clone()) {
            assert_eq!(before, manifest, "the manifest of round {round} of {pool} has changed");
            return;
        }
        for line in lines {
            let (member, upload) = (line["member"].as_str().unwrap(), line["upload"].as_str().unwrap());
            let key = format!("{pool}/{member}/{upload}");
            let sent = facts.sent.get(&key).map(ToString::to_string);
            assert_eq!(sent.as_deref(), line["sha256"].as_str(), "{key} is not what was sent");
            let other = facts.listed.insert(key.clone(), round);
            assert_eq!(other, None, "{key} counts in round {round} again");
        }
    }

    /// The server has said that a round's result is committed.
    pub fn returned(&self, pool: &str, round: u64, result: Sha256) {
        let before = self.facts().results.insert((pool.to_owned(), round), result);
        assert!(before.is_none_or(|before| before == result), "round {round} of {pool} has two results");
    }

    /// The server has acknowledged what the pool's one listener that says so said of a result.
    pub fn delivered(&self, pool: &str, result: Sha256, state: &'static str) {
        self.facts().delivered.insert((pool.to_owned(), result), state);
    }
}
