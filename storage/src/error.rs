//! What a call of storage can come to, in the terms of whoever made it.

use std::fmt;

/// Why a call failed. The variants are what a caller has to tell apart; the text is for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// There is no such object.
    #[error("there is no such object")]
    NotFound,
    /// There is no such upload in parts: it was completed, aborted, or never begun.
    #[error("there is no such multipart upload")]
    NoUpload,
    /// Storage is away, slow or full: the same call may work later.
    #[error("storage is unavailable: {0}")]
    Unavailable(String),
    /// Storage will not do it until somebody changes its configuration or ours.
    #[error("storage refused the call ({fault}): {detail}")]
    Refused {
        /// Where to look.
        fault: Fault,
        /// What storage said.
        detail: String,
    },
    /// The bytes are not those that were declared or expected.
    #[error("the bytes are not the expected ones: {0}")]
    Mismatch(String),
}

/// What is wrong with the configuration of a storage that refuses calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// The clocks of server and storage differ by more than signatures allow (15 minutes).
    Clock,
    /// The access key, the secret key, the session token or the region are wrong.
    Credentials,
    /// The credentials are good, and what they may do is not enough; some servers say so of missing buckets too.
    Denied,
    /// The bucket does not exist.
    Bucket,
    /// The certificate of storage is not one that this machine trusts.
    Tls,
    /// The endpoint does not understand the call: it may not be S3 at all.
    Endpoint,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Clock => "the clocks of this machine and of storage differ",
            Self::Credentials => "access key, secret key, session token or region are wrong",
            Self::Denied => "the credentials may not do this in this bucket, or it does not exist",
            Self::Bucket => "the bucket does not exist",
            Self::Tls => "storage's certificate is not trusted; name its CA",
            Self::Endpoint => "the endpoint does not behave like S3",
        })
    }
}

impl Error {
    /// Whether the same call may work later without anybody's help.
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::Unavailable(_))
    }

    /// The word for it in metrics.
    pub(crate) fn outcome(&self) -> &'static str {
        match self {
            Self::NotFound | Self::NoUpload => "not_found",
            Self::Unavailable(_) => "unavailable",
            Self::Refused { .. } => "refused",
            Self::Mismatch(_) => "mismatch",
        }
    }

    pub(crate) fn refused(fault: Fault, detail: impl Into<String>) -> Self {
        Self::Refused { fault, detail: detail.into() }
    }
}
