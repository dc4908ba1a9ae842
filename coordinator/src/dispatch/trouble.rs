//! Why a step did not get done. Every one is tried again.

use millpond_protocol::Refusal;

/// Why a step did not get done.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    #[error("{0}")]
    Storage(#[from] millpond_storage::Error),
    #[error("the ledger: {0}")]
    Ledger(#[from] Refusal),
    /// A temporary file in the data directory.
    #[error("a temporary file in the data directory: {0}")]
    Scratch(std::io::Error),
    /// Rows contradict each other: nothing is written that would hide it.
    #[error("the ledger's rows contradict each other: {0}")]
    Corrupt(String),
    /// The step panicked.
    #[error("a fault of the program: {0}")]
    Bug(String),
}

impl Trouble {
    /// The word in metrics.
    pub(super) fn word(&self) -> &'static str {
        match self {
            Self::Storage(_) => "storage",
            Self::Ledger(_) => "ledger",
            Self::Scratch(_) => "disk",
            Self::Corrupt(_) => "corrupt",
            Self::Bug(_) => "bug",
        }
    }
}
