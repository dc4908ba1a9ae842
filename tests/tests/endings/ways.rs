//! The ways in: both versions of MQTT over TCP, TLS, and WebSocket with TLS, by a client that is little more than bytes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use millpond_tests::wire::{connect_of, packet, text};
use millpond_tests::{Credentials, Server};
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// Longest wait for what comes at once on a machine that has nothing else to do.
const PATIENCE: Duration = Duration::from_secs(60);

pub trait Io: AsyncRead + AsyncWrite + Send + Unpin {}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Io for S {}

/// How a client reaches the gate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    Tcp,
    Tls,
    WebSocket,
}

pub const WAYS: [Way; 3] = [Way::Tcp, Way::Tls, Way::WebSocket];
/// MQTT 3.1.1 and 5.
pub const LEVELS: [u8; 2] = [4, 5];

/// A connection with TLS to one of the server's ports.
pub async fn encrypted(server: &Server, at: SocketAddr) -> Box<dyn Io> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(server.ca()).unwrap()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let tcp = TcpStream::connect(at).await.unwrap();
    Box::new(TlsConnector::from(Arc::new(config)).connect(ServerName::from(at.ip()), tcp).await.unwrap())
}

/// A client of MQTT.
pub struct Client {
    io: Box<dyn Io>,
    way: Way,
    level: u8,
    /// Bytes of MQTT that came and are not read.
    unread: Vec<u8>,
}

impl Client {
    /// Connects and signs in; with a session that is kept, if there is to be one. Whether there was one already.
    pub async fn open(
        server: &Server,
        who: &Credentials,
        way: Way,
        level: u8,
        id: &str,
        keep: bool,
    ) -> (Self, bool) {
        let mut io = match way {
            Way::Tcp => Box::new(TcpStream::connect(server.mqtt()).await.unwrap()) as Box<dyn Io>,
            Way::Tls => encrypted(server, server.mqtts()).await,
            Way::WebSocket => encrypted(server, server.ports().http).await,
        };
        if way == Way::WebSocket {
            upgrade(&mut io).await;
        }
        let mut client = Self { io, way, level, unread: Vec::new() };
        client.send(&connect(who, level, id, keep)).await;
        let (first, body) = client.packet().await.expect("the sign-in is not answered");
        assert_eq!((first, body[1]), (0x20, 0), "CONNACK {body:?}");
        (client, body[0] == 1)
    }

    async fn send(&mut self, packet: &[u8]) {
        if self.way != Way::WebSocket {
            self.io.write_all(packet).await.unwrap();
        } else {
            // In one frame, with a mask of zeros.
            let [high, low] = u16::try_from(packet.len()).unwrap().to_be_bytes();
            let frame = [&[0x82, 0x80 | 126, high, low, 0, 0, 0, 0], packet].concat();
            self.io.write_all(&frame).await.unwrap();
        }
        self.io.flush().await.unwrap();
    }

    /// More bytes of MQTT; none at the end of the connection, however it came.
    async fn more(&mut self) -> Option<()> {
        if self.way != Way::WebSocket {
            return match self.io.read_buf(&mut self.unread).await {
                Ok(1..) => Some(()),
                Ok(0) | Err(_) => None,
            };
        }
        let first = self.io.read_u8().await.ok()?;
        let length = match self.io.read_u8().await.ok()? {
            126 => usize::from(self.io.read_u16().await.ok()?),
            short => usize::from(short),
        };
        let mut bytes = vec![0; length];
        self.io.read_exact(&mut bytes).await.ok()?;
        if first == 0x82 {
            self.unread.extend(bytes);
        }
        Some(())
    }

    async fn byte(&mut self, at: usize) -> Option<u8> {
        while self.unread.len() <= at {
            self.more().await?;
        }
        Some(self.unread[at])
    }

    /// The next packet, or the end. All of them here are short.
    async fn packet(&mut self) -> Option<(u8, Vec<u8>)> {
        let next = async {
            let first = self.byte(0).await?;
            let length = usize::from(self.byte(1).await?);
            assert!(length < 128, "a long packet {first:#x}");
            if length > 0 {
                self.byte(1 + length).await?;
            }
            let packet: Vec<u8> = self.unread.drain(..2 + length).collect();
            Some((first, packet[2..].to_vec()))
        };
        timeout(PATIENCE, next).await.expect("nothing comes")
    }

    /// Subscribes at QoS 1 to a filter of its own.
    pub async fn subscribe(&mut self, filter: &str) {
        let mut body = vec![0, 1];
        body.extend((self.level == 5).then_some(0));
        text(&mut body, filter);
        body.push(1);
        self.send(&packet(0x82, &body)).await;
        let (first, body) = self.packet().await.expect("a subscription is not answered");
        assert_eq!((first, body.last()), (0x90, Some(&1)), "SUBACK {body:?}");
    }

    /// There and back.
    pub async fn ping(&mut self) {
        self.send(&[0xC0, 0]).await;
        assert_eq!(self.packet().await, Some((0xD0, vec![])));
    }

    /// Waits for the end of the connection, and answers the reason that was said: none over 3.1.1.
    pub async fn ended(mut self) -> Option<u8> {
        let mut reason = None;
        while let Some((first, body)) = self.packet().await {
            if first == 0xE0 {
                reason = body.first().copied();
            }
        }
        reason
    }
}

async fn upgrade(io: &mut Box<dyn Io>) {
    let request = b"GET /mqtt HTTP/1.1\r\nhost: localhost\r\nconnection: upgrade\r\nupgrade: websocket\r\n\
        sec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
        sec-websocket-protocol: mqtt\r\n\r\n";
    io.write_all(request).await.unwrap();
    io.flush().await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(timeout(PATIENCE, io.read_u8()).await.expect("no answer").unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
}

fn connect(who: &Credentials, level: u8, id: &str, keep: bool) -> Vec<u8> {
    let user = format!("{}/{}", who.pool, who.member);
    let flags = if keep { 0xC0 } else { 0xC2 };
    // Session Expiry Interval: an hour.
    let properties: &[u8] = if keep { &[17, 0, 0, 14, 16] } else { &[] };
    connect_of(level, flags, properties, &[id, &user, &who.token])
}
