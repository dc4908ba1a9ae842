//! `millpond audit`

use millpond_protocol::PoolName;

use super::client::{Client, Page};
use super::failure::Failure;
use super::output::{Out, dash, printable};
use crate::http::api::Audit;

/// Who did what, from where, when: newest first.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Only what is about this pool.
    #[arg(long)]
    pool: Option<PoolName>,
    #[command(flatten)]
    page: Page,
}

pub(super) async fn run(args: &Args, client: &Client, out: &Out) -> Result<(), Failure> {
    let mut query = args.page.query();
    query.extend(args.pool.as_ref().map(|pool| ("pool", pool.to_string())));
    let audit: Audit = client.get("audit", &query).await?;
    out.show(&audit, |out, audit| {
        let rows = audit
            .entries
            .iter()
            .map(|entry| {
                [
                    entry.at.to_string(),
                    dash(entry.pool.as_ref()),
                    printable(&entry.who),
                    entry.from.clone(),
                    entry.action.clone(),
                    printable(&entry.detail.to_string()),
                ]
            })
            .collect();
        out.table(["AT", "POOL", "WHO", "FROM", "ACTION", "DETAIL"], rows, "nothing happened yet");
        out.more(audit.cursor.as_deref());
    });
    Ok(())
}
