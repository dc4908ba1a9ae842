//! MQTT over WebSocket: real clients, and what others send there.

use std::process::Command;
use std::time::Duration;

use millpond_protocol::Role;
use millpond_tests::{Credentials, Server, mqtt_js, python};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(60);

/// Publishes a long file, subscribes to its own receipts and waits for the one that says so, in both versions.
const PAHO: &str = "
import json, queue, sys, paho.mqtt.client as mqtt
port, token, ca = int(sys.argv[1]), sys.argv[2], sys.argv[3]
for version, name in ((mqtt.MQTTv311, 'old'), (mqtt.MQTTv5, 'new')):
    told = queue.Queue()
    client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, client_id=name, protocol=version, transport='websockets')
    client.ws_set_options(path='/mqtt')
    if ca:
        client.tls_set(ca_certs=ca)
    client.username_pw_set('p/dev', token)
    client.on_message = lambda client, data, message: told.put(json.loads(message.payload))
    client.on_subscribe = lambda client, data, mid, codes, properties: told.put('subscribed')
    client.connect('localhost', port)
    client.loop_start()
    client.subscribe('mp/p/d/dev/receipt', 1)
    assert told.get(timeout=30) == 'subscribed'
    client.publish('mp/p/c/dev/up/' + name, bytes(700000), qos=1).wait_for_publish(30)
    # The first one's receipt comes again where its acknowledgement did not get through.
    while (receipt := told.get(timeout=30))['upload'] != name:
        pass
    assert receipt['outcome'] == 'stored', receipt
    client.disconnect()
    client.loop_stop()
";

async fn furnished(server: &Server) -> Credentials {
    server.pool("p", json!({})).await;
    server.member("p", "dev", Role::Publisher).await
}

fn paho(server: &Server, who: &Credentials, ca: &str) {
    let port = server.ports().http.port().to_string();
    let said =
        Command::new("timeout").args(["120", "python3", "-c", PAHO, &port, &who.token, ca]).output().unwrap();
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
}

#[tokio::test]
async fn paho_publishes_and_hears_of_it_over_websocket() {
    if !python() {
        return;
    }
    let server = Server::start().await;
    let who = furnished(&server).await;
    paho(&server, &who, "");
    assert_eq!(server.uploads("p").await.len(), 2);
}

#[tokio::test]
async fn paho_publishes_and_hears_of_it_over_websocket_with_tls() {
    if !python() {
        return;
    }
    let server = Server::secure(&[]).await;
    let who = furnished(&server).await;
    paho(&server, &who, &server.ca().display().to_string());
    assert_eq!(server.uploads("p").await.len(), 2);
}

/// A request to `/mqtt` with these headers beside the usual ones, and the head of its answer.
async fn ask(server: &Server, headers: &str) -> (TcpStream, String) {
    let mut io = TcpStream::connect(server.ports().http).await.unwrap();
    let request = format!("GET /mqtt HTTP/1.1\r\nhost: localhost\r\n{headers}\r\n");
    io.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let read = timeout(PATIENCE, io.read_u8()).await.expect("no answer");
        head.push(read.expect("the connection ended inside the head"));
    }
    (io, String::from_utf8(head).unwrap().to_lowercase())
}

const GOOD: &str = "connection: keep-alive, Upgrade\r\nupgrade: WebSocket\r\nsec-websocket-version: 13\r\n\
    sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-protocol: mqttv3.1, mqtt\r\n";

#[tokio::test]
async fn only_a_request_for_mqtt_over_websocket_is_let_in() {
    let server = Server::start().await;
    let (_, head) = ask(&server, GOOD).await;
    assert!(head.starts_with("http/1.1 101"), "{head}");
    // The example of RFC 6455.
    assert!(head.contains("sec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo="), "{head}");
    assert!(head.contains("sec-websocket-protocol: mqtt\r\n"), "{head}");
    for (from, to) in [
        ("upgrade: WebSocket", "upgrade: h2c"),
        ("keep-alive, Upgrade", "keep-alive"),
        ("version: 13", "version: 8"),
        ("mqttv3.1, mqtt", "chat"),
        ("dGhlIHNhbXBsZSBub25jZQ==", "short"),
    ] {
        let (_, head) = ask(&server, &GOOD.replace(from, to)).await;
        assert!(head.starts_with("http/1.1 400"), "{to}: {head}");
    }
}

/// Bytes in a frame of a client, with a mask of zeros.
fn frame(first: u8, bytes: &[u8]) -> Vec<u8> {
    assert!(bytes.len() < 126);
    [&[first, 0x80 | bytes.len() as u8, 0, 0, 0, 0], bytes].concat()
}

#[tokio::test]
async fn what_is_no_mqtt_in_binary_messages_ends_the_connection_and_harms_nobody() {
    let server = Server::with(&[("MILLPOND__LIMITS__CONNECT_TIMEOUT_S", "3")]).await;
    let connect = b"\x10\x0e\x00\x04MQTT\x04\x02\x00\x3c\x00\x02ab";
    let huge = [0x82, 0xFF, 0x7F, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    for bytes in [
        // Text, no mask, a message that begins inside another, MQTT that is none, more than anybody has, and silence.
        frame(0x81, connect),
        [&[0x82, connect.len() as u8][..], connect].concat(),
        [frame(0x02, b"\x10"), frame(0x82, connect)].concat(),
        frame(0x82, &[0xFF; 100]),
        [&huge[..], &[0xFF; 100]].concat(),
        Vec::new(),
    ] {
        let (mut io, head) = ask(&server, GOOD).await;
        assert!(head.starts_with("http/1.1 101"), "{head}");
        io.write_all(&bytes).await.unwrap();
        let mut said = Vec::new();
        let ended = timeout(PATIENCE, io.read_to_end(&mut said)).await;
        assert!(ended.is_ok(), "a connection that sent {bytes:?} stays");
        assert!(said.len() < 100, "{said:?}");
    }
    // A wrong password is answered with CONNACK, in a binary message, as on any other way in.
    let wrong = b"\x10\x17\x00\x04MQTT\x04\xc2\x00\x3c\x00\x02ab\x00\x03p/x\x00\x02no";
    let (mut io, _) = ask(&server, GOOD).await;
    for part in wrong.chunks(5) {
        io.write_all(&frame(0x82, part)).await.unwrap();
        io.write_all(&frame(0x89, b"ping")).await.unwrap();
    }
    let mut said = Vec::new();
    timeout(PATIENCE, io.read_to_end(&mut said)).await.expect("a refused client stays").unwrap();
    assert!(said.starts_with(b"\x8a\x04ping"), "{said:?}");
    assert!(said.windows(6).any(|bytes| bytes == b"\x82\x04\x20\x02\x00\x04"), "{said:?}");
    assert!(server.is_ready().await);
}

#[tokio::test]
async fn mqtt_js_publishes_over_websocket() {
    let Some(modules) = mqtt_js() else { return };
    let server = Server::start().await;
    let who = furnished(&server).await;
    let script = "
const client = require('mqtt').connect(process.argv[1], {username: 'p/dev', password: process.argv[2], protocolVersion: 5})
client.on('error', (error) => { console.error(error); process.exit(1) })
client.on('connect', () => client.publish('mp/p/c/dev/up/js', Buffer.alloc(700000), {qos: 1}, (error) => {
    if (error) { console.error(error); process.exit(1) }
    client.end()
}))";
    let url = format!("ws://{}/mqtt", server.ports().http);
    let mut node = Command::new("timeout");
    node.args(["60", "node", "-e", script, &url, &who.token]).env("NODE_PATH", modules);
    let said = node.output().unwrap();
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stderr));
    assert_eq!(server.uploads("p").await[0]["size"], 700_000);
}
