//! Errors inside a ledger job.

use millpond_protocol::ids::BadName;
use millpond_protocol::{Code, Refusal, Timestamp};

/// What a job returns.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a job failed: the client asked for something wrong, or SQLite failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Refused(#[from] Refusal),
    #[error(transparent)]
    Sql(#[from] rusqlite::Error),
    #[error("a row's JSON does not read: {0}")]
    Json(#[from] serde_json::Error),
}

impl From<BadName> for Error {
    fn from(bad: BadName) -> Self {
        Self::Refused(bad.into())
    }
}

impl Error {
    /// Whether a row that was looked for is not there.
    pub(super) fn is_no_row(&self) -> bool {
        matches!(self, Self::Sql(rusqlite::Error::QueryReturnedNoRows))
    }

    /// What the caller is told. A failing disk is `unavailable`; its details are for the log alone.
    pub fn into_refusal(self) -> Refusal {
        match self {
            Self::Refused(refusal) => refusal,
            // A number above 2^63: the client's, for ours never get there.
            Self::Sql(rusqlite::Error::ToSqlConversionFailure(error)) => {
                Refusal::new(Code::Malformed, format!("a number is out of range: {error}"))
            }
            Self::Sql(error) => {
                tracing::error!(error = %error, "ledger: SQLite failed");
                Refusal::unavailable("the ledger cannot be used now")
            }
            Self::Json(error) => {
                tracing::error!(error = %error, "ledger: a row does not read");
                Refusal::unavailable("the ledger cannot be used now")
            }
        }
    }
}

/// A `not_found` in the words of the pool.
pub fn not_found(what: impl std::fmt::Display) -> Error {
    Error::Refused(Refusal::new(Code::NotFound, format!("there is no {what}")))
}

/// The `not_found` of what retention took away.
pub fn not_kept(what: impl std::fmt::Display, since: Timestamp) -> Refusal {
    Refusal::new(Code::NotFound, format!("{what}: the bytes are not kept any more since {since}")).hint(
        "the pool's `keep_…` keys say how long bytes are kept; `status` and `history` still know of them",
    )
}
