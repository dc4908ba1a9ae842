//! `millpond dev`: a server on loopback that stays up, with something in it to play with.
//!
//! On standard output come shell variables, all at once when the server is ready, to be pasted into other terminals (or
//! read by scripts, with `--ports auto`, which prints nothing else):
//!
//! | variable | value |
//! |---|---|
//! | `MILLPOND_SERVER`, `MILLPOND_TOKEN` | URL of the HTTP API and the admin token, as every other command reads them |
//! | `MILLPOND_MQTT_HOST`, `MILLPOND_MQTT_PORT` | where MQTT clients connect |
//! | `MILLPOND_STORAGE_URL` | what the URLs of files begin with |
//! | `MILLPOND_POOL` | `demo` |
//! | `MILLPOND_PUBLISHER_TOKEN` | password of `demo/publisher` |
//! | `MILLPOND_PROCESSOR_TOKEN` | password of `demo/processor` |
//! | `MILLPOND_LISTENER_TOKEN` | password of `demo/listener` |

use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::ValueEnum;
use millpond_protocol::Role;
use reqwest::Method;
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::client::Client;
use super::failure::{FAILED, Failure, USAGE};
use super::output::Out;
use super::serve::stop_on_signal;
use crate::config::{self, Config, PoolFile};
use crate::http::api::{Applied, HandOut, Members};
use crate::server::Addresses;
use crate::{logging, server};

/// The pool, as `config/pools/demo.toml` describes it.
const POOL: &str = include_str!("../../../config/pools/demo.toml");
/// Who is in it; each is called like its role.
const MEMBERS: [Role; 3] = [Role::Publisher, Role::Processor, Role::Listener];

#[derive(Debug, clap::Args)]
pub(super) struct Args {
    /// Which ports: those of the configuration (1883, 8080 and 9000), or any that are free.
    #[arg(long, value_enum, default_value_t)]
    ports: Ports,
    /// Keep everything in this directory; without it all is gone when the server stops.
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
enum Ports {
    #[default]
    Fixed,
    Auto,
}

pub(super) fn run(args: &Args, out: &Out) -> Result<(), Failure> {
    let mut config = Config::load(None, super::serve::environment())
        .map_err(|bad| Failure::new(USAGE, format!("the environment's settings are wrong:\n{bad}")))?;
    // Removed when the server has ended.
    let temporary = tempfile::tempdir()?;
    config.server.data_dir = args.data.clone().unwrap_or_else(|| temporary.path().join("data"));
    if args.ports == Ports::Auto {
        for listener in [&mut config.mqtt.listen, &mut config.http.listen, &mut config.storage.listen] {
            listener.set_port(0);
        }
    }
    // On loopback there is nothing to hide, and what is printed below is plain.
    config.tls = config::Tls::default();
    logging::init(&config.log);
    let runtime = server::runtime()?;
    runtime.block_on(async {
        let shutdown = CancellationToken::new();
        stop_on_signal(shutdown.clone())?;
        let token = config.server.data_dir.join("admin.token");
        let (ready, addresses) = oneshot::channel();
        let mut server = tokio::spawn(server::run(config, shutdown.clone(), ready));
        if let Ok(addresses) = addresses.await {
            let token = std::fs::read_to_string(token)?.trim().to_owned();
            match furnish(&addresses, token).await {
                Ok(variables) => show(out, args, &variables),
                Err(failure) => {
                    shutdown.cancel();
                    let _ = (&mut server).await;
                    return Err(failure);
                }
            }
        }
        let ended = server.await.map_err(|error| Failure::new(FAILED, error.to_string()))?;
        ended.map_err(|error| {
            Failure::new(FAILED, format!("{error:#}")).hint("`dev --ports auto` takes ports that are free")
        })
    })
}

/// Names and values, in the order in which they are printed.
type Variables = Vec<(String, String)>;

/// Makes the pool and its members, or gives members that are there already new tokens.
async fn furnish(addresses: &Addresses, token: String) -> Result<Variables, Failure> {
    let server = format!("http://{}", addresses.http);
    let url = server.parse().map_err(|error| Failure::new(FAILED, format!("{server}: {error}")))?;
    let client = Client::with_token(url, token.clone(), Vec::new())?;
    let pool = PoolFile::parse(POOL, "demo.toml").map_err(|bad| Failure::new(FAILED, bad.to_string()))?;
    let name = &pool.name;
    let _: Applied = client.change(Method::PUT, &format!("pools/{name}"), &[], Some(&pool.policy)).await?;
    let there: Members = client.get(&format!("pools/{name}/members"), &[]).await?;
    let mut variables: Variables = vec![
        ("MILLPOND_SERVER".into(), server),
        ("MILLPOND_TOKEN".into(), token),
        ("MILLPOND_MQTT_HOST".into(), addresses.mqtt.ip().to_string()),
        ("MILLPOND_MQTT_PORT".into(), addresses.mqtt.port().to_string()),
    ];
    variables.extend(
        addresses.storage.map(|storage| ("MILLPOND_STORAGE_URL".into(), format!("http://{storage}"))),
    );
    variables.push(("MILLPOND_POOL".into(), name.to_string()));
    for role in MEMBERS {
        let (path, body) = if there.members.iter().any(|member| member.member.as_str() == role.as_str()) {
            (format!("pools/{name}/members/{role}/tokens"), json!({ "replace": true }))
        } else {
            (format!("pools/{name}/members"), json!({ "member": role, "role": role }))
        };
        let hand_out: HandOut = client.change(Method::POST, &path, &[], Some(&body)).await?;
        let variable = format!("MILLPOND_{}_TOKEN", role.as_str().to_uppercase());
        variables.push((variable, hand_out.token.unwrap_or_default()));
    }
    Ok(variables)
}

fn show(out: &Out, args: &Args, variables: &Variables) {
    if out.is_json() {
        let all: BTreeMap<&str, &str> = variables.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        out.show(&json!(all), |_: &Out, _: &Value| {});
        return;
    }
    // One write, so that whoever reads the file sees all or nothing.
    let lines: Vec<String> = variables.iter().map(|(name, value)| format!("export {name}={value}")).collect();
    let lines = lines.join("\n");
    if args.ports == Ports::Auto {
        return out.line(lines);
    }
    let kept = match &args.data {
        Some(dir) => format!("Everything is kept in {}.", dir.display()),
        None => "Everything is gone when it stops.".to_owned(),
    };
    out.line(format!(
        "# A server for development. {kept} Stop it with Ctrl-C.\n\
         # Paste this into other terminals:\n\
         \n{lines}\n\n\
         # Wait for results:\n\
         mosquitto_sub -h $MILLPOND_MQTT_HOST -p $MILLPOND_MQTT_PORT -u demo/listener -P $MILLPOND_LISTENER_TOKEN \
         -q 1 -t mp/demo/result/data\n\
         # Publish a file:\n\
         mosquitto_pub -h $MILLPOND_MQTT_HOST -p $MILLPOND_MQTT_PORT -u demo/publisher -P $MILLPOND_PUBLISHER_TOKEN \
         -q 1 -t mp/demo/c/publisher/up/first -m hello\n\
         # Seal the batch and take the round:\n\
         mosquitto_rr -h $MILLPOND_MQTT_HOST -p $MILLPOND_MQTT_PORT -u demo/processor -P $MILLPOND_PROCESSOR_TOKEN \
         -q 1 -t mp/demo/c/processor/ask/trigger -e mp/demo/d/processor/answer/trigger \
         -m '{{\"id\":\"t1\",\"take\":true,\"wait_s\":30}}'\n\
         # Return a file:\n\
         mosquitto_pub -h $MILLPOND_MQTT_HOST -p $MILLPOND_MQTT_PORT -u demo/processor -P $MILLPOND_PROCESSOR_TOKEN \
         -q 1 -t mp/demo/c/processor/result/1/1 -m ground"
    ));
}
