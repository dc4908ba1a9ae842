//! `millpond token …`

use millpond_protocol::{MemberName, PoolName, Span};

use super::client::Client;
use super::failure::Failure;
use super::member::{Format, hand_out, show_hand_out};
use super::output::Out;
use crate::http::api::NewToken;

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Give a member one more token; the others stay valid.
    New {
        pool: PoolName,
        member: MemberName,
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// Give a member a new token in place of all it has; its sessions end with the old ones.
    Rotate {
        pool: PoolName,
        member: MemberName,
        /// How long the old tokens hold on, such as 12h or 7d; by default they end at once.
        #[arg(long)]
        overlap: Option<Span>,
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
}

pub(super) async fn run(command: Command, client: &Client, out: &Out) -> Result<(), Failure> {
    let (pool, member, format, replace, overlap) = match command {
        Command::New { pool, member, format } => (pool, member, format, false, None),
        Command::Rotate { pool, member, overlap, format } => (pool, member, format, true, overlap),
    };
    let path = format!("pools/{pool}/members/{member}/tokens");
    let overlap_s = overlap.map(|Span(overlap)| overlap.as_secs());
    let new = |hash| NewToken { token_sha256: Some(hash), replace, overlap_s };
    let hand_out = hand_out(client, &path, new).await?;
    show_hand_out(out, &hand_out, format);
    Ok(())
}
