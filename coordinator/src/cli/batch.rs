//! `millpond batch …`

use millpond_protocol::PoolName;

use super::client::{Client, Page};
use super::failure::Failure;
use super::output::{Out, bytes, dash};
use crate::http::api::{BatchInfo, Batches};
use crate::rounds::{Cause, Group};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// List batches, newest first.
    List {
        pool: PoolName,
        #[command(flatten)]
        page: Page,
    },
    /// Show one batch.
    Show { pool: PoolName, batch: u64 },
}

pub(super) async fn run(command: Command, client: &Client, out: &Out) -> Result<(), Failure> {
    match command {
        Command::List { pool, page } => {
            let batches: Batches = client.get(&format!("pools/{pool}/batches"), &page.query()).await?;
            out.show(&batches, show_batches);
        }
        Command::Show { pool, batch } => {
            let batch: BatchInfo = client.get(&format!("pools/{pool}/batches/{batch}"), &[]).await?;
            out.show(&batch, show_batch);
        }
    }
    Ok(())
}

fn show_batches(out: &Out, batches: &Batches) {
    let rows = batches
        .batches
        .iter()
        .map(|batch| {
            [
                batch.batch.to_string(),
                group(&batch.group),
                state(batch),
                batch.count.to_string(),
                bytes(batch.bytes),
                batch.cause.map_or_else(|| "–".into(), cause),
                dash(batch.round),
            ]
        })
        .collect();
    out.table(["BATCH", "OF", "STATE", "UPLOADS", "SIZE", "CAUSE", "ROUND"], rows, "no batches");
    out.more(batches.cursor.as_deref());
}

fn show_batch(out: &Out, batch: &BatchInfo) {
    out.line(format!("batch {} of {}: {}", batch.batch, group(&batch.group), state(batch)));
    out.line(format!("  uploads   {}, {}", batch.count, bytes(batch.bytes)));
    out.line(format!("  opened    {}", batch.opened));
    match (batch.sealed, batch.cause) {
        (Some(at), Some(why)) => out.line(format!("  sealed    {at} by {}", cause(why))),
        _ => out.line(format!("  deadline  {}", batch.deadline)),
    }
    if batch.carries > 0 {
        out.line(format!("  carried on {} times, for it was below its minimum", batch.carries));
    }
    if let Some(manifest) = batch.manifest_sha256 {
        out.line(format!("  manifest  {manifest}"));
    }
    match (batch.round, batch.runs) {
        (Some(_), Some(false)) => out.line("  no round: it was below its minimum"),
        (Some(round), _) => out.line(format!("  round     {round}")),
        (None, _) => {}
    }
}

fn state(batch: &BatchInfo) -> String {
    match batch.carried_into {
        Some(into) => format!("{} into {into}", batch.state),
        None => batch.state.clone(),
    }
}

/// What the uploads of a batch have in common, in words.
fn group(group: &Group) -> String {
    match group {
        Group::Window { from, to } => format!("{from} – {to}"),
        Group::Label { label, part } => format!("{label} part {part}"),
        Group::Count => "arrival".to_owned(),
    }
}

fn cause(cause: Cause) -> String {
    match cause {
        Cause::Trigger => "trigger",
        Cause::Full => "full",
        Cause::Quorum => "quorum",
        Cause::Complete => "complete",
        Cause::Deadline => "deadline",
    }
    .to_owned()
}
