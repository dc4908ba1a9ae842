//! `millpond-edge` on every way in.

use std::process::{Command, Output};

use millpond_protocol::Role;
use millpond_tests::{Credentials, Server, edge_binary};
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
    let metrics = server.api().get("/metrics").await;
    assert!(
        metrics.as_str().unwrap().contains(r#"handshakes_total{listener="mqtt",outcome="failed"}"#),
        "{metrics}"
    );
    assert!(server.uploads("p").await.is_empty());
}
