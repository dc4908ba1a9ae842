//! `millpond member …`

use clap::ValueEnum;
use millpond_protocol::{MemberName, PoolName, Role};
use reqwest::Method;
use serde_json::Value;

use super::client::Client;
use super::failure::Failure;
use super::output::{Out, dash};
use crate::http::api::{HandOut, Members, NewMember};

#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Add a member and print, once, what it needs to connect.
    Add {
        pool: PoolName,
        member: MemberName,
        /// publisher, listener, processor, trigger or operator.
        #[arg(long)]
        role: Role,
        /// How to print it; `--json` is `--format json`.
        #[arg(long, value_enum, default_value_t)]
        format: Format,
    },
    /// List the members of a pool.
    List {
        pool: PoolName,
        /// Also those that were revoked.
        #[arg(long)]
        all: bool,
    },
    /// End a member: its tokens, sessions and leases.
    Revoke { pool: PoolName, member: MemberName },
}

/// How a hand-out is printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    /// For people.
    #[default]
    Text,
    /// Shell variables.
    Env,
    /// One JSON object.
    Json,
}

pub(super) async fn run(command: Command, client: &Client, out: &Out) -> Result<(), Failure> {
    match command {
        Command::Add { pool, member, role, format } => {
            let new = NewMember { member, role, token_sha256: None };
            let hand_out: HandOut =
                client.change(Method::POST, &format!("pools/{pool}/members"), &[], Some(&new)).await?;
            show_hand_out(out, &hand_out, format);
        }
        Command::List { pool, all } => {
            let query = [("all", all.to_string())];
            let members: Members = client.get(&format!("pools/{pool}/members"), &query).await?;
            out.show(&members, show_members);
        }
        Command::Revoke { pool, member } => {
            let path = format!("pools/{pool}/members/{member}");
            let gone: Value = client.change(Method::DELETE, &path, &[], None::<&()>).await?;
            out.show(&gone, |out, _| out.line(format!("{pool}/{member} is revoked")));
        }
    }
    Ok(())
}

/// Prints what a device needs to connect.
pub(super) fn show_hand_out(out: &Out, hand_out: &HandOut, format: Format) {
    let token = hand_out.token.as_deref().unwrap_or_default();
    let HandOut { pool, member, role, mqtt_host, mqtt_port, storage_url, user, example, .. } = hand_out;
    match format {
        _ if out.is_json() => out.show(hand_out, |_, _| {}),
        Format::Json => Out::new(true).show(hand_out, |_, _| {}),
        Format::Env => {
            // Names, hosts and tokens hold nothing that a shell would read.
            for (key, value) in [
                ("MILLPOND_POOL", pool.to_string()),
                ("MILLPOND_MEMBER", member.to_string()),
                ("MILLPOND_ROLE", role.to_string()),
                ("MILLPOND_MQTT_HOST", mqtt_host.clone()),
                ("MILLPOND_MQTT_PORT", mqtt_port.to_string()),
                ("MILLPOND_STORAGE_URL", storage_url.clone()),
                ("MILLPOND_MQTT_USER", user.clone()),
                ("MILLPOND_MQTT_TOKEN", token.to_owned()),
            ] {
                out.line(format!("{key}={value}"));
            }
        }
        Format::Text => {
            out.line(format!("{role} {member} of pool {pool}"));
            out.line(format!("  MQTT      {mqtt_host}:{mqtt_port}"));
            out.line(format!("  files     {storage_url}"));
            out.line(format!("  user      {user}"));
            out.line(format!("  password  {token}"));
            out.line("  The password is shown this once and kept nowhere: write it down now.");
            out.line(format!("\nTry it:\n  {example}"));
        }
    }
}

fn show_members(out: &Out, members: &Members) {
    let rows = members
        .members
        .iter()
        .map(|member| {
            let state = match (&member.revoked, member.tokens) {
                (Some(at), _) => format!("revoked {at}"),
                (None, 0) => "no token".to_owned(),
                (None, _) => "active".to_owned(),
            };
            let result = match (&member.delivery, member.version) {
                (Some(delivery), Some(version)) => format!("v{version} {delivery}"),
                _ => "–".to_owned(),
            };
            [member.member.to_string(), member.role.to_string(), state, dash(member.last_upload), result]
        })
        .collect();
    let none = "the pool has no members: add one with `millpond member add POOL NAME --role publisher`";
    out.table(["MEMBER", "ROLE", "STATE", "LAST UPLOAD", "RESULT"], rows, none);
}
