//! `millpond member …`

use std::time::Duration;

use clap::ValueEnum;
use millpond_protocol::{MemberName, PoolName, Role, Sha256};
use reqwest::Method;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::client::Client;
use super::failure::{FAILED, Failure, RETRY};
use super::output::{Out, dash};
use crate::http::api::{HandOut, Members, NewMember, NewRole};
use crate::secrets;

/// Members asked for at a time.
const PAGE: u32 = 1_000;
/// How often a request is repeated whose answer did not come.
const REPEATS: u32 = 2;
/// Before each repeat.
const PAUSE: Duration = Duration::from_secs(1);

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
    /// Give a member another role; its sessions, leases and grants end.
    SetRole {
        pool: PoolName,
        member: MemberName,
        /// publisher, listener, processor, trigger or operator.
        role: Role,
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
            let path = format!("pools/{pool}/members");
            let new = |hash| NewMember { member, role, token_sha256: Some(hash) };
            let hand_out = hand_out(client, &path, new).await?;
            show_hand_out(out, &hand_out, format);
        }
        Command::List { pool, all } => {
            let path = format!("pools/{pool}/members");
            let mut query = vec![("all", all.to_string()), ("limit", PAGE.to_string())];
            let mut members: Members = client.get(&path, &query).await?;
            while let Some(cursor) = members.cursor.take() {
                query.truncate(2);
                query.push(("cursor", cursor));
                let next: Members = client.get(&path, &query).await?;
                members.members.extend(next.members);
                members.cursor = next.cursor;
            }
            out.show(&members, show_members);
        }
        Command::SetRole { pool, member, role } => {
            let path = format!("pools/{pool}/members/{member}");
            let set: Value = client.change(Method::PATCH, &path, &[], Some(&NewRole { role })).await?;
            out.show(&set, |out, _| out.line(format!("{pool}/{member} is a {role} now")));
        }
        Command::Revoke { pool, member } => {
            let path = format!("pools/{pool}/members/{member}");
            let gone: Value = client.change(Method::DELETE, &path, &[], None::<&()>).await?;
            out.show(&gone, |out, _| out.line(format!("{pool}/{member} is revoked")));
        }
    }
    Ok(())
}

/// Asks for a hand-out of a device.
pub(super) async fn hand_out<T: Serialize>(
    client: &Client,
    path: &str,
    ask: impl FnOnce(Sha256) -> T,
) -> Result<HandOut, Failure> {
    let (token, mut handed): (_, HandOut) = with_new_token("mpd_", client, path, ask).await?;
    handed.example = handed.example.replace("-P TOKEN", &format!("-P {token}"));
    handed.token = Some(token);
    Ok(handed)
}

/// Asks for something with a token that is made here, so that the request can be repeated when its answer is lost: the
/// server knows the token's hash alone.
pub(super) async fn with_new_token<T: Serialize, A: DeserializeOwned>(
    prefix: &str,
    client: &Client,
    path: &str,
    ask: impl FnOnce(Sha256) -> T,
) -> Result<(String, A), Failure> {
    let token = secrets::random(prefix).map_err(|error| Failure::new(FAILED, error.to_string()))?;
    let ask = ask(Sha256::of(token.as_bytes()));
    let mut repeats = REPEATS;
    let answer = loop {
        match client.change(Method::POST, path, &[], Some(&ask)).await {
            Err(failure) if failure.exit == RETRY && repeats > 0 => {
                repeats -= 1;
                tokio::time::sleep(PAUSE).await;
            }
            outcome => break outcome?,
        }
    };
    Ok((token, answer))
}

/// Prints what a device needs to connect.
pub(super) fn show_hand_out(out: &Out, hand_out: &HandOut, format: Format) {
    let token = hand_out.token.as_deref().unwrap_or_default();
    let HandOut { pool, member, role, mqtt_host, mqtt_port, mqtt_url, storage_url, user, example, .. } =
        hand_out;
    let ca_file = hand_out.ca_file.as_deref();
    match format {
        _ if out.is_json() => out.show(hand_out, |_, _| {}),
        Format::Json => Out::new(true).show(hand_out, |_, _| {}),
        Format::Env => {
            // Names, hosts and tokens hold nothing that a shell would read.
            let variables = [
                ("MILLPOND_POOL", pool.to_string()),
                ("MILLPOND_MEMBER", member.to_string()),
                ("MILLPOND_ROLE", role.to_string()),
                ("MILLPOND_MQTT_HOST", mqtt_host.clone()),
                ("MILLPOND_MQTT_PORT", mqtt_port.to_string()),
                ("MILLPOND_MQTT_URL", mqtt_url.clone()),
                ("MILLPOND_STORAGE_URL", storage_url.clone()),
                ("MILLPOND_MQTT_USER", user.clone()),
                ("MILLPOND_MQTT_TOKEN", token.to_owned()),
            ];
            // A path of the server's, which a shell might read.
            let ca = ca_file.map(|path| ("MILLPOND_CA_FILE", format!("'{}'", path.replace('\'', "'\\''"))));
            for (key, value) in variables.into_iter().chain(ca) {
                out.line(format!("{key}={value}"));
            }
        }
        Format::Text => {
            out.line(format!("{role} {member} of pool {pool}"));
            out.line(format!("  MQTT      {mqtt_url}"));
            out.line(format!("  files     {storage_url}"));
            out.line(format!("  user      {user}"));
            out.line(format!("  password  {token}"));
            out.line("  The password is shown this once and kept nowhere: write it down now.");
            if let (Some(path), Some(pem)) = (ca_file, &hand_out.ca) {
                out.line(format!(
                    "  It trusts the authority below, on the server in {path}:\n\n{}",
                    pem.trim_end()
                ));
            }
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

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use axum::http::StatusCode;
    use axum::response::IntoResponse as _;
    use axum::routing::post;
    use axum::{Json, Router};
    use serde_json::json;

    use super::*;

    #[tokio::test]
    async fn a_request_whose_answer_is_lost_is_repeated_with_the_same_token() {
        let seen: Arc<Mutex<Vec<Value>>> = Arc::default();
        let asked = seen.clone();
        let answer = async move |Json(ask): Json<Value>| {
            let mut asked = asked.lock().unwrap();
            asked.push(ask);
            if asked.len() == 1 {
                return StatusCode::BAD_GATEWAY.into_response();
            }
            let hand_out = json!({"pool": "p", "member": "m", "role": "listener", "mqtt_host": "h", "mqtt_port": 1, "mqtt_url": "mqtt://h:1",
                "storage_url": "http://s", "user": "p/m", "example": "mosquitto_sub -u p/m -P TOKEN -q 1"});
            Json(hand_out).into_response()
        };
        let app = Router::new().route("/v1/pools/p/members", post(answer));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let server = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });

        let client = Client::with_token(server, "mpa_x".to_owned(), Vec::new()).unwrap();
        let ask = |hash| json!({"token_sha256": hash});
        let handed = hand_out(&client, "pools/p/members", ask).await.unwrap();
        let token = handed.token.unwrap();
        assert!(handed.example.contains(&format!("-P {token} ")), "{}", handed.example);
        let expected = json!({"token_sha256": Sha256::of(token.as_bytes())});
        assert_eq!(*seen.lock().unwrap(), [expected.clone(), expected]);
    }
}
