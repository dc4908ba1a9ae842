//! Why a command failed, and what to do.

use millpond_protocol::Refusal;
use serde::Serialize;

/// The command failed.
pub(super) const FAILED: u8 = 1;
/// The command line or the configuration is wrong.
pub(super) const USAGE: u8 = 2;
/// The same command can succeed later (EX_TEMPFAIL of sysexits).
pub(super) const RETRY: u8 = 75;

/// Why a command failed.
#[derive(Debug, Serialize)]
pub(super) struct Failure {
    /// The process's exit code.
    #[serde(skip)]
    pub exit: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub code: Option<&'static str>,
    pub message: String,
    /// What to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

impl Failure {
    pub(super) fn new(exit: u8, message: impl Into<String>) -> Self {
        Self { exit, code: None, message: message.into(), hint: None }
    }

    #[must_use]
    pub(super) fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Self {
            exit: if refusal.code.is_temporary() { RETRY } else { FAILED },
            code: Some(refusal.code.as_str()),
            message: refusal.message,
            hint: refusal.hint,
        }
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::new(FAILED, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use millpond_protocol::Code;

    use super::*;

    #[test]
    fn what_can_succeed_later_exits_with_75_and_every_other_refusal_with_1() {
        for code in Code::ALL {
            let expected = if matches!(code, Code::Quota | Code::Unavailable) { 75 } else { 1 };
            assert_eq!(Failure::from(Refusal::new(code, "no")).exit, expected, "{code}");
        }
    }
}
