//! `millpond pool …`

use std::path::PathBuf;

use millpond_protocol::PoolName;
use reqwest::Method;
use serde_json::{Map, Value};

use super::client::Client;
use super::failure::{Failure, USAGE};
use super::output::{Out, bytes, dash};
use crate::config::PoolFile;
use crate::http::api::{Applied, PoolInfo, PoolStatus, Pools};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Make the pool as the file describes it; what the file leaves out becomes the default.
    Apply {
        /// TOML with `name` and the keys of a policy; config/pools/ has examples.
        file: PathBuf,
    },
    /// Make a new pool.
    Add {
        pool: PoolName,
        /// Keys of the policy, such as `window_s=3600` or `grouping=label`.
        #[arg(value_name = "KEY=VALUE", value_parser = setting)]
        settings: Vec<(String, Value)>,
    },
    /// List the pools.
    List,
    /// Show a pool with its policy.
    Show { pool: PoolName },
    /// Change keys of the policy and leave the others.
    Set {
        pool: PoolName,
        #[arg(value_name = "KEY=VALUE", required = true, value_parser = setting)]
        settings: Vec<(String, Value)>,
    },
    /// Revoke the members of a pool and free its name.
    Remove {
        pool: PoolName,
        /// Also while uploads wait in open batches; they will never be processed.
        #[arg(long)]
        force: bool,
    },
}

/// `KEY=VALUE` with a number, a boolean or a word.
fn setting(text: &str) -> Result<(String, Value), String> {
    let (key, value) = text.split_once('=').ok_or("expected KEY=VALUE")?;
    let value = serde_json::from_str(value).unwrap_or_else(|_| Value::String(value.to_owned()));
    Ok((key.trim().to_owned(), value))
}

pub(super) async fn run(command: Command, client: &Client, out: &Out) -> Result<(), Failure> {
    match command {
        Command::Apply { file } => {
            let text = std::fs::read_to_string(&file)
                .map_err(|error| Failure::new(USAGE, format!("{}: {error}", file.display())))?;
            let pool = PoolFile::parse(&text, &file.display().to_string())
                .map_err(|bad| Failure::new(USAGE, format!("{} is wrong:\n{bad}", file.display())))?;
            let path = format!("pools/{}", pool.name);
            let applied: Applied = client.change(Method::PUT, &path, &[], Some(&pool.policy)).await?;
            out.show(&applied, show_applied);
        }
        Command::Add { pool, settings } => {
            let policy: Map<String, Value> = settings.into_iter().collect();
            let query = [("new", "true".to_owned())];
            let applied: Applied =
                client.change(Method::PUT, &format!("pools/{pool}"), &query, Some(&policy)).await?;
            out.show(&applied, show_applied);
        }
        Command::List => {
            let pools: Pools = client.get("pools", &[]).await?;
            out.show(&pools, |out, pools| show_pools(out, &pools.pools));
        }
        Command::Show { pool } => {
            let info: PoolInfo = client.get(&format!("pools/{pool}"), &[]).await?;
            out.show(&info, show_pool);
        }
        Command::Set { pool, settings } => {
            let patch: Map<String, Value> = settings.into_iter().collect();
            let applied: Applied =
                client.change(Method::PATCH, &format!("pools/{pool}"), &[], Some(&patch)).await?;
            out.show(&applied, show_applied);
        }
        Command::Remove { pool, force } => {
            let query = [("force", force.to_string())];
            let gone: Value =
                client.change(Method::DELETE, &format!("pools/{pool}"), &query, None::<&()>).await?;
            out.show(&gone, |out, _| out.line(format!("pool {pool} is removed")));
        }
    }
    Ok(())
}

fn show_applied(out: &Out, applied: &Applied) {
    let pool = &applied.pool;
    if applied.created {
        out.line(format!("pool {pool} is created"));
    } else if applied.changed.is_empty() {
        out.line(format!("pool {pool} is as described: nothing changed"));
    } else {
        out.line(format!("pool {pool} has policy version {} now", applied.policy_version));
    }
    for change in &applied.changed {
        match &change.from {
            Some(from) => out.line(format!("  {}: {from} → {}", change.key, change.to)),
            None => out.line(format!("  {} = {}", change.key, change.to)),
        }
    }
}

/// A table of pools, for `pool list` and `status`.
pub(super) fn show_pools(out: &Out, pools: &[PoolStatus]) {
    let rows = pools
        .iter()
        .map(|pool| {
            [
                pool.pool.to_string(),
                pool.grouping.clone(),
                format!("{} ({} publish)", pool.members, pool.publishers),
                format!("{} in {} batches, {}", pool.open_uploads, pool.open_batches, bytes(pool.open_bytes)),
                rounds(pool),
                pool.current
                    .map_or_else(|| "–".to_owned(), |current| format!("v{current} of {}", pool.versions)),
            ]
        })
        .collect();
    let header = ["POOL", "BY", "MEMBERS", "WAITING UPLOADS", "ROUNDS", "RESULT"];
    out.table(header, rows, "there are no pools: make one with `millpond pool add NAME`");
    for pool in pools {
        if let Some(trouble) = &pool.trouble {
            out.line(format!("  ! {}: packing does not get on: {trouble}", pool.pool));
        }
    }
}

/// Live rounds in words.
fn rounds(pool: &PoolStatus) -> String {
    let parts = [
        (pool.sealed, "being packed"),
        (pool.offered, "offered"),
        (pool.leased, "leased"),
        (pool.pausing, "to be retried"),
        (pool.failed, "failed"),
    ];
    let parts: Vec<String> =
        parts.into_iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")).collect();
    if parts.is_empty() { "–".to_owned() } else { parts.join(", ") }
}

fn show_pool(out: &Out, info: &PoolInfo) {
    show_pools(out, std::slice::from_ref(&info.status));
    out.line(format!("\ncreated {}, last upload {}", info.created, dash(info.status.last_upload)));
    out.line(format!("policy, version {}:", info.policy_version));
    if let Ok(Value::Object(policy)) = serde_json::to_value(&info.policy) {
        for (key, value) in policy {
            out.line(format!("  {key} = {value}"));
        }
    }
}
