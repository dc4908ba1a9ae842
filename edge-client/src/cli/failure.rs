//! Why a command failed, and the exit code that says so: 1 failed, 2 usage or configuration, 75 retry later.

use millpond_protocol::Refusal;

use crate::enrol::EnrolError;
use crate::identity::IdentityError;
use crate::sender::SendError;
use crate::session::{Cause, SessionError};
use crate::spool::SpoolError;
use crate::transfer::{TransferError, is_full};

/// The command failed.
pub(super) const FAILED: u8 = 1;
/// The command line or the configuration is wrong.
pub(super) const USAGE: u8 = 2;
/// The same command can succeed later (EX_TEMPFAIL of sysexits).
pub(super) const RETRY: u8 = 75;

/// Why a command failed.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) exit: u8,
    pub(super) message: String,
}

impl Failure {
    pub(super) fn new(exit: u8, message: impl Into<String>) -> Self {
        Self { exit, message: message.into() }
    }
}

/// What the server refuses, and what it says is to be done.
pub(super) fn explained(refusal: &Refusal) -> String {
    let hint = refusal.hint.as_ref().map_or_else(String::new, |hint| format!(": {hint}"));
    format!("{refusal}{hint}")
}

impl From<SpoolError> for Failure {
    fn from(error: SpoolError) -> Self {
        let exit = match &error {
            SpoolError::Full { .. } | SpoolError::TooMany(_) => RETRY,
            SpoolError::Foreign(_) => USAGE,
            SpoolError::Io { source, .. } if is_full(source) => RETRY,
            SpoolError::Io { .. }
            | SpoolError::Conflict(_)
            | SpoolError::Damaged { .. }
            | SpoolError::Gone(_)
            | SpoolError::TooLong(_) => FAILED,
        };
        Self::new(exit, error.to_string())
    }
}

impl From<SessionError> for Failure {
    fn from(error: SessionError) -> Self {
        let exit = match &error {
            SessionError::Offline(Cause::Refused(_)) => FAILED,
            SessionError::Offline(_)
            | SessionError::Cut
            | SessionError::Later(_)
            | SessionError::Unanswered(_) => RETRY,
            SessionError::Answer(refusal) if refusal.code.is_temporary() => RETRY,
            SessionError::Answer(_) | SessionError::Refused(_) | SessionError::Strange(..) => FAILED,
        };
        Self::new(exit, error.to_string())
    }
}

impl From<TransferError> for Failure {
    fn from(error: TransferError) -> Self {
        Self::new(if error.is_temporary() { RETRY } else { FAILED }, error.to_string())
    }
}

impl From<SendError> for Failure {
    fn from(error: SendError) -> Self {
        match error {
            SendError::Session(error) => error.into(),
            SendError::Spool(error) => error.into(),
            SendError::Offline(cause) => SessionError::Offline(cause).into(),
            SendError::NotAllowed(_) => Self::new(FAILED, error.to_string()),
            SendError::Stuck(_) | SendError::Resting { .. } => Self::new(RETRY, error.to_string()),
        }
    }
}

impl From<EnrolError> for Failure {
    fn from(error: EnrolError) -> Self {
        match error {
            EnrolError::Taken { .. } | EnrolError::Usage(_) => Self::new(USAGE, error.to_string()),
            EnrolError::Refused(refusal) => Self::new(FAILED, explained(&refusal)),
            EnrolError::Strange(..) => Self::new(FAILED, error.to_string()),
            EnrolError::Unanswered(_) => Self::new(RETRY, error.to_string()),
            EnrolError::Directory(error) => error.into(),
        }
    }
}

impl From<IdentityError> for Failure {
    fn from(error: IdentityError) -> Self {
        let exit = match &error {
            IdentityError::Foreign { .. } => USAGE,
            IdentityError::Io { source, .. } if is_full(source) => RETRY,
            IdentityError::Io { .. } => FAILED,
        };
        Self::new(exit, error.to_string())
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::new(FAILED, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use rustix::io::Errno;

    use super::*;

    #[test]
    fn a_disk_without_room_for_this_user_is_one_to_try_later_as_a_full_one_is() {
        let exit = |errno: Errno| {
            let source = || std::io::Error::from_raw_os_error(errno.raw_os_error());
            let spool = Failure::from(SpoolError::Io { path: "spool".into(), source: source() });
            let identity = Failure::from(IdentityError::Io { path: "identity".into(), source: source() });
            [spool.exit, identity.exit]
        };
        assert_eq!((exit(Errno::NOSPC), exit(Errno::DQUOT)), ([RETRY; 2], [RETRY; 2]));
        assert_eq!(exit(Errno::IO), [FAILED; 2]);
    }
}
