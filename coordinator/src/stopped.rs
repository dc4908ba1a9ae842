//! Why something that a client is told piece by piece did not come to its end.

use millpond_protocol::Refusal;

/// Why it stopped.
pub(crate) enum Stopped {
    /// Nobody listens any more.
    Gone,
    Refused(Refusal),
}

impl From<Refusal> for Stopped {
    fn from(refusal: Refusal) -> Self {
        Self::Refused(refusal)
    }
}

/// What a step of it came to.
pub(crate) type Done<T = ()> = Result<T, Stopped>;
