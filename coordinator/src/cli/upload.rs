//! `millpond upload …`

use millpond_protocol::{MemberName, PoolName, UploadId};

use super::client::{Client, Page};
use super::failure::Failure;
use super::output::{Out, bytes, dash, printable};
use crate::http::api::{UploadStory, Uploads};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Say where an upload is and why.
    Show { pool: PoolName, member: MemberName, upload: UploadId },
    /// List uploads, newest first.
    List {
        pool: PoolName,
        /// Of this member only.
        #[arg(long)]
        member: Option<MemberName>,
        /// Of this batch only, with what was carried into it.
        #[arg(long)]
        batch: Option<u64>,
        #[command(flatten)]
        page: Page,
    },
}

pub(super) async fn run(command: Command, client: &Client, out: &Out) -> Result<(), Failure> {
    match command {
        Command::Show { pool, member, upload } => {
            let story: UploadStory =
                client.get(&format!("pools/{pool}/uploads/{member}/{upload}"), &[]).await?;
            out.show(&story, show_story);
        }
        Command::List { pool, member, batch, page } => {
            let mut query = page.query();
            query.extend(member.map(|member| ("member", member.to_string())));
            query.extend(batch.map(|batch| ("batch", batch.to_string())));
            let uploads: Uploads = client.get(&format!("pools/{pool}/uploads"), &query).await?;
            out.show(&uploads, show_uploads);
        }
    }
    Ok(())
}

fn show_story(out: &Out, story: &UploadStory) {
    let info = &story.info;
    out.line(format!("{} of {}: {}, {}", info.upload, info.member, info.name, bytes(info.size)));
    out.line(format!("  sha256      {}", info.sha256));
    out.line(format!("  event time  {}", info.event_time));
    if let Some(label) = &info.label {
        out.line(format!("  label       {label}"));
    }
    for step in &story.story {
        out.line(format!("  • {}", printable(step)));
    }
}

fn show_uploads(out: &Out, uploads: &Uploads) {
    let rows = uploads
        .uploads
        .iter()
        .map(|upload| {
            let mut flags = Vec::new();
            flags.extend(upload.rule.as_ref().map(|rule| format!("rule {rule}")));
            flags.extend(upload.late.then(|| "late".to_owned()));
            flags.extend(upload.clamped.then(|| "clamped".to_owned()));
            flags.extend(upload.superseded.then(|| "superseded".to_owned()));
            [
                upload.received.to_string(),
                upload.member.to_string(),
                upload.upload.to_string(),
                bytes(upload.size),
                format!("{} {}", upload.outcome.as_str(), flags.join(", ")).trim().to_owned(),
                dash(upload.batch),
                upload
                    .round_state
                    .clone()
                    .or_else(|| upload.batch_state.clone())
                    .unwrap_or_else(|| "–".into()),
            ]
        })
        .collect();
    out.table(["RECEIVED", "MEMBER", "UPLOAD", "SIZE", "OUTCOME", "BATCH", "STATE"], rows, "no uploads");
    out.more(uploads.cursor.as_deref());
}
