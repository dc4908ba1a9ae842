//! Why a processor ended, and why an attempt brought no result.

use std::io;
use std::path::PathBuf;

use crate::large::LargeError;
use crate::session::{Cause, SessionError};
use crate::transfer::TransferError;

/// Why processing ended.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    #[error("no connection to the server: {0}")]
    Offline(Cause),
    #[error("{}: {source}", .path.display())]
    Directory { path: PathBuf, source: io::Error },
    /// This member may not do it; or an ask was not answered, where nobody waits for a network.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// With `once`: the round did not come to a result.
    #[error("round {round}: {why}")]
    Ended { round: u64, why: String },
}

/// Why an attempt brought no result.
#[derive(Debug, thiserror::Error)]
pub enum AttemptError {
    /// The server has given the round to somebody else, or ended it.
    #[error("the lease is lost: {0}")]
    Lost(String),
    /// The command asked for another attempt (exit 75).
    #[error("the command asks for another attempt")]
    Retry,
    #[error("{0}")]
    Command(String),
    /// The server does not take the result: it is too large for the pool, say.
    #[error("{0}")]
    Refused(String),
    /// The round's files are not what they should be.
    #[error("{0}")]
    Input(String),
    /// They do not fit here; another machine may have the room.
    #[error("{0}")]
    Room(String),
    #[error(transparent)]
    Transfer(#[from] TransferError),
    #[error(transparent)]
    Large(#[from] LargeError),
    #[error(transparent)]
    Session(#[from] SessionError),
    #[error(transparent)]
    Io(#[from] io::Error),
    /// This process is to end.
    #[error("the processor was stopped")]
    Stopped,
}

impl AttemptError {
    /// Whether another attempt can help.
    pub(super) fn is_retryable(&self) -> bool {
        !matches!(self, Self::Command(_) | Self::Refused(_))
    }

    /// Whether another machine may do better: this one would only use up the round's attempts.
    pub(super) fn is_of_this_machine(&self) -> bool {
        match self {
            Self::Room(_) | Self::Transfer(_) | Self::Large(_) | Self::Session(_) | Self::Io(_) => true,
            Self::Lost(_)
            | Self::Retry
            | Self::Command(_)
            | Self::Refused(_)
            | Self::Input(_)
            | Self::Stopped => false,
        }
    }
}
