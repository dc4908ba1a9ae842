//! What the demo ends with: a table for people, JSON for programs.

use std::fmt;

use comfy_table::{Table, presets};
use millpond_protocol::Sha256;
use serde::Serialize;

/// The whole story in numbers. It exists only if every check held.
#[derive(Debug, Serialize)]
pub struct Report {
    /// Uploads that were sent, each counted once.
    pub uploads: u64,
    /// Messages that repeated an upload.
    pub repeats: u64,
    /// Uploads that came after their window was sealed.
    pub late: u64,
    /// Sealed batches.
    pub batches: u64,
    pub rounds: Vec<RoundReport>,
    /// Files that went to storage by URL, those of [`Report::interrupted`] and [`Report::killed`] included.
    pub large: Large,
    /// A large file that was cut off in the middle of a part.
    pub interrupted: Resumed,
    /// A large file whose client was killed.
    pub killed: Resumed,
    pub offline: Offline,
    /// Members that were there from the beginning, and the listener that came when all was over.
    pub members: u64,
    /// Whether every hash matched and every upload is in exactly one batch.
    pub ok: bool,
}

/// Files by URL.
#[derive(Debug, Default, Serialize)]
pub struct Large {
    pub files: u64,
    pub bytes: u64,
}

/// A file in parts that was sent in two goes.
#[derive(Debug, Default, Serialize)]
pub struct Resumed {
    pub bytes: u64,
    pub parts: u32,
    /// Parts that were there after the first go, and were not sent again.
    pub kept: u32,
    /// Parts that the second go sent.
    pub sent: u32,
    /// Bytes that left twice; unknown of a process that was killed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_twice: Option<u64>,
}

impl fmt::Display for Resumed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { bytes, parts, kept, sent, bytes_twice } = self;
        write!(f, "{kept} of {parts} parts of its {bytes} bytes were there: {sent} went on resume")?;
        bytes_twice.map_or(Ok(()), |twice| write!(f, ", {twice} bytes twice"))
    }
}

/// Publishers that had no network at first.
#[derive(Debug, Default, Serialize)]
pub struct Offline {
    pub publishers: u64,
    /// What they sent when they had one.
    pub uploads: u64,
    /// The messages in which it came.
    pub bundles: u64,
}

/// One round.
#[derive(Debug, Serialize)]
pub struct RoundReport {
    pub round: u64,
    pub batch: u64,
    /// Why the batch was sealed.
    pub cause: String,
    pub uploads: u64,
    pub bytes: u64,
    /// Leases that it took.
    pub attempts: u32,
    /// Milliseconds from the seal to the committed result.
    pub round_ms: u64,
    pub version: u64,
    pub result_bytes: u64,
    pub result_sha256: Sha256,
    /// Members that have the result and found its hash right.
    pub verified: u64,
}

impl Report {
    /// The table.
    pub fn table(&self) -> String {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).set_header([
            "round",
            "sealed by",
            "uploads",
            "bytes",
            "attempts",
            "round time",
            "result",
            "verified by",
        ]);
        for round in &self.rounds {
            table.add_row([
                round.round.to_string(),
                round.cause.clone(),
                round.uploads.to_string(),
                round.bytes.to_string(),
                round.attempts.to_string(),
                format!("{:.2} s", round.round_ms as f64 / 1e3),
                format!("{} bytes", round.result_bytes),
                format!("{} members", round.verified),
            ]);
        }
        let Self { large, interrupted, killed, offline, .. } = self;
        format!(
            "{table}\n\
            {} large files by URL, {} bytes\n\
            cut off in mid-transfer: {interrupted}\n\
            client killed in mid-transfer: {killed}\n\
            {} publishers offline at first: {} uploads in {} bundles\n\
            {} uploads ({} late, {} repeated messages) in {} batches: each in exactly one, every hash matches.",
            large.files,
            large.bytes,
            offline.publishers,
            offline.uploads,
            offline.bundles,
            self.uploads,
            self.late,
            self.repeats,
            self.batches
        )
    }
}
