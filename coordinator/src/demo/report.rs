//! What the demo ends with: a table for people, JSON for programs.

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
    /// Members that were there from the beginning, and the listener that came when all was over.
    pub members: u64,
    /// Whether every hash matched and every upload is in exactly one batch.
    pub ok: bool,
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
        format!(
            "{table}\n{} uploads ({} late, {} repeated messages) in {} batches: each in exactly one, every hash matches.",
            self.uploads, self.late, self.repeats, self.batches
        )
    }
}
