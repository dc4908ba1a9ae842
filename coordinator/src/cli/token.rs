//! `millpond token …`

use millpond_protocol::{MemberName, PoolName};
use reqwest::Method;

use super::client::Client;
use super::failure::Failure;
use super::member::{Format, show_hand_out};
use super::output::Out;
use crate::http::api::{HandOut, NewToken};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Give a member one more token; the others stay valid.
    New {
        pool: PoolName,
        member: MemberName,
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// Give a member a new token in place of all it has; its sessions end.
    Rotate {
        pool: PoolName,
        member: MemberName,
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
}

pub(super) async fn run(command: Command, client: &Client, out: &Out) -> Result<(), Failure> {
    let (pool, member, format, replace) = match command {
        Command::New { pool, member, format } => (pool, member, format, false),
        Command::Rotate { pool, member, format } => (pool, member, format, true),
    };
    let path = format!("pools/{pool}/members/{member}/tokens");
    let new = NewToken { token_sha256: None, replace };
    let hand_out: HandOut = client.change(Method::POST, &path, &[], Some(&new)).await?;
    show_hand_out(out, &hand_out, format);
    Ok(())
}
