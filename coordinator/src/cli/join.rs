//! `millpond join …`

use millpond_protocol::{MemberName, PoolName, Role, Span};
use reqwest::Method;
use serde_json::Value;

use super::client::Client;
use super::failure::Failure;
use super::member::with_new_token;
use super::output::Out;
use crate::http::api::{JoinInfo, Joins, NewJoin};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Make a join token and print it, once: devices that know it become members by themselves.
    New {
        pool: PoolName,
        /// What you call it.
        name: MemberName,
        /// What the devices become: publisher, listener, processor or trigger.
        #[arg(long)]
        role: Role,
        /// Devices that may use it.
        #[arg(long)]
        uses: u32,
        /// When it ends, such as 12h or 7d; 30d at most.
        #[arg(long)]
        expires: Span,
    },
    /// List the join tokens of a pool.
    List { pool: PoolName },
    /// Take a join token back; members that used it stay.
    Remove { pool: PoolName, name: MemberName },
}

pub(super) async fn run(command: Command, client: &Client, out: &Out) -> Result<(), Failure> {
    match command {
        Command::New { pool, name, role, uses, expires: Span(expires) } => {
            let path = format!("pools/{pool}/joins");
            let new =
                |hash| NewJoin { name, role, uses, expires_s: expires.as_secs(), token_sha256: Some(hash) };
            let (token, mut join): (_, JoinInfo) = with_new_token("mpj_", client, &path, new).await?;
            join.token = Some(token);
            out.show(&join, show_join);
        }
        Command::List { pool } => {
            let joins: Joins = client.get(&format!("pools/{pool}/joins"), &[]).await?;
            out.show(&joins, show_joins);
        }
        Command::Remove { pool, name } => {
            let path = format!("pools/{pool}/joins/{name}");
            let gone: Value = client.change(Method::DELETE, &path, &[], None::<&()>).await?;
            out.show(&gone, |out, _| out.line(format!("join token {name} of pool {pool} is removed")));
        }
    }
    Ok(())
}

fn show_join(out: &Out, join: &JoinInfo) {
    let JoinInfo { pool, name, role, uses, expires, token } = join;
    out.line(format!("join token {name} of pool {pool}: {uses} devices may become {role} until {expires}"));
    out.line(format!("  {}", token.as_deref().unwrap_or_default()));
    out.line("  It is shown this once and kept nowhere. On a device, with the token in a file:");
    out.line(format!("  millpond-edge enrol {pool}/NAME --server URL --join-token-file FILE"));
    out.line("  or send the token as the bearer of");
    out.line(format!(
        "  POST /v1/pools/{pool}/enrol {{\"member\": NAME, \"token_sha256\": SHA-256 of a token that it made itself}}"
    ));
}

fn show_joins(out: &Out, joins: &Joins) {
    let rows = joins
        .joins
        .iter()
        .map(|join| {
            [join.name.to_string(), join.role.to_string(), join.uses.to_string(), join.expires.to_string()]
        })
        .collect();
    let none = "the pool has no join tokens: make one with `millpond join new`";
    out.table(["NAME", "ROLE", "USES LEFT", "EXPIRES"], rows, none);
}
