//! MQTT over WebSocket: real clients, and what others send there.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use millpond_protocol::Role;
use millpond_tests::openssl::{authority, certificate};
use millpond_tests::wire::connect_of;
use millpond_tests::{Credentials, Server, mqtt_js, python, tool};
use rustls::client::ResolvesClientCert;
use rustls::sign::CertifiedKey;
use rustls::version::TLS13;
use rustls::{ClientConfig, SignatureScheme};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::client::{Line, client};

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

#[tokio::test]
async fn a_page_of_another_origin_has_nothing_to_sign_in_with() {
    if !tool("openssl") {
        return;
    }
    let files = tempfile::tempdir().unwrap();
    let dir = files.path();
    std::fs::create_dir(dir.join("clients")).unwrap();
    authority(dir, "p");
    let clients = dir.join("clients").display().to_string();
    let server = Server::secure(&[("MILLPOND__TLS__CLIENTS_DIR", clients.as_str())]).await;
    let who = furnished(&server).await;
    // A browser that has the certificate of a member, and would show it for any page to whoever asks.
    let device = client(&[&server.ca()], Some(&certificate(dir, "p", "millpond://p/dev", "dev")), &TLS13);
    let mut browser = ClientConfig::clone(&device);
    let shows = Arc::new(Shows(browser.client_auth_cert_resolver.clone(), AtomicBool::default()));
    browser.client_auth_cert_resolver = shows.clone();
    let browser = Arc::new(browser);
    let page = format!(
        "GET /mqtt HTTP/1.1\r\nhost: localhost\r\norigin: https://elsewhere.example\r\n\
         cookie: token={}\r\nauthorization: Bearer {0}\r\n{GOOD}\r\n",
        who.token
    );
    for connect in [connect_of(5, 0, &[], &["x"]), connect_of(5, 0x80, &[], &["x", "p/dev"])] {
        let mut line = Line::open(&browser, server.ports().http).await;
        line.send(page.as_bytes()).await;
        let head = line.head().await;
        assert!(head.starts_with("http/1.1 101") && !head.contains("access-control"), "{head}");
        line.send(&frame(0x82, &connect)).await;
        // CONNACK in a message: bad user name or password.
        let (first, message) = line.packet().await.unwrap();
        assert_eq!((first, &message[..1], message[3]), (0x82, &[0x20][..], 0x86));
    }
    let mut line = Line::open(&browser, server.ports().http).await;
    line.send(page.as_bytes()).await;
    line.head().await;
    line.send(&frame(0x82, &connect_of(5, 0xC0, &[], &["x", "p/dev", &who.token]))).await;
    assert_eq!(line.packet().await.unwrap().1[3], 0, "a page that knows a token is as good as a device");
    assert!(!shows.1.load(Ordering::Relaxed), "it was asked for its certificate");
    Line::open(&browser, server.mqtts()).await;
    assert!(shows.1.load(Ordering::Relaxed), "where devices connect it is asked");
}

/// Shows a certificate, and remembers that it was asked for.
#[derive(Debug)]
struct Shows(Arc<dyn ResolvesClientCert>, AtomicBool);

impl ResolvesClientCert for Shows {
    fn resolve(&self, authorities: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.1.store(true, Ordering::Relaxed);
        self.0.resolve(authorities, schemes)
    }

    fn has_certs(&self) -> bool {
        true
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
