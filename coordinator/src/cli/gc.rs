//! `millpond gc`

use std::collections::BTreeMap;

use millpond_protocol::PoolName;
use reqwest::Method;
use serde_json::json;

use super::client::Client;
use super::failure::Failure;
use super::output::{Out, bytes};
use crate::http::api::{Collected, Gc};

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// This pool only.
    pool: Option<PoolName>,
    /// Delete nothing: say what is due, and of every object why it is there.
    #[arg(long)]
    dry_run: bool,
    /// The clock of the server is right, though it is further than the server believes.
    #[arg(long, conflicts_with_all = ["dry_run", "pool"])]
    trust_clock: bool,
}

pub(super) async fn run(args: &Args, client: &Client, out: &Out) -> Result<(), Failure> {
    let mut query: Vec<(&str, String)> = args.pool.iter().map(|pool| ("pool", pool.to_string())).collect();
    if args.trust_clock {
        query.push(("trust_clock", "true".to_owned()));
    }
    if args.dry_run {
        return explain(query, client, out).await;
    }
    let mut sum = Collected::default();
    loop {
        let done: Collected = client.change(Method::POST, "gc", &query, None::<&()>).await?;
        sum = add(sum, done);
        if !done.more {
            break;
        }
    }
    out.show(&sum, |out, sum| {
        out.line(format!(
            "{} batches, {} results and {} rounds are not kept any more: {} in {} objects and {} payloads",
            sum.batches,
            sum.results,
            sum.rounds,
            bytes(sum.bytes),
            sum.objects,
            sum.payloads
        ));
        out.line(format!("{} uploads and {} events were forgotten", sum.uploads, sum.events));
        out.line(format!("{} objects were deleted from storage", sum.deleted));
    });
    Ok(())
}

fn add(sum: Collected, done: Collected) -> Collected {
    Collected {
        batches: sum.batches + done.batches,
        results: sum.results + done.results,
        rounds: sum.rounds + done.rounds,
        uploads: sum.uploads + done.uploads,
        payloads: sum.payloads + done.payloads,
        events: sum.events + done.events,
        objects: sum.objects + done.objects,
        bytes: sum.bytes + done.bytes,
        deleted: sum.deleted + done.deleted,
        more: done.more,
    }
}

/// One line for each thing that is due and for each object, then a sum; as JSON one value a line.
async fn explain(mut query: Vec<(&'static str, String)>, client: &Client, out: &Out) -> Result<(), Failure> {
    query.push(("limit", "1000".to_owned()));
    let mut sums: BTreeMap<String, (u64, u64)> = BTreeMap::new();
    let mut cursor: Option<String> = None;
    loop {
        let mut query = query.clone();
        query.extend(cursor.map(|cursor| ("cursor", cursor)));
        let page: Gc = client.get("gc", &query).await?;
        if let Some(why) = page.waits {
            if out.is_json() {
                out.line(json!({ "waits": why }).to_string());
            } else {
                out.line(format!("waits: {why}"));
            }
        }
        for due in page.due {
            if out.is_json() {
                out.line(json!({ "due": due }).to_string());
            } else {
                out.line(format!("due: {}: {}: {}", due.pool, due.what, due.why));
            }
        }
        for object in page.objects {
            let sum = sums.entry(object.verdict.clone()).or_default();
            *sum = (sum.0 + 1, sum.1 + object.size);
            if out.is_json() {
                out.line(json!({ "object": object }).to_string());
            } else {
                let until = object.until.map(|until| format!(", until {until}")).unwrap_or_default();
                out.line(format!(
                    "{}: {} ({}): {}{until}",
                    object.verdict,
                    object.key,
                    bytes(object.size),
                    object.why
                ));
            }
        }
        cursor = page.cursor;
        if cursor.is_none() {
            break;
        }
    }
    if out.is_json() {
        let sums: BTreeMap<_, _> = sums
            .iter()
            .map(|(verdict, (objects, bytes))| (verdict, json!({ "objects": objects, "bytes": bytes })))
            .collect();
        out.line(json!({ "sum": sums }).to_string());
    } else {
        for (verdict, (objects, size)) in sums {
            out.line(format!("{objects} objects {verdict}, {}", bytes(size)));
        }
    }
    Ok(())
}
