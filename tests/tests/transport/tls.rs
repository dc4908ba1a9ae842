//! Real clients over TLS.

use std::process::{Command, Output, Stdio};

use millpond_protocol::Role;
use millpond_tests::{Api, Server, python, tool};
use serde_json::json;

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// What `openssl s_client` says of one connection.
fn s_client(server: &Server, extra: &[&str]) -> Output {
    let mut command = Command::new("openssl");
    command.args(["s_client", "-verify_return_error", "-verify_ip", "127.0.0.1", "-CAfile"]).arg(server.ca());
    command.args(["-connect", &server.mqtts().to_string()]).args(extra).stdin(Stdio::null());
    command.output().unwrap()
}

#[tokio::test]
async fn what_mosquitto_publishes_over_tls_is_stored_and_the_pools_card_comes_over_tls() {
    if !tool("mosquitto_pub") {
        return;
    }
    let server = Server::secure(&[]).await;
    server.pool("p", json!({"window_s": 3600})).await;
    let who = server.member("p", "dev", Role::Publisher).await;
    let (ca, port) = (server.ca(), server.mqtts().port().to_string());
    let connect = ["-h", "127.0.0.1", "-p", &port, "-u", "p/dev", "-P", &who.token, "-q", "1"];
    let file = server.directory().join("file");
    // More than a record of TLS and more than a socket's buffer takes at once.
    let bytes: Vec<u8> = (0..900_000_u32).map(|n| n as u8).collect();
    std::fs::write(&file, &bytes).unwrap();
    let published = Command::new("mosquitto_pub")
        .arg("--cafile")
        .arg(&ca)
        .args(connect)
        .args(["-t", "mp/p/c/dev/up/one", "-f"])
        .arg(&file)
        .output()
        .unwrap();
    assert!(published.status.success(), "{}", text(&published));
    let uploads = server.uploads("p").await;
    assert_eq!((uploads[0]["upload"].as_str(), uploads[0]["size"].as_u64()), (Some("one"), Some(900_000)));
    // The pool's card is there for whoever subscribes.
    let card = Command::new("mosquitto_sub")
        .arg("--cafile")
        .arg(&ca)
        .args(connect)
        .args(["-t", "mp/p/pool", "-C", "1", "-W", "30"])
        .output()
        .unwrap();
    assert!(text(&card).contains("\"storage_host\""), "{}", text(&card));
}

#[tokio::test]
async fn a_client_that_does_not_trust_the_authority_gets_no_further_than_the_handshake() {
    if !tool("mosquitto_pub") {
        return;
    }
    let server = Server::secure(&[]).await;
    let port = server.mqtts().port().to_string();
    let refused = Command::new("mosquitto_pub")
        .args(["--capath", "/etc/ssl/certs", "-h", "127.0.0.1", "-p", &port, "-t", "x", "-m", "y"])
        .output()
        .unwrap();
    assert!(!refused.status.success() && text(&refused).contains("TLS error"), "{}", text(&refused));
}

#[tokio::test]
async fn tls_1_2_and_1_3_are_spoken_and_nothing_older() {
    if !tool("openssl") {
        return;
    }
    let server = Server::secure(&[]).await;
    for (version, name) in [("-tls1_2", "TLSv1.2"), ("-tls1_3", "TLSv1.3")] {
        let said = s_client(&server, &[version]);
        assert!(said.status.success() && text(&said).contains(&format!("New, {name}")), "{}", text(&said));
    }
    // Debian's openssl speaks 1.1 only at the lowest level of security.
    let old = s_client(&server, &["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"]);
    // The server's own word: a client that cannot speak it at all would fail without one.
    assert!(!old.status.success() && text(&old).contains(" alert "), "{old:?}");
}

#[tokio::test]
async fn a_client_that_comes_back_resumes_with_its_ticket() {
    if !tool("openssl") {
        return;
    }
    let server = Server::secure(&[]).await;
    let ticket = server.directory().join("ticket");
    let ticket = ticket.to_str().unwrap();
    let first = s_client(&server, &["-tls1_2", "-sess_out", ticket]);
    assert!(text(&first).contains("New, TLSv1.2"), "{}", text(&first));
    let second = s_client(&server, &["-tls1_2", "-sess_in", ticket]);
    assert!(text(&second).contains("Reused, TLSv1.2"), "{}", text(&second));
}

#[tokio::test]
async fn the_api_and_the_command_line_work_over_https() {
    if !tool("curl") {
        return;
    }
    let server = Server::secure(&[]).await;
    let url = format!("https://{}/healthz", server.ports().http);
    let said = Command::new("curl").arg("-sSf").arg("--cacert").arg(server.ca()).arg(&url).output().unwrap();
    assert!(said.status.success(), "{}", text(&said));
    let untrusting = Command::new("curl").args(["-sSf", &url]).output().unwrap();
    assert_eq!(untrusting.status.code(), Some(60), "{}", text(&untrusting));
    server.pool("p", json!({})).await;
    let status = server.cli().args(["status", "p"]).output().unwrap();
    assert!(status.status.success(), "{}", text(&status));
    let unknown = server.cli().env_remove("MILLPOND_CA_FILE").arg("status").output().unwrap();
    assert_eq!(unknown.status.code(), Some(75));
    assert!(text(&unknown).contains("--ca-file"), "{}", text(&unknown));
}

#[tokio::test]
async fn large_files_go_to_storage_over_https_and_the_server_finds_its_own_urls_good() {
    let server = Server::secure(&[]).await;
    let ready = server.api().get("/readyz").await;
    assert!(ready.get("warnings").is_none_or(|warnings| *warnings == json!([])), "{ready}");
    server.pool("p", json!({})).await;
    let who = server.member("p", "dev", Role::Publisher).await;
    let bytes = vec![7_u8; 3 << 20];
    let sha256 = millpond_protocol::Sha256::of(&bytes).to_string();
    let authority = std::fs::read(server.ca()).unwrap();
    let device =
        Api::trusting(Some(&authority), format!("https://{}", server.ports().http), who.token.clone());
    let ask = json!({"id": "1", "upload": "u", "name": "f", "size": bytes.len(), "sha256": sha256});
    let grant = device.post("/v1/pools/p/ask/put", &ask).await;
    let to: millpond_protocol::message::answer::PutTo =
        serde_json::from_value(grant["to"].clone()).unwrap_or_else(|error| panic!("{error}: {grant}"));
    assert!(to.url.starts_with("https://"), "{}", to.url);
    assert_eq!(device.send(&to, bytes).await, 200);
    let committed = device.post("/v1/pools/p/ask/commit", &json!({"id": "2", "upload": "u"})).await;
    assert!(committed.to_string().contains("stored"), "{committed}");
}

#[tokio::test]
async fn the_hand_out_names_the_authority_and_its_line_works_as_it_is() {
    if !tool("mosquitto_pub") {
        return;
    }
    let server = Server::secure(&[]).await;
    server.pool("p", json!({})).await;
    let mut add = server.cli();
    add.args(["member", "add", "p", "dev", "--role", "publisher"]);
    let said = text(&add.output().unwrap());
    assert!(said.contains("mqtts://127.0.0.1:") && said.contains("-----BEGIN CERTIFICATE-----"), "{said}");
    let line = said.lines().find(|line| line.trim().starts_with("mosquitto_pub --cafile")).unwrap();
    let tried = Command::new("sh").arg("-c").arg(line).output().unwrap();
    assert!(tried.status.success(), "{line}: {}", text(&tried));
    assert_eq!(server.uploads("p").await.len(), 1);
}

#[tokio::test]
async fn paho_publishes_over_tls() {
    if !python() {
        return;
    }
    let server = Server::secure(&[]).await;
    server.pool("p", json!({})).await;
    let who = server.member("p", "dev", Role::Publisher).await;
    let script = "
import sys, paho.mqtt.client as mqtt
port, token, ca = int(sys.argv[1]), sys.argv[2], sys.argv[3]
client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
client.tls_set(ca_certs=ca)
client.username_pw_set('p/dev', token)
client.connect('localhost', port)
client.loop_start()
told = client.publish('mp/p/c/dev/up/one', b'x' * 300000, qos=1)
told.wait_for_publish(30)
assert told.is_published()
client.disconnect()
client.loop_stop()
";
    let mut paho = Command::new("timeout");
    paho.args(["60", "python3", "-c", script, &server.mqtts().port().to_string(), &who.token])
        .arg(server.ca());
    let said = paho.output().unwrap();
    assert!(said.status.success(), "{}", text(&said));
    assert_eq!(server.uploads("p").await[0]["size"], 300_000);
}
