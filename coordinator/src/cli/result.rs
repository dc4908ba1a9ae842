//! `millpond result …`

use millpond_protocol::PoolName;
use reqwest::Method;

use super::client::{Client, Page};
use super::failure::Failure;
use super::output::{Out, bytes};
use crate::http::api::{Results, RolledBack};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// List results, newest first, with what members say of them.
    List {
        pool: PoolName,
        #[command(flatten)]
        page: Page,
    },
    /// Publish an old version again; it stands until a newer batch commits.
    Rollback {
        pool: PoolName,
        /// The version to publish again.
        #[arg(id = "number", value_name = "VERSION")]
        version: u64,
    },
}

pub(super) async fn run(command: Command, client: &Client, out: &Out) -> Result<(), Failure> {
    match command {
        Command::List { pool, page } => {
            let results: Results = client.get(&format!("pools/{pool}/results"), &page.query()).await?;
            out.show(&results, show_results);
        }
        Command::Rollback { pool, version } => {
            let path = format!("pools/{pool}/results/{version}/rollback");
            let done: RolledBack = client.change(Method::POST, &path, &[], None::<&()>).await?;
            out.show(&done, |out, done| {
                out.line(format!("version {} publishes version {} again", done.version, done.of));
            });
        }
    }
    Ok(())
}

fn show_results(out: &Out, results: &Results) {
    let rows = results
        .results
        .iter()
        .map(|result| {
            let info = &result.info;
            let mark = match (result.current, info.expired) {
                (true, _) => " (current)",
                (false, Some(_)) => " (not kept)",
                (false, None) => "",
            };
            let of = info.of.map(|of| format!(" = v{of}")).unwrap_or_default();
            [
                format!("v{}{of}{mark}", info.version),
                info.round.to_string(),
                info.name.to_string(),
                bytes(info.size),
                info.committed.to_string(),
                format!(
                    "{} fetched, {} verified, {} applied, {} failed",
                    result.fetched, result.verified, result.applied, result.failed
                ),
            ]
        })
        .collect();
    out.table(["VERSION", "ROUND", "NAME", "SIZE", "COMMITTED", "MEMBERS SAY"], rows, "no results");
    out.more(results.cursor.as_deref());
}
