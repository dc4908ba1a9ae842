//! `millpond-edge` on every way in.

use std::path::Path;
use std::process::{Command, Output};

use millpond_protocol::Role;
use millpond_tests::openssl::{authority, certificate};
use millpond_tests::{Credentials, Server, edge_binary, tool};
use serde_json::json;

fn push(server: &Server, who: &Credentials, url: &str, name: &str, bytes: &[u8], trusts: bool) -> Output {
    let file = server.directory().join(name);
    std::fs::write(&file, bytes).unwrap();
    let mut command = Command::new(edge_binary());
    command.args(["push", "--patience", "60", "--id", name]).arg(&file);
    command.env("MILLPOND_MQTT_URL", url);
    command.env("MILLPOND_MQTT_USER", format!("{}/{}", who.pool, who.member));
    command.env("MILLPOND_MQTT_TOKEN", &who.token);
    command.env("MILLPOND_SPOOL", server.directory().join(format!("spool-{name}")));
    if trusts {
        command.env("MILLPOND_CA_FILE", server.ca());
    }
    command.output().unwrap()
}

fn accepted(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[tokio::test]
async fn small_and_large_files_are_pushed_over_tls_and_over_websocket_with_tls() {
    let server = Server::secure(&[]).await;
    server.pool("p", json!({})).await;
    let who = server.member("p", "dev", Role::Publisher).await;
    let mqtts = format!("mqtts://{}", server.mqtts());
    let wss = format!("wss://{}/mqtt", server.ports().http);
    accepted(&push(&server, &who, &mqtts, "small", b"small", true));
    accepted(&push(&server, &who, &mqtts, "large", &vec![5; 3 << 20], true));
    accepted(&push(&server, &who, &wss, "web", &[6; 900_000], true));
    let sizes = server.uploads("p").await;
    let sizes: Vec<_> = sizes.iter().map(|upload| upload["size"].as_u64().unwrap()).collect();
    assert_eq!(sizes, [5, 3 << 20, 900_000]);
}

#[tokio::test]
async fn a_file_is_pushed_over_websocket_without_tls() {
    let server = Server::start().await;
    server.pool("p", json!({})).await;
    let who = server.member("p", "dev", Role::Publisher).await;
    accepted(&push(&server, &who, &format!("ws://{}", server.ports().http), "web", b"bytes", false));
    assert_eq!(server.uploads("p").await.len(), 1);
}

#[tokio::test]
async fn a_server_of_an_unknown_authority_gets_no_token_and_no_file() {
    let server = Server::secure(&[]).await;
    server.pool("p", json!({})).await;
    let who = server.member("p", "dev", Role::Publisher).await;
    let mut command = Command::new(edge_binary());
    let file = server.directory().join("file");
    std::fs::write(&file, b"x").unwrap();
    command.args(["push", "--patience", "2"]).arg(&file);
    command.env("MILLPOND_MQTT_URL", format!("mqtts://{}", server.mqtts()));
    command.env("MILLPOND_MQTT_USER", "p/dev").env("MILLPOND_MQTT_TOKEN", &who.token);
    command.env("MILLPOND_SPOOL", server.directory().join("spool"));
    let said = command.output().unwrap();
    let told = String::from_utf8_lossy(&said.stderr);
    assert!(told.contains("UnknownIssuer") && told.contains("waits in the spool"), "{told}");
    assert!(said.status.success() && said.stdout.starts_with(b"spooled"), "{said:?}");
    let metrics = server.api().get("/metrics").await;
    assert!(
        metrics.as_str().unwrap().contains(r#"handshakes_total{listener="mqtt",outcome="failed"}"#),
        "{metrics}"
    );
    assert!(server.uploads("p").await.is_empty());
    // It is sent from there once the server is trusted; until then a flush says that it could not.
    let flush = |patience| {
        let mut flush = Command::new(edge_binary());
        flush.args(["spool", "flush", "--patience", patience]);
        flush.envs(command.get_envs().filter_map(|(key, value)| Some((key, value?))));
        flush
    };
    let refused = flush("2").output().unwrap();
    let told = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(75) && told.contains("UnknownIssuer"), "{refused:?}");
    accepted(&flush("60").env("MILLPOND_CA_FILE", server.ca()).output().unwrap());
    assert_eq!(server.uploads("p").await.len(), 1);
}

/// A member's client that has a certificate and no token.
fn certified(server: &Server, user: &str, certificate: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(edge_binary());
    command.args(arguments).current_dir(server.directory());
    command.env("MILLPOND_MQTT_URL", format!("mqtts://{}", server.mqtts()));
    command.env("MILLPOND_MQTT_USER", user).env("MILLPOND_CA_FILE", server.ca());
    command.env("MILLPOND_CERT_FILE", certificate.with_extension("crt"));
    command.env("MILLPOND_KEY_FILE", certificate.with_extension("key"));
    command.env("MILLPOND_SPOOL", server.directory().join("spool"));
    command
}

#[tokio::test]
async fn with_a_certificate_and_no_token_files_are_pushed_results_are_kept_and_rounds_are_processed() {
    if !tool("openssl") {
        return;
    }
    let files = tempfile::tempdir().unwrap();
    let dir = files.path();
    std::fs::create_dir(dir.join("clients")).unwrap();
    authority(dir, "p");
    authority(dir, "q");
    let clients = dir.join("clients").display().to_string();
    let server = Server::secure(&[("MILLPOND__TLS__CLIENTS_DIR", clients.as_str())]).await;
    server.pool("p", json!({ "grouping": "count", "count": 2, "spread_s": 0 })).await;
    for (name, role) in [("dev", Role::Publisher), ("screen", Role::Listener), ("mill", Role::Processor)] {
        server.member("p", name, role).await;
    }
    let of = |name: &str| certificate(dir, "p", &format!("millpond://p/{name}"), name);
    let (dev, screen, mill) = (of("dev"), of("screen"), of("mill"));
    std::fs::write(server.directory().join("small"), b"small").unwrap();
    std::fs::write(server.directory().join("large"), vec![5; 3 << 20]).unwrap();
    accepted(&certified(&server, "p/dev", &dev, &["push", "small", "large"]).output().unwrap());
    let uploads = server.uploads("p").await;
    assert_eq!(uploads.iter().map(|upload| upload["member"].as_str()).collect::<Vec<_>>(), [Some("dev"); 2]);

    let count = r#"cat "$MILLPOND_INPUT"/dev/* | wc -c > "$MILLPOND_OUTPUT""#;
    accepted(&certified(&server, "p/mill", &mill, &["process", "--once", "--exec", count]).output().unwrap());
    accepted(&certified(&server, "p/screen", &screen, &["listen", "--once"]).output().unwrap());
    let shown = std::fs::read_to_string(server.directory().join("results/current")).unwrap();
    assert_eq!(shown.trim(), (5 + (3 << 20)).to_string());

    // Another member's certificate, and another pool's authority: the file stays where it is.
    let foreign = certificate(dir, "q", "millpond://p/dev", "foreign");
    std::fs::write(server.directory().join("more"), b"more").unwrap();
    for (patience, stranger) in [("60", &screen), ("3", &foreign)] {
        let arguments = ["--patience", patience, "push", "more"];
        let said = certified(&server, "p/dev", stranger, &arguments).output().unwrap();
        let told = String::from_utf8_lossy(&said.stderr).into_owned();
        assert!(!String::from_utf8_lossy(&said.stdout).contains("stored"), "{told}");
    }
    assert_eq!(server.uploads("p").await.len(), 2);
    accepted(&certified(&server, "p/dev", &dev, &["push", "more"]).output().unwrap());
}
