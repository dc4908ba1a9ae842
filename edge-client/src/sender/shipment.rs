//! What goes to the server in one piece, and how large that may be.

use crate::spool::Entry;

/// What goes to the server in one piece.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Shipment {
    /// One PUBLISH of one file.
    Single(Entry),
    /// One bundle of several.
    Bundle(Vec<Entry>),
    /// By presigned PUT.
    Large(Entry),
}

impl Shipment {
    pub(super) fn entries(&self) -> &[Entry] {
        match self {
            Self::Single(entry) | Self::Large(entry) => std::slice::from_ref(entry),
            Self::Bundle(entries) => entries,
        }
    }

    pub(super) fn into_entries(self) -> Vec<Entry> {
        match self {
            Self::Single(entry) | Self::Large(entry) => vec![entry],
            Self::Bundle(entries) => entries,
        }
    }
}

/// What the server takes, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sizes {
    pub(super) publish_max: u64,
    /// Of a file that is better off as a message than by URL, on this line.
    pub(super) inline: u64,
    /// Of a bundle's content, as it is aimed at.
    pub(super) bundle: u64,
}
