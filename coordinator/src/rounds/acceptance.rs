//! What a pool takes: one list of named rules, checked before anything is stored.
//!
//! The shell asks [`accept`] before it feeds the core; `late` and `open_batches` depend on the batches, so the core
//! itself decides those. A rejected upload becomes a row with the rule's name, so that a repeat gets the same answer.

use std::fmt;

use millpond_protocol::{Code, Refusal};
use serde::{Deserialize, Serialize};

use super::Policy;
use super::policy::Grouping;

/// The name of a rule, as it stands in receipts and rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rule {
    /// The file is larger than the pool takes.
    MaxSize,
    /// The file is empty.
    EmptyFile,
    /// The upload declares no SHA-256.
    Sha256Required,
    /// The pool groups by label and the upload has none.
    LabelRequired,
    /// Its window or label is closed.
    Late,
    /// It would open a batch and the pool has as many as it may.
    OpenBatches,
}

impl Rule {
    /// The word on the wire and in rows.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::MaxSize => "max_size",
            Self::EmptyFile => "empty_file",
            Self::Sha256Required => "sha256_required",
            Self::LabelRequired => "label_required",
            Self::Late => "late",
            Self::OpenBatches => "open_batches",
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What the rules look at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Candidate {
    /// Bytes of the file.
    pub size: u64,
    /// Whether the client declared the SHA-256.
    pub declares_sha256: bool,
    pub has_label: bool,
}

/// Why an upload is not taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rejection {
    pub rule: Rule,
    /// In words for the client, with what would have been right.
    pub why: String,
}

impl From<Rejection> for Refusal {
    fn from(rejection: Rejection) -> Self {
        Self::new(Code::Rejected, format!("{}: {}", rejection.rule, rejection.why))
    }
}

/// A rule says why it is broken, or nothing.
type Check = fn(&Policy, &Candidate) -> Option<String>;

/// Every rule, in the order in which they are checked. A new rule is a name and a line here.
const RULES: [(Rule, Check); 4] = [
    (Rule::MaxSize, |policy, candidate| {
        (policy.max_size > 0 && candidate.size > policy.max_size).then(|| {
            format!("the file has {} bytes and the pool takes up to {}", candidate.size, policy.max_size)
        })
    }),
    (Rule::EmptyFile, |policy, candidate| {
        (candidate.size == 0 && !policy.allow_empty).then(|| "the pool takes no empty files".to_owned())
    }),
    (Rule::Sha256Required, |policy, candidate| {
        (policy.require_sha256 && !candidate.declares_sha256)
            .then(|| "the pool wants the file's SHA-256 declared".to_owned())
    }),
    (Rule::LabelRequired, |policy, candidate| {
        (policy.grouping == Grouping::Label && !candidate.has_label)
            .then(|| "the pool groups by label and the upload names none".to_owned())
    }),
];

/// Whether the pool takes such an upload; the first rule that it breaks otherwise.
///
/// # Errors
/// The rule, and why.
pub fn accept(policy: &Policy, candidate: &Candidate) -> Result<(), Rejection> {
    RULES
        .iter()
        .find_map(|(rule, check)| check(policy, candidate).map(|why| Rejection { rule: *rule, why }))
        .map_or(Ok(()), Err)
}
