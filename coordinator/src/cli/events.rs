//! `millpond events`

use std::time::Duration;

use millpond_protocol::PoolName;

use super::client::Client;
use super::failure::{Failure, RETRY};
use super::output::{Out, escaped, printable};
use crate::http::api::{EventRow, Events};

/// Longest event that is read, in bytes: bodies are small JSON objects.
const EVENT_MAX: usize = 1 << 20;

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    pool: PoolName,
    /// Go on with what happens from now on, until interrupted.
    #[arg(short, long)]
    follow: bool,
    /// Begin after this event instead of with the last ones.
    #[arg(long, value_name = "SEQ")]
    since: Option<u64>,
}

pub(super) async fn run(args: &Args, client: &Client, out: &Out) -> Result<(), Failure> {
    let path = format!("pools/{}/events", args.pool);
    let query: Vec<(&str, String)> = args.since.iter().map(|since| ("since", since.to_string())).collect();
    let mut page: Events = client.get(&path, &query).await?;
    loop {
        page.events.iter().for_each(|event| show(out, event));
        if !page.more {
            break;
        }
        page = client.get(&path, &[("since", page.next.to_string())]).await?;
    }
    if !args.follow {
        return Ok(());
    }
    let mut last = page.next;
    loop {
        match follow(&path, &mut last, client, out).await {
            // The server ends streams when it stops; the feed goes on where it was.
            Ok(()) => {}
            Err(failure) if failure.exit == RETRY => out.failure(&failure),
            Err(failure) => return Err(failure),
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
}

/// Reads one stream to its end.
async fn follow(path: &str, last: &mut u64, client: &Client, out: &Out) -> Result<(), Failure> {
    let mut response = client.stream(path, &[("since", last.to_string())]).await?;
    let mut buffer = Vec::new();
    let broken = |error: reqwest::Error| Failure::new(RETRY, format!("the stream broke off: {error}"));
    while let Some(chunk) = response.chunk().await.map_err(broken)? {
        buffer.extend_from_slice(&chunk);
        while let Some(end) = buffer.iter().position(|b| *b == b'\n') {
            let line: Vec<u8> = buffer.drain(..=end).collect();
            // Every event is one line `data: JSON`; what else SSE has carries nothing new.
            if let Some(data) = line.strip_prefix(b"data:")
                && let Ok(event) = serde_json::from_slice::<EventRow>(data)
            {
                *last = event.seq;
                show(out, &event);
            }
        }
        if buffer.len() > EVENT_MAX {
            return Err(Failure::new(RETRY, "the server sent an endless event"));
        }
    }
    Ok(())
}

fn show(out: &Out, event: &EventRow) {
    let whole = if out.is_json() { serde_json::to_string(event) } else { serde_json::to_string(&event.body) };
    let whole = whole.unwrap_or_default();
    if out.is_json() {
        out.line(escaped(&whole));
    } else {
        out.line(format!("{:>6} {} {:<16} {}", event.seq, event.at, event.kind, printable(&whole)));
    }
}
