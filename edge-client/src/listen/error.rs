//! Why a listener ended.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::session::Cause;

/// Why listening ended.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("no connection to the server: {0}")]
    Offline(Cause),
    #[error("{}: {source}", .path.display())]
    Directory { path: PathBuf, source: io::Error },
    /// With `once`: there is a server and no result of it that could be shown.
    #[error("gave up after {waited:?}: {why}")]
    InVain { waited: Duration, why: String },
    /// With `once`: the command failed.
    #[error("version {version}: {reason}")]
    Failed { version: u64, reason: String },
}
